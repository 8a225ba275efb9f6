//! `GET /metrics`: what operators watch, in a format that any reader of `OpenMetrics` takes.

use std::{collections::BTreeMap, time::Duration};

use countersign::{
    clock::{ManualClock, Timestamp},
    domain::change::{Cause, Change},
};
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    database::{Cluster, Durability},
    openmetrics::{self, Exposition},
    process::until,
    server::{FORM, GRANT, Setup, TestServer, answer},
    soon,
};

async fn scrape(server: &TestServer) -> (String, Exposition) {
    openmetrics::scrape(server.admin).await
}

fn one(series: &str) -> BTreeMap<String, f64> {
    [(series.to_owned(), 1.0)].into()
}

#[tokio::test]
async fn the_text_is_strictly_well_formed_and_every_name_has_our_prefix() {
    let server = TestServer::start().await;
    server.token().await.access_token();
    let (_, metrics) = scrape(&server).await;
    assert!(metrics.families.len() > 10, "{:?}", metrics.families);
    for name in metrics.families.keys() {
        assert!(name.starts_with("countersign_"), "{name}");
    }
    let kinds = [
        ("countersign_token_requests", "counter", None),
        ("countersign_refusals", "counter", None),
        ("countersign_http_requests", "counter", None),
        (
            "countersign_http_request_duration_seconds",
            "histogram",
            Some("seconds"),
        ),
        (
            "countersign_signing_duration_seconds",
            "histogram",
            Some("seconds"),
        ),
        ("countersign_key_age_seconds", "gauge", Some("seconds")),
        ("countersign_keys", "gauge", None),
        (
            "countersign_process_resident_memory_bytes",
            "gauge",
            Some("bytes"),
        ),
        ("countersign_build", "info", None),
    ];
    server
        .by_app_with("grant_type=nonsense")
        .send()
        .await
        .unwrap();
    let (_, metrics) = scrape(&server).await;
    for (name, kind, unit) in kinds {
        let family = metrics
            .families
            .get(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((family.kind.as_str(), family.unit.as_deref()), (kind, unit));
    }
}

#[tokio::test]
async fn metrics_are_for_the_admin_listener_alone() {
    let server = TestServer::start().await;
    assert_eq!(answer(server.get("/metrics")).await.status, 404);
}

#[tokio::test]
async fn a_request_moves_exactly_one_series_of_each_counter() {
    let server = TestServer::start().await;
    let (_, before) = scrape(&server).await;
    server.token().await.access_token();
    let (_, issued) = scrape(&server).await;
    let issued_series =
        "countersign_token_requests_total{grant=\"client_credentials\",outcome=\"issued\"}";
    let tokens = "countersign_token_requests_total";
    let refusals = "countersign_refusals_total";
    assert_eq!(issued.moved(&before, tokens), one(issued_series));
    assert_eq!(issued.moved(&before, refusals), BTreeMap::new());
    let signed = "countersign_signing_duration_seconds_count";
    let difference = issued.value(signed) - before.value(signed);
    assert!((difference - 1.0).abs() < f64::EPSILON);
    let answered = issued.moved(&before, "countersign_http_requests_total");
    let series =
        "countersign_http_requests_total{route=\"/oauth2/token\",method=\"POST\",status=\"200\"}";
    assert_eq!(answered.get(series), Some(&1.0), "{answered:?}");

    let refused = [
        (
            server.token_request().form(&GRANT),
            "client_credentials",
            "client_authentication",
        ),
        (
            server.by_app_with("grant_type=their+own+word"),
            "unknown",
            "grant_type",
        ),
        (server.by_app_with("scope=read"), "unknown", "malformed"),
        (
            server.by_app_with("grant_type=client_credentials&scope=their-own-word"),
            "client_credentials",
            "scope",
        ),
    ];
    for (request, grant, reason) in refused {
        let (_, before) = scrape(&server).await;
        assert!(answer(request).await.status >= 400);
        let (text, after) = scrape(&server).await;
        let series = format!("{tokens}{{grant=\"{grant}\",outcome=\"{reason}\"}}");
        assert_eq!(after.moved(&before, tokens), one(&series));
        let series = format!("{refusals}{{route=\"/oauth2/token\",reason=\"{reason}\"}}");
        assert_eq!(after.moved(&before, refusals), one(&series));
        assert!(!text.contains("their"), "{text}");
    }
}

/// "nothing a stranger chooses" makes a series, and nothing secret is told.
#[tokio::test]
async fn nothing_of_a_request_gets_into_the_metrics() {
    let server = TestServer::start().await;
    let token = server.token().await.access_token();
    let secret = server.app.secret.clone();
    let request = |method: &str, path: &str| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        server.request(method, path)
    };
    for request in [
        request("GET", "/chosen-path"),
        request("GET", "/health/live?chosen=query"),
        request("CHOSEN", "/oauth2/token"),
        request("POST", "/oauth2/token")
            .basic_auth("chosen-client", Some("chosen-secret"))
            .header("user-agent", "chosen-agent")
            .header("content-type", FORM)
            .body("grant_type=chosen-grant&scope=chosen-scope&resource=chosen:resource"),
        server.by_app_with("grant_type=client_credentials&resource=chosen:resource"),
    ] {
        answer(request).await;
    }
    let (text, metrics) = scrape(&server).await;
    for hidden in ["chosen", "CHOSEN", &secret, &token, "app"] {
        assert!(!text.contains(&format!("\"{hidden}")), "{hidden}: {text}");
    }
    for hidden in ["chosen", &secret, &token] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    let other =
        "countersign_http_requests_total{route=\"/oauth2/token\",method=\"other\",status=\"405\"}";
    assert!((metrics.value(other) - 1.0).abs() < f64::EPSILON, "{text}");
    let none = "countersign_http_requests_total{route=\"none\",method=\"GET\",status=\"404\"}";
    assert!((metrics.value(none) - 1.0).abs() < f64::EPSILON, "{text}");
}

