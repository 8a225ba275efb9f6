//! ID Tokens signed with RS256, for clients that want them so where the service has opted in
//! (`OpenID` Connect Registration 1.0 §2).

use std::{collections::BTreeSet, time::Duration};

use countersign::{
    admin::{
        client::{ClientAdmin, ClientMetadata},
        key::Rotation,
    },
    clock::{Clock as _, ManualClock, Timestamp},
    domain::{
        change::Cause,
        id::ClientId,
        key::{KeyRecord, KeyUse},
    },
    entropy::Entropy,
    keys::sealing,
};
use countersign_verifier::{Expectation, KeySet, VerifyError, base64url, jws::JwsError, verify};
use reqwest::Method;
use ring::{
    digest::{SHA256, digest},
    hmac,
    signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents},
};
use serde_json::{Value, json};

use super::{
    super::browser::{CALLBACK, CHALLENGE, Site, heading, returned},
    ask, code, exchange, header, id_token, refreshed, relying_party, rp,
};
use crate::support::{
    client,
    database::{Database, Engine},
    jwt,
    process::Installation,
    server::{API, Answer, ISSUER, Setup, TestServer, answer},
    sign_in::{PASSWORD, VERIFIER, claims, refresh},
    soon,
};

on_both_engines! {
    a_client_that_wants_rs256_gets_it_for_its_id_tokens_and_nothing_else,
    id_tokens_are_good_through_every_rotation_for_whoever_keeps_the_keys_for_as_long_as_they_may,
    a_key_for_rs256_that_does_not_open_is_left_out_and_stops_nothing_else,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const SETTING: &str = "keys.rs256_id_tokens";

fn wants_rs256() -> ClientMetadata {
    ClientMetadata {
        id_token_signed_response_alg: Some("RS256".to_owned()),
        ..relying_party()
    }
}

/// A server that has opted in, with the client `rp`, which wants RS256, and `es256`, which does not.
async fn site(setup: Setup) -> Site {
    let setup = setup.set(SETTING, "true");
    Site::of(
        setup
            .client("rp", wants_rs256())
            .client("es256", relying_party()),
    )
    .await
}

async fn published(server: &TestServer) -> Value {
    serde_json::from_str(&server.jwks().await).unwrap()
}

/// The published keys of an algorithm.
fn of_alg<'a>(jwks: &'a Value, alg: &str) -> Vec<&'a Value> {
    let keys = jwks["keys"].as_array().unwrap().iter();
    keys.filter(|key| key["alg"] == alg).collect()
}

/// The claims of a JWS that the key it names has signed with RS256, if that is one of the JWKS.
pub(in super::super) fn verified(token: &str, jwks: &Value) -> Option<Value> {
    let head = header(token);
    assert_eq!(head["alg"], "RS256");
    let key = of_alg(jwks, "RS256")
        .into_iter()
        .find(|key| key["kid"] == head["kid"])?;
    let number = |name: &str| base64url::decode(key[name].as_str().unwrap()).unwrap();
    let (input, signature) = token.rsplit_once('.').unwrap();
    let signature = base64url::decode(signature).unwrap();
    let (n, e) = (number("n"), number("e"));
    let public = RsaPublicKeyComponents { n, e };
    let verified = public.verify(&RSA_PKCS1_2048_8192_SHA256, input.as_bytes(), &signature);
    verified.unwrap();
    Some(claims(token))
}

