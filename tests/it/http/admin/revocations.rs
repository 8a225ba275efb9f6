//! `POST /admin/v1/revocations`.

use super::*;
use crate::support::process::now;

/// Whether the token of a client of its own is active, by introspection.
async fn is_active(server: &TestServer, token: &str) -> bool {
    let request = server.request(Method::POST, "/oauth2/introspect");
    let request = request.basic_auth(&server.app.id, Some(&server.app.secret));
    answer(request.form(&[("token", token)])).await.json()["active"] == true
}

#[tokio::test]
async fn one_token_or_all_of_a_client_are_revoked() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "revocations:write").await;
    let revoke = async |document: Value| {
        let done = desk.post("/admin/v1/revocations", &document).await;
        assert_eq!(done.status, 200, "{done:?}");
        assert_eq!(done.json(), document);
    };
    let (one, other) = (server.token().await, server.token().await);
    let (one, other) = (one.access_token(), other.access_token());
    let payload = one.split('.').nth(1).unwrap();
    let payload = countersign_verifier::base64url::decode(payload).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    revoke(json!({ "jti": claims["jti"], "expires_at": claims["exp"] })).await;
    while is_active(&server, &one).await {}
    assert!(is_active(&server, &other).await);
    revoke(json!({ "client_id": "app" })).await;
    while is_active(&server, &other).await {}
}

#[tokio::test]
async fn a_revoked_operator_calls_no_more() {
    let server = TestServer::start().await;
    let client = server.register(&operator("revocations:write")).await;
    let desk = Desk::with(&server, token_of(&server, &client, ADMIN).await).await;
    let document = json!({ "client_id": client.id });
    assert_eq!(
        desk.post("/admin/v1/revocations", &document).await.status,
        200
    );
    while desk.post("/admin/v1/revocations", &document).await.status == 200 {}
    let refused = desk.post("/admin/v1/revocations", &document).await;
    is_problem(&refused, 401, "invalid-token");
}

#[tokio::test]
async fn a_revocation_says_what_is_wrong_with_its_document() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "revocations:write").await;
    let soon = now().seconds() + 600;
    for (document, wrong) in [
        (json!({}), vec![""]),
        (
            json!({ "client_id": "app", "jti": "x", "expires_at": soon }),
            vec![""],
        ),
        (json!({ "client_id": "a b" }), vec!["/client_id"]),
        (json!({ "family_id": "x" }), vec!["/family_id"]),
        (json!({ "family_id": "x", "client_id": "app" }), vec![""]),
        (json!({ "family_id": "x", "jti": "x" }), vec![""]),
        (json!({ "jti": "x" }), vec!["/expires_at"]),
        (json!({ "expires_at": soon }), vec!["/jti"]),
        (json!({ "jti": "\0", "expires_at": soon }), vec!["/jti"]),
        (
            json!({ "jti": "", "expires_at": 1 }),
            vec!["/expires_at", "/jti"],
        ),
        (
            json!({ "jti": "x", "expires_at": i64::MAX }),
            vec!["/expires_at"],
        ),
        (
            json!({ "jti": "x", "expires_at": soon, "user": "x" }),
            vec!["/user"],
        ),
    ] {
        let refused = desk.post("/admin/v1/revocations", &document).await;
        assert_eq!(pointers(&refused), wrong, "{document}");
    }
    let unknown = desk
        .post("/admin/v1/revocations", &json!({ "client_id": "nobody" }))
        .await;
    is_problem(&unknown, 404, "not-found");
}

#[tokio::test]
async fn a_session_is_ended_with_its_tokens() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "revocations:write").await;
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(&server.app, ada).await;
    let other = server.sign_in(&server.app, ada).await;
    let document = json!({ "family_id": signed_in.family.to_string() });
    // The second time it has ended already.
    for _ in 0..2 {
        let done = desk.post("/admin/v1/revocations", &document).await;
        assert_eq!(done.status, 200, "{done:?}");
        assert_eq!(done.json(), document);
        assert!(!is_active(&server, &signed_in.access_token).await);
        assert!(is_active(&server, &other.access_token).await);
    }
    let unknown = json!({ "family_id": "019f0000-0000-7000-8000-000000000000" });
    let unknown = desk.post("/admin/v1/revocations", &unknown).await;
    is_problem(&unknown, 404, "not-found");
    let of_client = json!({ "client_id": "app" });
    let done = desk.post("/admin/v1/revocations", &of_client).await;
    assert_eq!(done.status, 200);
    assert!(!is_active(&server, &other.access_token).await);
    let refused = server.refresh(&server.app, &other.refresh_token).await;
    assert_eq!(
        refused.header("countersign-reason"),
        Some("client_sessions_ended")
    );
}

/// Done again and again it would keep that operator out.
#[tokio::test]
async fn the_tokens_of_an_operator_with_more_authority_are_out_of_reach() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, "revocations:write").await;
    let above = server
        .register(&operator("revocations:write keys:read"))
        .await;
    let document = json!({ "client_id": above.id });
    is_problem(
        &desk.post("/admin/v1/revocations", &document).await,
        403,
        "forbidden",
    );
    let equal = server.register(&operator("revocations:write")).await;
    let document = json!({ "client_id": equal.id });
    assert_eq!(
        desk.post("/admin/v1/revocations", &document).await.status,
        200
    );
}
