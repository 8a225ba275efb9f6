//! Why and when a family has ended: told from its own row, and from the audit trail where a whole
//! user, client or database was concerned.

use std::collections::{HashMap, hash_map::Entry};

use super::{AdminError, family::FamilyView};
use crate::{
    clock::Timestamp,
    domain::{
        change::{DATABASE, EventType},
        event::{Event, EventQuery},
        family::{ClientStanding, EndReason, Family, FamilyState, Standing, UserStanding},
        key::KeyUse,
    },
    store::Store,
};

/// How many events about one user or client are looked at, the latest.
const MOST_EVENTS: u32 = 100;

/// What ends every session of a user.
const OF_USER: [EventType; 5] = [
    EventType::UserDeleted,
    EventType::UserDisabled,
    EventType::UserPasswordChanged,
    EventType::UserSessionsEnded,
    EventType::UserFactorsReset,
];

/// What ends every session at a client.
const OF_CLIENT: [EventType; 2] = [EventType::ClientDeleted, EventType::ClientTokensRevoked];

/// What may have disabled a client.
const OF_DISABLING: [EventType; 2] = [EventType::ClientCreated, EventType::ClientUpdated];

/// What ends a single family.
const OF_FAMILY: [EventType; 2] = [EventType::FamilyReuseDetected, EventType::FamilyRevoked];

/// Why a family has ended, or rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was ended itself; without a reason by a version that knows more of them.
    Itself(Option<EndReason>),
    /// Its absolute life was over.
    Expired,
    /// It was not refreshed in time.
    IdleExpired,
    /// The key of its refresh tokens was taken out of use.
    KeyRevoked,
    /// The client was removed.
    ClientDeleted,
    /// The client is disabled; the family rests.
    ClientDisabled,
    /// Every session at the client was ended.
    ClientSessionsEnded,
    /// A backup of the database was restored.
    Restored,
    /// The password of the user was changed.
    PasswordChanged,
    /// The user was removed.
    UserDeleted,
    /// The user was disabled.
    UserDisabled,
    /// Every session of the user was ended.
    UserSessionsEnded,
}

impl Why {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Itself(Some(reason)) => reason.as_str(),
            Self::Itself(None) => "other",
            Self::Expired => "expired",
            Self::IdleExpired => "idle_expired",
            Self::KeyRevoked => "key_revoked",
            Self::ClientDeleted => "client_deleted",
            Self::ClientDisabled => "client_disabled",
            Self::ClientSessionsEnded => "client_sessions_ended",
            Self::Restored => "restored",
            Self::PasswordChanged => "password_changed",
            Self::UserDeleted => "user_deleted",
            Self::UserDisabled => "user_disabled",
            Self::UserSessionsEnded => "user_sessions_ended",
        }
    }
}

/// How a family has ended, or why it rests.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Why.
    pub why: Why,
    /// When; unknown when the audit trail does not tell.
    pub at: Option<Timestamp>,
    /// The event that did it, where that is about more than this family.
    pub event: Option<Event>,
}

impl Ending {
    fn at(why: Why, at: Timestamp) -> Self {
        Self {
            why,
            at: Some(at),
            event: None,
        }
    }

    fn by(why: Why, event: Event) -> Self {
        Self {
            why,
            at: Some(event.at),
            event: Some(event),
        }
    }

    fn unknown(why: Why) -> Self {
        Self {
            why,
            at: None,
            event: None,
        }
    }

    /// The word for `end_reason`.
    pub const fn reason(&self) -> &'static str {
        self.why.as_str()
    }
}

/// That a family cannot be refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Ever again.
    Ended,
    /// For as long as its client is disabled.
    Suspended,
}

/// The audit trail, as far as it was read to tell of some families at one moment.
pub struct Trail<'a> {
    store: &'a dyn Store,
    now: Timestamp,
    /// When the refresh-MAC keys of these versions were taken out of use.
    keys_gone: HashMap<u32, Timestamp>,
    /// The latest events of some types about something, the latest first.
    read: HashMap<(String, &'static [EventType]), Vec<Event>>,
}

impl<'a> Trail<'a> {
    pub(super) async fn new(store: &'a dyn Store, now: Timestamp) -> Result<Self, AdminError> {
        let schedule = store.key_schedule(KeyUse::RefreshMac).await?;
        let gone = |times: crate::domain::key::KeyTimes| {
            let ends = [times.revoked_at, times.withdrawn_at];
            ends.into_iter().flatten().min().filter(|end| *end <= now)
        };
        let keys_gone = schedule
            .keys
            .iter()
            .filter_map(|key| Some((key.version?, gone(key.times)?)))
            .collect();
        Ok(Self {
            store,
            now,
            keys_gone,
            read: HashMap::new(),
        })
    }

