//! The step of a sign-in that comes after the password: a second factor, or its enrolment.
//!
//! What was proved before goes into the sealed flow, so that no step can be left out: a session is
//! opened by `AuthorizationEndpoint::open` alone, for what [`next`] finds to be enough.

use countersign_verifier::base64url;

use super::{
    endpoint::{Answer, AuthorizationEndpoint, Browser, Reply, of_session},
    flow::Flow,
    request::AuthorizationRequest,
};
use crate::{
    domain::{
        change::Cause,
        factor::{Factors, ONE_FACTOR, Passkey, Proved, acr},
        secret::Ticket,
        user::User,
    },
    identity::{
        factor::{FactorRefused, Next, Wanted, next, recovery::RecoveryCode},
        session::{Authentication, Present},
        sign_in::Place,
    },
    oauth::{
        error::{ErrorCode, OAuthError},
        form::Form,
        seals::over,
        store_answer,
    },
};

/// What the page says on which users prove a second factor.
pub struct FactorPage {
    /// Who signs in.
    pub username: String,
    /// Whether the user has an app that makes one-time passwords.
    pub has_app: bool,
    /// Whether recovery codes are left.
    pub has_codes: bool,
    /// What the browser is asked for a passkey, if the user has one: JSON.
    pub passkey: Option<String>,
    /// What was wrong with the last try.
    pub problem: Option<OAuthError>,
    /// Whether it leads to a client.
    pub for_client: bool,
    /// The request, sealed.
    pub flow: String,
}

/// What the page says on which users enrol an app, or a passkey, because they have to.
pub struct EnrolPage {
    /// Who signs in.
    pub username: String,
    /// The secret as it is typed.
    pub secret: String,
    /// The same for apps on this device.
    pub url: String,
    /// The same for cameras: SVG.
    pub picture: String,
    /// What the browser is asked to make a passkey, where users have them: JSON.
    pub passkey: Option<String>,
    /// What was wrong with the last try.
    pub problem: Option<OAuthError>,
    /// Whether it leads to a client.
    pub for_client: bool,
    /// The request, sealed.
    pub flow: String,
}

/// What the page says that shows recovery codes, once.
pub struct CodesPage {
    /// The codes.
    pub codes: Vec<RecoveryCode>,
    /// Whether it leads to a client.
    pub for_client: bool,
    /// The request, sealed.
    pub flow: String,
}

impl AuthorizationEndpoint {
    /// Goes on with a user who has authenticated by these methods just now: to a second factor, if one
    /// is needed, or with a session.
    pub(super) async fn after_password(
        &self,
        flow: &Flow,
        user: &User,
        amr: Vec<String>,
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let request = match self.read(&flow.errand) {
            Ok(request) => request,
            Err(rejection) => return Ok(Self::rejected(rejection)),
        };
        // What was proved before this password was, may have been proved by another user.
        let flow = &flow.after_steps();
        let factors = self.factors_of(user).await?;
        let wanted = Wanted {
            is_fresh: true,
            ..wanted(user, request.as_ref())
        };
        match next(factors.is_enrolled(), wanted, &amr) {
            Next::Nothing => self.open(flow, user, (amr, Vec::new()), browser).await,
            asked => {
                let proved = self.proved_by(flow, user, amr);
                let reply = self.ask_for_factor(&proved, user, &factors, asked, browser);
                reply.map(Answer::from)
            }
        }
    }

