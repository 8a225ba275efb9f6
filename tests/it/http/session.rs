//! The tokens of sign-ins: how clients end them (RFC 7009), and what introspection tells of them
//! (RFC 7662).

use std::time::Duration;

use countersign::{
    admin::resource::{ResourceAdmin, ResourceMetadata},
    clock::{ManualClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        event::EventQuery,
        family::{EndReason, FamilyQuery},
        id::ClientId,
        user::User,
    },
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    database::{Cluster, Durability, Engine},
    server::{API, ISSUER, Registered, Setup, TestServer, answer, metadata},
    sign_in::{SignedIn, public, redeem},
    soon,
};

on_both_engines! {
    what_is_ended_while_its_tokens_are_awaited_gets_none,
    a_revoked_refresh_token_ends_its_session,
    any_spent_token_ends_its_session_and_no_other,
    a_session_that_has_ended_is_inactive_at_once,
    a_client_that_revokes_too_many_tokens_ends_their_sessions,
}

const INACTIVE: &str = "{\"active\":false}";

/// Long enough that nobody learns of anything by following the database.
const RARELY: (&str, &str) = ("sync.poll_interval_ms", "10000");

impl TestServer {
    async fn ask(&self, path: &str, client: &Registered, form: &[(&str, &str)]) -> (u16, String) {
        let request = self.request(Method::POST, path);
        let request = request.basic_auth(&client.id, Some(&client.secret));
        let answer = answer(request.form(form)).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        (answer.status, answer.body)
    }

    async fn told(&self, client: &Registered, token: &str) -> Value {
        let form = [("token", token)];
        let (status, body) = self.ask("/oauth2/introspect", client, &form).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn is_active(&self, client: &Registered, token: &str) -> bool {
        let told = self.told(client, token).await;
        if told["active"] == false {
            assert_eq!(told.to_string(), INACTIVE);
        }
        told["active"] == true
    }

    /// Whether access and refresh token are active; both or neither.
    async fn lives(&self, signed_in: &SignedIn) -> bool {
        let access = self.is_active(&self.app, &signed_in.access_token).await;
        let refresh = self.is_active(&self.app, &signed_in.refresh_token).await;
        assert_eq!(access, refresh);
        access
    }

    async fn revoked(&self, client: &Registered, token: &str) {
        let form = [("token", token)];
        let done = self.ask("/oauth2/revoke", client, &form).await;
        assert_eq!(done, (200, String::new()));
    }
}

/// The reason that a refused refresh is told.
async fn reason(server: &TestServer, token: &str) -> String {
    let refused = server.refresh(&server.app, token).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"], "invalid_grant");
    refused.header("countersign-reason").unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&countersign_verifier::base64url::decode(payload).unwrap()).unwrap()
}

/// RFC 7009 §2.1: "If the particular token is a refresh token and the authorization server supports
/// the revocation of access tokens, then the authorization server SHOULD also invalidate all access
/// tokens based on the same authorization grant".
async fn a_revoked_refresh_token_ends_its_session(engine: Engine) {
    let server = Setup::new().on(engine).set(RARELY.0, RARELY.1);
    let server = server.start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let other = server.sign_in(&server.app, ada).await;
    let refreshed = server.refresh(&server.app, &signed_in.refresh_token).await;
    let (access, refresh) = (refreshed.access_token(), refreshed.refresh_token());
    server.revoked(&server.app, &refresh).await;
    for token in [&signed_in.access_token, &access, &refresh] {
        assert!(!server.is_active(&server.app, token).await);
    }
    assert_eq!(reason(&server, &refresh).await, "revoked");
    assert!(server.lives(&other).await);
    // Again, it is no error and no second end.
    let before = server.family(signed_in.family).await;
    assert_eq!(before.revoke_reason, Some(EndReason::RevokedByClient));
    server.revoked(&server.app, &refresh).await;
    assert_eq!(server.family(signed_in.family).await, before);
    let events = EventQuery {
        kinds: vec![EventType::FamilyRevoked],
        limit: 9,
        ..EventQuery::default()
    };
    let events = server.store().events(&events).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].target, signed_in.family.to_string());
    assert_eq!(events[0].cause.actor, server.app.id);
    assert!(events[0].cause.address.is_some());
    let after = events[0].after.as_ref().unwrap();
    assert_eq!(after["reason"], "revoked_by_client");
}

/// A client that has lost an answer has only the token before: signing out works with it, too.
async fn any_spent_token_ends_its_session_and_no_other(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let ada = server.user("ada").await;
    for spent in 0..4 {
        let signed_in = server.sign_in(&server.app, ada).await;
        let other = server.sign_in(&server.app, ada).await;
        let mut tokens = vec![signed_in.refresh_token.clone()];
        for _ in 0..3 {
            let refreshed = server.refresh(&server.app, tokens.last().unwrap()).await;
            tokens.push(refreshed.refresh_token());
        }
        assert!(server.is_active(&server.app, &tokens[3]).await);
        server.revoked(&server.app, &tokens[spent]).await;
        let family = server.family(signed_in.family).await;
        assert_eq!(family.revoke_reason, Some(EndReason::RevokedByClient));
        assert!(!server.is_active(&server.app, &tokens[3]).await);
        assert!(server.lives(&other).await);
    }
}

