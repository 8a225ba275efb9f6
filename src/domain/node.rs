//! Running processes of the service, as they report themselves to the others.

use super::{
    id::{MasterKeyId, NodeId},
    name::named,
};
use crate::clock::Timestamp;

named!(
    /// What a database, and a process that serves it, are for.
    Environment {
        /// For trying out, on one machine.
        Development = "development",
        /// For real.
        Production = "production",
    }
);

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