    /// What is to be asked of a user who has a session already, if that is not enough for a request.
    pub(super) async fn step_up(
        &self,
        flow: &Flow,
        request: &AuthorizationRequest,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<Option<Reply>, OAuthError> {
        let session = &present.session;
        if acr(&session.amr) != ONE_FACTOR {
            return Ok(None);
        }
        let reading = self.store.user(session.subject);
        let user = store_answer(&self.clock, reading).await?;
        let user = user.filter(|user| user.session_epoch == session.user_epoch);
        let Some(user) = user else {
            return Err(sessions_ended());
        };
        let wanted = wanted(&user, Some(request));
        if !wanted.required && !wanted.asked_for {
            return Ok(None);
        }
        let factors = self.factors_of(&user).await?;
        let asked = next(factors.is_enrolled(), wanted, &session.amr);
        if asked == Next::Nothing {
            return Ok(None);
        }
        if request.asked.is_silent() {
            // What is voluntary is done without (OpenID Connect Core §5.5.1.1).
            return if wanted.required {
                Err(OAuthError::new(
                    ErrorCode::LoginRequired,
                    "second_factor_required",
                    "the user has to prove a second factor",
                ))
            } else {
                Ok(None)
            };
        }
        if asked == Next::Enrol && !present.is_recent(self.clock.now()) {
            let problem = OAuthError::new(
                ErrorCode::AccessDenied,
                "reauthentication",
                "You need a second step to sign in there. Before you set it up, sign in once more.",
            );
            let username = user.username.to_string();
            let asked = self.ask(flow, Some(request), browser, username, Some(problem));
            return asked.map(Some);
        }
        let raising = Flow {
            raising: Some(session.id.to_string()),
            ..self.proved_by(flow, &user, session.amr.clone())
        };
        let reply = self.ask_for_factor(&raising, &user, &factors, asked, browser);
        reply.map(Some)
    }

    /// A flow in which a user has proved this so far.
    fn proved_by(&self, flow: &Flow, user: &User, amr: Vec<String>) -> Flow {
        Flow {
            proved: Some(Proved::new(user, amr, self.clock.now())),
            ..flow.after_steps()
        }
    }

    fn ask_for_factor(
        &self,
        flow: &Flow,
        user: &User,
        factors: &Factors,
        asked: Next,
        browser: Browser<'_>,
    ) -> Result<Reply, OAuthError> {
        if asked == Next::Enrol {
            let begun = self.factors.begin(user.username.as_str());
            let secret = begun.map_err(of_factor)?.secret;
            let enrolling = Flow {
                enrolling: Some(base64url::encode(secret.expose())),
                ..flow.clone()
            };
            return self.enrolment(&enrolling, user, None, browser);
        }
        self.factor_page(flow, user, factors, None, browser)
    }

    fn factor_page(
        &self,
        flow: &Flow,
        user: &User,
        factors: &Factors,
        problem: Option<OAuthError>,
        browser: Browser<'_>,
    ) -> Result<Reply, OAuthError> {
        let known = factors.passkeys.as_slice();
        let (passkey, flow) = if known.is_empty() {
            (None, flow.clone())
        } else {
            self.with_passkey(flow, known)?
        };
        Ok(Reply::Factor(FactorPage {
            passkey,
            username: user.username.to_string(),
            has_app: factors.totp.is_some(),
            has_codes: factors.recovery_codes > 0,
            problem,
            for_client: flow.is_for_client(),
            flow: flow.seal(&self.seals, browser.binding)?,
        }))
    }

    fn enrolment(
        &self,
        flow: &Flow,
        user: &User,
        problem: Option<OAuthError>,
        browser: Browser<'_>,
    ) -> Result<Reply, OAuthError> {
        let (secret, username) = (secret_of(flow)?, user.username.as_str());
        let enrolment = self.factors.begin_again(&secret, username);
        let enrolment = enrolment.map_err(of_factor)?;
        let (passkey, registering) = if self.factors.has_passkeys() {
            let begun = self.factors.begin_registration(user, &[]);
            let (asked, ceremony) = begun.map_err(of_factor)?;
            (Some(asked.to_string()), Some(ceremony))
        } else {
            (None, None)
        };
        let flow = Flow {
            registering,
            ..flow.clone()
        };
        Ok(Reply::Enrol(EnrolPage {
            username: user.username.to_string(),
            secret: enrolment.secret.text(),
            url: enrolment.url,
            picture: enrolment.picture,
            passkey,
            problem,
            for_client: flow.is_for_client(),
            flow: flow.seal(&self.seals, browser.binding)?,
        }))
    }

    /// Takes a code, as a second factor.
    pub(super) async fn take_code(
        &self,
        form: &Form,
        flow: &Flow,
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let (user, proved) = self.proved(flow, browser).await?;
        let code = form.one("code")?.unwrap_or_default();
        let cause = Cause::of_user(user.id, browser.origin);
        let place = Place::of_browser(browser.origin);
        let verified = self.factors.verify(&user, code, place.as_ref(), &cause);
        match verified.await {
            Ok(more) => self.open(flow, &user, (proved.amr, more), browser).await,
            Err(refused) => {
                let problem = of_factor(refused);
                let factors = self.factors_of(&user).await?;
                let page = self.factor_page(flow, &user, &factors, Some(problem), browser);
                page.map(Answer::from)
            }
        }
    }

    /// Takes the first code of an app that is being enrolled, or the passkey that was made; then shows
    /// recovery codes.
    pub(super) async fn take_enrolment(
        &self,
        form: &Form,
        flow: &Flow,
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let (user, proved) = self.proved(flow, browser).await?;
        let secret = secret_of(flow)?;
        if self.factors_of(&user).await?.is_enrolled() {
            return self.enrolled_by_now(flow, &user, browser).await;
        }
        let cause = Cause::of_user(user.id, browser.origin);
        let (enrolled, wrong) = if let Some(made) = form.one("passkey")? {
            let ceremony = flow.registering.as_ref().ok_or_else(over)?;
            let given = (made, "");
            let adding = self
                .factors
                .finish_registration(&user, ceremony, given, true, &cause);
            (adding.await, not_taken())
        } else {
            let code = form.one("code")?.unwrap_or_default();
            let enrolling = self.factors.enrol(&user, (&secret, code), true, &cause);
            (enrolling.await, of_factor(FactorRefused::Wrong))
        };
        let problem = match enrolled {
            Ok(more) => return self.open(flow, &user, (proved.amr, more), browser).await,
            Err(FactorRefused::Again | FactorRefused::Conflict) => {
                return self.enrolled_by_now(flow, &user, browser).await;
            }
            Err(FactorRefused::Wrong) => wrong,
            Err(refused) => of_factor(refused),
        };
        // The database may have done it, although it did not answer in time. Another passkey would take
        // the place of the first one.
        if self.factors_of(&user).await?.is_enrolled() {
            return self.enrolled_by_now(flow, &user, browser).await;
        }
        let page = self.enrolment(flow, &user, Some(problem), browser);
        page.map(Answer::from)
    }

    /// Asks for what a user has who is enrolling something and has a second factor by now: be it that
    /// the same form was sent twice, and nobody has seen the recovery codes, or that it was somebody
    /// else.
    async fn enrolled_by_now(
        &self,
        flow: &Flow,
        user: &User,
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let factors = self.factors_of(user).await?;
        if !factors.is_enrolled() {
            return Err(over());
        }
        let problem = Some(of_factor(FactorRefused::Again));
        let page = self.factor_page(flow, user, &factors, problem, browser);
        page.map(Answer::from)
    }

    /// A flow whose browser is asked for a passkey: any, or one of these.
    pub(super) fn with_passkey(
        &self,
        flow: &Flow,
        known: &[Passkey],
    ) -> Result<(Option<String>, Flow), OAuthError> {
        if !self.factors.has_passkeys() {
            return Ok((None, flow.clone()));
        }
        let begun = self.factors.begin_authentication(known);
        let (asked, ceremony) = begun.map_err(of_factor)?;
        let flow = Flow {
            ceremony: Some(ceremony),
            ..flow.clone()
        };
        Ok((Some(asked.to_string()), flow))
    }

    /// Takes the answer of a passkey: as a second factor, or alone, as it has verified its user.
    pub(super) async fn take_passkey(
        &self,
        form: &Form,
        flow: &Flow,
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let ceremony = flow.ceremony.as_ref().ok_or_else(over)?;
        let answer = form.one("passkey")?.unwrap_or_default();
        let before = match &flow.proved {
            Some(_) => Some(self.proved(flow, browser).await?),
            None => None,
        };
        let taken = self.factors.finish_authentication(ceremony, answer).await;
        let refused = match (taken, before) {
            (Ok((subject, amr)), Some((user, proved))) if subject == user.id => {
                return self.open(flow, &user, (proved.amr, amr), browser).await;
            }
            (Ok((subject, amr)), None) => {
                let reading = self.store.user(subject);
                let user = store_answer(&self.clock, reading).await?;
                if let Some(user) = user.filter(|user| !user.disabled) {
                    return self.open(flow, &user, (amr, Vec::new()), browser).await;
                }
                FactorRefused::Wrong
            }
            (Err(refused), None) => refused,
            (result, Some((user, _))) => {
                let factors = self.factors_of(&user).await?;
                let refused = result.err().unwrap_or(FactorRefused::Wrong);
                let problem = Some(of_passkey(refused));
                let page = self.factor_page(flow, &user, &factors, problem, browser);
                return page.map(Answer::from);
            }
        };
        self.ask_again(flow, browser, "", of_passkey(refused))
    }

    /// Opens a session for a user who has authenticated by the methods of both steps, and goes on; with
    /// recovery codes first, for one who is enrolling something.
    async fn open(
        &self,
        flow: &Flow,
        user: &User,
        methods: (Vec<String>, Vec<String>),
        browser: Browser<'_>,
    ) -> Result<Answer, OAuthError> {
        let after = flow.after_steps();
        let codes = match &flow.enrolling {
            Some(_) => {
                let cause = Cause::of_user(user.id, browser.origin);
                let codes = self.factors.make_codes(user, false, &cause).await;
                Some(CodesPage {
                    codes: codes.map_err(of_factor)?,
                    for_client: after.is_for_client(),
                    flow: after.seal(&self.seals, browser.binding)?,
                })
            }
            None => None,
        };
        let (present, cookie) = self.session(flow, user, methods, browser).await?;
        Ok(Answer {
            session: Some(cookie),
            ..match codes {
                Some(codes) => Reply::Codes(codes).into(),
                None => self.go_on(&after, browser, Some(present), false).await,
            }
        })
    }

    /// Opens a session, or raises the one in which the first step was.
    async fn session(
        &self,
        flow: &Flow,
        user: &User,
        (first, second): (Vec<String>, Vec<String>),
        browser: Browser<'_>,
    ) -> Result<(Present, Ticket), OAuthError> {
        let before = browser.present(&self.sessions).await?;
        let authentication = if flow.raising.is_some() {
            let raised = raised(flow, before.as_ref())?;
            Authentication::continued(&raised.session, second)
        } else {
            let amr = first.into_iter().chain(second).collect();
            self.sessions.authenticated(amr)
        };
        let cause = Cause::of_user(user.id, browser.origin);
        let opened = self
            .sessions
            .open(user, authentication, &cause, before.as_ref());
        opened.await.map_err(of_session)
    }

    /// Who a flow is of, and what was proved in it. The user is what it was then: nobody has changed
    /// the password, or disabled it, since; and the session that is to be raised goes on.
    async fn proved(
        &self,
        flow: &Flow,
        browser: Browser<'_>,
    ) -> Result<(User, Proved), OAuthError> {
        let proved = flow.proved.clone().ok_or_else(over)?;
        if flow.raising.is_some() {
            raised(flow, browser.present(&self.sessions).await?.as_ref())?;
        }
        let reading = self.store.user(proved.subject());
        let user = store_answer(&self.clock, reading).await?;
        let now = self.clock.now();
        let user = user.filter(|user| proved.is_of(user, now));
        Ok((user.ok_or_else(over)?, proved))
    }

    async fn factors_of(&self, user: &User) -> Result<Factors, OAuthError> {
        let reading = self.factors.of(user.id).await;
        reading.map_err(OAuthError::of_store)
    }
}

/// The session that a flow raises, if the browser still has it.
fn raised<'a>(flow: &Flow, present: Option<&'a Present>) -> Result<&'a Present, OAuthError> {
    let id = flow.raising.as_deref();
    let raised = present.filter(|it| Some(&*it.session.id.to_string()) == id);
    raised.ok_or_else(over)
}

