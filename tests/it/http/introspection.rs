//! Introspection (RFC 7662) and revocation (RFC 7009) of access tokens.

use std::time::Duration;

use countersign::{
    admin::{
        client::ClientMetadata,
        resource::{ResourceAdmin, ResourceMetadata},
        revocation::{RevocationAdmin, Target},
    },
    clock::{ManualClock, Timestamp},
    domain::{assertion::AssertionId, change::Cause, id::ClientId},
    keys::lifecycle::Policy,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::{Database, Engine},
    server::{API, FILES, GRANT, Registered, Setup, TestServer, answer, metadata},
    soon,
};

on_both_engines! {
    a_revoked_token_is_inactive,
    an_entry_disappears_when_no_token_can_match_it,
    the_tokens_of_a_client_that_is_disabled_or_removed_are_inactive,
    the_tokens_of_a_client_are_revoked_at_once_and_new_ones_count,
}

const INACTIVE: &str = "{\"active\":false}";

impl TestServer {
    async fn form(&self, path: &str, client: &Registered, form: &[(&str, &str)]) -> (u16, String) {
        let request = self.request(Method::POST, path);
        let request = request.basic_auth(&client.id, Some(&client.secret));
        let answer = answer(request.form(form)).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        (answer.status, answer.body)
    }

