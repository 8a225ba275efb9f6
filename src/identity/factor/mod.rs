//! Second factors: what users prove beside their passwords.
//!
//! What a sign-in still needs is decided by [`next`], a pure function. Whatever a user has enrolled is
//! asked for after each password, whoever the client is.
//!
//! To add a factor: a file of its own, a field of [`Factors`], its variants of [`FactorChange`], and
//! what it is called in `amr` ([`method`]).

pub mod passkey;
pub mod recovery;
pub mod totp;

use std::sync::Arc;

use webauthn_rs::prelude::{Webauthn, WebauthnError};
use zeroize::Zeroizing;

use self::{recovery::RecoveryCode, totp::TotpSecret};
use super::sign_in::Place;
use crate::{
    clock::AgreedClock,
    domain::{
        change::{Cause, Change},
        factor::{FactorChange, Factors, TWO_FACTORS, Totp, acr, method},
        id::UserId,
        key::KeyUse,
        user::User,
    },
    entropy::{Entropy, EntropyError},
    keys::{
        master::{MasterKeyError, MasterKeySource},
        sealing::{self, SealingError},
    },
    store::{self, Store, StoreError},
    throttle::{RetryAfter, Throttle},
};

/// How often an enrolment is tried again when another master key became the primary one meanwhile.
const ATTEMPTS: u32 = 4;

/// What a sign-in still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it can be gone on with.
    Nothing,
    /// A second factor of those that the user has.
    Prove,
    /// A second factor, of which the user has none: it has to enrol one.
    Enrol,
}

/// Who wants a second factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The operator, for this user or this client.
    pub required: bool,
    /// The client, if there is one: voluntary (`acr_values`, `OpenID` Connect Core §3.1.2.1).
    pub asked_for: bool,
    /// The sign-in itself: the password was presented just now.
    pub is_fresh: bool,
}

/// What is still needed of a user who has authenticated by these methods.
pub fn next<T: AsRef<str>>(is_enrolled: bool, wanted: Wanted, amr: &[T]) -> Next {
    if acr(amr) == TWO_FACTORS {
        return Next::Nothing;
    }
    match (is_enrolled, wanted.required) {
        (true, true) => Next::Prove,
        (true, false) if wanted.asked_for || wanted.is_fresh => Next::Prove,
        (true | false, false) => Next::Nothing,
        (false, true) => Next::Enrol,
    }
}

/// Why a second factor is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FactorRefused {
    /// The code is wrong, or was used before.
    #[error("the code is wrong, or was used before")]
    Wrong,
    /// Too many codes were wrong at that place; nothing was looked at.
    #[error(transparent)]
    TooOften(#[from] RetryAfter),
    /// It has been enrolled already, by what comes once more.
    #[error("it has been enrolled already")]
    Again,
    /// There is one already, or not any more, or the user is not what it was.
    #[error("something has changed meanwhile; look again")]
    Conflict,
    /// The user needs it: there would be no second factor left.
    #[error("a second factor is required, and this is the last one")]
    Last,
    /// The database failed, or did not answer.
    #[error(transparent)]
    Store(StoreError),
    /// The secret cannot be opened or sealed.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// There are no master keys.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// There is no primary master key.
    #[error("the database has no master key")]
    NoMasterKey,
    /// A ceremony could not be begun, or what is stored of a passkey cannot be read.
    #[error("a passkey cannot be asked for")]
    Passkey(#[from] WebauthnError),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl From<StoreError> for FactorRefused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            error => Self::Store(error),
        }
    }
}

/// Where codes were tried for whom. One who has a password and guesses codes locks out nobody
/// elsewhere. Where nobody knows the place, that is a place, too: without a limit six digits would be
/// guessed.
pub type Tried = (Option<Place>, UserId);

/// How many codes of a user's app may be wrong in an hour, wherever they are tried: whoever has the
/// password and any number of networks would guess one otherwise, as three in a million count at a time.
pub const MOST_WRONG_CODES_PER_HOUR: u32 = 30;

/// What a user sees who enrols an app.
pub struct Enrolment {
    /// The secret that the app is to share.
    pub secret: TotpSecret,
    /// The same for apps on this device.
    pub url: String,
    /// The same for cameras: SVG.
    pub picture: String,
}

