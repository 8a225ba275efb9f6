//! Signing keys, refresh-MAC keys, and the master keys that seal them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use utoipa::ToSchema;

use super::{
    AdminError, FieldError, document,
    page::{Page, PageRequest},
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        id::{Kid, MasterKeyId},
        key::{KeyRecord, KeySchedule, KeyTimes, KeyUse},
    },
    entropy::Entropy,
    keys::{
        lifecycle::{self, Command, KeyState, Policy, Refusal},
        mac::MacRing,
        master::{MasterKeySource, MasterKeys},
        ring::{KeyRing, Rs256Ring},
        sealing::{self, SealingError},
    },
    store::{Store, StoreError},
};

/// How often a change is worked out anew when another node was faster.
const ATTEMPTS: u32 = 8;

/// How many secrets of users are read at once to be sealed anew.
const REWRAPPED_AT_ONCE: u32 = 200;

/// How to rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// As soon as every verifier knows the next key.
    Scheduled,
    /// At once; the active key is revoked.
    Emergency {
        /// Revokes the next keys, too.
        discard_next: bool,
    },
}

/// A rotation as an operator writes it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RotationRequest {
    /// `scheduled`: as soon as every verifier knows the next key. `emergency`: at once; the active
    /// key is revoked.
    #[schema(required, pattern = "^(scheduled|emergency)$")]
    mode: String,
    /// Why; kept in the audit trail.
    #[schema(max_length = 1000, pattern = "^[^\\x00-\\x1F\\x7F-\\x9F]*$")]
    reason: Option<String>,
    /// In an emergency: revokes the next keys, too, as when a host has leaked.
    discard_next: bool,
    /// Keys of which use: `signing` unless told otherwise, `refresh_mac`, or `id_token_rs256` where
    /// there are such keys. An emergency of `refresh_mac` refuses every refresh token made with the
    /// revoked key: those users sign in again.
    #[serde(rename = "use")]
    #[schema(pattern = "^(signing|refresh_mac|id_token_rs256)$")]
    key_use: Option<String>,
}

impl RotationRequest {
    /// Reads the document of a rotation: keys of which use, how to rotate, and why.
    pub fn read(
        members: Map<String, Value>,
    ) -> Result<(KeyUse, Rotation, Option<String>), AdminError> {
        let (request, unread): (Self, _) = document::read(members);
        let mut errors = Vec::new();
        let rotation = match request.mode.as_str() {
            "scheduled" => Rotation::Scheduled,
            "emergency" => Rotation::Emergency {
                discard_next: request.discard_next,
            },
            _ => {
                errors.push(FieldError::new("/mode", "must be scheduled or emergency"));
                Rotation::Scheduled
            }
        };
        let key_use = read_use(request.key_use.as_deref());
        let key_use = key_use.map_err(|error| errors.push(error));
        if request.mode == "scheduled" && request.discard_next {
            errors.push(FieldError::new("/discard_next", "is for emergencies only"));
        }
        if let Some(error) = request.reason.as_deref().and_then(reason_problem) {
            errors.push(FieldError::new("/reason", error));
        }
        let errors = document::all_wrong(unread, errors);
        match key_use {
            Ok(key_use) if errors.is_empty() => Ok((key_use, rotation, request.reason)),
            _ => Err(AdminError::Invalid(errors)),
        }
    }
}

/// Reads which keys are meant; signing keys unless told otherwise.
fn read_use(text: Option<&str>) -> Result<KeyUse, FieldError> {
    text.map_or(Ok(KeyUse::Signing), str::parse)
        .map_err(|_| FieldError::new("/use", "must be signing, refresh_mac or id_token_rs256"))
}

/// What is wrong with a reason, if anything.
fn reason_problem(reason: &str) -> Option<&'static str> {
    let fits = reason.chars().count() <= 1000 && !reason.chars().any(char::is_control);
    (!fits).then_some("must be at most 1000 characters without control characters")
}

/// What a change of the keys has led to.
#[derive(Debug)]
pub struct KeyChange {
    /// What the keys are for.
    pub key_use: KeyUse,
    /// Every key of that use as it is now.
    pub keys: Vec<Value>,
    /// Until when verifiers may refuse tokens of a key they cannot know yet.
    pub verifiers_may_lag_until: Option<Timestamp>,
}

