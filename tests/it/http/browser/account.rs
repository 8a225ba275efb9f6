//! The account page: signing in for it, and what its forms do.

use std::time::Duration;

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
};
use reqwest::Method;

use super::{Browser, CALLBACK, Site, flow, heading, pages::is_guarded, returned};
use crate::support::{
    chromium::Chromium,
    database::{Database, Engine},
    server::{Answer, ISSUER, Setup, answer, metadata},
    sign_in::{PASSWORD, SignedIn, VERIFIER},
};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

on_both_engines! {
    a_user_signs_in_for_its_own_account,
    another_browser_is_signed_out_at_once,
    whoever_signs_out_everywhere_else_stays_signed_in_here,
    a_changed_password_ends_every_other_session,
    what_was_allowed_is_taken_back,
}

impl Browser<'_> {
    pub(super) async fn account(&mut self) -> Answer {
        let request = self.request(Method::GET, "/account");
        self.send(request).await
    }

    /// Signs Ada in for her own account; the page.
    pub(super) async fn ada(&mut self) -> Answer {
        let page = self.account().await;
        let answer = self.sign_in(&page, "ada", PASSWORD).await;
        assert_eq!(answer.status, 303, "{answer:?}");
        self.account().await
    }

    /// Submits a form of the page.
    pub(super) async fn act(&mut self, form: &str) -> Answer {
        self.post("/account/forms", &[("form", form)]).await
    }

    async fn change_password(&mut self, current: &str, new: &str, again: &str) -> Answer {
        let page = self.account().await;
        let token = form_before(&page, "Current password");
        let fields = [
            ("form", token.as_str()),
            ("current", current),
            ("new", new),
            ("again", again),
        ];
        self.post("/account/forms", &fields).await
    }

    async fn is_signed_in(&mut self) -> bool {
        match heading(&self.account().await) {
            "Your account" => true,
            "Sign in" => false,
            other => panic!("{other}"),
        }
    }
}

/// The form whose button, or first field, has this text.
pub(super) fn form_before(page: &Answer, text: &str) -> String {
    let (before, _) = page
        .body
        .split_once(text)
        .unwrap_or_else(|| panic!("no {text}: {page:?}"));
    let (_, form) = before.rsplit_once("name=\"form\" value=\"").unwrap();
    form.split('"').next().unwrap().to_owned()
}

/// What the page says under a heading.
fn section<'a>(page: &'a Answer, heading: &str) -> &'a str {
    let (_, rest) = page.body.split_once(&format!(">{heading}</h2>")).unwrap();
    rest.split("</section>").next().unwrap()
}

const NEW_PASSWORD: &str = "seven quiet herons wade at dusk";

async fn a_user_signs_in_for_its_own_account(engine: Engine) {
    let site = Site::on(engine).await;
    let mut browser = site.browser();
    let page = browser.account().await;
    assert_eq!((page.status, heading(&page)), (200, "Sign in"));
    assert!(page.body.contains("to your account"), "{page:?}");
    assert!(!page.body.contains("Cancel"), "{page:?}");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("form-action 'self'"), "{policy}");
    let wrong = browser.sign_in(&page, "ada", "wrong").await;
    assert_eq!((wrong.status, heading(&wrong)), (400, "Sign in"));
    let answer = browser.sign_in(&wrong, "ada", PASSWORD).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(answer.header("location"), Some("/account"));
    let page = browser.account().await;
    assert_eq!((page.status, heading(&page)), (200, "Your account"));
    assert!(page.body.contains("<strong>ada</strong>"), "{page:?}");
    // Apps find the same session, and the account that of apps.
    assert_eq!(
        heading(&browser.ask(&[]).await),
        "Allow Field &#60;b&#62;Notes to use your account?"
    );
}

#[tokio::test]
async fn whoever_signs_in_for_the_account_gets_another_cookie() {
    let site = Site::start().await;
    let mut browser = site.browser();
    // A cookie that somebody has planted is good for nothing, before and after.
    let planted = "cs_bs_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let name = "__Host-countersign".to_owned();
    browser.cookies.insert(name.clone(), planted.to_owned());
    let page = browser.account().await;
    assert_eq!(heading(&page), "Sign in");
    browser.sign_in(&page, "ada", PASSWORD).await;
    assert_ne!(browser.cookies[&name], planted);
    let mut thief = site.browser();
    thief.cookies.insert(name, planted.to_owned());
    assert_eq!(heading(&thief.account().await), "Sign in");
}

