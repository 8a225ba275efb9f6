//! `/admin/v1/keys` and what is below it.

use countersign::clock::{Clock as _, Timestamp};

use super::*;
use crate::support::server::Setup;

async fn states(desk: &Desk<'_>) -> Vec<String> {
    let keys = desk.get("/admin/v1/keys").await.json();
    let state = |key: &Value| key["state"].as_str().unwrap().to_owned();
    keys["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(state)
        .collect()
}

#[tokio::test]
async fn a_rotation_that_verifiers_cannot_follow_yet_is_told_when_it_may_happen() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let desk = Desk::in_time_of(&clock, &server, "keys:read keys:rotate").await;
    assert_eq!(states(&desk).await, ["active", "next"]);
    let rotate = json!({ "mode": "scheduled", "reason": "Trying it" });
    let early = desk.post("/admin/v1/keys/rotate", &rotate).await;
    is_problem(&early, 409, "too-early");
    let earliest = early.json()["earliest_activation_at"].as_i64().unwrap();
    let wait = u64::try_from(earliest - clock.now().seconds()).unwrap();
    assert!(wait > 300, "{wait}");
    clock.advance(Duration::from_secs(wait));
    // The token has expired meanwhile.
    let desk = Desk::in_time_of(&clock, &server, "keys:read keys:rotate").await;
    let rotated = desk.post("/admin/v1/keys/rotate", &rotate).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    assert_eq!(rotated.json()["verifiers_may_lag_until"], Value::Null);
    assert!(rotated.json()["keys"].as_array().unwrap().len() >= 2);
}

#[tokio::test]
async fn an_emergency_replaces_the_active_key_at_once() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "keys:read keys:rotate").await;
    let emergency = json!({ "mode": "emergency", "reason": "Drill", "discard_next": true });
    let rotated = desk.post("/admin/v1/keys/rotate", &emergency).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    assert!(
        rotated.json()["verifiers_may_lag_until"].is_i64(),
        "{rotated:?}"
    );
    // With the key went the token that it had signed.
    while desk.get("/admin/v1/keys").await.status == 200 {}
    let desk = Desk::of(&server, "keys:read keys:rotate").await;
    let mut states = states(&desk).await;
    states.sort();
    assert_eq!(states, ["active", "next", "revoked", "revoked"]);
}

#[tokio::test]
async fn a_key_is_revoked_by_its_kid() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "keys:read keys:rotate").await;
    let keys = desk.get("/admin/v1/keys").await.json();
    let next = keys["items"][1]["kid"].as_str().unwrap();
    let path = format!("/admin/v1/keys/{next}/revoke");
    let revoked = desk.send(desk.request("POST", &path)).await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    let mut states = states(&desk).await;
    states.sort();
    assert_eq!(states, ["active", "next", "revoked"]);
}

#[tokio::test]
async fn a_rotation_says_what_is_wrong_with_its_document() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "keys:read keys:rotate").await;
    for (document, wrong) in [
        (json!({}), vec!["/mode"]),
        (
            json!({ "mode": "quick", "reason": "\0", "why": 1 }),
            vec!["/mode", "/reason", "/why"],
        ),
        (
            json!({ "mode": 1, "discard_next": "yes" }),
            vec!["/discard_next", "/mode"],
        ),
        (
            json!({ "mode": "scheduled", "discard_next": true }),
            vec!["/discard_next"],
        ),
        (
            json!({ "mode": "scheduled", "reason": "x".repeat(1001) }),
            vec!["/reason"],
        ),
    ] {
        let refused = desk.post("/admin/v1/keys/rotate", &document).await;
        assert_eq!(pointers(&refused), wrong);
    }
    assert_eq!(states(&desk).await, ["active", "next"]);
}
