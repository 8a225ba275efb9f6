//! ID Tokens (`OpenID` Connect Core §2, §3.1.3, §12).

use std::time::Duration;

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
    keys::ring::IdTokenKeys,
    oauth::id_token::{Hint, InvalidHint},
};
use countersign_verifier::{KeySet, base64url};
use reqwest::Method;
use ring::digest;
use serde_json::{Value, json};

use super::{
    super::browser::{Site, family_of, of_browsers},
    USERINFO, code, exchange, header, id_token, refreshed, relying_party, rp, site, verified,
};
use crate::support::{
    database::Engine,
    server::{API, FILES, GRANT, ISSUER, Setup, answer},
    sign_in::{PASSWORD, claims},
};

on_both_engines! {
    a_code_gets_an_id_token_that_says_who_has_signed_in,
    a_refresh_gets_an_id_token_without_a_nonce,
}

const NOW: i64 = 1_800_000_000;

/// The left half of the hash of an access token (Core §3.1.3.6).
fn at_hash(token: &str) -> String {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    base64url::encode(&hash.as_ref()[..16])
}

/// Core §2, §3.1.3.3.
async fn a_code_gets_an_id_token_that_says_who_has_signed_in(engine: Engine) {
    let clock = ManualClock::new(Timestamp::from_seconds(NOW));
    let setup = Setup::new().on(engine).clock(clock);
    let site = Site::of(setup.client("rp", relying_party())).await;
    let code = code(
        &site,
        &[("nonce", "n-0S6_WzA2Mj é"), ("scope", "openid read")],
    )
    .await;
    let answer = exchange(&site.server, &code, &[]).await;
    let token = id_token(&answer);
    let document = answer.json();
    assert_eq!(document["scope"], "openid read");
    let kid = header(&answer.access_token())["kid"].clone();
    assert_eq!(
        header(&token),
        json!({ "typ": "JWT", "alg": "ES256", "kid": kid })
    );
    let access_token = claims(&answer.access_token());
    assert_eq!(
        verified(&site.server, &token).await,
        json!({
            "iss": ISSUER,
            "sub": site.ada.to_string(),
            "aud": "rp",
            "iat": NOW,
            "exp": NOW + document["expires_in"].as_i64().unwrap(),
            "auth_time": NOW,
            "nonce": "n-0S6_WzA2Mj é",
            "at_hash": at_hash(&answer.access_token()),
            "acr": "urn:countersign:acr:1",
            "amr": access_token["amr"],
            "sid": family_of(&answer).to_string(),
        })
    );
    assert_eq!(access_token["sub"], site.ada.to_string());
    assert_eq!(access_token["aud"], json!([API, USERINFO]));
}

/// Core §12.2: the time of the original authentication, and no `nonce`.
async fn a_refresh_gets_an_id_token_without_a_nonce(engine: Engine) {
    let clock = ManualClock::new(Timestamp::from_seconds(NOW));
    let setup = Setup::new().on(engine).clock(clock.clone());
    let site = Site::of(setup.client("rp", relying_party())).await;
    let code = code(&site, &[("nonce", "once")]).await;
    let first = exchange(&site.server, &code, &[]).await;
    clock.advance(Duration::from_mins(1));
    let second = refreshed(&site.server, &first, &[]).await;
    let before = claims(&id_token(&first));
    let after = verified(&site.server, &id_token(&second)).await;
    for name in ["iss", "sub", "aud", "auth_time", "acr", "amr", "sid"] {
        assert_eq!(after[name], before[name], "{name}");
    }
    assert_eq!(after["iat"], NOW + 60);
    assert_eq!(after.get("nonce"), None);
    assert_eq!(after["at_hash"], at_hash(&second.access_token()));
}