/// Verifies and enrols second factors.
///
/// # Security
/// Codes of apps have six digits: what limits how often they may be wrong is what keeps them from
/// being guessed by somebody who has the password.
pub struct SecondFactors {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws secrets and codes.
    pub entropy: Entropy,
    /// Where master keys are, which seal secrets.
    pub masters: MasterKeySource,
    /// How often codes may be wrong at a place.
    pub failures: Throttle<Tried>,
    /// How often codes of a user's app may be wrong anywhere.
    pub wrong_codes: Throttle<UserId>,
    /// What apps call the service.
    pub service: String,
    /// Makes and verifies ceremonies of passkeys; none where browsers have no passkeys.
    pub webauthn: Option<Webauthn>,
}

impl SecondFactors {
    /// What a user has enrolled.
    pub async fn of(&self, subject: UserId) -> Result<Factors, StoreError> {
        self.answer(self.store.factors(subject)).await
    }

    /// Takes a code of a user's app, or a recovery code; with the methods that it proves.
    ///
    /// # Security
    /// `code` comes from whoever sends the request. One that was taken is taken nowhere again.
    pub async fn verify(
        &self,
        user: &User,
        code: &str,
        place: Option<&Place>,
        cause: &Cause,
    ) -> Result<Vec<String>, FactorRefused> {
        let by = (place.cloned(), user.id);
        let begun = self.clock.monotonic();
        self.failures.take(&by, begun)?;
        let result = self.judge(user, code, cause).await;
        if matches!(result, Err(FactorRefused::Wrong)) {
            tracing::info!(user = %user.id, "a second factor was refused");
        } else {
            // Our own failures are nobody's.
            let now = self.clock.monotonic();
            self.failures.give_back(&by, begun, now);
        }
        result.map(|()| names(&[method::ONE_TIME, method::MULTIPLE]))
    }

    async fn judge(&self, user: &User, code: &str, cause: &Cause) -> Result<(), FactorRefused> {
        if let Some(hash) = recovery::hash_of(code) {
            let change = FactorChange::UseRecoveryCode(hash);
            return match self.change(user, change, false, cause).await {
                Err(FactorRefused::Conflict) => Err(FactorRefused::Wrong),
                result => result,
            };
        }
        let begun = self.clock.monotonic();
        self.wrong_codes.take(&user.id, begun)?;
        let result = self.judge_code_of_app(user, code).await;
        if !matches!(result, Err(FactorRefused::Wrong)) {
            let now = self.clock.monotonic();
            self.wrong_codes.give_back(&user.id, begun, now);
        }
        result
    }

    async fn judge_code_of_app(&self, user: &User, code: &str) -> Result<(), FactorRefused> {
        let secret = self.secret_of(user).await?.ok_or(FactorRefused::Wrong)?;
        let typed: String = code.chars().filter(|c| *c != ' ').take(10).collect();
        let step = secret.step_of(&typed, self.clock.now());
        let step = step.ok_or(FactorRefused::Wrong)?;
        // "The verifier MUST NOT accept the second attempt of the OTP after the successful validation
        // has been issued for the first OTP" (RFC 6238 §5.2).
        let taking = self.store.take_totp_step(user.id, step);
        if self.answer(taking).await? {
            Ok(())
        } else {
            Err(FactorRefused::Wrong)
        }
    }

    /// The secret that a user's app shares.
    async fn secret_of(&self, user: &User) -> Result<Option<TotpSecret>, FactorRefused> {
        let Some(totp) = self.of(user.id).await?.totp else {
            return Ok(None);
        };
        let plain = sealing::open_totp(&self.masters.load()?, user.id, &totp.sealed)?;
        Ok(Some(TotpSecret::kept(plain)))
    }

    /// What a user needs to enrol an app: nothing is stored yet.
    pub fn begin(&self, username: &str) -> Result<Enrolment, FactorRefused> {
        self.enrolment(TotpSecret::draw(&self.entropy)?, username)
    }

    /// The same once more, with a secret that was drawn before.
    pub fn begin_again(&self, secret: &[u8], username: &str) -> Result<Enrolment, FactorRefused> {
        let secret = TotpSecret::kept(Zeroizing::new(secret.to_vec()));
        self.enrolment(secret, username)
    }

    fn enrolment(&self, secret: TotpSecret, username: &str) -> Result<Enrolment, FactorRefused> {
        let url = secret.url(&self.service, username);
        let url = url.ok_or(SealingError::Generation)?;
        Ok(Enrolment {
            picture: totp::picture(&url).ok_or(SealingError::Generation)?,
            secret,
            url,
        })
    }

