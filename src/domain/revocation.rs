//! Entries of revocation: what tells tokens that are revoked from those that are not.

use std::{fmt, time::Duration};

use super::{digest::sha256, name::named};
use crate::clock::Timestamp;

/// How many tokens of one client are revoked one by one. One more, and every token that the client
/// holds is revoked by a single entry: what a client can make the nodes remember is bounded.
pub const MOST_TOKENS: i64 = 1000;

named!(
    /// What an entry is about.
    RevocationKind {
        /// Every token of a client, or those from before some moment.
        ClientId = "client_id",
        /// One access token.
        Jti = "jti",
        /// Every token that a key has signed.
        Kid = "kid",
        /// Every access token of a family.
        Sid = "sid",
        /// Every token of a user, or those from before some moment.
        Sub = "sub",
    }
);

/// The SHA-256 of what is revoked: an entry can be published without telling whom it is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RevokedValue([u8; 32]);

impl RevokedValue {
    /// Hashes a `jti`, a `kid`, a `sid`, a client id or a user's id.
    pub fn of(text: &str) -> Self {
        Self(sha256(text))
    }

    /// Takes on a stored hash; `None` unless it has 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RevokedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RevokedValue(..)")
    }
}

/// An entry. A later one of the same kind and value replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Its place in the order of changes.
    pub seq: i64,
    /// What it is about.
    pub kind: RevocationKind,
    /// Which one.
    pub value: RevokedValue,
    /// Spares tokens issued at or after this moment, in whole seconds; none spares nothing.
    pub not_before: Option<Timestamp>,
    /// When no token can match any more; none is never.
    pub expires_at: Option<Timestamp>,
    /// The client whose token it is about, where that is known.
    pub owner: Option<RevokedValue>,
}

impl Revocation {
    /// Whether no token can match the entry any more.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// Whether the entry is about tokens that `other`, of the same kind and value, spares.
    pub fn covers_more_than(&self, other: &Self) -> bool {
        match (self.not_before, other.not_before) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(own), Some(others)) => own > others,
        }
    }

    /// Whether the entry is about a token issued then.
    pub fn covers(&self, issued_at: Timestamp) -> bool {
        self.not_before
            .is_none_or(|not_before| issued_at < not_before)
    }
}

/// How long a change that revokes tokens may take from its `now` until it is about to be committed.
pub const LONGEST_CHANGE: Duration = Duration::from_millis(600);

/// How long after its `now` a change is committed at the latest, as any node sees it: until then
/// tokens are issued by who has not heard of it.
const HEARD_BY: Duration = Duration::from_millis(800);

/// How long a client waits at most whose tokens have just been revoked, until new ones count.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The whole second from which on tokens count again after a change made at `now`: every token that
/// was issued before the change was committed has an earlier `iat`. At most 1.8 seconds ahead.
pub fn next_second(now: Timestamp) -> Timestamp {
    Timestamp::from_seconds(now.plus(HEARD_BY).seconds().saturating_add(1))
}
