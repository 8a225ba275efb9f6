//! `grant_type=refresh_token` (RFC 6749 §6, RFC 9700 §4.14).

use std::{collections::HashSet, time::Duration};

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
    domain::{
        change::{Cause, Change},
        family::{EndReason, Family, NoteKind},
        id::{ClientId, FamilyId, UserId},
        refresh_token::{RefreshToken, Tag},
        resource::ResourceUri,
        scope::Scope,
    },
};
use reqwest::StatusCode;
use ring::hmac;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{MALFORMED, REPEATED, Refusal, refused};
use crate::support::{
    database::{Cluster, Database, Durability, Engine},
    server::{API, Answer, FILES, GRANT, ISSUER, Registered, Setup, TestServer, answer, metadata},
    sign_in::{by, claims, code_for, public, put_code, refresh, update_user},
    soon,
};

on_both_engines! {
    a_refresh_gets_an_access_token_and_the_next_refresh_token,
    a_replay_within_the_window_gets_the_identical_successor_and_a_fresh_access_token,
    a_token_that_is_used_after_its_successor_ends_the_family,
    the_window_is_measured_from_the_rotation_and_never_extended,
    what_was_ended_by_reuse_stays_ended_also_for_the_newest_token,
    many_who_present_one_token_at_once_get_the_same_successor,
    under_the_strict_policy_a_token_that_comes_twice_ends_the_family,
    under_the_shared_policy_late_processes_are_told_to_look_again,
    under_the_policy_none_the_token_stays_the_same,
    wrong_clients_and_wrong_secrets_change_nothing,
    the_scope_is_narrowed_for_one_access_token_only,
    the_resources_are_narrowed_for_one_access_token_only,
    no_refresh_gets_more_than_was_granted_at_the_sign_in,
    a_family_that_is_not_refreshed_ends_to_the_millisecond,
    the_absolute_end_never_moves_and_no_access_token_outlives_it,
    users_are_asked_for_at_every_refresh,
    clients_are_asked_for_at_every_refresh,
    a_token_that_was_made_up_costs_no_query,
    a_token_ahead_of_the_database_goes_on,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const IDLE: Duration = Duration::from_hours(7 * 24);
const LIFETIME: Duration = Duration::from_hours(30 * 24);
const WINDOW: Duration = Duration::from_secs(30);
const MS: Duration = Duration::from_millis(1);

/// A millisecond less than a span.
const fn short_of(span: Duration) -> Duration {
    span.saturating_sub(MS)
}

const fn grant(reason: &'static str) -> Refusal {
    (400, "invalid_grant", reason)
}

const REUSE: Refusal = grant("reuse");
const REVOKED: Refusal = grant("revoked");
const UNKNOWN: Refusal = grant("unknown_token");
const INVALID_SCOPE: Refusal = (400, "invalid_scope", "scope");
const INVALID_TARGET: Refusal = (400, "invalid_target", "resource");

/// A server whose time stands still, with a public client and a user.
struct Site {
    server: TestServer,
    clock: ManualClock,
    ada: UserId,
}

impl Site {
    async fn on(engine: Engine) -> Self {
        Self::of(Setup::new().on(engine)).await
    }

    async fn with_policy(engine: Engine, policy: &str) -> Self {
        let metadata = ClientMetadata {
            refresh_policy: Some(policy.to_owned()),
            refresh_sharing_acknowledged: true,
            ..metadata()
        };
        let setup = Setup::new().on(engine).client("policy", metadata);
        Self::of(setup).await
    }

    async fn of(setup: Setup) -> Self {
        let clock = ManualClock::new(NOW);
        let server = setup
            .clock(clock.clone())
            .client("spa", public())
            .start()
            .await;
        let ada = server.user("ada").await;
        Self { server, clock, ada }
    }

    /// Lets time pass, and waits until the node has seen its database since.
    async fn pass(&self, span: Duration) {
        self.server.pass(&self.clock, span).await;
    }

    /// Waits for an answer that waits for a look at the database: time does not stand still.
    async fn in_time<T>(&self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(soon(awaited));
        loop {
            tokio::select! {
                biased;
                awaited = &mut awaited => return awaited,
                () = tokio::task::yield_now() => self.clock.advance(MS),
            }
        }
    }

    fn spa(&self) -> &Registered {
        self.server.other("spa")
    }

    /// The client of [`Self::with_policy`].
    fn client(&self) -> &Registered {
        self.server.other("policy")
    }

    /// Signs ada in at the public client, for all that it can have.
    async fn signed_in(&self) -> String {
        self.signed_in_as(self.ada, self.spa()).await
    }

    async fn signed_in_as(&self, user: UserId, client: &Registered) -> String {
        signed_in(&self.server, user, client).await
    }

    async fn refresh(&self, token: &str) -> Answer {
        self.server.refresh(self.spa(), token).await
    }

    async fn refreshed(&self, token: &str) -> String {
        self.refresh(token).await.refresh_token()
    }

    async fn refused(&self, token: &str, refusal: Refusal) {
        let request = self.server.by(self.spa(), &refresh(token));
        refused(request, refusal).await;
    }

    async fn request(&self, token: &str, more: &[(&str, &str)]) -> Answer {
        let form = [&refresh(token), more].concat();
        answer(self.server.by(self.spa(), &form)).await
    }

    /// The family of an access token, as stored.
    async fn family_of(&self, access_token: &str) -> Family {
        let sid = &claims(access_token)["sid"];
        let id = FamilyId::parse(sid.as_str().unwrap()).unwrap();
        self.server.family(id).await
    }

    async fn end_reason(&self, access_token: &str) -> Option<EndReason> {
        let family = self.family_of(access_token).await;
        assert_eq!(family.revoked_at.is_some(), family.revoke_reason.is_some());
        family.revoke_reason
    }
}

/// Signs a user in at a client, for all that it can have.
async fn signed_in(server: &TestServer, user: UserId, client: &Registered) -> String {
    let mut grant = server.grant(client, user).await;
    grant.scope = Scope::parse("read write files:read").unwrap();
    grant.resources.push(ResourceUri::parse(FILES).unwrap());
    let code = code_for(grant, server.clients.clock.now());
    let code = put_code(server.store(), &code).await;
    server.redeem(client, &code).await.refresh_token()
}

/// RFC 6749 §5.1; RFC 9068 §2.2 and §2.2.3.1: what is said of the user comes from the sign-in, and from
/// what the user is now.
async fn a_refresh_gets_an_access_token_and_the_next_refresh_token(engine: Engine) {
    let site = Site::on(engine).await;
    let token = site.signed_in().await;
    site.clock.advance(Duration::from_millis(1500));
    let store = site.server.store();
    update_user(store, site.ada, NOW, |user| {
        user.roles = vec!["editor".to_owned(), "admin \" \\ ü".to_owned()];
        let claims = json!({ "tier": 2, "https://ü/n\"": { "a": [null, 1.5] } });
        claims.as_object().unwrap().clone_into(&mut user.claims);
    })
    .await;
    let answer = site.refresh(&token).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    let names: HashSet<&str> = body
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = [
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "scope",
    ];
    assert_eq!(names, HashSet::from(expected));
    assert_ne!(body["refresh_token"], token);
    assert_eq!(body["scope"], "files:read read write");
    let claims = claims(&answer.access_token());
    let family = site.family_of(&answer.access_token()).await;
    assert_eq!(family.counter, 1);
    let expires_in = body["expires_in"].as_u64().unwrap();
    assert!((570..=600).contains(&expires_in), "{expires_in}");
    assert_eq!(
        claims,
        json!({
            "iss": ISSUER,
            "sub": site.ada.to_string(),
            "client_id": "spa",
            "aud": [API, FILES],
            "scope": "files:read read write",
            "iat": 1_800_000_001,
            "exp": 1_800_000_001 + expires_in,
            "jti": claims["jti"],
            "auth_time": 1_800_000_000,
            "acr": "urn:countersign:acr:1",
            "amr": ["pwd"],
            "sid": family.id.to_string(),
            "roles": ["editor", "admin \" \\ ü"],
            "tier": 2,
            "https://ü/n\"": { "a": [null, 1.5] },
        })
    );
}

async fn a_replay_within_the_window_gets_the_identical_successor_and_a_fresh_access_token(
    engine: Engine,
) {
    let site = Site::on(engine).await;
    let token = site.signed_in().await;
    let first = site.refresh(&token).await;
    site.clock.advance(Duration::from_secs(10));
    let mut jtis = HashSet::new();
    for answer in [
        &first,
        &site.refresh(&token).await,
        &site.refresh(&token).await,
    ] {
        assert_eq!(answer.refresh_token(), first.refresh_token());
        jtis.insert(claims(&answer.access_token())["jti"].to_string());
    }
    assert_eq!(jtis.len(), 3);
    let family = site.family_of(&first.access_token()).await;
    // A note, once.
    let notes: Vec<NoteKind> = family.notes.iter().map(|note| note.kind).collect();
    assert_eq!((family.counter, notes), (1, vec![NoteKind::Replayed]));
    site.refreshed(&first.refresh_token()).await;
}

/// The thief, or the user, is late by one turn: that closes the window by itself.
async fn a_token_that_is_used_after_its_successor_ends_the_family(engine: Engine) {
    let site = Site::on(engine).await;
    let token = site.signed_in().await;
    let second = site.refreshed(&token).await;
    let third = site.refresh(&second).await;
    site.refused(&token, REUSE).await;
    // The revocation is committed although the request failed.
    let reason = site.end_reason(&third.access_token()).await;
    assert_eq!(reason, Some(EndReason::Reuse));
    for dead in [&third.refresh_token(), &second, &token] {
        site.refused(dead, REVOKED).await;
    }
}

async fn the_window_is_measured_from_the_rotation_and_never_extended(engine: Engine) {
    let site = Site::on(engine).await;
    let token = site.signed_in().await;
    let successor = site.refreshed(&token).await;
    for pause in [WINDOW / 2, short_of(WINDOW / 2)] {
        site.clock.advance(pause);
        assert_eq!(site.refreshed(&token).await, successor);
    }
    site.clock.advance(MS);
    site.refused(&token, REUSE).await;
    site.refused(&successor, REVOKED).await;
}

async fn what_was_ended_by_reuse_stays_ended_also_for_the_newest_token(engine: Engine) {
    let site = Site::on(engine).await;
    let stolen = site.signed_in().await;
    let other = site.signed_in().await;
    let mut newest = stolen.clone();
    for _ in 0..5 {
        newest = site.refreshed(&newest).await;
    }
    site.refused(&stolen, REUSE).await;
    site.refused(&newest, REVOKED).await;
    site.clock.advance(WINDOW);
    site.refused(&newest, REVOKED).await;
    // Another sign-in of the same user at the same client goes on.
    site.refreshed(&other).await;
}

/// "N concurrent uses → one rotation"; on Postgres at two nodes.
async fn many_who_present_one_token_at_once_get_the_same_successor(engine: Engine) {
    let site = Site::on(engine).await;
    let answers = at_once(&site, site.spa(), engine, 64).await;
    let successors: HashSet<String> = answers.iter().map(Answer::refresh_token).collect();
    assert_eq!(successors.len(), 1);
    let jti = |answer: &Answer| claims(&answer.access_token())["jti"].to_string();
    let jtis: HashSet<String> = answers.iter().map(jti).collect();
    assert_eq!(jtis.len(), 64);
    let family = site.family_of(&answers[0].access_token()).await;
    assert_eq!((family.counter, family.revoked_at), (1, None));
    for successor in successors {
        site.refreshed(&successor).await;
    }
}

/// Presents the first token of a new sign-in many times at once; where the engine has room for two nodes,
/// to both. That of another one where some were told to come back, as they would have had to wait for too
/// long.
async fn at_once(site: &Site, client: &Registered, engine: Engine, count: usize) -> Vec<Answer> {
    let second = match engine {
        Engine::Sqlite => None,
        Engine::Postgres => Some(site.server.beside().await),
    };
    for _ in 0..5 {
        let token = site.signed_in_as(site.ada, client).await;
        let mut requests = JoinSet::new();
        for number in 0..count {
            let request = match &second {
                Some(node) if number % 2 == 1 => {
                    node.request(reqwest::Method::POST, "/oauth2/token")
                }
                _ => site.server.token_request(),
            };
            requests.spawn(answer(by(request, client, &refresh(&token))));
        }
        let answers = soon(requests.join_all()).await;
        if answers.iter().all(|answer| answer.status != 503) {
            return answers;
        }
    }
    panic!("some were told to come back each time");
}

async fn under_the_strict_policy_a_token_that_comes_twice_ends_the_family(engine: Engine) {
    let site = Site::with_policy(engine, "strict").await;
    let (server, client) = (&site.server, site.client());
    let token = site.signed_in_as(site.ada, client).await;
    let successor = server.refresh(client, &token).await.refresh_token();
    refused(server.by(client, &refresh(&token)), REUSE).await;
    refused(server.by(client, &refresh(&successor)), REVOKED).await;

    // At once: some are turned away before they are judged, one at most gets tokens.
    let answers = at_once(&site, client, engine, 64).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    assert!(
        statuses == [200, 400, 429] || statuses == [200, 400],
        "{statuses:?}"
    );
    let won: Vec<&Answer> = answers
        .iter()
        .filter(|answer| answer.status == 200)
        .collect();
    assert_eq!(won.len(), 1);
    refused(
        server.by(client, &refresh(&won[0].refresh_token())),
        REVOKED,
    )
    .await;
}

async fn under_the_shared_policy_late_processes_are_told_to_look_again(engine: Engine) {
    let site = Site::with_policy(engine, "shared").await;
    let (server, client) = (&site.server, site.client());
    let mut tokens = vec![site.signed_in_as(site.ada, client).await];
    for _ in 0..9 {
        let last = tokens.last().unwrap();
        tokens.push(server.refresh(client, last).await.refresh_token());
    }
    site.pass(short_of(Duration::from_mins(15))).await;
    // Of ten tokens, the one before the last gets it again; eight turns back is late, nine is reuse.
    let again = server.refresh(client, &tokens[8]).await.refresh_token();
    assert_eq!(again, tokens[9]);
    for token in &tokens[1..8] {
        refused(server.by(client, &refresh(token)), grant("superseded")).await;
    }
    let current = server.refresh(client, &tokens[9]).await.refresh_token();
    site.pass(Duration::from_mins(15)).await;
    refused(server.by(client, &refresh(&tokens[9])), REUSE).await;
    refused(server.by(client, &refresh(&current)), REVOKED).await;

    let mut token = site.signed_in_as(site.ada, client).await;
    let first = token.clone();
    for _ in 0..9 {
        token = server.refresh(client, &token).await.refresh_token();
    }
    refused(server.by(client, &refresh(&first)), REUSE).await;
}

async fn under_the_policy_none_the_token_stays_the_same(engine: Engine) {
    let site = Site::with_policy(engine, "none").await;
    let (server, client) = (&site.server, site.client());
    let token = site.signed_in_as(site.ada, client).await;
    for _ in 0..4 {
        // Each use prolongs the life without use.
        site.pass(short_of(IDLE)).await;
        let answer = server.refresh(client, &token).await;
        assert_eq!(answer.refresh_token(), token);
    }
    site.pass(IDLE).await;
    let request = server.by(client, &refresh(&token));
    refused(request, grant("expired")).await;
}

/// Whoever is no party to the family cannot end it.
async fn wrong_clients_and_wrong_secrets_change_nothing(engine: Engine) {
    let site = Site::on(engine).await;
    let server = &site.server;
    let token = site.signed_in_as(site.ada, &server.app).await;
    let first = server.refresh(&server.app, &token).await;
    // A token that would be reuse if its own client presented it.
    site.clock.advance(WINDOW);
    for token in [&token, &first.refresh_token()] {
        site.refused(token, grant("other_client")).await;
        let wrong = server.token_request().basic_auth("app", Some("wrong"));
        let wrong = wrong.form(&refresh(token));
        assert_eq!(site.in_time(answer(wrong)).await.status, 401);
        let mut unproved = refresh(token).to_vec();
        unproved.push(("client_id", "app"));
        let unproved = server.token_request().form(&unproved);
        assert_eq!(site.in_time(answer(unproved)).await.status, 401);
    }
    let family = site.family_of(&first.access_token()).await;
    assert_eq!((family.counter, family.revoked_at), (1, None));
    let notes = family.notes.iter().count();
    assert_eq!(notes, 0);
    server
        .refresh(&server.app, &first.refresh_token())
        .await
        .refresh_token();
    // A public client has nothing but its id, and has to say it.
    let token = site.signed_in().await;
    for id in [&[][..], &[("client_id", "")], &[("client_id", "app")]] {
        let form = [&refresh(&token)[..], id].concat();
        let request = server.token_request().form(&form);
        assert_eq!(site.in_time(answer(request)).await.status, 401, "{id:?}");
    }
    site.refreshed(&token).await;
}

/// RFC 6749 §6: "If a new refresh token is issued, the refresh token scope MUST be identical to that of
/// the refresh token included by the client in the request."
async fn the_scope_is_narrowed_for_one_access_token_only(engine: Engine) {
    let site = Site::on(engine).await;
    let mut token = site.signed_in().await;
    for (asked, given) in [
        (Some("read"), "read"),
        (Some("write read"), "read write"),
        (None, "files:read read write"),
        (Some(""), "files:read read write"),
    ] {
        let more: Vec<(&str, &str)> = asked.map(|scope| ("scope", scope)).into_iter().collect();
        let answer = site.request(&token, &more).await;
        assert_eq!(answer.json()["scope"], given);
        assert_eq!(claims(&answer.access_token())["scope"], given);
        token = answer.refresh_token();
    }
    // Wider than was granted, or no scope at all.
    for wider in ["read admin", "read  write", " ", "r\"", "é"] {
        let form = [&refresh(&token)[..], &[("scope", wider)]].concat();
        refused(site.server.by(site.spa(), &form), INVALID_SCOPE).await;
    }
    // Nothing has happened.
    let family = site
        .family_of(&site.refresh(&token).await.access_token())
        .await;
    assert_eq!(family.counter, 5);
}

/// RFC 6749 §6: "The requested scope MUST NOT include any scope not originally granted by the resource
/// owner"; RFC 8707 §2.2 says so of resources. Whatever the client may have otherwise.
async fn no_refresh_gets_more_than_was_granted_at_the_sign_in(engine: Engine) {
    let site = Site::on(engine).await;
    let mut grant = site.server.grant(site.spa(), site.ada).await;
    grant.scope = Scope::parse("read").unwrap();
    let code = put_code(site.server.store(), &code_for(grant, NOW)).await;
    let mut token = site.server.redeem(site.spa(), &code).await.refresh_token();
    for _ in 0..3 {
        for (wider, refusal) in [
            (("scope", "write"), INVALID_SCOPE),
            (("scope", "read write"), INVALID_SCOPE),
            (("scope", "read files:read"), INVALID_SCOPE),
            (("resource", FILES), INVALID_TARGET),
        ] {
            let form = [&refresh(&token)[..], &[wider]].concat();
            refused(site.server.by(site.spa(), &form), refusal).await;
        }
        // What was asked for in vain is not held against the next request.
        let answer = site.refresh(&token).await;
        let claims = claims(&answer.access_token());
        assert_eq!(
            (&claims["aud"], &claims["scope"]),
            (&json!(API), &json!("read"))
        );
        token = answer.refresh_token();
    }
}

/// RFC 8707 §2.2.
async fn the_resources_are_narrowed_for_one_access_token_only(engine: Engine) {
    let site = Site::on(engine).await;
    let mut token = site.signed_in().await;
    for (asked, audience, scope) in [
        (&[FILES][..], json!(FILES), "files:read"),
        (&[API, API], json!(API), "read write"),
        (&[FILES, API], json!([FILES, API]), "files:read read write"),
        (&[], json!([API, FILES]), "files:read read write"),
    ] {
        let more: Vec<(&str, &str)> = asked.iter().map(|uri| ("resource", *uri)).collect();
        let answer = site.request(&token, &more).await;
        let claims = claims(&answer.access_token());
        assert_eq!(
            (&claims["aud"], &claims["scope"]),
            (&audience, &json!(scope))
        );
        token = answer.refresh_token();
    }
    let many: Vec<String> = (0..17).map(|n| format!("https://{n}.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let admin = format!("{ISSUER}/admin");
    for foreign in [
        &["https://other.example"][..],
        &[API, "https://other.example"],
        &["no uri"],
        &["https://api.example#"],
        &[&admin],
        &many,
    ] {
        let more = foreign.iter().map(|uri| ("resource", *uri));
        let form: Vec<(&str, &str)> = refresh(&token).into_iter().chain(more).collect();
        refused(site.server.by(site.spa(), &form), INVALID_TARGET).await;
    }
    site.refreshed(&token).await;
}

async fn a_family_that_is_not_refreshed_ends_to_the_millisecond(engine: Engine) {
    let site = Site::on(engine).await;
    let (token, other) = (site.signed_in().await, site.signed_in().await);
    site.pass(short_of(IDLE)).await;
    let token = site.refreshed(&token).await;
    site.clock.advance(MS);
    site.refused(&other, grant("idle_expired")).await;
    site.pass(short_of(short_of(IDLE))).await;
    let token = site.refreshed(&token).await;
    site.pass(IDLE).await;
    site.refused(&token, grant("idle_expired")).await;
}

/// ASVS 10.4.8.
async fn the_absolute_end_never_moves_and_no_access_token_outlives_it(engine: Engine) {
    let site = Site::on(engine).await;
    let mut token = site.signed_in().await;
    let end = 1_800_000_000 + LIFETIME.as_secs();
    let mut left = LIFETIME;
    while left > IDLE {
        site.pass(short_of(IDLE)).await;
        left -= short_of(IDLE);
        token = site.refreshed(&token).await;
    }
    site.pass(left.saturating_sub(Duration::from_secs(100)))
        .await;
    let answer = site.refresh(&token).await;
    assert_eq!(answer.json()["expires_in"], 100);
    assert_eq!(claims(&answer.access_token())["exp"], end);
    site.clock.advance(Duration::from_secs(99));
    let answer = site.refresh(&answer.refresh_token()).await;
    assert_eq!(answer.json()["expires_in"], 1);
    assert_eq!(claims(&answer.access_token())["exp"], end);
    site.clock.advance(Duration::from_secs(1));
    site.refused(&answer.refresh_token(), grant("expired"))
        .await;
}

/// "Re-check at each use: user enabled".
async fn users_are_asked_for_at_every_refresh(engine: Engine) {
    let site = Site::on(engine).await;
    let server = &site.server;
    let store = server.store();
    let [disabled, ended, deleted] = ["bob", "eve", "dan"].map(|name| server.user(name));
    let (disabled, ended, deleted) = (disabled.await, ended.await, deleted.await);
    let mut tokens = Vec::new();
    for user in [disabled, ended, deleted] {
        tokens.push(site.signed_in_as(user, site.spa()).await);
    }
    update_user(store, disabled, NOW, |user| user.disabled = true).await;
    let changes = [
        Change::EndUserSessions {
            id: ended,
            tokens_die_at: NOW,
        },
        Change::DeleteUser {
            id: deleted,
            expected: 1,
            tokens_die_at: NOW,
        },
    ];
    for change in changes {
        server.apply(change).await;
    }
    let reasons = ["user_disabled", "user_sessions_ended", "user_deleted"];
    for (token, reason) in tokens.iter().zip(reasons) {
        site.refused(token, grant(reason)).await;
    }
    // Who was disabled once is not signed in again by being enabled.
    update_user(store, disabled, NOW, |user| user.disabled = false).await;
    site.refused(&tokens[0], grant("user_sessions_ended")).await;
    // Whose sessions were ended can sign in again; tokens count from the next second on.
    site.clock.advance(Duration::from_secs(2));
    let token = site.signed_in_as(ended, site.spa()).await;
    site.refreshed(&token).await;
}

/// The row decides, not what the node remembers: it may hear of a change late.
async fn clients_are_asked_for_at_every_refresh(engine: Engine) {
    let site = Site::on(engine).await;
    let token = site.signed_in().await;
    site.server
        .apply(Change::RevokeClientTokens {
            client_id: ClientId::parse("spa").unwrap(),
            tokens_die_at: NOW,
        })
        .await;
    site.refused(&token, grant("client_sessions_ended")).await;
    // Time stands still: the node has not looked at its database since.
    let id = ClientId::parse("spa").unwrap();
    let cause = Cause::system();
    let clients = &site.server.clients;
    let patch = json!({ "disabled": true });
    clients.update(&id, &patch, None, &cause).await.unwrap();
    let refusal = site.in_time(site.refresh(&token)).await;
    // Unless Postgres has told it.
    let reason = refusal.header("countersign-reason");
    assert!(matches!(refusal.status, 400 | 401), "{refusal:?}");
    assert_eq!(reason, Some("client_disabled"));
}

/// Where there is no table to look into, whoever looks into it fails.
async fn a_token_that_was_made_up_costs_no_query(engine: Engine) {
    let database = Database::create(engine).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let genuine = site.signed_in().await;
    database.execute("alter table family rename to gone").await;
    let request = site.server.by(site.spa(), &refresh(&genuine));
    refused(request, (500, "server_error", "internal")).await;

    let foreign = {
        let other = Site::on(Engine::Sqlite).await;
        other.signed_in().await
    };
    let family = FamilyId::from_uuid(Uuid::from_u128(7));
    let forged = |mac_version| {
        let token = RefreshToken {
            mac_version,
            family,
            counter: 0,
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        token.encode(&Tag::of(&hmac::sign(&key, &token.authenticated())))
    };
    let last = genuine.chars().last().unwrap();
    let other_last = if last == 'A' { 'B' } else { 'A' };
    let turned = format!("{}{other_last}", &genuine[..genuine.len() - 1]);
    for made_up in [
        "x",
        "cs_rt_",
        "cs_rt_AAAA",
        &genuine.to_uppercase(),
        &genuine[..genuine.len() - 1],
        &format!("{genuine}="),
        &format!(" {genuine}"),
        &format!("{genuine}\0"),
        &turned,
        &foreign,
        &forged(1),
        &"a".repeat(60_000),
    ] {
        site.refused(made_up, UNKNOWN).await;
    }
    // A key that might have been made a moment ago is looked for; time may be faster than the look.
    let unknown = forged(u32::MAX);
    let looked = async || {
        let looked = site.in_time(site.refresh(&unknown)).await;
        let reason = looked.header("countersign-reason").unwrap().to_owned();
        (looked.status, reason)
    };
    let refused = loop {
        let refused = looked().await;
        if refused != (503, "no_key".to_owned()) {
            break refused;
        }
    };
    assert_eq!(refused, (400, UNKNOWN.2.to_owned()));
    database.execute("alter table gone rename to family").await;
    site.refreshed(&genuine).await;
}

async fn a_token_ahead_of_the_database_goes_on(engine: Engine) {
    let database = Database::create(engine).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let mut token = site.signed_in().await;
    for _ in 0..5 {
        token = site.refreshed(&token).await;
    }
    // As after a failover to a replica that was behind.
    database.execute("update family set counter = 2").await;
    let answer = site.refresh(&token).await;
    let family = site.family_of(&answer.access_token()).await;
    assert_eq!(family.counter, 6);
    site.refreshed(&answer.refresh_token()).await;
}

/// RFC 6749 §3.2.
#[tokio::test]
async fn a_refresh_token_is_needed_and_no_parameter_comes_twice() {
    let site = Site::on(Engine::Sqlite).await;
    let token = site.signed_in().await;
    let server = &site.server;
    for form in [
        vec![("grant_type", "refresh_token")],
        vec![("grant_type", "refresh_token"), ("refresh_token", "")],
    ] {
        refused(server.by(site.spa(), &form), MALFORMED).await;
    }
    for twice in ["client_id", "grant_type", "refresh_token", "scope"] {
        for value in ["", "read"] {
            let mut form = refresh(&token).to_vec();
            form.extend([(twice, value), (twice, value)]);
            refused(server.by(site.spa(), &form), REPEATED).await;
        }
    }
    site.refreshed(&token).await;
}

/// RFC 6749 §5.2.
#[tokio::test]
async fn a_client_needs_the_grant() {
    let without = ClientMetadata {
        grant_types: Some(vec!["authorization_code".to_owned()]),
        ..public()
    };
    let setup = Setup::new().client("without", without);
    let site = Site::of(setup).await;
    let client = site.server.other("without");
    let token = site.signed_in().await;
    let request = site.server.by(client, &refresh(&token));
    refused(request, (400, "unauthorized_client", "grant_type")).await;
    let form = [GRANT[0]];
    let request = site.server.by(site.spa(), &form);
    refused(request, (400, "unauthorized_client", "grant_type")).await;
}

/// A family's queue is bounded: abuse is turned away before it is judged, and ends nothing.
#[tokio::test]
async fn whoever_presents_too_many_tokens_of_a_family_at_once_has_to_wait() {
    let database = Database::create(Engine::Sqlite).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let token = site.signed_in().await;
    let scopes = [
        "read",
        "write",
        "files:read",
        "read write",
        "read files:read",
        "write files:read",
        "read write files:read",
        "",
    ];
    let lock = database.lock().await;
    let mut waiting = JoinSet::new();
    let forms: Vec<Vec<(&str, &str)>> = scopes
        .iter()
        .flat_map(|scope| [(scope, API), (scope, FILES)])
        .map(|(scope, resource)| {
            let mut form = refresh(&token).to_vec();
            form.extend([("scope", *scope), ("resource", resource)]);
            form
        })
        .collect();
    for form in &forms {
        waiting.spawn(answer(site.server.by(site.spa(), form)));
    }
    // One is on its way, eight wait; the others do not.
    for _ in 0..forms.len() - 9 {
        is_turned_away(&soon(waiting.join_next()).await.unwrap().unwrap());
    }
    drop(lock);
    // Where eight came before the first was on its way, the ninth was one too many.
    let answers = soon(waiting.join_all()).await;
    let (refreshed, others): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 200);
    assert!(refreshed.len() >= 8, "{answers:?}");
    others.into_iter().for_each(is_turned_away);
}

fn is_turned_away(answer: &Answer) {
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["error"], "temporarily_unavailable");
}

/// What a grant was for may go meanwhile, and comes back with the resource.
#[tokio::test]
async fn what_the_client_may_not_have_any_more_is_left_out() {
    let server = TestServer::start().await;
    let client = server.register(&public()).await;
    let ada = server.user("ada").await;
    let token = signed_in(&server, ada, &client).await;
    let update = async |patch: Value| {
        server.update(&client, patch).await;
        server.renewed().await;
    };
    update(json!({ "scope": "read files:read" })).await;
    let answer = server.refresh(&client, &token).await;
    assert_eq!(answer.json()["scope"], "files:read read");
    update(json!({ "resources": [API], "scope": "read write files:read" })).await;
    let answer = server.refresh(&client, &answer.refresh_token()).await;
    assert_eq!(answer.json()["scope"], "read write");
    assert_eq!(claims(&answer.access_token())["aud"], API);
    let token = answer.refresh_token();
    update(json!({ "resources": [], "default_resource": null })).await;
    refused(server.by(&client, &refresh(&token)), INVALID_TARGET).await;
    update(json!({ "resources": [API, FILES] })).await;
    let answer = server.refresh(&client, &token).await;
    assert_eq!(answer.json()["scope"], "files:read read write");
}

/// Who is signed out everywhere and signs in again at once gets tokens that count.
#[tokio::test]
async fn the_first_token_after_all_were_revoked_counts() {
    let server = TestServer::start().await;
    let ada = server.user("ada").await;
    let before = signed_in(&server, ada, &server.app).await;
    let answered = server.refresh(&server.app, &before).await;
    server
        .apply(Change::EndUserSessions {
            id: ada,
            tokens_die_at: server.clients.clock.now().plus(Duration::from_hours(1)),
        })
        .await;
    let token = signed_in(&server, ada, &server.app).await;
    let after = server.refresh(&server.app, &token).await;
    let is_active = async |token: String| {
        let request = server.request(reqwest::Method::POST, "/oauth2/introspect");
        let request = request.basic_auth("app", Some(&server.app.secret));
        let answer = answer(request.form(&[("token", token)])).await;
        answer.json()["active"] == true
    };
    soon(async { while is_active(answered.access_token()).await {} }).await;
    assert!(is_active(after.access_token()).await);
}

/// The database may be gone when a token is presented, or while it is: the client tries again.
#[tokio::test]
async fn without_a_database_nothing_is_lost_and_the_client_is_told_to_come_back() {
    let cluster = Cluster::start(Durability::Fast);
    let server = Setup::new().at(cluster.url()).start().await;
    let client = server.register(&public()).await;
    let ada = server.user("ada").await;
    let token = signed_in(&server, ada, &client).await;
    let successor = server.refresh(&client, &token).await.refresh_token();
    cluster.stop();
    for token in [&token, &successor] {
        let refusal = refused(
            server.by(&client, &refresh(token)),
            (503, "temporarily_unavailable", "database"),
        )
        .await;
        assert_eq!(refusal.header("retry-after"), Some("5"));
    }
    cluster.start_again();
    let answer = soon(async {
        loop {
            let answer = server.refresh(&client, &successor).await;
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                return answer;
            }
        }
    })
    .await;
    assert_ne!(answer.refresh_token(), successor);
}