#[tokio::test]
async fn a_page_that_was_sealed_with_an_invented_key_is_too_old() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let page = browser.account().await;
    let mut bytes = countersign_verifier::base64url::decode(&flow(&page)).unwrap();
    bytes[4] ^= 0x40;
    let invented = countersign_verifier::base64url::encode(&bytes);
    let form = [
        ("flow", invented.as_str()),
        ("username", "ada"),
        ("password", PASSWORD),
    ];
    let refused = browser.post("/signin", &form).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.body.contains("too old"), "{refused:?}");
}

#[tokio::test]
async fn who_fails_too_often_is_told_when_to_come_back() {
    let clock = ManualClock::new(NOW);
    let setup = Setup::new().clock(clock.clone());
    let site = Site::of(setup.set("limits.password_failures_per_minute", "2")).await;
    let mut browser = site.browser();
    let page = browser.account().await;
    for _ in 0..2 {
        let wrong = browser.sign_in(&page, "ada", "wrong").await;
        assert_eq!(wrong.status, 400);
        assert_eq!(wrong.header("countersign-reason"), Some("credentials"));
    }
    let refused = browser.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!((refused.status, heading(&refused)), (429, "Sign in"));
    assert_eq!(refused.header("retry-after"), Some("30"));
    assert_eq!(refused.header("countersign-reason"), Some("rate_limited"));
    clock.advance(Duration::from_secs(30));
    assert_eq!(browser.sign_in(&page, "ada", PASSWORD).await.status, 303);
}

#[tokio::test]
async fn a_page_that_cannot_be_drawn_says_why_to_the_log_and_the_metrics() {
    let database = Database::create(Engine::Sqlite).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let mut browser = site.browser();
    let page = browser.account().await;
    browser.sign_in(&page, "ada", PASSWORD).await;
    database
        .execute("alter table browser_session rename to gone")
        .await;
    let refused = browser.account().await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!(refused.header("countersign-reason"), Some("internal"));
    let refused = browser.post("/consent", &[("flow", "x")]).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.header("countersign-reason"), Some("flow"));
}

/// A site with a client that can authenticate, `desk`.
async fn with_desk(engine: Engine) -> Site {
    let desk = ClientMetadata {
        client_name: "Desk".to_owned(),
        scope: "read write openid offline_access".to_owned(),
        redirect_uris: vec![CALLBACK.to_owned()],
        ..metadata()
    };
    Site::of(Setup::new().on(engine).client("desk", desk)).await
}

/// The tokens of the client `desk`, which Ada allows what it asks for in this browser.
async fn tokens(site: &Site, browser: &mut Browser<'_>, scope: &str) -> SignedIn {
    let answer = browser
        .ask(&[("client_id", "desk"), ("scope", scope)])
        .await;
    let returning = match answer.status {
        303 => answer,
        _ => browser.decide(&answer, "allow").await,
    };
    let code = returned(&returning)["code"].clone();
    SignedIn::of(&exchanged(site, &code).await)
}

/// A form that the client `desk` posts.
async fn by_desk(site: &Site, path: &str, form: &[(&str, &str)]) -> Answer {
    let desk = site.server.other("desk");
    let request = site.server.request(Method::POST, path);
    let request = request.basic_auth(&desk.id, Some(&desk.secret));
    answer(request.form(form)).await
}

async fn exchanged(site: &Site, code: &str) -> Answer {
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("code_verifier", VERIFIER),
        ("redirect_uri", CALLBACK),
    ];
    by_desk(site, "/oauth2/token", &form).await
}

/// Whether tokens are good: both of them at introspection, and if they are not, at the token endpoint.
async fn are_good(site: &Site, tokens: &SignedIn) -> bool {
    let mut active = Vec::new();
    for token in [&tokens.access_token, &tokens.refresh_token] {
        let told = by_desk(site, "/oauth2/introspect", &[("token", token.as_str())]).await;
        active.push(told.json()["active"].as_bool().unwrap());
    }
    assert_eq!(active[0], active[1], "{active:?}");
    if !active[0] {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", tokens.refresh_token.as_str()),
        ];
        let refused = by_desk(site, "/oauth2/token", &form).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(refused.json()["error"], "invalid_grant");
    }
    active[0]
}

