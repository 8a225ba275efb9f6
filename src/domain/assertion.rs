//! Client assertions (RFC 7523) as far as they are remembered.

use std::fmt;

use ring::digest;

use super::id::ClientId;

/// Names an assertion among all: the SHA-256 of its client and its `jti`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AssertionId([u8; 32]);

impl AssertionId {
    /// The id of the assertion that `client` calls `jti`.
    pub fn new(client: &ClientId, jti: &str) -> Self {
        // A client id holds no space, so that no other pair gives the same text.
        let text = format!("{client} {jti}");
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self(hash)
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