/// RFC 7009 §2.1: "If this validation fails, the request is refused and the client is informed of
/// the error".
#[tokio::test]
async fn the_refresh_token_of_another_client_is_refused_and_its_session_goes_on() {
    let server = TestServer::start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let refreshed = server.refresh(&server.app, &signed_in.refresh_token).await;
    let refresh = refreshed.refresh_token();
    let stranger = server.register(&metadata()).await;
    for token in [&signed_in.refresh_token, &refresh, &signed_in.access_token] {
        let form = [("token", token.as_str())];
        let (status, body) = server.ask("/oauth2/revoke", &stranger, &form).await;
        assert_eq!(status, 400, "{body}");
        assert!(body.contains("\"invalid_grant\""), "{body}");
    }
    let access = refreshed.access_token();
    assert!(server.is_active(&server.app, &access).await);
    assert!(server.is_active(&server.app, &refresh).await);
    assert_eq!(server.refresh(&server.app, &refresh).await.status, 200);
}

/// RFC 7009 §2.1: "The authorization server first validates the client credentials (in case of a
/// confidential client) and then verifies whether the token was issued to the client".
#[tokio::test]
async fn a_public_client_signs_out_with_its_id_and_no_other_client_can() {
    let setup = Setup::new().client("spa", public());
    let server = setup.client("other", public()).start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(server.other("spa"), ada).await;
    let refreshed = server.refresh(server.other("spa"), &signed_in.refresh_token);
    let newest = refreshed.await.refresh_token();
    let revoke = async |id: Option<&str>, token: &str| {
        let mut form = vec![("token", token)];
        form.extend(id.map(|id| ("client_id", id)));
        let request = server.request(Method::POST, "/oauth2/revoke");
        answer(request.form(&form)).await
    };
    for token in [&signed_in.refresh_token, &newest, &signed_in.access_token] {
        for (id, status, reason) in [
            (None, 401, "client_authentication"),
            (Some("app"), 401, "client_authentication"),
            (Some("nobody"), 401, "client_authentication"),
            (Some("other"), 400, "other_client"),
        ] {
            let refused = revoke(id, token).await;
            let told = (refused.status, refused.header("countersign-reason"));
            assert_eq!(told, (status, Some(reason)), "{id:?}");
        }
    }
    let refreshed = server.refresh(server.other("spa"), &newest).await;
    let last = refreshed.refresh_token();
    let done = revoke(Some("spa"), &signed_in.refresh_token).await;
    assert_eq!((done.status, done.body.as_str()), (200, ""));
    let refused = server.refresh(server.other("spa"), &last).await;
    assert_eq!(refused.header("countersign-reason"), Some("revoked"));
}

/// RFC 7009 §2.1: "If the server is unable to locate the token using the given hint, it MUST extend
/// its search across all of its supported token types".
#[tokio::test]
async fn hints_change_nothing_about_what_is_revoked() {
    let server = TestServer::start().await;
    let ada = server.user("ada").await;
    for hint in ["access_token", "refresh_token", "nonsense", ""] {
        let signed_in = server.sign_in(&server.app, ada).await;
        let form = |token| [("token", token), ("token_type_hint", hint)];
        let told = form(signed_in.refresh_token.as_str());
        let (_, body) = server.ask("/oauth2/introspect", &server.app, &told).await;
        assert!(body.contains("\"active\":true"), "{hint}");
        let done = server.ask("/oauth2/revoke", &server.app, &told).await;
        assert_eq!(done, (200, String::new()), "{hint}");
        assert!(!server.lives(&signed_in).await, "{hint}");
    }
}

/// RFC 7009 §2.1: an access token that is revoked may leave its refresh token alone.
#[tokio::test]
async fn a_revoked_access_token_leaves_its_session_alone() {
    let server = TestServer::start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let refreshed = server.refresh(&server.app, &signed_in.refresh_token).await;
    server.revoked(&server.app, &signed_in.access_token).await;
    soon(async { while server.is_active(&server.app, &signed_in.access_token).await {} }).await;
    let access = refreshed.access_token();
    assert!(server.is_active(&server.app, &access).await);
    let refresh = refreshed.refresh_token();
    assert_eq!(server.refresh(&server.app, &refresh).await.status, 200);
}