impl KeyChange {
    /// What the admin interfaces show.
    pub fn document(&self) -> Value {
        json!({
            "keys": self.keys,
            "verifiers_may_lag_until": self.verifiers_may_lag_until.map(Timestamp::seconds),
        })
    }
}

/// What is known of a master key.
#[derive(Debug)]
pub struct MasterKeyStatus {
    /// Which one.
    pub id: MasterKeyId,
    /// Whether new keys are sealed under it.
    pub is_primary: bool,
    /// Whether this process holds it.
    pub is_here: bool,
    /// How many keys and secrets of second factors are sealed under it.
    pub seals: usize,
}

/// The use cases about keys.
#[derive(Clone)]
pub struct KeyAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// Draws keys.
    pub entropy: Entropy,
    /// Where master keys are.
    pub masters: MasterKeySource,
    /// What the life cycle depends on.
    pub policy: Policy,
    /// `keys.rs256_id_tokens`.
    pub rs256_id_tokens: bool,
    /// Where keys are generated whose generation takes long.
    pub background: Handle,
}

/// A schedule as it is to be, but for keys that are yet to be made.
struct Draft {
    schedule: KeySchedule,
    /// The times of those keys.
    missing: Vec<KeyTimes>,
}

impl From<KeySchedule> for Draft {
    fn from(schedule: KeySchedule) -> Self {
        Self {
            schedule,
            missing: Vec::new(),
        }
    }
}

impl KeyAdmin {
    /// The uses that keys are made for, by the settings.
    pub fn uses(&self) -> impl Iterator<Item = KeyUse> + use<> {
        let makes_rs256 = self.rs256_id_tokens;
        let all = KeyUse::ALL.iter().copied();
        all.filter(move |key_use| makes_rs256 || *key_use != KeyUse::IdTokenRs256)
    }

    /// Whether keys are made for this use, by the settings.
    pub fn makes(&self, key_use: KeyUse) -> bool {
        self.uses().any(|one| one == key_use)
    }

    /// Every key of a use as it is now, also where the settings no longer allow that use.
    pub async fn list(&self, key_use: KeyUse) -> Result<Vec<Value>, AdminError> {
        let schedule = self.schedule(key_use).await?;
        self.documents(&schedule, &self.masters.load()?)
    }

    /// A part of the list of keys of a use, by when they begin to sign.
    pub async fn page(
        &self,
        key_use: Option<&str>,
        request: &PageRequest,
    ) -> Result<Page<Value>, AdminError> {
        let key_use = read_use(key_use).map_err(|error| AdminError::Invalid(vec![error]))?;
        let text = |key: &Value, name: &str| key.get(name).map(ToString::to_string);
        Ok(request.part_of(self.list(key_use).await?, |key| {
            let activates_at = text(key, "activates_at").unwrap_or_default();
            format!(
                "{activates_at:0>20} {}",
                text(key, "kid").unwrap_or_default()
            )
        }))
    }

    /// Every key for access tokens, opened.
    pub async fn ring(&self) -> Result<KeyRing, AdminError> {
        let schedule = self.schedule(KeyUse::Signing).await?;
        let (masters, now) = (self.masters.load()?, self.clock.now());
        let rs256 = Rs256Ring::none();
        Ok(KeyRing::open(
            &schedule,
            rs256,
            &masters,
            &self.entropy,
            now,
        )?)
    }

    /// Every refresh-MAC key, opened.
    pub async fn mac_ring(&self) -> Result<MacRing, AdminError> {
        let schedule = self.schedule(KeyUse::RefreshMac).await?;
        let (masters, now) = (self.masters.load()?, self.clock.now());
        Ok(MacRing::open(&schedule, &masters, now)?)
    }

    /// Every key of a use that opens, with its state at `now` and its times.
    pub async fn states(
        &self,
        key_use: KeyUse,
        now: Timestamp,
    ) -> Result<Vec<(Kid, KeyState, KeyTimes)>, AdminError> {
        Ok(match key_use {
            KeyUse::Signing => {
                let ring = self.ring().await?;
                let keys = ring.list(now);
                keys.map(|(key, state, times)| (key.kid.clone(), state, times))
                    .collect()
            }
            KeyUse::RefreshMac => {
                let ring = self.mac_ring().await?;
                let keys = ring.list(now);
                keys.map(|(key, state, times)| (key.kid.clone(), state, times))
                    .collect()
            }
            KeyUse::IdTokenRs256 => {
                let schedule = self.schedule(key_use).await?;
                let ring = self.rs256_ring(&schedule, &self.masters.load()?)?;
                let keys = ring.list(now);
                keys.map(|(key, state, times)| (key.kid().clone(), state, times))
                    .collect()
            }
        })
    }

