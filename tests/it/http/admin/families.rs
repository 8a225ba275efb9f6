//! `/admin/v1/families`: the sessions of users, and what has become of them.

use countersign::{
    clock::{Clock as _, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        id::{ClientId, UserId},
        key::{KeySchedule, KeyUse},
        user::User,
    },
};

use super::*;
use crate::support::{
    database::{Database, Engine},
    server::{Setup, metadata},
    sign_in::{SignedIn, refresh},
};

on_both_engines! {
    a_session_is_shown_as_its_token_says,
    sessions_are_found_by_user_and_client_and_state,
    an_operator_ends_a_session_once,
    the_story_of_a_stolen_token_names_both_parties,
    the_story_tells_of_everything_worth_a_note,
    the_story_tells_what_ended_all_sessions_of_a_user,
    the_story_tells_what_ended_all_sessions_at_a_client,
    the_story_tells_of_time_that_ran_out,
}

const NOW: i64 = 1_800_000_000;

/// A server where time stands still, with a session of `ada` at `app`.
struct Scene {
    clock: ManualClock,
    server: TestServer,
    database: Database,
    ada: UserId,
}

impl Scene {
    async fn set(engine: Engine) -> Self {
        let clock = ManualClock::new(Timestamp::from_seconds(NOW));
        let database = Database::create(engine).await;
        let server = Setup::new().at(database.url()).clock(clock.clone());
        let server = server.start().await;
        let ada = server.user("ada").await;
        Self {
            clock,
            server,
            database,
            ada,
        }
    }

    async fn sign_in(&self) -> SignedIn {
        self.server.sign_in(&self.server.app, self.ada).await
    }

    async fn desk(&self) -> Desk<'_> {
        Desk::in_time_of(&self.clock, &self.server, ALL).await
    }

    /// Lets time pass until the node has caught up with it.
    async fn pass(&self, span: Duration) {
        self.server.pass(&self.clock, span).await;
    }

    /// Applies a change as an operator who gives a reason.
    async fn apply(&self, change: Change) {
        let cause = Cause {
            actor: "ops".to_owned(),
            address: Some("192.0.2.9".to_owned()),
            reason: Some("Drill".to_owned()),
            ..Cause::default()
        };
        let now = self.clock.now();
        let applied = self.server.store().apply(&change, &cause, now).await;
        applied.unwrap();
    }

    async fn change_user(&self, event: EventType, change: impl Fn(User) -> User) {
        let user = self.server.store().user(self.ada).await.unwrap().unwrap();
        let change = Change::PutUser {
            expected: Some(user.revision),
            user: Box::new(change(user)),
            event,
            ends_sessions: event == EventType::UserPasswordChanged,
            tokens_die_at: self.clock.now(),
        };
        self.apply(change).await;
    }

    /// State, reason, and the story as words and texts.
    async fn told(&self, signed_in: &SignedIn) -> Story {
        let desk = self.desk().await;
        let path = format!("/admin/v1/families/{}", signed_in.family);
        let shown = desk.get(&path).await;
        assert_eq!(shown.status, 200, "{shown:?}");
        let document = shown.json();
        // Listed, it is the same, but without the story.
        let listed = format!("/admin/v1/families?subject={}&limit=200", self.ada);
        let listed = desk.get(&listed).await.json();
        let mut listed = listed["items"].as_array().unwrap().iter();
        let listed = listed.find(|item| item["id"] == document["id"]).unwrap();
        let mut without = document.clone();
        without.as_object_mut().unwrap().remove("story");
        assert_eq!(*listed, without);
        Story(document)
    }
}

/// A family's document.
struct Story(Value);

impl Story {
    /// Checks state, reason, and the last thing that happened.
    #[track_caller]
    fn ends(&self, state: &str, reason: &str, text: &str) {
        assert_eq!(self.0["state"], state, "{}", self.0);
        assert_eq!(self.0["end_reason"], reason, "{}", self.0);
        assert_eq!(self.texts().last(), Some(&text));
        let story = self.0["story"].as_array().unwrap();
        assert_eq!(story.last().unwrap()["at"], self.0["ended_at"]);
    }

    fn texts(&self) -> Vec<&str> {
        self.members("text")
    }

    fn whats(&self) -> Vec<&str> {
        self.members("what")
    }

    fn members(&self, name: &str) -> Vec<&str> {
        let story = self.0["story"].as_array().unwrap();
        story
            .iter()
            .map(|told| told[name].as_str().unwrap())
            .collect()
    }
}

