//! Postgres stops: what goes on, what is said, and that everything recovers by itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use countersign::clock::Timestamp;
use reqwest::{StatusCode, header};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::turn;
use crate::support::{
    database::{Cluster, Durability},
    openmetrics,
    process::{
        Credentials, Installation, Node, PASSWORD, Stopwatch, http, is_valid, now, pause, until,
    },
};

/// Whether Postgres can say good-bye.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Orderly,
    Crash,
}

impl Stop {
    fn apply(self, cluster: &Cluster) {
        match self {
            Self::Orderly => cluster.stop(),
            Self::Crash => cluster.crash(),
        }
    }
}

/// A server of its own, with a password in its URL that nothing may show.
async fn install(cluster: &Cluster) -> (Installation, Credentials) {
    let url = cluster
        .url()
        .replace("postgres@", &format!("postgres:{PASSWORD}@"));
    assert!(url.contains(PASSWORD));
    let installation = Installation::production(&url).await;
    installation.register_resource().await;
    let credentials = installation.client("before").await;
    (installation, credentials)
}

/// Asks for everything that needs no database, without a pause in between, and counts the answers.
#[derive(Default)]
struct Watch {
    answers: Mutex<BTreeMap<(&'static str, u16), u32>>,
    stop: CancellationToken,
}

impl Watch {
    fn begin(node: &Node, credentials: &Credentials) -> (Arc<Self>, JoinSet<()>) {
        let watch = Arc::new(Self::default());
        let mut tasks = JoinSet::new();
        for path in [
            "/oauth2/token",
            "/.well-known/jwks.json",
            "/.well-known/openid-configuration",
            "/.well-known/oauth-authorization-server",
            "/health/live",
            "/health/ready",
        ] {
            let (watch, credentials, url) =
                (Arc::clone(&watch), credentials.clone(), node.url(path));
            tasks.spawn(async move {
                let http = http();
                while !watch.stop.is_cancelled() {
                    let answer = match path {
                        "/oauth2/token" => credentials.ask(&http, &url).await,
                        _ => http.get(&url).send().await,
                    };
                    let status = answer.map_or(0, |answer| answer.status().as_u16());
                    *watch
                        .answers
                        .lock()
                        .unwrap()
                        .entry((path, status))
                        .or_default() += 1;
                    pause(Duration::from_millis(20)).await;
                }
            });
        }
        (watch, tasks)
    }

