//! `POST /oauth2/challenge` (draft-ietf-oauth-first-party-apps).

use std::{collections::HashSet, time::Duration};

use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock as _, ManualClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        factor::{FactorChange, Passkey, PasskeyId},
        id::{ClientId, UserId},
        secret::SecretHash,
    },
};
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use super::token::{INVALID_CLIENT, MALFORMED, REPEATED, Refusal, refused};
use crate::support::{
    database::{Database, Engine},
    process::until,
    server::{API, Answer, FILES, FORM, ISSUER, Registered, Setup, TestServer, answer},
    sign_in::{PASSWORD, VERIFIER, by, claims, hash_of, public, redeem, refresh, update_user},
    soon, totp,
};

on_both_engines! {
    name_and_password_get_a_code_that_gets_tokens,
    a_sign_in_may_be_made_in_steps,
    an_auth_session_is_used_once_however_many_try,
    a_password_change_while_somebody_signs_in_leaves_no_session_behind,
    what_ends_the_sessions_of_a_client_ends_unfinished_sign_ins,
    whoever_is_no_user_gets_the_answers_of_one,
    names_that_nobody_can_have_are_unknown_names,
    a_code_lives_a_minute,
    an_enrolled_factor_is_asked_for_after_the_password,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const PATH: &str = "/oauth2/challenge";
/// The S256 transformation of [`VERIFIER`] (RFC 7636 Appendix B).
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const PKCE: [(&str, &str); 2] = [
    ("code_challenge", CHALLENGE),
    ("code_challenge_method", "S256"),
];

const INSUFFICIENT: Refusal = (400, "insufficient_authorization", "password");
const INVALID_SESSION: Refusal = (400, "invalid_session", "auth_session");
const CREDENTIALS: Refusal = (400, "invalid_grant", "credentials");

/// A server with a public first-party client and a user who has a password.
struct Site {
    server: TestServer,
    ada: UserId,
}

fn first_party() -> ClientMetadata {
    ClientMetadata {
        first_party: true,
        ..public()
    }
}

impl Site {
    async fn start() -> Self {
        Self::on(Engine::Sqlite).await
    }

    async fn on(engine: Engine) -> Self {
        Self::of(Setup::new().on(engine)).await
    }

    async fn of(setup: Setup) -> Self {
        let server = setup.client("phone", first_party()).start().await;
        let ada = server.user("ada").await;
        let site = Self { server, ada };
        site.set_password(ada, PASSWORD).await;
        site
    }

    async fn set_password(&self, user: UserId, password: &str) {
        let hash = hash_of(password);
        let now = self.server.clients.clock.now();
        update_user(self.server.store(), user, now, |user| {
            user.password_hash = Some(hash);
        })
        .await;
    }

    fn phone(&self) -> &Registered {
        self.server.other("phone")
    }

    fn request(&self, client: &Registered, form: &[(&str, &str)]) -> RequestBuilder {
        by(self.server.request(Method::POST, PATH), client, form)
    }

    /// A request of the first-party client.
    fn by_phone(&self, form: &[(&str, &str)]) -> RequestBuilder {
        self.request(self.phone(), form)
    }

    /// The first step: the name alone.
    async fn begin(&self, username: &str) -> String {
        let request = self.by_phone(&begin(username));
        auth_session(&refused(request, INSUFFICIENT).await)
    }

    /// The last step.
    async fn go_on(&self, auth_session: &str, password: &str) -> Answer {
        answer(self.by_phone(&go_on(auth_session, password))).await
    }
}

fn begin(username: &str) -> Vec<(&str, &str)> {
    [&[("username", username)], &PKCE[..]].concat()
}

fn at_once<'a>(username: &'a str, password: &'a str) -> Vec<(&'a str, &'a str)> {
    [&begin(username)[..], &[("password", password)]].concat()
}

fn go_on<'a>(auth_session: &'a str, password: &'a str) -> [(&'a str, &'a str); 2] {
    [("auth_session", auth_session), ("password", password)]
}

fn auth_session(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body["needed"], "password");
    let text = body["auth_session"].as_str().unwrap();
    assert!(text.starts_with("cs_as_") && text.len() == 49, "{text}");
    text.to_owned()
}

fn code(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    let code = body["authorization_code"].as_str().unwrap();
    assert!(code.starts_with("cs_ac_") && code.len() == 49, "{code}");
    code.to_owned()
}

