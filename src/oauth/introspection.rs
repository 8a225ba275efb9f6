//! Introspection of tokens (RFC 7662).

use std::sync::Arc;

use countersign_verifier::AccessTokenClaims;
use serde_json::{Value, json};

use super::{
    client_auth::Authenticator,
    error::{ErrorCode, OAuthError},
    form::Form,
    live_token::LiveTokens,
};
use crate::domain::{change::Origin, client::Client, resource::ResourceUri};

/// The answer about every token that is not good, or none of the caller's business
/// (RFC 7662 §2.2): nothing else may be told.
pub fn inactive() -> Value {
    json!({ "active": false })
}

/// Tells whether a token is good.
pub struct Introspection {
    /// Tells which client asks.
    pub authenticator: Arc<Authenticator>,
    /// Judges tokens.
    pub tokens: LiveTokens,
}

impl Introspection {
    /// Answers one request.
    ///
    /// A token is active only for its own client and for those that its resources name as
    /// introspection clients: whoever finds a token learns nothing by asking.
    ///
    /// # Errors
    /// `invalid_request` without a token; `invalid_client` for a caller that proves nothing.
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
        // A hint that is wrong changes nothing: there is one kind of token (RFC 7662 §2.1).
        form.one("token_type_hint")?;
        let claims = self
            .tokens
            .find(token)?
            .filter(|claims| self.concerns(&caller, claims));
        Ok(claims.map_or_else(inactive, |claims| answer(&claims)))
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

/// The members of RFC 7662 §2.2.
fn answer(claims: &AccessTokenClaims<'_>) -> Value {
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
    if let (Some(scope), Some(answer)) = (&claims.scope, answer.as_object_mut()) {
        answer.insert("scope".to_owned(), json!(scope));
    }
    answer
}
