//! Users: people who sign in, and whose name clients act in.

use std::fmt;

use serde_json::{Map, Value, json};
use unicode_normalization::UnicodeNormalization as _;

use super::{client::Revision, id::UserId, profile::Profile, words::is_unseen};
use crate::clock::Timestamp;

/// The longest user name taken, in characters.
const LONGEST_NAME: usize = 254;

/// The text is no user name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be 1 to 254 characters, none of them a control or an invisible one, without white space at either end"
)]
pub struct InvalidUsername;

/// The name under which a user signs in, as it was written.
///
/// Wider than the identifiers of RFC 8265 §3, so that e-mail addresses and full names will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username {
    text: String,
    key: UsernameKey,
}

/// The form in which user names are compared: NFKC without regard to case. Whoever writes a name
/// with other letters of the same meaning means the same user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UsernameKey(String);

impl Username {
    /// Reads a user name.
    ///
    /// # Security
    /// The text may come from anybody who tries to sign in.
    pub fn parse(text: &str) -> Result<Self, InvalidUsername> {
        // A character has four bytes at most: nothing longer is looked at.
        if text.len() > 4 * LONGEST_NAME || text.chars().any(is_unseen) {
            return Err(InvalidUsername);
        }
        let key = key_of(text);
        // The longest key is what the index of the database has room for; and white space may come
        // to light only in the compatible form.
        let fits = |text: &str| {
            !text.is_empty()
                && text.chars().count() <= LONGEST_NAME
                && !text.starts_with(char::is_whitespace)
                && !text.ends_with(char::is_whitespace)
        };
        if !fits(text) || !fits(&key) || key.chars().any(is_unseen) {
            return Err(InvalidUsername);
        }
        Ok(Self {
            text: text.to_owned(),
            key: UsernameKey(key),
        })
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The form in which it is compared.
    pub fn key(&self) -> &UsernameKey {
        &self.key
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl UsernameKey {
    /// The key, for storage.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Upper case before lower case also brings together what only one of them tells apart: ß and ss,
/// the two forms of a small sigma. What comes out may compose anew.
fn key_of(text: &str) -> String {
    let fold = |text: &str| -> String {
        let upper = text.nfkc().flat_map(char::to_uppercase);
        upper.flat_map(char::to_lowercase).nfkc().collect()
    };
    // Some characters have a compatible form in capitals only, and need a second turn.
    fold(&fold(text))
}

/// The hash of a password, as a PHC string.
///
/// Unlike the hash of a secret that was drawn at random it gives a guessable password away, so that
/// it shows nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Takes on a PHC string.
    pub fn from_phc(phc: String) -> Self {
        Self(phc)
    }

    /// The PHC string, for verification and storage.
    pub fn phc(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The `sub` of tokens.
    pub id: UserId,
    /// The name to sign in with; no two users have one of the same key.
    pub username: Username,
    /// What a presented password is held against; a user without cannot sign in with one.
    pub password_hash: Option<PasswordHash>,
    /// The `roles` of access tokens (RFC 9068 §2.2.3.1).
    pub roles: Vec<String>,
    /// More claims of access tokens, none of which means anything to this service.
    pub claims: Map<String, Value>,
    /// What clients are told who ask, and may (`OpenID` Connect Core §5.1).
    pub profile: Profile,
    /// A disabled user has no session and gets none.
    pub disabled: bool,
    /// Whether a password alone is not enough for it to sign in.
    pub second_factor_required: bool,
    /// Made by the development start; production refuses a database that holds one.
    pub demo: bool,
    /// What codes and families carry while they live: drawn anew by the store, it ends them all.
    pub session_epoch: i64,
    /// Access tokens issued before this moment, a whole second, are revoked. Set by the store.
    pub tokens_not_before: Option<Timestamp>,
    /// Grows by one with each change.
    pub revision: Revision,
    /// When the user was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When the password was set.
    pub password_changed_at: Option<Timestamp>,
}

impl User {
    /// Everything about the user that may be shown: whether there is a password, not its hash.
    pub fn document(&self) -> Value {
        json!({
            "id": self.id.to_string(),
            "username": self.username.as_str(),
            "roles": self.roles,
            "claims": self.claims,
            "profile": self.profile.members(),
            "disabled": self.disabled,
            "second_factor_required": self.second_factor_required,
            "has_password": self.password_hash.is_some(),
            "revision": self.revision,
            "created_at": self.created_at.seconds(),
            "updated_at": self.updated_at.seconds(),
            "password_changed_at": self.password_changed_at.map(Timestamp::seconds),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> String {
        Username::parse(text).unwrap().key.0
    }

    #[test]
    fn names_are_compared_without_regard_to_case_and_form() {
        for same in [
            &["ada", "Ada", "ADA", "ａｄａ", "Ⓐda"][..],
            &["straße", "STRASSE", "STRAẞE", "strasse"],
            &["οδος", "ΟΔΟΣ", "οδοσ"],
            &["é@example.com", "E\u{301}@EXAMPLE.COM", "É@Example.com"],
            &["ﬁ", "FI", "fi"],
            &["Kelvin", "\u{212a}elvin"],
        ] {
            let keys: Vec<String> = same.iter().map(|name| key(name)).collect();
            assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        }
        assert_ne!(key("ada"), key("adä"));
        assert_ne!(key("a da"), key("ada"));
        assert_eq!(Username::parse("Ada").unwrap().as_str(), "Ada");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let ok = "x".repeat(254);
        assert!(Username::parse(&ok).is_ok());
        assert!(Username::parse(&"ä".repeat(254)).is_ok());
        for bad in [
            "",
            " ",
            " a",
            "a ",
            "a\u{a0}",
            "\u{3000}a",
            // In its compatible form it begins with a space.
            "\u{a8}a",
            "a\0",
            "a\nb",
            "a\u{7f}",
            "a\u{85}b",
            "a\u{200b}b",
            "a\u{202e}b",
            "\u{feff}a",
            "a\u{3164}b",
            &"x".repeat(255),
            // Short, but for its key there would be no room in the index.
            &"\u{fdfa}".repeat(50),
        ] {
            assert_eq!(Username::parse(bad), Err(InvalidUsername), "{bad:?}");
        }
    }

    #[test]
    fn a_hash_of_a_password_never_shows() {
        let hash = PasswordHash::from_phc("$argon2id$secret".to_owned());
        assert_eq!(format!("{hash:?}"), "PasswordHash(..)");
    }

    #[test]
    fn whatever_the_case_a_letter_has_one_key() {
        let has_cases = |letter: &char| !letter.to_uppercase().eq(letter.to_lowercase());
        for letter in ('\0'..=char::MAX).filter(has_cases) {
            let key = key_of(&letter.to_string());
            assert_eq!(key_of(&key), key, "{letter:?}");
            assert_eq!(
                key_of(&letter.to_uppercase().to_string()),
                key,
                "{letter:?}"
            );
            assert_eq!(
                key_of(&letter.to_lowercase().to_string()),
                key,
                "{letter:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_key_is_the_key_of_itself(text in "\\PC{1,40}") {
            if let Ok(name) = Username::parse(&text) {
                prop_assert_eq!(key_of(name.key().as_str()), name.key().as_str());
            }
        }

        #[test]
        fn names_of_the_same_letters_in_other_cases_have_the_same_key(text in "\\PC{1,40}") {
            prop_assert_eq!(key_of(&text.to_uppercase()), key_of(&text.to_lowercase()));
        }
    }
}
