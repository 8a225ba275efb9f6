//! `grant_type=authorization_code` (RFC 6749 §4.1.3, RFC 7636 §4.5, OAuth 2.1 §7.5).

use std::{collections::HashSet, time::Duration};

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
    domain::{
        change::Change,
        code::{AuthorizationCode, s256},
        family::{EndReason, NoteKind},
        id::UserId,
        resource::ResourceUri,
        scope::Scope,
    },
};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use super::{INVALID_CLIENT, MALFORMED, REPEATED, Refusal, refused};
use crate::support::{
    database::{Cluster, Database, Durability, Engine},
    server::{API, Answer, FILES, Registered, Setup, TestServer, answer, metadata},
    sign_in::{
        SignedIn, VERIFIER, by, claims, code_for, public, put_code, redeem, refresh, update_user,
    },
    soon,
};

on_both_engines! {
    a_code_is_exchanged_for_tokens,
    a_second_use_ends_what_the_first_one_got,
    a_second_use_that_is_no_good_one_changes_nothing,
    many_who_redeem_one_code_at_once_get_one_answer_and_the_family_ends,
    a_code_is_for_its_client_alone,
    who_fails_to_authenticate_neither_uses_a_code_nor_ends_what_it_got,
    a_code_expires_to_the_millisecond,
    the_verifier_is_the_one_of_the_challenge,
    a_redirect_uri_that_is_sent_is_the_one_of_the_request,
    users_and_clients_are_asked_for_at_the_exchange,
    less_may_be_asked_for_and_a_mistake_uses_nothing_up,
    a_code_that_was_made_up_costs_no_query,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// Long before a code that is over is deleted.
const SOON: Duration = Duration::from_secs(10);

const fn grant(reason: &'static str) -> Refusal {
    (400, "invalid_grant", reason)
}

const REUSE: Refusal = grant("code_reuse");
const UNKNOWN: Refusal = grant("unknown_code");
const WRONG_VERIFIER: Refusal = grant("code_verifier");

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

    async fn of(setup: Setup) -> Self {
        let clock = ManualClock::new(NOW);
        let setup = setup.clock(clock.clone()).client("spa", public());
        let server = setup.start().await;
        let ada = server.user("ada").await;
        Self { server, clock, ada }
    }

    fn spa(&self) -> &Registered {
        self.server.other("spa")
    }

    async fn code(&self) -> String {
        self.server.code(self.spa(), self.ada).await
    }

    /// A code that is over before anybody thinks of deleting it.
    async fn short_lived(&self, client: &Registered) -> String {
        let grant = self.server.grant(client, self.ada).await;
        let mut code = code_for(grant, NOW);
        code.expires_at = NOW.plus(SOON);
        put_code(self.server.store(), &code).await
    }

    /// A code that differs from those of [`Self::code`].
    async fn code_with(&self, change: impl FnOnce(&mut AuthorizationCode)) -> String {
        let grant = self.server.grant(self.spa(), self.ada).await;
        let mut code = code_for(grant, self.server.clients.clock.now());
        change(&mut code);
        put_code(self.server.store(), &code).await
    }

    async fn redeemed(&self, code: &str) -> SignedIn {
        SignedIn::of(&self.server.redeem(self.spa(), code).await)
    }

    async fn refused(&self, code: &str, refusal: Refusal) {
        refused(self.server.by(self.spa(), &redeem(code)), refusal).await;
    }

    async fn is_active(&self, access_token: &str) -> bool {
        let request = self.server.request(Method::POST, "/oauth2/introspect");
        let app = &self.server.app;
        let answer = answer(by(request, app, &[("token", access_token)])).await;
        assert_eq!(answer.status, 200);
        answer.json()["active"] == true
    }
}

/// RFC 6749 §4.1.4 and §5.1.
async fn a_code_is_exchanged_for_tokens(engine: Engine) {
    let site = Site::on(engine).await;
    let answer = site.server.redeem(site.spa(), &site.code().await).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    let names = body.as_object().unwrap().keys().map(String::as_str);
    let expected = [
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "scope",
    ];
    assert_eq!(names.collect::<HashSet<_>>(), HashSet::from(expected));
    let signed_in = SignedIn::of(&answer);
    assert!(signed_in.refresh_token.starts_with("cs_rt_"));
    let claims = claims(&signed_in.access_token);
    let family = site.server.family(signed_in.family).await;
    assert_eq!((family.counter, family.grant.subject), (0, site.ada));
    assert_eq!(
        claims,
        json!({
            "iss": site.server.issuer,
            "sub": site.ada.to_string(),
            "client_id": "spa",
            "aud": API,
            "scope": "read write",
            "iat": 1_800_000_000,
            "exp": 1_800_000_000 + body["expires_in"].as_i64().unwrap(),
            "jti": claims["jti"],
            "auth_time": 1_800_000_000,
            "acr": "urn:countersign:acr:1",
            "amr": ["pwd"],
            "sid": family.id.to_string(),
        })
    );
    site.server
        .refresh(site.spa(), &signed_in.refresh_token)
        .await
        .refresh_token();
}