    fn rs256_ring(
        &self,
        schedule: &KeySchedule,
        masters: &MasterKeys,
    ) -> Result<Rs256Ring, SealingError> {
        let now = self.clock.now();
        Rs256Ring::open(schedule, masters, &self.entropy, now)
    }

    /// Sees to it that keys exist of every use that the settings allow: the first ones, and in time the next one.
    ///
    /// Every node may do so at any time; the revision of the schedule lets one of them through.
    pub async fn ensure(&self) -> Result<(), AdminError> {
        for key_use in self.uses() {
            self.command(key_use, EventType::KeyCreated, &Cause::system(), |_, _| {
                Ok(Command::Ensure)
            })
            .await?;
        }
        Ok(())
    }

    /// Lets the next key of a use take over; refused of a use that has no keys and is to have none.
    pub async fn rotate(
        &self,
        key_use: KeyUse,
        rotation: Rotation,
        cause: &Cause,
    ) -> Result<KeyChange, AdminError> {
        // What was made before the service has opted out may leak, and sign once it opts in again.
        if !self.makes(key_use) && self.schedule(key_use).await?.keys.is_empty() {
            return Err(AdminError::Invalid(vec![FieldError::new(
                "/use",
                "is for services whose setting keys.rs256_id_tokens is true",
            )]));
        }
        let (event, command) = match rotation {
            Rotation::Scheduled => (EventType::KeyRotated, Command::RotateScheduled),
            Rotation::Emergency { discard_next } => (
                EventType::KeyRevoked,
                Command::RotateEmergency { discard_next },
            ),
        };
        let (mut compromised, mut seen) = (None, None);
        let life = lifecycle::life(key_use);
        self.command(key_use, event, cause, |schedule, now| {
            if rotation == Rotation::Scheduled {
                return Ok(command);
            }
            // Means the key that was active when it was asked for: where another node was faster
            // with the same emergency, the key that replaced it is not to go, too.
            let active = lifecycle::active(&schedule.times(), life, now)
                .and_then(|index| schedule.keys.get(index));
            let active = active.map(|key| key.kid.clone());
            let unrevoked = unrevoked(schedule);
            let seen = seen.get_or_insert_with(|| unrevoked.clone());
            let compromised = compromised.get_or_insert_with(|| active.clone());
            if *compromised == active {
                return Ok(command);
            }
            let discards = rotation == (Rotation::Emergency { discard_next: true });
            // Where it has only been succeeded meanwhile, it is as compromised as before.
            let is_left = |key: &KeyRecord| {
                Some(&key.kid) == compromised.as_ref() && key.times.revoked_at.is_none()
            };
            match schedule.keys.iter().position(is_left) {
                Some(_) if discards => return Ok(command),
                Some(index) => return Ok(Command::Revoke(index)),
                None => {}
            }
            // The faster one may have left what is to be discarded here, and let it sign.
            let is_left = unrevoked.iter().any(|kid| seen.contains(kid));
            if discards && is_left {
                return Err(AdminError::Conflict(
                    "another emergency was faster and kept the next keys; look at the keys and ask again"
                        .to_owned(),
                ));
            }
            Ok(Command::Ensure)
        })
        .await
    }

    /// Declares a key compromised. For the active key that is an emergency rotation.
    pub async fn revoke(&self, kid: &Kid, cause: &Cause) -> Result<KeyChange, AdminError> {
        for key_use in KeyUse::ALL {
            let position =
                |schedule: &KeySchedule| schedule.keys.iter().position(|key| key.kid == *kid);
            if position(&self.schedule(*key_use).await?).is_none() {
                continue;
            }
            return self
                .command(*key_use, EventType::KeyRevoked, cause, |schedule, _| {
                    let index = position(schedule);
                    index
                        .map(Command::Revoke)
                        .ok_or(AdminError::NotFound("key"))
                })
                .await;
        }
        Err(AdminError::NotFound("key"))
    }

