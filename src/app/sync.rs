//! Keeps the snapshots of this node up to date; nothing else replaces them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Context;
use crate::{
    admin::resource,
    clock::AgreedClock,
    domain::{
        change::{Changes, Position, Topic},
        id::ClientId,
        key::KeyUse,
    },
    entropy::Entropy,
    keys::{
        master::{MasterKeyError, MasterKeySource},
        ring::KeyRing,
        sealing::SealingError,
    },
    registry::{Registry, Snapshots},
    store::{Store, StoreError},
    telemetry,
};

/// How many changes are read at once.
const BATCH: u32 = 500;

/// How often requests may cause a look at the database, at most.
const BETWEEN_REQUESTED: Duration = Duration::from_millis(100);

/// A look at the database that has not ended by then has failed.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Why a look at the database failed. The snapshots stay as they were.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The database could not be read.
    #[error("setting database.url: {0}")]
    Store(#[from] StoreError),
    /// The master keys could not be read.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// A stored key does not open.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// The database did not answer in time.
    #[error("setting database.url: the database did not answer in time")]
    TimedOut,
}

/// Reads changes and updates the snapshots.
pub(super) struct Sync {
    source: Source,
    snapshots: Arc<Snapshots>,
    position: Position,
    poll: Duration,
}

/// What snapshots are made from.
struct Source {
    store: Arc<dyn Store>,
    masters: MasterKeySource,
    clock: AgreedClock,
    entropy: Entropy,
    issuer: String,
}

/// Measures how far this machine's clock is from the database's.
pub(super) async fn observe_clock(
    store: &dyn Store,
    clock: &AgreedClock,
) -> Result<(), StoreError> {
    if clock.follows_database() {
        let asked = clock.monotonic();
        let database = store.database_time().await?;
        clock.observe(database, clock.monotonic().saturating_sub(asked));
    }
    Ok(())
}

impl Sync {
    /// Takes the first snapshots.
    pub(super) async fn begin(context: &Context) -> Result<Self, SyncError> {
        let source = Source {
            store: Arc::clone(&context.store),
            masters: context.config.master_keys.clone(),
            clock: context.clock.clone(),
            entropy: context.entropy.clone(),
            issuer: context.issuer.clone(),
        };
        let read_at = source.clock.monotonic();
        let (position, registry, ring) = source.everything().await?;
        let snapshots = Arc::new(Snapshots::new(registry, ring, read_at));
        snapshots.freshness.begin();
        snapshots.freshness.finish(true);
        Ok(Self {
            source,
            snapshots,
            position,
            poll: context.config.policy.poll,
        })
    }

    /// What this task keeps up to date.
    pub(super) fn snapshots(&self) -> Arc<Snapshots> {
        Arc::clone(&self.snapshots)
    }

    /// Looks at the database whenever there may be something new, until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let snapshots = self.snapshots();
        let clock = self.source.clock.clone();
        let mut last = clock.monotonic();
        let mut was_up = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.source.store.changed() => {}
                () = clock.sleep(self.poll) => {}
                () = async {
                    snapshots.freshness.wanted().await;
                    clock.sleep((last + BETWEEN_REQUESTED).saturating_sub(clock.monotonic())).await;
                } => {}
            }
            last = clock.monotonic();
            snapshots.freshness.begin();
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = self.look() => result,
                () = clock.sleep(TIMEOUT) => Err(SyncError::TimedOut),
            };
            snapshots.freshness.finish(result.is_ok());
            match &result {
                Ok(()) if !was_up => tracing::info!("the database can be read again"),
                Err(error) if was_up => tracing::error!(
                    error = telemetry::chain(error),
                    "the database cannot be followed; answering from memory"
                ),
                Ok(()) | Err(_) => {}
            }
            was_up = result.is_ok();
        }
    }

    /// One look: reads what has changed and takes it in.
    async fn look(&mut self) -> Result<(), SyncError> {
        let source = &self.source;
        observe_clock(&*source.store, &source.clock).await?;
        loop {
            // What the reading shows is at least as new as the moment before it.
            let read_at = source.clock.monotonic();
            let changes = source
                .store
                .changes_since(self.position, BATCH, source.clock.now())
                .await?;
            let is_last = changes.rows.len() < BATCH as usize;
            let next = self.take_in(&changes).await?;
            self.position = next;
            if is_last {
                self.snapshots.confirm(read_at);
                return Ok(());
            }
        }
    }

    /// Takes changes in; returns the position they lead to.
    async fn take_in(&self, changes: &Changes) -> Result<Position, SyncError> {
        let source = &self.source;
        if changes.epoch != self.position.epoch {
            let (position, registry, ring) = source.everything().await?;
            self.snapshots.set_registry(registry);
            self.snapshots.set_ring(ring);
            return Ok(position);
        }
        let mut clients = BTreeSet::new();
        let (mut resources, mut keys) = (false, false);
        for row in &changes.rows {
            match row.topic {
                Topic::Client => clients.extend(ClientId::parse(&row.target)),
                Topic::Resource => resources = true,
                Topic::Keys => keys = true,
                // Read by the revocation feed.
                Topic::Revocation => {}
            }
        }
        if keys {
            self.snapshots.set_ring(source.ring().await?);
        }
        if resources || !clients.is_empty() {
            let mut registry = Registry::clone(&self.snapshots.registry());
            let mut updated = Vec::with_capacity(clients.len());
            for id in clients {
                let client = source.store.client(&id).await?;
                updated.push((id, client));
            }
            registry.update_clients(updated);
            if resources {
                let stored = source.store.resources().await?;
                registry
                    .set_resources(stored.into_iter().chain(resource::built_in(&source.issuer)));
            }
            self.snapshots.set_registry(registry);
        }
        Ok(Position {
            epoch: changes.epoch,
            seq: changes.rows.last().map_or(self.position.seq, |row| row.seq),
        })
    }
}

impl Source {
    async fn everything(&self) -> Result<(Position, Registry, KeyRing), SyncError> {
        let snapshot = self.store.snapshot().await?;
        let resources = snapshot
            .resources
            .into_iter()
            .chain(resource::built_in(&self.issuer));
        let registry = Registry::new(snapshot.clients, resources);
        let ring = KeyRing::open(&snapshot.schedule, &self.masters.load()?, &self.entropy)?;
        Ok((snapshot.position, registry, ring))
    }

    async fn ring(&self) -> Result<KeyRing, SyncError> {
        let schedule = self.store.key_schedule(KeyUse::Signing).await?;
        Ok(KeyRing::open(
            &schedule,
            &self.masters.load()?,
            &self.entropy,
        )?)
    }
}
