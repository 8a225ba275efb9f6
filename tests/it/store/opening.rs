//! Opening, reopening and closing; what is found there.

use std::time::Duration;

use countersign::{
    clock::{Clock as _, SystemClock},
    domain::{
        change::{Change, Position},
        id::{MasterKeyId, NodeId},
        node::{Environment, Node},
    },
    store::{Access, OpenError, Schema, Store, StoreError},
};
use tokio::task::JoinSet;
use url::Url;
use uuid::Uuid;

use super::sample::{
    NOW, apply, client, create, created, full_client, key, put, resource, schedule, traces,
};
use crate::support::{
    database::{self, Database, Engine},
    soon,
};

/// Puts in one of everything.
async fn fill(store: &dyn Store) {
    for change in [
        create(full_client("a")),
        Change::CreateResource(resource(1)),
        put(schedule(0, vec![key("k", 0)])),
    ] {
        apply(store, change).await.unwrap();
    }
}

pub(super) async fn a_reopened_store_holds_everything(database: &Database) {
    let store = database.open().await;
    fill(&*store).await;
    let before = (store.snapshot().await.unwrap(), traces(database).await);
    store.close().await;
    let store = database.open().await;
    let after = (store.snapshot().await.unwrap(), traces(database).await);
    assert_eq!(after.0.position, before.0.position);
    assert_eq!(after.0.clients, before.0.clients);
    assert_eq!(after.0.resources, before.0.resources);
    assert_eq!(after.0.schedule, before.0.schedule);
    assert_eq!(after.1, before.1);
}

pub(super) async fn a_new_database_can_be_opened_by_eight_at_once(migrated: &Database) {
    let database = Database::empty(migrated.engine()).await;
    let mut nodes = JoinSet::new();
    for _ in 0..8 {
        let url = database.url().to_owned();
        nodes.spawn(async move {
            let store = database::open(&url, Access::Command).await.unwrap();
            store.snapshot().await.unwrap().position
        });
    }
    let positions = soon(nodes.join_all()).await;
    assert!(positions.iter().all(|position| *position == positions[0]));
    created(&*database.open().await, full_client("a")).await;
}

/// The schema of the version after this one.
const NEXT: Schema = Schema {
    further: Some("alter table client add column label text not null default ''"),
};

const EVERY_ACCESS: [Access; 4] = [
    Access::Command,
    Access::Look,
    Access::Migrate,
    Access::Serve,
];

async fn versions(database: &Database) -> Vec<i64> {
    let versions = "select version from _sqlx_migrations order by version";
    let versions: Vec<(i64,)> = database.rows(versions).await;
    versions.into_iter().map(|(version,)| version).collect()
}

pub(super) async fn a_newer_schema_is_refused(database: &Database) {
    let newer = database::open_with(database.url(), Access::Migrate, NEXT).await;
    newer.unwrap().close().await;
    for access in EVERY_ACCESS {
        let refused = database.try_open(access).await.err();
        assert!(
            matches!(refused, Some(OpenError::NewerSchema(version)) if version == NEXT.version()),
            "{access:?}: {refused:?}"
        );
    }
}

pub(super) async fn an_older_schema_is_brought_up_to_date_by_migrating_and_serving_only(
    migrated: &Database,
) {
    let older = Schema::default().version();
    for access in EVERY_ACCESS {
        let database = Database::create(migrated.engine()).await;
        created(&*database.open().await, full_client("a")).await;
        let opened = database::open_with(database.url(), access, NEXT).await;
        let after = versions(&database).await;
        match access {
            Access::Command | Access::Look => {
                let refused = opened.err();
                assert!(
                    matches!(refused, Some(OpenError::OlderSchema { found, needed })
                        if (found, needed) == (older, NEXT.version())),
                    "{access:?}: {refused:?}"
                );
                assert_eq!(after.last(), Some(&older));
            }
            Access::Migrate | Access::Serve => {
                assert_eq!(opened.unwrap().clients().await.unwrap().len(), 1);
                assert_eq!(after.last(), Some(&NEXT.version()));
            }
        }
    }
}

