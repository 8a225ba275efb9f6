//! The step after the password: one-time passwords (RFC 6238), recovery codes, and who asks for them.

use std::time::Duration;

use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock as _, ManualClock, Timestamp},
    domain::{
        browser_session::BrowserSession,
        change::{Change, EventType},
        event::EventQuery,
        factor::Factors,
    },
    identity::factor::MOST_WRONG_CODES_PER_HOUR,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Browser, Site, account::form_before, flow, heading, hidden, of_browsers, returned};
use crate::support::{
    database::Engine,
    server::{Answer, Setup, answer},
    sign_in::{PASSWORD, claims, update_user},
    totp,
};

on_both_engines! {
    a_user_who_needs_a_second_factor_enrols_one_before_anything_is_issued,
    a_code_is_taken_once_and_a_recovery_code_too,
    second_factors_are_changed_at_the_account_page,
    an_old_session_enrols_nothing_and_is_raised_by_what_is_proved_in_it,
    a_form_that_enrols_and_is_sent_twice_leads_to_recovery_codes,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const VERIFY: &str = "Two-step verification";
const ENROL: &str = "Set up two-step verification";
const CONSENT: &str = "Allow Field &#60;b&#62;Notes to use your account?";

/// A site whose clock stands still, and Ada's app.
struct Secured {
    site: Site,
    clock: ManualClock,
    secret: Vec<u8>,
    recovery_codes: Vec<String>,
}

impl Secured {
    async fn start() -> Self {
        Self::of(Setup::new()).await
    }

    /// Where Ada has enrolled an app, which nobody requires of her.
    async fn of(setup: Setup) -> Self {
        let clock = ManualClock::new(NOW);
        let site = Site::of(setup.clock(clock.clone())).await;
        require(&site, true).await;
        let mut browser = site.browser();
        let page = browser.ask(&[]).await;
        let page = browser.sign_in(&page, "ada", PASSWORD).await;
        let secret = secret_of(&page);
        let code = totp::code(&secret, clock.now());
        let page = browser.enrol(&page, &code).await;
        let recovery_codes = codes_of(&page);
        require(&site, false).await;
        clock.advance(Duration::from_mins(1));
        Self {
            site,
            clock,
            secret,
            recovery_codes,
        }
    }

    fn code(&self) -> String {
        totp::code(&self.secret, self.clock.now())
    }

    fn wrong(&self) -> String {
        totp::wrong_code(&self.secret, self.clock.now())
    }

    /// The next step of codes.
    fn step(&self) {
        self.clock.advance(Duration::from_secs(30));
    }
}

/// Says whether Ada needs a second factor.
pub(super) async fn require(site: &Site, required: bool) {
    let now = site.server.clients.clock.now();
    update_user(site.server.store(), site.ada, now, |user| {
        user.second_factor_required = required;
    })
    .await;
}

impl Browser<'_> {
    async fn verify(&mut self, page: &Answer, code: &str) -> Answer {
        let flow = flow(page);
        let form = [("flow", flow.as_str()), ("code", code)];
        self.post("/signin/factor", &form).await
    }

    async fn enrol(&mut self, page: &Answer, code: &str) -> Answer {
        let flow = flow(page);
        let form = [("flow", flow.as_str()), ("code", code)];
        self.post("/signin/enrol", &form).await
    }

    async fn go_on(&mut self, page: &Answer) -> Answer {
        let flow = flow(page);
        self.post("/signin/continue", &[("flow", &flow)]).await
    }

    async fn post_all(&mut self, form: &[(&str, String)]) -> Answer {
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, &**value)).collect();
        self.post("/account/forms", &form).await
    }

    /// The page after Ada's password.
    async fn after_password(&mut self, request: &[(&str, &str)]) -> Answer {
        let page = self.ask(request).await;
        self.sign_in(&page, "ada", PASSWORD).await
    }
}

/// The key that a page shows for an app.
pub(super) fn secret_of(page: &Answer) -> Vec<u8> {
    let (_, rest) = page.body.split_once("<code class=\"secret\">").unwrap();
    totp::secret(rest.split('<').next().unwrap())
}

/// The recovery codes that a page shows.
pub(super) fn codes_of(page: &Answer) -> Vec<String> {
    assert_eq!(heading(page), "Keep your recovery codes", "{page:?}");
    let codes = page.body.split("<li><code>").skip(1);
    let codes = codes.map(|rest| rest.split('<').next().unwrap().to_owned());
    codes.collect()
}

