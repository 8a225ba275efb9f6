//! `/admin/v1/users` and what is below it.

use std::sync::Arc;

use countersign::{
    domain::{family::EndReason, id::UserId},
    store::Store,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::*;
use crate::support::{
    database::{Database, Engine},
    server::{Setup, metadata},
};

on_both_engines! {
    a_user_is_created_shown_changed_and_removed,
    a_name_is_taken_once_however_it_is_written,
    of_many_users_of_one_name_at_once_one_is_created,
    what_a_user_allows_is_listed_and_taken_back,
}

const USERS: &str = "/admin/v1/users";

/// A password that anybody may see here, and nobody has guessed.
const PASSWORD: &str = "zwölf Boxkämpfer jagen Eva";

fn path_of(user: &Value) -> String {
    format!("{USERS}/{}", user["id"].as_str().unwrap())
}

/// Creates a user; returns its document.
async fn create(desk: &Desk<'_>, user: Value) -> Value {
    let created = desk.post(USERS, &user).await;
    assert_eq!(created.status, 201, "{created:?}");
    let user = created.json();
    assert_eq!(created.header("location"), Some(path_of(&user).as_str()));
    user
}

async fn put(desk: &Desk<'_>, path: &str, body: &Value) -> Answer {
    desk.send(desk.request("PUT", path).json(body)).await
}

async fn a_user_is_created_shown_changed_and_removed(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "username": "Ada@example.com", "password": PASSWORD, "roles": ["author", "a b"],
        "claims": { "tier": "gold", "https://example.com/x": [1, null, { "ä": "\u{0}" }] },
        "profile": { "name": "Ada", "address": { "locality": "London", "country": "UK" } },
    });
    let user = create(&desk, written.clone()).await;
    for member in ["username", "roles", "claims", "profile"] {
        assert_eq!(user[member], written[member]);
    }
    assert_eq!(user["has_password"], true);
    assert_eq!(user["password_changed_at"], user["created_at"]);
    assert_eq!(
        (&user["disabled"], &user["revision"]),
        (&json!(false), &json!(1))
    );
    let place = path_of(&user);
    assert_eq!(desk.get(&place).await.json(), user);

    // A merge patch goes into the claims and the profile.
    let patch = json!({
        "username": "Ada L.", "roles": [], "revision": 1,
        "claims": { "tier": null, "level": 3 },
        "profile": { "email": "ada@example.com", "address": { "country": null } },
    });
    let changed = desk.patch(&place, &patch).await.json();
    assert_eq!(changed["username"], "Ada L.");
    assert_eq!(changed["roles"], json!([]));
    let claims = json!({ "level": 3, "https://example.com/x": [1, null, { "ä": "\u{0}" }] });
    assert_eq!(changed["claims"], claims);
    let address = json!({ "locality": "London" });
    assert_eq!(
        changed["profile"],
        json!({ "name": "Ada", "email": "ada@example.com", "address": address })
    );
    assert_eq!(
        (&changed["has_password"], &changed["revision"]),
        (&json!(true), &json!(2))
    );
    assert_eq!(desk.get(&place).await.json(), changed);
    // Whoever sends back what was shown changes nothing.
    let again = desk.patch(&place, &changed).await.json();
    assert_eq!(again["revision"], 3);
    assert_eq!(again["claims"], changed["claims"]);
    is_problem(
        &desk.patch(&place, &json!({ "revision": 2 })).await,
        409,
        "conflict",
    );
    let none = desk.patch(&place, &json!({ "claims": null })).await.json();
    assert_eq!(none["claims"], json!({}));
    assert_eq!(none["profile"], changed["profile"]);
    let none = desk.patch(&place, &json!({ "profile": null })).await.json();
    assert_eq!(none["profile"], json!({}));

    let least = create(&desk, json!({ "username": "bob" })).await;
    assert_eq!(least["has_password"], false);
    assert_eq!(least["password_changed_at"], Value::Null);
    let listed = desk.get(USERS).await.json();
    assert_eq!(listed["items"], json!([none, least]));

    let removed = desk.delete(&place).await;
    assert_eq!((removed.status, removed.body.as_str()), (204, ""));
    for answer in [
        desk.get(&place).await,
        desk.delete(&place).await,
        desk.patch(&place, &json!({})).await,
        put(
            &desk,
            &format!("{place}/password"),
            &json!({ "password": PASSWORD }),
        )
        .await,
    ] {
        is_problem(&answer, 404, "not-found");
    }
    create(&desk, json!({ "username": "ada l." })).await;
}

