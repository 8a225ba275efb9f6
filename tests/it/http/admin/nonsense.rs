//! Whatever stands in a body, the answer is one that the `OpenAPI` document has, and no failure.

use super::*;
use crate::support::{database::Engine, server::Setup};

on_both_engines! {
    nonsense_in_any_member_is_answered_as_described,
}

async fn nonsense_in_any_member_is_answered_as_described(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let desk = Desk::of(&server, ALL).await;
    let user = json!({ "username": "ada" });
    let user = desk.post("/admin/v1/users", &user).await.json();
    let user = user["id"].as_str().unwrap().to_owned();
    let nonsense = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!("\0"),
        json!("https://a.example/\0"),
        json!("x".repeat(60_000)),
        json!([]),
        json!(["\0"]),
        json!([[], null]),
        json!({}),
        json!({ "keys": [] }),
        json!({ "keys": [{ "kty": "\0", "\0": 1 }] }),
    ];
    for (method, path, call) in calls(&desk.document) {
        for content in call["requestBody"]["content"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let reference = content.1["schema"]["$ref"].as_str().unwrap();
            let schema = desk
                .document
                .pointer(reference.trim_start_matches('#'))
                .unwrap();
            for member in schema["properties"].as_object().unwrap().keys() {
                for value in &nonsense {
                    let mut body = content.1["example"].clone();
                    // Keys are there for the other tests.
                    if body["mode"] == "emergency" {
                        body = json!({ "mode": "scheduled" });
                    }
                    body[member] = value.clone();
                    let path = path.replace("{client_id}", "app").replace("{id}", &user);
                    let request = desk.request(&method, &path);
                    let request = request
                        .header(CONTENT_TYPE, content.0)
                        .body(body.to_string());
                    let answer = desk.send(request).await;
                    assert!(answer.status < 500, "{method} {path} {member}: {answer:?}");
                }
            }
        }
    }
}
