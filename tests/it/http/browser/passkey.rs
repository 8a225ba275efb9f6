//! Passkeys (Web Authentication §7): added at the account page, presented after a password or alone.

use std::time::Duration;

use countersign::{
    clock::{ManualClock, Timestamp},
    domain::{browser_session::BrowserSession, change::Change},
};
use serde_json::{Value, json};

use super::{
    Browser, Site,
    account::form_before,
    flow, heading, hidden, returned,
    second_factor::{codes_of, only_session, require, secret_of},
};
use crate::support::{
    authenticator::Authenticator,
    chromium::Chromium,
    database::Engine,
    process::until,
    server::{Answer, ISSUER, Setup},
    sign_in::{PASSWORD, claims, update_user},
    totp,
};

on_both_engines! {
    a_passkey_is_added_at_the_account_page_and_signs_in_alone,
    a_passkey_is_a_second_factor,
    a_passkey_raises_the_session_that_it_is_added_in,
    a_user_who_needs_a_second_factor_makes_a_passkey,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const CONSENT: &str = "Allow Field &#60;b&#62;Notes to use your account?";

/// What a page asks the browser for.
fn options(page: &Answer) -> Value {
    let (_, rest) = page.body.split_once("data-options=\"").unwrap();
    let text = rest.split('"').next().unwrap();
    let text = text.replace("&#34;", "\"").replace("&#38;", "&");
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

impl Browser<'_> {
    /// Adds a passkey at the account page, where somebody has just signed in.
    async fn add(&mut self, key: &mut Authenticator, name: &str) -> Answer {
        let page = self.account().await;
        let page = self.act(&form_before(&page, "Add a passkey")).await;
        assert_eq!((page.status, heading(&page)), (200, "Add a passkey"));
        let made = key.create(&options(&page));
        let form = hidden(&page, "form");
        let form = [("form", &*form), ("passkey", &made), ("name", name)];
        self.post("/account/forms", &form).await
    }

    async fn enrol_passkey(&mut self, page: &Answer, made: &str) -> Answer {
        let flow = flow(page);
        let form = [("flow", flow.as_str()), ("passkey", made)];
        self.post("/signin/enrol", &form).await
    }

    async fn present(&mut self, page: &Answer, signed: &str) -> Answer {
        let flow = flow(page);
        let form = [("flow", flow.as_str()), ("passkey", signed)];
        self.post("/signin/passkey", &form).await
    }
}

/// A site with a clock, and Ada's passkey.
async fn equipped(setup: Setup) -> (Site, ManualClock, Authenticator) {
    let clock = ManualClock::new(NOW);
    let site = Site::of(setup.clock(clock.clone())).await;
    let mut key = Authenticator::new(1, ISSUER);
    let mut browser = site.browser();
    browser.ada().await;
    let page = browser.add(&mut key, "Telephone").await;
    assert_eq!(heading(&page), "Keep your recovery codes", "{page:?}");
    (site, clock, key)
}

async fn strength(site: &Site, answer: &Answer) -> (Value, Value) {
    let tokens = site.exchanged(&returned(answer)["code"]).await;
    let claims = claims(&tokens.access_token());
    (claims["acr"].clone(), claims["amr"].clone())
}

async fn a_passkey_is_added_at_the_account_page_and_signs_in_alone(engine: Engine) {
    let (site, _clock, mut key) = equipped(Setup::new().on(engine)).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'self';"), "{policy}");
    assert!(page.body.contains("/assets/passkey.js"), "{page:?}");
    let asked = options(&page);
    assert_eq!(asked["rpId"], "issuer.example");
    assert_eq!(asked["userVerification"], "required");
    assert_eq!(asked["allowCredentials"], json!([]));
    let answer = browser.present(&page, &key.sign(&asked)).await;
    assert_eq!(heading(&answer), CONSENT);
    let answer = browser.decide(&answer, "allow").await;
    let expected = (
        json!("urn:countersign:acr:2"),
        json!(["hwk", "user", "mfa"]),
    );
    assert_eq!(strength(&site, &answer).await, expected);
    // The same answer is taken once, though the page would still be good.
    let mut thief = site.browser_of(&browser);
    let again = thief.present(&page, &key.sign(&asked)).await;
    assert_eq!((again.status, heading(&again)), (400, "Sign in"));
    // The account page shows it; a second one of the same kind has another name.
    let page = browser.account().await;
    assert!(page.body.contains("Telephone"), "{page:?}");
    let mut shared = Authenticator::new(2, ISSUER);
    shared.is_shared = true;
    let added = browser.add(&mut shared, " <b>Laptop ").await;
    assert_eq!(added.status, 303, "{added:?}");
    let page = browser.account().await;
    assert!(page.body.contains("&#60;b&#62;Laptop"), "{page:?}");
    let mut other = site.browser();
    let page = other.ask(&[]).await;
    let answer = other.present(&page, &shared.sign(&options(&page))).await;
    assert_eq!(strength(&site, &answer).await.1[0], "swk");
    // What is removed signs nobody in.
    let page = browser.account().await;
    let (_, rest) = page.body.split_once("Telephone").unwrap();
    let removal = rest.split("name=\"form\" value=\"").nth(1).unwrap();
    let removal = removal.split('"').next().unwrap();
    assert_eq!(browser.act(removal).await.status, 303);
    let mut third = site.browser();
    let page = third.ask(&[]).await;
    key.counter = 1;
    let refused = third.present(&page, &key.sign(&options(&page))).await;
    assert_eq!((refused.status, heading(&refused)), (400, "Sign in"));
}

async fn a_passkey_is_a_second_factor(engine: Engine) {
    let (site, _clock, mut key) = equipped(Setup::new().on(engine)).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!(heading(&page), "Two-step verification");
    let asked = options(&page);
    assert_eq!(asked["allowCredentials"].as_array().unwrap().len(), 1);
    // Not one of somebody else.
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let mut of_bob = Authenticator::new(3, ISSUER);
    let mut other = site.browser();
    let first = other.ask(&[]).await;
    other.sign_in(&first, "bob", PASSWORD).await;
    other.add(&mut of_bob, "").await;
    let refused = browser.present(&page, &of_bob.sign(&asked)).await;
    assert_eq!(heading(&refused), "Two-step verification");
    assert_eq!(refused.status, 400);
    let page = refused;
    let answer = browser.present(&page, &key.sign(&options(&page))).await;
    let answer = browser.decide(&answer, "allow").await;
    let expected = (
        json!("urn:countersign:acr:2"),
        json!(["pwd", "hwk", "user", "mfa"]),
    );
    assert_eq!(strength(&site, &answer).await, expected);
    // One that counts goes on counting: a copy that is behind is found out.
    for (counter, is_taken) in [(7, true), (7, false), (6, false), (0, false), (8, true)] {
        key.counter = counter;
        let mut browser = site.browser();
        let page = browser.ask(&[]).await;
        let answer = browser.present(&page, &key.sign(&options(&page))).await;
        assert_eq!(answer.status == 303, is_taken, "{counter}: {answer:?}");
    }
}

/// Making a passkey proves it, as the code of an app does that is set up; it is no new authentication.
async fn a_passkey_raises_the_session_that_it_is_added_in(engine: Engine) {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().on(engine).clock(clock.clone())).await;
    let mut browser = site.browser();
    browser.ada().await;
    let before = only_session(&site).await;
    assert_eq!(before.amr, ["pwd"]);
    let mut of_before = site.browser_of(&browser);
    clock.advance(Duration::from_secs(299));
    let mut shared = Authenticator::new(1, ISSUER);
    shared.is_shared = true;
    let codes = codes_of(&browser.add(&mut shared, "").await);
    assert_eq!(codes.len(), 10);
    let after = only_session(&site).await;
    let raised = BrowserSession {
        amr: ["pwd", "swk", "user", "mfa"].map(str::to_owned).to_vec(),
        seen_at: after.seen_at,
        ..before
    };
    assert_eq!(after, raised);
    // Under another cookie.
    assert_eq!(heading(&of_before.ask(&[]).await), "Sign in");
    // What there is by now it may change, as it has proved it.
    let page = browser.account().await;
    let form = form_before(&page, "Make new recovery codes");
    let new = codes_of(&browser.act(&form).await);
    assert!(new.iter().all(|it| !codes.contains(it)));
    let added = browser.add(&mut Authenticator::new(2, ISSUER), "").await;
    assert_eq!(added.status, 303, "{added:?}");
    let expected = ["pwd", "swk", "user", "mfa", "hwk"];
    assert_eq!(only_session(&site).await.amr, expected);
    // Whoever finds the browser open later changes nothing.
    clock.advance(Duration::from_secs(1));
    let page = browser.account().await;
    let asked = browser.act(&form_before(&page, "Add a passkey")).await;
    assert_eq!((asked.status, heading(&asked)), (400, "Sign in"));
}

