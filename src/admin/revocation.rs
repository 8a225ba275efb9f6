//! Revoking access tokens.

use std::sync::Arc;

use super::{AdminError, FieldError};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change},
        id::ClientId,
    },
    keys::lifecycle::{LONGEST_TOKEN_LIFE, Policy},
    store::{Store, StoreError},
};

/// The longest `jti` taken, in bytes.
const LONGEST_JTI: usize = 256;

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every access token that a client holds.
    Client(ClientId),
    /// One access token.
    Token {
        /// Its `jti`.
        jti: String,
        /// Its `exp`: the entry is kept for as long as somebody may accept the token.
        expires_at: Timestamp,
    },
}

/// The use cases about revocations, and about what a restored backup has forgotten of them.
#[derive(Clone)]
pub struct RevocationAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// How long tokens live, and are accepted somewhere after that.
    pub policy: Policy,
}

impl RevocationAdmin {
    /// Revokes what `target` names. Every node knows of it within the poll interval.
    pub async fn revoke(&self, target: &Target, cause: &Cause) -> Result<(), AdminError> {
        let now = self.clock.now();
        let tokens_die_at = now.plus(self.policy.retention());
        let change = match target {
            Target::Client(client_id) => Change::RevokeClientTokens {
                client_id: client_id.clone(),
                tokens_die_at,
            },
            Target::Token { jti, expires_at } => {
                check_token(jti, *expires_at, now)?;
                Change::RevokeToken {
                    jti: jti.clone(),
                    client_id: None,
                    token_dies_at: expires_at.plus(self.policy.grace()),
                    tokens_die_at,
                }
            }
        };
        match self.store.apply(&change, cause, now).await {
            Err(StoreError::Conflict) => Err(AdminError::NotFound("client")),
            applied => Ok(applied.map(drop)?),
        }
    }

    /// Begins a new epoch after a backup was restored, so that every node reads everything again.
    ///
    /// Which tokens were revoked after the backup was made is forgotten, so that all issued so far
    /// are revoked, unless `keep_tokens`.
    pub async fn restored(&self, keep_tokens: bool, cause: &Cause) -> Result<(), AdminError> {
        let now = self.clock.now();
        let change = Change::Restore {
            keep_tokens,
            tokens_die_at: now.plus(self.policy.retention()),
        };
        self.store.apply(&change, cause, now).await?;
        Ok(())
    }
}

fn check_token(jti: &str, expires_at: Timestamp, now: Timestamp) -> Result<(), AdminError> {
    let mut errors = Vec::new();
    if jti.is_empty() || jti.len() > LONGEST_JTI || jti.contains('\0') {
        let detail = format!("must be 1 to {LONGEST_JTI} bytes without NUL");
        errors.push(FieldError::new("/jti", detail));
    }
    if expires_at <= now {
        errors.push(FieldError::new(
            "/expires_at",
            "has passed: nobody accepts the token any more",
        ));
    }
    if expires_at > now.plus(LONGEST_TOKEN_LIFE) {
        let detail = format!(
            "must be within the {} s that a token lives at most",
            LONGEST_TOKEN_LIFE.as_secs()
        );
        errors.push(FieldError::new("/expires_at", detail));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(AdminError::Invalid(errors))
    }
}