#[tokio::test]
async fn the_state_is_that_of_the_moment() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let (_, begun) = scrape(&server).await;
    let is = |metrics: &Exposition, series: &str, expected: f64| {
        let value = metrics.value(&format!("countersign_{series}"));
        assert!((value - expected).abs() < 0.5, "{series} is {value}");
    };
    for key_use in ["signing", "refresh_mac"] {
        let keys = |state: &str| format!("keys{{use=\"{key_use}\",state=\"{state}\"}}");
        is(&begun, &keys("active"), 1.0);
        is(&begun, &keys("next"), 1.0);
        is(&begun, &keys("retired"), 0.0);
        is(
            &begun,
            &format!("key_age_seconds{{use=\"{key_use}\"}}"),
            0.0,
        );
    }
    is(&begun, "process_start_time_seconds", 1_800_000_000.0);
    is(&begun, "key_rotation_period_seconds", 2_592_000.0);
    is(&begun, "offline_issuance_limit_seconds", 900.0);
    is(&begun, "database_up", 1.0);
    is(&begun, "clock_offset_seconds", 0.0);
    is(&begun, "queue_depth{queue=\"database_look\"}", 0.0);
    assert!(begun.value("countersign_process_resident_memory_bytes") > 1e6);
    assert!(begun.value("countersign_process_open_fds") > 5.0);
    assert!(begun.value("countersign_change_position") > 0.0);
    let version = env!("CARGO_PKG_VERSION");
    is(&begun, &format!("build_info{{version=\"{version}\"}}"), 1.0);

    clock.advance(Duration::from_mins(1));
    let (_, later) = scrape(&server).await;
    let lag = later.value("countersign_sync_lag_seconds");
    assert!((0.0..=60.0).contains(&lag), "{lag}");
    for key_use in ["signing", "refresh_mac"] {
        is(
            &later,
            &format!("key_age_seconds{{use=\"{key_use}\"}}"),
            60.0,
        );
        let left = format!("countersign_key_next_transition_seconds{{use=\"{key_use}\"}}");
        assert!((begun.value(&left) - later.value(&left) - 60.0).abs() < 0.5);
    }
}

#[tokio::test]
async fn keys_for_rs256_are_counted_where_the_service_has_opted_in() {
    let series =
        |state: &str| format!("countersign_keys{{use=\"id_token_rs256\",state=\"{state}\"}}");
    let setup = Setup::new().set("keys.rs256_id_tokens", "true");
    let server = setup.start().await;
    let (_, metrics) = scrape(&server).await;
    for state in ["active", "next"] {
        assert!((metrics.value(&series(state)) - 1.0).abs() < f64::EPSILON);
    }
    let left = "countersign_key_next_transition_seconds{use=\"id_token_rs256\"}";
    assert!(metrics.value(left) > 2_500_000.0);
    let (text, _) = scrape(&TestServer::start().await).await;
    assert!(!text.contains("id_token_rs256"), "{text}");
}