/// "If an authorization code is used more than once, the authorization server MUST deny the request and
/// SHOULD revoke (when possible) all tokens previously issued based on that authorization code"
/// (RFC 6749 §4.1.2).
async fn a_second_use_ends_what_the_first_one_got(engine: Engine) {
    let site = Site::on(engine).await;
    // At the client that may introspect it.
    let (server, app) = (&site.server, &site.server.app);
    let code = server.code(app, site.ada).await;
    let signed_in = SignedIn::of(&server.redeem(app, &code).await);
    let refreshed = server.refresh(app, &signed_in.refresh_token).await;
    assert!(site.is_active(&refreshed.access_token()).await);
    refused(server.by(app, &redeem(&code)), REUSE).await;
    // It is committed although the request failed.
    let family = server.family(signed_in.family).await;
    assert_eq!(family.revoke_reason, Some(EndReason::CodeReuse));
    let notes: Vec<NoteKind> = family.notes.iter().map(|note| note.kind).collect();
    assert_eq!(notes, [NoteKind::CodeReused]);
    for token in [&signed_in.refresh_token, &refreshed.refresh_token()] {
        refused(server.by(app, &refresh(token)), grant("revoked")).await;
    }
    for token in [&signed_in.access_token, &refreshed.access_token()] {
        assert!(!site.is_active(token).await);
    }
    // A third use finds nothing to end, and gets no more.
    refused(server.by(app, &redeem(&code)), REUSE).await;
}

/// Otherwise whoever finds a used code could sign its user out.
async fn a_second_use_that_is_no_good_one_changes_nothing(engine: Engine) {
    let site = Site::on(engine).await;
    let server = &site.server;
    let code = site
        .code_with(|code| {
            code.redirect_uri = Some("https://app.example/back".to_owned());
            code.expires_at = NOW.plus(SOON);
        })
        .await;
    let signed_in = site.redeemed(&code).await;
    let other_verifier = "x".repeat(43);
    for (parameter, value, refusal) in [
        ("code_verifier", "", WRONG_VERIFIER),
        ("code_verifier", &*other_verifier, WRONG_VERIFIER),
        (
            "redirect_uri",
            "https://app.example/",
            grant("redirect_uri"),
        ),
        ("scope", "admin", (400, "invalid_scope", "scope")),
        ("resource", FILES, (400, "invalid_target", "resource")),
    ] {
        let mut form = redeem(&code).to_vec();
        form.retain(|(name, _)| *name != parameter);
        form.push((parameter, value));
        refused(server.by(site.spa(), &form), refusal).await;
    }
    let request = server.by(&server.app, &redeem(&code));
    refused(request, grant("other_client")).await;
    site.clock.advance(SOON);
    site.refused(&code, grant("expired")).await;
    let family = server.family(signed_in.family).await;
    assert_eq!(family.revoked_at, None);
    assert!(
        server
            .refresh(site.spa(), &signed_in.refresh_token)
            .await
            .status
            == 200
    );
}

/// "50 parallel redemptions over two processes → exactly one 200"; on Postgres at two nodes.
async fn many_who_redeem_one_code_at_once_get_one_answer_and_the_family_ends(engine: Engine) {
    let site = Site::on(engine).await;
    let second = match engine {
        Engine::Sqlite => None,
        Engine::Postgres => Some(site.server.beside().await),
    };
    let rush = async || {
        let code = site.code().await;
        let mut requests = JoinSet::new();
        for number in 0..50 {
            let request = match &second {
                Some(node) if number % 2 == 1 => node.request(Method::POST, "/oauth2/token"),
                _ => site.server.token_request(),
            };
            requests.spawn(answer(by(request, site.spa(), &redeem(&code))));
        }
        soon(requests.join_all()).await
    };
    let mut answers = rush().await;
    for _ in 0..4 {
        // Some would have had to wait for too long.
        if answers.iter().any(|answer| answer.status == 503) {
            answers = rush().await;
        }
    }
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!((good.len(), bad.len()), (1, 49));
    for answer in bad {
        let reason = answer.header("countersign-reason");
        assert_eq!((answer.status, reason), (400, Some("code_reuse")));
    }
    let signed_in = SignedIn::of(good[0]);
    let family = site.server.family(signed_in.family).await;
    assert_eq!(family.revoke_reason, Some(EndReason::CodeReuse));
    let token = &signed_in.refresh_token;
    let request = site.server.by(site.spa(), &refresh(token));
    refused(request, grant("revoked")).await;
}

