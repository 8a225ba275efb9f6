//! Connections to Postgres that stay open and never answer again, as behind a network that drops
//! packets: nobody says that they are lost. And a node that halts with all that it holds.

use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

use super::turn;
use crate::support::{
    database::{Database, Engine},
    people::App,
    process::{
        Credentials, Installation, Node, Stopwatch, free_address, http, is_valid, pause, until,
    },
    proxy::Proxy,
    sign_in::refresh,
};

/// How long a node may take to follow the database again.
const RECOVERY: Duration = Duration::from_secs(20);

/// How long an answer from memory may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a node may take to end.
const END: Duration = Duration::from_secs(15);

/// A node behind a proxy, and a machine with a way of its own to the same database.
struct Scene {
    proxy: Proxy,
    direct: Installation,
    node: Node,
    before: Credentials,
    _behind: Installation,
    _database: Database,
}

impl Scene {
    async fn set() -> Self {
        Self::with_poll_interval(Duration::from_millis(250)).await
    }

    async fn with_poll_interval(interval: Duration) -> Self {
        let database = Database::create(Engine::Postgres).await;
        let direct = Installation::production(database.url())
            .await
            .with("sync.poll_interval_ms", interval.as_millis());
        direct.register_resource().await;
        let before = direct.client("before").await;
        let proxy = Proxy::start(database.url());
        let behind = direct.twin().with("database.url", proxy.url());
        let node = behind.start().await;
        Self {
            proxy,
            direct,
            node,
            before,
            _behind: behind,
            _database: database,
        }
    }

    /// What needs no database is answered at once.
    async fn goes_on(&self) {
        let asked = Stopwatch::start();
        let token = self.node.token(&self.before).await;
        assert!(is_valid(&token, &self.node.jwks().await));
        assert!(asked.elapsed() < ANSWER, "{:?}", asked.elapsed());
    }

    /// Whether the node has heard from the database at last.
    async fn database(&self) -> String {
        let (_, document) = self.node.ready().await;
        document["database"].as_str().unwrap().to_owned()
    }

