//! The ring: every key of the schedule, opened and parsed once, with the documents to publish.

use std::sync::Arc;

use bytes::Bytes;
use countersign_verifier::{KeySet, PublicKey, base64url};
use serde_json::{Value, json};

use super::{
    lifecycle::{self, Command, KeyState, Policy},
    master::MasterKeys,
    sealing::{self, SealingError},
    signer::{Es256Signer, Signer},
};
use crate::{
    clock::Timestamp,
    domain::{
        id::Kid,
        key::{KeySchedule, KeyTimes},
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

/// A JWK Set as it goes over the wire (RFC 7517 §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwks {
    /// The document.
    pub body: Bytes,
    /// Its strong entity tag, with quotes (RFC 9110 §8.8.3).
    pub etag: Arc<str>,
}

/// The keys of one revision of the schedule.
pub struct KeyRing {
    times: Vec<KeyTimes>,
    keys: Vec<SigningKey>,
    /// The documents and from when on each holds, earliest first; the first holds from ever.
    published: Vec<(Timestamp, Jwks)>,
}

impl KeyRing {
    /// Opens every key of the schedule.
    ///
    /// One that is published no more and does not open is left out: nothing depends on it.
    pub fn open(
        schedule: &KeySchedule,
        masters: &MasterKeys,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<Self, SealingError> {
        let (mut times, mut keys) = (Vec::new(), Vec::new());
        for record in &schedule.keys {
            let (pair, public) = match sealing::open(masters, record, entropy) {
                Ok(opened) => opened,
                Err(error) if !lifecycle::is_published(&record.times, now) => {
                    let kid = record.kid.as_str();
                    tracing::error!(kid, %error, "a key that is published no more is left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let header = json!({
                "typ": "at+jwt",
                "alg": record.algorithm.as_str(),
                "kid": record.kid.as_str(),
            });
            times.push(record.times);
            keys.push(SigningKey {
                kid: record.kid.clone(),
                public,
                signer: Box::new(Es256Signer::new(pair, entropy)),
                access_token_header: format!(
                    "{}.",
                    base64url::encode(header.to_string().as_bytes())
                ),
            });
        }
        let published = documents(&times, &keys);
        Ok(Self {
            times,
            keys,
            published,
        })
    }

    /// The key that signs at `now`.
    pub fn active(&self, now: Timestamp) -> Option<&SigningKey> {
        self.keys.get(lifecycle::active(&self.times, now)?)
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
        let published = self
            .times
            .iter()
            .zip(&self.keys)
            .filter(|(times, _)| lifecycle::is_published(times, now));
        KeySet::from_keys(published.map(|(_, key)| key.public.clone()))
    }

    /// Whether it is time to make a key.
    pub fn lacks_key(&self, policy: &Policy, now: Timestamp) -> bool {
        lifecycle::plan(&self.times, Command::Ensure, policy, now)
            .is_ok_and(|plan| !plan.created.is_empty())
    }

    /// Every key with its state at `now` and its times.
    pub fn list(&self, now: Timestamp) -> impl Iterator<Item = (&SigningKey, KeyState, KeyTimes)> {
        let states = lifecycle::states(&self.times, now);
        self.keys
            .iter()
            .zip(states)
            .zip(&self.times)
            .map(|((key, state), times)| (key, state, *times))
    }
}

/// One document for each span of time in which the same keys are published.
fn documents(times: &[KeyTimes], keys: &[SigningKey]) -> Vec<(Timestamp, Jwks)> {
    let mut moments: Vec<Timestamp> = times.iter().filter_map(|key| key.withdrawn_at).collect();
    moments.push(Timestamp::from_millis(i64::MIN));
    moments.sort_unstable();
    moments.dedup();
    moments
        .into_iter()
        .map(|moment| {
            let published = times
                .iter()
                .zip(keys)
                .filter(|(times, _)| lifecycle::is_published(times, moment));
            (moment, jwks(published.map(|(_, key)| &key.public)))
        })
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
