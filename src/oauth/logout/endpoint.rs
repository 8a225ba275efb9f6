//! The steps of signing out by way of a browser: a request, perhaps a question, the way back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    clock::AgreedClock,
    domain::{change::Cause, client::Client, id::ClientId},
    identity::session::{Present, Sessions},
    oauth::{
        authorization::endpoint::{Browser, of_session},
        error::{ErrorCode, OAuthError},
        form::Form,
        id_token::{Hint, InvalidHint},
        seals::{Purpose, Seals, over},
        store_answer,
    },
    registry::Snapshots,
};

/// What a request to sign out has come to.
pub enum Reply {
    /// The user is asked.
    Ask(SignOutPage),
    /// Nobody is signed in there any more.
    SignedOut {
        /// Where the browser goes: to the client that has asked, if it may be sent there.
        to: Option<String>,
    },
    /// The user would rather stay.
    Stay,
    /// The user is told what is wrong; nothing was ended, and nobody is sent anywhere.
    Refused(OAuthError),
}

/// What the page says on which users are asked whether they want to sign out.
pub struct SignOutPage {
    /// Who is signed in.
    pub username: String,
    /// The client that asks, if it says who it is.
    pub client_name: Option<String>,
    /// The question, sealed.
    pub form: String,
}

/// The question that a user is asked, as the browser keeps it.
#[derive(Deserialize, Serialize)]
struct Question {
    /// The session that it is about.
    session: String,
    /// The request as it came.
    query: String,
}

/// A request to sign out that is in order.
struct Request {
    /// What the client has by which to prove whom it means.
    hint: Option<Hint>,
    /// Who asks.
    client: Option<Arc<Client>>,
    /// Where the browser goes after that.
    to: Option<String>,
}

/// Signs users out of their browsers.
pub struct LogoutEndpoint {
    /// This issuer's identifier.
    pub issuer: String,
    /// Who has signed in where.
    pub sessions: Sessions,
    /// Clients and keys.
    pub snapshots: Arc<Snapshots>,
    /// Seals questions.
    pub seals: Seals,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
}

impl LogoutEndpoint {
    /// Answers a request to sign out.
    ///
    /// # Security
    /// Whoever sends a browser here chooses `query`. Only who has an ID Token that was issued in the
    /// session of this browser ends it at once; else the user is asked.
    pub async fn begin(&self, query: &str, browser: Browser<'_>) -> Reply {
        let answer = self.answer(query, browser).await;
        answer.unwrap_or_else(Reply::Refused)
    }

    /// Takes the answer to the question.
    ///
    /// # Security
    /// `body` comes from whoever sends the request. The question was sealed for this browser and its
    /// session: nobody can have another one's user sign out.
    pub async fn decide(&self, body: &[u8], browser: Browser<'_>) -> Reply {
        let decided = self.decided(body, browser).await;
        decided.unwrap_or_else(Reply::Refused)
    }

    async fn answer(&self, query: &str, browser: Browser<'_>) -> Result<Reply, OAuthError> {
        let request = self.read(query)?;
        let Some(present) = browser.present(&self.sessions).await? else {
            return Ok(Reply::SignedOut { to: request.to });
        };
        if let Some(hint) = &request.hint
            && self.is_of(hint, &present).await?
        {
            return self.end(&present, browser, request.to).await;
        }
        let question = Question {
            session: present.session.id.to_string(),
            query: query.to_owned(),
        };
        let now = self.clock.now();
        let form = self
            .seals
            .seal(Purpose::Logout, &question, now, browser.binding)?;
        Ok(Reply::Ask(SignOutPage {
            username: present.user.username,
            client_name: request.client.map(|client| client.client_name.clone()),
            form,
        }))
    }

    /// Whether an ID Token was issued in this session. Of another one, perhaps of long ago and of
    /// another device, it says nothing of what its user wants in this browser.
    async fn is_of(&self, hint: &Hint, present: &Present) -> Result<bool, OAuthError> {
        if hint.subject != present.session.subject {
            return Ok(false);
        }
        let reading = self.sessions.store.family(hint.family);
        let family = store_answer(&self.clock, reading).await?;
        Ok(family.is_some_and(|(family, _)| family.grant.session_id == Some(present.session.id)))
    }