/// What an access token says of how its user has signed in.
async fn strength(site: &Site, answer: &Answer) -> (Value, Value) {
    let tokens = site.exchanged(&returned(answer)["code"]).await;
    let claims = claims(&tokens.access_token());
    (claims["acr"].clone(), claims["amr"].clone())
}

fn both() -> (Value, Value) {
    let amr = json!(["pwd", "otp", "mfa"]);
    (json!("urn:countersign:acr:2"), amr)
}

fn over(answer: &Answer) {
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(heading(answer), "This does not work");
    assert!(answer.header("set-cookie").is_none(), "{answer:?}");
}

async fn a_user_who_needs_a_second_factor_enrols_one_before_anything_is_issued(engine: Engine) {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().on(engine).clock(clock.clone())).await;
    require(&site, true).await;
    let mut browser = site.browser();
    let page = browser.after_password(&[]).await;
    assert_eq!((page.status, heading(&page)), (200, ENROL));
    // There is no session yet.
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
    let secret = secret_of(&page);
    assert_eq!(secret.len(), 20);
    assert!(page.body.contains("otpauth://totp/"), "{page:?}");
    assert!(page.body.contains("<svg"), "{page:?}");
    let wrong = totp::wrong_code(&secret, NOW);
    let again = browser.enrol(&page, &wrong).await;
    assert_eq!((again.status, heading(&again)), (400, ENROL));
    assert_eq!(secret_of(&again), secret);
    assert!(
        site.server
            .store()
            .factors(site.ada)
            .await
            .unwrap()
            .totp
            .is_none()
    );
    let code = totp::code(&secret, NOW);
    let page = browser.enrol(&again, &code).await;
    let codes = codes_of(&page);
    assert_eq!(codes.len(), 10);
    let page = browser.go_on(&page).await;
    assert_eq!(heading(&page), CONSENT);
    let answer = browser.decide(&page, "allow").await;
    assert_eq!(strength(&site, &answer).await, both());
    let query = EventQuery {
        subject: Some(site.ada.to_string()),
        limit: 99,
        ..EventQuery::default()
    };
    let events = site.server.store().events(&query).await.unwrap();
    let ada = format!("user:{}", site.ada);
    let by_ada = events.iter().filter(|event| event.cause.actor == ada);
    let kinds: Vec<&str> = by_ada.map(|event| event.kind.as_str()).collect();
    let expected = [
        EventType::TotpEnrolled,
        EventType::RecoveryCodesMade,
        EventType::ConsentGiven,
    ];
    assert_eq!(kinds, expected.map(EventType::as_str));
}

/// As by a double click, or where the first answer was lost: its recovery codes nobody has seen.
async fn a_form_that_enrols_and_is_sent_twice_leads_to_recovery_codes(engine: Engine) {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().on(engine).clock(clock.clone())).await;
    require(&site, true).await;
    let mut browser = site.browser();
    let page = browser.after_password(&[]).await;
    let secret = secret_of(&page);
    let code = totp::code(&secret, NOW);
    // Its answer, and with it the cookie, is lost.
    let lost = codes_of(&site.browser_of(&browser).enrol(&page, &code).await);
    let asked = browser.enrol(&page, &code).await;
    assert_eq!((asked.status, heading(&asked)), (400, VERIFY));
    assert_eq!(asked.header("countersign-reason"), Some("enrolled"));
    assert!(asked.header("set-cookie").is_none(), "{asked:?}");
    // What was enrolled is proved, and not by the code that has enrolled it (RFC 6238 §5.2).
    let asked = browser.verify(&asked, &code).await;
    assert_eq!((asked.status, heading(&asked)), (400, VERIFY));
    clock.advance(Duration::from_secs(30));
    let code = totp::code(&secret, clock.now());
    let page = browser.verify(&asked, &code).await;
    let codes = codes_of(&page);
    assert!(codes.iter().all(|it| !lost.contains(it)));
    let page = browser.go_on(&page).await;
    assert_eq!(heading(&page), CONSENT);
    // Later nothing is shown any more: a code that is proved signs in.
    let mut other = site.browser();
    let page = other.after_password(&[]).await;
    assert_eq!(heading(&other.verify(&page, &codes[0]).await), CONSENT);

    // At the account page.
    require(&site, false).await;
    let bob = site.server.user("bob").await;
    site.set_password(bob, PASSWORD).await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    browser.sign_in(&page, "bob", PASSWORD).await;
    let mut of_before = site.browser_of(&browser);
    let page = browser.account().await;
    let page = browser.act(&form_before(&page, "Set up<")).await;
    let code = totp::code(&secret_of(&page), clock.now());
    let form = [("form", hidden(&page, "form")), ("code", code)];
    let first = codes_of(&browser.post_all(&form).await);
    let second = codes_of(&browser.post_all(&form).await);
    assert!(second.iter().all(|it| !first.contains(it)));
    // Not for one whose session has not proved it.
    let answer = of_before.post_all(&form).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(heading(&of_before.account().await), "Sign in");
    // Nor after a moment.
    clock.advance(Duration::from_mins(5));
    let asked = browser.post_all(&form).await;
    assert_eq!((asked.status, heading(&asked)), (400, "Sign in"));
}

