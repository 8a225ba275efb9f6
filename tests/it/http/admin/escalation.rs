//! Nobody gets further than their own authority: neither by granting themselves or others more, nor
//! by taking over, weakening or removing whoever has more.

use countersign::domain::{change::Cause, id::ClientId};

use super::*;

/// What the attacker may do.
const OWN: &str = "clients:read clients:write resources:read resources:write";

/// Every kind of attempt: method, path, body. All must be refused, and change nothing.
fn attempts(secret: &str) -> Vec<(&'static str, String, Value)> {
    let new = |scope: &str, resources: &[&str]| json!({ "client_name": "Mine", "scope": scope, "resources": resources });
    let above = "/admin/v1/clients/above".to_owned();
    let clients = "/admin/v1/clients".to_owned();
    let dormant = "/admin/v1/clients/dormant".to_owned();
    let asleep = "/admin/v1/clients/asleep".to_owned();
    let me = "/admin/v1/clients/me".to_owned();
    let mut attempts = vec![
        // Making somebody with more.
        ("POST", clients.clone(), new("keys:rotate", &[ADMIN])),
        ("POST", clients.clone(), new(ALL, &[ADMIN, API])),
        ("POST", clients.clone(), new("users:write", &[API, ADMIN])),
        ("POST", clients.clone(), {
            let mut disabled = new("families:read", &[ADMIN]);
            disabled["disabled"] = true.into();
            disabled
        }),
        ("POST", clients.clone(), {
            let mut public = new("keys:read", &[ADMIN]);
            public["token_endpoint_auth_method"] = "none".into();
            public
        }),
        // Giving oneself more.
        ("PATCH", me.clone(), json!({ "scope": ALL })),
        (
            "PATCH",
            me.clone(),
            json!({ "scope": format!("{OWN} keys:read") }),
        ),
        // The scopes are there already, the interface is what is missing; and the other way round.
        (
            "PATCH",
            dormant.clone(),
            json!({ "resources": [API, ADMIN] }),
        ),
        (
            "PATCH",
            dormant,
            json!({ "resources": [ADMIN], "default_resource": ADMIN }),
        ),
        (
            "PATCH",
            "/admin/v1/clients/empty".to_owned(),
            json!({ "scope": "keys:rotate" }),
        ),
        // Waking somebody with more, whose secret one may know.
        ("PATCH", asleep.clone(), json!({ "disabled": false })),
        ("DELETE", asleep, Value::Null),
        // Removing somebody with more, in order to take the name, or to be rid of them.
        ("DELETE", above.clone(), Value::Null),
        ("POST", format!("{above}/secrets"), Value::Null),
        ("DELETE", format!("{above}/secrets/{secret}"), Value::Null),
    ];
    // Changing somebody with more in any way, also downwards or not at all.
    for patch in [
        json!({}),
        json!({ "client_name": "Harmless" }),
        json!({ "disabled": true }),
        json!({ "scope": "clients:read" }),
        json!({ "scope": "" }),
        json!({ "resources": [API] }),
        json!({ "resources": [] }),
        json!({ "token_endpoint_auth_method": "none", "grant_types": null }),
        json!({ "token_endpoint_auth_method": "client_secret_post" }),
        json!({ "access_token_ttl_seconds": 1 }),
        json!({ "allowed_origins": ["https://evil.example"] }),
        json!({ "default_resource": API }),
        json!({ "grant_types": [] }),
        json!({ "client_name": "Harmless", "revision": 1 }),
    ] {
        attempts.push(("PATCH", above.clone(), patch));
    }
    attempts
}

#[tokio::test]
async fn no_attempt_to_get_further_than_ones_own_authority_succeeds() {
    let server = TestServer::start().await;
    let cause = Cause::system();
    let create = async |id: &str, metadata: &ClientMetadata| {
        let id = ClientId::parse(id).unwrap();
        let created = server
            .clients
            .create(Some(id), metadata, false, &cause)
            .await;
        let (client, secret) = created.unwrap();
        Registered {
            id: client.client_id.to_string(),
            secret: secret.unwrap().expose().to_owned(),
            secret_id: client.secrets.first().map(|secret| secret.id),
        }
    };
    let above = create("above", &operator(ALL)).await;
    let mut dormant = operator("keys:rotate read");
    dormant.resources = vec![API.to_owned()];
    create("dormant", &dormant).await;
    create("empty", &operator("read")).await;
    let mut asleep = operator("keys:rotate");
    asleep.disabled = true;
    create("asleep", &asleep).await;
    let me = create("me", &operator(OWN)).await;
    let desk = Desk::with(&server, token_of(&server, &me, ADMIN).await).await;

    let everything = async || desk.get("/admin/v1/clients").await.json();
    let before = everything().await;
    let secret = above.secret_id.unwrap().to_string();
    for (method, path, body) in attempts(&secret) {
        let mut request = desk.request(method, &path);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = desk.send(request).await;
        assert_eq!(answer.status, 403, "{method} {path} {body}: {answer:?}");
        is_problem(&answer, 403, "forbidden");
        assert_eq!(everything().await, before, "{method} {path} {body}");
    }
}

#[tokio::test]
async fn within_ones_own_authority_everything_goes() {
    let server = TestServer::start().await;
    let me = server.register(&operator(OWN)).await;
    let desk = Desk::with(&server, token_of(&server, &me, ADMIN).await).await;
    // Somebody with as much, and somebody whose scopes mean nothing at this interface.
    let equal = json!({ "client_name": "Equal", "scope": OWN, "resources": [ADMIN] });
    let created = desk.post("/admin/v1/clients", &equal).await;
    assert_eq!(created.status, 201, "{created:?}");
    let elsewhere = json!({ "client_name": "Else", "scope": "keys:rotate", "resources": [API] });
    assert_eq!(desk.post("/admin/v1/clients", &elsewhere).await.status, 201);
    let id = created.json()["client_id"].as_str().unwrap().to_owned();
    let place = format!("/admin/v1/clients/{id}");
    let less = json!({ "scope": "clients:read" });
    assert_eq!(desk.patch(&place, &less).await.status, 200);
    let secrets = format!("{place}/secrets");
    assert_eq!(desk.send(desk.request("POST", &secrets)).await.status, 201);
    assert_eq!(desk.delete(&place).await.status, 204);
    let own = format!("/admin/v1/clients/{}", me.id);
    let renamed = desk.patch(&own, &json!({ "client_name": "Me" })).await;
    assert_eq!(renamed.status, 200);
}

/// A token with fewer scopes than its client has is worth no more than they are.
#[tokio::test]
async fn it_is_the_tokens_scope_that_counts_not_the_clients() {
    let server = TestServer::start().await;
    let me = server.register(&operator(ALL)).await;
    let request = server.token_request().basic_auth(&me.id, Some(&me.secret));
    let form = [GRANT[0], ("resource", ADMIN), ("scope", "clients:write")];
    let token = answer(request.form(&form)).await.access_token();
    let desk = Desk::with(&server, token).await;
    let own = format!("/admin/v1/clients/{}", me.id);
    let answer = desk.patch(&own, &json!({ "client_name": "Me" })).await;
    is_problem(&answer, 403, "forbidden");
}
