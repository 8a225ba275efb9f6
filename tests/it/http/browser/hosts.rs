//! `GET /session/verify` and `/session/callback`: hosts behind a real nginx.

use std::collections::BTreeMap;

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
    domain::{
        change::{Cause, Change},
        family::{EndReason, FamilyQuery},
        id::FamilyId,
    },
};
use reqwest::{Client, Method, header::SET_COOKIE, redirect::Policy};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{Browser, Site, pages::is_guarded};
use crate::support::{
    chromium::Chromium,
    client,
    nginx::Nginx,
    server::{API, Answer, FILES, ISSUER, Setup, answer, metadata},
    sign_in::{PASSWORD, claims},
};

const WIKI: &str = "wiki.example";
const FORUM: &str = "forum.example";
const COOKIE: &str = "__Host-countersign-host";
const START: &str = "__Host-countersign-start";

/// A client that protects a host.
fn protecting(host: &str, resource: &str) -> ClientMetadata {
    ClientMetadata {
        client_name: host.to_owned(),
        first_party: true,
        forward_auth: true,
        redirect_uris: vec![format!("https://{host}/session/callback")],
        default_resource: Some(resource.to_owned()),
        ..metadata()
    }
}

struct Hosts {
    site: Site,
    nginx: Nginx,
}

impl Hosts {
    async fn start() -> Self {
        let setup = Setup::new()
            .client("wiki", protecting(WIKI, API))
            .client("forum", protecting(FORUM, FILES));
        let site = Site::of(setup).await;
        let secret = |id| site.server.other(id).secret.as_str();
        let hosts = [
            (WIKI, "wiki", secret("wiki")),
            (FORUM, "forum", secret("forum")),
        ];
        let nginx = Nginx::start(&hosts, site.server.public).await;
        Self { site, nginx }
    }

    fn visitor(&self) -> Visitor<'_> {
        Visitor {
            hosts: self,
            http: client().redirect(Policy::none()).build().unwrap(),
            cookies: BTreeMap::new(),
        }
    }

    /// Ends the session of whoever has this token, as from another device.
    async fn end_session(&self, token: &str) {
        let said = claims(token);
        let family = FamilyId::parse(said["sid"].as_str().unwrap());
        let family = self.site.server.family(family.unwrap()).await;
        let end = Change::EndSession {
            session: family.grant.session_id.unwrap(),
            tokens_die_at: self.site.server.clients.clock.now(),
        };
        self.site.server.apply(end).await;
    }
}

/// A browser without scripts, at the hosts behind nginx.
struct Visitor<'a> {
    hosts: &'a Hosts,
    http: Client,
    /// By host and name.
    cookies: BTreeMap<(String, String), String>,
}

impl Visitor<'_> {
    async fn get(&mut self, host: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let url = format!("http://{}{path}", self.hosts.nginx.address);
        let own = self.cookies.iter().filter(|((of, _), _)| of == host);
        let own: Vec<String> = own
            .map(|((_, name), value)| format!("{name}={value}"))
            .collect();
        let request = self.http.request(Method::GET, url).header("host", host);
        let request = request.header("cookie", own.join("; "));
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let answer = answer(request).await;
        for cookie in answer.headers.get_all(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            let (name, rest) = cookie.split_once('=').unwrap();
            for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
                assert!(cookie.contains(attribute), "{cookie}");
            }
            let value = rest.split(';').next().unwrap();
            let key = (host.to_owned(), name.to_owned());
            if cookie.contains("Max-Age=0") {
                self.cookies.remove(&key);
            } else {
                self.cookies.insert(key, value.to_owned());
            }
        }
        answer
    }

    fn cookie(&self, host: &str, name: &str) -> Option<&String> {
        self.cookies.get(&(host.to_owned(), name.to_owned()))
    }

    /// Where nginx sends the browser to sign in; the query of it.
    async fn sent(&mut self, host: &str, path: &str) -> String {
        let away = self.get(host, path, &[]).await;
        assert_eq!(away.status, 302, "{away:?}");
        let location = Url::parse(away.header("location").unwrap()).unwrap();
        assert_eq!(location.origin().ascii_serialization(), ISSUER);
        assert_eq!(location.path(), "/oauth2/authorize");
        location.query().unwrap().to_owned()
    }

    /// Signs Ada in at the issuer; the path and query that she comes back to the host with.
    async fn signs_in(&self, query: &str) -> String {
        signs_in(&mut self.hosts.site.browser(), query).await
    }

    /// All of it; where the host sends the browser in the end.
    async fn enters(&mut self, host: &str, path: &str) -> String {
        let mut browser = self.hosts.site.browser();
        self.enters_by(&mut browser, host, path).await
    }

    /// The same, with what this browser has of the issuer.
    async fn enters_by(&mut self, browser: &mut Browser<'_>, host: &str, path: &str) -> String {
        let query = self.sent(host, path).await;
        let back = signs_in(browser, &query).await;
        let entered = self.get(host, &back, &[]).await;
        assert_eq!(entered.status, 303, "{entered:?}");
        assert!(self.cookie(host, COOKIE).is_some());
        entered.header("location").unwrap().to_owned()
    }

    /// The token that the application gets.
    async fn token(&mut self, host: &str) -> String {
        let page = self.get(host, "/", &[]).await;
        assert_eq!(page.status, 200, "{page:?}");
        let token = got(&page, "authorization").unwrap();
        token.strip_prefix("Bearer ").unwrap().to_owned()
    }
}