    /// Whether a family cannot be refreshed, and for how long.
    pub(super) fn over(&self, family: &Family, standing: &Standing) -> Option<Over> {
        let is_ended = family.revoked_at.is_some()
            || family.ends_at() <= self.now
            || self.keys_gone.contains_key(&family.mac_version)
            || is_over_for_user(family, standing.user.as_ref())
            || is_over_for_client(family, standing.client.as_ref())
            || session_end(family, standing).is_some();
        if is_ended {
            return Some(Over::Ended);
        }
        let is_disabled = standing
            .client
            .as_ref()
            .is_some_and(|client| client.disabled);
        is_disabled.then_some(Over::Suspended)
    }

    /// What a family is good for.
    pub(super) fn state(&self, family: &Family, standing: &Standing) -> FamilyState {
        match self.over(family, standing) {
            None => FamilyState::Active,
            Some(Over::Ended) => FamilyState::Ended,
            Some(Over::Suspended) => FamilyState::Suspended,
        }
    }

    /// A family with how it has ended.
    pub(super) async fn view(
        &mut self,
        family: Family,
        standing: Standing,
    ) -> Result<FamilyView, AdminError> {
        let state = self.state(&family, &standing);
        let ending = match state {
            FamilyState::Active => None,
            FamilyState::Ended => self.ending(&family, &standing).await?,
            FamilyState::Suspended => Some(self.disabling(&family).await?),
        };
        Ok(FamilyView {
            family,
            standing,
            state,
            ending,
        })
    }

    /// What ended a family first, of all that would have.
    async fn ending(
        &mut self,
        family: &Family,
        standing: &Standing,
    ) -> Result<Option<Ending>, AdminError> {
        let mut endings = Vec::new();
        if let Some(at) = family.revoked_at {
            endings.push(Ending::at(Why::Itself(family.revoke_reason), at));
        }
        for (why, at) in [
            (Why::IdleExpired, family.idle_expires_at),
            (Why::Expired, family.expires_at),
        ] {
            // Idle expiry is capped by the absolute one, which is then the reason.
            let is_capped = why == Why::IdleExpired && at == family.expires_at;
            if at <= self.now && !is_capped {
                endings.push(Ending::at(why, at));
            }
        }
        if let Some(at) = self.keys_gone.get(&family.mac_version) {
            endings.push(Ending::at(Why::KeyRevoked, *at));
        }
        if let Some(at) = session_end(family, standing) {
            endings.push(Ending::at(Why::Itself(Some(EndReason::SignedOut)), at));
        }
        let user = standing.user.as_ref();
        if is_over_for_user(family, user) {
            let ending = self.ending_of_user(family, user).await?;
            // Nobody knows the moment, but that there was none later.
            let latest = user.and_then(|user| user.tokens_not_before);
            add(&mut endings, ending, latest);
        }
        let client = standing.client.as_ref();
        if is_over_for_client(family, client) {
            let ending = self.ending_of_client(family, client).await?;
            let latest = client.and_then(|client| client.tokens_not_before);
            add(&mut endings, ending, latest);
        }
        // What is known comes first where moments are equal.
        Ok(endings
            .into_iter()
            .min_by_key(|ending| ending.at.unwrap_or(Timestamp::from_millis(i64::MIN))))
    }

    async fn ending_of_user(
        &mut self,
        family: &Family,
        user: Option<&UserStanding>,
    ) -> Result<Ending, AdminError> {
        let subject = family.grant.subject.to_string();
        let event = self.first(&subject, &OF_USER, family.created_at).await?;
        Ok(match event {
            Some(event) => {
                let why = match event.kind.parse() {
                    Ok(EventType::UserDeleted) => Why::UserDeleted,
                    Ok(EventType::UserDisabled) => Why::UserDisabled,
                    Ok(EventType::UserPasswordChanged) => Why::PasswordChanged,
                    _ => Why::UserSessionsEnded,
                };
                Ending::by(why, event)
            }
            None => Ending::unknown(match user {
                None => Why::UserDeleted,
                Some(user) if user.disabled => Why::UserDisabled,
                Some(_) => Why::UserSessionsEnded,
            }),
        })
    }

