//! Second factors: what users have enrolled beside their passwords, and what proving it is worth.

use std::{fmt, time::Duration};

use countersign_verifier::base64url;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{id::UserId, key::SealedKey, secret::SecretHash, user::User};
use crate::clock::Timestamp;

/// Names of methods (RFC 8176 §2).
pub mod method {
    /// "Proof-of-Possession (`PoP`) of a hardware-secured key": a passkey that stays on its device.
    pub const HARDWARE_KEY: &str = "hwk";
    /// "Multiple-factor authentication": stands beside the methods it was made of.
    pub const MULTIPLE: &str = "mfa";
    /// "One-time password": by an app, or from the list of recovery codes.
    pub const ONE_TIME: &str = "otp";
    /// "Password-based authentication".
    pub const PASSWORD: &str = "pwd";
    /// "Proof-of-Possession (`PoP`) of a software-secured key": a passkey that its user's devices share.
    pub const SOFTWARE_KEY: &str = "swk";
    /// "User presence test".
    pub const USER: &str = "user";
}

/// What one factor is worth (`acr`, `OpenID` Connect Core §2).
pub const ONE_FACTOR: &str = "urn:countersign:acr:1";

/// What two factors are worth, or a passkey that has verified its user.
pub const TWO_FACTORS: &str = "urn:countersign:acr:2";

/// All that there are, the weakest first.
pub const ACR_VALUES: [&str; 2] = [ONE_FACTOR, TWO_FACTORS];

/// What an authentication by these methods is worth.
pub fn acr<T: AsRef<str>>(amr: &[T]) -> &'static str {
    if amr.iter().any(|name| name.as_ref() == method::MULTIPLE) {
        TWO_FACTORS
    } else {
        ONE_FACTOR
    }
}

/// A secret that an app makes one-time passwords from (RFC 6238), as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totp {
    /// The secret, under a master key.
    pub sealed: SealedKey,
    /// The last step whose code was accepted.
    pub last_step: i64,
    /// When it was enrolled.
    pub created_at: Timestamp,
}

/// A passkey (`WebAuthn`), as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passkey {
    /// What its authenticator calls it.
    pub id: PasskeyId,
    /// Whose it is.
    pub subject: UserId,
    /// What its user calls it.
    pub name: String,
    /// The public key and what else is known of it, as JSON.
    pub credential: String,
    /// How often it has signed, as its authenticator counts; zero where it does not.
    pub counter: i64,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
}

/// The credential id of a passkey. Its authenticator chooses it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasskeyId(Vec<u8>);

/// The longest credential id, in bytes ("at most 1023 bytes", Web Authentication §4).
const LONGEST_ID: usize = 1023;

impl PasskeyId {
    /// Takes on an id; none that is empty or too long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (1..=LONGEST_ID)
            .contains(&bytes.len())
            .then(|| Self(bytes.to_vec()))
    }

    /// Reads the text form: base64url.
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_bytes(&base64url::decode(text).ok()?)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for PasskeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url::encode(&self.0))
    }
}

impl fmt::Debug for PasskeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a user has enrolled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Factors {
    /// An app that makes one-time passwords.
    pub totp: Option<Totp>,
    /// How many recovery codes are left.
    pub recovery_codes: u32,
    /// Passkeys, the oldest first.
    pub passkeys: Vec<Passkey>,
}

impl Factors {
    /// Whether there is a second factor. Recovery codes stand in for one, and are none by themselves.
    pub fn is_enrolled(&self) -> bool {
        self.totp.is_some() || !self.passkeys.is_empty()
    }
}

/// What is done to the factors of a user.
#[derive(Clone, Debug)]
pub enum FactorChange {
    /// Enrols an app that makes one-time passwords. A second one is a conflict.
    AddTotp(Totp),
    /// Removes it.
    RemoveTotp,
    /// Makes recovery codes, in place of all that there were.
    MakeRecoveryCodes(Vec<SecretHash>),
    /// Uses a recovery code. One that is not there is a conflict.
    UseRecoveryCode(SecretHash),
    /// Adds a passkey. One that is there already, whosever it is, is a conflict.
    AddPasskey(Box<Passkey>),
    /// Removes a passkey.
    RemovePasskey(PasskeyId),
}

/// What somebody who is signing in has proved so far.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Proved {
    subject: Uuid,
    /// The user's epoch when it was proved: another one now means that this is over.
    pub user_epoch: i64,
    /// How (RFC 8176).
    pub amr: Vec<String>,
    at: i64,
}

/// How long what was proved counts in a sign-in that goes on.
pub const PROVED_LIFE: Duration = Duration::from_mins(10);

impl Proved {
    /// That somebody is this user.
    pub fn new(user: &User, amr: Vec<String>, at: Timestamp) -> Self {
        Self {
            subject: user.id.uuid(),
            user_epoch: user.session_epoch,
            amr,
            at: at.millis(),
        }
    }

    /// Who that is.
    pub fn subject(&self) -> UserId {
        UserId::from_uuid(self.subject)
    }

    /// Whether it counts at `now`, if the user is as it is.
    pub fn is_of(&self, user: &User, now: Timestamp) -> bool {
        let at = Timestamp::from_millis(self.at);
        user.id == self.subject()
            && user.session_epoch == self.user_epoch
            && !user.disabled
            && now.since(at) < PROVED_LIFE
    }

    /// As it is stored.
    pub fn to_json(&self) -> String {
        json!(self).to_string()
    }

    /// Reads what was stored.
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// A stored secret, to be sealed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedTotp {
    /// Whose it is.
    pub subject: UserId,
    /// The secret.
    pub sealed: SealedKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_factors_are_worth_more_than_one() {
        assert_eq!(acr(&["pwd"]), ONE_FACTOR);
        assert_eq!(acr::<&str>(&[]), ONE_FACTOR);
        assert_eq!(acr(&["pwd", "otp", "mfa"]), TWO_FACTORS);
        assert_eq!(acr(&["hwk", "user", "mfa"]), TWO_FACTORS);
    }
}
