//! Group commit: presented refresh tokens wait here while the database is busy with those before
//! them, and then go to it together, in one transaction.
//!
//! There is no timer: a lone caller waits for nothing, and how many share a transaction follows
//! from how long the one before takes. One task, the [`RotationWorker`], does the work; whoever
//! waits may go away at any moment, and then a refresh that has not begun is left out.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    error::{ErrorCode, OAuthError},
    grants::refresh_token,
    refresh_tokens::{self, RefreshTokens},
};
use crate::{
    clock::Timestamp,
    domain::{
        family::{Intent, Outcome, Presentation, Turn, Verdict},
        id::{ClientId, FamilyId},
    },
    metrics::Metrics,
    store::{ANSWER, Store, StoreError},
    throttle::RetryAfter,
};

/// How many presentations of one family wait at most, not counting those that share a verdict.
const DEEPEST: usize = 8;

/// How many callers wait at most.
const MOST_CALLERS: usize = 4096;

/// How many families go into one transaction at most.
const LARGEST_BATCH: usize = 256;

/// When whoever presents the tokens of one family too often may come back.
const COME_BACK: RetryAfter = RetryAfter::new(Duration::from_secs(1));

/// What a presentation has led to, and the now it was judged with.
type Judged = (Outcome, Timestamp);

/// Where presented refresh tokens wait for their verdict. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RotationQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

/// Where a presentation waits: with the others of its client about the family. Whoever presents a
/// token of somebody else takes no place away.
type Place = (FamilyId, ClientId);

/// What waits. Each family stands in `turns` once while it has something in `families`.
#[derive(Debug, Default)]
struct Waiting {
    turns: VecDeque<Place>,
    families: HashMap<Place, VecDeque<Item>>,
    callers: usize,
    is_closed: bool,
}

/// A presentation to be judged once.
#[derive(Debug)]
struct Item {
    presented: Presentation,
    is_strict: bool,
    callers: Vec<oneshot::Sender<Result<Judged, Failure>>>,
}

impl Item {
    /// Whether whoever presents this may share the verdict: it is the same token, client, key and
    /// request. Where a client's policy is strict, a token that comes twice has been stolen.
    fn is_for(&self, presented: &Presentation, is_strict: bool) -> bool {
        let Presentation {
            family,
            counter,
            mac_version,
            client_id,
            dpop_jkt,
            intent,
            cause: _,
        } = &self.presented;
        !is_strict
            && !self.is_strict
            && *family == presented.family
            && *counter == presented.counter
            && *mac_version == presented.mac_version
            && *client_id == presented.client_id
            && *dpop_jkt == presented.dpop_jkt
            && *intent == presented.intent
    }
}

impl Item {
    /// Whether it is a refresh that nobody waits for. The end of a family is wished for in any case.
    fn is_abandoned(&self) -> bool {
        matches!(self.presented.intent, Intent::Refresh { .. })
            && self.callers.iter().all(oneshot::Sender::is_closed)
    }
}

/// Why there is no verdict: all callers of a batch share it.
#[derive(Clone, Debug)]
enum Failure {
    NoKey,
    Store(Arc<StoreError>),
    TimedOut,
}

impl Failure {
    fn into_error(self) -> OAuthError {
        match self {
            Self::NoKey => refresh_tokens::no_key(),
            Self::Store(error) => OAuthError::of_store(error),
            Self::TimedOut => OAuthError::no_database(),
        }
    }
}

impl RotationQueue {
    /// Has a token judged, and returns the verdict with the now it was judged with. What the verdict
    /// changes is in the database by then. If the caller goes away before its turn, a refresh is left
    /// out, and the end of a family is not.
    ///
    /// # Errors
    /// 429 when too many presentations of the family wait already; 503 when too many wait at all, or
    /// the database does not answer. Then nobody knows whether the token was judged: it may be
    /// presented again.
    pub async fn submit(
        &self,
        presented: Presentation,
        is_strict: bool,
    ) -> Result<Judged, OAuthError> {
        let verdict = self.waiting().enter(presented, is_strict)?;
        self.0.arrived.notify_one();
        match verdict.await {
            Ok(judged) => judged.map_err(Failure::into_error),
            // The worker has ended before its time.
            Err(_) => Err(OAuthError::no_database()),
        }
    }

