//! Authorization requests of `OpenID` Connect (Core §3.1.2.1), and what protects their codes.

use countersign::admin::client::ClientMetadata;

use super::{
    super::browser::{CALLBACK, Site, heading, returned},
    ask, code, exchange, id_token, relying_party, rp, sign_in, site,
};
use crate::support::{
    database::Engine,
    server::{Answer, Setup, TestServer, answer},
    sign_in::{PASSWORD, VERIFIER, claims},
};

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
    // What the client holds against the nonce of the session that the code was brought into.
    assert_eq!(claims(&id_token(&injected))["nonce"], "of the victim");
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
