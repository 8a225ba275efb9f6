//! The steps of signing in by way of a browser: a request, a sign-in, a consent, a code.

use std::{collections::BTreeSet, sync::Arc};

use countersign_verifier::base64url;
use serde::{Deserialize, Serialize};

use super::request::{AuthorizationRequest, Known, Rejection, ReturnAddress, Step};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Origin},
        code::{AuthorizationCode, CODE_LIFE},
        consent::{Consent, Permission},
        family::{Grant, Party},
        secret::Ticket,
    },
    entropy::Entropy,
    identity::{
        session::{Present, SessionError, Sessions},
        sign_in::{METHOD, Place, Refused, SignIn},
    },
    keys::mac::MacError,
    oauth::{
        codes,
        error::{ErrorCode, OAuthError},
        form::Form,
        store_answer,
    },
    registry::Snapshots,
    store::Store,
};

/// How long a user may take between two steps.
const LONGEST_STEP: std::time::Duration = std::time::Duration::from_mins(30);

/// What a browser has sent along.
#[derive(Clone, Copy)]
pub struct Browser<'a> {
    /// The cookie that tells it from others.
    pub binding: &'a str,
    /// The cookie of its session.
    pub session: Option<&'a str>,
    /// Where the request came from.
    pub origin: &'a Origin,
}

/// Which of the pages a form is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// That of the sign-in: a name and a password.
    SignIn,
    /// The same, by a user who does not want to sign in.
    Cancel,
    /// That of the consent: a decision.
    Consent,
}

/// What a request has come to.
pub struct Answer {
    /// What the user or the client is answered.
    pub reply: Reply,
    /// The session that was opened, for its cookie.
    pub session: Option<Ticket>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            session: None,
        }
    }
}

/// What the user or the client is answered.
pub enum Reply {
    /// The user is asked to sign in.
    SignIn(SignInPage),
    /// The user is asked for consent.
    Consent(ConsentPage),
    /// The client gets its answer, by way of the browser.
    Return {
        /// Where it goes.
        to: ReturnAddress,
        /// What is in it.
        parameters: Vec<(&'static str, String)>,
    },
    /// The user is told what is wrong; nobody else is.
    Refused(OAuthError),
}

/// What the page says on which users sign in.
pub struct SignInPage {
    /// The client that asks.
    pub client_name: String,
    /// What is filled in already.
    pub username: String,
    /// What was wrong with the last try.
    pub problem: Option<OAuthError>,
    /// The request, sealed.
    pub flow: String,
}

/// What the page says on which users consent.
pub struct ConsentPage {
    /// The client that asks.
    pub client_name: String,
    /// Who is asked.
    pub username: String,
    /// Where the browser goes after that.
    pub host: String,
    /// What the client asks for: scope tokens, each with the name of the resource it is for.
    pub grants: Vec<(String, String)>,
    /// The request, sealed.
    pub flow: String,
}

/// A request on its way through the steps, as the browser keeps it.
#[derive(Deserialize, Serialize)]
struct Flow {
    /// The request as it came.
    query: String,
    /// When it came, in milliseconds since 1970.
    begun_at: i64,
    /// What was shown on a page of consent; none on others.
    shown: Option<Shown>,
}

/// What a user is asked for consent to: that, and nothing else, is what the answer is about.
#[derive(Deserialize, PartialEq, Eq, Serialize)]
struct Shown {
    /// The session of who is asked.
    session: String,
    /// The client's epoch.
    client_epoch: i64,
    /// Each line.
    permissions: Vec<(String, String)>,
}

impl Shown {
    fn of(
        request: &AuthorizationRequest,
        present: &Present,
        permissions: &BTreeSet<Permission>,
    ) -> Self {
        let lines = permissions.iter();
        Self {
            session: present.session.id.to_string(),
            client_epoch: request.client.session_epoch,
            permissions: lines
                .map(|(uri, token)| (uri.as_str().to_owned(), token.clone()))
                .collect(),
        }
    }
}

/// Signs users in for clients.
pub struct AuthorizationEndpoint {
    /// This issuer's identifier.
    pub issuer: String,
    /// Tells whether passwords are right.
    pub sign_in: Arc<SignIn>,
    /// Who has signed in where.
    pub sessions: Sessions,
    /// Where codes and consents are kept.
    pub store: Arc<dyn Store>,
    /// Clients, resources and keys.
    pub snapshots: Arc<Snapshots>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws codes.
    pub entropy: Entropy,
}

impl AuthorizationEndpoint {
    /// Draws what tells a browser from others; empty without randomness, and then nothing can be
    /// sealed for it either.
    pub fn draw_binding(&self) -> String {
        let drawn = self.entropy.bytes::<16>();
        drawn.map_or_else(|_| String::new(), |bytes| base64url::encode(&bytes))
    }

