//! What somebody notices of somebody else: latencies with and without a disturbance, measured by turns.

use std::sync::atomic::{AtomicBool, Ordering};

use super::process::Stopwatch;

/// Half and nineteen twentieths of the requests were faster than these, in milliseconds.
#[derive(Clone, Copy)]
struct Latency {
    p50: f64,
    p95: f64,
}

/// By how much somebody got slower, in both respects.
#[derive(Clone, Copy)]
pub(crate) struct Ratios {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
}

impl Ratios {
    /// Whether it is no more than so many times at the median, and at the 95th percentile.
    pub(crate) fn is_within(self, p50: f64, p95: f64) -> bool {
        self.p50 <= p50 && self.p95 <= p95
    }
}

/// How often is measured.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// Rounds, each without and with the disturbance.
    pub(crate) rounds: usize,
    /// Requests of each half of a round.
    pub(crate) requests: usize,
}

impl Plan {
    /// Measures requests alone and beside what goes on while `is_on`, by turns; prints the table.
    ///
    /// Of the rounds the median counts: what else goes on on this machine hits both in some of them.
    #[expect(clippy::print_stdout, reason = "the table is for whoever runs it")]
    pub(crate) async fn compare(
        self,
        what: &str,
        is_on: &AtomicBool,
        mut request: impl AsyncFnMut(),
    ) -> Ratios {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            is_on.store(false, Ordering::Relaxed);
            alone.push(self.measure(&mut request).await);
            is_on.store(true, Ordering::Relaxed);
            beside.push(self.measure(&mut request).await);
        }
        is_on.store(false, Ordering::Relaxed);
        println!("\n{what:24}  alone   beside      ratio");
        let ratio = |name: &str, of: &dyn Fn(&Latency) -> f64| {
            let median = |rounds: &[Latency]| quantile(rounds.iter().map(of).collect(), 50);
            let (alone, beside) = (median(&alone), median(&beside));
            let ratio = beside / alone;
            println!("{name:22} {alone:8.3} {beside:8.3} ms  {ratio:6.2}");
            ratio
        };
        Ratios {
            p50: ratio("p50", &|latency| latency.p50),
            p95: ratio("p95", &|latency| latency.p95),
        }
    }

    async fn measure(self, request: &mut impl AsyncFnMut()) -> Latency {
        let mut took = Vec::new();
        for _ in 0..self.requests {
            let begun = Stopwatch::start();
            request().await;
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        Latency {
            p50: quantile(took.clone(), 50),
            p95: quantile(took, 95),
        }
    }
}

fn quantile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}
