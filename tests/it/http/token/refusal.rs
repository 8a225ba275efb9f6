//! Requests that are refused for what they ask (RFC 6749 §5.2, RFC 8707 §2).

use std::sync::Arc;

use countersign::{
    admin::{
        client::ClientMetadata,
        resource::{ResourceAdmin, ResourceMetadata},
    },
    domain::change::Cause,
};
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderName},
};

use super::{INVALID_CLIENT, MALFORMED, REPEATED, Refusal, refused};
use crate::support::server::{API, FILES, FORM, GRANT, TestServer, answer, metadata};

const UNSUPPORTED_GRANT_TYPE: Refusal = (400, "unsupported_grant_type", "grant_type");
const UNAUTHORIZED_CLIENT: Refusal = (400, "unauthorized_client", "grant_type");
const INVALID_SCOPE: Refusal = (400, "invalid_scope", "scope");
const INVALID_TARGET: Refusal = (400, "invalid_target", "resource");
const ADMIN_RESOURCE: Refusal = (400, "invalid_target", "admin_resource");

/// RFC 6749 §3.2: "parameters sent without a value MUST be treated as if they were omitted".
#[tokio::test]
async fn a_request_without_a_grant_type_is_refused() {
    let server = TestServer::start().await;
    for body in [
        "",
        "grant_type=",
        "grant_type",
        "scope=read",
        "Grant_Type=client_credentials",
    ] {
        refused(server.by_app_with(body), MALFORMED).await;
    }
}

/// RFC 6749 §3.2: "Request and response parameters MUST NOT be included more than once."
#[tokio::test]
async fn a_repeated_parameter_is_refused_even_with_the_same_value_or_none() {
    let server = TestServer::start().await;
    let names = [
        "grant_type",
        "client_id",
        "client_secret",
        "client_assertion",
        "scope",
    ];
    for name in names {
        for values in [["x", "x"], ["x", "y"], ["", "x"], ["", ""]] {
            let mut form = vec![(name, values[0]), (name, values[1])];
            if name != "grant_type" {
                form.push(GRANT[0]);
            }
            refused(server.by_app().form(&form), REPEATED).await;
        }
    }
}

/// RFC 6749 §5.2; `password` went with OAuth 2.1, the others are not offered here.
#[tokio::test]
async fn a_grant_type_that_the_service_does_not_know_is_refused() {
    let server = TestServer::start().await;
    for grant_type in [
        "password",
        "implicit",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "urn:ietf:params:oauth:grant-type:token-exchange",
        "CLIENT_CREDENTIALS",
        "client_credentials ",
        "client_credentials\0",
        "client_credentials\r\n",
    ] {
        let form = [
            ("grant_type", grant_type),
            ("username", "alice"),
            ("password", "hunter2"),
            ("code", "1"),
        ];
        refused(server.by_app().form(&form), UNSUPPORTED_GRANT_TYPE).await;
    }
}

/// RFC 6749 §4.4: "The client credentials grant type MUST only be used by confidential clients."
#[tokio::test]
async fn a_client_is_refused_a_grant_it_may_not_use() {
    let server = TestServer::start().await;
    let public = server
        .register(&ClientMetadata {
            token_endpoint_auth_method: Some("none".to_owned()),
            ..metadata()
        })
        .await;
    let form = [GRANT[0], ("client_id", &public.id)];
    refused(server.token_request().form(&form), UNAUTHORIZED_CLIENT).await;

    let without_grants = server
        .register(&ClientMetadata {
            grant_types: Some(Vec::new()),
            ..metadata()
        })
        .await;
    let request = server.token_request();
    let request = request.basic_auth(&without_grants.id, Some(&without_grants.secret));
    refused(request.form(&GRANT), UNAUTHORIZED_CLIENT).await;
}

