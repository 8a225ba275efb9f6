//! Single-page apps with `/assets/countersign.js`, in a browser.

use countersign::admin::client::ClientMetadata;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Site, of_browsers};
use crate::support::{
    chromium::Chromium,
    openmetrics,
    process::until,
    server::{ISSUER, Setup, answer},
    sign_in::PASSWORD,
    site::Site as Elsewhere,
};

/// Where the app is that uses the session of the browser: on the site of the issuer.
const BOARD: &str = "https://board.issuer.example/";
/// Where the app is that has tokens of its own.
const FAR: &str = "https://far.example/";

/// The pages of an app.
fn app(client: &str, mode: &str, home: &str) -> Elsewhere {
    let app = Elsewhere::plain();
    app.page(&format!(
        "<!doctype html><html lang=en><title>App</title><h1>App</h1><p id=came></p>
        <script type=module>
        import {{ Countersign }} from '{ISSUER}/assets/countersign.js';
        window.session = new Countersign({{
            issuer: '{ISSUER}', clientId: '{client}', redirectUri: '{home}', mode: '{mode}',
        }});
        window.lost = 0;
        session.addEventListener('signedout', () => window.lost++);
        let came;
        try {{ came = await session.handleRedirect(); }} catch (error) {{ came = error.code; }}
        document.querySelector('#came').textContent = JSON.stringify(came);
        </script>"
    ));
    app
}

struct Apps {
    site: Site,
    _board: Elsewhere,
    _far: Elsewhere,
    browser: Chromium,
}

impl Apps {
    async fn start() -> Self {
        let of = |home: &str, session_tokens: bool| ClientMetadata {
            first_party: true,
            session_tokens,
            redirect_uris: vec![home.to_owned()],
            allowed_origins: vec![home.trim_end_matches('/').to_owned()],
            ..of_browsers()
        };
        let setup = Setup::new()
            .client("board", of(BOARD, true))
            .client("far", of(FAR, false));
        let site = Site::of(setup).await;
        let (board, far) = (app("board", "session", BOARD), app("far", "code", FAR));
        let hosts = [
            ("issuer.example", site.server.public),
            ("board.issuer.example", board.address()),
            ("far.example", far.address()),
        ];
        let browser = Chromium::start(&hosts).await;
        Self {
            site,
            _board: board,
            _far: far,
            browser,
        }
    }

    /// Opens an app and signs Ada in there, by way of its own button, so to speak.
    async fn sign_in(&self, home: &str) {
        self.browser.open(home).await;
        let go = "session.signIn({ returnTo: '/notes#1' }); return null";
        self.browser.run(go, Value::Null).await;
        self.browser.sign_in("ada", PASSWORD).await;
        self.browser.arrives(home).await;
        self.browser
            .says("#came", r#"{"returnTo":"/notes#1"}"#)
            .await;
    }

    async fn run(&self, body: &str) -> Value {
        self.browser.run(body, Value::Null).await
    }

    /// How many tokens the service has issued by this grant.
    async fn issued(&self, grant: &str) -> f64 {
        let (_, metrics) = openmetrics::scrape(self.site.server.admin).await;
        let family = "countersign_token_requests_total";
        metrics.value(&format!("{family}{{grant=\"{grant}\",outcome=\"issued\"}}"))
    }

    /// Has two tabs renew at the same moment, an hour later: the one that is looked at and `other`.
    /// Both have the same token then, which is another one than before.
    async fn renew_together(&self, mode: &str, client: &str, other: &fantoccini::wd::WindowHandle) {
        let browser = &self.browser;
        let own = browser.window().await;
        let before = self.run("return session.getToken()").await;
        let lock = json!(format!("countersign {ISSUER} {client} {mode}  renewal"));
        let hold = "await new Promise((held) => navigator.locks.request(args, () => {
            held(); return new Promise((release) => { window.release = release; }); }))";
        browser.run(hold, lock).await;
        let ask = "const now = Date.now; Date.now = () => now() + 3600e3;
            window.pending = session.getToken(); return null";
        self.run(ask).await;
        browser.switch_to(other).await;
        self.run(ask).await;
        browser.switch_to(&own).await;
        let one = self.run("window.release(); return window.pending").await;
        browser.switch_to(other).await;
        let two = self.run("return window.pending").await;
        browser.switch_to(&own).await;
        assert_eq!(one, two);
        assert_ne!(one, before);
    }
}

fn is(count: f64, expected: f64) -> bool {
    (count - expected).abs() < f64::EPSILON
}