/// Has Ada sign in at the issuer, with a password if she is asked for one; the path and query that she
/// comes back to the host with.
async fn signs_in(browser: &mut Browser<'_>, query: &str) -> String {
    let path = format!("/oauth2/authorize?{query}");
    let answer = browser.send(browser.request(Method::GET, &path)).await;
    let back = match answer.status {
        200 => browser.sign_in(&answer, "ada", PASSWORD).await,
        _ => answer,
    };
    let back = Url::parse(back.header("location").unwrap()).unwrap();
    format!("{}?{}", back.path(), back.query().unwrap())
}

/// A header as the application has got it, if it has.
fn got<'a>(page: &'a Answer, name: &str) -> Option<&'a str> {
    let mut found = page.body.lines().filter_map(|line| {
        let (header, value) = line.split_once(": ")?;
        header.eq_ignore_ascii_case(name).then_some(value)
    });
    let value = found.next();
    assert_eq!(found.next(), None, "{name} twice: {}", page.body);
    value
}

#[tokio::test]
async fn an_application_behind_nginx_learns_who_asks_and_nobody_can_pretend() {
    let hosts = Hosts::start().await;
    let mut visitor = hosts.visitor();
    // Nobody can say who they are by themselves.
    let spoofed = [
        ("authorization", "Bearer made-up"),
        ("x-auth-subject", "root"),
        ("x-auth-username", "root"),
        ("x-auth-scope", "everything"),
        ("x-original-url", "https://evil.example/"),
        ("x-forwarded-host", "evil.example"),
    ];
    assert_eq!(visitor.get(WIKI, "/page", &spoofed).await.status, 302);
    let path = "/page?a=b&c=/d%20e";
    assert_eq!(visitor.enters(WIKI, path).await, path);
    let page = visitor.get(WIKI, path, &spoofed).await;
    assert_eq!(page.status, 200, "{page:?}");
    let ada = hosts.site.ada.to_string();
    assert_eq!(got(&page, "x-auth-subject"), Some(ada.as_str()));
    assert_eq!(got(&page, "x-auth-username"), Some("ada"));
    assert_eq!(got(&page, "x-auth-scope"), Some("read write"));
    let token = got(&page, "authorization").unwrap();
    let token = token.strip_prefix("Bearer ").unwrap().to_owned();
    let said = claims(&token);
    assert_eq!(
        (&said["sub"], &said["aud"]),
        (&Value::from(ada), &Value::from(API))
    );
    assert_eq!(said["client_id"], "wiki");
    // Each request of theirs is of one sign-in.
    assert_eq!(claims(&visitor.token(WIKI).await)["sid"], said["sid"]);
    // Sign-out elsewhere counts at once.
    hosts.end_session(&token).await;
    assert_eq!(visitor.get(WIKI, "/page", &[]).await.status, 302);
}

