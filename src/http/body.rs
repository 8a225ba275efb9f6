//! Reading request bodies within limits.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{self, Poll},
};

use actix_web::{
    Error, HttpMessage as _, HttpRequest,
    body::{BodySize, BoxBody, EitherBody, MessageBody},
    dev::{self, ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web::Payload,
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};

use super::{Services, connection::Activity};

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// Another media type than the one asked for, or a compressed body.
    #[error("the body has another media type than the one asked for")]
    MediaType,
    /// It has not arrived in time.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// It is larger than the limit.
    #[error("the body is too large")]
    TooLarge,
    /// The connection broke off.
    #[error("the body broke off")]
    BrokenOff,
}

/// The media type of forms.
const FORM: &str = "application/x-www-form-urlencoded";

/// Whether a request says that its body is a form.
pub(super) fn is_form(request: &HttpRequest) -> bool {
    media_type(request).is_some_and(|media_type| media_type.eq_ignore_ascii_case(FORM))
}

fn media_type(request: &HttpRequest) -> Option<&str> {
    let value = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// Reads the body of a form.
pub(super) async fn form(
    request: &HttpRequest,
    payload: Payload,
    services: &Services,
) -> Result<BytesMut, BodyError> {
    of_type(&[FORM], request, payload, services).await
}

/// Reads a body of one of these media types.
///
/// # Security
/// The sender chooses size and pace: both are bounded before a byte is looked at.
pub(super) async fn of_type(
    accepted: &[&str],
    request: &HttpRequest,
    payload: Payload,
    services: &Services,
) -> Result<BytesMut, BodyError> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let is_accepted = |media_type: &str| {
        let mut accepted = accepted.iter();
        accepted.any(|accepted| media_type.eq_ignore_ascii_case(accepted))
    };
    if !media_type(request).is_some_and(is_accepted) {
        return Err(BodyError::MediaType);
    }
    if header(header::CONTENT_ENCODING)
        .is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
    {
        return Err(BodyError::MediaType);
    }
    let announced = header(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > services.body_limit) {
        return Err(BodyError::TooLarge);
    }
    let activity = request.conn_data::<Activity>();
    if let Some(activity) = activity {
        activity.await_body();
    }
    let reading = read(payload, services.body_limit);
    let body = match services.request_timeout {
        None => reading.await,
        Some(timeout) => tokio::select! {
            body = reading => body,
            () = services.clock.sleep(timeout) => Err(BodyError::TooSlow),
        },
    };
    if let Some(activity) = activity {
        activity.end_body();
    }
    body
}

async fn read(mut payload: Payload, limit: usize) -> Result<BytesMut, BodyError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| BodyError::BrokenOff)?;
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Wraps every request: one whose body was not read to its end is the last of its connection.
///
/// # Security
/// actix-web reads the chunks of a body that nobody holds any more for as long as its sender likes,
/// without any limit. So the answer holds the body until it is sent.
pub(super) async fn unread_ends_the_connection(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if !request.headers().contains_key(header::TRANSFER_ENCODING) {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let payload = Rc::new(RefCell::new(request.take_payload()));
    let shared = Rc::clone(&payload);
    let read = stream::poll_fn(move |context| shared.borrow_mut().poll_next_unpin(context));
    request.set_payload(dev::Payload::Stream {
        payload: read.boxed_local(),
    });
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| {
        EitherBody::right(Holding {
            body: body.boxed(),
            _payload: payload,
        })
    }))
}

/// The body of an answer that holds the one of its request.
struct Holding {
    body: BoxBody,
    _payload: Rc<RefCell<dev::Payload>>,
}

impl MessageBody for Holding {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(context)
    }
}
