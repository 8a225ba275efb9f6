//! Signing out by way of the browser (`OpenID` Connect RP-Initiated Logout 1.0 §2 to §4). The tests
//! whose names begin with `oidcc_` are called as the modules of the conformance suite are.

use std::time::Duration;

use countersign::{
    admin::{client::ClientMetadata, key::Rotation},
    clock::{ManualClock, Timestamp},
    domain::{change::Cause, key::KeyUse},
};
use countersign_verifier::base64url;
use reqwest::Method;
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use super::{Browser, CALLBACK, Site, heading, hidden, pages::is_guarded, returned};
use crate::support::{
    database::Engine,
    jwt::SigningKey,
    server::{Answer, ISSUER, Setup, answer, metadata},
    sign_in::{PASSWORD, VERIFIER, claims},
    soon,
};

on_both_engines! {
    oidcc_rp_initiated_logout,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const AFTER: &str = "https://app.example/bye";
const AFTER_WITH_QUERY: &str = "https://app.example/bye?tenant=1";

/// A site with a client that gets ID Tokens.
async fn with_desk(engine: Engine) -> Site {
    of_setup(Setup::new().on(engine)).await
}

async fn of_setup(setup: Setup) -> Site {
    let other = ClientMetadata {
        client_name: "Other".to_owned(),
        ..desk()
    };
    Site::of(setup.client("desk", desk()).client("other", other)).await
}

fn desk() -> ClientMetadata {
    ClientMetadata {
        client_name: "Desk".to_owned(),
        scope: "read openid".to_owned(),
        redirect_uris: vec![CALLBACK.to_owned()],
        post_logout_redirect_uris: vec![AFTER.to_owned(), AFTER_WITH_QUERY.to_owned()],
        token_endpoint_auth_method: Some("none".to_owned()),
        ..metadata()
    }
}

/// What an ID Token says it was signed with.
fn kid(token: &str) -> String {
    let head = base64url::decode(token.split('.').next().unwrap()).unwrap();
    let head: Value = serde_json::from_slice(&head).unwrap();
    head["kid"].as_str().unwrap().to_owned()
}

impl Browser<'_> {
    /// Signs Ada in at a client; its ID Token.
    async fn id_token(&mut self, client_id: &str) -> String {
        let asked = [("client_id", client_id), ("scope", "openid read")];
        let mut answer = self.ask(&asked).await;
        if answer.status == 200 && heading(&answer) == "Sign in" {
            answer = self.sign_in(&answer, "ada", PASSWORD).await;
        }
        if answer.status == 200 {
            answer = self.decide(&answer, "allow").await;
        }
        let code = returned(&answer)["code"].clone();
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", client_id),
            ("code", &code),
            ("code_verifier", VERIFIER),
            ("redirect_uri", CALLBACK),
        ];
        let request = self.site.server.token_request().form(&form);
        let tokens = crate::support::server::answer(request).await;
        assert_eq!(tokens.status, 200, "{tokens:?}");
        tokens.json()["id_token"].as_str().unwrap().to_owned()
    }

    pub(in crate::http) async fn log_out(&mut self, parameters: &[(&str, &str)]) -> Answer {
        let mut query = Serializer::new(String::new());
        query.extend_pairs(parameters);
        let path = format!("/oauth2/logout?{}", query.finish());
        self.send(self.request(Method::GET, &path)).await
    }

    /// Answers the question whether to sign out.
    pub(in crate::http) async fn answer_question(
        &mut self,
        page: &Answer,
        decision: &str,
    ) -> Answer {
        let form = hidden(page, "form");
        let fields = [("form", form.as_str()), ("decision", decision)];
        self.post("/signout", &fields).await
    }

    async fn is_in(&mut self) -> bool {
        let request = self.request(Method::GET, "/account");
        let page = self.send(request).await;
        match heading(&page) {
            "Your account" => true,
            "Sign in" => false,
            other => panic!("{other}"),
        }
    }
}

