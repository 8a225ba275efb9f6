//! Revocation of tokens by their clients (RFC 7009).

use std::sync::Arc;

use super::{
    client_auth::Authenticator,
    error::{ErrorCode, OAuthError},
    form::Form,
    live_token::LiveTokens,
};
use crate::{
    clock::Timestamp,
    domain::change::{Cause, Change, Origin},
    keys::lifecycle::Policy,
    store::Store,
};

/// Revokes a client's own tokens.
pub struct Revocation {
    /// Tells which client asks.
    pub authenticator: Arc<Authenticator>,
    /// Judges tokens.
    pub tokens: LiveTokens,
    /// The database.
    pub store: Arc<dyn Store>,
    /// How long tokens live, and are accepted somewhere after that.
    pub policy: Policy,
}

impl Revocation {
    /// Revokes the token of a request, if it is the client's.
    ///
    /// A token that is not good is none to revoke, and that is no error: "the client cannot handle
    /// such an error in a reasonable way" (RFC 7009 §2.2). When this returns, the revocation is in
    /// the database, and every node knows of it within the poll interval.
    ///
    /// # Errors
    /// `invalid_grant` for another client's token, which stays as it is (RFC 7009 §2.1);
    /// `temporarily_unavailable` when the database is down.
    pub async fn answer(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        origin: &Origin,
    ) -> Result<(), OAuthError> {
        let form = Form::of_body(body)?;
        let client = self
            .authenticator
            .authenticate(authorization, &form, origin)
            .await?;
        let token = form
            .one("token")?
            .ok_or_else(|| OAuthError::malformed("token is missing"))?;
        // A hint that is wrong changes nothing: there is one kind of token (RFC 7009 §2.1).
        form.one("token_type_hint")?;
        let Some(claims) = self.tokens.find(token)? else {
            return Ok(());
        };
        if claims.client_id != client.client_id.as_str() {
            return Err(OAuthError::new(
                ErrorCode::InvalidGrant,
                "other_client",
                "the token was issued to another client",
            ));
        }
        let expires_at = Timestamp::from_seconds(i64::try_from(claims.exp).unwrap_or(i64::MAX));
        let now = self.tokens.clock.now();
        let cause = Cause::of_request(&client.client_id, origin, None);
        let change = Change::RevokeToken {
            jti: claims.jti.into_owned(),
            client_id: Some(client.client_id.clone()),
            token_dies_at: expires_at.plus(self.policy.grace()),
            tokens_die_at: now.plus(self.policy.retention()),
        };
        let applied = self.store.apply(&change, &cause, now).await;
        applied.map(drop).map_err(OAuthError::of_store)
    }
}