/// "ensure that the authorization code was issued to the authenticated confidential client, or if the
/// client is public, ensure that the code was issued to `client_id` in the request" (RFC 6749 §4.1.3).
async fn a_code_is_for_its_client_alone(engine: Engine) {
    let site = Site::on(engine).await;
    let server = &site.server;
    let code = server.code(&server.app, site.ada).await;
    let stolen = site.short_lived(site.spa()).await;
    site.refused(&code, grant("other_client")).await;
    server.redeem(&server.app, &code).await.refresh_token();
    // Also after its time: neither of two refusals hides the other.
    site.clock.advance(SOON);
    let request = server.by(&server.app, &redeem(&stolen));
    refused(request, grant("other_client")).await;
    site.refused(&stolen, grant("expired")).await;
}

/// RFC 6749 §3.2.1: the client is authenticated first; "binding" a code to it would be worth nothing
/// otherwise.
async fn who_fails_to_authenticate_neither_uses_a_code_nor_ends_what_it_got(engine: Engine) {
    let server = Setup::new()
        .on(engine)
        .client("spa", public())
        .start()
        .await;
    let ada = server.user("ada").await;
    let other = server.register(&metadata()).await;
    let (of_app, of_spa) = (
        server.code(&server.app, ada).await,
        server.code(server.other("spa"), ada).await,
    );
    let nobody_may = async || {
        for secret in ["wrong", "", &other.secret] {
            let basic = server.token_request().basic_auth("app", Some(secret));
            refused(basic.form(&redeem(&of_app)), INVALID_CLIENT).await;
        }
        // Of a public client the id is all there is, and it has to be there.
        for (code, id) in [(&of_app, Some("app")), (&of_app, None), (&of_spa, None)] {
            let mut form = redeem(code).to_vec();
            form.extend(id.map(|id| ("client_id", id)));
            refused(server.token_request().form(&form), INVALID_CLIENT).await;
        }
    };
    nobody_may().await;
    let signed_in = [
        SignedIn::of(&server.redeem(&server.app, &of_app).await),
        SignedIn::of(&server.redeem(server.other("spa"), &of_spa).await),
    ];
    nobody_may().await;
    for (signed_in, client) in signed_in.iter().zip([&server.app, server.other("spa")]) {
        assert_eq!(server.family(signed_in.family).await.revoked_at, None);
        let refreshed = server.refresh(client, &signed_in.refresh_token).await;
        refreshed.refresh_token();
    }
}

async fn a_code_expires_to_the_millisecond(engine: Engine) {
    let site = Site::on(engine).await;
    let (good, late) = (
        site.short_lived(site.spa()).await,
        site.short_lived(site.spa()).await,
    );
    let moment = Duration::from_millis(1);
    site.clock.advance(SOON.saturating_sub(moment));
    site.redeemed(&good).await;
    site.clock.advance(moment);
    site.refused(&late, grant("expired")).await;
}

/// RFC 7636 §4.6; OAuth 2.1 §7.5.2.
async fn the_verifier_is_the_one_of_the_challenge(engine: Engine) {
    let site = Site::on(engine).await;
    let code = site.code().await;
    let last_differs = format!("{}j", &VERIFIER[..42]);
    let challenge = s256(VERIFIER).unwrap();
    for verifier in [
        "",
        "wrong",
        &last_differs,
        &challenge,
        &VERIFIER[..42],
        &format!("{VERIFIER} "),
        &"x".repeat(128),
        &"x".repeat(129),
        &"ä".repeat(43),
    ] {
        let mut form = redeem(&code).to_vec();
        form[2] = ("code_verifier", verifier);
        refused(site.server.by(site.spa(), &form), WRONG_VERIFIER).await;
    }
    let without = &redeem(&code)[..2];
    refused(site.server.by(site.spa(), without), WRONG_VERIFIER).await;
    site.redeemed(&code).await;

    // RFC 9700 §2.1.1: a verifier is accepted only if there was a challenge.
    let code = site.code_with(|code| code.code_challenge = None).await;
    let unexpected = (400, "invalid_request", "code_verifier_unexpected");
    site.refused(&code, unexpected).await;
    let answer = site.server.exchange(site.spa(), &redeem(&code)[..2]).await;
    answer.refresh_token();
}

