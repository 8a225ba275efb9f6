//! How often something may happen: a generic cell rate algorithm for each key, in bounded memory.
//!
//! Imports nothing of this crate. Time comes from the caller, as the monotonic clock showed it.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher as _, Hash},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The span that quotas are about.
const MINUTE: Duration = Duration::from_mins(1);

/// Into how many parts the keys are divided, so that threads rarely wait for each other.
const SHARDS: usize = 64;

/// How many keys one shard remembers. A full one is searched for each new key, so few.
const MOST_KEYS: usize = 512;

/// The limit has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too often; again in {0:?}")]
pub struct RetryAfter(Duration);

impl RetryAfter {
    /// After this long it may happen again.
    pub const fn new(wait: Duration) -> Self {
        Self(wait)
    }

    /// In how many seconds it may happen again, rounded up: the unit of the header `Retry-After`.
    pub fn seconds(self) -> u64 {
        self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0)
    }
}

/// Who is how close to a limit.
///
/// Whoever has been quiet for a minute may go through the whole quota at once; from there it comes
/// back evenly.
///
/// # Security
/// Keys may be chosen by strangers: at most 32768 are remembered, chosen between by a hash that
/// nobody can predict. When there is no room for another, the one that is farthest from its limit
/// is forgotten.
#[derive(Debug)]
pub struct Throttle<K> {
    /// None is no limit.
    quota: Option<Quota>,
    shards: Vec<Mutex<Shard<K>>>,
    hasher: RandomState,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
struct Quota {
    /// In how long all of it comes back.
    period: Duration,
    /// How long it takes until one more is allowed.
    interval: Duration,
}

/// For each key when all of its quota has come back.
type Shard<K> = HashMap<K, Duration>;

impl<K: Clone + Eq + Hash> Throttle<K> {
    /// Allows so much a minute for each key; 0 is no limit.
    pub fn per_minute(quota: u32) -> Self {
        Self::per(MINUTE, quota)
    }

    /// The same for an hour.
    pub fn per_hour(quota: u32) -> Self {
        Self::per(MINUTE * 60, quota)
    }

