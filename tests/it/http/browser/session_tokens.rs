//! `POST /session/token` and `/session/logout`: pages that use the session of their browser (RFC 10017
//! §6.1, and what it says of cookies and of cross-site request forgery).

use std::time::Duration;

use countersign::{
    admin::{
        client::ClientMetadata,
        resource::{ResourceAdmin, ResourceMetadata},
    },
    clock::{ManualClock, Timestamp},
    domain::{
        change::{Cause, Change},
        family::{EndReason, FamilyQuery},
        id::ClientId,
    },
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{Browser, CHALLENGE, Site, account::form_before, family_of, of_browsers, returned};
use crate::support::{
    database::Engine,
    server::{API, Answer, FILES, Setup, answer, metadata},
    sign_in::{PASSWORD, claims, update_user},
};

on_both_engines! {
    the_session_of_a_browser_is_turned_into_access_tokens_of_one_family,
    the_end_of_the_session_ends_what_pages_have,
    introspection_knows_at_once_that_a_session_is_over,
    a_third_party_has_what_its_user_has_allowed,
    what_an_operator_has_ended_stays_so_until_the_user_signs_in_again,
    a_session_of_one_factor_has_nothing_where_two_are_required,
}

const APP: &str = "https://app.issuer.example";
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const COOKIE: &str = "__Host-countersign";

/// A client whose pages use the session of their browser.
fn of_pages() -> ClientMetadata {
    ClientMetadata {
        client_name: "Board".to_owned(),
        session_tokens: true,
        first_party: true,
        allowed_origins: vec![APP.to_owned()],
        ..of_browsers()
    }
}

async fn site(setup: Setup) -> Site {
    let third = ClientMetadata {
        first_party: false,
        allowed_origins: vec!["https://third.issuer.example".to_owned()],
        ..of_pages()
    };
    let without = ClientMetadata {
        session_tokens: false,
        ..of_pages()
    };
    let setup = setup
        .client("board", of_pages())
        .client("third", third)
        .client("without", without);
    Site::of(setup).await
}

/// A browser in which Ada has signed in.
async fn signed_in(site: &Site) -> Browser<'_> {
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    browser.sign_in(&page, "ada", PASSWORD).await;
    assert!(browser.cookies.contains_key(COOKIE));
    browser
}

impl Browser<'_> {
    /// A request as a page of the client `board` sends it.
    fn by_page(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, path)
            .header("origin", APP)
            .header("sec-fetch-site", "same-site")
            .header("countersign-session", "1")
            .json(body)
    }

    async fn token(&self) -> Answer {
        let request = self.by_page("/session/token", &json!({ "client_id": "board" }));
        answer(request).await
    }
}

/// The cookie that an answer sets: its value, and whether it is gone with that.
fn set_cookie(answer: &Answer) -> Option<(&str, bool)> {
    let cookie = answer.header("set-cookie")?;
    let value = cookie.strip_prefix(COOKIE)?.strip_prefix('=')?;
    for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let value = value.split(';').next().unwrap();
    Some((value, cookie.contains("Max-Age=0")))
}

