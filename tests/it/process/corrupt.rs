//! A row that cannot be read: it stands in nobody's way but its own.

use reqwest::StatusCode;

use crate::support::{
    database::{Database, Engine},
    process::{Credentials, Installation},
};

/// Gives a client a grant that no version knows, and tells the nodes of a change.
async fn corrupt(database: &Database, client: &Credentials) {
    let id = &client.id;
    let sql = format!(
        "begin; \
         update client set grant_types = '[\"x\"]' where client_id = '{id}'; \
         update change_head set seq = seq + 1; \
         insert into change (seq, topic, target, at) select seq, 'client', '{id}', 0 from change_head; \
         commit"
    );
    database.execute(&sql).await;
}

async fn a_client_that_cannot_be_read_keeps_a_node_from_nothing_else(engine: Engine) {
    let database = Database::create(engine).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let (good, bad) = (
        installation.client("good").await,
        installation.client("bad").await,
    );
    let node = installation.start().await;
    node.token(&bad).await;

    // Read as one of a few clients.
    corrupt(&database, &bad).await;
    let later = installation.client("later").await;
    node.token(&later).await;
    assert_eq!(node.ask(&bad).await.status(), StatusCode::UNAUTHORIZED);

    // Read with everything, as after a change of resources.
    let resource = ["--resource", "https://other.example", "--name", "Other"];
    let arguments = [&["resources", "create"], &resource[..], &["--scope", "x"]];
    installation.run(&arguments.concat()).await.done();
    let last = installation.client("last").await;
    for client in [&good, &later, &last] {
        node.token(client).await;
    }
    assert_eq!(node.ready().await.1["database"], "up");
    assert_eq!(node.stop().await.code(), Some(0));

    // Read at a start.
    let node = installation.start().await;
    node.token(&good).await;
    assert_eq!(node.ask(&bad).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_client_that_cannot_be_read_keeps_a_node_from_nothing_else_on_sqlite() {
    a_client_that_cannot_be_read_keeps_a_node_from_nothing_else(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_client_that_cannot_be_read_keeps_a_node_from_nothing_else_on_postgres() {
    a_client_that_cannot_be_read_keeps_a_node_from_nothing_else(Engine::Postgres).await;
}
