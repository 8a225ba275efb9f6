//! The steps of signing in by way of a browser: a request, a sign-in, a consent, a code.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    flow::{Errand, Flow, Shown},
    request::{AuthorizationRequest, Known, Rejection, ReturnAddress, Step},
    second_factor::{CodesPage, EnrolPage, FactorPage},
};
use crate::{
    clock::AgreedClock,
    domain::{
        change::{Cause, Change, Origin},
        client::Client,
        code::{AuthorizationCode, CODE_LIFE},
        consent::{Consent, Permission},
        factor::method,
        family::{Grant, Party},
        id::UserId,
        secret::Ticket,
    },
    entropy::Entropy,
    identity::{
        factor::SecondFactors,
        session::{Present, SessionError, Sessions},
        sign_in::{Place, Refused, SignIn},
    },
    oauth::{
        codes,
        error::{ErrorCode, OAuthError},
        form::Form,
        id_token::{self, Hint},
        seals::{Seals, is_over, over},
        store_answer,
    },
    registry::{Snapshots, Told},
    store::{self, Store, StoreError},
};
use countersign_verifier::base64url;

/// How often a consent is kept anew when another one came in between.
const ATTEMPTS: u32 = 8;

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

impl Browser<'_> {
    /// Who is signed in there, if anybody is.
    pub async fn present(self, sessions: &Sessions) -> Result<Option<Present>, OAuthError> {
        let Some(cookie) = self.session else {
            return Ok(None);
        };
        let party = Party::of_origin(self.origin);
        sessions.find(cookie, &party).await.map_err(of_session)
    }
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
    /// That of the second factor: a code.
    Factor,
    /// The same, or that of the sign-in: a passkey.
    Passkey,
    /// That of the enrolment of an app: its first code.
    Enrol,
    /// That of the recovery codes: the user has kept them.
    Continue,
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
    /// The user is asked for a second factor.
    Factor(FactorPage),
    /// The user has to enrol a second factor.
    Enrol(EnrolPage),
    /// The user is shown recovery codes, once.
    Codes(CodesPage),
    /// The user is asked for consent.
    Consent(ConsentPage),
    /// The client gets its answer, by way of the browser.
    Return {
        /// Where it goes.
        to: ReturnAddress,
        /// What is in it.
        parameters: Vec<(&'static str, String)>,
    },
    /// The user has signed in for its own account.
    Account,
    /// The user is told what is wrong; nobody else is.
    Refused(OAuthError),
    /// The user is told the same of a page that is over, and may begin anew with the query of the request
    /// that the page was for.
    Over(OAuthError, String),
}

/// What the page says on which users sign in.
pub struct SignInPage {
    /// The client that asks; none where a user means its own account.
    pub client_name: Option<String>,
    /// What is filled in already.
    pub username: String,
    /// What the browser is asked for a passkey: JSON.
    pub passkey: Option<String>,
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
    /// What the client asks for.
    pub grants: Vec<Told>,
    /// The request, sealed.
    pub flow: String,
}