async fn a_user_who_needs_a_second_factor_makes_a_passkey(engine: Engine) {
    const ENROL: &str = "Set up two-step verification";
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().on(engine).clock(clock.clone())).await;
    require(&site, true).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!((page.status, heading(&page)), (200, ENROL));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'self';"), "{policy}");
    // What is wrong, and what was made for another page, is not taken; the app's secret stays.
    let mut key = Authenticator::new(1, ISSUER);
    let secret = secret_of(&page);
    let of_other_page = key.create(&options(&page));
    let mut page = browser.enrol_passkey(&page, "").await;
    for wrong in ["{}", &of_other_page] {
        page = browser.enrol_passkey(&page, wrong).await;
        assert_eq!((page.status, heading(&page)), (400, ENROL), "{wrong}");
        assert_eq!(page.header("countersign-reason"), Some("passkey"));
    }
    key.verifies = false;
    let unverified = key.create(&options(&page));
    page = browser.enrol_passkey(&page, &unverified).await;
    assert_eq!((page.status, heading(&page)), (400, ENROL));
    assert_eq!(secret_of(&page), secret);
    let store = site.server.store();
    assert!(!store.factors(site.ada).await.unwrap().is_enrolled());
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
    // Somebody else who knows the password has come as far.
    let mut other = site.browser();
    let elsewhere = other.ask(&[]).await;
    let elsewhere = other.sign_in(&elsewhere, "ada", PASSWORD).await;
    assert_eq!(heading(&elsewhere), ENROL);
    let of_other = Authenticator::new(2, ISSUER).create(&options(&elsewhere));
    let code = totp::code(&secret_of(&elsewhere), NOW);
    key.verifies = true;
    let made = key.create(&options(&page));
    let codes = browser.enrol_passkey(&page, &made).await;
    assert_eq!(codes_of(&codes).len(), 10);
    // What is there by now it has to prove; and enrols nothing beside it.
    let late = other.enrol_passkey(&elsewhere, &of_other).await;
    let flow_of_other = flow(&elsewhere);
    let form = [("flow", flow_of_other.as_str()), ("code", &code)];
    let later = other.post("/signin/enrol", &form).await;
    for late in [late, later] {
        assert_eq!(
            (late.status, heading(&late)),
            (400, "Two-step verification")
        );
        assert_eq!(late.header("countersign-reason"), Some("enrolled"));
        assert!(late.header("set-cookie").is_none(), "{late:?}");
    }
    let factors = store.factors(site.ada).await.unwrap();
    assert!(factors.totp.is_none(), "{factors:?}");
    assert_eq!((factors.passkeys.len(), factors.recovery_codes), (1, 10));
    // Its user goes on.
    let flow = flow(&codes);
    let page = browser.post("/signin/continue", &[("flow", &flow)]).await;
    let answer = browser.decide(&page, "allow").await;
    let expected = (
        json!("urn:countersign:acr:2"),
        json!(["pwd", "hwk", "user", "mfa"]),
    );
    assert_eq!(strength(&site, &answer).await, expected);
    let mut third = site.browser();
    let page = third.ask(&[]).await;
    let page = third.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!(heading(&page), "Two-step verification");
    let answer = third.present(&page, &key.sign(&options(&page))).await;
    assert_eq!(strength(&site, &answer).await, expected);
    // The form once more, as its answer was lost: what it has enrolled leads to recovery codes.
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    browser.sign_in(&page, "bob", PASSWORD).await;
    let page = browser.account().await;
    let page = browser.act(&form_before(&page, "Add a passkey")).await;
    let made = Authenticator::new(3, ISSUER).create(&options(&page));
    let form = hidden(&page, "form");
    let form = [("form", form.as_str()), ("passkey", &made)];
    let first = codes_of(&browser.post("/account/forms", &form).await);
    let second = codes_of(&browser.post("/account/forms", &form).await);
    assert!(second.iter().all(|it| !first.contains(it)));
    assert_eq!(store.factors(bob).await.unwrap().passkeys.len(), 1);
}