fn is_readable(answer: &Answer, origin: Option<&str>) -> bool {
    let credentials = answer.header("access-control-allow-credentials");
    assert_eq!(credentials, origin.map(|_| "true"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    answer.header("access-control-allow-origin") == origin
}

async fn the_session_of_a_browser_is_turned_into_access_tokens_of_one_family(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let browser = signed_in(&site).await;
    let first = browser.token().await;
    assert!(is_readable(&first, Some(APP)), "{first:?}");
    assert_eq!(first.header("cache-control"), Some("no-store"));
    assert_eq!(set_cookie(&first), None);
    let document = first.json();
    let mut members: Vec<&String> = document.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(
        members,
        ["access_token", "expires_in", "scope", "token_type"]
    );
    assert_eq!(document["scope"], "read write");
    let said = claims(&first.access_token());
    assert_eq!(said["sub"], site.ada.to_string());
    assert_eq!(
        (&said["client_id"], &said["aud"]),
        (&json!("board"), &json!(API))
    );
    assert_eq!(said["amr"], json!(["pwd"]));
    let family = family_of(&first);
    // Again, and for something else: the same family.
    let again = browser.token().await;
    assert_eq!(family_of(&again), family);
    let body = json!({ "client_id": "board", "resource": [FILES], "scope": "files:read" });
    let files = answer(browser.by_page("/session/token", &body)).await;
    assert_eq!(family_of(&files), family);
    assert_eq!(claims(&files.access_token())["aud"], FILES);
    let one = json!({ "client_id": "board", "resource": FILES, "unknown": 1 });
    let files = answer(browser.by_page("/session/token", &one)).await;
    assert_eq!(files.json()["scope"], "files:read");
    let row = site.server.family(family).await;
    assert!(row.for_session && row.grant.session_id.is_some());
    // What it may not have at all it has not here either.
    for (body, error) in [
        (
            json!({ "client_id": "board", "scope": "admin" }),
            "invalid_scope",
        ),
        (
            json!({ "client_id": "board", "resource": "urn:x" }),
            "invalid_target",
        ),
    ] {
        let refused = answer(browser.by_page("/session/token", &body)).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]),
            (400, &json!(error))
        );
    }
}

async fn the_end_of_the_session_ends_what_pages_have(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let mut browser = signed_in(&site).await;
    let before = browser.token().await;
    let page = browser.ask(&[]).await;
    let decided = browser.decide(&page, "allow").await;
    let by_code = site.exchanged(&returned(&decided)["code"]).await;
    let logout = browser.by_page("/session/logout", &json!({ "client_id": "board" }));
    let ended = answer(logout).await;
    assert_eq!(ended.status, 204);
    assert_eq!(set_cookie(&ended), Some(("", true)));
    assert!(is_readable(&ended, Some(APP)));
    for tokens in [&before, &by_code] {
        let row = site.server.family(family_of(tokens)).await;
        assert_eq!(row.revoke_reason, Some(EndReason::SignedOut));
    }
    let refused = browser.token().await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (401, &json!("login_required"))
    );
    assert_eq!(set_cookie(&refused), Some(("", true)));
    assert!(is_readable(&refused, Some(APP)));
    // A second time, and without a session, nothing is wrong with it.
    let logout = browser.by_page("/session/logout", &json!({ "client_id": "board" }));
    assert_eq!(answer(logout).await.status, 204);
}

/// RFC 7662 §2.2, whichever way the session ends.
async fn introspection_knows_at_once_that_a_session_is_over(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let (server, clients) = (&site.server, &site.server.clients);
    let resources = ResourceAdmin {
        store: clients.store.clone(),
        clock: clients.clock.clone(),
        entropy: clients.entropy.clone(),
        issuer: server.issuer.clone(),
    };
    let guarded = ResourceMetadata {
        resource: "https://guarded.example".to_owned(),
        name: "Guarded".to_owned(),
        scopes: vec!["read".to_owned()],
        introspection_clients: vec![server.app.id.clone()],
        ..ResourceMetadata::default()
    };
    let created = resources.create(&guarded, false, &Cause::system()).await;
    created.unwrap();
    let shelf = ClientMetadata {
        scope: "read".to_owned(),
        resources: vec![guarded.resource.clone()],
        default_resource: Some(guarded.resource.clone()),
        ..of_pages()
    };
    let shelf = server.register(&shelf).await;
    let body = json!({ "client_id": shelf.id });
    let is_active = async |token: &str| {
        let request = server.request(Method::POST, "/oauth2/introspect");
        let request = request.basic_auth(&server.app.id, Some(&server.app.secret));
        let told = answer(request.form(&[("token", token)])).await;
        told.json()["active"].as_bool().unwrap()
    };
    for way in ["its page", "the account page", "an operator"] {
        let mut browser = signed_in(&site).await;
        let token = answer(browser.by_page("/session/token", &body)).await;
        let token = token.access_token();
        assert!(is_active(&token).await, "{way}");
        match way {
            "its page" => {
                let ended = answer(browser.by_page("/session/logout", &body)).await;
                assert_eq!(ended.status, 204);
            }
            "the account page" => {
                let page = browser.account().await;
                let form = form_before(&page, ">Sign out</button>");
                assert_eq!(browser.act(&form).await.status, 303);
            }
            _ => {
                let end = Change::EndUserSessions {
                    id: site.ada,
                    tokens_die_at: NOW,
                };
                server.apply(end).await;
            }
        }
        assert!(!is_active(&token).await, "{way}");
    }
}

