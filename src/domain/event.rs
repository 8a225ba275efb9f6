//! Events of the audit trail, as they are read.

use serde_json::{Value, json};

use super::{
    change::{Cause, EventType},
    id::{EventId, UserId},
};
use crate::clock::Timestamp;

/// What was changed, by whom, when, from where and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Which event; later events have greater ids only where one clock made them.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// What happened, as written: a later version may know types that this one does not.
    pub kind: String,
    /// What was changed: a client id, a resource's id, a key use, a `jti`.
    pub target: String,
    /// By whom and why.
    pub cause: Cause,
    /// How it was before; none if it was not there.
    pub before: Option<Value>,
    /// How it is since; none if it is gone.
    pub after: Option<Value>,
}

impl Event {
    /// Everything about the event, as the admin interfaces show it.
    pub fn document(&self) -> Value {
        json!({
            "id": self.id.to_string(),
            "at": self.at.seconds(),
            "type": self.kind,
            "actor": self.cause.actor,
            "target": self.target,
            "address": self.cause.address,
            "user_agent": self.cause.user_agent,
            "request_id": self.cause.request_id,
            "reason": self.cause.reason,
            "before": self.before,
            "after": self.after,
        })
    }
}

/// Which events to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Those after this one, in the order of commits.
    pub after: Option<EventId>,
    /// Those of these types; none are all.
    pub kinds: Vec<EventType>,
    /// Those about this: their target, or the user whom they are about.
    pub subject: Option<String>,
    /// The latest ones about this user, whatever their target is; then only `limit` counts.
    pub concerning: Option<UserId>,
    /// The latest first, instead of the earliest.
    pub latest_first: bool,
    /// How many at most.
    pub limit: u32,
}
