//! A token revoked through one node is inactive at the other.

use std::{fmt::Write as _, time::Duration};

use reqwest::Client;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{show, turn};
use crate::support::{
    database::{Database, Engine},
    process::{Credentials, Installation, Node, Stopwatch, http, token_of},
};

/// How many tokens are revoked.
const TOKENS: usize = 200;

/// How long a node may go on calling a revoked token active: the poll interval and 250 ms.
const LONGEST: Duration = Duration::from_millis(250 + 250);

/// How many tokens in succession must take longer: a machine that stands still holds up one.
const TRIES: usize = 3;

/// How many connections load the nodes meanwhile.
const LOAD: usize = 8;

async fn post(http: &Client, url: &str, by: &Credentials, token: &str) -> (u16, String) {
    let request = http.post(url).basic_auth(&by.id, Some(&by.secret));
    let answer = request.form(&[("token", token)]).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn is_active(http: &Client, node: &Node, by: &Credentials, token: &str) -> bool {
    let url = node.url("/oauth2/introspect");
    let (status, body) = post(http, &url, by, token).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["active"] == true
}

/// Revokes a token through one node; tells for how long the other went on calling it active: until
/// when, after the revocation had been answered, it was last asked in vain.
async fn revoke(http: &Client, at: &Node, other: &Node, by: &Credentials) -> Duration {
    let token = token_of(by.ask(http, &other.url("/oauth2/token")).await.unwrap()).await;
    assert!(is_active(http, other, by, &token).await);
    let (status, body) = post(http, &at.url("/oauth2/revoke"), by, &token).await;
    assert_eq!(status, 200, "{body}");
    let answered = Stopwatch::start();
    let mut last_active = Duration::ZERO;
    loop {
        let asked = answered.elapsed();
        if !is_active(http, other, by, &token).await {
            return last_active;
        }
        last_active = asked;
        assert!(asked < LONGEST * 10, "a revoked token stays active");
    }
}

/// Asks both nodes for tokens and about them until told to stop; returns how often.
fn load(nodes: &[Node], by: &Credentials, stop: &CancellationToken) -> JoinSet<usize> {
    let mut tasks = JoinSet::new();
    for number in 0..LOAD {
        let node = &nodes[number % nodes.len()];
        let urls = [node.url("/oauth2/token"), node.url("/oauth2/introspect")];
        let (by, stop, http) = (by.clone(), stop.clone(), http());
        tasks.spawn(async move {
            let mut count = 0;
            while !stop.is_cancelled() {
                let token = token_of(by.ask(&http, &urls[0]).await.unwrap()).await;
                let (status, body) = post(&http, &urls[1], &by, &token).await;
                assert!(status == 200 && body.contains("\"active\":true"), "{body}");
                count += 1;
            }
            count
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_revoked_through_one_node_is_inactive_at_the_other_in_time() {
    let _turn = turn().await;
    let database = Database::create(Engine::Postgres).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let by = installation.client("revoker").await;
    let nodes = [
        installation.start().await,
        installation.twin().start().await,
    ];
    let stop = CancellationToken::new();
    let tasks = load(&nodes, &by, &stop);
    let begun = Stopwatch::start();
    let http = http();
    let (mut spans, mut revoked) = (Vec::new(), 0);
    for number in 0..TOKENS {
        let (at, other) = (&nodes[number % 2], &nodes[(number + 1) % 2]);
        let mut span = Duration::MAX;
        for _ in 0..TRIES {
            span = span.min(revoke(&http, at, other, &by).await);
            revoked += 1;
            if span <= LONGEST {
                break;
            }
        }
        spans.push(span);
    }
    let seconds = begun.elapsed().as_secs_f64();
    stop.cancel();
    let requests: usize = tasks.join_all().await.into_iter().sum();

    spans.sort_unstable();
    let mut table = format!(
        "{TOKENS} tokens revoked in {seconds:.1} s beside {requests} tokens issued and introspected\n\
         | share of tokens | still active after at most |\n| ---: | ---: |\n"
    );
    for percent in [50, 90, 95, 99, 100] {
        let span = spans[(TOKENS * percent).div_ceil(100) - 1];
        let _ = writeln!(table, "| {percent} % | {} ms |", span.as_millis());
    }
    show(&table);
    assert!(spans[TOKENS - 1] <= LONGEST, "{table}");
    let (entries,) = database
        .rows::<(i64,)>("select count(*) from revocation")
        .await[0];
    assert_eq!(entries, revoked);
}
