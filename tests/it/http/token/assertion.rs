//! Client assertions (RFC 7523 as RFC 10070 has it): `private_key_jwt`.

use std::{
    net::{IpAddr, TcpListener},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock as _, ManualClock, SystemClock, Timestamp},
};
use countersign_verifier::base64url;
use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use ring::hmac;
use serde_json::{Value, json};

use super::{INVALID_CLIENT, Refusal, SEVERAL_WAYS, refused};
use crate::support::{
    client,
    database::{Cluster, Durability, Engine},
    jwt::{SigningKey, input, jwks},
    process::pause,
    server::{Answer, GRANT, ISSUER, Registered, Setup, TestServer, answer, metadata},
    site::Site,
};

const KIND: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

const fn because(reason: &'static str) -> Refusal {
    (401, "invalid_client", reason)
}

const ALGORITHM: Refusal = because("assertion_algorithm");
const AUDIENCE: Refusal = because("assertion_audience");
const EXPIRED: Refusal = because("assertion_expired");
const KEYS_UNAVAILABLE: Refusal = because("client_keys_unavailable");
const LIFETIME: Refusal = because("assertion_lifetime");
const MALFORMED: Refusal = because("assertion_malformed");
const NOT_YET_VALID: Refusal = because("assertion_not_yet_valid");
const REPLAYED: Refusal = because("assertion_replayed");
const SUBJECT: Refusal = because("assertion_subject");
const TYPE: Refusal = because("assertion_type");

on_both_engines! {
    an_assertion_authenticates_its_client,
    an_assertion_is_good_for_one_use,
    an_assertion_is_good_at_one_endpoint,
    of_many_uses_of_one_assertion_at_once_exactly_one_succeeds,
    a_client_and_its_keys_work_with_the_first_request_after_their_registration,
    a_disabled_client_is_refused_and_its_assertion_not_used_up,
}

/// A setup that lets tests fail as often as they like.
fn unlimited() -> Setup {
    Setup::new()
        .set("limits.failures_per_minute", "0")
        .set("limits.failures_per_address_per_minute", "0")
}

/// A client that signs.
struct Signer {
    client: Registered,
    key: SigningKey,
}

impl Signer {
    async fn register(server: &TestServer) -> Self {
        let key = SigningKey::new("key-1");
        let client = server.register(&with_keys(&jwks(&[&key]))).await;
        Self { client, key }
    }

    fn claims(&self) -> Value {
        claims(&self.client.id, SystemClock::new().now())
    }

    /// Claims with this member in place of its own, or without it where it is null.
    fn claims_with(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims();
        claims[name] = value;
        claims
    }

    fn sign(&self, claims: &Value) -> String {
        self.key
            .sign(&json!({ "typ": "client-authentication+jwt" }), claims)
    }

    fn assertion(&self) -> String {
        self.sign(&self.claims())
    }
}

fn with_keys(jwks: &Value) -> ClientMetadata {
    ClientMetadata {
        token_endpoint_auth_method: Some("private_key_jwt".to_owned()),
        jwks: Some(jwks.clone()),
        ..metadata()
    }
}

fn with_uri(uri: &str) -> ClientMetadata {
    ClientMetadata {
        token_endpoint_auth_method: Some("private_key_jwt".to_owned()),
        jwks_uri: Some(uri.to_owned()),
        ..metadata()
    }
}

/// Good claims, never twice the same.
fn claims(client_id: &str, now: Timestamp) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let now = now.seconds();
    json!({
        "iss": client_id,
        "sub": client_id,
        "aud": ISSUER,
        "iat": now,
        "exp": now + 60,
        "jti": format!("assertion-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
    })
}

fn with(request: RequestBuilder, assertion: &str) -> RequestBuilder {
    request.form(&[
        GRANT[0],
        ("client_assertion_type", KIND),
        ("client_assertion", assertion),
    ])
}

fn present(server: &TestServer, assertion: &str) -> RequestBuilder {
    with(server.token_request(), assertion)
}