#[tokio::test]
async fn two_tabs_with_the_session_of_their_browser_renew_once_and_sign_out_together() {
    let apps = Apps::start().await;
    let browser = &apps.browser;
    browser.open(BOARD).await;
    let refused = "return session.getToken().catch((error) => error.code)";
    assert_eq!(apps.run(refused).await, "login_required");
    apps.sign_in(BOARD).await;
    // Nothing of the answer is left in the address, and nothing of the token outside memory.
    assert_eq!(browser.url().await.as_str(), BOARD);
    let token = apps.run("return session.getToken()").await;
    let kept =
        "return JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])";
    assert_eq!(apps.run(kept).await, r#"[{},{},""]"#);
    assert!(is(apps.issued("session").await, 1.0));
    // A second tab has the token of the first.
    let first = browser.new_tab().await;
    browser.open(BOARD).await;
    assert_eq!(apps.run("return session.getToken()").await, token);
    assert!(is(apps.issued("session").await, 1.0));
    apps.renew_together("session", "board", &first).await;
    assert!(is(apps.issued("session").await, 2.0));
    // Tokens are for no origin that was not named.
    let evil = "return session.fetch('https://evil.example/').catch((error) => error.code)";
    assert_eq!(apps.run(evil).await, "origin");

    // Another app has a sign-in of its own from the same session; it ends, too.
    browser.open(FAR).await;
    let go = "session.signIn({ returnTo: '/notes#1' }); return null";
    apps.run(go).await;
    browser.says("#came", r#"{"returnTo":"/notes#1"}"#).await;
    browser.switch_to(&first).await;
    apps.run("return session.signOut()").await;
    assert_eq!(apps.run("return window.lost").await, 1);
    assert_eq!(apps.run(refused).await, "login_required");
    let far = "Date.now = () => 8e15; return session.getToken().catch((error) => error.code)";
    let tabs = browser.windows().await;
    let second = tabs.iter().find(|tab| **tab != first).unwrap();
    browser.switch_to(second).await;
    assert_eq!(apps.run(far).await, "login_required");
    apps.run(go).await;
    browser.reads("Sign in").await;
}

#[tokio::test]
async fn two_tabs_with_tokens_of_their_own_refresh_once() {
    let apps = Apps::start().await;
    let browser = &apps.browser;
    apps.sign_in(FAR).await;
    assert!(is(apps.issued("authorization_code").await, 1.0));
    let first = browser.new_tab().await;
    browser.open(FAR).await;
    let token = apps.run("return session.getToken()").await;
    let kept =
        "return JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])";
    assert_eq!(apps.run(kept).await, r#"[{},{},""]"#);
    assert!(is(apps.issued("refresh_token").await, 0.0));
    apps.renew_together("code", "far", &first).await;
    assert!(is(apps.issued("refresh_token").await, 1.0));
    assert_ne!(apps.run("return session.getToken()").await, token);
    // What one tab signs out of the other is signed out of.
    apps.run("return session.signOut()").await;
    browser.switch_to(&first).await;
    until("the other tab", async || {
        (apps.run("return window.lost").await == 1).then_some(())
    })
    .await;
}

/// RFC 9207 §2.4, and login CSRF: an answer that nobody in this tab has asked for.
#[tokio::test]
async fn an_answer_that_this_tab_has_not_asked_for_is_not_taken() {
    let apps = Apps::start().await;
    let browser = &apps.browser;
    browser
        .open(&format!("{FAR}?code=stolen&state=x&iss={ISSUER}&keep=1"))
        .await;
    browser.says("#came", "\"state\"").await;
    assert_eq!(browser.url().await.as_str(), format!("{FAR}?keep=1"));
    let kept = json!({ "verifier": "v", "issuer": ISSUER }).to_string();
    let keep = "sessionStorage.setItem('countersign far y', args); return null";
    browser.run(keep, kept.into()).await;
    browser
        .open(&format!(
            "{FAR}?code=mixed&state=y&iss=https://other.example"
        ))
        .await;
    browser.says("#came", "\"iss\"").await;
    assert!(is(apps.issued("authorization_code").await, 0.0));
}

#[tokio::test]
async fn the_module_may_be_imported_from_anywhere() {
    let site = Site::start().await;
    let browser = site.browser();
    let module = answer(browser.request(Method::GET, "/assets/countersign.js")).await;
    assert_eq!(module.status, 200);
    for (name, value) in [
        ("content-type", "text/javascript; charset=utf-8"),
        ("x-content-type-options", "nosniff"),
        ("access-control-allow-origin", "*"),
        ("cross-origin-resource-policy", "cross-origin"),
        ("cache-control", "public, max-age=3600"),
    ] {
        assert_eq!(module.header(name), Some(value));
    }
    assert!(module.body.contains("export class Countersign "));
}
