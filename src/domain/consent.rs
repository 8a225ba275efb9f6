//! What users have allowed clients.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    id::{ClientId, UserId},
    resource::ResourceUri,
};
use crate::clock::Timestamp;

/// A scope token at a resource: what a page of consent shows a line of. A resource at which none of
/// the tokens means anything has an empty one.
pub type Permission = (ResourceUri, String);

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
    /// What: line by line, as it was shown.
    pub permissions: BTreeSet<Permission>,
    /// When it was last asked for and given.
    pub given_at: Timestamp,
}

impl Consent {
    /// What was allowed, as the admin interfaces show it.
    pub fn document(&self) -> Value {
        let permissions = self.permissions.iter();
        let permissions = permissions
            .map(|(resource, scope)| json!({ "resource": resource.as_str(), "scope": scope }));
        json!({
            "client_id": self.client_id.as_str(),
            "permissions": permissions.collect::<Vec<_>>(),
            "given_at": self.given_at.seconds(),
        })
    }
}
