//! Keeps the snapshots of this node up to date; nothing else replaces them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Context, TimedOut, within};
use crate::{
    admin::resource,
    clock::AgreedClock,
    domain::{
        change::{Changes, Position, Topic},
        client::Client,
        id::ClientId,
        key::{KeySchedule, KeyUse},
        revocation::Revocation,
    },
    entropy::Entropy,
    keys::{
        mac::MacRing,
        master::{MasterKeyError, MasterKeySource},
        ring::{KeyRing, Rs256Ring},
        sealing::SealingError,
    },
    metrics::Metrics,
    registry::{Registry, Snapshots},
    revocation::RevocationSet,
    store::{Store, StoreError},
    telemetry,
};

/// How many changes are read at once.
const BATCH: u32 = 500;

/// How often requests may cause a look at the database, at most.
const BETWEEN_REQUESTED: Duration = Duration::from_millis(100);

/// How long the database may take to answer before its connections count as lost.
const ANSWER: Duration = Duration::from_secs(4);

/// How long it may take to read everything.
const EVERYTHING: Duration = Duration::from_mins(1);

/// Up to how many changed clients are read one by one.
const ONE_BY_ONE: usize = 20;

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
    #[error("setting database.url: {0}")]
    TimedOut(#[from] TimedOut),
}

/// Reads changes and updates the snapshots.
pub(super) struct Sync {
    source: Source,
    snapshots: Arc<Snapshots>,
    revocations: Arc<RevocationSet>,
    position: Position,
    poll: Duration,
}

/// What snapshots are made from.
struct Source {
    store: Arc<dyn Store>,
    masters: MasterKeySource,
    clock: AgreedClock,
    entropy: Entropy,
    metrics: Metrics,
    issuer: String,
    /// `keys.rs256_id_tokens`.
    rs256: bool,
    skew: Duration,
}

/// Snapshots of everything, as of one position.
struct Everything {
    position: Position,
    registry: Registry,
    ring: KeyRing,
    mac_ring: MacRing,
    revocations: Vec<Revocation>,
}