    /// The node ends in time and in order.
    async fn ends(mut self) {
        let asked = Stopwatch::start();
        let node = &mut self.node;
        node.process.terminate();
        let status = node.process.ended().await;
        assert_eq!(status.code(), Some(0), "{}", node.process.stderr());
        assert!(asked.elapsed() < END, "{:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_and_recovers_each_time_its_connections_freeze() {
    let _turn = turn().await;
    let scene = Scene::set().await;
    // More often than a pool could lose what it does not get back.
    for round in 0..4 {
        scene.proxy.freeze();
        let frozen = Stopwatch::start();
        let after = scene.direct.client(&format!("after {round}")).await;
        until("the node to follow the database again", async || {
            scene.goes_on().await;
            let answer = scene.node.ask(&after).await;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
        until("the database to be reported as up", async || {
            (scene.database().await == "up").then_some(())
        })
        .await;
        assert!(frozen.elapsed() < RECOVERY, "{:?}", frozen.elapsed());
    }
    scene.ends().await;
}

/// The connection on which it hears of them has frozen, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_hears_of_changes_again_after_its_connections_froze() {
    let _turn = turn().await;
    // Whatever comes much sooner after a look has been heard of.
    let poll = Duration::from_secs(10);
    let scene = Scene::with_poll_interval(poll).await;
    let hears_of_a_change = async || {
        let before = scene.node.jwks().await;
        let rotate = ["keys", "rotate", "--emergency"];
        scene.direct.run(&rotate).await.done();
        let changed = Stopwatch::start();
        until("the node to hear of a change", async || {
            let now = scene.node.jwks().await;
            (!now.kids().eq(before.kids())).then_some(())
        })
        .await;
        assert!(changed.elapsed() < poll / 2, "{:?}", changed.elapsed());
    };
    hears_of_a_change().await;
    // By then a connection is asked whether it still lives before it is used.
    pause(Duration::from_millis(1500)).await;
    scene.proxy.freeze();
    let after = scene.direct.client("after").await;
    until("the node to follow the database again", async || {
        let answer = scene.node.ask(&after).await;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    hears_of_a_change().await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_in_order_right_after_its_connections_froze() {
    let _turn = turn().await;
    let scene = Scene::set().await;
    scene.proxy.freeze();
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_database_never_answers_again_issues_tokens_until_its_end() {
    let _turn = turn().await;
    let scene = Scene::set().await;
    scene.proxy.freeze_for_good();
    until("the database to be reported as down", async || {
        scene.goes_on().await;
        (scene.database().await == "down").then_some(())
    })
    .await;
    // Also with new connections that do not answer either.
    let frozen = Stopwatch::start();
    until("the node to have tried again", async || {
        scene.goes_on().await;
        (frozen.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .await;
    assert_eq!(scene.database().await, "down");
    scene.ends().await;
}

/// Lets every refresh wait before its commit for whoever holds this lock.
const BARRIER: &str = "create function wait() returns trigger language plpgsql as \
     $$ begin perform pg_advisory_xact_lock_shared(1); return new; end $$; \
     create trigger wait before update on family for each row execute function wait()";

/// How long a refresh may take that cannot be done now, or is done beside one that cannot.
const REFUSAL: Duration = Duration::from_millis(5500);

/// For how long a node that has halted keeps what it holds.
const HOLD: Duration = Duration::from_secs(12);

/// What a node answers to a refresh token: the next one, or a status.
async fn refreshed(
    http: &Client,
    node: &Node,
    client_id: &str,
    token: &str,
) -> Result<String, StatusCode> {
    let form = [&refresh(token)[..], &[("client_id", client_id)]].concat();
    let request = http.post(node.url("/oauth2/token")).form(&form);
    let answer = request.send().await.unwrap();
    if answer.status() != StatusCode::OK {
        return Err(answer.status());
    }
    let document: Value = answer.json().await.unwrap();
    Ok(document["refresh_token"].as_str().unwrap().to_owned())
}

/// How many connections to the database are so.
async fn connections(database: &Database, condition: &'static str) -> i64 {
    database.rows::<(i64,)>(condition).await[0].0
}

/// Under the strict policy, so that a token that was spent by halves would end its family.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_holds_that_halts_in_the_middle_of_a_refresh_is_free_again_soon() {
    let _turn = turn().await;
    let database = Database::create(Engine::Postgres).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let client_id = installation.first_party_client("strict").await;
    let app = App::new(database.url(), &client_id).await;
    let nodes = [
        installation.start_at(free_address()).await,
        installation.twin().start_at(free_address()).await,
    ];
    let http = http();
    let held = app.sign_in(&http, nodes[0].public).await;
    let mut other = app.sign_in(&http, nodes[0].public).await;
    database.execute(BARRIER).await;
    let mut barrier = PgConnection::connect(database.url()).await.unwrap();
    let sql = sqlx::raw_sql("select pg_advisory_lock(1)");
    sql.execute(&mut barrier).await.unwrap();

    let halted = refreshed(&http, &nodes[0], &client_id, &held);
    let meanwhile = async {
        until("a refresh at the barrier", async || {
            let waiting = "select count(*) from pg_stat_activity where wait_event = 'advisory' \
                 and datname = current_database()";
            (connections(&database, waiting).await == 1).then_some(())
        })
        .await;
        nodes[0].process.freeze();
        barrier.close().await.unwrap();
        let since = Stopwatch::start();
        until("an open transaction", async || {
            let open = "select count(*) from pg_stat_activity where state = 'idle in transaction' \
                 and application_name = 'countersign' and datname = current_database()";
            (connections(&database, open).await == 1).then_some(())
        })
        .await;

        // The one is told to come back; another session goes on meanwhile, after it in the same line.
        let (told, next) = tokio::join!(
            refreshed(&http, &nodes[1], &client_id, &held),
            refreshed(&http, &nodes[1], &client_id, &other),
        );
        assert_eq!(told, Err(StatusCode::SERVICE_UNAVAILABLE));
        other = next.unwrap();
        assert!(since.elapsed() < REFUSAL, "{:?}", since.elapsed());
        let next = until("the row to be free", async || {
            let told = refreshed(&http, &nodes[1], &client_id, &held).await;
            if told != Err(StatusCode::SERVICE_UNAVAILABLE) {
                return Some(told.unwrap());
            }
            other = refreshed(&http, &nodes[1], &client_id, &other)
                .await
                .unwrap();
            None
        })
        .await;
        let freed = since.elapsed();
        nodes[0].process.thaw();
        (next, freed)
    };
    let (told, (next, freed)) = tokio::join!(halted, meanwhile);
    // Whoever asked the node that halted learns that nothing came of it, and that node goes on.
    assert_eq!(told, Err(StatusCode::SERVICE_UNAVAILABLE));
    assert!(freed < HOLD, "{freed:?}");
    let last = until("the node to go on", async || {
        let told = refreshed(&http, &nodes[0], &client_id, &next).await;
        (told != Err(StatusCode::SERVICE_UNAVAILABLE)).then_some(told)
    })
    .await;
    for token in [last.unwrap(), other] {
        refreshed(&http, &nodes[1], &client_id, &token)
            .await
            .unwrap();
    }
}
