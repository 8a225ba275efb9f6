//! The tokens of a sign-in, whichever grant they come from.

use serde_json::Map;

use crate::{
    clock::Timestamp,
    domain::{
        client::{Client, GrantType},
        family::{Family, Refusal, Standing},
        scope::OPENID,
    },
    oauth::{
        access_token::{self, AccessGrant, Narrowing, SignIn, Target},
        error::{ErrorCode, OAuthError},
        id_token::IdGrant,
        refresh_tokens, store_answer,
        token::{TokenEndpoint, TokenResponse},
    },
};

/// Answers with the tokens of a family that was judged, or opened, at `judged_at`; with an ID Token if
/// the client asks who has signed in, which repeats the nonce.
///
/// An access token is issued as of that moment, so that whatever revokes the tokens of client or user
/// after it revokes this one, too; it ends with the family at the latest.
pub(super) async fn answer(
    endpoint: &TokenEndpoint,
    client: &Client,
    (family, standing, nonce): (&Family, &Standing, Option<&str>),
    asked: &Narrowing,
    judged_at: Timestamp,
) -> Result<TokenResponse, OAuthError> {
    let Some(user) = &standing.user else {
        return Err(refusal(Refusal::UserDeleted));
    };
    let minter = &endpoint.minter;
    let target = {
        let registry = minter.snapshots.registry();
        Target::of_grant(client, &registry, &family.grant, asked)?
    };
    let not_before = standing.tokens_not_before();
    if minter.await_new_tokens(not_before).await? {
        check_again(endpoint, family, not_before).await?;
    }
    let sign_in = SignIn {
        family,
        user,
        issued_at: not_before.map_or(judged_at, |not_before| not_before.max(judged_at)),
    };
    if sign_in.is_over() {
        return Err(refusal(Refusal::Expired));
    }
    let refresh_token = if client.grant_types.contains(&GrantType::RefreshToken) {
        Some(endpoint.refresh_tokens.current(family).await?)
    } else {
        None
    };
    let token = minter.mint(&AccessGrant {
        client,
        subject: &family.grant.subject.to_string(),
        resources: &target.resources,
        scope: &target.scope,
        sign_in: Some(sign_in),
    })?;
    let scope = asked.scope.as_ref().unwrap_or(&family.grant.scope);
    let id_token = if scope.contains(OPENID) && client.uses_openid() {
        Some(minter.mint_id_token(IdGrant {
            sign_in,
            access_token: &token,
            nonce,
            claims: Map::new(),
        })?)
    } else {
        None
    };
    Ok(TokenResponse {
        access_token: token.token,
        token_type: "Bearer",
        expires_in: token.expires_in,
        refresh_token,
        id_token,
        scope: target.scope.to_string(),
    })
}

/// Refuses what was revoked while its client waited: that may have been in the same second, from which
/// on the tokens issued now count.
async fn check_again(
    endpoint: &TokenEndpoint,
    family: &Family,
    not_before: Option<Timestamp>,
) -> Result<(), OAuthError> {
    let clock = &endpoint.minter.clock;
    let found = store_answer(clock, endpoint.store.family(family.id)).await?;
    let (family, standing) = found.ok_or_else(|| refusal(Refusal::Unknown))?;
    match family.ending(&standing, clock.now()) {
        Some(why) => Err(refusal(why)),
        None if standing.tokens_not_before() != not_before => Err(access_token::not_yet()),
        None => Ok(()),
    }
}

/// Why nothing is issued on a grant, as its client is told.
pub(super) const fn refusal(refusal: Refusal) -> OAuthError {
    let (reason, description) = match refusal {
        Refusal::Unknown => return refresh_tokens::unknown_token(),
        Refusal::Scope => return access_token::not_granted_scope(),
        Refusal::Target => return access_token::not_granted_target(),
        Refusal::NotYet => return access_token::not_yet(),
        Refusal::OtherClient => ("other_client", "it was issued to another client"),
        Refusal::OtherKey => ("other_key", "it is bound to another key"),
        Refusal::Ended => ("revoked", "the session was ended; sign in again"),
        Refusal::Expired => ("expired", "the session has reached its end; sign in again"),
        Refusal::IdleExpired => (
            "idle_expired",
            "the session was not refreshed for too long; sign in again",
        ),
        Refusal::ClientDisabled => ("client_disabled", "the client is disabled"),
        Refusal::UserDisabled => ("user_disabled", "the user is disabled"),
        Refusal::UserDeleted => ("user_deleted", "the user is no more"),
        Refusal::ClientSessionsEnded => (
            "client_sessions_ended",
            "every session at the client was ended; sign in again",
        ),
        Refusal::UserSessionsEnded => (
            "user_sessions_ended",
            "every session of the user was ended; sign in again",
        ),
        Refusal::Superseded => (
            "superseded",
            "another process of the client has refreshed meanwhile: read the shared refresh token again",
        ),
    };
    OAuthError::new(ErrorCode::InvalidGrant, reason, description)
}
