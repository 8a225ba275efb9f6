//! What users do for themselves, at their own account.
//!
//! Each use case knows by the session of the browser whose account it is. Imports `admin`, `oauth` and
//! everything right of them; knows nothing of HTTP but the fields of forms.
//!
//! To add something that users do: a variant of [`form::Act`], its arm in [`Accounts::submit`], and its
//! form on the page, with what [`Accounts::form`] seals.

mod agent;
pub mod form;
mod happening;
pub mod page;
mod password;
pub mod security;

use std::{sync::Arc, time::Duration};

use self::{
    form::{Act, Sealed},
    page::{AccountPage, Problem},
    security::{EnrolmentPage, PasskeyPage},
};
use crate::{
    admin::{family::FamilyAdmin, user::UserAdmin},
    clock::AgreedClock,
    domain::{
        change::{Applied, Cause, Change},
        client::Revision,
        family::EndReason,
        id::{ClientId, FamilyId, SessionId},
        secret::Ticket,
    },
    identity::{
        factor::{SecondFactors, recovery::RecoveryCode},
        session::{Authentication, Present, Sessions},
        sign_in::SignIn,
    },
    oauth::{
        authorization::endpoint::{Browser, of_session},
        error::OAuthError,
        form::Form,
        seals::{Seals, over},
        store_answer,
    },
    registry::Snapshots,
    store::{self, Store, StoreError},
};

/// The accounts of users who are signed in.
pub struct Accounts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// Who has signed in where.
    pub sessions: Sessions,
    /// Tells whether passwords are right.
    pub sign_in: Arc<SignIn>,
    /// Verifies and enrols second factors.
    pub factors: Arc<SecondFactors>,
    /// Changes passwords.
    pub users: UserAdmin,
    /// Lists sign-ins at clients.
    pub families: FamilyAdmin,
    /// Seals forms.
    pub seals: Seals,
    /// Clients and resources, for their names.
    pub snapshots: Arc<Snapshots>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// How long after its issue an access token may still be accepted somewhere.
    pub token_retention: Duration,
}

/// What has become of a form.
pub enum Outcome {
    /// It was done.
    Done,
    /// It was done, and this browser goes on under another cookie.
    Renewed(Ticket),
    /// It was done, and this browser is signed out.
    SignedOut,
    /// Nobody is signed in.
    Nobody,
    /// The user of this name has to sign in once more before that.
    Confirm(String),
    /// The user is to enrol an app.
    Enrolment(Box<EnrolmentPage>),
    /// The user is to add a passkey.
    Passkey(Box<PasskeyPage>),
    /// There are new recovery codes, shown this once.
    Codes {
        /// The codes.
        codes: Vec<RecoveryCode>,
        /// What this browser goes on under, if that is another cookie.
        cookie: Option<Ticket>,
    },
    /// It was not done: the page says why.
    Refused(Box<AccountPage>),
}

impl Accounts {
    /// What the page shows, in full or the latest of each; none where nobody is signed in.
    pub async fn page(
        &self,
        browser: Browser<'_>,
        in_full: bool,
    ) -> Result<Option<AccountPage>, OAuthError> {
        match browser.present(&self.sessions).await? {
            Some(present) => self.drawn(&present, browser, in_full, None).await.map(Some),
            None => Ok(None),
        }
    }

    /// Takes a form of the page.
    ///
    /// # Security
    /// `body` comes from whoever sends the request. What it asks for was sealed for this browser and
    /// this session: nobody can have another one's user do anything, and nobody reaches what is
    /// another user's.
    pub async fn submit(&self, body: &[u8], browser: Browser<'_>) -> Result<Outcome, OAuthError> {
        let Some(present) = browser.present(&self.sessions).await? else {
            return Ok(Outcome::Nobody);
        };
        let done = match self.asked(body, &present, browser) {
            Ok((form, act)) => self.act(&form, act, &present, browser).await,
            Err(error) => Err(Problem::of(error)),
        };
        match done {
            Ok(outcome) => Ok(outcome),
            Err(problem) => {
                let page = self.drawn(&present, browser, false, Some(problem));
                Ok(Outcome::Refused(Box::new(page.await?)))
            }
        }
    }

