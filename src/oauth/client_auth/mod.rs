//! Client authentication (RFC 6749 §2.3), for every endpoint that asks for it.

mod assertion;
mod basic;
mod credentials;
mod key_sets;

use std::{sync::Arc, time::Duration};

use self::credentials::{Credentials, Proof};
pub use self::{
    assertion::{Assertion, AssertionError},
    basic::{BasicError, parse_basic},
    key_sets::KeySets,
};
use super::{
    error::{ErrorCode, OAuthError},
    form::Form,
    limits::Limits,
};
use crate::{
    clock::AgreedClock,
    domain::{assertion::AssertionId, change::Origin, client::Client, id::ClientId},
    registry::{Registry, Snapshots},
    store::Store,
};
use arc_swap::Guard;
use countersign_verifier::KeySet;

/// How long a refusal waits for a newer state.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Where the keys that a client publishes are taken from.
#[derive(Clone, Copy, Debug)]
enum Keys {
    /// From its `jwks_uri`, where what is remembered is not enough.
    Asked,
    /// From memory alone, however old they are.
    Remembered,
}

/// Tells which client a request comes from.
pub struct Authenticator {
    /// This issuer's identifier.
    pub issuer: String,
    /// The clients.
    pub snapshots: Arc<Snapshots>,
    /// How often that may fail.
    pub limits: Limits,
    /// The keys that they publish.
    pub key_sets: KeySets,
    /// Which assertions have been used, for all nodes.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
}

impl Authenticator {
    /// Authenticates the client of a request, unless it was tried too often.
    ///
    /// # Security
    /// `authorization` and `form` come from whoever sends the request. They are judged by what this
    /// node remembers first. What does not seem right is refused after too many failures before
    /// anything is waited for, fetched or asked of the database.
    #[tracing::instrument(name = "authenticate_client", level = "debug", skip_all)]
    pub async fn authenticate(
        &self,
        authorization: Option<&str>,
        form: &Form,
        origin: &Origin,
    ) -> Result<Arc<Client>, OAuthError> {
        self.within_limits((authorization, form), origin, false)
            .await
    }

    /// Authenticates a proxy that asks for whoever is at the address of `origin`, unless it was tried
    /// too often.
    ///
    /// # Security
    /// As [`Self::authenticate`].
    #[tracing::instrument(name = "authenticate_client", level = "debug", skip_all)]
    pub async fn authenticate_proxy(
        &self,
        authorization: Option<&str>,
        origin: &Origin,
    ) -> Result<Arc<Client>, OAuthError> {
        let form = Form::of_pairs([]);
        self.within_limits((authorization, &form), origin, true)
            .await
    }

    async fn within_limits(
        &self,
        (authorization, form): (Option<&str>, &Form),
        origin: &Origin,
        asks_for_others: bool,
    ) -> Result<Arc<Client>, OAuthError> {
        let now = self.clock.now();
        let credentials = Credentials::of_request(authorization, form, &self.issuer, now)?;
        let seen = self.judge(&credentials, Keys::Remembered).await;
        let seems_right = seen.is_ok();
        let known = seen
            .ok()
            .filter(|client| self.are_keys_current(client, &credentials));
        let claimed = &credentials.client_id;
        self.limits
            .around(
                origin,
                claimed,
                (seems_right, asks_for_others),
                self.prove(&credentials, known),
            )
            .await
    }

    /// Authenticates the client, if it is not `known` already, against what this node knows, and
    /// once more against what the database knows before it refuses: so a client works on every node
    /// as soon as it exists.
    ///
    /// A database that does not answer holds the refusal up for a second at most. An assertion
    /// cannot be taken without it.
    async fn prove(
        &self,
        credentials: &Credentials<'_>,
        known: Option<Arc<Client>>,
    ) -> Result<Arc<Client>, OAuthError> {
        let client = if let Some(client) = known {
            client
        } else if let Ok(client) = self.judge(credentials, Keys::Asked).await {
            client
        } else {
            // Where the database is down the answer stays the one of the snapshot.
            tokio::select! {
                _renewed = self.snapshots.freshness.renewed() => {}
                () = self.clock.sleep(LONGEST_WAIT) => {}
            }
            self.judge(credentials, Keys::Asked).await?
        };
        if let Proof::Assertion(assertion) = &credentials.proof {
            self.use_up(&client, assertion).await?;
        }
        Ok(client)
    }

    /// An unknown client and a wrong secret give the same answer.
    async fn judge(
        &self,
        credentials: &Credentials<'_>,
        published: Keys,
    ) -> Result<Arc<Client>, OAuthError> {
        let registry = Guard::into_inner(self.snapshots.registry());
        let client = ClientId::parse(&credentials.client_id)
            .ok()
            .and_then(|id| registry.client(&id));
        let secret_matches = credentials.secret_matches(client.map(Arc::as_ref));
        let client = client.ok_or_else(refusal)?;
        if client.auth_method != credentials.method() {
            return Err(refusal());
        }
        let authentic = match &credentials.proof {
            Proof::Assertion(assertion) => {
                self.is_signed(assertion, client, &registry, published)
                    .await?
            }
            Proof::Nothing => true,
            Proof::Secret(..) => secret_matches,
        };
        if !authentic {
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

    /// Whether a key signed the assertion that is registered for the client.
    async fn is_signed(
        &self,
        assertion: &Assertion<'_>,
        client: &Client,
        registry: &Registry,
        published: Keys,
    ) -> Result<bool, OAuthError> {
        if let Some(jwks) = &client.jwks {
            // What is registered was checked.
            let keys = KeySet::parse(jwks.to_string().as_bytes()).unwrap_or_default();
            return Ok(assertion.is_signed_with(&keys));
        }
        let Some(uri) = &client.jwks_uri else {
            return Ok(false);
        };
        let keys = match published {
            Keys::Asked => self.key_sets.get(uri, assertion.kid(), registry).await,
            Keys::Remembered => self
                .key_sets
                .remembered(uri, assertion.kid())
                .map(|(keys, _)| keys),
        };
        let keys = keys.ok_or_else(|| {
            OAuthError::new(
                ErrorCode::InvalidClient,
                "client_keys_unavailable",
                "the keys of the client could not be fetched from its jwks_uri",
            )
        })?;
        Ok(assertion.is_signed_with(&keys))
    }

    /// Whether the keys that are remembered for the client may decide.
    fn are_keys_current(&self, client: &Client, credentials: &Credentials<'_>) -> bool {
        match (&credentials.proof, &client.jwks_uri) {
            (Proof::Assertion(assertion), Some(uri)) => self
                .key_sets
                .remembered(uri, assertion.kid())
                .is_some_and(|(_, is_current)| is_current),
            _ => true,
        }
    }

    /// Takes an assertion that is good otherwise. Nobody takes it a second time: not this node,
    /// not another, not another endpoint (RFC 7523 §3).
    async fn use_up(&self, client: &Client, assertion: &Assertion<'_>) -> Result<(), OAuthError> {
        let id = AssertionId::new(&client.client_id, assertion.jti());
        let used = self
            .store
            .first_use(&id, assertion.accepted_until(), self.clock.now())
            .await;
        match used {
            Ok(true) => Ok(()),
            Ok(false) => Err(OAuthError::new(
                ErrorCode::InvalidClient,
                "assertion_replayed",
                "the client assertion has been used before",
            )),
            Err(error) => Err(OAuthError::of_store(error)),
        }
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