    /// Answers an authorization request.
    ///
    /// # Security
    /// Whoever sends a browser here chooses `query`.
    pub async fn begin(&self, query: &str, browser: Browser<'_>) -> Answer {
        let flow = Flow {
            query: query.to_owned(),
            begun_at: self.clock.now().millis(),
            shown: None,
        };
        self.go_on(&flow, browser, None, false).await
    }

    /// Takes a form of one of the pages.
    ///
    /// # Security
    /// `body` comes from whoever sends the request. What it goes on with was sealed for this browser:
    /// nobody can have another one's user sign in to, or allow, something of theirs.
    pub async fn submit(&self, page: Submitted, body: &[u8], browser: Browser<'_>) -> Answer {
        let taken = self.take(page, body, browser).await;
        taken.unwrap_or_else(|error| Reply::Refused(error).into())
    }

    async fn take(
        &self,
        page: Submitted,
        body: &[u8],
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let (form, flow) = self.taken_up(body, browser)?;
        match page {
            Submitted::SignIn => self.sign_in(&form, &flow, browser).await,
            Submitted::Consent if form.one("decision")? == Some("allow") => {
                Ok(self.go_on(&flow, browser, None, true).await)
            }
            Submitted::Consent | Submitted::Cancel => Ok(self.turn_down(&flow)),
        }
    }

    /// Takes a name and a password.
    async fn sign_in(
        &self,
        form: &Form,
        flow: &Flow,
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let username = form.one("username")?.unwrap_or_default();
        let password = form.one("password")?.unwrap_or_default();
        let place = Place::of_browser(browser.origin);
        let verified = self.sign_in.verify(username, password, place.as_ref());
        let user = match verified.await {
            Ok(user) => user,
            Err(refused) => return self.ask_again(flow, browser, username, told(refused)),
        };
        let before = self.present(browser).await?;
        let cause = Cause::of_user(user.id, browser.origin);
        let amr = vec![METHOD.to_owned()];
        let opened = self.sessions.open(&user, amr, &cause, before.as_ref());
        let (present, cookie) = opened.await.map_err(of_session)?;
        Ok(Answer {
            session: Some(cookie),
            ..self.go_on(flow, browser, Some(present), false).await
        })
    }

    fn turn_down(&self, flow: &Flow) -> Answer {
        match self.read(flow) {
            Ok(request) => refused(
                request.return_address,
                &OAuthError::new(
                    ErrorCode::AccessDenied,
                    "access_denied",
                    "the user has not allowed it",
                ),
            ),
            Err(rejection) => Self::rejected(rejection),
        }
    }

    fn ask_again(
        &self,
        flow: &Flow,
        browser: Browser<'_>,
        username: &str,
        problem: OAuthError,
    ) -> Result<Answer, OAuthError> {
        let request = match self.read(flow) {
            Ok(request) => request,
            Err(rejection) => return Ok(Self::rejected(rejection)),
        };
        let page = SignInPage {
            client_name: request.client.client_name.clone(),
            username: username.to_owned(),
            problem: Some(problem),
            flow: self.sealed(flow, browser)?,
        };
        Ok(Reply::SignIn(page).into())
    }

    /// Does what is left to do for a request, up to the next question to its user.
    async fn go_on(
        &self,
        flow: &Flow,
        browser: Browser<'_>,
        signed_in: Option<Present>,
        allows: bool,
    ) -> Answer {
        let request = match self.read(flow) {
            Ok(request) => request,
            Err(rejection) => return Self::rejected(rejection),
        };
        match self.step(flow, &request, browser, signed_in, allows).await {
            Ok(reply) => reply.into(),
            Err(error) => refused(request.return_address, &error),
        }
    }

