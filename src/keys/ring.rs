//! The rings: every key of a schedule, opened and parsed once; of signing keys with the documents to
//! publish.

use std::sync::Arc;

use bytes::Bytes;
use countersign_verifier::{KeySet, PublicKey, base64url};
use serde_json::{Value, json};

use super::{
    lifecycle::{self, Command, KeyState, Policy},
    master::MasterKeys,
    sealing::{self, SealingError},
    signer::{Es256Signer, SignError, Signer},
};
use crate::{
    clock::Timestamp,
    domain::{
        id::Kid,
        key::{KeyAlgorithm, KeyRecord, KeySchedule, KeyTimes, KeyUse},
    },
    entropy::Entropy,
};

/// A key that can sign.
pub struct SigningKey {
    /// Its thumbprint.
    pub kid: Kid,
    /// The public half.
    pub public: PublicKey,
    /// The private half.
    pub signer: Box<dyn Signer>,
    /// The JOSE header of access tokens it signs, in base64url, with the dot after it.
    pub access_token_header: String,
}

impl SigningKey {
    /// The JOSE header of what it signs of this type (RFC 7515 §4.1.9), in base64url, with the dot
    /// after it.
    pub fn header(&self, typ: &str) -> String {
        header(typ, &self.kid)
    }

    /// Signs a payload under such a header: the JWS in compact serialization (RFC 7515 §7.1).
    pub fn sign(&self, header: &str, payload: &[u8]) -> Result<String, SignError> {
        let mut token = String::with_capacity(header.len() + payload.len() * 4 / 3 + 96);
        token.push_str(header);
        base64url::encode_into(payload, &mut token);
        let signature = self.signer.sign(token.as_bytes())?;
        token.push('.');
        base64url::encode_into(&signature, &mut token);
        Ok(token)
    }
}

fn header(typ: &str, kid: &Kid) -> String {
    let header = json!({
        "typ": typ,
        "alg": KeyAlgorithm::Es256.as_str(),
        "kid": kid.as_str(),
    });
    format!("{}.", base64url::encode(header.to_string().as_bytes()))
}

/// A JWK Set as it goes over the wire (RFC 7517 §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwks {
    /// The document.
    pub body: Bytes,
    /// Its strong entity tag, with quotes (RFC 9110 §8.8.3).
    pub etag: Arc<str>,
}

/// The opened keys of one use, as of one revision of their schedule.
pub(super) struct Ring<K> {
    key_use: KeyUse,
    times: Vec<KeyTimes>,
    keys: Vec<K>,
}

impl<K> Ring<K> {
    /// Opens every key of the schedule.
    ///
    /// One that is published no more and does not open is left out: nothing depends on it.
    pub(super) fn open(
        schedule: &KeySchedule,
        now: Timestamp,
        open: impl Fn(&KeyRecord) -> Result<K, SealingError>,
    ) -> Result<Self, SealingError> {
        let (mut times, mut keys) = (Vec::new(), Vec::new());
        for record in &schedule.keys {
            match open(record) {
                Ok(key) => {
                    times.push(record.times);
                    keys.push(key);
                }
                Err(error) if !lifecycle::is_published(&record.times, now) => {
                    let (kid, key_use) = (record.kid.as_str(), record.key_use.as_str());
                    tracing::error!(kid, key_use, %error, "a key that counts no more is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            key_use: schedule.key_use,
            times,
            keys,
        })
    }

    /// Every key, with its times.
    pub(super) fn all(&self) -> impl Iterator<Item = (&K, &KeyTimes)> {
        self.keys.iter().zip(&self.times)
    }

    /// Those that are published at `now`.
    pub(super) fn published(&self, now: Timestamp) -> impl Iterator<Item = &K> {
        self.all()
            .filter(move |(_, times)| lifecycle::is_published(times, now))
            .map(|(key, _)| key)
    }

    /// The one that signs at `now`.
    pub(super) fn active(&self, now: Timestamp) -> Option<&K> {
        let life = lifecycle::life(self.key_use);
        self.keys.get(lifecycle::active(&self.times, life, now)?)
    }

    /// Whether it is time to make a key.
    pub(super) fn lacks_key(&self, policy: &Policy, now: Timestamp) -> bool {
        let spans = policy.spans(self.key_use);
        lifecycle::plan(&self.times, Command::Ensure, spans, now)
            .is_ok_and(|plan| !plan.created.is_empty())
    }

    /// Every key with its state at `now` and its times.
    pub(super) fn list(&self, now: Timestamp) -> impl Iterator<Item = (&K, KeyState, KeyTimes)> {
        let life = lifecycle::life(self.key_use);
        let states = lifecycle::states(&self.times, life, now);
        self.all()
            .zip(states)
            .map(|((key, times), state)| (key, state, *times))
    }
}

/// The signing keys of one revision of their schedule.
pub struct KeyRing {
    ring: Ring<SigningKey>,
    /// The documents and from when on each holds, earliest first; the first holds from ever.
    published: Vec<(Timestamp, Jwks)>,
}

impl KeyRing {
    /// Opens every key of the schedule; what is withdrawn and does not open is left out.
    pub fn open(
        schedule: &KeySchedule,
        masters: &MasterKeys,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<Self, SealingError> {
        let ring = Ring::open(schedule, now, |record| {
            let (pair, public) = sealing::open(masters, record, entropy)?;
            Ok(SigningKey {
                kid: record.kid.clone(),
                public,
                signer: Box::new(Es256Signer::new(pair, entropy)),
                access_token_header: header("at+jwt", &record.kid),
            })
        })?;
        let published = documents(&ring);
        Ok(Self { ring, published })
    }

    /// The key that signs at `now`.
    pub fn active(&self, now: Timestamp) -> Option<&SigningKey> {
        self.ring.active(now)
    }

    /// The document to publish at `now`.
    pub fn jwks(&self, now: Timestamp) -> Option<&Jwks> {
        let begun = self.published.partition_point(|(from, _)| *from <= now);
        self.published
            .get(begun.saturating_sub(1))
            .map(|(_, jwks)| jwks)
    }

    /// The public keys to verify with at `now`.
    pub fn key_set(&self, now: Timestamp) -> KeySet {
        KeySet::from_keys(self.ring.published(now).map(|key| key.public.clone()))
    }

    /// Whether it is time to make a key.
    pub fn lacks_key(&self, policy: &Policy, now: Timestamp) -> bool {
        self.ring.lacks_key(policy, now)
    }

    /// Every key with its state at `now` and its times.
    pub fn list(&self, now: Timestamp) -> impl Iterator<Item = (&SigningKey, KeyState, KeyTimes)> {
        self.ring.list(now)
    }
}

/// One document for each span of time in which the same keys are published.
fn documents(ring: &Ring<SigningKey>) -> Vec<(Timestamp, Jwks)> {
    let withdrawals = ring.all().filter_map(|(_, times)| times.withdrawn_at);
    let mut moments: Vec<Timestamp> = withdrawals.collect();
    moments.push(Timestamp::from_millis(i64::MIN));
    moments.sort_unstable();
    moments.dedup();
    moments
        .into_iter()
        .map(|moment| (moment, jwks(ring.published(moment).map(|key| &key.public))))
        .collect()
}

fn jwks<'a>(keys: impl Iterator<Item = &'a PublicKey>) -> Jwks {
    let keys: Vec<Value> = keys.map(|key| json!(key.to_jwk())).collect();
    let body = json!({ "keys": keys }).to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
    Jwks {
        etag: format!("\"{}\"", base64url::encode(digest.as_ref())).into(),
        body: body.into(),
    }
}
