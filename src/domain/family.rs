//! Refresh-token families: what a sign-in is, and what becomes of a presented refresh token.
//!
//! A family is one sign-in of one user at one client. It counts its refreshes; the token that it is
//! at carries the same counter, and every earlier one is spent. [`judge`] is the only place where a
//! presented token is judged, on whatever engine.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    change::Cause,
    id::{ClientId, FamilyId, SessionId, UserId},
    name::named,
    resource::ResourceUri,
    scope::Scope,
};
use crate::clock::Timestamp;

/// How many notes a family keeps.
const MOST_NOTES: usize = 8;

/// The longest part of a `User-Agent` that a family keeps, in characters.
const LONGEST_USER_AGENT: usize = 128;

/// How far behind a token may be that counts as a late one of several processes, not as stolen.
const MOST_BEHIND: i64 = 8;

named!(
    /// How a client's refresh tokens rotate.
    RefreshPolicy {
        /// No rotation: the same token until the family ends. For clients that authenticate.
        None = "none",
        /// Several processes share one credential: a spent token is served for a quarter of an
        /// hour, and those a little older are refused without ending the family.
        Shared = "shared",
        /// A spent token is served for 30 seconds, so that a lost answer signs nobody out.
        Standard = "standard",
        /// A spent token ends the family at once.
        Strict = "strict",
    }
);

impl RefreshPolicy {
    /// For how long after a rotation the token before it gets the same successor again.
    pub const fn window(self) -> Duration {
        match self {
            Self::None | Self::Strict => Duration::ZERO,
            Self::Shared => Duration::from_mins(15),
            Self::Standard => Duration::from_secs(30),
        }
    }
}

named!(
    /// Why a family has ended before its time.
    EndReason {
        /// The authorization code that opened it was used again.
        CodeReuse = "code_reuse",
        /// A spent refresh token was used again.
        Reuse = "reuse",
        /// Its client revoked it (RFC 7009).
        RevokedByClient = "revoked_by_client",
        /// An operator revoked it.
        RevokedByOperator = "revoked_by_operator",
        /// Its user signed out.
        SignedOut = "signed_out",
    }
);

named!(
    /// What a family is good for.
    FamilyState {
        /// Its newest refresh token is exchanged.
        Active = "active",
        /// None of its tokens is, ever again.
        Ended = "ended",
        /// Its client is disabled: it goes on when that is enabled again.
        Suspended = "suspended",
    }
);

/// What a user has granted to a client: an authorization code stands for it, then a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub client_id: ClientId,
    /// The client's epoch at that time; another one now means that this is over.
    pub client_epoch: i64,
    /// By whom.
    pub subject: UserId,
    /// The user's epoch at that time.
    pub user_epoch: i64,
    /// The browser session it was granted in.
    pub session_id: Option<SessionId>,
    /// What for.
    pub scope: Scope,
    /// Where.
    pub resources: Vec<ResourceUri>,
    /// When the user authenticated (`OpenID` Connect Core §2).
    pub auth_time: Timestamp,
    /// How (RFC 8176).
    pub amr: Vec<String>,
    /// Thumbprint of the key that all its tokens are bound to (RFC 9449 §6.1).
    pub dpop_jkt: Option<String>,
}

impl Grant {
    /// What of this scope and these resources was not granted, if anything. No scope is all of it,
    /// and no resources are all of them.
    pub fn lacks(&self, (scope, resources): (Option<&Scope>, &[ResourceUri])) -> Option<Refusal> {
        if scope.is_some_and(|scope| !scope.is_within(&self.scope)) {
            return Some(Refusal::Scope);
        }
        let is_granted = |resource| self.resources.contains(resource);
        (!resources.iter().all(is_granted)).then_some(Refusal::Target)
    }
}

/// Where a request of a family came from, as far as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    /// The network address.
    pub address: Option<String>,
    /// The beginning of the `User-Agent`.
    pub user_agent: Option<String>,
}

impl Party {
    /// Whoever caused something.
    pub fn of(cause: &Cause) -> Self {
        let beginning = |agent: &String| agent.chars().take(LONGEST_USER_AGENT).collect();
        Self {
            address: cause.address.clone(),
            user_agent: cause.user_agent.as_ref().map(beginning),
        }
    }

    /// As the admin interfaces show it.
    pub fn document(&self) -> Value {
        json!({ "address": self.address, "user_agent": self.user_agent })
    }
}

named!(
    /// What a family remembers besides its beginning and its last refresh.
    NoteKind {
        /// The authorization code was used again.
        CodeReused = "code_reused",
        /// The database had forgotten refreshes: a token was ahead of it.
        Recovered = "recovered",
        /// The token before the last one was presented within the window.
        Replayed = "replayed",
        /// A spent token was presented.
        Reused = "reused",
    }
);

