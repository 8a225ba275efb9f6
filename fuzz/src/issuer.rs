//! What must hold of the issuer's parsers, whatever they are given.

use countersign::{
    config::Config,
    domain::scope::Scope,
    oauth::{client_auth::parse_basic, form::Form},
};

/// A form is read or refused; a parameter that occurs twice is never one.
pub fn form(data: &[u8]) {
    if let Ok(form) = Form::parse(data) {
        for name in ["a", "scope", "client_secret"] {
            let several = form.many(name).count() > 1;
            assert!(!several || form.one(name).is_err());
        }
    }
}

/// A Basic header is read or refused.
pub fn basic(data: &[u8]) {
    if let Ok(header) = std::str::from_utf8(data) {
        let _ = parse_basic(header);
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
