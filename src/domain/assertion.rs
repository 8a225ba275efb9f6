//! Client assertions (RFC 7523) as far as they are remembered.

use std::fmt;

use super::{digest::sha256, id::ClientId};

/// Names an assertion among all: the SHA-256 of its client and its `jti`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AssertionId([u8; 32]);

impl AssertionId {
    /// The id of the assertion that `client` calls `jti`.
    pub fn new(client: &ClientId, jti: &str) -> Self {
        // A client id holds no space, so that no other pair gives the same text.
        Self(sha256(&format!("{client} {jti}")))
    }

    /// The id of a ceremony of a passkey, by its challenge, which was drawn at random.
    pub fn of_ceremony(challenge: &str) -> Self {
        // No client id begins with a space.
        Self(sha256(&format!(" passkey {challenge}")))
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for AssertionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AssertionId(..)")
    }
}