/// Something worth telling about a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: NoteKind,
    /// The counter of the family at that time.
    pub counter: i64,
    /// By whom.
    pub party: Party,
}

impl Note {
    /// The stored form.
    fn to_json(&self) -> Value {
        json!([
            self.at.millis(),
            self.kind.as_str(),
            self.counter,
            self.party.address,
            self.party.user_agent,
        ])
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |index| value.get(index)?.as_str().map(str::to_owned);
        Some(Self {
            at: Timestamp::from_millis(value.get(0)?.as_i64()?),
            kind: value.get(1)?.as_str()?.parse().ok()?,
            counter: value.get(2)?.as_i64()?,
            party: Party {
                address: text(3),
                user_agent: text(4),
            },
        })
    }
}

/// The notes of a family: a bounded number of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes(Vec<Note>);

impl Notes {
    /// Reads the stored form; `None` if it is none. Notes of a kind that a later version writes are
    /// left out.
    pub fn parse(text: &str) -> Option<Self> {
        let notes: Vec<Value> = serde_json::from_str(text).ok()?;
        Some(Self(notes.iter().filter_map(Note::from_json).collect()))
    }

    /// The stored form.
    pub fn to_text(&self) -> String {
        self.0
            .iter()
            .map(Note::to_json)
            .collect::<Value>()
            .to_string()
    }

    /// The earliest first.
    pub fn iter(&self) -> impl Iterator<Item = &Note> {
        self.0.iter()
    }

    /// Adds a note. When there is no room, the oldest replay gives way, or else the oldest note.
    fn push(&mut self, note: Note) {
        if self.0.len() >= MOST_NOTES {
            let replay = self
                .0
                .iter()
                .position(|note| note.kind == NoteKind::Replayed);
            self.0.remove(replay.unwrap_or(0));
        }
        self.0.push(note);
    }

    fn has_replay_at(&self, counter: i64) -> bool {
        let is_one = |note: &Note| note.kind == NoteKind::Replayed && note.counter == counter;
        self.0.iter().any(is_one)
    }
}

/// A family, as stored: one row, however often it is refreshed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Which one.
    pub id: FamilyId,
    /// What was granted.
    pub grant: Grant,
    /// How often it was refreshed; the token of this counter is the one that is not spent.
    pub counter: i64,
    /// The version of the MAC key that the token of `counter` was minted with.
    pub mac_version: u32,
    /// When the token of `counter` was minted.
    pub rotated_at: Timestamp,
    /// When the user signed in.
    pub created_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub idle_expires_at: Timestamp,
    /// When it ends in any case; never moves.
    pub expires_at: Timestamp,
    /// When it was ended.
    pub revoked_at: Option<Timestamp>,
    /// Why; none also for a reason that a later version has written.
    pub revoke_reason: Option<EndReason>,
    /// Who opened it.
    pub first: Party,
    /// Who refreshed it last, or opened it.
    pub last: Party,
    /// What else was worth noting.
    pub notes: Notes,
}

/// Which families to read: the latest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyQuery {
    /// Those of this user.
    pub subject: Option<UserId>,
    /// Those at this client.
    pub client_id: Option<ClientId>,
    /// Those that come after this one in the list, which were opened before it.
    pub after: Option<FamilyId>,
    /// How many at most.
    pub limit: u32,
}

/// What the database says of the client of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStanding {
    /// Its epoch now.
    pub epoch: i64,
    /// Whether it is refused.
    pub disabled: bool,
    /// How its refresh tokens rotate.
    pub policy: RefreshPolicy,
    /// Its tokens issued before this moment are revoked.
    pub tokens_not_before: Option<Timestamp>,
}

/// What the database says of the user of a family.
#[derive(Clone, Debug, PartialEq)]
pub struct UserStanding {
    /// The user's epoch now.
    pub epoch: i64,
    /// Whether the user is refused.
    pub disabled: bool,
    /// Tokens of the user issued before this moment are revoked.
    pub tokens_not_before: Option<Timestamp>,
    /// The user's name.
    pub username: String,
    /// The `roles` of access tokens (RFC 9068 §2.2.3.1).
    pub roles: Vec<String>,
    /// Further claims of access tokens.
    pub claims: Map<String, Value>,
}

/// Client and user of a family as they are now; none is one that has been removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The client.
    pub client: Option<ClientStanding>,
    /// The user.
    pub user: Option<UserStanding>,
}