/// RFC 6749 §3.3.
#[tokio::test]
async fn a_scope_that_is_malformed_or_unknown_or_too_wide_is_refused() {
    let server = TestServer::start().await;
    for scope in [
        "admin",
        "read admin",
        "READ",
        // Of another resource than the one that is asked for.
        "files:read",
        " ",
        "read  write",
        " read",
        "read ",
        "read+write",
        "read\"",
        "read\\",
        "read\0",
        "read\r\nX-Injected: 1",
        "read\twrite",
        "réad",
        &"x".repeat(129),
    ] {
        let form = [GRANT[0], ("scope", scope)];
        refused(server.by_app().form(&form), INVALID_SCOPE).await;
    }
    let reader = server
        .register(&ClientMetadata {
            scope: "read".to_owned(),
            ..metadata()
        })
        .await;
    let request = server.token_request();
    let request = request.basic_auth(&reader.id, Some(&reader.secret));
    refused(
        request.form(&[GRANT[0], ("scope", "read write")]),
        INVALID_SCOPE,
    )
    .await;
}

/// RFC 8707 §2: "The value MUST be an absolute URI … The URI MUST NOT include a fragment component."
#[tokio::test]
async fn a_resource_that_is_malformed_or_unknown_or_not_the_clients_is_refused() {
    let server = TestServer::start().await;
    let admin = format!("{}/admin", server.issuer);
    for resource in [
        "https://unknown.example",
        // Compared as text: nothing that merely resembles it.
        "https://api.example/",
        "HTTPS://api.example",
        "https://api.example#",
        "https://api.example#fragment",
        "api.example",
        "/",
        " ",
        "https://api.example\0",
        "https://api.example\r\n",
        "https://äpi.example",
        "../../etc/passwd",
        // Registered, but not for this client.
        &admin,
        &format!("https://api.example/{}", "x".repeat(600)),
    ] {
        let form = [GRANT[0], ("resource", resource)];
        refused(server.by_app().form(&form), INVALID_TARGET).await;
        let form = [GRANT[0], ("resource", API), ("resource", resource)];
        refused(server.by_app().form(&form), INVALID_TARGET).await;
    }
    let narrow = server
        .register(&ClientMetadata {
            resources: vec![API.to_owned()],
            ..metadata()
        })
        .await;
    let request = server.token_request();
    let request = request.basic_auth(&narrow.id, Some(&narrow.secret));
    refused(
        request.form(&[GRANT[0], ("resource", FILES)]),
        INVALID_TARGET,
    )
    .await;
}

/// Whoever receives a token could use it at the admin interface, too.
#[tokio::test]
async fn a_token_for_the_admin_interface_is_for_nothing_else() {
    let server = TestServer::start().await;
    let admin = format!("{}/admin", server.issuer);
    let operator = server
        .register(&ClientMetadata {
            scope: "read clients:read".to_owned(),
            resources: vec![API.to_owned(), admin.clone()],
            ..metadata()
        })
        .await;
    let request = |resources: &[&str]| {
        let mut form = GRANT.to_vec();
        form.extend(resources.iter().map(|resource| ("resource", *resource)));
        let request = server.token_request();
        let request = request.basic_auth(&operator.id, Some(&operator.secret));
        request.form(&form)
    };
    for resources in [[API, &admin], [&admin, API]] {
        refused(request(&resources), ADMIN_RESOURCE).await;
    }
    for (resource, scope) in [(API, "read"), (&admin, "clients:read")] {
        let granted = answer(request(&[resource])).await;
        assert_eq!(granted.json()["scope"], scope);
    }
}

