//! The `OpenAPI` document and the page for people.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn the_document_is_whole_and_says_of_each_call_how_it_can_end() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    assert_eq!(document["openapi"], "3.1.0");
    let text = document.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let mut ids = BTreeSet::new();
    for (method, path, call) in calls(&document) {
        assert!(ids.insert(call["operationId"].as_str().unwrap().to_owned()));
        let has = |status: &str| call["responses"].get(status).is_some();
        for status in ["400", "401", "403", "500", "503"] {
            assert!(has(status), "{method} {path} lacks {status}");
        }
        assert!(!path.contains('{') || has("404"), "{method} {path}");
        if let Some(body) = call.get("requestBody") {
            for status in ["408", "413", "415"] {
                assert!(has(status), "{method} {path} lacks {status}");
            }
            for content in body["content"].as_object().unwrap().values() {
                conforms(&document, &content["schema"], &content["example"], &path);
            }
        }
        match method.as_str() {
            "DELETE" => assert!(has("204"), "{path}"),
            "GET" => assert!(has("200"), "{path}"),
            _ => assert!(has("200") || has("201"), "{path}"),
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert_eq!(schema["type"], "object", "{name}");
    }
    let required = |name: &str| document["components"]["schemas"][name]["required"].clone();
    assert_eq!(required("NewClient"), json!(["client_name"]));
    assert_eq!(required("ResourceMetadata"), json!(["resource", "name"]));
    assert_eq!(required("RotationRequest"), json!(["mode"]));
    assert_eq!(required("ClientPatch"), Value::Null);
    assert_eq!(required("NewUser"), json!(["username"]));
    assert_eq!(required("UserPatch"), Value::Null);
    assert_eq!(required("PasswordRequest"), json!(["password"]));
}

/// By a filter that is misspelt nothing would be left out: whoever ends or removes all that is listed
/// would have it from the wrong list.
#[tokio::test]
async fn a_list_takes_the_filters_that_are_described_and_refuses_others() {
    let server = TestServer::start().await;
    let desk = Desk::of(&server, ALL).await;
    let mut lists = 0;
    for (method, path, call) in calls(&desk.document) {
        if method != "GET" || path.contains('{') {
            continue;
        }
        lists += 1;
        let described = call["parameters"].as_array().unwrap().iter();
        let described: Vec<&str> = described.map(|it| it["name"].as_str().unwrap()).collect();
        assert!(described.contains(&"cursor"), "{path}");
        // One without a value is as good as none.
        let all = described.join("=&") + "=";
        assert_eq!(desk.get(&format!("{path}?{all}")).await.status, 200);
        for (unknown, pointer) in [
            ("subjekt=x", "/subjekt"),
            ("LIMIT=1", "/LIMIT"),
            ("a%2Fb", "/a~1b"),
            ("limit=1&=", "/"),
        ] {
            let refused = desk.get(&format!("{path}?{unknown}")).await;
            assert_eq!(pointers(&refused), [pointer], "{path}");
        }
    }
    assert!(lists >= 6, "{lists}");
}

#[tokio::test]
async fn the_page_names_every_call_and_needs_nothing_from_elsewhere() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    let page = answer(request(&server, "GET", "/docs")).await;
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; style-src 'self';"),
        "{policy}"
    );
    for (_, path, call) in calls(&document) {
        assert!(page.body.contains(&path.replace('/', "<wbr>/")), "{path}");
        let id = call["operationId"].as_str().unwrap();
        assert!(page.body.contains(&format!("id=\"{id}\"")), "{id}");
    }
    for foreign in ["<script", "style=", "src=", "http:", "href=\"http"] {
        assert!(!page.body.contains(foreign), "{foreign}");
    }
    // Every link leads somewhere.
    for link in page.body.split("href=\"").skip(1) {
        let link = link.split('"').next().unwrap();
        match link.strip_prefix('#') {
            Some(id) => assert!(page.body.contains(&format!("id=\"{id}\"")), "{link}"),
            None => assert_eq!(
                answer(request(&server, "GET", link)).await.status,
                200,
                "{link}"
            ),
        }
    }
    let style = answer(request(&server, "GET", "/docs/style.css")).await;
    assert_eq!(
        style.header("content-type"),
        Some("text/css; charset=utf-8")
    );
    assert!(!style.body.contains("url("));
}