impl Standing {
    /// Why nothing is issued on this grant any more, if so.
    pub fn refusal(&self, grant: &Grant) -> Option<Refusal> {
        match (&self.client, &self.user) {
            (None, _) => Some(Refusal::ClientSessionsEnded),
            (_, None) => Some(Refusal::UserDeleted),
            (Some(client), _) if client.disabled => Some(Refusal::ClientDisabled),
            (_, Some(user)) if user.disabled => Some(Refusal::UserDisabled),
            (Some(client), _) if client.epoch != grant.client_epoch => {
                Some(Refusal::ClientSessionsEnded)
            }
            (_, Some(user)) if user.epoch != grant.user_epoch => Some(Refusal::UserSessionsEnded),
            _ => None,
        }
    }

    /// From when on new tokens count.
    pub fn tokens_not_before(&self) -> Option<Timestamp> {
        let client = self
            .client
            .as_ref()
            .and_then(|client| client.tokens_not_before);
        client.max(self.user.as_ref().and_then(|user| user.tokens_not_before))
    }
}

/// A refresh token that a client has presented. Its MAC was right, and the client is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presentation {
    /// The token's family.
    pub family: FamilyId,
    /// The token's counter.
    pub counter: i64,
    /// The client that presents it.
    pub client_id: ClientId,
    /// Thumbprint of the key that the client has proved to hold.
    pub dpop_jkt: Option<String>,
    /// What it wants.
    pub intent: Intent,
    /// Where the request came from.
    pub cause: Cause,
}

/// What a refresh token is presented for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// New tokens (RFC 6749 §6).
    Refresh {
        /// Of no more than this scope.
        scope: Option<Scope>,
        /// For no more than these resources; none are all.
        resources: Vec<ResourceUri>,
    },
    /// The end of its family (RFC 7009 §2.1).
    Revoke,
}

/// What holds for every presentation of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The version of the MAC key that new tokens are minted with.
    pub mac_version: u32,
    /// For how long a family lives without being refreshed.
    pub idle: Duration,
    /// When the last access token issued so far is dead.
    pub tokens_die_at: Timestamp,
}

/// Why a presented token gets nothing. Nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such family, or there is no more.
    Unknown,
    /// It is another client's.
    OtherClient,
    /// It is bound to another key.
    OtherKey,
    /// The family has ended.
    Ended,
    /// Its absolute life is over.
    Expired,
    /// It was not refreshed for too long.
    IdleExpired,
    /// The client is disabled.
    ClientDisabled,
    /// The user is disabled.
    UserDisabled,
    /// The user is no more.
    UserDeleted,
    /// Every sign-in at the client was ended, or the client is no more.
    ClientSessionsEnded,
    /// Every sign-in of the user was ended.
    UserSessionsEnded,
    /// Another process has refreshed meanwhile; the family goes on.
    Superseded,
    /// The scope is more than was granted.
    Scope,
    /// The resource is none that was granted.
    Target,
}

/// How a refresh is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The token is spent, and the family has a new one.
    Rotated,
    /// The same token goes on.
    Kept,
    /// The successor that was there already, once more.
    Replayed {
        /// Whether that is worth a note.
        is_first: bool,
    },
    /// The database has lost commits: the family goes on from the token.
    Recovered,
}

/// What becomes of a presented token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Refused(Refusal),
    /// It was spent long ago: the family ends.
    Reused,
    /// Tokens are issued.
    Granted(Turn),
    /// The family ends, as its client wishes.
    Ended,
}

/// Judges a presented token. The order of the cases is part of the rule: whoever is no party to the
/// family can change nothing about it, what has ended stays so, and a spent token is told apart
/// before anything else is asked of the request.
pub fn judge(
    family: &Family,
    standing: &Standing,
    presented: &Presentation,
    now: Timestamp,
) -> Verdict {
    let grant = &family.grant;
    if presented.client_id != grant.client_id {
        return Verdict::Refused(Refusal::OtherClient);
    }
    let (scope, resources) = match &presented.intent {
        Intent::Revoke => {
            let is_over = family.ending(standing, now).is_some();
            return if is_over {
                Verdict::Refused(Refusal::Ended)
            } else {
                Verdict::Ended
            };
        }
        Intent::Refresh { scope, resources } => (scope, resources),
    };
    if grant.dpop_jkt.is_some() && presented.dpop_jkt != grant.dpop_jkt {
        return Verdict::Refused(Refusal::OtherKey);
    }
    if let Some(refusal) = family.ending(standing, now) {
        return Verdict::Refused(refusal);
    }
    let policy = standing
        .client
        .as_ref()
        .map_or(RefreshPolicy::Strict, |client| client.policy);
    let behind = family.counter.saturating_sub(presented.counter);
    // An age below zero, where clocks differ, counts as none.
    let within_window = now.since(family.rotated_at) < policy.window();
    match behind {
        ..=0 => {}
        1 if within_window => {}
        2..=MOST_BEHIND if within_window && policy == RefreshPolicy::Shared => {
            return Verdict::Refused(Refusal::Superseded);
        }
        _ => return Verdict::Reused,
    }
    if let Some(refusal) = grant.lacks((scope.as_ref(), resources)) {
        return Verdict::Refused(refusal);
    }
    Verdict::Granted(match behind {
        0 if policy == RefreshPolicy::None => Turn::Kept,
        0 => Turn::Rotated,
        1.. => Turn::Replayed {
            is_first: !family.notes.has_replay_at(family.counter),
        },
        _ => Turn::Recovered,
    })
}

