//! The audit trail.

use std::{sync::Arc, time::Duration};

use super::AdminError;
use crate::{
    clock::AgreedClock,
    domain::event::{Event, EventQuery},
    store::Store,
};

/// The use cases about events.
#[derive(Clone)]
pub struct EventAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// How often to look for new events.
    pub poll: Duration,
}

impl EventAdmin {
    /// The events that a query asks for.
    pub async fn list(&self, query: &EventQuery) -> Result<Vec<Event>, AdminError> {
        Ok(self.store.events(query).await?)
    }

    /// The events that a query asks for, waiting up to `longest` until there are some.
    pub async fn wait(
        &self,
        query: &EventQuery,
        longest: Duration,
    ) -> Result<Vec<Event>, AdminError> {
        let end = self.clock.monotonic() + longest;
        loop {
            let events = self.list(query).await?;
            if !events.is_empty() || self.clock.monotonic() >= end {
                return Ok(events);
            }
            self.clock.sleep(self.poll).await;
        }
    }
}
