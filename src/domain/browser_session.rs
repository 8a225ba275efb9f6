//! A user's sign-in at the service itself, in one browser: what lets apps sign the user in without
//! asking for a password each.

use std::time::Duration;

use super::{
    family::Party,
    id::{SessionId, UserId},
};
use crate::clock::Timestamp;

/// How much later a session must be seen than before for that to be written: what is shown of it is
/// that exact, and pages that ask often cost no writing.
const SEEN_STEP: Duration = Duration::from_mins(1);

/// A session, as stored under the hash of what its cookie holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserSession {
    /// Names it; not secret. It stays when the same user authenticates once more in the same browser:
    /// what its cookie holds does not.
    pub id: SessionId,
    /// Who has signed in.
    pub subject: UserId,
    /// The user's epoch at that time; another one now means that this is over.
    pub user_epoch: i64,
    /// When the user authenticated (`OpenID` Connect Core §2).
    pub auth_time: Timestamp,
    /// How (RFC 8176).
    pub amr: Vec<String>,
    /// When it was last used, to within a minute.
    pub seen_at: Timestamp,
    /// When it ends in any case; moves only when the user authenticates again.
    pub expires_at: Timestamp,
    /// When it was ended.
    pub ended_at: Option<Timestamp>,
    /// Who opened it.
    pub first: Party,
    /// Who used it last.
    pub last: Party,
}

impl BrowserSession {
    /// Whether the session is good at `now`, unused for no longer than `idle`. Whether its user still
    /// is what it was is not asked here.
    pub fn lives(&self, now: Timestamp, idle: Duration) -> bool {
        self.ended_at.is_none() && now < self.expires_at && now.since(self.seen_at) < idle
    }

    /// Whether a use at `now` by this party is worth writing. Another program at the same address is
    /// not by itself: whatever a page loads may name another.
    pub fn is_news(&self, now: Timestamp, party: &Party) -> bool {
        now.since(self.seen_at) >= SEEN_STEP || party.address != self.last.address
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const IDLE: Duration = Duration::from_hours(8);

    fn session() -> BrowserSession {
        BrowserSession {
            id: SessionId::from_uuid(Uuid::nil()),
            subject: UserId::from_uuid(Uuid::nil()),
            user_epoch: 1,
            auth_time: NOW,
            amr: Vec::new(),
            seen_at: NOW,
            expires_at: NOW.plus(Duration::from_hours(12)),
            ended_at: None,
            first: Party::default(),
            last: Party::default(),
        }
    }

    fn later(millis: i64) -> Timestamp {
        Timestamp::from_millis(NOW.millis() + millis)
    }

    #[test]
    fn a_session_ends_when_it_is_unused_or_old_or_ended() {
        const HOUR: i64 = 3_600_000;
        let session = session();
        // A clock that went back ends nothing.
        assert!(session.lives(later(-HOUR), IDLE));
        assert!(session.lives(later(8 * HOUR - 1), IDLE));
        assert!(!session.lives(later(8 * HOUR), IDLE));
        let used = BrowserSession {
            seen_at: later(7 * HOUR),
            ..session.clone()
        };
        assert!(used.lives(later(12 * HOUR - 1), IDLE));
        assert!(!used.lives(later(12 * HOUR), IDLE));
        let ended = BrowserSession {
            ended_at: Some(NOW),
            ..session
        };
        assert!(!ended.lives(NOW, IDLE));
    }

    #[test]
    fn a_use_is_written_once_a_minute_or_when_it_comes_from_elsewhere() {
        let session = session();
        assert!(!session.is_news(later(59_999), &Party::default()));
        assert!(session.is_news(later(60_000), &Party::default()));
        let elsewhere = Party {
            address: Some("192.0.2.1".to_owned()),
            user_agent: None,
        };
        assert!(session.is_news(NOW, &elsewhere));
        let otherwise = Party {
            address: None,
            user_agent: Some("another".to_owned()),
        };
        assert!(!session.is_news(later(59_999), &otherwise));
        assert!(session.is_news(later(60_000), &otherwise));
    }
}