    /// Every master key that is here or needed.
    pub async fn master_keys(&self) -> Result<Vec<MasterKeyStatus>, AdminError> {
        let sealed = self.sealed().await?;
        let here: BTreeSet<MasterKeyId> = self.masters.load()?.ids().collect();
        let mut all = sealed.needed();
        all.extend(&here);
        let status = |id| MasterKeyStatus {
            id,
            is_primary: sealed.primary == Some(id),
            is_here: here.contains(&id),
            seals: sealed.under(id),
        };
        Ok(all.into_iter().map(status).collect())
    }

    /// Draws a master key into a file of its own. Nothing is sealed under it until it is promoted.
    pub fn add_master(&self) -> Result<(MasterKeyId, PathBuf), AdminError> {
        Ok(self.masters.add(&self.entropy, self.clock.now())?)
    }

    /// Seals new keys under another master key from now on.
    ///
    /// Refused as long as a living node does not hold it: that node could not follow.
    pub async fn promote_master(&self, id: MasterKeyId, cause: &Cause) -> Result<(), AdminError> {
        if self.masters.load()?.find(id).is_none() {
            return Err(AdminError::Conflict(format!(
                "master key {id} is not in {}; put master-{id}.key there first",
                self.masters
            )));
        }
        // A node that has lost the database reports no more and still signs for this long.
        let now = self.clock.now();
        let nodes = self
            .store
            .nodes(now.minus(self.policy.offline_limit))
            .await?;
        let without: Vec<String> = nodes
            .iter()
            .filter(|node| !node.master_keys.contains(&id))
            .map(|node| {
                format!(
                    "{} (seen {} s ago)",
                    node.name,
                    now.since(node.seen_at).as_secs()
                )
            })
            .collect();
        if !without.is_empty() {
            return Err(AdminError::Conflict(format!(
                "master key {id} has not reached every node yet: missing at {}; copy its file there and try \
                 again (a node that was killed counts for {} s)",
                without.join(", "),
                self.policy.offline_limit.as_secs(),
            )));
        }
        let promoted = |schedule: &KeySchedule| KeySchedule {
            primary_master: Some(id),
            ..schedule.clone()
        };
        self.change(
            KeyUse::Signing,
            EventType::MasterKeyPromoted,
            cause,
            |schedule, _| {
                let is_primary = schedule.primary_master == Some(id);
                Ok((!is_primary).then(|| promoted(schedule).into()))
            },
        )
        .await?;
        Ok(())
    }

    /// Seals every key, and the secrets of users' second factors, anew under the primary master key;
    /// tells how many were moved.
    pub async fn rewrap(&self, cause: &Cause) -> Result<usize, AdminError> {
        let masters = self.masters.load()?;
        let (mut moved, mut primary) = (0, None);
        // Ended in between, or with a key made meanwhile, it is done again: what is sealed under
        // another master key stays so, and that one cannot be removed.
        for key_use in KeyUse::ALL {
            let mut count = 0;
            self.change(*key_use, EventType::KeysRewrapped, cause, |schedule, _| {
                let wanted = *primary.insert(primary_of(schedule)?);
                let mut rewrapped = schedule.clone();
                let keys = rewrapped.keys.iter_mut();
                count = 0;
                for key in keys.filter(|key| key.sealed.master_id != wanted) {
                    key.sealed = sealing::reseal(&masters, key, wanted, &self.entropy)?;
                    count += 1;
                }
                Ok((count > 0).then_some(rewrapped.into()))
            })
            .await?;
            moved += count;
        }
        if let Some(primary) = primary {
            moved += self.rewrap_factors(&masters, primary).await?;
        }
        // Nothing to move although a newer master key waits: the order was mistaken.
        let newer = masters.ids().filter(|id| Some(*id) > primary).last();
        match (newer, primary) {
            (Some(newer), Some(primary)) if moved == 0 => Err(AdminError::Conflict(format!(
                "every key is sealed under the primary master key {primary} already; promote {newer} first"
            ))),
            _ => Ok(moved),
        }
    }

    /// Seals the secrets of second factors anew, some at a time: there may be as many as users.
    async fn rewrap_factors(
        &self,
        masters: &MasterKeys,
        primary: MasterKeyId,
    ) -> Result<usize, AdminError> {
        let mut moved = 0;
        loop {
            let elsewhere = self
                .store
                .factors_sealed_elsewhere(primary, REWRAPPED_AT_ONCE);
            let elsewhere = elsewhere.await?;
            let before = moved;
            for secret in &elsewhere {
                let (subject, sealed) = (secret.subject, &secret.sealed);
                let plain = sealing::open_totp(masters, subject, sealed)?;
                let after = sealing::seal_totp(masters, primary, subject, &plain, &self.entropy)?;
                moved += usize::from(self.store.reseal_factor(secret, &after).await?);
            }
            // Nothing more can be moved where another master key was promoted meanwhile.
            if moved == before {
                return Ok(moved);
            }
        }
    }

