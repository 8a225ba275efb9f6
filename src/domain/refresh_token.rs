//! The wire form of refresh tokens.
//!
//! A token is `cs_rt_` and the base64url of
//!
//! | bytes | |
//! | --- | --- |
//! | 1 | the version of this form |
//! | 4 | the version of the MAC key, big endian |
//! | 16 | the family |
//! | 8 | the counter, big endian |
//! | 24 | the tag: HMAC-SHA-256 of a prefix and all before, cut off |
//!
//! Keys and tags are for `keys::mac`; what the family and its counter mean is for `family`.

use std::fmt;

use countersign_verifier::base64url;
use ring::hmac;
use subtle::{Choice, ConstantTimeEq as _};
use uuid::Uuid;

use super::id::FamilyId;

/// What every refresh token begins with, so that secret scanners recognise a leaked one.
const PREFIX: &str = "cs_rt_";

/// The form of tokens made today.
const VERSION: u8 = 1;

/// What stands before the authenticated bytes: no other use of such a key gives the same input.
const DOMAIN: &[u8] = b"countersign refresh token\0";

/// The length of what a token says, in bytes.
const SAID: usize = 1 + 4 + 16 + 8;

/// The length of a tag, in bytes.
const TAG: usize = 24;

/// The length of all characters of a token.
const LENGTH: usize = PREFIX.len() + ((SAID + TAG) * 8).div_ceil(6);

/// What a refresh token says: not secret, and nothing to go by before its tag has been verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RefreshToken {
    /// The version of the MAC key that made the tag.
    pub mac_version: u32,
    /// The family that the token belongs to.
    pub family: FamilyId,
    /// Its position in the family.
    pub counter: u64,
}