    /// Fails the test unless every single answer was a good one.
    async fn end(&self, tasks: JoinSet<()>) {
        self.stop.cancel();
        tasks.join_all().await;
        let answers = self.answers.lock().unwrap();
        assert_eq!(answers.len(), 6, "not all were 200: {answers:?}");
        let all_are_good = answers
            .iter()
            .all(|((_, status), count)| *status == 200 && *count > 10);
        assert!(all_are_good, "{answers:?}");
    }
}

async fn reaches(node: &Node, status: StatusCode, database: &str) {
    let what = format!("{status} with a database that is {database}");
    until(&what, async || {
        let (found, document) = node.ready().await;
        (found == status && document["database"] == database).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_postgres_stopped_everything_but_changes_goes_on_and_recovers_by_itself() {
    let _turn = turn().await;
    let cluster = Cluster::start(Durability::Durable);
    let (installation, before) = install(&cluster).await;
    let node = installation.start().await;
    let (watch, tasks) = Watch::begin(&node, &before);

    for stop in [Stop::Orderly, Stop::Crash] {
        let token = node.token(&before).await;
        let (text, calm) = openmetrics::scrape(node.admin).await;
        assert!(text.contains("countersign_database_up 1\n"), "{text}");
        stop.apply(&cluster);
        reaches(&node, StatusCode::OK, "down").await;
        // Beyond what a connection that is still open could cover up.
        pause(Duration::from_secs(2)).await;
        let during = node.token(&before).await;
        let keys = node.jwks().await;
        assert!(is_valid(&token, &keys) && is_valid(&during, &keys));

        let (text, metrics) = openmetrics::scrape(node.admin).await;
        assert!(
            metrics.value("countersign_sync_lag_seconds") > 1.0,
            "{text}"
        );
        assert!(text.contains("countersign_database_up 0\n"), "{text}");
        let failures = metrics.moved(&calm, "countersign_store_failures_total");
        let counted = failures
            .keys()
            .any(|series| series.contains("\"unavailable\""));
        assert!(counted, "{failures:?}");

        // What is wrong is refused all the same, and not for ever pondered.
        let begun = Stopwatch::start();
        let wrong = Credentials {
            secret: "wrong".to_owned(),
            ..before.clone()
        };
        assert_eq!(node.ask(&wrong).await.status(), StatusCode::UNAUTHORIZED);
        assert!(begun.elapsed() < Duration::from_secs(10));

        for command in [
            &["keys", "list"][..],
            &["keys", "rotate"],
            &["clients", "list"],
        ] {
            let sentence = installation.run(command).await.refusal();
            assert!(sentence.contains("database.url"), "{sentence}");
            assert!(sentence.contains("cannot be reached"), "{sentence}");
        }
        // The running service answers its own probe.
        let url = node.url("/health/ready");
        let health = until("an answer to the probe in time", async || {
            let probe = ["health", "--url", &url, "--json"];
            let outcome = installation.run(&probe).await;
            outcome.status.success().then(|| outcome.json())
        })
        .await;
        assert_eq!(health["database"], "down");
        let url = format!("http://{}/health/ready", node.admin);
        assert_eq!(
            http().get(url).send().await.unwrap().status(),
            StatusCode::OK
        );

        cluster.start_again();
        reaches(&node, StatusCode::OK, "up").await;
        let after = installation.client(&format!("after {stop:?}")).await;
        assert!(is_valid(&node.token(&after).await, &node.jwks().await));
        assert!(is_valid(&during, &node.jwks().await));
    }
    watch.end(tasks).await;
    assert!(!node.process.stderr().contains(PASSWORD));
}

/// Asks for tokens until there are none any more: when the last was given, and the first refused.
async fn until_refused(url: String, credentials: Credentials) -> [Timestamp; 2] {
    let http = http();
    let (mut last, mut refusals) = (now(), Vec::new());
    while refusals.len() < 20 {
        let answer = credentials.ask(&http, &url).await.unwrap();
        match answer.status() {
            StatusCode::OK if refusals.is_empty() => last = now(),
            StatusCode::SERVICE_UNAVAILABLE => refusals.push(now()),
            other => panic!("{other} after {} refusals", refusals.len()),
        }
        pause(Duration::from_millis(20)).await;
    }
    [last, refusals[0]]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_offline_limit_no_token_is_issued_until_postgres_is_back() {
    let _turn = turn().await;
    let limit = Duration::from_secs(6);
    let cluster = Cluster::start(Durability::Durable);
    let (installation, before) = install(&cluster).await;
    let installation = installation.with("sync.offline_issuance_limit_seconds", limit.as_secs());
    let node = installation.start().await;
    let keys = node.jwks().await;

    let asking = tokio::spawn(until_refused(node.url("/oauth2/token"), before.clone()));
    let stopping = now();
    cluster.crash();
    let stopped = now();
    reaches(&node, StatusCode::SERVICE_UNAVAILABLE, "down").await;
    let [last, refused] = asking.await.unwrap();
    let tolerance = Duration::from_millis(500);
    assert!(refused.since(stopping) + tolerance >= limit);
    // Unless the crash itself has taken as long as that.
    assert!(last > stopped || stopped.since(stopping) + tolerance >= limit);

    let refused = node.ask(&before).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let wait = refused.headers()[header::RETRY_AFTER].to_str().unwrap();
    assert!(wait.parse::<u32>().unwrap() > 0);
    assert_eq!(refused.headers()[header::CACHE_CONTROL], "no-store");
    let document: Value = refused.json().await.unwrap();
    assert_eq!(document["error"], "temporarily_unavailable");
    // Keys stay published, but nobody is to rely on them for long.
    let jwks = node.get("/.well-known/jwks.json").await;
    assert_eq!(jwks.status(), StatusCode::OK);
    assert_eq!(jwks.headers()[header::CACHE_CONTROL], "public, max-age=10");
    let body = jwks.bytes().await.unwrap();
    let published = countersign_verifier::KeySet::parse(&body).unwrap();
    assert!(published.kids().eq(keys.kids()));
    assert_eq!(
        node.ready().await,
        (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"status": "unavailable", "database": "down", "keys": "ok"})
        )
    );
    assert_eq!(node.get("/health/live").await.status(), StatusCode::OK);
    assert_eq!(
        node.get("/.well-known/oauth-authorization-server")
            .await
            .status(),
        StatusCode::OK
    );

    cluster.start_again();
    reaches(&node, StatusCode::OK, "up").await;
    let after = installation.client("after").await;
    for credentials in [&before, &after] {
        assert!(is_valid(&node.token(credentials).await, &keys));
    }
    let jwks = node.get("/.well-known/jwks.json").await;
    let cache = &jwks.headers()[header::CACHE_CONTROL];
    assert_eq!(cache, "public, max-age=300, stale-if-error=300");
}
