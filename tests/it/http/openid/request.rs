//! Authorization requests of `OpenID` Connect (Core §3.1.2.1), and what protects their codes.

use std::{str::FromStr as _, time::Duration};

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
};
use openidconnect::{
    ClaimsVerificationError, ClientId, ClientSecret, IssuerUrl, Nonce,
    core::{CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm},
};

use super::{
    super::browser::{CALLBACK, STATE, Site, heading, hidden, returned},
    ask, code, exchange, id_token, relying_party, rp, sign_in, site, verified,
};
use crate::support::{
    database::Engine,
    server::{Answer, ISSUER, Setup, TestServer, answer},
    sign_in::{PASSWORD, VERIFIER, claims, refresh},
};

on_both_engines! {
    offline_access_needs_consent,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// Without a challenge.
const WITHOUT: [(&str, &str); 2] = [("code_challenge", ""), ("code_challenge_method", "")];

/// A server whose `rp` need not use PKCE.
async fn relaxed() -> Site {
    let relaxed = ClientMetadata {
        require_pkce: Some(false),
        ..relying_party()
    };
    Site::of(Setup::new().client("rp", relaxed)).await
}

/// What a code gets `rp` by these parameters.
async fn redeemed(server: &TestServer, code: &str, more: &[(&str, &str)]) -> Answer {
    let form = [("grant_type", "authorization_code"), ("code", code)];
    server
        .exchange(rp(server), &[&form[..], more].concat())
        .await
}

/// RFC 9700 §2.1.1, §4.5.3: what takes the place of PKCE.
#[tokio::test]
async fn without_pkce_there_are_a_nonce_and_a_redirect_uri_that_is_repeated() {
    let site = relaxed().await;
    let server = &site.server;
    let mut browser = site.browser();
    let refused = returned(&ask(&mut browser, &WITHOUT).await);
    assert_eq!(refused["error"], "invalid_request");
    let asked = [&WITHOUT[..], &[("nonce", "n")]].concat();
    let first = code(&site, &asked).await;
    let uri = ("redirect_uri", CALLBACK);
    for more in [
        &[][..],
        &[("redirect_uri", "http://127.0.0.1/cb")],
        &[uri, ("code_verifier", VERIFIER)],
    ] {
        let refused = redeemed(server, &first, more).await;
        assert_eq!(refused.status, 400, "{more:?}");
    }
    let answered = redeemed(server, &first, &[uri]).await;
    assert_eq!(claims(&id_token(&answered))["nonce"], "n");
    // Not for codes without an ID Token.
    let plain = [&asked[..], &[("scope", "read")]].concat();
    let refused = returned(&ask(&mut browser, &plain).await);
    assert_eq!(refused["error"], "invalid_request");
}

/// RFC 9700 §4.8.2: whoever strikes the challenge out of a request gets a code that its client cannot
/// be made to exchange; and one with a challenge is not exchanged without the verifier.
#[tokio::test]
async fn pkce_downgrade() {
    let site = relaxed().await;
    let server = &site.server;
    let uri = ("redirect_uri", CALLBACK);
    let struck_out = [&WITHOUT[..], &[("nonce", "n")]].concat();
    let struck_out = code(&site, &struck_out).await;
    let refused = redeemed(server, &struck_out, &[uri, ("code_verifier", VERIFIER)]).await;
    assert_eq!(refused.json()["error"], "invalid_request");
    assert_eq!(
        refused.header("countersign-reason"),
        Some("code_verifier_unexpected")
    );
    let bound = code(&site, &[("nonce", "n")]).await;
    let refused = redeemed(server, &bound, &[uri]).await;
    assert_eq!(refused.json()["error"], "invalid_grant");
    assert_eq!(refused.header("countersign-reason"), Some("code_verifier"));
    // `plain` protects from nobody who reads the request.
    let plain = [
        ("code_challenge", VERIFIER),
        ("code_challenge_method", "plain"),
    ];
    let refused = returned(&ask(&mut site.browser(), &plain).await);
    assert_eq!(refused["error"], "invalid_request");
}

/// RFC 9207 §2.4, RFC 9700 §4.4: every answer names the issuer that gives it, so that a client that asks
/// several cannot be made to bring a code to the wrong one.
#[tokio::test]
async fn mix_up() {
    let site = site(Engine::Sqlite).await;
    let mut browser = site.browser();
    let given = returned(&sign_in(&mut browser, &[]).await);
    let issuer = site.server.issuer.as_str();
    assert_eq!(
        (given["iss"].as_str(), given.contains_key("code")),
        (issuer, true)
    );
    let refused = returned(&ask(&mut browser, &[("scope", "admin")]).await);
    assert_eq!(
        (refused["iss"].as_str(), refused["error"].as_str()),
        (issuer, "invalid_scope")
    );
    let metadata = answer(site.server.get("/.well-known/openid-configuration"))
        .await
        .json();
    assert_eq!(metadata["issuer"], issuer);
    assert_eq!(
        metadata["authorization_response_iss_parameter_supported"],
        true
    );
}

/// RFC 9700 §4.5: a code that was caught is of no use in another session of its client, whose verifier is
/// another one and whose nonce the ID Token would not repeat.
#[tokio::test]
async fn code_injection() {
    let site = relaxed().await;
    let server = &site.server;
    let uri = ("redirect_uri", CALLBACK);
    let caught = code(&site, &[]).await;
    let other = "x".repeat(43);
    let refused = redeemed(server, &caught, &[uri, ("code_verifier", &other)]).await;
    assert_eq!(refused.header("countersign-reason"), Some("code_verifier"));
    let caught = [&WITHOUT[..], &[("nonce", "of the victim")]].concat();
    let caught = code(&site, &caught).await;
    let injected = redeemed(server, &caught, &[uri]).await;
    // A client of somebody else's making holds it against the nonce of the session that the code was
    // brought into.
    let token = CoreIdToken::from_str(&id_token(&injected)).unwrap();
    let keys: CoreJsonWebKeySet = serde_json::from_str(&server.jwks().await).unwrap();
    let judge = CoreIdTokenVerifier::new_confidential_client(
        ClientId::new("rp".to_owned()),
        ClientSecret::new(rp(server).secret.clone()),
        IssuerUrl::new(ISSUER.to_owned()).unwrap(),
        keys,
    );
    let judge = judge.set_allowed_algs([CoreJwsSigningAlgorithm::EcdsaP256Sha256]);
    let judged_with = |nonce: &str| token.claims(&judge, &Nonce::new(nonce.to_owned()));
    let refused = judged_with("of the attacker");
    assert!(
        matches!(refused, Err(ClaimsVerificationError::InvalidNonce(_))),
        "{refused:?}"
    );
    judged_with("of the victim").unwrap();
}

/// Core §3.1.2.1: "If the End-User identified by the ID Token is already logged in … then the
/// Authorization Server returns a positive response; otherwise, it MUST return an error".
#[tokio::test]
async fn an_id_token_hint_says_who_is_expected() {
    let site = site(Engine::Sqlite).await;
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let mut browser = site.browser();
    let code = returned(&sign_in(&mut browser, &[]).await)["code"].clone();
    let answered = exchange(&site.server, &code, &[]).await;
    let of_ada = id_token(&answered);
    let hint = ("id_token_hint", of_ada.as_str());
    let silent = [hint, ("prompt", "none")];
    assert!(returned(&ask(&mut browser, &silent).await).contains_key("code"));
    assert!(returned(&ask(&mut browser, &[hint]).await).contains_key("code"));
    let mut other = site.browser();
    let page = ask(&mut other, &[hint]).await;
    assert_eq!(heading(&page), "Sign in");
    let wrong = returned(&other.sign_in(&page, "bob", PASSWORD).await);
    assert_eq!(wrong["error"], "login_required");
    // He is signed in, and nobody is told that for Ada.
    let refused = returned(&ask(&mut other, &silent).await);
    assert_eq!(refused["error"], "login_required");
    let mine = returned(&ask(&mut other, &[("prompt", "none")]).await);
    assert!(mine.contains_key("code"));
    // Of nobody, of another kind, not signed here.
    let access_token = answered.access_token();
    let (input, _) = of_ada.rsplit_once('.').unwrap();
    for bad in ["x", &access_token, &format!("{input}.{}", "A".repeat(86))] {
        let refused = returned(&ask(&mut browser, &[("id_token_hint", bad)]).await);
        assert_eq!(refused["error"], "invalid_request", "{bad}");
    }
}

/// Core §5.5.1: a request for a user by name.
#[tokio::test]
async fn a_claim_sub_says_who_is_expected() {
    let site = site(Engine::Sqlite).await;
    let mut browser = site.browser();
    sign_in(&mut browser, &[]).await;
    let by_name = |sub: &str| format!(r#"{{"id_token":{{"sub":{{"value":"{sub}"}}}}}}"#);
    for (sub, expected) in [
        (site.ada.to_string(), "code"),
        ("nobody".to_owned(), "error"),
    ] {
        let claims = by_name(&sub);
        let silent = [("claims", claims.as_str()), ("prompt", "none")];
        let answered = returned(&ask(&mut browser, &silent).await);
        assert!(answered.contains_key(expected), "{answered:?}");
    }
    let claims = by_name("nobody");
    let page = ask(&mut browser, &[("claims", &claims)]).await;
    assert_eq!(heading(&page), "Sign in");
    let bad = returned(&ask(&mut browser, &[("claims", "{")]).await);
    assert_eq!(bad["error"], "invalid_request");
}

/// Core §3.1.2.1: a hint says who is meant, however long ago it was issued; by whom still counts.
#[tokio::test]
async fn an_id_token_hint_counts_after_its_expiry() {
    let clock = ManualClock::new(NOW);
    let setup = Setup::new().clock(clock.clone());
    let site = Site::of(setup.client("rp", relying_party())).await;
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let (mut browser, mut other) = (site.browser(), site.browser());
    let code = returned(&sign_in(&mut browser, &[]).await)["code"].clone();
    let hint = id_token(&exchange(&site.server, &code, &[]).await);
    let page = ask(&mut other, &[]).await;
    returned(&other.sign_in(&page, "bob", PASSWORD).await);
    site.server.pass(&clock, Duration::from_hours(2)).await;
    let exp = verified(&site.server, &hint).await["exp"].as_i64().unwrap();
    assert!(exp < site.server.clients.clock.now().seconds());
    for prompt in ["", "none"] {
        let asked = [("id_token_hint", hint.as_str()), ("prompt", prompt)];
        assert!(returned(&ask(&mut browser, &asked).await).contains_key("code"));
    }
    let silent = [("id_token_hint", hint.as_str()), ("prompt", "none")];
    let refused = returned(&ask(&mut other, &silent).await);
    assert_eq!(refused["error"], "login_required");
    let (input, signature) = hint.rsplit_once('.').unwrap();
    let (first, rest) = signature.split_at(1);
    let first = if first == "A" { "B" } else { "A" };
    let forged = format!("{input}.{first}{rest}");
    let silent = [("id_token_hint", forged.as_str()), ("prompt", "none")];
    let refused = returned(&ask(&mut browser, &silent).await);
    assert_eq!(refused["error"], "invalid_request");
}

/// RFC 6749 §4.1.2: "the exact value received from the client"; Core §3.1.2.1: "passed through
/// unmodified". What is too long is not cut.
#[tokio::test]
async fn a_long_state_and_a_long_nonce_come_back_exactly() {
    let site = site(Engine::Sqlite).await;
    let nonce = "n-0S6_WzA2Mj%&+ ".repeat(24);
    assert_eq!(nonce.len(), 384);
    let mixed = format!("{STATE}<\"'>+").repeat(300);
    let mixed: String = mixed
        .char_indices()
        .take_while(|(at, character)| at + character.len_utf8() <= 4096)
        .map(|(_, character)| character)
        .collect();
    for state in ["x".repeat(4096), "&".repeat(4096), mixed] {
        assert!(state.len() > 4094);
        for mode in ["query", "form_post"] {
            let asked = [
                ("state", state.as_str()),
                ("nonce", &nonce),
                ("response_mode", mode),
            ];
            let answer = sign_in(&mut site.browser(), &asked).await;
            let (back, code) = if mode == "query" {
                let mut back = returned(&answer);
                (back.remove("state").unwrap(), back["code"].clone())
            } else {
                (
                    unescaped(&hidden(&answer, "state")),
                    hidden(&answer, "code"),
                )
            };
            assert!(back == state, "{mode}: {back}");
            let tokens = exchange(&site.server, &code, &[]).await;
            assert_eq!(claims(&id_token(&tokens))["nonce"], nonce);
        }
    }
    let mut browser = site.browser();
    let refused = returned(&ask(&mut browser, &[("state", &"x".repeat(4097))]).await);
    assert_eq!(refused["error"], "invalid_request");
    assert!(!refused.contains_key("state"), "{refused:?}");
    let refused = returned(&ask(&mut browser, &[("nonce", &"x".repeat(513))]).await);
    assert_eq!(
        (refused["error"].as_str(), refused["state"].as_str()),
        ("invalid_request", STATE)
    );
}

/// What a browser makes of a value in a page.
fn unescaped(text: &str) -> String {
    let references = [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#60;", "<"),
        ("&#62;", ">"),
        ("&#38;", "&"),
    ];
    let text = text.to_owned();
    references.iter().fold(text, |text, (reference, meant)| {
        text.replace(reference, meant)
    })
}

/// RFC 6749 §3.1: "Request and response parameters MUST NOT be included more than once", but for
/// `resource` (RFC 8707 §2). What nobody knows is passed over.
#[tokio::test]
async fn no_parameter_that_is_known_comes_twice() {
    let site = site(Engine::Sqlite).await;
    let mut browser = site.browser();
    for name in ["client_id", "redirect_uri"] {
        let value = if name == "client_id" { "rp" } else { CALLBACK };
        let refused = ask(&mut browser, &[(name, value), (name, value)]).await;
        assert_eq!(refused.status, 400, "{name}");
        assert_eq!(
            refused.header("countersign-reason"),
            Some("repeated_parameter")
        );
    }
    for (name, value) in [
        ("response_type", "code"),
        ("response_mode", "query"),
        ("scope", "openid"),
        ("state", "x"),
        ("code_challenge", super::super::browser::CHALLENGE),
        ("code_challenge_method", "S256"),
        ("nonce", "n"),
        ("display", "page"),
        ("prompt", "login"),
        ("max_age", "60"),
        ("ui_locales", "en"),
        ("claims_locales", "en"),
        ("id_token_hint", "x"),
        ("login_hint", "ada"),
        ("acr_values", "1"),
        ("claims", "{}"),
        ("request", "x"),
        ("request_uri", "https://app.example/request.jwt"),
    ] {
        let refused = returned(&ask(&mut browser, &[(name, value), (name, value)]).await);
        assert_eq!(refused["error"], "invalid_request", "{name}");
        let told = format!("the parameter {name} occurs more than once");
        assert_eq!(refused["error_description"], told);
    }
    for (name, values) in [
        ("unheard_of", ["x", "x"]),
        (
            "resource",
            ["https://api.example", "https://files.example/v1"],
        ),
    ] {
        let asked = [(name, values[0]), (name, values[1])];
        assert_eq!(heading(&ask(&mut browser, &asked).await), "Sign in");
    }
}

/// Core §11: what is to last after its user has gone is asked for, and allowed, by its own line.
async fn offline_access_needs_consent(engine: Engine) {
    const LINE: &str = "Stay signed in";
    let site = site(engine).await;
    let third = site.server.other("third");
    let mut browser = site.browser();
    let exchanged = async |answer: &Answer| {
        let code = returned(answer)["code"].clone();
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("code_verifier", VERIFIER),
            ("redirect_uri", CALLBACK),
        ];
        site.server.exchange(third, &form).await
    };
    let short = [("client_id", "third"), ("scope", "openid read")];
    let page = sign_in(&mut browser, &short).await;
    assert!(heading(&page).starts_with("Allow "), "{page:?}");
    assert!(!page.body.contains(LINE), "{page:?}");
    let short_lived = exchanged(&browser.decide(&page, "allow").await).await;
    let silently = [("prompt", "none")];
    returned(&ask(&mut browser, &[&short[..], &silently].concat()).await);

    let lasting = [
        ("client_id", "third"),
        ("scope", "openid read offline_access"),
    ];
    let silent = [&lasting[..], &silently].concat();
    for decision in ["deny", "allow"] {
        let refused = returned(&ask(&mut browser, &silent).await);
        assert_eq!(refused["error"], "consent_required", "{decision}");
        let page = ask(&mut browser, &lasting).await;
        assert!(heading(&page).starts_with("Allow "), "{page:?}");
        assert!(page.body.contains(LINE), "{page:?}");
        let answer = browser.decide(&page, decision).await;
        if decision == "deny" {
            assert_eq!(returned(&answer)["error"], "access_denied");
            continue;
        }
        let long_lived = exchanged(&answer).await;
        // What was allowed outlasts the session, and nothing else does.
        let question = browser.log_out(&[]).await;
        browser.answer_question(&question, "sign_out").await;
        let token = long_lived.refresh_token();
        let refreshed = site.server.exchange(third, &refresh(&token)).await;
        assert_eq!(refreshed.status, 200, "{refreshed:?}");
        let token = short_lived.refresh_token();
        let refused = site.server.exchange(third, &refresh(&token)).await;
        assert_eq!(refused.json()["error"], "invalid_grant");
    }
}