/// Waits until a series has this value.
async fn becomes(server: &TestServer, series: &str, expected: f64) {
    let series = format!("countersign_{series}");
    let what = format!("{series} to be {expected}");
    until(&what, async || {
        let (_, metrics) = scrape(server).await;
        let value = metrics.series.get(&series)?;
        ((value - expected).abs() < f64::EPSILON).then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_count_for_as_long_as_they_are_open() {
    let setup = Setup::new().set("limits.connections_per_address", "1");
    let server = setup.start().await;
    let mut held = server.connect().await;
    let request = "GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n";
    held.write_all(request.as_bytes()).await.unwrap();
    assert!(held.read(&mut [0; 12]).await.unwrap() > 0);
    becomes(&server, "connections{listener=\"public\"}", 1.0).await;
    let mut excess = server.connect().await;
    // Ended at once, one way or the other.
    let _ = soon(excess.read(&mut [0])).await;
    becomes(
        &server,
        "throttled_requests_total{limit=\"connections\"}",
        1.0,
    )
    .await;
    drop(held);
    becomes(&server, "connections{listener=\"public\"}", 0.0).await;
}

#[tokio::test]
async fn what_a_limit_turns_away_is_counted_by_its_reason() {
    let setup = Setup::new().set("limits.requests_per_minute_per_client", "1");
    let server = setup.start().await;
    server.token().await.access_token();
    let (_, before) = scrape(&server).await;
    let limited = server.token().await;
    assert_eq!(limited.status, 429);
    let reason = limited.header("countersign-reason").unwrap();
    let (_, after) = scrape(&server).await;
    let family = "countersign_throttled_requests_total";
    let series = format!("{family}{{limit=\"{reason}\"}}");
    assert_eq!(after.moved(&before, family), one(&series));
}

#[tokio::test]
async fn requests_that_wait_for_a_look_at_the_database_are_seen() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let depth = "queue_depth{queue=\"database_look\"}";
    let wrong = || {
        let request = server.token_request().basic_auth("app", Some("wrong"));
        answer(request.form(&GRANT))
    };
    // A look that something else has caused may answer the first. As time stands still, the next one
    // waits.
    let series = format!("countersign_{depth}");
    let mut waiting = tokio::spawn(wrong());
    until("a request to wait", async || {
        if waiting.is_finished() {
            waiting = tokio::spawn(wrong());
        }
        let (_, metrics) = scrape(&server).await;
        (*metrics.series.get(&series)? > 0.0).then_some(())
    })
    .await;
    clock.advance(Duration::from_secs(2));
    assert_eq!(waiting.await.unwrap().status, 401);
    becomes(&server, depth, 0.0).await;
}

#[tokio::test]
async fn revocations_in_force_are_counted() {
    let server = TestServer::start().await;
    becomes(&server, "revocation_entries", 0.0).await;
    let token = server.token().await.access_token();
    let request = server
        .request(Method::POST, "/oauth2/revoke")
        .basic_auth(&server.app.id, Some(&server.app.secret));
    assert_eq!(answer(request.form(&[("token", &token)])).await.status, 200);
    becomes(&server, "revocation_entries", 1.0).await;
}

/// What an operator has to hear of: revocations may be forgotten.
#[tokio::test]
async fn a_database_in_another_epoch_is_counted() {
    let server = TestServer::start().await;
    becomes(&server, "epoch_changes_total", 0.0).await;
    let now = server.clients.clock.now();
    let restored = Change::Restore {
        keep_tokens: true,
        tokens_die_at: now,
    };
    let cause = Cause::system();
    let applied = server.clients.store.apply(&restored, &cause, now).await;
    applied.unwrap();
    becomes(&server, "epoch_changes_total", 1.0).await;
}

#[tokio::test]
async fn sessions_that_are_ended_one_by_one_are_counted_by_reason() {
    let server = TestServer::start().await;
    let ada = server.user("ada").await;
    let ended = |reason: &str| format!("families_ended_total{{reason=\"{reason}\"}}");
    becomes(&server, &ended("code_reuse"), 0.0).await;
    let code = server.code(&server.app, ada).await;
    assert_eq!(server.redeem(&server.app, &code).await.status, 200);
    assert_eq!(server.redeem(&server.app, &code).await.status, 400);
    becomes(&server, &ended("code_reuse"), 1.0).await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let token = signed_in.refresh_token.as_str();
    let request = server.request(Method::POST, "/oauth2/revoke");
    let request = request.basic_auth(&server.app.id, Some(&server.app.secret));
    for _ in 0..2 {
        let request = request.try_clone().unwrap();
        assert_eq!(answer(request.form(&[("token", token)])).await.status, 200);
    }
    becomes(&server, &ended("revoked_by_client"), 1.0).await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let mut token = signed_in.refresh_token.clone();
    for _ in 0..2 {
        token = server.refresh(&server.app, &token).await.refresh_token();
    }
    for _ in 0..2 {
        let reused = server.refresh(&server.app, &signed_in.refresh_token).await;
        assert_eq!(reused.status, 400);
    }
    becomes(&server, &ended("reuse"), 1.0).await;
}

#[tokio::test]
async fn attempts_to_delete_what_is_over_are_counted() {
    let cluster = Cluster::start(Durability::Fast);
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let setup = Setup::new().at(cluster.url()).clock(clock.clone());
    let server = setup.start().await;
    becomes(&server, "sweeps_total{outcome=\"succeeded\"}", 0.0).await;
    clock.advance(Duration::from_secs(30));
    becomes(&server, "sweeps_total{outcome=\"succeeded\"}", 1.0).await;
    becomes(&server, "sweeps_total{outcome=\"failed\"}", 0.0).await;
    cluster.crash();
    clock.advance(Duration::from_secs(30));
    becomes(&server, "sweeps_total{outcome=\"failed\"}", 1.0).await;
}
