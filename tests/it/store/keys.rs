//! The schedule of signing keys.

use std::time::Duration;

use countersign::{
    domain::{
        change::Topic,
        id::MasterKeyId,
        key::{KeySchedule, KeyUse},
    },
    store::StoreError,
};
use ring::digest::{SHA256, digest};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::sample::{NOW, apply, assert_conflict, key, put, schedule, traces};
use crate::support::database::Database;

pub(super) async fn a_key_schedule_is_read_back_as_it_was_put(database: &Database) {
    let store = database.open().await;
    let none = KeySchedule {
        primary_master: None,
        ..schedule(0, vec![])
    };
    assert_eq!(store.key_schedule(KeyUse::Signing).await.unwrap(), none);

    let mut full = key("full", 1000);
    full.times.withdrawn_at = Some(NOW.plus(Duration::from_secs(2)));
    full.times.revoked_at = Some(NOW.plus(Duration::from_secs(3)));
    let keys = vec![key("least", 0), full];
    let applied = apply(&*store, put(schedule(0, keys.clone()))).await;
    assert_eq!(applied.unwrap().revision, 1);
    let read = store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(read, schedule(1, keys));
    assert_eq!(store.snapshot().await.unwrap().schedule, read);

    // Sealed anew under another master key.
    let mut next = read;
    let master = MasterKeyId::from_uuid(Uuid::from_u128(8));
    next.primary_master = Some(master);
    next.keys[0].sealed.master_id = master;
    next.keys[0].sealed.ciphertext = vec![9; 100];
    apply(&*store, put(next.clone())).await.unwrap();
    next.revision = 2;
    assert_eq!(store.key_schedule(KeyUse::Signing).await.unwrap(), next);
}

pub(super) async fn a_key_schedule_of_another_revision_conflicts_and_changes_nothing(
    database: &Database,
) {
    let store = database.open().await;
    // As after the database has been replaced by an empty one.
    assert_conflict(database, &*store, put(schedule(5, vec![key("a", 0)]))).await;
    for revision in [0, 1] {
        let change = put(schedule(revision, vec![key("a", 0)]));
        apply(&*store, change).await.unwrap();
    }
    for revision in [0, 1, 3] {
        let change = put(schedule(revision, vec![key("b", 1)]));
        assert_conflict(database, &*store, change).await;
    }
    let read = store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(read, schedule(2, vec![key("a", 0)]));
}

pub(super) async fn of_32_concurrent_first_schedules_one_wins(database: &Database) {
    let store = database.open().await;
    let mut writers = JoinSet::new();
    for number in 0..32 {
        let store = store.clone();
        writers.spawn(async move {
            let keys = vec![key(&number.to_string(), number)];
            match apply(&*store, put(schedule(0, keys.clone()))).await {
                Ok(_) => Some(keys),
                Err(StoreError::Conflict) => None,
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let winners: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let read = store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(read, schedule(1, winners[0].clone()));
    assert_eq!(traces(database).await, (1, 1, 1, 0));
}

pub(super) async fn a_revoked_key_is_published_once(database: &Database) {
    let store = database.open().await;
    let mut keys = vec![key("a", 0), key("b", 1)];
    apply(&*store, put(schedule(0, keys.clone())))
        .await
        .unwrap();
    let start = store.snapshot().await.unwrap().position;
    keys[1].times.revoked_at = Some(NOW);
    for revision in [1, 2] {
        let change = put(schedule(revision, keys.clone()));
        apply(&*store, change).await.unwrap();
    }
    let changes = store.changes_since(start, 10, NOW).await.unwrap();
    let published: Vec<(Topic, &str)> = changes
        .rows
        .iter()
        .map(|row| (row.topic.unwrap(), row.target.as_str()))
        .collect();
    let kid = keys[1].kid.as_str();
    assert_eq!(
        published,
        [
            (Topic::Keys, "signing"),
            (Topic::Revocation, kid),
            (Topic::Keys, "signing"),
        ]
    );
    // Under the place of its change; for good.
    let revocations: Vec<(i64, String, Vec<u8>)> = database
        .rows(
            "select seq, kind, value from revocation \
             where not_before is null and expires_at is null",
        )
        .await;
    let value = digest(&SHA256, kid.as_bytes()).as_ref().to_vec();
    let seq = changes.rows[1].seq;
    assert_eq!(revocations, [(seq, "kid".to_owned(), value)]);
}

pub(super) async fn the_activation_of_a_key_can_be_moved(database: &Database) {
    let store = database.open().await;
    let keys = vec![key("a", 0), key("b", 5000)];
    apply(&*store, put(schedule(0, keys))).await.unwrap();
    let mut moved = vec![key("a", 0), key("b", 1000), key("c", 5000)];
    moved[0].times.withdrawn_at = Some(NOW);
    let change = put(schedule(1, moved.clone()));
    apply(&*store, change).await.unwrap();
    let read = store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(read, schedule(2, moved));
}

pub(super) async fn two_keys_cannot_become_active_at_once(database: &Database) {
    let store = database.open().await;
    let keys = vec![key("a", 0), key("b", 1000)];
    apply(&*store, put(schedule(0, keys.clone())))
        .await
        .unwrap();
    let moved = put(schedule(1, vec![key("a", 0), key("b", 0)]));
    assert_conflict(database, &*store, moved).await;
    let added = put(schedule(1, vec![key("a", 0), key("b", 1000), key("c", 0)]));
    assert_conflict(database, &*store, added).await;
    let read = store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(read, schedule(1, keys));
}