async fn a_session_is_shown_as_its_token_says(engine: Engine) {
    let scene = Scene::set(engine).await;
    let signed_in = scene.sign_in().await;
    let opened_at = scene.server.family(signed_in.family).await.created_at;
    let expected = json!({
        "id": signed_in.family.to_string(),
        "client_id": scene.server.app.id,
        "subject": scene.ada.to_string(),
        "username": "ada",
        "state": "active",
        "scope": "read write",
        "resources": [API],
        "auth_time": opened_at.seconds(),
        "amr": ["pwd"],
        "created_at": opened_at.seconds(),
        "refreshed_at": null,
        "refreshes": 0,
        "idle_expires_at": opened_at.seconds() + 7 * 24 * 3600,
        "expires_at": opened_at.seconds() + 30 * 24 * 3600,
        "ended_at": null,
        "end_reason": null,
        "first": { "address": "127.0.0.1", "user_agent": null },
        "last": { "address": "127.0.0.1", "user_agent": null },
        "story": [{
            "at": opened_at.seconds(),
            "what": "opened",
            "text": "The user signed in at client app from 127.0.0.1.",
            "address": "127.0.0.1",
            "user_agent": null,
        }],
    });
    assert_eq!(scene.told(&signed_in).await.0, expected);
    scene.clock.advance(Duration::from_mins(5));
    let refreshed = scene
        .server
        .refresh(&scene.server.app, &signed_in.refresh_token);
    let refresh = refreshed.await.refresh_token();
    let story = scene.told(&signed_in).await;
    assert!(story.0["refreshed_at"].as_i64().unwrap() >= opened_at.seconds() + 300);
    assert_eq!(story.0["refreshes"], 1);
    assert_eq!(story.texts()[1], "Refreshed once from 127.0.0.1.");
    for _ in 0..2 {
        let again = scene.refresh_with("an “agent", &refresh).await;
        assert_eq!(again.status, 200);
    }
    let story = scene.told(&signed_in).await;
    assert_eq!(
        story.texts()[1..],
        [
            "Refreshed 2 times, the last time from 127.0.0.1 with “an \"agent”.",
            "The refresh token before the last one was presented again from 127.0.0.1 with “an \"agent”: the \
             answer was the same as before, as after one that was lost.",
        ]
    );
    let desk = scene.desk().await;
    let unknown = "/admin/v1/families/019f0000-0000-7000-8000-000000000000";
    is_problem(&desk.get(unknown).await, 404, "not-found");
}

async fn sessions_are_found_by_user_and_client_and_state(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let desk = Desk::of(&server, "families:read").await;
    let (ada, bob) = (server.user("ada").await, server.user("bob").await);
    let other = server.register(&metadata()).await;
    let mut ids = Vec::new();
    for (user, client) in [
        (ada, &server.app),
        (bob, &server.app),
        (ada, &other),
        (ada, &server.app),
        (bob, &other),
    ] {
        ids.push(server.sign_in(client, user).await);
    }
    for index in [1, 3] {
        let (token, client) = (&ids[index].refresh_token, &server.app);
        let request = server.request(Method::POST, "/oauth2/revoke");
        let request = request.basic_auth(&client.id, Some(&client.secret));
        let revoked = answer(request.form(&[("token", token)])).await;
        assert_eq!(revoked.status, 200);
    }
    let found = async |query: &str| -> Vec<usize> {
        let listed = desk.get(&format!("/admin/v1/families?{query}")).await;
        assert_eq!(listed.status, 200, "{listed:?}");
        let listed = listed.json();
        assert_eq!(listed["next_cursor"], Value::Null);
        let number = |item: &Value| {
            let id = item["id"].as_str().unwrap();
            ids.iter()
                .position(|one| one.family.to_string() == id)
                .unwrap()
        };
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(number)
            .collect()
    };
    assert_eq!(found("").await, [4, 3, 2, 1, 0]);
    assert_eq!(found(&format!("subject={ada}")).await, [3, 2, 0]);
    assert_eq!(found(&format!("client_id={}", other.id)).await, [4, 2]);
    let both = format!("subject={bob}&client_id=app");
    assert_eq!(found(&both).await, [1]);
    assert_eq!(found("state=active").await, [4, 2, 0]);
    assert_eq!(found("state=ended").await, [3, 1]);
    assert_eq!(found("state=suspended").await, [0; 0]);
    assert_eq!(found(&format!("state=ended&subject={ada}")).await, [3]);
    let nobody = "subject=019f0000-0000-7000-8000-000000000000";
    assert_eq!(found(nobody).await, [0; 0]);
    // In parts, none is repeated and none is missed.
    for (filter, all) in [("", 5), ("&state=active", 3), ("&state=ended", 2)] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let part = format!("/admin/v1/families?limit=1{filter}{cursor}");
            let part = desk.get(&part).await.json();
            let items = part["items"].as_array().unwrap();
            assert!(items.len() <= 1);
            seen.extend(items.iter().map(|item| item["id"].to_string()));
            match part["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let count = seen.len();
        seen.dedup();
        assert_eq!((count, seen.len()), (all, all), "{filter}");
    }
    let other_list = desk_cursor(&server).await;
    for (query, wrong) in [
        ("subject=ada", "/subject"),
        ("client_id=%00", "/client_id"),
        ("state=dead", "/state"),
        ("limit=0", "/limit"),
        ("cursor=x", "/cursor"),
        (&format!("cursor={other_list}"), "/cursor"),
    ] {
        let refused = desk.get(&format!("/admin/v1/families?{query}")).await;
        assert_eq!(pointers(&refused), [wrong], "{query}");
    }
    let refused = desk.get("/admin/v1/families?subject=x&state=y").await;
    assert_eq!(pointers(&refused), ["/state", "/subject"]);
    let twice = desk
        .get("/admin/v1/families?state=ended&state=active")
        .await;
    is_problem(&twice, 400, "malformed");
}