    /// How many callers wait for their turn.
    pub fn len(&self) -> usize {
        self.waiting().callers
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // What waits is whole whenever its lock is free, also after a panic.
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn enter(
        &mut self,
        presented: Presentation,
        is_strict: bool,
    ) -> Result<oneshot::Receiver<Result<Judged, Failure>>, OAuthError> {
        if self.is_closed || self.callers >= MOST_CALLERS {
            return Err(OAuthError::new(
                ErrorCode::TemporarilyUnavailable,
                "busy",
                "too many requests wait for the database",
            ));
        }
        let place = (presented.family, presented.client_id.clone());
        let items = self.families.entry(place.clone()).or_default();
        let (caller, verdict) = oneshot::channel();
        let same = items
            .iter_mut()
            .find(|item| item.is_for(&presented, is_strict));
        if let Some(item) = same {
            item.callers.push(caller);
        } else if items.len() >= DEEPEST && matches!(presented.intent, Intent::Refresh { .. }) {
            return Err(OAuthError::too_often(
                COME_BACK,
                "too many refresh tokens of one session are presented at once",
            ));
        } else {
            if items.is_empty() {
                self.turns.push_back(place);
            }
            items.push_back(Item {
                presented,
                is_strict,
                callers: vec![caller],
            });
        }
        self.callers += 1;
        Ok(verdict)
    }

    /// The next batch: of each family what came first, in the order of their turns. A family with
    /// more goes to the end. Empty when nothing waits.
    ///
    /// A refresh that nobody waits for any more is left out: whoever has given up has presented the
    /// token again, perhaps elsewhere, and used what that brought. Judged now, it would pass for
    /// stolen.
    fn take(&mut self) -> Vec<Item> {
        let (mut batch, mut later) = (Vec::new(), Vec::new());
        while batch.len() < LARGEST_BATCH
            && let Some(place) = self.turns.pop_front()
        {
            let Entry::Occupied(mut items) = self.families.entry(place.clone()) else {
                continue;
            };
            while let Some(item) = items.get_mut().pop_front() {
                self.callers = self.callers.saturating_sub(item.callers.len());
                if !item.is_abandoned() {
                    batch.push(item);
                    break;
                }
            }
            if items.get().is_empty() {
                items.remove();
            } else {
                later.push(place);
            }
        }
        self.turns.extend(later);
        batch
    }
}

/// Judges what waits, batch after batch.
pub struct RotationWorker {
    /// What waits.
    pub queue: RotationQueue,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The terms.
    pub tokens: RefreshTokens,
    /// What is counted.
    pub metrics: Metrics,
}

impl RotationWorker {
    /// Works until `stop` is cancelled; then takes nothing more and judges what waits.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let batch = self.queue.waiting().take();
            if !batch.is_empty() {
                self.judge(batch).await;
                continue;
            }
            if self.queue.waiting().is_closed {
                return;
            }
            tokio::select! {
                () = self.queue.0.arrived.notified() => {}
                () = stop.cancelled() => self.queue.waiting().is_closed = true,
            }
        }
    }

    async fn judge(&self, batch: Vec<Item>) {
        let (presented, callers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|item| (item.presented, item.callers))
            .unzip();
        let now = self.tokens.clock.now();
        let verdicts = self.verdicts(&presented, now).await;
        self.metrics.rotated(presented.len());
        match verdicts {
            Ok(outcomes) => {
                for (outcome, callers) in outcomes.into_iter().zip(callers) {
                    raise_alarm(&outcome);
                    self.metrics.refresh_verdict(refresh_token::word(&outcome));
                    answer(callers, &Ok((outcome, now)));
                }
            }
            Err(failure) => {
                if matches!(failure, Failure::TimedOut) {
                    // Those who came meanwhile have waited for as long, and would wait on.
                    self.give_up(&failure);
                }
                for callers in callers {
                    answer(callers, &Err(failure.clone()));
                }
            }
        }
    }

    async fn verdicts(
        &self,
        presented: &[Presentation],
        now: Timestamp,
    ) -> Result<Vec<Outcome>, Failure> {
        let terms = self.tokens.terms(now).ok_or(Failure::NoKey)?;
        tokio::select! {
            outcomes = self.store.rotate(presented, &terms, now) => {
                outcomes.map_err(|error| Failure::Store(Arc::new(error)))
            }
            () = self.tokens.clock.sleep(ANSWER) => Err(Failure::TimedOut),
        }
    }

    fn give_up(&self, failure: &Failure) {
        loop {
            let batch = self.queue.waiting().take();
            if batch.is_empty() {
                return;
            }
            for item in batch {
                answer(item.callers, &Err(failure.clone()));
            }
        }
    }
}

