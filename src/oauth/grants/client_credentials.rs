//! The client credentials grant (RFC 6749 §4.4): a client acts for itself.

use crate::{
    domain::client::Client,
    oauth::{
        access_token::{AccessGrant, Target},
        error::{ErrorCode, OAuthError},
        form::Form,
        token::{TokenEndpoint, TokenResponse},
    },
};

/// Exchanges the client's own credentials for an access token; there is no refresh token.
///
/// "The client credentials grant type MUST only be used by confidential clients" (RFC 6749 §4.4).
pub(in crate::oauth) async fn exchange(
    endpoint: &TokenEndpoint,
    client: &Client,
    form: &Form,
) -> Result<TokenResponse, OAuthError> {
    if client.is_public() {
        return Err(OAuthError::new(
            ErrorCode::UnauthorizedClient,
            "public_client",
            "a public client cannot use the client credentials grant",
        ));
    }
    let minter = &endpoint.minter;
    minter.await_new_tokens(client.tokens_not_before).await?;
    let registry = minter.snapshots.registry();
    let target = Target::of_request(client, &registry, form.many("resource"), form.one("scope")?)?;
    let token = minter.mint(&AccessGrant {
        client,
        subject: client.client_id.as_str(),
        resources: &target.resources,
        scope: &target.scope,
        sign_in: None,
    })?;
    Ok(TokenResponse {
        access_token: token.token,
        token_type: "Bearer",
        expires_in: token.expires_in,
        refresh_token: None,
        id_token: None,
        scope: target.scope.to_string(),
    })
}
