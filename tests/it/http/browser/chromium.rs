//! The pages as people meet them: in a browser that runs scripts, keeps cookies and judges policies.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{CALLBACK, CHALLENGE, Site};
use crate::support::{
    chromium::Chromium,
    database::{Database, Engine},
    proxy::Proxy,
    server::{ISSUER, Setup},
    sign_in::PASSWORD,
    site::Site as Elsewhere,
};

/// An authorization request of the client `notes`.
pub(super) fn request(changes: &[(&str, &str)]) -> String {
    let mut url = url::Url::parse(&format!("{ISSUER}/oauth2/authorize")).unwrap();
    url.query_pairs_mut()
        .extend_pairs([
            ("client_id", "notes"),
            ("redirect_uri", CALLBACK),
            ("response_type", "code"),
            ("state", "st"),
            ("scope", "read write"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ])
        .extend_pairs(changes);
    url.into()
}

/// The app that users are sent back to: a page at any path, where frames are.
pub(super) fn app() -> Elsewhere {
    let app = Elsewhere::plain();
    app.page("<!doctype html><html lang=en><title>App</title><h1>The app</h1>");
    app
}

/// A browser that finds the service and the app.
pub(super) async fn browser_at(site: &Site, app: &Elsewhere) -> Chromium {
    let hosts = [
        ("issuer.example", site.server.public),
        ("app.example", app.address()),
    ];
    Chromium::start(&hosts).await
}

#[tokio::test]
async fn a_user_signs_in_and_allows_an_app() {
    let (site, app) = (Site::start().await, app());
    let browser = browser_at(&site, &app).await;
    browser.open(&request(&[])).await;
    browser.reads("Sign in").await;
    browser.shows("sign-in").await;

    browser.sign_in("ada", "a wrong password").await;
    browser
        .says("#problem", "The user name or the password is wrong.")
        .await;
    // What was typed is there still; and where to go on.
    let focus = "return [document.activeElement.id, document.querySelector('#username').value]";
    let focus = browser.run(focus, Value::Null).await;
    assert_eq!(focus, json!(["password", "ada"]));
    browser.shows("sign-in-wrong-password").await;

    browser.sign_in("ada", PASSWORD).await;
    browser
        .reads("Allow Field <b>Notes to use your account?")
        .await;
    browser.shows("consent").await;
    // No script of a page sees the cookies, and they are for this host alone.
    assert_eq!(browser.run("return document.cookie", Value::Null).await, "");
    browser.press("Allow").await;
    let back = browser.arrives(CALLBACK).await;
    browser.reads("The app").await;
    let query: Vec<String> = back.query_pairs().map(|(name, _)| name.into()).collect();
    assert_eq!(query, ["tenant", "code", "state", "iss"]);
    // The second time nothing is asked.
    browser.open(&request(&[("prompt", "none")])).await;
    let back = browser.arrives(CALLBACK).await;
    assert!(back.query_pairs().any(|(name, _)| name == "code"), "{back}");
}

#[tokio::test]
async fn a_user_allows_nothing_or_does_not_sign_in() {
    let (site, app) = (Site::start().await, app());
    let browser = browser_at(&site, &app).await;
    browser.open(&request(&[])).await;
    browser.press("Cancel").await;
    let back = browser.arrives(CALLBACK).await;
    assert!(back.as_str().contains("error=access_denied"), "{back}");
    browser.open(&request(&[])).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.press("Do not allow").await;
    let back = browser.arrives(CALLBACK).await;
    assert!(back.as_str().contains("error=access_denied"), "{back}");
    // What was not allowed is asked for again.
    browser.open(&request(&[("prompt", "none")])).await;
    let back = browser.arrives(CALLBACK).await;
    assert!(back.as_str().contains("error=consent_required"), "{back}");
}

#[tokio::test]
async fn an_answer_by_form_post_goes_on_by_itself() {
    let (site, app) = (Site::start().await, app());
    let browser = browser_at(&site, &app).await;
    let posted = request(&[("response_mode", "form_post")]);
    browser.open(&posted).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.press("Allow").await;
    browser.reads("The app").await;
    let body = String::from_utf8(app.bodies()).unwrap();
    assert!(body.starts_with("code="), "{body}");
    // For browsers that run no scripts the page has a button.
    let off = json!({ "value": true });
    browser
        .devtools("Emulation.setScriptExecutionDisabled", off)
        .await;
    browser.open(&posted).await;
    browser.reads("Back to the app").await;
    browser.shows("form-post").await;
    browser.press("Go on").await;
    browser.reads("The app").await;
}

#[tokio::test]
async fn a_refused_request_is_explained_where_the_user_is() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    let elsewhere = request(&[]).replace("app.example", "evil.example");
    browser.open(&elsewhere).await;
    browser.reads("This does not work").await;
    browser.shows("error").await;
    browser.open(&format!("{ISSUER}/nothing")).await;
    browser.reads("There is nothing here").await;
    browser.shows("error-nothing").await;
    browser.press("Go to your account").await;
    browser.reads("Sign in").await;
    // Whoever presses Enter in the address bar after a form gets a page, too.
    browser.open(&format!("{ISSUER}/signin")).await;
    browser.reads("Sign in").await;
}

