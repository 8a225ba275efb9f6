//! What goes on in the background besides `sync`.

use std::{error::Error, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Context, StartError, within};
use crate::{
    admin::{AdminError, key::KeyAdmin},
    clock::{AgreedClock, Timestamp},
    domain::{
        self,
        id::{FamilyId, NodeId},
        key::KeyUse,
    },
    keys::{lifecycle::LONGEST_TOKEN_LIFE, master::MasterKeySource},
    metrics::Metrics,
    oauth::logout::notices::{LogoutNotifier, Telling},
    registry::Snapshots,
    store::{Bounds, Store, StoreError},
    telemetry,
};

/// How long the database may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long making the next keys may take: an RSA key has to be searched for, on a busy machine for
/// seconds.
const MAKING: Duration = Duration::from_mins(1);

/// The longest time between two looks at the schedule.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How often the sweeper looks for something to delete.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(30);

/// How long the sweeper rests between two batches.
const BETWEEN_BATCHES: Duration = Duration::from_millis(50);

/// How often somebody looks whether clients are to be told something.
const BETWEEN_NOTICES: Duration = Duration::from_secs(1);

/// How many rows of a kind a batch deletes at most.
const SWEEP: u32 = 500;

/// How many families a step of the walk looks at.
const STEP: u32 = 500;

/// How long the walk rests between two steps: it is in no hurry.
const BETWEEN_STEPS: Duration = Duration::from_millis(500);

/// How many steps the walk goes until what can be found by an index has its turn again.
const STEPS: usize = 20;

/// How long a family that has ended is kept, beyond the life of its last access token: whoever asks
/// why a user was signed out gets an answer.
const KEEP_FAMILIES: Duration = Duration::from_hours(30 * 24);

/// How long changes are kept: a node that was cut off for longer reads everything again.
const KEEP_CHANGES: Duration = Duration::from_hours(24);

/// Makes the next key in time. Every node runs this; one of them gets through.
pub(super) async fn key_schedule(
    keys: KeyAdmin,
    snapshots: Arc<Snapshots>,
    stop: CancellationToken,
) {
    let leads = KeyUse::ALL
        .iter()
        .map(|key_use| keys.policy.spans(*key_use).lead);
    let pause = leads
        .map(|lead| lead / 4)
        .fold(LONGEST_PAUSE, Duration::min);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = keys.clock.sleep(pause) => {}
        }
        let now = keys.clock.now();
        let is_complete = !snapshots.ring().lacks_key(&keys.policy, now)
            && !snapshots.mac_ring().lacks_key(&keys.policy, now);
        if is_complete {
            continue;
        }
        let made = tokio::select! {
            () = stop.cancelled() => return,
            made = within(&keys.clock, MAKING, keys.ensure()) => made,
        };
        let problem = match made {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => telemetry::chain(&error),
            Err(error) => telemetry::chain(&error),
        };
        tracing::warn!(
            error = problem,
            "the next key could not be made; trying again"
        );
    }
}

/// Deletes what is over. Every node runs this; they share the work.
pub(super) async fn sweeper(
    store: Arc<dyn Store>,
    clock: AgreedClock,
    metrics: Metrics,
    keep_events: Option<Duration>,
    stop: CancellationToken,
) {
    let mut trouble = None;
    let mut walked = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(BETWEEN_SWEEPS) => {}
        }
        let now = clock.now();
        let bounds = Bounds {
            now,
            changes_before: now.minus(KEEP_CHANGES),
            events_before: keep_events.map(|span| now.minus(span)),
            families_before: now.minus(LONGEST_TOKEN_LIFE).minus(KEEP_FAMILIES),
        };
        let sweeping = async {
            let swept = sweep(&*store, &clock, &bounds).await;
            // What fails of one must not keep the other from its work.
            let walked = walk(&*store, &clock, bounds.families_before, &mut walked).await;
            swept.and(walked)
        };
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = sweeping => swept,
        };
        metrics.sweep_ended(swept.is_ok());
        let now_in_trouble = swept.err();
        if let Some(error) = &now_in_trouble
            && trouble != now_in_trouble
        {
            tracing::warn!(error, "what is over cannot be deleted; trying again");
        }
        trouble = now_in_trouble;
    }
}

