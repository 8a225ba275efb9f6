//! The `OpenAPI` 3.1 document, made of the table of calls.

use std::{collections::BTreeMap, sync::LazyLock};

use actix_web::{HttpResponse, http::header};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    problem::Kind,
    schema,
    table::{OPERATIONS, Operation, Success},
};
use crate::{
    admin::{
        client::ClientMetadata,
        event::LONGEST_WAIT_SECONDS,
        family::EndRequest,
        key::RotationRequest,
        page,
        resource::ResourceMetadata,
        revocation::RevocationRequest,
        user::{PasswordRequest, UserMetadata},
    },
    domain::{change::EventType, family::FamilyState, key::KeyUse},
    identity::password,
};

/// The document as it is sent.
static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// `GET /admin/v1/openapi.json`: open, as it tells nothing about this service in particular.
pub(super) fn answer() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .content_type("application/json")
        .body(TEXT.as_str())
}

/// The document.
pub(super) fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in &OPERATIONS {
        let method = operation
            .method
            .names()
            .first()
            .copied()
            .unwrap_or_default();
        paths
            .entry(operation.path)
            .or_default()
            .insert(method.to_ascii_lowercase(), describe(operation));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Countersign admin interface",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Operators get an access token by client_credentials with resource=<issuer>/admin. \
                Times are whole seconds since 1970. Errors are problem details (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "operator": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "An access token of this issuer whose audience is <issuer>/admin alone.",
                },
            },
        },
    })
}

fn describe(operation: &Operation) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "tags": [family(operation)],
        "summary": operation.summary,
        "security": [{ "operator": [operation.scope] }],
        "parameters": parameters(operation),
        "responses": responses(operation),
    });
    let mut put = |name: &str, value: Value| {
        if let Some(members) = described.as_object_mut() {
            members.insert(name.to_owned(), value);
        }
    };
    if !operation.description.is_empty() {
        put("description", operation.description.into());
    }
    if let Some(body) = &operation.body {
        let example: Value = serde_json::from_str(body.example).unwrap_or_default();
        let content = json!({ "schema": reference(body.schema), "example": example });
        let content: Map<String, Value> = body
            .media_types
            .iter()
            .map(|media_type| ((*media_type).to_owned(), content.clone()))
            .collect();
        put(
            "requestBody",
            json!({ "required": !body.is_optional, "content": content }),
        );
    }
    described
}

/// The family of a call: the part of its path after the version.
pub(super) fn family(operation: &Operation) -> &'static str {
    operation.path.split('/').nth(3).unwrap_or_default()
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let in_path = operation
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| {
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "schema": path_parameter(name),
            })
        })
        .collect();
    if let Success::List("Event") = operation.success {
        parameters.extend(in_query(event_filters()));
    }
    if let Success::List("Family") = operation.success {
        parameters.extend(in_query(family_filters()));
    }
    if let Success::List("User") = operation.success {
        parameters.push(json!({
            "name": "username",
            "in": "query",
            "description": "The one of this name.",
            "schema": { "type": "string" },
        }));
    }
    if let Success::List("Key") = operation.success {
        parameters.push(json!({
            "name": "use",
            "in": "query",
            "description": "What the keys are for.",
            "schema": { "type": "string", "enum": uses(), "default": KeyUse::Signing.as_str() },
        }));
    }
    if let Success::List(_) = operation.success {
        parameters.push(json!({
            "name": "limit",
            "in": "query",
            "description": "How many items at most.",
            "schema": { "type": "integer", "minimum": 1, "maximum": page::MOST, "default": page::USUAL },
        }));
        parameters.push(json!({
            "name": "cursor",
            "in": "query",
            "description": "The next_cursor of the part before.",
            "schema": { "type": "string" },
        }));
    }
    parameters
}

fn uses() -> Vec<&'static str> {
    KeyUse::ALL.iter().map(|key_use| key_use.as_str()).collect()
}

/// Name, description and schema of a parameter of the query.
type Filter = (&'static str, &'static str, Value);