/// Core §2, §3.1.3.6; Discovery §3; RFC 7517 §4, RFC 7638 §3.
async fn a_client_that_wants_rs256_gets_it_for_its_id_tokens_and_nothing_else(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let server = &site.server;
    let metadata = answer(server.get("/.well-known/openid-configuration")).await;
    assert_eq!(
        metadata.json()["id_token_signing_alg_values_supported"],
        json!(["ES256", "RS256"])
    );
    let jwks = published(server).await;
    assert_eq!(of_alg(&jwks, "ES256").len(), 2);
    assert_eq!(of_alg(&jwks, "RS256").len(), 2);
    for key in of_alg(&jwks, "RS256") {
        let members: BTreeSet<&str> = key
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        // Above all nothing of the private half.
        assert_eq!(
            members,
            BTreeSet::from(["alg", "e", "kid", "kty", "n", "use"])
        );
        assert_eq!(
            [&key["kty"], &key["use"], &key["e"]],
            ["RSA", "sig", "AQAB"]
        );
        let n = key["n"].as_str().unwrap();
        assert_eq!(base64url::decode(n).unwrap().len(), 256);
        let canonical = format!(r#"{{"e":"AQAB","kty":"RSA","n":"{n}"}}"#);
        let thumbprint = digest(&SHA256, canonical.as_bytes());
        assert_eq!(key["kid"], base64url::encode(thumbprint.as_ref()));
    }

    let answered = exchange(server, &code(&site, &[]).await, &[]).await;
    let id = id_token(&answered);
    assert_eq!(header(&id)["typ"], "JWT");
    let told = verified(&id, &jwks).unwrap();
    assert_eq!((&told["iss"], &told["aud"]), (&json!(ISSUER), &json!("rp")));
    assert_eq!(told["sub"], site.ada.to_string());
    let access = answered.access_token();
    let hash = digest(&SHA256, access.as_bytes());
    assert_eq!(told["at_hash"], base64url::encode(&hash.as_ref()[..16]));
    let again = refreshed(server, &answered, &[]).await;
    let after = verified(&id_token(&again), &jwks).unwrap();
    assert_eq!(after["auth_time"], told["auth_time"]);

    // Access tokens are never signed so.
    let keys = KeySet::parse(server.jwks().await.as_bytes()).unwrap();
    for token in [&access, &again.access_token()] {
        assert_eq!(header(token)["alg"], "ES256");
        let now = server.clients.clock.now().seconds();
        let verified = verify(token, &keys, &expected(), u64::try_from(now).unwrap());
        assert_eq!(verified.unwrap().sub, site.ada.to_string());
    }
    let mut browser = site.browser();
    let page = ask(&mut browser, &[("client_id", "es256")]).await;
    let answer = browser.sign_in(&page, "ada", PASSWORD).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &returned(&answer)["code"]),
        ("code_verifier", VERIFIER),
        ("redirect_uri", CALLBACK),
    ];
    let answered = server.exchange(server.other("es256"), &form).await;
    super::verified(server, &id_token(&answered)).await;
}

fn expected() -> Expectation {
    Expectation {
        issuer: ISSUER.to_owned(),
        audience: Some(API.to_owned()),
        leeway_seconds: 5,
    }
}

/// The key that signs with RS256, as nobody but the service has it.
async fn private_key(server: &TestServer) -> countersign::keys::rs256::Rs256Key {
    let schedule = server.store().key_schedule(KeyUse::IdTokenRs256).await;
    let keys: Vec<KeyRecord> = schedule.unwrap().keys;
    let masters = server.keys().masters.load().unwrap();
    sealing::open_rs256(&masters, &keys[0], &Entropy::new()).unwrap()
}