impl Family {
    /// Opens a family at its first token.
    pub fn open(
        id: FamilyId,
        grant: Grant,
        lifetime: Duration,
        terms: &Terms,
        cause: &Cause,
        now: Timestamp,
    ) -> Self {
        let expires_at = now.plus(lifetime);
        Self {
            id,
            grant,
            counter: 0,
            mac_version: terms.mac_version,
            rotated_at: now,
            created_at: now,
            idle_expires_at: now.plus(terms.idle).min(expires_at),
            expires_at,
            revoked_at: None,
            revoke_reason: None,
            first: Party::of(cause),
            last: Party::of(cause),
            notes: Notes::default(),
        }
    }

    /// Why no token of the family is good any more, if so.
    pub fn ending(&self, standing: &Standing, now: Timestamp) -> Option<Refusal> {
        if self.revoked_at.is_some() {
            return Some(Refusal::Ended);
        }
        if self.expires_at <= now {
            return Some(Refusal::Expired);
        }
        if self.idle_expires_at <= now {
            return Some(Refusal::IdleExpired);
        }
        standing.refusal(&self.grant)
    }

    /// When its access tokens have to end at the latest.
    pub fn ends_at(&self) -> Timestamp {
        self.expires_at.min(self.idle_expires_at)
    }

    /// Does what a verdict says; whether that changed anything.
    pub fn follow(
        &mut self,
        verdict: Verdict,
        presented: &Presentation,
        terms: &Terms,
        now: Timestamp,
    ) -> bool {
        match verdict {
            Verdict::Refused(_) | Verdict::Granted(Turn::Replayed { is_first: false }) => {
                return false;
            }
            Verdict::Reused => {
                self.end(EndReason::Reuse, now);
                self.note(NoteKind::Reused, &presented.cause, now);
            }
            Verdict::Ended => self.end(EndReason::RevokedByClient, now),
            Verdict::Granted(Turn::Replayed { is_first: true }) => {
                self.note(NoteKind::Replayed, &presented.cause, now);
            }
            Verdict::Granted(Turn::Kept) => self.prolong(presented, terms, now),
            Verdict::Granted(Turn::Rotated) => self.rotate(self.counter, presented, terms, now),
            Verdict::Granted(Turn::Recovered) => {
                self.note(NoteKind::Recovered, &presented.cause, now);
                self.rotate(presented.counter, presented, terms, now);
            }
        }
        true
    }

    /// Ends the family.
    pub fn end(&mut self, reason: EndReason, now: Timestamp) {
        self.revoked_at = Some(now);
        self.revoke_reason = Some(reason);
    }

    /// Takes a note.
    pub fn note(&mut self, kind: NoteKind, cause: &Cause, now: Timestamp) {
        self.notes.push(Note {
            at: now,
            kind,
            counter: self.counter,
            party: Party::of(cause),
        });
    }

    fn rotate(&mut self, from: i64, presented: &Presentation, terms: &Terms, now: Timestamp) {
        self.counter = from.saturating_add(1);
        self.mac_version = terms.mac_version;
        self.rotated_at = now;
        self.prolong(presented, terms, now);
    }

    fn prolong(&mut self, presented: &Presentation, terms: &Terms, now: Timestamp) {
        self.idle_expires_at = now.plus(terms.idle).min(self.expires_at);
        self.last = Party::of(&presented.cause);
    }
}

/// What a presentation has led to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The verdict, with the family as it is since.
    Judged {
        /// What became of the token.
        verdict: Verdict,
        /// The family.
        family: Box<Family>,
        /// Its client and user.
        standing: Box<Standing>,
    },
    /// There is no such family.
    Unknown,
    /// Its row cannot be read; nothing was done.
    Illegible,
    /// Somebody holds its row and does not go on; nothing was done.
    Locked,
}
