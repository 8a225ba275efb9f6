//! Running processes of the service, as they report themselves to the others.

use super::id::{MasterKeyId, NodeId};
use crate::clock::Timestamp;

/// The sign of life of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Drawn anew at each start.
    pub id: NodeId,
    /// Where it can be found by people: host name and process id.
    pub name: String,
    /// The master keys it holds.
    pub master_keys: Vec<MasterKeyId>,
    /// When it last reported itself.
    pub seen_at: Timestamp,
}