#[tokio::test]
async fn a_token_is_for_16_resources_at_most() {
    let server = TestServer::start().await;
    let resources = ResourceAdmin {
        store: Arc::clone(&server.clients.store),
        clock: server.clients.clock.clone(),
        entropy: server.clients.entropy.clone(),
        issuer: server.issuer.clone(),
    };
    let uris: Vec<String> = (0..17)
        .map(|number| format!("https://{number}.example"))
        .collect();
    for uri in &uris {
        let metadata = ResourceMetadata {
            resource: uri.clone(),
            name: "One of many".to_owned(),
            ..ResourceMetadata::default()
        };
        let created = resources.create(&metadata, false, &Cause::system()).await;
        created.unwrap();
    }
    let client = server
        .register(&ClientMetadata {
            resources: uris.clone(),
            default_resource: None,
            ..metadata()
        })
        .await;
    let request = |uris: &[String]| {
        let mut form = GRANT.to_vec();
        form.extend(uris.iter().map(|uri| ("resource", uri.as_str())));
        let request = server.token_request();
        request
            .basic_auth(&client.id, Some(&client.secret))
            .form(&form)
    };
    let granted = answer(request(&uris[..16])).await;
    assert_eq!(granted.status, 200, "{}", granted.body);
    refused(request(&uris), INVALID_TARGET).await;
}

#[tokio::test]
async fn a_client_without_a_default_resource_has_to_name_one() {
    let server = TestServer::start().await;
    let client = server
        .register(&ClientMetadata {
            default_resource: None,
            ..metadata()
        })
        .await;
    let request = || {
        let request = server.token_request();
        request.basic_auth(&client.id, Some(&client.secret))
    };
    let missing = (400, "invalid_target", "resource_required");
    refused(request().form(&GRANT), missing).await;
    refused(request().form(&[GRANT[0], ("resource", "")]), missing).await;
    let named = answer(request().form(&[GRANT[0], ("resource", API)])).await;
    assert_eq!(named.status, 200, "{}", named.body);
}

/// RFC 6749 §2.3.1: credentials "MUST NOT be included in the request URI".
#[tokio::test]
async fn the_query_string_is_never_read() {
    let server = TestServer::start().await;
    let query = |form: &str| format!("/oauth2/token?{form}");
    let all = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}",
        server.app.id, server.app.secret
    );
    let post = |path: &str, body: &'static str| {
        let request = server.request(Method::POST, path);
        request.header(CONTENT_TYPE, FORM).body(body)
    };
    refused(post(&query(&all), ""), MALFORMED).await;
    refused(
        post(&query(&all), "grant_type=client_credentials"),
        INVALID_CLIENT,
    )
    .await;
    // Nor does it get in the way.
    let request = server
        .request(Method::POST, &query("grant_type=password&scope=admin"))
        .basic_auth(&server.app.id, Some(&server.app.secret));
    let granted = answer(request.form(&GRANT)).await;
    assert_eq!(granted.json()["scope"], "read write");
}

/// RFC 6749 §3.2: "The client MUST use the HTTP POST method"; RFC 9110 §15.5.6.
#[tokio::test]
async fn other_methods_than_post_are_refused() {
    let server = TestServer::start().await;
    for method in [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::TRACE,
    ] {
        let request = server
            .request(
                method.clone(),
                "/oauth2/token?grant_type=client_credentials",
            )
            .basic_auth(&server.app.id, Some(&server.app.secret));
        let answer = answer(request).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("POST, OPTIONS"), "{method}");
        assert_eq!(answer.body, "", "{method}");
    }
}

/// RFC 6749 §5.2 allows few characters in `error_description`; input is none of it anyway.
#[tokio::test]
async fn nothing_of_a_request_comes_back() {
    let server = TestServer::start().await;
    let canary = "canary-4711";
    for name in [
        "grant_type",
        "client_id",
        "client_secret",
        "scope",
        "resource",
        "state",
    ] {
        let mut form = vec![("client_id", "app"), ("client_secret", "wrong"), GRANT[0]];
        form.retain(|(other, _)| *other != name);
        form.push((name, canary));
        let request = server
            .token_request()
            .header(HeaderName::from_static("x-request-id"), canary)
            .header(
                HeaderName::from_static("origin"),
                "https://canary-4711.example",
            );
        let answer = answer(request.form(&form)).await;
        assert_eq!(answer.status, 401, "{name}");
        assert!(
            !format!("{answer:?}").contains(canary),
            "{name}: {answer:?}"
        );
    }
}
