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

    /// Replaces everything after changes were lost, but keeps what this node still knows of them: a
    /// revocation that was answered stays one for as long as it was meant to.
    pub fn replace_after_loss(&self, entries: impl IntoIterator<Item = Revocation>) {
        let mut known = self.write();
        known.retain(|_, entry| entry.expires_at.is_some());
        for (key, entry) in entries.into_iter().map(keyed) {
            match known.get(&key) {
                Some(earlier) if earlier.covers_more_than(&entry) => {}
                _ => {
                    known.insert(key, entry);
                }
            }
        }
    }

    /// Takes later entries in. One about a client includes those about its tokens.
    pub fn extend(&self, entries: impl IntoIterator<Item = Revocation>) {
        let mut known = self.write();
        for entry in entries {
            if entry.kind == RevocationKind::ClientId {
                known.retain(|_, earlier| earlier.owner != Some(entry.value));
            }
            let (key, entry) = keyed(entry);
            known.insert(key, entry);
        }
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
            (RevocationKind::Jti, Some(&*claims.jti)),
            (RevocationKind::ClientId, Some(&*claims.client_id)),
            (RevocationKind::Kid, Some(kid)),
            (RevocationKind::Sid, claims.sid.as_deref()),
            (RevocationKind::Sub, Some(&*claims.sub)),
        ]
        .into_iter()
        .filter_map(|(kind, text)| Some((kind, text?)))
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

#[cfg(test)]
mod tests {
    use countersign_verifier::Audience;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn entry(kind: RevocationKind, value: &str) -> Revocation {
        Revocation {
            seq: 1,
            kind,
            value: RevokedValue::of(value),
            not_before: None,
            expires_at: None,
            owner: None,
        }
    }

    fn of_client(jti: &str, client: &str) -> Revocation {
        Revocation {
            expires_at: Some(NOW),
            owner: Some(RevokedValue::of(client)),
            ..entry(RevocationKind::Jti, jti)
        }
    }

    fn is_covered(set: &RevocationSet, jti: &str, client: &str, issued_at: i64) -> bool {
        let claims = AccessTokenClaims {
            iss: "i".into(),
            sub: "s".into(),
            aud: Audience::One("a".into()),
            client_id: client.into(),
            iat: u64::try_from(issued_at).unwrap(),
            exp: u64::MAX,
            jti: jti.into(),
            scope: None,
            auth_time: None,
            acr: None,
            amr: None,
            sid: None,
        };
        set.covers("kid", &claims)
    }

    #[test]
    fn an_entry_covers_what_it_is_about_and_nothing_else() {
        let set = RevocationSet::default();
        assert!(!is_covered(&set, "x", "a", 5));
        set.extend([entry(RevocationKind::Jti, "x")]);
        assert!(is_covered(&set, "x", "a", 5) && !is_covered(&set, "y", "a", 5));
        // The value of one kind says nothing about another.
        assert!(!is_covered(&set, "y", "x", 5));
        set.extend([Revocation {
            not_before: Some(Timestamp::from_seconds(7)),
            ..entry(RevocationKind::ClientId, "b")
        }]);
        assert!(is_covered(&set, "y", "b", 6) && !is_covered(&set, "y", "b", 7));
        set.extend([entry(RevocationKind::Kid, "kid")]);
        assert!(is_covered(&set, "y", "c", 8));
    }

    #[test]
    fn an_entry_about_a_client_includes_those_about_its_tokens() {
        let set = RevocationSet::default();
        set.extend([of_client("x", "a"), of_client("y", "b")]);
        set.extend([entry(RevocationKind::ClientId, "a")]);
        assert_eq!(set.len(), 2);
        assert!(is_covered(&set, "x", "a", 5) && is_covered(&set, "y", "b", 5));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let set = RevocationSet::default();
        set.extend([of_client("x", "a"), entry(RevocationKind::Jti, "y")]);
        set.forget(Timestamp::from_millis(NOW.millis() - 1));
        assert_eq!(set.len(), 2);
        set.forget(NOW);
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn what_a_database_has_lost_is_remembered_for_as_long_as_it_was_meant_to_be() {
        let set = RevocationSet::default();
        set.extend([of_client("x", "a"), entry(RevocationKind::ClientId, "b")]);
        set.replace_after_loss([entry(RevocationKind::Jti, "y")]);
        assert!(is_covered(&set, "x", "a", 5) && is_covered(&set, "y", "a", 5));
        // Whether a client is disabled is for the database to say.
        assert!(!is_covered(&set, "z", "b", 5));
    }
}
