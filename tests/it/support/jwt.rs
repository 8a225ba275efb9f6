//! JWTs as others write them, good and bad.

use countersign::entropy::Entropy;
use countersign_verifier::{PublicKey, base64url};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

/// A key pair for ES256.
pub(crate) struct SigningKey {
    kid: String,
    pair: EcdsaKeyPair,
    entropy: Entropy,
}

impl SigningKey {
    pub(crate) fn new(kid: &str) -> Self {
        let entropy = Entropy::new();
        let random = entropy.secure_random();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, random).unwrap();
        Self {
            kid: kid.to_owned(),
            pair: EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), random).unwrap(),
            entropy,
        }
    }

    /// The uncompressed point.
    pub(crate) fn point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The public key as its owner publishes it.
    pub(crate) fn jwk(&self) -> Value {
        let key = PublicKey::from_uncompressed(self.point()).unwrap();
        let mut jwk = serde_json::to_value(key.to_jwk()).unwrap();
        jwk["kid"] = self.kid.as_str().into();
        jwk
    }

    /// Signs these claims under a header with `alg`, `kid` and whatever else.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let mut complete = json!({ "alg": "ES256", "kid": self.kid });
        for (name, value) in header.as_object().unwrap() {
            complete[name] = value.clone();
        }
        self.sign_text(&complete.to_string(), &claims.to_string())
    }

    /// Signs a header and claims as they are written.
    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        let input = input(header, claims);
        let random = self.entropy.secure_random();
        let signature = self.pair.sign(random, input.as_bytes()).unwrap();
        format!("{input}.{}", base64url::encode(signature.as_ref()))
    }
}

/// A JWK Set of these keys.
pub(crate) fn jwks(keys: &[&SigningKey]) -> Value {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() })
}

/// The first two parts.
pub(crate) fn input(header: &str, claims: &str) -> String {
    let encode = |text: &str| base64url::encode(text.as_bytes());
    format!("{}.{}", encode(header), encode(claims))
}
