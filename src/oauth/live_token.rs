//! Judging this issuer's own access tokens, as introspection, revocation and the admin interface do.

use std::{sync::Arc, time::Duration};

use countersign_verifier::{AccessTokenClaims, Expectation, jws::Compact, verify};

use super::error::OAuthError;
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::id::ClientId,
    registry::Snapshots,
    revocation::RevocationSet,
};

/// By how much the clocks of two nodes may differ when a second begins, in seconds.
const LEEWAY_SECONDS: u64 = 1;

/// How long a refusal waits for a look at the database at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Tells tokens that are good from all others, from memory.
#[derive(Clone)]
pub struct LiveTokens {
    /// This issuer's identifier.
    pub issuer: String,
    /// `sync.offline_issuance_limit_seconds`.
    pub offline_limit: Duration,
    /// Clients and keys.
    pub snapshots: Arc<Snapshots>,
    /// What is revoked.
    pub revocations: Arc<RevocationSet>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
}

impl LiveTokens {
    /// The claims of an access token that is good now: signed by this issuer, neither expired nor
    /// revoked, of a client that exists and is enabled. Whom it is for is not asked.
    ///
    /// # Security
    /// Anything may stand in `token`.
    ///
    /// # Errors
    /// 503 when this node has not read the database for longer than the offline limit: the token
    /// could have been revoked long ago.
    pub fn find(&self, token: &str) -> Result<Option<AccessTokenClaims<'static>>, OAuthError> {
        if self.snapshots.age(self.clock.monotonic()) > self.offline_limit {
            return Err(OAuthError::offline());
        }
        Ok(self.judge(token))
    }

    /// The claims of a token that this issuer has signed for this audience, and that has not expired: its
    /// client may be new and not known here, and then a refusal has to wait for [`Self::renewed`].
    pub fn genuine(&self, token: &str, audience: String) -> Option<AccessTokenClaims<'static>> {
        let now = self.clock.now();
        let expected = Expectation {
            issuer: self.issuer.clone(),
            audience: Some(audience),
            leeway_seconds: 0,
        };
        let keys = self.snapshots.ring().key_set(now);
        let seconds = u64::try_from(now.seconds()).unwrap_or(0);
        verify(token, &keys, &expected, seconds).ok()
    }

    /// Waits for one look at the database that begins by now, a second at most.
    pub async fn renewed(&self) {
        tokio::select! {
            _renewed = self.snapshots.freshness.renewed() => {}
            () = self.clock.sleep(LONGEST_WAIT) => {}
        }
    }

    fn judge(&self, token: &str) -> Option<AccessTokenClaims<'static>> {
        let now = self.clock.now();
        let expected = Expectation {
            issuer: self.issuer.clone(),
            audience: None,
            leeway_seconds: LEEWAY_SECONDS,
        };
        let seconds = u64::try_from(now.seconds()).unwrap_or(0);
        let keys = self.snapshots.ring().key_set(now);
        let claims = verify(token, &keys, &expected, seconds).ok()?;
        // The leeway is for the beginning of a token's life, not for its end.
        let is_over = claims.exp <= seconds;
        let client_id = ClientId::parse(&claims.client_id).ok()?;
        let registry = self.snapshots.registry();
        let client = registry.client(&client_id)?;
        let issued_at = Timestamp::from_seconds(i64::try_from(claims.iat).ok()?);
        // The entry may have been forgotten by a node whose clock runs ahead; the client tells, too.
        let is_void = client
            .tokens_not_before
            .is_some_and(|not_before| issued_at < not_before);
        let compact = Compact::parse(token).ok()?;
        let kid = compact.header().kid()?;
        let is_revoked = self.revocations.covers(kid, &claims);
        (!is_over && !client.disabled && !is_void && !is_revoked).then_some(claims)
    }
}