impl RefreshToken {
    /// Reads a token; its tag is not verified yet.
    ///
    /// # Security
    /// Whoever sends the request chooses all of it. Each token has one spelling.
    pub fn parse(text: &str) -> Result<(Self, Tag), Malformed> {
        // What is much too long is not even decoded.
        if text.len() != LENGTH {
            return Err(Malformed);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(Malformed)?;
        let bytes = base64url::decode(encoded).map_err(|_| Malformed)?;
        let (version, rest) = bytes.split_first().ok_or(Malformed)?;
        let (mac_version, rest) = rest.split_first_chunk().ok_or(Malformed)?;
        let (family, rest) = rest.split_first_chunk().ok_or(Malformed)?;
        let (counter, tag) = rest.split_first_chunk().ok_or(Malformed)?;
        if *version != VERSION {
            return Err(Malformed);
        }
        let token = Self {
            mac_version: u32::from_be_bytes(*mac_version),
            family: FamilyId::from_uuid(Uuid::from_bytes(*family)),
            counter: u64::from_be_bytes(*counter),
        };
        Ok((token, Tag(tag.try_into().map_err(|_| Malformed)?)))
    }

    /// The token as it goes to its client.
    pub fn encode(&self, tag: &Tag) -> String {
        let mut text = String::with_capacity(LENGTH);
        text.push_str(PREFIX);
        base64url::encode_into(&[&self.said()[..], &tag.0].concat(), &mut text);
        text
    }

    /// What the tag is made of.
    pub fn authenticated(&self) -> Vec<u8> {
        [DOMAIN, &self.said()].concat()
    }

    fn said(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SAID);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.mac_version.to_be_bytes());
        bytes.extend_from_slice(self.family.uuid().as_bytes());
        bytes.extend_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

/// The tag of a refresh token: all of it that is secret.
pub struct Tag([u8; TAG]);

impl Tag {
    /// The tag that an HMAC-SHA-256 is cut off to: its first 24 bytes (RFC 2104 §5).
    pub fn of(hmac: &hmac::Tag) -> Self {
        let mut tag = [0; TAG];
        for (byte, of) in tag.iter_mut().zip(hmac.as_ref()) {
            *byte = *of;
        }
        Self(tag)
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag(..)")
    }
}

/// The text is no refresh token of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a refresh token")]
pub struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[7; 32])
    }

    fn tag_of(token: &RefreshToken) -> Tag {
        Tag::of(&hmac::sign(&key(), &token.authenticated()))
    }

    fn token() -> RefreshToken {
        RefreshToken {
            mac_version: 0x0102_0304,
            family: FamilyId::parse("0190a0b0-c0d0-7e0f-8001-020304050607").unwrap(),
            counter: 0x1112_1314_1516_1718,
        }
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let said = "01 01020304 0190a0b0c0d07e0f8001020304050607 1112131415161718";
        let said: Vec<u8> = said
            .replace(' ', "")
            .as_bytes()
            .chunks(2)
            .map(|hex| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap())
            .collect();
        let authenticated = [b"countersign refresh token\0", &said[..]].concat();
        let hmac = hmac::sign(&key(), &authenticated);
        let bytes = [&said[..], &hmac.as_ref()[..24]].concat();
        let text = token().encode(&tag_of(&token()));
        assert_eq!(text, format!("cs_rt_{}", base64url::encode(&bytes)));
        assert_eq!(text.len(), 77);
    }

    #[test]
    fn every_flipped_bit_is_refused_or_makes_another_tag_wrong() {
        let text = token().encode(&tag_of(&token()));
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                let Ok(flipped) = String::from_utf8(bytes) else {
                    continue;
                };
                if let Ok((said, tag)) = RefreshToken::parse(&flipped) {
                    assert!(!bool::from(tag_of(&said).matches(&tag)), "{index} {bit}");
                }
            }
        }
    }

    #[test]
    fn the_tag_shows_in_no_debug_output() {
        let shown = format!(
            "{:?}",
            RefreshToken::parse(&token().encode(&tag_of(&token())))
        );
        assert!(shown.contains("counter: 1230066625199609624"), "{shown}");
        assert!(shown.contains("Tag(..)"), "{shown}");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_the_same(mac_version: u32, family: u128, counter: u64) {
            let family = FamilyId::from_uuid(Uuid::from_u128(family));
            let token = RefreshToken { mac_version, family, counter };
            let text = token.encode(&tag_of(&token));
            let (said, tag) = RefreshToken::parse(&text).unwrap();
            assert_eq!(said, token);
            assert!(bool::from(tag.matches(&tag_of(&token))));
        }

        #[test]
        fn any_bytes_are_refused_or_have_no_other_spelling(bytes: [u8; 53], is_right: bool) {
            let mut bytes = bytes;
            if is_right {
                bytes[0] = VERSION;
            }
            let text = format!("{PREFIX}{}", base64url::encode(&bytes));
            match RefreshToken::parse(&text) {
                Ok((token, tag)) => assert_eq!(token.encode(&tag), text),
                Err(Malformed) => assert_ne!(bytes[0], VERSION),
            }
        }

        #[test]
        fn any_text_is_refused(text: String, tail in "[A-Za-z0-9_=+/. -]{69,73}") {
            for text in [text, format!("cs_rt_{tail}")] {
                // In the right alphabet and length one in 256 has the right version and ending.
                if let Ok((token, tag)) = RefreshToken::parse(&text) {
                    assert_eq!(token.encode(&tag), text);
                    assert!(!bool::from(tag_of(&token).matches(&tag)));
                }
            }
        }
    }

    #[test]
    fn another_length_alphabet_prefix_or_version_is_refused() {
        let text = token().encode(&tag_of(&token()));
        let tail = &text[PREFIX.len()..];
        assert!(RefreshToken::parse(&text).is_ok());
        let last = text.chars().last().unwrap();
        let spare = ['A', 'Q', 'g', 'w', '0', '4', '8', 'E'];
        let bytes = base64url::decode(tail).unwrap();
        let other_version = [&[2], &bytes[1..]].concat();
        for bad in [
            String::new(),
            "cs_rt_".to_owned(),
            tail.to_owned(),
            format!("cs_cs_{tail}"),
            format!("CS_RT_{tail}"),
            format!("{text}="),
            format!("{text}A"),
            format!(" {text}"),
            format!("{text}\n"),
            text[..text.len() - 1].to_owned(),
            text.replacen(&tail[..1], "+", 1),
            format!("cs_rt_{}", base64url::encode(&other_version)),
            format!("cs_rt_{}", base64url::encode(&bytes[1..])),
            format!("cs_rt_{}", base64url::encode(&[&bytes[..], &[0]].concat())),
            format!("cs_rt_ä{}", &tail[2..]),
        ] {
            assert_eq!(RefreshToken::parse(&bad).unwrap_err(), Malformed, "{bad}");
        }
        // The last character carries two bits more than there are.
        let spellings = spare.iter().filter(|spelling| **spelling != last);
        for spelling in spellings {
            let other = format!("{}{spelling}", &text[..text.len() - 1]);
            if let Ok((token, tag)) = RefreshToken::parse(&other) {
                assert_eq!(token.encode(&tag), other);
                assert!(!bool::from(tag_of(&token).matches(&tag)));
            }
        }
    }
}