/// A cursor of another list.
async fn desk_cursor(server: &TestServer) -> String {
    let desk = Desk::of(server, "clients:read").await;
    let clients = desk.get("/admin/v1/clients?limit=1").await.json();
    clients["next_cursor"].as_str().unwrap().to_owned()
}

async fn an_operator_ends_a_session_once(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let desk = Desk::of(&server, ALL).await;
    let ada = server.user("ada").await;
    let bodies: [Option<Value>; 4] = [
        Some(json!({ "reason": "A laptop was stolen" })),
        Some(json!({})),
        Some(json!({ "reason": null })),
        None,
    ];
    for body in bodies {
        let signed_in = server.sign_in(&server.app, ada).await;
        let other = server.sign_in(&server.app, ada).await;
        let path = format!("/admin/v1/families/{}/revoke", signed_in.family);
        let ask = async || {
            let request = desk.request("POST", &path);
            desk.send(match &body {
                Some(body) => request.json(body),
                None => request,
            })
            .await
        };
        let done = ask().await;
        assert_eq!(done.status, 200, "{done:?}");
        let document = done.json();
        assert_eq!(document["state"], "ended");
        assert_eq!(document["end_reason"], "revoked_by_operator");
        assert!(document["ended_at"].is_i64());
        let story = Story(document.clone());
        let text = *story.texts().last().unwrap();
        assert!(
            text.starts_with("The session was ended by operator "),
            "{text}"
        );
        let has_reason = body.as_ref().is_some_and(|body| body["reason"].is_string());
        assert_eq!(
            text.contains("Reason: “A laptop was stolen”."),
            has_reason,
            "{text}"
        );
        let refused = server.refresh(&server.app, &signed_in.refresh_token).await;
        assert_eq!(refused.header("countersign-reason"), Some("revoked"));
        assert_eq!(
            server
                .refresh(&server.app, &other.refresh_token)
                .await
                .status,
            200
        );
        // Again, nothing happens.
        let events = format!(
            "/admin/v1/events?type=family.revoked&subject={}",
            signed_in.family
        );
        let before = desk.get(&events).await.json();
        assert_eq!(before["items"].as_array().unwrap().len(), 1);
        assert_eq!(ask().await.json(), document);
        assert_eq!(desk.get(&events).await.json(), before);
    }
    let signed_in = server.sign_in(&server.app, ada).await;
    let path = format!("/admin/v1/families/{}/revoke", signed_in.family);
    for (body, wrong) in [
        (json!({ "reason": 1 }), "/reason"),
        (json!({ "reason": "x".repeat(501) }), "/reason"),
        (json!({ "reason": "\0" }), "/reason"),
        (json!({ "why": "x" }), "/why"),
    ] {
        assert_eq!(pointers(&desk.post(&path, &body).await), [wrong]);
    }
    let garbled = desk
        .request("POST", &path)
        .header(CONTENT_TYPE, "application/json");
    is_problem(&desk.send(garbled.body("{")).await, 400, "malformed");
    let form = desk.request("POST", &path).form(&[("reason", "x")]);
    is_problem(&desk.send(form).await, 415, "unsupported-media-type");
    assert_eq!(
        server
            .refresh(&server.app, &signed_in.refresh_token)
            .await
            .status,
        200
    );
    let unknown = "/admin/v1/families/019f0000-0000-7000-8000-000000000000/revoke";
    let nobody = desk.request("POST", unknown);
    is_problem(&desk.send(nobody).await, 404, "not-found");
}

