//! The authorization code grant (RFC 6749 §4.1.3, RFC 7636 §4.5): a code for the tokens of a sign-in.

use super::sign_in;
use crate::{
    clock::Timestamp,
    domain::{
        change::{Cause, Origin},
        client::Client,
        code::{CodeRefusal, Redeemed, Redemption, s256},
        id::FamilyId,
        secret::{Ticket, TicketKind},
    },
    oauth::{
        access_token::Narrowing,
        error::{ErrorCode, OAuthError},
        form::Form,
        refresh_tokens, store_answer,
        token::{TokenEndpoint, TokenResponse},
    },
};

/// Exchanges a code, once, for the tokens of a new family.
///
/// What is malformed is refused before the database is asked. A code that is presented again by
/// whoever could have exchanged it ends what it was exchanged for; anybody else changes nothing.
pub(in crate::oauth) async fn exchange(
    endpoint: &TokenEndpoint,
    client: &Client,
    form: &Form,
    origin: &Origin,
) -> Result<TokenResponse, OAuthError> {
    let code = form
        .one("code")?
        .ok_or_else(|| OAuthError::malformed("code is missing"))?;
    let redirect_uri = form.one("redirect_uri")?.map(str::to_owned);
    let code_challenge = form.one("code_verifier")?.map(s256);
    // What cannot be a verifier matches no challenge.
    if code_challenge == Some(None) {
        return Err(refusal(CodeRefusal::Verifier));
    }
    let asked = Narrowing::of_request(form)?;
    let hash = Ticket::hash_of(TicketKind::AuthorizationCode, code)
        .ok_or_else(|| refusal(CodeRefusal::Unknown))?;
    // Otherwise nobody could tell afterwards what has become of the code.
    endpoint.minter.check_ready()?;
    endpoint.minter.check_id_tokens(client)?;
    asked.check(client, &endpoint.minter.snapshots.registry())?;
    let tokens = &endpoint.refresh_tokens;
    let now = endpoint.minter.clock.now();
    let redemption = Redemption {
        hash,
        client_id: client.client_id.clone(),
        code_challenge: code_challenge.flatten(),
        redirect_uri,
        dpop_jkt: None,
        scope: asked.scope.clone(),
        resources: asked.resources.clone(),
        family_id: family_id(endpoint, now)?,
        for_session: false,
        lifetime: tokens.lifetime,
        terms: tokens.terms(now).ok_or_else(refresh_tokens::no_key)?,
        cause: Cause::of_request(&client.client_id, origin, None),
    };
    let redeeming = endpoint.store.redeem_code(&redemption, now);
    match store_answer(&endpoint.minter.clock, redeeming).await? {
        Redeemed::Opened {
            family,
            standing,
            nonce,
        } => {
            let opened = (&*family, &*standing, nonce.as_deref());
            sign_in::answer(endpoint, client, opened, &asked, now).await
        }
        Redeemed::Refused(why) => Err(refusal(why)),
    }
}

fn family_id(endpoint: &TokenEndpoint, now: Timestamp) -> Result<FamilyId, OAuthError> {
    let id = endpoint.minter.entropy.uuid_v7(now);
    id.map(FamilyId::from_uuid).map_err(OAuthError::internal)
}

/// Why a code is not exchanged, as its client is told.
fn refusal(why: CodeRefusal) -> OAuthError {
    let (reason, description) = match why {
        CodeRefusal::Grant(why) => return sign_in::refusal(why),
        // RFC 9700 §2.1.1: otherwise whoever strikes the challenge out of an authorization request
        // could do without PKCE.
        CodeRefusal::VerifierUnexpected => {
            return OAuthError::new(
                ErrorCode::InvalidRequest,
                "code_verifier_unexpected",
                "a code_verifier is presented, but the code was issued without a code_challenge",
            );
        }
        CodeRefusal::Unknown => (
            "unknown_code",
            "the code is none of this service, or it is long over",
        ),
        CodeRefusal::OtherClient => ("other_client", "the code was issued to another client"),
        CodeRefusal::Expired => ("expired", "the code has expired"),
        CodeRefusal::VerifierMissing => ("code_verifier", "code_verifier is missing"),
        CodeRefusal::Verifier => (
            "code_verifier",
            "the code_verifier does not match the code_challenge",
        ),
        CodeRefusal::RedirectUri => (
            "redirect_uri",
            "the redirect_uri is not the one of the authorization request",
        ),
        CodeRefusal::OtherKey => ("other_key", "the code is bound to another key"),
        CodeRefusal::Reused => (
            "code_reuse",
            "the code was used before: what it was exchanged for is ended, as it may have been stolen",
        ),
    };
    OAuthError::new(ErrorCode::InvalidGrant, reason, description)
}
