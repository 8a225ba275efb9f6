//! What every page has in common.

use std::{collections::BTreeMap, task::Poll, time::Duration};

use countersign::clock::{ManualClock, Timestamp};
use reqwest::Method;
use sqlx::{Connection as _, PgConnection};

use super::{
    STATE, Site,
    account::form_before,
    flow, heading, hidden, returned,
    second_factor::{require, secret_of},
};
use crate::support::{
    database::{Database, Engine},
    process::until,
    server::{Answer, Setup, answer},
    sign_in::PASSWORD,
    totp,
};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// The directives of a page's policy, by their names (Content Security Policy Level 3 §2.2.1).
fn policy(page: &Answer) -> BTreeMap<&str, &str> {
    let policy = page.header("content-security-policy").unwrap();
    let directives = policy.split("; ");
    directives
        .map(|directive| directive.split_once(' ').unwrap())
        .collect()
}

/// Framing, sniffing, leaking by referrer, caching, scripts of others and in the page: none of them.
pub(super) fn is_guarded(page: &Answer) {
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}: {page:?}");
    }
    let mut directives = policy(page);
    for (name, value) in [
        ("default-src", "'none'"),
        ("frame-ancestors", "'none'"),
        ("base-uri", "'none'"),
    ] {
        assert_eq!(directives.remove(name), Some(value), "{name}: {page:?}");
    }
    // Images come from the logo's origin, where there is a logo.
    let images = directives.remove("img-src").unwrap();
    let origin = images.strip_suffix("data:").unwrap().trim_end();
    let is_one_origin = origin.starts_with("https://") && !origin.contains([' ', '*']);
    assert!(origin.is_empty() || is_one_origin, "{images}");
    // At hosts of others the style is that of the issuer.
    let style = directives.remove("style-src").unwrap();
    let is_one_sheet = style.starts_with("https://") && !style.contains([' ', '*']);
    // The issuer of tests is reached by TLS (RFC 6797 §7.2).
    let transport = page.header("strict-transport-security");
    assert_eq!(transport, (style == "'self'").then_some("max-age=31536000"));
    assert!(style == "'self'" || is_one_sheet, "{style}");
    assert!(matches!(
        directives.remove("form-action"),
        None | Some("'self'")
    ));
    let scripts = page.body.contains("<script ").then_some("'self'");
    assert_eq!(directives.remove("script-src"), scripts, "{page:?}");
    assert_eq!(directives, BTreeMap::new());
    assert!(page.body.starts_with("<!doctype html>\n<html lang=\"en\">"));
    for script in ["<script>", "onclick", "onload", "javascript:", "style=\""] {
        assert!(!page.body.contains(script), "{script}: {page:?}");
    }
}

/// A page whose forms lead nowhere but here.
fn stays(page: &Answer, title: &str) {
    is_guarded(page);
    assert_eq!(heading(page), title);
    assert_eq!(policy(page).get("form-action"), Some(&"'self'"), "{page:?}");
}

/// A page whose form may lead to a client: browsers hold all that the answer is sent on to against
/// `form-action`.
fn leads_on(page: &Answer, title: &str) {
    is_guarded(page);
    assert_eq!(heading(page), title);
    assert_eq!(policy(page).get("form-action"), None, "{page:?}");
}

/// RFC 9700 §4.16: each page there is, on the way to a client and to the account.
#[tokio::test]
async fn every_page_is_guarded() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    leads_on(&page, "Sign in");
    let wrong = browser.sign_in(&page, "ada", "wrong").await;
    assert_eq!(wrong.status, 400);
    leads_on(&wrong, "Sign in");
    let consent = browser.sign_in(&page, "ada", PASSWORD).await;
    leads_on(
        &consent,
        "Allow Field &#60;b&#62;Notes to use your account?",
    );
    browser.decide(&consent, "allow").await;
    let posted = browser.ask(&[("response_mode", "form_post")]).await;
    leads_on(&posted, "Back to the app");
    let refused = browser.ask(&[("client_id", "nobody")]).await;
    assert_eq!(refused.status, 400);
    stays(&refused, "This does not work");
    for refused in [
        browser.post("/consent", &[("flow", "x")]).await,
        browser.post("/signin/factor", &[]).await,
        browser.post("/signout", &[]).await,
    ] {
        assert_eq!(refused.status, 400);
        stays(&refused, "This does not work");
    }

    let account = browser.account().await;
    stays(&account, "Your account");
    let refused = browser.act("x").await;
    assert_eq!(refused.status, 400);
    stays(&refused, "Your account");
    let act = form_before(&account, "Add a passkey");
    stays(&browser.act(&act).await, "Add a passkey");
    let act = form_before(&account, "Set up<");
    let enrolment = browser.act(&act).await;
    stays(&enrolment, "Set up two-step verification");
    let secret = secret_of(&enrolment);
    let (form, code) = (hidden(&enrolment, "form"), totp::code(&secret, NOW));
    let fields = [("form", form.as_str()), ("code", &code)];
    let codes = browser.post("/account/forms", &fields).await;
    stays(&codes, "Keep your recovery codes");

    let question = browser.log_out(&[]).await;
    leads_on(&question, "Sign out?");
    let signed_out = browser.answer_question(&question, "sign_out").await;
    stays(&signed_out, "You are signed out");
    let page = browser.account().await;
    stays(&page, "Sign in");
    let factor = browser.sign_in(&page, "ada", PASSWORD).await;
    stays(&factor, "Two-step verification");
    let page = browser.ask(&[]).await;
    let factor = browser.sign_in(&page, "ada", PASSWORD).await;
    leads_on(&factor, "Two-step verification");
    let wrong = totp::wrong_code(&secret, NOW);
    let sealed = flow(&factor);
    let fields = [("flow", sealed.as_str()), ("code", &wrong)];
    let wrong = browser.post("/signin/factor", &fields).await;
    assert_eq!(wrong.status, 400);
    leads_on(&wrong, "Two-step verification");
}