#[tokio::test]
async fn the_cookie_of_a_host_is_useless_at_another() {
    let hosts = Hosts::start().await;
    let mut visitor = hosts.visitor();
    visitor.enters(WIKI, "/").await;
    let cookie = visitor.cookie(WIKI, COOKIE).unwrap().clone();
    visitor
        .cookies
        .insert((FORUM.to_owned(), COOKIE.to_owned()), cookie.clone());
    assert_eq!(visitor.get(FORUM, "/", &[]).await.status, 302);
    // Nor is one that was changed good at its own.
    let mut changed = cookie.into_bytes();
    let last = changed.len() - 2;
    changed[last] = if changed[last] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    visitor
        .cookies
        .insert((WIKI.to_owned(), COOKIE.to_owned()), changed);
    assert_eq!(visitor.get(WIKI, "/", &[]).await.status, 302);
}

/// Login CSRF: nobody is signed in as somebody else by a link.
#[tokio::test]
async fn an_answer_is_for_the_browser_and_host_that_have_asked() {
    let hosts = Hosts::start().await;
    let mut attacker = hosts.visitor();
    let query = attacker.sent(WIKI, "/").await;
    let back = attacker.signs_in(&query).await;
    let mut victim = hosts.visitor();
    for begins in [false, true] {
        if begins {
            victim.sent(WIKI, "/").await;
        }
        let refused = victim.get(WIKI, &back, &[]).await;
        if begins {
            // Another tab of theirs may have begun: they begin anew.
            assert_eq!(refused.status, 303, "{refused:?}");
            assert_eq!(refused.header("location"), Some("/"));
        } else {
            assert_eq!(refused.status, 400, "{refused:?}");
            assert!(refused.body.contains("<h1>This does not work</h1>"));
            is_guarded(&refused);
        }
        assert_eq!(victim.cookie(WIKI, COOKIE), None);
    }
    // At another host, by the same browser, too.
    attacker.sent(FORUM, "/").await;
    attacker.get(FORUM, &back, &[]).await;
    assert_eq!(attacker.cookie(FORUM, COOKIE), None);
    // It is good where it was asked for, and once.
    assert_eq!(attacker.get(WIKI, &back, &[]).await.status, 303);
    let cookie = attacker.cookie(WIKI, COOKIE).unwrap().clone();
    attacker
        .cookies
        .remove(&(WIKI.to_owned(), COOKIE.to_owned()));
    assert_eq!(attacker.get(WIKI, &back, &[]).await.status, 303);
    assert_eq!(attacker.cookie(WIKI, COOKIE), None);
    // That it came twice has ended nothing.
    attacker
        .cookies
        .insert((WIKI.to_owned(), COOKIE.to_owned()), cookie);
    assert_eq!(attacker.get(WIKI, "/", &[]).await.status, 200);
    // Another issuer's answer is not taken (RFC 9207).
    let query = hosts.visitor().sent(WIKI, "/").await;
    let mut mixed = hosts.visitor();
    let own = mixed.sent(WIKI, "/").await;
    assert_ne!(query, own);
    let back = mixed
        .signs_in(&own)
        .await
        .replace("issuer.example", "other.example");
    assert_eq!(mixed.get(WIKI, &back, &[]).await.status, 400);
}

/// RFC 6749 §4.1.2.1: whoever cancels can try again where they were.
#[tokio::test]
async fn a_sign_in_that_is_not_gone_through_with_is_no_dead_end() {
    let hosts = Hosts::start().await;
    for (error, status, heading) in [
        ("access_denied", 400, "You are not signed in"),
        ("temporarily_unavailable", 503, "Not right now"),
    ] {
        let mut visitor = hosts.visitor();
        let query = visitor.sent(WIKI, "/page?a=1").await;
        let asked: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
        let state: String = form_urlencoded::byte_serialize(asked["state"].as_bytes()).collect();
        let back = format!("/session/callback?error={error}&state={state}&iss={ISSUER}");
        let page = visitor.get(WIKI, &back, &[]).await;
        assert_eq!(page.status, status, "{page:?}");
        assert!(
            page.body.contains(&format!("<h1>{heading}</h1>")),
            "{page:?}"
        );
        let link = "<a class=\"button\" href=\"/page?a=1\">Try again</a>";
        assert!(page.body.contains(link), "{page:?}");
        is_guarded(&page);
        assert_eq!(visitor.cookie(WIKI, COOKIE), None);
    }
}

