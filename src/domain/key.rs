//! Records of signing keys as they are stored: sealed, with the times that decide their state.
//!
//! The states themselves are worked out in `keys::lifecycle`.

use serde_json::{Value, json};

use super::{
    client::Revision,
    id::{Kid, MasterKeyId},
    name::named,
};
use crate::clock::Timestamp;

named!(
    /// What a key is for; one key never serves two purposes.
    KeyUse {
        /// Signs access tokens.
        Signing = "signing",
    }
);

named!(
    /// The algorithm of a key (RFC 7518 §3.1).
    KeyAlgorithm {
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
    }
);

/// The moments that decide a key's state, now and at any other time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// Since when the key is in the JWKS.
    pub published_at: Timestamp,
    /// From when on it signs, until a later key does.
    pub activates_at: Timestamp,
    /// When it leaves the JWKS; unknown until it has a successor.
    pub withdrawn_at: Option<Timestamp>,
    /// When it was declared compromised.
    pub revoked_at: Option<Timestamp>,
}

/// A private key encrypted under a master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKey {
    /// The master key that opens it.
    pub master_id: MasterKeyId,
    /// Version, nonce, ciphertext and tag; see `keys::sealing`.
    pub ciphertext: Vec<u8>,
}

/// A stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Thumbprint of the public key.
    pub kid: Kid,
    /// Purpose.
    pub key_use: KeyUse,
    /// Algorithm.
    pub algorithm: KeyAlgorithm,
    /// When it does what.
    pub times: KeyTimes,
    /// The private key.
    pub sealed: SealedKey,
}

impl KeyRecord {
    /// What the audit trail keeps of the key: nothing of the private one.
    pub fn document(&self) -> Value {
        json!({
            "kid": self.kid.as_str(),
            "published_at": self.times.published_at.seconds(),
            "activates_at": self.times.activates_at.seconds(),
            "withdrawn_at": self.times.withdrawn_at.map(Timestamp::seconds),
            "revoked_at": self.times.revoked_at.map(Timestamp::seconds),
            "master_key": self.sealed.master_id.to_string(),
        })
    }
}

/// All keys of one use and the master key that seals new ones: changed only as a whole, so that
/// whatever is decided about it is decided about what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySchedule {
    /// What the keys are for.
    pub key_use: KeyUse,
    /// Zero before the first key exists.
    pub revision: Revision,
    /// The master key under which new keys are sealed; none before the first start.
    pub primary_master: Option<MasterKeyId>,
    /// The keys, by `activates_at`.
    pub keys: Vec<KeyRecord>,
}