/// §5.2.1 and §6.
async fn name_and_password_get_a_code_that_gets_tokens(engine: Engine) {
    let site = Site::on(engine).await;
    let before = site.server.clients.clock.now().seconds();
    let answered = answer(site.by_phone(&at_once("Ada", PASSWORD))).await;
    let tokens = site.server.redeem(site.phone(), &code(&answered)).await;
    let after = site.server.clients.clock.now().seconds();
    let claims = claims(&tokens.access_token());
    assert_eq!(claims["sub"], site.ada.to_string());
    assert_eq!(claims["amr"], json!(["pwd"]));
    assert_eq!(claims["aud"], API);
    assert_eq!(claims["scope"], "read write");
    let auth_time = claims["auth_time"].as_i64().unwrap();
    assert!((before - 1..=after + 1).contains(&auth_time), "{auth_time}");
    let token = tokens.refresh_token();
    let refreshed = site.server.refresh(site.phone(), &token).await;
    assert_eq!(refreshed.status, 200);
}

/// §5.3: an `auth_session` takes what was said from step to step.
async fn a_sign_in_may_be_made_in_steps(engine: Engine) {
    let database = Database::create(engine).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let more = [("resource", FILES), ("scope", "files:read")];
    let form = [&begin("ada")[..], &more].concat();
    let first = auth_session(&refused(site.by_phone(&form), INSUFFICIENT).await);
    // Not yet: another session takes the place of the one that was presented.
    let request = site.by_phone(&[("auth_session", &first)]);
    let second = auth_session(&refused(request, INSUFFICIENT).await);
    refused(site.by_phone(&go_on(&first, PASSWORD)), INVALID_SESSION).await;
    // Nothing that lets anybody go on is in the database.
    let stored: Vec<(Vec<u8>,)> = database.rows("select hash from challenge_session").await;
    assert_eq!(stored, [(SecretHash::of(&second).as_bytes().to_vec(),)]);

    let request = site.by_phone(&go_on(&second, "wrong"));
    let third = auth_session(&refused(request, CREDENTIALS).await);
    assert_eq!(HashSet::from([&first, &second, &third]).len(), 3);
    // What was said at the first step may be said again.
    let form = [
        &begin("ada")[..],
        &more,
        &more[..1],
        &go_on(&third, PASSWORD),
    ]
    .concat();
    let code = code(&answer(site.by_phone(&form)).await);
    let stored: Vec<(Vec<u8>,)> = database.rows("select hash from authorization_code").await;
    assert_eq!(stored, [(SecretHash::of(&code).as_bytes().to_vec(),)]);
    let stored: Vec<(i64,)> = database
        .rows("select failures from challenge_session")
        .await;
    assert_eq!(stored, []);
    let tokens = site.server.redeem(site.phone(), &code).await;
    let claims = claims(&tokens.access_token());
    assert_eq!(
        (&claims["aud"], &claims["scope"]),
        (&json!(FILES), &json!("files:read"))
    );
}

async fn an_auth_session_is_used_once_however_many_try(engine: Engine) {
    let site = Site::on(engine).await;
    let session = site.begin("ada").await;
    let mut attempts = JoinSet::new();
    for _ in 0..12 {
        attempts.spawn(answer(site.by_phone(&go_on(&session, PASSWORD))));
    }
    let answers = soon(attempts.join_all()).await;
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(good.len(), 1);
    for answer in bad {
        assert_eq!(answer.json()["error"], "invalid_session", "{answer:?}");
    }
}

/// Whoever was signed in with the old password by the time of the change is signed out by it, and
/// whoever was just about to be does not get in.
async fn a_password_change_while_somebody_signs_in_leaves_no_session_behind(engine: Engine) {
    let site = Site::of(
        Setup::new()
            .on(engine)
            .set("limits.password_failures_per_minute", "0"),
    )
    .await;
    for round in 0..3 {
        let (old, new) = (password(round), password(round + 1));
        site.set_password(site.ada, &old).await;
        let hash = hash_of(&new);
        let mut attempts = JoinSet::new();
        for _ in 0..6 {
            attempts.spawn(answer(site.by_phone(&at_once("ada", &old))));
        }
        let mut user = site.server.store().user(site.ada).await.unwrap().unwrap();
        let expected = user.revision;
        user.password_hash = Some(hash);
        let change = Change::PutUser {
            user: Box::new(user),
            expected: Some(expected),
            event: EventType::UserPasswordChanged,
            ends_sessions: true,
            tokens_die_at: site.server.clients.clock.now(),
        };
        // In the middle of it.
        let first = soon(attempts.join_next()).await.unwrap().unwrap();
        site.server.apply(change).await;
        let mut answers = soon(attempts.join_all()).await;
        answers.push(first);
        for answer in answers {
            if answer.status == 200 {
                let request = site.server.by(site.phone(), &redeem(&code(&answer)));
                refused(request, (400, "invalid_grant", "user_sessions_ended")).await;
            } else {
                assert_eq!(answer.json()["error"], "invalid_grant", "{answer:?}");
            }
        }
        let answered = answer(site.by_phone(&at_once("ada", &new))).await;
        let tokens = site.server.redeem(site.phone(), &code(&answered)).await;
        tokens.refresh_token();
    }
}

