//! The schedules of keys.

use std::time::Duration;

use countersign::{
    domain::{
        change::Topic,
        id::MasterKeyId,
        key::{KeyRecord, KeySchedule, KeyUse},
    },
    store::StoreError,
};
use ring::digest::{SHA256, digest};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::sample::{
    NOW, apply, assert_conflict, key, mac_key, mac_schedule, put, rs256_key, rs256_schedule,
    schedule, traces,
};
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

pub(super) async fn the_keys_of_each_use_have_a_schedule_of_their_own(database: &Database) {
    let store = database.open().await;
    // The signing keys come first: their schedule has the master key for all.
    assert_conflict(database, &*store, put(mac_schedule(0, vec![]))).await;
    apply(&*store, put(schedule(0, vec![key("a", 0)])))
        .await
        .unwrap();
    let none = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
    assert_eq!(none, mac_schedule(0, vec![]));

    // At the same moments as signing keys.
    let mut revoked = mac_key(2, 5);
    revoked.times.revoked_at = Some(NOW);
    let keys = vec![mac_key(1, 0), revoked, mac_key(u32::MAX, 9)];
    let start = store.snapshot().await.unwrap().position;
    apply(&*store, put(mac_schedule(0, keys.clone())))
        .await
        .unwrap();
    let read = store.snapshot().await.unwrap();
    assert_eq!(read.mac_schedule, mac_schedule(1, keys.clone()));
    assert_eq!(read.schedule, schedule(1, vec![key("a", 0)]));
    // A revoked one is nothing to tell verifiers.
    let changes = store.changes_since(start, 10, NOW).await.unwrap().rows;
    let published: Vec<(Topic, &str)> = changes
        .iter()
        .map(|row| (row.topic.unwrap(), row.target.as_str()))
        .collect();
    assert_eq!(published, [(Topic::Keys, "refresh_mac")]);
    assert!(read.revocations.is_empty());

    // Those for RS256 likewise.
    let mut gone = rs256_key("c", 5);
    gone.times.revoked_at = Some(NOW);
    let for_rs256 = vec![rs256_key("b", 0), gone, rs256_key("d", 9)];
    let start = read.position;
    apply(&*store, put(rs256_schedule(0, for_rs256.clone())))
        .await
        .unwrap();
    let read = store.snapshot().await.unwrap();
    assert_eq!(read.rs256_schedule, rs256_schedule(1, for_rs256));
    assert_eq!(read.mac_schedule, mac_schedule(1, keys.clone()));
    let changes = store.changes_since(start, 10, NOW).await.unwrap().rows;
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].target, "id_token_rs256");
    assert!(read.revocations.is_empty());

    // No version twice.
    let mut twice = keys.clone();
    twice.push(KeyRecord {
        kid: key("other", 0).kid,
        ..mac_key(1, 20)
    });
    assert_conflict(database, &*store, put(mac_schedule(1, twice))).await;
    let conflict = mac_schedule(0, vec![mac_key(7, 30)]);
    assert_conflict(database, &*store, put(conflict)).await;
}

pub(super) async fn no_key_is_sealed_under_a_master_key_that_was_given_up(database: &Database) {
    let store = database.open().await;
    apply(&*store, put(schedule(0, vec![key("a", 0)])))
        .await
        .unwrap();
    apply(&*store, put(mac_schedule(0, vec![mac_key(1, 0)])))
        .await
        .unwrap();
    let seen = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
    let master = MasterKeyId::from_uuid(Uuid::from_u128(8));
    let mut promoted = schedule(1, vec![key("a", 0)]);
    promoted.primary_master = Some(master);
    apply(&*store, put(promoted)).await.unwrap();

    let mut late = seen.clone();
    late.keys.push(mac_key(2, 1));
    assert_conflict(database, &*store, put(late)).await;
    let read = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
    let expected = KeySchedule {
        primary_master: Some(master),
        ..seen
    };
    assert_eq!(read, expected);
    let mut next = read;
    next.keys.push(mac_key(2, 1));
    apply(&*store, put(next.clone())).await.unwrap();
    next.revision = 2;
    let read = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
    assert_eq!(read, next);
}

pub(super) async fn of_a_promotion_and_a_new_key_that_meet_one_waits_for_the_other(
    database: &Database,
) {
    let store = database.open().await;
    apply(&*store, put(schedule(0, vec![key("a", 0)])))
        .await
        .unwrap();
    for round in 0..20 {
        let signing = store.key_schedule(KeyUse::Signing).await.unwrap();
        let mut mac = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
        let mut promoted = signing.clone();
        let master = MasterKeyId::from_uuid(Uuid::from_u128(100 + u128::from(round)));
        promoted.primary_master = Some(master);
        mac.keys.push(mac_key(round + 1, i64::from(round)));
        let revision = mac.revision;
        let (promotion, key) =
            tokio::join!(apply(&*store, put(promoted)), apply(&*store, put(mac)),);
        promotion.unwrap();
        let read = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
        assert_eq!(read.primary_master, Some(master));
        // Made before the promotion, or not at all.
        match key {
            Ok(applied) => assert_eq!(applied.revision, revision + 1),
            Err(StoreError::Conflict) => assert_eq!(read.revision, revision),
            Err(error) => panic!("{error:?}"),
        }
    }
}
