//! The order of changes, and how other nodes learn of them.

use std::time::Duration;

use countersign::{
    domain::change::{Change, Position, Topic},
    store::Store,
};
use futures_util::future::join_all;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::sample::{
    NOW, apply, client, create, created, delete, key, put, resource, schedule, update,
};
use crate::support::{
    database::{Database, Engine},
    soon,
};

async fn position(store: &dyn Store) -> Position {
    store.snapshot().await.unwrap().position
}

pub(super) async fn changes_are_numbered_in_commit_order_without_gaps(database: &Database) {
    // Two nodes: what orders them must be the database.
    let nodes = [database.open().await, database.open().await];
    let start = position(&*nodes[0]).await;
    let mut writers = JoinSet::new();
    for number in 0..64 {
        let node = nodes[number % 2].clone();
        writers.spawn(async move {
            let change = create(client(&number.to_string()));
            let applied = apply(&*node, change).await.unwrap();
            (applied.position.seq, number.to_string())
        });
    }
    let mut seen = Vec::new();
    let read_along = async {
        while seen.len() < 64 {
            let seq = start.seq + i64::try_from(seen.len()).unwrap();
            let at = Position { seq, ..start };
            let changes = nodes[0].changes_since(at, 100, NOW).await.unwrap();
            assert_eq!(changes.epoch, start.epoch);
            for (expected, row) in (seq + 1..).zip(changes.rows) {
                assert_eq!(row.seq, expected, "a place came after a later one");
                seen.push((row.seq, row.target));
            }
            assert_eq!(changes.head, start.seq + i64::try_from(seen.len()).unwrap());
        }
    };
    soon(read_along).await;
    let mut written = writers.join_all().await;
    written.sort();
    assert_eq!(seen, written);
}

pub(super) async fn changes_come_in_order_and_no_more_than_asked_for(database: &Database) {
    let store = database.open().await;
    let start = position(&*store).await;
    let first = created(&*store, client("a")).await;
    apply(&*store, delete(&first)).await.unwrap();
    apply(&*store, Change::CreateResource(resource(1)))
        .await
        .unwrap();
    let applied = apply(&*store, put(schedule(0, vec![key("k", 0)]))).await;
    assert_eq!(applied.unwrap().position, position(&*store).await);

    let resource_id = resource(1).id.to_string();
    let all = [
        (1, Topic::Client, "a"),
        (2, Topic::Revocation, "a"),
        (3, Topic::Client, "a"),
        (4, Topic::Resource, resource_id.as_str()),
        (5, Topic::Keys, "signing"),
    ];
    for (after, limit, expected) in [
        (0, 9, &all[..]),
        (0, 3, &all[..3]),
        (1, 2, &all[1..3]),
        (4, 1, &all[4..]),
        (5, 9, &[]),
    ] {
        let at = Position {
            seq: after,
            ..start
        };
        let changes = store.changes_since(at, limit, NOW).await.unwrap();
        let rows: Vec<(i64, Topic, &str)> = changes
            .rows
            .iter()
            .map(|row| (row.seq, row.topic.unwrap(), row.target.as_str()))
            .collect();
        assert_eq!(rows, expected);
        assert_eq!((changes.epoch, changes.head), (start.epoch, 5));
    }
}

pub(super) async fn another_epoch_is_reported(database: &Database) {
    let store = database.open().await;
    created(&*store, client("a")).await;
    let current = position(&*store).await;
    for seq in [0, 1, 1000] {
        let at = Position {
            epoch: Uuid::from_u128(1),
            seq,
        };
        let changes = store.changes_since(at, 10, NOW).await.unwrap();
        assert_eq!((changes.epoch, changes.head), (current.epoch, 1));
    }
    assert_eq!(position(&*store).await, current);
}

pub(super) async fn lost_changes_begin_one_new_epoch(database: &Database) {
    let nodes = [database.open().await, database.open().await];
    for id in ["a", "b", "c"] {
        created(&*nodes[0], client(id)).await;
    }
    let before = position(&*nodes[0]).await;
    // As a standby that takes over without the last two commits.
    database
        .execute("delete from change where seq > 1; update change_head set seq = 1")
        .await;
    let asked = (0..16).map(|n| nodes[n % 2].changes_since(before, 10, NOW));
    let answers = join_all(asked).await;
    let now = position(&*nodes[1]).await;
    assert_ne!(now.epoch, before.epoch);
    assert_eq!(now.seq, 1);
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!((answer.epoch, answer.head), (now.epoch, 1));
        assert!(answer.rows.is_empty());
    }
    // Nobody who has read everything again begins another one.
    let changes = nodes[0].changes_since(now, 10, NOW).await.unwrap();
    assert_eq!(changes.epoch, now.epoch);
    let applied = apply(&*nodes[0], create(client("d"))).await.unwrap();
    assert_eq!(applied.position, Position { seq: 2, ..now });
}

pub(super) async fn a_snapshot_is_of_one_moment(database: &Database) {
    /// How many changes it took to come to what a snapshot shows.
    async fn assert_whole(store: &dyn Store) -> i64 {
        let snapshot = store.snapshot().await.unwrap();
        let clients: i64 = snapshot.clients.iter().map(|client| client.revision).sum();
        let resources = i64::try_from(snapshot.resources.len()).unwrap();
        let changes = clients + resources + snapshot.schedule.revision;
        assert_eq!(snapshot.position.seq, changes);
        changes
    }

    let store = database.open().await;
    let mut writers = JoinSet::new();
    writers.spawn({
        let store = store.clone();
        async move {
            for number in 0..20 {
                let created = created(&*store, client(&number.to_string())).await;
                apply(&*store, update(created)).await.unwrap();
            }
        }
    });
    writers.spawn({
        let store = store.clone();
        async move {
            for number in 0..20 {
                let change = Change::CreateResource(resource(number));
                apply(&*store, change).await.unwrap();
            }
        }
    });
    writers.spawn({
        let store = store.clone();
        async move {
            for revision in 0..20 {
                let change = put(schedule(revision, vec![key("k", revision)]));
                apply(&*store, change).await.unwrap();
            }
        }
    });
    soon(async { while assert_whole(&*store).await < 80 {} }).await;
    writers.join_all().await;
}

pub(super) async fn a_commit_wakes_whoever_waits_for_changes(database: &Database) {
    let store = database.open().await;
    // On SQLite only this process's own commits are heard of; others are found by polling.
    let writer = match database.engine() {
        Engine::Sqlite => store.clone(),
        Engine::Postgres => database.open().await,
    };
    if database.engine() == Engine::Postgres {
        // The first answer says that it listens from now on.
        soon(store.changed()).await;
    }
    let nothing = tokio::time::timeout(Duration::from_millis(50), store.changed());
    assert!(nothing.await.is_err());
    for id in ["a", "b"] {
        created(&*writer, client(id)).await;
        soon(store.changed()).await;
    }
}
