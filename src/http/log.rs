//! One log line per request, under an id that the answer carries as `X-Request-Id`.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{HeaderName, HeaderValue},
    middleware::Next,
    web::Data,
};
use tracing::Instrument as _;

use super::Services;

/// Wraps every request.
///
/// Neither path nor query are logged as they came, only the route they matched: people paste
/// secrets into URLs. Nor is a request id taken from the request, where its sender could choose it.
pub(super) async fn requests(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let services = request.app_data::<Data<Services>>().cloned();
    let now = services
        .as_ref()
        .map(|services| (services.clock.monotonic(), services.clock.now()));
    let request_id = services
        .as_ref()
        .zip(now)
        .and_then(|(services, (_, now))| services.entropy.uuid_v7(now).ok())
        .unwrap_or_default()
        .to_string();
    let method = request.method().clone();
    let route = request.match_pattern().unwrap_or_else(|| "none".to_owned());
    let span = tracing::info_span!("request", request_id, %method, route);
    let mut response = next.call(request).instrument(span.clone()).await?;
    let took = services
        .zip(now)
        .map(|(services, (begun, _))| services.clock.monotonic().saturating_sub(begun));
    span.in_scope(|| {
        let status = response.status().as_u16();
        let duration_ms = took.map(|took| format!("{:.3}", took.as_secs_f64() * 1000.0));
        let reason = response
            .headers()
            .get("countersign-reason")
            .and_then(|reason| reason.to_str().ok());
        tracing::info!(status, duration_ms, reason, "answered");
    });
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-request-id"), value);
    }
    Ok(response)
}