impl Scene {
    /// Presents a refresh token as somebody whose programs say that they are `agent`.
    async fn refresh_with(&self, agent: &str, token: &str) -> Answer {
        let request = self.server.by(&self.server.app, &refresh(token));
        answer(request.header("user-agent", agent)).await
    }
}

async fn the_story_of_a_stolen_token_names_both_parties(engine: Engine) {
    let scene = Scene::set(engine).await;
    let signed_in = scene.sign_in().await;
    let (first, thief) = (&signed_in.refresh_token, "Thief/1");
    scene.clock.advance(Duration::from_mins(10));
    let stolen = scene.refresh_with(thief, first).await.refresh_token();
    scene.clock.advance(Duration::from_secs(40));
    let refused = scene.refresh_with("App/7", first).await;
    assert_eq!(refused.header("countersign-reason"), Some("reuse"));
    let refused = scene.refresh_with(thief, &stolen).await;
    assert_eq!(refused.header("countersign-reason"), Some("revoked"));
    let story = scene.told(&signed_in).await;
    assert_eq!(story.whats(), ["opened", "refreshed", "reused", "ended"]);
    assert_eq!(
        story.texts()[1..3],
        [
            "Refreshed once from 127.0.0.1 with “Thief/1”.",
            "A spent refresh token was presented from 127.0.0.1 with “App/7”. The session was refreshed last \
             40 seconds before from 127.0.0.1 with “Thief/1”: one of the two may be a thief.",
        ]
    );
    let text = "The session was ended because of that, with all its tokens.";
    story.ends("ended", "reuse", text);
    let note = &story.0["story"][2];
    assert_eq!(note["user_agent"], "App/7");
    assert_eq!(story.0["last"]["user_agent"], "Thief/1");
    // One who is late with its own token looks the same twice.
    let signed_in = scene.sign_in().await;
    assert_eq!(
        scene
            .refresh_with("App/7", &signed_in.refresh_token)
            .await
            .status,
        200
    );
    scene.clock.advance(Duration::from_mins(2));
    assert_eq!(
        scene
            .refresh_with("App/7", &signed_in.refresh_token)
            .await
            .status,
        400
    );
    assert_eq!(
        scene.told(&signed_in).await.texts()[2],
        "A spent refresh token was presented from 127.0.0.1 with “App/7”. The session was refreshed last 2 \
         minutes before from the same address with the same agent: a client that stores its tokens late, or \
         whose processes share them, looks like this, too."
    );
}

async fn the_story_tells_of_everything_worth_a_note(engine: Engine) {
    let scene = Scene::set(engine).await;
    // The code comes twice.
    let code = scene.server.code(&scene.server.app, scene.ada).await;
    let opened = scene.server.redeem(&scene.server.app, &code).await;
    let signed_in = SignedIn::of(&opened);
    assert_eq!(
        scene.server.redeem(&scene.server.app, &code).await.status,
        400
    );
    let story = scene.told(&signed_in).await;
    assert_eq!(story.whats(), ["opened", "code_reused", "ended"]);
    assert_eq!(
        story.texts()[1],
        "The authorization code that the session began with was used again from 127.0.0.1. It was used \
         first from the same address with the same agent: a client that stores its tokens late, or whose \
         processes share them, looks like this, too."
    );
    let text = "What the code was exchanged for was ended because of that: the session with all its tokens.";
    story.ends("ended", "code_reuse", text);

    // The database loses commits.
    let signed_in = scene.sign_in().await;
    let mut token = signed_in.refresh_token.clone();
    for _ in 0..3 {
        token = scene
            .server
            .refresh(&scene.server.app, &token)
            .await
            .refresh_token();
    }
    scene
        .database
        .execute("update family set counter = 1 where counter = 3")
        .await;
    assert_eq!(
        scene.server.refresh(&scene.server.app, &token).await.status,
        200
    );
    let story = scene.told(&signed_in).await;
    assert_eq!(story.whats(), ["opened", "recovered", "refreshed"]);
    assert_eq!(
        story.texts()[1..],
        [
            "A refresh token was presented from 127.0.0.1 that was ahead of the database, which had lost \
             commits: the session went on from it.",
            "Refreshed 4 times, the last time from 127.0.0.1.",
        ]
    );
    assert_eq!(story.0["state"], "active");

    // Its client ends it.
    let request = scene.server.request(Method::POST, "/oauth2/revoke");
    let request = request.basic_auth(&scene.server.app.id, Some(&scene.server.app.secret));
    assert_eq!(answer(request.form(&[("token", &token)])).await.status, 200);
    let text = "The client ended the session from 127.0.0.1, as when its user signs out.";
    scene
        .told(&signed_in)
        .await
        .ends("ended", "revoked_by_client", text);

    // Its key is taken out of use.
    let signed_in = scene.sign_in().await;
    let schedule = scene
        .server
        .store()
        .key_schedule(KeyUse::RefreshMac)
        .await
        .unwrap();
    let mut keys = schedule.keys.clone();
    for key in &mut keys {
        key.times.revoked_at = Some(scene.clock.now());
    }
    scene
        .apply(Change::PutKeys {
            schedule: KeySchedule { keys, ..schedule },
            event: EventType::KeyRevoked,
        })
        .await;
    let text = "The key that the session's refresh tokens were made with was taken out of use: nobody takes \
         them any more.";
    scene
        .told(&signed_in)
        .await
        .ends("ended", "key_revoked", text);
}

