//! The walk from one master key to the next, with two nodes under traffic and every wrong turn.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::turn;
use crate::support::{
    database::{Database, Engine},
    openmetrics,
    process::{Credentials, Installation, Node, http, is_valid, kid_of, pause, token_of, until},
};

const REPLACE_MAC_KEY: [&str; 4] = ["rotate", "--use", "refresh_mac", "--emergency"];

/// The id in the name of a master key's file.
pub(super) fn id_of(file: &Path) -> String {
    let name = file.file_name().unwrap().to_str().unwrap();
    let id = name.strip_prefix("master-").unwrap();
    id.strip_suffix(".key").unwrap().to_owned()
}

/// What an operator says about keys on one machine.
struct Operator<'a>(&'a Installation);

impl Operator<'_> {
    async fn does(&self, arguments: &[&str]) {
        let arguments = [&["keys"], arguments].concat();
        self.0.run(&arguments).await.done();
    }

    /// Is refused with a sentence that holds every one of `words`, and nothing changes.
    async fn is_refused(&self, arguments: &[&str], words: &[&str]) {
        let before = (
            self.0.json(&["keys", "masters"]).await,
            self.0.master_key_files(),
        );
        let arguments = [&["keys"], arguments].concat();
        let sentence = self.0.run(&arguments).await.refusal();
        for word in words {
            assert!(
                sentence.contains(word),
                "{sentence:?} does not say {word:?}"
            );
        }
        let after = (
            self.0.json(&["keys", "masters"]).await,
            self.0.master_key_files(),
        );
        assert_eq!(after, before);
    }
}

/// Clients of both nodes; every answer has to be a token.
pub(super) struct Traffic {
    tokens: Mutex<Vec<String>>,
    stop: CancellationToken,
}

