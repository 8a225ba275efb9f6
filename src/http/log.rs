//! One log line per request, under an id that the answer carries as `X-Request-Id`; and where the
//! request came from, as handlers are told.

use std::net::{IpAddr, Ipv4Addr};

use actix_web::{
    Error, HttpMessage as _,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
    web::Data,
};
use tracing::{Instrument as _, field::Empty};

use super::{Services, address::TrustedProxies, connection::Activity, error::Reason};
use crate::{domain::change::Origin, metrics::Answered};

/// Wraps every request. Handlers take its [`Origin`] as `ReqData<Origin>`.
///
/// Neither path nor query are logged as they came, only the route they matched: people paste
/// secrets into URLs. Nor is a request id taken from the request, where its sender could choose it.
pub(super) async fn requests(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let activity = request.conn_data::<Activity>().cloned();
    if let Some(activity) = &activity {
        activity.begin();
    }
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
    let method = known(request.method());
    let route = route(&request, services.as_ref());
    let origin = origin(&request, &request_id);
    let span = tracing::info_span!(
        "request",
        request_id,
        method,
        route,
        address = %origin.address,
        trace_id = Empty,
        status = Empty,
        reason = Empty,
    );
    let trace_id = services
        .as_ref()
        .and_then(|services| (services.trace_id)(&span));
    if let Some(trace_id) = &trace_id {
        span.record("trace_id", trace_id);
    }
    request.extensions_mut().insert(origin);
    let mut response = next.call(request).instrument(span.clone()).await?;
    let status = response.status().as_u16();
    let refusal = response.response().extensions().get::<Reason>().copied();
    let refusal = refusal.map(|Reason(reason)| reason);
    if let Some((services, (begun, _))) = services.zip(now) {
        let duration = services.clock.monotonic().saturating_sub(begun);
        span.in_scope(|| {
            let duration_ms = format!("{:.3}", duration.as_secs_f64() * 1000.0);
            tracing::info!(status, duration_ms, reason = refusal, "answered");
        });
        // For the trace alone: the line has them already.
        if trace_id.is_some() {
            span.record("status", i64::from(status));
            span.record("reason", refusal);
        }
        services.token.minter.metrics.answered(Answered {
            route,
            method,
            status,
            duration,
            refusal,
        });
    }
    if let Some(activity) = activity {
        activity.end();
    }
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-request-id"), value);
    }
    Ok(response)
}

fn origin(request: &ServiceRequest, request_id: &str) -> Origin {
    // A connection without another end has ended: nobody will read the answer.
    let peer = request
        .peer_addr()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
    let (address, is_proxy) = match request.app_data::<Data<TrustedProxies>>() {
        Some(proxies) => {
            let address = proxies.client(peer, request.headers());
            // Another address, even one of a trusted network, was told.
            let is_proxy = address == peer.to_canonical() && proxies.trusts(address);
            (address, is_proxy)
        }
        None => (peer.to_canonical(), false),
    };
    let user_agent = request.headers().get(header::USER_AGENT);
    let user_agent = user_agent.map(|value| String::from_utf8_lossy(value.as_bytes()));
    Origin::new(
        address,
        is_proxy,
        user_agent.as_deref(),
        request_id.to_owned(),
    )
}

/// The pattern that a request has matched, below the path of the issuer; `none` if it matched none.
fn route(request: &ServiceRequest, services: Option<&Data<Services>>) -> String {
    let Some(pattern) = request.match_pattern() else {
        return "none".to_owned();
    };
    let base = services.map_or("", |services| &services.issuer_path);
    match pattern.strip_prefix(base) {
        Some(below) => below.to_owned(),
        None => pattern,
    }
}

/// The method, if it is one that some route could know: its sender may choose any word.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let is_it = |name: &&str| *name == method.as_str();
    known.into_iter().find(is_it).unwrap_or("other")
}