/// RFC 9700 §2.1: users and administrators see and revoke what was granted.
async fn what_a_user_allows_is_listed_and_taken_back(engine: Engine) {
    let server = Setup::new()
        .on(engine)
        .client("other", metadata())
        .start()
        .await;
    let desk = Desk::of(&server, ALL).await;
    let (ada, other) = (server.user("ada").await, server.other("other"));
    let consents = format!("{USERS}/{ada}/consents");
    let listed = async |query: &str| desk.get(&format!("{consents}{query}")).await.json();
    assert_eq!(listed("").await["items"], json!([]));
    for client in [&server.app, other] {
        server.allow(client, ada).await;
    }
    let (at_app, at_other) = (
        server.sign_in(&server.app, ada).await,
        server.sign_in(other, ada).await,
    );
    let mut clients = [server.app.id.as_str(), &other.id];
    clients.sort_unstable();
    let first = listed("?limit=1").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = listed(&format!("?limit=1&cursor={cursor}")).await;
    for (page, client) in [(&first, clients[0]), (&second, clients[1])] {
        let [consent] = &page["items"].as_array().unwrap()[..] else {
            panic!("{page}");
        };
        assert_eq!(consent["client_id"], client);
        let permissions = json!([{ "resource": API, "scope": "read" }]);
        assert_eq!(consent["permissions"], permissions);
        assert!(consent["given_at"].is_i64());
    }
    assert_eq!(second["next_cursor"], Value::Null);

    let place = format!("{consents}/{}", server.app.id);
    assert_eq!(desk.delete(&place).await.status, 204);
    let left = [&first, &second].map(|page| page["items"][0].clone());
    let left: Vec<Value> = left
        .into_iter()
        .filter(|it| it["client_id"] == other.id)
        .collect();
    assert_eq!(listed("").await["items"], json!(left));
    let ended = server.family(at_app.family).await;
    assert_eq!(ended.revoke_reason, Some(EndReason::ConsentWithdrawn));
    assert_eq!(server.family(at_other.family).await.revoked_at, None);
    let events = desk
        .get("/admin/v1/events?type=consent.withdrawn")
        .await
        .json();
    let operator = events["items"][0]["actor"].as_str().unwrap();
    let story = desk
        .get(&format!("/admin/v1/families/{}", at_app.family))
        .await;
    let told =
        format!("What the user had allowed the client was taken back by operator {operator}");
    assert!(story.body.contains(&told), "{story:?}");
    is_problem(&desk.delete(&place).await, 404, "not-found");
    let nobody = format!("{USERS}/{}/consents", UserId::from_uuid(Uuid::nil()));
    is_problem(&desk.get(&nobody).await, 404, "not-found");
    // What was allowed to a client that is no more is over.
    assert_eq!(
        desk.delete(&format!("/admin/v1/clients/{}", other.id))
            .await
            .status,
        204
    );
    assert_eq!(listed("").await["items"], json!([]));
}

async fn a_name_is_taken_once_however_it_is_written(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let desk = Desk::of(&server, ALL).await;
    let first = create(&desk, json!({ "username": "Straße" })).await;
    let other = create(&desk, json!({ "username": "other" })).await;
    for taken in ["Straße", "STRASSE", "ｓtraße", "strasse"] {
        let user = json!({ "username": taken });
        let refused = [
            desk.post(USERS, &user).await,
            desk.patch(&path_of(&other), &user).await,
            desk.patch(
                &path_of(&other),
                &json!({ "username": taken, "revision": 1 }),
            )
            .await,
        ];
        for refused in refused {
            is_problem(&refused, 409, "conflict");
            assert!(refused.body.contains("of this name"), "{refused:?}");
        }
        // One may write one's own name in another way.
        let own = desk.patch(&path_of(&first), &user).await;
        assert_eq!(own.json()["username"], taken);
    }
    assert_eq!(desk.get(USERS).await.json()["items"][1], other);
}

async fn of_many_users_of_one_name_at_once_one_is_created(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let token = token(&server, ALL).await;
    let mut callers = JoinSet::new();
    for number in 0..24 {
        let name = ["grace", "GRACE", "Grace", "ｇrace"][number % 4];
        let request = request(&server, "POST", USERS).bearer_auth(&token);
        callers.spawn(answer(request.json(&json!({ "username": name }))));
    }
    let answers = callers.join_all().await;
    let of_status = |status| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    assert_eq!((of_status(201), of_status(409)), (1, 23), "{answers:?}");
}

