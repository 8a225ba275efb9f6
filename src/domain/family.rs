//! Refresh-token families: what a sign-in is, and what becomes of a presented refresh token.
//!
//! A family is one sign-in of one user at one client. It counts its refreshes; the token that it is
//! at carries the same counter, and every earlier one is spent. [`judge`] is the only place where a
//! presented token is judged, on whatever engine.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    change::{Cause, Origin},
    claims::RequestedClaims,
    factor::{ONE_FACTOR, acr},
    id::{ClientId, FamilyId, SessionId, UserId},
    name::named,
    resource::ResourceUri,
    revocation::LONGEST_PAUSE,
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
        /// Its user has taken back what it had allowed the client.
        ConsentWithdrawn = "consent_withdrawn",
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
    /// What of the user was asked for by name (`OpenID` Connect Core §5.5).
    pub claims: RequestedClaims,
}

impl Grant {
    /// Whether it goes on after the session of the browser that has brought it.
    pub fn outlasts_its_session(&self) -> bool {
        self.scope.is_offline()
    }

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
    /// Whoever sent a request.
    pub fn of_origin(origin: &Origin) -> Self {
        Self::at(Some(origin.address.to_string()), origin.user_agent.as_ref())
    }

    /// Whoever caused something.
    pub fn of(cause: &Cause) -> Self {
        Self::at(cause.address.clone(), cause.user_agent.as_ref())
    }

    fn at(address: Option<String>, user_agent: Option<&String>) -> Self {
        let beginning = |agent: &String| agent.chars().take(LONGEST_USER_AGENT).collect();
        Self {
            address,
            user_agent: user_agent.map(beginning),
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
    /// Whether it stands for the session itself at its client: then it has no refresh tokens, and
    /// whatever the session becomes it becomes, too.
    pub for_session: bool,
    /// How often it was refreshed; the token of this counter is the one that is not spent.
    pub counter: i64,
    /// The version of the MAC key that the token of `counter` was minted with.
    pub mac_version: u32,
    /// The first counter whose token was minted with that key.
    pub mac_since: i64,
    /// When the token of `counter` was minted.
    pub rotated_at: Timestamp,
    /// When the user signed in.
    pub created_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub idle_expires_at: Timestamp,
    /// When it ends in any case; of a session's, moves when the user authenticates again.
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
    /// Only those that have not ended by this moment, as far as that shows without a look at keys and
    /// browsers.
    pub living_at: Option<Timestamp>,
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
    /// Whether its users have to sign in with a second factor.
    pub second_factor_required: bool,
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
    /// Whether the user has to sign in with a second factor.
    pub second_factor_required: bool,
    /// Tokens of the user issued before this moment are revoked.
    pub tokens_not_before: Option<Timestamp>,
    /// The user's name.
    pub username: String,
    /// The `roles` of access tokens (RFC 9068 §2.2.3.1).
    pub roles: Vec<String>,
    /// Further claims of access tokens.
    pub claims: Map<String, Value>,
}

/// Client, user and session of a family as they are now; none is one that has been removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The client.
    pub client: Option<ClientStanding>,
    /// The user.
    pub user: Option<UserStanding>,
    /// When the session of the browser was ended that has brought the family; none if it was not, or
    /// there was none.
    pub session_ended_at: Option<Timestamp>,
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
            _ if self.session_ended_at.is_some() && !grant.outlasts_its_session() => {
                Some(Refusal::Ended)
            }
            _ => None,
        }
    }

    /// Whether client or user wants a second factor by now that the grant is without. The user may
    /// prove one at the next sign-in: nothing has ended by that.
    pub fn lacks_factor(&self, grant: &Grant) -> bool {
        let client = self.client.as_ref();
        let user = self.user.as_ref();
        let is_required = client.is_some_and(|client| client.second_factor_required)
            || user.is_some_and(|user| user.second_factor_required);
        is_required && acr(&grant.amr) == ONE_FACTOR
    }

    /// From when on new tokens count.
    pub fn tokens_not_before(&self) -> Option<Timestamp> {
        let client = self
            .client
            .as_ref()
            .and_then(|client| client.tokens_not_before);
        client.max(self.user.as_ref().and_then(|user| user.tokens_not_before))
    }

    /// Whether new tokens count only when a client would no longer wait for one.
    pub fn is_before_new_tokens(&self, now: Timestamp) -> bool {
        self.tokens_not_before()
            .is_some_and(|not_before| not_before.since(now) > LONGEST_PAUSE)
    }
}

