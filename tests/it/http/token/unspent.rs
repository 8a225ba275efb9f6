//! What is looked at before a token or a code is spent, so that nobody loses one for nothing.
//!
//! Under the strict policy, where a token that was spent ends its family when it comes again.

use countersign::admin::client::ClientMetadata;
use serde_json::json;

use super::{Refusal, refused};
use crate::support::{
    database::{Database, Engine},
    server::{API, FILES, Registered, Setup, TestServer},
    sign_in::{public, redeem, refresh},
    soon,
};

on_both_engines! {
    without_a_key_to_sign_with_nothing_is_spent,
    with_nothing_left_to_issue_no_refresh_token_is_spent,
}

/// A server with a strict client.
async fn start(database: &Database) -> TestServer {
    let strict = ClientMetadata {
        refresh_policy: Some("strict".to_owned()),
        ..public()
    };
    let setup = Setup::new().at(database.url()).client("spa", strict);
    setup.start().await
}

/// Refuses a refresh token and a code, more than once.
async fn are_refused(
    server: &TestServer,
    spa: &Registered,
    forms: [&[(&str, &str)]; 2],
    why: Refusal,
) {
    for form in [forms, forms].concat() {
        refused(server.by(spa, form), why).await;
    }
}

async fn without_a_key_to_sign_with_nothing_is_spent(engine: Engine) {
    let database = Database::create(engine).await;
    let server = start(&database).await;
    let spa = server.other("spa");
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(spa, ada).await;
    let code = server.code(spa, ada).await;
    // The node must not make another one meanwhile.
    let revoke_keys = |at: &str| {
        format!(
            "update sealed_key set revoked_at = {at} where key_use = 'signing'; \
             update change_head set seq = seq + 1; \
             insert into change (seq, topic, target, at) select seq, 'keys', 'signing', 0 from change_head"
        )
    };
    database.break_table("key_schedule").await;
    database.execute(&revoke_keys("1")).await;
    soon(async { while server.token().await.status != 503 {} }).await;
    let before = database.dump(&["family", "authorization_code"]).await;
    let (token, code) = (refresh(&signed_in.refresh_token), redeem(&code));
    let no_key = (503, "temporarily_unavailable", "no_key");
    are_refused(&server, spa, [&token, &code], no_key).await;
    let after = database.dump(&["family", "authorization_code"]).await;
    assert_eq!(after, before);
    database.execute(&revoke_keys("null")).await;
    soon(async { while server.token().await.status != 200 {} }).await;
    server.exchange(spa, &token).await.refresh_token();
    server.exchange(spa, &code).await.refresh_token();
}

async fn with_nothing_left_to_issue_no_refresh_token_is_spent(engine: Engine) {
    let database = Database::create(engine).await;
    let server = start(&database).await;
    let spa = server.other("spa");
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(spa, ada).await;
    let token = refresh(&signed_in.refresh_token);
    let with_target = [&token[..], &[("resource", API)]].concat();
    let family = server.family(signed_in.family).await;
    for patch in [
        json!({ "resources": [], "default_resource": null }),
        // The session is for another one.
        json!({ "resources": [FILES] }),
    ] {
        server.update(spa, patch).await;
        server.renewed().await;
        let refusal = (400, "invalid_target", "resource");
        are_refused(&server, spa, [&token, &with_target], refusal).await;
        assert_eq!(server.family(signed_in.family).await, family);
    }
    server.update(spa, json!({ "resources": [API] })).await;
    server.renewed().await;
    let next = server.exchange(spa, &token).await.refresh_token();
    server.refresh(spa, &next).await.refresh_token();
}
