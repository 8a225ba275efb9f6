//! A change that fails half-way leaves nothing behind: neither itself nor its event, its place in the
//! order of changes or its entry of revocation.

use std::collections::BTreeSet;

use countersign::domain::id::UserId;

use super::*;
use crate::support::{
    database::{Database, Engine},
    process::now,
    server::Setup,
};

on_both_engines! {
    every_change_is_made_whole_or_not_at_all,
}

/// Every table that some change writes.
const TABLES: [&str; 12] = [
    "client",
    "client_secret",
    "end_user",
    "resource",
    "sealed_key",
    "key_schedule",
    "event",
    "change",
    "change_head",
    "revocation",
    "family",
    "consent",
];

/// What every change writes.
const ALWAYS: [&str; 3] = ["event", "change", "change_head"];

/// A change: the name of its call, how it is asked for, and what it writes besides [`ALWAYS`].
struct Change {
    call: &'static str,
    method: &'static str,
    path: String,
    body: Value,
    writes: &'static [&'static str],
}

/// Breaks each table in turn while the change is asked for, and then none.
async fn try_it(desk: &Desk<'_>, database: &Database, change: &Change) -> Answer {
    let ask = async || {
        let mut request = desk.request(change.method, &change.path);
        if !change.body.is_null() {
            request = request.json(&change.body);
        }
        desk.send(request).await
    };
    let before = database.dump(&TABLES).await;
    for table in ALWAYS.iter().chain(change.writes) {
        database.break_table(table).await;
        let failed = ask().await;
        database.mend_table(table).await;
        let place = format!("{} with a broken {table}: {failed:?}", change.call);
        assert!([500, 503].contains(&failed.status), "{place}");
        assert_eq!(
            failed.status == 503,
            failed.header("retry-after").is_some(),
            "{place}"
        );
        assert!(!failed.body.contains("injected"), "{place}");
        assert_eq!(database.dump(&TABLES).await, before, "{place}");
    }
    let done = ask().await;
    assert!(done.status < 300, "{}: {done:?}", change.call);
    let after = database.dump(&TABLES).await;
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before != after);
    let changed: BTreeSet<&str> = changed.map(|((table, _), _)| *table).collect();
    let expected = ALWAYS.iter().chain(change.writes).copied();
    assert_eq!(changed, expected.collect(), "{}", change.call);
    done
}

async fn every_change_is_made_whole_or_not_at_all(engine: Engine) {
    let database = Database::create(engine).await;
    let server = Setup::new().at(database.url()).start().await;
    let desk = Desk::of(&server, ALL).await;
    let mut tried = BTreeSet::new();
    let mut change = async |call, method, path: String, body, writes| {
        tried.insert(call);
        let change = Change {
            call,
            method,
            path,
            body,
            writes,
        };
        try_it(&desk, &database, &change).await
    };
    let made = "/admin/v1/clients/made".to_owned();
    let client = json!({ "client_id": "made", "client_name": "Made" });
    let both = &["client", "client_secret"];
    let clients = "/admin/v1/clients".to_owned();
    let created = change("createClient", "POST", clients, client, both);
    let created = created.await.json();
    let renamed = json!({ "client_name": "Renamed" });
    change("updateClient", "PATCH", made.clone(), renamed, &["client"]).await;
    let secrets = format!("{made}/secrets");
    let place = secrets.clone();
    change("addClientSecret", "POST", place, Value::Null, both).await;
    let first = created["secrets"][0]["id"].as_str().unwrap();
    let first = format!("{secrets}/{first}");
    change("removeClientSecret", "DELETE", first, Value::Null, both).await;
    let with_tokens = &["client", "client_secret", "revocation"];
    change("deleteClient", "DELETE", made, Value::Null, with_tokens).await;

    let resources = "/admin/v1/resources".to_owned();
    let written = json!({ "resource": "https://made.example", "name": "Made" });
    let created = change(
        "createResource",
        "POST",
        resources.clone(),
        written,
        &["resource"],
    );
    let id = created.await.json()["id"].as_str().unwrap().to_owned();
    let resource = format!("{resources}/{id}");
    let own = &["resource"];
    change("deleteResource", "DELETE", resource, Value::Null, own).await;

    let users = "/admin/v1/users".to_owned();
    let written = json!({ "username": "made", "password": "zwölf Boxkämpfer jagen Eva" });
    let created = change("createUser", "POST", users.clone(), written, &["end_user"]);
    let id = created.await.json()["id"].as_str().unwrap().to_owned();
    let user = format!("{users}/{id}");
    let ending = &["end_user", "revocation"];
    let password = json!({ "password": "Eva jagt zwölf Boxkämpfer" });
    let place = format!("{user}/password");
    change("setUserPassword", "PUT", place, password, ending).await;
    let disabled = json!({ "disabled": true });
    change("updateUser", "PATCH", user.clone(), disabled, ending).await;
    let place = format!("{user}/factors");
    change("resetUserFactors", "DELETE", place, Value::Null, ending).await;
    let subject = json!({ "subject": id });
    let revocations = "/admin/v1/revocations".to_owned();
    change("revoke", "POST", revocations, subject, ending).await;
    change("deleteUser", "DELETE", user, Value::Null, ending).await;

    let revocations = "/admin/v1/revocations".to_owned();
    let token = json!({ "jti": "some-token", "expires_at": now().seconds() + 600 });
    change("revoke", "POST", revocations, token, &["revocation"]).await;

    let ada = server.user("ada").await;
    server.sign_in(&server.app, ada).await;
    server.allow(&server.app, ada).await;
    let (call, place) = ("withdrawUserConsent", consent_at(&server.app, ada));
    let withdrawn = &["consent", "family", "revocation"];
    change(call, "DELETE", place, Value::Null, withdrawn).await;

    let signed_in = server.sign_in(&server.app, ada).await;
    let family = format!("/admin/v1/families/{}/revoke", signed_in.family);
    let of_family = &["family", "revocation"];
    change("revokeFamily", "POST", family, Value::Null, of_family).await;

    let keys = desk.get("/admin/v1/keys").await.json();
    let next = keys["items"][1]["kid"].as_str().unwrap();
    let revoke = format!("/admin/v1/keys/{next}/revoke");
    let of_keys = &["sealed_key", "key_schedule", "revocation"];
    change("revokeKey", "POST", revoke, Value::Null, of_keys).await;
    let rotate = "/admin/v1/keys/rotate".to_owned();
    let emergency = json!({ "mode": "emergency", "reason": "Drill" });
    change("rotateKeys", "POST", rotate, emergency, of_keys).await;

    let tried: BTreeSet<String> = tried.into_iter().map(str::to_owned).collect();
    assert_eq!(
        tried,
        changing(&desk.document),
        "every call that changes something is tried"
    );
}

fn consent_at(client: &Registered, user: UserId) -> String {
    format!("/admin/v1/users/{user}/consents/{}", client.id)
}

/// Every call that changes something.
fn changing(document: &Value) -> BTreeSet<String> {
    let changing = calls(document)
        .into_iter()
        .filter(|(method, _, _)| method != "GET");
    changing
        .map(|(_, _, call)| call["operationId"].as_str().unwrap().to_owned())
        .collect()
}
