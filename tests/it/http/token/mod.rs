//! `POST /oauth2/token` (RFC 6749 §3.2).

mod assertion;
mod authentication;
mod body;
mod code;
mod cors;
mod flood;
mod hammering;
mod held;
mod issuing;
mod limits;
mod refresh;
mod refusal;
mod steps;
mod unspent;

use reqwest::{RequestBuilder, header::AUTHORIZATION};

use crate::support::server::{Answer, answer};

/// What a refusal says: its status, `error`, and the word in `Countersign-Reason`.
pub(in crate::http) type Refusal = (u16, &'static str, &'static str);

pub(in crate::http) const MALFORMED: Refusal = (400, "invalid_request", "malformed");
pub(in crate::http) const REPEATED: Refusal = (400, "invalid_request", "repeated_parameter");
pub(in crate::http) const SEVERAL_WAYS: Refusal =
    (400, "invalid_request", "several_client_authentications");
pub(in crate::http) const INVALID_CLIENT: Refusal =
    (401, "invalid_client", "client_authentication");

/// Sends a request that must be refused in this way, and checks what all refusals have in common
/// (RFC 6749 §5.2).
pub(in crate::http) async fn refused(
    request: RequestBuilder,
    (status, error, reason): Refusal,
) -> Answer {
    let sent = request.try_clone().unwrap().build().unwrap();
    let answer = answer(request).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("countersign-reason"), Some(reason));
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    // "If the client attempted to authenticate via the Authorization request header field, the
    // authorization server MUST respond with 401 and include the WWW-Authenticate response header".
    let challenged = status == 401 && sent.headers().contains_key(AUTHORIZATION);
    assert_eq!(
        answer.header("www-authenticate"),
        challenged.then_some("Basic realm=\"countersign\", charset=\"UTF-8\"")
    );

    let body = answer.json();
    let members = body.as_object().unwrap();
    let more = ["auth_session", "needed"].map(|name| usize::from(members.contains_key(name)));
    assert_eq!(members.len(), 2 + more[0] + more[1], "{body}");
    assert_eq!(members["error"], error);
    let description = members["error_description"].as_str().unwrap();
    // %x20-21 / %x23-5B / %x5D-7E
    let allowed = |byte| matches!(byte, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    assert!(description.bytes().all(allowed), "{description}");
    assert!(!description.is_empty());
    answer
}
