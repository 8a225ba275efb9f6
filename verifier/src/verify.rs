//! Decides whether an access token is acceptable: [RFC 9068 §4].
//!
//! The rules about claims are a table, in the order in which they are applied. [`verify()`] stops
//! at the first that is broken; [`inspect()`](crate::inspect()) applies them all. So the two cannot
//! disagree, and a new rule is one more line.
//!
//! [RFC 9068 §4]: https://www.rfc-editor.org/rfc/rfc9068#section-4

use crate::claims::{AccessTokenClaims, Audience};
use crate::json::{self, JsonError, MemberError, Object};
use crate::jwk::{KeySet, PublicKey};
use crate::jws::{Compact, Header, JwsError};

/// What the resource server expects of every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The issuer's URL, compared exactly.
    pub issuer: String,
    /// The resource server itself, compared exactly with the members of `aud`.
    ///
    /// `None` accepts tokens meant for anybody. Only diagnostic tools may do that: a resource server
    /// that does lets every other one act in the user's name.
    pub audience: Option<String>,
    /// How far clocks may differ, in seconds; at most 60 is wise.
    pub leeway_seconds: u64,
}

/// Verifies an access token at `now_seconds` since 1970.
///
/// # Errors
/// The first rule the token breaks. On [`VerifyError::UnknownKid`] the caller may fetch the key set
/// again, at a limited rate, and retry.
pub fn verify(
    token: &str,
    keys: &KeySet,
    expected: &Expectation,
    now_seconds: u64,
) -> Result<AccessTokenClaims<'static>, VerifyError> {
    let token = Compact::parse(token)?;
    check_typ(token.header())?;
    token.header().check_alg()?;
    let key = find_key(token.header(), keys)?;
    let claims = json::parse_object(token.verify(key)?)?;
    for Rule(name, check) in &RULES {
        check(&claims, name, expected, now_seconds)?;
    }
    Ok(AccessTokenClaims::from_object(&claims)?)
}

/// A claim and what must hold of it, given all claims and its name.
pub(crate) struct Rule(
    pub(crate) &'static str,
    pub(crate) fn(&Object, &'static str, &Expectation, u64) -> Result<(), VerifyError>,
);

/// Every rule about claims, in the order of application.
pub(crate) static RULES: [Rule; 13] = [
    Rule("exp", is_not_over),
    Rule("nbf", has_begun),
    Rule("iat", is_not_in_the_future),
    Rule("iss", is_the_issuer),
    Rule("aud", names_the_audience),
    Rule("sub", is_text),
    Rule("client_id", is_text),
    Rule("jti", is_text),
    Rule("scope", may_be_string),
    Rule("auth_time", may_be_time),
    Rule("acr", may_be_string),
    Rule("amr", may_be_strings),
    Rule("sid", may_be_string),
];

/// RFC 9068 §4: reject any other value, so that no other kind of JWT passes for an access token.
pub(crate) fn check_typ(header: &Header) -> Result<(), VerifyError> {
    let is_access_token = |typ: &str| {
        // RFC 7515 §4.1.9: a media type, with or without `application/`.
        ["at+jwt", "application/at+jwt"]
            .iter()
            .any(|name| typ.eq_ignore_ascii_case(name))
    };
    if header.typ().is_some_and(is_access_token) {
        Ok(())
    } else {
        Err(VerifyError::Type)
    }
}

/// Never tries other keys: a token is signed by the key it names or not at all.
pub(crate) fn find_key<'k>(
    header: &Header,
    keys: &'k KeySet,
) -> Result<&'k PublicKey, VerifyError> {
    let kid = header.kid().ok_or(VerifyError::MissingKid)?;
    keys.find(kid).ok_or(VerifyError::UnknownKid)
}

fn is_not_over(
    claims: &Object,
    name: &'static str,
    expected: &Expectation,
    now: u64,
) -> Result<(), VerifyError> {
    let end = claims.required_numeric_date(name)?;
    if now >= end.saturating_add(expected.leeway_seconds) {
        return Err(VerifyError::Expired);
    }
    Ok(())
}

