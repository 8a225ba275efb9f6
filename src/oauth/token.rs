//! The token endpoint (RFC 6749 §3.2) as a pipeline: form, client, grant.

use std::sync::Arc;

use serde::Serialize;

use super::{
    access_token::Minter,
    client_auth::Authenticator,
    error::{ErrorCode, OAuthError},
    form::Form,
    grants,
    refresh_tokens::RefreshTokens,
    rotation_queue::RotationQueue,
};
use crate::{
    domain::{change::Origin, client::GrantType},
    store::Store,
};

/// What is counted in place of a grant that is missing or that this service does not know.
const UNKNOWN_GRANT: &str = "unknown";

/// What is counted as the outcome of a request that got its token.
const ISSUED: &str = "issued";

/// A successful answer (RFC 6749 §5.1).
///
/// Neither printable nor clonable: it holds a token.
#[derive(Serialize)]
pub struct TokenResponse {
    /// The token.
    pub access_token: String,
    /// Its type (RFC 6750).
    pub token_type: &'static str,
    /// Its life in seconds.
    pub expires_in: u32,
    /// The token to get the next one with, if the client may refresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// Who has signed in, if the client asked for that (`OpenID` Connect Core §3.1.3.3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    /// What it allows; always told.
    pub scope: String,
}

/// Exchanges credentials for tokens.
pub struct TokenEndpoint {
    /// Tells which client asks.
    pub authenticator: Arc<Authenticator>,
    /// Mints what is granted.
    pub minter: Minter,
    /// Makes and verifies refresh tokens.
    pub refresh_tokens: RefreshTokens,
    /// Where presented refresh tokens are judged.
    pub rotations: RotationQueue,
    /// Where codes are exchanged.
    pub store: Arc<dyn Store>,
}

impl TokenEndpoint {
    /// Answers one request.
    ///
    /// # Security
    /// `authorization` and `body` come from whoever sends the request.
    pub async fn exchange(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        origin: &Origin,
    ) -> Result<TokenResponse, OAuthError> {
        let mut grant = UNKNOWN_GRANT;
        let result = self.judge(authorization, body, origin, &mut grant).await;
        let outcome = result.as_ref().err().map_or(ISSUED, OAuthError::reason);
        self.minter.metrics.token_request(grant, outcome);
        result
    }

    /// As [`Self::exchange`]; says which grant was asked for, as soon as that is known.
    async fn judge(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        origin: &Origin,
        grant: &mut &'static str,
    ) -> Result<TokenResponse, OAuthError> {
        let form = Form::of_body(body)?;
        let grant_type = form
            .one("grant_type")?
            .ok_or_else(|| OAuthError::malformed("grant_type is missing"))?;
        let known = grant_type.parse().ok();
        *grant = known.map_or(UNKNOWN_GRANT, GrantType::as_str);
        let client = self
            .authenticator
            .authenticate(authorization, &form, origin)
            .await?;
        let grant_type = known.ok_or(OAuthError::new(
            ErrorCode::UnsupportedGrantType,
            "grant_type",
            "the grant type is none that this service knows",
        ))?;
        if !client.grant_types.contains(&grant_type) {
            return Err(OAuthError::new(
                ErrorCode::UnauthorizedClient,
                "grant_type",
                "the client may not use this grant",
            ));
        }
        match grant_type {
            GrantType::AuthorizationCode => {
                grants::authorization_code::exchange(self, &client, &form, origin).await
            }
            GrantType::ClientCredentials => {
                grants::client_credentials::exchange(self, &client, &form).await
            }
            GrantType::RefreshToken => {
                grants::refresh_token::exchange(self, &client, &form, origin).await
            }
        }
    }
}