/// Core §3.1.2.1: "If the openid scope value is not present, the behavior is entirely unspecified."
#[tokio::test]
async fn who_does_not_ask_for_openid_gets_no_id_token() {
    let site = site(Engine::Sqlite).await;
    let code = code(&site, &[("scope", "read")]).await;
    let first = exchange(&site.server, &code, &[]).await;
    let second = refreshed(&site.server, &first, &[]).await;
    for answer in [first, second] {
        assert_eq!(claims(&answer.access_token())["aud"], API);
        assert_eq!(answer.json().get("id_token"), None);
        assert_eq!(answer.json()["scope"], "read");
    }
}

/// `aud` says where a token is good: userinfo only where it was asked for.
#[tokio::test]
async fn the_userinfo_endpoint_is_one_of_the_resources_of_a_request_for_openid() {
    let site = site(Engine::Sqlite).await;
    let audience = |token: &str| claims(token)["aud"].clone();
    for (asked, expected) in [
        (&[("scope", "openid")][..], json!([API, USERINFO])),
        (
            &[("scope", "openid files:read"), ("resource", FILES)],
            json!([FILES, USERINFO]),
        ),
        (&[("resource", USERINFO)], json!(USERINFO)),
        // All that it may have there.
        (&[("resource", USERINFO), ("scope", "")], json!(USERINFO)),
    ] {
        let code = code(&site, asked).await;
        let answer = exchange(&site.server, &code, &[]).await;
        assert_eq!(audience(&answer.access_token()), expected, "{asked:?}");
        id_token(&answer);
    }
    // For one of them alone: the token opens nothing else, and the ID Token tells the same.
    let both = [("scope", "openid email read")];
    let code = code(&site, &both).await;
    let alone = exchange(&site.server, &code, &[("resource", API)]).await;
    assert_eq!(audience(&alone.access_token()), API);
    assert_eq!(alone.json()["scope"], "read");
    id_token(&alone);
    let told = refreshed(&site.server, &alone, &[("resource", USERINFO)]).await;
    assert_eq!(audience(&told.access_token()), USERINFO);
    assert_eq!(told.json()["scope"], "email openid");
    let read = refreshed(&site.server, &told, &[("scope", "read")]).await;
    assert_eq!(read.json().get("id_token"), None);
    let all = refreshed(&site.server, &read, &[]).await;
    assert_eq!(audience(&all.access_token()), json!([API, USERINFO]));
}

/// A client that uses nothing but `OpenID` Connect needs no resource of its own.
#[tokio::test]
async fn without_any_other_resource_the_userinfo_endpoint_is_the_only_one() {
    let bare = ClientMetadata {
        scope: "openid profile".to_owned(),
        resources: Vec::new(),
        default_resource: None,
        ..relying_party()
    };
    let site = Site::of(Setup::new().client("rp", bare)).await;
    let code = code(&site, &[("scope", "openid profile")]).await;
    let answer = exchange(&site.server, &code, &[]).await;
    assert_eq!(claims(&answer.access_token())["aud"], USERINFO);
    assert_eq!(answer.json()["scope"], "openid profile");
    let silent = super::ask(&mut site.browser(), &[("scope", "")]).await;
    let refused = super::returned(&silent);
    assert_eq!(refused["error"], "invalid_target");
}

/// Neither clients that act for themselves, nor those that are not registered for `openid`.
#[tokio::test]
async fn nobody_else_gets_a_token_for_the_userinfo_endpoint() {
    let without = ClientMetadata {
        first_party: true,
        ..of_browsers()
    };
    let listed = ClientMetadata {
        resources: vec![API.to_owned(), USERINFO.to_owned()],
        ..relying_party()
    };
    let setup = Setup::new().client("rp", listed).client("none", without);
    let site = Site::of(setup).await;
    for asked in [&[("resource", USERINFO)][..], &[("scope", "openid")]] {
        let form = [&GRANT[..], asked].concat();
        let refused = site.server.exchange(rp(&site.server), &form).await;
        assert_eq!(refused.status, 400, "{asked:?}");
    }
    let mut browser = site.browser();
    for (asked, error) in [
        (("resource", USERINFO), "invalid_target"),
        (("scope", "openid"), "invalid_scope"),
    ] {
        let refused = browser.ask(&[("client_id", "none"), asked]).await;
        assert_eq!(super::returned(&refused)["error"], error);
    }
}

