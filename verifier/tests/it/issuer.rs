//! An issuer and an attacker, with the published example keys of the RFCs.

use countersign_verifier::{
    AccessTokenClaims, Expectation, KeySet, PublicKey, VerifyError, base64url, verify,
};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _,
};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://issuer.example";
pub(crate) const AUDIENCE: &str = "https://api.example";
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const LEEWAY: u64 = 30;

/// The holder of a private key.
pub(crate) struct Signer {
    private: Vec<u8>,
    point: Vec<u8>,
}

/// Signs with the key of RFC 7515 A.3.
pub(crate) fn issuer() -> Signer {
    Signer::new(
        "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
        "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    )
}

/// Signs with the key of RFC 7517 A.2.
pub(crate) fn attacker() -> Signer {
    Signer::new(
        "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE",
        "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    )
}

impl Signer {
    fn new(d: &str, x: &str, y: &str) -> Self {
        let [private, x, y] = [d, x, y].map(|text| base64url::decode(text).unwrap());
        Self {
            private,
            point: [vec![0x04], x, y].concat(),
        }
    }

    pub(crate) fn point(&self) -> &[u8] {
        &self.point
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        PublicKey::from_uncompressed(&self.point).unwrap()
    }

    /// Signs whatever text it is given as header and payload.
    pub(crate) fn sign(&self, header: &str, payload: &str) -> String {
        let input = signing_input(header, payload);
        let signature = self.signature(&ECDSA_P256_SHA256_FIXED_SIGNING, &input);
        format!("{input}.{}", base64url::encode(&signature))
    }

    pub(crate) fn sign_as_der(&self, header: &str, payload: &str) -> String {
        let input = signing_input(header, payload);
        let signature = self.signature(&ECDSA_P256_SHA256_ASN1_SIGNING, &input);
        format!("{input}.{}", base64url::encode(&signature))
    }

    fn signature(&self, algorithm: &'static EcdsaSigningAlgorithm, input: &str) -> Vec<u8> {
        #[expect(
            clippy::disallowed_methods,
            reason = "there is no Entropy in this crate"
        )]
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            algorithm,
            &self.private,
            &self.point,
            &random,
        )
        .unwrap();
        assert_eq!(pair.public_key().as_ref(), self.point);
        pair.sign(&random, input.as_bytes())
            .unwrap()
            .as_ref()
            .to_vec()
    }
}

pub(crate) fn signing_input(header: &str, payload: &str) -> String {
    format!(
        "{}.{}",
        base64url::encode(header.as_bytes()),
        base64url::encode(payload.as_bytes())
    )
}

/// The header of an acceptable token.
pub(crate) fn header() -> Value {
    json!({"typ": "at+jwt", "alg": "ES256", "kid": issuer().public_key().kid()})
}

/// The claims of an acceptable token.
pub(crate) fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "user-1", "aud": AUDIENCE, "client_id": "app",
        "iat": NOW - 10, "exp": NOW + 600, "jti": "token-1", "scope": "read write",
        "auth_time": NOW - 100, "acr": "1", "amr": ["pwd", "otp"], "sid": "family-1",
    })
}

/// The object with one member replaced or added.
pub(crate) fn with(object: Value, name: &str, value: Value) -> Value {
    let Value::Object(mut members) = object else {
        panic!("not an object")
    };
    members.insert(name.to_owned(), value);
    Value::Object(members)
}

/// The object with one member taken away.
pub(crate) fn without(object: Value, name: &str) -> Value {
    let Value::Object(mut members) = object else {
        panic!("not an object")
    };
    members.remove(name).unwrap();
    Value::Object(members)
}

pub(crate) fn expectation() -> Expectation {
    Expectation {
        issuer: ISSUER.to_owned(),
        audience: Some(AUDIENCE.to_owned()),
        leeway_seconds: LEEWAY,
    }
}

/// Judges a token as the resource server does.
pub(crate) fn judge(token: &str) -> Result<AccessTokenClaims<'static>, VerifyError> {
    judge_at(token, NOW)
}

pub(crate) fn judge_at(token: &str, now: u64) -> Result<AccessTokenClaims<'static>, VerifyError> {
    verify(
        token,
        &KeySet::from_keys([issuer().public_key()]),
        &expectation(),
        now,
    )
}

/// Judges a token that the issuer itself signed with this header.
pub(crate) fn judge_header(header: &Value) -> Result<AccessTokenClaims<'static>, VerifyError> {
    judge(&issuer().sign(&header.to_string(), &claims().to_string()))
}

/// Judges a token that the issuer itself signed with these claims.
pub(crate) fn judge_claims(claims: &Value) -> Result<AccessTokenClaims<'static>, VerifyError> {
    judge(&issuer().sign(&header().to_string(), &claims.to_string()))
}
