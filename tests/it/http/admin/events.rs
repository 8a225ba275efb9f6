//! `GET /admin/v1/events`.

use super::*;

fn items(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_change_is_recorded_with_its_cause() {
    let server = TestServer::start().await;
    let client = server.register(&operator(ALL)).await;
    let desk = Desk::with(&server, token_of(&server, &client, ADMIN).await).await;
    let written = json!({ "client_id": "made", "client_name": "Made" });
    let request = desk.request("POST", "/admin/v1/clients").json(&written);
    let created = desk.send(request.header("user-agent", "tests/1")).await;
    let patch = json!({ "client_name": "Renamed" });
    desk.patch("/admin/v1/clients/made", &patch).await;
    let events = items(&desk.get("/admin/v1/events?subject=made").await);
    let types: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["client.created", "client.updated"]);
    let event = &events[0];
    assert_eq!(event["actor"], client.id);
    assert_eq!(event["address"], "127.0.0.1");
    assert_eq!(event["user_agent"], "tests/1");
    assert_eq!(event["request_id"], created.header("x-request-id").unwrap());
    assert_eq!(event["before"], Value::Null);
    assert_eq!(event["after"]["client_name"], "Made");
    assert_eq!(events[1]["before"]["client_name"], "Made");
    assert_eq!(events[1]["after"]["client_name"], "Renamed");
    assert!(!json!(events).to_string().contains("cs_cs_"));

    let rotate = json!({ "mode": "emergency", "reason": "Drill" });
    desk.post("/admin/v1/keys/rotate", &rotate).await;
    let desk = Desk::of(&server, ALL).await;
    let events = items(&desk.get("/admin/v1/events?type=key.revoked").await);
    assert_eq!(events[0]["reason"], "Drill");
}

#[tokio::test]
async fn events_come_in_parts_and_are_followed() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let all = items(&desk.get("/admin/v1/events?limit=200").await);
    let mut path = "/admin/v1/events?limit=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let part = desk.get(&path).await;
        seen.extend(items(&part));
        match part.json()["next_cursor"].as_str() {
            Some(cursor) => path = format!("/admin/v1/events?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, all);
    let last = seen.last().unwrap()["id"].as_str().unwrap();
    let after = format!("/admin/v1/events?after={last}");
    assert_eq!(items(&desk.get(&after).await), [Value::Null; 0]);
    let waiting = format!("{after}&wait=30");
    let renamed = json!({ "client_name": "Renamed" });
    let (followed, _) = tokio::join!(
        desk.get(&waiting),
        desk.patch("/admin/v1/clients/app", &renamed)
    );
    assert_eq!(items(&followed)[0]["type"], "client.updated");
}

#[tokio::test]
async fn a_filter_that_cannot_be_is_told() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "events:read").await;
    for (query, wrong) in [
        ("after=x", "/after"),
        ("after=%00", "/after"),
        ("type=client.eaten", "/type"),
        ("subject=a%00b", "/subject"),
        ("wait=31", "/wait"),
        ("wait=-1", "/wait"),
    ] {
        let refused = desk.get(&format!("/admin/v1/events?{query}")).await;
        assert_eq!(pointers(&refused), [wrong], "{query}");
    }
}

/// Whoever asks about a user hears of what has become of its sessions, sign-ins and consents, too.
#[tokio::test]
async fn events_about_a_user_are_those_of_its_sessions_too() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let ada = server.user("ada").await;
    let bob = server.user("bob").await;
    let family = server.sign_in(&server.app, ada).await.family;
    server.sign_in(&server.app, bob).await;
    desk.post(&format!("/admin/v1/families/{family}/revoke"), &json!({}))
        .await;
    let types = async |query: &str| -> Vec<String> {
        let events = items(&desk.get(&format!("/admin/v1/events?{query}")).await);
        let kinds = events.iter().map(|event| event["type"].as_str().unwrap());
        kinds.map(str::to_owned).collect()
    };
    let all = types(&format!("subject={ada}")).await;
    assert_eq!(all, ["user.created", "family.revoked"]);
    assert_eq!(
        types(&format!("subject={family}")).await,
        ["family.revoked"]
    );
    let revoked = format!("subject={ada}&type=family.revoked");
    assert_eq!(types(&revoked).await, ["family.revoked"]);
}