fn password(number: u32) -> String {
    format!("{PASSWORD} {number}")
}

async fn what_ends_the_sessions_of_a_client_ends_unfinished_sign_ins(engine: Engine) {
    let site = Site::on(engine).await;
    let session = site.begin("ada").await;
    let code = code(&answer(site.by_phone(&at_once("ada", PASSWORD))).await);
    let client_id = ClientId::parse("phone").unwrap();
    let tokens_die_at = site.server.clients.clock.now();
    site.server
        .apply(Change::RevokeClientTokens {
            client_id,
            tokens_die_at,
        })
        .await;
    let request = site.server.by(site.phone(), &redeem(&code));
    refused(request, (400, "invalid_grant", "client_sessions_ended")).await;
    refused(site.by_phone(&go_on(&session, PASSWORD)), CREDENTIALS).await;
    site.server.renewed().await;
    let session = site.begin("ada").await;
    assert_eq!(site.go_on(&session, PASSWORD).await.status, 200);
}

/// What every answer of its kind has: all but what is drawn for it.
fn told(answer: &Answer) -> (u16, HeaderMap, Value) {
    let mut headers = answer.headers.clone();
    for drawn in ["x-request-id", "date"] {
        headers.remove(drawn);
    }
    let mut body = answer.json();
    if body["auth_session"].is_string() {
        body["auth_session"] = "drawn".into();
    }
    (answer.status, headers, body)
}

/// ASVS 6.3.8, NIST SP 800-63B-4 §3.1.1: no enumeration.
async fn whoever_is_no_user_gets_the_answers_of_one(engine: Engine) {
    let site = Site::on(engine).await;
    let (server, now) = (&site.server, site.server.clients.clock.now());
    let disabled = server.user("disabled").await;
    site.set_password(disabled, PASSWORD).await;
    update_user(server.store(), disabled, now, |user| user.disabled = true).await;
    server.user("without").await;
    let wrong = told(&answer(site.by_phone(&at_once("ada", "wrong"))).await);
    assert_eq!((wrong.0, &wrong.2["error"]), (400, &json!("invalid_grant")));
    let mut steps = Vec::new();
    for (name, password) in [
        ("ada", "wrong"),
        ("nobody", PASSWORD),
        ("disabled", PASSWORD),
        ("without", PASSWORD),
    ] {
        let at_once = answer(site.by_phone(&at_once(name, password))).await;
        assert_eq!(told(&at_once), wrong, "{name}");
        let first = answer(site.by_phone(&begin(name))).await;
        let second = site.go_on(&auth_session(&first), password).await;
        steps.push([told(&first), told(&second)]);
    }
    for step in &steps[1..] {
        assert_eq!(step, &steps[0]);
    }
}

async fn names_that_nobody_can_have_are_unknown_names(engine: Engine) {
    let site = Site::on(engine).await;
    for name in ["a\0b", " ", "a\u{202e}b", "ada ", &"x".repeat(50_000)] {
        refused(site.by_phone(&at_once(name, PASSWORD)), CREDENTIALS).await;
        let session = site.begin(name).await;
        let form = [&begin(name)[..], &go_on(&session, PASSWORD)].concat();
        refused(site.by_phone(&form), CREDENTIALS).await;
    }
    for password in ["a\0b", &"x".repeat(50_000)] {
        refused(site.by_phone(&at_once("ada", password)), CREDENTIALS).await;
    }
}

/// §5.3.1: bound to its client, and over after a while.
#[tokio::test]
async fn an_auth_session_is_bound_to_its_client_and_lives_ten_minutes() {
    let clock = ManualClock::new(NOW);
    let other = ClientMetadata {
        token_endpoint_auth_method: None,
        ..first_party()
    };
    let setup = Setup::new().clock(clock.clone()).client("other", other);
    let site = Site::of(setup).await;
    let session = site.begin("ada").await;
    let stranger = site.server.other("other");
    let form = go_on(&session, PASSWORD);
    refused(site.request(stranger, &form), INVALID_SESSION).await;
    // It has not been used up by that. Each step has another one, of the same age.
    clock.advance(Duration::from_mins(5));
    let request = site.by_phone(&[("auth_session", &session)]);
    let session = auth_session(&refused(request, INSUFFICIENT).await);
    clock.advance(Duration::from_mins(5).saturating_sub(Duration::from_millis(1)));
    let request = site.by_phone(&[("auth_session", &session)]);
    let session = auth_session(&refused(request, INSUFFICIENT).await);
    clock.advance(Duration::from_millis(1));
    refused(site.by_phone(&go_on(&session, PASSWORD)), INVALID_SESSION).await;

    let code = code(&answer(site.request(stranger, &at_once("ada", PASSWORD))).await);
    let request = site.server.by(site.phone(), &redeem(&code));
    refused(request, (400, "invalid_grant", "other_client")).await;
}

