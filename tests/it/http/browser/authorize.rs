//! Authorization requests (RFC 6749 §4.1, RFC 7636, RFC 9207, RFC 9700 §4, `OpenID` Connect Core §3.1.2).

use std::time::Duration;

use countersign::{
    admin::{
        client::ClientMetadata,
        resource::{ResourceAdmin, ResourceMetadata},
    },
    clock::{ManualClock, Timestamp},
    domain::{
        change::{Cause, Change},
        family::EndReason,
        id::SessionId,
    },
};
use reqwest::Method;
use sqlx::{Connection as _, PgConnection};

use super::{REQUEST, STATE, Site, family_of, flow, heading, hidden, of_browsers, returned};
use crate::support::{
    database::{Database, Engine},
    server::{ISSUER, Setup},
    sign_in::{PASSWORD, claims},
    soon,
};

on_both_engines! {
    a_user_signs_in_consents_and_the_client_gets_tokens,
    what_was_allowed_is_not_asked_for_again,
    the_end_of_a_session_ends_what_it_has_brought,
    a_password_change_ends_the_sessions_of_browsers,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

async fn a_user_signs_in_consents_and_the_client_gets_tokens(engine: Engine) {
    let site = Site::on(engine).await;
    let mut browser = site.browser();
    let page = browser.ask(&[("scope", "read")]).await;
    assert_eq!((page.status, heading(&page)), (200, "Sign in"));
    assert!(
        page.body
            .contains("<strong>Field &#60;b&#62;Notes</strong>"),
        "{page:?}"
    );
    let page = browser.sign_in(&page, "Ada", PASSWORD).await;
    assert_eq!(page.status, 200);
    assert_eq!(
        heading(&page),
        "Allow Field &#60;b&#62;Notes to use your account?"
    );
    for part in ["ada", "read", "app.example"] {
        assert!(page.body.contains(part), "{part}: {page:?}");
    }
    let answer = browser.decide(&page, "allow").await;
    let mut parameters = returned(&answer);
    let code = parameters.remove("code").unwrap();
    let others = [("iss", ISSUER), ("state", STATE), ("tenant", "1")];
    let others = others.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(parameters.into_iter().collect::<Vec<_>>(), others);

    let tokens = site.exchanged(&code).await;
    let claims = claims(&tokens.access_token());
    assert_eq!(claims["sub"], site.ada.to_string());
    assert_eq!(claims["scope"], "read");
    assert_eq!(claims["amr"], serde_json::json!(["pwd"]));
    tokens.refresh_token();
}

async fn what_was_allowed_is_not_asked_for_again(engine: Engine) {
    let site = Site::on(engine).await;
    let mut browser = site.browser();
    let silent = [("scope", "read"), ("prompt", "none")];
    let refused = returned(&browser.ask(&silent).await);
    assert_eq!(refused["error"], "login_required");
    assert_eq!(refused["state"], STATE);
    let page = browser.ask(&[("scope", "read")]).await;
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    let refused = returned(&browser.ask(&silent).await);
    assert_eq!(refused["error"], "consent_required");
    returned(&browser.decide(&page, "allow").await);
    for request in [&[("scope", "read")][..], &silent] {
        assert!(returned(&browser.ask(request).await).contains_key("code"));
    }
    // More is asked for, and what was allowed before stays so.
    let page = browser.ask(&[("scope", "write")]).await;
    assert!(page.body.contains(">write<"), "{page:?}");
    returned(&browser.decide(&page, "allow").await);
    let both = [("scope", "read write")];
    assert!(returned(&browser.ask(&both).await).contains_key("code"));
    // In another browser the user has to sign in, and has allowed it already.
    let mut other = site.browser();
    let page = other.ask(&both).await;
    returned(&other.sign_in(&page, "ada", PASSWORD).await);
    // An app of the same house needs no leave.
    let own = [("client_id", "own"), ("scope", "files:read")];
    let files = [&own[..], &[("resource", "https://files.example/v1")]].concat();
    assert!(returned(&browser.ask(&files).await).contains_key("code"));
}

/// What is allowed counts as it is when the code is stored.
#[tokio::test]
async fn who_takes_something_back_while_a_code_is_made_is_asked_again() {
    let database = Database::create(Engine::Postgres).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let mut browser = site.browser();
    browser.code().await;
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    for prompt in ["", "none"] {
        let taken_back = sqlx::raw_sql("begin; delete from consent");
        taken_back.execute(&mut other).await.unwrap();
        let changes = [("prompt", prompt)];
        let (answer, ()) = tokio::join!(browser.ask(&changes), async {
            soon(database.wait_for_a_lock()).await;
            sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
        });
        if prompt == "none" {
            assert_eq!(returned(&answer)["error"], "consent_required");
        } else {
            assert!(heading(&answer).starts_with("Allow "), "{answer:?}");
            returned(&browser.decide(&answer, "allow").await);
        }
    }
}

async fn the_end_of_a_session_ends_what_it_has_brought(engine: Engine) {
    let site = Site::on(engine).await;
    let mut browser = site.browser();
    let code = browser.code().await;
    let tokens = site.exchanged(&code).await;
    let family = site.server.family(family_of(&tokens)).await;
    let session = family.grant.session_id.unwrap();
    let unused = returned(&browser.ask(&[]).await)["code"].clone();
    let end = |session: SessionId| {
        site.server.apply(Change::EndSession {
            session,
            tokens_die_at: NOW,
        })
    };
    end(session).await;
    let family = site.server.family(family.id).await;
    assert_eq!(family.revoke_reason, Some(EndReason::SignedOut));
    let refused = site.exchanged(&unused).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(refused.header("countersign-reason"), Some("signed_out"));
    // The browser has to sign in again, under another session.
    let page = browser.ask(&[]).await;
    assert_eq!(heading(&page), "Sign in");
    let answer = browser.sign_in(&page, "ada", PASSWORD).await;
    let tokens = site.exchanged(&returned(&answer)["code"]).await;
    let anew = site.server.family(family_of(&tokens)).await;
    assert_ne!(anew.grant.session_id, Some(session));
}

async fn a_password_change_ends_the_sessions_of_browsers(engine: Engine) {
    let site = Site::on(engine).await;
    let mut browser = site.browser();
    browser.code().await;
    let change = Change::EndUserSessions {
        id: site.ada,
        tokens_die_at: NOW,
    };
    site.server.apply(change).await;
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
}

/// Each authentication has a cookie of its own; the session of the same user goes on.
#[tokio::test]
async fn whoever_signs_in_again_gets_another_cookie() {
    const SESSION: &str = "__Host-countersign";
    let site = Site::start().await;
    let mut browser = site.browser();
    let first = site.exchanged(&browser.code().await).await;
    let before = browser.cookies[SESSION].clone();
    let page = browser.ask(&[("prompt", "login")]).await;
    assert_eq!(heading(&page), "Sign in");
    let answer = browser.sign_in(&page, "ada", PASSWORD).await;
    let second = site.exchanged(&returned(&answer)["code"]).await;
    let after = browser.cookies[SESSION].clone();
    assert_ne!(after, before);
    let session = async |tokens| {
        let family = site.server.family(family_of(tokens)).await;
        assert_eq!(family.revoked_at, None);
        family.grant.session_id
    };
    assert_eq!(session(&first).await, session(&second).await);
    // The former cookie is good for nothing.
    browser.cookies.insert(SESSION.to_owned(), before);
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
}

#[tokio::test]
async fn a_wrong_password_is_told_and_the_name_is_kept() {
    let site = Site::of(Setup::new().set("limits.password_failures_per_minute", "2")).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    for (username, password) in [("ada", "wrong"), ("nobody", PASSWORD)] {
        let again = browser.sign_in(&page, username, password).await;
        assert_eq!((again.status, heading(&again)), (400, "Sign in"));
        assert!(
            again
                .body
                .contains("The user name or the password is wrong.")
        );
        assert!(again.body.contains(&format!("value=\"{username}\"")));
        assert!(!again.body.contains("wrong\""), "{again:?}");
        assert!(!browser.cookies.contains_key("__Host-countersign"));
    }
    browser.sign_in(&page, "ada", "").await;
    let limited = browser.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!(limited.status, 429, "{limited:?}");
    assert_eq!(heading(&limited), "Sign in");
}

/// RFC 6749 §4.1.2.1.
#[tokio::test]
async fn a_user_may_decline() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    let form = [("flow", flow(&page))];
    let form = form.each_ref().map(|(name, value)| (*name, value.as_str()));
    let cancelled = returned(&browser.post("/signin/cancel", &form).await);
    assert_eq!(cancelled["error"], "access_denied");
    assert_eq!((&*cancelled["state"], &*cancelled["iss"]), (STATE, ISSUER));
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    for decision in ["deny", "", "perhaps"] {
        let denied = returned(&browser.decide(&page, decision).await);
        assert_eq!(denied["error"], "access_denied", "{decision}");
    }
    // Nothing was remembered.
    let refused = returned(&browser.ask(&[("prompt", "none")]).await);
    assert_eq!(refused["error"], "consent_required");
}

