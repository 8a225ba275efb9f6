//! Who may call. Walks the `OpenAPI` document, so that no call escapes.

use countersign::{
    clock::Timestamp,
    domain::{change::Cause, id::ClientId},
};
use serde_json::json;

use super::*;
use crate::support::server::Setup;

/// A path with something in place of its parameters.
fn filled(path: &str) -> String {
    path.replace("{client_id}", "nobody")
        .replace("{kid}", "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U")
        .replace("{secret_id}", "019f0000-0000-7000-8000-000000000000")
        .replace("{id}", "019f0000-0000-7000-8000-000000000000")
}

/// The one scope that a call needs.
fn scope_of(call: &Value) -> String {
    let security = call["security"].as_array().unwrap();
    assert_eq!(security.len(), 1);
    let scopes = security[0]["operator"].as_array().unwrap();
    assert_eq!(scopes.len(), 1);
    scopes[0].as_str().unwrap().to_owned()
}

/// RFC 6750 §3.1: "If the request lacks any authentication information, the resource server SHOULD
/// NOT include an error code".
#[tokio::test]
async fn every_call_refuses_whoever_shows_no_token() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    let calls = calls(&document);
    assert!(calls.len() >= 24, "{}", calls.len());
    for (method, path, call) in calls {
        for credentials in ["", "Basic b3BzOm9wcw==", "DPoP x"] {
            let mut request = request(&server, &method, &filled(&path));
            if !credentials.is_empty() {
                request = request.header(AUTHORIZATION, credentials);
            }
            let answer = answer(request).await;
            is_problem(&answer, 401, "unauthenticated");
            assert_eq!(
                answer.header("www-authenticate"),
                Some("Bearer realm=\"countersign-admin\""),
                "{method} {path}"
            );
            is_as_described(&document, &method.to_lowercase(), &filled(&path), &answer);
        }
        assert!(
            ALL.split(' ').any(|scope| scope == scope_of(&call)),
            "{path}"
        );
    }
}

#[tokio::test]
async fn every_call_refuses_tokens_that_are_not_an_operators() {
    let server = TestServer::start().await;
    let everything = operator(ALL);
    let both = server.register(&everything).await;
    let disabled = server.register(&everything).await;
    let deleted = server.register(&everything).await;
    let demoted = server.register(&everything).await;
    let mut tokens = vec![
        ("ordinary", server.token().await.access_token()),
        (
            "of an operator for something else",
            token_of(&server, &both, API).await,
        ),
        ("malformed", "not-a-token".to_owned()),
        ("signed with nothing", {
            let token = token_of(&server, &both, ADMIN).await;
            token.rsplit_once('.').unwrap().0.to_owned() + "."
        }),
        ("changed", {
            let token = token_of(&server, &both, ADMIN).await;
            let (content, signature) = token.rsplit_once('.').unwrap();
            let other: String = signature.chars().rev().collect();
            format!("{content}.{other}")
        }),
    ];
    for (what, client) in [
        ("of a disabled operator", &disabled),
        ("of a deleted operator", &deleted),
        ("of one that is no operator any more", &demoted),
    ] {
        tokens.push((what, token_of(&server, client, ADMIN).await));
    }
    let id = |client: &Registered| ClientId::parse(&client.id).unwrap();
    let cause = Cause::system();
    let clients = &server.clients;
    let patch = json!({ "disabled": true });
    clients
        .update(&id(&disabled), &patch, None, &cause)
        .await
        .unwrap();
    clients.delete(&id(&deleted), &cause).await.unwrap();
    let patch = json!({ "resources": [API] });
    clients
        .update(&id(&demoted), &patch, None, &cause)
        .await
        .unwrap();
    // Whoever asks for an unknown client waits for one look, after which the changes are known.
    let refused = server
        .token_request()
        .basic_auth("nobody", Some("x"))
        .form(&GRANT);
    assert_eq!(answer(refused).await.status, 401);

    let document = document(&server).await;
    for (method, path, _) in calls(&document) {
        for (what, token) in &tokens {
            let request = request(&server, &method, &filled(&path)).bearer_auth(token);
            let answer = answer(request).await;
            is_problem(&answer, 401, "invalid-token");
            let challenge = "Bearer realm=\"countersign-admin\", error=\"invalid_token\"";
            assert_eq!(
                answer.header("www-authenticate"),
                Some(challenge),
                "{what}: {path}"
            );
            is_as_described(&document, &method.to_lowercase(), &filled(&path), &answer);
        }
    }
}

