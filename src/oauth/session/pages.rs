//! Pages that turn the cookie of their browser into access tokens, and sign out.

use std::sync::Arc;

use serde::Deserialize;

use super::{SessionTokens, login_required};
use crate::{
    domain::{
        change::{Cause, Origin},
        client::Client,
        family::Party,
    },
    identity::session::{Present, Sessions},
    oauth::{
        access_token::Target,
        authorization::endpoint::of_session,
        client_auth::Authenticator,
        error::{ErrorCode, OAuthError},
        form::Form,
        token::TokenResponse,
    },
};

/// What is counted as the grant of a token for a page.
const GRANT: &str = "session";

/// What is counted as the outcome of a request that got its token.
const ISSUED: &str = "issued";

/// A request of a page.
#[derive(Clone, Copy)]
pub struct PageRequest<'a> {
    /// What it says, as JSON.
    pub body: &'a [u8],
    /// The origin of the page, as its browser tells it.
    pub page: &'a str,
    /// The cookie of its browser.
    pub cookie: Option<&'a str>,
    /// Where the request came from.
    pub origin: &'a Origin,
}

/// What a page is answered.
pub struct PageAnswer<T> {
    /// The answer.
    pub result: Result<T, OAuthError>,
    /// Whether the page may read it: it is one of the client that it names.
    pub is_readable: bool,
    /// Whether the cookie is good for nothing any more.
    pub is_cookie_dead: bool,
}

/// What a page says. What it says beyond that is ignored (RFC 6749 §3.2).
#[derive(Deserialize)]
struct Said {
    client_id: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    resource: Resources,
}

/// One resource, or several (RFC 8707 §2).
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Resources {
    #[default]
    None,
    One(String),
    Several(Vec<String>),
}

impl Said {
    /// The same as the parameters of a token request.
    fn form(self) -> Form {
        let resources = match self.resource {
            Resources::None => Vec::new(),
            Resources::One(resource) => vec![resource],
            Resources::Several(resources) => resources,
        };
        let resources = resources.into_iter().map(|it| ("resource".to_owned(), it));
        let others = [("client_id", self.client_id), ("scope", self.scope)];
        let others = others.map(|(name, value)| (name.to_owned(), value));
        Form::of_pairs(others.into_iter().chain(resources))
    }
}

/// Answers the pages of clients with session tokens.
///
/// # Security
/// Requests bring a cookie along whoever has caused them. What they ask for is done for a page alone
/// whose origin is registered for the client that it names, exactly; that browsers let no other page
/// send such a request without asking first is seen to where they are read.
pub struct SessionPages {
    /// Tells which client is meant, within the limits of the token endpoint.
    pub authenticator: Arc<Authenticator>,
    /// Who has signed in where.
    pub sessions: Sessions,
    /// Mints the tokens.
    pub tokens: SessionTokens,
}

impl SessionPages {
    /// Turns the session of a browser into an access token.
    ///
    /// # Security
    /// All of the request but `origin` comes from whoever sends it.
    pub async fn token(&self, request: PageRequest<'_>) -> PageAnswer<TokenResponse> {
        let answer = self.answer(request, async |client, form| {
            let present = self.present(request).await?;
            let present = present.ok_or_else(|| login_required("login_required"))?;
            let target = {
                let registry = self.tokens.minter.snapshots.registry();
                Target::for_users(client, &registry, form)?
            };
            let whose = (present.session.id, present.session.subject);
            let live = self.tokens.live(client, whose, request.origin).await?;
            let (token, scope) = self.tokens.mint(client, &live, target).await?;
            Ok(TokenResponse {
                access_token: token.token,
                token_type: "Bearer",
                expires_in: token.expires_in,
                refresh_token: None,
                id_token: None,
                scope: scope.to_string(),
            })
        });
        let answer = answer.await;
        let outcome = answer
            .result
            .as_ref()
            .err()
            .map_or(ISSUED, OAuthError::reason);
        self.tokens.minter.metrics.token_request(GRANT, outcome);
        answer
    }

    /// Ends the session of a browser, and with it what it has brought everywhere. For a page of a
    /// client that its user has allowed something, or that is of the house.
    ///
    /// # Errors
    /// `login_required` for a cookie that is not known: it may have been replaced a moment ago, and the
    /// session lives on under another one. `consent_required`.
    ///
    /// # Security
    /// As [`Self::token`].
    pub async fn sign_out(&self, request: PageRequest<'_>) -> PageAnswer<()> {
        let ending = self.answer(request, async |client, _| {
            let Some(cookie) = request.cookie else {
                return Ok(());
            };
            let Some(present) = self.present(request).await? else {
                return match self.sessions.is_over(cookie).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(login_required("unknown_session")),
                    Err(error) => Err(of_session(error)),
                };
            };
            // Nobody has its users' session end whose users do not know it.
            self.tokens.consent(client, present.session.subject).await?;
            let mut cause = Cause::of_user(present.session.subject, request.origin);
            cause.reason = Some(format!("signed out at {}", client.client_id));
            let ended = self.sessions.end(present.session.id, &cause);
            ended.await.map_err(of_session)
        });
        let mut answer = ending.await;
        answer.is_cookie_dead |= answer.result.is_ok();
        answer
    }

    async fn answer<T>(
        &self,
        request: PageRequest<'_>,
        act: impl AsyncFnOnce(&Client, &Form) -> Result<T, OAuthError>,
    ) -> PageAnswer<T> {
        let (client, form) = match self.client(request).await {
            Ok(read) => read,
            Err(error) => {
                return PageAnswer {
                    result: Err(error),
                    is_readable: false,
                    is_cookie_dead: false,
                };
            }
        };
        let result = act(&client, &form).await;
        let may_be_dead = result
            .as_ref()
            .is_err_and(|error| error.code() == ErrorCode::LoginRequired);
        let is_cookie_dead = match request.cookie {
            Some(cookie) if may_be_dead => self.sessions.is_over(cookie).await.unwrap_or(false),
            _ => false,
        };
        PageAnswer {
            result,
            is_readable: true,
            is_cookie_dead,
        }
    }

    /// The client that a page is of.
    async fn client(&self, request: PageRequest<'_>) -> Result<(Arc<Client>, Form), OAuthError> {
        let said: Said = serde_json::from_slice(request.body).map_err(|_| {
            OAuthError::malformed(
                "the body must be a JSON object with client_id, and perhaps scope and resource",
            )
        })?;
        let form = said.form();
        let authenticating = self.authenticator.authenticate(None, &form, request.origin);
        let client = authenticating.await?;
        if !client.session_tokens {
            return Err(OAuthError::new(
                ErrorCode::UnauthorizedClient,
                "session_tokens",
                "the client may not use the session of a browser",
            ));
        }
        if !client.allowed_origins.iter().any(|it| it == request.page) {
            return Err(OAuthError::new(
                ErrorCode::InvalidRequest,
                "origin",
                "the page is none of the client's: its origin is not one of allowed_origins",
            ));
        }
        Ok((client, form))
    }

    async fn present(&self, request: PageRequest<'_>) -> Result<Option<Present>, OAuthError> {
        let Some(cookie) = request.cookie else {
            return Ok(None);
        };
        let party = Party::of_origin(request.origin);
        let found = self.sessions.find(cookie, &party).await;
        found.map_err(of_session)
    }
}
