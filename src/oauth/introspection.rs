//! Introspection of tokens (RFC 7662).

use std::sync::Arc;

use countersign_verifier::AccessTokenClaims;
use serde_json::{Value, json};

use super::{
    client_auth::Authenticator,
    error::{ErrorCode, OAuthError},
    form::Form,
    live_token::LiveTokens,
    refresh_tokens::RefreshTokens,
    store_answer,
};
use crate::{
    domain::{
        change::Origin,
        client::{Client, GrantType},
        family::{Family, Standing, UserStanding},
        id::FamilyId,
        refresh_token::RefreshToken,
        resource::ResourceUri,
    },
    store::Store,
};

/// The answer about every token that is not good, or none of the caller's business
/// (RFC 7662 §2.2): nothing else may be told.
pub fn inactive() -> Value {
    json!({ "active": false })
}

/// Tells whether a token is good.
pub struct Introspection {
    /// Tells which client asks.
    pub authenticator: Arc<Authenticator>,
    /// Judges access tokens.
    pub tokens: LiveTokens,
    /// Judges refresh tokens.
    pub refresh_tokens: RefreshTokens,
    /// The database: whether a family lives is not in memory.
    pub store: Arc<dyn Store>,
}

impl Introspection {
    /// Answers one request.
    ///
    /// An access token is active only for its own client and for those that its resources name as
    /// introspection clients, a refresh token only for its own client: whoever finds a token learns
    /// nothing by asking. The token of a sign-in is inactive as soon as that has ended.
    ///
    /// # Errors
    /// `invalid_request` without a token; `invalid_client` for a caller that proves nothing;
    /// `temporarily_unavailable` when the database has to be asked and is down.
    pub async fn answer(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        origin: &Origin,
    ) -> Result<Value, OAuthError> {
        let form = Form::of_body(body)?;
        let caller = self
            .authenticator
            .authenticate(authorization, &form, origin)
            .await?;
        // "To prevent token scanning attacks, the endpoint MUST also require some form of
        // authorization to access this endpoint" (RFC 7662 §2.1).
        if caller.is_public() {
            return Err(OAuthError::new(
                ErrorCode::InvalidClient,
                "public_client",
                "a public client cannot introspect tokens",
            ));
        }
        let token = form
            .one("token")?
            .ok_or_else(|| OAuthError::malformed("token is missing"))?;
        // A hint that is wrong changes nothing: each kind of token shows what it is (RFC 7662 §2.1).
        form.one("token_type_hint")?;
        let answer = match self.refresh_tokens.genuine(token).await? {
            Some(token) => self.of_refresh_token(&caller, &token).await?,
            None => match self.tokens.find(token)? {
                Some(claims) if self.concerns(&caller, &claims) => {
                    self.of_access_token(&claims).await?
                }
                Some(_) | None => None,
            },
        };
        Ok(answer.unwrap_or_else(inactive))
    }

    /// Tells about a refresh token: whether it is the one that its family is at.
    async fn of_refresh_token(
        &self,
        caller: &Client,
        token: &RefreshToken,
    ) -> Result<Option<Value>, OAuthError> {
        let living = self.living(token.family).await?;
        let Some((family, standing)) = living else {
            return Ok(None);
        };
        let Some(user) = standing
            .user
            .as_ref()
            .filter(|_| !standing.lacks_factor(&family.grant))
        else {
            return Ok(None);
        };
        let is_current = i64::try_from(token.counter) == Ok(family.counter)
            && token.mac_version == family.mac_version;
        let is_theirs = caller.client_id == family.grant.client_id
            && caller.grant_types.contains(&GrantType::RefreshToken);
        Ok((is_current && is_theirs).then(|| {
            json!({
                "active": true,
                "client_id": family.grant.client_id.as_str(),
                "sub": family.grant.subject.to_string(),
                "username": user.username,
                "scope": family.grant.scope.to_string(),
                "iat": family.rotated_at.seconds(),
                "exp": family.ends_at().seconds(),
                "iss": self.tokens.issuer,
            })
        }))
    }

    /// Tells about an access token that is good as far as this node knows.
    async fn of_access_token(
        &self,
        claims: &AccessTokenClaims<'_>,
    ) -> Result<Option<Value>, OAuthError> {
        let Some(sid) = claims.sid.as_deref() else {
            return Ok(Some(answer(claims, None)));
        };
        let Ok(family) = FamilyId::parse(sid) else {
            return Ok(None);
        };
        let living = self.living(family).await?;
        Ok(living
            .and_then(|(_, standing)| standing.user)
            .map(|user| answer(claims, Some(&user))))
    }

    /// A family that has not ended, with its client and user.
    async fn living(&self, id: FamilyId) -> Result<Option<(Family, Standing)>, OAuthError> {
        let clock = &self.tokens.clock;
        let found = store_answer(clock, self.store.family(id)).await?;
        Ok(found.filter(|(family, standing)| family.ending(standing, clock.now()).is_none()))
    }

    fn concerns(&self, caller: &Client, claims: &AccessTokenClaims<'_>) -> bool {
        let registry = self.tokens.snapshots.registry();
        claims.client_id == caller.client_id.as_str()
            || claims.aud.iter().any(|audience| {
                ResourceUri::parse(audience)
                    .ok()
                    .and_then(|uri| registry.resource(&uri).cloned())
                    .is_some_and(|resource| {
                        resource.introspection_clients.contains(&caller.client_id)
                    })
            })
    }
}

/// The members of RFC 7662 §2.2, and of RFC 9068 those that it does not have.
fn answer(claims: &AccessTokenClaims<'_>, user: Option<&UserStanding>) -> Value {
    let mut answer = json!({
        "active": true,
        "token_type": "Bearer",
        "client_id": claims.client_id,
        "sub": claims.sub,
        "aud": claims.aud,
        "iss": claims.iss,
        "iat": claims.iat,
        "exp": claims.exp,
        "jti": claims.jti,
    });
    let optional = [
        ("scope", json!(claims.scope)),
        ("username", json!(user.map(|user| &user.username))),
        ("sid", json!(claims.sid)),
        // RFC 9470 §6.2.
        ("acr", json!(claims.acr)),
        ("auth_time", json!(claims.auth_time)),
    ];
    if let Some(answer) = answer.as_object_mut() {
        let present = optional.into_iter().filter(|(_, value)| !value.is_null());
        answer.extend(present.map(|(name, value)| (name.to_owned(), value)));
    }
    answer
}
