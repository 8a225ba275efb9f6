//! Which pages may read answers (the Fetch standard's CORS protocol). With cookies only those that use
//! the session of their browser.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web::Data,
};

use super::{Services, session};

/// How long browsers may remember a preflight, in seconds.
const MAX_AGE: &str = "600";

/// Lets pages of any origin read public documents.
pub(super) async fn preflight_of_anyone() -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"))
        .insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, "if-none-match"))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, MAX_AGE))
        .finish()
}

/// Lets pages of the origins that clients have registered send credentials by these methods.
pub(super) fn preflight_of_the_registered(
    methods: &'static str,
    request: &HttpRequest,
    services: &Services,
) -> HttpResponse {
    let mut response = HttpResponse::NoContent()
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, methods))
        .insert_header((
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type",
        ))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, MAX_AGE))
        .finish();
    allow_registered(request, services, &mut response);
    response
}

/// Lets the page that sent the request read the answer, if some client has registered its origin.
pub(super) fn allow_registered(
    request: &HttpRequest,
    services: &Services,
    response: &mut HttpResponse,
) {
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = request.headers().get(header::ORIGIN) else {
        return;
    };
    if origin
        .to_str()
        .is_ok_and(|origin| services.snapshots.registry().allows_origin(origin))
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("countersign-reason, x-request-id"),
        );
    }
}

/// Lets pages of clients with session tokens send what nobody sends unasked. Which client they are of
/// is told by the request itself, and held against them there.
pub(super) async fn preflight_with_cookies(
    request: HttpRequest,
    services: Data<Services>,
) -> HttpResponse {
    let origin = request.headers().get(header::ORIGIN);
    let registry = services.snapshots.registry();
    let reader = origin
        .and_then(|origin| origin.to_str().ok())
        .filter(|origin| registry.uses_sessions(origin));
    let mut response = HttpResponse::NoContent()
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "POST"))
        .insert_header((
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            format!("content-type, {}", session::REQUIRED),
        ))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, MAX_AGE))
        .finish();
    allow_with_cookies(reader, &mut response);
    response
}

/// Lets pages of this origin read an answer to a request with cookies.
pub(super) fn allow_with_cookies(reader: Option<&str>, response: &mut HttpResponse) {
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    let Some(Ok(origin)) = reader.map(HeaderValue::from_str) else {
        return;
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderValue::from_static("true"),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("countersign-reason, retry-after, x-request-id"),
    );
}
