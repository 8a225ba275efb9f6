//! SIGKILL at any point: what was acknowledged is there at the next start, what was not is there
//! as a whole or not at all.

use std::{collections::BTreeSet, fs, time::Duration};

use countersign_verifier::KeySet;
use reqwest::StatusCode;
use serde_json::Value;

use super::{Seeded, show, turn};
use crate::support::{
    database::{Database, Engine},
    process::{
        Credentials, Installation, Node, Process, Stopwatch, create_client, free_address, is_valid,
        kid_of, pause,
    },
};

/// How often each engine loses the processes that use it.
const KILLS: u32 = 16;

/// More commands than are let finish between two kills.
const FINISHED: u64 = 4;

/// How often a first start is killed.
const FIRST_STARTS: u32 = 10;

/// The latest moment of a kill, in milliseconds after the start of a node or a command.
const LATEST: u64 = 400;

/// A change that an operator makes.
#[derive(Debug)]
enum Work {
    CreateClient,
    /// Of the acknowledged client of this index.
    AddSecret(usize),
    RotateAtOnce,
}

/// What has been acknowledged, and what has been found since then.
#[derive(Default)]
struct Known {
    clients: Vec<Credentials>,
    rotations: usize,
    /// How many of `clients` were to get a second secret.
    asked_for_more: usize,
    second_secrets: Vec<Credentials>,
    client_ids: BTreeSet<String>,
    kids: BTreeSet<String>,
    tokens: Vec<String>,
    /// How many of `tokens` are no longer to be taken.
    of_revoked_keys: usize,
}

impl Known {
    fn next(&mut self, seeded: &mut Seeded) -> Work {
        match seeded.below(10) {
            0 | 1 => Work::RotateAtOnce,
            2 | 3 if self.asked_for_more < self.clients.len() => {
                self.asked_for_more += 1;
                Work::AddSecret(self.asked_for_more - 1)
            }
            _ => Work::CreateClient,
        }
    }

    fn begin(&self, work: &Work, installation: &Installation) -> Process {
        let arguments = match work {
            Work::CreateClient => create_client("killed").to_vec(),
            Work::AddSecret(index) => vec!["clients", "add-secret", &self.clients[*index].id],
            Work::RotateAtOnce => vec!["keys", "rotate", "--emergency"],
        };
        installation.spawn(&[&arguments[..], &["--json"]].concat())
    }

    /// Takes in a change that was acknowledged.
    fn acknowledge(&mut self, work: &Work, answer: &Value) {
        match work {
            Work::CreateClient => {
                let client = Credentials::of(answer);
                self.client_ids.insert(client.id.clone());
                self.clients.push(client);
            }
            Work::AddSecret(index) => self.second_secrets.push(Credentials {
                id: self.clients[*index].id.clone(),
                secret: answer["client_secret"].as_str().unwrap().to_owned(),
            }),
            Work::RotateAtOnce => {
                self.rotations += 1;
                self.kids = published(&answer["keys"]);
            }
        }
    }

    /// Checks what a node serves after `interrupted` was killed.
    async fn check(&mut self, node: &Node, installation: &Installation, interrupted: &Work) {
        let keys = node.jwks().await;
        self.check_keys(&keys, interrupted);
        self.check_clients(installation, interrupted).await;
        for client in self.clients.iter().chain(&self.second_secrets) {
            let token = node.token(client).await;
            assert!(is_valid(&token, &keys));
            self.tokens.push(token);
        }
        self.of_revoked_keys = 0;
        for token in &self.tokens {
            let is_published = self.kids.contains(&kid_of(token));
            assert_eq!(is_valid(token, &keys), is_published);
            self.of_revoked_keys += usize::from(!is_published);
        }
    }

    fn check_keys(&mut self, keys: &KeySet, interrupted: &Work) {
        let found: BTreeSet<String> = keys.kids().map(str::to_owned).collect();
        if found != self.kids && !self.kids.is_empty() {
            // The rotation had got through: one key has gone and one has come.
            assert!(matches!(interrupted, Work::RotateAtOnce), "{interrupted:?}");
            assert_eq!(self.kids.difference(&found).count(), 1);
            assert_eq!(found.difference(&self.kids).count(), 1);
        }
        assert_eq!(found.len(), 2, "the active and the next key");
        self.kids = found;
    }