/// CSRF of sign-in and of consent: what a page goes on with is for the browser that it was drawn for.
#[tokio::test]
async fn nobody_can_have_another_browser_go_on_with_their_request() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let (mut attacker, mut victim) = (site.browser(), site.browser());
    let page = attacker.ask(&[]).await;
    let of_victim = victim.ask(&[]).await;
    let refused = |answer: &crate::support::server::Answer| {
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(heading(answer), "This does not work");
        assert!(!answer.body.contains("/oauth2/authorize?"), "{answer:?}");
        assert!(answer.header("location").is_none() && answer.header("set-cookie").is_none());
    };
    refused(&victim.sign_in(&page, "ada", PASSWORD).await);
    let consent = victim.sign_in(&of_victim, "ada", PASSWORD).await;
    refused(&victim.decide(&page, "allow").await);
    // Nor from a page of another site, whatever it has got hold of.
    let flow = flow(&consent);
    let form = [("flow", flow.as_str()), ("decision", "allow")];
    for site in ["cross-site", "same-site", "none"] {
        let request = victim.request(Method::POST, "/consent").form(&form);
        refused(&victim.send(request.header("sec-fetch-site", site)).await);
    }
    for flow in ["", "x", &"A".repeat(60_000), &flow[..flow.len() - 2]] {
        let form = [("flow", flow), ("decision", "allow")];
        refused(&victim.post("/consent", &form).await);
    }
    site.server.pass(&clock, Duration::from_mins(31)).await;
    let late = victim.decide(&consent, "allow").await;
    assert_eq!((late.status, heading(&late)), (400, "This does not work"));
}

