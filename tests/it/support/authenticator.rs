//! A passkey in software: ES256, attestation `none` (Web Authentication §6).

use countersign::entropy::Entropy;
use countersign_verifier::base64url;
use ring::{
    digest::{SHA256, digest},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

const PRESENT: u8 = 0x01;
const VERIFIED: u8 = 0x04;
const SHARED: u8 = 0x08;
const ATTESTED: u8 = 0x40;

/// One passkey, and what it does otherwise than it should.
pub(crate) struct Authenticator {
    key: EcdsaKeyPair,
    pub(crate) id: Vec<u8>,
    /// Where the browser is.
    pub(crate) origin: String,
    /// Whether it has verified its user.
    pub(crate) verifies: bool,
    /// Whether its user's devices share it.
    pub(crate) is_shared: bool,
    /// How often it has signed; zero where it does not count.
    pub(crate) counter: u32,
    /// Whose it is, once it is registered.
    user: Vec<u8>,
}

impl Authenticator {
    pub(crate) fn new(number: u8, origin: &str) -> Self {
        let entropy = Entropy::new();
        let random = entropy.secure_random();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, random).unwrap();
        Self {
            key: EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), random).unwrap(),
            id: vec![number; 16],
            origin: origin.to_owned(),
            verifies: true,
            is_shared: false,
            counter: 0,
            user: Vec::new(),
        }
    }

    fn data(&self, rp_id: &str, more: u8) -> Vec<u8> {
        let verified = if self.verifies { VERIFIED } else { 0 };
        let shared = if self.is_shared { SHARED } else { 0 };
        let mut data = digest(&SHA256, rp_id.as_bytes()).as_ref().to_vec();
        data.push(PRESENT | verified | shared | more);
        data.extend_from_slice(&self.counter.to_be_bytes());
        data
    }

    fn client_data(&self, kind: &str, asked: &Value) -> Vec<u8> {
        let data = json!({
            "type": kind,
            "challenge": asked["challenge"],
            "origin": self.origin,
            "crossOrigin": false,
        });
        data.to_string().into_bytes()
    }

    /// `navigator.credentials.create`, as JSON.
    pub(crate) fn create(&mut self, asked: &Value) -> String {
        self.user = base64url::decode(asked["user"]["id"].as_str().unwrap()).unwrap();
        let mut data = self.data(asked["rp"]["id"].as_str().unwrap(), ATTESTED);
        data.extend_from_slice(&[0; 16]);
        data.extend_from_slice(&u16::try_from(self.id.len()).unwrap().to_be_bytes());
        data.extend_from_slice(&self.id);
        // A COSE key (RFC 9053 §7.1.1): {1: 2, 3: -7, -1: 1, -2: x, -3: y}.
        let point = self.key.public_key().as_ref();
        data.extend_from_slice(&[0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20]);
        data.extend_from_slice(&point[1..33]);
        data.extend_from_slice(&[0x22, 0x58, 0x20]);
        data.extend_from_slice(&point[33..65]);
        // {"fmt": "none", "attStmt": {}, "authData": bytes} (RFC 8949).
        let mut object = vec![0xa3, 0x63];
        object.extend_from_slice(b"fmt\x64none\x67attStmt\xa0\x68authData\x59");
        object.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        object.extend_from_slice(&data);
        json!({
            "id": base64url::encode(&self.id),
            "rawId": base64url::encode(&self.id),
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": {
                "attestationObject": base64url::encode(&object),
                "clientDataJSON": base64url::encode(&self.client_data("webauthn.create", asked)),
                "transports": ["internal"],
            },
        })
        .to_string()
    }

    /// `navigator.credentials.get`, as JSON.
    pub(crate) fn sign(&self, asked: &Value) -> String {
        let data = self.data(asked["rpId"].as_str().unwrap(), 0);
        let client_data = self.client_data("webauthn.get", asked);
        let signed = [&data, digest(&SHA256, &client_data).as_ref()].concat();
        let signature = self
            .key
            .sign(Entropy::new().secure_random(), &signed)
            .unwrap();
        json!({
            "id": base64url::encode(&self.id),
            "rawId": base64url::encode(&self.id),
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": {
                "authenticatorData": base64url::encode(&data),
                "clientDataJSON": base64url::encode(&client_data),
                "signature": base64url::encode(signature.as_ref()),
                "userHandle": base64url::encode(&self.user),
            },
        })
        .to_string()
    }
}