/// Who wants a second factor of this user.
fn wanted(user: &User, request: Option<&AuthorizationRequest>) -> Wanted {
    let of_client = request.is_some_and(|request| request.client.second_factor_required);
    Wanted {
        required: user.second_factor_required || of_client,
        asked_for: request.is_some_and(|request| request.asked.two_factors),
        is_fresh: false,
    }
}

fn secret_of(flow: &Flow) -> Result<zeroize::Zeroizing<Vec<u8>>, OAuthError> {
    let text = flow.enrolling.as_deref().ok_or_else(over)?;
    let secret = base64url::decode(text).map_err(|_| over())?;
    Ok(zeroize::Zeroizing::new(secret))
}

const fn sessions_ended() -> OAuthError {
    OAuthError::new(
        ErrorCode::AccessDenied,
        "sessions_ended",
        "the sessions of the user have just been ended",
    )
}

/// What is said of a passkey that was made and is not taken.
pub const fn not_taken() -> OAuthError {
    OAuthError::new(
        ErrorCode::AccessDenied,
        "passkey",
        "This passkey was not taken. Try again.",
    )
}

/// What is said to whoever has not proved to have a passkey.
fn of_passkey(refused: FactorRefused) -> OAuthError {
    match refused {
        FactorRefused::Wrong => OAuthError::new(
            ErrorCode::AccessDenied,
            "passkey",
            "This passkey does not sign you in here. Try another way.",
        ),
        refused => of_factor(refused),
    }
}