fn has_begun(
    claims: &Object,
    name: &'static str,
    expected: &Expectation,
    now: u64,
) -> Result<(), VerifyError> {
    let begin = claims.numeric_date(name)?;
    if begin.is_some_and(|begin| begin > now.saturating_add(expected.leeway_seconds)) {
        return Err(VerifyError::NotYetValid);
    }
    Ok(())
}

fn is_not_in_the_future(
    claims: &Object,
    name: &'static str,
    expected: &Expectation,
    now: u64,
) -> Result<(), VerifyError> {
    if claims.required_numeric_date(name)? > now.saturating_add(expected.leeway_seconds) {
        return Err(VerifyError::IssuedInFuture);
    }
    Ok(())
}

fn is_the_issuer(
    claims: &Object,
    name: &'static str,
    expected: &Expectation,
    _: u64,
) -> Result<(), VerifyError> {
    if claims.required_string(name)? != expected.issuer {
        return Err(VerifyError::Issuer);
    }
    Ok(())
}

fn names_the_audience(
    claims: &Object,
    name: &'static str,
    expected: &Expectation,
    _: u64,
) -> Result<(), VerifyError> {
    let audience = Audience::from_object(claims, name)?;
    if expected
        .audience
        .as_ref()
        .is_some_and(|me| !audience.contains(me))
    {
        return Err(VerifyError::Audience);
    }
    Ok(())
}

fn is_text(
    claims: &Object,
    name: &'static str,
    _: &Expectation,
    _: u64,
) -> Result<(), VerifyError> {
    Ok(claims.required_string(name).map(drop)?)
}

fn may_be_string(
    claims: &Object,
    name: &'static str,
    _: &Expectation,
    _: u64,
) -> Result<(), VerifyError> {
    Ok(claims.string(name).map(drop)?)
}

fn may_be_strings(
    claims: &Object,
    name: &'static str,
    _: &Expectation,
    _: u64,
) -> Result<(), VerifyError> {
    Ok(claims.strings(name).map(drop)?)
}

fn may_be_time(
    claims: &Object,
    name: &'static str,
    _: &Expectation,
    _: u64,
) -> Result<(), VerifyError> {
    Ok(claims.numeric_date(name).map(drop)?)
}

/// Why an access token is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// `aud` does not name the expected audience.
    #[error("the token is for another audience")]
    Audience,
    /// A claim is missing, empty or of the wrong type.
    #[error("a claim is missing, empty or of the wrong type")]
    Claim(#[from] MemberError),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `iat` is later than now.
    #[error("the token was issued in the future")]
    IssuedInFuture,
    /// `iss` is not the expected issuer.
    #[error("the token was issued by somebody else")]
    Issuer,
    /// The token is malformed or its signature does not match.
    #[error("the token is malformed or its signature does not match")]
    Jws(#[from] JwsError),
    /// The header has no `kid`.
    #[error("the token does not name its key")]
    MissingKid,
    /// `nbf` is later than now.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// The payload is not an acceptable JSON object.
    #[error("the token's payload is not a valid JSON object")]
    Payload(#[from] JsonError),
    /// `typ` is not `at+jwt`.
    #[error("the token is not an access token")]
    Type,
    /// The key set has no key with this `kid`.
    #[error("the token names a key that is not in the key set")]
    UnknownKid,
}

impl VerifyError {
    /// The error code for `WWW-Authenticate`, to be sent with status 401.
    ///
    /// [RFC 6750 §3.1] has one code for a token that is "expired, revoked, malformed, or invalid for
    /// other reasons"; `invalid_request` is about the request around it.
    ///
    /// [RFC 6750 §3.1]: https://www.rfc-editor.org/rfc/rfc6750#section-3.1
    pub fn code(&self) -> &'static str {
        "invalid_token"
    }
}
