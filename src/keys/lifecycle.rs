//! The life cycle of keys as pure functions of their times and now.
//!
//! A key is *next* until `activates_at`, *active* until the key after it activates, then *retiring*
//! (still published, signs no more) until `withdrawn_at`, then *retired*; or it is *revoked*. As
//! nothing but the stored times and the agreed clock decides, every node switches at the same
//! moment, also while the database is down.
//!
//! Three spans follow from the settings ([`Policy`]) and from what a key is for ([`Spans`]):
//! - the **lead**: how long a key must have been published before it signs on schedule, so that
//!   every verifier that caches the JWKS as long as it may has seen it, or of a refresh-MAC key,
//!   every node;
//! - the **notice**: how long before a switch the nodes must be told of it;
//! - the **retention**: how long after a switch the old key stays published, so that the last
//!   token it signed is dead by then, even one from a node that lost the database at the switch.
//!
//! Of a refresh-MAC key, *published* means known to the nodes, and *signs* that it makes the tags
//! of refresh tokens.

use std::time::Duration;

use crate::{
    clock::Timestamp,
    domain::{
        key::{KeyTimes, KeyUse},
        name::named,
    },
};

/// The longest life of any access token, whatever is configured.
pub const LONGEST_TOKEN_LIFE: Duration = Duration::from_hours(1);

/// The longest life of any refresh-token family, whatever is configured.
pub const LONGEST_FAMILY_LIFE: Duration = Duration::from_hours(400 * 24);

/// The leeway that verifiers may grant after `exp`.
pub const VERIFIER_LEEWAY: Duration = Duration::from_mins(1);

/// The longest a verifier may hold off fetching the JWKS again, if `max-age` is not shorter.
const VERIFIER_FLOOR: Duration = Duration::from_secs(10);

/// The settings that the life cycle depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `sync.poll_interval_ms`: a node knows of a change after at most this long.
    pub poll: Duration,
    /// `keys.jwks_max_age_seconds`: serves as `max-age` and as `stale-if-error`.
    pub jwks_max_age: Duration,
    /// `keys.clock_skew_seconds`: how far clocks may differ.
    pub clock_skew: Duration,
    /// `keys.rotation_period_seconds`: how long a key signs.
    pub period: Duration,
    /// `sync.offline_issuance_limit_seconds`: how long a node signs without the database.
    pub offline_limit: Duration,
}

impl Policy {
    /// How long after its `exp` an access token may still be accepted somewhere.
    pub fn grace(&self) -> Duration {
        VERIFIER_LEEWAY + self.clock_skew
    }

    /// How long after a change an access token may be accepted that was issued by a node that does
    /// not know of it.
    pub fn retention(&self) -> Duration {
        self.spans(KeyUse::Signing).retention
    }

    /// The spans in the life of keys of one use.
    pub fn spans(&self, key_use: KeyUse) -> Spans {
        let notice = self.poll * 2;
        let life = life(key_use);
        let caches = self.jwks_max_age * 2 + self.jwks_max_age.min(VERIFIER_FLOOR);
        Spans {
            lead: match key_use {
                KeyUse::Signing | KeyUse::IdTokenRs256 => self.poll + caches + self.clock_skew,
                KeyUse::RefreshMac => notice + self.clock_skew,
            },
            notice,
            period: self.period,
            life,
            retention: self.offline_limit + life + self.clock_skew,
        }
    }
}

/// The spans in the life of keys of one use; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// How long a key must have been published before it may sign on schedule.
    pub lead: Duration,
    /// How long before a switch it must be decided.
    pub notice: Duration,
    /// How long a key signs.
    pub period: Duration,
    /// How long what it has signed may count: [`life`].
    pub life: Duration,
    /// How long a key stays published after its successor has taken over.
    pub retention: Duration,
}