    async fn introspect(&self, client: &Registered, token: &str) -> Value {
        let form = [("token", token)];
        let (status, body) = self.form("/oauth2/introspect", client, &form).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn revoke(&self, client: &Registered, token: &str) -> (u16, String) {
        self.form("/oauth2/revoke", client, &[("token", token)])
            .await
    }

    async fn access_token(&self, client: &Registered) -> String {
        let answer = self.token_for(client).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// Returns when the token is inactive for its own client.
    async fn until_inactive(&self, client: &Registered, token: &str) {
        soon(async {
            while self.introspect(client, token).await["active"] == true {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn revocations(&self) -> RevocationAdmin {
        RevocationAdmin {
            store: self.clients.store.clone(),
            clock: self.clients.clock.clone(),
            policy: POLICY,
        }
    }
}

const POLICY: Policy = Policy {
    poll: Duration::from_millis(10),
    jwks_max_age: Duration::from_mins(5),
    clock_skew: Duration::from_secs(5),
    period: Duration::from_hours(30 * 24),
    offline_limit: Duration::from_mins(15),
};

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&countersign_verifier::base64url::decode(payload).unwrap()).unwrap()
}

/// RFC 7662 §2.2: the members and nothing that contradicts the token.
#[tokio::test]
async fn an_active_token_is_told_with_its_claims() {
    let server = TestServer::start().await;
    let token = server.access_token(&server.app).await;
    let mut told = server.introspect(&server.app, &token).await;
    let members = told.as_object_mut().unwrap();
    assert_eq!(members.remove("active"), Some(json!(true)));
    assert_eq!(members.remove("token_type"), Some(json!("Bearer")));
    assert_eq!(told, claims(&token));
    // A hint that is wrong changes nothing.
    for hint in ["refresh_token", "access_token", "nonsense"] {
        let form = [("token", token.as_str()), ("token_type_hint", hint)];
        let (_, body) = server.form("/oauth2/introspect", &server.app, &form).await;
        assert!(body.contains("\"active\":true"), "{hint}");
    }
}

/// "Whoever finds a token learns nothing": neither another client nor another resource.
#[tokio::test]
async fn a_token_is_active_for_its_client_and_its_resource_alone() {
    let server = TestServer::start().await;
    let token = server.access_token(&server.app).await;
    let stranger = server.register(&metadata()).await;
    assert_eq!(
        server.introspect(&stranger, &token).await.to_string(),
        INACTIVE
    );

    let resources = ResourceAdmin {
        store: server.clients.store.clone(),
        clock: server.clients.clock.clone(),
        entropy: server.clients.entropy.clone(),
        issuer: server.issuer.clone(),
    };
    let gateway = server.register(&metadata()).await;
    let other_gateway = server.register(&metadata()).await;
    for (uri, gateway) in [
        ("https://guarded.example", &gateway),
        ("https://other.example", &other_gateway),
    ] {
        let resource = ResourceMetadata {
            resource: uri.to_owned(),
            name: "Guarded".to_owned(),
            scopes: vec!["read".to_owned()],
            introspection_clients: vec![gateway.id.clone()],
            ..ResourceMetadata::default()
        };
        let cause = Cause::system();
        resources.create(&resource, false, &cause).await.unwrap();
    }
    let client = server
        .register(&ClientMetadata {
            resources: vec!["https://guarded.example".to_owned(), API.to_owned()],
            default_resource: Some("https://guarded.example".to_owned()),
            ..metadata()
        })
        .await;
    let guarded = server.access_token(&client).await;
    assert_eq!(server.introspect(&gateway, &guarded).await["active"], true);
    assert_eq!(server.introspect(&client, &guarded).await["active"], true);
    for other in [&other_gateway, &stranger, &server.app] {
        assert_eq!(
            server.introspect(other, &guarded).await.to_string(),
            INACTIVE
        );
    }
}

#[tokio::test]
async fn what_is_no_good_token_is_inactive_and_nothing_else() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let token = server.access_token(&server.app).await;
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("{token}")
    };
    let other_header = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9";
    let unsigned = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJub25lIn0";
    for bad in [
        "x".to_owned(),
        "cs_rt_AAAA".to_owned(),
        format!("{token}x"),
        format!("{header}.{payload}."),
        format!("{unsigned}.{payload}."),
        format!("{other_header}.{payload}.{signature}"),
        format!("{header}.{payload}.{signature}.x.y"),
        "a".repeat(20_000),
    ] {
        let told = server.introspect(&server.app, &bad).await;
        assert_eq!(told.to_string(), INACTIVE, "{bad}");
        assert_eq!(server.revoke(&server.app, &bad).await.0, 200, "{bad}");
    }
    assert_eq!(server.introspect(&server.app, &token).await["active"], true);
    let life = claims(&token)["exp"].as_u64().unwrap() - claims(&token)["iat"].as_u64().unwrap();
    clock.advance(Duration::from_millis(life * 1000 - 1));
    assert_eq!(server.introspect(&server.app, &token).await["active"], true);
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        server.introspect(&server.app, &token).await.to_string(),
        INACTIVE
    );
}

/// RFC 7662 §2.1 and RFC 7009 §2.1: the caller has to be authenticated.
#[tokio::test]
async fn a_caller_must_authenticate() {
    let server = TestServer::start().await;
    let token = server.access_token(&server.app).await;
    let public = server
        .register(&ClientMetadata {
            token_endpoint_auth_method: Some("none".to_owned()),
            ..metadata()
        })
        .await;
    for path in ["/oauth2/introspect", "/oauth2/revoke"] {
        let form = [("token", token.as_str())];
        let anonymous = answer(server.request(Method::POST, path).form(&form)).await;
        assert_eq!(
            (anonymous.status, anonymous.json()["error"].as_str()),
            (401, Some("invalid_client"))
        );
        let wrong = Registered {
            id: server.app.id.clone(),
            secret: "wrong".to_owned(),
            secret_id: None,
        };
        assert_eq!(server.form(path, &wrong, &form).await.0, 401);
        // Neither a token as a credential, nor a token in the query.
        let bearer = server.request(Method::POST, path).bearer_auth(&token);
        assert_eq!(answer(bearer.form(&form)).await.status, 401);
        let missing = server.form(path, &server.app, &[("token", "")]).await;
        assert_eq!(missing.0, 400);
        assert!(missing.1.contains("invalid_request"));
        let query = format!("{path}?token={token}");
        assert_eq!(server.form(&query, &server.app, &[]).await.0, 400);
        let twice = [("token", token.as_str()), ("token", token.as_str())];
        assert_eq!(server.form(path, &server.app, &twice).await.0, 400);
        let hint = ("token_type_hint", "access_token");
        let hints = [("token", token.as_str()), hint, hint];
        let (status, told) = server.form(path, &server.app, &hints).await;
        assert_eq!(status, 400, "{told}");
        assert!(told.contains("the parameter token_type_hint "), "{told}");
        let got = answer(server.get(path)).await;
        assert_eq!(
            (got.status, got.header("allow")),
            (405, Some("POST, OPTIONS"))
        );
    }
    // A public client proves nothing, so that it cannot scan for tokens; its own it may revoke.
    let form = [("client_id", public.id.as_str()), ("token", token.as_str())];
    let request = |path| server.request(Method::POST, path).form(&form);
    let introspected = answer(request("/oauth2/introspect")).await;
    assert_eq!(
        (
            introspected.status,
            introspected.header("countersign-reason")
        ),
        (401, Some("public_client"))
    );
    let revoked = answer(request("/oauth2/revoke")).await;
    assert_eq!(
        (revoked.status, revoked.json()["error"].as_str()),
        (400, Some("invalid_grant"))
    );
    assert_eq!(server.introspect(&server.app, &token).await["active"], true);
}

async fn a_revoked_token_is_inactive(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let stranger = server.register(&metadata()).await;
    let (revoked, other) = (
        server.access_token(&server.app).await,
        server.access_token(&server.app).await,
    );
    // RFC 7009 §2.1: another client's token is left alone, and the caller told.
    let (status, body) = server.revoke(&stranger, &revoked).await;
    assert_eq!(status, 400);
    assert!(body.contains("invalid_grant"), "{body}");
    assert_eq!(
        server.introspect(&server.app, &revoked).await["active"],
        true
    );

    for _ in 0..2 {
        assert_eq!(
            server.revoke(&server.app, &revoked).await,
            (200, String::new())
        );
    }
    server.until_inactive(&server.app, &revoked).await;
    assert_eq!(
        server.introspect(&server.app, &revoked).await.to_string(),
        INACTIVE
    );
    assert_eq!(server.introspect(&server.app, &other).await["active"], true);
}

async fn an_entry_disappears_when_no_token_can_match_it(engine: Engine) {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let database = Database::create(engine).await;
    let server = Setup::new().at(database.url()).clock(clock.clone());
    let server = server.start().await;
    let entries =
        async || -> Vec<(i64,)> { database.rows("select expires_at from revocation").await };
    let token = server.access_token(&server.app).await;
    assert_eq!(server.revoke(&server.app, &token).await.0, 200);
    // Verifiers may grant a minute after `exp`, and clocks may differ by five seconds.
    let end = claims(&token)["exp"].as_i64().unwrap() + 65;
    assert_eq!(entries().await, [(end * 1000,)]);
    // Deleted by the same sweep that must leave the entry.
    let assertion = AssertionId::new(&ClientId::parse("a").unwrap(), "x");
    let store = &server.clients.store;
    let over = Timestamp::from_seconds(0);
    assert!(store.first_use(&assertion, over, over).await.unwrap());
    let life = end - 1_800_000_000;
    clock.advance(Duration::from_millis(
        u64::try_from(life).unwrap() * 1000 - 1,
    ));
    let swept = async || -> bool {
        let left: Vec<(i64,)> = database.rows("select expires_at from used_assertion").await;
        left.is_empty()
    };
    soon(async {
        while !swept().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(entries().await, [(end * 1000,)]);
    soon(async {
        while !entries().await.is_empty() {
            // Again and again: a sweep under way would find that its database takes too long.
            clock.advance(Duration::from_mins(1));
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn the_tokens_of_a_client_that_is_disabled_or_removed_are_inactive(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let gateway = ClientId::parse(&server.app.id).unwrap();
    let resources = ResourceAdmin {
        store: server.clients.store.clone(),
        clock: server.clients.clock.clone(),
        entropy: server.clients.entropy.clone(),
        issuer: server.issuer.clone(),
    };
    let resource = ResourceMetadata {
        resource: "https://guarded.example".to_owned(),
        name: "Guarded".to_owned(),
        scopes: vec!["read".to_owned()],
        introspection_clients: vec![gateway.to_string()],
        ..ResourceMetadata::default()
    };
    let cause = Cause::system();
    resources.create(&resource, false, &cause).await.unwrap();
    let client = server
        .register(&ClientMetadata {
            resources: vec![resource.resource.clone()],
            default_resource: Some(resource.resource.clone()),
            ..metadata()
        })
        .await;
    let id = ClientId::parse(&client.id).unwrap();
    let set = async |disabled: bool| {
        let patch = json!({ "disabled": disabled });
        let updated = server.clients.update(&id, &patch, None, &cause).await;
        updated.unwrap();
    };
    let before = server.access_token(&client).await;
    assert_eq!(
        server.introspect(&server.app, &before).await["active"],
        true
    );
    set(true).await;
    server.until_inactive(&server.app, &before).await;
    set(false).await;
    // What was issued before stays revoked; the first new token counts, however soon it is asked for.
    let after = server.access_token(&client).await;
    assert_eq!(server.introspect(&server.app, &after).await["active"], true);
    assert_eq!(
        server.introspect(&server.app, &before).await["active"],
        false
    );
    server.clients.delete(&id, &cause).await.unwrap();
    server.until_inactive(&server.app, &after).await;
}

async fn the_tokens_of_a_client_are_revoked_at_once_and_new_ones_count(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let other = server.register(&metadata()).await;
    let (before, others) = (
        server.access_token(&server.app).await,
        server.access_token(&other).await,
    );
    let id = ClientId::parse(&server.app.id).unwrap();
    let target = Target::Client(id);
    let revoking = server.revocations();
    revoking.revoke(&target, &Cause::system()).await.unwrap();
    server.until_inactive(&server.app, &before).await;
    let after = server.access_token(&server.app).await;
    assert_eq!(server.introspect(&server.app, &after).await["active"], true);
    assert_eq!(server.introspect(&other, &others).await["active"], true);
}

/// The form of a token request for two resources at once.
#[tokio::test]
async fn a_token_for_several_resources_is_told_with_all_of_them() {
    let server = TestServer::start().await;
    let form = [GRANT[0], ("resource", API), ("resource", FILES)];
    let answered = answer(server.by_app().form(&form)).await.json();
    let token = answered["access_token"].as_str().unwrap();
    let told = server.introspect(&server.app, token).await;
    assert_eq!(told["aud"], json!([API, FILES]));
}
