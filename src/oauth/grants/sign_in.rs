//! The tokens of a sign-in, whichever grant they come from.

use serde_json::{Map, Value};

use crate::{
    clock::Timestamp,
    domain::{
        client::{Client, GrantType},
        family::{Family, Grant, Refusal, Standing},
        scope::{OPENID, Scope},
    },
    oauth::{
        access_token::{self, AccessGrant, AccessToken, Minter, Narrowing, SignIn, Target},
        error::{ErrorCode, OAuthError},
        id_token::IdGrant,
        refresh_tokens, store_answer,
        token::{TokenEndpoint, TokenResponse},
        userinfo,
    },
    store::Store,
};

/// Answers with the tokens of a family that was judged, or opened, at `judged_at`; with an ID Token if
/// the client asks who has signed in, which repeats the nonce.
pub(super) async fn answer(
    endpoint: &TokenEndpoint,
    client: &Client,
    (family, standing, nonce): (&Family, &Standing, Option<&str>),
    asked: &Narrowing,
    judged_at: Timestamp,
) -> Result<TokenResponse, OAuthError> {
    let (minter, store) = (&endpoint.minter, &*endpoint.store);
    let minting = access_token(minter, store, client, (family, standing), asked, judged_at);
    let access = minting.await?;
    let refresh_token = if client.grant_types.contains(&GrantType::RefreshToken) {
        Some(endpoint.refresh_tokens.current(family).await?)
    } else {
        None
    };
    let scope = asked.scope.as_ref().unwrap_or(&family.grant.scope);
    let id_token = if scope.contains(OPENID) && client.uses_openid() {
        let claims = named_claims(endpoint, client, &family.grant).await?;
        Some(minter.mint_id_token(IdGrant {
            client,
            sign_in: access.sign_in,
            access_token: &access.token,
            nonce,
            claims,
        })?)
    } else {
        None
    };
    Ok(TokenResponse {
        access_token: access.token.token,
        token_type: "Bearer",
        expires_in: access.token.expires_in,
        refresh_token,
        id_token,
        scope: access.scope.to_string(),
    })
}

/// An access token, and what it says.
pub(in crate::oauth) struct Minted<'a> {
    /// The token.
    pub(in crate::oauth) token: AccessToken,
    /// What it allows.
    pub(in crate::oauth) scope: Scope,
    /// The sign-in that it is of.
    sign_in: SignIn<'a>,
}

/// Mints an access token of a family that was judged, or opened, at `judged_at`.
///
/// It is issued as of that moment, so that whatever revokes the tokens of client or user after it
/// revokes this one, too; it ends with the family at the latest.
pub(in crate::oauth) async fn access_token<'a>(
    minter: &Minter,
    store: &dyn Store,
    client: &Client,
    (family, standing): (&'a Family, &'a Standing),
    asked: &Narrowing,
    judged_at: Timestamp,
) -> Result<Minted<'a>, OAuthError> {
    let Some(user) = &standing.user else {
        return Err(refusal(Refusal::UserDeleted));
    };
    let target = {
        let registry = minter.snapshots.registry();
        Target::of_grant(client, &registry, &family.grant, asked)?
    };
    let not_before = standing.tokens_not_before();
    if minter.await_new_tokens(not_before).await? {
        check_again(minter, store, family, not_before).await?;
    }
    let sign_in = SignIn {
        family,
        user,
        issued_at: not_before.map_or(judged_at, |not_before| not_before.max(judged_at)),
    };
    if sign_in.is_over() {
        return Err(refusal(Refusal::Expired));
    }
    let token = minter.mint(&AccessGrant {
        client,
        subject: &family.grant.subject.to_string(),
        resources: &target.resources,
        scope: &target.scope,
        sign_in: Some(sign_in),
    })?;
    Ok(Minted {
        token,
        scope: target.scope,
        sign_in,
    })
}

/// What the client has asked for by name in ID Tokens, as far as it may still have it: most ask for
/// nothing, and then the user need not be read.
async fn named_claims(
    endpoint: &TokenEndpoint,
    client: &Client,
    grant: &Grant,
) -> Result<Map<String, Value>, OAuthError> {
    let names = userinfo::still_allowed(client, &grant.claims.id_token);
    if names.is_empty() {
        return Ok(Map::new());
    }
    let reading = endpoint.store.user(grant.subject);
    let user = store_answer(&endpoint.minter.clock, reading).await?;
    let user = user.ok_or_else(|| refusal(Refusal::UserDeleted))?;
    Ok(userinfo::claims_of(&user, |name, _| names.contains(name)))
}

/// Refuses what was revoked while its client waited: that may have been in the same second, from which
/// on the tokens issued now count.
async fn check_again(
    minter: &Minter,
    store: &dyn Store,
    family: &Family,
    not_before: Option<Timestamp>,
) -> Result<(), OAuthError> {
    let clock = &minter.clock;
    let found = store_answer(clock, store.family(family.id)).await?;
    let (family, standing) = found.ok_or_else(|| refusal(Refusal::Unknown))?;
    match family.ending(&standing, clock.now()) {
        Some(why) => Err(refusal(why)),
        None if standing.tokens_not_before() != not_before => Err(access_token::not_yet()),
        None => Ok(()),
    }
}

/// Why nothing is issued on a grant, as its client is told.
pub(in crate::oauth) const fn refusal(refusal: Refusal) -> OAuthError {
    let (reason, description) = match refusal {
        Refusal::Unknown => return refresh_tokens::unknown_token(),
        Refusal::Scope => return access_token::not_granted_scope(),
        Refusal::Target => return access_token::not_granted_target(),
        Refusal::NotYet => return access_token::not_yet(),
        Refusal::OtherClient => ("other_client", "it was issued to another client"),
        Refusal::OtherKey => ("other_key", "it is bound to another key"),
        Refusal::Ended => ("revoked", "the session was ended; sign in again"),
        Refusal::SignedOut => ("signed_out", "the user has signed out; sign in again"),
        Refusal::OneFactor => (
            "second_factor_required",
            "the user has to prove a second factor",
        ),
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