fn goes_to(answer: &Answer, location: &str) {
    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(answer.header("location"), Some(location));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

/// A page that ends nothing and leads nowhere.
async fn is_refused(browser: &mut Browser<'_>, answer: &Answer, reason: &str) {
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(heading(answer), "This does not work");
    assert_eq!(answer.header("countersign-reason"), Some(reason));
    assert_eq!(answer.header("location"), None);
    is_guarded(answer);
    assert!(browser.is_in().await);
}

async fn oidcc_rp_initiated_logout(engine: Engine) {
    let site = with_desk(engine).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    let answer = browser
        .log_out(&[
            ("id_token_hint", &hint),
            ("post_logout_redirect_uri", AFTER),
            ("state", "a b&c=d%é"),
        ])
        .await;
    goes_to(&answer, &format!("{AFTER}?state=a+b%26c%3Dd%25%C3%A9"));
    assert!(!browser.cookies.contains_key("__Host-countersign"));
    assert!(!browser.is_in().await);
    // Whoever is signed out already goes the same way, also by client_id alone.
    for identified in [("id_token_hint", hint.as_str()), ("client_id", "desk")] {
        let answer = browser
            .log_out(&[
                identified,
                ("post_logout_redirect_uri", AFTER_WITH_QUERY),
                ("state", "x"),
            ])
            .await;
        goes_to(&answer, &format!("{AFTER_WITH_QUERY}&state=x"));
    }
    // The end is that of the session: another client asks for a password again.
    let refused = returned(
        &browser
            .ask(&[("client_id", "other"), ("prompt", "none")])
            .await,
    );
    assert_eq!(refused["error"], "login_required");
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_bad_post_logout_redirect_uri() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    for uri in [
        "https://evil.example/",
        "https://app.example/bye/",
        "https://app.example/BYE",
        "https://app.example/bye#",
        "https://app.example/./bye",
        CALLBACK,
        "javascript:alert(1)",
    ] {
        let parameters = [
            ("id_token_hint", hint.as_str()),
            ("post_logout_redirect_uri", uri),
            ("state", "x"),
        ];
        let answer = browser.log_out(&parameters).await;
        is_refused(&mut browser, &answer, "post_logout_redirect_uri").await;
    }
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_query_added_to_post_logout_redirect_uri() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    for uri in [
        "https://app.example/bye?a=b",
        "https://app.example/bye?",
        "https://app.example/bye?tenant=1&a=b",
    ] {
        let parameters = [
            ("id_token_hint", hint.as_str()),
            ("post_logout_redirect_uri", uri),
        ];
        let answer = browser.log_out(&parameters).await;
        is_refused(&mut browser, &answer, "post_logout_redirect_uri").await;
    }
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_modified_id_token_hint() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    let parts: Vec<&str> = hint.split('.').collect();
    let payload = String::from_utf8(base64url::decode(parts[1]).unwrap()).unwrap();
    let forged = base64url::encode(payload.replace("desk", "other").as_bytes());
    let none = base64url::encode(br#"{"alg":"none","typ":"JWT"}"#);
    for hint in [
        format!("{}.{forged}.{}", parts[0], parts[2]),
        format!("{none}.{}.", parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
    ] {
        let parameters = [
            ("id_token_hint", hint.as_str()),
            ("post_logout_redirect_uri", AFTER),
        ];
        let answer = browser.log_out(&parameters).await;
        is_refused(&mut browser, &answer, "id_token_hint").await;
    }
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_bad_id_token_hint() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    let access_token = site.server.token().await.access_token();
    // All that an ID Token says, signed by somebody else: under the name of the key that has signed it
    // here, and under another.
    let foreign = [kid(&hint).as_str(), "another"].map(|kid| {
        let key = SigningKey::new(kid);
        key.sign(&json!({ "typ": "JWT" }), &claims(&hint))
    });
    assert_eq!(claims(&foreign[0]), claims(&hint));
    for bad in ["x", "a.b.c", &access_token, &foreign[0], &foreign[1]] {
        let parameters = [
            ("id_token_hint", bad),
            ("post_logout_redirect_uri", AFTER),
            ("client_id", "desk"),
        ];
        let answer = browser.log_out(&parameters).await;
        is_refused(&mut browser, &answer, "id_token_hint").await;
    }
    // Issued to another client than the one that says it asks, or to one that is not there.
    for client in ["other", "nobody", "no client id!"] {
        let parameters = [
            ("id_token_hint", hint.as_str()),
            ("client_id", client),
            ("post_logout_redirect_uri", AFTER),
        ];
        let answer = browser.log_out(&parameters).await;
        is_refused(&mut browser, &answer, "client_id").await;
    }
    let twice = [
        ("id_token_hint", hint.as_str()),
        ("id_token_hint", hint.as_str()),
    ];
    let answer = browser.log_out(&twice).await;
    is_refused(&mut browser, &answer, "repeated_parameter").await;
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_no_id_token_hint() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    browser.id_token("desk").await;
    // Nobody can tell who asks, so that nobody is sent anywhere.
    let alone = [("post_logout_redirect_uri", AFTER), ("state", "x")];
    let answer = browser.log_out(&alone).await;
    is_refused(&mut browser, &answer, "post_logout_redirect_uri").await;
    // A client that says who it is may ask; its user decides.
    let named = [&alone[..], &[("client_id", "desk")]].concat();
    let page = browser.log_out(&named).await;
    assert_eq!((page.status, heading(&page)), (200, "Sign out?"));
    is_guarded(&page);
    for part in ["<strong>ada</strong>", "<strong>Desk</strong> asks"] {
        assert!(page.body.contains(part), "{part}: {page:?}");
    }
    assert!(browser.is_in().await);
    let stayed = browser.answer_question(&page, "stay").await;
    assert_eq!(
        (stayed.status, stayed.header("location")),
        (303, Some("/account"))
    );
    assert!(browser.is_in().await);
    let answer = browser.answer_question(&page, "sign_out").await;
    goes_to(&answer, &format!("{AFTER}?state=x"));
    assert!(!browser.is_in().await);
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_no_params() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    browser.id_token("desk").await;
    let page = browser.log_out(&[]).await;
    assert_eq!((page.status, heading(&page)), (200, "Sign out?"));
    assert!(!page.body.contains("asks to sign you out"), "{page:?}");
    let answer = browser.answer_question(&page, "sign_out").await;
    assert_eq!(
        (answer.status, heading(&answer)),
        (200, "You are signed out")
    );
    is_guarded(&answer);
    assert!(!browser.cookies.contains_key("__Host-countersign"));
    assert!(!browser.is_in().await);
    let again = browser.log_out(&[]).await;
    assert_eq!((again.status, heading(&again)), (200, "You are signed out"));
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_only_state() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    browser.id_token("desk").await;
    let page = browser.log_out(&[("state", "x")]).await;
    assert_eq!(heading(&page), "Sign out?");
    let answer = browser.answer_question(&page, "sign_out").await;
    assert_eq!(
        (answer.status, heading(&answer)),
        (200, "You are signed out")
    );
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_no_post_logout_redirect_uri() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    let answer = browser
        .log_out(&[("id_token_hint", &hint), ("state", "x")])
        .await;
    assert_eq!(
        (answer.status, heading(&answer)),
        (200, "You are signed out")
    );
    assert!(!browser.is_in().await);
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_no_state() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    let parameters = [
        ("id_token_hint", hint.as_str()),
        ("post_logout_redirect_uri", AFTER),
        ("logout_hint", "ada"),
        ("ui_locales", "de fr"),
        ("unknown", "x"),
    ];
    goes_to(&browser.log_out(&parameters).await, AFTER);
    assert!(!browser.is_in().await);
}

/// §2: a hint says who is meant also after it has expired.
#[tokio::test]
async fn an_id_token_hint_counts_after_its_expiry() {
    let clock = ManualClock::new(NOW);
    let site = of_setup(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    site.server.pass(&clock, Duration::from_hours(2)).await;
    let exp = claims(&hint)["exp"].as_i64().unwrap();
    assert!(exp < site.server.clients.clock.now().seconds());
    assert!(browser.is_in().await);
    let parameters = [
        ("id_token_hint", hint.as_str()),
        ("post_logout_redirect_uri", AFTER),
        ("state", "x"),
    ];
    let answer = browser.log_out(&parameters).await;
    goes_to(&answer, &format!("{AFTER}?state=x"));
    assert!(!browser.is_in().await);
}

/// After an emergency clients have ID Tokens left that anybody could have made: they end nothing and lead
/// nowhere by themselves, but users can still sign out.
#[tokio::test]
async fn who_comes_with_an_id_token_of_a_revoked_key_is_asked() {
    let rs256 = ClientMetadata {
        id_token_signed_response_alg: Some("RS256".to_owned()),
        ..desk()
    };
    let setup = Setup::new().set("keys.rs256_id_tokens", "true");
    let site = of_setup(setup.client("rs256", rs256)).await;
    let mut browser = site.browser();
    for (client, key_use) in [("desk", KeyUse::Signing), ("rs256", KeyUse::IdTokenRs256)] {
        let hint = browser.id_token(client).await;
        let (keys, cause) = (site.server.keys(), Cause::system());
        let emergency = Rotation::Emergency {
            discard_next: false,
        };
        keys.rotate(key_use, emergency, &cause).await.unwrap();
        let kid = kid(&hint);
        soon(async { while site.server.jwks().await.contains(&kid) {} }).await;
        let forged = SigningKey::new(&kid).sign(&json!({ "typ": "JWT" }), &claims(&hint));
        for hint in [&hint, &forged] {
            let asked = [
                ("id_token_hint", hint.as_str()),
                ("post_logout_redirect_uri", AFTER),
                ("state", "x"),
            ];
            // Nobody has said who asks.
            let page = browser.log_out(&asked).await;
            assert_eq!((page.status, heading(&page)), (200, "Sign out?"));
            assert!(!page.body.contains("asks to sign you out"), "{page:?}");
            assert!(browser.is_in().await);
            let answer = browser.answer_question(&page, "sign_out").await;
            let is_out = (200, "You are signed out");
            assert_eq!((answer.status, heading(&answer)), is_out);
            let again = browser.log_out(&asked).await;
            assert_eq!((again.status, heading(&again)), is_out);
            // A client that says so may have its user sent where it has registered, and nowhere else.
            browser.id_token(client).await;
            let named = [&asked[..], &[("client_id", client)]].concat();
            let page = browser.log_out(&named).await;
            assert_eq!((page.status, heading(&page)), (200, "Sign out?"));
            let elsewhere = [named[0], named[3], ("post_logout_redirect_uri", CALLBACK)];
            let refused = browser.log_out(&elsewhere).await;
            is_refused(&mut browser, &refused, "post_logout_redirect_uri").await;
            let answer = browser.answer_question(&page, "sign_out").await;
            goes_to(&answer, &format!("{AFTER}?state=x"));
            browser.id_token(client).await;
        }
    }
}

#[tokio::test]
async fn oidcc_rp_initiated_logout_discovery_endpoint_verification() {
    let site = Site::start().await;
    let metadata = answer(site.server.get("/.well-known/openid-configuration")).await;
    assert_eq!(metadata.status, 200);
    let metadata = metadata.json();
    assert_eq!(metadata["issuer"], ISSUER);
    let endpoint = metadata["end_session_endpoint"].as_str().unwrap();
    assert!(endpoint.starts_with("https://"), "{endpoint}");
    // It is there.
    let path = endpoint.strip_prefix(ISSUER).unwrap();
    let page = answer(site.server.get(path)).await;
    assert_eq!((page.status, heading(&page)), (200, "You are signed out"));
}

/// A form of another site brings no cookies: the request comes back as a reading that does.
#[tokio::test]
async fn a_request_to_sign_out_may_be_posted() {
    let site = with_desk(Engine::Sqlite).await;
    let mut browser = site.browser();
    let hint = browser.id_token("desk").await;
    let form = [("id_token_hint", hint.as_str()), ("state", "x")];
    let request = site.browser().request(Method::POST, "/oauth2/logout");
    let request = request.header("sec-fetch-site", "cross-site").form(&form);
    let answer = site.browser().send(request).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    let location = answer.header("location").unwrap();
    let answer = browser.send(browser.request(Method::GET, location)).await;
    assert_eq!(heading(&answer), "You are signed out");
    assert!(!browser.is_in().await);
}

/// The hint of another user ends nothing by itself, nor does an answer that was meant for another
/// browser or another session.
#[tokio::test]
async fn nobody_has_another_one_sign_out() {
    let site = with_desk(Engine::Sqlite).await;
    let eve = site.server.user("eve").await;
    site.set_password(eve, PASSWORD).await;
    let (mut ada, mut other) = (site.browser(), site.browser());
    let hint = ada.id_token("desk").await;
    let page = other.send(other.request(Method::GET, "/account")).await;
    other.sign_in(&page, "eve", PASSWORD).await;
    let asked = other.log_out(&[("id_token_hint", &hint)]).await;
    assert_eq!(heading(&asked), "Sign out?");
    assert!(other.is_in().await);
    // An ID Token of another browser's session, though of the same user.
    let mut elsewhere = site.browser();
    elsewhere.id_token("desk").await;
    let asked_ada = elsewhere.log_out(&[("id_token_hint", &hint)]).await;
    assert_eq!(heading(&asked_ada), "Sign out?");
    assert!(elsewhere.is_in().await);
    // Eve's question, answered from Ada's browser.
    let planted = ada.answer_question(&asked, "sign_out").await;
    is_refused(&mut ada, &planted, "flow").await;
    // A question of an earlier session of the same browser.
    let page = ada.log_out(&[]).await;
    ada.log_out(&[("id_token_hint", &hint)]).await;
    ada.id_token("desk").await;
    let late = ada.answer_question(&page, "sign_out").await;
    is_refused(&mut ada, &late, "flow").await;
    // From a page of another site.
    let page = ada.log_out(&[]).await;
    let form = hidden(&page, "form");
    let fields = [("form", form.as_str()), ("decision", "sign_out")];
    let request = ada.request(Method::POST, "/signout").form(&fields);
    let refused = ada
        .send(request.header("sec-fetch-site", "cross-site"))
        .await;
    is_refused(&mut ada, &refused, "malformed").await;
    for form in ["", "x"] {
        let refused = ada.post("/signout", &[("form", form)]).await;
        is_refused(&mut ada, &refused, "flow").await;
    }
}
