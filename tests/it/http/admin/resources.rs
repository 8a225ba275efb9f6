//! `/admin/v1/resources` and what is below it.

use super::*;

#[tokio::test]
async fn a_resource_is_registered_listed_and_removed() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let written = json!({
        "resource": "https://orders.example", "name": "Orders",
        "scopes": ["orders:read"], "introspection_clients": ["app"],
    });
    let created = desk.post("/admin/v1/resources", &written).await;
    assert_eq!(created.status, 201, "{created:?}");
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