    async fn ending_of_client(
        &mut self,
        family: &Family,
        client: Option<&ClientStanding>,
    ) -> Result<Ending, AdminError> {
        let client_id = family.grant.client_id.as_str();
        let of_client = self.first(client_id, &OF_CLIENT, family.created_at).await?;
        let of_database = self.restoring(family.created_at).await?;
        let event = [of_client, of_database]
            .into_iter()
            .flatten()
            .min_by_key(|event| event.at);
        Ok(match event {
            Some(event) => {
                let why = match event.kind.parse() {
                    Ok(EventType::ClientDeleted) => Why::ClientDeleted,
                    Ok(EventType::DatabaseRestored) => Why::Restored,
                    _ => Why::ClientSessionsEnded,
                };
                Ending::by(why, event)
            }
            None => Ending::unknown(match client {
                None => Why::ClientDeleted,
                Some(_) => Why::ClientSessionsEnded,
            }),
        })
    }

    /// Why a family rests: who disabled its client last.
    async fn disabling(&mut self, family: &Family) -> Result<Ending, AdminError> {
        let events = self
            .about(family.grant.client_id.as_str(), &OF_DISABLING)
            .await?;
        let is_disabled = |document: &Option<serde_json::Value>| {
            document
                .as_ref()
                .is_some_and(|document| document["disabled"] == true)
        };
        let event = events
            .iter()
            .find(|event| is_disabled(&event.after) && !is_disabled(&event.before));
        let why = Why::ClientDisabled;
        Ok(event.map_or(Ending::unknown(why), |event| Ending::by(why, event.clone())))
    }

    /// The event that ended this family, and at most others of the same user at the same client, if the
    /// audit trail still has it.
    pub(super) async fn own_ending(
        &mut self,
        family: &Family,
    ) -> Result<Option<Event>, AdminError> {
        if family.revoke_reason == Some(EndReason::ConsentWithdrawn) {
            let grant = &family.grant;
            let subject = grant.subject.to_string();
            let events = self.about(&subject, &[EventType::ConsentWithdrawn]).await?;
            let is_it = |event: &&Event| {
                Some(event.at) == family.revoked_at && event.target == grant.client_id.as_str()
            };
            return Ok(events.iter().find(is_it).cloned());
        }
        let id = family.id.to_string();
        let events = self.about(&id, &OF_FAMILY).await?;
        Ok(events.first().cloned())
    }

    /// The first restoring of a backup since some moment that left no family alone.
    async fn restoring(&mut self, since: Timestamp) -> Result<Option<Event>, AdminError> {
        let events = self.about(DATABASE, &[EventType::DatabaseRestored]).await?;
        let ends_families = |event: &&Event| {
            let after = event.after.as_ref();
            event.at >= since && after.is_some_and(|after| after["keep_tokens"] == false)
        };
        Ok(events.iter().rev().find(ends_families).cloned())
    }

    /// The first event of these types about something since some moment.
    async fn first(
        &mut self,
        target: &str,
        kinds: &'static [EventType],
        since: Timestamp,
    ) -> Result<Option<Event>, AdminError> {
        let events = self.about(target, kinds).await?;
        let mut earliest_first = events.iter().rev();
        let ends = |event: &Event| {
            let after = event.after.as_ref();
            after.is_none_or(|after| after["ends_sessions"] != false)
        };
        let first = earliest_first.find(|event| event.at >= since && ends(event));
        Ok(first.cloned())
    }

    /// The latest events of these types about something, the latest first.
    async fn about(
        &mut self,
        target: &str,
        kinds: &'static [EventType],
    ) -> Result<&[Event], AdminError> {
        Ok(match self.read.entry((target.to_owned(), kinds)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let query = EventQuery {
                    kinds: kinds.to_vec(),
                    subject: Some(target.to_owned()),
                    latest_first: true,
                    limit: MOST_EVENTS,
                    ..EventQuery::default()
                };
                unknown.insert(self.store.events(&query).await?)
            }
        })
    }
}

/// Adds what ended a family at some moment, or at an unknown one: then only if that was certainly
/// before everything else.
fn add(endings: &mut Vec<Ending>, ending: Ending, latest: Option<Timestamp>) {
    let is_first = match latest {
        Some(latest) => endings.iter().all(|other| other.at > Some(latest)),
        None => endings.is_empty(),
    };
    if ending.at.is_some() || is_first {
        endings.push(ending);
    }
}

fn is_over_for_user(family: &Family, user: Option<&UserStanding>) -> bool {
    user.is_none_or(|user| user.disabled || user.epoch != family.grant.user_epoch)
}

/// When the session was ended that has brought a family, unless it outlasts that.
fn session_end(family: &Family, standing: &Standing) -> Option<Timestamp> {
    let ended_at = standing.session_ended_at;
    ended_at.filter(|_| !family.grant.outlasts_its_session())
}

fn is_over_for_client(family: &Family, client: Option<&ClientStanding>) -> bool {
    client.is_none_or(|client| client.epoch != family.grant.client_epoch)
}