    /// Enrols an app that has shown to share the secret; if `is_first`, for a user who has no second
    /// factor, or not at all. With the methods that it has proved; the code counts nowhere again.
    pub async fn enrol(
        &self,
        user: &User,
        (secret, code): (&[u8], &str),
        is_first: bool,
        cause: &Cause,
    ) -> Result<Vec<String>, FactorRefused> {
        let now = self.clock.now();
        let shared = TotpSecret::kept(Zeroizing::new(secret.to_vec()));
        let typed: String = code.chars().filter(|c| *c != ' ').take(10).collect();
        let step = shared.step_of(&typed, now).ok_or(FactorRefused::Wrong)?;
        if self.secret_of(user).await?.is_some_and(|it| it.is(secret)) {
            return Err(FactorRefused::Again);
        }
        let mut attempt = 1;
        loop {
            let schedule = self.store.key_schedule(KeyUse::Signing);
            let primary = self.answer(schedule).await?.primary_master;
            let primary = primary.ok_or(FactorRefused::NoMasterKey)?;
            let masters = self.masters.load()?;
            let entropy = &self.entropy;
            let sealed = sealing::seal_totp(&masters, primary, user.id, shared.expose(), entropy)?;
            let change = FactorChange::AddTotp(Totp {
                sealed,
                last_step: step,
                created_at: now,
            });
            match self.change(user, change, is_first, cause).await {
                // Perhaps because another master key was promoted.
                Err(FactorRefused::Conflict) if attempt < ATTEMPTS => attempt += 1,
                result => {
                    return result.map(|()| names(&[method::ONE_TIME, method::MULTIPLE]));
                }
            }
        }
    }

    /// Makes recovery codes, in place of those before; if `is_first`, for a user who has none, or not at
    /// all. Shown this once.
    pub async fn make_codes(
        &self,
        user: &User,
        is_first: bool,
        cause: &Cause,
    ) -> Result<Vec<RecoveryCode>, FactorRefused> {
        let codes = (0..recovery::AT_ONCE).map(|_| RecoveryCode::draw(&self.entropy));
        let codes = codes.collect::<Result<Vec<_>, _>>()?;
        let hashes = codes.iter().filter_map(RecoveryCode::hash).collect();
        let change = FactorChange::MakeRecoveryCodes(hashes);
        self.change(user, change, is_first, cause).await?;
        Ok(codes)
    }

    /// Removes what a user has enrolled, if it need not have it.
    pub async fn remove(
        &self,
        user: &User,
        change: FactorChange,
        cause: &Cause,
    ) -> Result<(), FactorRefused> {
        let factors = self.of(user.id).await?;
        let left = match &change {
            FactorChange::RemoveTotp => !factors.passkeys.is_empty(),
            FactorChange::RemovePasskey(id) => {
                factors.totp.is_some() || factors.passkeys.iter().any(|passkey| passkey.id != *id)
            }
            _ => true,
        };
        if user.second_factor_required && !left {
            return Err(FactorRefused::Last);
        }
        self.change(user, change, false, cause).await
    }

    /// Changes what a user has, if the user still is what it was when it was read; and if it has no
    /// second factor, where this is to be the first.
    pub(super) async fn change(
        &self,
        user: &User,
        change: FactorChange,
        is_first: bool,
        cause: &Cause,
    ) -> Result<(), FactorRefused> {
        let change = Change::ChangeFactors {
            subject: user.id,
            user_epoch: user.session_epoch,
            is_first,
            change,
        };
        let applied = self.store.apply(&change, cause, self.clock.now());
        self.answer(applied).await?;
        Ok(())
    }

    async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        store::in_time(&self.clock, answer).await
    }
}

fn names(methods: &[&str]) -> Vec<String> {
    methods.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enrolled_factor_is_asked_for_after_each_password() {
        let fresh = Wanted {
            is_fresh: true,
            ..Wanted::default()
        };
        let required = Wanted {
            required: true,
            ..Wanted::default()
        };
        let asked_for = Wanted {
            asked_for: true,
            ..Wanted::default()
        };
        let password = ["pwd"];
        for (is_enrolled, wanted, expected) in [
            (false, Wanted::default(), Next::Nothing),
            (false, fresh, Next::Nothing),
            (false, asked_for, Next::Nothing),
            (false, required, Next::Enrol),
            (true, Wanted::default(), Next::Nothing),
            (true, fresh, Next::Prove),
            (true, asked_for, Next::Prove),
            (true, required, Next::Prove),
        ] {
            assert_eq!(next(is_enrolled, wanted, &password), expected, "{wanted:?}");
            let both = ["pwd", "otp", "mfa"];
            assert_eq!(next(is_enrolled, wanted, &both), Next::Nothing);
        }
    }
}
