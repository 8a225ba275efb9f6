//! The audit trail.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    AdminError, FieldError,
    page::{Page, PageRequest},
};
use crate::{
    clock::AgreedClock,
    domain::{
        change::EventType,
        event::{Event, EventQuery},
        id::EventId,
    },
    store::Store,
};

/// How long a request may wait for an event, in seconds.
pub const LONGEST_WAIT_SECONDS: u64 = 30;

/// The parameters of a request for events, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventFilter<'a> {
    /// The id of the event after which to begin.
    pub after: Option<&'a str>,
    /// An event type.
    pub kind: Option<&'a str>,
    /// What was changed, or the user whom that is about.
    pub subject: Option<&'a str>,
    /// How long to wait until there is an event, in seconds.
    pub wait: Option<&'a str>,
}

impl EventFilter<'_> {
    /// Reads the parameters: what to ask for, and how long to wait for it.
    ///
    /// # Security
    /// All come from whoever sends the request.
    fn read(self, request: &PageRequest) -> Result<(EventQuery, Duration), AdminError> {
        let mut errors = Vec::new();
        // The cursor of a list is where it goes on; `after` is where it begins.
        let (after, name) = match request.after() {
            Some(key) => (Some(key), "/cursor"),
            None => (self.after, "/after"),
        };
        let after = after.and_then(|id| {
            let id = EventId::parse(id);
            id.map_err(|_| errors.push(FieldError::new(name, "is not the id of an event")))
                .ok()
        });
        let kind = self.kind.and_then(|kind| {
            let kind: Option<EventType> = kind.parse().ok();
            if kind.is_none() {
                errors.push(FieldError::new("/type", "is no type of events"));
            }
            kind
        });
        // The database takes no NUL in texts.
        if self.subject.is_some_and(|subject| subject.contains('\0')) {
            errors.push(FieldError::new("/subject", "must be without NUL"));
        }
        let wait = self.wait.map_or(Some(0), |text| text.parse().ok());
        let wait = wait.filter(|wait| *wait <= LONGEST_WAIT_SECONDS);
        if wait.is_none() {
            let detail = format!("must be a whole number from 0 to {LONGEST_WAIT_SECONDS}");
            errors.push(FieldError::new("/wait", detail));
        }
        if !errors.is_empty() {
            return Err(AdminError::Invalid(errors));
        }
        let query = EventQuery {
            after,
            kinds: kind.into_iter().collect(),
            subject: self.subject.map(str::to_owned),
            concerning: None,
            latest_first: false,
            limit: u32::try_from(request.limit())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
        };
        Ok((query, Duration::from_secs(wait.unwrap_or(0))))
    }
}

/// The use cases about events.
#[derive(Clone)]
pub struct EventAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// How often to look for new events.
    pub poll: Duration,
    /// Ends the waiting for events when the service stops.
    pub stopping: CancellationToken,
}

impl EventAdmin {
    /// A part of the list of events, the earliest first; waits for one if that is asked for.
    pub async fn page(
        &self,
        filter: EventFilter<'_>,
        request: &PageRequest,
    ) -> Result<Page<Event>, AdminError> {
        let (query, longest) = filter.read(request)?;
        let events = self.wait(&query, longest).await?;
        Ok(request.first_of(events, |event| event.id.to_string()))
    }

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
            tokio::select! {
                () = self.clock.sleep(self.poll) => {}
                () = self.stopping.cancelled() => return Ok(events),
            }
        }
    }
}