async fn a_code_is_taken_once_and_a_recovery_code_too(engine: Engine) {
    let site = Secured::of(Setup::new().on(engine)).await;
    let mut browser = site.site.browser();
    let page = browser.after_password(&[]).await;
    assert_eq!((page.status, heading(&page)), (200, VERIFY));
    let wrong = browser.verify(&page, &site.wrong()).await;
    assert_eq!((wrong.status, heading(&wrong)), (400, VERIFY));
    // People write spaces into it.
    let code = site.code();
    let spaced = format!("{} {}", &code[..3], &code[3..]);
    let answer = browser.verify(&wrong, &spaced).await;
    assert_eq!(heading(&answer), CONSENT);
    let answer = browser.decide(&answer, "allow").await;
    assert_eq!(strength(&site.site, &answer).await, both());

    let mut other = site.site.browser();
    let page = other.after_password(&[]).await;
    let replayed = other.verify(&page, &code).await;
    assert_eq!((replayed.status, heading(&replayed)), (400, VERIFY));
    let recovery = &site.recovery_codes[3];
    let answer = other.verify(&page, &recovery.to_uppercase()).await;
    assert_eq!(strength(&site.site, &answer).await, both());
    let mut third = site.site.browser();
    let page = third.after_password(&[]).await;
    let replayed = third.verify(&page, recovery).await;
    assert_eq!((replayed.status, heading(&replayed)), (400, VERIFY));
    site.step();
    returned(&third.verify(&page, &site.code()).await);
}

/// No page leads on without what the one before it asks for, and nothing that was proved counts for
/// somebody else, or for long.
#[tokio::test]
async fn no_step_can_be_left_out() {
    let site = Secured::start().await;
    let mut browser = site.site.browser();
    let first = browser.ask(&[]).await;
    // Before the password.
    over(&browser.verify(&first, &site.code()).await);
    over(&browser.enrol(&first, &site.code()).await);
    assert_eq!(heading(&browser.go_on(&first).await), "Sign in");
    let page = browser.sign_in(&first, "ada", PASSWORD).await;
    assert_eq!(heading(&page), VERIFY);
    assert!(page.header("set-cookie").is_none(), "{page:?}");
    // Before the second factor.
    assert_eq!(heading(&browser.go_on(&page).await), "Sign in");
    assert_eq!(heading(&browser.decide(&page, "allow").await), "Sign in");
    over(&browser.enrol(&page, &site.code()).await);
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
    let silent = browser.ask(&[("prompt", "none")]).await;
    assert_eq!(returned(&silent)["error"], "login_required");
    for code in ["", "000000 ", "x", &"1".repeat(5000)] {
        let answer = browser.verify(&page, code).await;
        assert_eq!((answer.status, heading(&answer)), (400, VERIFY), "{code}");
    }
    // In another browser.
    let mut other = site.site.browser();
    other.ask(&[]).await;
    over(&other.verify(&page, &site.code()).await);
    // From a page of another site.
    let flow = flow(&page);
    let code = site.code();
    let form = [("flow", flow.as_str()), ("code", &code)];
    let request = browser.request(Method::POST, "/signin/factor").form(&form);
    over(
        &browser
            .send(request.header("sec-fetch-site", "cross-site"))
            .await,
    );
    // Too late.
    site.clock.advance(Duration::from_mins(10));
    over(&browser.verify(&page, &site.code()).await);
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
}

