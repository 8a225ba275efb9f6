//! `GET /health/live` and `/health/ready`, and what is answered while the database is down.

use std::time::Duration;

use countersign::clock::{ManualClock, Timestamp};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    client,
    database::{Cluster, Durability},
    server::{Answer, Setup, TestServer, answer, send_raw},
    soon,
};

#[tokio::test]
async fn probes_are_answered_on_both_listeners() {
    let server = TestServer::start().await;
    let client = client().build().unwrap();
    let ready = json!({"status": "ok", "database": "up", "keys": "ok"});
    // Pages of other origins have no business on the admin listener.
    for (listener, origin, allow) in [
        (server.public, Some("*"), "GET, HEAD, OPTIONS"),
        (server.admin, None, "GET, HEAD"),
    ] {
        for (path, expected) in [
            ("/health/live", &json!({"status": "ok"})),
            ("/health/ready", &ready),
        ] {
            let url = format!("http://{listener}{path}");
            let got = answer(client.get(&url)).await;
            assert_eq!(got.status, 200, "{url}");
            assert_eq!(got.header("content-type"), Some("application/json"));
            assert_eq!(got.header("cache-control"), Some("no-store"));
            assert_eq!(got.header("access-control-allow-origin"), origin);
            assert_eq!(got.json(), *expected);
            let head = answer(client.head(&url)).await;
            assert_eq!((head.status, head.body.as_str()), (200, ""));
            let posted = answer(client.post(&url)).await;
            assert_eq!(posted.status, 405);
            assert_eq!(posted.header("allow"), Some(allow));
        }
    }
}

/// What is for clients is not on the admin listener, where other rules may hold.
#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let server = TestServer::start().await;
    for (listener, path) in [
        (server.public, "/health"),
        (server.public, "/oauth2/token/"),
        (server.public, "/oauth2/../oauth2/token"),
        (server.public, "//oauth2/token"),
        (server.public, "/OAUTH2/TOKEN"),
        (server.public, "/admin/v1/clients"),
        (server.public, "/metrics"),
        (server.admin, "/oauth2/token"),
        (server.admin, "/.well-known/jwks.json"),
    ] {
        for method in ["GET", "POST"] {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
            let request = format!("{head}Content-Length: 0\r\n\r\n");
            let answer = send_raw(listener, &request).await;
            assert!(
                answer.starts_with("HTTP/1.1 404"),
                "{method} {path}: {answer}"
            );
        }
    }
}

/// The service goes on from memory until `sync.offline_issuance_limit_seconds`; then it could be
/// signing for clients long disabled. It recovers by itself.
#[tokio::test]
async fn without_its_database_the_service_goes_on_until_the_offline_limit() {
    let cluster = Cluster::start(Durability::Fast);
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new()
        .at(cluster.url())
        .clock(clock.clone())
        .start()
        .await;
    let offline_limit = Duration::from_mins(15);

    cluster.crash();
    let ready = until(&server, &clock, |ready| ready.json()["database"] == "down").await;
    assert_eq!(ready.status, 200);
    assert_eq!(
        ready.json(),
        json!({"status": "ok", "database": "down", "keys": "ok"})
    );
    assert_eq!(server.token().await.status, 200);
    let jwks = answer(server.get("/.well-known/jwks.json")).await;
    assert_eq!(
        jwks.header("cache-control"),
        Some("public, max-age=300, stale-if-error=300")
    );

    clock.advance(offline_limit);
    let refused = server.token().await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"], "temporarily_unavailable");
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.header("cache-control"), Some("no-store"));
    assert_eq!(refused.header("countersign-reason"), Some("offline"));
    let ready = answer(server.get("/health/ready")).await;
    assert_eq!(ready.status, 503);
    assert_eq!(
        ready.json(),
        json!({"status": "unavailable", "database": "down", "keys": "ok"})
    );
    assert_eq!(answer(server.get("/health/live")).await.status, 200);
    // Tokens issued before are verified on, by verifiers that ask again soon.
    let jwks = answer(server.get("/.well-known/jwks.json")).await;
    assert_eq!(jwks.status, 200);
    assert_eq!(jwks.header("cache-control"), Some("public, max-age=10"));

    cluster.start_again();
    until(&server, &clock, |ready| ready.status == 200).await;
    assert_eq!(server.token().await.status, 200);
}

/// Lets time go on in small steps until the answer of the probe is as wanted.
async fn until(
    server: &TestServer,
    clock: &ManualClock,
    is_so: impl Fn(&Answer) -> bool,
) -> Answer {
    soon(async {
        loop {
            let ready = answer(server.request(Method::GET, "/health/ready")).await;
            if is_so(&ready) {
                return ready;
            }
            clock.advance(Duration::from_millis(10));
        }
    })
    .await
}
