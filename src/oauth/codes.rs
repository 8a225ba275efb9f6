//! What authorization codes are asked for with, and how they are issued, whichever way a user signs in.

use std::collections::BTreeSet;

use super::{
    error::{ErrorCode, OAuthError},
    form::Form,
    store_answer,
};
use crate::{
    clock::AgreedClock,
    domain::{
        client::{Client, GrantType},
        code::{AuthorizationCode, is_s256},
        consent::Permission,
        secret::{Ticket, TicketKind},
    },
    entropy::Entropy,
    store::Store,
};

/// The one method of PKCE (RFC 7636 §4.2).
pub(super) const S256: &str = "S256";

/// Refuses a client that could not exchange a code.
pub(super) fn check_client(client: &Client) -> Result<(), OAuthError> {
    if client.grant_types.contains(&GrantType::AuthorizationCode) {
        return Ok(());
    }
    Err(OAuthError::new(
        ErrorCode::UnauthorizedClient,
        "grant_type",
        "the client may not use the authorization code grant",
    ))
}

/// The refusal of a request for anything but a code.
pub(super) const fn not_a_code() -> OAuthError {
    OAuthError::new(
        ErrorCode::UnsupportedResponseType,
        "response_type",
        "the response_type must be code",
    )
}

/// The challenge of a request, which PKCE is required for: S256, as `plain` protects nobody who can
/// read the request (RFC 7636 §4.2, RFC 9700 §2.1.1).
pub(super) fn code_challenge(form: &Form) -> Result<String, OAuthError> {
    let challenge = form
        .one("code_challenge")?
        .ok_or_else(|| OAuthError::malformed("code_challenge is missing"))?;
    // RFC 7636 §4.3: "Defaults to "plain" if not present in the request."
    if form.one("code_challenge_method")? != Some(S256) {
        return Err(OAuthError::malformed("code_challenge_method must be S256"));
    }
    if !is_s256(challenge) {
        return Err(OAuthError::malformed(
            "code_challenge is not the S256 transformation of anything",
        ));
    }
    Ok(challenge.to_owned())
}

/// Draws the text of a code and stores the code; none if client or user may not have it any more, or,
/// where a browser brings it, the user does not allow all of `asked`.
pub(super) async fn issue(
    store: &dyn Store,
    clock: &AgreedClock,
    entropy: &Entropy,
    code: &AuthorizationCode,
    asked: &BTreeSet<Permission>,
) -> Result<Option<Ticket>, OAuthError> {
    let text =
        Ticket::mint(TicketKind::AuthorizationCode, entropy).map_err(OAuthError::internal)?;
    let hash = text.hash();
    let is_stored = store_answer(clock, store.put_code(&hash, code, asked)).await?;
    Ok(is_stored.then_some(text))
}
