//! Recovery codes: drawn at random, shown once, each used once in place of a second factor.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    domain::secret::SecretHash,
    entropy::{Entropy, EntropyError},
};

/// How many a user gets at once.
pub const AT_ONCE: usize = 10;

/// How many random bytes a code has: 80 bits, so that a fast hash will do.
const BYTES: usize = 10;

/// What codes are written in: no letter looks like a digit (RFC 4648 §6, in small letters).
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A recovery code: sixteen letters and digits in four groups.
///
/// Neither printable nor clonable: it is shown once.
pub struct RecoveryCode(SecretString);

impl RecoveryCode {
    /// Draws a code.
    pub fn draw(entropy: &Entropy) -> Result<Self, EntropyError> {
        let bytes: [u8; BYTES] = entropy.bytes()?;
        let mut text = String::new();
        for (at, index) in digits(bytes).enumerate() {
            if at > 0 && at % 4 == 0 {
                text.push('-');
            }
            text.push(char::from(ALPHABET.get(index).copied().unwrap_or(b'a')));
        }
        Ok(Self(text.into()))
    }

    /// The text, for its one showing.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The hash under which it is stored.
    pub fn hash(&self) -> Option<SecretHash> {
        hash_of(self.expose())
    }
}

impl fmt::Debug for RecoveryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryCode(..)")
    }
}

/// The hash of what somebody has typed, in capitals or with spaces, if it can be a code.
///
/// # Security
/// Whoever sends a request chooses `text`.
pub fn hash_of(text: &str) -> Option<SecretHash> {
    if text.len() > 64 {
        return None;
    }
    let kept = text.chars().filter(|c| !matches!(c, '-' | ' '));
    let code: String = kept.map(|c| c.to_ascii_lowercase()).collect();
    let is_code = code.len() == 16 && code.bytes().all(|byte| ALPHABET.contains(&byte));
    is_code.then(|| SecretHash::of(&code))
}

/// Five bits each.
fn digits(bytes: [u8; BYTES]) -> impl Iterator<Item = usize> {
    let number = bytes
        .iter()
        .fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    (0..BYTES * 8 / 5).map(move |at| usize::from(((number >> (at * 5)) & 31) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_however_it_is_typed() {
        let code = RecoveryCode::draw(&Entropy::new()).unwrap();
        let text = code.expose();
        assert_eq!(text.len(), 19);
        let hash = code.hash();
        assert!(hash.is_some());
        for typed in [
            text.to_uppercase(),
            text.replace('-', ""),
            text.replace('-', " "),
            format!(" {text} "),
        ] {
            assert_eq!(hash_of(&typed), hash, "{typed}");
        }
        assert_eq!(format!("{code:?}"), "RecoveryCode(..)");
    }

    #[test]
    fn what_cannot_be_a_code_is_none() {
        for text in [
            "",
            "123456",
            "abcd-efgh-ijkl-mno",
            "abcd-efgh-ijkl-mno1",
            &"a".repeat(100),
        ] {
            assert_eq!(hash_of(text), None, "{text}");
        }
    }

    #[test]
    fn every_bit_of_a_code_counts() {
        let codes = (0..80).map(|bit| {
            let number = 1_u128 << bit;
            let mut bytes = [0; BYTES];
            bytes.copy_from_slice(&number.to_be_bytes()[6..]);
            digits(bytes).collect::<Vec<_>>()
        });
        let codes: std::collections::HashSet<_> = codes.collect();
        assert_eq!(codes.len(), 80);
    }
}