/// draft-ietf-httpbis-rfc6265bis §4.1.3.2: another host of the domain cannot choose who is signed in.
#[tokio::test]
async fn a_cookie_that_another_host_can_set_is_not_taken() {
    let hosts = Hosts::start().await;
    let mut attacker = hosts.visitor();
    let query = attacker.sent(WIKI, "/").await;
    let back = attacker.signs_in(&query).await;
    let start = attacker.cookie(WIKI, START).unwrap().clone();
    // At the callback (login CSRF).
    let mut victim = hosts.visitor();
    victim.sent(WIKI, "/").await;
    let key = |name: &str| (WIKI.to_owned(), name.to_owned());
    let escaped = "%5F%5FHost-countersign-start";
    victim.cookies.insert(key(escaped), start);
    victim.get(WIKI, &back, &[]).await;
    assert_eq!(victim.cookie(WIKI, COOKIE), None);
    // And for each request.
    assert_eq!(attacker.get(WIKI, &back, &[]).await.status, 303);
    let planted = attacker.cookie(WIKI, COOKIE).unwrap().clone();
    let escaped = "%5F%5FHost-countersign-host";
    victim.cookies.insert(key(escaped), planted);
    assert_eq!(victim.get(WIKI, "/", &[]).await.status, 302);
}

#[tokio::test]
async fn tabs_that_begin_at_once_all_come_in() {
    let hosts = Hosts::start().await;
    let mut browser = hosts.site.browser();
    let mut visitor = hosts.visitor();
    let [one, two] = [
        visitor.sent(WIKI, "/1").await,
        visitor.sent(WIKI, "/2").await,
    ];
    for (query, path) in [(one, "/1"), (two, "/2")] {
        let back = signs_in(&mut browser, &query).await;
        let entered = visitor.get(WIKI, &back, &[]).await;
        assert_eq!(
            (entered.status, entered.header("location")),
            (303, Some(path))
        );
        assert_eq!(visitor.get(WIKI, path, &[]).await.status, 200);
        // The browser asks once more, as it may.
        let again = visitor.get(WIKI, &back, &[]).await;
        assert_eq!((again.status, again.header("location")), (303, Some(path)));
        assert_eq!(visitor.get(WIKI, path, &[]).await.status, 200);
    }
    // Before any of them has its cookie, too: the one whose cookie was replaced begins anew.
    let mut early = hosts.visitor();
    let replaced = early.sent(WIKI, "/1").await;
    early.cookies.clear();
    early.sent(WIKI, "/2").await;
    let back = signs_in(&mut browser, &replaced).await;
    let stale = early.get(WIKI, &back, &[]).await;
    assert_eq!((stale.status, stale.header("location")), (303, Some("/")));
    assert_eq!(early.enters_by(&mut browser, WIKI, "/").await, "/");
    assert_eq!(early.get(WIKI, "/", &[]).await.status, 200);
}

/// What an operator has ended comes back with an authentication, whatever the browser asks for.
#[tokio::test]
async fn what_was_ended_at_a_host_comes_back_with_an_authentication_and_not_before() {
    let hosts = Hosts::start().await;
    let mut browser = hosts.site.browser();
    let mut visitor = hosts.visitor();
    visitor.enters_by(&mut browser, WIKI, "/").await;
    let said = claims(&visitor.token(WIKI).await);
    let family = FamilyId::parse(said["sid"].as_str().unwrap()).unwrap();
    // However often the browser comes in, it is one sign-in.
    let mut fresh = hosts.visitor();
    fresh.enters_by(&mut browser, WIKI, "/").await;
    assert_eq!(claims(&fresh.token(WIKI).await)["sid"], said["sid"]);
    let families = FamilyQuery {
        subject: Some(hosts.site.ada),
        limit: 9,
        ..FamilyQuery::default()
    };
    let store = hosts.site.server.store();
    assert_eq!(store.families(&families).await.unwrap().len(), 1);
    let end = Change::EndFamily {
        family,
        reason: EndReason::RevokedByOperator,
        tokens_die_at: hosts.site.server.clients.clock.now(),
    };
    hosts.site.server.apply(end).await;
    let query = visitor.sent(WIKI, "/x").await;
    assert!(query.contains("&prompt=login"), "{query}");
    // With the question left out the session gives a code, for which there is nothing.
    let mut fresh = hosts.visitor();
    let query = fresh.sent(WIKI, "/x").await;
    assert!(!query.contains("prompt"), "{query}");
    let back = signs_in(&mut browser, &query).await;
    let asked = fresh.get(WIKI, &back, &[]).await;
    assert_eq!(asked.status, 303);
    assert_eq!(fresh.cookie(WIKI, COOKIE), None);
    assert_eq!(visitor.get(WIKI, "/", &[]).await.status, 302);
    let location = Url::parse(asked.header("location").unwrap()).unwrap();
    let query = location.query().unwrap();
    assert!(query.contains("&prompt=login"), "{query}");
    let back = signs_in(&mut browser, query).await;
    let entered = fresh.get(WIKI, &back, &[]).await;
    assert_eq!(entered.header("location"), Some("/x"));
    assert_eq!(fresh.get(WIKI, "/x", &[]).await.status, 200);
}

