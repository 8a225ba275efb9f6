//! Single-page apps with `/assets/countersign.js`, in a browser.

use countersign::{admin::client::ClientMetadata, domain::change::Change};
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

/// Has the service's next answer wait at this address until `window.go()`, once it is there.
const HOLD: &str = "const send = window.fetch; window.held = new Promise((there) => {
    window.fetch = async (...all) => {
        const answer = await send(...all);
        window.fetch = send;
        await new Promise((go) => { window.go = go; there(); });
        return answer;
    }; });";

/// Whose the token is.
const WHOSE: &str = "return JSON.parse(atob((await session.getToken()).split('.')[1])).sub";

struct Apps {
    site: Site,
    board: Elsewhere,
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
            board,
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

#[tokio::test]
async fn every_tab_is_told_that_somebody_else_has_signed_in() {
    let apps = Apps::start().await;
    let browser = &apps.browser;
    let bob = apps.site.server.user("bob").await;
    apps.site.set_password(bob, PASSWORD).await;
    apps.sign_in(BOARD).await;
    assert_eq!(apps.run(WHOSE).await, apps.site.ada.to_string());
    let heard = "window.heard = []; for (const name of ['signedin', 'signedout'])
        session.addEventListener(name, () => heard.push(name)); return null";
    apps.run(heard).await;
    let first = browser.new_tab().await;
    browser.open(BOARD).await;
    apps.run("session.signIn({ prompt: 'login' }); return null")
        .await;
    browser.sign_in("bob", PASSWORD).await;
    browser.arrives(BOARD).await;
    browser.says("#came", "{}").await;
    assert_eq!(apps.run(WHOSE).await, bob.to_string());
    browser.switch_to(&first).await;
    until("the first tab", async || {
        let heard = apps.run("return heard").await;
        (heard == json!(["signedout", "signedin"])).then_some(())
    })
    .await;
    assert_eq!(apps.run(WHOSE).await, bob.to_string());
}

#[tokio::test]
async fn a_sign_out_is_not_undone_by_what_was_under_way() {
    let apps = Apps::start().await;
    let browser = &apps.browser;
    apps.sign_in(BOARD).await;
    let renew = format!(
        "{HOLD} const now = Date.now; Date.now = () => now() + 3600e3;
        window.pending = session.getToken().catch((error) => error.code);
        await window.held; return null"
    );
    // What is held here is an answer, so that nobody is asked while another tab is there.
    apps.run(&renew).await;
    let first = browser.new_tab().await;
    browser.open(BOARD).await;
    apps.run("return session.signOut()").await;
    browser.switch_to(&first).await;
    let pending = "window.go(); return window.pending";
    assert_eq!(apps.run(pending).await, "login_required");
    assert_eq!(apps.run("return session.isSignedIn").await, false);
}

#[tokio::test]
async fn a_tab_that_has_no_token_signs_out_what_another_has() {
    let apps = Apps::start().await;
    let browser = &apps.browser;
    apps.sign_in(FAR).await;
    let first = browser.new_tab().await;
    browser.open(FAR).await;
    apps.run("return session.signOut()").await;
    let asked = "return performance.getEntriesByType('resource')
        .filter((entry) => entry.name.endsWith('/oauth2/revoke')).length";
    assert_eq!(apps.run(asked).await, 1);
    browser.switch_to(&first).await;
    until("the other tab", async || {
        (apps.run("return window.lost").await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tokens_are_renewed_where_somebody_looks_and_used_while_they_are_good() {
    let apps = Apps::start().await;
    apps.sign_in(BOARD).await;
    // The next token's time is known, and what is to be done then.
    let renew = "const token = await session.getToken();
        window.wait = window.setTimeout;
        window.setTimeout = (act, ...rest) => { window.act = act; return wait(act, ...rest); };
        window.now = Date.now; Date.now = () => now() + 3600e3;
        const next = await session.getToken();
        window.setTimeout = window.wait;
        window.end = (JSON.parse(atob(next.split('.')[1])).exp) * 1000 + 3600e3;
        return [token !== next, next]";
    let renewed = apps.run(renew).await;
    assert_eq!(renewed[0], true);
    let before = apps.issued("session").await;
    // A few seconds before its end, in a tab that nobody sees.
    let hidden = "Object.defineProperty(document, 'visibilityState',
            { configurable: true, get: () => 'hidden' });
        Date.now = () => window.end - 5000; window.act();
        await new Promise((resolve) => wait(resolve, 50)); return null";
    apps.run(hidden).await;
    assert!(is(apps.issued("session").await, before));
    // Where the service cannot be reached, what is left of it is used; not for longer.
    let unreached = "const send = window.fetch;
        window.fetch = () => Promise.reject(new TypeError('no way'));
        const left = await session.getToken();
        Date.now = () => window.end + 5000;
        const over = await session.getToken().catch((error) => error.message);
        window.fetch = send; Date.now = () => window.end - 5000;
        return [left, over]";
    assert_eq!(apps.run(unreached).await, json!([renewed[1], "no way"]));
    let seen = "delete document.visibilityState;
        document.dispatchEvent(new Event('visibilitychange')); return null";
    apps.run(seen).await;
    until("the renewal", async || {
        is(apps.issued("session").await, before + 1.0).then_some(())
    })
    .await;
    // A token goes nowhere but where it was sent, unless that was asked for.
    apps.board.answer_raw(
        "HTTP/1.1 302 Found\r\nLocation: https://far.example/\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n",
    );
    let sent = "return Promise.all([
        session.fetch('/notes').catch((error) => error.name),
        session.fetch(new Request('/notes')).catch((error) => error.name),
        session.fetch('/notes', { redirect: 'manual' }).then((answer) => answer.type),
    ])";
    let expected = json!(["TypeError", "TypeError", "opaqueredirect"]);
    assert_eq!(apps.run(sent).await, expected);
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

/// Has the page answer its own requests to its API with these statuses, one after the other; what was sent
/// along is in `asked`.
const API: &str = "
    window.asked = [];
    const real = window.fetch;
    window.fetch = async (input, init) => {
        if (!(input instanceof Request) || !input.url.startsWith(location.origin + '/api')) {
            return real(input, init);
        }
        asked.push([input.headers.get('authorization'), await input.text()]);
        return new Response('', { status: statuses.shift() });
    };
    window.call = async (...answers) => {
        window.statuses = answers;
        const sent = session.fetch('/api/notes', { method: 'POST', body: 'note' });
        return sent.then((answer) => answer.status, (error) => error.code);
    };
    return null";

/// A token that an API refuses may have been revoked: there is one more, and one more attempt.
#[tokio::test]
async fn a_token_that_an_api_refuses_is_renewed_once() {
    let apps = Apps::start().await;
    for (home, grant, before) in [(BOARD, "session", 1.0), (FAR, "refresh_token", 0.0)] {
        if home == BOARD {
            apps.sign_in(home).await;
        } else {
            apps.browser.open(home).await;
            let go = "session.signIn({ returnTo: '/notes#1' }); return null";
            apps.run(go).await;
            let came = r#"{"returnTo":"/notes#1"}"#;
            apps.browser.says("#came", came).await;
        }
        apps.run(API).await;
        let first = apps.run("return session.getToken()").await;
        assert_eq!(apps.run("return call(200)").await, 200);
        assert!(is(apps.issued(grant).await, before));
        assert_eq!(apps.run("return call(401, 200)").await, 200);
        assert!(is(apps.issued(grant).await, before + 1.0));
        let second = apps.run("return session.getToken()").await;
        assert_ne!(first, second);
        let sent = |token: &Value| json!([format!("Bearer {}", token.as_str().unwrap()), "note"]);
        let expected = json!([sent(&first), sent(&first), sent(&second)]);
        assert_eq!(apps.run("return asked").await, expected);
        // Not a third time.
        assert_eq!(
            apps.run("asked.length = 0; return call(401, 401, 200)")
                .await,
            401
        );
        assert_eq!(apps.run("return asked.length").await, 2);
        assert!(is(apps.issued(grant).await, before + 2.0));
        // However many are refused at once, one renews.
        let at_once = "asked.length = 0;
            const sent = [1, 2, 3].map(() => session.fetch('/api/notes'));
            window.statuses = [401, 401, 401, 200, 200, 200];
            return (await Promise.all(sent)).map(({ status }) => status)";
        assert_eq!(apps.run(at_once).await, json!([200, 200, 200]));
        assert_eq!(apps.run("return asked.length").await, 6);
        assert!(is(apps.issued(grant).await, before + 3.0));
    }
    // Nobody is signed in any more: that is told, and nothing is sent again.
    let end = Change::EndUserSessions {
        id: apps.site.ada,
        tokens_die_at: apps.site.server.clients.clock.now(),
    };
    apps.site.server.apply(end).await;
    let over = "asked.length = 0; return call(401, 200)";
    assert_eq!(apps.run(over).await, "login_required");
    assert_eq!(
        apps.run("return [asked.length, session.isSignedIn, lost]")
            .await,
        json!([1, false, 1])
    );
    assert_eq!(apps.run("return call(200)").await, "login_required");
    assert_eq!(apps.run("return asked.length").await, 1);
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
