//! Which pages may read answers of the token endpoint (the Fetch standard's CORS protocol).

use countersign::admin::client::ClientMetadata;
use reqwest::{Method, RequestBuilder};

use crate::support::server::{Answer, GRANT, TestServer, answer, metadata};

const REGISTERED: &str = "https://app.example";

/// A server with one client that has registered an origin, and a disabled one with another.
async fn server() -> TestServer {
    let server = TestServer::start().await;
    for (origin, disabled) in [(REGISTERED, false), ("https://disabled.example", true)] {
        let client = ClientMetadata {
            allowed_origins: vec![origin.to_owned()],
            disabled,
            ..metadata()
        };
        let client = server.register(&client).await;
        // After its first request the server knows the client.
        let expected = if disabled { 401 } else { 200 };
        assert_eq!(server.token_for(&client).await.status, expected);
    }
    server
}

async fn from(origin: &str, request: RequestBuilder) -> Answer {
    answer(request.header("origin", origin)).await
}

fn preflight(server: &TestServer) -> RequestBuilder {
    server
        .request(Method::OPTIONS, "/oauth2/token")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization")
}

#[tokio::test]
async fn pages_of_a_registered_origin_may_ask_and_read_the_answer() {
    let server = server().await;
    let asked = from(REGISTERED, preflight(&server)).await;
    assert_eq!(asked.status, 204);
    assert_eq!(asked.header("access-control-allow-methods"), Some("POST"));
    assert_eq!(
        asked.header("access-control-allow-headers"),
        Some("authorization, content-type")
    );
    let granted = from(REGISTERED, server.by_app().form(&GRANT)).await;
    assert_eq!(granted.status, 200);
    let refused = from(REGISTERED, server.token_request().form(&GRANT)).await;
    assert_eq!(refused.status, 401);
    let unread = from(REGISTERED, server.by_app().body("x")).await;
    assert_eq!(unread.status, 400);
    for answer in [granted, refused, unread] {
        assert_eq!(
            answer.header("access-control-expose-headers"),
            Some("countersign-reason, x-request-id")
        );
        allows(&answer, Some(REGISTERED));
    }
    allows(&asked, Some(REGISTERED));
}

#[tokio::test]
async fn pages_of_other_origins_may_not() {
    let server = server().await;
    for origin in [
        "https://attacker.example",
        "https://disabled.example",
        "null",
        "",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.attacker.example",
        "https://sub.app.example",
        "https://app.example/",
        "HTTPS://APP.EXAMPLE",
        "https://app.example, https://attacker.example",
    ] {
        allows(&from(origin, preflight(&server)).await, None);
        allows(&from(origin, server.by_app().form(&GRANT)).await, None);
        allows(
            &from(origin, server.token_request().form(&GRANT)).await,
            None,
        );
    }
    allows(&answer(preflight(&server)).await, None);
    allows(&server.token().await, None);
}

/// Asserts which origin an answer is for. Caches are told that it depends on the origin, and
/// cookies are never allowed.
fn allows(answer: &Answer, origin: Option<&str>) {
    assert_eq!(
        answer.header("access-control-allow-origin"),
        origin,
        "{answer:?}"
    );
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    assert_eq!(answer.header("set-cookie"), None);
}