pub(super) async fn whoever_only_looks_makes_no_schema(migrated: &Database) {
    let database = Database::empty(migrated.engine()).await;
    let refused = database.try_open(Access::Look).await.err();
    assert!(matches!(refused, Some(OpenError::NoSchema)), "{refused:?}");
    database.open().await.close().await;
    database.try_open(Access::Look).await.unwrap();
}

pub(super) async fn a_migration_that_was_altered_is_refused(database: &Database) {
    database.open().await.close().await;
    database
        .execute("update _sqlx_migrations set checksum = substr(checksum, 2) where version = 1")
        .await;
    for access in EVERY_ACCESS {
        let refused = database.try_open(access).await.err();
        assert!(
            matches!(refused, Some(OpenError::Migration(_))),
            "{access:?}: {refused:?}"
        );
    }
}

pub(super) async fn a_value_that_cannot_be_is_named(database: &Database) {
    async fn read_everything(store: &dyn Store) -> Result<(), StoreError> {
        store.clients().await?;
        store.resources().await?;
        let snapshot = store.snapshot().await?;
        let start = Position {
            seq: 0,
            ..snapshot.position
        };
        store.changes_since(start, 10, NOW).await?;
        store.nodes(NOW).await?;
        Ok(())
    }

    let store = database.open().await;
    let node = Node {
        id: NodeId::from_uuid(Uuid::from_u128(1)),
        name: "node".to_owned(),
        master_keys: vec![MasterKeyId::from_uuid(Uuid::from_u128(2))],
        seen_at: NOW,
    };
    store.heartbeat(&node).await.unwrap();
    fill(&*store).await;

    let sound_kid = format!("'{:_<43}'", "k");
    for (table, column, impossible, sound) in [
        ("client", "auth_method", "'x'", "'none'"),
        ("client", "grant_types", "'[\"x\"]'", "'[]'"),
        ("client", "scope", "'a  b'", "''"),
        ("client", "resources", "'no list'", "'[]'"),
        ("client", "default_resource", "'x'", "null"),
        ("client", "redirect_uris", "'[\"x\"]'", "'[]'"),
        ("client", "post_logout_redirect_uris", "'x'", "'[]'"),
        ("client", "allowed_origins", "'[1]'", "'[]'"),
        ("client", "access_token_ttl_seconds", "-1", "null"),
        ("resource", "resource", "'x'", "'urn:x'"),
        ("resource", "scopes", "'a  b'", "''"),
        ("resource", "introspection_clients", "'[\"a b\"]'", "'[]'"),
        ("resource", "scope_descriptions", "'[]'", "'{}'"),
        ("sealed_key", "kid", "'short'", &sound_kid),
        ("sealed_key", "algorithm", "'x'", "'ES256'"),
        ("sealed_key", "version", "-1", "null"),
        ("sealed_key", "version", "4294967296", "null"),
        ("node", "master_keys", "'[\"x\"]'", "'[]'"),
        ("client_secret", "hash", "substr(hash, 1, 31)", "hash"),
    ] {
        read_everything(&*store).await.unwrap();
        let set = |value| format!("update {table} set {column} = {value}");
        database.execute(&set(impossible)).await;
        match read_everything(&*store).await {
            Err(StoreError::Corrupt {
                table: in_table,
                column: in_column,
                id,
            }) => {
                assert_eq!((in_table, in_column), (table, column));
                assert_ne!(id, "?");
            }
            other => panic!("{table}.{column} was read as {other:?}"),
        }
        database.execute(&set(sound)).await;
    }
}

pub(super) async fn what_cannot_be_read_is_left_out_of_a_snapshot(database: &Database) {
    let store = database.open().await;
    created(&*store, full_client("sound")).await;
    created(&*store, client("odd")).await;
    for sql in [
        "update client set grant_types = '[\"grant of a later version\"]' where client_id = 'odd'",
        "insert into resource (id, resource, name, scopes, introspection_clients, demo) \
         select id, 'no resource', '', '', '[]', 0 from client_secret limit 1",
        "insert into change (seq, topic, target, at) values (99, 'topic of a later version', 'x', 1)",
    ] {
        database.execute(sql).await;
    }
    let snapshot = store.snapshot().await.unwrap();
    let ids: Vec<_> = snapshot
        .clients
        .iter()
        .map(|client| client.client_id.as_str())
        .collect();
    assert_eq!(ids, ["sound"]);
    assert_eq!(snapshot.resources, []);
    let changes = store
        .changes_since(snapshot.position, 9, NOW)
        .await
        .unwrap();
    assert_eq!(changes.rows[0].topic, None);
}

