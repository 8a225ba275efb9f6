//! Second factors, enrolled and removed by whoever has just signed in.

use std::fmt;

use countersign_verifier::base64url;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Accounts, Outcome,
    form::Act,
    page::{Problem, When},
};
use crate::{
    clock::Timestamp,
    domain::{
        change::Cause,
        factor::{FactorChange, Factors, ONE_FACTOR, PasskeyId, acr},
        user::User,
    },
    identity::{
        factor::{Enrolment, FactorRefused, passkey::Registration},
        session::{Authentication, Present},
    },
    oauth::{
        authorization::{
            endpoint::{Browser, of_session},
            second_factor::{not_taken, of_factor},
        },
        error::OAuthError,
        form::Form,
        seals::over,
        store_answer,
    },
};

/// A secret on its way to an app, in base64url: nothing is stored before the app has it. Not printable.
#[derive(Clone, Deserialize, PartialEq, Eq, Serialize)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the page shows of second factors.
pub struct Security {
    /// Since when there has been an app that makes one-time passwords.
    pub app: Option<When>,
    /// How many recovery codes are left.
    pub recovery_codes: u32,
    /// Passkeys, the oldest first.
    pub passkeys: Vec<KnownPasskey>,
    /// What begins to add one, where browsers have passkeys.
    pub begin_passkey: Option<String>,
    /// Whether the user has to have a second factor.
    pub is_required: bool,
    /// What begins the enrolment of an app.
    pub begin_app: String,
    /// What removes it.
    pub remove_app: String,
    /// What makes new recovery codes.
    pub make_codes: String,
}

impl Security {
    /// Whether the last factor is no more to be removed.
    pub fn is_last(&self) -> bool {
        self.is_required && usize::from(self.app.is_some()) + self.passkeys.len() == 1
    }
}

/// A passkey of the user.
pub struct KnownPasskey {
    /// What the user calls it.
    pub name: String,
    /// When it was added.
    pub since: When,
    /// When it was last used.
    pub used: Option<When>,
    /// What removes it.
    pub form: String,
}

/// The page on which a user adds a passkey.
pub struct PasskeyPage {
    /// What the browser is asked: JSON.
    pub options: String,
    /// What was wrong with the last try.
    pub problem: Option<OAuthError>,
    /// What goes on.
    pub form: String,
}

/// The page on which a user enrols an app.
pub struct EnrolmentPage {
    /// The secret as it is typed.
    pub secret: String,
    /// The same for apps on this device.
    pub url: String,
    /// The same for cameras: SVG.
    pub picture: String,
    /// What was wrong with the last try.
    pub problem: Option<OAuthError>,
    /// What goes on.
    pub form: String,
}

impl Accounts {
    /// What the page shows of second factors.
    pub(super) async fn security(
        &self,
        user: Option<&User>,
        present: &Present,
        browser: Browser<'_>,
        now: Timestamp,
    ) -> Result<Security, OAuthError> {
        let factors = self.factors_of(present).await?;
        let mut passkeys = Vec::with_capacity(factors.passkeys.len());
        for passkey in factors.passkeys {
            passkeys.push(KnownPasskey {
                form: self.form(Act::RemovePasskey(passkey.id.to_string()), present, browser)?,
                name: passkey.name,
                since: When::of(passkey.created_at, now),
                used: passkey.last_used_at.map(|at| When::of(at, now)),
            });
        }
        let begins = self.factors.has_passkeys();
        let begin_passkey = begins.then(|| self.form(Act::BeginPasskey, present, browser));
        Ok(Security {
            passkeys,
            begin_passkey: begin_passkey.transpose()?,
            app: factors.totp.map(|totp| When::of(totp.created_at, now)),
            recovery_codes: factors.recovery_codes,
            is_required: user.is_some_and(|user| user.second_factor_required),
            begin_app: self.form(Act::BeginApp, present, browser)?,
            remove_app: self.form(Act::RemoveApp, present, browser)?,
            make_codes: self.form(Act::MakeCodes, present, browser)?,
        })
    }