/// RFC 6749 §4.1.2 recommends ten minutes at most, FAPI 2.0 asks for one.
async fn a_code_lives_a_minute(engine: Engine) {
    let database = Database::create(engine).await;
    let clock = ManualClock::new(NOW);
    let setup = Setup::new().at(database.url()).clock(clock.clone());
    let site = Site::of(setup).await;
    code(&answer(site.by_phone(&at_once("ada", PASSWORD))).await);
    let stored: Vec<(i64,)> = database
        .rows("select expires_at from authorization_code")
        .await;
    assert_eq!(stored, [(NOW.plus(Duration::from_mins(1)).millis(),)]);
}

#[tokio::test]
async fn a_sign_in_ends_after_five_wrong_passwords() {
    let site = Site::start().await;
    let mut session = site.begin("ada").await;
    for _ in 0..4 {
        let request = site.by_phone(&go_on(&session, "wrong"));
        session = auth_session(&refused(request, CREDENTIALS).await);
    }
    let last = refused(site.by_phone(&go_on(&session, "wrong")), CREDENTIALS).await;
    assert!(last.json()["auth_session"].is_null());
    refused(site.by_phone(&go_on(&session, PASSWORD)), INVALID_SESSION).await;
}

/// A limit turns a step away; the sign-in goes on when the time has come.
#[tokio::test]
async fn wrong_passwords_are_limited_and_the_sign_in_waits() {
    let clock = ManualClock::new(NOW);
    let setup = Setup::new().clock(clock.clone());
    let site = Site::of(setup.set("limits.password_failures_per_minute", "2")).await;
    let session = site.begin("ada").await;
    for _ in 0..2 {
        refused(site.by_phone(&at_once("ada", "wrong")), CREDENTIALS).await;
    }
    let limited = (429, "temporarily_unavailable", "rate_limited");
    let turned_away = refused(site.by_phone(&go_on(&session, PASSWORD)), limited).await;
    assert_eq!(turned_away.header("retry-after"), Some("30"));
    let session = auth_session(&turned_away);
    clock.advance(Duration::from_secs(30));
    code(&site.go_on(&session, PASSWORD).await);
}

#[tokio::test]
async fn sign_ins_that_are_begun_and_left_are_limited_for_each_address() {
    let clock = ManualClock::new(NOW);
    let confidential = ClientMetadata {
        token_endpoint_auth_method: None,
        ..first_party()
    };
    let setup = Setup::new()
        .clock(clock.clone())
        .client("back-end", confidential)
        .set("limits.password_failures_per_address_per_minute", "3");
    let site = Site::of(setup).await;
    let session = site.begin("ada").await;
    site.begin("nobody").await;
    site.begin("ada").await;
    let limited = (429, "temporarily_unavailable", "rate_limited");
    let turned_away = refused(site.by_phone(&begin("ada")), limited).await;
    assert_eq!(turned_away.header("retry-after"), Some("20"));
    // Who goes through with one makes room for another; a back end stands for many users.
    code(&site.go_on(&session, PASSWORD).await);
    site.begin("ada").await;
    refused(site.by_phone(&begin("ada")), limited).await;
    let back_end = site.server.other("back-end");
    for _ in 0..4 {
        refused(site.request(back_end, &begin("ada")), INSUFFICIENT).await;
    }
    refused(site.by_phone(&begin("ada")), limited).await;
    // Unless it tells where they are.
    let at = |address| [&begin("ada")[..], &[("user_address", address)]].concat();
    for _ in 0..3 {
        refused(site.request(back_end, &at("127.0.0.1")), INSUFFICIENT).await;
    }
    refused(site.request(back_end, &at("127.0.0.1")), limited).await;
    refused(site.request(back_end, &at("192.0.2.1")), INSUFFICIENT).await;
}