impl Traffic {
    pub(super) fn begin(nodes: &[Node], credentials: &Credentials) -> (Arc<Self>, JoinSet<()>) {
        let traffic = Arc::new(Self {
            tokens: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        for node in nodes {
            let (traffic, credentials) = (Arc::clone(&traffic), credentials.clone());
            let url = node.url("/oauth2/token");
            tasks.spawn(async move {
                let http = http();
                while !traffic.stop.is_cancelled() {
                    let token = token_of(credentials.ask(&http, &url).await.unwrap()).await;
                    traffic.tokens.lock().unwrap().push(token);
                    pause(Duration::from_millis(20)).await;
                }
            });
        }
        (traffic, tasks)
    }

    pub(super) async fn end(&self, tasks: JoinSet<()>) -> Vec<String> {
        self.stop.cancel();
        tasks.join_all().await;
        std::mem::take(&mut self.tokens.lock().unwrap())
    }
}

async fn kids(node: &Node) -> Vec<String> {
    node.jwks().await.kids().map(str::to_owned).collect()
}

/// Makes a change of the keys of each use, upon which both nodes open all of them anew, with what
/// they have now. Returns what both publish then.
async fn both_open_every_key(operator: &Operator<'_>, nodes: &[Node; 2]) -> Vec<String> {
    let before = kids(&nodes[0]).await;
    operator.does(&["rotate", "--emergency"]).await;
    operator.does(&REPLACE_MAC_KEY).await;
    let at_last = until("both nodes to publish the same new keys", async || {
        let kids = [kids(&nodes[0]).await, kids(&nodes[1]).await];
        (kids[0] == kids[1] && kids[0] != before).then(|| kids[0].clone())
    })
    .await;

    for node in nodes {
        until("the node to know both revoked MAC keys", async || {
            let (_, metrics) = openmetrics::scrape(node.admin).await;
            let revoked = r#"countersign_keys{use="refresh_mac",state="revoked"}"#;
            (metrics.value(revoked) > 1.5).then_some(())
        })
        .await;
    }
    at_last
}

/// A start that has to fail for want of this master key, and to make none.
pub(super) async fn refuses_to_start(installation: &Installation, needed: &str) {
    let before = installation.master_key_files();
    let sentence = installation.run(&["serve"]).await.refusal();
    assert!(
        sentence.contains(&format!("needs master key {needed}")),
        "{sentence}"
    );
    assert_eq!(installation.master_key_files(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_key_is_replaced_under_traffic_and_in_no_wrong_order() {
    let _turn = turn().await;
    let database = Database::create(Engine::Postgres).await;
    let here = Installation::production(database.url())
        .await
        .with("sync.heartbeat_seconds", 1);
    here.register_resource().await;
    let credentials = here.client("load").await;
    let there = here.twin();
    let operator = Operator(&here);
    let nodes = [here.start().await, there.start().await];
    let (traffic, tasks) = Traffic::begin(&nodes, &credentials);
    let old: PathBuf = here.master_key_files().remove(0);
    let old_id = id_of(&old);

    // Add.
    let unknown = "0190a0b0-0000-7000-8000-000000000001";
    operator
        .is_refused(&["promote-master", unknown], &[unknown, "is not in keys"])
        .await;
    operator
        .is_refused(&["remove-master", &old_id], &["primary", "promote"])
        .await;
    operator.does(&["add-master"]).await;
    let new: PathBuf = here.master_key_files().remove(1);
    let new_id = id_of(&new);

    // Distribute.
    operator
        .is_refused(&["rewrap"], &[&new_id, "promote"])
        .await;
    // Until its next heartbeat not even the node on this machine is known to hold it.
    let [first_lacks_it, second_lacks_it] =
        [0, 1].map(|node| format!(":{} (seen ", nodes[node].process.id()));
    until("the first node's heartbeat", async || {
        let refused = here
            .run(&["keys", "promote-master", &new_id])
            .await
            .refusal();
        assert!(refused.contains(&second_lacks_it), "{refused}");
        (!refused.contains(&first_lacks_it)).then_some(())
    })
    .await;
    operator
        .is_refused(
            &["promote-master", &new_id],
            &[&second_lacks_it, "copy its file"],
        )
        .await;
    there.receive(&new);

    // Promote.
    until("the second node's heartbeat", async || {
        let outcome = here.run(&["keys", "promote-master", &new_id]).await;
        outcome.status.success().then_some(())
    })
    .await;
    operator
        .is_refused(&["remove-master", &old_id], &["4 keys", "rewrap"])
        .await;
    operator
        .is_refused(&["remove-master", &new_id], &["primary"])
        .await;
    // A new key is sealed under the new master key, whatever it is for, and both nodes take it.
    operator.does(&["rotate", "--emergency"]).await;
    operator.does(&REPLACE_MAC_KEY).await;
    operator
        .is_refused(&["remove-master", &old_id], &["4 keys", "rewrap"])
        .await;

    // Rewrap.
    operator.does(&["rewrap"]).await;
    let sealed: Vec<(i64,)> = database
        .rows("select count(distinct master_id) from sealed_key")
        .await;
    assert_eq!(sealed, [(1,)]);

    // Remove, on each machine.
    for machine in [&here, &there] {
        Operator(machine).does(&["remove-master", &old_id]).await;
        assert_eq!(machine.master_key_files().len(), 1);
    }
    operator
        .is_refused(&["remove-master", &old_id], &[&old_id])
        .await;
    let at_last = both_open_every_key(&operator, &nodes).await;

    let mut tokens = traffic.end(tasks).await;
    tokens.push(nodes[0].token(&credentials).await);
    let signers: BTreeSet<String> = tokens.iter().map(|token| kid_of(token)).collect();
    assert_eq!(
        signers.len(),
        3,
        "the first key and one after each emergency"
    );

    // Restart with the new master key only.
    let token = nodes[0].token(&credentials).await;
    for node in nodes {
        assert_eq!(node.stop().await.code(), Some(0));
    }
    for machine in [&here, &there] {
        let node = machine.start().await;
        assert_eq!(kids(&node).await, at_last);
        assert!(is_valid(&token, &node.jwks().await));
        assert!(is_valid(
            &node.token(&credentials).await,
            &node.jwks().await
        ));
    }
}

/// It must not pass for one that has stopped.
#[tokio::test]
async fn a_node_that_cannot_read_one_of_its_master_keys_still_counts_as_one_that_lacks_it() {
    let database = Database::create(Engine::Sqlite).await;
    let here = Installation::production(database.url())
        .await
        .with("sync.heartbeat_seconds", 1);
    let there = here.twin();
    let node = there.start().await;
    here.run(&["keys", "add-master"]).await.done();
    let new: PathBuf = here.master_key_files().remove(1);
    let promote = ["keys", "promote-master", &id_of(&new)];

    there.receive(&new);
    let copy = there.master_key_files().remove(1);
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
    until("a heartbeat that names no master key", async || {
        let rows: Vec<(String,)> = database.rows("select master_keys from node").await;
        (rows[0].0 == "[]").then_some(())
    })
    .await;
    let refused = here.run(&promote).await.refusal();
    let lacks_it = format!(":{} (seen ", node.process.id());
    assert!(refused.contains(&lacks_it), "{refused}");

    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    until("a heartbeat that names both", async || {
        let outcome = here.run(&promote).await;
        outcome.status.success().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_without_its_master_key_refuses_to_start() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let database = Database::create(engine).await;
        let installation = Installation::production(database.url()).await;
        assert_eq!(installation.start().await.stop().await.code(), Some(0));
        let needed = installation.master_key_files().remove(0);
        let id = id_of(&needed);

        // An empty folder, and one with another key.
        let elsewhere = Installation::without_master_key(database.url());
        refuses_to_start(&elsewhere, &id).await;
        elsewhere.run(&["keys", "add-master"]).await.done();
        refuses_to_start(&elsewhere, &id).await;
        // Once it is restored, all is well, whatever else is there.
        elsewhere.receive(&needed);
        elsewhere.start().await;
    }
}

#[tokio::test]
async fn a_development_start_draws_no_master_key_beside_a_database_that_needs_one() {
    let installation = Installation::development();
    let node = installation.start().await;
    assert_eq!(node.stop().await.code(), Some(0));
    let needed = installation.master_key_files().remove(0);
    fs::remove_file(&needed).unwrap();

    refuses_to_start(&installation, &id_of(&needed)).await;
    assert!(installation.master_key_files().is_empty());
}