#[tokio::test]
async fn cookies_of_a_host_are_replaced_when_the_user_authenticates_again() {
    let hosts = Hosts::start().await;
    let mut browser = hosts.site.browser();
    let mut visitor = hosts.visitor();
    visitor.enters_by(&mut browser, WIKI, "/").await;
    assert_eq!(visitor.get(WIKI, "/", &[]).await.status, 200);
    let page = browser
        .ask(&[("client_id", "own"), ("prompt", "login")])
        .await;
    browser.sign_in(&page, "ada", PASSWORD).await;
    // Nothing is asked of the user for another one.
    let query = visitor.sent(WIKI, "/").await;
    assert!(!query.contains("prompt"), "{query}");
    let back = signs_in(&mut browser, &query).await;
    assert_eq!(visitor.get(WIKI, &back, &[]).await.status, 303);
    assert_eq!(visitor.get(WIKI, "/", &[]).await.status, 200);
    // Where the session has ended, the way is the usual one, too.
    hosts.end_session(&visitor.token(WIKI).await).await;
    let query = visitor.sent(WIKI, "/").await;
    assert!(!query.contains("prompt"), "{query}");
}

/// Whoever comes uses up what is theirs, not what is their host's.
#[tokio::test]
async fn one_visitor_cannot_use_up_the_requests_of_all() {
    let setup = Setup::new()
        .clock(ManualClock::new(Timestamp::from_seconds(1_800_000_000)))
        .set("limits.requests_per_minute_per_client", "2")
        .set("public.trusted_proxies", "127.0.0.1/32")
        .client("wiki", protecting(WIKI, API));
    let site = Site::of(setup).await;
    let secret = &site.server.other("wiki").secret;
    let asked = async |path: &str, visitor: &str| {
        let request = site.server.get(path).basic_auth("wiki", Some(secret));
        let request = request.header("x-forwarded-host", WIKI);
        answer(request.header("x-forwarded-for", visitor))
            .await
            .status
    };
    for (path, visitor, status) in [
        ("/session/verify", "192.0.2.1", 401),
        ("/session/callback", "192.0.2.1", 400),
        ("/session/verify", "192.0.2.1", 429),
        ("/session/callback", "192.0.2.1", 429),
        ("/session/verify", "192.0.2.2", 401),
    ] {
        assert_eq!(asked(path, visitor).await, status, "{path} {visitor}");
    }
}

/// Neither a visitor who sends what cannot be read nor one who sends a header twice chooses the host.
#[tokio::test]
async fn a_host_that_cannot_be_read_is_not_taken_from_elsewhere() {
    let hosts = Hosts::start().await;
    let mut visitor = hosts.visitor();
    visitor.enters(FORUM, "/").await;
    let cookie = format!("{COOKIE}={}", visitor.cookie(FORUM, COOKIE).unwrap());
    let server = &hosts.site.server;
    let original = format!("https://{FORUM}/");
    for (name, values, other) in [
        (
            "x-original-url",
            &[&b"https://wiki.example/\xff"[..]][..],
            FORUM,
        ),
        (
            "x-original-url",
            &[b"https://wiki.example/", b"https://wiki.example/"],
            FORUM,
        ),
        ("x-forwarded-host", &[b"wiki.example\xff"], &original),
        (
            "x-forwarded-host",
            &[b"wiki.example", b"wiki.example"],
            &original,
        ),
    ] {
        let beside = match name {
            "x-original-url" => "x-forwarded-host",
            _ => "x-original-url",
        };
        let request = server.get("/session/verify").header(beside, other);
        let request = values
            .iter()
            .fold(request, |request, value| request.header(name, *value));
        let request = request.basic_auth("forum", Some(&server.other("forum").secret));
        let refused = answer(request.header("cookie", &cookie)).await;
        assert_eq!(refused.status, 400, "{name}: {refused:?}");
        assert_eq!(refused.header("authorization"), None);
    }
}