/// What is said to whoever has not proved a second factor.
pub fn of_factor(refused: FactorRefused) -> OAuthError {
    match refused {
        FactorRefused::Wrong => OAuthError::new(
            ErrorCode::AccessDenied,
            "second_factor",
            "The code is wrong, or was used before.",
        ),
        FactorRefused::TooOften(wait) => {
            OAuthError::too_often(wait, "Too many codes were wrong. Try again in a moment.")
        }
        FactorRefused::Again => OAuthError::new(
            ErrorCode::AccessDenied,
            "enrolled",
            "Two-step verification has just been set up. Go on with it: a code that was used already \
             does not count. If it was not you who set it up, somebody else knows your password.",
        ),
        FactorRefused::Conflict => OAuthError::new(
            ErrorCode::AccessDenied,
            "conflict",
            "Something has changed meanwhile. Look again.",
        ),
        FactorRefused::Last => OAuthError::new(
            ErrorCode::AccessDenied,
            "last_factor",
            "You need a second factor, and this is your last one. Add another one first.",
        ),
        FactorRefused::Store(error) => OAuthError::of_store(error),
        error @ (FactorRefused::Sealing(_)
        | FactorRefused::MasterKey(_)
        | FactorRefused::NoMasterKey
        | FactorRefused::Passkey(_)
        | FactorRefused::Entropy(_)) => OAuthError::internal(error),
    }
}
