//! Replays the inputs of the fuzz targets, so that they are tried where no fuzzer is installed.

use std::{fs, path::Path};

use countersign::{
    config::Config,
    domain::{refresh_token::RefreshToken, scope::Scope},
    oauth::{
        client_auth::{Assertion, parse_basic},
        form::Form,
    },
};

#[expect(unreachable_pub, reason = "the fuzz targets are another crate")]
#[path = "../../fuzz/src/issuer.rs"]
mod invariant;

/// Tries every input of a target and compares the answer with what the input's name says.
fn replay(target: &str, accepts: impl Fn(&[u8]) -> bool) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            name.starts_with("good-") || name.starts_with("bad-"),
            "{name}"
        );
        let data = fs::read(&path).unwrap();
        assert_eq!(accepts(&data), name.starts_with("good-"), "{target}/{name}");
        count += 1;
    }
    assert!(count >= 20, "only {count} inputs");
}

#[test]
fn forms_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("form", |data| {
        invariant::form(data);
        Form::parse(data).is_ok()
    });
}

#[test]
fn assertions_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("assertion", |data| {
        invariant::assertion(data);
        let (issuer, now) = (invariant::ISSUER, invariant::ASSERTED_AT);
        std::str::from_utf8(data).is_ok_and(|text| Assertion::parse(text, issuer, now).is_ok())
    });
}

#[test]
fn basic_headers_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("basic", |data| {
        invariant::basic(data);
        std::str::from_utf8(data).is_ok_and(|header| parse_basic(header).is_ok())
    });
}

#[test]
fn refresh_tokens_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("refresh_token", |data| {
        invariant::refresh_token(data);
        std::str::from_utf8(data).is_ok_and(|text| RefreshToken::parse(text).is_ok())
    });
}

#[test]
fn scopes_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("scope", |data| {
        invariant::scope(data);
        std::str::from_utf8(data).is_ok_and(|text| Scope::parse(text).is_ok())
    });
}

#[test]
fn settings_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("config", |data| {
        invariant::config(data);
        std::str::from_utf8(data).is_ok_and(|text| Config::parse(text).is_ok())
    });
}