async fn another_browser_is_signed_out_at_once(engine: Engine) {
    let site = with_desk(engine).await;
    let (mut here, mut there) = (site.browser(), site.browser());
    there.ada().await;
    let theirs = tokens(&site, &mut there, "read").await;
    let lasting = tokens(&site, &mut there, "openid offline_access read").await;
    here.ada().await;
    let own = tokens(&site, &mut here, "read").await;
    let page = here.account().await;
    let places = section(&page, "Where you are signed in");
    assert_eq!(places.matches("Desk</strong>").count(), 2);
    assert_eq!(places.matches("This browser").count(), 1);
    assert!(places.contains("127.0.0.1"), "{places}");
    assert!(places.contains("Apps that stay signed in on their own"));

    let of_other = form_before(
        &page,
        "<span class=\"visually-hidden\"> of An unknown device",
    );
    let answer = here.act(&of_other).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, Some("/account"))
    );
    assert!(!there.is_signed_in().await);
    assert_eq!(heading(&there.ask(&[]).await), "Sign in");
    assert!(!are_good(&site, &theirs).await);
    // What was to outlast it does, and what is here stays.
    assert!(are_good(&site, &lasting).await);
    assert!(are_good(&site, &own).await);
    assert!(here.is_signed_in().await);

    // One app alone, then the other, then this browser.
    let page = here.account().await;
    let app = form_before(&page, "End<span");
    assert_eq!(here.act(&app).await.status, 303);
    assert!(!are_good(&site, &own).await);
    assert!(are_good(&site, &lasting).await);
    let page = here.account().await;
    let app = form_before(&page, "<span class=\"visually-hidden\"> of Desk");
    assert_eq!(here.act(&app).await.status, 303);
    assert!(!are_good(&site, &lasting).await);
    let page = here.account().await;
    let happened = section(&page, "What has happened lately");
    assert_eq!(happened.matches("You signed out of Desk.").count(), 2);
    assert!(
        happened.contains("You signed out of a browser."),
        "{happened}"
    );
    let answer = here.act(&form_before(&page, ">Sign out</button>")).await;
    assert_eq!(answer.status, 303);
    assert!(!here.cookies.contains_key("__Host-countersign"));
    assert!(!here.is_signed_in().await);
}

async fn whoever_signs_out_everywhere_else_stays_signed_in_here(engine: Engine) {
    let site = with_desk(engine).await;
    let (mut here, mut there) = (site.browser(), site.browser());
    there.ada().await;
    let lasting = tokens(&site, &mut there, "openid offline_access read").await;
    let page = here.ada().await;
    let cookie = here.cookies["__Host-countersign"].clone();
    let answer = here
        .act(&form_before(&page, "Sign out everywhere else"))
        .await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert!(!there.is_signed_in().await);
    assert!(!are_good(&site, &lasting).await);
    assert!(here.is_signed_in().await);
    assert_ne!(here.cookies["__Host-countersign"], cookie);
    // The cookie before is good for nothing.
    let mut thief = site.browser();
    thief
        .cookies
        .insert("__Host-countersign".to_owned(), cookie);
    assert!(!thief.is_signed_in().await);
    let page = here.account().await;
    let answer = here
        .act(&form_before(&page, "Sign out everywhere</button>"))
        .await;
    assert_eq!(answer.status, 303);
    assert!(!here.cookies.contains_key("__Host-countersign"));
    assert!(!here.is_signed_in().await);
}

