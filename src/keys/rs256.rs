//! RSA keys that sign ID Tokens with RS256 (RFC 7518 §3.3), for clients that know nothing else.
//!
//! ring signs; it cannot generate such keys, so that `rsa` does, and nothing else with them.

use std::convert::Infallible;

use countersign_verifier::base64url;
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair},
};
use rsa::{
    RsaPrivateKey,
    pkcs8::EncodePrivateKey as _,
    rand_core::{TryCryptoRng, TryRng},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    ring::{compact, header},
    signer::SignError,
};
use crate::{
    domain::{digest::sha256, id::Kid, key::KeyAlgorithm},
    entropy::{Entropy, EntropyError},
};

/// "A key of size 2048 bits or larger MUST be used with these algorithms" (RFC 7518 §3.3).
const BITS: usize = 2048;

/// A key that can sign with RS256.
pub struct Rs256Key {
    /// The public half.
    pub public: RsaPublicKey,
    pair: RsaKeyPair,
    random: SystemRandom,
}

impl Rs256Key {
    /// Parses a private key in PKCS#8 form. None if it is none, or one of another length than those
    /// that are made here.
    pub fn parse(pkcs8: &[u8], entropy: &Entropy) -> Option<Self> {
        let pair = RsaKeyPair::from_pkcs8(pkcs8).ok()?;
        if pair.public().modulus_len() * 8 != BITS {
            return None;
        }
        Some(Self {
            public: RsaPublicKey::new(pair.public().into())?,
            pair,
            random: entropy.secure_random().clone(),
        })
    }

    /// Its thumbprint.
    pub fn kid(&self) -> &Kid {
        &self.public.kid
    }

    /// Signs a payload: a JWS of this type (RFC 7515 §4.1.9) in compact serialization.
    pub fn sign(&self, typ: &str, payload: &[u8]) -> Result<String, SignError> {
        let header = header(typ, KeyAlgorithm::Rs256, self.kid());
        compact(&header, payload, |message| {
            let mut signature = vec![0; self.pair.public().modulus_len()];
            self.pair
                .sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                .map_err(|_| SignError)?;
            Ok(signature)
        })
    }
}

/// The public half of such a key.
#[derive(Clone, Debug)]
pub struct RsaPublicKey {
    kid: Kid,
    components: PublicKeyComponents<Vec<u8>>,
}

impl RsaPublicKey {
    fn new(components: PublicKeyComponents<Vec<u8>>) -> Option<Self> {
        // RFC 7638 §3: the required members in this order, without spaces.
        let members = format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            base64url::encode(&components.e),
            base64url::encode(&components.n),
        );
        Some(Self {
            kid: Kid::parse(&base64url::encode(&sha256(&members))).ok()?,
            components,
        })
    }

    /// The RFC 7638 thumbprint of the key.
    pub fn kid(&self) -> &Kid {
        &self.kid
    }

    /// The key as it is published (RFC 7518 §6.3.1).
    pub fn to_jwk(&self) -> Value {
        json!({
            "kty": "RSA",
            "use": "sig",
            "alg": KeyAlgorithm::Rs256.as_str(),
            "kid": self.kid.as_str(),
            "n": base64url::encode(&self.components.n),
            "e": base64url::encode(&self.components.e),
        })
    }

    /// Whether this is the RS256 signature of a message.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = self
            .components
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature);
        verified.is_ok()
    }
}

/// Generates a private key, in PKCS#8 form: that takes some tenths of a second of one core, now and then more.
pub(super) fn generate(entropy: &Entropy) -> Result<Option<Zeroizing<Vec<u8>>>, EntropyError> {
    let mut stream = Stream::draw(entropy)?;
    let key = RsaPrivateKey::new(&mut stream, BITS).ok();
    let document = key.and_then(|key| key.to_pkcs8_der().ok());
    Ok(document.map(|document| document.to_bytes()))
}

/// Unpredictable bytes for the search for primes, which has no way to fail: HMAC-SHA-256 of a counter
/// under a key that is drawn once, before it begins.
struct Stream {
    key: hmac::Key,
    counter: u64,
}

impl Stream {
    fn draw(entropy: &Entropy) -> Result<Self, EntropyError> {
        let seed = Zeroizing::new(entropy.bytes::<32>()?);
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &*seed),
            counter: 0,
        })
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let block = hmac::sign(&self.key, &self.counter.to_be_bytes());
            self.counter += 1;
            for (byte, drawn) in chunk.iter_mut().zip(block.as_ref()) {
                *byte = *drawn;
            }
        }
    }
}

impl TryRng for Stream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.take()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(self.take()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Stream {}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Rs256Key {
        let entropy = Entropy::new();
        let pkcs8 = generate(&entropy).unwrap().unwrap();
        Rs256Key::parse(&pkcs8, &entropy).unwrap()
    }

    fn published(n: &str) -> RsaPublicKey {
        let components = PublicKeyComponents {
            n: base64url::decode(n).unwrap(),
            e: vec![1, 0, 1],
        };
        RsaPublicKey::new(components).unwrap()
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let key = published(
            "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        );
        assert_eq!(
            key.kid().as_str(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
        let jwk = key.to_jwk();
        assert_eq!(jwk["kty"], "RSA");
        assert_eq!(jwk["e"], "AQAB");
        assert_eq!(jwk["alg"], "RS256");
        assert_eq!(jwk["use"], "sig");
    }

    #[test]
    fn a_signature_is_of_one_key_and_one_message() {
        let (key, other) = (key(), self::key());
        assert_ne!(key.kid(), other.kid());
        let token = key.sign("JWT", b"{}").unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut signature = base64url::decode(signature).unwrap();
        let message = message.as_bytes();
        assert!(key.public.has_signed(message, &signature));
        assert!(!other.public.has_signed(message, &signature));
        assert!(!key.public.has_signed(&message[1..], &signature));
        assert!(!key.public.has_signed(message, &signature[1..]));
        assert!(!key.public.has_signed(message, &[]));
        signature[100] ^= 1;
        assert!(!key.public.has_signed(message, &signature));
    }

    #[test]
    fn no_two_draws_are_the_same() {
        let entropy = Entropy::new();
        let mut stream = Stream::draw(&entropy).unwrap();
        let (one, two): ([u8; 80], [u8; 80]) = (stream.take(), stream.take());
        assert_ne!(one, two);
        assert_ne!(one[..32], one[32..64]);
        let mut other = Stream::draw(&entropy).unwrap();
        assert_ne!(other.take::<80>(), one);
    }
}