/// Web Authentication §7.1, §7.2: whatever is wrong with an answer.
#[tokio::test]
async fn an_answer_that_is_not_in_order_signs_nobody_in() {
    let (site, clock, mut key) = equipped(Setup::new()).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    let asked = options(&page);
    let good = key.sign(&asked);
    let of_other_challenge = key.sign(&options(&browser.ask(&[]).await));
    key.origin = "https://evil.example".to_owned();
    let of_other_origin = key.sign(&asked);
    key.origin = ISSUER.to_owned();
    key.verifies = false;
    let unverified = key.sign(&asked);
    key.verifies = true;
    let mut elsewhere = asked.clone();
    elsewhere["rpId"] = json!("evil.example");
    let of_other_party = key.sign(&elsewhere);
    let forged = Authenticator::new(1, ISSUER).sign(&asked);
    let unknown = Authenticator::new(9, ISSUER).sign(&asked);
    let long = "x".repeat(20_000);
    for wrong in [
        &of_other_challenge,
        &of_other_origin,
        &unverified,
        &of_other_party,
        &forged,
        &unknown,
        "",
        "{}",
        &long,
    ] {
        let answer = browser.present(&page, wrong).await;
        assert_eq!(
            (answer.status, heading(&answer)),
            (400, "Sign in"),
            "{wrong}"
        );
    }
    // In another browser.
    let mut other = site.browser();
    other.ask(&[]).await;
    let answer = other.present(&page, &good).await;
    assert_eq!(heading(&answer), "This does not work");
    // A disabled user.
    let now = site.server.clients.clock.now();
    update_user(site.server.store(), site.ada, now, |user| {
        user.disabled = true;
    })
    .await;
    let answer = browser.present(&page, &good).await;
    assert_eq!((answer.status, heading(&answer)), (400, "Sign in"));
    update_user(site.server.store(), site.ada, now, |user| {
        user.disabled = false;
    })
    .await;
    // Too late.
    let page = browser.ask(&[]).await;
    let late = key.sign(&options(&page));
    clock.advance(Duration::from_mins(5));
    let answer = browser.present(&page, &late).await;
    assert_eq!((answer.status, heading(&answer)), (400, "Sign in"));
    // After a reset there is none.
    let page = browser.ask(&[]).await;
    let reset = Change::ResetFactors {
        id: site.ada,
        tokens_die_at: NOW,
    };
    site.server.apply(reset).await;
    let answer = browser.present(&page, &key.sign(&options(&page))).await;
    assert_eq!((answer.status, heading(&answer)), (400, "Sign in"));
}

