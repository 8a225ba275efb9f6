//! What the forms of the account page do: sealed, for one session in one browser.

use serde::{Deserialize, Serialize};

use super::security::Secret;
use crate::{
    clock::Timestamp,
    identity::session::Present,
    oauth::{
        error::OAuthError,
        seals::{Purpose, Seals, over},
    },
};

/// Something that a user does at its account, to what was shown to it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Act {
    /// Enrols the app that has this secret.
    AddApp(Secret),
    /// Adds the passkey of this ceremony.
    AddPasskey(Secret),
    /// Begins to add a passkey.
    BeginPasskey,
    /// Removes the passkey of this id.
    RemovePasskey(String),
    /// Begins to enrol an app that makes one-time passwords.
    BeginApp,
    /// Chooses another password.
    ChangePassword,
    /// Ends every session, this one as well.
    EndAll,
    /// Signs out of an app, by the id of the family.
    EndFamily(String),
    /// Ends every session but this one.
    EndOthers,
    /// Signs a browser out, by the id of its session.
    EndSession(String),
    /// Makes recovery codes, in place of those before.
    MakeCodes,
    /// Removes the app that makes one-time passwords.
    RemoveApp,
    /// Takes back what was allowed to the client of this id.
    Withdraw(String),
}

/// An act, and in whose session it was offered.
#[derive(Deserialize, Serialize)]
pub(super) struct Sealed {
    session: String,
    act: Act,
}

impl Sealed {
    pub(super) fn new(act: Act, present: &Present) -> Self {
        Self {
            session: present.session.id.to_string(),
            act,
        }
    }

    pub(super) fn seal(
        &self,
        seals: &Seals,
        now: Timestamp,
        binding: &str,
    ) -> Result<String, OAuthError> {
        seals.seal(Purpose::Account, self, now, binding)
    }

    /// The act, if it was sealed for this session.
    pub(super) fn open(
        text: &str,
        seals: &Seals,
        binding: &str,
        present: &Present,
    ) -> Result<Act, OAuthError> {
        let sealed: Self = seals.open(Purpose::Account, text, binding)?;
        if sealed.session == present.session.id.to_string() {
            Ok(sealed.act)
        } else {
            Err(over())
        }
    }
}