/// RFC 9700 §4.11: "authorization servers MUST NOT … redirect" to where nobody has registered.
#[tokio::test]
async fn nobody_is_sent_to_where_the_client_has_not_registered() {
    let punycode = "https://xn--bcher-kva.example/cb";
    let idn = ClientMetadata {
        redirect_uris: vec![punycode.to_owned()],
        ..of_browsers()
    };
    let site = Site::of(Setup::new().client("idn", idn)).await;
    let mut browser = site.browser();
    browser.code().await;
    // As a control: as it is registered, it is known.
    let page = browser
        .ask(&[("client_id", "idn"), ("redirect_uri", punycode)])
        .await;
    assert!(heading(&page).starts_with("Allow "), "{page:?}");
    for changes in [
        &[("client_id", "nobody")][..],
        &[("client_id", "")],
        &[("redirect_uri", "https://evil.example/")],
        &[("redirect_uri", "https://app.example/cb?tenant=1&x=y")],
        &[("redirect_uri", "https://app.example/cb?tenant=1#x")],
        &[("redirect_uri", "https://app.example@evil.example/")],
        &[("redirect_uri", "https://app.example/cb?tenant=1\r\nx: y")],
        &[(
            "redirect_uri",
            "https://app.example\\@evil.example/cb?tenant=1",
        )],
        // What a URL parser would make the same of, or nearly.
        &[("redirect_uri", "https://app.example/x/%2e%2e/cb?tenant=1")],
        &[("redirect_uri", "https://app.example/x/../cb?tenant=1")],
        &[("redirect_uri", "https://app.example/%63b?tenant=1")],
        &[("redirect_uri", "https://app.example/cb/?tenant=1")],
        &[("redirect_uri", "https://app.example/CB?tenant=1")],
        &[("redirect_uri", "https://app.example:443/cb?tenant=1")],
        &[("redirect_uri", "https://app.example./cb?tenant=1")],
        &[("redirect_uri", "HTTPS://App.Example/cb?tenant=1")],
        &[("redirect_uri", "http://localhost/cb")],
        // The first letter is Cyrillic; then the same as it is resolved, and as it is registered.
        &[("redirect_uri", "https://\u{430}pp.example/cb?tenant=1")],
        &[("redirect_uri", "https://xn--pp-6kc.example/cb?tenant=1")],
        &[
            ("client_id", "idn"),
            ("redirect_uri", "https://b\u{fc}cher.example/cb"),
        ],
        &[("redirect_uri", "")],
    ] {
        for more in [&[][..], &[("prompt", "none")], &[("response_type", "x")]] {
            let refused = browser.ask(&[changes, more].concat()).await;
            assert_eq!(refused.status, 400, "{changes:?}");
            assert_eq!(heading(&refused), "This does not work");
            assert!(refused.header("location").is_none());
            assert!(!refused.body.contains("evil.example"));
        }
    }
}