/// How long what a key of this use has signed may count, at most.
pub const fn life(key_use: KeyUse) -> Duration {
    match key_use {
        // An ID Token shares the life of the access token that it comes with.
        KeyUse::Signing | KeyUse::IdTokenRs256 => {
            LONGEST_TOKEN_LIFE.saturating_add(VERIFIER_LEEWAY)
        }
        // A token dies with its family, however late it is minted.
        KeyUse::RefreshMac => LONGEST_FAMILY_LIFE,
    }
}

named!(
    /// What a key is doing at some moment.
    KeyState {
        /// Signs.
        Active = "active",
        /// Published, to sign later.
        Next = "next",
        /// Withdrawn.
        Retired = "retired",
        /// Published, signs no more.
        Retiring = "retiring",
        /// Declared compromised; withdrawn at that moment.
        Revoked = "revoked",
    }
);

/// Whether a key is in the JWKS at `now`, or of a refresh-MAC key, whether its tags count.
pub fn is_published(key: &KeyTimes, now: Timestamp) -> bool {
    key.revoked_at.is_none()
        && key
            .withdrawn_at
            .is_none_or(|withdrawn_at| now < withdrawn_at)
}

/// The index of the key that signs at `now`: of those that have activated, the latest.
///
/// Passes over a key so close to its withdrawal that a token, which has a `life`, could outlive its
/// publication. That leaves nothing only while this node's clock is behind the one by which a key was revoked; the
/// next key then steps in those moments early.
pub fn active(keys: &[KeyTimes], life: Duration, now: Timestamp) -> Option<usize> {
    let may_sign = |key: &KeyTimes| {
        let last_token_dies = now.plus(life);
        key.revoked_at.is_none()
            && key
                .withdrawn_at
                .is_none_or(|withdrawn_at| last_token_dies <= withdrawn_at)
    };
    let candidates = || keys.iter().enumerate().filter(|(_, key)| may_sign(key));
    let activated = candidates()
        .filter(|(_, key)| key.activates_at <= now)
        .max_by_key(|(_, key)| key.activates_at);
    activated
        .or_else(|| candidates().min_by_key(|(_, key)| key.activates_at))
        .map(|(index, _)| index)
}

/// What each of `keys` is doing at `now`, in their order.
pub fn states(keys: &[KeyTimes], life: Duration, now: Timestamp) -> Vec<KeyState> {
    let active = active(keys, life, now);
    keys.iter()
        .enumerate()
        .map(|(index, key)| {
            if key.revoked_at.is_some() {
                KeyState::Revoked
            } else if active == Some(index) {
                KeyState::Active
            } else if !is_published(key, now) {
                KeyState::Retired
            } else if key.activates_at > now {
                KeyState::Next
            } else {
                KeyState::Retiring
            }
        })
        .collect()
}

/// What is to be done about the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Sees to it that an active and a next key exist.
    Ensure,
    /// Lets the next key take over as soon as every verifier can know it.
    RotateScheduled,
    /// Lets the next key take over at once and revokes the active one.
    RotateEmergency {
        /// Revokes every other key as well: they may have leaked with the active one.
        discard_next: bool,
    },
    /// Declares the key of this index compromised. Revoking the active key is an emergency.
    Revoke(usize),
}

/// Why a command is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Verifiers, or nodes, may not know the next key yet.
    #[error("the next key has not been published for long enough to sign")]
    TooEarly {
        /// From when on it may.
        earliest_activation_at: Timestamp,
    },
}

/// What a command leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The times of the existing keys, in their order.
    pub times: Vec<KeyTimes>,
    /// The times of keys to be made.
    pub created: Vec<KeyTimes>,
    /// Until when verifiers may refuse tokens of a key that had to sign before they could know it.
    pub verifiers_may_lag_until: Option<Timestamp>,
}

