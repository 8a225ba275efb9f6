//! What a request presents to authenticate its client.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use subtle::{Choice, ConstantTimeEq as _};

use super::{basic::parse_basic, disabled, refusal, several_ways};
use crate::{
    domain::{
        client::{AuthMethod, Client, MOST_SECRETS},
        id::ClientId,
        secret::SecretHash,
    },
    oauth::{error::OAuthError, form::Form},
    registry::Registry,
};

/// What a request presents to authenticate its client.
///
/// # Security
/// All of it comes from whoever sends the request.
#[derive(Debug)]
pub(super) struct Credentials {
    client_id: String,
    secret: Option<SecretString>,
    method: AuthMethod,
}

impl Credentials {
    /// Finds the one way in which a request authenticates its client.
    ///
    /// # Security
    /// "The client MUST NOT use more than one authentication method in each request"
    /// (RFC 6749 §2.3): two of them could belong to two clients.
    pub(super) fn of_request(authorization: Option<&str>, form: &Form) -> Result<Self, OAuthError> {
        let body_id = form.one("client_id")?;
        let body_secret = form.one("client_secret")?;
        let assertion = form
            .one("client_assertion")?
            .or(form.one("client_assertion_type")?);
        let ways = [
            authorization.is_some(),
            body_secret.is_some(),
            assertion.is_some(),
        ];
        if ways.into_iter().filter(|used| *used).count() > 1 {
            return Err(several_ways());
        }
        if assertion.is_some() {
            return Err(refusal());
        }
        if let Some(header) = authorization {
            let (client_id, secret) = parse_basic(header).map_err(|_| refusal())?;
            if body_id.is_some_and(|body_id| body_id != client_id) {
                return Err(refusal());
            }
            return Ok(Self {
                client_id,
                secret: Some(secret),
                method: AuthMethod::ClientSecretBasic,
            });
        }
        let method = match body_secret {
            Some(_) => AuthMethod::ClientSecretPost,
            None => AuthMethod::None,
        };
        Ok(Self {
            client_id: body_id.ok_or_else(refusal)?.to_owned(),
            secret: body_secret.map(SecretString::from),
            method,
        })
    }

    /// Whom the request claims to be.
    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// An unknown client and a wrong secret cost the same comparisons and give the same answer.
    pub(super) fn judge(&self, registry: &Registry) -> Result<Arc<Client>, OAuthError> {
        let client = ClientId::parse(&self.client_id)
            .ok()
            .and_then(|id| registry.client(&id));
        let matches = self.secret_matches(client.map(Arc::as_ref));
        let client = client.ok_or_else(refusal)?;
        let authentic = match self.method {
            AuthMethod::ClientSecretBasic | AuthMethod::ClientSecretPost => bool::from(matches),
            AuthMethod::None => true,
            // Presented as an assertion, which `of_request` refuses.
            AuthMethod::PrivateKeyJwt => false,
        };
        if !authentic || client.auth_method != self.method {
            return Err(refusal());
        }
        if client.disabled {
            return Err(disabled());
        }
        Ok(Arc::clone(client))
    }

    fn secret_matches(&self, client: Option<&Client>) -> Choice {
        let presented = SecretHash::of(
            self.secret
                .as_ref()
                .map_or("", |secret| secret.expose_secret()),
        );
        let stored = client.map_or(&[][..], |client| &client.secrets);
        // Compared in place of a secret that is not there; it matches nothing, see below.
        let nothing = SecretHash::of("");
        (0..MOST_SECRETS).fold(Choice::from(0), |matched, slot| {
            let secret = stored.get(slot);
            let exists = u8::from(secret.is_some()).ct_eq(&1);
            matched | (exists & presented.matches(secret.map_or(&nothing, |secret| &secret.hash)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_secret() {
        let form = Form::parse(b"client_id=a&client_secret=hunter2").unwrap();
        let credentials = Credentials::of_request(None, &form).unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