/// A refresh token that a client has presented. Its MAC was right, and the client is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presentation {
    /// The token's family.
    pub family: FamilyId,
    /// The token's counter.
    pub counter: i64,
    /// The version of the MAC key that the token was minted with.
    pub mac_version: u32,
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
        /// What the client may have for its users now: nothing is issued for anything else.
        offered: Vec<ResourceUri>,
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
    /// There is no such family, or there is no more; or it never had such a token.
    Unknown,
    /// It is another client's.
    OtherClient,
    /// It is bound to another key.
    OtherKey,
    /// The family has ended.
    Ended,
    /// The session that it would be of has ended.
    SignedOut,
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
    /// The resource is none that was granted, or nothing is left of what was.
    Target,
    /// The user, or whoever signs in at the client, has to prove a second factor, and has not.
    OneFactor,
    /// The clock was set back: tokens issued now are revoked.
    NotYet,
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
    let is_its_own = family.can_have_minted(presented.counter, presented.mac_version);
    let (scope, resources, offered) = match &presented.intent {
        Intent::Revoke if !is_its_own => return Verdict::Refused(Refusal::Unknown),
        Intent::Revoke => {
            let is_over = family.ending(standing, now).is_some();
            return if is_over {
                Verdict::Refused(Refusal::Ended)
            } else {
                Verdict::Ended
            };
        }
        Intent::Refresh {
            scope,
            resources,
            offered,
        } => (scope, resources, offered),
    };
    if grant.dpop_jkt.is_some() && presented.dpop_jkt != grant.dpop_jkt {
        return Verdict::Refused(Refusal::OtherKey);
    }
    if !is_its_own {
        return Verdict::Refused(Refusal::Unknown);
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
    // What cannot be answered spends nothing: whoever comes again would pass for a thief.
    let wanted = match &resources[..] {
        [] => &grant.resources,
        _ => resources,
    };
    if !wanted.iter().any(|uri| offered.contains(uri)) {
        return Verdict::Refused(Refusal::Target);
    }
    if standing.lacks_factor(grant) {
        return Verdict::Refused(Refusal::OneFactor);
    }
    if standing.is_before_new_tokens(now) {
        return Verdict::Refused(Refusal::NotYet);
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
            for_session: false,
            counter: 0,
            mac_version: terms.mac_version,
            mac_since: 0,
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

    /// Whether a token of this counter, made with this version of the MAC key, can be one of the
    /// family's: each was minted with one key, and keys only ever become newer. What is ahead of the
    /// family may be from before commits were lost.
    ///
    /// # Security
    /// Whoever has got hold of a key that has been replaced chooses the counter.
    pub fn can_have_minted(&self, counter: i64, mac_version: u32) -> bool {
        if self.for_session {
            return false;
        }
        if counter > self.counter {
            mac_version >= self.mac_version
        } else if counter >= self.mac_since {
            mac_version == self.mac_version
        } else {
            mac_version < self.mac_version
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
        // A clock that was set back may take an earlier key for the active one: none follows a newer.
        let mac_version = terms.mac_version.max(presented.mac_version);
        self.counter = from.saturating_add(1);
        if mac_version != presented.mac_version {
            self.mac_since = self.counter;
        } else if mac_version != self.mac_version {
            self.mac_since = from;
        }
        self.mac_version = mac_version;
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

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

    const TERMS: Terms = Terms {
        mac_version: 9,
        idle: Duration::from_hours(24),
        tokens_die_at: NOW,
    };

    fn client_id(text: &str) -> ClientId {
        ClientId::parse(text).unwrap()
    }

    fn cause(name: &str) -> Cause {
        Cause {
            address: Some(name.to_owned()),
            ..Cause::default()
        }
    }

    fn family(counter: i64) -> Family {
        let grant = Grant {
            client_id: client_id("app"),
            client_epoch: 1,
            subject: UserId::from_uuid(Uuid::nil()),
            user_epoch: 2,
            session_id: None,
            scope: Scope::parse("read write").unwrap(),
            resources: vec![ResourceUri::parse("urn:a").unwrap()],
            auth_time: NOW,
            amr: Vec::new(),
            dpop_jkt: None,
            claims: RequestedClaims::default(),
        };
        let id = FamilyId::from_uuid(Uuid::max());
        let life = Duration::from_hours(30 * 24);
        Family {
            counter,
            ..Family::open(id, grant, life, &TERMS, &cause("opened"), NOW)
        }
    }

    fn client(policy: RefreshPolicy) -> ClientStanding {
        ClientStanding {
            epoch: 1,
            disabled: false,
            second_factor_required: false,
            policy,
            tokens_not_before: None,
        }
    }

    fn user() -> UserStanding {
        UserStanding {
            epoch: 2,
            disabled: false,
            second_factor_required: false,
            tokens_not_before: None,
            username: "ada".to_owned(),
            roles: Vec::new(),
            claims: Map::new(),
        }
    }

    fn standing(policy: RefreshPolicy) -> Standing {
        Standing {
            client: Some(client(policy)),
            user: Some(user()),
            session_ended_at: None,
        }
    }

    fn refresh(counter: i64) -> Presentation {
        Presentation {
            family: FamilyId::from_uuid(Uuid::max()),
            counter,
            mac_version: TERMS.mac_version,
            client_id: client_id("app"),
            dpop_jkt: None,
            intent: Intent::Refresh {
                scope: None,
                resources: Vec::new(),
                offered: vec![ResourceUri::parse("urn:a").unwrap()],
            },
            cause: cause("presented"),
        }
    }

    /// Counters near each other, and those at the ends of what there is.
    fn counters() -> impl Strategy<Value = i64> {
        prop_oneof![8 => 0i64..12, 1 => select(vec![i64::MIN, -1, i64::MAX - 1, i64::MAX])]
    }

    /// Moments around the boundaries of a family that was last refreshed at [`NOW`].
    fn moments() -> impl Strategy<Value = Timestamp> {
        let spans = [0, 30, 900, 24 * 3600, 30 * 24 * 3600].map(|seconds| seconds * 1000);
        let near = (select(spans.to_vec()), -2i64..3)
            .prop_map(|(span, by)| Timestamp::from_millis(NOW.millis() + span + by));
        let ends = select(vec![i64::MIN, 0, i64::MAX]).prop_map(Timestamp::from_millis);
        prop_oneof![20 => near, 1 => ends]
    }

    fn families() -> impl Strategy<Value = Family> {
        let replays = prop::collection::vec((0i64..12, any::<bool>()), 0..12);
        (
            counters(),
            moments(),
            prop::option::weighted(0.2, moments()),
            prop::option::of(Just("key".to_owned())),
            0i64..4,
            replays,
        )
            .prop_map(
                |(counter, rotated_at, revoked_at, dpop_jkt, by_key, notes)| {
                    let mut family = family(counter);
                    family.mac_since = counter.saturating_sub(by_key);
                    for (counter, is_replay) in notes {
                        let kind = if is_replay {
                            NoteKind::Replayed
                        } else {
                            NoteKind::Recovered
                        };
                        family.notes.push(Note {
                            at: NOW,
                            kind,
                            counter,
                            party: Party::default(),
                        });
                    }
                    family.rotated_at = rotated_at;
                    family.revoked_at = revoked_at;
                    family.grant.dpop_jkt = dpop_jkt;
                    family
                },
            )
    }

    fn standings() -> impl Strategy<Value = Standing> {
        let policy = select(RefreshPolicy::ALL);
        let seldom = || prop::bool::weighted(0.1);
        let client =
            (policy, 0i64..2, seldom(), seldom()).prop_map(|(policy, epoch, disabled, strict)| {
                ClientStanding {
                    epoch,
                    disabled,
                    second_factor_required: strict,
                    ..client(policy)
                }
            });
        let user =
            (1i64..3, seldom(), seldom()).prop_map(|(epoch, disabled, strict)| UserStanding {
                epoch,
                disabled,
                second_factor_required: strict,
                ..user()
            });
        let (client, user) = (
            prop::option::weighted(0.9, client),
            prop::option::weighted(0.9, user),
        );
        (client, user).prop_map(|(client, user)| Standing {
            client,
            user,
            session_ended_at: None,
        })
    }

    fn presentations() -> impl Strategy<Value = Presentation> {
        let scope = select(vec![None, Some(""), Some("read"), Some("read admin")]);
        let uris = select(vec![vec![], vec!["urn:a"], vec!["urn:a", "urn:b"]]);
        let client = select(vec!["app", "app", "app", "other"]);
        let key = select(vec![None, Some("key"), Some("other")]);
        (
            counters(),
            client,
            key,
            scope,
            uris,
            prop::bool::weighted(0.1),
            TERMS.mac_version - 1..TERMS.mac_version + 2,
        )
            .prop_map(|(counter, client, key, scope, uris, is_end, mac_version)| {
                Presentation {
                    mac_version,
                    client_id: client_id(client),
                    dpop_jkt: key.map(str::to_owned),
                    intent: if is_end {
                        Intent::Revoke
                    } else {
                        Intent::Refresh {
                            scope: scope.map(|text| Scope::parse(text).unwrap()),
                            resources: uris
                                .into_iter()
                                .map(|uri| ResourceUri::parse(uri).unwrap())
                                .collect(),
                            offered: vec![ResourceUri::parse("urn:a").unwrap()],
                        }
                    },
                    ..refresh(counter)
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_is_presented_is_judged_and_moves_nothing_but_forward(
            before in families(),
            standing in standings(),
            presented in presentations(),
            now in moments(),
        ) {
            let verdict = judge(&before, &standing, &presented, now);
            let mut after = before.clone();
            let is_changed = after.follow(verdict, &presented, &TERMS, now);
            prop_assert!(is_changed || after == before);
            if matches!(verdict, Verdict::Refused(_)) {
                prop_assert!(!is_changed);
            }
            if before.revoked_at.is_some() {
                prop_assert!(matches!(verdict, Verdict::Refused(_)));
            }
            if presented.client_id != before.grant.client_id {
                prop_assert_eq!(verdict, Verdict::Refused(Refusal::OtherClient));
            }
            let ends = matches!(verdict, Verdict::Reused | Verdict::Ended);
            prop_assert_eq!(after.revoked_at.is_some(), ends || before.revoked_at.is_some());
            // The counter follows the token, and only that of the newest, or of one ahead, moves it.
            let expected = match verdict {
                Verdict::Granted(Turn::Rotated) => {
                    prop_assert_eq!(presented.counter, before.counter);
                    before.counter.saturating_add(1)
                }
                Verdict::Granted(Turn::Recovered) => {
                    prop_assert!(presented.counter > before.counter);
                    presented.counter.saturating_add(1)
                }
                _ => before.counter,
            };
            prop_assert_eq!(after.counter, expected);
            prop_assert!(after.counter >= before.counter);
            prop_assert!(after.mac_version >= before.mac_version);
            if after.counter == before.counter && before.counter < i64::MAX {
                prop_assert_eq!(after.rotated_at, before.rotated_at, "the window was moved");
                prop_assert_eq!(after.mac_version, before.mac_version);
            }
            prop_assert_eq!(&after.grant, &before.grant);
            prop_assert_eq!(&after.first, &before.first);
            prop_assert_eq!(after.expires_at, before.expires_at);
            prop_assert!(after.idle_expires_at <= after.expires_at);
            prop_assert!(after.notes.iter().count() <= MOST_NOTES);
            prop_assert_eq!(Notes::parse(&after.notes.to_text()), Some(after.notes));
        }

        #[test]
        fn of_all_tokens_one_is_good_and_one_is_served_again(
            family in families(),
            standing in standings(),
            now in moments(),
        ) {
            prop_assume!((0..12).contains(&family.counter));
            for counter in 0..=family.counter {
                let key = family.grant.dpop_jkt.clone();
                let presented = Presentation { dpop_jkt: key, ..refresh(counter) };
                let behind = family.counter - counter;
                match judge(&family, &standing, &presented, now) {
                    Verdict::Granted(Turn::Rotated | Turn::Kept) => prop_assert_eq!(behind, 0),
                    Verdict::Granted(Turn::Replayed { is_first }) => {
                        prop_assert_eq!(behind, 1);
                        let policy = standing.client.as_ref().unwrap().policy;
                        prop_assert!(now < family.rotated_at.plus(policy.window()));
                        prop_assert_eq!(is_first, !family.notes.has_replay_at(family.counter));
                    }
                    Verdict::Granted(Turn::Recovered) => prop_assert!(false, "nothing is ahead"),
                    Verdict::Reused | Verdict::Refused(Refusal::Superseded) => prop_assert!(behind > 0),
                    Verdict::Ended => prop_assert!(false, "nobody wished for that"),
                    Verdict::Refused(_) => {}
                }
            }
        }

        #[test]
        fn a_presentation_that_comes_twice_is_granted_once_more_or_ends_the_family(
            family in families(),
            standing in standings(),
            presented in presentations(),
            now in moments(),
        ) {
            let first = judge(&family, &standing, &presented, now);
            let mut after = family.clone();
            after.follow(first, &presented, &TERMS, now);
            let second = judge(&after, &standing, &presented, now);
            match first {
                Verdict::Refused(refusal) => prop_assert_eq!(second, Verdict::Refused(refusal)),
                Verdict::Reused | Verdict::Ended => {
                    prop_assert!(matches!(second, Verdict::Refused(_)));
                }
                Verdict::Granted(Turn::Kept) => prop_assert_eq!(second, first),
                Verdict::Granted(Turn::Replayed { .. }) => {
                    prop_assert_eq!(second, Verdict::Granted(Turn::Replayed { is_first: false }));
                }
                Verdict::Granted(Turn::Rotated | Turn::Recovered) => {
                    let is_replay = matches!(second, Verdict::Granted(Turn::Replayed { .. }));
                    let policy = standing.client.as_ref().unwrap().policy;
                    let is_last = after.counter == i64::MAX;
                    prop_assert!(is_last || is_replay != policy.window().is_zero());
                    prop_assert!(is_last || is_replay || second == Verdict::Reused);
                }
            }
        }
    }

    #[test]
    fn what_a_session_has_brought_ends_with_it_unless_it_was_to_outlast_it() {
        let ended = Standing {
            session_ended_at: Some(Timestamp::from_seconds(1)),
            ..standing(RefreshPolicy::Standard)
        };
        let brought = family(0).grant;
        assert_eq!(ended.refusal(&brought), Some(Refusal::Ended));
        let offline = Grant {
            scope: Scope::parse("read offline_access").unwrap(),
            ..brought
        };
        assert_eq!(ended.refusal(&offline), None);
    }

    /// Whatever is wrong with client and user: what comes first is what is told.
    #[test]
    fn what_is_wrong_with_client_and_user_is_told_in_one_order() {
        let clients = [(false, 1), (true, 1), (false, 7), (true, 7)].map(|(disabled, epoch)| {
            Some(ClientStanding {
                epoch,
                disabled,
                ..client(RefreshPolicy::Standard)
            })
        });
        let users = [(false, 2), (true, 2), (false, 7), (true, 7)].map(|(disabled, epoch)| {
            Some(UserStanding {
                epoch,
                disabled,
                ..user()
            })
        });
        for client in clients.iter().chain([&None]) {
            for user in users.iter().chain([&None]) {
                let wrongs = [
                    (client.is_none(), Refusal::ClientSessionsEnded),
                    (user.is_none(), Refusal::UserDeleted),
                    (
                        client.as_ref().is_some_and(|it| it.disabled),
                        Refusal::ClientDisabled,
                    ),
                    (
                        user.as_ref().is_some_and(|it| it.disabled),
                        Refusal::UserDisabled,
                    ),
                    (
                        client.as_ref().is_some_and(|it| it.epoch == 7),
                        Refusal::ClientSessionsEnded,
                    ),
                    (
                        user.as_ref().is_some_and(|it| it.epoch == 7),
                        Refusal::UserSessionsEnded,
                    ),
                ];
                let first = wrongs
                    .iter()
                    .find(|(is_so, _)| *is_so)
                    .map(|(_, refusal)| *refusal);
                let standing = Standing {
                    client: client.clone(),
                    user: user.clone(),
                    session_ended_at: None,
                };
                assert_eq!(standing.refusal(&family(0).grant), first, "{standing:?}");
            }
        }
    }

    #[test]
    fn new_tokens_count_from_the_later_of_two_moments() {
        let of = |client_at, user_at| {
            let mut standing = standing(RefreshPolicy::Standard);
            let moment = |seconds: Option<i64>| seconds.map(Timestamp::from_seconds);
            standing.client.as_mut().unwrap().tokens_not_before = moment(client_at);
            standing.user.as_mut().unwrap().tokens_not_before = moment(user_at);
            standing.tokens_not_before().map(Timestamp::seconds)
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(1), None), Some(1));
        assert_eq!(of(None, Some(2)), Some(2));
        assert_eq!(of(Some(1), Some(2)), Some(2));
        assert_eq!(of(Some(3), Some(2)), Some(3));
        assert_eq!(Standing::default().tokens_not_before(), None);
    }

    #[test]
    fn notes_of_a_later_version_are_left_out_and_what_is_none_is_refused() {
        let text = r#"[[1,"later",0,null,null],[2,"replayed",3,"a","b"],"?",[],{},[1,2,3]]"#;
        let notes = Notes::parse(text).unwrap();
        let expected = Note {
            at: Timestamp::from_millis(2),
            kind: NoteKind::Replayed,
            counter: 3,
            party: Party {
                address: Some("a".to_owned()),
                user_agent: Some("b".to_owned()),
            },
        };
        assert_eq!(notes.iter().collect::<Vec<_>>(), [&expected]);
        for bad in ["", "[", "{}", "null", "1", "[1,2"] {
            assert_eq!(Notes::parse(bad), None, "{bad}");
        }
        assert_eq!(Notes::default().to_text(), "[]");
    }

    #[test]
    fn the_oldest_replay_gives_way_first() {
        let mut family = family(0);
        let mut note = |kind| {
            family.counter += 1;
            family.note(kind, &cause("x"), NOW);
            let kept = family.notes.iter().map(|note| note.counter);
            kept.collect::<Vec<_>>()
        };
        for kind in [
            NoteKind::Recovered,
            NoteKind::Replayed,
            NoteKind::CodeReused,
        ] {
            note(kind);
        }
        for _ in 4..8 {
            note(NoteKind::Replayed);
        }
        assert_eq!(note(NoteKind::Recovered), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(note(NoteKind::Replayed), [1, 3, 4, 5, 6, 7, 8, 9]);
        for _ in 10..15 {
            note(NoteKind::Recovered);
        }
        // Where there is none, the oldest.
        assert_eq!(note(NoteKind::Reused), [3, 8, 10, 11, 12, 13, 14, 15]);
    }
}