async fn a_third_party_has_what_its_user_has_allowed(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let mut browser = signed_in(&site).await;
    let request = |browser: &Browser<'_>, scope: &str| {
        let body = json!({ "client_id": "third", "scope": scope });
        let request = browser.request(Method::POST, "/session/token").json(&body);
        let request = request.header("origin", "https://third.issuer.example");
        answer(request.header("countersign-session", "1"))
    };
    let refused = request(&browser, "read").await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (403, &json!("consent_required"))
    );
    let page = browser
        .ask(&[("client_id", "third"), ("scope", "read")])
        .await;
    assert_eq!(browser.decide(&page, "allow").await.status, 303);
    let allowed = request(&browser, "read").await;
    assert_eq!(allowed.json()["scope"], "read");
    let family = family_of(&allowed);
    assert_eq!(
        site.server.family(family).await.grant.scope.to_string(),
        "read"
    );
    let more = request(&browser, "read write").await;
    assert_eq!(more.json()["error"], "consent_required");
    // It is taken back: the tokens end, and there are no others.
    let withdraw = Change::WithdrawConsent {
        subject: site.ada,
        client_id: ClientId::parse("third").unwrap(),
        tokens_die_at: NOW,
    };
    site.server.apply(withdraw).await;
    let row = site.server.family(family).await;
    assert_eq!(row.revoke_reason, Some(EndReason::ConsentWithdrawn));
    assert_eq!(
        request(&browser, "read").await.json()["error"],
        "consent_required"
    );
    let page = browser
        .ask(&[("client_id", "third"), ("scope", "read")])
        .await;
    browser.decide(&page, "allow").await;
    assert_ne!(family_of(&request(&browser, "read").await), family);
}

async fn what_an_operator_has_ended_stays_so_until_the_user_signs_in_again(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let mut browser = signed_in(&site).await;
    let family = family_of(&browser.token().await);
    let end = Change::EndFamily {
        family,
        reason: EndReason::RevokedByOperator,
        tokens_die_at: NOW,
    };
    site.server.apply(end).await;
    let refused = browser.token().await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (401, &json!("login_required"))
    );
    assert_eq!(refused.header("countersign-reason"), Some("revoked"));
    // The session itself lives, and its cookie stays.
    assert_eq!(set_cookie(&refused), None);
    let page = browser.ask(&[("prompt", "login")]).await;
    browser.sign_in(&page, "ada", PASSWORD).await;
    assert_ne!(family_of(&browser.token().await), family);
}

