//! An upgrade, rehearsed: two binaries with different schemas side by side on one Postgres.
//!
//! The older one is the program itself. The newer one is this test binary, started as a process of
//! its own with one migration more than the program has.

use std::{slice, sync::Arc};

use countersign::{
    admin::{
        client::{ClientAdmin, ClientMetadata},
        operator::Authority,
    },
    app,
    clock::{AgreedClock, SystemClock},
    config::{Config, Sources},
    domain::{change::Cause, id::ClientId},
    entropy::Entropy,
    store::{Access, Schema, Store},
};
use reqwest::StatusCode;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{master_key::Traffic, turn};
use crate::support::{
    database::{self, Database, Engine},
    process::{AUDIENCE, Credentials, ISSUER, Installation, Node, http, is_valid, token_of, until},
};

/// The schema of the version after this one.
const NEXT: Schema = Schema {
    further: Some("alter table client add column label text not null default 'none'"),
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the newer node, which the test below starts as a process of its own"]
async fn the_node_of_the_next_version() {
    let environment: Vec<_> = std::env::vars().collect();
    assert!(
        environment
            .iter()
            .any(|(name, _)| name == "COUNTERSIGN__DATABASE__URL"),
        "only another test starts this, with settings of its own"
    );
    let config = Config::load(&Sources {
        environment: environment.into_iter().collect(),
        ..Sources::default()
    });
    app::serve(config.unwrap(), NEXT).await.unwrap();
}

/// Registers clients over the connections that it began with.
#[derive(Clone)]
struct Registrar(Arc<dyn Store>);

impl Registrar {
    async fn new(database: &Database, schema: Schema) -> Self {
        let store = database::open_with(database.url(), Access::Command, schema).await;
        Self(store.unwrap())
    }

    fn admin(&self) -> ClientAdmin {
        ClientAdmin {
            store: Arc::clone(&self.0),
            clock: AgreedClock::new(Arc::new(SystemClock::new())),
            entropy: Entropy::new(),
            issuer: ISSUER.to_owned(),
            rs256_id_tokens: false,
            token_retention: std::time::Duration::from_mins(90),
            authority: Authority::Everything,
        }
    }

    async fn rename(&self, id: &str) {
        let (id, name) = (
            ClientId::parse(id).unwrap(),
            json!({ "client_name": "Renamed" }),
        );
        let admin = self.admin();
        admin
            .update(&id, &name, None, &Cause::system())
            .await
            .unwrap();
    }

    async fn register(&self) -> Credentials {
        let metadata = ClientMetadata {
            client_name: "A client".to_owned(),
            scope: "read".to_owned(),
            resources: vec![AUDIENCE.to_owned()],
            default_resource: Some(AUDIENCE.to_owned()),
            ..ClientMetadata::default()
        };
        let admin = self.admin();
        let created = admin.create(None, &metadata, false, &Cause::system()).await;
        let (client, secret) = created.unwrap();
        Credentials {
            id: client.client_id.to_string(),
            secret: secret.unwrap().expose().to_owned(),
        }
    }
}

/// Registers a client through the admin interface of a node.
async fn register_at(node: &Node, operator: &Credentials) -> Credentials {
    let (http, resource) = (http(), format!("{ISSUER}/admin"));
    let asked = http
        .post(node.url("/oauth2/token"))
        .basic_auth(&operator.id, Some(&operator.secret))
        .form(&[
            ("grant_type", "client_credentials"),
            ("resource", &resource),
        ])
        .send();
    let token = token_of(asked.await.unwrap()).await;
    let document = json!({
        "client_name": "A client",
        "scope": "read",
        "resources": [AUDIENCE],
        "default_resource": AUDIENCE,
    });
    let answer = http
        .post(format!("http://{}/admin/v1/clients", node.admin))
        .bearer_auth(token)
        .json(&document)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    Credentials::of(&answer.json().await.unwrap())
}

/// Each client works at each node, and each token verifies with the keys of each.
async fn all_work_at_all(nodes: &[&Node], clients: &[Credentials]) {
    for issuing in nodes {
        for client in clients {
            let token = issuing.token(client).await;
            for verifying in nodes {
                assert!(is_valid(&token, &verifying.jwks().await));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_next_version_takes_over_without_a_refused_request() {
    let _turn = turn().await;
    let database = Database::create(Engine::Postgres).await;
    let here = Installation::production(database.url()).await;
    let there = here
        .twin()
        .running_test("process::upgrade::the_node_of_the_next_version");
    here.register_resource().await;
    let load = here.client("load").await;
    let create = ["clients", "create", "--operator", "--name", "ops"];
    let scope = ["--scope", "clients:read clients:write"];
    let operator = Credentials::of(&here.json(&[&create[..], &scope].concat()).await);
    let old = here.start().await;
    let (traffic_at_old, tasks_at_old) = Traffic::begin(slice::from_ref(&old), &load);
    let older = Registrar::new(&database, Schema::default()).await;
    let mut clients = vec![older.register().await];

    // The newer node migrates while the older one goes on, and while clients are registered.
    let migrated = CancellationToken::new();
    let writing = tokio::spawn({
        let (older, migrated) = (older.clone(), migrated.clone());
        async move {
            let mut written = Vec::new();
            while !migrated.is_cancelled() {
                written.push(older.register().await);
            }
            written
        }
    });
    let new = there.start().await;
    let (traffic_at_new, tasks_at_new) = Traffic::begin(slice::from_ref(&new), &load);
    migrated.cancel();
    clients.extend(writing.await.unwrap().into_iter().rev().take(3));
    let versions: Vec<(i64,)> = database
        .rows("select max(version) from _sqlx_migrations")
        .await;
    assert_eq!(versions, [(NEXT.version(),)]);

    // Both serve, and whatever happens through one is known to the other.
    let newer = Registrar::new(&database, NEXT).await;
    clients.extend([newer.register().await, older.register().await]);
    all_work_at_all(&[&old, &new], &clients).await;
    for (here, there) in [(&old, &new), (&new, &old)] {
        let token = here.token(&load).await;
        assert!(there.is_active(&load, &token).await);
        here.revoke(&load, &token).await;
        until("the token to be inactive at the other node", async || {
            (!there.is_active(&load, &token).await).then_some(())
        })
        .await;
    }
    for node in [&old, &new] {
        clients.push(register_at(node, &operator).await);
    }
    all_work_at_all(&[&old, &new], &clients).await;
    // What the newer one keeps of a client is still there when the older one has changed the client.
    let id = &clients[0].id;
    let label = format!("update client set label = 'new' where client_id = '{id}'");
    database.execute(&label).await;
    older.rename(id).await;
    let labels = "select label, client_name from client where label <> 'none'";
    let labels: Vec<(String, String)> = database.rows(labels).await;
    assert_eq!(labels, [("new".to_owned(), "Renamed".to_owned())]);
    newer.rename(id).await;

    // The older node ends; its binary does not come back.
    let tokens = traffic_at_old.end(tasks_at_old).await;
    assert!(old.stop().await.success());
    let sentence = here.run(&["serve"]).await.refusal();
    assert!(
        sentence.contains(&format!("newer schema (version {})", NEXT.version())),
        "{sentence}"
    );
    all_work_at_all(&[&new], &clients).await;
    let keys = new.jwks().await;
    assert!(!tokens.is_empty() && tokens.iter().all(|token| is_valid(token, &keys)));
    assert!(!traffic_at_new.end(tasks_at_new).await.is_empty());
    assert!(new.stop().await.success());
}
