//! Records of keys as they are stored: sealed, with the times that decide their state.
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
        /// Authenticates refresh tokens. Known to the nodes only.
        RefreshMac = "refresh_mac",
        /// Signs the ID Tokens of clients that want RS256. Only where the service has opted in.
        IdTokenRs256 = "id_token_rs256",
    }
);

impl KeyUse {
    /// Whether the public halves of such keys are in the JWKS.
    pub const fn is_published(self) -> bool {
        match self {
            Self::Signing | Self::IdTokenRs256 => true,
            Self::RefreshMac => false,
        }
    }
}

named!(
    /// The algorithm of a key (RFC 7518 §3.1).
    KeyAlgorithm {
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 = "RS256",
    }
);

/// The moments that decide a key's state, now and at any other time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// Since when the key is known to whoever needs it: of a key that signs, since when it is in the
    /// JWKS.
    pub published_at: Timestamp,
    /// From when on it signs, until a later key does.
    pub activates_at: Timestamp,
    /// When what it has signed counts no more; unknown until it has a successor. A key that signs
    /// leaves the JWKS then.
    pub withdrawn_at: Option<Timestamp>,
    /// When it was declared compromised.
    pub revoked_at: Option<Timestamp>,
}

/// A private or secret key encrypted under a master key.
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
    /// Names the key; follows from it.
    pub kid: Kid,
    /// Purpose.
    pub key_use: KeyUse,
    /// Algorithm.
    pub algorithm: KeyAlgorithm,
    /// What refresh tokens call a refresh-MAC key; others have none.
    pub version: Option<u32>,
    /// When it does what.
    pub times: KeyTimes,
    /// The key itself.
    pub sealed: SealedKey,
}

impl KeyRecord {
    /// What the audit trail keeps of the key: nothing of its secret part.
    pub fn document(&self) -> Value {
        let mut document = json!({
            "kid": self.kid.as_str(),
            "published_at": self.times.published_at.seconds(),
            "activates_at": self.times.activates_at.seconds(),
            "withdrawn_at": self.times.withdrawn_at.map(Timestamp::seconds),
            "revoked_at": self.times.revoked_at.map(Timestamp::seconds),
            "master_key": self.sealed.master_id.to_string(),
        });
        if let (Some(version), Some(members)) = (self.version, document.as_object_mut()) {
            members.insert("version".to_owned(), version.into());
        }
        document
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
    /// The master key under which new keys of every use are sealed; none before the first start.
    /// The schedule of signing keys alone can change it.
    pub primary_master: Option<MasterKeyId>,
    /// The keys, by `activates_at`.
    pub keys: Vec<KeyRecord>,
}

impl KeySchedule {
    /// The times of the keys, in their order.
    pub fn times(&self) -> Vec<KeyTimes> {
        self.keys.iter().map(|key| key.times).collect()
    }
}