async fn a_changed_password_ends_every_other_session(engine: Engine) {
    let site = with_desk(engine).await;
    let (mut here, mut there) = (site.browser(), site.browser());
    there.ada().await;
    let theirs = tokens(&site, &mut there, "openid offline_access read").await;
    here.ada().await;
    let cookie = here.cookies["__Host-countersign"].clone();
    for (current, new, again, says) in [
        (
            "wrong",
            NEW_PASSWORD,
            NEW_PASSWORD,
            "The current password is wrong.",
        ),
        (
            "",
            NEW_PASSWORD,
            NEW_PASSWORD,
            "The current password is wrong.",
        ),
        (
            PASSWORD,
            NEW_PASSWORD,
            "",
            "The two new passwords are not the same.",
        ),
        (
            PASSWORD,
            "short",
            "short",
            "The new password must have at least",
        ),
        (PASSWORD, "", "", "The new password must have at least"),
    ] {
        let refused = here.change_password(current, new, again).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(heading(&refused), "Your account");
        assert!(refused.body.contains(says), "{says}: {refused:?}");
        // What is wrong is said of the field that it is wrong with.
        let marked: Vec<&str> = refused
            .body
            .lines()
            .filter(|line| line.contains("aria-invalid"))
            .collect();
        let is_current = says.contains("current");
        assert_eq!(marked.len(), if is_current { 1 } else { 2 }, "{marked:?}");
        assert_eq!(marked[0].contains("id=\"current\""), is_current);
        assert_eq!(refused.header("countersign-reason"), Some("credentials"));
        assert!(!refused.body.contains(NEW_PASSWORD));
    }
    assert!(there.is_signed_in().await);
    assert!(are_good(&site, &theirs).await);
    let answer = here
        .change_password(PASSWORD, NEW_PASSWORD, NEW_PASSWORD)
        .await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, Some("/account"))
    );
    assert!(!there.is_signed_in().await);
    assert!(!are_good(&site, &theirs).await);
    assert!(here.is_signed_in().await);
    assert_ne!(here.cookies["__Host-countersign"], cookie);
    let page = here.account().await;
    let happened = section(&page, "What has happened lately");
    assert!(
        happened.contains("You changed your password."),
        "{happened}"
    );
    let page = there.account().await;
    assert_eq!(there.sign_in(&page, "ada", PASSWORD).await.status, 400);
    assert_eq!(there.sign_in(&page, "ada", NEW_PASSWORD).await.status, 303);
}

async fn what_was_allowed_is_taken_back(engine: Engine) {
    let site = with_desk(engine).await;
    let mut browser = site.browser();
    browser.ada().await;
    let nothing = browser.account().await;
    let allowed = section(&nothing, "What you have allowed");
    assert!(allowed.contains("No app has asked you"), "{allowed}");
    let read = tokens(&site, &mut browser, "read").await;
    let code = returned(
        &browser
            .ask(&[("client_id", "desk"), ("scope", "read")])
            .await,
    )["code"]
        .clone();
    let page = browser.account().await;
    let allowed = section(&page, "What you have allowed");
    for part in ["Desk", "<li>read "] {
        assert!(allowed.contains(part), "{part}: {allowed}");
    }
    let answer = browser.act(&form_before(&page, "Take back<span")).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert!(!are_good(&site, &read).await);
    let refused = exchanged(&site, &code).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let page = browser
        .ask(&[("client_id", "desk"), ("scope", "read")])
        .await;
    assert!(heading(&page).starts_with("Allow Desk"), "{page:?}");
    let page = browser.account().await;
    let happened = section(&page, "What has happened lately");
    for part in ["You took back what", "You allowed"] {
        assert!(happened.contains(part), "{part}: {happened}");
    }
}

/// A form is for the browser and the session that it was drawn for, and for a page of ours.
#[tokio::test]
async fn nobody_has_another_one_submit_a_form_of_the_account_page() {
    let site = Site::start().await;
    let (mut ada, mut mallory) = (site.browser(), site.browser());
    let eve = site.server.user("eve").await;
    site.set_password(eve, PASSWORD).await;
    let page = ada.ada().await;
    let other = mallory.account().await;
    mallory.sign_in(&other, "eve", PASSWORD).await;
    let other = mallory.account().await;
    for text in [
        ">Sign out</button>",
        "Sign out everywhere else",
        "Sign out everywhere</button>",
        "Current password",
    ] {
        // Mallory's own form, posted from Ada's browser, and Ada's, from Mallory's.
        let planted = ada.act(&form_before(&other, text)).await;
        assert_eq!(planted.status, 400, "{planted:?}");
        assert!(planted.body.contains("too old"), "{planted:?}");
        let stolen = mallory.act(&form_before(&page, text)).await;
        assert_eq!(stolen.status, 400, "{stolen:?}");
        // Ada's own form, from a page of another site.
        for foreign in ["cross-site", "same-site", "none"] {
            let form = form_before(&page, text);
            let request = ada.request(Method::POST, "/account/forms");
            let request = request.form(&[("form", form.as_str())]);
            let refused = ada.send(request.header("sec-fetch-site", foreign)).await;
            assert_eq!(refused.status, 400, "{refused:?}");
            assert!(refused.body.contains("another site"), "{refused:?}");
        }
    }
    for form in ["", "x", &flow(&site.browser().account().await)] {
        let refused = ada.act(form).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(refused.header("countersign-reason"), Some("flow"));
    }
    assert!(ada.is_signed_in().await);
    assert!(mallory.is_signed_in().await);
    // Nor is a form good in the next session of the same browser.
    ada.act(&form_before(&page, ">Sign out</button>")).await;
    ada.ada().await;
    let late = ada
        .act(&form_before(&page, "Sign out everywhere</button>"))
        .await;
    assert_eq!(late.status, 400, "{late:?}");
    assert!(ada.is_signed_in().await);
    // Whoever is signed out is asked to sign in.
    let mut nobody = site.browser();
    let answer = nobody.act("x").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, Some("/account"))
    );
}

