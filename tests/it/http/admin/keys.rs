//! `/admin/v1/keys` and what is below it.

use countersign::clock::{Clock as _, Timestamp};

use super::*;
use crate::support::{database::Engine, server::Setup, sign_in, soon};

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
async fn keys_of_refresh_tokens_are_listed_and_rotated_apart() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "keys:read keys:rotate").await;
    let path = "/admin/v1/keys?use=refresh_mac";
    let before = desk.get(path).await.json();
    let signing = desk.get("/admin/v1/keys").await.json();
    assert_eq!(signing, desk.get("/admin/v1/keys?use=signing").await.json());
    for (index, state) in ["active", "next"].into_iter().enumerate() {
        let key = &before["items"][index];
        assert_eq!(key["state"], state);
        assert_eq!(key["version"], index + 1);
        assert_eq!(key.get("jwk"), None);
        assert_eq!(signing["items"][index].get("version"), None);
    }

    let rotate = json!({ "mode": "scheduled", "use": "refresh_mac" });
    let early = desk.post("/admin/v1/keys/rotate", &rotate).await;
    is_problem(&early, 409, "too-early");
    let emergency = json!({ "mode": "emergency", "use": "refresh_mac", "discard_next": true });
    let rotated = desk.post("/admin/v1/keys/rotate", &emergency).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    // No verifier is concerned.
    assert_eq!(rotated.json()["verifiers_may_lag_until"], Value::Null);
    let versions = |keys: &Value| -> Vec<(u64, String)> {
        let version = |key: &Value| {
            let state = key["state"].as_str().unwrap().to_owned();
            (key["version"].as_u64().unwrap(), state)
        };
        let mut versions: Vec<_> = keys.as_array().unwrap().iter().map(version).collect();
        versions.sort();
        versions
    };
    let expected = [(1, "revoked"), (2, "revoked"), (3, "active"), (4, "next")];
    let expected = expected.map(|(version, state)| (version, state.to_owned()));
    assert_eq!(versions(&rotated.json()["keys"]), expected);
    assert_eq!(versions(&desk.get(path).await.json()["items"]), expected);

    // Found by its kid whatever it is for.
    let next = rotated.json()["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["version"] == 4)
        .unwrap()["kid"]
        .clone();
    let revoke = format!("/admin/v1/keys/{}/revoke", next.as_str().unwrap());
    let revoked = desk.send(desk.request("POST", &revoke)).await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    let listed = versions(&desk.get(path).await.json()["items"]);
    assert_eq!(
        listed[3..],
        [(4, "revoked".to_owned()), (5, "next".to_owned())]
    );
    // The signing keys are what they were, and so are tokens.
    assert_eq!(desk.get("/admin/v1/keys").await.json(), signing);
    let refused = desk.get("/admin/v1/keys?use=mac").await;
    assert_eq!(pointers(&refused), ["/use"]);
}

#[tokio::test]
async fn keys_for_rs256_are_listed_and_rotated_where_the_service_has_opted_in() {
    let setup = Setup::new().set("keys.rs256_id_tokens", "true");
    let server = setup.start().await;
    let desk = Desk::of(&server, "keys:read keys:rotate events:read").await;
    let path = "/admin/v1/keys?use=id_token_rs256";
    let before = desk.get(path).await.json();
    let signing = desk.get("/admin/v1/keys").await.json();
    for (index, state) in ["active", "next"].into_iter().enumerate() {
        let key = &before["items"][index];
        assert_eq!(key["state"], state);
        assert_eq!(key["jwk"]["alg"], "RS256");
        assert_eq!(key["jwk"]["kid"], key["kid"]);
        assert_eq!(key.get("version"), None);
    }
    let rotate = json!({ "mode": "scheduled", "use": "id_token_rs256" });
    let early = desk.post("/admin/v1/keys/rotate", &rotate).await;
    is_problem(&early, 409, "too-early");
    let emergency = json!({ "mode": "emergency", "use": "id_token_rs256" });
    let rotated = desk.post("/admin/v1/keys/rotate", &emergency).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    assert!(rotated.json()["verifiers_may_lag_until"].is_i64());
    let leaked = before["items"][0]["kid"].as_str().unwrap();
    let next = before["items"][1]["kid"].as_str().unwrap();
    // It leaves the JWKS at once.
    while server.jwks().await.contains(leaked) {}
    assert!(server.jwks().await.contains(next));
    let revoked = desk
        .send(desk.request("POST", &format!("/admin/v1/keys/{next}/revoke")))
        .await;
    assert_eq!(revoked.status, 200, "{revoked:?}");
    let states: Vec<Value> = desk.get(path).await.json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["state"].clone())
        .collect();
    assert_eq!(
        states.iter().filter(|state| **state == "revoked").count(),
        2
    );
    assert_eq!(desk.get("/admin/v1/keys").await.json(), signing);
    let events = desk.get("/admin/v1/events?type=key.revoked").await.json();
    let targets: Vec<&Value> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["target"])
        .collect();
    assert_eq!(targets, ["id_token_rs256", "id_token_rs256"]);
}