/// A token that is ahead of its family shows that the database has forgotten commits, and with them
/// perhaps revocations.
fn raise_alarm(outcome: &Outcome) {
    if let Outcome::Judged {
        verdict: Verdict::Granted(Turn::Recovered),
        family,
        ..
    } = outcome
    {
        tracing::error!(
            family = %family.id,
            "a refresh token is ahead of the database, which has lost commits: see countersign restored"
        );
    }
}

/// Tells everybody who waits; whoever has gone is not missed.
fn answer(
    callers: Vec<oneshot::Sender<Result<Judged, Failure>>>,
    judged: &Result<Judged, Failure>,
) {
    for caller in callers {
        let _gone = caller.send(judged.clone());
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::change::Cause;

    fn refresh(family: u128, counter: i64) -> Presentation {
        Presentation {
            family: FamilyId::from_uuid(Uuid::from_u128(family)),
            counter,
            mac_version: 1,
            client_id: ClientId::parse("app").unwrap(),
            dpop_jkt: None,
            intent: Intent::Refresh {
                scope: None,
                resources: Vec::new(),
                offered: Vec::new(),
            },
            cause: Cause::system(),
        }
    }

    fn counters(batch: &[Item]) -> Vec<i64> {
        batch.iter().map(|item| item.presented.counter).collect()
    }

    #[test]
    fn a_family_takes_part_once_in_a_batch_and_then_again_in_its_turn() {
        let mut waiting = Waiting::default();
        let callers = [(1, 10), (1, 11), (2, 20), (1, 10)];
        let _callers = callers
            .map(|(family, counter)| waiting.enter(refresh(family, counter), false).unwrap());
        assert_eq!(waiting.callers, 4);
        // What is identical is judged once.
        let batch = waiting.take();
        assert_eq!(counters(&batch), [10, 20]);
        assert_eq!(batch[0].callers.len(), 2);
        assert_eq!(counters(&waiting.take()), [11]);
        assert!(waiting.take().is_empty() && waiting.callers == 0 && waiting.families.is_empty());
    }

    #[test]
    fn where_the_policy_is_strict_nothing_is_judged_once_for_two() {
        let mut waiting = Waiting::default();
        let _callers = [0, 1].map(|_| waiting.enter(refresh(1, 10), true).unwrap());
        assert_eq!(counters(&waiting.take()), [10]);
        assert_eq!(counters(&waiting.take()), [10]);
    }

    #[test]
    fn a_refresh_that_nobody_waits_for_is_left_out_and_the_end_of_a_family_is_not() {
        let mut waiting = Waiting::default();
        drop(waiting.enter(refresh(1, 10), false).unwrap());
        let _stays = waiting.enter(refresh(1, 11), false).unwrap();
        drop(waiting.enter(refresh(2, 20), false).unwrap());
        let end = Presentation {
            intent: Intent::Revoke,
            ..refresh(3, 30)
        };
        drop(waiting.enter(end, false).unwrap());
        assert_eq!(counters(&waiting.take()), [11, 30]);
        assert!(waiting.take().is_empty() && waiting.callers == 0);
        // However many have gone: what is behind them has its turn.
        for family in 0..1000 {
            drop(waiting.enter(refresh(family, 1), false).unwrap());
        }
        let _stays = waiting.enter(refresh(1000, 2), false).unwrap();
        assert_eq!(counters(&waiting.take()), [2]);
    }

    #[test]
    fn the_queue_of_a_family_is_eight_deep_and_all_of_them_are_bounded() {
        let mut waiting = Waiting::default();
        let family: Vec<_> = (0..8)
            .map(|counter| waiting.enter(refresh(1, counter), false).unwrap())
            .collect();
        let refused = waiting.enter(refresh(1, 8), false).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::TooOften);
        let others: Vec<_> = (family.len()..MOST_CALLERS)
            .map(|_| waiting.enter(refresh(1, 0), false).unwrap())
            .collect();
        let refused = waiting.enter(refresh(2, 0), false).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::TemporarilyUnavailable);
        assert_eq!(waiting.take()[0].callers.len(), 1 + others.len());
        waiting.enter(refresh(2, 0), false).unwrap();
    }
}
