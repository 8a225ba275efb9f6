//! P-256 public keys as JSON Web Keys: [RFC 7517](https://www.rfc-editor.org/rfc/rfc7517).
//!
//! Every key here is for one algorithm, ES256, so no token can choose another for it.

use std::fmt;

use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
    EllipticCurveKeyType, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use ring::digest;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Deserialize as _;

use crate::base64url;
use crate::json::{self, JsonError, MemberError};

/// The longest JWK Set that is read, in bytes.
pub const MAX_KEY_SET_BYTES: usize = 64 * 1024;

const COORDINATE_BYTES: usize = 32;
const POINT_BYTES: usize = 1 + 2 * COORDINATE_BYTES;
/// SEC 1 §2.3.3: the point follows as x and y.
const UNCOMPRESSED: u8 = 0x04;

/// The keys of an issuer, found by `kid` and in no other way.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Vec<Entry>);

/// A key and the `kid` it was published under.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    kid: String,
    key: PublicKey,
}

impl KeySet {
    /// Reads a JWK Set document: [RFC 7517 §5](https://www.rfc-editor.org/rfc/rfc7517#section-5).
    ///
    /// Keys that cannot verify ES256 are skipped, as that section asks. A key without a `kid` gets
    /// its thumbprint.
    ///
    /// # Errors
    /// The document as a whole is too long, not a JSON object, or has no array `keys`.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        if document.len() > MAX_KEY_SET_BYTES {
            return Err(KeySetError::TooLong);
        }
        let document = json::parse_object(document)?;
        let keys = document
            .array("keys")?
            .ok_or(MemberError::Missing { name: "keys" })?;
        Ok(Self::from_entries(keys.iter().filter_map(|value| {
            let jwk = Jwk::deserialize(value).ok()?;
            let key = PublicKey::from_jwk(&jwk).ok()?;
            let kid = jwk.common.key_id.unwrap_or_else(|| key.kid.clone());
            Some(Entry { kid, key })
        })))
    }

    /// Collects keys, each to be found by its thumbprint.
    pub fn from_keys(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self::from_entries(keys.into_iter().map(|key| Entry {
            kid: key.kid.clone(),
            key,
        }))
    }

    /// Finds the key with exactly this `kid`.
    ///
    /// A `kid` that names two different keys finds neither: nobody can tell which was meant.
    pub fn find(&self, kid: &str) -> Option<&PublicKey> {
        let mut matching = self.0.iter().filter(|entry| entry.kid == kid);
        match (matching.next(), matching.next()) {
            (Some(entry), None) => Some(&entry.key),
            _ => None,
        }
    }

    /// The key of a set that has no other.
    pub fn only(&self) -> Option<&PublicKey> {
        match self.0.as_slice() {
            [only] => Some(&only.key),
            _ => None,
        }
    }

    /// The `kid` of every usable key, in the order of the document.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| entry.kid.as_str())
    }

    fn from_entries(entries: impl Iterator<Item = Entry>) -> Self {
        let mut distinct = Vec::new();
        for entry in entries {
            if !distinct.contains(&entry) {
                distinct.push(entry);
            }
        }
        Self(distinct)
    }
}

/// A point on P-256 with which ES256 signatures are verified.
///
/// # Security
/// The curve equation is checked with every signature, not when the key is read: a point off the
/// curve verifies nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    point: [u8; POINT_BYTES],
    kid: String,
}

impl PublicKey {
    /// Takes the 65 bytes of an uncompressed point, as ring's key pairs give them.
    pub fn from_uncompressed(point: &[u8]) -> Result<Self, KeyError> {
        let point: [u8; POINT_BYTES] = point.try_into().map_err(|_| KeyError::Point)?;
        let [UNCOMPRESSED, ..] = point else {
            return Err(KeyError::Point);
        };
        Ok(Self {
            kid: thumbprint(&point),
            point,
        })
    }

