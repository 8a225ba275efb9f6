//! Strict JWS compact serialization: [RFC 7515](https://www.rfc-editor.org/rfc/rfc7515).
//!
//! Stricter than the RFC where leniency has hurt other libraries: one serialization, one
//! algorithm, one spelling of each token, and no header parameter that changes how the
//! rest is read. Keys inside the header (`jwk`, `jku`, `x5u`, `x5c`) are never looked at.

use crate::base64url;
use crate::json::{self, JsonError, MemberError};
use crate::jwk::{PublicKey, WrongSignature};

/// The longest token that is read, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

const MAX_KID_BYTES: usize = 64;
const ES256: &str = "ES256";
const ES256_SIGNATURE_BYTES: usize = 64;

/// Header parameters that would change what the other parts mean.
const REFUSED_PARAMETERS: [&str; 4] = ["crit", "b64", "zip", "enc"];

/// A well-formed JWS whose signature has not been checked yet.
#[derive(Clone, Debug)]
pub struct Compact<'a> {
    signing_input: &'a str,
    header: Header,
    payload: Unverified<Vec<u8>>,
    signature: Vec<u8>,
}

impl<'a> Compact<'a> {
    /// Reads the three parts and judges the header.
    pub fn parse(token: &'a str) -> Result<Self, JwsError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwsError::TooLong);
        }
        if !token.bytes().all(|byte| is_base64url(byte) || byte == b'.') {
            return Err(JwsError::Character);
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(JwsError::Parts)?;
        let (header, payload) = match signing_input.matches('.').count() {
            1 => signing_input.split_once('.').ok_or(JwsError::Parts)?,
            3 => return Err(JwsError::Encrypted),
            _ => return Err(JwsError::Parts),
        };
        if [header, payload, signature].contains(&"") {
            return Err(JwsError::Parts);
        }
        let decode = |part| base64url::decode(part).map_err(|_| JwsError::Base64Url);
        Ok(Self {
            signing_input,
            header: Header::parse(&decode(header)?)?,
            payload: Unverified(decode(payload)?),
            signature: decode(signature)?,
        })
    }

    /// What the token says about itself. It is signed too, but must be read first.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes that are signed: the first two parts and the dot between them.
    pub fn signing_input(&self) -> &'a str {
        self.signing_input
    }

    /// The decoded third part.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The payload as anybody could have written it.
    pub fn unverified_payload(&self) -> &Unverified<Vec<u8>> {
        &self.payload
    }

    /// Checks the signature and hands out the payload.
    pub fn verify(&self, key: &PublicKey) -> Result<&[u8], JwsError> {
        self.header.check_alg()?;
        if self.signature.len() != ES256_SIGNATURE_BYTES {
            return Err(JwsError::SignatureLength);
        }
        key.verify(self.signing_input.as_bytes(), &self.signature)?;
        Ok(self.payload.expose_unverified())
    }
}

/// The header parameters this crate uses: [RFC 7515 §4.1].
///
/// [RFC 7515 §4.1]: https://www.rfc-editor.org/rfc/rfc7515#section-4.1
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    typ: Option<String>,
    alg: String,
    kid: Option<String>,
}

impl Header {
    /// What kind of token this is, as written.
    pub fn typ(&self) -> Option<&str> {
        self.typ.as_deref()
    }

    /// The algorithm the token claims; any string.
    pub fn alg(&self) -> &str {
        &self.alg
    }

    /// The key the token names: at most 64 characters of the base64url alphabet.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Refuses any algorithm but ES256.
    pub fn check_alg(&self) -> Result<(), JwsError> {
        if self.alg != ES256 {
            return Err(JwsError::Algorithm);
        }
        Ok(())
    }

    fn parse(bytes: &[u8]) -> Result<Self, JwsError> {
        let header = json::parse_object(bytes)?;
        for name in REFUSED_PARAMETERS {
            if header.value(name).is_some() {
                return Err(JwsError::RefusedParameter { name });
            }
        }
        let kid = header.string("kid")?;
        if kid.is_some_and(|kid| !is_safe_kid(kid)) {
            return Err(JwsError::Kid);
        }
        Ok(Self {
            typ: header.string("typ")?.map(str::to_owned),
            alg: header.required_string("alg")?.to_owned(),
            kid: kid.map(str::to_owned),
        })
    }
}

/// Something read before its signature was checked: an attacker may have written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unverified<T>(T);

impl<T> Unverified<T> {
    /// Hands it out all the same, for routing and diagnosis only.
    pub fn expose_unverified(&self) -> &T {
        &self.0
    }
}

fn is_safe_kid(kid: &str) -> bool {
    (1..=MAX_KID_BYTES).contains(&kid.len()) && kid.bytes().all(is_base64url)
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Why a token is not a JWS this crate accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// `alg` is not exactly `ES256`.
    #[error("the algorithm is not ES256")]
    Algorithm,
    /// A part is padded or otherwise not strict base64url.
    #[error("a part of the token is not unpadded base64url")]
    Base64Url,
    /// A character outside the base64url alphabet and `.`, as in JSON serialization.
    #[error("the token contains a character that no compact token has")]
    Character,
    /// Five parts: a JWE.
    #[error("the token is encrypted")]
    Encrypted,
    /// The header is not an acceptable JSON object.
    #[error("the token's header is not a valid JSON object")]
    Header(#[from] JsonError),
    /// A header parameter is missing or has the wrong type.
    #[error("a parameter of the token's header is missing or has the wrong type")]
    HeaderParameter(#[from] MemberError),
    /// `kid` is empty, longer than 64 characters or not in the base64url alphabet.
    #[error("the key identifier is not 1 to 64 characters of the base64url alphabet")]
    Kid,
    /// Not three non-empty parts.
    #[error("the token does not consist of three non-empty parts")]
    Parts,
    /// A header parameter that would change what the other parts mean.
    #[error("the header parameter `{name}` is not accepted")]
    RefusedParameter {
        /// The parameter's name.
        name: &'static str,
    },
    /// The signature was not made with this key over this token.
    #[error("the signature does not match")]
    Signature(#[from] WrongSignature),
    /// The signature is not 64 bytes, as a DER encoded one is not.
    #[error("the signature is not 64 bytes long")]
    SignatureLength,
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is too long")]
    TooLong,
}
