//! What clients are told when their users have been signed out (`OpenID` Connect Back-Channel Logout 1.0).

use super::id::{ClientId, FamilyId, NoticeId, UserId};
use crate::clock::Timestamp;

/// That a user has been signed out of a client, which has not heard of it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutNotice {
    /// Which notice.
    pub id: NoticeId,
    /// Who is to be told.
    pub client_id: ClientId,
    /// Of whom.
    pub subject: UserId,
    /// The sign-in that has ended.
    pub family: FamilyId,
    /// How often somebody has set out to tell it, this time as well, or would have, had its client
    /// answered to another.
    pub attempts: u32,
    /// When the sign-in ended.
    pub created_at: Timestamp,
}

/// What becomes of a notice that somebody has set out to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Its client was told, or does not want to be: it is forgotten.
    Forget,
    /// It is told later, from this moment on.
    PutOff(Timestamp),
    /// So is all else that is due for its client, as if it had been tried as well.
    PutOffAll(Timestamp),
}

/// Which notices of a client are given up along with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hopeless {
    /// Those of sign-ins that ended up to this moment, of what is due.
    pub until: Timestamp,
    /// Of those, the ones that were tried so often at least.
    pub attempts: u32,
}

/// What somebody is about to set out to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeClaim {
    /// How many notices at most.
    pub limit: u32,
    /// How many of them to one client.
    pub limit_of_a_client: u32,
    /// Who is not to be told anything now.
    pub except: Vec<ClientId>,
    /// Until when nobody else sets out to tell them.
    pub lease_until: Timestamp,
}

/// What somebody has set out to tell, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimedNotices {
    /// To be told now, by nobody else.
    pub notices: Vec<LogoutNotice>,
    /// How many there are in all, these as well; no more than [`MOST_COUNTED`] are counted.
    pub waiting: u64,
}

/// How many notices are counted that are waiting. Whoever wants to know how many there are asks each
/// second.
pub const MOST_COUNTED: u32 = 1000;