/// Where the account page is.
fn account() -> String {
    format!("{ISSUER}/account")
}

#[tokio::test]
async fn a_browser_makes_a_passkey_and_signs_in_with_it() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    browser.authenticator().await;
    browser.open(&account()).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Your account").await;
    browser.press("Add a passkey").await;
    browser.reads("Add a passkey").await;
    browser.shows("account-passkey").await;
    browser.fill("#name", "Telephone").await;
    browser.press("Add").await;
    browser.reads("Keep your recovery codes").await;
    browser.shows("codes").await;
    browser.press("I have kept them").await;
    browser.reads("Your account").await;
    browser.shows("account-with-passkey").await;
    // The page to sign in on offers it in the field of the name, and this user takes what is offered.
    browser.press("Sign out").await;
    let used = until("a sign-in with the passkey", async || {
        let factors = site.server.store().factors(site.ada).await.unwrap();
        let passkey = factors.passkeys.into_iter().next()?;
        passkey.last_used_at.is_some().then_some(passkey)
    });
    assert_eq!(used.await.name, "Telephone");
    browser.reads("Your account").await;
}

/// How Ada has signed in to the one session that she has.
async fn methods(site: &Site) -> Vec<String> {
    let now = site.server.clients.clock.now();
    let store = site.server.store();
    let long_ago = Timestamp::from_seconds(0);
    let sessions = store.sessions(site.ada, long_ago, now, 9).await.unwrap();
    let [session] = &sessions[..] else {
        panic!("{} sessions", sessions.len())
    };
    session.amr.clone()
}