#[tokio::test]
async fn every_call_is_reached_with_its_own_scope_alone() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    for (method, path, call) in calls(&document) {
        let scope = scope_of(&call);
        let others = ALL.split(' ').filter(|other| *other != scope);
        let others: Vec<&str> = others.collect();
        let without = token(&server, &others.join(" ")).await;
        let refused = answer(request(&server, &method, &filled(&path)).bearer_auth(without)).await;
        is_problem(&refused, 403, "insufficient-scope");
        let challenge = format!(
            "Bearer realm=\"countersign-admin\", error=\"insufficient_scope\", scope=\"{scope}\""
        );
        assert_eq!(refused.header("www-authenticate"), Some(challenge.as_str()));
        is_as_described(&document, &method.to_lowercase(), &filled(&path), &refused);

        let with = token(&server, &scope).await;
        let request = request(&server, &method, &filled(&path)).bearer_auth(with);
        let reached = answer(request).await;
        assert!(
            ![401, 403].contains(&reached.status),
            "{method} {path}: {reached:?}"
        );
        is_as_described(&document, &method.to_lowercase(), &filled(&path), &reached);
    }
}

/// What the token says is not enough: the client must still have it.
#[tokio::test]
async fn a_scope_that_was_taken_from_the_client_is_gone_from_its_tokens() {
    let server = TestServer::start().await;
    let client = server.register(&operator("clients:read keys:read")).await;
    let desk = Desk::with(&server, token_of(&server, &client, ADMIN).await).await;
    assert_eq!(desk.get("/admin/v1/keys").await.status, 200);
    let id = ClientId::parse(&client.id).unwrap();
    let cause = Cause::system();
    let patch = json!({ "scope": "clients:read" });
    let update = server.clients.update(&id, &patch, None, &cause);
    update.await.unwrap();
    // The node learns of it in a moment.
    while desk.get("/admin/v1/keys").await.status == 200 {}
    is_problem(&desk.get("/admin/v1/keys").await, 403, "insufficient-scope");
    assert_eq!(desk.get("/admin/v1/clients").await.status, 200);
    // Nor does it get more than the token says when the client gets more.
    let patch = json!({ "scope": "clients:read resources:read" });
    let update = server.clients.update(&id, &patch, None, &cause);
    update.await.unwrap();
    is_problem(
        &desk.get("/admin/v1/resources").await,
        403,
        "insufficient-scope",
    );
}

#[tokio::test]
async fn a_token_is_good_until_it_expires() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let desk = Desk::in_time_of(&clock, &server, "keys:read").await;
    assert_eq!(desk.get("/admin/v1/keys").await.status, 200);
    clock.advance(Duration::from_mins(10));
    is_problem(&desk.get("/admin/v1/keys").await, 401, "invalid-token");
}

#[tokio::test]
async fn a_token_is_not_good_for_whoever_takes_the_name_of_its_client() {
    let server = TestServer::start().await;
    let id = ClientId::parse("ops").unwrap();
    let (metadata, cause) = (operator("keys:read"), Cause::system());
    let create = || {
        server
            .clients
            .create(Some(id.clone()), &metadata, false, &cause)
    };
    let (_, secret) = create().await.unwrap();
    let registered = Registered {
        id: "ops".to_owned(),
        secret: secret.unwrap().expose().to_owned(),
        secret_id: None,
    };
    let desk = Desk::with(&server, token_of(&server, &registered, ADMIN).await).await;
    server.clients.delete(&id, &cause).await.unwrap();
    create().await.unwrap();
    while desk.get("/admin/v1/keys").await.status == 200 {}
    is_problem(&desk.get("/admin/v1/keys").await, 401, "invalid-token");
}