    /// Reads a JWK that may verify ES256 signatures.
    ///
    /// `alg`, `use` and `key_ops` may be absent but not say otherwise. Private members are not read.
    pub fn from_jwk(jwk: &Jwk) -> Result<Self, KeyError> {
        let common = &jwk.common;
        let AlgorithmParameters::EllipticCurve(parameters) = &jwk.algorithm else {
            return Err(KeyError::Curve);
        };
        if parameters.curve != EllipticCurve::P256 {
            return Err(KeyError::Curve);
        }
        if !matches!(common.key_algorithm, None | Some(KeyAlgorithm::ES256)) {
            return Err(KeyError::Algorithm);
        }
        if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return Err(KeyError::Use);
        }
        if common
            .key_operations
            .as_ref()
            .is_some_and(|ops| !ops.contains(&KeyOperations::Verify))
        {
            return Err(KeyError::Use);
        }
        let (x, y) = (coordinate(&parameters.x)?, coordinate(&parameters.y)?);
        Self::from_uncompressed(&[&[UNCOMPRESSED], x.as_slice(), y.as_slice()].concat())
    }

    /// The RFC 7638 thumbprint of this key, by which the issuer's tokens name it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key as it is published: `kty`, `crv`, `x`, `y`, `kid`, `use` and `alg`.
    pub fn to_jwk(&self) -> Jwk {
        let (x, y) = coordinates(&self.point);
        Jwk {
            common: CommonParameters {
                public_key_use: Some(PublicKeyUse::Signature),
                key_algorithm: Some(KeyAlgorithm::ES256),
                key_id: Some(self.kid.clone()),
                ..CommonParameters::default()
            },
            algorithm: AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                key_type: EllipticCurveKeyType::EC,
                curve: EllipticCurve::P256,
                x,
                y,
            }),
        }
    }

    /// Verifies an ES256 signature, R then S of 32 bytes each:
    /// [RFC 7518 §3.4](https://www.rfc-editor.org/rfc/rfc7518#section-3.4).
    ///
    /// # Security
    /// JOSE does not ask for the lower of the two possible S, so one signature has a twin that
    /// verifies too. Recognise a token by its `jti`, never by its bytes.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), WrongSignature> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point)
            .verify(message, signature)
            .map_err(|_| WrongSignature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("PublicKey").field(&self.kid).finish()
    }
}

/// RFC 7638 §3: the hash of the required members in this order, without spaces.
fn thumbprint(point: &[u8; POINT_BYTES]) -> String {
    let (x, y) = coordinates(point);
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    base64url::encode(digest::digest(&digest::SHA256, members.as_bytes()).as_ref())
}

fn coordinates(point: &[u8; POINT_BYTES]) -> (String, String) {
    let [_, coordinates @ ..] = point;
    let (x, y) = coordinates.split_at(COORDINATE_BYTES);
    (base64url::encode(x), base64url::encode(y))
}

/// RFC 7518 §6.2.1.2: always the full length, so a key has one spelling and one thumbprint.
fn coordinate(text: &str) -> Result<[u8; COORDINATE_BYTES], KeyError> {
    let bytes = base64url::decode(text).map_err(|_| KeyError::Coordinate)?;
    bytes.try_into().map_err(|_| KeyError::Coordinate)
}

/// Why a key cannot verify ES256 signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// `alg` says it is for another algorithm.
    #[error("the key is not for ES256")]
    Algorithm,
    /// `x` or `y` is not base64url of exactly 32 bytes.
    #[error("a coordinate of the key is not base64url of 32 bytes")]
    Coordinate,
    /// The key type or the curve is another one.
    #[error("the key is not an elliptic curve key on P-256")]
    Curve,
    /// The bytes are not an uncompressed point.
    #[error("the key is not an uncompressed point of 65 bytes")]
    Point,
    /// `use` or `key_ops` say it is not for verifying signatures.
    #[error("the key is not for verifying signatures")]
    Use,
}

/// Why a document is not a JWK Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The document is not an acceptable JSON object.
    #[error("the key set is not a valid JSON object")]
    Json(#[from] JsonError),
    /// `keys` is absent or not an array.
    #[error("the key set has no array of keys")]
    Keys(#[from] MemberError),
    /// Longer than [`MAX_KEY_SET_BYTES`].
    #[error("the key set is too long")]
    TooLong,
}

/// The signature was not made with this key over this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match")]
pub struct WrongSignature;