/// RFC 9068 §4, RFC 8725 §3.1: nothing that such a key has signed is an access token, whatever it says
/// of itself.
#[tokio::test]
async fn nothing_that_is_signed_with_rs256_passes_for_an_access_token() {
    let site = site(Setup::new()).await;
    let server = &site.server;
    let answered = exchange(server, &code(&site, &[]).await, &[]).await;
    let (access, id) = (answered.access_token(), id_token(&answered));
    let key = private_key(server).await;
    let forged = key.sign("at+jwt", claims(&access).to_string().as_bytes());
    let forged = forged.unwrap();
    let jwks = published(server).await;
    assert_eq!(verified(&forged, &jwks), Some(claims(&access)));

    let keys = KeySet::parse(server.jwks().await.as_bytes()).unwrap();
    let es256 = of_alg(&jwks, "ES256");
    let es256: Vec<&str> = es256
        .iter()
        .map(|key| key["kid"].as_str().unwrap())
        .collect();
    // Verifiers pass over the other keys, and go on with these.
    assert_eq!(keys.kids().collect::<Vec<_>>(), es256);
    let introspect = async |token: &str| {
        let request = server.request(Method::POST, "/oauth2/introspect");
        let request = request.basic_auth("rp", Some(&rp(server).secret));
        answer(request.form(&[("token", token)])).await.json()
    };
    let userinfo = async |token: &str| {
        let request = server.get("/oauth2/userinfo");
        answer(request.bearer_auth(token)).await.status
    };
    assert_eq!(introspect(&access).await["active"], true);
    assert_eq!(userinfo(&access).await, 200);
    let now = u64::try_from(server.clients.clock.now().seconds()).unwrap();
    assert!(verify(&access, &keys, &expected(), now).is_ok());
    for (token, why) in [
        (&forged, VerifyError::Jws(JwsError::Algorithm)),
        (&id, VerifyError::Type),
    ] {
        assert_eq!(introspect(token).await, json!({ "active": false }));
        assert_eq!(userinfo(token).await, 401);
        assert_eq!(verify(token, &keys, &expected(), now), Err(why));
    }
    // Also where it says that it was signed otherwise.
    let (input, _) = forged.rsplit_once('.').unwrap();
    let payload = input.split_once('.').unwrap().1;
    let head = json!({ "typ": "at+jwt", "alg": "ES256", "kid": key.kid().as_str() });
    let head = base64url::encode(head.to_string().as_bytes());
    let renamed = format!("{head}.{payload}.{}", base64url::encode(&[1; 64]));
    assert_eq!(introspect(&renamed).await, json!({ "active": false }));
    assert!(verify(&renamed, &keys, &expected(), now).is_err());
}

/// RP-Initiated Logout §2, RFC 8725 §3.1: a key verifies by its own algorithm alone.
#[tokio::test]
async fn an_id_token_of_either_kind_is_a_hint_and_no_forged_one() {
    let site = site(Setup::new()).await;
    let server = &site.server;
    let mut browser = site.browser();
    let answered = super::sign_in(&mut browser, &[]).await;
    let id = id_token(&exchange(server, &returned(&answered)["code"], &[]).await);
    // Whose sign-in is meant is told by the hint alone.
    let silent = [("prompt", "none"), ("id_token_hint", id.as_str())];
    assert!(returned(&ask(&mut browser, &silent).await).contains_key("code"));
    let silently = [silent[0], silent[1], ("client_id", "es256")];
    let of_other = returned(&ask(&mut browser, &silently).await);
    assert!(of_other.contains_key("code"), "{of_other:?}");

    let jwks = published(server).await;
    let (rsa, ec) = (of_alg(&jwks, "RS256")[0], of_alg(&jwks, "ES256")[0]);
    let (input, signature) = id.rsplit_once('.').unwrap();
    let (head, payload) = input.split_once('.').unwrap();
    let named = |alg: &str, key: &Value| {
        let head = json!({ "typ": "JWT", "alg": alg, "kid": key["kid"] });
        jwt::input(&head.to_string(), &claims(&id).to_string())
    };
    let other = json!({ "iss": ISSUER, "sub": "somebody", "aud": "rp" });
    let other = base64url::encode(other.to_string().as_bytes());
    let unsigned = named("HS256", rsa);
    let secret = base64url::decode(rsa["n"].as_str().unwrap()).unwrap();
    let mac = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &secret),
        unsigned.as_bytes(),
    );
    let key = private_key(server).await;
    let elsewhere = key.sign("JWT", &base64url::decode(payload).unwrap());
    let elsewhere = elsewhere.unwrap();
    let (_, signed) = elsewhere.rsplit_once('.').unwrap();
    for forged in [
        format!("{head}.{other}.{signature}"),
        format!("{}.{signature}", named("ES256", rsa)),
        format!("{}.{signature}", named("RS384", rsa)),
        format!("{}.{signature}", named("none", rsa)),
        format!("{}.{signed}", named("RS256", ec)),
        format!("{}.{signed}", named("ES256", ec)),
        format!("{unsigned}.{}", base64url::encode(mac.as_ref())),
    ] {
        let path = format!("/oauth2/logout?id_token_hint={forged}");
        let refused = browser.send(browser.request(Method::GET, &path)).await;
        assert_eq!(refused.header("countersign-reason"), Some("id_token_hint"));
    }
    let path = format!("/oauth2/logout?id_token_hint={id}");
    let ended = browser.send(browser.request(Method::GET, &path)).await;
    assert_eq!(heading(&ended), "You are signed out");
}