async fn taken(server: &TestServer, assertion: &str) -> Answer {
    let answer = answer(present(server, assertion)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

/// RFC 7523 §3; RFC 10070 has clients name the kind, and bears those that do not yet.
async fn an_assertion_authenticates_its_client(engine: Engine) {
    let server = unlimited().on(engine).start().await;
    let signer = Signer::register(&server).await;
    for header in [
        json!({}),
        json!({ "typ": "JWT" }),
        json!({ "typ": "jwt" }),
        json!({ "typ": "client-authentication+jwt" }),
        json!({ "typ": "application/client-authentication+jwt" }),
    ] {
        taken(&server, &signer.key.sign(&header, &signer.claims())).await;
    }
    for (name, value) in [
        ("aud", json!([ISSUER])),
        ("other", json!({ "of": "no concern" })),
        ("jti", json!("j".repeat(255))),
    ] {
        taken(&server, &signer.sign(&signer.claims_with(name, value))).await;
    }
    // One key: it needs no name.
    let nameless = signer
        .key
        .sign_text(r#"{"alg":"ES256"}"#, &signer.claims().to_string());
    taken(&server, &nameless).await;
    let assertion = signer.assertion();
    let form = [
        GRANT[0],
        ("client_id", &signer.client.id),
        ("client_assertion_type", KIND),
        ("client_assertion", &assertion),
    ];
    let answer = answer(server.token_request().form(&form)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let claims = countersign_verifier::jws::Compact::parse(&answer.access_token())
        .unwrap()
        .unverified_payload()
        .expose_unverified()
        .clone();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["client_id"], signer.client.id);
    assert_eq!(claims["sub"], signer.client.id);
}

/// RFC 7523 §3, number 7. Names are those of one client: another may use the same.
async fn an_assertion_is_good_for_one_use(engine: Engine) {
    let server = unlimited().on(engine).start().await;
    let (one, other) = (
        Signer::register(&server).await,
        Signer::register(&server).await,
    );
    let assertion = one.assertion();
    taken(&server, &assertion).await;
    refused(present(&server, &assertion), REPLAYED).await;
    // Another assertion of the same name is no other.
    let mut claims = one.claims();
    claims["jti"] = "shared".into();
    taken(&server, &one.sign(&claims)).await;
    claims["exp"] = (claims["exp"].as_i64().unwrap() + 1).into();
    refused(present(&server, &one.sign(&claims)), REPLAYED).await;
    taken(
        &server,
        &other.sign(&other.claims_with("jti", json!("shared"))),
    )
    .await;
}

/// Not for one use at each.
async fn an_assertion_is_good_at_one_endpoint(engine: Engine) {
    let server = unlimited().on(engine).start().await;
    let signer = Signer::register(&server).await;
    let at = |path: &str, assertion: &str| {
        let form = [
            ("token", "x"),
            ("grant_type", "client_credentials"),
            ("client_assertion_type", KIND),
            ("client_assertion", assertion),
        ];
        server.request(Method::POST, path).form(&form)
    };
    let endpoints = ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"];
    for first in endpoints {
        let assertion = signer.assertion();
        let taken = answer(at(first, &assertion)).await;
        assert_eq!(taken.status, 200, "{first}: {taken:?}");
        for second in endpoints {
            refused(at(second, &assertion), REPLAYED).await;
        }
    }
}

async fn of_many_uses_of_one_assertion_at_once_exactly_one_succeeds(engine: Engine) {
    let server = unlimited().on(engine).start().await;
    let signer = Signer::register(&server).await;
    let assertion = signer.assertion();
    let uses = (0..32).map(|_| answer(present(&server, &assertion)));
    only_one_succeeds(&join_all(uses).await);
}

fn only_one_succeeds(answers: &[Answer]) {
    let count = |status| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    assert_eq!((count(200), count(401)), (1, answers.len() - 1));
    for answer in answers.iter().filter(|answer| answer.status == 401) {
        assert_eq!(answer.header("countersign-reason"), Some(REPLAYED.2));
    }
}

#[tokio::test]
async fn an_assertion_used_at_one_node_is_refused_at_every_other() {
    let server = unlimited().on(Engine::Postgres).start().await;
    let beside = server.beside().await;
    let signer = Signer::register(&server).await;
    let assertion = signer.assertion();
    taken(&server, &assertion).await;
    refused(
        with(beside.request(Method::POST, "/oauth2/token"), &assertion),
        REPLAYED,
    )
    .await;
    let assertion = signer.assertion();
    assert_eq!(
        answer(with(
            beside.request(Method::POST, "/oauth2/token"),
            &assertion
        ))
        .await
        .status,
        200
    );
    refused(present(&server, &assertion), REPLAYED).await;

    let assertion = signer.assertion();
    let uses = (0..32).map(|number| {
        let node = [
            server.token_request(),
            beside.request(Method::POST, "/oauth2/token"),
        ];
        answer(with(node[number % 2].try_clone().unwrap(), &assertion))
    });
    only_one_succeeds(&join_all(uses).await);
}

/// A fresh look before an unknown client is refused, and before one whose keys have changed.
async fn a_client_and_its_keys_work_with_the_first_request_after_their_registration(
    engine: Engine,
) {
    let rarely = unlimited().set("sync.poll_interval_ms", "10000");
    let server = rarely.on(engine).start().await;
    let mut signer = Signer::register(&server).await;
    taken(&server, &signer.assertion()).await;
    signer.key = SigningKey::new("key-2");
    server
        .update(&signer.client, json!({ "jwks": jwks(&[&signer.key]) }))
        .await;
    taken(&server, &signer.assertion()).await;
}

async fn a_disabled_client_is_refused_and_its_assertion_not_used_up(engine: Engine) {
    let server = unlimited().on(engine).start().await;
    let signer = Signer::register(&server).await;
    taken(&server, &signer.assertion()).await;
    server
        .update(&signer.client, json!({ "disabled": true }))
        .await;
    let assertion = signer.assertion();
    server.renewed().await;
    refused(present(&server, &assertion), because("client_disabled")).await;
    server
        .update(&signer.client, json!({ "disabled": false }))
        .await;
    taken(&server, &assertion).await;
}

/// RFC 10070: the issuer identifier and nothing else. An assertion for a URL may have been obtained
/// by whoever told the client that URL.
#[tokio::test]
async fn an_assertion_for_any_audience_but_the_issuer_is_refused() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    for audience in [
        json!("https://issuer.example/oauth2/token"),
        json!("https://issuer.example/oauth2/par"),
        json!("https://issuer.example/oauth2/introspect"),
        json!("https://attacker.example"),
        json!("https://issuer.example/"),
        json!("https://issuer.example/."),
        json!("https://issuer.example:443"),
        json!("https://ISSUER.example"),
        json!("HTTPS://issuer.example"),
        json!("http://issuer.example"),
        json!("https://issuer.example "),
        json!("https://issuer.example\0"),
        json!("https://issuer.example?"),
        json!("https://issuer.example#"),
        json!(signer.client.id),
        json!(""),
        json!([]),
        json!([ISSUER, "https://attacker.example"]),
        json!(["https://attacker.example", ISSUER]),
        json!([ISSUER, ISSUER]),
        json!([ISSUER, "https://issuer.example/oauth2/token"]),
        json!(["https://issuer.example/oauth2/token"]),
    ] {
        let assertion = signer.sign(&signer.claims_with("aud", audience.clone()));
        let answer = refused(present(&server, &assertion), AUDIENCE).await;
        assert!(!answer.body.contains("attacker"), "{audience}");
    }
}

#[tokio::test]
async fn an_assertion_is_good_for_five_minutes_at_most_and_clocks_may_differ_a_little() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    for (name, seconds, refusal) in [
        ("exp", -300, Some(EXPIRED)),
        ("exp", -30, Some(EXPIRED)),
        ("exp", i64::MIN, Some(EXPIRED)),
        ("exp", -5, None),
        ("exp", 300, None),
        ("exp", 420, Some(LIFETIME)),
        ("exp", 86_400, Some(LIFETIME)),
        ("iat", 10, None),
        ("iat", 90, Some(NOT_YET_VALID)),
        ("iat", -3600, None),
        ("nbf", 10, None),
        ("nbf", 90, Some(NOT_YET_VALID)),
        ("nbf", -3600, None),
    ] {
        let now = SystemClock::new().now().seconds();
        let at = now.saturating_add(seconds).max(0);
        let assertion = signer.sign(&signer.claims_with(name, at.into()));
        match refusal {
            Some(refusal) => drop(refused(present(&server, &assertion), refusal).await),
            None => drop(taken(&server, &assertion).await),
        }
    }
}

/// A claim of a wrong type is no absent claim (CVE-2026-25537).
#[tokio::test]
async fn a_claim_that_is_missing_or_of_a_wrong_type_is_refused() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    for name in ["iss", "sub", "aud", "exp", "jti"] {
        let mut claims = signer.claims();
        claims.as_object_mut().unwrap().remove(name);
        refused(present(&server, &signer.sign(&claims)), MALFORMED).await;
    }
    let now = SystemClock::new().now().seconds();
    for (name, value) in [
        ("exp", json!((now + 60).to_string())),
        ("exp", json!(null)),
        ("exp", json!([now + 60])),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("exp", json!(true)),
        ("iat", json!(now.to_string())),
        ("iat", json!(null)),
        ("iat", json!(-1)),
        ("nbf", json!([])),
        ("nbf", json!("0")),
        ("aud", json!({})),
        ("aud", json!(null)),
        ("aud", json!(1)),
        ("aud", json!([1])),
        ("aud", json!([[ISSUER]])),
        ("aud", json!([null])),
        ("iss", json!(null)),
        ("iss", json!([signer.client.id])),
        ("iss", json!("")),
        ("sub", json!(null)),
        ("sub", json!({})),
        ("sub", json!("")),
        ("jti", json!("")),
        ("jti", json!(1)),
        ("jti", json!(null)),
        ("jti", json!(["a"])),
        ("jti", json!("j".repeat(256))),
    ] {
        let assertion = signer.sign(&signer.claims_with(name, value.clone()));
        let answer = answer(present(&server, &assertion)).await;
        let told = (answer.status, answer.header("countersign-reason"));
        assert_eq!(told, (401, Some(MALFORMED.2)), "{name}: {value}");
    }
    // Two readers could see two audiences.
    let twice = signer
        .claims()
        .to_string()
        .replacen('{', r#"{"aud":"x","#, 1);
    let header = r#"{"alg":"ES256","kid":"key-1"}"#;
    refused(
        present(&server, &signer.key.sign_text(header, &twice)),
        MALFORMED,
    )
    .await;
    for payload in ["", "null", "[]", "\"text\"", "{", "nonsense"] {
        let assertion = signer.key.sign_text(header, payload);
        refused(present(&server, &assertion), MALFORMED).await;
    }
}

#[tokio::test]
async fn an_assertion_proves_only_whom_its_key_belongs_to() {
    let server = unlimited().start().await;
    let (one, other) = (
        Signer::register(&server).await,
        Signer::register(&server).await,
    );
    // Signed by one, about the other.
    for claims in [other.claims(), claims("nobody", SystemClock::new().now())] {
        refused(present(&server, &one.sign(&claims)), INVALID_CLIENT).await;
    }
    for (name, value) in [("iss", &other.client.id), ("sub", &other.client.id)] {
        let assertion = one.sign(&one.claims_with(name, value.as_str().into()));
        refused(present(&server, &assertion), SUBJECT).await;
    }
    // A client that authenticates otherwise has no keys.
    let claims = claims(&server.app.id, SystemClock::new().now());
    refused(present(&server, &one.sign(&claims)), INVALID_CLIENT).await;
    // The request says that it comes from somebody else.
    for id in [other.client.id.as_str(), "nobody", "app"] {
        let assertion = one.assertion();
        let form = [
            GRANT[0],
            ("client_id", id),
            ("client_assertion_type", KIND),
            ("client_assertion", &assertion),
        ];
        refused(server.token_request().form(&form), INVALID_CLIENT).await;
    }
}

#[tokio::test]
async fn a_client_that_signs_authenticates_in_no_other_way() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    let id = signer.client.id.as_str();
    for request in [
        server.token_request().form(&[GRANT[0], ("client_id", id)]),
        server
            .token_request()
            .form(&[GRANT[0], ("client_id", id), ("client_secret", "x")]),
        server.token_request().basic_auth(id, Some("")).form(&GRANT),
        server
            .token_request()
            .basic_auth(id, Some("x"))
            .form(&GRANT),
    ] {
        refused(request, INVALID_CLIENT).await;
    }
    let request = server.token_request().basic_auth(id, Some(""));
    refused(with(request, &signer.assertion()), SEVERAL_WAYS).await;
}

