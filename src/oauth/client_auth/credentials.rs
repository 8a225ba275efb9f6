//! What a request presents to authenticate its client.

use std::borrow::Cow;

use secrecy::{ExposeSecret as _, SecretString};
use subtle::{Choice, ConstantTimeEq as _};

use super::{
    assertion::{self, Assertion, AssertionError},
    basic::parse_basic,
    refusal, several_ways,
};
use crate::{
    clock::Timestamp,
    domain::{
        client::{AuthMethod, Client, MOST_SECRETS},
        secret::SecretHash,
    },
    oauth::{error::OAuthError, form::Form},
};

/// What a request presents to authenticate its client.
///
/// # Security
/// All of it comes from whoever sends the request.
#[derive(Debug)]
pub(super) struct Credentials<'a> {
    pub(super) client_id: Cow<'a, str>,
    pub(super) proof: Proof<'a>,
}

/// What is to prove that the client is who it says it is.
#[derive(Debug)]
pub(super) enum Proof<'a> {
    Assertion(Assertion<'a>),
    Nothing,
    Secret(AuthMethod, SecretString),
}

impl<'a> Credentials<'a> {
    /// Finds the one way in which a request authenticates its client.
    ///
    /// # Security
    /// "The client MUST NOT use more than one authentication method in each request"
    /// (RFC 6749 §2.3): two of them could belong to two clients.
    pub(super) fn of_request(
        authorization: Option<&str>,
        form: &'a Form,
        issuer: &str,
        now: Timestamp,
    ) -> Result<Self, OAuthError> {
        let body_id = form.one("client_id")?;
        let body_secret = form.one("client_secret")?;
        let assertion = form.one("client_assertion")?;
        let assertion_kind = form.one("client_assertion_type")?;
        let asserts = assertion.is_some() || assertion_kind.is_some();
        let ways = [authorization.is_some(), body_secret.is_some(), asserts];
        if ways.into_iter().filter(|used| *used).count() > 1 {
            return Err(several_ways());
        }
        let (client_id, proof) = if asserts {
            if assertion_kind != Some(assertion::KIND) {
                return Err(AssertionError::Type.into());
            }
            let assertion = assertion.ok_or(AssertionError::Malformed)?;
            let assertion = Assertion::parse(assertion, issuer, now)?;
            (
                Cow::Owned(assertion.client_id().to_owned()),
                Proof::Assertion(assertion),
            )
        } else if let Some(header) = authorization {
            let (client_id, secret) = parse_basic(header).map_err(|_| refusal())?;
            let method = AuthMethod::ClientSecretBasic;
            (Cow::Owned(client_id), Proof::Secret(method, secret))
        } else {
            let proof = match body_secret {
                Some(secret) => Proof::Secret(AuthMethod::ClientSecretPost, secret.into()),
                None => Proof::Nothing,
            };
            (Cow::Borrowed(body_id.ok_or_else(refusal)?), proof)
        };
        if body_id.is_some_and(|body_id| body_id != client_id) {
            return Err(refusal());
        }
        Ok(Self { client_id, proof })
    }

    pub(super) fn method(&self) -> AuthMethod {
        match self.proof {
            Proof::Assertion(_) => AuthMethod::PrivateKeyJwt,
            Proof::Nothing => AuthMethod::None,
            Proof::Secret(method, _) => method,
        }
    }

    /// An unknown client and a wrong secret cost the same comparisons.
    pub(super) fn secret_matches(&self, client: Option<&Client>) -> bool {
        let presented = match &self.proof {
            Proof::Secret(_, secret) => secret.expose_secret(),
            Proof::Assertion(_) | Proof::Nothing => "",
        };
        let presented = SecretHash::of(presented);
        let stored = client.map_or(&[][..], |client| &client.secrets);
        // Compared in place of a secret that is not there; it matches nothing, see below.
        let nothing = SecretHash::of("");
        let matched = (0..MOST_SECRETS).fold(Choice::from(0), |matched, slot| {
            let secret = stored.get(slot);
            let exists = u8::from(secret.is_some()).ct_eq(&1);
            matched | (exists & presented.matches(secret.map_or(&nothing, |secret| &secret.hash)))
        });
        bool::from(matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_secret() {
        let form = Form::parse(b"client_id=a&client_secret=hunter2").unwrap();
        let credentials =
            Credentials::of_request(None, &form, "", Timestamp::from_seconds(0)).unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
