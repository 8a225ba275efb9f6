//! The rings: every key of a schedule, opened and parsed once; of those that sign with the documents to
//! publish.

use std::sync::Arc;

use bytes::Bytes;
use countersign_verifier::{KeySet, PublicKey, base64url, jws::Compact};
use serde_json::{Value, json};

use super::{
    lifecycle::{self, Command, KeyState, Policy},
    master::MasterKeys,
    rs256::{Rs256Key, RsaPublicKey},
    sealing::{self, SealingError},
    signer::{Es256Signer, SignError, Signer},
};
use crate::{
    clock::Timestamp,
    domain::{
        client::IdTokenAlg,
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
        header(typ, KeyAlgorithm::Es256, &self.kid)
    }

    /// Signs a payload under such a header: the JWS in compact serialization (RFC 7515 §7.1).
    pub fn sign(&self, header: &str, payload: &[u8]) -> Result<String, SignError> {
        compact(header, payload, |message| self.signer.sign(message))
    }
}

/// A JOSE header in base64url, with the dot after it.
pub(super) fn header(typ: &str, algorithm: KeyAlgorithm, kid: &Kid) -> String {
    let header = json!({
        "typ": typ,
        "alg": algorithm.as_str(),
        "kid": kid.as_str(),
    });
    format!("{}.", base64url::encode(header.to_string().as_bytes()))
}

/// A JWS in compact serialization: such a header, a payload, and what `sign` makes of them.
#[inline]
pub(super) fn compact<S: AsRef<[u8]>>(
    header: &str,
    payload: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<S, SignError>,
) -> Result<String, SignError> {
    let mut token = String::with_capacity(header.len() + payload.len() * 4 / 3 + 96);
    token.push_str(header);
    base64url::encode_into(payload, &mut token);
    let signature = sign(token.as_bytes())?;
    token.push('.');
    base64url::encode_into(signature.as_ref(), &mut token);
    Ok(token)
}

/// A key that signs ID Tokens, and what else is for clients to verify.
pub enum IdTokenKey<'a> {
    /// The one that signs access tokens, too.
    Es256(&'a SigningKey),
    /// One for nothing else.
    Rs256(&'a Rs256Key),
}

impl IdTokenKey<'_> {
    /// Signs a payload: a JWS of this type (RFC 7515 §4.1.9) in compact serialization.
    pub fn sign(&self, typ: &str, payload: &[u8]) -> Result<String, SignError> {
        match self {
            Self::Es256(key) => key.sign(&key.header(typ), payload),
            Self::Rs256(key) => key.sign(typ, payload),
        }
    }
}

/// Why there is no key to sign ID Tokens with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdTokenKey {
    /// The service has not opted in, or no more.
    #[error("the client wants RS256, which setting keys.rs256_id_tokens does not allow")]
    NotAllowed,
    /// There is none.
    #[error("there is no key to sign with")]
    None,
}

/// The public keys that verify ID Tokens.
#[derive(Clone, Debug, Default)]
pub struct IdTokenKeys {
    /// For ES256.
    pub es256: KeySet,
    /// For RS256.
    pub rs256: Vec<RsaPublicKey>,
    /// Those that were revoked, by name: what they have signed may be anybody's.
    pub revoked: Vec<Kid>,
}

impl IdTokenKeys {
    /// The payload of a token that one of these keys has signed: the one that it names, by that key's
    /// own algorithm.
    pub fn verified<'t>(&self, token: &'t Compact<'_>) -> Option<&'t [u8]> {
        let kid = token.header().kid()?;
        if let Some(key) = self.es256.find(kid) {
            return token.verify(key).ok();
        }
        let key = self.rs256.iter().find(|key| key.kid().as_str() == kid)?;
        let is_signed = token.header().alg() == KeyAlgorithm::Rs256.as_str()
            && key.has_signed(token.signing_input().as_bytes(), token.signature());
        is_signed.then(|| token.unverified_payload().expose_unverified().as_slice())
    }