#[tokio::test]
async fn both_parameters_of_an_assertion_must_be_there_and_of_the_one_kind() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    let assertion = signer.assertion();
    let assertion = ("client_assertion", assertion.as_str());
    refused(server.token_request().form(&[GRANT[0], assertion]), TYPE).await;
    for kind in [
        "jwt-bearer",
        "urn:ietf:params:oauth:client-assertion-type:saml2-bearer",
        "URN:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
    ] {
        let form = [GRANT[0], ("client_assertion_type", kind), assertion];
        refused(server.token_request().form(&form), TYPE).await;
    }
    let alone = [GRANT[0], ("client_assertion_type", KIND)];
    refused(server.token_request().form(&alone), MALFORMED).await;
}

/// Another algorithm than the key's (CVE-2015-9235, CVE-2022-23540): ES256 and nothing else.
#[tokio::test]
async fn an_assertion_by_another_algorithm_is_refused() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    let claims = || signer.claims().to_string();
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let unsigned = input(
            &json!({ "alg": alg, "kid": "key-1" }).to_string(),
            &claims(),
        );
        // Without a signature it is no JWS, with one it is of no use.
        refused(present(&server, &format!("{unsigned}.")), MALFORMED).await;
        let expected = if alg.is_empty() { MALFORMED } else { ALGORITHM };
        refused(present(&server, &format!("{unsigned}.AAAA")), expected).await;
    }
    // Signed as it should be, and called otherwise.
    for alg in [
        "RS256", "PS256", "ES384", "ES512", "ES256K", "EdDSA", "es256", "ES256 ", "HS256",
    ] {
        let assertion = signer.key.sign(&json!({ "alg": alg }), &signer.claims());
        refused(present(&server, &assertion), ALGORITHM).await;
    }
    // A MAC keyed with what everybody knows of the key.
    let der = [
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ][..],
        signer.key.point(),
    ]
    .concat();
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(&der)
    };
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{encoded}\n-----END PUBLIC KEY-----\n");
    let jwk = signer.key.jwk().to_string();
    let set = jwks(&[&signer.key]).to_string();
    let known: [&[u8]; 7] = [
        &der,
        pem.as_bytes(),
        pem.trim_end().as_bytes(),
        jwk.as_bytes(),
        set.as_bytes(),
        signer.key.point(),
        b"",
    ];
    for secret in known {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        for (alg, expected) in [("HS256", ALGORITHM), ("ES256", INVALID_CLIENT)] {
            let header = json!({ "alg": alg, "kid": "key-1" }).to_string();
            let unsigned = input(&header, &claims());
            let tag = hmac::sign(&key, unsigned.as_bytes());
            let assertion = format!("{unsigned}.{}", base64url::encode(tag.as_ref()));
            refused(present(&server, &assertion), expected).await;
        }
    }
}

