//! Signs of life.

use countersign::{
    clock::Timestamp,
    domain::{
        id::{MasterKeyId, NodeId},
        node::Node,
    },
};
use uuid::Uuid;

use crate::support::database::Database;

fn node(number: u128, seen_at: i64) -> Node {
    Node {
        id: NodeId::from_uuid(Uuid::from_u128(number)),
        name: format!("host-{number}"),
        master_keys: (0..number)
            .map(|key| MasterKeyId::from_uuid(Uuid::from_u128(key)))
            .collect(),
        seen_at: Timestamp::from_millis(seen_at),
    }
}

pub(super) async fn a_node_is_listed_by_its_last_sign_of_life(database: &Database) {
    let store = database.open().await;
    for node in [node(2, 200), node(0, 100), node(1, 150), node(0, 300)] {
        store.heartbeat(&node).await.unwrap();
    }
    for (since, listed) in [
        (0, &[node(0, 300), node(1, 150), node(2, 200)][..]),
        (200, &[node(0, 300), node(2, 200)]),
        (301, &[]),
    ] {
        let nodes = store.nodes(Timestamp::from_millis(since)).await.unwrap();
        assert_eq!(nodes, listed);
    }
}

pub(super) async fn a_forgotten_node_is_gone(database: &Database) {
    let store = database.open().await;
    for node in [node(1, 1), node(2, 1)] {
        store.heartbeat(&node).await.unwrap();
    }
    for _ in 0..2 {
        store.forget_node(node(1, 1).id).await.unwrap();
        let nodes = store.nodes(Timestamp::from_millis(0)).await.unwrap();
        assert_eq!(nodes, [node(2, 1)]);
    }
}

pub(super) async fn a_node_that_was_silent_for_a_day_is_forgotten(database: &Database) {
    const DAY: i64 = 24 * 3600 * 1000;
    let store = database.open().await;
    for (time, left) in [(0, 1), (DAY, 2), (DAY + 1, 1)] {
        // Each time another process; the first is a day old at the second, and older at the third.
        store
            .heartbeat(&node(if time == 0 { 1 } else { 2 }, time))
            .await
            .unwrap();
        let nodes = store.nodes(Timestamp::from_millis(0)).await.unwrap();
        assert_eq!(nodes.len(), left, "{time}");
    }
}