    /// Whether a token says that it was signed with a key that was revoked.
    pub fn is_of_revoked(&self, token: &Compact<'_>) -> bool {
        let kid = token.header().kid();
        kid.is_some_and(|kid| self.revoked.iter().any(|revoked| revoked.as_str() == kid))
    }
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
        Self::open_needed(schedule, |key| lifecycle::is_published(key, now), open)
    }

    /// Opens every key of the schedule; one that does not open is left out unless it is needed.
    fn open_needed(
        schedule: &KeySchedule,
        is_needed: impl Fn(&KeyTimes) -> bool,
        open: impl Fn(&KeyRecord) -> Result<K, SealingError>,
    ) -> Result<Self, SealingError> {
        let (mut times, mut keys) = (Vec::new(), Vec::new());
        for record in &schedule.keys {
            match open(record) {
                Ok(key) => {
                    times.push(record.times);
                    keys.push(key);
                }
                Err(error) if !is_needed(&record.times) => {
                    let (kid, key_use) = (record.kid.as_str(), record.key_use.as_str());
                    tracing::error!(kid, key_use, %error, "a key that does not open is left out");
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

    /// Those that were not revoked.
    pub(super) fn trusted(&self) -> impl Iterator<Item = &K> {
        self.all()
            .filter(|(_, times)| times.revoked_at.is_none())
            .map(|(key, _)| key)
    }

    /// Those that were.
    fn revoked(&self) -> impl Iterator<Item = &K> {
        self.all()
            .filter(|(_, times)| times.revoked_at.is_some())
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

/// The keys that sign, of one revision of their schedules.
pub struct KeyRing {
    ring: Ring<SigningKey>,
    /// Those for RS256.
    rs256: Rs256Ring,
    /// The documents and from when on each holds, earliest first; the first holds from ever.
    published: Vec<(Timestamp, Jwks)>,
}

impl KeyRing {
    /// Opens every key of the schedule, beside those for RS256; what is withdrawn and does not open is left
    /// out.
    pub fn open(
        schedule: &KeySchedule,
        rs256: Rs256Ring,
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
                access_token_header: header("at+jwt", KeyAlgorithm::Es256, &record.kid),
            })
        })?;
        let published = documents(&ring, &rs256.ring);
        Ok(Self {
            ring,
            rs256,
            published,
        })
    }

    /// The key that signs access tokens at `now`.
    pub fn active(&self, now: Timestamp) -> Option<&SigningKey> {
        self.ring.active(now)
    }

    /// The key that signs at `now` for clients that want ID Tokens signed so.
    ///
    /// # Errors
    /// Never is another algorithm taken instead.
    pub fn id_token_key(
        &self,
        alg: IdTokenAlg,
        now: Timestamp,
    ) -> Result<IdTokenKey<'_>, NoIdTokenKey> {
        let key = match alg {
            IdTokenAlg::Es256 => self.active(now).map(IdTokenKey::Es256),
            IdTokenAlg::Rs256 if !self.rs256.may_sign => return Err(NoIdTokenKey::NotAllowed),
            IdTokenAlg::Rs256 => self.rs256.ring.active(now).map(IdTokenKey::Rs256),
        };
        key.ok_or(NoIdTokenKey::None)
    }

    /// The document to publish at `now`.
    pub fn jwks(&self, now: Timestamp) -> Option<&Jwks> {
        let begun = self.published.partition_point(|(from, _)| *from <= now);
        self.published
            .get(begun.saturating_sub(1))
            .map(|(_, jwks)| jwks)
    }

    /// The public keys to verify access tokens with at `now`.
    pub fn key_set(&self, now: Timestamp) -> KeySet {
        KeySet::from_keys(self.ring.published(now).map(|key| key.public.clone()))
    }

    /// The public keys to verify ID Tokens with that come back as hints: every one that was not revoked,
    /// also those that are published no more. What they have signed has expired, but was signed here.
    pub fn id_token_keys(&self) -> IdTokenKeys {
        let rs256 = self.rs256.ring.trusted();
        let revoked = self.ring.revoked().map(|key| key.kid.clone());
        let rs256_revoked = self.rs256.ring.revoked().map(|key| key.kid().clone());
        IdTokenKeys {
            es256: KeySet::from_keys(self.ring.trusted().map(|key| key.public.clone())),
            rs256: rs256.map(|key| key.public.clone()).collect(),
            revoked: revoked.chain(rs256_revoked).collect(),
        }
    }

    /// Whether it is time to make a key.
    pub fn lacks_key(&self, policy: &Policy, now: Timestamp) -> bool {
        let Rs256Ring { ring, may_sign } = &self.rs256;
        self.ring.lacks_key(policy, now) || *may_sign && ring.lacks_key(policy, now)
    }

    /// Every key for access tokens with its state at `now` and its times.
    pub fn list(&self, now: Timestamp) -> impl Iterator<Item = (&SigningKey, KeyState, KeyTimes)> {
        self.ring.list(now)
    }

    /// The same of the keys for RS256; none where the service has not opted in.
    pub fn list_rs256(
        &self,
        now: Timestamp,
    ) -> Option<impl Iterator<Item = (&Rs256Key, KeyState, KeyTimes)>> {
        self.rs256.may_sign.then(|| self.rs256.list(now))
    }
}