/// What events can be asked for by.
fn event_filters() -> [Filter; 4] {
    let types: Vec<&str> = EventType::ALL.iter().map(|kind| kind.as_str()).collect();
    [
        (
            "after",
            "The id of the event after which to begin.",
            json!({ "type": "string", "format": "uuid" }),
        ),
        (
            "type",
            "Those of this type.",
            json!({ "type": "string", "enum": types }),
        ),
        (
            "subject",
            "Those about this client, user, resource, key use or jti; about a user also what became of its sessions, sign-ins and consents.",
            json!({ "type": "string" }),
        ),
        (
            "wait",
            "How long to wait until there is one, in seconds.",
            json!({ "type": "integer", "minimum": 0, "maximum": LONGEST_WAIT_SECONDS, "default": 0 }),
        ),
    ]
}

/// What families can be asked for by.
fn family_filters() -> [Filter; 3] {
    let states: Vec<&str> = FamilyState::ALL
        .iter()
        .map(|state| state.as_str())
        .collect();
    [
        (
            "subject",
            "Those of this user, by its id.",
            json!({ "type": "string", "format": "uuid" }),
        ),
        (
            "client_id",
            "Those at this client.",
            path_parameter("client_id"),
        ),
        (
            "state",
            "Those in this state.",
            json!({ "type": "string", "enum": states }),
        ),
    ]
}

fn in_query<const N: usize>(filters: [Filter; N]) -> [Value; N] {
    filters.map(|(name, description, schema)| {
        json!({ "name": name, "in": "query", "description": description, "schema": schema })
    })
}

/// The form of a parameter in the path. What has another form is not found.
fn path_parameter(name: &str) -> Value {
    match name {
        "client_id" => json!({ "type": "string", "pattern": "^[A-Za-z0-9._~-]{1,64}$" }),
        "kid" => json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{43}$" }),
        _ => json!({ "type": "string", "format": "uuid" }),
    }
}

fn responses(operation: &Operation) -> Value {
    let mut responses = Map::new();
    let (status, response) = success(operation);
    responses.insert(status.to_owned(), response);
    let mut kinds = vec![
        Kind::Malformed,
        Kind::Unauthenticated,
        Kind::InvalidToken,
        Kind::InsufficientScope,
        Kind::Internal,
        Kind::Unavailable,
    ];
    if operation.body.is_some() {
        kinds.extend([Kind::TooSlow, Kind::TooLarge, Kind::UnsupportedMediaType]);
    }
    kinds.extend(operation.refusals);
    let mut by_status: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(kind.describe().0).or_default().push(kind);
    }
    for (status, kinds) in by_status {
        responses.insert(status.to_string(), refusal(status, &kinds));
    }
    responses.into()
}

fn success(operation: &Operation) -> (&'static str, Value) {
    let with = |description: &str, schema: Value| {
        json!({
            "description": description,
            "content": { "application/json": { "schema": schema } },
        })
    };
    match operation.success {
        Success::Document(schema) => ("200", with("It is done.", reference(schema))),
        Success::List(item) => {
            let list = json!({
                "type": "object",
                "required": ["items", "next_cursor"],
                "properties": {
                    "items": { "type": "array", "items": reference(item) },
                    "next_cursor": {
                        "type": ["string", "null"],
                        "description": "Where the next part begins; null after the last.",
                    },
                },
            });
            ("200", with("A part of the list.", list))
        }
        Success::Created(schema) => {
            let mut response = with("It is made.", reference(schema));
            let location = json!({ "Location": {
                "description": "The path of what was made.",
                "schema": { "type": "string" },
            } });
            if let Some(members) = response.as_object_mut() {
                members.insert("headers".to_owned(), location);
            }
            ("201", response)
        }
        Success::Removed => ("204", json!({ "description": "It is gone." })),
    }
}

