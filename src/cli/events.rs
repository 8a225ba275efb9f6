//! `countersign events`

use std::time::Duration;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser as _},
    value_parser,
};
use serde_json::{Value, json};

use super::{Failure, event_id, output};
use crate::{
    app::Context,
    domain::{
        change::EventType,
        event::{Event, EventQuery},
        id::EventId,
    },
};

/// How long one wait for events lasts; then the next begins.
const WAIT: Duration = Duration::from_mins(1);

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only events after this one; without it, the latest
    #[arg(long, value_name = "ID", value_parser = event_id)]
    after: Option<EventId>,
    /// Only events of this type
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_parser = PossibleValuesParser::new(EventType::ALL.iter().map(|kind| kind.as_str()))
            .try_map(|name| name.parse::<EventType>())
    )]
    kind: Option<EventType>,
    /// Only events about this client, user, resource or token, by its id
    #[arg(long, value_name = "ID")]
    subject: Option<String>,
    /// How many events at most, 1 to 200
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Go on with new events as they happen, until Ctrl-C; with --json, one document a line
    #[arg(long)]
    follow: bool,
}

impl Events {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let admin = context.events();
        let mut query = EventQuery {
            after: self.after,
            kinds: self.kind.into_iter().collect(),
            subject: self.subject,
            concerning: None,
            latest_first: self.after.is_none(),
            limit: self.limit,
        };
        let mut events = admin.list(&query).await?;
        if query.latest_first {
            // Read the latest, shown in the order in which they happened.
            events.reverse();
            query.latest_first = false;
        }
        if !self.follow {
            return if json {
                let items: Vec<Value> = events.iter().map(Event::document).collect();
                Ok(output::json(
                    &json!({ "items": items, "next_cursor": null }),
                )?)
            } else {
                table(&events)
            };
        }
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            for event in &events {
                if json {
                    output::json_line(&event.document())?;
                } else {
                    output::line(&row(event).join("  "))?;
                }
            }
            query.after = events.last().map(|event| event.id).or(query.after);
            events = tokio::select! {
                _ = &mut interrupted => return Ok(()),
                events = admin.wait(&query, WAIT) => events?,
            };
        }
    }
}

fn table(events: &[Event]) -> Result<(), Failure> {
    if events.is_empty() {
        return Ok(output::line("There are no such events.")?);
    }
    let rows: Vec<_> = events.iter().map(row).collect();
    let titles = ["AT", "TYPE", "TARGET", "ACTOR", "REASON", "ID"];
    Ok(output::table(titles, &rows)?)
}

fn row(event: &Event) -> [String; 6] {
    [
        output::utc_seconds(event.at),
        event.kind.clone(),
        event.target.clone(),
        event.cause.actor.clone(),
        event.cause.reason.clone().unwrap_or_else(|| "-".to_owned()),
        event.id.to_string(),
    ]
}