pub(super) async fn a_database_once_for_production_stays_so(database: &Database) {
    let store = database.open().await;
    for (entered, stored) in [
        (Environment::Development, Environment::Development),
        (Environment::Production, Environment::Production),
        (Environment::Development, Environment::Production),
    ] {
        assert_eq!(store.enter(entered).await.unwrap(), stored);
    }
}

pub(super) async fn what_the_database_refuses_is_no_outage(database: &Database) {
    let store = database.open().await;
    database.execute("drop table node").await;
    let refused = store.nodes(NOW).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
}

pub(super) async fn a_store_goes_on_with_new_connections(database: &Database) {
    let store = database.open().await;
    created(&*store, client("a")).await;
    store.reconnect();
    created(&*store, client("b")).await;
    assert_eq!(store.clients().await.unwrap().len(), 2);
    store.close().await;
}

pub(super) async fn the_time_is_that_of_the_database(database: &Database) {
    let store = database.open().await;
    let clock = SystemClock::new();
    let before = clock.now();
    let time = store.database_time().await.unwrap();
    let after = clock.now();
    assert!(time.since(after) < Duration::from_secs(2), "{time:?}");
    assert!(before.since(time) < Duration::from_secs(2), "{time:?}");
}

pub(super) async fn a_store_closes_also_when_nobody_waits_for_changes_any_more(
    database: &Database,
) {
    let store = database.open().await;
    created(&*store, full_client("a")).await;
    soon(store.changed()).await;
    soon(store.close()).await;

    let store = database.open().await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                store.changed().await;
            }
        }
    });
    created(&*store, client("b")).await;
    soon(store.close()).await;
    assert!(store.snapshot().await.is_err());
    waiting.abort();
}

/// An `SQLite` file has no server that orders what two processes do.
#[tokio::test]
async fn one_sqlite_file_takes_one_server_and_commands_beside_it() {
    let database = Database::empty(Engine::Sqlite).await;
    let server = database.try_open(Access::Serve).await.unwrap();
    let second = database.try_open(Access::Serve).await.err();
    assert!(matches!(second, Some(OpenError::InUse(_))), "{second:?}");

    let command = database.open().await;
    let written = created(&*command, full_client("a")).await;
    assert_eq!(server.clients().await.unwrap(), [written]);
    command.close().await;
    drop(command);
    let second = database.try_open(Access::Serve).await.err();
    assert!(matches!(second, Some(OpenError::InUse(_))), "{second:?}");

    server.close().await;
    drop(server);
    database.try_open(Access::Serve).await.unwrap();
}

/// Whoever serves need not be whoever owns the tables.
#[tokio::test]
async fn an_up_to_date_database_needs_no_right_to_define_tables() {
    let database = Database::create(Engine::Postgres).await;
    let mut url = Url::parse(database.url()).unwrap();
    let role = format!("{}_server", url.path().trim_start_matches('/'));
    let grants = format!(
        "create role {role} login; revoke create on schema public from public; \
         grant select, insert, update, delete on all tables in schema public to {role}"
    );
    database.execute(&grants).await;
    url.set_username(&role).unwrap();

    let store = database::open(url.as_str(), Access::Serve).await.unwrap();
    created(&*store, full_client("a")).await;
    store.close().await;
    let newer = database::open_with(url.as_str(), Access::Serve, NEXT)
        .await
        .err();
    assert!(matches!(newer, Some(OpenError::Migration(_))), "{newer:?}");
    database.try_open(Access::Look).await.unwrap().close().await;
}

#[tokio::test]
async fn a_url_of_no_known_engine_is_refused() {
    for url in [
        "",
        "mysql://a/b",
        "/tmp/x.db",
        "sqlite:",
        "sqlite::memory:",
        "sqlite://x?mode=memory",
    ] {
        let refused = database::open(url, Access::Command).await.err();
        assert!(
            matches!(refused, Some(OpenError::Url(_))),
            "{url}: {refused:?}"
        );
    }
}