/// Where a browser offers no passkey by itself, or its user has another one at hand than those it offers.
#[tokio::test]
async fn a_browser_asks_for_a_passkey_when_its_user_says_so_alone_and_after_a_password() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    let key = browser.authenticator().await;
    browser.open(&account()).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.press("Add a passkey").await;
    browser.reads("Add a passkey").await;
    browser.press("Add").await;
    browser.reads("Keep your recovery codes").await;
    browser.press("I have kept them").await;
    browser.reads("Your account").await;
    assert_eq!(methods(&site).await, ["pwd", "hwk", "user", "mfa"]);

    // Alone; at the second try, for at the first the key is not there.
    let passkeys = browser.take_passkeys(&key).await;
    assert_eq!(passkeys.as_array().unwrap().len(), 1);
    browser.press("Sign out").await;
    browser.reads("Sign in").await;
    browser.press("Use a passkey").await;
    let failed = "That did not work. Try again, or sign in another way.";
    browser.says(".passkey [role=alert]", failed).await;
    browser.shows("sign-in-passkey-failed").await;
    browser.give_passkeys(&key, &passkeys).await;
    browser.press("Use a passkey").await;
    browser.reads("Your account").await;
    assert_eq!(methods(&site).await, ["hwk", "user", "mfa"]);

    // After the password.
    let passkeys = browser.take_passkeys(&key).await;
    browser.press("Sign out").await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Two-step verification").await;
    browser.shows("factor-passkey").await;
    browser.press("Use a passkey").await;
    browser.says(".passkey [role=alert]", failed).await;
    browser.give_passkeys(&key, &passkeys).await;
    browser.press("Use a passkey").await;
    browser.reads("Your account").await;
    assert_eq!(methods(&site).await, ["pwd", "hwk", "user", "mfa"]);
}

#[tokio::test]
async fn a_browser_shows_what_second_factors_take() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    let now = || site.server.clients.clock.now();
    require(&site, true).await;
    browser.open(&account()).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Set up two-step verification").await;
    browser.shows("enrol").await;
    let secret = totp::secret(&browser.text("code.secret").await);
    browser
        .fill("#code", &totp::wrong_code(&secret, now()))
        .await;
    browser.press("Turn on").await;
    browser
        .says("#problem", "The code is wrong, or was used before.")
        .await;
    browser.shows("enrol-wrong-code").await;
    browser.fill("#code", &totp::code(&secret, now())).await;
    browser.press("Turn on").await;
    browser.reads("Keep your recovery codes").await;
    browser.shows("codes-of-required").await;
    let recovery = browser.text(".codes code").await;
    browser.press("I have kept them").await;
    browser.reads("Your account").await;
    browser.shows("account-with-app").await;
    browser.press("Sign out").await;
    browser.reads("Sign in").await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Two-step verification").await;
    browser.shows("factor").await;
    browser.fill("#code", "000000 0").await;
    browser.press("Verify").await;
    browser
        .says("#problem", "The code is wrong, or was used before.")
        .await;
    browser.shows("factor-wrong-code").await;
    browser.fill("#code", &recovery).await;
    browser.press("Verify").await;
    browser.reads("Your account").await;
}

#[tokio::test]
async fn a_browser_makes_the_passkey_that_its_user_needs() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    browser.authenticator().await;
    require(&site, true).await;
    browser.open(&account()).await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Set up two-step verification").await;
    browser.shows("enrol-passkey").await;
    browser.press("Add a passkey").await;
    browser.reads("Keep your recovery codes").await;
    browser.press("I have kept them").await;
    browser.reads("Your account").await;
    assert_eq!(methods(&site).await, ["pwd", "hwk", "user", "mfa"]);
}

#[tokio::test]
async fn a_browser_shows_how_a_user_sets_an_app_up_who_need_not() {
    let site = Site::start().await;
    let browser = Chromium::start(&[("issuer.example", site.server.public)]).await;
    browser.open(&account()).await;
    browser.reads("Sign in").await;
    browser.shows("sign-in-account").await;
    browser.sign_in("ada", PASSWORD).await;
    browser.reads("Your account").await;
    browser.press("Set up").await;
    browser.reads("Set up two-step verification").await;
    browser.shows("account-enrol").await;
    browser.fill("#code", "123").await;
    browser.press("Turn on").await;
    browser
        .says("#problem", "The code is wrong, or was used before.")
        .await;
    let secret = totp::secret(&browser.text("code.secret").await);
    let now = site.server.clients.clock.now();
    browser.fill("#code", &totp::code(&secret, now)).await;
    browser.press("Turn on").await;
    browser.reads("Keep your recovery codes").await;
}
