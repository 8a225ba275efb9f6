//! The admin listener: operators' calls, their description, and the page for people.
//!
//! Every answer that a test here gets is held against the `OpenAPI` document: its status must be
//! documented and its body as described.

mod clients;
mod description;
mod ending;
mod escalation;
mod events;
mod families;
mod fault;
mod guard;
mod keys;
mod nonsense;
mod resources;
mod revocations;
mod users;

use std::time::Duration;

use countersign::{admin::client::ClientMetadata, clock::ManualClock};
use reqwest::{
    Method, RequestBuilder,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Value, json};

use crate::support::{
    client,
    server::{API, Answer, GRANT, Registered, TestServer, answer},
};

/// The admin interface as a resource.
const ADMIN: &str = "https://issuer.example/admin";

/// Every scope of the admin interface that some call needs.
const ALL: &str = "clients:read clients:write events:read families:read families:write keys:read \
     keys:rotate resources:read resources:write revocations:write users:read users:write";

/// What an operator is registered with.
fn operator(scope: &str) -> ClientMetadata {
    ClientMetadata {
        client_name: "An operator".to_owned(),
        scope: scope.to_owned(),
        resources: vec![ADMIN.to_owned(), API.to_owned()],
        ..ClientMetadata::default()
    }
}

/// A new operator's token for the admin interface.
async fn token(server: &TestServer, scope: &str) -> String {
    let registered = server.register(&operator(scope)).await;
    token_of(server, &registered, ADMIN).await
}

/// A client's token for a resource.
async fn token_of(server: &TestServer, client: &Registered, resource: &str) -> String {
    let request = server.token_request();
    let request = request.basic_auth(&client.id, Some(&client.secret));
    let form = [GRANT[0], ("resource", resource)];
    answer(request.form(&form)).await.access_token()
}

/// Lets a manual clock go on while something happens that waits for a look at the database.
async fn while_time_passes<T>(clock: &ManualClock, what: impl Future<Output = T>) -> T {
    let passing = async {
        loop {
            clock.advance(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        what = what => what,
        () = passing => unreachable!("time does not end"),
    }
}

/// A request to the admin listener, as yet without credentials.
fn request(server: &TestServer, method: &str, path: &str) -> RequestBuilder {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let client = client().build().unwrap();
    client.request(method, format!("http://{}{path}", server.admin))
}

/// An operator at work.
struct Desk<'a> {
    server: &'a TestServer,
    token: String,
    document: Value,
}

impl<'a> Desk<'a> {
    /// The desk of an operator with these scopes.
    async fn of(server: &'a TestServer, scope: &str) -> Self {
        Self::with(server, token(server, scope).await).await
    }

    /// The same where time stands still: it passes faster there than the node can look at its
    /// database, so that it may not know the operator at once.
    async fn in_time_of(clock: &ManualClock, server: &'a TestServer, scope: &str) -> Self {
        let registered = server.register(&operator(scope)).await;
        loop {
            let request = server.token_request();
            let request = request.basic_auth(&registered.id, Some(&registered.secret));
            let form = [GRANT[0], ("resource", ADMIN)];
            let answered = while_time_passes(clock, answer(request.form(&form))).await;
            if answered.status == 200 {
                return Self::with(server, answered.access_token()).await;
            }
        }
    }

    async fn with(server: &'a TestServer, token: String) -> Self {
        let document = document(server).await;
        Self {
            server,
            token,
            document,
        }
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        request(self.server, method, path).bearer_auth(&self.token)
    }

    /// Sends a request, and holds the answer against the document.
    async fn send(&self, request: RequestBuilder) -> Answer {
        let sent = request.try_clone().unwrap().build().unwrap();
        let answer = answer(request).await;
        let method = sent.method().as_str().to_ascii_lowercase();
        is_as_described(&self.document, &method, sent.url().path(), &answer);
        answer
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(self.request("DELETE", path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request("POST", path).json(body)).await
    }

    async fn patch(&self, path: &str, body: &Value) -> Answer {
        let request = self.request("PATCH", path).body(body.to_string());
        let request = request.header(CONTENT_TYPE, "application/merge-patch+json");
        self.send(request).await
    }
}

/// The `OpenAPI` document, which is open to all.
async fn document(server: &TestServer) -> Value {
    let answer = answer(request(server, "GET", "/admin/v1/openapi.json")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Every call of the document: method in capitals, path with its parameters, description.
fn calls(document: &Value) -> Vec<(String, String, Value)> {
    let mut calls = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, call) in methods.as_object().unwrap() {
            calls.push((method.to_ascii_uppercase(), path.clone(), call.clone()));
        }
    }
    calls
}

/// Checks that an answer of a documented call is one that the document has.
fn is_as_described(document: &Value, method: &str, path: &str, answer: &Answer) {
    let matches = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template
                .zip(path)
                .all(|(part, given)| part.starts_with('{') || part == given)
    };
    let paths = document["paths"].as_object().unwrap();
    let call = paths
        .iter()
        .find_map(|(template, methods)| matches(template).then(|| methods.get(method)).flatten());
    let Some(call) = call else { return };
    let described = &call["responses"][answer.status.to_string()];
    assert!(
        described.is_object(),
        "{method} {path}: not described: {answer:?}"
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
    for name in described["headers"]
        .as_object()
        .into_iter()
        .flat_map(|h| h.keys())
    {
        assert!(
            answer.header(&name.to_ascii_lowercase()).is_some() || answer.status == 403,
            "{method} {path} has no {name}: {answer:?}"
        );
    }
    let Some(content) = described["content"].as_object() else {
        assert_eq!(answer.body, "", "{method} {path}");
        return;
    };
    let media = &content[answer.header("content-type").unwrap()];
    conforms(document, &media["schema"], &answer.json(), path);
}

/// Checks a value against a schema, more strictly than a validator would: there is no member that
/// the schema does not have.
fn conforms(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
        return conforms(document, schema, value, place);
    }
    if let Some(alternatives) = schema["oneOf"].as_array() {
        let fitting = alternatives
            .iter()
            .find(|schema| schema["type"] != "null")
            .unwrap();
        if !value.is_null() {
            conforms(document, fitting, value, place);
        }
        return;
    }
    // Anything may stand there.
    if schema.get("type").is_none() {
        return;
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    assert!(
        types.contains(&json!(kind)),
        "{place}: {value} is no {types:?}"
    );
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                conforms(
                    document,
                    &schema["items"],
                    item,
                    &format!("{place}/{index}"),
                );
            }
        }
        Value::Object(members) if schema["properties"].is_object() => {
            for (name, member) in members {
                let schema = &schema["properties"][name];
                assert!(schema.is_object(), "{place}: {name} is not described");
                conforms(document, schema, member, &format!("{place}/{name}"));
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                assert!(members.contains_key(name), "{place}: {name} is missing");
            }
        }
        _ => {}
    }
}

/// Checks that an answer is a problem of this type.
fn is_problem(answer: &Answer, status: u16, slug: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let document = answer.json();
    assert_eq!(document["type"], format!("urn:countersign:problem:{slug}"));
    assert_eq!(document["status"], status);
}

/// The pointers of everything that an answer says is wrong, sorted.
fn pointers(answer: &Answer) -> Vec<String> {
    is_problem(answer, 400, "invalid");
    let document = answer.json();
    let errors = document["errors"].as_array().unwrap();
    let pointer = |error: &Value| error["pointer"].as_str().unwrap().to_owned();
    let mut pointers: Vec<String> = errors.iter().map(pointer).collect();
    pointers.sort();
    pointers
}