/// Measures how far this machine's clock is from the database's.
pub(super) async fn observe_clock(
    store: &dyn Store,
    clock: &AgreedClock,
    skew: Duration,
) -> Result<(), StoreError> {
    if clock.follows_database() {
        let asked = clock.monotonic();
        let database = store.database_time().await?;
        let before = clock.offset_ms();
        clock.observe(database, clock.monotonic().saturating_sub(asked));
        let offset_ms = clock.offset_ms();
        if Duration::from_millis(before.abs_diff(offset_ms)) > skew {
            tracing::warn!(
                offset_ms,
                before_ms = before,
                "the database's clock is further from this machine's than keys.clock_skew_seconds allows; \
                 its time is followed"
            );
        }
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
            metrics: context.metrics.clone(),
            issuer: context.issuer.clone(),
            rs256: context.config.rs256_id_tokens,
            skew: context.config.policy.clock_skew,
        };
        let read_at = source.clock.monotonic();
        let Everything {
            position,
            registry,
            ring,
            mac_ring,
            revocations: entries,
        } = source.everything().await?;
        let revocations = Arc::new(RevocationSet::default());
        revocations.replace(entries);
        source.metrics.followed_to(position.seq);
        let snapshots = Arc::new(Snapshots::new(registry, ring, mac_ring, read_at));
        snapshots.freshness.begin();
        snapshots.freshness.finish(true);
        Ok(Self {
            source,
            snapshots,
            revocations,
            position,
            poll: context.config.policy.poll,
        })
    }

    /// What this task keeps up to date.
    pub(super) fn snapshots(&self) -> Arc<Snapshots> {
        Arc::clone(&self.snapshots)
    }

    /// What this task keeps up to date about revoked tokens.
    pub(super) fn revocations(&self) -> Arc<RevocationSet> {
        Arc::clone(&self.revocations)
    }

    /// Looks at the database whenever there may be something new, until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let snapshots = self.snapshots();
        let clock = self.source.clock.clone();
        let mut last = clock.monotonic();
        let mut trouble = None;
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
            };
            snapshots.freshness.finish(result.is_ok());
            // With the connection of this look others may be lost, also the one on which changes are
            // heard of: nothing would ever be heard on it again.
            if let Err(SyncError::TimedOut(_) | SyncError::Store(StoreError::Unavailable(_))) =
                result
            {
                self.source.store.reconnect();
            }
            let now_in_trouble = result.err().map(|error| telemetry::chain(&error));
            match &now_in_trouble {
                None if trouble.is_some() => tracing::info!("the database is followed again"),
                Some(error) if trouble != now_in_trouble => {
                    tracing::error!(
                        error,
                        "the database cannot be followed; answering from memory"
                    );
                }
                None | Some(_) => {}
            }
            trouble = now_in_trouble;
        }
    }

    /// One look: reads what has changed and takes it in.
    async fn look(&mut self) -> Result<(), SyncError> {
        let source = &self.source;
        let observed = observe_clock(&*source.store, &source.clock, source.skew);
        within(&source.clock, ANSWER, observed).await??;
        loop {
            // What the reading shows is at least as new as the moment before it.
            let read_at = source.clock.monotonic();
            let reading = source
                .store
                .changes_since(self.position, BATCH, source.clock.now());
            let changes = within(&source.clock, ANSWER, reading).await??;
            let is_last = changes.rows.len() < BATCH as usize;
            self.position = self.take_in(&changes).await?;
            source.metrics.followed_to(self.position.seq);
            if is_last {
                self.revocations.forget(source.clock.now());
                self.snapshots.confirm(read_at);
                return Ok(());
            }
        }
    }

    /// Takes changes in; returns the position they lead to.
    async fn take_in(&self, changes: &Changes) -> Result<Position, SyncError> {
        let source = &self.source;
        let (mut clients, mut keys) = (BTreeSet::new(), BTreeSet::new());
        let mut revocations = false;
        // Changes are deleted by age: where one is missing, nobody knows what it was about.
        let next = changes.rows.first().map_or(changes.head, |row| row.seq - 1);
        let mut everything = changes.epoch != self.position.epoch || next != self.position.seq;
        for row in &changes.rows {
            match row.topic {
                Some(Topic::Client) => clients.extend(ClientId::parse(&row.target)),
                Some(Topic::Keys) => match row.target.parse::<KeyUse>() {
                    Ok(key_use) => {
                        keys.insert(key_use);
                    }
                    Err(_) => everything = true,
                },
                Some(Topic::Revocation) => revocations = true,
                // Asked of the database whenever they matter.
                Some(Topic::User) => {}
                // Resources are few and seldom change. What a later version has changed may concern
                // anything.
                Some(Topic::Resource) | None => everything = true,
            }
        }
        if everything || clients.len() > ONE_BY_ONE {
            let everything = source.everything().await?;
            self.snapshots.set_registry(everything.registry);
            self.snapshots.set_ring(everything.ring);
            self.snapshots.set_mac_ring(everything.mac_ring);
            if everything.position.epoch == self.position.epoch {
                self.revocations.replace(everything.revocations);
            } else {
                source.metrics.epoch_changed();
                tracing::error!(
                    seen = self.position.seq,
                    head = changes.head,
                    "the database has begun a new epoch: a backup was restored, or it has lost changes; \
                     what was revoked meanwhile may be forgotten: see countersign restored"
                );
                self.revocations.replace_after_loss(everything.revocations);
            }
            return Ok(everything.position);
        }
        if keys.contains(&KeyUse::RefreshMac) {
            let schedule = source.schedule(KeyUse::RefreshMac).await?;
            self.snapshots.set_mac_ring(source.mac_ring(&schedule)?);
        }
        if keys.iter().any(|key_use| key_use.is_published()) {
            // One document has the keys of both.
            let schedule = source.schedule(KeyUse::Signing).await?;
            let rs256 = source.schedule(KeyUse::IdTokenRs256).await?;
            self.snapshots.set_ring(source.ring(&schedule, &rs256)?);
        }
        if !clients.is_empty() {
            let mut registry = Registry::clone(&self.snapshots.registry());
            let mut updated = Vec::with_capacity(clients.len());
            for id in clients {
                updated.push((id.clone(), source.client(&id).await?));
            }
            registry.update_clients(updated);
            self.snapshots.set_registry(registry);
        }
        // Last: whoever finds that the tokens of a client are revoked gets a good one by asking for
        // it, as the client says from when on they are.
        if revocations {
            let reading = source.store.revocations_since(self.position.seq);
            self.revocations
                .extend(within(&source.clock, ANSWER, reading).await??);
        }
        Ok(Position {
            epoch: changes.epoch,
            seq: changes.rows.last().map_or(self.position.seq, |row| row.seq),
        })
    }
}

