//! The handlers of the public listener.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web::{Data, Payload, ReqData},
};
use serde_json::json;

use super::{Services, body, cors, error};
use crate::{
    domain::change::Origin,
    oauth::{challenge::Unfinished, client_auth::several_ways, error::OAuthError},
};

/// Longest that verifiers may keep a JWKS which this node can no longer check, in seconds.
const OFFLINE_MAX_AGE: u64 = 10;

/// `POST /oauth2/token` (RFC 6749 §3.2).
pub(super) async fn token(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    of_client(&request, payload, &services, async |authorization, form| {
        let answer = services.token.exchange(authorization, form, &origin);
        let answer = answer.await?;
        Ok(HttpResponse::Ok().json(answer))
    })
    .await
}

/// `POST /oauth2/challenge` (draft-ietf-oauth-first-party-apps §5).
pub(super) async fn challenge(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    of_client(&request, payload, &services, async |authorization, form| {
        let answer = services.challenge.answer(authorization, form, &origin);
        match answer.await {
            Ok(answer) => Ok(HttpResponse::Ok().json(answer)),
            Err(Unfinished { error, next: None }) => Err(error),
            Err(Unfinished {
                error,
                next: Some(next),
            }) => Ok(error::unfinished(&error, &next)),
        }
    })
    .await
}

/// `POST /oauth2/introspect` (RFC 7662 §2).
pub(super) async fn introspect(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    of_client(&request, payload, &services, async |authorization, form| {
        let answer = services.introspection.answer(authorization, form, &origin);
        let answer = answer.await?;
        Ok(HttpResponse::Ok().json(answer))
    })
    .await
}

/// `POST /oauth2/revoke` (RFC 7009 §2).
pub(super) async fn revoke(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
    origin: ReqData<Origin>,
) -> HttpResponse {
    of_client(&request, payload, &services, async |authorization, form| {
        let revoking = services.revocation.answer(authorization, form, &origin);
        revoking.await?;
        Ok(HttpResponse::Ok().finish())
    })
    .await
}

/// Answers the form of a client, also for pages of registered origins.
async fn of_client(
    request: &HttpRequest,
    payload: Payload,
    services: &Services,
    act: impl AsyncFnOnce(Option<&str>, &[u8]) -> Result<HttpResponse, OAuthError>,
) -> HttpResponse {
    let mut response = authorized(request, payload, services, act).await;
    cors::allow_registered(request, services, &mut response);
    response
}

async fn authorized(
    request: &HttpRequest,
    payload: Payload,
    services: &Services,
    act: impl AsyncFnOnce(Option<&str>, &[u8]) -> Result<HttpResponse, OAuthError>,
) -> HttpResponse {
    let form = match body::form(request, payload, services).await {
        Ok(form) => form,
        Err(problem) => return error::body(&problem),
    };
    let mut authorizations = request.headers().get_all(header::AUTHORIZATION);
    // Bytes that are no text cannot be credentials; they still count as an attempt.
    let authorization = authorizations
        .next()
        .map(|value| value.to_str().unwrap_or_default());
    if authorizations.next().is_some() {
        return error::oauth(&several_ways(), false);
    }
    match act(authorization, &form).await {
        // "The authorization server MUST include the HTTP Cache-Control response header field with
        // a value of no-store in any response containing tokens" (RFC 6749 §5.1); what is told of
        // tokens is no other's business either.
        Ok(mut answer) => {
            let no_store = HeaderValue::from_static("no-store");
            answer.headers_mut().insert(header::CACHE_CONTROL, no_store);
            answer
        }
        Err(refused) => error::oauth(&refused, authorization.is_some()),
    }
}

/// `GET /.well-known/jwks.json` (RFC 7517 §5).
pub(super) async fn jwks(request: HttpRequest, services: Data<Services>) -> HttpResponse {
    let ring = services.snapshots.ring();
    let Some(jwks) = ring.jwks(services.clock.now()) else {
        return HttpResponse::ServiceUnavailable().finish();
    };
    let cache = if services.token.minter.is_offline() {
        // Keys may have been revoked meanwhile: let verifiers ask again soon, perhaps another node.
        format!("public, max-age={OFFLINE_MAX_AGE}")
    } else {
        let max_age = services.jwks_max_age.as_secs();
        format!("public, max-age={max_age}, stale-if-error={max_age}")
    };
    let is_known = is_known(&request, &jwks.etag);
    let mut response = if is_known {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response
        .insert_header((header::CACHE_CONTROL, cache))
        .insert_header((header::ETAG, &*jwks.etag));
    if is_known {
        return response.finish();
    }
    response
        .content_type("application/jwk-set+json")
        .body(jwks.body.clone())
}

/// Whether the request says that it has the document already (RFC 9110 §13.1.2).
fn is_known(request: &HttpRequest, etag: &str) -> bool {
    let lists = request
        .headers()
        .get_all(header::IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    })
}

/// `GET /.well-known/oauth-authorization-server` (RFC 8414 §3).
pub(super) async fn metadata(services: Data<Services>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "public, max-age=300"))
        .content_type("application/json")
        .body(services.metadata.clone())
}

/// `GET /health/live`: the process answers.
pub(super) async fn live() -> HttpResponse {
    health(&mut HttpResponse::Ok(), json!({ "status": "ok" }))
}

/// `GET /health/ready`: tokens are issued. Goes on without the database until the offline limit.
pub(super) async fn ready(services: Data<Services>) -> HttpResponse {
    let signs = services
        .snapshots
        .ring()
        .active(services.clock.now())
        .is_some();
    let is_ready = signs && !services.token.minter.is_offline();
    let document = json!({
        "status": if is_ready { "ok" } else { "unavailable" },
        "database": if services.snapshots.freshness.succeeded() { "up" } else { "down" },
        "keys": if signs { "ok" } else { "none" },
    });
    let mut response = if is_ready {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    health(&mut response, document)
}

fn health(
    response: &mut actix_web::HttpResponseBuilder,
    document: serde_json::Value,
) -> HttpResponse {
    response
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(document)
}