/// Those of a user who has to enrol a second factor.
#[tokio::test]
async fn the_pages_of_an_enrolment_are_guarded() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    require(&site, true).await;
    let mut browser = site.browser();
    for is_for_client in [false, true] {
        let judge = if is_for_client { leads_on } else { stays };
        let page = if is_for_client {
            browser.ask(&[]).await
        } else {
            browser.account().await
        };
        judge(&page, "Sign in");
        let enrolment = browser.sign_in(&page, "ada", PASSWORD).await;
        judge(&enrolment, "Set up two-step verification");
        if is_for_client {
            let code = totp::code(&secret_of(&enrolment), NOW);
            let sealed = flow(&enrolment);
            let fields = [("flow", sealed.as_str()), ("code", &code)];
            let codes = browser.post("/signin/enrol", &fields).await;
            judge(&codes, "Keep your recovery codes");
        }
    }
}

#[tokio::test]
async fn a_page_that_says_come_back_later_is_guarded() {
    let clock = ManualClock::new(NOW);
    let setup = Setup::new().clock(clock.clone());
    let site = Site::of(setup.set("limits.password_failures_per_minute", "1")).await;
    let mut browser = site.browser();
    let account = browser.ada().await;
    let mut other = site.browser();
    let page = other.ask(&[]).await;
    other.sign_in(&page, "ada", "wrong").await;
    let limited = other.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!(limited.status, 429);
    leads_on(&limited, "Sign in");
    let form = form_before(&account, "Current password");
    let fields = [
        ("form", form.as_str()),
        ("current", PASSWORD),
        ("new", "seven quiet herons wade at dusk"),
        ("again", "seven quiet herons wade at dusk"),
    ];
    let limited = browser.post("/account/forms", &fields).await;
    assert_eq!(limited.status, 429);
    stays(&limited, "Your account");
}

#[tokio::test]
async fn a_page_that_says_that_something_broke_is_guarded() {
    let database = Database::create(Engine::Sqlite).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let mut browser = site.browser();
    browser.ada().await;
    database
        .execute("alter table browser_session rename to gone")
        .await;
    for broken in [
        browser.account().await,
        browser.log_out(&[]).await,
        browser.act("x").await,
    ] {
        assert_eq!(broken.status, 500, "{broken:?}");
        stays(&broken, "Something went wrong");
    }
}

#[tokio::test]
async fn a_page_that_says_not_now_is_guarded() {
    let clock = ManualClock::new(NOW);
    let database = Database::create(Engine::Postgres).await;
    let setup = Setup::new().at(database.url()).clock(clock.clone());
    let site = Site::of(setup).await;
    let mut browser = site.browser();
    browser.ada().await;
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql("begin; lock table browser_session in access exclusive mode")
        .execute(&mut holder)
        .await
        .unwrap();
    for path in ["/account", "/oauth2/logout"] {
        let asked = answer(browser.request(Method::GET, path));
        let mut asked = std::pin::pin!(asked);
        let refused = loop {
            match futures_util::poll!(&mut asked) {
                Poll::Ready(refused) => break refused,
                Poll::Pending => {
                    clock.advance(Duration::from_millis(100));
                    tokio::task::yield_now().await;
                }
            }
        };
        assert_eq!(refused.status, 503, "{refused:?}");
        stays(&refused, "Not right now");
        assert_eq!(refused.header("retry-after"), Some("5"));
    }
    holder.close().await.unwrap();
    assert_eq!(heading(&browser.account().await), "Your account");
}