#[tokio::test]
async fn nothing_is_done_for_a_request_that_any_page_can_cause() {
    let site = site(Setup::new()).await;
    let browser = signed_in(&site).await;
    let body = json!({ "client_id": "board" });
    let text = body.to_string();
    let bare = |path: &str| browser.request(Method::POST, path);
    let with = |path: &str, headers: &[(&str, &str)]| {
        let request = headers.iter().fold(bare(path), |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(text.clone())
    };
    let json = ("content-type", "application/json");
    let own = ("countersign-session", "1");
    let origin = ("origin", APP);
    for path in ["/session/token", "/session/logout"] {
        for headers in [
            // What forms and simple requests can bring.
            &[origin, ("content-type", "text/plain"), own][..],
            &[
                origin,
                ("content-type", "application/x-www-form-urlencoded"),
                own,
            ],
            &[origin, json],
            &[origin, json, ("countersign-session", "0")],
            &[json, own],
            // Of other sites, and of no page at all.
            &[origin, json, own, ("sec-fetch-site", "cross-site")],
            &[origin, json, own, ("sec-fetch-site", "none")],
            // Of a page that is none of the client's, and of one that is nearly.
            &[("origin", "https://evil.issuer.example"), json, own],
            &[("origin", "https://third.issuer.example"), json, own],
            &[("origin", "https://app.issuer.example."), json, own],
            &[("origin", "https://APP.issuer.example"), json, own],
            &[("origin", "null"), json, own],
            &[origin, ("origin", "https://evil.example"), json, own],
        ] {
            let refused = answer(with(path, headers)).await;
            assert_eq!(refused.status, 400, "{headers:?}: {refused:?}");
            assert_eq!(refused.header("access-control-allow-origin"), None);
            assert_eq!(refused.header("set-cookie"), None);
        }
        for method in [Method::GET, Method::PUT] {
            let refused = browser.request(method, path).header("origin", APP);
            assert_eq!(answer(refused).await.status, 405);
        }
        // Nor for a client that is not meant for it.
        for (client, status) in [("without", 400), ("app", 401), ("nobody", 401)] {
            let body = json!({ "client_id": client });
            let refused = answer(browser.by_page(path, &body)).await;
            assert_eq!(refused.status, status, "{client}: {refused:?}");
            assert_eq!(refused.header("access-control-allow-origin"), None);
        }
        for body in [json!([]), json!({}), json!({ "client_id": 1 }), json!("x")] {
            let refused = answer(browser.by_page(path, &body)).await;
            assert_eq!(
                (refused.status, &refused.json()["error"]),
                (400, &json!("invalid_request"))
            );
        }
    }
    // No family came of all that, and the session is what it was.
    let families = FamilyQuery {
        subject: Some(site.ada),
        limit: 9,
        ..FamilyQuery::default()
    };
    assert_eq!(
        site.server.store().families(&families).await.unwrap().len(),
        0
    );
    assert_eq!(browser.token().await.status, 200);
}

/// draft-ietf-httpbis-rfc6265bis §4.1.3.2: another host of the domain cannot choose the session.
#[tokio::test]
async fn a_cookie_that_another_host_can_set_is_not_taken() {
    let site = site(Setup::new()).await;
    let ada = signed_in(&site).await;
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let mut attacker = site.browser();
    let page = attacker.ask(&[]).await;
    attacker.sign_in(&page, "bob", PASSWORD).await;
    let (own, planted) = (&ada.cookies[COOKIE], &attacker.cookies[COOKIE]);
    let subject = async |cookies: &[u8]| {
        let request = site.browser();
        let request = request.by_page("/session/token", &json!({ "client_id": "board" }));
        let answer = answer(request.header("cookie", cookies)).await;
        (answer.status == 200).then(|| claims(&answer.access_token())["sub"].clone())
    };
    let own = format!("{COOKIE}={own}");
    let escaped = format!("%5F%5FHost-countersign={planted}");
    let ada = Some(json!(site.ada.to_string()));
    assert_eq!(subject(format!("{escaped}; {own}").as_bytes()).await, ada);
    assert_eq!(subject(escaped.as_bytes()).await, None);
    // Nobody can tell which of two it is.
    let twice = format!("{COOKIE}={planted}; {own}");
    assert_eq!(subject(twice.as_bytes()).await, None);
    // What somebody else has put beside it takes nobody's session away.
    let beside = [b"legacy=caf\xe9; ", own.as_bytes()].concat();
    assert_eq!(subject(&beside).await, ada);
    // Nor is anybody signed in as somebody else where users are signed in.
    let path = "/oauth2/authorize?response_type=code&client_id=own&redirect_uri=http%3A%2F%2F127.0.0.1%2Fcb";
    for (cookies, is_known) in [(own, true), (escaped, false)] {
        let challenge = format!("{path}&code_challenge={CHALLENGE}&code_challenge_method=S256");
        let request = site.browser().request(Method::GET, &challenge);
        let page = answer(request.header("cookie", cookies)).await;
        assert_eq!(page.body.contains("<strong>ada</strong>"), is_known);
        assert!(!page.body.contains("<strong>bob</strong>"), "{page:?}");
    }
}

/// A cookie that was replaced a moment ago: its session lives on under another one.
#[tokio::test]
async fn nobody_is_told_that_they_are_signed_out_while_their_session_lives() {
    let site = site(Setup::new()).await;
    let mut browser = signed_in(&site).await;
    let old = browser.cookies[COOKIE].clone();
    let page = browser.ask(&[("prompt", "login")]).await;
    browser.sign_in(&page, "ada", PASSWORD).await;
    let new = browser.cookies.insert(COOKIE.to_owned(), old).unwrap();
    let logout = async |browser: &Browser<'_>| {
        let request = browser.by_page("/session/logout", &json!({ "client_id": "board" }));
        answer(request).await
    };
    let refused = logout(&browser).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (401, &json!("login_required"))
    );
    assert_eq!(set_cookie(&refused), None);
    browser.cookies.insert(COOKIE.to_owned(), new);
    assert_eq!(browser.token().await.status, 200);
    assert_eq!(logout(&browser).await.status, 204);
    assert_eq!(browser.token().await.status, 401);
}