/// A relying party that keeps the JWKS for as long as it may.
struct Cache {
    read_at: Timestamp,
    jwks: Value,
}

impl Cache {
    async fn read(site: &Site, clock: &ManualClock) -> Self {
        Self {
            read_at: clock.now(),
            jwks: published(&site.server).await,
        }
    }
}

/// Waits until the server has heard of a change of the keys for RS256.
async fn becomes(site: &Site, clock: &ManualClock, is_so: impl Fn(&[Value]) -> bool) {
    soon(async {
        loop {
            let jwks = published(&site.server).await;
            let kids = of_alg(&jwks, "RS256").into_iter();
            let kids: Vec<Value> = kids.map(|key| key["kid"].clone()).collect();
            if is_so(&kids) {
                return;
            }
            clock.advance(Duration::from_millis(10));
        }
    })
    .await;
}

async fn id_tokens_are_good_through_every_rotation_for_whoever_keeps_the_keys_for_as_long_as_they_may(
    engine: Engine,
) {
    let clock = ManualClock::new(NOW);
    let site = site(Setup::new().on(engine).clock(clock.clone())).await;
    let server = &site.server;
    let mut answered = exchange(server, &code(&site, &[]).await, &[]).await;
    let mut cache = Cache::read(&site, &clock).await;
    let mut issued: Vec<String> = Vec::new();
    let mut kids = Vec::new();
    let cause = Cause::system();
    for minute in (0..48).step_by(2) {
        if minute == 12 {
            let keys = server.keys();
            let rotation = keys.rotate(KeyUse::IdTokenRs256, Rotation::Scheduled, &cause);
            rotation.await.unwrap();
            becomes(&site, &clock, |listed| listed.len() == 3).await;
        }
        if minute == 30 {
            let emergency = Rotation::Emergency {
                discard_next: false,
            };
            let keys = server.keys();
            let rotation = keys.rotate(KeyUse::IdTokenRs256, emergency, &cause);
            assert_eq!(rotation.await.unwrap().verifiers_may_lag_until, None);
            // What the key has signed that has leaked is good no more.
            let leaked = kids.last().cloned().unwrap();
            issued.retain(|token| header(token)["kid"] != leaked);
            becomes(&site, &clock, |listed| !listed.contains(&leaked)).await;
        }
        server.pass(&clock, Duration::from_mins(2)).await;
        answered = refreshed(server, &answered, &[]).await;
        let id = id_token(&answered);
        let kid = header(&id)["kid"].clone();
        if kids.last() != Some(&kid) {
            kids.push(kid);
        }
        if clock.now().since(cache.read_at) >= Duration::from_mins(5) {
            cache = Cache::read(&site, &clock).await;
        }
        assert!(verified(&id, &cache.jwks).is_some(), "{minute}");
        issued.push(id);
        let now = clock.now().seconds();
        issued.retain(|token| claims(token)["exp"].as_i64().unwrap() > now);
        assert!(issued.len() > 1 || [0, 30].contains(&minute));
        let jwks = published(server).await;
        for token in &issued {
            assert!(verified(token, &jwks).is_some(), "{minute}");
        }
    }
    assert_eq!(kids.len(), 3, "{kids:?}");
    // The document has the keys of both kinds, each for as long as it counts.
    let jwks = published(server).await;
    assert_eq!(of_alg(&jwks, "ES256").len(), 2);
    let listed: Vec<&Value> = of_alg(&jwks, "RS256")
        .iter()
        .map(|key| &key["kid"])
        .collect();
    assert!(!listed.contains(&&kids[1]) && listed.contains(&&kids[2]));
}