async fn the_story_tells_what_ended_all_sessions_of_a_user(engine: Engine) {
    let scene = Scene::set(engine).await;
    let before = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    scene
        .change_user(EventType::UserPasswordChanged, |user| user)
        .await;
    let changed = "The password of the user was changed by operator ops from 192.0.2.9. Reason: “Drill”. \
         That ends every session of the user.";
    scene
        .told(&before)
        .await
        .ends("ended", "password_changed", changed);
    scene.clock.advance(Duration::from_secs(10));

    let ended = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    let change = Change::EndUserSessions {
        id: scene.ada,
        tokens_die_at: scene.clock.now(),
    };
    scene.apply(change).await;
    let text =
        "Every session of the user was ended by operator ops from 192.0.2.9. Reason: “Drill”.";
    scene
        .told(&ended)
        .await
        .ends("ended", "user_sessions_ended", text);
    scene.clock.advance(Duration::from_secs(10));

    let disabled = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    let disable = |disabled| move |user| User { disabled, ..user };
    scene
        .change_user(EventType::UserDisabled, disable(true))
        .await;
    let text = "The user was disabled by operator ops from 192.0.2.9. Reason: “Drill”.";
    scene
        .told(&disabled)
        .await
        .ends("ended", "user_disabled", text);
    scene.clock.advance(Duration::from_secs(10));
    // To have enabled the user again makes no difference.
    scene
        .change_user(EventType::UserEnabled, disable(false))
        .await;
    scene
        .told(&disabled)
        .await
        .ends("ended", "user_disabled", text);
    scene.clock.advance(Duration::from_secs(10));

    let deleted = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    let user = scene.server.store().user(scene.ada).await.unwrap().unwrap();
    scene
        .apply(Change::DeleteUser {
            id: user.id,
            expected: user.revision,
            tokens_die_at: scene.clock.now(),
        })
        .await;
    let text = "The user was removed by operator ops from 192.0.2.9. Reason: “Drill”.";
    let story = scene.told(&deleted).await;
    story.ends("ended", "user_deleted", text);
    assert_eq!(story.0["username"], Value::Null);
    // Each keeps its own reason, the earliest.
    scene
        .told(&before)
        .await
        .ends("ended", "password_changed", changed);

    // The audit trail is shortened.
    scene.database.execute("delete from event").await;
    let text = "The user was removed; the audit trail does not say any more when, by whom and why.";
    let story = scene.told(&deleted).await;
    story.ends("ended", "user_deleted", text);
    assert_eq!(story.0["ended_at"], Value::Null);
}

