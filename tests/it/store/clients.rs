//! Clients and their secrets.

use std::time::Duration;

use countersign::{
    clock::Timestamp,
    domain::{change::Cause, client::Client, id::ClientId},
    store::StoreError,
};
use tokio::task::JoinSet;

use super::sample::{
    self, NOW, apply, assert_conflict, client, create, created, delete, full_client, secret, update,
};
use crate::support::database::Database;

pub(super) async fn a_client_is_read_back_as_it_was_put(database: &Database) {
    let store = database.open().await;
    for client in [client("least"), full_client("most")] {
        apply(&*store, create(client.clone())).await.unwrap();
        let read = store.client(&client.client_id).await.unwrap().unwrap();
        let session_epoch = read.session_epoch;
        assert_eq!(
            read,
            Client {
                revision: 1,
                session_epoch,
                ..client
            }
        );
    }
    let clients = store.clients().await.unwrap();
    for client in &clients {
        let alone = store.client(&client.client_id).await.unwrap().unwrap();
        assert_eq!(alone, *client);
    }
    assert_eq!(store.snapshot().await.unwrap().clients, clients);
    let unknown = ClientId::parse("Least").unwrap();
    assert_eq!(store.client(&unknown).await.unwrap(), None);
}

pub(super) async fn clients_are_listed_by_id(database: &Database) {
    let store = database.open().await;
    for id in ["b", "a.1", "B", "a-1", "_", "a"] {
        created(&*store, client(id)).await;
    }
    let clients = store.clients().await.unwrap();
    let ids: Vec<&str> = clients
        .iter()
        .map(|client| client.client_id.as_str())
        .collect();
    assert_eq!(ids, ["B", "_", "a", "a-1", "a.1", "b"]);
}

pub(super) async fn creating_an_existing_client_conflicts_and_changes_nothing(database: &Database) {
    let store = database.open().await;
    let first = created(&*store, full_client("a")).await;
    assert_conflict(database, &*store, create(client("a"))).await;
    assert_eq!(store.clients().await.unwrap(), [first]);
}

pub(super) async fn a_stale_revision_conflicts_and_changes_nothing(database: &Database) {
    let store = database.open().await;
    let stale = created(&*store, full_client("a")).await;
    apply(&*store, update(stale.clone())).await.unwrap();
    let current = store.clients().await.unwrap();
    let too_far = Client {
        revision: 3,
        ..client("a")
    };
    let unknown = Client {
        revision: 1,
        ..client("b")
    };
    for other in [stale, too_far, unknown] {
        assert_conflict(database, &*store, delete(&other)).await;
        assert_conflict(database, &*store, update(other)).await;
    }
    assert_eq!(store.clients().await.unwrap(), current);
}

pub(super) async fn each_change_adds_one_to_the_revision(database: &Database) {
    let store = database.open().await;
    let mut current = created(&*store, client("a")).await;
    assert_eq!(current.revision, 1);
    for revision in 2..5 {
        let later = current.updated_at.plus(Duration::from_secs(1));
        let change = update(Client {
            // Not for the caller to say.
            created_at: later,
            ..current.clone()
        });
        let applied = store.apply(&change, &Cause::system(), later).await.unwrap();
        assert_eq!(applied.revision, revision);
        current = store.client(&current.client_id).await.unwrap().unwrap();
        assert_eq!(current.revision, revision);
        assert_eq!((current.created_at, current.updated_at), (NOW, later));
    }
}

pub(super) async fn of_32_concurrent_updates_one_wins(database: &Database) {
    let store = database.open().await;
    let seen = created(&*store, client("a")).await;
    let mut writers = JoinSet::new();
    for number in 0..32 {
        let store = store.clone();
        let change = update(Client {
            client_name: number.to_string(),
            secrets: vec![secret(number)],
            ..seen.clone()
        });
        writers.spawn(async move {
            match apply(&*store, change).await {
                Ok(_) => Some(number),
                Err(StoreError::Conflict) => None,
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let winners: Vec<u128> = writers.join_all().await.into_iter().flatten().collect();
    let current = store.client(&seen.client_id).await.unwrap().unwrap();
    assert_eq!(winners.len(), 1);
    assert_eq!(current.client_name, winners[0].to_string());
    assert_eq!(current.secrets, [secret(winners[0])]);
    assert_eq!(current.revision, 2);
    assert_eq!(sample::traces(database).await, (2, 2, 2, 0));
}

pub(super) async fn of_a_concurrent_update_and_deletion_one_wins(database: &Database) {
    let store = database.open().await;
    for round in 0..30 {
        let seen = created(
            &*store,
            Client {
                secrets: vec![secret(round)],
                ..client(&round.to_string())
            },
        )
        .await;
        let (updated, deleted) = tokio::join!(
            apply(&*store, update(seen.clone())),
            apply(&*store, delete(&seen)),
        );
        let current = store.client(&seen.client_id).await.unwrap();
        assert_eq!(updated.is_ok(), current.is_some());
        assert_eq!(deleted.is_ok(), current.is_none());
        assert!(current.is_none_or(|current| current.secrets == seen.secrets));
    }
}

pub(super) async fn secrets_are_exchanged(database: &Database) {
    let store = database.open().await;
    let mut current = created(&*store, full_client("a")).await;
    for secrets in [
        vec![secret(1)],
        vec![secret(1), secret(3)],
        vec![secret(4)],
        vec![],
        vec![secret(1)],
    ] {
        current.secrets.clone_from(&secrets);
        apply(&*store, update(current.clone())).await.unwrap();
        current = store.client(&current.client_id).await.unwrap().unwrap();
        assert_eq!(current.secrets, secrets);
    }
}

pub(super) async fn deleting_a_client_removes_its_secrets_and_leaves_an_event(database: &Database) {
    let store = database.open().await;
    let doomed = created(&*store, full_client("a")).await;
    let other = created(
        &*store,
        Client {
            secrets: vec![secret(3)],
            ..client("b")
        },
    )
    .await;
    apply(&*store, delete(&doomed)).await.unwrap();
    assert_eq!(store.clients().await.unwrap(), [other]);
    let owners: Vec<(String,)> = database.rows("select client_id from client_secret").await;
    assert_eq!(owners, [("b".to_owned(),)]);
    let events: Vec<(String, String)> = database
        .rows("select type, target from event where after is null")
        .await;
    assert_eq!(events, [("client.deleted".to_owned(), "a".to_owned())]);
    // The id is free again, for a client that begins anew: what was revoked of the one before it is
    // not revoked of this one, nor are its families those of this one.
    let successor = created(&*store, client("a")).await;
    let session_epoch = successor.session_epoch;
    assert_ne!(session_epoch, doomed.session_epoch);
    assert_eq!(
        successor,
        Client {
            revision: 1,
            session_epoch,
            tokens_not_before: Some(Timestamp::from_seconds(NOW.seconds() + 1)),
            ..client("a")
        }
    );
}