/// draft-ietf-oauth-first-party-apps: the code is like any other.
#[tokio::test]
async fn a_sign_in_without_a_browser_gets_an_id_token() {
    let site = site(Engine::Sqlite).await;
    let begin = [
        ("username", "ada"),
        ("scope", "openid email"),
        ("resource", API),
        ("code_challenge", super::super::browser::CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let challenge = |form: Vec<(&'static str, String)>| {
        let request = site.server.request(Method::POST, "/oauth2/challenge");
        let rp = rp(&site.server);
        answer(request.basic_auth(&rp.id, Some(&rp.secret)).form(&form))
    };
    let begin: Vec<(&str, String)> = begin.map(|(name, value)| (name, value.to_owned())).into();
    let step = challenge(begin.clone()).await.json();
    // A step may repeat what the first one said.
    let mut form = begin;
    form.push(("password", PASSWORD.to_owned()));
    form.push((
        "auth_session",
        step["auth_session"].as_str().unwrap().to_owned(),
    ));
    let done = challenge(form).await;
    let code = done.json()["authorization_code"]
        .as_str()
        .unwrap()
        .to_owned();
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("code_verifier", crate::support::sign_in::VERIFIER),
    ];
    let answer = site.server.exchange(rp(&site.server), &form).await;
    let told = verified(&site.server, &id_token(&answer)).await;
    assert_eq!(told["sub"], site.ada.to_string());
    assert_eq!(told.get("nonce"), None);
    assert_eq!(
        claims(&answer.access_token())["aud"],
        json!([API, USERINFO])
    );
}

/// RFC 8725 §3.12: neither passes for the other, whatever they have in common.
#[tokio::test]
async fn no_id_token_passes_for_an_access_token_nor_the_other_way_round() {
    let site = site(Engine::Sqlite).await;
    let code = code(&site, &[]).await;
    let answered = exchange(&site.server, &code, &[]).await;
    let (access, id) = (answered.access_token(), id_token(&answered));
    let introspect = async |token: &str| -> Value {
        let rp = rp(&site.server);
        let request = site.server.request(Method::POST, "/oauth2/introspect");
        let request = request.basic_auth(&rp.id, Some(&rp.secret));
        answer(request.form(&[("token", token)])).await.json()
    };
    assert_eq!(introspect(&access).await["active"], true);
    assert_eq!(introspect(&id).await, json!({ "active": false }));
    let keys = IdTokenKeys {
        es256: KeySet::parse(site.server.jwks().await.as_bytes()).unwrap(),
        ..IdTokenKeys::default()
    };
    let hint = Hint::read(&id, ISSUER, &keys).unwrap();
    assert_eq!(hint.subject, site.ada);
    assert_eq!(hint.client_id.as_str(), "rp");
    assert_eq!(hint.family, family_of(&answered));
    assert_eq!(
        Hint::read(&access, ISSUER, &keys),
        Err(InvalidHint::Unknown)
    );
    // Of another issuer, of nobody known, tampered with, unsigned.
    assert_eq!(
        Hint::read(&id, "https://other.example", &keys),
        Err(InvalidHint::Unknown)
    );
    assert_eq!(
        Hint::read(&id, ISSUER, &IdTokenKeys::default()),
        Err(InvalidHint::Unknown)
    );
    let (input, signature) = id.rsplit_once('.').unwrap();
    let (head, _) = input.split_once('.').unwrap();
    let other = json!({ "iss": ISSUER, "sub": site.ada.to_string(), "aud": "rp" });
    let other = base64url::encode(other.to_string().as_bytes());
    let none = base64url::encode(br#"{"alg":"none","typ":"JWT"}"#);
    for forged in [
        format!("{head}.{other}.{signature}"),
        format!("{none}.{other}."),
        format!("{none}.{other}.{signature}"),
        String::new(),
    ] {
        assert_eq!(
            Hint::read(&forged, ISSUER, &keys),
            Err(InvalidHint::Unknown),
            "{forged}"
        );
    }
}
