//! The life cycle of keys, held against generated schedules, clocks and failing nodes.
//!
//! The model knows time as it truly passes. A node sees the schedule as it was a moment ago (at
//! most one poll, or when it lost the database), on a clock that is slightly off.

use std::time::Duration;

use countersign::{
    clock::Timestamp,
    domain::key::{KeyTimes, KeyUse},
    keys::lifecycle::{self, Command, Policy, Spans},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// Time passes: so many thousandths of the lead, of the period, or just milliseconds.
    Leads(u32),
    Periods(u32),
    Millis(u32),
    Rotate,
    Emergency {
        discard_next: bool,
    },
    Revoke(usize),
    /// A node loses the database.
    Offline(usize),
    /// It finds it again, or is started anew.
    Online(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u32..2500).prop_map(Step::Leads),
        3 => (1u32..1500).prop_map(Step::Periods),
        2 => (0u32..2000).prop_map(Step::Millis),
        4 => Just(Step::Rotate),
        1 => any::<bool>().prop_map(|discard_next| Step::Emergency { discard_next }),
        1 => (0usize..6).prop_map(Step::Revoke),
        1 => (0usize..3).prop_map(Step::Offline),
        1 => (0usize..3).prop_map(Step::Online),
    ];
    prop::collection::vec(step, 1..60)
}

fn policies() -> impl Strategy<Value = Policy> {
    (10u64..2000, 1u64..900, 0u64..30, 1u64..1000, 0u64..100_000).prop_map(
        |(poll, max_age, skew, offline, beyond)| {
            let mut policy = Policy {
                poll: Duration::from_millis(poll),
                jwks_max_age: Duration::from_secs(max_age),
                clock_skew: Duration::from_secs(skew),
                period: Duration::ZERO,
                offline_limit: Duration::from_secs(offline),
            };
            let leads = KeyUse::ALL
                .iter()
                .map(|key_use| policy.spans(*key_use).lead);
            policy.period = leads.max().unwrap() * 2 + Duration::from_secs(beyond);
            policy
        },
    )
}

/// A key as the model remembers it.
#[derive(Clone, Copy, Debug)]
struct Fate {
    /// When it truly came into the JWKS.
    published: Timestamp,
    /// Whether it had to sign before verifiers could know it.
    hurried: bool,
    /// When the last token it signed is dead.
    last_token_dies: Option<Timestamp>,
}

#[derive(Debug)]
struct Node {
    /// How far behind the database it is, at most a poll.
    lag: Duration,
    /// How far its clock is off, in milliseconds.
    clock_error_ms: i64,
    /// Since when it has not read the database.
    offline_since: Option<Timestamp>,
}

struct World {
    policy: Policy,
    spans: Spans,
    now: Timestamp,
    /// Every state of the schedule and since when it has held.
    versions: Vec<(Timestamp, Vec<KeyTimes>)>,
    fates: Vec<Fate>,
    nodes: Vec<Node>,
    last_emergency: Timestamp,
}

impl World {
    fn new(policy: Policy, key_use: KeyUse, lags: [f64; 3], errors: [i64; 3]) -> Self {
        let nodes = lags.iter().zip(errors).map(|(lag, error)| Node {
            lag: policy.poll.mul_f64(*lag),
            clock_error_ms: i64::try_from(policy.clock_skew.as_millis()).unwrap() * error / 2000,
            offline_since: None,
        });
        let nodes = nodes.collect();
        let now = Timestamp::from_seconds(1_800_000_000);
        let mut world = Self {
            policy,
            spans: policy.spans(key_use),
            now,
            versions: Vec::new(),
            fates: Vec::new(),
            nodes,
            last_emergency: now,
        };
        world.command(Command::Ensure);
        // The first key signs at once: no verifier has cached anything yet.
        world.fates[0].hurried = true;
        world
    }

    fn schedule(&self) -> &[KeyTimes] {
        self.versions.last().map_or(&[], |(_, keys)| keys)
    }

    fn schedule_at(&self, moment: Timestamp) -> &[KeyTimes] {
        let version = self
            .versions
            .iter()
            .rev()
            .find(|(since, _)| *since <= moment);
        &version.unwrap_or(&self.versions[0]).1
    }

    fn command(&mut self, command: Command) {
        let before = self.schedule().to_vec();
        let Ok(plan) = lifecycle::plan(&before, command, self.spans, self.now) else {
            return;
        };
        let keys: Vec<KeyTimes> = plan.times.iter().chain(&plan.created).copied().collect();
        let revoked =
            |keys: &[KeyTimes]| keys.iter().filter(|key| key.revoked_at.is_some()).count();
        if revoked(&keys) > revoked(&before) {
            self.last_emergency = self.now;
        }
        for key in &plan.created {
            let hurried = key.activates_at < self.now.plus(self.spans.lead);
            self.fates.push(Fate {
                published: self.now,
                hurried,
                last_token_dies: None,
            });
        }
        if plan.verifiers_may_lag_until.is_some() {
            let active = lifecycle::active(&keys, self.spans.life, self.now).unwrap();
            self.fates[active].hurried = true;
        }
        self.versions.push((self.now, keys));
        self.check();
    }