/// RFC 6750 §2 and §3.1.
#[tokio::test]
async fn one_token_in_one_header_and_nowhere_else() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let (keys, token) = ("/admin/v1/keys", &desk.token);
    let plain = || request(&server, "GET", keys);
    let bearer = format!("Bearer {token}");
    // "the string "Bearer" is case-insensitive" (RFC 9110 §11.1)
    let lower = plain().header(AUTHORIZATION, format!("bEARER {token}"));
    assert_eq!(desk.send(lower).await.status, 200);
    let in_query = request(&server, "GET", &format!("{keys}?access_token={token}"));
    is_problem(&desk.send(in_query).await, 401, "unauthenticated");
    let beside = desk.get(&format!("{keys}?access_token={token}")).await;
    assert_eq!(pointers(&beside), ["/access_token"]);
    assert!(!beside.body.contains(token.as_str()));
    for request in [
        plain()
            .header(AUTHORIZATION, &bearer)
            .header(AUTHORIZATION, &bearer),
        plain()
            .header(AUTHORIZATION, &bearer)
            .header(AUTHORIZATION, "Basic eDp5"),
        plain().header(AUTHORIZATION, "Bearer"),
        plain().header(AUTHORIZATION, "Bearer "),
        plain().header(AUTHORIZATION, format!("{bearer} x")),
        plain().header(AUTHORIZATION, format!("Bearer \"{token}\"")),
        plain().header(AUTHORIZATION, &b"Bearer \xff"[..]),
    ] {
        let answer = desk.send(request).await;
        is_problem(&answer, 400, "malformed");
        let challenge = "Bearer realm=\"countersign-admin\", error=\"invalid_request\"";
        assert_eq!(answer.header("www-authenticate"), Some(challenge));
    }
}

#[tokio::test]
async fn other_methods_and_paths_are_refused_as_problems() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
        ] {
            let known = if method == "HEAD" {
                "get"
            } else {
                &method.to_lowercase()
            };
            if methods.get(known).is_some() {
                continue;
            }
            let answer = answer(request(&server, method, &filled(path))).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            let allow = answer.header("allow").unwrap();
            for method in methods.as_object().unwrap().keys() {
                assert!(allow.contains(&method.to_uppercase()), "{allow}: {path}");
            }
            if method != "HEAD" {
                is_problem(&answer, 405, "method-not-allowed");
            }
        }
    }
    for path in [
        "/admin",
        "/admin/v1",
        "/admin/v1/nothing",
        "/admin/v1/clients/a/b",
    ] {
        is_problem(
            &answer(request(&server, "GET", path)).await,
            404,
            "not-found",
        );
    }
}

#[tokio::test]
async fn ids_that_nothing_can_have_are_not_found() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    for id in [
        "%00",
        "a%00b",
        "%ff",
        "a%2Fb",
        "%20",
        "ä",
        &"x".repeat(65),
        &"x".repeat(4000),
    ] {
        for (method, path) in [
            ("GET", "/admin/v1/clients/{}"),
            ("DELETE", "/admin/v1/clients/{}"),
            ("POST", "/admin/v1/clients/{}/secrets"),
            ("DELETE", "/admin/v1/clients/app/secrets/{}"),
            ("DELETE", "/admin/v1/resources/{}"),
            ("GET", "/admin/v1/families/{}"),
            ("POST", "/admin/v1/families/{}/revoke"),
            ("POST", "/admin/v1/keys/{}/revoke"),
            ("GET", "/admin/v1/users/{}"),
            ("DELETE", "/admin/v1/users/{}"),
            ("GET", "/admin/v1/users/{}/consents"),
            ("DELETE", "/admin/v1/users/{}/consents/app"),
        ] {
            let request = desk.request(method, &path.replace("{}", id));
            is_problem(&desk.send(request).await, 404, "not-found");
        }
        let path = format!("/admin/v1/clients/{id}");
        is_problem(&desk.patch(&path, &json!({})).await, 404, "not-found");
    }
}
