//! Revocation of tokens by their clients (RFC 7009).

use std::sync::Arc;

use countersign_verifier::AccessTokenClaims;

use super::{
    client_auth::Authenticator,
    error::{ErrorCode, OAuthError},
    form::Form,
    live_token::LiveTokens,
    refresh_tokens::RefreshTokens,
    rotation_queue::RotationQueue,
    store_answer,
};
use crate::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change, Origin},
        client::Client,
        family::{Intent, Outcome, Presentation, Refusal, Verdict},
        id::FamilyId,
        refresh_token::RefreshToken,
    },
    keys::lifecycle::Policy,
    store::Store,
};

/// Revokes a client's own tokens.
pub struct Revocation {
    /// Tells which client asks.
    pub authenticator: Arc<Authenticator>,
    /// Judges access tokens.
    pub tokens: LiveTokens,
    /// Judges refresh tokens.
    pub refresh_tokens: RefreshTokens,
    /// Where refresh tokens wait for their verdict.
    pub rotations: RotationQueue,
    /// The database.
    pub store: Arc<dyn Store>,
    /// How long tokens live, and are accepted somewhere after that.
    pub policy: Policy,
}

impl Revocation {
    /// Revokes the token of a request, if it is the client's: an access token alone, a refresh token
    /// with its family.
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
        // A hint that is wrong changes nothing: each kind of token shows what it is (RFC 7009 §2.1).
        form.one("token_type_hint")?;
        let cause = Cause::of_request(&client.client_id, origin, None);
        match self.refresh_tokens.genuine(token).await? {
            Some(token) => self.end_family(&client, token, cause).await,
            None => match self.tokens.find(token)? {
                Some(claims) => self.revoke_token(&client, claims, &cause).await,
                None => Ok(()),
            },
        }
    }

    /// Ends a family by any of its tokens, whether spent or not: whoever holds one could end it in
    /// any case, by using it, and a client that lost an answer has no other.
    async fn end_family(
        &self,
        client: &Client,
        token: RefreshToken,
        cause: Cause,
    ) -> Result<(), OAuthError> {
        let presented = Presentation {
            family: token.family,
            counter: i64::try_from(token.counter).unwrap_or(i64::MAX),
            mac_version: token.mac_version,
            client_id: client.client_id.clone(),
            dpop_jkt: None,
            intent: Intent::Revoke,
            cause,
        };
        let (outcome, _) = self.rotations.submit(presented, false).await?;
        match outcome {
            Outcome::Judged {
                verdict: Verdict::Refused(Refusal::OtherClient),
                ..
            } => Err(other_client()),
            // That the family has ended already is what was wanted.
            Outcome::Judged { .. } | Outcome::Unknown => Ok(()),
            Outcome::Illegible => Err(OAuthError::internal("the family cannot be read")),
            Outcome::Locked => Err(OAuthError::no_database()),
        }
    }

    async fn revoke_token(
        &self,
        client: &Client,
        claims: AccessTokenClaims<'_>,
        cause: &Cause,
    ) -> Result<(), OAuthError> {
        if claims.client_id != client.client_id.as_str() {
            return Err(other_client());
        }
        let expires_at = Timestamp::from_seconds(i64::try_from(claims.exp).unwrap_or(i64::MAX));
        let now = self.tokens.clock.now();
        let change = Change::RevokeToken {
            family: claims.sid.and_then(|sid| FamilyId::parse(&sid).ok()),
            jti: claims.jti.into_owned(),
            client_id: Some(client.client_id.clone()),
            token_dies_at: expires_at.plus(self.policy.grace()),
            tokens_die_at: now.plus(self.policy.retention()),
        };
        let applied = self.store.apply(&change, cause, now);
        store_answer(&self.tokens.clock, applied).await.map(drop)
    }
}

const fn other_client() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidGrant,
        "other_client",
        "the token was issued to another client",
    )
}