    /// Changes what the user has, if it signed in a moment ago with all that it has; else it has to once
    /// more.
    pub(super) async fn change_factors(
        &self,
        form: &Form,
        act: &Act,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<Outcome, Problem> {
        let session = &present.session;
        let factors = self.factors_of(present).await.map_err(Problem::of)?;
        if factors.is_enrolled() && has_proved_none(present) || !present.is_recent(self.clock.now())
        {
            return Ok(Outcome::Confirm(present.user.username.clone()));
        }
        let reading = store_answer(&self.clock, self.store.user(session.subject)).await;
        let user = reading.map_err(Problem::of)?;
        let user = user.filter(|user| user.session_epoch == session.user_epoch);
        let Some(user) = user else {
            return Ok(Outcome::Nobody);
        };
        let cause = Cause::of_user(user.id, browser.origin);
        match act {
            Act::BeginApp => {
                let enrolment = self.factors.begin(user.username.as_str());
                let enrolment = enrolment.map_err(problem)?;
                self.enrolment(enrolment, None, present, browser)
            }
            Act::AddApp(Secret(secret)) => {
                let secret = base64url::decode(secret).map_err(|_| Problem::of(over()))?;
                let secret = Zeroizing::new(secret);
                self.add_app(form, &user, &secret, (present, browser)).await
            }
            Act::BeginPasskey => self.ask_for_passkey(&user, None, present, browser).await,
            Act::AddPasskey(Secret(state)) => {
                self.add_passkey(form, &user, state, (present, browser))
                    .await
            }
            // Nothing was enrolled, and so nothing proved: what somebody enrols at this moment stays.
            _ if !factors.is_enrolled() => Err(problem(FactorRefused::Conflict)),
            Act::RemovePasskey(id) => {
                let id = PasskeyId::parse(id).ok_or_else(|| Problem::of(over()))?;
                let removal = FactorChange::RemovePasskey(id);
                let removed = self.factors.remove(&user, removal, &cause).await;
                removed.map_err(problem)?;
                Ok(Outcome::Done)
            }
            Act::RemoveApp => {
                let removal = FactorChange::RemoveTotp;
                let removed = self.factors.remove(&user, removal, &cause).await;
                removed.map_err(problem)?;
                Ok(Outcome::Done)
            }
            _ => self.new_codes(&user, &cause).await,
        }
    }

    /// Enrols an app that shows a code.
    async fn add_app(
        &self,
        form: &Form,
        user: &User,
        secret: &[u8],
        (present, browser): (&Present, Browser<'_>),
    ) -> Result<Outcome, Problem> {
        let cause = Cause::of_user(user.id, browser.origin);
        let code = form.one("code").map_err(Problem::of)?.unwrap_or_default();
        let (given, is_first) = ((secret, code), has_proved_none(present));
        let more = match self.factors.enrol(user, given, is_first, &cause).await {
            Ok(more) => more,
            Err(refused @ FactorRefused::Wrong) => {
                let again = self.factors.begin_again(secret, user.username.as_str());
                let again = again.map_err(problem)?;
                return self.enrolment(again, Some(of_factor(refused)), present, browser);
            }
            Err(refused) => return self.not_enrolled(refused, user, present, &cause).await,
        };
        self.enrolled(user, more, present, &cause).await
    }

    /// Raises the session in which something was enrolled by what that has proved, and makes recovery
    /// codes for a user who has none.
    async fn enrolled(
        &self,
        user: &User,
        more: Vec<String>,
        present: &Present,
        cause: &Cause,
    ) -> Result<Outcome, Problem> {
        let codes = match self.factors.make_codes(user, true, cause).await {
            Ok(codes) => Some(codes),
            // There are some, or the user is another one by now: then the session is over.
            Err(FactorRefused::Conflict) => None,
            Err(refused) => return Err(problem(refused)),
        };
        let raised = Authentication::continued(&present.session, more);
        let opened = self.sessions.open(user, raised, cause, Some(present)).await;
        let (_, cookie) = opened.map_err(|error| Problem::of(of_session(error)))?;
        Ok(match codes {
            Some(codes) => Outcome::Codes {
                codes,
                cookie: Some(cookie),
            },
            None => Outcome::Renewed(cookie),
        })
    }

    async fn ask_for_passkey(
        &self,
        user: &User,
        wrong: Option<OAuthError>,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<Outcome, Problem> {
        let factors = self.factors_of(present).await.map_err(Problem::of)?;
        let begun = self.factors.begin_registration(user, &factors.passkeys);
        let (asked, ceremony) = begun.map_err(problem)?;
        let state = serde_json::to_string(&ceremony);
        let state = state.map_err(|error| Problem::of(OAuthError::internal(error)))?;
        let form = self.form(Act::AddPasskey(Secret(state)), present, browser);
        Ok(Outcome::Passkey(Box::new(PasskeyPage {
            options: asked.to_string(),
            problem: wrong,
            form: form.map_err(Problem::of)?,
        })))
    }

    /// Adds the passkey that a browser has made.
    async fn add_passkey(
        &self,
        form: &Form,
        user: &User,
        state: &str,
        (present, browser): (&Present, Browser<'_>),
    ) -> Result<Outcome, Problem> {
        let cause = Cause::of_user(user.id, browser.origin);
        let field = |name| form.one(name).map_err(Problem::of);
        let (answer, name) = (field("passkey")?, field("name")?);
        let given = (answer.unwrap_or_default(), name.unwrap_or_default());
        let ceremony: Registration =
            serde_json::from_str(state).map_err(|_| Problem::of(over()))?;
        let is_first = has_proved_none(present);
        let added = self
            .factors
            .finish_registration(user, &ceremony, given, is_first, &cause);
        match added.await {
            Ok(more) => self.enrolled(user, more, present, &cause).await,
            Err(FactorRefused::Wrong) => {
                self.ask_for_passkey(user, Some(not_taken()), present, browser)
                    .await
            }
            Err(refused) => self.not_enrolled(refused, user, present, &cause).await,
        }
    }

    /// What is answered where nothing was enrolled. Whoever has proved no second factor, and comes
    /// upon one that was enrolled at this moment, signs in with that.
    async fn not_enrolled(
        &self,
        refused: FactorRefused,
        user: &User,
        present: &Present,
        cause: &Cause,
    ) -> Result<Outcome, Problem> {
        match refused {
            FactorRefused::Again | FactorRefused::Conflict if has_proved_none(present) => {
                Ok(Outcome::Confirm(user.username.to_string()))
            }
            // The form was sent twice: nobody has seen the recovery codes that come with a first factor.
            FactorRefused::Again => {
                let factors = self.factors_of(present).await.map_err(Problem::of)?;
                if usize::from(factors.totp.is_some()) + factors.passkeys.len() > 1 {
                    return Ok(Outcome::Done);
                }
                self.new_codes(user, cause).await
            }
            refused => Err(problem(refused)),
        }
    }

    async fn new_codes(&self, user: &User, cause: &Cause) -> Result<Outcome, Problem> {
        let codes = self.factors.make_codes(user, false, cause).await;
        Ok(Outcome::Codes {
            codes: codes.map_err(problem)?,
            cookie: None,
        })
    }

    fn enrolment(
        &self,
        enrolment: Enrolment,
        wrong: Option<OAuthError>,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<Outcome, Problem> {
        let secret = Secret(base64url::encode(enrolment.secret.expose()));
        let form = self.form(Act::AddApp(secret), present, browser);
        Ok(Outcome::Enrolment(Box::new(EnrolmentPage {
            secret: enrolment.secret.text(),
            url: enrolment.url,
            picture: enrolment.picture,
            problem: wrong,
            form: form.map_err(Problem::of)?,
        })))
    }

    async fn factors_of(&self, present: &Present) -> Result<Factors, OAuthError> {
        let reading = self.factors.of(present.session.subject).await;
        reading.map_err(OAuthError::of_store)
    }
}

/// Whether nothing but a first factor was proved in a session.
fn has_proved_none(present: &Present) -> bool {
    acr(&present.session.amr) == ONE_FACTOR
}

fn problem(refused: FactorRefused) -> Problem {
    Problem::of(of_factor(refused))
}
