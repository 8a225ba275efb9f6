//! The claims of an access token: [RFC 9068 §2.2].
//!
//! The issuer serialises what resource servers parse; both use these types.
//!
//! [RFC 9068 §2.2]: https://www.rfc-editor.org/rfc/rfc9068#section-2.2

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use crate::json::{self, JsonError, MemberError, Object};

/// The claims of an access token; times are whole seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessTokenClaims<'a> {
    /// Who issued the token: the issuer's URL, compared exactly.
    pub iss: Cow<'a, str>,
    /// On whose behalf the client acts: a user, or the client itself.
    pub sub: Cow<'a, str>,
    /// The resource servers the token is for.
    pub aud: Audience<'a>,
    /// The client the token was issued to.
    pub client_id: Cow<'a, str>,
    /// When the token was issued.
    pub iat: u64,
    /// When the token ends to be valid.
    pub exp: u64,
    /// The token's unique name.
    pub jti: Cow<'a, str>,
    /// What the token allows: words with spaces between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Cow<'a, str>>,
    /// When the user last proved who they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<u64>,
    /// Which class of authentication that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acr: Option<Cow<'a, str>>,
    /// By which methods, such as `pwd` or `otp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amr: Option<Vec<Cow<'a, str>>>,
    /// The sign-in that all tokens descending from it share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<Cow<'a, str>>,
}

impl AccessTokenClaims<'static> {
    /// Reads the payload of a token whose signature has been checked.
    ///
    /// Whether the claims are acceptable (time, issuer, audience) is not asked here: see
    /// [`verify()`](crate::verify()). Unknown claims are ignored.
    pub fn parse(payload: &[u8]) -> Result<Self, ClaimsError> {
        Ok(Self::from_object(&json::parse_object(payload)?)?)
    }

    pub(crate) fn from_object(claims: &Object) -> Result<Self, MemberError> {
        Ok(Self {
            iss: owned(claims.required_string("iss")?),
            sub: owned(claims.required_string("sub")?),
            aud: Audience::from_object(claims, "aud")?,
            client_id: owned(claims.required_string("client_id")?),
            iat: claims.required_numeric_date("iat")?,
            exp: claims.required_numeric_date("exp")?,
            jti: owned(claims.required_string("jti")?),
            scope: claims.string("scope")?.map(owned),
            auth_time: claims.numeric_date("auth_time")?,
            acr: claims.string("acr")?.map(owned),
            amr: claims
                .strings("amr")?
                .map(|amr| amr.into_iter().map(owned).collect()),
            sid: claims.string("sid")?.map(owned),
        })
    }
}

/// The value of `aud`, in the form it has on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Audience<'a> {
    /// A JSON string.
    One(Cow<'a, str>),
    /// A JSON array of strings.
    Several(Vec<Cow<'a, str>>),
}

impl Audience<'_> {
    /// Tells whether the token is for `audience`, compared exactly.
    pub fn contains(&self, audience: &str) -> bool {
        self.as_slice().iter().any(|member| member == audience)
    }

    /// The resource servers one by one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.as_slice().iter().map(AsRef::as_ref)
    }

    fn as_slice(&self) -> &[Cow<'_, str>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(several) => several,
        }
    }
}

impl Audience<'static> {
    pub(crate) fn from_object(claims: &Object, name: &'static str) -> Result<Self, MemberError> {
        let audience = claims
            .member(name, "a string or an array of strings", Self::from_value)?
            .ok_or(MemberError::Missing { name })?;
        if audience.as_slice().is_empty() || audience.contains("") {
            return Err(MemberError::Empty { name });
        }
        Ok(audience)
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(one) => Some(Self::One(owned(one))),
            _ => json::as_strings(value)
                .map(|several| Self::Several(several.into_iter().map(owned).collect())),
        }
    }
}

/// Collects one audience as a string and any other number of them as an array.
///
/// An empty array serialises, but no verifier accepts it.
impl<'a> FromIterator<Cow<'a, str>> for Audience<'a> {
    fn from_iter<I: IntoIterator<Item = Cow<'a, str>>>(audiences: I) -> Self {
        let mut several: Vec<_> = audiences.into_iter().collect();
        match several.pop() {
            Some(one) if several.is_empty() => Self::One(one),
            last => {
                several.extend(last);
                Self::Several(several)
            }
        }
    }
}

fn owned(text: &str) -> Cow<'static, str> {
    Cow::Owned(text.to_owned())
}

/// Why a payload does not hold the claims of an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// A claim is missing, empty or of the wrong type.
    #[error("a claim is missing, empty or of the wrong type")]
    Claim(#[from] MemberError),
    /// The payload is not an acceptable JSON object.
    #[error("the payload is not a valid JSON object")]
    Json(#[from] JsonError),
}