/// Works out what `command` leads to; changes nothing itself.
pub fn plan(
    keys: &[KeyTimes],
    command: Command,
    spans: Spans,
    now: Timestamp,
) -> Result<Plan, Refusal> {
    let mut draft = Draft {
        times: keys.to_vec(),
        spans,
        now,
    };
    let mut verifiers_may_lag_until = None;
    match command {
        Command::Ensure => {}
        Command::RotateScheduled => draft.rotate()?,
        Command::RotateEmergency { discard_next } => {
            verifiers_may_lag_until = draft.replace_active(discard_next);
        }
        Command::Revoke(index) => match states(keys, spans.life, now).get(index) {
            Some(KeyState::Active) => verifiers_may_lag_until = draft.replace_active(false),
            Some(KeyState::Next) => draft.replace_next(index),
            Some(KeyState::Retiring | KeyState::Retired) => draft.revoke(index),
            Some(KeyState::Revoked) | None => {}
        },
    }
    draft.ensure_active();
    draft.ensure_next();
    draft.set_withdrawals();
    let created = draft.times.split_off(keys.len());
    Ok(Plan {
        times: draft.times,
        created,
        verifiers_may_lag_until,
    })
}

/// Existing keys followed by new ones, on the way to a [`Plan`].
struct Draft {
    times: Vec<KeyTimes>,
    spans: Spans,
    now: Timestamp,
}

impl Draft {
    fn rotate(&mut self) -> Result<(), Refusal> {
        let switch = self.now.plus(self.spans.notice);
        let Some(index) = self.first_next_after(switch) else {
            // Whatever is next is about to activate; the key after that will have its own lead.
            return Err(Refusal::TooEarly {
                earliest_activation_at: self.now.plus(self.spans.lead),
            });
        };
        let switch = self.free_moment(switch);
        if let Some(next) = self.times.get_mut(index) {
            let earliest = next.published_at.plus(self.spans.lead);
            if switch < earliest {
                return Err(Refusal::TooEarly {
                    earliest_activation_at: earliest,
                });
            }
            next.activates_at = switch;
        }
        Ok(())
    }

    /// Revokes the active key and lets the next one, or a new one, sign from now on.
    fn replace_active(&mut self, discard_next: bool) -> Option<Timestamp> {
        let states = states(&self.times, self.spans.life, self.now);
        let mut successor = None;
        for (index, state) in states.into_iter().enumerate() {
            match state {
                KeyState::Active => self.revoke(index),
                // Also what is published no more: it still shows that an ID Token came from here.
                KeyState::Next | KeyState::Retiring | KeyState::Retired if discard_next => {
                    self.revoke(index);
                }
                KeyState::Next => {
                    let earlier =
                        |other: &usize| self.activates_at(*other) < self.activates_at(index);
                    successor = Some(successor.filter(earlier).unwrap_or(index));
                }
                KeyState::Retired | KeyState::Retiring | KeyState::Revoked => {}
            }
        }
        let moment = self.free_moment(self.now);
        let index = successor.unwrap_or_else(|| self.create(moment));
        let next = self.times.get_mut(index)?;
        next.activates_at = moment;
        let known_by = next.published_at.plus(self.spans.lead);
        (known_by > self.now).then_some(known_by)
    }

    /// Revokes a next key; its replacement begins its own lead.
    fn replace_next(&mut self, index: usize) {
        let planned = self.activates_at(index);
        self.revoke(index);
        let moment = planned
            .max(Some(self.now.plus(self.spans.lead)))
            .unwrap_or(self.now);
        let moment = self.free_moment(moment);
        self.create(moment);
    }

    fn ensure_active(&mut self) {
        if active(&self.times, self.spans.life, self.now).is_none() {
            let moment = self.free_moment(self.now);
            self.create(moment);
        }
    }

    /// Sees to it that some next key will still be next when the lead has passed, so that even an
    /// emergency right after a switch finds one that verifiers know.
    fn ensure_next(&mut self) {
        let lead_ends = self.now.plus(self.spans.lead);
        if self.first_next_after(lead_ends).is_none() {
            let last = self.unrevoked().map(|(_, key)| key.activates_at).max();
            let due = last.unwrap_or(self.now).plus(self.spans.period);
            let moment = self.free_moment(due.max(lead_ends.plus(Duration::from_millis(1))));
            self.create(moment);
        }
    }