    /// Seals what a form of this user in this browser does.
    pub fn form(
        &self,
        act: Act,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<String, OAuthError> {
        Sealed::new(act, present).seal(&self.seals, self.clock.now(), browser.binding)
    }

    fn asked(
        &self,
        body: &[u8],
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<(Form, Act), OAuthError> {
        let form = Form::of_body(body)?;
        let text = form.one("form")?.ok_or_else(over)?;
        let act = Sealed::open(text, &self.seals, browser.binding, present)?;
        Ok((form, act))
    }

    async fn act(
        &self,
        form: &Form,
        act: Act,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<Outcome, Problem> {
        let cause = Cause::of_user(present.session.subject, browser.origin);
        let done = match act {
            Act::AddApp(_)
            | Act::AddPasskey(_)
            | Act::BeginApp
            | Act::BeginPasskey
            | Act::MakeCodes
            | Act::RemoveApp
            | Act::RemovePasskey(_) => {
                return self.change_factors(form, &act, present, browser).await;
            }
            Act::ChangePassword => return self.change_password(form, present, browser).await,
            Act::EndSession(id) => self.end_session(&id, present, &cause).await,
            Act::EndFamily(id) => self.end_family(&id, &cause).await,
            Act::EndOthers => {
                let cause = Cause {
                    reason: Some(happening::ELSEWHERE.to_owned()),
                    ..cause
                };
                self.end_all(present, &cause, true).await
            }
            Act::EndAll => self.end_all(present, &cause, false).await,
            Act::Withdraw(client) => self.withdraw(&client, present, &cause).await,
        };
        done.map_err(Problem::of)
    }

    async fn end_session(
        &self,
        id: &str,
        present: &Present,
        cause: &Cause,
    ) -> Result<Outcome, OAuthError> {
        let id = SessionId::parse(id).map_err(|_| over())?;
        self.sessions.end(id, cause).await.map_err(of_session)?;
        Ok(if id == present.session.id {
            Outcome::SignedOut
        } else {
            Outcome::Done
        })
    }

    async fn end_family(&self, id: &str, cause: &Cause) -> Result<Outcome, OAuthError> {
        let family = FamilyId::parse(id).map_err(|_| over())?;
        let change = Change::EndFamily {
            family,
            reason: EndReason::SignedOut,
            tokens_die_at: self.clock.now().plus(self.token_retention),
        };
        self.apply(&change, cause).await?;
        Ok(Outcome::Done)
    }

    /// Ends every session of a user, in one step however many there are; this browser then goes on
    /// under another cookie, if it is to.
    async fn end_all(
        &self,
        present: &Present,
        cause: &Cause,
        but_this: bool,
    ) -> Result<Outcome, OAuthError> {
        let change = Change::EndUserSessions {
            id: present.session.subject,
            tokens_die_at: self.clock.now().plus(self.token_retention),
        };
        let applied = self.apply(&change, cause).await?;
        match applied.filter(|_| but_this) {
            Some(applied) => self.reopen(present, applied.revision, cause).await,
            None => Ok(Outcome::SignedOut),
        }
    }

    async fn withdraw(
        &self,
        client: &str,
        present: &Present,
        cause: &Cause,
    ) -> Result<Outcome, OAuthError> {
        let change = Change::WithdrawConsent {
            subject: present.session.subject,
            client_id: ClientId::parse(client).map_err(|_| over())?,
            tokens_die_at: self.clock.now().plus(self.token_retention),
        };
        self.apply(&change, cause).await?;
        Ok(Outcome::Done)
    }

    /// Makes a change; what is so already stays so, and is none.
    async fn apply(&self, change: &Change, cause: &Cause) -> Result<Option<Applied>, OAuthError> {
        let applying = self.store.apply(change, cause, self.clock.now());
        match store::in_time(&self.clock, applying).await {
            Ok(applied) => Ok(Some(applied)),
            Err(StoreError::Conflict) => Ok(None),
            Err(error) => Err(OAuthError::of_store(error)),
        }
    }

    /// Lets a browser go on whose user has just ended every session, as of that revision of the user. If
    /// somebody has changed the user since, perhaps to end this session, too, it does not.
    async fn reopen(
        &self,
        present: &Present,
        revision: Revision,
        cause: &Cause,
    ) -> Result<Outcome, OAuthError> {
        let reading = self.store.user(present.session.subject);
        let user = store_answer(&self.clock, reading).await?;
        let Some(user) = user.filter(|user| user.revision == revision && !user.disabled) else {
            return Ok(Outcome::SignedOut);
        };
        // Whoever found the browser open has not become its user by that.
        let as_before = Authentication::continued(&present.session, Vec::new());
        let opened = self.sessions.open(&user, as_before, cause, None).await;
        let (_, cookie) = opened.map_err(of_session)?;
        Ok(Outcome::Renewed(cookie))
    }
}
