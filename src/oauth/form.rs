//! Form bodies (`application/x-www-form-urlencoded`), read strictly.

use percent_encoding::percent_decode_str;

use super::error::OAuthError;

/// Why a body is no form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// A `%` without two hexadecimal digits.
    #[error("a percent sign is not followed by two hexadecimal digits")]
    BadEscape,
    /// Bytes that are no UTF-8, as they are or unescaped.
    #[error("the form is not UTF-8")]
    NotUtf8,
    /// More than 64 parameters.
    #[error("the form has too many parameters")]
    TooMany,
}

/// The most parameters a form may have.
const MOST_PARAMETERS: usize = 64;

/// The parameters of a request.
///
/// # Security
/// All of it comes from whoever sends the request. `Debug` shows no value: some are secrets.
pub struct Form(Vec<(String, String)>);

impl Form {
    /// Reads the body of a request; what is wrong with it is the answer to that.
    pub fn of_body(body: &[u8]) -> Result<Self, OAuthError> {
        Self::parse(body).map_err(|error| {
            OAuthError::malformed(match error {
                FormError::BadEscape => {
                    "in the body a percent sign is not followed by two hexadecimal digits"
                }
                FormError::NotUtf8 => "the body is not UTF-8",
                FormError::TooMany => "the body has more than 64 parameters",
            })
        })
    }

    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, FormError> {
        let body = std::str::from_utf8(body).map_err(|_| FormError::NotUtf8)?;
        let mut parameters = Vec::new();
        for parameter in body.split('&').filter(|parameter| !parameter.is_empty()) {
            if parameters.len() == MOST_PARAMETERS {
                return Err(FormError::TooMany);
            }
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parameters.push((decode(name)?, decode(value)?));
        }
        Ok(Self(parameters))
    }

    /// The form of parameters that came in another way.
    pub fn of_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// The value of a parameter that may occur once; an empty value counts as absent
    /// (RFC 6749 §3.2).
    pub fn one(&self, name: &'static str) -> Result<Option<&str>, OAuthError> {
        let mut values = self.values(name);
        let value = values.next();
        if values.next().is_some() {
            return Err(OAuthError::repeated(name));
        }
        Ok(value.filter(|value| !value.is_empty()))
    }

    /// The values of a parameter that may occur several times, without empty ones.
    pub fn many(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values(name).filter(|value| !value.is_empty())
    }

    /// The names of all parameters, as often as they occur.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Undoes the escaping of one name or value.
pub fn decode(text: &str) -> Result<String, FormError> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        match rest.get(at..) {
            Some([_, high, low, ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest = rest.get(at + 3..).unwrap_or_default();
            }
            _ => return Err(FormError::BadEscape),
        }
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced)
        .decode_utf8()
        .map_err(|_| FormError::NotUtf8)?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oauth::error::ErrorCode;

    #[test]
    fn plus_and_percent_20_are_both_a_space() {
        let form = Form::parse(b"a=1+2&b=1%202&c=1%2B2").unwrap();
        assert_eq!(form.one("a").unwrap(), Some("1 2"));
        assert_eq!(form.one("b").unwrap(), Some("1 2"));
        assert_eq!(form.one("c").unwrap(), Some("1+2"));
    }

    #[test]
    fn an_empty_value_counts_as_absent_and_a_repeated_parameter_is_refused() {
        let form = Form::parse(b"a=&b=1&b=1&c").unwrap();
        assert_eq!(form.one("a").unwrap(), None);
        assert_eq!(form.one("c").unwrap(), None);
        assert_eq!(form.one("b").unwrap_err().code(), ErrorCode::InvalidRequest);
        assert_eq!(form.many("b").count(), 2);
    }

    #[test]
    fn broken_escapes_and_broken_utf8_are_refused() {
        for bad in ["a=%", "a=%2", "a=%zz", "%=1", "a=%+1"] {
            assert_eq!(
                Form::parse(bad.as_bytes()).unwrap_err(),
                FormError::BadEscape,
                "{bad}"
            );
        }
        for bad in [&b"a=%ff"[..], b"a=\xff", b"%c3=1"] {
            assert_eq!(Form::parse(bad).unwrap_err(), FormError::NotUtf8);
        }
        let many = vec!["a=1"; 65].join("&");
        assert_eq!(
            Form::parse(many.as_bytes()).unwrap_err(),
            FormError::TooMany
        );
    }

    #[test]
    fn debug_output_shows_no_value() {
        let form = Form::parse(b"client_secret=hunter2").unwrap();
        assert_eq!(format!("{form:?}"), "[\"client_secret\"]");
    }

    proptest! {
        #[test]
        fn what_was_escaped_is_read_back(value in ".{0,40}") {
            let escaped = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
            let form = Form::parse(format!("name={escaped}").as_bytes()).unwrap();
            prop_assert_eq!(form.one("name").unwrap().unwrap_or_default(), value);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Form::parse(&bytes);
        }
    }
}
