//! `GET /.well-known/jwks.json` (RFC 7517 §5, RFC 7638, RFC 9110 §13, RFC 5861).

use std::collections::HashSet;

use countersign_verifier::base64url;
use reqwest::Method;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use crate::support::{
    database::Engine,
    server::{Setup, TestServer, answer},
};

const PATH: &str = "/.well-known/jwks.json";

on_both_engines! {
    the_active_and_the_next_key_are_published_from_the_start,
}

/// RFC 7517 §4 and §9.3, RFC 7518 §6.2.1, RFC 7638 §3.
async fn the_active_and_the_next_key_are_published_from_the_start(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let document: Value = serde_json::from_str(&server.jwks().await).unwrap();
    let keys = document["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(document.as_object().unwrap().len(), 1);
    let mut kids = HashSet::new();
    for key in keys {
        let members: HashSet<&str> = key
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        // Above all no `d`.
        let public = ["kty", "crv", "x", "y", "kid", "use", "alg"];
        assert_eq!(members, HashSet::from(public));
        assert_eq!(
            [&key["kty"], &key["crv"], &key["use"], &key["alg"]],
            ["EC", "P-256", "sig", "ES256"]
        );
        let text = |name: &str| key[name].as_str().unwrap();
        for coordinate in ["x", "y"] {
            assert_eq!(base64url::decode(text(coordinate)).unwrap().len(), 32);
        }
        let (x, y) = (text("x"), text("y"));
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let thumbprint = digest(&SHA256, canonical.as_bytes());
        assert_eq!(text("kid"), base64url::encode(thumbprint.as_ref()));
        assert!(kids.insert(text("kid")));
    }
}

#[tokio::test]
async fn verifiers_may_cache_the_keys_for_as_long_as_is_set() {
    let server = Setup::new()
        .set("keys.jwks_max_age_seconds", "120")
        .start()
        .await;
    let answer = answer(server.get(PATH)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/jwk-set+json")
    );
    assert_eq!(
        answer.header("cache-control"),
        Some("public, max-age=120, stale-if-error=120")
    );
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    assert_eq!(answer.header("set-cookie"), None);
    assert_eq!(answer.header("vary"), None);
}

/// RFC 9110 §8.8.3 and §13.1.2: `If-None-Match` compares weakly.
#[tokio::test]
async fn who_has_the_keys_already_is_told_so_without_a_body() {
    let server = TestServer::start().await;
    let first = answer(server.get(PATH)).await;
    let etag = first.header("etag").unwrap();
    assert!(
        etag.starts_with('"') && etag.ends_with('"') && etag.len() > 20,
        "{etag}"
    );
    assert_eq!(answer(server.get(PATH)).await.header("etag"), Some(etag));

    for known in [
        etag.to_owned(),
        format!("W/{etag}"),
        format!("\"other\", {etag}"),
        format!("\"other\",W/{etag} , \"third\""),
        "*".to_owned(),
    ] {
        let answer = answer(server.get(PATH).header("if-none-match", &known)).await;
        assert_eq!(answer.status, 304, "{known}");
        assert_eq!(answer.body, "");
        for name in ["etag", "cache-control", "access-control-allow-origin"] {
            assert_eq!(answer.header(name), first.header(name), "{name}");
        }
    }
    for other in ["\"other\"", "W/\"other\"", etag.trim_matches('"'), ""] {
        let answer = answer(server.get(PATH).header("if-none-match", other)).await;
        assert_eq!(answer.status, 200, "{other}");
        assert_eq!(answer.body, first.body);
    }
    // Several header lines are one list.
    let request = server.get(PATH).header("if-none-match", "\"other\"");
    assert_eq!(
        answer(request.header("if-none-match", etag)).await.status,
        304
    );
}

/// RFC 9110 §9.3.2.
#[tokio::test]
async fn head_tells_what_get_would() {
    let server = TestServer::start().await;
    let got = answer(server.get(PATH)).await;
    let head = answer(server.request(Method::HEAD, PATH)).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.body, "");
    for name in ["etag", "cache-control", "content-type", "content-length"] {
        assert!(got.header(name).is_some(), "{name}");
        assert_eq!(head.header(name), got.header(name), "{name}");
    }
}

#[tokio::test]
async fn pages_of_any_origin_may_read_the_keys() {
    let server = TestServer::start().await;
    let preflight = server
        .request(Method::OPTIONS, PATH)
        .header("origin", "https://anyone.example")
        .header("access-control-request-method", "GET");
    let answer = answer(preflight).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        answer.header("access-control-allow-methods"),
        Some("GET, HEAD")
    );
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn the_keys_cannot_be_written() {
    let server = TestServer::start().await;
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let answer = answer(server.request(method.clone(), PATH)).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(
            answer.header("allow"),
            Some("GET, HEAD, OPTIONS"),
            "{method}"
        );
    }
}