/// The entity tag changes whenever either kind of keys does, and in time, without anybody's doing.
#[tokio::test]
async fn the_next_key_is_made_and_the_last_withdrawn_in_time() {
    let clock = ManualClock::new(NOW);
    let site = site(Setup::new().clock(clock.clone())).await;
    let server = &site.server;
    let etag = async || {
        let told = answer(server.get("/.well-known/jwks.json")).await;
        told.header("etag").unwrap().to_owned()
    };
    let (first, before) = (etag().await, published(server).await);
    let policy = server.keys().policy;
    let spans = policy.spans(KeyUse::IdTokenRs256);
    let until = NOW.plus(policy.period).minus(spans.lead);
    server.pass(&clock, until.since(clock.now())).await;
    soon(async {
        while of_alg(&published(server).await, "RS256").len() < 3 {
            // Time stands still while the key is made, but for what wakes whoever makes it.
            for _ in 0..50 {
                answer(server.get("/health/live")).await;
            }
            server.pass(&clock, Duration::from_secs(1)).await;
        }
    })
    .await;
    assert_ne!(etag().await, first);
    let two = of_alg(&before, "RS256")[0]["kid"].clone();
    let until = NOW.plus(policy.period).plus(spans.retention);
    server.pass(&clock, until.since(clock.now())).await;
    let jwks = published(server).await;
    let left: Vec<&Value> = of_alg(&jwks, "RS256");
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|key| key["kid"] != two));
}

/// Nodes go on following their database: of what is revoked above all.
async fn a_key_for_rs256_that_does_not_open_is_left_out_and_stops_nothing_else(engine: Engine) {
    let database = Database::create(engine).await;
    let setup = Setup::new().at(database.url()).set(SETTING, "true");
    let server = setup.start().await;
    let jwks = published(&server).await;
    let kid = |alg: &str, index: usize| of_alg(&jwks, alg)[index]["kid"].as_str().unwrap();
    let alter = format!(
        "update sealed_key set version = 77 where kid = '{}'",
        kid("RS256", 1)
    );
    database.execute(&alter).await;
    let emergency = Rotation::Emergency {
        discard_next: false,
    };
    let rotated = server
        .keys()
        .rotate(KeyUse::Signing, emergency, &Cause::system())
        .await;
    rotated.unwrap();
    soon(async { while server.jwks().await.contains(kid("ES256", 0)) {} }).await;
    let now = published(&server).await;
    let left: Vec<&Value> = of_alg(&now, "RS256")
        .iter()
        .map(|key| &key["kid"])
        .collect();
    assert_eq!(left, [kid("RS256", 0)]);
    assert_eq!(
        header(&server.token().await.access_token())["kid"],
        kid("ES256", 1)
    );
    // Whoever looks is told.
    let listed = server.keys().list(KeyUse::IdTokenRs256).await;
    assert!(listed.is_err(), "{listed:?}");
}

/// Sets what the client wants although the service has opted out: it was registered before. Returns
/// when the server has heard of it.
async fn wants(site: &Site, clock: &ManualClock, alg: &str) {
    let server = &site.server;
    let clients = ClientAdmin {
        rs256_id_tokens: true,
        ..server.clients.clone()
    };
    let id = ClientId::parse("rp").unwrap();
    let patch = json!({ "id_token_signed_response_alg": alg });
    let updated = clients.update(&id, &patch, None, &Cause::system()).await;
    updated.unwrap();
    soon(async {
        let status = if alg == "RS256" { 303 } else { 200 };
        while ask(&mut site.browser(), &[]).await.status != status {
            clock.advance(Duration::from_millis(10));
        }
    })
    .await;
}

fn is_server_error(answer: &Answer) {
    assert_eq!(answer.status, 500, "{answer:?}");
    let document = answer.json();
    assert_eq!(document["error"], "server_error");
    assert_eq!(document.get("id_token"), None);
    assert_eq!(document.get("access_token"), None);
}