/// OAuth 2.1 leaves it out; RFC 6749 §4.1.3 wants it to be identical.
async fn a_redirect_uri_that_is_sent_is_the_one_of_the_request(engine: Engine) {
    let site = Site::on(engine).await;
    let uri = "https://app.example/back?a=1";
    let redirected = async || {
        site.code_with(|code| code.redirect_uri = Some(uri.to_owned()))
            .await
    };
    let with = async |code: &str, uri: &str| {
        let mut form = redeem(code).to_vec();
        form.push(("redirect_uri", uri));
        site.server.by(site.spa(), &form)
    };
    let code = redirected().await;
    for other in [
        "https://app.example/back",
        "https://app.example/back?a=1#",
        "https://APP.example/back?a=1",
        "x",
    ] {
        let request = with(&code, other).await;
        refused(request, grant("redirect_uri")).await;
    }
    assert_eq!(answer(with(&code, uri).await).await.status, 200);
    // Without one, and with an empty one, which is none.
    site.redeemed(&redirected().await).await;
    let request = with(&redirected().await, "").await;
    assert_eq!(answer(request).await.status, 200);
    // There was none.
    let request = with(&site.code().await, uri).await;
    refused(request, grant("redirect_uri")).await;
}

/// "revoked grant or disabled user between issue and exchange".
async fn users_and_clients_are_asked_for_at_the_exchange(engine: Engine) {
    let site = Site::on(engine).await;
    let server = &site.server;
    let mut codes = Vec::new();
    let mut users = Vec::new();
    for name in ["disabled", "ended", "deleted", "bystander"] {
        let user = server.user(name).await;
        users.push(user);
        codes.push(server.code(site.spa(), user).await);
    }
    update_user(server.store(), users[0], NOW, |user| user.disabled = true).await;
    for change in [
        Change::EndUserSessions {
            id: users[1],
            tokens_die_at: NOW,
        },
        Change::DeleteUser {
            id: users[2],
            expected: 1,
            tokens_die_at: NOW,
        },
    ] {
        server.apply(change).await;
    }
    let reasons = ["user_disabled", "user_sessions_ended", "user_deleted"];
    for (code, reason) in codes.iter().zip(reasons) {
        site.refused(code, grant(reason)).await;
    }
    site.redeemed(&codes[3]).await;
    let code = site.code().await;
    server
        .apply(Change::RevokeClientTokens {
            client_id: server.grant(site.spa(), site.ada).await.client_id,
            tokens_die_at: NOW,
        })
        .await;
    site.refused(&code, grant("client_sessions_ended")).await;
}

/// RFC 8707 §2.2: the first access token may be for less; the refresh token is for all.
async fn less_may_be_asked_for_and_a_mistake_uses_nothing_up(engine: Engine) {
    let site = Site::on(engine).await;
    let code = site
        .code_with(|code| {
            code.grant.scope = Scope::parse("read write files:read").unwrap();
            code.grant
                .resources
                .push(ResourceUri::parse(FILES).unwrap());
        })
        .await;
    let ask = |more: &[(&'static str, &'static str)]| {
        let form = [&redeem(&code)[..], more].concat();
        site.server.by(site.spa(), &form)
    };
    let invalid_scope = (400, "invalid_scope", "scope");
    for scope in ["admin", "read admin", "read  write", "r\""] {
        refused(ask(&[("scope", scope)]), invalid_scope).await;
    }
    // What the client could have and was not granted.
    let little = site
        .code_with(|code| code.grant.scope = Scope::parse("read").unwrap())
        .await;
    let ask_more = |more| {
        let form = [&redeem(&little)[..], &[more]].concat();
        site.server.by(site.spa(), &form)
    };
    refused(ask_more(("scope", "read write")), invalid_scope).await;
    refused(
        ask_more(("resource", FILES)),
        (400, "invalid_target", "resource"),
    )
    .await;
    assert_eq!(site.redeemed(&little).await.scope(), "read");
    let invalid_target = (400, "invalid_target", "resource");
    for resource in ["https://other.example", "no uri"] {
        refused(ask(&[("resource", resource)]), invalid_target).await;
    }
    let answer = answer(ask(&[("resource", FILES), ("scope", "files:read read")])).await;
    let narrow = claims(&answer.access_token());
    assert_eq!(
        (&narrow["aud"], &narrow["scope"]),
        (&json!(FILES), &json!("files:read"))
    );
    let token = answer.refresh_token();
    let refreshed = site.server.refresh(site.spa(), &token).await;
    let all = claims(&refreshed.access_token());
    assert_eq!(all["aud"], json!([API, FILES]));
    assert_eq!(all["scope"], "files:read read write");
}

