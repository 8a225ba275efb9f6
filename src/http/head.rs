//! How large the head of a request may be.

use actix_web::{
    Error, HttpResponse,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::Data,
};

use super::Services;

/// What stands around the name and the value of a header, in bytes.
const AROUND: usize = ": \r\n".len();

/// Wraps every request: a head over the limit is answered with 431 (RFC 6585 §5) and ends the
/// connection.
///
/// actix-web itself refuses more than 96 headers, and more than 128 KiB.
pub(super) async fn within_limit(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let limit = request
        .app_data::<Data<Services>>()
        .map_or(usize::MAX, |services| services.head_limit);
    if size(&request) <= limit {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let refusal = HttpResponse::RequestHeaderFieldsTooLarge()
        .force_close()
        .finish();
    Ok(request.into_response(refusal).map_into_right_body())
}

/// The bytes of the head, as good as they can be told afterwards.
fn size(request: &ServiceRequest) -> usize {
    let target = request.uri().path_and_query();
    let line = request.method().as_str().len() + target.map_or(0, |target| target.as_str().len());
    let headers = request.headers().iter();
    headers
        .map(|(name, value)| name.as_str().len() + value.len() + AROUND)
        .sum::<usize>()
        + line
}
