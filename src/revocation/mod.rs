//! Which tokens are revoked, in memory.
//!
//! `app::sync` alone changes the set; whoever judges tokens asks it. Imports `domain` only.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use countersign_verifier::AccessTokenClaims;

use crate::{
    clock::Timestamp,
    domain::revocation::{Revocation, RevocationKind, RevokedValue},
};

type Entries = HashMap<(RevocationKind, RevokedValue), Revocation>;

/// Every entry that some token may still match.
#[derive(Debug, Default)]
pub struct RevocationSet {
    entries: RwLock<Entries>,
}

impl RevocationSet {
    /// Replaces everything.
    pub fn replace(&self, entries: impl IntoIterator<Item = Revocation>) {
        *self.write() = entries.into_iter().map(keyed).collect();
    }

    /// Takes later entries in.
    pub fn extend(&self, entries: impl IntoIterator<Item = Revocation>) {
        self.write().extend(entries.into_iter().map(keyed));
    }

    /// Forgets the entries that no token can match any more.
    pub fn forget(&self, now: Timestamp) {
        let is_over = |entry: &Revocation| entry.is_over(now);
        // Mostly there are none: readers are not held up for that.
        if self.read().values().any(is_over) {
            self.write().retain(|_, entry| !is_over(entry));
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a token with these claims, signed with the key `kid`, is revoked.
    pub fn covers(&self, kid: &str, claims: &AccessTokenClaims<'_>) -> bool {
        let issued_at = Timestamp::from_seconds(i64::try_from(claims.iat).unwrap_or(i64::MAX));
        let entries = self.read();
        [
            (RevocationKind::Jti, &*claims.jti),
            (RevocationKind::ClientId, &*claims.client_id),
            (RevocationKind::Kid, kid),
        ]
        .into_iter()
        .filter_map(|(kind, text)| entries.get(&(kind, RevokedValue::of(text))))
        .any(|entry| entry.covers(issued_at))
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keyed(entry: Revocation) -> ((RevocationKind, RevokedValue), Revocation) {
    ((entry.kind, entry.value), entry)
}