/// Whoever makes tokens up asks nothing of the database, and changes nothing: it may as well be down.
#[tokio::test]
async fn what_was_never_minted_is_none_to_revoke_and_asks_nothing_of_the_database() {
    let cluster = Cluster::start(Durability::Fast);
    let server = Setup::new().at(cluster.url()).start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let own = server.token().await.access_token();
    cluster.crash();
    let token = &signed_in.refresh_token;
    let (head, tail) = token.split_at(token.len() - 2);
    let other_tag = format!("{head}{}", tail.chars().rev().collect::<String>());
    assert_ne!(other_tag, *token);
    for forged in [
        other_tag.as_str(),
        "cs_rt_",
        "cs_rt_x",
        &token[..token.len() - 1],
        &format!("{token}A"),
        &token.replace("cs_rt_", "cs_at_"),
        "nonsense",
    ] {
        server.revoked(&server.app, forged).await;
        assert!(!server.is_active(&server.app, forged).await);
    }
    // Of a living session nobody can tell now; of a token without one this node can.
    for token in [&signed_in.refresh_token, &signed_in.access_token] {
        for path in ["/oauth2/introspect", "/oauth2/revoke"] {
            let form = [("token", token.as_str())];
            let (status, body) = server.ask(path, &server.app, &form).await;
            assert_eq!(status, 503, "{path} {body}");
            assert!(body.contains("\"temporarily_unavailable\""), "{body}");
        }
    }
    assert!(server.is_active(&server.app, &own).await);
    cluster.start_again();
    soon(async { while server.refresh(&server.app, token).await.status != 200 {} }).await;
}

/// RFC 7662 §2.2, and what RFC 9068 §2.2 adds for sign-ins.
#[tokio::test]
async fn the_tokens_of_a_session_are_told_with_their_user() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let ada = server.user("Ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let mut told = server.told(&server.app, &signed_in.access_token).await;
    let members = told.as_object_mut().unwrap();
    assert_eq!(members.remove("active"), Some(json!(true)));
    assert_eq!(members.remove("token_type"), Some(json!("Bearer")));
    assert_eq!(members.remove("username"), Some(json!("Ada")));
    let mut claims = claims(&signed_in.access_token);
    assert_eq!(claims["sid"], signed_in.family.to_string());
    claims.as_object_mut().unwrap().remove("amr");
    assert_eq!(told, claims);
    // The one that the family is at, for its own client alone, as long as it may be used.
    server.pass(&clock, Duration::from_secs(100)).await;
    let refreshed = server.refresh(&server.app, &signed_in.refresh_token).await;
    let mut refresh = refreshed.refresh_token();
    assert!(
        !server
            .is_active(&server.app, &signed_in.refresh_token)
            .await
    );
    let family = server.family(signed_in.family).await;
    assert!(family.rotated_at.seconds() >= 1_800_000_100);
    let week = 7 * 24 * 3600;
    assert_eq!(
        server.told(&server.app, &refresh).await,
        json!({
            "active": true,
            "client_id": server.app.id,
            "sub": ada.to_string(),
            "username": "Ada",
            "scope": "read write",
            "iat": family.rotated_at.seconds(),
            "exp": family.rotated_at.seconds() + week,
            "iss": ISSUER,
        })
    );
    // The absolute end, once that is the earlier.
    for _ in 0..4 {
        server.pass(&clock, Duration::from_hours(6 * 24)).await;
        refresh = server.refresh(&server.app, &refresh).await.refresh_token();
    }
    let told = server.told(&server.app, &refresh).await;
    assert_eq!(told["exp"], family.expires_at.seconds());
    // Where the client may not use it any more, it is none.
    let patch = json!({ "grant_types": ["client_credentials"] });
    server.update(&server.app, patch).await;
    soon(async {
        while server.is_active(&server.app, &refresh).await {
            clock.advance(Duration::from_millis(10));
        }
    })
    .await;
}

#[tokio::test]
async fn a_refresh_token_is_the_business_of_its_own_client_alone() {
    let server = TestServer::start().await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let gateway = server.register(&metadata()).await;
    assert!(!server.is_active(&gateway, &signed_in.refresh_token).await);
    // A service that is told about access tokens for it learns nothing of those that make them.
    let resources = ResourceAdmin {
        store: server.clients.store.clone(),
        clock: server.clients.clock.clone(),
        entropy: server.clients.entropy.clone(),
        issuer: server.issuer.clone(),
    };
    let api = resources.list().await.unwrap();
    let api = api.iter().find(|one| one.resource.as_str() == API).unwrap();
    let cause = Cause::system();
    resources.delete(api.id, &cause).await.unwrap();
    let metadata = ResourceMetadata {
        resource: API.to_owned(),
        name: "A resource".to_owned(),
        scopes: vec!["read".to_owned(), "write".to_owned()],
        introspection_clients: vec![gateway.id.clone()],
        ..ResourceMetadata::default()
    };
    resources.create(&metadata, false, &cause).await.unwrap();
    server.renewed().await;
    assert!(server.is_active(&gateway, &signed_in.access_token).await);
    assert!(!server.is_active(&gateway, &signed_in.refresh_token).await);
}

