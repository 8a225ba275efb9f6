//! Telling clients that their users have been signed out (`OpenID` Connect Back-Channel Logout 1.0).
//!
//! What is to be told stands in the database, written by whatever has ended a sign-in, in the same
//! transaction. Nobody who signs out waits for a client.

use std::{error::Error, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use url::Url;

use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        client::IdTokenAlg,
        logout_notice::LogoutNotice,
    },
    entropy::{Entropy, EntropyError},
    keys::{ring::NoIdTokenKey, signer::SignError},
    metrics::Metrics,
    outbound::{FetchError, Outbound},
    registry::Snapshots,
    store::{self, Store, StoreError},
};

/// What a logout token says that it is (Back-Channel Logout §2.4).
const TYP: &str = "logout+jwt";

/// Its one event.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// How long a logout token is good: "preferably at most two minutes in the future" (§2.4).
const LIFE_SECONDS: i64 = 120;

/// How many clients are told at once by a node.
const AT_ONCE: u32 = 16;

/// How long nobody else sets out to tell what somebody has set out to tell: longer than a client may
/// take to answer.
const LEASE: Duration = Duration::from_mins(5);

/// How long a client that does not answer is tried.
const PATIENCE: Duration = Duration::from_hours(24);

/// How long a client is left alone that has not answered so often.
fn pause(attempts: u32) -> Duration {
    Duration::from_secs(match attempts {
        0 | 1 => 10,
        2 => 60,
        3 => 5 * 60,
        4 => 15 * 60,
        5 => 30 * 60,
        _ => 60 * 60,
    })
}

/// The claims of a logout token (§2.4). Never a `nonce`: so that it passes for no ID Token.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
    events: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
}