/// What was proved counts for the user as it was then.
#[tokio::test]
async fn whoever_changes_meanwhile_has_proved_nothing() {
    let site = Secured::start().await;
    let ada = site.site.ada;
    let store = site.site.server.store();
    let mut browser = site.site.browser();
    let page = browser.after_password(&[]).await;
    site.site
        .server
        .apply(Change::EndUserSessions {
            id: ada,
            tokens_die_at: NOW,
        })
        .await;
    over(&browser.verify(&page, &site.code()).await);
    let page = browser.after_password(&[]).await;
    update_user(store, ada, NOW, |user| user.disabled = true).await;
    over(&browser.verify(&page, &site.code()).await);
    update_user(store, ada, NOW, |user| user.disabled = false).await;
    let page = browser.after_password(&[]).await;
    site.site
        .server
        .apply(Change::ResetFactors {
            id: ada,
            tokens_die_at: NOW,
        })
        .await;
    over(&browser.verify(&page, &site.code()).await);
    // Now a password is enough again.
    site.clock.advance(Duration::from_secs(5));
    assert_eq!(heading(&browser.after_password(&[]).await), CONSENT);
}

/// Six digits are guessed, unless somebody counts.
#[tokio::test]
async fn codes_are_limited_by_user_and_place() {
    let setup = Setup::new()
        .set("limits.password_failures_per_minute", "2")
        .set("public.trusted_proxies", "127.0.0.1/32");
    let site = Secured::of(setup).await;
    let at = async |browser: &mut Browser<'_>, page: &Answer, address: &str, code: &str| {
        let flow = flow(page);
        let form = [("flow", flow.as_str()), ("code", code)];
        let request = browser.request(Method::POST, "/signin/factor").form(&form);
        let request = request.header("x-forwarded-for", address);
        browser.send(request).await
    };
    let mut browser = site.site.browser();
    let page = browser.after_password(&[]).await;
    for _ in 0..2 {
        let wrong = at(&mut browser, &page, "192.0.2.1", &site.wrong()).await;
        assert_eq!(wrong.status, 400, "{wrong:?}");
    }
    let limited = at(&mut browser, &page, "192.0.2.1", &site.code()).await;
    assert_eq!((limited.status, heading(&limited)), (429, VERIFY));
    // Nobody is locked out elsewhere, and what was not looked at was not used.
    let right = at(&mut browser, &page, "192.0.2.2", &site.code()).await;
    assert_eq!(heading(&right), CONSENT);
    // Where nobody knows the place, there is a limit, too.
    let mut other = site.site.browser();
    let page = other.after_password(&[]).await;
    for _ in 0..2 {
        assert_eq!(other.verify(&page, &site.wrong()).await.status, 400);
    }
    assert_eq!(other.verify(&page, &site.wrong()).await.status, 429);
    site.clock.advance(Duration::from_mins(1));
    let right = at(&mut other, &page, "192.0.2.1", &site.code()).await;
    assert_eq!(heading(&right), CONSENT);
}

/// Whoever has the password and many networks guesses no more codes than that.
#[tokio::test]
async fn codes_of_an_app_are_limited_by_user_wherever_they_come_from() {
    let setup = Setup::new().set("public.trusted_proxies", "127.0.0.1/32");
    let site = Secured::of(setup).await;
    let mut browser = site.site.browser();
    let page = browser.after_password(&[]).await;
    let mut tried = 0;
    let mut attempt = async |code: &str| {
        tried += 1;
        let flow = flow(&page);
        let form = [("flow", flow.as_str()), ("code", code)];
        let request = browser.request(Method::POST, "/signin/factor").form(&form);
        let request = request.header("x-forwarded-for", format!("192.0.2.{tried}"));
        browser.send(request).await
    };
    for _ in 0..MOST_WRONG_CODES_PER_HOUR {
        assert_eq!(attempt(&site.wrong()).await.status, 400);
    }
    let limited = attempt(&site.code()).await;
    assert_eq!((limited.status, heading(&limited)), (429, VERIFY));
    // Recovery codes are not guessed: the user gets in by one.
    let recovered = attempt(&site.recovery_codes[0]).await;
    assert_eq!(heading(&recovered), CONSENT);
}