    /// Gives each key that has not been succeeded yet the withdrawal that follows from its
    /// successor. One that has been succeeded keeps its own: its last token is long signed.
    fn set_withdrawals(&mut self) {
        let Some(active) = active(&self.times, self.spans.life, self.now)
            .and_then(|index| self.activates_at(index))
        else {
            return;
        };
        let mut order: Vec<(Timestamp, usize)> = self
            .unrevoked()
            .filter(|(_, key)| key.activates_at >= active)
            .map(|(index, key)| (key.activates_at, index))
            .collect();
        order.sort_unstable();
        let successors = order
            .iter()
            .skip(1)
            .map(|(moment, _)| Some(*moment))
            .chain([None]);
        for ((_, index), successor) in order.iter().zip(successors) {
            if let Some(key) = self.times.get_mut(*index) {
                key.withdrawn_at = successor.map(|moment| moment.plus(self.spans.retention));
            }
        }
    }

    fn unrevoked(&self) -> impl Iterator<Item = (usize, &KeyTimes)> {
        self.times
            .iter()
            .enumerate()
            .filter(|(_, key)| key.revoked_at.is_none())
    }

    fn activates_at(&self, index: usize) -> Option<Timestamp> {
        self.times.get(index).map(|key| key.activates_at)
    }

    fn first_next_after(&self, moment: Timestamp) -> Option<usize> {
        self.unrevoked()
            .filter(|(_, key)| key.activates_at > moment)
            .min_by_key(|(_, key)| key.activates_at)
            .map(|(index, _)| index)
    }

    /// The first moment from `moment` on at which no key activates: no two that may sign ever
    /// activate at once.
    fn free_moment(&self, mut moment: Timestamp) -> Timestamp {
        while self.unrevoked().any(|(_, key)| key.activates_at == moment) {
            moment = moment.plus(Duration::from_millis(1));
        }
        moment
    }

    fn revoke(&mut self, index: usize) {
        if let Some(key) = self.times.get_mut(index) {
            key.revoked_at = Some(self.now);
        }
    }

    fn create(&mut self, activates_at: Timestamp) -> usize {
        self.times.push(KeyTimes {
            published_at: self.now,
            activates_at,
            withdrawn_at: None,
            revoked_at: None,
        });
        self.times.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        poll: Duration::from_millis(250),
        jwks_max_age: Duration::from_mins(5),
        clock_skew: Duration::from_secs(5),
        period: Duration::from_hours(30 * 24),
        offline_limit: Duration::from_mins(15),
    };