#[tokio::test]
async fn there_are_no_keys_for_rs256_where_the_service_has_not_opted_in() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "keys:read keys:rotate").await;
    let listed = desk.get("/admin/v1/keys?use=id_token_rs256").await;
    assert_eq!(listed.json()["items"], json!([]));
    for mode in ["scheduled", "emergency"] {
        let rotate = json!({ "mode": mode, "use": "id_token_rs256" });
        let refused = desk.post("/admin/v1/keys/rotate", &rotate).await;
        assert_eq!(pointers(&refused), ["/use"]);
        assert!(refused.body.contains("keys.rs256_id_tokens"), "{refused:?}");
    }
    assert_eq!(
        desk.get("/admin/v1/keys?use=id_token_rs256").await.json(),
        listed.json()
    );
}

/// Whoever holds a refresh token of the leaked key signs in again. Nothing else happens to them.
#[tokio::test]
async fn an_emergency_of_mac_keys_refuses_the_refresh_tokens_made_with_them() {
    let server = Setup::new().on(Engine::Postgres).start().await;
    let beside = server.beside().await;
    let desk = Desk::of(&server, "keys:read keys:rotate families:write").await;
    let ada = server.user("ada").await;
    let before = server.sign_in(&server.app, ada).await;
    let emergency = json!({ "mode": "emergency", "use": "refresh_mac", "discard_next": true });
    let rotated = desk.post("/admin/v1/keys/rotate", &emergency).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    server.renewed().await;

    let family = server.family(before.family).await;
    for _ in 0..2 {
        let refused = server.refresh(&server.app, &before.refresh_token).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(refused.json()["error"], "invalid_grant");
        assert_eq!(refused.header("countersign-reason"), Some("key_revoked"));
    }
    assert_eq!(server.family(before.family).await, family);
    // No verifier has to hear of it.
    assert!(
        server
            .store()
            .revocations_since(0)
            .await
            .unwrap()
            .is_empty()
    );
    // Unless whoever had the key has got access tokens with it: then the session is to be ended.
    let is_active = async || {
        let request = server.request(Method::POST, "/oauth2/introspect");
        let request = request.basic_auth(&server.app.id, Some(&server.app.secret));
        let told = answer(request.form(&[("token", &before.access_token)])).await;
        told.json()["active"] == true
    };
    assert!(is_active().await);
    let end = format!("/admin/v1/families/{}/revoke", before.family);
    let ended = desk.post(&end, &json!({})).await;
    assert_eq!(ended.status, 200, "{ended:?}");
    assert_eq!(ended.json()["state"], "ended");
    assert!(!is_active().await);

    // A new key is good at once also where nobody has heard of it.
    let after = server.sign_in(&server.app, ada).await;
    let form = sign_in::refresh(&after.refresh_token);
    let request = beside.request(Method::POST, "/oauth2/token");
    let refreshed = answer(sign_in::by(request, &server.app, &form)).await;
    let refreshed = refreshed.refresh_token();
    assert_eq!(server.family(after.family).await.mac_version, 3);
    let again = server.refresh(&server.app, &refreshed).await;
    assert_eq!(again.status, 200, "{again:?}");
}

#[tokio::test]
async fn a_session_outlives_the_rotation_of_its_mac_key() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    clock.advance(Duration::from_secs(10));
    let desk = Desk::in_time_of(&clock, &server, "keys:rotate").await;
    let rotate = json!({ "mode": "scheduled", "use": "refresh_mac" });
    let rotated = desk.post("/admin/v1/keys/rotate", &rotate).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    // Two polls later the next key makes the tokens, and those made before are good.
    while_time_passes(&clock, server.renewed()).await;
    let mut refreshed = signed_in.refresh_token;
    soon(async {
        while server.family(signed_in.family).await.mac_version != 2 {
            clock.advance(Duration::from_millis(500));
            let answer = server.refresh(&server.app, &refreshed).await;
            refreshed = answer.refresh_token();
        }
    })
    .await;
    let again = server.refresh(&server.app, &refreshed).await;
    assert_eq!(again.status, 200, "{again:?}");
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
        (
            json!({ "mode": "scheduled", "use": "encryption" }),
            vec!["/use"],
        ),
        (json!({ "mode": "scheduled", "use": 1 }), vec!["/use"]),
    ] {
        let refused = desk.post("/admin/v1/keys/rotate", &document).await;
        assert_eq!(pointers(&refused), wrong);
    }
    assert_eq!(states(&desk).await, ["active", "next"]);
}
