//! What a browser keeps for the service between two requests: sealed, so that nobody else can read
//! or make it, and nothing is stored for who never comes back.
//!
//! A sealed text is the base64url of
//!
//! | bytes | |
//! | --- | --- |
//! | 1 | the version of this form |
//! | 4 | the version of the refresh-MAC key that the sealing key is derived from, big endian |
//! | 12 | a nonce |
//! | … | AES-256-GCM of the plain text, with its tag |
//!
//! The associated data are a prefix and what the text is bound to.

use countersign_verifier::base64url;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};

use super::mac::{MacError, MacRing};
use crate::{
    clock::Timestamp,
    domain::refresh_token::Malformed,
    entropy::{Entropy, EntropyError},
};

/// The form of texts made today.
const VERSION: u8 = 1;

/// What stands before the associated data.
const DOMAIN: &[u8] = b"countersign browser state\0";

/// What comes before the ciphertext, in bytes.
const HEAD: usize = 1 + 4 + NONCE_LEN;

/// The longest text that is looked at, in bytes: longer than any that a request could have brought.
const LONGEST: usize = 64 * 1024;

/// A key to seal with, derived from a refresh-MAC key: whoever has it can make no refresh tokens.
pub(super) struct StateKey(LessSafeKey);

impl StateKey {
    /// Derives the key; none if the algorithm should fail, which it does not.
    pub(super) fn derive(secret: &[u8; 32]) -> Option<Self> {
        let secret = Salt::new(HKDF_SHA256, b"countersign refresh-MAC key").extract(secret);
        let key = secret.expand(&[b"browser state"], &AES_256_GCM).ok()?;
        Some(Self(LessSafeKey::new(UnboundKey::from(key))))
    }
}

/// Why nothing is sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is no key.
    #[error("there is no refresh-MAC key to seal with")]
    NoKey,
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The plain text is too long for the algorithm.
    #[error("the state cannot be sealed")]
    TooLong,
}

fn associated(bound_to: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([DOMAIN, bound_to].concat())
}

impl MacRing {
    /// Seals a text with the key that is active at `now`. It is opened by whoever names the same
    /// `bound_to`.
    pub fn seal(
        &self,
        plain: &[u8],
        bound_to: &[u8],
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<String, SealError> {
        let key = self.active(now).ok_or(SealError::NoKey)?;
        let nonce: [u8; NONCE_LEN] = entropy.bytes()?;
        let mut text = Vec::with_capacity(HEAD + plain.len() + AES_256_GCM.tag_len());
        text.push(VERSION);
        text.extend_from_slice(&key.version.to_be_bytes());
        text.extend_from_slice(&nonce);
        let mut sealed = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.state()
            .0
            .seal_in_place_append_tag(nonce, associated(bound_to), &mut sealed)
            .map_err(|_| SealError::TooLong)?;
        text.append(&mut sealed);
        Ok(base64url::encode(&text))
    }

    /// Opens a text that was sealed for `bound_to`.
    ///
    /// # Security
    /// Whoever sends the request chooses `text`. Without a key nobody makes one that opens.
    ///
    /// # Errors
    /// [`MacError::UnknownKey`] where the key may be newer than this ring.
    pub fn unseal(&self, text: &str, bound_to: &[u8], now: Timestamp) -> Result<Vec<u8>, MacError> {
        if text.len() > LONGEST {
            return Err(Malformed.into());
        }
        let bytes = base64url::decode(text).map_err(|_| Malformed)?;
        let (version, rest) = bytes.split_first().ok_or(Malformed)?;
        let (key_version, rest) = rest.split_first_chunk().ok_or(Malformed)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or(Malformed)?;
        if *version != VERSION {
            return Err(Malformed.into());
        }
        let key = self.find(u32::from_be_bytes(*key_version), now)?;
        let mut sealed = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key
            .state()
            .0
            .open_in_place(nonce, associated(bound_to), &mut sealed)
            .map_err(|_| MacError::Forged)?;
        Ok(plain.to_vec())
    }
}