/// All users of a back end come from its address: whoever guesses at its form must lock nobody out.
#[tokio::test]
async fn a_back_end_tells_where_its_user_is() {
    let clock = ManualClock::new(NOW);
    let confidential = ClientMetadata {
        token_endpoint_auth_method: None,
        ..first_party()
    };
    let setup = Setup::new().clock(clock.clone());
    let setup = setup.client("back-end", confidential);
    let site = Site::of(setup.set("limits.password_failures_per_minute", "2")).await;
    let back_end = site.server.other("back-end");
    let limited = (429, "temporarily_unavailable", "rate_limited");
    let at = |address, password| {
        let form = [&at_once("ada", password)[..], &[("user_address", address)]].concat();
        site.request(back_end, &form)
    };
    for _ in 0..2 {
        refused(at("2001:db8::1", "wrong"), CREDENTIALS).await;
    }
    refused(at("2001:db8::2", PASSWORD), limited).await;
    code(&answer(at("2001:db8:0:1::1", PASSWORD)).await);
    code(&answer(at("192.0.2.1", PASSWORD)).await);
    // One that does not tell has to limit by itself.
    for _ in 0..3 {
        refused(
            site.request(back_end, &at_once("ada", "wrong")),
            CREDENTIALS,
        )
        .await;
    }
    code(&answer(site.request(back_end, &at_once("ada", PASSWORD))).await);
    // Somebody at the app itself could escape every limit by it.
    let malformed = (400, "invalid_request", "malformed");
    for address in ["somewhere", "192.0.2.1:80", "192.0.2.0/24", "::1%lo", "*"] {
        refused(at(address, PASSWORD), malformed).await;
    }
    let told = [
        &at_once("ada", PASSWORD)[..],
        &[("user_address", "192.0.2.1")],
    ]
    .concat();
    refused(site.by_phone(&told), malformed).await;
}

