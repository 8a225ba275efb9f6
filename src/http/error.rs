//! The one place where errors become answers, and where their causes are logged.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use serde_json::{Map, Value};

use super::body::BodyError;
use crate::{
    oauth::{
        challenge::NextStep,
        error::{ErrorCode, OAuthError},
    },
    throttle::RetryAfter,
};

/// When to come back after a 503, in seconds.
const RETRY_AFTER: u64 = 5;

/// The answer to a refused request of a client (RFC 6749 §5.2).
///
/// `challenge` tells whether the client used the `Authorization` header: then, and only then, the
/// answer to a failed authentication has to carry `WWW-Authenticate`.
pub(super) fn oauth(error: &OAuthError, challenge: bool) -> HttpResponse {
    with_members(error, challenge, &[])
}

/// The answer to a sign-in that can be gone on with (draft-ietf-oauth-first-party-apps §5.2.2). Its
/// client is authenticated.
pub(super) fn unfinished(error: &OAuthError, next: &NextStep) -> HttpResponse {
    let session = next.auth_session.as_ref();
    let session = session.map(|session| ("auth_session", session.expose()));
    let needed = ("needed", next.needed.as_str());
    let members: Vec<_> = session.into_iter().chain([needed]).collect();
    with_members(error, false, &members)
}

fn with_members(error: &OAuthError, challenge: bool, members: &[(&str, &str)]) -> HttpResponse {
    let status = match error.code() {
        ErrorCode::InvalidClient | ErrorCode::LoginRequired => StatusCode::UNAUTHORIZED,
        ErrorCode::ConsentRequired => StatusCode::FORBIDDEN,
        ErrorCode::AccessDenied
        | ErrorCode::InsufficientAuthorization
        | ErrorCode::InvalidGrant
        | ErrorCode::InvalidRequest
        | ErrorCode::InvalidScope
        | ErrorCode::InvalidSession
        | ErrorCode::InvalidTarget
        | ErrorCode::RedirectToWeb
        | ErrorCode::RequestNotSupported
        | ErrorCode::RequestUriNotSupported
        | ErrorCode::UnauthorizedClient
        | ErrorCode::UnsupportedGrantType
        | ErrorCode::UnsupportedResponseType => StatusCode::BAD_REQUEST,
        ErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::TooOften => StatusCode::TOO_MANY_REQUESTS,
    };
    if status.is_server_error() {
        let cause: &dyn std::error::Error = error;
        tracing::error!(cause, "request failed");
    }
    let mut document = document(error.code(), error.description());
    let members = members
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Value::from(*value)));
    document.extend(members);
    let mut answer = explained(refusal(status, document, error.reason()), error);
    let headers = answer.headers_mut();
    if status == StatusCode::UNAUTHORIZED && challenge {
        let value =
            header::HeaderValue::from_static("Basic realm=\"countersign\", charset=\"UTF-8\"");
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
    answer
}

/// Says why a request was refused, and when to come back, whatever the answer looks like.
pub(super) fn explained(mut answer: HttpResponse, error: &OAuthError) -> HttpResponse {
    let is_unavailable = answer.status() == StatusCode::SERVICE_UNAVAILABLE;
    let unavailable = is_unavailable.then_some(RETRY_AFTER);
    let retry_after = error.retry_after().map(RetryAfter::seconds);
    if let Some(seconds) = retry_after.or(unavailable) {
        let headers = answer.headers_mut();
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    give_reason(&mut answer, error.reason());
    answer
}

/// The answer to a request whose body was not read.
pub(super) fn body(error: &BodyError) -> HttpResponse {
    let (status, reason, description) = of_body(error);
    let document = document(ErrorCode::InvalidRequest, description);
    refusal(status, document, reason)
}

/// What is told of a body that was not read: a status, a stable word, and a sentence.
pub(super) fn of_body(error: &BodyError) -> (StatusCode, &'static str, &'static str) {
    match error {
        BodyError::MediaType => (
            StatusCode::BAD_REQUEST,
            "malformed",
            "the body has another media type than this endpoint takes",
        ),
        BodyError::BrokenOff => (StatusCode::BAD_REQUEST, "malformed", "the body broke off"),
        BodyError::TooSlow => (
            StatusCode::REQUEST_TIMEOUT,
            "too_slow",
            "the body did not arrive in time",
        ),
        BodyError::TooLarge => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "the body is too large",
        ),
    }
}

fn document(code: ErrorCode, description: &str) -> Map<String, Value> {
    let members = [("error", code.as_str()), ("error_description", description)];
    members
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into_iter()
        .collect()
}

fn refusal(status: StatusCode, document: Map<String, Value>, reason: &'static str) -> HttpResponse {
    let mut answer = HttpResponse::build(status)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(Value::Object(document));
    give_reason(&mut answer, reason);
    answer
}

/// Why an answer is a refusal; the log and the metrics take it from there.
#[derive(Clone, Copy)]
pub(super) struct Reason(pub(super) &'static str);

/// Says why a request was refused, to its sender, in the log and in the metrics.
pub(super) fn give_reason(answer: &mut HttpResponse, reason: &'static str) {
    answer.headers_mut().insert(
        header::HeaderName::from_static("countersign-reason"),
        header::HeaderValue::from_static(reason),
    );
    answer.extensions_mut().insert(Reason(reason));
}