#[tokio::test]
async fn a_form_of_the_account_page_is_good_for_half_an_hour() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    let page = browser.ada().await;
    site.server.pass(&clock, Duration::from_mins(31)).await;
    let late = browser
        .act(&form_before(&page, "Sign out everywhere</button>"))
        .await;
    assert_eq!((late.status, heading(&late)), (400, "Your account"));
    assert!(late.body.contains("too old"), "{late:?}");
    // The page that says so has forms that are good.
    let answer = browser
        .act(&form_before(&late, "Sign out everywhere</button>"))
        .await;
    assert_eq!(answer.status, 303, "{answer:?}");
}

#[tokio::test]
async fn the_account_page_is_guarded_and_bounded() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    for _ in 0..12 {
        let mut other = site.browser();
        other.ada().await;
        clock.advance(Duration::from_secs(1));
    }
    let page = browser.ada().await;
    is_guarded(&page);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("form-action 'self'"), "{policy}");
    let places = |page: &Answer| {
        let places = section(page, "Where you are signed in");
        places.matches("An unknown device</p>").count()
            + places.matches("An unknown device <span").count()
    };
    assert_eq!(places(&page), 10);
    assert!(page.body.contains("href=\"/account?show=all\""), "{page:?}");
    let request = browser.request(Method::GET, "/account?show=all");
    let page = browser.send(request).await;
    assert_eq!(places(&page), 13);
    assert!(!page.body.contains("show=all"), "{page:?}");
    // In an old browser that is still signed in, it is still the first.
    let refused = browser.act("x").await;
    is_guarded(&refused);
}

/// What people see, in a browser that draws it: and one browser ends the session of another at once.
#[tokio::test]
async fn the_account_page_is_looked_at_and_ends_the_session_of_another_browser() {
    let site = with_desk(Engine::Sqlite).await;
    let mut other = site.browser();
    other.ada().await;
    tokens(&site, &mut other, "read").await;
    tokens(&site, &mut other, "openid offline_access read").await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    browser.open(&format!("{ISSUER}/account")).await;
    browser.reads("Sign in").await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Your account").await;
    browser.shows("account").await;
    assert!(other.is_signed_in().await);
    browser.press("Sign out everywhere else").await;
    browser.reads("Your account").await;
    browser
        .says(
            "#happenings + .cards li:first-child p",
            "You signed out everywhere else.",
        )
        .await;
    assert!(!other.is_signed_in().await);
    browser.press("Change password").await;
    browser.fill("#current", "wrong").await;
    browser.fill("#new", NEW_PASSWORD).await;
    browser.fill("#again", NEW_PASSWORD).await;
    let submit = "document.querySelector('#password-panel form').requestSubmit()";
    browser.run(submit, serde_json::Value::Null).await;
    browser
        .says("#password-problem", "The current password is wrong.")
        .await;
    browser.shows("account-wrong-password").await;
    browser.open(&format!("{ISSUER}/oauth2/logout")).await;
    browser.reads("Sign out?").await;
    browser.shows("sign-out").await;
    browser.press("Sign out").await;
    browser.reads("You are signed out").await;
    browser.shows("signed-out").await;
    browser.open(&format!("{ISSUER}/account")).await;
    browser.reads("Sign in").await;
}
