//! What must hold of the issuer's parsers, whatever they are given.

use std::time::Duration;

use countersign::{
    clock::Timestamp,
    config::Config,
    domain::{refresh_token::RefreshToken, scope::Scope},
    oauth::{
        client_auth::{Assertion, parse_basic},
        form::Form,
    },
};
use countersign_verifier::KeySet;

/// A form is read or refused; a parameter that occurs twice is never one.
pub fn form(data: &[u8]) {
    if let Ok(form) = Form::parse(data) {
        for name in ["a", "scope", "client_secret"] {
            let several = form.many(name).count() > 1;
            assert!(!several || form.one(name).is_err());
        }
    }
}

/// When the assertions of the corpus are good, and at which issuer.
pub const ASSERTED_AT: Timestamp = Timestamp::from_seconds(1_800_000_000);
pub const ISSUER: &str = "https://issuer.example";

/// An assertion is read or refused; one that is read names its client and itself, ends soon, and is
/// signed by nobody who has no key.
pub fn assertion(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(assertion) = Assertion::parse(text, ISSUER, ASSERTED_AT)
    {
        assert!(!assertion.client_id().is_empty());
        assert!((1..=255).contains(&assertion.jti().len()));
        assert!(assertion.accepted_until() > ASSERTED_AT);
        assert!(assertion.accepted_until() <= ASSERTED_AT.plus(Duration::from_secs(430)));
        assert!(!assertion.is_signed_with(&KeySet::default()));
    }
}

/// A Basic header is read or refused.
pub fn basic(data: &[u8]) {
    if let Ok(header) = std::str::from_utf8(data) {
        let _ = parse_basic(header);
    }
}

/// A refresh token has one spelling, and another tag is another token.
pub fn refresh_token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok((token, tag)) = RefreshToken::parse(text)
    {
        assert_eq!(token.encode(&tag), text);
        assert!(bool::from(tag.matches(&tag)));
        let later = RefreshToken {
            counter: token.counter ^ 1,
            ..token
        };
        assert_ne!(later.encode(&tag), text);
        assert_ne!(later.authenticated(), token.authenticated());
    }
}

/// A scope that is read is written so that it reads the same again.
pub fn scope(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(scope) = Scope::parse(text)
    {
        assert_eq!(Scope::parse(&scope.to_string()).as_ref(), Ok(&scope));
    }
}

/// A settings file is read or refused with one sentence.
pub fn config(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Err(error) = Config::parse(text)
    {
        assert!(!error.to_string().is_empty());
    }
}
