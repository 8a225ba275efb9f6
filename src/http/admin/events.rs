//! The audit trail.

use super::call::{Call, Outcome, listed, one};
use crate::{admin::event::EventFilter, domain::event::Event};

pub(super) async fn list(call: Call) -> Outcome {
    let (request, query) = call.page("events", &["after", "type", "subject", "wait"])?;
    let filter = EventFilter {
        after: one(&query, "after")?,
        kind: one(&query, "type")?,
        subject: one(&query, "subject")?,
        wait: one(&query, "wait")?,
    };
    let page = call.admin().events.page(filter, &request).await?;
    Ok(listed(&page, Event::document))
}
