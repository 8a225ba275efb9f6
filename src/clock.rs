//! Time, injected: who needs to know the time asks a [`Clock`] or is given `now`.
//!
//! Owns the only calls to the operating system's clocks and timers; the lint
//! `disallowed-methods` refuses them elsewhere. Imports nothing of this crate.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The timestamp of so many milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// The timestamp of so many whole seconds since 1970.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down: the unit of JWT claims and of the JSON interfaces.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This timestamp moved later, at most to the end of representable time.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }

    /// This timestamp moved earlier, at most to the beginning of representable time.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
    }

    /// How long before this timestamp `earlier` was; zero when it was not before.
    pub fn since(self, earlier: Self) -> Duration {
        let millis = self.0.saturating_sub(earlier.0);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

/// Whole milliseconds of a span, saturating.
fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The time, and waiting for it to pass.
#[async_trait]
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The wall-clock time as this machine sees it.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary fixed point; never goes back.
    fn monotonic(&self) -> Duration;

    /// Returns when `span` has passed on this clock.
    async fn sleep(&self, span: Duration);

    /// Whether differences to the database's clock are to be measured and made up for.
    ///
    /// An injected clock answers no: its time is the truth.
    fn follows_database(&self) -> bool;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    pub fn new() -> Self {
        Self {
            origin: std::time::Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn now(&self) -> Timestamp {
        let since_1970 = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Timestamp(millis(since_1970))
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn follows_database(&self) -> bool {
        true
    }
}

/// A clock that stands still until it is told to advance. Clones share one time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: Arc<watch::Sender<Timestamp>>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self {
            now: Arc::new(watch::Sender::new(start)),
        }
    }

    /// Moves the time on by `span` and wakes every sleeper whose time has come.
    pub fn advance(&self, span: Duration) {
        self.now.send_modify(|now| *now = now.plus(span));
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn monotonic(&self) -> Duration {
        self.now().since(Timestamp::from_millis(0))
    }

    async fn sleep(&self, span: Duration) {
        let deadline = self.now().plus(span);
        // The sender lives as long as `self`, so that waiting cannot fail.
        let _ = self.now.subscribe().wait_for(|now| *now >= deadline).await;
    }

    fn follows_database(&self) -> bool {
        false
    }
}

/// The time on which nodes agree: this machine's clock, corrected towards the database's.
///
/// The correction stays in force while the database is down. Clones share it.
#[derive(Clone, Debug)]
pub struct AgreedClock {
    clock: Arc<dyn Clock>,
    offset_ms: Arc<AtomicI64>,
}

impl AgreedClock {
    /// A clock without a correction so far.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            offset_ms: Arc::default(),
        }
    }

    /// The corrected time.
    pub fn now(&self) -> Timestamp {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        Timestamp(self.clock.now().0.saturating_add(offset))
    }

    /// Returns when `span` has passed.
    pub async fn sleep(&self, span: Duration) {
        self.clock.sleep(span).await;
    }

    /// Waits for a moment, `longest` at most; whether it has come. If the clock is corrected meanwhile,
    /// it is the corrected moment that counts.
    pub async fn reach(&self, moment: Timestamp, longest: Duration) -> bool {
        let end = self.monotonic().saturating_add(longest);
        loop {
            let pause = moment.since(self.now());
            if pause.is_zero() {
                return true;
            }
            let left = end.saturating_sub(self.monotonic());
            if left.is_zero() {
                return false;
            }
            self.sleep(pause.min(left)).await;
        }
    }

    /// Time since an arbitrary fixed point; never goes back.
    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// The correction in force, in milliseconds to add to this machine's clock.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Whether [`Self::observe`] is of use with this clock.
    pub fn follows_database(&self) -> bool {
        self.clock.follows_database()
    }

    /// Takes in that the database showed `database` at some moment of the last `round_trip`.
    ///
    /// A correction that the measurement cannot tell from the one in force is left out, so that
    /// the time does not tremble with every measurement.
    pub fn observe(&self, database: Timestamp, round_trip: Duration) {
        let uncertainty = millis(round_trip) / 2 + 1;
        let measured = database.0 - (self.clock.now().0 - millis(round_trip) / 2);
        if (measured - self.offset_ms()).abs() > uncertainty {
            self.offset_ms.store(measured, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_down_also_before_1970() {
        assert_eq!(Timestamp::from_millis(1999).seconds(), 1);
        assert_eq!(Timestamp::from_millis(-1).seconds(), -1);
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        let end = Timestamp::from_millis(i64::MAX);
        assert_eq!(end.plus(Duration::from_secs(1)), end);
        assert_eq!(Timestamp::from_millis(0).since(end), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_moment_is_waited_for_also_when_the_clock_is_put_back_meanwhile() {
        let start = Timestamp::from_seconds(1000);
        let manual = ManualClock::new(start);
        let clock = AgreedClock::new(Arc::new(manual.clone()));
        let (second, early) = (Duration::from_secs(1), Duration::from_millis(5));
        clock.observe(start.plus(early), Duration::ZERO);
        assert_eq!(clock.now(), start.plus(early));
        let waiter = {
            let clock = clock.clone();
            tokio::spawn(async move { clock.reach(start.plus(second), 2 * second).await })
        };
        tokio::task::yield_now().await;
        clock.observe(start, Duration::ZERO);
        manual.advance(second.saturating_sub(early));
        for _ in 0..9 {
            tokio::task::yield_now().await;
        }
        assert!(!waiter.is_finished());
        manual.advance(early);
        assert!(waiter.await.unwrap());
        // It has come already, and it is too far off.
        assert!(clock.reach(start, Duration::ZERO).await);
        assert!(!clock.reach(start.plus(2 * second), Duration::ZERO).await);
    }

    #[tokio::test]
    async fn a_manual_clock_wakes_whoever_waited_long_enough() {
        let clock = ManualClock::new(Timestamp::from_seconds(1000));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(5)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
    }

    #[test]
    fn the_agreed_clock_ignores_differences_it_cannot_measure() {
        let manual = ManualClock::new(Timestamp::from_seconds(1000));
        let agreed = AgreedClock::new(Arc::new(manual.clone()));
        agreed.observe(Timestamp::from_millis(999_998), Duration::from_millis(10));
        assert_eq!(agreed.offset_ms(), 0);
        agreed.observe(Timestamp::from_millis(1_005_000), Duration::from_millis(10));
        assert_eq!(agreed.offset_ms(), 5005);
        assert_eq!(agreed.now(), Timestamp::from_millis(1_005_005));
    }
}
