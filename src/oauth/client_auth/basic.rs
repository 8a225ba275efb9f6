//! The scheme Basic as OAuth uses it (RFC 6749 §2.3.1).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::SecretString;

use crate::oauth::form;

/// Why an `Authorization` header is no Basic credential of RFC 6749 §2.3.1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BasicError {
    /// Another scheme than `Basic`.
    #[error("the scheme is not Basic")]
    OtherScheme,
    /// No base64 of UTF-8 text with a colon in it.
    #[error("the credentials are not base64 of client_id:client_secret")]
    Malformed,
}

/// Reads a Basic header: client id and secret, each form-encoded before they were joined
/// (RFC 6749 §2.3.1).
pub fn parse_basic(header: &str) -> Result<(String, SecretString), BasicError> {
    let (scheme, encoded) = header.split_once(' ').unwrap_or((header, ""));
    if !scheme.eq_ignore_ascii_case("Basic") {
        return Err(BasicError::OtherScheme);
    }
    let decoded = STANDARD
        .decode(encoded.trim_start_matches(' '))
        .map_err(|_| BasicError::Malformed)?;
    let decoded = String::from_utf8(decoded).map_err(|_| BasicError::Malformed)?;
    let (id, secret) = decoded.split_once(':').ok_or(BasicError::Malformed)?;
    let part = |text| form::decode(text).map_err(|_| BasicError::Malformed);
    Ok((part(id)?, part(secret)?.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn basic(text: &str) -> Result<(String, String), BasicError> {
        let header = format!("Basic {}", STANDARD.encode(text));
        parse_basic(&header).map(|(id, secret)| (id, secret.expose_secret().to_owned()))
    }

    #[test]
    fn id_and_secret_are_form_decoded() {
        assert_eq!(
            basic("a%3Ab:c%2Bd+e:f").unwrap(),
            ("a:b".to_owned(), "c+d e:f".to_owned())
        );
        assert_eq!(basic("ä:ö").unwrap(), ("ä".to_owned(), "ö".to_owned()));
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_nothing_else_is_taken() {
        assert!(parse_basic(&format!("bAsIc {}", STANDARD.encode("a:b"))).is_ok());
        assert_eq!(
            parse_basic("Bearer abc").unwrap_err(),
            BasicError::OtherScheme
        );
        for bad in [
            "Basic",
            "Basic ",
            "Basic !!!",
            "Basic YQ",
            "Basic YTpi YTpi",
        ] {
            assert_eq!(
                parse_basic(bad).unwrap_err(),
                BasicError::Malformed,
                "{bad}"
            );
        }
        assert_eq!(basic("no colon").unwrap_err(), BasicError::Malformed);
        assert_eq!(basic("a:%zz").unwrap_err(), BasicError::Malformed);
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(text in ".{0,100}") {
            let _ = parse_basic(&text);
            let _ = basic(&text);
        }
    }
}
