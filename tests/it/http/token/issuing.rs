//! What a client gets (RFC 6749 §4.4 and §5.1, RFC 9068 §2, RFC 8707).

use std::collections::HashSet;

use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock as _, ManualClock, SystemClock, Timestamp},
};
use countersign_verifier::{Expectation, KeySet, VerifyError, base64url, verify};
use serde_json::{Value, json};

use crate::support::{
    database::Engine,
    oracle,
    server::{API, Answer, FILES, GRANT, ISSUER, Registered, Setup, TestServer, answer, metadata},
};

on_both_engines! {
    a_client_gets_a_token_with_basic_and_with_post,
    a_token_says_what_rfc_9068_asks_for,
}

/// RFC 6749 §2.3.1 and §5.1.
async fn a_client_gets_a_token_with_basic_and_with_post(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let poster = server.register(&by_post()).await;
    for request in [
        server.by_app().form(&GRANT),
        server.token_request().form(&with_secret(&poster)),
    ] {
        let answer = answer(request).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("www-authenticate"), None);
        let body = answer.json();
        let names: HashSet<&str> = body
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let expected = ["access_token", "token_type", "expires_in", "scope"];
        assert_eq!(names, HashSet::from(expected));
        assert_eq!(body["token_type"], "Bearer");
        assert_eq!(body["scope"], "read write");
    }
}

/// RFC 9068 §2.1 and §2.2.
async fn a_token_says_what_rfc_9068_asks_for(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let before = now();
    let answer = server.token().await;
    let after = now();
    let (header, claims) = read(&answer);

    let jwks = server.jwks().await;
    let kids: Vec<Value> = serde_json::from_str::<Value>(&jwks).unwrap()["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["kid"].clone())
        .collect();
    assert_eq!(
        header,
        json!({"typ": "at+jwt", "alg": "ES256", "kid": header["kid"]})
    );
    assert!(kids.contains(&header["kid"]), "{header} of {kids:?}");

    let [iat, exp] = ["iat", "exp"].map(|name| claims[name].as_u64().unwrap());
    // The service's clock follows the database's, which may be a moment ahead or behind.
    assert!(
        (before - 1..=after + 1).contains(&iat),
        "{before} {iat} {after}"
    );
    assert_eq!(answer.json()["expires_in"], exp - iat);
    assert_eq!(
        claims,
        json!({
            "iss": ISSUER, "sub": "app", "client_id": "app", "aud": API, "scope": "read write",
            "iat": iat, "exp": exp, "jti": claims["jti"],
        })
    );
    assert_eq!(
        base64url::decode(claims["jti"].as_str().unwrap())
            .unwrap()
            .len(),
        16
    );
}

/// RFC 9068 §4, by our verifier and by four that others wrote.
#[tokio::test]
async fn a_token_is_accepted_by_every_verifier() {
    let server = TestServer::start().await;
    let token = server.token().await.access_token();
    let jwks = server.jwks().await;
    let expected = Expectation {
        issuer: ISSUER.to_owned(),
        audience: Some(API.to_owned()),
        leeway_seconds: 5,
    };
    let keys = KeySet::parse(jwks.as_bytes()).unwrap();
    let ours = serde_json::to_value(verify(&token, &keys, &expected, now()).unwrap()).unwrap();
    assert_eq!(ours["sub"], "app");
    assert_eq!(oracle::jsonwebtoken(&token, &jwks, ISSUER, API), ours);
    for theirs in oracle::independent_tools(&token, &jwks, ISSUER, API) {
        assert_eq!(theirs, ours);
    }
}

/// RFC 8707 §2: several resources may be asked for; RFC 7519 §4.1.3: `aud` is then an array.
#[tokio::test]
async fn several_resources_make_an_audience_of_several() {
    let server = TestServer::start().await;
    for (resources, audience, scope) in [
        (&[FILES][..], json!(FILES), "files:read"),
        (&[API, FILES], json!([API, FILES]), "files:read read write"),
        (&[API, API], json!(API), "read write"),
    ] {
        let mut form = GRANT.to_vec();
        form.extend(resources.iter().map(|resource| ("resource", *resource)));
        let answer = answer(server.by_app().form(&form)).await;
        let (_, claims) = read(&answer);
        assert_eq!(claims["aud"], audience);
        assert_eq!(claims["scope"], scope);
        assert_eq!(answer.json()["scope"], scope);
    }
}

/// RFC 6749 §3.3 and §5.1.
#[tokio::test]
async fn a_client_gets_the_scope_it_asks_for_and_is_always_told_which() {
    let server = TestServer::start().await;
    for (asked, granted) in [
        ("read", "read"),
        ("write read", "read write"),
        ("", "read write"),
    ] {
        let form = [GRANT[0], ("scope", asked)];
        let answer = answer(server.by_app().form(&form)).await;
        assert_eq!(read(&answer).1["scope"], granted);
        assert_eq!(answer.json()["scope"], granted);
    }
    // What the resource knows counts only as far as the client may have it.
    let reader = server
        .register(&ClientMetadata {
            scope: "read".to_owned(),
            ..metadata()
        })
        .await;
    let answer = server.token_for(&reader).await;
    assert_eq!(answer.json()["scope"], "read");
}

/// RFC 6749 Appendix B: a space may be written in either way.
#[tokio::test]
async fn plus_and_percent_20_are_both_a_space() {
    let server = TestServer::start().await;
    for scope in ["read+write", "read%20write"] {
        let body = format!("grant_type=client_credentials&scope={scope}");
        let answer = answer(server.by_app_with(body)).await;
        assert_eq!(answer.json()["scope"], "read write", "{scope}");
    }
}

#[tokio::test]
async fn a_token_lives_up_to_5_percent_shorter_than_its_client_may_have_it() {
    let server = Setup::new()
        .set("tokens.access_token_ttl_seconds", "1000")
        .start()
        .await;
    let own_ttl = server
        .register(&ClientMetadata {
            access_token_ttl_seconds: Some(100),
            ..metadata()
        })
        .await;
    for (client, lives) in [(&server.app, 950..=1000), (&own_ttl, 95..=100)] {
        let mut seen = HashSet::new();
        for _ in 0..60 {
            let answer = server.token_for(client).await;
            let (_, claims) = read(&answer);
            let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
            assert!(lives.contains(&life), "{life} of {lives:?}");
            assert_eq!(answer.json()["expires_in"], life);
            seen.insert(life);
        }
        assert!(seen.len() > 1, "all tokens expire together");
    }
}

/// RFC 7519 §4.1.7.
#[tokio::test]
async fn no_two_tokens_have_the_same_jti() {
    let server = TestServer::start().await;
    let mut seen = HashSet::new();
    for _ in 0..50 {
        let (_, claims) = read(&server.token().await);
        assert!(seen.insert(claims["jti"].to_string()));
    }
}

/// RFC 7519 §4.1.4.
#[tokio::test]
async fn a_token_expires_on_the_second_it_names() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let answer = server.token().await;
    let life = answer.json()["expires_in"].as_u64().unwrap();
    let keys = KeySet::parse(server.jwks().await.as_bytes()).unwrap();
    let expected = Expectation {
        issuer: ISSUER.to_owned(),
        audience: Some(API.to_owned()),
        leeway_seconds: 0,
    };
    let judge =
        |at: u64| verify(&answer.access_token(), &keys, &expected, at).map(|claims| claims.exp);
    let exp = 1_800_000_000 + life;
    assert_eq!(judge(exp - 1), Ok(exp));
    assert_eq!(judge(exp), Err(VerifyError::Expired));
}