#[tokio::test]
async fn a_client_may_require_a_second_factor() {
    let strict = ClientMetadata {
        first_party: true,
        second_factor_required: true,
        ..of_browsers()
    };
    let site = Secured::of(Setup::new().client("strict", strict)).await;
    let site_of = &site.site;
    let own = [("client_id", "strict")];
    // A session of one factor, from before Ada had a second one.
    let bob = site_of.server.user("bob").await;
    site_of.set_password(bob, PASSWORD).await;
    let mut browser = site_of.browser();
    let page = browser.ask(&[]).await;
    let page = browser.sign_in(&page, "bob", PASSWORD).await;
    returned(&browser.decide(&page, "allow").await);
    // Bob has none, and is led to enrol one; nobody else asks for it.
    let silent = [&own[..], &[("prompt", "none")]].concat();
    let refused = browser.ask(&silent).await;
    assert_eq!(returned(&refused)["error"], "login_required");
    let page = browser.ask(&own).await;
    assert_eq!(heading(&page), ENROL);
    returned(&browser.ask(&[]).await);
    let secret = secret_of(&page);
    let code = totp::code(&secret, site.clock.now());
    let page = browser.enrol(&page, &code).await;
    returned(&browser.go_on(&page).await);
    // From now on the session is good for it.
    returned(&browser.ask(&silent).await);
    assert_eq!(strength(site_of, &browser.ask(&[]).await).await, both());
    // In another browser Bob is asked as everybody is who has a second factor.
    site.step();
    let mut other = site_of.browser();
    let page = other.ask(&own).await;
    let page = other.sign_in(&page, "bob", PASSWORD).await;
    assert_eq!(heading(&page), VERIFY);
    let code = totp::code(&secret, site.clock.now());
    returned(&other.verify(&page, &code).await);
}

/// RFC 9700 §4.14.2: what the policy says by now decides, not what it said at the sign-in.
#[tokio::test]
async fn whoever_signed_in_with_one_factor_is_not_refreshed_once_two_are_wanted() {
    let site = Site::of(Setup::new().clock(ManualClock::new(NOW))).await;
    let code = site.browser().code().await;
    let token = site.exchanged(&code).await.refresh_token();
    let refresh = async |token: &str| {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "notes"),
            ("refresh_token", token),
        ];
        answer(site.server.token_request().form(&form)).await
    };
    let token = refresh(&token).await.refresh_token();
    require(&site, true).await;
    let refused = refresh(&token).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(refused.json()["error"], "invalid_grant");
    let told = "the user has to prove a second factor";
    assert_eq!(refused.json()["error_description"], told);
    // Nothing has ended by that.
    require(&site, false).await;
    assert_eq!(refresh(&token).await.status, 200);
}

/// `OpenID` Connect Core §3.1.2.1, §5.5.1.1: `acr_values` are voluntary.
#[tokio::test]
async fn a_client_may_ask_for_a_second_factor() {
    const TWO: &str = "urn:countersign:acr:2";
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    browser.code().await;
    let asks = |values| [("acr_values", values)];
    let one = (json!("urn:countersign:acr:1"), json!(["pwd"]));
    // Ada has none.
    assert_eq!(strength(&site, &browser.ask(&asks(TWO)).await).await, one);
    // She enrols one in another browser; the session of this one stays as it is.
    require(&site, true).await;
    let mut other = site.browser();
    let page = other.after_password(&[]).await;
    let secret = secret_of(&page);
    let page = other.enrol(&page, &totp::code(&secret, clock.now())).await;
    codes_of(&page);
    require(&site, false).await;
    for values in [
        "urn:countersign:acr:1",
        "urn:countersign:acr:1 urn:countersign:acr:2",
        "whatever",
    ] {
        let answer = browser.ask(&asks(values)).await;
        assert_eq!(strength(&site, &answer).await, one, "{values}");
    }
    let silent = [("acr_values", TWO), ("prompt", "none")];
    assert_eq!(strength(&site, &browser.ask(&silent).await).await, one);
    clock.advance(Duration::from_secs(30));
    for values in [TWO, "whatever urn:countersign:acr:2 urn:countersign:acr:1"] {
        let page = browser.ask(&asks(values)).await;
        assert_eq!(heading(&page), VERIFY, "{values}");
    }
    let page = browser.ask(&asks(TWO)).await;
    let code = totp::code(&secret, clock.now());
    let answer = browser.verify(&page, &code).await;
    assert_eq!(strength(&site, &answer).await, both());
    assert_eq!(strength(&site, &browser.ask(&silent).await).await, both());
}

