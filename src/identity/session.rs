//! Sessions of browsers: who has signed in there, and for how long that counts.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        browser_session::BrowserSession,
        change::{Cause, Change},
        family::{Party, UserStanding},
        id::SessionId,
        secret::{Ticket, TicketKind},
        user::User,
    },
    entropy::{Entropy, EntropyError},
    store::{self, Store, StoreError},
};

/// Why nobody can tell about a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The database failed, or did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The session that was to go on has just been ended.
    #[error("the session has been ended")]
    Ended,
}

/// A session that lives, and whose it is.
#[derive(Clone, Debug)]
pub struct Present {
    /// The session.
    pub session: BrowserSession,
    /// What its user is now.
    pub user: UserStanding,
}

/// How long ago a user may have authenticated who decides on how to authenticate from now on: whoever
/// finds a browser open decides nothing.
const RECENT: Duration = Duration::from_mins(5);

impl Present {
    /// Whether the user has authenticated a moment ago.
    pub fn is_recent(&self, now: Timestamp) -> bool {
        now.since(self.session.auth_time) < RECENT
    }
}

/// What a session is opened for: how its user has authenticated, when, and for how long that counts.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// How (RFC 8176).
    pub amr: Vec<String>,
    auth_time: Timestamp,
    expires_at: Timestamp,
    /// Whether the user had authenticated before, and not now from the beginning.
    is_continued: bool,
}

impl Authentication {
    /// That of a session, and these methods besides: neither its time nor its end moves, as nobody has
    /// authenticated once more from the beginning.
    pub fn continued(session: &BrowserSession, more: Vec<String>) -> Self {
        let mut amr = session.amr.clone();
        amr.extend(more.into_iter().filter(|it| !session.amr.contains(it)));
        Self {
            amr,
            auth_time: session.auth_time,
            expires_at: session.expires_at,
            is_continued: true,
        }
    }
}

/// Opens, finds and ends sessions.
///
/// # Security
/// What a cookie holds are 256 random bits, of which the database has the hash. With each
/// authentication there is another session: whoever has planted one has nothing of it (session
/// fixation).
#[derive(Clone)]
pub struct Sessions {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Draws ids and what cookies hold.
    pub entropy: Entropy,
    /// How long a session may go unused.
    pub idle: Duration,
    /// How long it lasts in any case.
    pub lifetime: Duration,
    /// How long after its issue an access token may still be accepted somewhere.
    pub token_retention: Duration,
}

impl Sessions {
    /// An authentication by these methods, just now.
    pub fn authenticated(&self, amr: Vec<String>) -> Authentication {
        let auth_time = self.clock.now();
        Authentication {
            amr,
            auth_time,
            expires_at: auth_time.plus(self.lifetime),
            is_continued: false,
        }
    }

    /// Opens a session for a user who has authenticated; with what its cookie is to hold. In a browser
    /// where the same user has a session, that goes on under another cookie; one of another user ends.
    ///
    /// The user is as it was before that was judged. If the password was changed meanwhile, or the
    /// user disabled, its epoch is another one by now, and the session is dead.
    ///
    /// # Errors
    /// [`SessionError::Ended`] where an authentication is continued in a session that has ended.
    pub async fn open(
        &self,
        user: &User,
        authentication: Authentication,
        cause: &Cause,
        before: Option<&Present>,
    ) -> Result<(Present, Ticket), SessionError> {
        let now = self.clock.now();
        let party = Party::of(cause);
        let is_continued = authentication.is_continued;
        let same = before.filter(|before| before.session.subject == user.id);
        let mut session = BrowserSession {
            id: match same {
                Some(same) => same.session.id,
                None => SessionId::from_uuid(self.entropy.uuid_v7(now)?),
            },
            subject: user.id,
            user_epoch: user.session_epoch,
            auth_time: authentication.auth_time,
            amr: authentication.amr,
            seen_at: now,
            expires_at: authentication.expires_at,
            ended_at: None,
            first: same.map_or_else(|| party.clone(), |same| same.session.first.clone()),
            last: party,
        };
        let cookie = Ticket::mint(TicketKind::BrowserSession, &self.entropy)?;
        let hash = cookie.hash();
        if !self.answer(self.store.put_session(&hash, &session)).await? {
            // The one before has just been ended: that also ends what is only added to it.
            if is_continued {
                return Err(SessionError::Ended);
            }
            session.id = SessionId::from_uuid(self.entropy.uuid_v7(now)?);
            self.answer(self.store.put_session(&hash, &session)).await?;
        }
        if let (Some(before), None) = (before, same) {
            self.end(before.session.id, cause).await?;
        }
        let user = UserStanding {
            epoch: user.session_epoch,
            disabled: user.disabled,
            second_factor_required: user.second_factor_required,
            tokens_not_before: user.tokens_not_before,
            username: user.username.as_str().to_owned(),
            roles: user.roles.clone(),
            claims: user.claims.clone(),
        };
        Ok((Present { session, user }, cookie))
    }

    /// The session of a cookie, if it lives and its user may still have it; its use is noted.
    ///
    /// # Security
    /// Whoever sends the request chooses `cookie`.
    pub async fn find(&self, cookie: &str, party: &Party) -> Result<Option<Present>, SessionError> {
        let Some(hash) = Ticket::hash_of(TicketKind::BrowserSession, cookie) else {
            return Ok(None);
        };
        let Some((mut session, Some(user))) = self.answer(self.store.session(&hash)).await? else {
            return Ok(None);
        };
        let now = self.clock.now();
        let is_its_own = !user.disabled && user.epoch == session.user_epoch;
        if !is_its_own || !session.lives(now, self.idle) {
            return Ok(None);
        }
        if session.is_news(now, party) {
            self.answer(self.store.note_session(session.id, party, now))
                .await?;
            session.seen_at = session.seen_at.max(now);
            session.last = party.clone();
        }
        Ok(Some(Present { session, user }))
    }

    /// Whether a cookie of which [`Self::find`] knows no living session is known to be good for nothing
    /// any more. One that is not known may have been replaced a moment ago: its browser has another
    /// one by now, which must stay.
    pub async fn is_over(&self, cookie: &str) -> Result<bool, SessionError> {
        let Some(hash) = Ticket::hash_of(TicketKind::BrowserSession, cookie) else {
            return Ok(true);
        };
        let Some((session, user)) = self.answer(self.store.session(&hash)).await? else {
            return Ok(false);
        };
        let is_its_own =
            user.is_some_and(|user| !user.disabled && user.epoch == session.user_epoch);
        Ok(!is_its_own || !session.lives(self.clock.now(), self.idle))
    }

    /// Ends a session, with the sign-ins at clients that it has brought. One that has ended already
    /// stays so.
    pub async fn end(&self, id: SessionId, cause: &Cause) -> Result<(), SessionError> {
        let now = self.clock.now();
        let change = Change::EndSession {
            session: id,
            tokens_die_at: now.plus(self.token_retention),
        };
        match self.answer(self.store.apply(&change, cause, now)).await {
            Ok(_) | Err(StoreError::Conflict) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        store::in_time(&self.clock, answer).await
    }
}