    fn per(period: Duration, quota: u32) -> Self {
        Self {
            quota: (quota > 0).then(|| Quota {
                period,
                interval: period / quota,
            }),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Whether one more is allowed. Takes nothing.
    pub fn check(&self, key: &K, now: Duration) -> Result<(), RetryAfter> {
        let Some(quota) = self.quota else {
            return Ok(());
        };
        let full_at = self.shard(key).get(key).copied();
        Self::judge(full_at, quota, now)
    }

    /// Counts one, be it allowed or not.
    pub fn count(&self, key: &K, now: Duration) {
        if let Some(quota) = self.quota {
            add(&mut self.shard(key), key, quota, now);
        }
    }

    /// Counts one if it is allowed.
    pub fn take(&self, key: &K, now: Duration) -> Result<(), RetryAfter> {
        let Some(quota) = self.quota else {
            return Ok(());
        };
        let mut shard = self.shard(key);
        Self::judge(shard.get(key).copied(), quota, now)?;
        add(&mut shard, key, quota, now);
        Ok(())
    }

    /// Takes back what was taken at `taken`, as far as it has not come back meanwhile.
    pub fn give_back(&self, key: &K, taken: Duration, now: Duration) {
        let Some(quota) = self.quota else {
            return;
        };
        if let Some(full_at) = self.shard(key).get_mut(key) {
            let left = quota.interval.saturating_sub(now.saturating_sub(taken));
            *full_at = full_at.saturating_sub(left);
        }
    }

    fn judge(full_at: Option<Duration>, quota: Quota, now: Duration) -> Result<(), RetryAfter> {
        let used = full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_sub(now));
        match (used + quota.interval).checked_sub(quota.period) {
            Some(excess) if !excess.is_zero() => Err(RetryAfter(excess)),
            _ => Ok(()),
        }
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        #[expect(clippy::indexing_slicing, reason = "there are as many shards")]
        let shard = &self.shards[hash];
        // A map is whole whenever its lock is free, also after a panic.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one. What is counted beyond the quota is not held against the key any longer than that.
fn add<K: Clone + Eq + Hash>(shard: &mut Shard<K>, key: &K, quota: Quota, now: Duration) {
    if let Some(full_at) = shard.get_mut(key) {
        *full_at = ((*full_at).max(now) + quota.interval).min(now + quota.period);
        return;
    }
    if shard.len() >= MOST_KEYS {
        make_room(shard, now);
    }
    shard.insert(key.clone(), now + quota.interval);
}

/// Forgets every key that has its whole quota, or the one that is closest to it.
fn make_room<K: Clone + Eq + Hash>(shard: &mut Shard<K>, now: Duration) {
    let closest = shard.iter().min_by_key(|(_, full_at)| **full_at);
    let Some((key, full_at)) = closest.map(|(key, full_at)| (key.clone(), *full_at)) else {
        return;
    };
    if full_at > now {
        shard.remove(&key);
    } else {
        shard.retain(|_, full_at| *full_at > now);
    }
}

/// The part of a network address that one party controls: all of an IPv4 address, the network
/// (`/64`) of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressPrefix(IpAddr);

impl From<IpAddr> for AddressPrefix {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from(network))
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// What one party may have of IPv6 and divide into networks at will: a `/48`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site(u128);

impl Site {
    /// The site of a network; none for IPv4.
    pub fn of(prefix: AddressPrefix) -> Option<Self> {
        match prefix.0 {
            IpAddr::V6(network) => Some(Self(u128::from(network) >> 80)),
            IpAddr::V4(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_hours(1);

    fn seconds(seconds: u64) -> Duration {
        START + Duration::from_secs(seconds)
    }

    #[test]
    fn the_whole_quota_may_be_used_at_once_and_comes_back_evenly() {
        let throttle = &Throttle::per_minute(3);
        let taken = |now| iter::repeat_with(move || throttle.take(&"a", now)).take(5);
        assert_eq!(taken(START).flatten().count(), 3);
        let refused = throttle.check(&"a", START).unwrap_err();
        assert_eq!(refused.seconds(), 20);
        assert_eq!(throttle.check(&"a", seconds(20)), Ok(()));
        assert_eq!(taken(seconds(40)).flatten().count(), 2);
        assert_eq!(taken(seconds(100)).flatten().count(), 3);
        assert_eq!(throttle.check(&"b", START), Ok(()));
    }

    #[test]
    fn looking_takes_nothing_and_counting_asks_nobody() {
        let throttle = Throttle::per_minute(1);
        assert_eq!(throttle.check(&1, START), Ok(()));
        assert_eq!(throttle.check(&1, START), Ok(()));
        for _ in 0..100 {
            throttle.count(&1, START);
        }
        let refused = throttle.check(&1, START).unwrap_err();
        assert_eq!(refused.seconds(), 60, "one may not be in debt for ever");
    }

    #[test]
    fn what_is_given_back_may_be_taken_again_but_only_once() {
        let throttle = Throttle::per_minute(3);
        for _ in 0..3 {
            assert_eq!(throttle.take(&1, START), Ok(()));
        }
        throttle.give_back(&1, START, START);
        assert_eq!(throttle.take(&1, START), Ok(()));
        assert!(throttle.take(&1, START).is_err());
        // All of it has come back by itself.
        throttle.give_back(&1, START, seconds(20));
        assert_eq!(throttle.take(&1, seconds(20)), Ok(()));
        assert!(throttle.take(&1, seconds(20)).is_err());
        // Half of it.
        throttle.give_back(&1, seconds(20), seconds(30));
        assert_eq!(throttle.take(&1, seconds(30)), Ok(()));
        assert!(throttle.take(&1, seconds(30)).is_err());
        // Nothing was taken.
        throttle.give_back(&2, START, START);
        assert_eq!(throttle.check(&2, START), Ok(()));
    }

    #[test]
    fn nothing_is_limited_or_remembered_without_a_quota() {
        let throttle = Throttle::per_minute(0);
        for _ in 0..100 {
            throttle.count(&1, START);
            assert_eq!(throttle.take(&1, START), Ok(()));
        }
        assert_eq!(remembered(&throttle), 0);
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(RetryAfter(Duration::from_millis(1)).seconds(), 1);
        assert_eq!(RetryAfter(Duration::from_secs(2)).seconds(), 2);
    }

    fn remembered<K>(throttle: &Throttle<K>) -> usize {
        let shards = throttle.shards.iter();
        shards.map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[test]
    fn memory_is_bounded_and_those_at_their_limit_are_remembered_longest() {
        let throttle = Throttle::per_minute(10);
        let limited = 0..100_u32;
        for key in limited.clone() {
            for _ in 0..10 {
                throttle.count(&key, START);
            }
        }
        for key in 1000..60_000 {
            throttle.count(&key, START);
        }
        assert_eq!(remembered(&throttle), SHARDS * MOST_KEYS);
        for key in limited {
            assert!(throttle.check(&key, START).is_err(), "{key} was forgotten");
        }
        // A minute later none of them matters any more.
        for key in 60_000..120_000 {
            throttle.count(&key, seconds(60));
            if key == 60_000 + 100 * u32::try_from(SHARDS).unwrap() {
                assert!(remembered(&throttle) <= SHARDS * MOST_KEYS / 2);
            }
        }
        assert_eq!(remembered(&throttle), SHARDS * MOST_KEYS);
    }

    /// A bucket that leaks, computed anew from everything that was ever put into it.
    #[derive(Default)]
    struct Model(HashMap<u8, Vec<Duration>>);

    impl Model {
        fn allows(&self, key: u8, now: Duration, quota: u32) -> bool {
            let portion = MINUTE / quota;
            let mut level = Duration::ZERO;
            let mut last = Duration::ZERO;
            for at in self.0.get(&key).into_iter().flatten() {
                level = level.saturating_sub(at.saturating_sub(last)) + portion;
                level = level.min(MINUTE);
                last = *at;
            }
            level.saturating_sub(now.saturating_sub(last)) + portion <= MINUTE
        }

        fn put(&mut self, key: u8, now: Duration) {
            self.0.entry(key).or_default().push(now);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Check,
        Count,
        Take,
    }

    proptest! {
        #[test]
        fn it_does_what_a_leaking_bucket_does(
            quota in 1_u32..8,
            steps in prop::collection::vec(
                (
                    prop::sample::select(vec![Step::Check, Step::Count, Step::Take]),
                    0_u8..3,
                    prop_oneof![Just(0), 0_u64..100, 0_u64..10_000, 0_u64..70_000],
                ),
                1..80,
            ),
        ) {
            let throttle = Throttle::per_minute(quota);
            let mut model = Model::default();
            let mut now = START;
            for (step, key, pause_ms) in steps {
                now += Duration::from_millis(pause_ms);
                let allowed = model.allows(key, now, quota);
                match step {
                    Step::Check => {
                        let checked = throttle.check(&key, now);
                        prop_assert_eq!(checked.is_ok(), allowed);
                        if let Err(RetryAfter(wait)) = checked {
                            let early = now + wait.saturating_sub(Duration::from_nanos(1));
                            prop_assert!(throttle.check(&key, early).is_err());
                            prop_assert!(throttle.check(&key, now + wait).is_ok());
                        }
                    }
                    Step::Count => {
                        throttle.count(&key, now);
                        model.put(key, now);
                    }
                    Step::Take => {
                        prop_assert_eq!(throttle.take(&key, now).is_ok(), allowed);
                        if allowed {
                            model.put(key, now);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_address_counts_by_what_one_party_controls() {
        let prefix = |text: &str| AddressPrefix::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(prefix("2001:db8::1"), prefix("2001:db8::ffff:1:2:3"));
        assert_ne!(prefix("2001:db8::1"), prefix("2001:db8:0:1::1"));
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.2.2"));
        assert_eq!(prefix("::ffff:192.0.2.1"), prefix("192.0.2.1"));
        assert_ne!(prefix("::ffff:192.0.2.2"), prefix("192.0.2.1"));
    }
}