impl Source {
    async fn everything(&self) -> Result<Everything, SyncError> {
        let snapshot = within(&self.clock, EVERYTHING, self.store.snapshot()).await??;
        let built_in = resource::built_in(&self.issuer);
        let registry = Registry::new(
            snapshot.clients,
            snapshot.resources.into_iter().chain(built_in),
        );
        Ok(Everything {
            position: snapshot.position,
            registry,
            ring: self.ring(&snapshot.schedule, &snapshot.rs256_schedule)?,
            mac_ring: self.mac_ring(&snapshot.mac_schedule)?,
            revocations: snapshot.revocations,
        })
    }

    async fn schedule(&self, key_use: KeyUse) -> Result<KeySchedule, SyncError> {
        let reading = self.store.key_schedule(key_use);
        Ok(within(&self.clock, ANSWER, reading).await??)
    }

    fn ring(&self, schedule: &KeySchedule, rs256: &KeySchedule) -> Result<KeyRing, SyncError> {
        let (masters, entropy, now) = (self.masters.load()?, &self.entropy, self.clock.now());
        let rs256 = Rs256Ring::serving(rs256, self.rs256, &masters, entropy)?;
        Ok(KeyRing::open(schedule, rs256, &masters, entropy, now)?)
    }

    fn mac_ring(&self, schedule: &KeySchedule) -> Result<MacRing, SyncError> {
        Ok(MacRing::open(
            schedule,
            &self.masters.load()?,
            self.clock.now(),
        )?)
    }

    /// A client; none if it is gone, or if its row cannot be read.
    async fn client(&self, id: &ClientId) -> Result<Option<Client>, SyncError> {
        match within(&self.clock, ANSWER, self.store.client(id)).await? {
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(
                    error = telemetry::chain(&error),
                    "a client that cannot be read is left out"
                );
                Ok(None)
            }
            client => Ok(client?),
        }
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, ManualClock, Timestamp},
        config::{Config, Sources},
        domain::{
            change::{Cause, Change},
            revocation::{RevocationKind, RevokedValue},
        },
        store::{Access, Schema},
    };

    #[tokio::test]
    async fn a_restore_that_comes_between_two_readings_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let settings = [
            ("database.url", format!("sqlite://{}", path("a.db"))),
            ("keys.directory", path("keys")),
        ];
        let sources = Sources {
            overrides: settings
                .map(|(key, value)| (key.to_owned(), value))
                .to_vec(),
            ..Sources::default()
        };
        let config = Config::load(&sources).unwrap();
        let now = Timestamp::from_seconds(1_800_000_000);
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(now));
        let issuer = "https://issuer.example".to_owned();
        let context = Context::with_clock(config, issuer, Access::Serve, Schema::default(), clock);
        let context = context.await.unwrap();
        context.keys().bootstrap(true).await.unwrap();
        let sync = Sync::begin(&context).await.unwrap();
        // Lost with the database.
        sync.revocations.extend([Revocation {
            seq: sync.position.seq,
            kind: RevocationKind::Jti,
            value: RevokedValue::of("a token"),
            not_before: None,
            expires_at: Some(now.plus(Duration::from_mins(5))),
            owner: None,
        }]);
        // One of which the row is gone: everything has to be read.
        let changes = Changes {
            epoch: sync.position.epoch,
            head: sync.position.seq + 1,
            rows: Vec::new(),
        };
        let restored = Change::Restore {
            keep_tokens: true,
            tokens_die_at: now,
        };
        let cause = Cause::system();
        context.store.apply(&restored, &cause, now).await.unwrap();
        let position = sync.take_in(&changes).await.unwrap();
        assert_ne!(position.epoch, changes.epoch);
        assert_eq!(sync.revocations.len(), 1);
        context.close().await;
    }
}