#[tokio::test]
async fn nobody_is_sent_away_from_a_host_by_its_callback() {
    let hosts = Hosts::start().await;
    for path in [
        "//evil.example/x",
        "/\\evil.example",
        "/session/callback?code=x",
    ] {
        let request = hosts
            .site
            .server
            .get("/session/verify")
            .basic_auth("wiki", Some(&hosts.site.server.other("wiki").secret))
            .header("x-forwarded-host", WIKI)
            .header("x-forwarded-uri", path);
        let away = answer(request).await;
        assert_eq!(away.status, 401, "{away:?}");
        let mut visitor = hosts.visitor();
        let start = away.header("set-cookie").unwrap();
        let start = start.split(['=', ';']).nth(1).unwrap();
        let key = (WIKI.to_owned(), START.to_owned());
        visitor.cookies.insert(key, start.to_owned());
        let location = Url::parse(away.header("location").unwrap()).unwrap();
        let back = visitor.signs_in(location.query().unwrap()).await;
        let entered = visitor.get(WIKI, &back, &[]).await;
        assert_eq!(entered.header("location"), Some("/"), "{path}");
    }
}

#[tokio::test]
async fn only_a_proxy_of_the_client_may_ask_and_for_its_hosts_alone() {
    let hosts = Hosts::start().await;
    let server = &hosts.site.server;
    let secret = &server.other("wiki").secret;
    for (id, secret, host, status) in [
        ("wiki", secret.as_str(), WIKI, 401),
        ("wiki", secret, "WIKI.example", 401),
        ("wiki", "wrong", WIKI, 403),
        ("wiki", secret, FORUM, 403),
        ("wiki", secret, "evil.example", 403),
        ("wiki", secret, "wiki.example:8443", 403),
        ("wiki", secret, "wiki.example/x", 403),
        (&server.app.id, &server.app.secret, WIKI, 403),
    ] {
        for path in ["/session/verify", "/session/callback"] {
            let request = server.get(path).header("x-forwarded-host", host);
            let answer = answer(request.basic_auth(id, Some(secret))).await;
            // At the callback there is nothing to take, whatever the host.
            let expected = match path {
                "/session/callback" if secret != "wrong" => 400,
                _ => status,
            };
            assert_eq!(answer.status, expected, "{id} {host} {path}: {answer:?}");
            assert_eq!(answer.header("authorization"), None);
        }
    }
    let asked = |request: reqwest::RequestBuilder| answer(request.basic_auth("wiki", Some(secret)));
    // A host must be told, and told once.
    assert_eq!(asked(server.get("/session/verify")).await.status, 400);
    let twice = server
        .get("/session/verify")
        .header("x-forwarded-host", WIKI)
        .header("x-original-url", format!("https://{FORUM}/"));
    assert_eq!(asked(twice).await.status, 400);
    let bare = server
        .get("/session/verify")
        .header("x-forwarded-host", WIKI);
    assert_eq!(answer(bare).await.status, 403);
    let http = client().redirect(Policy::none()).build().unwrap();
    // For proxies that hand answers on, the way is a redirect; not for what scripts ask for.
    for (name, value, status) in [
        ("sec-fetch-mode", "navigate", 302),
        ("sec-fetch-mode", "cors", 401),
        ("x-forwarded-method", "POST", 401),
    ] {
        let path = "/session/verify?unauthenticated=redirect&path=/a?b=c";
        let request = http
            .get(format!("http://{}{path}", server.public))
            .header("x-forwarded-host", WIKI)
            .header(name, value);
        let answer = asked(request).await;
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert!(answer.header("location").is_some());
    }
    // Some ask with the method that they are asked with.
    for (method, status) in [
        (Method::GET, 302),
        (Method::HEAD, 302),
        (Method::POST, 401),
        (Method::DELETE, 401),
        (Method::OPTIONS, 401),
    ] {
        let path = "/session/verify?unauthenticated=redirect&path=/a";
        let url = format!("http://{}{path}", server.public);
        let request = http.request(method.clone(), url);
        let answer = asked(request.header("x-forwarded-host", WIKI)).await;
        assert_eq!(answer.status, status, "{method}: {answer:?}");
    }
    for uri in [
        "https://ODD.example/session/callback",
        "https://odd.example:443/session/callback",
        "https://odd.example/x/../session/callback",
    ] {
        let mut metadata = protecting(WIKI, API);
        metadata.redirect_uris.push(uri.to_owned());
        let (clients, cause) = (&server.clients, Cause::system());
        let created = clients.create(None, &metadata, false, &cause).await;
        let error = format!("{:?}", created.err());
        assert!(error.contains("/redirect_uris/1"), "{error}");
    }
}