/// Hashing is bounded: what there is no room for is told so, and loses nothing.
#[tokio::test]
async fn more_sign_ins_than_can_be_checked_are_told_to_come_back() {
    let setup = Setup::new().set("passwords.concurrent_hashes", "1");
    let site = Site::of(setup.set("limits.password_failures_per_minute", "0")).await;
    let session = site.begin("ada").await;
    let sign_in = |name| site.by_phone(&at_once(name, PASSWORD));
    let line = site.server.full_line(|| sign_in("slow")).await;
    let shed = answer(sign_in("ada")).await;
    assert_eq!(shed.status, 503, "{shed:?}");
    assert_eq!(shed.header("retry-after"), Some("5"));
    assert_eq!(shed.header("countersign-reason"), Some("busy"));
    drop(line);
    let answer = until("a place in the line", async || {
        let answer = site.go_on(&session, PASSWORD).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    code(&answer);
}

/// Nobody waits longer than a client would, and our failures are held against nobody.
#[tokio::test]
async fn a_database_that_does_not_answer_is_not_waited_for() {
    let clock = ManualClock::new(NOW);
    let database = Database::create(Engine::Postgres).await;
    let setup = Setup::new().at(database.url()).clock(clock.clone());
    let site = Site::of(setup.set("limits.password_failures_per_minute", "1")).await;
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql("begin; lock table end_user in access exclusive mode")
        .execute(&mut other)
        .await
        .unwrap();
    let no_database = (503, "temporarily_unavailable", "database");
    for _ in 0..2 {
        let request = site.by_phone(&at_once("ada", PASSWORD));
        let mut refused = std::pin::pin!(soon(refused(request, no_database)));
        while futures_util::poll!(&mut refused).is_pending() {
            clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    }
    other.close().await.unwrap();
    code(&answer(site.by_phone(&at_once("ada", PASSWORD))).await);
}

/// "The Authorization Server MUST verify the first-partyness of the client" (§5).
#[tokio::test]
async fn only_first_party_clients_take_the_credentials_of_users() {
    let without = ClientMetadata {
        grant_types: Some(vec!["refresh_token".to_owned()]),
        ..first_party()
    };
    let setup = Setup::new()
        .client("spa", public())
        .client("without", without);
    let site = Site::of(setup).await;
    let form = at_once("ada", PASSWORD);
    for (client, reason) in [
        (site.server.other("spa"), "first_party"),
        (&site.server.app, "first_party"),
        (site.server.other("without"), "grant_type"),
    ] {
        let refusal = (400, "unauthorized_client", reason);
        refused(site.request(client, &form), refusal).await;
    }
    // As at the token endpoint, whoever is no client is not heard.
    let stranger = Registered {
        id: "stranger".to_owned(),
        secret: String::new(),
        secret_id: None,
    };
    let anonymous = site.server.request(Method::POST, PATH);
    refused(anonymous.form(&form), INVALID_CLIENT).await;
    refused(site.request(&stranger, &form), INVALID_CLIENT).await;
    let wrong = Registered {
        id: "app".to_owned(),
        secret: "wrong".to_owned(),
        secret_id: None,
    };
    refused(site.request(&wrong, &form), INVALID_CLIENT).await;
}

/// RFC 9700 §2.1.1: PKCE is required, and `plain` is no PKCE.
#[tokio::test]
async fn a_sign_in_needs_an_s256_challenge() {
    let site = Site::start().await;
    let method = |method| ("code_challenge_method", method);
    let challenge = |challenge| ("code_challenge", challenge);
    let padded = format!("{CHALLENGE}=");
    for pkce in [
        &[][..],
        &[challenge(CHALLENGE)],
        &[method("S256")],
        &[challenge(CHALLENGE), method("plain")],
        &[challenge(CHALLENGE), method("s256")],
        &[challenge(VERIFIER), method("")],
        &[challenge("short"), method("S256")],
        &[challenge(&padded), method("S256")],
    ] {
        for credentials in [
            &[("username", "ada")][..],
            &[("username", "ada"), ("password", PASSWORD)],
        ] {
            refused(site.by_phone(&[pkce, credentials].concat()), MALFORMED).await;
        }
    }
}

/// RFC 6749 §3.2: each parameter once, and what is missing is told.
#[tokio::test]
async fn what_is_malformed_is_told() {
    let site = Site::start().await;
    refused(site.by_phone(&PKCE), MALFORMED).await;
    refused(site.by_phone(&[("password", PASSWORD)]), MALFORMED).await;
    for twice in [
        "username",
        "password",
        "code_challenge",
        "code_challenge_method",
        "scope",
        "response_type",
        "auth_session",
        "client_id",
        "user_address",
    ] {
        let mut form = at_once("ada", PASSWORD);
        form.extend([(twice, "code"), (twice, "code")]);
        refused(site.by_phone(&form), REPEATED).await;
    }
    // Drafts from -03 on want it.
    let mut form = at_once("ada", PASSWORD);
    form.push(("response_type", "code"));
    code(&answer(site.by_phone(&form)).await);
    for other in ["token", "code token", "none", "CODE"] {
        let mut form = at_once("ada", PASSWORD);
        form.push(("response_type", other));
        let refusal = (400, "unsupported_response_type", "response_type");
        refused(site.by_phone(&form), refusal).await;
    }
    for bad in [
        "x",
        "cs_as_",
        &format!("cs_as_{}", "A".repeat(43)),
        "cs_ac_",
    ] {
        refused(site.by_phone(&go_on(bad, PASSWORD)), INVALID_SESSION).await;
    }
    // A step that says something else than the first one belongs to another sign-in.
    for (other, says) in [
        (("username", "bob"), "another username"),
        (("code_challenge", VERIFIER), "another code_challenge"),
        (("code_challenge_method", "plain"), "must be S256"),
        (("scope", "read"), "another scope"),
        (("scope", "no  scope"), "another scope"),
        (("resource", FILES), "other resources"),
        (("resource", "no uri"), "other resources"),
    ] {
        let session = site.begin("ada").await;
        let form = [&go_on(&session, PASSWORD)[..], &[other]].concat();
        let refusal = refused(site.by_phone(&form), MALFORMED).await;
        assert!(refusal.body.contains(says), "{other:?}: {refusal:?}");
        refused(site.by_phone(&go_on(&session, PASSWORD)), INVALID_SESSION).await;
    }
}

/// RFC 8707 §2, RFC 6749 §3.3.
#[tokio::test]
async fn scope_and_resource_are_judged_at_the_first_step() {
    let site = Site::start().await;
    let admin = format!("{ISSUER}/admin");
    for (parameter, value, refusal) in [
        ("scope", "admin", (400, "invalid_scope", "scope")),
        ("scope", "files:read", (400, "invalid_scope", "scope")),
        ("scope", "read  write", (400, "invalid_scope", "scope")),
        ("resource", "no uri", (400, "invalid_target", "resource")),
        (
            "resource",
            "https://other.example",
            (400, "invalid_target", "resource"),
        ),
        ("resource", &admin, (400, "invalid_target", "resource")),
    ] {
        for mut form in [begin("ada"), at_once("ada", PASSWORD)] {
            form.push((parameter, value));
            refused(site.by_phone(&form), refusal).await;
        }
    }
    let operator = ClientMetadata {
        resources: vec![admin.clone()],
        default_resource: Some(admin),
        scope: "keys:read keys:rotate".to_owned(),
        ..first_party()
    };
    let operator = site.server.register(&operator).await;
    let refusal = (400, "invalid_target", "admin_resource");
    let request = site.request(&operator, &at_once("ada", PASSWORD));
    refused(request, refusal).await;
}

/// What a page of a registered origin may do at the token endpoint it may do here.
#[tokio::test]
async fn pages_of_registered_origins_may_sign_in() {
    let origin = "https://app.example";
    let page = ClientMetadata {
        allowed_origins: vec![origin.to_owned()],
        ..first_party()
    };
    let site = Site::of(Setup::new().client("page", page)).await;
    let preflight = site.server.request(Method::OPTIONS, PATH);
    let preflight = preflight.header("access-control-request-method", "POST");
    let page = site.server.other("page");
    for (request, status) in [
        (preflight, 204),
        (site.request(page, &at_once("ada", PASSWORD)), 200),
        (site.request(page, &begin("ada")), 400),
    ] {
        let answer = answer(request.header("origin", origin)).await;
        assert_eq!(answer.status, status);
        let allowed = answer.header("access-control-allow-origin");
        assert_eq!(allowed, Some(origin));
    }
}

#[tokio::test]
async fn credentials_are_read_from_a_form_in_the_body_of_a_post_only() {
    let site = Site::start().await;
    let query = format!("{PATH}?client_id=phone&username=ada&password=x");
    let asked = site.server.request(Method::POST, &query);
    let asked = asked.header(CONTENT_TYPE, FORM).body("");
    refused(asked, INVALID_CLIENT).await;
    let got = answer(site.server.get(PATH)).await;
    assert_eq!(
        (got.status, got.header("allow")),
        (405, Some("POST, OPTIONS"))
    );
    let json = json!({ "client_id": "phone", "username": "ada", "password": PASSWORD });
    let request = site.server.request(Method::POST, PATH);
    refused(request.json(&json), MALFORMED).await;
}

/// A refresh token of a sign-in ends with the user like any other.
#[tokio::test]
async fn who_is_disabled_is_signed_out() {
    let site = Site::start().await;
    let answered = answer(site.by_phone(&at_once("ada", PASSWORD))).await;
    let tokens = site.server.redeem(site.phone(), &code(&answered)).await;
    let now = site.server.clients.clock.now();
    let session = site.begin("ada").await;
    update_user(site.server.store(), site.ada, now, |user| {
        user.disabled = true;
    })
    .await;
    let token = tokens.refresh_token();
    let request = site.server.by(site.phone(), &refresh(&token));
    refused(request, (400, "invalid_grant", "user_disabled")).await;
    refused(site.by_phone(&go_on(&session, PASSWORD)), CREDENTIALS).await;
}

const OTP: Refusal = (400, "insufficient_authorization", "otp");
const WRONG_CODE: Refusal = (400, "invalid_grant", "otp");

/// A site whose clock stands still, where Ada has an app and recovery codes.
struct Secured {
    site: Site,
    clock: ManualClock,
    secret: Vec<u8>,
    recovery_codes: Vec<String>,
}

impl Secured {
    async fn on(engine: Engine) -> Self {
        Self::of(Setup::new().on(engine)).await
    }

    async fn of(setup: Setup) -> Self {
        let clock = ManualClock::new(NOW);
        let site = Site::of(setup.clock(clock.clone())).await;
        let user = site.server.store().user(site.ada).await.unwrap().unwrap();
        let (factors, cause) = (site.server.factors(), Cause::system());
        let secret = b"12345678901234567890".to_vec();
        let code = totp::code(&secret, NOW);
        let enrolled = factors.enrol(&user, (&secret, &code), true, &cause);
        enrolled.await.unwrap();
        let codes = factors.make_codes(&user, false, &cause).await.unwrap();
        clock.advance(Duration::from_secs(30));
        Self {
            site,
            clock,
            secret,
            recovery_codes: codes.iter().map(|code| code.expose().to_owned()).collect(),
        }
    }

    fn code(&self) -> String {
        totp::code(&self.secret, self.clock.now())
    }

    fn wrong(&self) -> String {
        totp::wrong_code(&self.secret, self.clock.now())
    }

    /// The step after the password.
    async fn after_password(&self) -> String {
        let session = self.site.begin("ada").await;
        let request = self.site.by_phone(&go_on(&session, PASSWORD));
        asks_for_code(&refused(request, OTP).await)
    }

    fn with_code(&self, session: &str, code: &str) -> RequestBuilder {
        self.site
            .by_phone(&[("auth_session", session), ("otp", code)])
    }

    async fn strength(&self, answered: &Answer) -> (Value, Value) {
        let phone = self.site.phone();
        let tokens = self.site.server.redeem(phone, &code(answered)).await;
        let claims = claims(&tokens.access_token());
        (claims["acr"].clone(), claims["amr"].clone())
    }
}

fn asks_for_code(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body["needed"], "otp");
    body["auth_session"].as_str().unwrap().to_owned()
}

fn two_factors() -> (Value, Value) {
    (json!("urn:countersign:acr:2"), json!(["pwd", "otp", "mfa"]))
}

async fn an_enrolled_factor_is_asked_for_after_the_password(engine: Engine) {
    let site = Secured::on(engine).await;
    let session = site.after_password().await;
    let again = refused(site.with_code(&session, &site.wrong()), WRONG_CODE).await;
    let next = asks_for_code(&again);
    assert_ne!(next, session);
    refused(site.with_code(&session, &site.code()), INVALID_SESSION).await;
    let right = site.code();
    let answered = answer(site.with_code(&next, &right)).await;
    assert_eq!(site.strength(&answered).await, two_factors());
    // A code is taken once, and a recovery code, too; the latter also in one request.
    let session = site.after_password().await;
    refused(site.with_code(&session, &right), WRONG_CODE).await;
    let recovery = site.recovery_codes[0].as_str();
    let whole = [&at_once("ada", PASSWORD)[..], &[("otp", recovery)]].concat();
    let answered = answer(site.site.by_phone(&whole)).await;
    assert_eq!(site.strength(&answered).await, two_factors());
    let again = refused(site.site.by_phone(&whole), WRONG_CODE).await;
    asks_for_code(&again);
}

/// "An enrolled factor is never skipped": whatever is sent instead.
#[tokio::test]
async fn a_second_factor_is_not_to_be_skipped() {
    let site = Secured::on(Engine::Sqlite).await;
    let ada = site.site.ada;
    let server = &site.site.server;
    // The code before the password is no step.
    let first = site.site.begin("ada").await;
    let request = site.with_code(&first, &site.code());
    let first = auth_session(&refused(request, INSUFFICIENT).await);
    // Nor does the password count twice.
    let request = site.site.by_phone(&go_on(&first, PASSWORD));
    let second = asks_for_code(&refused(request, OTP).await);
    let request = site.site.by_phone(&go_on(&second, PASSWORD));
    let second = asks_for_code(&refused(request, OTP).await);
    // What changes meanwhile ends it.
    let end = Change::EndUserSessions {
        id: ada,
        tokens_die_at: NOW,
    };
    server.apply(end).await;
    refused(site.with_code(&second, &site.code()), INVALID_SESSION).await;
    let third = site.after_password().await;
    update_user(server.store(), ada, NOW, |user| user.disabled = true).await;
    refused(site.with_code(&third, &site.code()), INVALID_SESSION).await;
    update_user(server.store(), ada, NOW, |user| user.disabled = false).await;
    // Five wrong ones end it, too.
    let mut session = site.after_password().await;
    for _ in 0..4 {
        let request = site.with_code(&session, &site.wrong());
        session = asks_for_code(&refused(request, WRONG_CODE).await);
    }
    let last = refused(site.with_code(&session, &site.wrong()), WRONG_CODE).await;
    assert!(last.json()["auth_session"].is_null());
    refused(site.with_code(&session, &site.code()), INVALID_SESSION).await;
}

#[tokio::test]
async fn wrong_codes_are_limited_and_the_sign_in_waits() {
    let setup = Setup::new().set("limits.password_failures_per_minute", "2");
    let site = Secured::of(setup).await;
    let mut session = site.after_password().await;
    for _ in 0..2 {
        let request = site.with_code(&session, &site.wrong());
        session = asks_for_code(&refused(request, WRONG_CODE).await);
    }
    let limited = (429, "temporarily_unavailable", "rate_limited");
    let turned_away = refused(site.with_code(&session, &site.code()), limited).await;
    assert_eq!(turned_away.header("retry-after"), Some("30"));
    session = asks_for_code(&turned_away);
    site.clock.advance(Duration::from_secs(30));
    code(&answer(site.with_code(&session, &site.code())).await);
}

/// §5.2.2.1: what only a browser can ask for is left to a browser.
#[tokio::test]
async fn what_needs_a_browser_is_left_to_one() {
    let site = Site::start().await;
    let store = site.server.store();
    let whole = || site.by_phone(&at_once("ada", PASSWORD));
    let told = |needed: &'static str| (400, "redirect_to_web", needed);
    // Who needs a second factor and has none has to enrol one.
    update_user(store, site.ada, NOW, |user| {
        user.second_factor_required = true;
    })
    .await;
    let answered = refused(whole(), told("enrolment")).await;
    assert_eq!(answered.json()["needed"], "enrolment");
    update_user(store, site.ada, NOW, |user| {
        user.second_factor_required = false;
    })
    .await;
    site.server
        .update(site.phone(), json!({ "second_factor_required": true }))
        .await;
    site.server.renewed().await;
    refused(whole(), told("enrolment")).await;
    // Nor can an app ask for a passkey.
    let user = store.user(site.ada).await.unwrap().unwrap();
    let passkey = Passkey {
        id: PasskeyId::from_bytes(b"x").unwrap(),
        subject: site.ada,
        name: "Key".to_owned(),
        credential: String::new(),
        counter: 0,
        created_at: NOW,
        last_used_at: None,
    };
    site.server
        .apply(Change::ChangeFactors {
            subject: site.ada,
            user_epoch: user.session_epoch,
            is_first: true,
            change: FactorChange::AddPasskey(Box::new(passkey)),
        })
        .await;
    let answered = refused(whole(), told("passkey")).await;
    assert_eq!(answered.json()["needed"], "passkey");
    assert!(answered.json()["auth_session"].is_null());
    // Before the password nobody learns of it.
    refused(site.by_phone(&at_once("ada", "wrong")), CREDENTIALS).await;
}