    async fn step(
        &self,
        flow: &Flow,
        request: &AuthorizationRequest,
        browser: Browser<'_>,
        signed_in: Option<Present>,
        allows: bool,
    ) -> Result<Reply, OAuthError> {
        let present = match signed_in {
            Some(present) => Some(present),
            None => self.present(browser).await?,
        };
        let client_id = &request.client.client_id;
        let permissions = request.permissions(&self.snapshots.registry());
        let before = match &present {
            Some(present) if !request.client.first_party => {
                let reading = self.store.consent(present.session.subject, client_id);
                let consent = store_answer(&self.clock, reading).await?;
                consent.filter(|consent| consent.client_epoch == request.client.session_epoch)
            }
            _ => None,
        };
        // The page may be old: another user may have signed in since, or the client may ask for more.
        let has_consented = allows
            && present.as_ref().is_some_and(|present| {
                flow.shown == Some(Shown::of(request, present, &permissions))
            });
        let is_allowed = before
            .as_ref()
            .is_some_and(|consent| permissions.is_subset(&consent.permissions));
        let known = Known {
            session: present.as_ref().map(|present| &present.session),
            is_allowed,
            has_consented,
        };
        let begun_at = Timestamp::from_millis(flow.begun_at);
        let step = request.next(known, begun_at, self.clock.now())?;
        if let (Step::Issue, Some(present), true) = (step, &present, has_consented)
            && !request.client.first_party
        {
            let mut all = permissions.clone();
            all.extend(before.into_iter().flat_map(|before| before.permissions));
            let consent = Consent {
                subject: present.session.subject,
                client_id: client_id.clone(),
                client_epoch: request.client.session_epoch,
                permissions: all,
                given_at: self.clock.now(),
            };
            store_answer(&self.clock, self.store.put_consent(&consent)).await?;
        }
        match (step, present) {
            (Step::Issue, Some(present)) => self.issue(request, &present).await,
            (Step::Consent, Some(present)) => {
                self.ask_for_consent(flow, request, browser, (&present, &permissions))
            }
            _ => Ok(Reply::SignIn(SignInPage {
                client_name: request.client.client_name.clone(),
                username: request.asked.login_hint.clone().unwrap_or_default(),
                problem: None,
                flow: self.sealed(flow, browser)?,
            })),
        }
    }

    fn ask_for_consent(
        &self,
        flow: &Flow,
        request: &AuthorizationRequest,
        browser: Browser<'_>,
        (present, permissions): (&Present, &BTreeSet<Permission>),
    ) -> Result<Reply, OAuthError> {
        let registry = self.snapshots.registry();
        let grants = permissions.iter().map(|(uri, token)| {
            let resource = registry.resource(uri);
            let name = resource.map_or(uri.as_str(), |resource| &resource.name);
            (token.clone(), name.to_owned())
        });
        let asking = Flow {
            query: flow.query.clone(),
            begun_at: flow.begun_at,
            shown: Some(Shown::of(request, present, permissions)),
        };
        Ok(Reply::Consent(ConsentPage {
            client_name: request.client.client_name.clone(),
            username: present.user.username.clone(),
            host: host_of(&request.return_address.redirect_uri),
            grants: grants.collect(),
            flow: self.sealed(&asking, browser)?,
        }))
    }

    async fn issue(
        &self,
        request: &AuthorizationRequest,
        present: &Present,
    ) -> Result<Reply, OAuthError> {
        let session = &present.session;
        let named = request.names_redirect_uri;
        let code = AuthorizationCode {
            grant: Grant {
                client_id: request.client.client_id.clone(),
                client_epoch: request.client.session_epoch,
                subject: session.subject,
                user_epoch: session.user_epoch,
                session_id: Some(session.id),
                scope: request.asked.scope.clone(),
                resources: request.asked.resources.clone(),
                auth_time: session.auth_time,
                amr: session.amr.clone(),
                dpop_jkt: None,
            },
            redirect_uri: named.then(|| request.return_address.redirect_uri.clone()),
            code_challenge: Some(request.asked.code_challenge.clone()),
            nonce: request.asked.nonce.clone(),
            expires_at: self.clock.now().plus(CODE_LIFE),
            family_id: None,
        };
        let issued = codes::issue(&*self.store, &self.clock, &self.entropy, &code).await?;
        let text = issued.ok_or(OAuthError::new(
            ErrorCode::AccessDenied,
            "sessions_ended",
            "the sessions of the user, or of the client, have just been ended",
        ))?;
        Ok(Reply::Return {
            to: request.return_address.clone(),
            parameters: vec![("code", text.expose().to_owned())],
        })
    }

