//! What may be registered as the keys of a client.

use std::collections::HashSet;

use countersign_verifier::{KeySet, PublicKey, jwk::MAX_KEY_SET_BYTES};
use jsonwebtoken::jwk::Jwk;
use serde::Deserialize as _;
use serde_json::Value;
use url::Url;

use super::FieldError;
use crate::domain::client::MOST_KEYS;

/// Members of a JWK that are private or secret (RFC 7518 §6).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "k", "p", "q", "dp", "dq", "qi", "oth"];

/// The longest `jwks_uri`, in bytes.
const LONGEST_URI: usize = 2048;

/// Everything that is wrong with a JWK Set, with pointers below `/jwks`.
///
/// What is wrong never quotes the set: it may hold a private key.
pub(super) fn problems(jwks: &Value) -> Vec<FieldError> {
    let Some(keys) = jwks.get("keys").and_then(Value::as_array) else {
        let detail = "must be a JWK Set: an object with an array keys (RFC 7517 §5)";
        return vec![FieldError::new("/jwks", detail)];
    };
    if !(1..=MOST_KEYS).contains(&keys.len()) {
        let detail = format!("must have 1 to {MOST_KEYS} keys");
        return vec![FieldError::new("/jwks/keys", detail)];
    }
    let mut problems = Vec::new();
    let mut kids = HashSet::new();
    for (index, key) in keys.iter().enumerate() {
        match kid(key) {
            Ok(kid) if kids.insert(kid.clone()) => {}
            Ok(_) => problems.push(FieldError::new(
                format!("/jwks/keys/{index}/kid"),
                "must differ from that of every other key",
            )),
            Err(detail) => {
                problems.push(FieldError::new(format!("/jwks/keys/{index}"), detail));
            }
        }
    }
    // The same reader that will look for keys in it.
    let text = jwks.to_string();
    let read = KeySet::parse(text.as_bytes()).map_or(0, |set| set.kids().count());
    if problems.is_empty() && read != keys.len() {
        let detail = format!(
            "must have at most {MAX_KEY_SET_BYTES} bytes, and objects nested no deeper than 16 levels"
        );
        problems.push(FieldError::new("/jwks", detail));
    }
    problems
}

/// The name by which assertions find a key, or what is wrong with it.
fn kid(key: &Value) -> Result<String, String> {
    if PRIVATE_MEMBERS.iter().any(|name| key.get(name).is_some()) {
        return Err(
            "holds a private or secret key; register the public one, and replace this one if it \
             was in use"
                .to_owned(),
        );
    }
    let jwk = Jwk::deserialize(key)
        .map_err(|_| "must be a public key for ES256 (kty EC, crv P-256, x, y)".to_owned())?;
    let public = PublicKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
    let Some(kid) = jwk.common.key_id else {
        return Ok(public.kid().to_owned());
    };
    let fits = (1..=64).contains(&kid.len())
        && kid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if fits {
        return Ok(kid);
    }
    Err("must have a kid of 1 to 64 characters of A-Z, a-z, 0-9, - and _, or none".to_owned())
}

/// What is wrong with a URL that the service is to call, if anything.
pub(super) fn uri_problem(uri: &str) -> Option<&'static str> {
    // Parsing alone would take spaces, line breaks and NUL.
    let fits = uri.len() <= LONGEST_URI
        && uri.bytes().all(|byte| byte.is_ascii_graphic())
        && Url::parse(uri).is_ok_and(|url| {
            url.scheme() == "https"
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.fragment().is_none()
        });
    (!fits).then_some(
        "must be an https URL of at most 2048 ASCII characters without credentials and fragment",
    )
}