    /// Passes time, stopping wherever something happens by itself.
    fn advance(&mut self, span: Duration) {
        let end = self.now.plus(span);
        loop {
            let keys = self.schedule();
            let last = keys
                .iter()
                .filter(|key| key.revoked_at.is_none())
                .map(|key| key.activates_at)
                .max();
            // The task that makes the next key looks four times a lead.
            let due = last
                .unwrap()
                .minus(self.spans.lead)
                .plus(self.spans.lead / 8);
            let is_online = self.nodes.iter().any(|node| node.offline_since.is_none());
            let switches = keys.iter().flat_map(|key| {
                let withdrawn = key.withdrawn_at.unwrap_or(key.activates_at);
                [key.activates_at, withdrawn]
                    .map(|moment| [moment.minus(Duration::from_millis(1)), moment])
            });
            let next = switches
                .flatten()
                .filter(|moment| *moment > self.now && *moment < end)
                .min();
            if is_online && due > self.now && due < end && next.is_none_or(|next| due <= next) {
                self.now = due;
                self.command(Command::Ensure);
            } else if let Some(next) = next {
                self.now = next;
                self.check();
            } else {
                break;
            }
        }
        self.now = end;
        if self.nodes.iter().any(|node| node.offline_since.is_none()) {
            self.command(Command::Ensure);
        }
        self.check();
    }

    /// Lets every node sign a token now and holds the promises against it.
    fn check(&mut self) {
        let (now, policy, spans) = (self.now, self.policy, self.spans);
        let mut agreed = None;
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let read_at = node.offline_since.unwrap_or(now.minus(node.lag));
            if now.since(read_at) > policy.offline_limit + policy.poll {
                continue;
            }
            let view = self.schedule_at(read_at).to_vec();
            let off = Timestamp::from_millis(now.millis() + node.clock_error_ms);
            let signer = lifecycle::active(&view, spans.life, off).expect("some key always signs");

            // Revoked is gone: whoever has read of it neither signs with nor publishes the key.
            assert!(view[signer].revoked_at.is_none());

            // Scheduled: every cache that a verifier may keep has seen the key.
            let fate = self.fates[signer];
            let known_for = now.since(fate.published) + policy.clock_skew;
            assert!(
                fate.hurried || known_for >= spans.lead,
                "signed after {known_for:?}"
            );

            // `exp` is stamped with the node's own clock.
            let dies = off.plus(spans.life);
            self.fates[signer].last_token_dies = Some(dies);

            // At any instant of the agreed clock all nodes that follow the database name one key;
            // after a revocation from the next poll on.
            let is_settled = now.since(self.last_emergency) > policy.poll;
            if node.offline_since.is_none() && is_settled {
                let named = lifecycle::active(&view, spans.life, now);
                assert_eq!(
                    *agreed.get_or_insert(named),
                    named,
                    "two nodes name two keys"
                );
            }
        }

        let keys = self.schedule();
        let unrevoked = keys.iter().filter(|key| key.revoked_at.is_none());
        let mut moments: Vec<_> = unrevoked.map(|key| key.activates_at).collect();
        let count = moments.len();
        moments.sort_unstable();
        moments.dedup();
        assert_eq!(moments.len(), count, "two keys activate at once");
        for (key, fate) in keys.iter().zip(&self.fates) {
            let is_published = lifecycle::is_published(key, now);
            assert!(
                key.revoked_at.is_none() || !is_published,
                "a revoked key is published"
            );
            // A published key stays until its last token is dead.
            let needed = fate.last_token_dies.is_some_and(|dies| now < dies);
            assert!(
                is_published || key.revoked_at.is_some() || !needed,
                "withdrawn too early"
            );
        }
        let is_next = |key: &KeyTimes| key.revoked_at.is_none() && key.activates_at > now;
        let is_online = self.nodes.iter().all(|node| node.offline_since.is_none());
        assert!(
            !is_online || keys.iter().any(is_next),
            "no next key is published"
        );
    }
}

proptest! {
    #[test]
    fn every_promise_holds_over_any_schedule(
        policy in policies(),
        key_use in prop::sample::select(KeyUse::ALL),
        part in 0u32..200,
        lags in prop::array::uniform3(0.0f64..1.0),
        errors in prop::array::uniform3(-1000i64..1000),
        steps in steps(),
    ) {
        // Long enough for keys to be withdrawn before all steps are done.
        let mut policy = policy;
        policy.period += policy.spans(key_use).retention * part / 200;
        let mut world = World::new(policy, key_use, lags, errors);
        for step in steps {
            let part = |span: Duration, thousandths: u32| span * thousandths / 1000;
            match step {
                Step::Leads(thousandths) => world.advance(part(world.spans.lead, thousandths)),
                Step::Periods(thousandths) => world.advance(part(policy.period, thousandths)),
                Step::Millis(millis) => world.advance(Duration::from_millis(u64::from(millis))),
                Step::Rotate => world.command(Command::RotateScheduled),
                Step::Emergency { discard_next } => world.command(Command::RotateEmergency { discard_next }),
                Step::Revoke(index) => world.command(Command::Revoke(index)),
                Step::Offline(node) => {
                    let now = world.now;
                    world.nodes[node].offline_since.get_or_insert(now);
                }
                Step::Online(node) => {
                    world.nodes[node].offline_since = None;
                    world.command(Command::Ensure);
                }
            }
        }
    }
}
