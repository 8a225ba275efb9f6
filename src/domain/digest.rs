//! The one hash under which things are stored and compared.

use ring::digest;

/// The SHA-256 of a text.
pub(crate) fn sha256(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}
