//! Refresh tokens as clients see them: read, verified and minted without the database.

use std::{sync::Arc, time::Duration};

use super::error::{ErrorCode, OAuthError};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        family::{Family, Terms},
        refresh_token::RefreshToken,
    },
    keys::mac::MacError,
    registry::Snapshots,
};

/// How long a key that is not known here may let a request wait.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Makes and verifies refresh tokens, on the terms of the settings.
#[derive(Clone)]
pub struct RefreshTokens {
    /// The MAC keys.
    pub snapshots: Arc<Snapshots>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// For how long a family lives without being refreshed.
    pub idle: Duration,
    /// For how long a family lives in any case.
    pub lifetime: Duration,
    /// How long after its issue an access token may still be accepted somewhere.
    pub token_retention: Duration,
}

impl RefreshTokens {
    /// What a refresh token says, if this service has minted it. The database is not asked: whoever
    /// makes tokens up costs no query and can change nothing.
    ///
    /// A key that is not known here may be newer than what this node has read: it reads once more,
    /// together with all others who wait.
    ///
    /// # Security
    /// Whoever sends the request chooses `text`.
    ///
    /// # Errors
    /// `invalid_grant` for a token that was never minted, or whose key counts no more; 503 when nobody
    /// can tell.
    pub async fn verify(&self, text: &str) -> Result<RefreshToken, OAuthError> {
        let verify = || self.snapshots.mac_ring().verify(text, self.clock.now());
        let verified = match verify() {
            Err(MacError::UnknownKey) => {
                let is_current = self.renewed().await;
                match verify() {
                    Err(MacError::UnknownKey) if !is_current => return Err(no_key()),
                    verified => verified,
                }
            }
            verified => verified,
        };
        verified.map_err(|error| match error {
            MacError::Malformed(_) | MacError::UnknownKey | MacError::Forged => unknown_token(),
            MacError::KeyGone => key_gone(),
        })
    }

    /// The same for whoever asks about a text that may be anything: none for what is no good refresh
    /// token of this service.
    ///
    /// # Errors
    /// 503 when nobody can tell.
    pub async fn genuine(&self, text: &str) -> Result<Option<RefreshToken>, OAuthError> {
        match self.verify(text).await {
            Ok(token) => Ok(Some(token)),
            Err(error) if error.code() == ErrorCode::InvalidGrant => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The refresh token that a family is at: always the same text for the same counter.
    ///
    /// # Errors
    /// 503 when the key is not known here, `invalid_grant` when it counts no more.
    pub async fn current(&self, family: &Family) -> Result<String, OAuthError> {
        let counter = u64::try_from(family.counter).map_err(OAuthError::internal)?;
        let mint = || {
            let ring = self.snapshots.mac_ring();
            let key = ring.find(family.mac_version, self.clock.now())?;
            Ok(key.mint(family.id, counter))
        };
        let minted = match mint() {
            Err(MacError::UnknownKey) => {
                self.renewed().await;
                mint()
            }
            minted => minted,
        };
        minted.map_err(|error| match error {
            MacError::UnknownKey => no_key(),
            MacError::KeyGone => key_gone(),
            MacError::Malformed(_) | MacError::Forged => OAuthError::internal(error),
        })
    }

    /// The terms on which families are opened and refreshed at `now`; none without a key.
    pub fn terms(&self, now: Timestamp) -> Option<Terms> {
        let mac_version = self.snapshots.mac_ring().active(now)?.version;
        Some(Terms {
            mac_version,
            idle: self.idle,
            tokens_die_at: now.plus(self.token_retention),
        })
    }

    /// Waits for one look at the database: whether it succeeded in time.
    async fn renewed(&self) -> bool {
        tokio::select! {
            renewed = self.snapshots.freshness.renewed() => renewed,
            () = self.clock.sleep(LONGEST_WAIT) => false,
        }
    }
}

/// The refusal of a token that this service does not know.
pub(super) const fn unknown_token() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidGrant,
        "unknown_token",
        "the refresh token is none of this service, or its session is long over",
    )
}

/// The refusal where there is no key to mint refresh tokens with.
pub(super) const fn no_key() -> OAuthError {
    OAuthError::new(
        ErrorCode::TemporarilyUnavailable,
        "no_key",
        "the service has no key for refresh tokens",
    )
}

const fn key_gone() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidGrant,
        "key_revoked",
        "the key of the refresh token was taken out of use; sign in again",
    )
}
