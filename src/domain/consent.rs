//! What users have allowed clients.

use serde_json::{Value, json};

use super::{
    id::{ClientId, UserId},
    resource::ResourceUri,
    scope::Scope,
};
use crate::clock::Timestamp;

/// What a user has allowed a client, all in all: whatever is within it is not asked for again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Who.
    pub subject: UserId,
    /// Whom.
    pub client_id: ClientId,
    /// The client's epoch at that time; another one now means that this is over, so that whoever
    /// registers a client under the id of another one has nothing of what that was allowed.
    pub client_epoch: i64,
    /// What for.
    pub scope: Scope,
    /// Where.
    pub resources: Vec<ResourceUri>,
    /// When it was last asked for and given.
    pub given_at: Timestamp,
}

impl Consent {
    /// Whether this was allowed. Each scope token at each resource: what was allowed here and what
    /// was allowed there may be joined, as the user has seen both.
    pub fn covers(&self, scope: &Scope, resources: &[ResourceUri]) -> bool {
        scope.is_within(&self.scope) && resources.iter().all(|uri| self.resources.contains(uri))
    }

    /// As the admin interfaces and its user are shown it.
    pub fn document(&self) -> Value {
        json!({
            "subject": self.subject.to_string(),
            "client_id": self.client_id.as_str(),
            "scope": self.scope.to_string(),
            "resources": self.resources.iter().map(ResourceUri::as_str).collect::<Vec<_>>(),
            "given_at": self.given_at.seconds(),
        })
    }
}