    /// Deletes the file of a master key that is needed no more.
    pub async fn remove_master(&self, id: MasterKeyId) -> Result<PathBuf, AdminError> {
        let sealed = self.sealed().await?;
        if sealed.primary == Some(id) {
            return Err(AdminError::Conflict(format!(
                "master key {id} is the primary one; promote another first"
            )));
        }
        let seals = sealed.under(id);
        if seals > 0 {
            return Err(AdminError::Conflict(format!(
                "{seals} keys or second factors are still sealed under master key {id}; run countersign keys rewrap first"
            )));
        }
        Ok(self.masters.remove(id)?)
    }

    /// Checks at a start that the master keys which the database needs are here; picks the primary
    /// one for a new database, drawing one only where that is allowed.
    ///
    /// A master key is never drawn beside an existing database: its keys would stay closed, and
    /// the mistake (a lost folder, a wrong path) would go unseen.
    pub async fn bootstrap(&self, may_draw: bool) -> Result<(), AdminError> {
        let sealed = self.sealed().await?;
        let mut masters = self.masters.load()?;
        for id in sealed.needed() {
            if masters.find(id).is_none() {
                return Err(AdminError::Conflict(format!(
                    "the database needs master key {id}, which is not in {}; restore master-{id}.key there",
                    self.masters
                )));
            }
        }
        if sealed.primary.is_none() {
            if masters.ids().next().is_none() {
                if !may_draw {
                    return Err(AdminError::Conflict(format!(
                        "there is no master key in {}; run countersign init, or countersign keys add-master, once",
                        self.masters
                    )));
                }
                self.add_master()?;
                masters = self.masters.load()?;
            }
            let primary = masters.ids().next();
            self.change(
                KeyUse::Signing,
                EventType::MasterKeyPromoted,
                &Cause::system(),
                |schedule, _| {
                    // Another node that starts with this one may have been faster.
                    Ok(schedule.primary_master.is_none().then(|| {
                        let schedule = KeySchedule {
                            primary_master: primary,
                            ..schedule.clone()
                        };
                        schedule.into()
                    }))
                },
            )
            .await?;
        }
        self.ensure().await
    }

    async fn schedule(&self, key_use: KeyUse) -> Result<KeySchedule, AdminError> {
        Ok(self.store.key_schedule(key_use).await?)
    }

    async fn sealed(&self) -> Result<Sealed, AdminError> {
        // The earliest reading: whatever was sealed under another one before is in the later ones.
        let primary = self.schedule(KeyUse::Signing).await?.primary_master;
        let mut under = BTreeMap::new();
        // Also keys of a use that the settings do not allow: one day they may do so again.
        for key_use in KeyUse::ALL {
            for key in self.schedule(*key_use).await?.keys {
                *under.entry(key.sealed.master_id).or_default() += 1;
            }
        }
        for (master, secrets) in self.store.factors_sealed().await? {
            *under.entry(master).or_default() += secrets;
        }
        Ok(Sealed { primary, under })
    }

    /// The keys of a schedule as the admin interfaces show them.
    fn documents(
        &self,
        schedule: &KeySchedule,
        masters: &MasterKeys,
    ) -> Result<Vec<Value>, AdminError> {
        let now = self.clock.now();
        Ok(match schedule.key_use {
            KeyUse::Signing => {
                let rs256 = Rs256Ring::none();
                KeyRing::open(schedule, rs256, masters, &self.entropy, now)?.documents(now)
            }
            KeyUse::RefreshMac => MacRing::open(schedule, masters, now)?.documents(now),
            KeyUse::IdTokenRs256 => self.rs256_ring(schedule, masters)?.documents(now),
        })
    }