    async fn present(&self, browser: Browser<'_>) -> Result<Option<Present>, OAuthError> {
        let Some(cookie) = browser.session else {
            return Ok(None);
        };
        let party = Party::of_origin(browser.origin);
        let found = self.sessions.find(cookie, &party).await;
        found.map_err(of_session)
    }

    fn read(&self, flow: &Flow) -> Result<AuthorizationRequest, Rejection> {
        let form = Form::of_body(flow.query.as_bytes()).map_err(Rejection::Shown)?;
        AuthorizationRequest::read(&form, &self.snapshots.registry())
    }

    fn sealed(&self, flow: &Flow, browser: Browser<'_>) -> Result<String, OAuthError> {
        let plain = serde_json::to_vec(flow).map_err(OAuthError::internal)?;
        let bound_to = browser.binding.as_bytes();
        let (ring, now) = (self.snapshots.mac_ring(), self.clock.now());
        ring.seal(&plain, bound_to, &self.entropy, now)
            .map_err(OAuthError::internal)
    }

    /// The request that a form goes on with.
    fn taken_up(&self, body: &[u8], browser: Browser<'_>) -> Result<(Form, Flow), OAuthError> {
        let form = Form::of_body(body)?;
        let text = form.one("flow")?.ok_or_else(over)?;
        let now = self.clock.now();
        let opened = self
            .snapshots
            .mac_ring()
            .unseal(text, browser.binding.as_bytes(), now);
        let plain = opened.map_err(|error| match error {
            MacError::Malformed(_) | MacError::Forged | MacError::KeyGone => over(),
            MacError::UnknownKey => OAuthError::no_database(),
        })?;
        let flow: Flow = serde_json::from_slice(&plain).map_err(OAuthError::internal)?;
        if now.since(Timestamp::from_millis(flow.begun_at)) > LONGEST_STEP {
            return Err(over());
        }
        Ok((form, flow))
    }

    fn rejected(rejection: Rejection) -> Answer {
        match rejection {
            Rejection::Shown(error) => Reply::Refused(error).into(),
            Rejection::Returned(to, error) => refused(*to, &error),
        }
    }
}

/// Tells a client that it gets nothing (RFC 6749 §4.1.2.1).
fn refused(to: ReturnAddress, error: &OAuthError) -> Answer {
    let code = error.code();
    if matches!(
        code,
        ErrorCode::ServerError | ErrorCode::TemporarilyUnavailable
    ) {
        let cause: &dyn std::error::Error = error;
        tracing::error!(cause, "an authorization request failed");
    }
    let parameters = vec![
        ("error", error.code().as_str().to_owned()),
        ("error_description", error.description().to_owned()),
    ];
    Reply::Return { to, parameters }.into()
}

/// Where a browser goes, in words that its user can judge.
fn host_of(redirect_uri: &str) -> String {
    match url::Url::parse(redirect_uri) {
        Ok(uri) => match (uri.scheme(), uri.host_str()) {
            ("http" | "https", Some(host)) => host.to_owned(),
            // Whatever stands behind it, the app decides.
            (scheme, _) => format!("the app {scheme}"),
        },
        Err(_) => redirect_uri.to_owned(),
    }
}

/// The refusal of a step that belongs to no request of this browser, or comes too late.
const fn over() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidRequest,
        "flow",
        "this page is too old, or was opened in another browser; go back to the app and begin anew",
    )
}

/// What is said to whoever is not signed in.
fn told(refused: Refused) -> OAuthError {
    match refused {
        Refused::Credentials => OAuthError::new(
            ErrorCode::AccessDenied,
            "credentials",
            "The user name or the password is wrong.",
        ),
        Refused::TooOften(wait) => OAuthError::too_often(
            wait,
            "Signing in has failed too often from here. Try again in a moment.",
        ),
        Refused::Busy(_) => OAuthError::new(
            ErrorCode::TemporarilyUnavailable,
            "busy",
            "Too many people are signing in. Try again in a moment.",
        ),
        Refused::Store(error) => OAuthError::of_store(error),
    }
}

fn of_session(error: SessionError) -> OAuthError {
    match error {
        SessionError::Store(error) => OAuthError::of_store(error),
        SessionError::Entropy(error) => OAuthError::internal(error),
    }
}