/// Where there is no table to look into, whoever looks into it fails.
async fn a_code_that_was_made_up_costs_no_query(engine: Engine) {
    let database = Database::create(engine).await;
    let site = Site::of(Setup::new().at(database.url())).await;
    let code = site.code().await;
    let rename = |from: &str, to: &str| format!("alter table {from} rename to {to}");
    database
        .execute(&rename("authorization_code", "gone"))
        .await;
    site.refused(&code, (500, "server_error", "internal")).await;
    let padded = format!("{code}=");
    for made_up in [
        "x",
        "cs_ac_",
        &code[..48],
        &padded,
        &code.replace("cs_ac_", "cs_as_"),
        &code.to_uppercase(),
        "a\0b",
        &"a".repeat(60_000),
    ] {
        site.refused(made_up, UNKNOWN).await;
    }
    // So does a verifier that can be none.
    let mut form = redeem(&code);
    form[2].1 = "short";
    refused(site.server.by(site.spa(), &form), WRONG_VERIFIER).await;
    database
        .execute(&rename("gone", "authorization_code"))
        .await;
    site.redeemed(&code).await;
    site.refused(&format!("cs_ac_{}", "A".repeat(43)), UNKNOWN)
        .await;
}

/// RFC 6749 §3.2.
#[tokio::test]
async fn a_code_is_needed_and_no_parameter_comes_twice() {
    let site = Site::on(Engine::Sqlite).await;
    let code = site.code().await;
    for form in [
        &[("grant_type", "authorization_code")][..],
        &[("grant_type", "authorization_code"), ("code", "")],
    ] {
        refused(site.server.by(site.spa(), form), MALFORMED).await;
    }
    for twice in [
        "client_id",
        "code",
        "code_verifier",
        "grant_type",
        "redirect_uri",
        "scope",
    ] {
        for value in ["", "read"] {
            let mut form = redeem(&code).to_vec();
            form.extend([(twice, value), (twice, value)]);
            refused(site.server.by(site.spa(), &form), REPEATED).await;
        }
    }
    site.redeemed(&code).await;
}

/// The family is there all the same: its client can end it, and operators see it.
#[tokio::test]
async fn a_client_without_the_refresh_grant_gets_no_refresh_token() {
    let metadata = ClientMetadata {
        grant_types: Some(vec!["authorization_code".to_owned()]),
        ..public()
    };
    let site = Site::of(Setup::new().client("once", metadata)).await;
    let client = site.server.other("once");
    let code = site.server.code(client, site.ada).await;
    let answer = site.server.redeem(client, &code).await;
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().get("refresh_token"), None);
    let sid = claims(&answer.access_token())["sid"].clone();
    let id = countersign::domain::id::FamilyId::parse(sid.as_str().unwrap()).unwrap();
    assert_eq!(site.server.family(id).await.grant.subject, site.ada);
    let without = ClientMetadata {
        grant_types: Some(vec!["refresh_token".to_owned()]),
        ..public()
    };
    let site = Site::of(Setup::new().client("without", without)).await;
    let client = site.server.other("without");
    let request = site.server.by(client, &redeem(&code));
    refused(request, (400, "unauthorized_client", "grant_type")).await;
}

#[tokio::test]
async fn without_a_database_a_code_is_not_used_up() {
    let cluster = Cluster::start(Durability::Fast);
    let server = Setup::new().at(cluster.url()).start().await;
    let client = server.register(&public()).await;
    let ada = server.user("ada").await;
    // The server knows the client after that.
    server.sign_in(&client, ada).await;
    let code = server.code(&client, ada).await;
    cluster.stop();
    let refusal = (503, "temporarily_unavailable", "database");
    let refusal = refused(server.by(&client, &redeem(&code)), refusal).await;
    assert_eq!(refusal.header("retry-after"), Some("5"));
    cluster.start_again();
    let answer: Answer = soon(async {
        loop {
            let answer = server.redeem(&client, &code).await;
            if answer.status != 503 {
                return answer;
            }
        }
    })
    .await;
    answer.refresh_token();
}