#[tokio::test]
async fn a_client_that_nobody_has_allowed_anything_ends_no_session() {
    let site = site(Setup::new()).await;
    let mut browser = signed_in(&site).await;
    let logout = async |browser: &Browser<'_>| {
        let body = json!({ "client_id": "third" });
        let request = browser.request(Method::POST, "/session/logout").json(&body);
        let request = request.header("origin", "https://third.issuer.example");
        answer(request.header("countersign-session", "1")).await
    };
    let refused = logout(&browser).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (403, &json!("consent_required"))
    );
    assert_eq!(set_cookie(&refused), None);
    assert_eq!(browser.token().await.status, 200);
    let page = browser
        .ask(&[("client_id", "third"), ("scope", "read")])
        .await;
    browser.decide(&page, "allow").await;
    assert_eq!(logout(&browser).await.status, 204);
    assert_eq!(browser.token().await.status, 401);
}

#[tokio::test]
async fn only_pages_of_clients_with_session_tokens_may_send_cookies() {
    let site = site(Setup::new()).await;
    let browser = site.browser();
    for path in ["/session/token", "/session/logout"] {
        for (origin, is_let) in [
            (APP, true),
            ("https://third.issuer.example", true),
            ("https://evil.issuer.example", false),
            ("null", false),
        ] {
            let asked = answer(
                browser
                    .request(Method::OPTIONS, path)
                    .header("origin", origin),
            );
            let asked = asked.await;
            assert_eq!(asked.status, 204);
            assert!(is_readable(&asked, is_let.then_some(origin)), "{asked:?}");
            assert_eq!(
                asked.header("access-control-allow-headers"),
                Some("content-type, countersign-session")
            );
        }
    }
    // At no other endpoint.
    let token = browser.request(Method::OPTIONS, "/oauth2/token");
    let token = answer(token.header("origin", APP)).await;
    assert_eq!(token.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn whoever_is_not_signed_in_gets_nothing() {
    let clock = ManualClock::new(NOW);
    let site = site(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    let required = |answer: &Answer| {
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (401, &json!("login_required"))
        );
    };
    required(&browser.token().await);
    // What is no cookie of ours is forgotten; what might be another node's newest is not.
    browser
        .cookies
        .insert(COOKIE.to_owned(), "nonsense".to_owned());
    let refused = browser.token().await;
    required(&refused);
    assert_eq!(set_cookie(&refused), Some(("", true)));
    let mut browser = signed_in(&site).await;
    let old = browser.cookies[COOKIE].clone();
    let page = browser.ask(&[("prompt", "login")]).await;
    browser.sign_in(&page, "ada", PASSWORD).await;
    let new = browser.cookies.insert(COOKIE.to_owned(), old).unwrap();
    let refused = browser.token().await;
    required(&refused);
    assert_eq!(set_cookie(&refused), None);
    browser.cookies.insert(COOKIE.to_owned(), new);
    let tokens = browser.token().await;
    // A token never outlives the session, and the session not its time.
    site.server.pass(&clock, Duration::from_hours(100)).await;
    let refused = browser.token().await;
    required(&refused);
    assert_eq!(set_cookie(&refused), Some(("", true)));
    let row = site.server.family(family_of(&tokens)).await;
    let sessions = site
        .server
        .store()
        .sessions(site.ada, Timestamp::from_seconds(0), NOW, 9)
        .await
        .unwrap();
    let session = sessions
        .iter()
        .find(|it| Some(it.id) == row.grant.session_id);
    assert_eq!(row.expires_at, session.unwrap().expires_at);
}

#[tokio::test]
async fn a_client_with_session_tokens_is_public_and_has_origins() {
    let site = Site::start().await;
    let clients = &site.server.clients;
    for metadata in [
        ClientMetadata {
            session_tokens: true,
            allowed_origins: vec![APP.to_owned()],
            ..metadata()
        },
        ClientMetadata {
            allowed_origins: Vec::new(),
            ..of_pages()
        },
    ] {
        let created = clients
            .create(None, &metadata, false, &Cause::system())
            .await;
        let error = format!("{:?}", created.err());
        assert!(error.contains("/session_tokens"), "{error}");
    }
    // Pages that came without TLS could be anybody's, but for those of this machine.
    for (origin, is_let) in [
        ("http://app.issuer.example", false),
        ("http://localhost.issuer.example", false),
        ("http://localhost:3000", true),
        ("http://127.0.0.1:3000", true),
        ("http://[::1]:3000", true),
    ] {
        let metadata = ClientMetadata {
            allowed_origins: vec![APP.to_owned(), origin.to_owned()],
            ..of_pages()
        };
        let created = clients
            .create(None, &metadata, false, &Cause::system())
            .await;
        assert_eq!(created.is_ok(), is_let, "{origin}");
        let error = format!("{:?}", created.err());
        assert_eq!(error.contains("/allowed_origins/1"), !is_let, "{error}");
    }
}

/// Pages get no more by the session than by the authorization endpoint, which asks for the factor.
async fn a_session_of_one_factor_has_nothing_where_two_are_required(engine: Engine) {
    let site = site(Setup::new().on(engine)).await;
    let browser = signed_in(&site).await;
    assert_eq!(browser.token().await.status, 200);
    let now = site.server.clients.clock.now();
    let require = async |required| {
        update_user(site.server.store(), site.ada, now, |user| {
            user.second_factor_required = required;
        })
        .await;
    };
    require(true).await;
    one_factor(&browser.token().await);
    require(false).await;
    assert_eq!(browser.token().await.status, 200);
    let board = site.server.other("board");
    let patch = json!({ "second_factor_required": true });
    site.server.update(board, patch).await;
    site.server.renewed().await;
    one_factor(&browser.token().await);
}

fn one_factor(answer: &Answer) {
    let error = answer.json()["error"].clone();
    assert_eq!((answer.status, error), (401, json!("login_required")));
    let reason = answer.header("countersign-reason");
    assert_eq!(reason, Some("second_factor_required"));
    assert_eq!(set_cookie(answer), None);
}