/// Signs users in for clients.
pub struct AuthorizationEndpoint {
    /// This issuer's identifier.
    pub issuer: String,
    /// Tells whether passwords are right.
    pub sign_in: Arc<SignIn>,
    /// Second factors.
    pub factors: Arc<SecondFactors>,
    /// Who has signed in where.
    pub sessions: Sessions,
    /// Where codes and consents are kept.
    pub store: Arc<dyn Store>,
    /// Clients and resources.
    pub snapshots: Arc<Snapshots>,
    /// Seals what goes from page to page.
    pub seals: Seals,
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
        let query = query.to_owned();
        self.run(Errand::Authorize { query }, browser).await
    }

    /// Asks a user to sign in for its own account, unless it has.
    pub async fn begin_account(&self, browser: Browser<'_>) -> Answer {
        self.run(Errand::Account, browser).await
    }

    /// Asks a user of this name to sign in once more for its own account, whoever is signed in.
    pub fn confirm_account(&self, username: String, browser: Browser<'_>) -> Answer {
        let flow = Flow::begin(Errand::Account, self.clock.now());
        let problem = OAuthError::new(
            ErrorCode::AccessDenied,
            "reauthentication",
            "You signed in a while ago. For this, sign in once more.",
        );
        let asked = self.ask(&flow, None, browser, username, Some(problem));
        asked.unwrap_or_else(Reply::Refused).into()
    }

    async fn run(&self, errand: Errand, browser: Browser<'_>) -> Answer {
        let flow = Flow::begin(errand, self.clock.now());
        self.go_on(&flow, browser, None, false).await
    }

    /// Takes a form of one of the pages.
    ///
    /// # Security
    /// `body` comes from whoever sends the request. What it goes on with was sealed for this browser:
    /// nobody can have another one's user sign in to, or allow, something of theirs.
    pub async fn submit(&self, page: Submitted, body: &[u8], browser: Browser<'_>) -> Answer {
        let taken = self.take(page, body, browser).await;
        taken.unwrap_or_else(|error| self.begin_anew(error, body, browser).into())
    }

    /// Where a page of this browser is over, lets its user begin with the same request once more.
    fn begin_anew(&self, error: OAuthError, body: &[u8], browser: Browser<'_>) -> Reply {
        let form = Form::of_body(body).ok().filter(|_| is_over(&error));
        let query = form.and_then(|it| Flow::query_of_old(&it, &self.seals, browser.binding));
        match query {
            Some(query) => Reply::Over(error, query),
            None => Reply::Refused(error),
        }
    }

    async fn take(
        &self,
        page: Submitted,
        body: &[u8],
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let form = Form::of_body(body)?;
        let flow = Flow::of_form(&form, &self.seals, browser.binding)?;
        match page {
            Submitted::SignIn => self.sign_in(&form, &flow, browser).await,
            Submitted::Factor => self.take_code(&form, &flow, browser).await,
            Submitted::Passkey => self.take_passkey(&form, &flow, browser).await,
            Submitted::Enrol => self.take_enrolment(&form, &flow, browser).await,
            Submitted::Continue => Ok(self.go_on(&flow, browser, None, false).await),
            Submitted::Consent if form.one("decision")? == Some("allow") => {
                Ok(self.go_on(&flow, browser, None, true).await)
            }
            Submitted::Consent if form.one("decision")? == Some("switch") => {
                self.switch(&flow, browser)
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
        let amr = vec![method::PASSWORD.to_owned()];
        self.after_password(flow, &user, amr, browser).await
    }

    /// Asks another user to sign in for the same request, in place of the one who is signed in.
    fn switch(&self, flow: &Flow, browser: Browser<'_>) -> Result<Answer, OAuthError> {
        let request = match self.read(&flow.errand) {
            Ok(request) => request,
            Err(rejection) => return Ok(Self::rejected(rejection)),
        };
        let flow = Flow {
            shown: None,
            ..flow.clone()
        };
        let asked = self.ask(&flow, request.as_ref(), browser, String::new(), None);
        asked.map(Answer::from)
    }

    fn turn_down(&self, flow: &Flow) -> Answer {
        match self.read(&flow.errand) {
            Ok(Some(request)) => refused(
                request.return_address,
                &OAuthError::new(
                    ErrorCode::AccessDenied,
                    "access_denied",
                    "the user has not allowed it",
                ),
            ),
            // Where nobody is signed in, that is the page to sign in on.
            Ok(None) => Reply::Account.into(),
            Err(rejection) => Self::rejected(rejection),
        }
    }

    pub(super) fn ask_again(
        &self,
        flow: &Flow,
        browser: Browser<'_>,
        username: &str,
        problem: OAuthError,
    ) -> Result<Answer, OAuthError> {
        let request = match self.read(&flow.errand) {
            Ok(request) => request,
            Err(rejection) => return Ok(Self::rejected(rejection)),
        };
        let asked = self.ask(
            flow,
            request.as_ref(),
            browser,
            username.to_owned(),
            Some(problem),
        );
        asked.map(Answer::from)
    }

    /// Asks a user to sign in, for a client or for its own account.
    pub(super) fn ask(
        &self,
        flow: &Flow,
        request: Option<&AuthorizationRequest>,
        browser: Browser<'_>,
        username: String,
        problem: Option<OAuthError>,
    ) -> Result<Reply, OAuthError> {
        let (passkey, flow) = self.with_passkey(flow, &[])?;
        Ok(Reply::SignIn(SignInPage {
            passkey,
            client_name: request.map(|request| request.client.client_name.clone()),
            username,
            problem,
            flow: flow.seal(&self.seals, browser.binding)?,
        }))
    }

    /// Does what is left to do for a request, up to the next question to its user.
    pub(super) async fn go_on(
        &self,
        flow: &Flow,
        browser: Browser<'_>,
        signed_in: Option<Present>,
        allows: bool,
    ) -> Answer {
        let request = match self.read(&flow.errand) {
            Ok(Some(request)) => request,
            Ok(None) => {
                let reply = self.to_account(flow, browser, signed_in).await;
                return reply.unwrap_or_else(Reply::Refused).into();
            }
            Err(rejection) => return Self::rejected(rejection),
        };
        match self.step(flow, &request, browser, signed_in, allows).await {
            Ok(reply) => reply.into(),
            Err(error) => refused(request.return_address, &error),
        }
    }

    /// Goes on to the user's account, or asks it to sign in.
    async fn to_account(
        &self,
        flow: &Flow,
        browser: Browser<'_>,
        signed_in: Option<Present>,
    ) -> Result<Reply, OAuthError> {
        if signed_in.is_some() || browser.present(&self.sessions).await?.is_some() {
            return Ok(Reply::Account);
        }
        self.ask(flow, None, browser, String::new(), None)
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
            None => browser.present(&self.sessions).await?,
        };
        let present = present.as_ref();
        // Whoever has taken something back meanwhile is asked again.
        for allows in [allows, false] {
            let taking = self.take_step(flow, request, browser, present, allows);
            if let Some(reply) = taking.await? {
                return Ok(reply);
            }
        }
        Err(OAuthError::new(
            ErrorCode::AccessDenied,
            "sessions_ended",
            "the sessions of the user or the client, or what the user had allowed, have just been ended",
        ))
    }

    /// Does the next step; nothing where there could be no code for what was known of the user.
    async fn take_step(
        &self,
        flow: &Flow,
        request: &AuthorizationRequest,
        browser: Browser<'_>,
        present: Option<&Present>,
        allows: bool,
    ) -> Result<Option<Reply>, OAuthError> {
        let client_id = &request.client.client_id;
        let permissions = request.permissions(&self.snapshots.registry());
        let before = match present {
            Some(present) if !request.client.first_party => {
                let reading = self.store.consent(present.session.subject, client_id);
                store_answer(&self.clock, reading).await?
            }
            _ => None,
        };
        // The page may be old: another user may have signed in since, or the client may ask for more.
        let has_consented = allows
            && present.is_some_and(|present| {
                flow.shown == Some(Shown::of(request, present, &permissions))
            });
        let is_allowed = before
            .as_ref()
            .filter(|consent| consent.client_epoch == request.client.session_epoch)
            .is_some_and(|consent| permissions.is_subset(&consent.permissions));
        let known = Known {
            session: present.map(|present| &present.session),
            is_allowed,
            has_consented,
        };
        let step = request.next(known, flow.begun_at(), self.clock.now())?;
        if let (Step::Issue | Step::Consent, Some(present)) = (step, present)
            && let Some(asked) = self.step_up(flow, request, present, browser).await?
        {
            return Ok(Some(asked));
        }
        if let (Step::Issue, Some(present), true) = (step, present, has_consented)
            && !request.client.first_party
        {
            let subject = present.session.subject;
            let cause = Cause::of_user(subject, browser.origin);
            self.remember(&request.client, (subject, &permissions), before, &cause)
                .await?;
        }
        match (step, present) {
            (Step::Issue, Some(present)) => self.issue(request, (present, &permissions)).await,
            (Step::Consent, Some(present)) => self
                .ask_for_consent(flow, request, browser, (present, &permissions))
                .map(Some),
            _ => {
                let username = request.asked.login_hint.clone().unwrap_or_default();
                self.ask(flow, Some(request), browser, username, None)
                    .map(Some)
            }
        }
    }

    /// Keeps what a user has allowed a client now beside what it had before. What is taken back at this
    /// moment stays so.
    async fn remember(
        &self,
        client: &Client,
        (subject, permissions): (UserId, &BTreeSet<Permission>),
        mut before: Option<Consent>,
        cause: &Cause,
    ) -> Result<(), OAuthError> {
        let mut attempt = 1;
        loop {
            let now = self.clock.now();
            let expected = before.as_ref().map(|before| before.given_at);
            let mut all = permissions.clone();
            let before_that = before.filter(|it| it.client_epoch == client.session_epoch);
            all.extend(before_that.into_iter().flat_map(|it| it.permissions));
            let consent = Consent {
                subject,
                client_id: client.client_id.clone(),
                client_epoch: client.session_epoch,
                permissions: all,
                // Each has a time of its own, by which it is known.
                given_at: expected.map_or(now, |at| now.max(at.plus(Duration::from_millis(1)))),
            };
            let change = Change::PutConsent {
                consent: Box::new(consent),
                expected,
            };
            let applying = self.store.apply(&change, cause, now);
            match store::in_time(&self.clock, applying).await {
                Err(StoreError::Conflict) if attempt < ATTEMPTS => {
                    attempt += 1;
                    let reading = self.store.consent(subject, &client.client_id);
                    before = store_answer(&self.clock, reading).await?;
                }
                Err(error) => return Err(OAuthError::of_store(error)),
                Ok(_) => return Ok(()),
            }
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
        let grants = permissions.iter().map(|it| registry.told(it));
        let asking = Flow {
            shown: Some(Shown::of(request, present, permissions)),
            ..flow.clone()
        };
        Ok(Reply::Consent(ConsentPage {
            client_name: request.client.client_name.clone(),
            username: present.user.username.clone(),
            host: host_of(&request.return_address.redirect_uri),
            grants: grants.collect(),
            flow: asking.seal(&self.seals, browser.binding)?,
        }))
    }

    /// Issues a code; none where the user or the client may not have it any more.
    async fn issue(
        &self,
        request: &AuthorizationRequest,
        (present, permissions): (&Present, &BTreeSet<Permission>),
    ) -> Result<Option<Reply>, OAuthError> {
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
                claims: request.asked.claims.clone(),
            },
            redirect_uri: named.then(|| request.return_address.redirect_uri.clone()),
            code_challenge: request.asked.code_challenge.clone(),
            nonce: request.asked.nonce.clone(),
            expires_at: self.clock.now().plus(CODE_LIFE),
            family_id: None,
        };
        let (store, entropy) = (&*self.store, &self.entropy);
        let issued = codes::issue(store, &self.clock, entropy, &code, permissions).await?;
        Ok(issued.map(|text| Reply::Return {
            to: request.return_address.clone(),
            parameters: vec![("code", text.expose().to_owned())],
        }))
    }

    /// The request of a client, as clients and resources are now; none where no client has asked.
    pub(super) fn read(&self, errand: &Errand) -> Result<Option<AuthorizationRequest>, Rejection> {
        let Errand::Authorize { query } = errand else {
            return Ok(None);
        };
        let form = Form::of_body(query.as_bytes()).map_err(Rejection::Shown)?;
        let (ring, now) = (self.snapshots.ring(), self.clock.now());
        let keys = ring.id_token_keys();
        let hint = |token: &str| Hint::read(token, &self.issuer, &keys);
        let request = AuthorizationRequest::read(&form, &self.snapshots.registry(), &hint)?;
        match id_token::check_asked(&ring, &request.client, &request.asked.scope, now) {
            Ok(()) => Ok(Some(request)),
            Err(error) => {
                let to = Box::new(request.return_address);
                Err(Rejection::Returned(to, error))
            }
        }
    }

    pub(super) fn rejected(rejection: Rejection) -> Answer {
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

/// What is told where a session could not be looked at.
pub fn of_session(error: SessionError) -> OAuthError {
    match error {
        SessionError::Store(error) => OAuthError::of_store(error),
        SessionError::Entropy(error) => OAuthError::internal(error),
        SessionError::Ended => over(),
    }
}
