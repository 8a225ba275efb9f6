//! Typed identifiers: mixing up two kinds of them does not compile.

use std::fmt;

use uuid::Uuid;

/// Declares a newtype over [`Uuid`].
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes on an id that was minted or stored before.
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// Reads the hyphenated text form.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId)
            }

            /// The bare UUID, for storage.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

uuid_id!(
    /// Identifies an event of the audit trail.
    EventId
);
uuid_id!(
    /// Identifies a refresh-token family: one sign-in of one user at one client. The `sid` of its
    /// access tokens.
    FamilyId
);
uuid_id!(
    /// Identifies a master key; part of its file's name.
    MasterKeyId
);
uuid_id!(
    /// Identifies what a client is to be told.
    NoticeId
);
uuid_id!(
    /// Identifies a running process of the service.
    NodeId
);
uuid_id!(
    /// Identifies a protected resource in the admin interfaces.
    ResourceId
);
uuid_id!(
    /// Identifies one of a client's secrets; not secret itself.
    SecretId
);
uuid_id!(
    /// Identifies a sign-in session of a browser.
    SessionId
);
uuid_id!(
    /// Identifies a user. The `sub` of tokens; never given to anybody else.
    UserId
);

impl ResourceId {
    /// The admin interface, which is there without being registered.
    pub const ADMIN: Self = Self(Uuid::nil());

    /// The userinfo endpoint, likewise.
    pub const USERINFO: Self = Self(Uuid::from_u128(1));
}

/// The text is no identifier of the kind asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid identifier")]
pub struct InvalidId;

/// A `client_id` (RFC 6749 §2.2): 1 to 64 characters of `A-Z a-z 0-9 . _ ~ -`.
///
/// Narrower than the RFC's set, so that an id needs no escaping in a URL, a Basic header or a
/// shell, and cannot begin with `https://`, which is kept for client metadata documents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(String);

impl ClientId {
    /// Reads a client id.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
            return Err(InvalidId);
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as it stands in requests and tokens.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `kid` of a key, 43 characters of base64url: of a signing key its RFC 7638 thumbprint, of a
/// refresh-MAC key a hash (`keys::mac`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kid(String);

impl Kid {
    /// Reads a thumbprint.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if text.len() != 43 || !text.bytes().all(allowed) {
            return Err(InvalidId);
        }
        Ok(Self(text.to_owned()))
    }

    /// The thumbprint.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_needs_no_escaping_anywhere() {
        for good in ["demo", "a.b_c~d-9", &"x".repeat(64)] {
            assert!(ClientId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "a b",
            "a:b",
            "https://a",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            assert_eq!(ClientId::parse(bad), Err(InvalidId), "{bad}");
        }
    }

    #[test]
    fn a_kid_is_a_thumbprint() {
        assert!(Kid::parse("oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U").is_ok());
        for bad in ["", "short", "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-/"] {
            assert_eq!(Kid::parse(bad), Err(InvalidId), "{bad}");
        }
    }
}
