//! What a browser brings back: sealed, bound to that browser and to what it is for.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::error::{ErrorCode, OAuthError};
use crate::{
    clock::{AgreedClock, Timestamp},
    entropy::Entropy,
    registry::Snapshots,
};

/// How long what is sealed is good.
const LIFE: Duration = Duration::from_mins(30);

/// What something is sealed for; nothing sealed for one purpose opens for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A user who is signing in.
    Flow,
    /// A form of the account page.
    Account,
    /// The question whether to sign out.
    Logout,
    /// A sign-in that has begun at a host behind a proxy.
    Host,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Account => "account",
            Self::Logout => "logout",
            Self::Host => "host",
        }
    }

    /// What it is bound to in this browser. No cookie has a NUL in it.
    fn bound_to(self, binding: &str) -> Vec<u8> {
        [self.as_str().as_bytes(), b"\0", binding.as_bytes()].concat()
    }
}

/// What is sealed, and since when.
#[derive(Deserialize, Serialize)]
struct Sealed<T> {
    /// In milliseconds since 1970.
    at: i64,
    what: T,
}

/// Seals what browsers keep, and opens what they bring back.
///
/// # Security
/// Bound to the cookie that tells a browser from others: nobody can have another browser go on with
/// what they were given (cross-site request forgery).
#[derive(Clone)]
pub struct Seals {
    /// Has the keys.
    pub snapshots: Arc<Snapshots>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws nonces.
    pub entropy: Entropy,
}

impl Seals {
    /// Seals something for the browser of this binding. It is good for half an hour from `since` on.
    pub fn seal(
        &self,
        purpose: Purpose,
        what: &impl Serialize,
        since: Timestamp,
        binding: &str,
    ) -> Result<String, OAuthError> {
        let sealed = Sealed {
            at: since.millis(),
            what,
        };
        let plain = serde_json::to_vec(&sealed).map_err(OAuthError::internal)?;
        let (ring, bound_to) = (self.snapshots.mac_ring(), purpose.bound_to(binding));
        ring.seal(&plain, &bound_to, &self.entropy, self.clock.now())
            .map_err(OAuthError::internal)
    }

    /// Opens what was sealed for this purpose and this browser.
    ///
    /// # Security
    /// Whoever sends the request chooses `text`.
    pub fn open<T: DeserializeOwned>(
        &self,
        purpose: Purpose,
        text: &str,
        binding: &str,
    ) -> Result<T, OAuthError> {
        let sealed: Sealed<T> = self.unsealed(purpose, text, binding)?;
        if self.clock.now().since(Timestamp::from_millis(sealed.at)) > LIFE {
            return Err(over());
        }
        Ok(sealed.what)
    }

    /// Opens the same, however long ago it was sealed: to begin anew, and for nothing else.
    ///
    /// # Security
    /// Whoever sends the request chooses `text`.
    pub fn open_old<T: DeserializeOwned>(
        &self,
        purpose: Purpose,
        text: &str,
        binding: &str,
    ) -> Result<T, OAuthError> {
        self.unsealed(purpose, text, binding)
            .map(|sealed| sealed.what)
    }

    fn unsealed<T: DeserializeOwned>(
        &self,
        purpose: Purpose,
        text: &str,
        binding: &str,
    ) -> Result<Sealed<T>, OAuthError> {
        let ring = self.snapshots.mac_ring();
        // A key that is not known here was made up: each is, long before anything is sealed with it.
        let opened = ring.unseal(text, &purpose.bound_to(binding), self.clock.now());
        let plain = opened.map_err(|_| over())?;
        serde_json::from_slice(&plain).map_err(|_| over())
    }
}

/// Why a step is refused that belongs to no page of this browser, or comes too late.
const OVER: &str = "flow";

/// Whether that is why.
pub fn is_over(error: &OAuthError) -> bool {
    error.reason() == OVER
}

/// The refusal of a step that belongs to no page of this browser, or comes too late.
pub const fn over() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidRequest,
        OVER,
        "this page is too old, or was opened in another browser; go back and begin anew",
    )
}
