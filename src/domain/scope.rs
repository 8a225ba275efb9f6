//! Scopes (RFC 6749 §3.3).

use std::{collections::BTreeSet, fmt};

/// How many scope tokens one set may hold, and how long each may be.
const MOST_TOKENS: usize = 100;
const LONGEST_TOKEN: usize = 128;

/// What makes a request one of `OpenID` Connect (Core §3.1.2.1).
pub const OPENID: &str = "openid";

/// Why a text is no scope.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Two spaces in a row, or one at either end.
    #[error("scope tokens are separated by exactly one space")]
    EmptyToken,
    /// A character outside `%x21 / %x23-5B / %x5D-7E`.
    #[error("a scope token holds a character that RFC 6749 §3.3 does not allow")]
    ForbiddenCharacter,
    /// More than 100 tokens, or one of more than 128 characters.
    #[error("a scope holds at most 100 tokens of at most 128 characters")]
    TooLong,
}

/// A set of scope tokens, without order as RFC 6749 §3.3 demands; written in sorted order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(BTreeSet<String>);

impl Scope {
    /// Reads the space-separated form; the empty text is the empty set.
    ///
    /// # Security
    /// The text comes from whoever sends a request.
    pub fn parse(text: &str) -> Result<Self, ScopeError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut tokens = BTreeSet::new();
        for token in text.split(' ') {
            if token.is_empty() {
                return Err(ScopeError::EmptyToken);
            }
            if token.len() > LONGEST_TOKEN {
                return Err(ScopeError::TooLong);
            }
            if !token
                .bytes()
                .all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
            {
                return Err(ScopeError::ForbiddenCharacter);
            }
            tokens.insert(token.to_owned());
            if tokens.len() > MOST_TOKENS {
                return Err(ScopeError::TooLong);
            }
        }
        Ok(Self(tokens))
    }

    /// Whether there is no token in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every token of this set is also in `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether this token is in the set.
    pub fn contains(&self, token: &str) -> bool {
        self.0.contains(token)
    }

    /// Whether what is granted for it goes on after the session of the browser that has brought it
    /// (`OpenID` Connect Core §11).
    pub fn is_offline(&self) -> bool {
        self.contains("offline_access")
    }

    /// The tokens that are in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).cloned().collect())
    }

    /// The tokens that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).cloned().collect())
    }

    /// Takes the tokens of `other` in.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }

    /// The tokens in sorted order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, token) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            f.write_str(token)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_are_separated_by_exactly_one_space() {
        for bad in [" a", "a ", "a  b", " "] {
            assert_eq!(Scope::parse(bad), Err(ScopeError::EmptyToken), "{bad:?}");
        }
    }

    #[test]
    fn quotes_backslashes_controls_and_non_ascii_are_refused() {
        for bad in ["a\"b", "a\\b", "a\tb", "a\0b", "é", "a\r\nb"] {
            assert_eq!(
                Scope::parse(bad),
                Err(ScopeError::ForbiddenCharacter),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_scope_is_bounded() {
        assert_eq!(Scope::parse(&"x".repeat(129)), Err(ScopeError::TooLong));
        let many: Vec<String> = (0..101).map(|n| n.to_string()).collect();
        assert_eq!(Scope::parse(&many.join(" ")), Err(ScopeError::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(text in "[a-z]{1,3}( [!#-\\[\\]-~]{1,5}){0,9}") {
            let scope = Scope::parse(&text).unwrap();
            prop_assert_eq!(Scope::parse(&scope.to_string()).unwrap(), scope);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = Scope::parse(&text);
        }
    }
}