/// Deletes all that is over and found by an index, one batch after the other with a pause: requests go first.
async fn sweep(store: &dyn Store, clock: &AgreedClock, bounds: &Bounds) -> Result<(), String> {
    loop {
        let swept = within(clock, ANSWER, store.sweep(bounds, SWEEP)).await;
        let swept = swept.map_err(|error| telemetry::chain(&error))?;
        if !swept
            .map_err(|error| telemetry::chain(&error))?
            .is_full(SWEEP)
        {
            return Ok(());
        }
        clock.sleep(BETWEEN_BATCHES).await;
    }
}

/// Goes on with the walk through all families from where it is, `walked`, deleting those that ended
/// before some moment: a number of steps, or to the end.
///
/// A node that starts begins anew; what it has not come to is found by another walk, or by the index
/// of the absolute expiry.
async fn walk(
    store: &dyn Store,
    clock: &AgreedClock,
    before: Timestamp,
    walked: &mut Option<FamilyId>,
) -> Result<(), String> {
    for _ in 0..STEPS {
        let step = within(clock, ANSWER, store.sweep_families(*walked, before, STEP)).await;
        let step = step.map_err(|error| telemetry::chain(&error))?;
        *walked = step.map_err(|error| telemetry::chain(&error))?.next;
        if walked.is_none() {
            break;
        }
        clock.sleep(BETWEEN_STEPS).await;
    }
    Ok(())
}

/// Tells clients that their users have been signed out. Every node runs this; they share the work.
pub(super) async fn logout_notices(notifier: Arc<LogoutNotifier>, stop: CancellationToken) {
    let mut is_in_trouble = false;
    // What is under way when the node stops is told by another one, when its lease is over.
    let mut telling = Telling::default();
    loop {
        let settled = tokio::select! {
            () = stop.cancelled() => return,
            () = notifier.clock.sleep(BETWEEN_NOTICES) => Ok(()),
            // There may be more for the same client.
            settled = telling.next() => settled,
        };
        let begun = tokio::select! {
            () = stop.cancelled() => return,
            begun = notifier.begin(&mut telling) => begun,
        };
        let told = settled.and(begun);
        if let Err(error) = &told
            && !is_in_trouble
        {
            tracing::warn!(
                error = telemetry::chain(error),
                "clients cannot be told of logouts; trying again"
            );
        }
        is_in_trouble = told.is_err();
    }
}

/// The sign of life of this process.
pub(super) struct Node {
    id: NodeId,
    name: String,
    store: Arc<dyn Store>,
    masters: MasterKeySource,
    clock: AgreedClock,
    heartbeat: Duration,
}

impl Node {
    pub(super) fn new(context: &Context) -> Result<Self, StartError> {
        let id = context
            .entropy
            .uuid_v7(context.clock.now())
            .map_err(AdminError::Entropy)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = match host.trim() {
            "" => "node",
            host => host,
        };
        Ok(Self {
            id: NodeId::from_uuid(id),
            name: format!("{host}:{}", std::process::id()),
            store: Arc::clone(&context.store),
            masters: context.config.master_keys.clone(),
            clock: context.clock.clone(),
            heartbeat: context.config.heartbeat,
        })
    }

    /// Reports once that this process lives and which master keys it holds.
    ///
    /// A node that cannot read its master keys still reports, as one that holds none: it must not
    /// pass for one that has stopped.
    pub(super) async fn report(&self) -> Result<(), StoreError> {
        let master_keys = match self.masters.load() {
            Ok(masters) => masters.ids().collect(),
            Err(error) => {
                tracing::warn!(
                    error = telemetry::chain(&error),
                    "the master keys cannot be read"
                );
                Vec::new()
            }
        };
        let node = domain::node::Node {
            id: self.id,
            name: self.name.clone(),
            master_keys,
            seen_at: self.clock.now(),
        };
        self.store.heartbeat(&node).await
    }

    /// Goes on reporting until `stop` is cancelled, then takes its leave.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.clock.sleep(self.heartbeat) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                reported = within(&self.clock, ANSWER, self.report()) => match reported {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => unreported(&error),
                    Err(error) => unreported(&error),
                }
            }
        }
        if let Err(error) = self.store.forget_node(self.id).await {
            tracing::debug!(error = telemetry::chain(&error), "could not take leave");
        }
    }
}

/// The trouble itself is logged by `sync`.
fn unreported(error: &dyn Error) {
    tracing::debug!(
        error = telemetry::chain(error),
        "no sign of life could be given"
    );
}