#[tokio::test]
async fn everything_that_is_wrong_with_a_user_is_told_at_once() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let wrong = json!({
        "username": " a", "password": 7, "roles": ["a", "", "a"], "disabled": "no", "id": "x",
        "claims": { "sub": "somebody else", "ROLES": ["admin"], "a/b": 1 },
        "profile": { "email": 1, "sub": "x", "address": { "region": "" } },
    });
    let answer = desk.post(USERS, &wrong).await;
    let expected = [
        "/claims/ROLES",
        "/claims/sub",
        "/disabled",
        "/id",
        "/password",
        "/profile/address/region",
        "/profile/email",
        "/profile/sub",
        "/roles/1",
        "/roles/2",
        "/username",
    ];
    assert_eq!(pointers(&answer), expected);
    for (user, pointer) in [
        (json!({}), "/username"),
        (json!({ "username": null }), "/username"),
        (json!({ "username": "x".repeat(255) }), "/username"),
        (json!({ "username": "a\u{202e}b" }), "/username"),
        (json!({ "username": "a", "claims": [] }), "/claims"),
        (
            json!({ "username": "a", "claims": { "x": "y".repeat(2100) } }),
            "/claims",
        ),
        (json!({ "username": "a", "roles": "admin" }), "/roles"),
        (json!({ "username": "a", "roles": [1] }), "/roles/0"),
        (
            json!({ "username": "a", "has_password": true }),
            "/has_password",
        ),
        (json!({ "username": "a", "demo": true }), "/demo"),
        (
            json!({ "username": "a", "session_epoch": 1 }),
            "/session_epoch",
        ),
        (json!({ "username": "a", "password": null }), "/password"),
        (
            json!({ "username": "a", "password": [PASSWORD] }),
            "/password",
        ),
    ] {
        assert_eq!(
            pointers(&desk.post(USERS, &user).await),
            [pointer],
            "{user}"
        );
    }
    let user = create(&desk, json!({ "username": "a" })).await;
    for (patch, pointer) in [
        (json!({ "password": PASSWORD }), "/password"),
        (
            json!({ "id": "019f0000-0000-7000-8000-000000000000" }),
            "/id",
        ),
        (json!({ "has_password": true }), "/has_password"),
        (json!({ "password_hash": null }), "/password_hash"),
        (json!({ "claims": { "kid": "x" } }), "/claims/kid"),
        (json!({ "username": null }), "/username"),
        (json!({ "revision": "1" }), "/revision"),
    ] {
        let answer = desk.patch(&path_of(&user), &patch).await;
        assert_eq!(pointers(&answer), [pointer], "{patch}");
    }
    assert_eq!(desk.get(&path_of(&user)).await.json(), user);
}

/// NIST SP 800-63B-4 §3.1.1.2.
#[tokio::test]
async fn a_password_that_the_rules_forbid_is_refused_and_never_repeated() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let user = create(&desk, json!({ "username": "ada.lovelace" })).await;
    let path = format!("{}/password", path_of(&user));
    for (password, says) in [
        ("fourteen chars", "at least 15 characters"),
        ("", "at least 15 characters"),
        ("passwordpassword", "easy to guess"),
        ("aaaaaaaaaaaaaaaaaaaaaa", "easy to guess"),
        ("ada.lovelace 1815", "name of the user"),
        ("issuer.example1", "of this service"),
        (&"x1 ".repeat(400), "at most 1024 bytes"),
    ] {
        let body = json!({ "password": password });
        let refused = put(&desk, &path, &body).await;
        assert_eq!(pointers(&refused), ["/password"]);
        assert!(refused.body.contains(says), "{refused:?}");
        assert!(password.is_empty() || !refused.body.contains(password));
        let new = json!({ "username": "Ada.Lovelace", "password": password });
        assert_eq!(pointers(&desk.post(USERS, &new).await), ["/password"]);
    }
    for (body, wrong) in [
        (json!({}), vec!["/password"]),
        (json!({ "password": null }), vec!["/password"]),
        (
            json!({ "password": 123_456_789_012_345_678_i64 }),
            vec!["/password"],
        ),
        (
            json!({ "password": PASSWORD, "username": "x" }),
            vec!["/username"],
        ),
    ] {
        assert_eq!(pointers(&put(&desk, &path, &body).await), wrong, "{body}");
    }
    assert_eq!(desk.get(&path_of(&user)).await.json(), user);
    let changed = put(&desk, &path, &json!({ "password": PASSWORD })).await;
    assert_eq!(changed.json()["has_password"], true);
}

/// What the sessions of a user carry, beside the server.
async fn epoch(store: &Arc<dyn Store>, user: &Value) -> i64 {
    let id = UserId::parse(user["id"].as_str().unwrap()).unwrap();
    store.user(id).await.unwrap().unwrap().session_epoch
}