/// The keys for RS256 of one revision of their schedule. They verify and are published wherever there are
/// some: other nodes may sign with them, or this one may have done so.
pub struct Rs256Ring {
    ring: Ring<Rs256Key>,
    /// Whether the service has opted in: elsewhere they sign nothing.
    may_sign: bool,
}

impl Rs256Ring {
    /// One without any key, that signs nothing.
    pub fn none() -> Self {
        let ring = Ring {
            key_use: KeyUse::IdTokenRs256,
            times: Vec::new(),
            keys: Vec::new(),
        };
        Self {
            ring,
            may_sign: false,
        }
    }

    /// Opens every key of the schedule, to be shown; what is withdrawn and does not open is left out.
    pub fn open(
        schedule: &KeySchedule,
        masters: &MasterKeys,
        entropy: &Entropy,
        now: Timestamp,
    ) -> Result<Self, SealingError> {
        let ring = Ring::open(schedule, now, |record| {
            sealing::open_rs256(masters, record, entropy)
        })?;
        let may_sign = false;
        Ok(Self { ring, may_sign })
    }

    /// Opens the keys of the schedule for a node. Whatever does not open is left out: some clients want
    /// RS256, but access tokens and revocations are not to stop for it.
    pub fn serving(
        schedule: &KeySchedule,
        may_sign: bool,
        masters: &MasterKeys,
        entropy: &Entropy,
    ) -> Result<Self, SealingError> {
        let is_needed = |_: &_| false;
        let ring = Ring::open_needed(schedule, is_needed, |record| {
            sealing::open_rs256(masters, record, entropy)
        })?;
        Ok(Self { ring, may_sign })
    }

    /// Every key with its state at `now` and its times.
    pub fn list(&self, now: Timestamp) -> impl Iterator<Item = (&Rs256Key, KeyState, KeyTimes)> {
        self.ring.list(now)
    }
}

/// One document for each span of time in which the same keys are published.
fn documents(ring: &Ring<SigningKey>, rs256: &Ring<Rs256Key>) -> Vec<(Timestamp, Jwks)> {
    let times = ring.times.iter().chain(&rs256.times);
    let mut moments: Vec<Timestamp> = times.filter_map(|times| times.withdrawn_at).collect();
    moments.push(Timestamp::from_millis(i64::MIN));
    moments.sort_unstable();
    moments.dedup();
    moments
        .into_iter()
        .map(|moment| {
            let es256 = ring.published(moment);
            let es256 = es256.map(|key| json!(key.public.to_jwk()));
            let rs256 = rs256.published(moment);
            let keys = es256.chain(rs256.map(|key| key.public.to_jwk()));
            (moment, jwks(&keys.collect()))
        })
        .collect()
}

fn jwks(keys: &Value) -> Jwks {
    let body = json!({ "keys": keys }).to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
    Jwks {
        etag: format!("\"{}\"", base64url::encode(digest.as_ref())).into(),
        body: body.into(),
    }
}