/// RFC 6749 §3.2: "The authorization server MUST ignore unrecognized request parameters."
#[tokio::test]
async fn unknown_parameters_are_ignored_and_empty_ones_count_as_absent() {
    let server = TestServer::start().await;
    for extra in [
        "&foo=1&foo=2",
        "&audience=https://elsewhere.example",
        "&redirect_uri=x&code=y",
        "&scope=&resource=&client_id=&client_secret=&client_assertion=",
        "&",
        "&&=",
    ] {
        let body = format!("grant_type=client_credentials{extra}");
        let (_, claims) = read(&answer(server.by_app_with(body)).await);
        assert_eq!(claims["aud"], json!(API), "{extra}");
    }
}

#[tokio::test]
async fn the_media_type_of_a_form_may_have_parameters_and_capitals() {
    let server = TestServer::start().await;
    for media_type in [
        "application/x-www-form-urlencoded; charset=UTF-8",
        "Application/X-WWW-Form-URLEncoded",
    ] {
        let request = server.by_app().header("content-type", media_type);
        let answer = answer(request.body("grant_type=client_credentials")).await;
        assert_eq!(answer.status, 200, "{media_type}");
    }
}

#[tokio::test]
async fn below_a_path_in_the_issuer_everything_works_as_well() {
    let issuer = "https://issuer.example/auth";
    let server = Setup::new().set("issuer", issuer).start().await;
    let request = server
        .request(reqwest::Method::POST, "/auth/oauth2/token")
        .basic_auth(&server.app.id, Some(&server.app.secret))
        .form(&GRANT);
    let (_, claims) = read(&answer(request).await);
    assert_eq!(claims["iss"], issuer);
    let elsewhere = answer(server.by_app().form(&GRANT)).await;
    assert_eq!(elsewhere.status, 404);
}

fn by_post() -> ClientMetadata {
    ClientMetadata {
        token_endpoint_auth_method: Some("client_secret_post".to_owned()),
        ..metadata()
    }
}

fn with_secret(client: &Registered) -> [(&str, &str); 3] {
    [
        GRANT[0],
        ("client_id", &client.id),
        ("client_secret", &client.secret),
    ]
}

/// Header and claims of the token in an answer, unverified.
fn read(answer: &Answer) -> (Value, Value) {
    let token = answer.access_token();
    let parts: Vec<Vec<u8>> = token
        .split('.')
        .map(|part| base64url::decode(part).unwrap())
        .collect();
    let [header, claims, signature] = &parts[..] else {
        panic!("{token} has not three parts")
    };
    assert_eq!(signature.len(), 64);
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap();
    (json(header), json(claims))
}

fn now() -> u64 {
    u64::try_from(SystemClock::new().now().seconds()).unwrap()
}