/// Hashing is bounded: whom there is no room for is told so, on a page, and gets in a moment later.
#[tokio::test]
async fn who_signs_in_when_the_line_is_full_is_told_to_come_back() {
    let setup = Setup::new()
        .set("passwords.concurrent_hashes", "1")
        .set("limits.password_failures_per_minute", "0")
        .set("limits.password_failures_per_address_per_minute", "0");
    let site = Site::of(setup).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    let sealed = flow(&page);
    let form = [
        ("flow", sealed.as_str()),
        ("username", "slow"),
        ("password", PASSWORD),
    ];
    let sign_in = || browser.request(Method::POST, "/signin").form(&form);
    let line = site.server.full_line(sign_in).await;
    let shed = browser.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!(shed.status, 503, "{shed:?}");
    leads_on(&shed, "Sign in");
    assert_eq!(shed.header("retry-after"), Some("5"));
    assert_eq!(shed.header("countersign-reason"), Some("busy"));
    assert!(shed.body.contains("value=\"ada\""), "{shed:?}");
    assert!(
        shed.body.contains("Too many people are signing in."),
        "{shed:?}"
    );
    assert!(!browser.cookies.contains_key("__Host-countersign"));
    // Nothing was lost, and others are served: this page goes on.
    assert_eq!(answer(site.server.get("/health/live")).await.status, 200);
    drop(line);
    until("a place in the line", async || {
        let answer = browser.sign_in(&shed, "ada", PASSWORD).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert!(browser.cookies.contains_key("__Host-countersign"));
}

/// What whoever runs the service calls it, with its logo, in its colour.
#[tokio::test]
async fn pages_carry_the_brand() {
    let setup = Setup::new()
        .set("pages.name", "Bakery & <Sons>")
        .set("pages.logo", "https://cdn.example:8443/logo.svg?a=\"b")
        .set("pages.colour", "#ffe000");
    let site = Site::of(setup).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    is_guarded(&page);
    for part in [
        "<title>Sign in · Bakery &#38; &#60;Sons&#62;</title>",
        "<img src=\"https://cdn.example:8443/logo.svg?a=&#34;b\" alt=\"\">",
    ] {
        assert!(page.body.contains(part), "{part}: {page:?}");
    }
    assert!(
        !page.body.contains("<svg viewBox=\"0 0 32 32\""),
        "{page:?}"
    );
    // Images come from there alone, and from nowhere without a logo.
    let images = |page: &Answer| {
        let policy = page.header("content-security-policy").unwrap().to_owned();
        let part = policy.split("; ").find(|part| part.starts_with("img-src"));
        part.unwrap().to_owned()
    };
    assert_eq!(images(&page), "img-src https://cdn.example:8443 data:");
    let style = browser.request(Method::GET, "/assets/style.css");
    let style = browser.send(style).await.body;
    // Yellow is read on dark; on light, a darker one is.
    let (_, brand) = style.rsplit_once("\n:root {").unwrap();
    let (light, dark) = brand
        .split_once("@media (prefers-color-scheme: dark)")
        .unwrap();
    assert!(light.contains("--accent-text: #ffffff;"), "{light}");
    assert!(!light.contains("#ffe000"), "{light}");
    assert!(
        dark.contains("{ --accent: #ffe000; --accent-text: #000000; }"),
        "{dark}"
    );

    let plain = Site::start().await;
    let page = plain.browser().ask(&[]).await;
    assert_eq!(images(&page), "img-src data:");
    assert!(page.body.contains("<title>Sign in · Countersign</title>"));
}

/// Whoever loads an address once more that took a form is sent to where everything begins.
#[tokio::test]
async fn an_address_of_a_form_leads_to_the_account() {
    let site = Site::start().await;
    let mut browser = site.browser();
    for path in [
        "/",
        "/signin",
        "/signin/cancel",
        "/signin/factor",
        "/signin/passkey",
        "/signin/enrol",
        "/signin/continue",
        "/consent",
        "/account/forms",
        "/signout",
    ] {
        let request = browser.request(Method::GET, path);
        let answer = browser.send(request).await;
        assert_eq!(answer.status, 303, "{path}");
        assert_eq!(answer.header("location"), Some("/account"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
}

/// People who come to an address that shows nothing read that on a page; programs get what they did.
#[tokio::test]
async fn where_nothing_is_people_get_a_page_and_programs_do_not() {
    const ACCEPT: &str = "text/html,application/xhtml+xml,*/*;q=0.8";
    let site = Site::start().await;
    let browser = site.browser();
    for (method, path, status) in [
        (Method::GET, "/nothing", 404),
        (Method::GET, "/%3Cb%3E", 404),
        (Method::PUT, "/account", 405),
        (Method::GET, "/oauth2/token", 405),
        (Method::POST, "/.well-known/jwks.json", 405),
    ] {
        let request = browser.request(method.clone(), path);
        let page = answer(request.header("accept", ACCEPT)).await;
        assert_eq!(page.status, status, "{path}");
        is_guarded(&page);
        assert_eq!(heading(&page), "There is nothing here");
        assert!(page.body.contains("href=\"/account\""), "{page:?}");
        let allow = page.header("allow").map(str::to_owned);
        for accept in [None, Some("*/*"), Some("application/json")] {
            let request = browser.request(method.clone(), path);
            let request = accept
                .into_iter()
                .fold(request, |request, accept| request.header("accept", accept));
            let empty = answer(request).await;
            assert_eq!((empty.status, &*empty.body), (status, ""), "{path}");
            assert_eq!(empty.header("content-type"), None, "{path}");
            assert_eq!(empty.header("allow"), allow.as_deref(), "{path}");
        }
    }
    // What is refused in words of its own stays so.
    let request = browser.request(Method::POST, "/oauth2/token");
    let refused = answer(request.header("accept", ACCEPT)).await;
    assert_eq!(refused.json()["error"], "invalid_request");
}

/// A form that does not arrive as it should is answered with a page like any other.
#[tokio::test]
async fn a_form_that_is_not_read_is_refused_on_a_page() {
    let site = Site::start().await;
    let browser = site.browser();
    for path in [
        "/signin",
        "/consent",
        "/account/forms",
        "/signout",
        "/oauth2/authorize",
        "/oauth2/logout",
    ] {
        let request = browser.request(Method::POST, path);
        let json = answer(
            request
                .header("content-type", "application/json")
                .body("{}"),
        )
        .await;
        let large = browser.request(Method::POST, path);
        let large = answer(large.form(&[("flow", "x".repeat(2_000_000))])).await;
        for (page, status, reason) in [(json, 400, "malformed"), (large, 413, "too_large")] {
            assert_eq!(page.status, status, "{path}");
            is_guarded(&page);
            assert_eq!(page.header("countersign-reason"), Some(reason), "{path}");
            assert_eq!(heading(&page), "This does not work");
            assert!(page.body.contains("href=\"/account\""), "{page:?}");
        }
    }
}

/// A page that was open for too long leads on to the same request; one of another browser does not.
#[tokio::test]
async fn whoever_comes_too_late_may_begin_anew() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    let page = browser.ask(&[("scope", "read")]).await;
    let account = browser.request(Method::GET, "/account");
    let account = browser.send(account).await;
    let mut other = site.browser();
    other.ask(&[]).await;
    site.server.pass(&clock, Duration::from_mins(31)).await;
    let over = |page: &Answer| {
        assert_eq!((page.status, heading(page)), (400, "This does not work"));
        is_guarded(page);
        let (_, link) = page.body.split_once("<a class=\"button\" href=\"").unwrap();
        link.split('"').next().unwrap().replace("&#38;", "&")
    };
    let late = browser.sign_in(&page, "ada", PASSWORD).await;
    let link = over(&late);
    assert!(link.starts_with("/oauth2/authorize?"), "{link}");
    let request = browser.request(Method::GET, &link);
    let page_anew = browser.send(request).await;
    let consent = browser.sign_in(&page_anew, "ada", PASSWORD).await;
    let code = returned(&browser.decide(&consent, "allow").await);
    assert_eq!(code["state"], STATE);

    // Of its own account a browser is led there, and so is whoever brings what was never its own.
    assert_eq!(
        over(&browser.sign_in(&account, "ada", PASSWORD).await),
        "/account"
    );
    let foreign = over(&other.sign_in(&page, "ada", PASSWORD).await);
    assert_eq!(foreign, "/account");
    for made_up in ["", "x", &"A".repeat(400)] {
        let page = browser.post("/signin", &[("flow", made_up)]).await;
        assert_eq!(over(&page), "/account");
    }
}

#[tokio::test]
async fn what_pages_need_is_served() {
    let site = Site::start().await;
    let mut browser = site.browser();
    for (path, media_type) in [
        ("/assets/style.css", "text/css; charset=utf-8"),
        ("/assets/form_post.js", "text/javascript; charset=utf-8"),
    ] {
        let request = browser.request(Method::GET, path);
        let asset = browser.send(request).await;
        assert_eq!(asset.status, 200);
        assert_eq!(asset.header("content-type"), Some(media_type));
        assert_eq!(asset.header("x-content-type-options"), Some("nosniff"));
    }
    let page = browser.ask(&[]).await;
    assert!(page.body.contains("href=\"/assets/style.css\""), "{page:?}");
    assert_eq!(heading(&page), "Sign in");
}