    async fn decided(&self, body: &[u8], browser: Browser<'_>) -> Result<Reply, OAuthError> {
        let form = Form::of_body(body)?;
        let text = form.one("form")?.ok_or_else(over)?;
        let question: Question = self.seals.open(Purpose::Logout, text, browser.binding)?;
        if form.one("decision")? != Some("sign_out") {
            return Ok(Reply::Stay);
        }
        // Clients count as they are by now.
        let to = self.read(&question.query)?.to;
        match browser.present(&self.sessions).await? {
            None => Ok(Reply::SignedOut { to }),
            Some(present) if present.session.id.to_string() == question.session => {
                self.end(&present, browser, to).await
            }
            // Somebody has signed in since.
            Some(_) => Err(over()),
        }
    }

    async fn end(
        &self,
        present: &Present,
        browser: Browser<'_>,
        to: Option<String>,
    ) -> Result<Reply, OAuthError> {
        let cause = Cause::of_user(present.session.subject, browser.origin);
        let ended = self.sessions.end(present.session.id, &cause).await;
        ended.map_err(of_session)?;
        Ok(Reply::SignedOut { to })
    }

    /// Reads a request (RP-Initiated Logout §2, §3). `logout_hint` and `ui_locales` ask for what there
    /// is not, and are ignored, as is what is unknown.
    fn read(&self, query: &str) -> Result<Request, OAuthError> {
        let form = Form::of_body(query.as_bytes())?;
        for ignored in ["logout_hint", "ui_locales"] {
            form.one(ignored)?;
        }
        let keys = self.snapshots.ring().id_token_keys();
        let read = |token: &str| Hint::read(token, &self.issuer, &keys);
        let hint = form.one("id_token_hint")?.map(read).transpose();
        // Nothing is believed that a key has signed which was revoked. That is no fault of the client,
        // which has no other ID Token: its user is asked.
        let is_void = matches!(hint, Err(InvalidHint::Revoked));
        let hint = match hint {
            Err(InvalidHint::Unknown) => {
                return Err(refusal(
                    "id_token_hint",
                    "id_token_hint is no ID Token of this issuer",
                ));
            }
            hint => hint.ok().flatten(),
        };
        let named = form.one("client_id")?.map(ClientId::parse).transpose();
        let named = named.map_err(|_| unknown_client())?;
        // "the OP MUST verify that the Client Identifier matches the one used when issuing the ID
        // Token" (§2).
        if let (Some(hint), Some(named)) = (&hint, &named)
            && hint.client_id != *named
        {
            return Err(refusal(
                "client_id",
                "client_id is not the client that id_token_hint was issued to",
            ));
        }
        let registry = self.snapshots.registry();
        let id = named.as_ref().or(hint.as_ref().map(|hint| &hint.client_id));
        let client = match id {
            Some(id) => Some(registry.client(id).cloned().ok_or_else(unknown_client)?),
            None => None,
        };
        let state = form.one("state")?;
        let to = match form.one("post_logout_redirect_uri")? {
            // Nobody can tell whose it is.
            Some(_) if is_void && client.is_none() => None,
            uri => uri
                .map(|uri| way_back(uri, state, client.as_deref()))
                .transpose()?,
        };
        Ok(Request { hint, client, to })
    }
}

/// Where a client has its users sent after they have signed out: "the value … MUST have been previously
/// registered with the OP" (§3.1), exactly so, by a client that has said who it is.
fn way_back(uri: &str, state: Option<&str>, client: Option<&Client>) -> Result<String, OAuthError> {
    let uris = client.map(|client| &client.post_logout_redirect_uris[..]);
    let Some(uris) = uris else {
        return Err(refusal(
            "post_logout_redirect_uri",
            "post_logout_redirect_uri needs an id_token_hint or a client_id beside it",
        ));
    };
    if !uris.iter().any(|registered| registered.as_str() == uri) {
        return Err(refusal(
            "post_logout_redirect_uri",
            "post_logout_redirect_uri is not registered for the client",
        ));
    }
    let Some(state) = state else {
        return Ok(uri.to_owned());
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("state", state);
    let separator = if uri.contains('?') { '&' } else { '?' };
    Ok(format!("{uri}{separator}{}", query.finish()))
}

const fn refusal(reason: &'static str, description: &'static str) -> OAuthError {
    OAuthError::new(ErrorCode::InvalidRequest, reason, description)
}

const fn unknown_client() -> OAuthError {
    refusal("client_id", "there is no such client")
}