/// Sets an app up at the account page, where somebody has just signed in.
async fn set_up(browser: &mut Browser<'_>, now: Timestamp) -> (Vec<u8>, Vec<String>) {
    let page = browser.account().await;
    let form = form_before(&page, "Set up<");
    let page = browser.act(&form).await;
    assert_eq!((page.status, heading(&page)), (200, ENROL));
    let secret = secret_of(&page);
    let wrong = [
        ("form", hidden(&page, "form")),
        ("code", totp::wrong_code(&secret, now)),
    ];
    let again = browser.post_all(&wrong).await;
    assert_eq!((again.status, heading(&again)), (400, ENROL));
    assert_eq!(secret_of(&again), secret);
    let right = [
        ("form", hidden(&again, "form")),
        ("code", totp::code(&secret, now)),
    ];
    let page = browser.post_all(&right).await;
    (secret, codes_of(&page))
}

async fn second_factors_are_changed_at_the_account_page(engine: Engine) {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().on(engine).clock(clock.clone())).await;
    let mut browser = site.browser();
    browser.ada().await;
    let (secret, codes) = set_up(&mut browser, NOW).await;
    assert_eq!(codes.len(), 10);
    let page = browser.account().await;
    assert!(page.body.contains("10 recovery codes left"), "{page:?}");
    assert!(page.body.contains("You set up an app"), "{page:?}");
    // Another browser is asked for it, and uses up a recovery code.
    let mut other = site.browser();
    let page = other.after_password(&[]).await;
    assert_eq!(heading(&page), VERIFY);
    assert_eq!(heading(&other.verify(&page, &codes[0]).await), CONSENT);
    let page = browser.account().await;
    assert!(page.body.contains("9 recovery codes left"), "{page:?}");
    // New ones replace those.
    let form = form_before(&page, "Make new recovery codes");
    let new = codes_of(&browser.act(&form).await);
    assert!(new.iter().all(|code| !codes.contains(code)));
    // Whoever finds the browser open later changes nothing.
    clock.advance(Duration::from_mins(5));
    let page = browser.account().await;
    for act in ["Make new recovery codes", "Turn off"] {
        let page = browser.act(&form_before(&page, act)).await;
        assert_eq!((page.status, heading(&page)), (400, "Sign in"), "{act}");
        assert!(page.body.contains("sign in once more"), "{page:?}");
    }
    let asked = browser.act(&form_before(&page, "Turn off")).await;
    let page = browser.sign_in(&asked, "ada", PASSWORD).await;
    assert_eq!(heading(&page), VERIFY);
    let code = totp::code(&secret, Timestamp::from_seconds(NOW.seconds() + 300));
    let answer = browser.verify(&page, &code).await;
    assert_eq!(answer.header("location"), Some("/account"));
    // An operator may keep her from it, also where the page is older than that.
    let page = browser.account().await;
    require(&site, true).await;
    let refused = browser.act(&form_before(&page, "Turn off")).await;
    assert_eq!((refused.status, heading(&refused)), (400, "Your account"));
    assert!(refused.body.contains("your last one"), "{refused:?}");
    assert!(!refused.body.contains("Turn off"), "{refused:?}");
    require(&site, false).await;
    let answer = browser.act(&form_before(&page, "Turn off")).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    let factors = site.server.store().factors(site.ada).await.unwrap();
    assert_eq!(factors, Factors::default());
    let page = browser.account().await;
    assert!(page.body.contains("A password alone"), "{page:?}");
    let gone = browser.act(&form_before(&page, "Set up<")).await;
    assert_eq!(heading(&gone), ENROL);
}

/// Whoever finds a browser open gets no further by pressing what is there: no act at the account page,
/// and no second factor alone, is a new authentication.
#[tokio::test]
async fn signing_out_everywhere_else_is_no_authentication() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let mut browser = site.browser();
    browser.ada().await;
    let before = only_session(&site).await;
    // Waits for whoever signs in.
    clock.advance(Duration::from_secs(1));
    let parked = browser.ask(&[("prompt", "login")]).await;
    assert_eq!(heading(&parked), "Sign in");
    clock.advance(Duration::from_mins(5));
    let page = browser.account().await;
    let answer = browser
        .act(&form_before(&page, "Sign out everywhere else"))
        .await;
    assert_eq!(answer.status, 303, "{answer:?}");
    let after = only_session(&site).await;
    assert_ne!(after.id, before.id);
    assert_eq!(after.auth_time, before.auth_time);
    assert_eq!(after.expires_at, before.expires_at);
    let page = browser.account().await;
    let asked = browser.act(&form_before(&page, "Set up<")).await;
    assert_eq!((asked.status, heading(&asked)), (400, "Sign in"));
    assert_eq!(heading(&browser.go_on(&parked).await), "Sign in");
    // Nor is the password that is changed: it was not asked for a second factor.
    let form = [
        ("form", form_before(&page, "Current password")),
        ("current", PASSWORD.to_owned()),
        ("new", "a brand new pass phrase".to_owned()),
        ("again", "a brand new pass phrase".to_owned()),
    ];
    let changed = browser.post_all(&form).await;
    assert_eq!(changed.status, 303, "{changed:?}");
    let after = only_session(&site).await;
    assert_eq!(after.auth_time, before.auth_time);
    assert_eq!(after.expires_at, before.expires_at);
}