    /// Plans and applies a command of the life cycle.
    async fn command(
        &self,
        key_use: KeyUse,
        event: EventType,
        cause: &Cause,
        decide: impl FnMut(&KeySchedule, Timestamp) -> Result<Command, AdminError> + Send,
    ) -> Result<KeyChange, AdminError> {
        let masters = self.masters.load()?;
        let (mut schedule, lag) = self.applied(key_use, event, cause, decide).await?;
        if makes_next_after(key_use, event) {
            let ensure = |_: &_, _| Ok(Command::Ensure);
            let event = EventType::KeyCreated;
            match self.applied(key_use, event, cause, ensure).await {
                Ok((ensured, _)) => schedule = ensured,
                // Whoever looks at the schedule next makes up for it.
                Err(error) => tracing::warn!(
                    %error,
                    "the key is revoked, but the next one could not be made"
                ),
            }
        }
        // Shows what was applied; reading it again could fail although it was done.
        Ok(KeyChange {
            key_use,
            keys: self.documents(&schedule, &masters)?,
            // No verifier ever knows of other keys.
            verifiers_may_lag_until: lag.filter(|_| key_use.is_published()),
        })
    }

    /// The schedule after a command, and until when verifiers may lag.
    async fn applied(
        &self,
        key_use: KeyUse,
        event: EventType,
        cause: &Cause,
        mut decide: impl FnMut(&KeySchedule, Timestamp) -> Result<Command, AdminError> + Send,
    ) -> Result<(KeySchedule, Option<Timestamp>), AdminError> {
        let mut lag = None;
        let lag_of_plan = &mut lag;
        let schedule = self
            .change(key_use, event, cause, |schedule, now| {
                let spans = self.policy.spans(key_use);
                let command = decide(schedule, now)?;
                let mut plan = lifecycle::plan(&schedule.times(), command, spans, now)?;
                if makes_next_after(key_use, event) {
                    plan.created.retain(|key| key.activates_at <= now);
                }
                *lag_of_plan = plan.verifiers_may_lag_until;
                Ok(planned(schedule, plan))
            })
            .await?;
        Ok((schedule, lag))
    }

    /// Makes the keys that a draft lacks, those for RS256 of the `stock`.
    fn complete(
        &self,
        draft: Draft,
        stock: &mut Vec<KeyRecord>,
    ) -> Result<KeySchedule, AdminError> {
        let Draft {
            mut schedule,
            missing,
        } = draft;
        if missing.is_empty() {
            return Ok(schedule);
        }
        let (masters, master) = (self.masters.load()?, primary_of(&schedule)?);
        for times in missing {
            schedule.keys.push(match schedule.key_use {
                KeyUse::Signing => sealing::generate(&masters, master, times, &self.entropy)?,
                KeyUse::RefreshMac => {
                    let last = schedule.keys.iter().filter_map(|key| key.version).max();
                    let version = last.unwrap_or(0).saturating_add(1);
                    sealing::generate_mac(&masters, master, version, times, &self.entropy)?
                }
                KeyUse::IdTokenRs256 => KeyRecord {
                    times,
                    ..stock.pop().ok_or(SealingError::Generation)?
                },
            });
        }
        schedule.keys.sort_by_key(|key| key.times.activates_at);
        Ok(schedule)
    }

    /// Generates keys for RS256 until there are as many as a draft lacks; whether any had to be.
    async fn stock_up(
        &self,
        draft: &Draft,
        stock: &mut Vec<KeyRecord>,
    ) -> Result<bool, AdminError> {
        let Some(times) = draft.missing.first().copied() else {
            return Ok(false);
        };
        let master = primary_of(&draft.schedule)?;
        // Another one was promoted meanwhile.
        stock.retain(|key| key.sealed.master_id == master);
        let lacking = draft.missing.len().saturating_sub(stock.len());
        for _ in 0..lacking {
            let (masters, entropy) = (self.masters.load()?, self.entropy.clone());
            let generating = self
                .background
                .spawn_blocking(move || sealing::generate_rs256(&masters, master, times, &entropy));
            let generated = generating.await.map_err(|_| SealingError::Generation)?;
            stock.push(generated?);
        }
        Ok(lacking > 0)
    }