    async fn check_clients(&mut self, installation: &Installation, interrupted: &Work) {
        let list = installation.json(&["clients", "list"]).await;
        let mut found = BTreeSet::new();
        for client in list["items"].as_array().unwrap() {
            // A client is registered together with its secret.
            assert!(
                !client["secrets"].as_array().unwrap().is_empty(),
                "{client}"
            );
            found.insert(client["client_id"].as_str().unwrap().to_owned());
        }
        assert!(found.is_superset(&self.client_ids), "a client is lost");
        let more = found.len() - self.client_ids.len();
        let allowed = usize::from(matches!(interrupted, Work::CreateClient));
        assert!(more <= allowed, "{more} more clients after {interrupted:?}");
        self.client_ids = found;
    }
}

/// The kids of those of `keys` that verifiers are to know.
fn published(keys: &Value) -> BTreeSet<String> {
    let keys = keys.as_array().unwrap().iter();
    let published = keys.filter(|key| key["state"] != "revoked" && key["state"] != "retired");
    published
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

/// Begins a change and kills whatever is at work when it is time. Returns what was interrupted.
async fn work_until_killed(
    installation: &Installation,
    node: Node,
    moment: Duration,
    known: &mut Known,
    seeded: &mut Seeded,
) -> Work {
    let begun = Stopwatch::start();
    let work = known.next(seeded);
    let mut command = known.begin(&work, installation);
    pause(moment.saturating_sub(begun.elapsed())).await;
    let status = command.kill();
    if status.success() {
        known.acknowledge(&work, &serde_json::from_str(&command.stdout()).unwrap());
    } else {
        assert_eq!(status.code(), None, "{work:?}: {}", command.stderr());
    }
    node.kill();
    work
}

fn moment(seeded: &mut Seeded) -> Duration {
    Duration::from_millis(seeded.below(LATEST))
}

async fn nothing_acknowledged_is_lost(engine: Engine) {
    let _turn = turn().await;
    let database = Database::create(engine).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let mut seeded = Seeded::new(engine as u64 + 1);
    let mut known = Known::default();
    let mut node = installation.start().await;
    let mut finished = 0;
    for kill in 0..KILLS {
        for _ in 0..seeded.below(FINISHED) {
            let work = known.next(&mut seeded);
            let mut command = known.begin(&work, &installation);
            let status = command.ended().await;
            assert!(status.success(), "{work:?}: {}", command.stderr());
            known.acknowledge(&work, &serde_json::from_str(&command.stdout()).unwrap());
            finished += 1;
        }
        // Every other time the node is hit while it starts.
        if kill % 2 == 1 {
            node.stop().await;
            node = installation.launch(free_address());
        }
        let moment = moment(&mut seeded);
        let work = work_until_killed(&installation, node, moment, &mut known, &mut seeded).await;
        node = installation.start().await;
        known.check(&node, &installation, &work).await;
    }
    let secrets = known.clients.len() + known.second_secrets.len();
    let acknowledged = secrets + known.rotations;
    // So many of each are certain: these commands were let finish.
    assert!(finished > 12 && acknowledged >= finished);
    assert!(known.of_revoked_keys > 0 && known.rotations > 0);
    show(&format!(
        "{engine:?}: {KILLS} kills; {acknowledged} changes were acknowledged, {finished} of which had been \
         waited for; {secrets} secrets work; {} clients; {} tokens, of which {} are of keys that were \
         revoked since\n",
        known.client_ids.len(),
        known.tokens.len(),
        known.of_revoked_keys,
    ));
    assert!(node.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kills_at_seeded_points_the_same_keys_and_clients_are_served_on_sqlite() {
    nothing_acknowledged_is_lost(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kills_at_seeded_points_the_same_keys_and_clients_are_served_on_postgres() {
    nothing_acknowledged_is_lost(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_is_killed_leaves_nothing_in_the_way_of_the_next() {
    let _turn = turn().await;
    let mut seeded = Seeded::new(7);
    for _ in 0..FIRST_STARTS {
        let installation = Installation::development();
        let node = installation.launch(free_address());
        pause(moment(&mut seeded)).await;
        node.kill();
        let node = installation.start().await;
        assert_eq!(node.jwks().await.kids().count(), 2);
        assert_eq!(installation.master_key_files().len(), 1);
        let secrets = fs::read(installation.path("data/development.json")).unwrap();
        let secrets: Value = serde_json::from_slice(&secrets).unwrap();
        let demo = Credentials {
            id: "demo".to_owned(),
            secret: secrets["demo"].as_str().unwrap().to_owned(),
        };
        assert_eq!(node.ask(&demo).await.status(), StatusCode::OK);
    }
}