#[tokio::test]
async fn what_else_is_wrong_goes_back_to_the_client() {
    let site = Site::start().await;
    let mut browser = site.browser();
    for (changes, error) in [
        (
            &[("response_type", "token")][..],
            "unsupported_response_type",
        ),
        (&[("scope", "admin")], "invalid_scope"),
        (&[("resource", "urn:other")], "invalid_target"),
        (&[("code_challenge", "")], "invalid_request"),
        (&[("code_challenge_method", "plain")], "invalid_request"),
        (&[("prompt", "none login")], "invalid_request"),
        (&[("request", "x")], "request_not_supported"),
        (
            &[("request_uri", "https://a.example")],
            "request_uri_not_supported",
        ),
    ] {
        let refused = returned(&browser.ask(changes).await);
        assert_eq!(refused["error"], error, "{changes:?}");
        assert_eq!((&*refused["state"], &*refused["iss"]), (STATE, ISSUER));
        assert!(!refused["error_description"].is_empty());
    }
}

/// OAuth 2.0 Form Post Response Mode.
#[tokio::test]
async fn an_answer_may_be_posted() {
    let site = Site::start().await;
    let mut browser = site.browser();
    browser.code().await;
    let page = browser.ask(&[("response_mode", "form_post")]).await;
    assert_eq!(page.status, 200, "{page:?}");
    assert!(
        page.body
            .contains("action=\"https://app.example/cb?tenant=1\""),
        "{page:?}"
    );
    assert_eq!(hidden(&page, "iss"), ISSUER);
    assert_eq!(hidden(&page, "state"), STATE.replace('&', "&#38;"));
    assert_eq!(site.exchanged(&hidden(&page, "code")).await.status, 200);
    let request = [("response_mode", "form_post"), ("scope", "admin")];
    let page = browser.ask(&request).await;
    assert_eq!(hidden(&page, "error"), "invalid_scope");
}

/// `OpenID` Connect Core §3.1.2.1: "Authorization Servers MUST support the use of the HTTP GET and POST
/// methods".
#[tokio::test]
async fn a_request_may_be_posted() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let request = browser.request(Method::POST, "/oauth2/authorize");
    let answer = browser.send(request.form(&REQUEST)).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    let location = answer.header("location").unwrap().to_owned();
    assert!(
        location.starts_with("/oauth2/authorize?client_id=notes&"),
        "{location}"
    );
    let request = browser.request(Method::GET, &location);
    assert_eq!(heading(&browser.send(request).await), "Sign in");
}

/// RFC 9700 §2.1.1.
#[tokio::test]
async fn nobody_gets_a_code_without_pkce() {
    let relaxed = ClientMetadata {
        token_endpoint_auth_method: None,
        require_pkce: Some(false),
        scope: "openid read".to_owned(),
        first_party: true,
        ..of_browsers()
    };
    let site = Site::of(Setup::new().client("relaxed", relaxed)).await;
    let mut browser = site.browser();
    browser.code().await;
    for client in ["notes", "relaxed"] {
        let without = [
            ("code_challenge", ""),
            ("code_challenge_method", ""),
            ("client_id", client),
            ("nonce", "n"),
        ];
        let refused = returned(&browser.ask(&without).await);
        assert_eq!(refused["error"], "invalid_request", "{client}");
    }
}

