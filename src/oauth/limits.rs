//! How often clients may fail to authenticate, and how often they may ask.

use std::sync::Arc;

use super::error::{ErrorCode, OAuthError};
use crate::{
    clock::AgreedClock,
    domain::{change::Origin, client::Client, id::ClientId},
    throttle::{AddressPrefix, RetryAfter, Throttle},
};

/// The limits around client authentication.
///
/// # Security
/// Failures are held against the address they come from, so that a stranger who guesses secrets, or
/// only means to lock somebody out, harms nobody elsewhere. A trusted proxy that does not tell for
/// whom it asks stands for everybody, so nothing is held against it.
#[derive(Debug)]
pub struct Limits {
    /// Failures of one address about one client; about none, if what it claims cannot be an id.
    pub failures: Throttle<(AddressPrefix, Option<ClientId>)>,
    /// Failures of one address about any client.
    pub failures_of_address: Throttle<AddressPrefix>,
    /// Requests of one client that has proved to be it: nobody else can use them up.
    pub requests: Throttle<ClientId>,
    /// The time.
    pub clock: AgreedClock,
}

impl Limits {
    /// Authenticates a client by way of `prove`, unless there were too many failures before.
    ///
    /// # Errors
    /// Those of `prove`; 429 without asking it after too many failures, or when the client has
    /// asked too often.
    pub async fn around(
        &self,
        origin: &Origin,
        claimed: &str,
        prove: impl Future<Output = Result<Arc<Client>, OAuthError>>,
    ) -> Result<Arc<Client>, OAuthError> {
        let prefix = AddressPrefix::from(origin.address);
        let pair = (prefix, ClientId::parse(claimed).ok());
        if !origin.is_proxy {
            let now = self.clock.monotonic();
            self.failures
                .check(&pair, now)
                .and_then(|()| self.failures_of_address.check(&prefix, now))
                .map_err(too_many_failures)?;
        }
        let proved = prove.await;
        let now = self.clock.monotonic();
        match &proved {
            Ok(client) => self
                .requests
                .take(&client.client_id, now)
                .map_err(too_many_requests)?,
            Err(error) if error.code() == ErrorCode::InvalidClient && !origin.is_proxy => {
                self.failures.count(&pair, now);
                self.failures_of_address.count(&prefix, now);
            }
            // Our failure, not theirs; or nobody's in particular.
            Err(_) => {}
        }
        proved
    }
}

fn too_many_failures(wait: RetryAfter) -> OAuthError {
    OAuthError::too_often(
        wait,
        "client authentication failed too often from this address",
    )
}

fn too_many_requests(wait: RetryAfter) -> OAuthError {
    OAuthError::too_often(wait, "the client asks too often")
}