fn refusal(status: u16, kinds: &[Kind]) -> Value {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.describe().2).collect();
    let examples: Map<String, Value> = kinds
        .iter()
        .map(|kind| {
            let (status, slug, title) = kind.describe();
            let mut value =
                json!({ "type": kind.uri(), "title": title, "status": status, "detail": "…" });
            if let (Kind::Invalid, Some(members)) = (kind, value.as_object_mut()) {
                let errors = json!([{ "pointer": "/member", "detail": "is not known here" }]);
                members.insert("errors".to_owned(), errors);
            }
            (slug.to_owned(), json!({ "value": value }))
        })
        .collect();
    let mut response = json!({
        "description": format!("{}.", titles.join("; or: ")),
        "content": { "application/problem+json": {
            "schema": reference("Problem"),
            "examples": examples,
        } },
    });
    let header = match status {
        401 | 403 => Some(("WWW-Authenticate", "How to authenticate (RFC 6750 §3).")),
        503 => Some(("Retry-After", "When to try again, in seconds.")),
        _ => None,
    };
    if let (Some((name, description)), Some(members)) = (header, response.as_object_mut()) {
        let header =
            json!({ name: { "description": description, "schema": { "type": "string" } } });
        members.insert("headers".to_owned(), header);
    }
    response
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn schemas() -> Value {
    let mut schemas = Map::new();
    add::<schema::Client>(&mut schemas);
    add::<schema::Event>(&mut schemas);
    add::<schema::Consent>(&mut schemas);
    add::<schema::Permission>(&mut schemas);
    add::<schema::Family>(&mut schemas);
    add::<schema::FieldError>(&mut schemas);
    add::<schema::Key>(&mut schemas);
    add::<schema::KeyChange>(&mut schemas);
    add::<schema::NewSecret>(&mut schemas);
    add::<schema::Party>(&mut schemas);
    add::<schema::Problem>(&mut schemas);
    add::<schema::Resource>(&mut schemas);
    add::<schema::Secret>(&mut schemas);
    add::<schema::Told>(&mut schemas);
    add::<schema::User>(&mut schemas);
    add::<ClientMetadata>(&mut schemas);
    add::<EndRequest>(&mut schemas);
    add::<ResourceMetadata>(&mut schemas);
    add::<RevocationRequest>(&mut schemas);
    add::<RotationRequest>(&mut schemas);
    add::<PasswordRequest>(&mut schemas);
    add::<UserMetadata>(&mut schemas);
    let client_id = json!({
        "type": "string",
        "pattern": "^[A-Za-z0-9._~-]{1,64}$",
        "description": "The id to have; drawn when absent.",
    });
    let secret = json!({
        "type": "string",
        "description": "Its secret, if it is to have one. It is not shown again.",
    });
    let revision = json!({ "type": "integer", "format": "int64", "description": "The revision that was seen." });
    extend(
        &mut schemas,
        "NewClient",
        "ClientMetadata",
        ("client_id", client_id),
    );
    extend(
        &mut schemas,
        "CreatedClient",
        "Client",
        ("client_secret", secret),
    );
    extend(
        &mut schemas,
        "ClientPatch",
        "ClientMetadata",
        ("revision", revision.clone()),
    );
    patch(&mut schemas, "ClientPatch");
    let password = json!({
        "type": "string",
        "minLength": password::LEAST_MINIMUM_LENGTH,
        "maxLength": password::LONGEST,
        "description": "The password to sign in with; the user has none when it is absent.",
    });
    extend(
        &mut schemas,
        "NewUser",
        "UserMetadata",
        ("password", password),
    );
    extend(
        &mut schemas,
        "UserPatch",
        "UserMetadata",
        ("revision", revision),
    );
    patch(&mut schemas, "UserPatch");
    let story = json!({
        "type": "array",
        "items": reference("Told"),
        "description": "What happened, in order.",
    });
    extend(&mut schemas, "FamilyStory", "Family", ("story", story));
    require(&mut schemas, "FamilyStory", "story");
    schemas.into()
}

fn add<T: ToSchema>(schemas: &mut Map<String, Value>) {
    let schema = serde_json::to_value(T::schema()).unwrap_or_default();
    schemas.insert(T::name().into_owned(), schema);
}

/// Describes what is like `base`, and has one more member that may be there.
fn extend(schemas: &mut Map<String, Value>, name: &str, base: &str, member: (&str, Value)) {
    let mut schema = schemas.get(base).cloned().unwrap_or_default();
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.insert(member.0.to_owned(), member.1);
    }
    schemas.insert(name.to_owned(), schema);
}

/// Says that a member is always there.
fn require(schemas: &mut Map<String, Value>, name: &str, member: &str) {
    let required = schemas
        .get_mut(name)
        .and_then(|schema| schema.get_mut("required"));
    if let Some(Value::Array(required)) = required {
        required.push(member.into());
    }
}

/// Describes a merge patch: every member may be absent.
fn patch(schemas: &mut Map<String, Value>, name: &str) {
    if let Some(Value::Object(schema)) = schemas.get_mut(name) {
        schema.remove("required");
    }
}
