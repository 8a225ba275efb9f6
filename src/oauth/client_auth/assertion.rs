//! A signed JWT by which a client proves who it is (RFC 7523 §2.2 as RFC 10070 has it).

use std::{error::Error, fmt};

use countersign_verifier::{
    KeySet,
    json::{self, JsonError, MemberError, Object},
    jws::{Compact, JwsError},
};
use serde_json::Value;

use crate::{
    clock::Timestamp,
    oauth::error::{ErrorCode, OAuthError},
};

/// The only `client_assertion_type` (RFC 7523 §2.2).
pub(super) const KIND: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The longest time from now to `exp`, in seconds; nobody has to remember a `jti` for longer.
const LONGEST_LIFE: u64 = 300;

/// How far the clock of a client may be ahead, in seconds.
const AHEAD: u64 = 60;

/// How far it may be behind, in seconds.
const BEHIND: u64 = 10;

/// The longest `jti`, in bytes.
const LONGEST_JTI: usize = 255;

/// An assertion that says the right things. Whose it is shows [`Self::is_signed_with`].
///
/// # Security
/// Before that, anybody may have written it.
#[derive(Debug)]
pub struct Assertion<'a> {
    jws: Compact<'a>,
    client_id: String,
    jti: String,
    exp: u64,
}

impl<'a> Assertion<'a> {
    /// Reads an assertion and judges all that depends on no client: so an assertion that cannot be
    /// good costs no signature check and no look at anybody's keys.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(text: &'a str, issuer: &str, now: Timestamp) -> Result<Self, AssertionError> {
        let now = u64::try_from(now.seconds()).unwrap_or(0);
        let jws = Compact::parse(text)?;
        check_typ(jws.header().typ())?;
        jws.header()
            .check_alg()
            .map_err(|_| AssertionError::Algorithm)?;
        let claims = json::parse_object(jws.unverified_payload().expose_unverified())?;
        let client_id = claims.required_string("sub")?.to_owned();
        if claims.required_string("iss")? != client_id {
            return Err(AssertionError::Subject);
        }
        check_audience(&claims, issuer)?;
        let exp = claims.required_numeric_date("exp")?;
        if now >= exp.saturating_add(BEHIND) {
            return Err(AssertionError::Expired);
        }
        if exp > now + LONGEST_LIFE + AHEAD {
            return Err(AssertionError::Lifetime);
        }
        for name in ["iat", "nbf"] {
            if claims
                .numeric_date(name)?
                .is_some_and(|at| at > now + AHEAD)
            {
                return Err(AssertionError::NotYetValid);
            }
        }
        let jti = claims.required_string("jti")?.to_owned();
        if jti.len() > LONGEST_JTI {
            return Err(AssertionError::Malformed);
        }
        Ok(Self {
            jws,
            client_id,
            jti,
            exp,
        })
    }

    /// Who the client says it is.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The key it names.
    pub fn kid(&self) -> Option<&str> {
        self.jws.header().kid()
    }

    /// Its unique name among those of the client.
    pub fn jti(&self) -> &str {
        &self.jti
    }

    /// When no clock accepts it any more.
    pub fn accepted_until(&self) -> Timestamp {
        let end = self.exp.saturating_add(BEHIND + AHEAD);
        Timestamp::from_seconds(i64::try_from(end).unwrap_or(i64::MAX))
    }

    /// Whether the key that it names signed it; where it names none, whether the only key did.
    pub fn is_signed_with(&self, keys: &KeySet) -> bool {
        let key = match self.kid() {
            Some(kid) => keys.find(kid),
            None => keys.only(),
        };
        key.is_some_and(|key| self.jws.verify(key).is_ok())
    }
}

/// RFC 10070 has clients send `client-authentication+jwt`, and servers bear its absence. Any other
/// kind of JWT was made for something else.
fn check_typ(typ: Option<&str>) -> Result<(), AssertionError> {
    const KINDS: [&str; 3] = [
        "client-authentication+jwt",
        "application/client-authentication+jwt",
        "JWT",
    ];
    match typ {
        Some(typ) if !KINDS.iter().any(|kind| typ.eq_ignore_ascii_case(kind)) => {
            Err(AssertionError::Type)
        }
        _ => Ok(()),
    }
}

/// The issuer identifier and nothing else: an assertion for the URL of an endpoint may have been
/// obtained by whoever told the client that URL (RFC 10070).
fn check_audience(claims: &Object, issuer: &str) -> Result<(), AssertionError> {
    let audience = claims.value("aud").ok_or(AssertionError::Malformed)?;
    let only = match audience {
        Value::Array(members) => match members.as_slice() {
            [only] => only,
            _ => return Err(AssertionError::Audience),
        },
        value => value,
    };
    match only.as_str() {
        Some(audience) if audience == issuer => Ok(()),
        Some(_) => Err(AssertionError::Audience),
        None => Err(AssertionError::Malformed),
    }
}

/// Why an assertion proves nothing, whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssertionError {
    /// Another algorithm than ES256.
    Algorithm,
    /// `aud` is not the issuer identifier alone.
    Audience,
    /// `exp` has passed.
    Expired,
    /// `exp` is too far ahead.
    Lifetime,
    /// No JWS, no JSON, or a claim that is missing or of the wrong type.
    Malformed,
    /// `iat` or `nbf` is ahead.
    NotYetValid,
    /// `iss` and `sub` differ.
    Subject,
    /// `typ` says that it is something else.
    Type,
}

impl AssertionError {
    /// The word for programs and the sentence for developers.
    const fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Algorithm => (
                "assertion_algorithm",
                "the client assertion is not signed with ES256",
            ),
            Self::Audience => (
                "assertion_audience",
                "the audience of the client assertion is not the issuer identifier alone",
            ),
            Self::Expired => ("assertion_expired", "the client assertion has expired"),
            Self::Lifetime => (
                "assertion_lifetime",
                "the client assertion is valid for more than 5 minutes",
            ),
            Self::Malformed => (
                "assertion_malformed",
                "the client assertion is malformed or lacks a claim",
            ),
            Self::NotYetValid => (
                "assertion_not_yet_valid",
                "the client assertion is not valid yet",
            ),
            Self::Subject => (
                "assertion_subject",
                "the issuer and the subject of the client assertion differ",
            ),
            Self::Type => ("assertion_type", "the JWT is not a client assertion"),
        }
    }
}

impl fmt::Display for AssertionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.told().1)
    }
}

impl Error for AssertionError {}

impl From<JwsError> for AssertionError {
    fn from(_: JwsError) -> Self {
        Self::Malformed
    }
}

impl From<JsonError> for AssertionError {
    fn from(_: JsonError) -> Self {
        Self::Malformed
    }
}

impl From<MemberError> for AssertionError {
    fn from(_: MemberError) -> Self {
        Self::Malformed
    }
}

impl From<AssertionError> for OAuthError {
    fn from(error: AssertionError) -> Self {
        let (reason, description) = error.told();
        Self::new(ErrorCode::InvalidClient, reason, description)
    }
}
