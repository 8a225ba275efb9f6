//! Secrets that clients present: the plain text, which only its client keeps, and the hash, which is
//! stored.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::{Choice, ConstantTimeEq as _};

use super::{digest::sha256, id::SecretId};
use crate::{
    clock::Timestamp,
    entropy::{Entropy, EntropyError},
};

/// What every client secret begins with, so that secret scanners recognise a leaked one.
const PREFIX: &str = "cs_cs_";

/// A client secret in plain text: `cs_cs_` and 32 random bytes in base64url.
///
/// Neither printable nor clonable: it is shown once to whoever created it and then forgotten.
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// Draws a new secret.
    pub fn mint(entropy: &Entropy) -> Result<Self, EntropyError> {
        let random = URL_SAFE_NO_PAD.encode(entropy.bytes::<32>()?);
        Ok(Self(format!("{PREFIX}{random}").into()))
    }

    /// Takes on a secret that was minted before and kept by its owner.
    pub fn kept(text: String) -> Self {
        Self(text.into())
    }

    /// The plain text, for its one showing.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The hash under which the secret is stored.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(self.expose())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(..)")
    }
}

/// What somebody is handed to present it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketKind {
    /// An authorization code (RFC 6749 §4.1.2).
    AuthorizationCode,
    /// The `auth_session` of an unfinished sign-in (draft-ietf-oauth-first-party-apps §5.3.1).
    AuthSession,
    /// What the cookie of a browser's session holds.
    BrowserSession,
}

impl TicketKind {
    /// What each of them begins with.
    const fn prefix(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "cs_ac_",
            Self::AuthSession => "cs_as_",
            Self::BrowserSession => "cs_bs_",
        }
    }
}

/// A secret that is drawn to be presented later: a prefix and 32 random bytes in base64url.
///
/// Neither printable nor clonable.
pub struct Ticket(SecretString);

impl Ticket {
    /// Draws a new one.
    pub fn mint(kind: TicketKind, entropy: &Entropy) -> Result<Self, EntropyError> {
        let random = URL_SAFE_NO_PAD.encode(entropy.bytes::<32>()?);
        Ok(Self(format!("{}{random}", kind.prefix()).into()))
    }

    /// The hash under which a presented one would be stored; none of a text that was never drawn.
    ///
    /// # Security
    /// Whoever sends a request chooses `text`.
    pub fn hash_of(kind: TicketKind, text: &str) -> Option<SecretHash> {
        let random = text.strip_prefix(kind.prefix())?;
        let is_drawn = random.len() == 43 && URL_SAFE_NO_PAD.decode(random).is_ok();
        is_drawn.then(|| SecretHash::of(text))
    }

    /// The plain text, for its one showing.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The hash under which it is stored.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(self.expose())
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// The SHA-256 of a secret.
///
/// It has 256 random bits, so that nothing slower is needed to keep it from being guessed
/// (RFC 6819 §5.1.4.1.3 asks for slowness only where people choose the secret).
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Hashes what a client presented or was given.
    pub fn of(secret: &str) -> Self {
        Self(sha256(secret))
    }

    /// Takes on a stored hash; `None` unless it has 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// One of a client's live secrets, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    /// Names the secret in the admin interfaces.
    pub id: SecretId,
    /// What a presented secret is compared with.
    pub hash: SecretHash,
    /// When it was created.
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        let secret = ClientSecret::mint(&Entropy::new()).unwrap();
        let shown = format!("{secret:?} {:?}", secret.hash());
        assert_eq!(shown, "ClientSecret(..) SecretHash(..)");
    }

    #[test]
    fn a_secret_matches_only_its_own_hash() {
        let entropy = Entropy::new();
        let (one, other) = (
            ClientSecret::mint(&entropy).unwrap(),
            ClientSecret::mint(&entropy).unwrap(),
        );
        assert!(one.expose().starts_with("cs_cs_"));
        assert!(bool::from(
            SecretHash::of(one.expose()).matches(&one.hash())
        ));
        assert!(!bool::from(one.hash().matches(&other.hash())));
    }
}
