//! Explains a token to a person, rule by rule.
//!
//! The judgement is that of [`mod@crate::verify`]; this module only words it. Whatever it shows of the
//! token may come from an attacker, so it is escaped and cut: printed on a terminal it stays text.

use std::error::Error;

use serde_json::Value;

use crate::json::{self, Object};
use crate::jwk::{KeySet, PublicKey};
use crate::jws::Compact;
use crate::verify::{Expectation, RULES, Rule, VerifyError, check_typ, find_key};

/// How much of a value is shown, in bytes.
const MAX_SHOWN_BYTES: usize = 256;

/// How a member that is not there is shown.
const ABSENT: &str = "nothing";

/// The claims that are shown as a distance from now too.
const TIMES: [&str; 4] = ["exp", "nbf", "iat", "auth_time"];

/// What one rule makes of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The part of the token the rule is about: `signature`, a header parameter, a claim; `token` or
    /// `claims` when that could not be read at all.
    pub subject: &'static str,
    /// `Ok`: the value, and what it means. `Err`: what is wrong, and what was expected.
    pub outcome: Result<String, String>,
}

impl Finding {
    fn new(subject: &'static str, outcome: Result<String, String>) -> Self {
        Self { subject, outcome }
    }
}

/// Applies every rule of [`verify()`](crate::verify()) to a token, also after one is broken.
///
/// [`verify()`](crate::verify()) accepts the token if and only if no finding is an `Err`.
pub fn inspect(
    token: &str,
    keys: &KeySet,
    expected: &Expectation,
    now_seconds: u64,
) -> Vec<Finding> {
    let token = match Compact::parse(token) {
        Ok(token) => token,
        Err(error) => return vec![Finding::new("token", Err(explain(&error)))],
    };
    let mut findings = inspect_header(&token, keys).to_vec();
    // Also when the signature does not match: that finding is in the list already.
    match json::parse_object(token.unverified_payload().expose_unverified()) {
        Ok(claims) => findings.extend(inspect_claims(&claims, expected, now_seconds)),
        Err(error) => findings.push(Finding::new("claims", Err(explain(&error)))),
    }
    findings
}

fn inspect_header(token: &Compact<'_>, keys: &KeySet) -> [Finding; 4] {
    let header = token.header();
    let typ = show_string(header.typ());
    let typ = match check_typ(header) {
        Ok(()) => Ok(typ),
        Err(error) => Err(contrast(&error, &typ, "\"at+jwt\"")),
    };
    let alg = show_string(Some(header.alg()));
    let alg = match header.check_alg() {
        Ok(()) => Ok(alg),
        Err(error) => Err(contrast(&error, &alg, "\"ES256\"")),
    };
    let kid = show_string(header.kid());
    let (kid, signature) = match find_key(header, keys) {
        Ok(key) => (Ok(kid), inspect_signature(token, key)),
        Err(error) => (
            Err(contrast(&error, &kid, &show_kids(keys))),
            Err("not checked, because there is no key to check it with".to_owned()),
        ),
    };
    [
        Finding::new("typ", typ),
        Finding::new("alg", alg),
        Finding::new("kid", kid),
        Finding::new("signature", signature),
    ]
}

fn inspect_signature(token: &Compact<'_>, key: &PublicKey) -> Result<String, String> {
    match token.verify(key) {
        Ok(_) => Ok("made with the key that `kid` names".to_owned()),
        Err(error) => Err(explain(&error)),
    }
}

fn inspect_claims<'a>(
    claims: &'a Object,
    expected: &'a Expectation,
    now: u64,
) -> impl Iterator<Item = Finding> + 'a {
    RULES.iter().map(move |Rule(name, check)| {
        let found = show_claim(claims, name, now);
        let outcome = match check(claims, name, expected, now) {
            Ok(()) => Ok(found),
            Err(error) => Err(match expectation(error, expected, now) {
                Some(wanted) => contrast(&error, &found, &wanted),
                None => format!("{}: found {found}", explain(&error)),
            }),
        };
        Finding::new(name, outcome)
    })
}

/// What would have been right, where the error does not say that already.
fn expectation(error: VerifyError, expected: &Expectation, now: u64) -> Option<String> {
    let leeway = expected.leeway_seconds;
    match error {
        VerifyError::Audience => Some(show_string(expected.audience.as_deref())),
        VerifyError::Expired => Some(format!("later than {}", now.saturating_sub(leeway))),
        VerifyError::IssuedInFuture | VerifyError::NotYetValid => {
            Some(format!("at most {}", now.saturating_add(leeway)))
        }
        VerifyError::Issuer => Some(show_string(Some(&expected.issuer))),
        VerifyError::Claim(_)
        | VerifyError::Jws(_)
        | VerifyError::MissingKid
        | VerifyError::Payload(_)
        | VerifyError::Type
        | VerifyError::UnknownKid => None,
    }
}

fn contrast(error: &impl Error, found: &str, wanted: &str) -> String {
    format!("{error}: found {found}, expected {wanted}")
}

/// The most precise sentence: that of the innermost cause.
fn explain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => explain(source),
        None => error.to_string(),
    }
}

fn show_claim(claims: &Object, claim: &'static str, now: u64) -> String {
    let Some(value) = claims.value(claim) else {
        return ABSENT.to_owned();
    };
    let value = show(&value.to_string());
    match claims.numeric_date(claim) {
        Ok(Some(time)) if TIMES.contains(&claim) && time > now => {
            format!("{value} (in {} s)", time - now)
        }
        Ok(Some(time)) if TIMES.contains(&claim) => format!("{value} ({} s ago)", now - time),
        _ => value,
    }
}

fn show_kids(keys: &KeySet) -> String {
    let kids: Vec<_> = keys.kids().map(|kid| show_string(Some(kid))).collect();
    if kids.is_empty() {
        "a key, but the key set has none".to_owned()
    } else {
        kids.join(" or ")
    }
}

fn show_string(value: Option<&str>) -> String {
    value.map_or_else(
        || ABSENT.to_owned(),
        |value| show(&Value::from(value).to_string()),
    )
}

/// Makes text harmless on a terminal: control characters, invisible ones and those that reorder
/// the line are escaped, and it is cut at [`MAX_SHOWN_BYTES`].
fn show(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if shown.len() >= MAX_SHOWN_BYTES {
            shown.push('…');
            break;
        }
        match character {
            // JSON has escaped these already where needed.
            '"' | '\'' | '\\' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    shown
}