/// CVE-2022-21449, and signatures in the encoding of X.509.
#[tokio::test]
async fn a_signature_that_is_none_is_refused() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    let order: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let mut one = [0; 32];
    one[31] = 1;
    for r in [[0; 32], one, order, [0xff; 32]] {
        for s in [[0; 32], one, order, [0xff; 32]] {
            let assertion = signer.assertion();
            let (unsigned, _) = assertion.rsplit_once('.').unwrap();
            let forged = format!("{unsigned}.{}", base64url::encode(&[r, s].concat()));
            refused(present(&server, &forged), INVALID_CLIENT).await;
        }
    }
    let assertion = signer.assertion();
    let (unsigned, signature) = assertion.rsplit_once('.').unwrap();
    let bytes = base64url::decode(signature).unwrap();
    for wrong in [
        &bytes[..63],
        &[&bytes[..], &[0]].concat(),
        &bytes[..32],
        &[0],
    ] {
        let forged = format!("{unsigned}.{}", base64url::encode(wrong));
        refused(present(&server, &forged), INVALID_CLIENT).await;
    }
    // What was presented with wrong signatures is not used up.
    taken(&server, &assertion).await;
}

/// Cross-JWT confusion: whatever was signed for something else proves nothing here.
#[tokio::test]
async fn a_jwt_that_is_no_client_assertion_is_refused() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    let token = server.token().await.access_token();
    refused(present(&server, &token), TYPE).await;
    for typ in [
        "at+jwt",
        "application/at+jwt",
        "dpop+jwt",
        "oauth-authz-req+jwt",
        "logout+jwt",
        "secevent+jwt",
        "token-introspection+jwt",
        "client-authentication",
        "application/jwt",
        "JOSE",
        " JWT",
        "",
    ] {
        let assertion = signer.key.sign(&json!({ "typ": typ }), &signer.claims());
        refused(present(&server, &assertion), TYPE).await;
    }
    let assertion = signer.key.sign(&json!({ "typ": null }), &signer.claims());
    refused(present(&server, &assertion), MALFORMED).await;
}

