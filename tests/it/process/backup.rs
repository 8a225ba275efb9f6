//! Backup, restore and the drill for a leaked key, by the commands that docs/operations.md gives.

use std::{collections::BTreeSet, fs, path::PathBuf, slice};

use countersign::{
    domain::{change::Position, id::FamilyId, key::KeyUse},
    keys::{
        mac::{MacError, MacRing},
        master::MasterKeySource,
    },
    store::Access,
};
use reqwest::StatusCode;
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    master_key::{Traffic, id_of, refuses_to_start},
    turn,
};
use crate::support::{
    database::{self, Database, Engine},
    process::{Credentials, Installation, Node, expectation, kid_of, now, until},
};

const DOCUMENT: &str = include_str!("../../../docs/operations.md");

/// What stands before the commands of a procedure that is run here.
const MARK: &str = "<!-- tested: ";

/// The procedures that [`a_lost_database_is_restored`] runs.
const RUN: [&str; 10] = [
    "first start",
    "back up sqlite",
    "back up postgres",
    "back up keys",
    "restore sqlite",
    "restore postgres",
    "restore keys",
    "after restoring",
    "emergency",
    "emergency of refresh tokens",
];

/// The commands of a procedure.
fn procedure(name: &str) -> &'static str {
    assert!(RUN.contains(&name));
    let begins = format!("{MARK}{name} -->\n```sh\n");
    let (_, commands) = DOCUMENT.split_once(&begins).unwrap();
    commands.split_once("```").unwrap().0
}

#[test]
fn every_procedure_that_is_marked_as_tested_is_tested() {
    let marked = DOCUMENT.split(MARK).skip(1);
    let marked: BTreeSet<&str> = marked
        .map(|rest| rest.split_once(" -->").unwrap().0)
        .collect();
    assert_eq!(marked, RUN.into());
}

/// One machine, its database and the places of its backups.
struct Scene {
    here: Installation,
    /// None on `SQLite`, where the database is a file of the installation.
    database: Option<Database>,
    url: String,
    _backups: TempDir,
}

impl Scene {
    async fn new(engine: Engine) -> Self {
        let backups = tempfile::tempdir().unwrap();
        let here = Installation::without_master_key("")
            .with_variable("BACKUP", backups.path().join("database").display())
            .with_variable("KEYS_BACKUP", backups.path().join("keys").display());
        let (database, url) = match engine {
            Engine::Sqlite => {
                let file = here.path("data/countersign.db");
                (None, format!("sqlite://{}", file.display()))
            }
            Engine::Postgres => {
                let database = Database::empty(engine).await;
                let url = database.url().to_owned();
                (Some(database), url)
            }
        };
        Self {
            here: here
                .with("database.url", &url)
                .with_variable("DATABASE_URL", &url),
            database,
            url,
            _backups: backups,
        }
    }

    /// Does what the document says, all of which has to succeed.
    async fn follow(&self, name: &str) {
        self.here.run_script(procedure(name)).await.done();
    }

    async fn follow_on_engine(&self, name: &str) {
        let engine = if self.database.is_some() {
            "postgres"
        } else {
            "sqlite"
        };
        self.follow(&format!("{name} {engine}")).await;
    }

    async fn does(&self, arguments: &[&str]) {
        self.here.run(arguments).await.done();
    }

    /// The MAC keys in the database, opened with the master keys that are here.
    async fn mac_ring(&self) -> MacRing {
        let store = database::open(&self.url, Access::Command).await.unwrap();
        let schedule = store.key_schedule(KeyUse::RefreshMac).await.unwrap();
        store.close().await;
        let masters = MasterKeySource::Folder {
            path: self.here.path("keys"),
            group_may_read: false,
        };
        MacRing::open(&schedule, &masters.load().unwrap(), now()).unwrap()
    }

    /// Why a refresh token is refused, whatever has become of its family.
    async fn refusal_of(&self, token: &str) -> Option<MacError> {
        self.mac_ring().await.verify(token, now()).err()
    }

    async fn position(&self) -> Position {
        let store = database::open(&self.url, Access::Command).await.unwrap();
        let position = store.snapshot().await.unwrap().position;
        store.close().await;
        position
    }

    /// The disk is gone.
    async fn lose_everything(&self) {
        match &self.database {
            Some(database) => database.lose().await,
            None => fs::remove_dir_all(self.here.path("data")).unwrap(),
        }
        fs::remove_dir_all(self.here.path("keys")).unwrap();
        fs::create_dir_all(self.here.path("data")).unwrap();
    }
}