/// It is never given another algorithm, and nothing is spent: switched on again, all goes on.
#[tokio::test]
async fn a_client_that_wants_what_was_switched_off_gets_nothing_else_and_loses_nothing() {
    let clock = ManualClock::new(NOW);
    let setup = Setup::new().clock(clock.clone());
    let site = Site::of(setup.client("rp", relying_party())).await;
    let server = &site.server;
    let first = exchange(server, &code(&site, &[]).await, &[]).await;
    let code = code(&site, &[]).await;
    wants(&site, &clock, "RS256").await;
    for _ in 0..2 {
        is_server_error(&refreshed(server, &first, &[]).await);
        is_server_error(&exchange(server, &code, &[]).await);
    }
    let asked = returned(&ask(&mut site.browser(), &[]).await);
    assert_eq!(asked["error"], "server_error");
    assert!(!asked.contains_key("code"), "{asked:?}");
    let form = [
        ("response_type", "code"),
        ("username", "ada"),
        ("password", PASSWORD),
        ("scope", "openid"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let request = server.request(Method::POST, "/oauth2/challenge");
    let request = request.basic_auth("rp", Some(&rp(server).secret));
    is_server_error(&answer(request.form(&form)).await);
    // Who does not ask who the user is needs no ID Token.
    let page = ask(&mut site.browser(), &[("scope", "read")]).await;
    assert_eq!(heading(&page), "Sign in");
    let metadata = answer(server.get("/.well-known/openid-configuration")).await;
    assert_eq!(
        metadata.json()["id_token_signing_alg_values_supported"],
        json!(["ES256"])
    );
    assert!(of_alg(&published(server).await, "RS256").is_empty());

    // Had the refresh token been spent, it would count as stolen by now.
    server.pass(&clock, Duration::from_secs(40)).await;
    wants(&site, &clock, "ES256").await;
    super::verified(server, &id_token(&refreshed(server, &first, &[]).await)).await;
    super::verified(server, &id_token(&exchange(server, &code, &[]).await)).await;
}

/// Two nodes of which one has been told to opt in, and the other not yet.
#[tokio::test]
async fn a_node_that_has_not_opted_in_signs_with_no_such_key_and_publishes_them() {
    let site = site(Setup::new().on(Engine::Postgres)).await;
    let server = &site.server;
    let beside = server.beside_with(|config| config.rs256_id_tokens = false);
    let beside = beside.await;
    let answered = exchange(server, &code(&site, &[]).await, &[]).await;
    let id = id_token(&answered);
    let jwks = answer(beside.request(Method::GET, "/.well-known/jwks.json")).await;
    // Whoever asks it for the keys finds those of the other one, and it knows what that has signed.
    assert!(verified(&id, &jwks.json()).is_some());
    assert_eq!(jwks.json(), published(server).await);
    let path = format!("/oauth2/logout?id_token_hint={id}");
    let known = answer(beside.request(Method::GET, &path)).await;
    assert_eq!(known.header("countersign-reason"), None, "{known:?}");
    let token = answered.refresh_token();
    let form = refresh(&token);
    let request = beside.request(Method::POST, "/oauth2/token");
    let request = request.basic_auth("rp", Some(&rp(server).secret));
    is_server_error(&answer(request.form(&form)).await);
    // The one that has opted in goes on.
    let jwks = published(server).await;
    assert!(verified(&id_token(&refreshed(server, &answered, &[]).await), &jwks).is_some());
}

#[tokio::test]
async fn the_log_names_setting_and_client_where_rs256_was_switched_off() {
    let installation = Installation::development().with(SETTING, "true");
    let node = installation.start().await;
    let created = installation
        .json(&[
            "clients",
            "create",
            "--name",
            "Old portal",
            "--public",
            "--scope",
            "openid",
            "--redirect-uri",
            "https://app.example/cb",
            "--id-token-signed-response-alg",
            "RS256",
        ])
        .await;
    assert_eq!(created["id_token_signed_response_alg"], "RS256");
    let id = created["client_id"].as_str().unwrap().to_owned();
    let document: Value = node
        .get("/.well-known/jwks.json")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(of_alg(&document, "RS256").len(), 2);
    node.stop().await;

    let installation = installation.with(SETTING, "false");
    let mut node = installation.start().await;
    let shown = installation.json(&["clients", "show", &id]).await;
    assert_eq!(shown["id_token_signed_response_alg"], "RS256");
    let http = client().redirect(reqwest::redirect::Policy::none());
    let path = format!(
        "/oauth2/authorize?client_id={id}&redirect_uri=https://app.example/cb&response_type=code\
         &scope=openid&code_challenge={CHALLENGE}&code_challenge_method=S256"
    );
    let sent_back = answer(http.build().unwrap().get(node.url(&path))).await;
    let location = sent_back.header("location").unwrap();
    assert!(location.contains("error=server_error"), "{location}");
    node.process.terminate();
    node.process.ended().await;
    let log = node.process.stderr();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(SETTING)).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains(&id), "{log}");
}
