//! Entries of revocation, used assertions, and what is deleted by age.

use std::time::Duration;

use countersign::{
    clock::Timestamp,
    domain::{
        assertion::AssertionId,
        change::{Cause, Change},
        client::Client,
        id::ClientId,
        revocation::{MOST_TOKENS, Revocation, RevocationKind, RevokedValue},
    },
    store::{Bounds, Store, StoreError, Swept},
};
use tokio::task::JoinSet;

use super::sample::{
    NOW, TOKENS_DIE_AT, apply, client, create, created, delete, key, put, schedule, update,
};
use crate::support::database::Database;

/// The second after [`NOW`].
const NEXT_SECOND: Timestamp = Timestamp::from_millis(1_700_000_001_000);

/// When the tokens revoked here are dead.
const TOKEN_DIES_AT: Timestamp = Timestamp::from_millis(NOW.millis() + 600_000);

fn id(text: &str) -> ClientId {
    ClientId::parse(text).unwrap()
}

fn revoke(jti: &str, owner: Option<&str>) -> Change {
    Change::RevokeToken {
        jti: jti.to_owned(),
        family: None,
        client_id: owner.map(id),
        token_dies_at: TOKEN_DIES_AT,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

fn revoke_client(text: &str) -> Change {
    Change::RevokeClientTokens {
        client_id: id(text),
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// Kind, value and bounds of an entry, by the place it must have.
fn entry(
    seq: i64,
    kind: RevocationKind,
    value: &str,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
) -> Revocation {
    Revocation {
        seq,
        kind,
        value: RevokedValue::of(value),
        not_before,
        expires_at,
        owner: None,
    }
}

/// The same entry, about a token of this client.
fn of(owner: &str, mut entry: Revocation) -> Revocation {
    entry.owner = Some(RevokedValue::of(owner));
    entry
}

/// Every entry, read in both ways.
async fn entries(store: &dyn Store) -> Vec<Revocation> {
    let read = store.revocations_since(0).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().revocations, read);
    read
}

pub(super) async fn a_revoked_token_has_an_entry_until_it_is_dead(database: &Database) {
    let store = database.open().await;
    created(&*store, client("a")).await;
    apply(&*store, revoke("x", Some("a"))).await.unwrap();
    apply(&*store, revoke("y", None)).await.unwrap();
    let jti = RevocationKind::Jti;
    let expected = [
        of("a", entry(2, jti, "x", None, Some(TOKEN_DIES_AT))),
        entry(3, jti, "y", None, Some(TOKEN_DIES_AT)),
    ];
    assert_eq!(entries(&*store).await, expected);
    assert_eq!(store.revocations_since(2).await.unwrap(), expected[1..]);
    // Revoked again, it has the place of the later change.
    apply(&*store, revoke("x", Some("a"))).await.unwrap();
    assert_eq!(
        entries(&*store).await,
        [
            entry(3, jti, "y", None, Some(TOKEN_DIES_AT)),
            of("a", entry(4, jti, "x", None, Some(TOKEN_DIES_AT))),
        ]
    );
}

pub(super) async fn the_tokens_of_a_client_are_revoked_by_one_entry(database: &Database) {
    let store = database.open().await;
    let before = created(&*store, client("a")).await;
    apply(&*store, revoke("x", Some("a"))).await.unwrap();
    apply(&*store, revoke_client("a")).await.unwrap();
    let expected = entry(
        4,
        RevocationKind::ClientId,
        "a",
        Some(NEXT_SECOND),
        Some(TOKENS_DIE_AT),
    );
    assert_eq!(entries(&*store).await, [expected]);
    let after = store.client(&id("a")).await.unwrap().unwrap();
    assert_eq!(after.tokens_not_before, Some(NEXT_SECOND));
    // Whoever looked at the client before must look again before changing it.
    let stale = apply(&*store, update(before)).await;
    assert!(matches!(stale, Err(StoreError::Conflict)));
    let unknown = apply(&*store, revoke_client("b")).await;
    assert!(matches!(unknown, Err(StoreError::Conflict)));
}

pub(super) async fn a_client_revokes_no_more_tokens_one_by_one_than_are_remembered(
    database: &Database,
) {
    let store = database.open().await;
    created(&*store, client("a")).await;
    created(&*store, client("b")).await;
    for number in 0..MOST_TOKENS {
        apply(&*store, revoke(&format!("t{number}"), Some("a")))
            .await
            .unwrap();
    }
    apply(&*store, revoke("of b", Some("b"))).await.unwrap();
    assert_eq!(
        i64::try_from(entries(&*store).await.len()).unwrap(),
        MOST_TOKENS + 1
    );
    apply(&*store, revoke("one more", Some("a"))).await.unwrap();
    let left = entries(&*store).await;
    assert_eq!(left.len(), 2);
    assert_eq!(left[0].value, RevokedValue::of("of b"));
    assert_eq!(
        (left[1].kind, left[1].value, left[1].not_before),
        (
            RevocationKind::ClientId,
            RevokedValue::of("a"),
            Some(NEXT_SECOND)
        )
    );
}

pub(super) async fn a_disabled_client_has_its_tokens_revoked_without_a_bound(database: &Database) {
    let kind = RevocationKind::ClientId;
    let store = database.open().await;
    let enabled = created(&*store, client("a")).await;
    let disabled = Client {
        disabled: true,
        ..enabled
    };
    apply(&*store, update(disabled)).await.unwrap();
    assert_eq!(entries(&*store).await, [entry(2, kind, "a", None, None)]);
    // Revoking them as well bounds nothing.
    apply(&*store, revoke_client("a")).await.unwrap();
    assert_eq!(entries(&*store).await, [entry(5, kind, "a", None, None)]);
    // Another change of it writes no entry.
    let disabled = store.client(&id("a")).await.unwrap().unwrap();
    apply(&*store, update(disabled)).await.unwrap();
    assert_eq!(entries(&*store).await, [entry(5, kind, "a", None, None)]);
    let enabled = Client {
        disabled: false,
        ..store.client(&id("a")).await.unwrap().unwrap()
    };
    apply(&*store, update(enabled)).await.unwrap();
    let bounded = entry(7, kind, "a", Some(NEXT_SECOND), Some(TOKENS_DIE_AT));
    assert_eq!(entries(&*store).await, [bounded]);
    let enabled = store.client(&id("a")).await.unwrap().unwrap();
    assert_eq!(enabled.tokens_not_before, Some(NEXT_SECOND));
}

pub(super) async fn a_removed_client_leaves_an_entry_that_its_successor_does_not_inherit(
    database: &Database,
) {
    let kind = RevocationKind::ClientId;
    let store = database.open().await;
    let doomed = created(&*store, client("a")).await;
    apply(&*store, delete(&doomed)).await.unwrap();
    let unbounded = entry(2, kind, "a", None, Some(TOKENS_DIE_AT));
    assert_eq!(entries(&*store).await, [unbounded]);
    let successor = created(&*store, client("a")).await;
    assert_eq!(successor.tokens_not_before, Some(NEXT_SECOND));
    let bounded = entry(4, kind, "a", Some(NEXT_SECOND), Some(TOKENS_DIE_AT));
    assert_eq!(entries(&*store).await, [bounded]);
}

pub(super) async fn a_restored_database_has_a_new_epoch_and_no_old_token(database: &Database) {
    let store = database.open().await;
    created(&*store, client("a")).await;
    let disabled = Client {
        disabled: true,
        ..client("b")
    };
    apply(&*store, create(disabled)).await.unwrap();
    let before = store.snapshot().await.unwrap();
    let restore = |keep_tokens| Change::Restore {
        keep_tokens,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*store, restore(true)).await.unwrap();
    let kept = store.snapshot().await.unwrap();
    assert_ne!(kept.position.epoch, before.position.epoch);
    assert_eq!(kept.clients, before.clients);
    assert_eq!(kept.revocations, before.revocations);
    let changes = store.changes_since(before.position, 9, NOW).await.unwrap();
    assert_eq!(changes.epoch, kept.position.epoch);

    apply(&*store, restore(false)).await.unwrap();
    let ended = store.snapshot().await.unwrap();
    assert_ne!(ended.position.epoch, kept.position.epoch);
    assert!(
        ended
            .clients
            .iter()
            .all(|client| client.tokens_not_before == Some(NEXT_SECOND))
    );
    let bounds: Vec<_> = ended
        .revocations
        .iter()
        .map(|entry| (entry.value, entry.not_before))
        .collect();
    assert_eq!(
        bounds,
        [
            (RevokedValue::of("b"), None),
            (RevokedValue::of("a"), Some(NEXT_SECOND))
        ]
    );
}

pub(super) async fn an_assertion_is_used_once_by_whomever(database: &Database) {
    let (one, other) = (database.open().await, database.open().await);
    let end = NOW.plus(Duration::from_mins(5));
    let assertion = AssertionId::new(&id("a"), "x");
    let mut uses = JoinSet::new();
    for number in 0..32 {
        let store = if number % 2 == 0 { &one } else { &other }.clone();
        uses.spawn(async move { store.first_use(&assertion, end, NOW).await.unwrap() });
    }
    let first = uses.join_all().await.into_iter().filter(|first| *first);
    assert_eq!(first.count(), 1);
    for another in [
        AssertionId::new(&id("b"), "x"),
        AssertionId::new(&id("a"), "y"),
    ] {
        assert!(one.first_use(&another, end, NOW).await.unwrap());
    }
    assert!(!one.first_use(&assertion, end, NOW).await.unwrap());
    // Past its end it is refused for that; its name is free.
    let later = end.plus(Duration::from_secs(1));
    assert!(other.first_use(&assertion, later, end).await.unwrap());
    assert!(!one.first_use(&assertion, later, end).await.unwrap());
}

/// Deletes what is over a second after [`NOW`].
fn bounds(events: bool) -> Bounds {
    Bounds {
        now: TOKENS_DIE_AT,
        changes_before: NOW,
        events_before: events.then_some(NOW),
        families_before: NOW,
    }
}

pub(super) async fn what_is_over_is_swept_in_batches_and_nothing_else(database: &Database) {
    let store = database.open().await;
    let cause = Cause::system();
    for jti in ["u", "v", "w"] {
        apply(&*store, revoke(jti, None)).await.unwrap();
        let assertion = AssertionId::new(&id("a"), jti);
        store
            .first_use(&assertion, TOKEN_DIES_AT, NOW)
            .await
            .unwrap();
    }
    let revoked = {
        let mut key = key("k", 0);
        key.times.revoked_at = Some(NOW);
        key
    };
    let later = NOW.plus(Duration::from_millis(1));
    let change = put(schedule(0, vec![revoked]));
    store.apply(&change, &cause, later).await.unwrap();
    let living = AssertionId::new(&id("a"), "living");
    let end = TOKENS_DIE_AT.plus(Duration::from_millis(1));
    store.first_use(&living, end, NOW).await.unwrap();

    let swept = |revocations, assertions, changes, events| Swept {
        revocations,
        assertions,
        changes,
        events,
        ..Swept::default()
    };
    let first = store.sweep(&bounds(false), 2).await.unwrap();
    assert_eq!(first, swept(2, 2, 2, 0));
    assert!(first.is_full(2));
    let second = store.sweep(&bounds(true), 2).await.unwrap();
    assert_eq!(second, swept(1, 1, 1, 2));
    let third = store.sweep(&bounds(true), 2).await.unwrap();
    assert_eq!(third, swept(0, 0, 0, 1));
    assert!(!third.is_full(2));
    assert_eq!(
        store.sweep(&bounds(true), 2).await.unwrap(),
        Swept::default()
    );
    // The key stays revoked for ever.
    let left = entries(&*store).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].kind, RevocationKind::Kid);
    assert!(!store.first_use(&living, end, NOW).await.unwrap());
}
