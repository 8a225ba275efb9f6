//! What holds when the database server stops or crashes.

use std::fmt::Debug;

use countersign::store::{Access, Store, StoreError};

use super::sample::{NOW, apply, client, create, created, full_client};
use crate::support::{
    database::{self, Cluster, Durability},
    soon,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_unavailable_and_found_again_when_it_is_back() {
    let cluster = Cluster::start(Durability::Durable);
    let store = database::open(cluster.url(), Access::Serve).await.unwrap();
    let kept = created(&*store, full_client("a")).await;
    let before = store.snapshot().await.unwrap().position;
    soon(store.changed()).await;

    cluster.stop();
    let (applied, snapshot, changed) = tokio::join!(
        apply(&*store, create(client("b"))),
        store.snapshot(),
        store.changes_since(before, 10, NOW),
    );
    assert_unavailable(&applied);
    assert_unavailable(&snapshot);
    assert_unavailable(&changed);

    cluster.start_again();
    soon(until_available(&*store)).await;
    assert_eq!(store.clients().await.unwrap(), [kept]);
    created(&*store, client("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_survives_a_crash() {
    // The server's own setting here is not to wait until a commit is written.
    let cluster = Cluster::start(Durability::Fast);
    for round in 0..4 {
        let store = database::open(cluster.url(), Access::Serve).await.unwrap();
        for number in 0..5 {
            created(&*store, client(&format!("{round}-{number}"))).await;
        }
        let before = store.snapshot().await.unwrap();
        cluster.crash();
        cluster.start_again();
        let store = database::open(cluster.url(), Access::Serve).await.unwrap();
        let after = store.snapshot().await.unwrap();
        assert_eq!(after.position, before.position);
        assert_eq!(after.clients, before.clients);
    }
}

fn assert_unavailable<T: Debug>(result: &Result<T, StoreError>) {
    assert!(
        matches!(result, Err(StoreError::Unavailable(_))),
        "{result:?}"
    );
}

/// Connections that were open while the server stopped may each fail once.
async fn until_available(store: &dyn Store) {
    while let Err(error) = store.database_time().await {
        assert_unavailable(&Err::<(), _>(error));
    }
}
