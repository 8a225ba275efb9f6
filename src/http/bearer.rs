//! Access tokens in requests (RFC 6750 §2.1).

use actix_web::http::header::{self, HeaderMap};

/// Why a request has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoToken {
    /// It has none: credentials of another scheme are none here.
    Absent,
    /// What it has cannot be one, or it has several.
    Malformed,
}

/// The token of the one `Authorization` header.
pub(super) fn token(headers: &HeaderMap) -> Result<&str, NoToken> {
    let mut values = headers.get_all(header::AUTHORIZATION);
    let value = values.next().ok_or(NoToken::Absent)?;
    if values.next().is_some() {
        return Err(NoToken::Malformed);
    }
    let text = value.to_str().map_err(|_| NoToken::Malformed)?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("Bearer") {
        return Err(NoToken::Absent);
    }
    let token = token.trim_matches(' ');
    // b64token
    let is_token_character = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || !token.bytes().all(is_token_character) {
        return Err(NoToken::Malformed);
    }
    Ok(token)
}