#[tokio::test]
async fn another_password_disabling_and_revoking_end_the_sessions_and_nothing_else_does() {
    let database = Database::create(Engine::Sqlite).await;
    let server = Setup::new().at(database.url()).start().await;
    let desk = Desk::of(&server, ALL).await;
    let store = database.open().await;
    let user = create(&desk, json!({ "username": "ada", "password": PASSWORD })).await;
    let place = path_of(&user);
    let mut last = epoch(&store, &user).await;
    for patch in [
        json!({ "roles": ["x"] }),
        json!({ "username": "Ada" }),
        json!({ "disabled": false }),
    ] {
        assert_eq!(desk.patch(&place, &patch).await.status, 200);
        assert_eq!(epoch(&store, &user).await, last, "{patch}");
    }
    let revocation = json!({ "subject": user["id"] });
    for (method, at, body) in [
        (
            "PUT",
            format!("{place}/password"),
            json!({ "password": PASSWORD }),
        ),
        ("PATCH", place.clone(), json!({ "disabled": true })),
        ("PATCH", place.clone(), json!({ "disabled": false })),
        (
            "POST",
            "/admin/v1/revocations".to_owned(),
            revocation.clone(),
        ),
    ] {
        let done = desk.send(desk.request(method, &at).json(&body)).await;
        assert_eq!(done.status, 200, "{done:?}");
        let now = epoch(&store, &user).await;
        assert_ne!(now, last, "{method} {body}");
        last = now;
    }
    let id = user["id"].as_str().unwrap();
    let events = desk
        .get(&format!("/admin/v1/events?subject={id}"))
        .await
        .json();
    let types: Vec<&str> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let expected = [
        "user.created",
        "user.updated",
        "user.updated",
        "user.updated",
        "user.password_changed",
        "user.disabled",
        "user.enabled",
        "user.sessions_ended",
    ];
    assert_eq!(types, expected);
    assert!(!events.to_string().contains("argon2"));
}

#[tokio::test]
async fn the_subject_of_a_revocation_is_a_user() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let revoke = async |document: Value| desk.post("/admin/v1/revocations", &document).await;
    let user = create(&desk, json!({ "username": "ada" })).await;
    let subject = json!({ "subject": user["id"] });
    assert_eq!(revoke(subject.clone()).await.json(), subject);
    let unknown = json!({ "subject": "019f0000-0000-7000-8000-000000000000" });
    is_problem(&revoke(unknown).await, 404, "not-found");
    for (document, wrong) in [
        (json!({ "subject": "ada" }), "/subject"),
        (json!({ "subject": 1 }), "/subject"),
        (json!({ "subject": user["id"], "client_id": "app" }), ""),
        (
            json!({ "subject": user["id"], "jti": "x", "expires_at": 1 }),
            "",
        ),
    ] {
        assert!(
            pointers(&revoke(document.clone()).await).contains(&wrong.to_owned()),
            "{document}"
        );
    }
}

#[tokio::test]
async fn users_are_listed_in_parts() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let mut users = Vec::new();
    for number in 0..5 {
        users.push(create(&desk, json!({ "username": format!("user {number}") })).await);
    }
    let mut listed = Vec::new();
    let mut path = format!("{USERS}?limit=2");
    loop {
        let part = desk.get(&path).await.json();
        listed.extend(part["items"].as_array().unwrap().clone());
        let Some(cursor) = part["next_cursor"].as_str() else {
            break;
        };
        path = format!("{USERS}?limit=2&cursor={cursor}");
    }
    assert_eq!(listed, users);
    for (name, found) in [("USER%203", &users[3..4]), ("nobody", &[]), ("%00", &[])] {
        let listed = desk
            .get(&format!("{USERS}?limit=1&username={name}"))
            .await
            .json();
        assert_eq!(
            listed,
            json!({ "items": found, "next_cursor": null }),
            "{name}"
        );
    }
    let twice = desk.get(&format!("{USERS}?username=a&username=b")).await;
    is_problem(&twice, 400, "malformed");
    let of_clients = countersign_verifier::base64url::encode(b"clients:a");
    let of_nothing = countersign_verifier::base64url::encode(b"users:a");
    for cursor in [of_clients, of_nothing, "x".to_owned()] {
        let refused = desk.get(&format!("{USERS}?cursor={cursor}")).await;
        assert_eq!(pointers(&refused), ["/cursor"]);
    }
}

/// RFC 9068 §5: the `sub` of a client that acts for itself is its id, and must not be taken for a
/// user's.
#[tokio::test]
async fn no_client_has_the_id_of_a_user() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let user = create(&desk, json!({ "username": "ada" })).await;
    let id = user["id"].as_str().unwrap();
    for id in [id.to_owned(), id.to_uppercase(), id.replace('-', "")] {
        let client = json!({ "client_name": "Ada", "client_id": id });
        let refused = desk.post("/admin/v1/clients", &client).await;
        assert_eq!(pointers(&refused), ["/client_id"]);
    }
    let client =
        json!({ "client_name": "Ada", "client_id": "019f0000-0000-7000-8000-000000000000" });
    assert_eq!(desk.post("/admin/v1/clients", &client).await.status, 201);
}
