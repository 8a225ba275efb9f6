//! Telling clients that their users have been signed out (`OpenID` Connect Back-Channel Logout 1.0).
//!
//! What is to be told stands in the database, written by whatever has ended a sign-in, in the same
//! transaction. Nobody who signs out waits for a client.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    future,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::{Id, JoinSet};
use url::Url;

use crate::{
    clock::AgreedClock,
    domain::{
        change::{Cause, Change, EventType},
        client::{Client, IdTokenAlg},
        id::ClientId,
        logout_notice::{Hopeless, LogoutNotice, NoticeClaim, Settling},
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

/// How many notices a node is about to deliver at once.
const AT_ONCE: u32 = 64;

/// How many of them to one client: one that does not answer leaves room for the others.
const AT_ONCE_TO_A_CLIENT: u32 = 4;

/// How long nobody else sets out to tell what somebody has set out to tell: longer than a client may
/// take to answer.
const LEASE: Duration = Duration::from_mins(5);

/// How long a client that does not answer is tried.
const PATIENCE: Duration = Duration::from_hours(24);

/// How often at least: it may be this service that was down for all that time.
const FEWEST_ATTEMPTS: u32 = 5;

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
    sid: String,
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

/// What a node is telling clients at the moment: one turn for each client. Ends when it is dropped.
#[derive(Default)]
pub struct Telling {
    turns: JoinSet<Result<(), StoreError>>,
    /// To whom, and how many notices.
    clients: HashMap<Id, (ClientId, u32)>,
}

impl Telling {
    /// Waits until a client had its turn; for ever while none has one.
    ///
    /// # Errors
    /// What the database could not do; what was not settled is told again when its lease is over.
    pub async fn next(&mut self) -> Result<(), StoreError> {
        let (id, result) = match self.turns.join_next_with_id().await {
            None => return future::pending().await,
            Some(Ok(ended)) => ended,
            Some(Err(failed)) => (failed.id(), Ok(())),
        };
        self.clients.remove(&id);
        result
    }
}

impl LogoutNotifier {
    /// Begins to tell what is due, each client by itself: nobody waits for one that is slow.
    ///
    /// # Errors
    /// What the database could not do.
    pub async fn begin(self: &Arc<Self>, telling: &mut Telling) -> Result<(), StoreError> {
        let now = self.clock.now();
        let under_way: u32 = telling.clients.values().map(|(_, count)| count).sum();
        let claim = NoticeClaim {
            limit: AT_ONCE.saturating_sub(under_way),
            limit_of_a_client: AT_ONCE_TO_A_CLIENT,
            except: telling.clients.values().map(|(id, _)| id.clone()).collect(),
            lease_until: now.plus(LEASE),
        };
        let claiming = self.store.claim_notices(&claim, now);
        let claimed = store::in_time(&self.clock, claiming).await?;
        self.metrics.logout_notices_waiting(claimed.waiting);
        let mut turns: BTreeMap<ClientId, Vec<LogoutNotice>> = BTreeMap::new();
        for notice in claimed.notices {
            let turn = turns.entry(notice.client_id.clone()).or_default();
            turn.push(notice);
        }
        for (client, notices) in turns {
            let count = u32::try_from(notices.len()).unwrap_or(u32::MAX);
            let turn = telling.turns.spawn(Arc::clone(self).turn(notices));
            telling.clients.insert(turn.id(), (client, count));
        }
        Ok(())
    }

    /// Tells a client several things at once.
    async fn turn(self: Arc<Self>, notices: Vec<LogoutNotice>) -> Result<(), StoreError> {
        let count = notices.len();
        let telling = notices.into_iter().map(|notice| self.tried(notice));
        let mut told = Ok(());
        let mut failed = Vec::new();
        for outcome in join_all(telling).await {
            match outcome {
                Ok(problem) => failed.extend(problem),
                Err(error) => told = Err(error),
            }
        }
        // A client that has taken something is there: nothing else of it has to wait, or is hopeless.
        let is_silent = failed.len() == count;
        for (notice, problem) in failed {
            let noted = self.note(notice, &problem, is_silent).await;
            // Whoever sees the count finds the notice as it says.
            self.metrics.logout_notice("failed");
            told = told.and(noted);
        }
        told
    }

    /// Tells a client one thing; with what was in the way, if it is to be told once more.
    async fn tried(
        &self,
        notice: LogoutNotice,
    ) -> Result<Option<(LogoutNotice, Untold)>, StoreError> {
        let (outcome, noted) = match self.wish_of(&notice.client_id).await? {
            None => ("unwanted", self.settle(&notice, Settling::Forget).await),
            Some(wish) => match self.tell(&wish, &notice).await {
                Ok(()) => ("delivered", self.settle(&notice, Settling::Forget).await),
                Err(Untold::Refused) => {
                    let (event, problem) = (EventType::LogoutNoticeRefused, &Untold::Refused);
                    ("refused", self.drop(notice, None, event, problem).await)
                }
                Err(problem) => return Ok(Some((notice, problem))),
            },
        };
        self.metrics.logout_notice(outcome);
        noted.map(|()| None)
    }

    /// Puts off what a client did not take, or gives it up; with all else that is due for one that
    /// takes nothing.
    async fn note(
        &self,
        notice: LogoutNotice,
        problem: &Untold,
        is_silent: bool,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let next = now.plus(pause(notice.attempts));
        let has_time = next < notice.created_at.plus(PATIENCE);
        if has_time || notice.attempts < FEWEST_ATTEMPTS {
            report(&notice, problem);
            let settling = if is_silent {
                Settling::PutOffAll(next)
            } else {
                Settling::PutOff(next)
            };
            return self.settle(&notice, settling).await;
        }
        self.metrics.logout_notice("dropped");
        // However many have piled up meanwhile: they would be tried a few at a time.
        let hopeless = is_silent.then_some(Hopeless {
            until: next.minus(PATIENCE),
            attempts: FEWEST_ATTEMPTS,
        });
        let event = EventType::LogoutNoticeDropped;
        self.drop(notice, hopeless, event, problem).await
    }

    /// Gives up telling a client something.
    async fn drop(
        &self,
        notice: LogoutNotice,
        hopeless: Option<Hopeless>,
        event: EventType,
        problem: &Untold,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let change = Change::DropNotice {
            notice: Box::new(notice),
            hopeless,
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

    async fn settle(&self, notice: &LogoutNotice, settling: Settling) -> Result<(), StoreError> {
        let now = self.clock.now();
        let settling = self.store.settle_notice(notice, settling, now);
        store::in_time(&self.clock, settling).await
    }

    /// Where a client wants to be told, and by what signature; none is gone, or does not want to hear of
    /// it any more.
    async fn wish_of(&self, client: &ClientId) -> Result<Option<(Url, IdTokenAlg)>, StoreError> {
        let wish = |client: &Client| {
            let uri = client.backchannel_logout_uri.as_deref()?;
            Some((Url::parse(uri).ok()?, client.id_token_alg))
        };
        let registry = self.snapshots.registry().clone();
        let known = registry.client(client).and_then(|client| wish(client));
        if known.is_some() {
            return Ok(known);
        }
        // Somebody has written a notice for it: it may be newer than what this node has read.
        let reading = self.store.client(client);
        let client = store::in_time(&self.clock, reading).await?;
        Ok(client.as_ref().and_then(wish))
    }

    async fn tell(
        &self,
        (uri, alg): &(Url, IdTokenAlg),
        notice: &LogoutNotice,
    ) -> Result<(), Untold> {
        let token = self.logout_token(notice, *alg)?;
        let form = [("logout_token", &*token)];
        let posting = self.outbound.post(uri, &form).await;
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
            sid: notice.family.to_string(),
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
