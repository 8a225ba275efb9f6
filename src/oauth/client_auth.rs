//! Client authentication at the token endpoint (RFC 6749 §2.3).

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::{Choice, ConstantTimeEq as _};

use super::{
    error::{ErrorCode, OAuthError},
    form::{self, Form},
};
use crate::{
    clock::AgreedClock,
    domain::{
        client::{AuthMethod, Client, MOST_SECRETS},
        id::ClientId,
        secret::SecretHash,
    },
    registry::{Registry, Snapshots},
};

/// How long a refusal waits for a newer state.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What a request presents to authenticate its client.
#[derive(Debug)]
pub struct Credentials {
    client_id: String,
    secret: Option<SecretString>,
    method: AuthMethod,
}

/// Why an `Authorization` header is no Basic credential of RFC 6749 §2.3.1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BasicError {
    /// Another scheme than `Basic`.
    #[error("the scheme is not Basic")]
    OtherScheme,
    /// No base64 of UTF-8 text with a colon in it.
    #[error("the credentials are not base64 of client_id:client_secret")]
    Malformed,
}

/// Reads a Basic header: client id and secret, each form-encoded before they were joined
/// (RFC 6749 §2.3.1).
pub fn parse_basic(header: &str) -> Result<(String, SecretString), BasicError> {
    let (scheme, encoded) = header.split_once(' ').unwrap_or((header, ""));
    if !scheme.eq_ignore_ascii_case("Basic") {
        return Err(BasicError::OtherScheme);
    }
    let decoded = STANDARD
        .decode(encoded.trim_start_matches(' '))
        .map_err(|_| BasicError::Malformed)?;
    let decoded = String::from_utf8(decoded).map_err(|_| BasicError::Malformed)?;
    let (id, secret) = decoded.split_once(':').ok_or(BasicError::Malformed)?;
    let part = |text| form::decode(text).map_err(|_| BasicError::Malformed);
    Ok((part(id)?, part(secret)?.into()))
}

impl Credentials {
    /// Finds the one way in which a request authenticates its client.
    ///
    /// # Security
    /// "The client MUST NOT use more than one authentication method in each request"
    /// (RFC 6749 §2.3): two of them could belong to two clients.
    pub fn of_request(authorization: Option<&str>, form: &Form) -> Result<Self, OAuthError> {
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

    /// Authenticates the client against what this node knows, and once more against what the
    /// database knows before it refuses: so a client works on every node as soon as it exists.
    ///
    /// A database that does not answer holds the refusal up for a second at most.
    pub async fn authenticate(
        &self,
        snapshots: &Snapshots,
        clock: &AgreedClock,
    ) -> Result<Arc<Client>, OAuthError> {
        if let Ok(client) = self.judge(&snapshots.registry()) {
            return Ok(client);
        }
        // Where the database is down the answer stays the one of the snapshot.
        tokio::select! {
            _renewed = snapshots.freshness.renewed() => {}
            () = clock.sleep(LONGEST_WAIT) => {}
        }
        self.judge(&snapshots.registry())
    }

    /// An unknown client and a wrong secret cost the same comparisons and give the same answer.
    fn judge(&self, registry: &Registry) -> Result<Arc<Client>, OAuthError> {
        let client = ClientId::parse(&self.client_id)
            .ok()
            .and_then(|id| registry.client(&id));
        let matches = self.secret_matches(client.map(Arc::as_ref));
        let client = client.ok_or_else(refusal)?;
        let authentic = match self.method {
            AuthMethod::ClientSecretBasic | AuthMethod::ClientSecretPost => bool::from(matches),
            AuthMethod::None => true,
        };
        if !authentic || client.auth_method != self.method {
            return Err(refusal());
        }
        if client.disabled {
            return Err(OAuthError::new(
                ErrorCode::InvalidClient,
                "client_disabled",
                "client authentication failed",
            ));
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

/// The refusal of a request that authenticates its client more than once.
pub fn several_ways() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidRequest,
        "several_client_authentications",
        "the request authenticates the client in more than one way",
    )
}

fn refusal() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidClient,
        "client_authentication",
        "client authentication failed",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn basic(text: &str) -> Result<(String, String), BasicError> {
        let header = format!("Basic {}", STANDARD.encode(text));
        parse_basic(&header).map(|(id, secret)| (id, secret.expose_secret().to_owned()))
    }

    #[test]
    fn id_and_secret_are_form_decoded() {
        assert_eq!(
            basic("a%3Ab:c%2Bd+e:f").unwrap(),
            ("a:b".to_owned(), "c+d e:f".to_owned())
        );
        assert_eq!(basic("ä:ö").unwrap(), ("ä".to_owned(), "ö".to_owned()));
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_nothing_else_is_taken() {
        assert!(parse_basic(&format!("bAsIc {}", STANDARD.encode("a:b"))).is_ok());
        assert_eq!(
            parse_basic("Bearer abc").unwrap_err(),
            BasicError::OtherScheme
        );
        for bad in [
            "Basic",
            "Basic ",
            "Basic !!!",
            "Basic YQ",
            "Basic YTpi YTpi",
        ] {
            assert_eq!(
                parse_basic(bad).unwrap_err(),
                BasicError::Malformed,
                "{bad}"
            );
        }
        assert_eq!(basic("no colon").unwrap_err(), BasicError::Malformed);
        assert_eq!(basic("a:%zz").unwrap_err(), BasicError::Malformed);
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let form = Form::parse(b"client_id=a&client_secret=hunter2").unwrap();
        let credentials = Credentials::of_request(None, &form).unwrap();
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(text in ".{0,100}") {
            let _ = parse_basic(&text);
            let _ = basic(&text);
        }
    }
}
