//! Making signatures.

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};

use crate::entropy::Entropy;

/// A signature could not be made.
#[derive(Debug, thiserror::Error)]
#[error("signing failed")]
pub struct SignError;

/// Signs with one private key, wherever that is kept.
pub trait Signer: Send + Sync + 'static {
    /// The ES256 signature of `message`: R ‖ S, 64 bytes (RFC 7518 §3.4).
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError>;
}

/// A private key in memory, parsed once.
pub struct Es256Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Es256Signer {
    /// Takes on a parsed key; ring draws a fresh nonce for each signature.
    pub fn new(key: EcdsaKeyPair, entropy: &Entropy) -> Self {
        Self {
            key,
            random: entropy.secure_random().clone(),
        }
    }

    /// Parses a private key in PKCS#8 form; ring checks it against the public key therein.
    pub fn parse(
        pkcs8: &[u8],
        entropy: &Entropy,
    ) -> Result<EcdsaKeyPair, ring::error::KeyRejected> {
        EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8,
            entropy.secure_random(),
        )
    }
}

impl Signer for Es256Signer {
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        let signature = self
            .key
            .sign(&self.random, message)
            .map_err(|_| SignError)?;
        signature.as_ref().try_into().map_err(|_| SignError)
    }
}