/// What a user allows is what was on the page, for who was asked.
#[tokio::test]
async fn a_consent_is_for_what_was_shown_to_whom() {
    let site = Site::start().await;
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let mut browser = site.browser();
    let sign_in = browser.ask(&[("scope", "read")]).await;
    let of_ada = browser.sign_in(&sign_in, "ada", PASSWORD).await;
    // The page of a sign-in is none of consent.
    let asked = browser.decide(&sign_in, "allow").await;
    assert!(heading(&asked).starts_with("Allow "), "{asked:?}");
    // Somebody else has signed in meanwhile, in another tab.
    let page = browser.ask(&[("prompt", "login")]).await;
    browser.sign_in(&page, "bob", PASSWORD).await;
    let asked = browser.decide(&of_ada, "allow").await;
    assert!(heading(&asked).starts_with("Allow "), "{asked:?}");
    assert!(asked.body.contains("bob"), "{asked:?}");
    let refused = returned(&browser.ask(&[("prompt", "none"), ("scope", "read")]).await);
    assert_eq!(refused["error"], "consent_required");
    assert!(returned(&browser.decide(&asked, "allow").await).contains_key("code"));
    // What was allowed at one resource is not allowed at another.
    let elsewhere = [
        ("scope", "files:read"),
        ("resource", "https://files.example/v1"),
    ];
    let page = browser.ask(&elsewhere).await;
    assert!(page.body.contains("files:read"), "{page:?}");
}

/// What a client asks for is told in the words that the resource has for it, with the token beside
/// them; where it has none, the token is all there is.
#[tokio::test]
async fn scopes_are_told_in_words() {
    const ORDERS: &str = "https://orders.example";
    let shop = ClientMetadata {
        resources: vec![ORDERS.to_owned()],
        default_resource: None,
        scope: "orders:read orders:write".to_owned(),
        ..of_browsers()
    };
    let site = Site::start().await;
    let resources = ResourceAdmin {
        store: site.server.clients.store.clone(),
        clock: site.server.clients.clock.clone(),
        entropy: site.server.clients.entropy.clone(),
        issuer: site.server.issuer.clone(),
    };
    let metadata = ResourceMetadata {
        resource: ORDERS.to_owned(),
        name: "Orders".to_owned(),
        scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
        scope_descriptions: [("orders:read".to_owned(), "See <all> your orders".to_owned())].into(),
        ..ResourceMetadata::default()
    };
    let created = resources.create(&metadata, false, &Cause::system()).await;
    created.unwrap();
    let shop = site.server.register(&shop).await;
    site.server.renewed().await;
    let mut browser = site.browser();
    let request = [
        ("client_id", shop.id.as_str()),
        ("resource", ORDERS),
        ("scope", "orders:read orders:write"),
    ];
    let page = browser.ask(&request).await;
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    for line in [
        "<span>See &#60;all&#62; your orders<small>at Orders <code>orders:read</code></small></span>",
        "<span>orders:write<small>at Orders</small></span>",
    ] {
        assert!(page.body.contains(line), "{line}: {page:?}");
    }
    returned(&browser.decide(&page, "allow").await);
    let account = browser.request(Method::GET, "/account");
    let account = browser.send(account).await;
    let line =
        "See &#60;all&#62; your orders <span class=\"quiet\">at Orders <code>orders:read</code>";
    assert!(account.body.contains(line), "{account:?}");
}

/// Whoever is asked for consent under another's name signs in under its own, for the same request.
#[tokio::test]
async fn somebody_else_may_sign_in_in_place_of_who_is_asked() {
    let site = Site::start().await;
    let bob = site.server.user("bob").await;
    site.set_password(bob, "a password of bob's own").await;
    let mut browser = site.browser();
    let page = browser.ask(&[("scope", "read")]).await;
    let of_ada = browser.sign_in(&page, "ada", PASSWORD).await;
    assert!(of_ada.body.contains("<strong>ada</strong>"), "{of_ada:?}");
    let page = browser.decide(&of_ada, "switch").await;
    assert_eq!((page.status, heading(&page)), (200, "Sign in"));
    assert!(
        page.body.contains("name=\"username\" value=\"\""),
        "{page:?}"
    );
    let of_bob = browser
        .sign_in(&page, "bob", "a password of bob's own")
        .await;
    assert!(of_bob.body.contains("<strong>bob</strong>"), "{of_bob:?}");
    // What Ada was shown is not what Bob allows.
    let again = browser.decide(&of_ada, "allow").await;
    assert_eq!(
        heading(&again),
        "Allow Field &#60;b&#62;Notes to use your account?"
    );
    let answer = returned(&browser.decide(&of_bob, "allow").await);
    assert_eq!(answer["state"], STATE);
    let tokens = site.exchanged(&answer["code"]).await;
    assert_eq!(claims(&tokens.access_token())["sub"], bob.to_string());
}
