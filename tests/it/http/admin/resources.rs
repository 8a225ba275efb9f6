//! `/admin/v1/resources` and what is below it.

use super::*;

#[tokio::test]
async fn a_resource_is_registered_listed_and_removed() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "resource": "https://orders.example", "name": "Orders",
        "scopes": ["orders:read", "x"], "introspection_clients": ["app"],
        "scope_descriptions": { "orders:read": "See your <orders>" },
    });
    let created = desk.post("/admin/v1/resources", &written).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(
        created.json()["scope_descriptions"],
        written["scope_descriptions"]
    );
    let id = created.json()["id"].as_str().unwrap().to_owned();
    let place = format!("/admin/v1/resources/{id}");
    assert_eq!(created.header("location"), Some(place.as_str()));
    is_problem(
        &desk.post("/admin/v1/resources", &written).await,
        409,
        "conflict",
    );
    let list = desk.get("/admin/v1/resources").await.json();
    let items = list["items"].as_array().unwrap();
    assert_eq!(items[0]["resource"], ADMIN);
    assert_eq!(items.last().unwrap(), &created.json());
    let events = desk.get(&format!("/admin/v1/events?subject={id}")).await;
    assert_eq!(events.json()["items"][0]["after"], created.json());
    assert_eq!(desk.delete(&place).await.status, 204);
    is_problem(&desk.delete(&place).await, 404, "not-found");
}

#[tokio::test]
async fn what_is_built_in_is_not_removed_and_nothing_is_taken_for_it() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    for built_in in [0, 1] {
        let built_in = format!("/admin/v1/resources/00000000-0000-0000-0000-00000000000{built_in}");
        is_problem(&desk.delete(&built_in).await, 409, "conflict");
    }
    for resource in [
        ADMIN,
        "https://issuer.example/admin/",
        "https://issuer.example:443/admin",
        "https://ISSUER.example/admin",
        "HTTPS://issuer.example/Admin",
        "https://issuer.example/x/../admin",
        "https://user@issuer.example/admin?a=b",
        "https://issuer.example/%61dmin",
        "https://issuer.example/oauth2/userinfo",
        "https://issuer.example/oauth2/UserInfo/",
    ] {
        let written = json!({ "resource": resource, "name": "Mine", "scopes": ["keys:rotate"] });
        let refused = desk.post("/admin/v1/resources", &written).await;
        assert_eq!(pointers(&refused), ["/resource"], "{resource}");
    }
}

#[tokio::test]
async fn everything_wrong_is_told_at_once_with_its_pointer() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "resource": "orders", "name": "\0", "scopes": ["a b", 7],
        "introspection_clients": ["app", "no client"], "id": "mine",
    });
    let expected = [
        "/id",
        "/introspection_clients/1",
        "/name",
        "/resource",
        "/scopes/1",
    ];
    let refused = desk.post("/admin/v1/resources", &written).await;
    assert_eq!(pointers(&refused), expected);
    let nothing = desk.post("/admin/v1/resources", &json!({})).await;
    assert_eq!(pointers(&nothing), ["/name", "/resource"]);
    let spaced = json!({ "resource": "https://o.example", "name": "O", "scopes": ["a b"] });
    let refused = desk.post("/admin/v1/resources", &spaced).await;
    assert_eq!(pointers(&refused), ["/scopes/0"]);
}

/// Users read the texts: they are short, are about scopes that there are, and say what is written.
#[tokio::test]
async fn what_is_wrong_with_words_for_scopes_is_told() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let with = |descriptions: Value| {
        json!({
            "resource": "https://o.example", "name": "O", "scopes": ["a", "b/c", "d"],
            "scope_descriptions": descriptions,
        })
    };
    for (descriptions, pointer, detail) in [
        (
            json!({ "e": "x" }),
            "/scope_descriptions/e",
            "is no scope of the resource",
        ),
        (
            json!({ "": "x" }),
            "/scope_descriptions/",
            "is no scope of the resource",
        ),
        (
            json!({ "a": 7 }),
            "/scope_descriptions/a",
            "must be a string",
        ),
        (json!(["a"]), "/scope_descriptions", "must be an object"),
    ] {
        let refused = desk.post("/admin/v1/resources", &with(descriptions)).await;
        assert_eq!(pointers(&refused), [pointer]);
        assert_eq!(refused.json()["errors"][0]["detail"], detail, "{refused:?}");
    }
    let long = "x".repeat(201);
    for text in ["", " ", "a\0", "a\nb", "\u{202e}a", "a\u{2069}", &long] {
        let written = with(json!({ "b/c": text, "a": "Good" }));
        let refused = desk.post("/admin/v1/resources", &written).await;
        assert_eq!(pointers(&refused), ["/scope_descriptions/b~1c"], "{text:?}");
    }
    // Of several mistakes, each.
    let written = with(json!({ "a": "", "e": "x" }));
    let refused = desk.post("/admin/v1/resources", &written).await;
    assert_eq!(
        pointers(&refused),
        ["/scope_descriptions/a", "/scope_descriptions/e"]
    );
    let longest = "é".repeat(200);
    let written = with(json!({ "a": longest, "b/c": "الطلبات", "d": "See “it”" }));
    let created = desk.post("/admin/v1/resources", &written).await;
    assert_eq!(created.status, 201, "{created:?}");
}