    fn spans() -> Spans {
        POLICY.spans(KeyUse::Signing)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + seconds)
    }

    /// The keys after `command` at `now`.
    fn after(keys: &[KeyTimes], command: Command, now: Timestamp) -> Vec<KeyTimes> {
        let plan = plan(keys, command, spans(), now).unwrap();
        plan.times.into_iter().chain(plan.created).collect()
    }

    fn fresh() -> Vec<KeyTimes> {
        after(&[], Command::Ensure, at(0))
    }

    #[test]
    fn the_first_start_makes_an_active_and_a_next_key() {
        let keys = fresh();
        assert_eq!(
            states(&keys, spans().life, at(0)),
            [KeyState::Active, KeyState::Next]
        );
        assert_eq!(keys[1].activates_at, at(0).plus(POLICY.period));
        assert_eq!(
            keys[0].withdrawn_at,
            Some(keys[1].activates_at.plus(spans().retention))
        );
        assert_eq!(keys[1].withdrawn_at, None);
        assert_eq!(after(&keys, Command::Ensure, at(1)), keys);
    }

    #[test]
    fn the_lead_covers_every_cache_a_verifier_may_keep() {
        assert_eq!(
            spans().lead,
            Duration::from_millis(250 + 300_000 * 2 + 10_000 + 5000)
        );
        let short = Policy {
            jwks_max_age: Duration::from_secs(2),
            clock_skew: Duration::from_secs(1),
            ..POLICY
        };
        assert_eq!(
            short.spans(KeyUse::Signing).lead,
            Duration::from_millis(7250)
        );
    }

    #[test]
    fn a_mac_key_needs_to_be_known_to_nodes_only_and_stays_for_as_long_as_any_family() {
        let spans = POLICY.spans(KeyUse::RefreshMac);
        assert_eq!(spans.lead, Duration::from_millis(500 + 5000));
        let offline_and_skew = Duration::from_secs(900 + 5);
        assert_eq!(spans.retention, LONGEST_FAMILY_LIFE + offline_and_skew);
        assert_eq!(spans.period, POLICY.period);

        let keys = plan(&[], Command::Ensure, spans, at(0)).unwrap().created;
        let switch = keys[1].activates_at;
        let signer = |now| active(&keys, spans.life, now);
        assert_eq!(signer(switch.minus(Duration::from_millis(1))), Some(0));
        assert_eq!(signer(switch), Some(1));
        // A token that is made by a node that has missed the switch does not outlive its key.
        let last = switch.plus(offline_and_skew).plus(spans.life);
        assert_eq!(keys[0].withdrawn_at, Some(last));
        assert!(is_published(&keys[0], last.minus(Duration::from_millis(1))));
        assert!(!is_published(&keys[0], last));
    }

    #[test]
    fn a_scheduled_rotation_before_the_lead_has_passed_is_refused() {
        let keys = fresh();
        let refusal = plan(&keys, Command::RotateScheduled, spans(), at(600));
        let earliest_activation_at = at(0).plus(spans().lead);
        assert_eq!(
            refusal,
            Err(Refusal::TooEarly {
                earliest_activation_at
            })
        );
    }

    #[test]
    fn a_scheduled_rotation_gives_notice_and_publishes_a_next_key() {
        let keys = after(&fresh(), Command::RotateScheduled, at(1000));
        let switch = at(1000).plus(spans().notice);
        assert_eq!(keys[1].activates_at, switch);
        assert_eq!(
            states(&keys, spans().life, at(1000)),
            [KeyState::Active, KeyState::Next, KeyState::Next]
        );
        assert_eq!(
            states(&keys, spans().life, switch),
            [KeyState::Retiring, KeyState::Active, KeyState::Next]
        );
        assert_eq!(keys[2].activates_at, switch.plus(POLICY.period));
        let retired = switch.plus(spans().retention);
        assert_eq!(states(&keys, spans().life, retired)[0], KeyState::Retired);
    }

    #[test]
    fn a_second_rotation_right_after_the_first_is_refused() {
        let keys = after(&fresh(), Command::RotateScheduled, at(1000));
        let refusal = plan(&keys, Command::RotateScheduled, spans(), at(1000));
        let earliest_activation_at = at(1000).plus(spans().lead);
        assert_eq!(
            refusal,
            Err(Refusal::TooEarly {
                earliest_activation_at
            })
        );
    }

    #[test]
    fn a_next_key_is_made_before_the_last_one_activates() {
        let keys = fresh();
        let lead_begins = keys[1].activates_at.minus(spans().lead);
        assert_eq!(
            after(
                &keys,
                Command::Ensure,
                lead_begins.minus(Duration::from_secs(1))
            )
            .len(),
            2
        );
        let keys = after(&keys, Command::Ensure, lead_begins);
        assert_eq!(keys.len(), 3);
        assert_eq!(
            keys[2].activates_at,
            keys[1].activates_at.plus(POLICY.period)
        );
    }

    #[test]
    fn an_emergency_switches_at_once_to_a_key_that_verifiers_know() {
        let keys = fresh();
        let plan = plan(
            &keys,
            Command::RotateEmergency {
                discard_next: false,
            },
            spans(),
            at(1000),
        )
        .unwrap();
        assert_eq!(plan.verifiers_may_lag_until, None);
        let keys: Vec<_> = plan.times.into_iter().chain(plan.created).collect();
        assert_eq!(
            states(&keys, spans().life, at(1000)),
            [KeyState::Revoked, KeyState::Active, KeyState::Next]
        );
        assert!(!is_published(&keys[0], at(1000)));
    }

    #[test]
    fn a_second_emergency_within_the_lead_says_until_when_verifiers_may_lag() {
        let emergency = Command::RotateEmergency {
            discard_next: false,
        };
        let keys = after(&fresh(), emergency, at(1000));
        let plan = plan(&keys, emergency, spans(), at(1001)).unwrap();
        assert_eq!(
            plan.verifiers_may_lag_until,
            Some(at(1000).plus(spans().lead))
        );
    }

    #[test]
    fn two_emergencies_in_one_millisecond_leave_the_newest_key_signing() {
        let emergency = Command::RotateEmergency {
            discard_next: false,
        };
        let keys = after(&fresh(), Command::RotateScheduled, at(1000));
        let keys = after(&keys, emergency, at(1001));
        let keys = after(&keys, emergency, at(1001));
        let states = states(&keys, spans().life, at(1001));
        assert_eq!(
            states.iter().position(|state| *state == KeyState::Active),
            Some(3)
        );
    }

    #[test]
    fn discarding_next_leaves_nothing_that_was_on_the_host() {
        let plan = plan(
            &fresh(),
            Command::RotateEmergency { discard_next: true },
            spans(),
            at(1000),
        )
        .unwrap();
        assert!(
            plan.times
                .iter()
                .all(|key| key.revoked_at == Some(at(1000)))
        );
        assert_eq!(
            plan.verifiers_may_lag_until,
            Some(at(1000).plus(spans().lead))
        );
        assert_eq!(
            states(&plan.created, spans().life, at(1000)),
            [KeyState::Active, KeyState::Next]
        );
    }

    #[test]
    fn discarding_next_revokes_also_what_is_published_no_more() {
        let keys = after(&fresh(), Command::RotateScheduled, at(1000));
        let later = at(1000)
            .plus(spans().notice)
            .plus(spans().retention)
            .plus(spans().lead);
        assert_eq!(states(&keys, spans().life, later)[0], KeyState::Retired);
        let keys = after(
            &keys,
            Command::RotateEmergency { discard_next: true },
            later,
        );
        assert!(keys[..3].iter().all(|key| key.revoked_at == Some(later)));
    }

    #[test]
    fn revoking_next_replaces_it_and_restarts_its_lead() {
        let keys = after(&fresh(), Command::Revoke(1), at(1000));
        assert_eq!(
            states(&keys, spans().life, at(1000)),
            [KeyState::Active, KeyState::Revoked, KeyState::Next]
        );
        assert!(keys[2].activates_at >= at(1000).plus(spans().lead));
        assert_eq!(
            keys[0].withdrawn_at,
            Some(keys[2].activates_at.plus(spans().retention))
        );
    }

    #[test]
    fn revoking_twice_changes_nothing_more() {
        let keys = after(&fresh(), Command::Revoke(0), at(1000));
        assert_eq!(after(&keys, Command::Revoke(0), at(1001)), keys);
    }

    #[test]
    fn a_clock_slightly_behind_an_emergency_still_finds_a_signer() {
        let keys = after(
            &fresh(),
            Command::RotateEmergency {
                discard_next: false,
            },
            at(1000),
        );
        assert_eq!(
            active(
                &keys,
                spans().life,
                at(1000).minus(Duration::from_millis(30))
            ),
            Some(1)
        );
    }
}
