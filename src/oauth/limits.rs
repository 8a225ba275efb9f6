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
/// only means to lock somebody out, harms nobody elsewhere; and nobody at the same address either
/// whose credentials are right as far as this node knows. A trusted proxy that does not tell for
/// whom it asks stands for everybody, so nothing is held against it.
#[derive(Debug)]
pub struct Limits {
    /// Failures of one address about one client; about none, if what it claims cannot be an id.
    pub failures: Throttle<(AddressPrefix, Option<ClientId>)>,
    /// Failures of one address about any client.
    pub failures_of_address: Throttle<AddressPrefix>,
    /// Requests of one client that has proved to be it: nobody else can use them up. Of a public
    /// client, which anybody can name, and of a proxy, which asks for whoever comes, those of one
    /// address.
    pub requests: Throttle<(Option<AddressPrefix>, ClientId)>,
    /// The time.
    pub clock: AgreedClock,
}

impl Limits {
    /// Authenticates a client by way of `prove`, unless there were too many failures before and it
    /// does not seem right.
    ///
    /// # Errors
    /// Those of `prove`; 429 without asking it after too many failures, or when the client has
    /// asked too often.
    ///
    /// # Security
    /// What does not seem right counts as failed until it has proved to be right. So not even those
    /// who ask all at once get more tries than the limit.
    ///
    /// A client that asks for others, each at an address of their own, is limited for each: one of them
    /// could use its requests up for all.
    pub async fn around(
        &self,
        origin: &Origin,
        claimed: &str,
        (seems_right, asks_for_others): (bool, bool),
        prove: impl Future<Output = Result<Arc<Client>, OAuthError>>,
    ) -> Result<Arc<Client>, OAuthError> {
        let prefix = AddressPrefix::from(origin.address);
        let pair = (prefix, ClientId::parse(claimed).ok());
        let begun = self.clock.monotonic();
        let is_taken = !seems_right && !origin.is_proxy;
        if is_taken {
            self.failures
                .take(&pair, begun)
                .map_err(too_many_failures)?;
            if let Err(wait) = self.failures_of_address.take(&prefix, begun) {
                self.failures.give_back(&pair, begun, begun);
                return Err(too_many_failures(wait));
            }
        }
        let proved = prove.await;
        let now = self.clock.monotonic();
        // Otherwise it is our failure, not theirs; or nobody's in particular.
        let has_failed = !origin.is_proxy
            && proved
                .as_ref()
                .is_err_and(|error| error.code() == ErrorCode::InvalidClient);
        if has_failed && !is_taken {
            self.failures.count(&pair, now);
            self.failures_of_address.count(&prefix, now);
        } else if is_taken && !has_failed {
            self.failures.give_back(&pair, begun, now);
            self.failures_of_address.give_back(&prefix, begun, now);
        }
        let client = proved?;
        let place = (client.is_public() || asks_for_others).then_some(prefix);
        self.requests
            .take(&(place, client.client_id.clone()), now)
            .map_err(too_many_requests)?;
        Ok(client)
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