    /// Applies what `decide` makes of the schedule, deciding anew when somebody else was faster.
    /// Returns the schedule as it is then.
    async fn change(
        &self,
        key_use: KeyUse,
        event: EventType,
        cause: &Cause,
        mut decide: impl FnMut(&KeySchedule, Timestamp) -> Result<Option<Draft>, AdminError> + Send,
    ) -> Result<KeySchedule, AdminError> {
        let (mut attempt, mut stock) = (1, Vec::new());
        loop {
            let now = self.clock.now();
            let before = self.schedule(key_use).await?;
            let Some(draft) = decide(&before, now)? else {
                return Ok(before);
            };
            // That takes long, and a key is published from now on only if it is there now: what it
            // does when is decided after it is made.
            if key_use == KeyUse::IdTokenRs256 && self.stock_up(&draft, &mut stock).await? {
                continue;
            }
            let schedule = self.complete(draft, &mut stock)?;
            let change = Change::PutKeys {
                schedule: schedule.clone(),
                event,
            };
            match self.store.apply(&change, cause, now).await {
                Err(StoreError::Conflict) if attempt < ATTEMPTS => attempt += 1,
                result => {
                    let revision = result?.revision;
                    return Ok(KeySchedule {
                        revision,
                        ..schedule
                    });
                }
            }
        }
    }
}

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooEarly {
                earliest_activation_at,
            } => Self::TooEarly {
                earliest_activation_at,
            },
        }
    }
}

impl KeyRing {
    /// Every key as the admin interfaces show it.
    pub fn documents(&self, now: Timestamp) -> Vec<Value> {
        let keys = self.list(now).map(|(key, state, times)| {
            let jwk = json!(key.public.to_jwk());
            key_document(&key.kid, state, &times, &("jwk", jwk))
        });
        keys.collect()
    }
}

impl Rs256Ring {
    /// Every key as the admin interfaces show it.
    pub fn documents(&self, now: Timestamp) -> Vec<Value> {
        let keys = self.list(now).map(|(key, state, times)| {
            key_document(key.kid(), state, &times, &("jwk", key.public.to_jwk()))
        });
        keys.collect()
    }
}

impl MacRing {
    /// Every key as the admin interfaces show it.
    pub fn documents(&self, now: Timestamp) -> Vec<Value> {
        let keys = self.list(now).map(|(key, state, times)| {
            let version = json!(key.version);
            key_document(&key.kid, state, &times, &("version", version))
        });
        keys.collect()
    }
}

/// The schedule after a plan; none if the plan changes nothing.
fn planned(schedule: &KeySchedule, plan: lifecycle::Plan) -> Option<Draft> {
    let mut planned = schedule.clone();
    for (key, times) in planned.keys.iter_mut().zip(plan.times) {
        key.times = times;
    }
    planned.keys.sort_by_key(|key| key.times.activates_at);
    (planned != *schedule || !plan.created.is_empty()).then_some(Draft {
        schedule: planned,
        missing: plan.created,
    })
}

fn key_document(kid: &Kid, state: KeyState, times: &KeyTimes, own: &(&str, Value)) -> Value {
    json!({
        "kid": kid.as_str(),
        "state": state.as_str(),
        "published_at": times.published_at.seconds(),
        "activates_at": times.activates_at.seconds(),
        "withdrawn_at": times.withdrawn_at.map(Timestamp::seconds),
        "revoked_at": times.revoked_at.map(Timestamp::seconds),
        own.0: own.1,
    })
}

/// What master keys are needed for.
struct Sealed {
    /// The one that seals new keys.
    primary: Option<MasterKeyId>,
    /// How many keys, and secrets of users, each of them seals.
    under: BTreeMap<MasterKeyId, usize>,
}

impl Sealed {
    fn needed(&self) -> BTreeSet<MasterKeyId> {
        self.under.keys().copied().chain(self.primary).collect()
    }

    /// How many keys and secrets are sealed under this one.
    fn under(&self, id: MasterKeyId) -> usize {
        self.under.get(&id).copied().unwrap_or_default()
    }
}

/// Whether the next key is made after what else is to be done, as making it takes long: what is revoked does not
/// wait for it, nor stay trusted where it cannot be made.
fn makes_next_after(key_use: KeyUse, event: EventType) -> bool {
    key_use == KeyUse::IdTokenRs256 && event == EventType::KeyRevoked
}

fn primary_of(schedule: &KeySchedule) -> Result<MasterKeyId, AdminError> {
    schedule.primary_master.ok_or_else(|| {
        AdminError::Conflict(
            "the database has no master key yet; start the service once".to_owned(),
        )
    })
}

fn unrevoked(schedule: &KeySchedule) -> Vec<Kid> {
    let unrevoked = schedule
        .keys
        .iter()
        .filter(|key| key.times.revoked_at.is_none());
    unrevoked.map(|key| key.kid.clone()).collect()
}
