//! The program as its operators see it: processes, files, signals, and Postgres going away.
//!
//! Here time is real, and conditions are awaited by looking again. Tests that load the machine take
//! turns ([`turn`]), so that none fails for want of the processor.

/// Makes each case a test on each engine. A case takes the engine.
macro_rules! on_both_engines {
    ($($case:ident,)+) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(crate::support::database::Engine::Sqlite).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(crate::support::database::Engine::Postgres).await;
            })+
        }
    };
}

mod at_once;
mod backup;
mod corrupt;
mod crash;
mod description;
mod development;
mod frozen;
mod kill;
mod master_key;
mod mistake;
mod outage;
mod propagation;
mod rotation;
mod signed_out;
mod stop;
mod storm;
mod trace;
mod unanswered;
mod upgrade;

use tokio::sync::{Mutex, MutexGuard};

/// Waits until no other test loads the machine.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// Prints figures for whoever runs a test by itself (`-- --nocapture`).
#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn show(report: &str) {
    print!("{report}");
}

/// Numbers that look random and are the same in each run (Knuth's constants).
struct Seeded(u64);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