/// A colour that is read on dark alone, and one on light alone: on each page both are.
#[tokio::test]
async fn pages_in_the_colour_of_a_brand_can_be_read() {
    for (name, colour) in [
        ("yellow", "#ffe000"),
        ("navy", "#101040"),
        ("grey", "#808080"),
    ] {
        let setup = Setup::new()
            .set("pages.name", "Field Bakery")
            .set("pages.colour", colour);
        let (site, app) = (Site::of(setup).await, app());
        let browser = browser_at(&site, &app).await;
        browser.open(&request(&[])).await;
        browser.reads("Sign in").await;
        browser.shows_coloured(&format!("sign-in in {name}")).await;
        browser.sign_in("ada", PASSWORD).await;
        browser
            .reads("Allow Field <b>Notes to use your account?")
            .await;
        browser.shows_coloured(&format!("consent in {name}")).await;
        browser.press("Allow").await;
        browser.reads("The app").await;
        browser.open(&format!("{ISSUER}/account")).await;
        browser.reads("Your account").await;
        browser.shows_coloured(&format!("account in {name}")).await;
    }
}

/// What is wrong, and not with a request.
#[tokio::test]
async fn a_failure_is_explained_where_the_user_is() {
    let account = format!("{ISSUER}/account");
    for (engine, title, page) in [
        (Engine::Sqlite, "Something went wrong", "error-ours"),
        (Engine::Postgres, "Not right now", "error-not-now"),
    ] {
        let database = Database::create(engine).await;
        let proxy = (engine == Engine::Postgres).then(|| Proxy::start(database.url()));
        let url = proxy
            .as_ref()
            .map_or_else(|| database.url().to_owned(), Proxy::url);
        let site = Site::of(Setup::new().at(&url)).await;
        let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
        browser.open(&account).await;
        browser.sign_in("ada", PASSWORD).await;
        browser.reads("Your account").await;
        if let Some(proxy) = &proxy {
            proxy.freeze_for_good();
        } else {
            let damage = "alter table browser_session rename to gone";
            database.execute(damage).await;
        }
        browser.open(&account).await;
        browser.reads(title).await;
        browser.shows(page).await;
    }
}

#[tokio::test]
async fn the_pages_for_operators_can_be_read() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("admin.example", site.server.admin)]).await;
    browser.open("https://admin.example/docs").await;
    browser.shows("docs").await;
}

/// Each template of a page is one that a browser looks at, in some test, under a name that begins with
/// its own.
#[test]
fn every_page_is_looked_at() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |folder: &str| -> Vec<(String, String)> {
        let files = fs::read_dir(root.join(folder)).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let texts = paths.filter(|path| path.is_file()).map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(&path).unwrap())
        });
        texts.collect()
    };
    let tests: String = read("tests/it/http/browser")
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    let templates = read("src/http/pages/templates");
    let pages = templates
        .iter()
        .filter(|(_, text)| text.starts_with("{% extends"));
    let mut count = 0;
    for (name, _) in pages {
        let looks = format!(".shows(\"{}", name.replace('_', "-"));
        let is_looked_at = tests.match_indices(&looks).any(|(at, _)| {
            let after = tests[at + looks.len()..].chars().next();
            matches!(after, Some('"' | '-'))
        });
        assert!(is_looked_at, "{name}");
        count += 1;
    }
    assert!(count > 9, "{count}");
}