/// Why a client was not told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    /// It has understood, and will not hear of it (§2.8): it is not told again.
    #[error("the client refused the notice")]
    Refused,
    /// It answered otherwise.
    #[error("the client answered with status {0}")]
    Status(u16),
    /// It did not answer.
    #[error("the client could not be reached")]
    Unreachable(#[source] FetchError),
    /// There is no key to sign with, or none for what the client wants.
    #[error(transparent)]
    NoKey(#[from] NoIdTokenKey),
    /// No randomness.
    #[error("there is no randomness")]
    Entropy(#[from] EntropyError),
    /// The token could not be signed.
    #[error("the logout token could not be signed")]
    Sign(#[from] SignError),
    /// The token could not be written.
    #[error("the logout token could not be written")]
    Claims(#[from] serde_json::Error),
}

/// Tells clients that their users have been signed out.
pub struct LogoutNotifier {
    /// This issuer's identifier.
    pub issuer: String,
    /// What is to be told.
    pub store: Arc<dyn Store>,
    /// Clients and keys.
    pub snapshots: Arc<Snapshots>,
    /// The way to clients.
    pub outbound: Outbound,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws the ids of tokens.
    pub entropy: Entropy,
    /// Counts.
    pub metrics: Metrics,
}

impl LogoutNotifier {
    /// Tells what is due, each client by itself; whether there may be more that is due.
    ///
    /// # Errors
    /// What the database could not do; what was not settled is told again when its lease is over.
    pub async fn round(self: &Arc<Self>) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let claiming = self.store.claim_notices(AT_ONCE, now.plus(LEASE), now);
        let claimed = store::in_time(&self.clock, claiming).await?;
        self.metrics.logout_notices_waiting(claimed.waiting);
        let is_full = u32::try_from(claimed.notices.len()) == Ok(AT_ONCE);
        let mut telling = JoinSet::new();
        for notice in claimed.notices {
            let this = Arc::clone(self);
            telling.spawn(async move { this.settle(notice).await });
        }
        let mut result = Ok(is_full);
        while let Some(told) = telling.join_next().await {
            if let Ok(Err(error)) = told {
                result = Err(error);
            }
        }
        result
    }

    /// Tells a client, and notes what has come of it.
    async fn settle(&self, notice: LogoutNotice) -> Result<(), StoreError> {
        let (outcome, problem) = match self.tell(&notice).await {
            Ok(()) => ("delivered", None),
            Err(problem @ Untold::Refused) => ("refused", Some(problem)),
            Err(problem) => ("failed", Some(problem)),
        };
        self.metrics.logout_notice(outcome);
        let now = self.clock.now();
        let Some(problem) = problem else {
            return self.put_off(&notice, None).await;
        };
        let next = now.plus(pause(notice.attempts));
        let is_refused = matches!(problem, Untold::Refused);
        if !is_refused && next < notice.created_at.plus(PATIENCE) {
            report(&notice, &problem);
            return self.put_off(&notice, Some(next)).await;
        }
        let event = if is_refused {
            EventType::LogoutNoticeRefused
        } else {
            self.metrics.logout_notice("dropped");
            EventType::LogoutNoticeDropped
        };
        let change = Change::DropNotice {
            notice: Box::new(notice),
            event,
            problem: problem.to_string(),
        };
        let cause = Cause::system();
        let applying = self.store.apply(&change, &cause, now);
        match store::in_time(&self.clock, applying).await {
            Ok(_) | Err(StoreError::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn put_off(
        &self,
        notice: &LogoutNotice,
        due_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let putting_off = self.store.put_off_notice(notice.id, due_at);
        store::in_time(&self.clock, putting_off).await
    }

    async fn tell(&self, notice: &LogoutNotice) -> Result<(), Untold> {
        let registry = self.snapshots.registry().clone();
        // A client that is gone, or does not want to hear of it any more, is not told.
        let Some(client) = registry.client(&notice.client_id) else {
            return Ok(());
        };
        let uri = client.backchannel_logout_uri.as_deref();
        let Some(uri) = uri.and_then(|uri| Url::parse(uri).ok()) else {
            return Ok(());
        };
        let token = self.logout_token(notice, client.id_token_alg)?;
        let form = [("logout_token", &*token)];
        let posting = self.outbound.post(&uri, &form).await;
        match posting.map_err(Untold::Unreachable)? {
            // "the HTTP response code 200 OK … some Web frameworks will substitute … 204" (§2.8).
            200 | 204 => Ok(()),
            400 => Err(Untold::Refused),
            status => Err(Untold::Status(status)),
        }
    }

    fn logout_token(&self, notice: &LogoutNotice, alg: IdTokenAlg) -> Result<String, Untold> {
        let now = self.clock.now();
        let iat = now.seconds();
        let claims = Claims {
            iss: &self.issuer,
            sub: notice.subject.to_string(),
            aud: notice.client_id.as_str(),
            iat,
            exp: iat + LIFE_SECONDS,
            // Each attempt has another one: a client may remember those it has seen.
            jti: self.entropy.uuid_v7(now)?.to_string(),
            events: json!({ EVENT: {} }),
            sid: notice.family.map(|family| family.to_string()),
        };
        let payload = serde_json::to_vec(&claims)?;
        let ring = self.snapshots.ring();
        // "logout tokens are signed … as ID Tokens are" (§2.4), for this client.
        let key = ring.id_token_key(alg, now)?;
        Ok(key.sign(TYP, &payload)?)
    }
}

fn report(notice: &LogoutNotice, problem: &Untold) {
    let client = notice.client_id.as_str();
    let cause: &dyn Error = problem;
    tracing::info!(
        client,
        cause,
        "a client was not told of a logout; trying again"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_answer_is_left_alone_for_longer_and_longer() {
        let pauses: Vec<u64> = (1..9).map(|attempts| pause(attempts).as_secs()).collect();
        assert_eq!(pauses, [10, 60, 300, 900, 1800, 3600, 3600, 3600]);
        assert!(pauses.is_sorted());
    }
}
