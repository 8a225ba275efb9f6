//! The admin listener's API.
//!
//! [`OPERATIONS`] is the one table of calls: routes, guards, the `OpenAPI` document and the page for
//! people are made of it, so that no call can be there without being documented and guarded.
//!
//! To add a call: its handler in the file of its family, its entry in the table, and a schema in
//! `schema` for what it answers with. Tests walk the document and find the call by themselves.

mod call;
mod clients;
mod docs;
mod events;
mod families;
mod keys;
mod openapi;
mod problem;
mod resources;
mod revocations;
mod schema;
mod table;
mod users;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method,
        header::{self, HeaderMap},
    },
    web::{self, Data, Payload, ReqData, ServiceConfig},
};
use countersign_verifier::json;
use serde_json::{Map, Value};

use self::{
    call::{Call, Outcome},
    problem::{Kind, Problem},
    table::{Body, OPERATIONS, Operation},
};
use super::{
    Services,
    bearer::{self, NoToken},
    body,
};
use crate::{
    admin::{
        FieldError, client::ClientAdmin, event::EventAdmin, family::FamilyAdmin, key::KeyAdmin,
        operator::OperatorGate, resource::ResourceAdmin, revocation::RevocationAdmin,
        user::UserAdmin,
    },
    domain::change::Origin,
};

/// What the calls use.
pub struct AdminServices {
    /// Who may call.
    pub operators: OperatorGate,
    /// Clients.
    pub clients: ClientAdmin,
    /// The audit trail.
    pub events: EventAdmin,
    /// Sessions of users.
    pub families: FamilyAdmin,
    /// Signing keys.
    pub keys: KeyAdmin,
    /// Resources.
    pub resources: ResourceAdmin,
    /// Revocations.
    pub revocations: RevocationAdmin,
    /// Users.
    pub users: UserAdmin,
}

/// Every call of the table, and what is open: the `OpenAPI` document and the page for people.
pub(super) fn routes(config: &mut ServiceConfig) {
    let mut paths: Vec<&str> = OPERATIONS.iter().map(|operation| operation.path).collect();
    paths.dedup();
    for path in paths {
        let mut resource = web::resource(path);
        let mut allow = Vec::new();
        for operation in OPERATIONS.iter().filter(|operation| operation.path == path) {
            for method in operation.method.names() {
                allow.push(*method);
                let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
                resource = resource.route(web::method(method).to(
                    move |request, payload, origin, services| {
                        answer(operation, request, payload, origin, services)
                    },
                ));
            }
        }
        config.service(others_refused(resource, allow.join(", ")));
    }
    for (path, open) in [
        (
            "/admin/v1/openapi.json",
            openapi::answer as fn() -> HttpResponse,
        ),
        ("/docs", docs::page),
        ("/docs/style.css", docs::style),
    ] {
        let resource = web::resource(path)
            .route(web::get().to(move || async move { open() }))
            .route(web::head().to(move || async move { open() }));
        config.service(others_refused(resource, "GET, HEAD".to_owned()));
    }
    let nothing = async || Problem::new(Kind::NotFound, "there is no such path").answer();
    config.service(web::scope("/admin").default_service(web::to(nothing)));
}

fn others_refused(resource: actix_web::Resource, allow: String) -> actix_web::Resource {
    resource.default_service(web::to(move || {
        let refusal = Problem::method_not_allowed(&allow).answer();
        async move { refusal }
    }))
}

/// Answers one call: nothing of it is looked at before its operator is admitted.
async fn answer(
    operation: &'static Operation,
    request: HttpRequest,
    payload: Payload,
    origin: ReqData<Origin>,
    services: Data<Services>,
) -> HttpResponse {
    let outcome = carry_out(operation, request, payload, origin.into_inner(), services).await;
    outcome.unwrap_or_else(Problem::answer)
}

async fn carry_out(
    operation: &'static Operation,
    request: HttpRequest,
    payload: Payload,
    origin: Origin,
    services: Data<Services>,
) -> Outcome {
    let token = bearer(request.headers())?;
    let operators = &services.admin.operators;
    let admitted = operators.admit(token, operation.scope).await;
    let operator = admitted.map_err(|error| Problem::refused(&error, operation.scope))?;
    let body = match &operation.body {
        None => Map::new(),
        Some(expected) if expected.is_optional && has_no_body(&request) => Map::new(),
        Some(expected) => read(expected, &request, payload, &services).await?,
    };
    (operation.handler)(Call {
        services,
        operator,
        origin,
        request,
        body,
    })
    .await
}

/// The token of the one `Authorization` header. One in the query is not looked at.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    bearer::token(headers).map_err(|error| match error {
        NoToken::Absent => Problem::unauthenticated(),
        NoToken::Malformed => Problem::malformed_credentials(),
    })
}

/// Whether a request has no body (RFC 9112 §6.3).
fn has_no_body(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH);
    !headers.contains_key(header::TRANSFER_ENCODING) && length.is_none_or(|length| length == "0")
}

/// The members of a body.
async fn read(
    expected: &Body,
    request: &HttpRequest,
    payload: Payload,
    services: &Services,
) -> Result<Map<String, Value>, Problem> {
    let bytes = body::of_type(expected.media_types, request, payload, services).await?;
    let refused = |error: json::JsonError| match error {
        json::JsonError::NotAnObject => Problem::invalid(vec![FieldError {
            pointer: String::new(),
            detail: error.to_string(),
        }]),
        error => Problem::new(Kind::Malformed, error.to_string()),
    };
    Ok(json::parse_object(&bytes).map_err(refused)?.into_members())
}