/// Other serializations, encryption, and header parameters that change what the rest means.
#[tokio::test]
async fn only_a_plain_compact_jws_is_an_assertion() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    for name in ["crit", "b64", "zip", "enc"] {
        for value in [
            json!([]),
            json!(["exp"]),
            json!(false),
            json!("x"),
            json!(null),
        ] {
            let assertion = signer.key.sign(&json!({ name: value }), &signer.claims());
            refused(present(&server, &assertion), MALFORMED).await;
        }
    }
    let assertion = signer.assertion();
    let parts: Vec<&str> = assertion.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        unreachable!()
    };
    let general = json!({
        "payload": payload,
        "signatures": [{ "protected": header, "signature": signature }],
    });
    let flat = json!({ "protected": header, "payload": payload, "signature": signature });
    for other in [
        general.to_string(),
        flat.to_string(),
        format!("{header}.{payload}"),
        format!("{header}..{signature}"),
        format!(".{payload}.{signature}"),
        format!("{assertion}."),
        format!("{assertion}.{signature}.{signature}"),
        format!("{assertion}="),
        format!(" {assertion}"),
        format!("{assertion}\n"),
        assertion.replace('.', ".."),
        "x".repeat(20_000),
    ] {
        refused(present(&server, &other), MALFORMED).await;
    }
    taken(&server, &assertion).await;
}