/// Although the node has not followed the database since.
async fn a_session_that_has_ended_is_inactive_at_once(engine: Engine) {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().on(engine).clock(clock.clone());
    let server = server.set(RARELY.0, RARELY.1).start().await;
    let now = || server.clients.clock.now();
    let changed = async |user: User, event| Change::PutUser {
        expected: Some(user.revision),
        user: Box::new(user),
        event,
        ends_sessions: false,
        tokens_die_at: now(),
    };
    let signed_in = async |name: &str| {
        let user = server.user(name).await;
        let signed_in = server.sign_in(&server.app, user).await;
        assert!(server.lives(&signed_in).await);
        let user = server.store().user(user).await.unwrap().unwrap();
        (user, signed_in)
    };
    let (user, ended) = signed_in("ended").await;
    let change = Change::EndUserSessions {
        id: user.id,
        tokens_die_at: now(),
    };
    server.apply(change).await;
    assert!(!server.lives(&ended).await);

    let (user, disabled) = signed_in("disabled").await;
    let user = User {
        disabled: true,
        ..user
    };
    let change = changed(user.clone(), EventType::UserDisabled).await;
    server.apply(change).await;
    assert!(!server.lives(&disabled).await);
    // Enabling the user brings nobody back.
    let user = User {
        disabled: false,
        revision: user.revision + 1,
        ..user
    };
    let change = changed(user, EventType::UserEnabled).await;
    server.apply(change).await;
    assert!(!server.lives(&disabled).await);

    let (user, deleted) = signed_in("deleted").await;
    let change = Change::DeleteUser {
        id: user.id,
        expected: user.revision,
        tokens_die_at: now(),
    };
    server.apply(change).await;
    assert!(!server.lives(&deleted).await);

    let (_, by_operator) = signed_in("by-operator").await;
    let change = Change::EndFamily {
        family: by_operator.family,
        reason: EndReason::RevokedByOperator,
        tokens_die_at: now(),
    };
    server.apply(change).await;
    assert!(!server.lives(&by_operator).await);

    let (_, of_client) = signed_in("of-client").await;
    let change = Change::RevokeClientTokens {
        client_id: ClientId::parse(&server.app.id).unwrap(),
        tokens_die_at: now(),
    };
    server.apply(change).await;
    assert!(!server.lives(&of_client).await);
}

/// What a client can make the nodes remember is bounded.
async fn a_client_that_revokes_too_many_tokens_ends_their_sessions(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let (ada, bob) = (server.user("ada").await, server.user("bob").await);
    let one = server.sign_in(&server.app, ada).await;
    let other = server.sign_in(&server.app, bob).await;
    let far = server.clients.clock.now().plus(Duration::from_hours(1));
    for number in 0..1000 {
        server
            .apply(Change::RevokeToken {
                jti: number.to_string(),
                family: None,
                client_id: Some(ClientId::parse(&server.app.id).unwrap()),
                token_dies_at: far,
                tokens_die_at: far,
            })
            .await;
    }
    server.revoked(&server.app, &one.access_token).await;
    assert!(!server.lives(&one).await);
    let family = server.family(one.family).await;
    assert_eq!(family.revoke_reason, Some(EndReason::RevokedByClient));
    assert!(server.lives(&other).await);
}

/// Of two revocations in one second, the second one covers what was issued between them: nothing, as
/// that has to wait for the end of the second.
async fn what_is_ended_while_its_tokens_are_awaited_gets_none(engine: Engine) {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().on(engine).clock(clock.clone());
    let server = server.set(RARELY.0, RARELY.1).start().await;
    let ada = server.user("ada").await;
    let end = || {
        server.apply(Change::EndUserSessions {
            id: ada,
            tokens_die_at: server.clients.clock.now(),
        })
    };
    clock.advance(Duration::from_millis(300));
    end().await;
    let code = server.code(&server.app, ada).await;
    let waiting = tokio::spawn(answer(server.by(&server.app, &redeem(&code))));
    let query = FamilyQuery {
        limit: 1,
        ..FamilyQuery::default()
    };
    let is_opened = async || !server.store().families(&query).await.unwrap().is_empty();
    soon(async { while !is_opened().await {} }).await;
    end().await;
    clock.advance(Duration::from_millis(1700));
    let refused = soon(waiting).await.unwrap();
    assert_eq!(refused.status, 400, "{refused:?}");
    let reason = refused.header("countersign-reason");
    assert_eq!(reason, Some("user_sessions_ended"));
    // Whoever signs in now gets what counts.
    assert!(server.lives(&server.sign_in(&server.app, ada).await).await);
}
