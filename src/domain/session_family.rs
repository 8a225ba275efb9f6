//! What a session of a browser is at a client that has access tokens for it without a code: a family
//! of its own, one for each session and client, which has no refresh tokens.
//!
//! It follows the session: when and how the user authenticated, and for how long that counts. It ends
//! with the session, and before that by whatever ends families. One that has ended by itself stays so
//! until the user authenticates again, as the pages that it was for would bring it back at once.

use std::{collections::BTreeSet, time::Duration};

use super::{
    browser_session::BrowserSession,
    change::Cause,
    claims::RequestedClaims,
    consent::Permission,
    factor::{ONE_FACTOR, acr},
    family::{EndReason, Family, Grant, Party, Refusal, Standing, Terms, UserStanding},
    id::{ClientId, FamilyId, SessionId},
    resource::ResourceUri,
    scope::Scope,
};
use crate::clock::Timestamp;

/// What is asked for in the name of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionGrant {
    /// Which session.
    pub session: SessionId,
    /// How long it may go unused.
    pub idle: Duration,
    /// The client that is to have tokens.
    pub client_id: ClientId,
    /// Its epoch, as known to whoever has judged what it may have.
    pub client_epoch: i64,
    /// Whether its users have to sign in with a second factor.
    pub second_factor_required: bool,
    /// What they may be good for.
    pub scope: Scope,
    /// And where.
    pub resources: Vec<ResourceUri>,
    /// What the user allows the client, from which both were drawn; nothing where that is not asked.
    pub allowed: BTreeSet<Permission>,
    /// What the family is called if there is none yet.
    pub family_id: FamilyId,
    /// The terms of such a family.
    pub terms: Terms,
    /// Who asks.
    pub cause: Cause,
}

/// What has come of it.
#[derive(Clone, Debug)]
pub enum SessionFamily {
    /// The family, as it is now.
    Open {
        /// The session.
        session: Box<BrowserSession>,
        /// Its family at the client.
        family: Box<Family>,
        /// Client and user.
        standing: Box<Standing>,
    },
    /// Nothing.
    Refused(Refusal),
}

/// What is to be done about a family, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It lives, and is as it should be.
    Keep,
    /// It is made to follow the session.
    Follow,
    /// It is over, or there is none: another one is opened.
    Open,
    /// It was ended, and the user has not authenticated since.
    Refuse,
}

impl Course {
    /// What is to be done about the latest family of a session at a client of this epoch. Whether it
    /// follows the session is not asked here.
    pub fn of(session: &BrowserSession, client_epoch: i64, family: Option<&Family>) -> Self {
        let Some(family) = family else {
            return Self::Open;
        };
        // Another epoch means that it is over for a reason that the session has outlived.
        if family.grant.client_epoch != client_epoch
            || family.grant.user_epoch != session.user_epoch
        {
            return Self::Open;
        }
        match family.revoked_at {
            None => Self::Keep,
            // The user has given the consent again: otherwise nobody would ask.
            Some(_) if family.revoke_reason == Some(EndReason::ConsentWithdrawn) => Self::Open,
            Some(revoked_at) if session.auth_time > revoked_at => Self::Open,
            Some(_) => Self::Refuse,
        }
    }
}

impl SessionGrant {
    /// Why the session has no tokens at `now`, if so.
    pub fn refusal(
        &self,
        session: &BrowserSession,
        user: Option<&UserStanding>,
        now: Timestamp,
    ) -> Option<Refusal> {
        let Some(user) = user else {
            return Some(Refusal::UserDeleted);
        };
        let is_required = self.second_factor_required || user.second_factor_required;
        if session.ended_at.is_some() {
            Some(Refusal::SignedOut)
        } else if user.disabled {
            Some(Refusal::UserDisabled)
        } else if user.epoch != session.user_epoch {
            Some(Refusal::UserSessionsEnded)
        } else if now >= session.expires_at {
            Some(Refusal::Expired)
        } else if !session.lives(now, self.idle) {
            Some(Refusal::IdleExpired)
        } else if is_required && acr(&session.amr) == ONE_FACTOR {
            Some(Refusal::OneFactor)
        } else {
            None
        }
    }

    /// What is to be done about the latest family of session and client.
    pub fn course(&self, session: &BrowserSession, family: Option<&Family>) -> Course {
        let is_followed = |family| self.is_followed(session, family);
        match Course::of(session, self.client_epoch, family) {
            Course::Keep if !family.is_some_and(is_followed) => Course::Follow,
            course => course,
        }
    }

    /// A family as it is to be opened.
    pub fn opened(&self, session: &BrowserSession, now: Timestamp) -> Family {
        let lifetime = session.expires_at.since(now);
        let grant = self.grant(session);
        let (terms, cause) = (&self.terms, &self.cause);
        Family {
            for_session: true,
            idle_expires_at: self.idle_expires_at(session),
            expires_at: session.expires_at,
            ..Family::open(self.family_id, grant, lifetime, terms, cause, now)
        }
    }

    /// Makes a family follow its session.
    pub fn follow(&self, session: &BrowserSession, family: &mut Family, now: Timestamp) {
        family.grant = self.grant(session);
        family.idle_expires_at = self.idle_expires_at(session);
        family.expires_at = session.expires_at;
        family.rotated_at = now;
        family.last = Party::of(&self.cause);
    }

    fn is_followed(&self, session: &BrowserSession, family: &Family) -> bool {
        family.grant == self.grant(session)
            && family.idle_expires_at == self.idle_expires_at(session)
            && family.expires_at == session.expires_at
    }

    fn idle_expires_at(&self, session: &BrowserSession) -> Timestamp {
        session.seen_at.plus(self.idle).min(session.expires_at)
    }

    /// What the session stands for at the client.
    pub fn grant(&self, session: &BrowserSession) -> Grant {
        Grant {
            client_id: self.client_id.clone(),
            client_epoch: self.client_epoch,
            subject: session.subject,
            user_epoch: session.user_epoch,
            session_id: Some(session.id),
            scope: self.scope.clone(),
            resources: self.resources.clone(),
            auth_time: session.auth_time,
            amr: session.amr.clone(),
            dpop_jkt: None,
            claims: RequestedClaims::default(),
        }
    }
}