/// A key in the header is its sender's (CVE-2018-0114), and a URL there is not visited (SSRF).
#[tokio::test]
async fn a_key_or_a_url_in_the_header_counts_for_nothing() {
    let server = unlimited().start().await;
    let signer = Signer::register(&server).await;
    let attacker = SigningKey::new("key-1");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    for header in [
        json!({ "jwk": attacker.jwk() }),
        json!({ "jwk": attacker.jwk(), "kid": "unknown" }),
        json!({ "jku": url }),
        json!({ "x5u": url }),
        json!({ "jku": url, "x5u": url, "kid": "unknown" }),
        json!({ "x5c": ["AAAA"] }),
    ] {
        let assertion = attacker.sign(&header, &signer.claims());
        refused(present(&server, &assertion), INVALID_CLIENT).await;
        // The right key is not put off by them.
        let mut header = header;
        header["kid"] = "key-1".into();
        taken(&server, &signer.key.sign(&header, &signer.claims())).await;
    }
    for kid in [json!(url), json!({ "url": url })] {
        let assertion = attacker.sign(&json!({ "kid": kid }), &signer.claims());
        refused(present(&server, &assertion), MALFORMED).await;
    }
    let claims = signer.claims_with("jwks_uri", url.as_str().into());
    refused(
        present(&server, &attacker.sign(&json!({}), &claims)),
        INVALID_CLIENT,
    )
    .await;
    let nobody_came = listener.accept().unwrap_err();
    assert_eq!(nobody_came.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_key_is_found_by_its_exact_name_and_in_no_other_way() {
    let server = unlimited().start().await;
    let (first, second) = (SigningKey::new("first"), SigningKey::new("second"));
    let client = server.register(&with_keys(&jwks(&[&first, &second]))).await;
    let claims = || claims(&client.id, SystemClock::new().now());
    for key in [&first, &second] {
        taken(&server, &key.sign(&json!({}), &claims())).await;
    }
    // Two keys: none is meant by an assertion that names none.
    let nameless = first.sign_text(r#"{"alg":"ES256"}"#, &claims().to_string());
    refused(present(&server, &nameless), INVALID_CLIENT).await;
    for kid in ["second", "First", "firs", "first1", "unknown"] {
        let assertion = first.sign(&json!({ "kid": kid }), &claims());
        refused(present(&server, &assertion), INVALID_CLIENT).await;
    }
    for kid in [
        json!("../../dev/null"),
        json!("' OR 1=1--"),
        json!("first\0"),
        json!(""),
        json!("f".repeat(10_240)),
        json!(["first"]),
        json!(null),
        json!(1),
    ] {
        let assertion = first.sign(&json!({ "kid": kid }), &claims());
        refused(present(&server, &assertion), MALFORMED).await;
    }
}

/// Without the database nobody can tell whether an assertion has been used.
#[tokio::test]
async fn while_the_database_is_down_no_assertion_is_taken() {
    let cluster = Cluster::start(Durability::Fast);
    let server = Setup::new().at(cluster.url()).start().await;
    let signer = Signer::register(&server).await;
    taken(&server, &signer.assertion()).await;
    cluster.crash();
    let assertion = signer.assertion();
    let down = answer(present(&server, &assertion)).await;
    assert_eq!(down.status, 503, "{down:?}");
    assert_eq!(down.json()["error"], "temporarily_unavailable");
    assert_eq!(down.header("countersign-reason"), Some("database"));
    assert!(down.header("retry-after").is_some());
    // A secret needs no database.
    assert_eq!(server.token().await.status, 200);
    cluster.start_again();
    let mut back = answer(present(&server, &signer.assertion())).await;
    for _ in 0..300 {
        if back.status == 200 {
            break;
        }
        pause(Duration::from_millis(100)).await;
        back = answer(present(&server, &signer.assertion())).await;
    }
    assert_eq!(back.status, 200);
}

/// A setup that may fetch from a site on loopback.
fn that_trusts(site: &Site, folder: &tempfile::TempDir) -> Setup {
    let path = folder.path().join("roots.pem");
    std::fs::write(&path, &site.certificate).unwrap();
    Setup::new()
        .set("outbound.allowed_networks", "127.0.0.1/32")
        .set("outbound.timeout_seconds", "60")
        .set("outbound.ca_certificates", path.to_str().unwrap())
}

#[tokio::test]
async fn a_client_publishes_its_keys_and_exchanges_them() {
    let site = Site::secure();
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = that_trusts(&site, &folder)
        .clock(clock.clone())
        .start()
        .await;
    let signer = server.register(&with_uri(&site.url("/jwks.json"))).await;
    let (old, new) = (SigningKey::new("old"), SigningKey::new("new"));
    site.answer("", &jwks(&[&old]).to_string());
    let sign = |key: &SigningKey| key.sign(&json!({}), &claims(&signer.id, clock.now()));
    let several = (0..8).map(|_| sign(&old)).collect::<Vec<_>>();
    let several = several.iter().map(|assertion| taken(&server, assertion));
    while_time_passes(&clock, join_all(several)).await;
    assert_eq!(site.connections(), 1);
    // The next key is found as soon as it is used.
    clock.advance(Duration::from_secs(20));
    site.answer("", &jwks(&[&old, &new]).to_string());
    taken(&server, &sign(&new)).await;
    assert_eq!(site.connections(), 2);
    taken(&server, &sign(&old)).await;
    // The old one is forgotten when what is remembered has had its time.
    site.answer("", &jwks(&[&new]).to_string());
    taken(&server, &sign(&old)).await;
    clock.advance(Duration::from_mins(6));
    taken(&server, &sign(&new)).await;
    let old = sign(&old);
    while_time_passes(&clock, refused(present(&server, &old), INVALID_CLIENT)).await;
    assert_eq!(site.connections(), 3);
    let metrics = format!("http://{}/metrics", server.admin);
    let metrics = answer(client().build().unwrap().get(metrics)).await.body;
    let counted = "countersign_jwks_fetches_total{outcome=\"fetched\"} 3\n";
    assert!(metrics.contains(counted), "{metrics}");
}

/// The same request from another of this machine's addresses.
fn present_from(address: &str, server: &TestServer, assertion: &str) -> RequestBuilder {
    let client = client().local_address(address.parse::<IpAddr>().unwrap());
    let url = format!("http://{}/oauth2/token", server.public);
    with(client.build().unwrap().post(url), assertion)
}

async fn status(request: RequestBuilder) -> u16 {
    answer(request).await.status
}

#[tokio::test]
async fn after_too_many_failures_what_is_signed_well_is_taken_on() {
    let setup = Setup::new().set("limits.failures_per_address_per_minute", "2");
    let server = setup.start().await;
    let signer = Signer::register(&server).await;
    let forge = || SigningKey::new("key-1").sign(&json!({}), &signer.claims());
    for expected in [401, 401, 429] {
        assert_eq!(status(present(&server, &forge())).await, expected);
    }
    for _ in 0..3 {
        taken(&server, &signer.assertion()).await;
    }
    let used = signer.assertion();
    taken(&server, &used).await;
    refused(present(&server, &used), REPLAYED).await;
    assert_eq!(status(present(&server, &forge())).await, 429);
}

#[tokio::test]
async fn after_too_many_failures_no_keys_are_fetched() {
    let site = Site::secure();
    let folder = tempfile::tempdir().unwrap();
    let server = that_trusts(&site, &folder)
        .set("limits.failures_per_address_per_minute", "2")
        .start()
        .await;
    let signer = server.register(&with_uri(&site.url("/jwks.json"))).await;
    let key = SigningKey::new("key-1");
    site.answer("", &jwks(&[&key]).to_string());
    let sign =
        |key: &SigningKey| key.sign(&json!({}), &claims(&signer.id, SystemClock::new().now()));
    for _ in 0..2 {
        let wrong = server.token_request().basic_auth("app", Some("wrong"));
        assert_eq!(status(wrong.form(&GRANT)).await, 401);
    }
    assert_eq!(status(present(&server, &sign(&key))).await, 429);
    assert_eq!(site.connections(), 0);
    // Known since somebody else has asked for them.
    let elsewhere = present_from("127.0.0.2", &server, &sign(&key));
    assert_eq!(status(elsewhere).await, 200);
    taken(&server, &sign(&key)).await;
    let forged = sign(&SigningKey::new("key-1"));
    assert_eq!(status(present(&server, &forged)).await, 429);
    assert_eq!(site.connections(), 1);
}

/// Some of it, for what looks at the database once more before it answers.
async fn while_time_passes<T>(clock: &ManualClock, awaited: impl Future<Output = T>) -> T {
    let mut awaited = std::pin::pin!(awaited);
    loop {
        tokio::select! {
            done = &mut awaited => return done,
            () = pause(Duration::from_millis(20)) => clock.advance(Duration::from_millis(100)),
        }
    }
}

/// Without the setting, loopback is not asked; and nobody else's key set is in the way.
#[tokio::test]
async fn a_key_set_on_an_address_of_the_inside_is_not_fetched() {
    let server = unlimited().start().await;
    let site = Site::secure();
    let key = SigningKey::new("key");
    site.answer("", &jwks(&[&key]).to_string());
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
        let client = server.register(&with_uri(&site.url_at(host, "/"))).await;
        let assertion = key.sign(&json!({}), &claims(&client.id, SystemClock::new().now()));
        refused(present(&server, &assertion), KEYS_UNAVAILABLE).await;
    }
    assert_eq!(site.connections(), 0);
}
