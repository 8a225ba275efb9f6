//! Sessions of browsers: how long they last, what is kept of their cookies, and whose they are.

use std::time::Duration;

use countersign::{
    clock::{ManualClock, Timestamp},
    domain::secret::SecretHash,
};
use countersign_verifier::base64url;

use super::{Browser, Site, heading, returned};
use crate::support::{
    database::{Database, Engine},
    server::Setup,
    sign_in::PASSWORD,
};

on_both_engines! {
    a_session_that_is_not_used_ends,
    a_session_that_is_used_ends_when_it_is_old,
    the_database_has_a_hash_of_the_cookie_and_no_more,
    session_fixation,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const SESSION: &str = "__Host-countersign";

/// A site whose sessions last for an hour, and for ten minutes where nobody uses them.
async fn short_lived(engine: Engine) -> (Site, ManualClock) {
    let clock = ManualClock::new(NOW);
    let setup = Setup::new()
        .on(engine)
        .clock(clock.clone())
        .set("sessions.idle_seconds", "600")
        .set("sessions.lifetime_seconds", "3600");
    (Site::of(setup).await, clock)
}

/// Who is told at the account page to be signed in; none where a page to sign in on is.
async fn who(browser: &mut Browser<'_>) -> Option<String> {
    let page = browser.account().await;
    match heading(&page) {
        "Your account" => {
            let (_, rest) = page.body.split_once("<strong>").unwrap();
            Some(rest.split('<').next().unwrap().to_owned())
        }
        "Sign in" => None,
        other => panic!("{other}"),
    }
}

/// Nobody is signed in there, as apps are told, too.
async fn is_out(browser: &mut Browser<'_>) {
    assert_eq!(who(browser).await, None);
    let silent = returned(&browser.ask(&[("prompt", "none")]).await);
    assert_eq!(silent["error"], "login_required");
    assert_eq!(heading(&browser.ask(&[]).await), "Sign in");
}

async fn a_session_that_is_not_used_ends(engine: Engine) {
    let (site, clock) = short_lived(engine).await;
    let (mut browser, mut app) = (site.browser(), site.browser());
    browser.ada().await;
    app.code().await;
    // Whatever it is used for keeps it alive, to the last second.
    for _ in 0..3 {
        site.server.pass(&clock, Duration::from_secs(599)).await;
        assert_eq!(who(&mut browser).await.as_deref(), Some("ada"));
        let silent = returned(&app.ask(&[("prompt", "none")]).await);
        assert!(silent.contains_key("code"), "{silent:?}");
    }
    site.server.pass(&clock, Duration::from_mins(10)).await;
    is_out(&mut browser).await;
    is_out(&mut app).await;
    // Nor does it come back to life.
    is_out(&mut browser).await;
}

async fn a_session_that_is_used_ends_when_it_is_old(engine: Engine) {
    let (site, clock) = short_lived(engine).await;
    let mut browser = site.browser();
    browser.ada().await;
    for _ in 0..7 {
        site.server.pass(&clock, Duration::from_secs(500)).await;
        assert_eq!(who(&mut browser).await.as_deref(), Some("ada"));
    }
    site.server.pass(&clock, Duration::from_secs(99)).await;
    assert_eq!(who(&mut browser).await.as_deref(), Some("ada"));
    site.server.pass(&clock, Duration::from_secs(1)).await;
    is_out(&mut browser).await;
    // Whoever signs in has as long again.
    browser.ada().await;
    site.server.pass(&clock, Duration::from_secs(599)).await;
    assert_eq!(who(&mut browser).await.as_deref(), Some("ada"));
}

/// Whoever reads the database is signed in nowhere.
async fn the_database_has_a_hash_of_the_cookie_and_no_more(engine: Engine) {
    let database = Database::create(engine).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let mut browser = site.browser();
    let code = browser.code().await;
    site.exchanged(&code).await.refresh_token();
    let cookie = browser.cookies[SESSION].clone();
    let random = cookie.strip_prefix("cs_bs_").unwrap();
    let bytes = base64url::decode(random).unwrap();
    assert_eq!(bytes.len(), 32);
    let stored: Vec<(Vec<u8>,)> = database.rows("select hash from browser_session").await;
    assert_eq!(stored, [(SecretHash::of(&cookie).as_bytes().to_vec(),)]);
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    let everything = database
        .dump(&[
            "browser_session",
            "authorization_code",
            "family",
            "event",
            "change",
            "consent",
        ])
        .await;
    for (table, rows) in everything {
        for row in rows {
            for secret in [random, &hex] {
                let row = row.to_lowercase();
                assert!(!row.contains(&secret.to_lowercase()), "{table}: {row}");
            }
        }
    }
}

/// What Eve has put into Ada's browser, a session of her own that lives, is not what Ada signs in to.
async fn session_fixation(engine: Engine) {
    let site = Site::on(engine).await;
    let id = site.server.user("eve").await;
    site.set_password(id, PASSWORD).await;
    let mut eve = site.browser();
    let page = eve.account().await;
    eve.sign_in(&page, "eve", PASSWORD).await;
    assert_eq!(who(&mut eve).await.as_deref(), Some("eve"));
    // All that Eve's browser has: its session, and what tells it from others.
    let mut ada = site.browser_of(&eve);
    assert_eq!(who(&mut ada).await.as_deref(), Some("eve"));
    let page = ada.ask(&[("prompt", "login")]).await;
    assert_eq!(heading(&page), "Sign in");
    let consent = ada.sign_in(&page, "ada", PASSWORD).await;
    assert_ne!(ada.cookies[SESSION], eve.cookies[SESSION]);
    assert_eq!(who(&mut ada).await.as_deref(), Some("ada"));
    assert!(returned(&ada.decide(&consent, "allow").await).contains_key("code"));
    // Eve's cookie has not become Ada's, and is nobody's any more.
    is_out(&mut eve).await;
    let mut planted = ada.cookies.clone();
    planted.insert(SESSION.to_owned(), eve.cookies[SESSION].clone());
    let mut again = site.browser();
    again.cookies = planted;
    is_out(&mut again).await;
    assert_eq!(who(&mut ada).await.as_deref(), Some("ada"));
    // The other way round: Ada's own session, which somebody has read, ends with the next sign-in.
    let mut thief = site.browser_of(&ada);
    let page = ada.ask(&[("prompt", "login")]).await;
    returned(&ada.sign_in(&page, "ada", PASSWORD).await);
    is_out(&mut thief).await;
    assert_eq!(who(&mut ada).await.as_deref(), Some("ada"));
}