/// RFC 9700 §4.16.
#[tokio::test]
async fn no_page_is_shown_in_a_frame() {
    let site = Site::start().await;
    let hosts = [("issuer.example", site.server.public)];
    let browser = Chromium::start(&hosts).await;
    let framing = Elsewhere::plain();
    let document = |url: &str| {
        format!("<!doctype html><html lang=en><h1>Frames</h1><iframe id=f src='{url}'></iframe>")
    };
    // As a control: what lets itself be framed is.
    let page = app();
    browser.knows("app.example", page.address());
    browser.knows("frames.example", framing.address());
    // And of the same site, so that only the policy can refuse.
    browser.knows("frames.issuer.example", framing.address());
    let is_framed = async |url: &str, is_shown: bool| {
        framing.page(&document(&url.replace('&', "&amp;")));
        for host in ["frames.example", "frames.issuer.example"] {
            browser.open(&format!("https://{host}/")).await;
            browser.reads("Frames").await;
            let seen = browser.framed("#f").await;
            let expected = if is_shown {
                url
            } else {
                "chrome-error://chromewebdata/"
            };
            assert_eq!(seen, expected, "in {host}");
        }
    };
    is_framed("https://app.example/", true).await;
    is_framed(&request(&[]), false).await;
    is_framed(&request(&[("client_id", "nobody")]), false).await;
    // Nor what is there for whoever has signed in. Frames of the same site bring the cookies along.
    browser.open(&request(&[])).await;
    browser.sign_in("ada", PASSWORD).await;
    let (account, sign_out) = (
        format!("{ISSUER}/account"),
        format!("{ISSUER}/oauth2/logout"),
    );
    let consent = request(&[]);
    for (url, heading) in [
        (&consent, "Allow Field <b>Notes to use your account?"),
        (&account, "Your account"),
        (&sign_out, "Sign out?"),
    ] {
        browser.open(url).await;
        browser.reads(heading).await;
        is_framed(url, false).await;
    }
}

#[tokio::test]
async fn tabs_share_what_a_user_has_signed_in_to() {
    let (site, app) = (Site::start().await, app());
    let browser = browser_at(&site, &app).await;
    // Both tabs ask before anybody has signed in.
    browser.open(&request(&[])).await;
    let first = browser.new_tab().await;
    browser.open(&request(&[])).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.press("Allow").await;
    browser.arrives(CALLBACK).await;
    browser.switch_to(&first).await;
    assert_eq!(browser.text("h1").await, "Sign in");
    browser.sign_in("ada", PASSWORD).await;
    browser.arrives(CALLBACK).await;
    let url = browser.url().await;
    assert!(url.query_pairs().any(|(name, _)| name == "code"), "{url}");
}

/// What tests of passkeys stand on: the browser keeps one for the issuer, and signs with it.
#[tokio::test]
async fn the_browser_of_the_tests_keeps_passkeys() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    // A page that asks for no passkey by itself.
    browser.open(&request(&[("client_id", "nobody")])).await;
    browser.authenticator().await;
    let signed = "
        const challenge = new Uint8Array(32);
        await navigator.credentials.create({ publicKey: {
            challenge,
            rp: { id: 'issuer.example', name: 'Issuer' },
            user: { id: new Uint8Array(16), name: 'ada', displayName: 'Ada' },
            pubKeyCredParams: [{ type: 'public-key', alg: -7 }],
            authenticatorSelection: { residentKey: 'required', userVerification: 'required' },
        } });
        const found = await navigator.credentials.get({ publicKey: { challenge } });
        return JSON.parse(new TextDecoder().decode(found.response.clientDataJSON));";
    let signed = browser.run(signed, Value::Null).await;
    assert_eq!(signed["origin"], ISSUER);
    assert_eq!(signed["type"], "webauthn.get");
}
