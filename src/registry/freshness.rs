//! Asking for one more look at the database before something is refused.

use tokio::sync::{Notify, watch};

/// How far the looks at the database have come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    begun: u64,
    finished: u64,
    succeeded: bool,
}

/// Connects those who need a newer state with the one task that reads it.
///
/// However many ask at once, they share one reading.
#[derive(Debug, Default)]
pub struct Freshness {
    wanted: Notify,
    progress: watch::Sender<Progress>,
}

impl Freshness {
    /// Returns when a reading has ended that began after this call: whether it succeeded.
    pub async fn renewed(&self) -> bool {
        let mut progress = self.progress.subscribe();
        let after = progress.borrow_and_update().begun;
        self.wanted.notify_one();
        // The sender is in `self`, so that waiting cannot fail.
        progress
            .wait_for(|progress| progress.finished > after)
            .await
            .is_ok_and(|progress| progress.succeeded)
    }

    /// How many wait for a reading.
    pub fn waiting(&self) -> usize {
        self.progress.receiver_count()
    }

    /// Whether the last reading succeeded.
    pub fn succeeded(&self) -> bool {
        self.progress.borrow().succeeded
    }

    /// For the reading task: returns when somebody waits for a reading.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// For the reading task: a reading begins.
    pub fn begin(&self) {
        self.progress.send_modify(|progress| progress.begun += 1);
    }

    /// For the reading task: the reading that began last has ended.
    pub fn finish(&self, succeeded: bool) {
        self.progress.send_modify(|progress| {
            progress.finished = progress.begun;
            progress.succeeded = succeeded;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_reading_that_had_begun_before_does_not_count() {
        let freshness = Arc::new(Freshness::default());
        freshness.begin();
        let waiting = tokio::spawn({
            let freshness = Arc::clone(&freshness);
            async move { freshness.renewed().await }
        });
        freshness.wanted().await;
        freshness.finish(true);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        freshness.begin();
        freshness.finish(true);
        assert!(waiting.await.unwrap());
    }
}