/// What happens between the backup and the loss of the database.
async fn change_much(
    scene: &Scene,
    node: &Node,
    kept: &Credentials,
    stopped: &Credentials,
) -> String {
    let token = node.token(kept).await;
    let keys = node.jwks().await;
    let seconds = u64::try_from(now().seconds()).unwrap();
    let claims = countersign_verifier::verify(&token, &keys, &expectation(), seconds).unwrap();
    let expires_at = claims.exp.to_string();
    scene
        .does(&["revoke", "--jti", &claims.jti, "--expires-at", &expires_at])
        .await;
    until("the token to be inactive", async || {
        (!node.is_active(kept, &token).await).then_some(())
    })
    .await;
    scene
        .does(&["clients", "update", &stopped.id, "--disable"])
        .await;
    let client = scene.here.json(&["clients", "show", &kept.id]).await;
    let first = client["secrets"][0]["id"].as_str().unwrap();
    scene.does(&["clients", "add-secret", &kept.id]).await;
    scene
        .does(&["clients", "remove-secret", &kept.id, first])
        .await;
    scene.does(&["keys", "rotate", "--emergency"]).await;
    until("the changes to arrive", async || {
        let kept = node.ask(kept).await.status();
        let stopped = node.ask(stopped).await.status();
        ([kept, stopped] == [StatusCode::UNAUTHORIZED; 2]).then_some(())
    })
    .await;
    token
}

async fn a_lost_database_is_restored(engine: Engine) {
    let _turn = turn().await;
    let scene = Scene::new(engine).await;
    let here = &scene.here;
    scene.follow("first start").await;
    scene.follow("back up keys").await;
    here.register_resource().await;
    let (load, kept, stopped) = (
        here.client("load").await,
        here.client("kept").await,
        here.client("stopped").await,
    );
    let node = here.start().await;
    // On Postgres there is a node on another machine, which nobody will think of stopping.
    let there = here.twin();
    let forgotten = match engine {
        Engine::Postgres => Some(there.start().await),
        Engine::Sqlite => None,
    };
    let before = node.token(&kept).await;
    let compromised = kid_of(&before);

    let family = FamilyId::from_uuid(Uuid::from_u128(7));
    let minted = scene.mac_ring().await;
    let minted = minted.active(now()).unwrap().mint(family, 0);
    let (traffic, tasks) = Traffic::begin(slice::from_ref(&node), &load);
    scene.follow_on_engine("back up").await;
    let revoked = change_much(&scene, &node, &kept, &stopped).await;
    let late = here.client("late").await;
    node.token(&late).await;
    assert!(!traffic.end(tasks).await.is_empty());
    let lost = scene.position().await;
    let master: PathBuf = here.master_key_files().remove(0);
    assert!(node.stop().await.success());
    scene.lose_everything().await;

    scene.follow_on_engine("restore").await;
    refuses_to_start(here, &id_of(&master)).await;
    scene.follow("restore keys").await;
    scene.follow("after restoring").await;
    assert_ne!(scene.position().await.epoch, lost.epoch);
    if let Some(forgotten) = &forgotten {
        until("the forgotten node to read the backup", async || {
            (forgotten.ask(&late).await.status() == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
    }

    // What was done after the backup is undone, and no token from before is active.
    let node = here.start().await;
    assert_eq!(node.ask(&late).await.status(), StatusCode::UNAUTHORIZED);
    for node in forgotten.iter().chain([&node]) {
        for client in [&kept, &stopped] {
            let token = node.token(client).await;
            assert_eq!(kid_of(&token), compromised);
            assert!(node.is_active(client, &token).await);
        }
        for token in [&before, &revoked] {
            assert!(!node.is_active(&kept, token).await);
        }
    }

    // Refresh tokens made before the backup still count.
    assert_eq!(scene.refusal_of(&minted).await, None);

    // The key that had been revoked signs again, so that the drill is due.
    let forged = node.token(&kept).await;
    scene.follow("emergency").await;
    for node in forgotten.iter().chain([&node]) {
        until("another key", async || {
            (kid_of(&node.token(&kept).await) != compromised).then_some(())
        })
        .await;
        assert!(!node.jwks().await.kids().any(|kid| kid == compromised));
        assert!(!node.is_active(&kept, &forged).await);
    }
    scene.follow("emergency of refresh tokens").await;
    assert_eq!(scene.refusal_of(&minted).await, Some(MacError::KeyGone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_sqlite_file_is_restored() {
    a_lost_database_is_restored(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_postgres_database_is_restored() {
    a_lost_database_is_restored(Engine::Postgres).await;
}
