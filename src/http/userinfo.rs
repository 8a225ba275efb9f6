//! `/oauth2/userinfo`: what clients are told of who has signed in.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method, StatusCode,
        header::{self, HeaderValue},
    },
    web::{Data, Payload},
};
use serde_json::json;

use super::{
    Services,
    bearer::{self, NoToken},
    body::{self, BodyError},
    cors, error,
};
use crate::oauth::{form::Form, userinfo::UserInfoError};

/// Why a request gets nothing.
enum Refused {
    /// It has no token: nothing more is said (RFC 6750 §3.1).
    NoToken,
    /// It has one that is malformed, or more than one.
    Malformed,
    /// Its body was not read.
    Body(BodyError),
    /// Its token is not good, or not for this.
    Token(UserInfoError),
}

/// `GET` and `POST /oauth2/userinfo` (`OpenID` Connect Core §5.3).
pub(super) async fn userinfo(
    request: HttpRequest,
    payload: Payload,
    services: Data<Services>,
) -> HttpResponse {
    let mut response = match told(&request, payload, &services).await {
        Ok(response) => response,
        Err(refused) => refusal(refused),
    };
    let headers = response.headers_mut();
    let no_store = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, no_store);
    cors::allow_registered(&request, &services, &mut response);
    response
}

async fn told(
    request: &HttpRequest,
    payload: Payload,
    services: &Services,
) -> Result<HttpResponse, Refused> {
    let of_header = match bearer::token(request.headers()) {
        Ok(token) => Some(token.to_owned()),
        Err(NoToken::Absent) => None,
        Err(NoToken::Malformed) => return Err(Refused::Malformed),
    };
    // "Clients MUST NOT use more than one method to transmit the token in each request" (RFC 6750 §2).
    // What is in the query is not looked at (RFC 9700 §4.3.2).
    let of_body = if *request.method() == Method::POST && body::is_form(request) {
        let bytes = body::form(request, payload, services).await;
        let form = Form::of_body(&bytes.map_err(Refused::Body)?);
        let form = form.map_err(|_| Refused::Malformed)?;
        let token = form.one("access_token").map_err(|_| Refused::Malformed)?;
        token.map(str::to_owned)
    } else {
        None
    };
    let token = match (of_header, of_body) {
        (Some(_), Some(_)) => return Err(Refused::Malformed),
        (Some(token), None) | (None, Some(token)) => token,
        (None, None) => return Err(Refused::NoToken),
    };
    let told = services.userinfo.answer(&token).await;
    Ok(HttpResponse::Ok().json(told.map_err(Refused::Token)?))
}

/// The answer to a refused request (RFC 6750 §3).
fn refusal(refused: Refused) -> HttpResponse {
    let (status, code, description) = match refused {
        Refused::Body(error) => return error::body(&error),
        Refused::Token(UserInfoError::Unavailable(error)) => return error::oauth(&error, false),
        Refused::NoToken => {
            let mut answer = HttpResponse::Unauthorized().finish();
            challenge(&mut answer, "");
            error::give_reason(&mut answer, "no_token");
            return answer;
        }
        Refused::Malformed => (
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "the access token is malformed, or there is more than one",
        ),
        Refused::Token(UserInfoError::InvalidToken) => (
            StatusCode::UNAUTHORIZED,
            "invalid_token",
            "the access token is not good here, or not any more",
        ),
        Refused::Token(UserInfoError::InsufficientScope) => (
            StatusCode::FORBIDDEN,
            "insufficient_scope",
            "the access token does not have the scope openid",
        ),
    };
    let mut answer = HttpResponse::build(status)
        .json(json!({ "error": code, "error_description": description }));
    let scope = if status == StatusCode::FORBIDDEN {
        ", scope=\"openid\""
    } else {
        ""
    };
    challenge(
        &mut answer,
        &format!(", error=\"{code}\", error_description=\"{description}\"{scope}"),
    );
    error::give_reason(&mut answer, code);
    answer
}

/// Says how to authenticate. `attributes` are constants of this program.
fn challenge(answer: &mut HttpResponse, attributes: &str) {
    let value = format!("Bearer realm=\"countersign\"{attributes}");
    if let Ok(value) = HeaderValue::from_str(&value) {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
}