async fn the_story_tells_what_ended_all_sessions_at_a_client(engine: Engine) {
    let scene = Scene::set(engine).await;
    let ended = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    let client_id = ClientId::parse("app").unwrap();
    let change = Change::RevokeClientTokens {
        client_id: client_id.clone(),
        tokens_die_at: scene.clock.now(),
    };
    scene.apply(change).await;
    let of_client =
        "Every session at the client was ended by operator ops from 192.0.2.9. Reason: “Drill”.";
    scene
        .told(&ended)
        .await
        .ends("ended", "client_sessions_ended", of_client);
    scene.clock.advance(Duration::from_secs(10));

    let restored = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    let restore = |keep_tokens| Change::Restore {
        keep_tokens,
        tokens_die_at: scene.clock.now(),
    };
    scene.apply(restore(true)).await;
    assert_eq!(scene.told(&restored).await.0["state"], "active");
    scene.clock.advance(Duration::from_secs(10));
    scene.apply(restore(false)).await;
    let text = "The database was restored from a backup by operator ops from 192.0.2.9. Reason: “Drill”. That \
         ends every session, as nobody knows which ones had been ended after the backup was made.";
    scene.told(&restored).await.ends("ended", "restored", text);
    scene.clock.advance(Duration::from_secs(10));

    let resting = scene.sign_in().await;
    scene.clock.advance(Duration::from_secs(10));
    let disable = async |disabled| {
        let patch = json!({ "disabled": disabled });
        let cause = Cause {
            actor: "cli:root".to_owned(),
            ..Cause::default()
        };
        let clients = &scene.server.clients;
        let updated = clients.update(&client_id, &patch, None, &cause).await;
        updated.unwrap();
    };
    disable(true).await;
    let text = "The client was disabled by root on the command line. The session rests until the client is \
         enabled again.";
    let story = scene.told(&resting).await;
    story.ends("suspended", "client_disabled", text);
    assert_eq!(story.whats().last(), Some(&"suspended"));
    scene
        .told(&ended)
        .await
        .ends("ended", "client_sessions_ended", of_client);
    disable(false).await;
    assert_eq!(scene.told(&resting).await.0["state"], "active");
    scene.clock.advance(Duration::from_secs(10));

    let client = scene
        .server
        .store()
        .client(&client_id)
        .await
        .unwrap()
        .unwrap();
    scene
        .apply(Change::DeleteClient {
            client_id: client_id.clone(),
            expected: client.revision,
            tokens_die_at: scene.clock.now(),
        })
        .await;
    let text = "The client was removed by operator ops from 192.0.2.9. Reason: “Drill”.";
    scene
        .told(&resting)
        .await
        .ends("ended", "client_deleted", text);
    // Whoever takes its name does not take its sessions.
    let cause = Cause::system();
    let clients = &scene.server.clients;
    let metadata = metadata();
    let again = clients.create(Some(client_id), &metadata, false, &cause);
    again.await.unwrap();
    scene
        .told(&resting)
        .await
        .ends("ended", "client_deleted", text);
    scene.database.execute("delete from event").await;
    let text = "Every session at the client was ended; the audit trail does not say any more when, by whom \
         and why.";
    scene
        .told(&resting)
        .await
        .ends("ended", "client_sessions_ended", text);
}

async fn the_story_tells_of_time_that_ran_out(engine: Engine) {
    let scene = Scene::set(engine).await;
    let day = Duration::from_hours(24);
    let idle = scene.sign_in().await;
    let kept = scene.sign_in().await;
    let mut token = kept.refresh_token.clone();
    for _ in 0..5 {
        scene.pass(6 * day).await;
        let refreshed = scene.server.refresh(&scene.server.app, &token).await;
        if refreshed.status != 200 {
            assert_eq!(refreshed.header("countersign-reason"), Some("expired"));
            break;
        }
        token = refreshed.refresh_token();
    }
    let story = scene.told(&idle).await;
    let text = "The session has ended, as it was not refreshed for too long.";
    story.ends("ended", "idle_expired", text);
    assert_eq!(story.0["ended_at"], story.0["idle_expires_at"]);
    let story = scene.told(&kept).await;
    let text = "The session has reached its end: it lasts 30 days, however often it is refreshed.";
    story.ends("ended", "expired", text);
    assert_eq!(story.0["ended_at"], story.0["expires_at"]);
    // What ends all sessions of the user later is not the reason; nor does an operator change it.
    scene
        .change_user(EventType::UserPasswordChanged, |user| user)
        .await;
    scene.told(&idle).await.ends(
        "ended",
        "idle_expired",
        "The session has ended, as it was not refreshed for too long.",
    );
    let desk = scene.desk().await;
    let revoke = format!("/admin/v1/families/{}/revoke", idle.family);
    let ended = desk.send(desk.request("POST", &revoke)).await.json();
    assert_eq!(ended["end_reason"], "idle_expired");
    scene.database.execute("delete from event").await;
    scene.told(&idle).await.ends(
        "ended",
        "idle_expired",
        "The session has ended, as it was not refreshed for too long.",
    );
}
