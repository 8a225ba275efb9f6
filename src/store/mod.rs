//! What is kept in the database, and the only way to it.
//!
//! [`Store`] has one method per atomic use case; there is no transaction object, so nothing above
//! can forget to commit. Whatever a change causes commits with it. Time comes in as `now`.
//! Imports `domain`, `metrics` and `clock` only; nothing above this module knows which engine is in
//! use.
//!
//! To add a method: declare it here, write it once in `sql` with SQL that both engines read, and
//! add its case to `tests/it/store`, which runs on both, and its line in `watched`. Only what one
//! engine cannot say goes into `Dialect`.

mod open;
#[cfg(feature = "postgres")]
mod postgres;
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod watched;

use std::{collections::BTreeSet, io, time::Duration};

use async_trait::async_trait;

pub use self::{
    open::{Access, OpenError, Schema, open},
    watched::watched,
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        assertion::AssertionId,
        browser_session::BrowserSession,
        change::{Applied, Cause, Change, Changes, Position},
        client::Client,
        code::{AuthorizationCode, ChallengeSession, Redeemed, Redemption},
        consent::{Consent, Permission},
        event::{Event, EventQuery},
        factor::{Factors, Passkey, PasskeyId, SealedTotp},
        family::{
            Family, FamilyQuery, Outcome, Party, Presentation, Standing, Terms, UserStanding,
        },
        id::{ClientId, FamilyId, MasterKeyId, NodeId, SessionId, UserId},
        key::{KeySchedule, KeyUse, SealedKey},
        logout_notice::{ClaimedNotices, LogoutNotice, NoticeClaim, Settling},
        node::{Environment, Node},
        resource::Resource,
        revocation::Revocation,
        secret::SecretHash,
        session_family::{SessionFamily, SessionGrant},
        user::{User, UsernameKey},
    },
};

/// Why the store did not do as asked; the variants differ in who must act.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or did not answer: try again later.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The database answered that it does not do this: its permissions or its schema are wrong.
    #[error("the database refused")]
    Refused(#[source] sqlx::Error),
    /// Somebody else was faster, or it exists already: tell the caller.
    #[error("the stored state is not the expected one")]
    Conflict,
    /// A row holds what this program never writes: somebody must look at it.
    #[error("the database holds a value that cannot be: {table}.{column} of {id}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row, as far as it is known.
        id: String,
    },
}

impl StoreError {
    /// The variant, for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Refused(_) => "refused",
            Self::Conflict => "conflict",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

/// How long the database may take to answer a request.
pub const ANSWER: Duration = Duration::from_secs(4);

/// Waits for the database, but no longer than a client would: then it counts as not available.
pub async fn in_time<T>(
    clock: &AgreedClock,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::select! {
        answer = answer => answer,
        () = clock.sleep(ANSWER) => {
            let error = io::Error::from(io::ErrorKind::TimedOut);
            Err(StoreError::Unavailable(sqlx::Error::Io(error)))
        }
    }
}

/// Everything that the nodes keep in memory, as of one position.
#[derive(Debug)]
pub struct Snapshot {
    /// Where in the order of changes it was taken.
    pub position: Position,
    /// Every client.
    pub clients: Vec<Client>,
    /// Every resource.
    pub resources: Vec<Resource>,
    /// The schedule of signing keys.
    pub schedule: KeySchedule,
    /// The schedule of refresh-MAC keys.
    pub mac_schedule: KeySchedule,
    /// The schedule of keys for RS256.
    pub rs256_schedule: KeySchedule,
    /// Every entry of revocation.
    pub revocations: Vec<Revocation>,
}

/// What the sweeper may delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries and assertions that are over by now.
    pub now: Timestamp,
    /// Changes up to this moment; a node that has not read them reads everything again.
    pub changes_before: Timestamp,
    /// Events up to this moment; none keeps them all.
    pub events_before: Option<Timestamp>,
    /// Families and sessions of browsers that ended up to this moment.
    pub families_before: Timestamp,
}

/// What the sweeper has deleted, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries of revocation.
    pub revocations: u64,
    /// Used assertions.
    pub assertions: u64,
    /// Changes.
    pub changes: u64,
    /// Events.
    pub events: u64,
    /// Authorization codes.
    pub codes: u64,
    /// Unfinished sign-ins.
    pub challenges: u64,
    /// Families whose absolute life is over.
    pub families: u64,
    /// Sessions of browsers.
    pub sessions: u64,
}

impl Swept {
    /// Whether a batch of `limit` rows was full, so that there may be more.
    pub fn is_full(&self, limit: u32) -> bool {
        [
            self.revocations,
            self.assertions,
            self.changes,
            self.events,
            self.codes,
            self.challenges,
            self.families,
            self.sessions,
        ]
        .into_iter()
        .any(|count| count >= u64::from(limit))
    }
}