/// As Envoy does: by the method of the request, with its path behind that of the question.
#[tokio::test]
async fn a_proxy_may_ask_by_the_method_that_it_asks_about() {
    let hosts = Hosts::start().await;
    let mut visitor = hosts.visitor();
    visitor.enters(WIKI, "/").await;
    let cookie = format!("{COOKIE}={}", visitor.cookie(WIKI, COOKIE).unwrap());
    let secret = &hosts.site.server.other("wiki").secret;
    let http = client().redirect(Policy::none()).build().unwrap();
    let url = format!(
        "http://{}/session/verify?unauthenticated=redirect&path=/a?b=c",
        hosts.site.server.public
    );
    for (method, otherwise) in [
        (Method::GET, 302),
        (Method::HEAD, 302),
        (Method::POST, 401),
        (Method::PUT, 401),
        (Method::DELETE, 401),
        (Method::OPTIONS, 401),
    ] {
        let asked = || {
            let request = http.request(method.clone(), &url);
            let request = request.header("x-forwarded-host", WIKI);
            request.basic_auth("wiki", Some(secret))
        };
        let known = answer(asked().header("cookie", &cookie)).await;
        assert_eq!(known.status, 200, "{method}: {known:?}");
        assert_eq!(known.header("x-auth-username"), Some("ada"));
        let unknown = answer(asked()).await;
        assert_eq!(unknown.status, otherwise, "{method}: {unknown:?}");
        let by_nobody = http.request(method.clone(), &url);
        let by_nobody = by_nobody.header("x-forwarded-host", WIKI);
        assert_eq!(answer(by_nobody).await.status, 403, "{method}");
    }
}

#[tokio::test]
async fn a_browser_signs_in_to_a_host_and_out_of_it() {
    let hosts = Hosts::start().await;
    let addresses = [
        ("issuer.example", hosts.site.server.public),
        (WIKI, hosts.nginx.address),
        (FORUM, hosts.nginx.address),
    ];
    let browser = Chromium::start(&addresses).await;
    // What comes back to a host that has asked for nothing; the page is the issuer's.
    browser
        .open("https://wiki.example/session/callback?code=x&state=y")
        .await;
    browser.reads("This does not work").await;
    browser.shows("error-at-host").await;
    browser.open("https://wiki.example/notes?of=ada").await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Wiki").await;
    assert_eq!(
        browser.url().await.as_str(),
        "https://wiki.example/notes?of=ada"
    );
    let text = browser.text("pre").await;
    assert!(
        text.to_lowercase().contains("x-auth-username: ada"),
        "{text}"
    );
    // At the other host nothing is asked.
    browser.open("https://forum.example/").await;
    browser.reads("Wiki").await;
    let text = browser.text("pre").await;
    let token = text.lines().find_map(|line| {
        let (name, value) = line.split_once(": Bearer ")?;
        name.eq_ignore_ascii_case("authorization").then_some(value)
    });
    hosts.end_session(token.unwrap()).await;
    for host in [WIKI, FORUM] {
        browser.open(&format!("https://{host}/")).await;
        browser.reads("Sign in").await;
    }
}
