//! Client authentication (RFC 6749 §2.3), for every endpoint that asks for it.

mod basic;
mod credentials;

use std::{sync::Arc, time::Duration};

pub use self::basic::{BasicError, parse_basic};
use self::credentials::Credentials;
use super::{
    error::{ErrorCode, OAuthError},
    form::Form,
    limits::Limits,
};
use crate::{
    clock::AgreedClock,
    domain::{change::Origin, client::Client},
    registry::Snapshots,
};

/// How long a refusal waits for a newer state.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Tells which client a request comes from.
pub struct Authenticator {
    /// The clients.
    pub snapshots: Arc<Snapshots>,
    /// How often that may fail.
    pub limits: Limits,
    /// The time.
    pub clock: AgreedClock,
}

impl Authenticator {
    /// Authenticates the client of a request, unless it was tried too often.
    ///
    /// # Security
    /// `authorization` and `form` come from whoever sends the request. Who has failed too often is
    /// refused before anything is compared, waited for or asked of the database.
    pub async fn authenticate(
        &self,
        authorization: Option<&str>,
        form: &Form,
        origin: &Origin,
    ) -> Result<Arc<Client>, OAuthError> {
        let credentials = Credentials::of_request(authorization, form)?;
        let claimed = credentials.client_id();
        self.limits
            .around(origin, claimed, self.prove(&credentials))
            .await
    }

    /// Authenticates the client against what this node knows, and once more against what the
    /// database knows before it refuses: so a client works on every node as soon as it exists.
    ///
    /// A database that does not answer holds the refusal up for a second at most.
    async fn prove(&self, credentials: &Credentials) -> Result<Arc<Client>, OAuthError> {
        if let Ok(client) = credentials.judge(&self.snapshots.registry()) {
            return Ok(client);
        }
        // Where the database is down the answer stays the one of the snapshot.
        tokio::select! {
            _renewed = self.snapshots.freshness.renewed() => {}
            () = self.clock.sleep(LONGEST_WAIT) => {}
        }
        credentials.judge(&self.snapshots.registry())
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

fn disabled() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidClient,
        "client_disabled",
        "client authentication failed",
    )
}