/// A step of the walk through all families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// How many families were deleted.
    pub deleted: u64,
    /// The last one looked at; none at the end of the walk.
    pub next: Option<FamilyId>,
}

/// The database.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes a change, with its event, its entries on the feed and its place in the order.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the expected revision has passed, or the id or name is taken.
    async fn apply(
        &self,
        change: &Change,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<Applied, StoreError>;

    /// The changes after `at`, in the order in which they were committed, at most `limit`.
    ///
    /// A head behind `at` means that the database has lost changes, as after a failover: a new
    /// epoch is then written, so that every node reads everything again.
    async fn changes_since(
        &self,
        at: Position,
        limit: u32,
        now: Timestamp,
    ) -> Result<Changes, StoreError>;

    /// Returns when there may be changes. A hint: it can stay away, so that its caller also polls.
    async fn changed(&self);

    /// The database's own clock.
    async fn database_time(&self) -> Result<Timestamp, StoreError>;

    /// Everything, as of one position.
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// One client, if there is one of this id.
    async fn client(&self, id: &ClientId) -> Result<Option<Client>, StoreError>;

    /// Every client, by id.
    async fn clients(&self) -> Result<Vec<Client>, StoreError>;

    /// Every resource, by identifier.
    async fn resources(&self) -> Result<Vec<Resource>, StoreError>;

    /// One user, if there is one of this id.
    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError>;

    /// The user of this name.
    async fn user_by_name(&self, key: &UsernameKey) -> Result<Option<User>, StoreError>;

    /// Users by id, those after `after`, at most `limit`: there may be millions.
    async fn users(&self, after: Option<UserId>, limit: u32) -> Result<Vec<User>, StoreError>;

    /// A user that the development start has made, if there is one.
    async fn demo_user(&self) -> Result<Option<UserId>, StoreError>;

    /// The key schedule of one use.
    async fn key_schedule(&self, key_use: KeyUse) -> Result<KeySchedule, StoreError>;

    /// The entries of revocation whose place is after `seq`, in their order.
    async fn revocations_since(&self, seq: i64) -> Result<Vec<Revocation>, StoreError>;

    /// Events of the audit trail, in the order in which they were committed.
    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError>;

    /// A family, with what its client and user are now.
    async fn family(&self, id: FamilyId) -> Result<Option<(Family, Standing)>, StoreError>;

    /// Families with what their clients and users are now, the latest first.
    async fn families(&self, query: &FamilyQuery) -> Result<Vec<(Family, Standing)>, StoreError>;

    /// Judges presented refresh tokens and does what the verdicts say, all in one transaction: a
    /// slice of one is one rotation. The outcomes are in the order of the batch.
    ///
    /// What a verdict ends is ended when this returns, whatever becomes of the request.
    async fn rotate(
        &self,
        batch: &[Presentation],
        terms: &Terms,
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError>;

    /// Stores an authorization code under its hash: whether that was done. Not done when client or
    /// user has been disabled or removed since the grant, or their sessions were ended; nor where a
    /// session of a browser has brought it, and the user does not allow the client all of `asked` at
    /// that moment.
    async fn put_code(
        &self,
        hash: &SecretHash,
        code: &AuthorizationCode,
        asked: &BTreeSet<Permission>,
    ) -> Result<bool, StoreError>;

    /// Exchanges a code for a family, once; on whatever node. A code that could have been exchanged,
    /// had it not been before, ends the family that it was exchanged for.
    async fn redeem_code(
        &self,
        redemption: &Redemption,
        now: Timestamp,
    ) -> Result<Redeemed, StoreError>;

    /// The family that a session of a browser has at a client without a code; it is made to follow the
    /// session, or opened. There is one for both, whoever asks, and however many at once.
    async fn session_family(
        &self,
        asked: &SessionGrant,
        now: Timestamp,
    ) -> Result<SessionFamily, StoreError>;

    /// Stores a session of a browser under the hash of what its cookie holds; one that is there
    /// already under another one from then on. Whether that was done: not for one that has ended, or
    /// is another user's.
    async fn put_session(
        &self,
        hash: &SecretHash,
        session: &BrowserSession,
    ) -> Result<bool, StoreError>;

    /// A session, with what its user is now, whatever has become of both.
    async fn session(
        &self,
        hash: &SecretHash,
    ) -> Result<Option<(BrowserSession, Option<UserStanding>)>, StoreError>;

    /// The latest sessions of a user that live at `now`, used after `idle_since`, the latest first.
    async fn sessions(
        &self,
        subject: UserId,
        idle_since: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<BrowserSession>, StoreError>;

    /// Notes that a session was used at `now`.
    async fn note_session(
        &self,
        id: SessionId,
        party: &Party,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// What a user has enrolled beside its password; nothing of one that is not there.
    async fn factors(&self, subject: UserId) -> Result<Factors, StoreError>;

    /// Takes a step of one-time passwords (RFC 6238 §5.2): whether it is later than all that were
    /// taken before. Of those who present a code at once, one has it.
    async fn take_totp_step(&self, subject: UserId, step: i64) -> Result<bool, StoreError>;

    /// One passkey, if there is one of this id.
    async fn passkey(&self, id: &PasskeyId) -> Result<Option<Passkey>, StoreError>;

    /// Notes that a passkey was used, with its counter and what else is known of it by now: whether
    /// the counter has gone on, where it counts.
    async fn note_passkey(&self, passkey: &Passkey, now: Timestamp) -> Result<bool, StoreError>;

    /// How many secrets of second factors each master key seals.
    async fn factors_sealed(&self) -> Result<Vec<(MasterKeyId, usize)>, StoreError>;

    /// Secrets of second factors that another master key seals, at most `limit`.
    async fn factors_sealed_elsewhere(
        &self,
        master: MasterKeyId,
        limit: u32,
    ) -> Result<Vec<SealedTotp>, StoreError>;

    /// Replaces a sealed secret by the same, sealed anew: whether that was done. Not done when it was
    /// replaced already, or the master key is not the primary one any more.
    async fn reseal_factor(
        &self,
        before: &SealedTotp,
        after: &SealedKey,
    ) -> Result<bool, StoreError>;

    /// What a user has allowed a client.
    async fn consent(
        &self,
        subject: UserId,
        client: &ClientId,
    ) -> Result<Option<Consent>, StoreError>;

    /// What a user has allowed, by client.
    async fn consents(&self, subject: UserId) -> Result<Vec<Consent>, StoreError>;

    /// Takes on what clients are to be told and is due at `now`, of each client what has been due for
    /// longest: nobody else takes it on for a while, on whatever node.
    async fn claim_notices(
        &self,
        claim: &NoticeClaim,
        now: Timestamp,
    ) -> Result<ClaimedNotices, StoreError>;

    /// Settles what has come of telling a client something at `now`. Does nothing if somebody else has set
    /// out to tell it since.
    async fn settle_notice(
        &self,
        notice: &LogoutNotice,
        settling: Settling,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Stores an unfinished sign-in under the hash of its `auth_session`.
    async fn put_challenge(
        &self,
        hash: &SecretHash,
        session: &ChallengeSession,
    ) -> Result<(), StoreError>;

    /// Takes an unfinished sign-in of this client out of the store; none if there is none, or it is
    /// over. Nobody can take it twice.
    async fn take_challenge(
        &self,
        hash: &SecretHash,
        client: &ClientId,
        now: Timestamp,
    ) -> Result<Option<ChallengeSession>, StoreError>;

    /// Remembers a client assertion until `expires_at`: whether this was its first use, on whatever
    /// node (RFC 7523 §3, number 7).
    async fn first_use(
        &self,
        assertion: &AssertionId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Deletes what is over, at most `limit` rows of each kind.
    async fn sweep(&self, bounds: &Bounds, limit: u32) -> Result<Swept, StoreError>;

    /// Looks at `limit` families after `after`, by id, and deletes those that were ended, or not
    /// refreshed for too long, up to the moment `before`.
    ///
    /// What tells them changes with each refresh and is in no index, so that all are walked through,
    /// step by step. One that is being refreshed stays.
    async fn sweep_families(
        &self,
        after: Option<FamilyId>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Step, StoreError>;

    /// Throws away every connection: a reading failed or did not end, and what was lost on the way
    /// may never be reported. Does nothing on an engine without a way to lose anything on.
    fn reconnect(&self);

    /// Marks what the database is for, and returns what it is for. Once marked for production it
    /// stays so.
    async fn enter(&self, environment: Environment) -> Result<Environment, StoreError>;

    /// Records a node's sign of life, and forgets those that gave none for a day.
    async fn heartbeat(&self, node: &Node) -> Result<(), StoreError>;

    /// Forgets a node that has stopped.
    async fn forget_node(&self, id: NodeId) -> Result<(), StoreError>;

    /// The nodes that gave a sign of life at or after `since`, by name.
    async fn nodes(&self, since: Timestamp) -> Result<Vec<Node>, StoreError>;

    /// Ends every connection, after what is under way.
    async fn close(&self);
}