/// Ada's session.
pub(super) async fn only_session(site: &Site) -> BrowserSession {
    let store = site.server.store();
    let reading = store.sessions(site.ada, Timestamp::from_seconds(0), NOW, 9);
    let mut sessions = reading.await.unwrap();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions.remove(0)
}

async fn an_old_session_enrols_nothing_and_is_raised_by_what_is_proved_in_it(engine: Engine) {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().on(engine).clock(clock.clone())).await;
    let mut browser = site.browser();
    browser.ada().await;
    clock.advance(Duration::from_mins(5));
    require(&site, true).await;
    // The password comes first.
    let page = browser.ask(&[]).await;
    assert_eq!(heading(&page), "Sign in");
    assert!(page.body.contains("sign in once more"), "{page:?}");
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    assert_eq!(heading(&page), ENROL);
    // The session of this browser is as it was. Somebody else finds it so, a moment after a password.
    let mut other = site.browser();
    require(&site, false).await;
    other.ada().await;
    require(&site, true).await;
    let raising = other.ask(&[]).await;
    assert_eq!(heading(&raising), ENROL);
    let secret = secret_of(&raising);
    // What waits for a code dies with the session.
    let store = site.server.store();
    let reading = store.sessions(site.ada, Timestamp::from_seconds(0), clock.now(), 9);
    let latest = reading.await.unwrap().remove(0);
    site.server
        .apply(Change::EndSession {
            session: latest.id,
            tokens_die_at: clock.now(),
        })
        .await;
    over(
        &other
            .enrol(&raising, &totp::code(&secret, clock.now()))
            .await,
    );
    let factors = site.server.store().factors(site.ada).await.unwrap();
    assert_eq!(factors, Factors::default());
    // The first browser enrols what it was asked to: that is an authentication, of now.
    require(&site, false).await;
    let mut third = site.browser();
    third.ada().await;
    require(&site, true).await;
    let signed_in_at = clock.now();
    let secret = secret_of(&page);
    let code = totp::code(&secret, clock.now());
    codes_of(&browser.enrol(&page, &code).await);
    // A code alone is none: it raises the session that is there.
    clock.advance(Duration::from_secs(30));
    let page = third.ask(&[]).await;
    assert_eq!(heading(&page), VERIFY);
    let code = totp::code(&secret, clock.now());
    assert_eq!(heading(&third.verify(&page, &code).await), CONSENT);
    let reading = store.sessions(site.ada, Timestamp::from_seconds(0), clock.now(), 9);
    let sessions = reading.await.unwrap();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    for session in sessions {
        assert_eq!(session.auth_time, signed_in_at);
        assert!(session.amr.iter().any(|method| method == "otp"));
    }
}

/// Where a second factor is there, nobody changes it who has not proved it.
#[tokio::test]
async fn who_signed_in_before_there_was_a_second_factor_does_not_change_it() {
    let clock = ManualClock::new(NOW);
    let site = Site::of(Setup::new().clock(clock.clone())).await;
    let (mut thief, mut ada) = (site.browser(), site.browser());
    thief.ada().await;
    ada.ada().await;
    set_up(&mut ada, NOW).await;
    // Hers has proved it by that.
    let page = ada.account().await;
    codes_of(
        &ada.act(&form_before(&page, "Make new recovery codes"))
            .await,
    );
    let page = thief.account().await;
    for act in ["Make new recovery codes", "Turn off"] {
        let asked = thief.act(&form_before(&page, act)).await;
        assert_eq!((asked.status, heading(&asked)), (400, "Sign in"), "{act}");
        let page = thief.sign_in(&asked, "ada", PASSWORD).await;
        assert_eq!(heading(&page), VERIFY);
    }
}
