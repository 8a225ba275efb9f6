//! All SQL that both engines read, once.
//!
//! Portable means: `$1` placeholders, `on conflict`, `returning`, `uuid` ids, 64-bit integers for
//! everything that counts or tells time, `text`. Lists and documents are JSON text.
//!
//! One file per family of tables: `registry`, `users`, `factors`, `keys`, `sessions`, `session_families`,
//! `families`, `notices`, `revocations`, `audit`. The bounds of the generic store stand in each, as Rust cannot name them once.

mod audit;
mod factors;
mod families;
mod keys;
mod notices;
mod registry;
mod revocations;
mod session_families;
mod sessions;
mod users;

use std::{
    collections::BTreeSet,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::{Database, Executor, IntoArguments, Pool, Row as _, Transaction, migrate::Migrate};
use tokio::{sync::Notify, task::AbortHandle};
use uuid::Uuid;

use self::revocations::{Entry, Spans};
pub(super) use self::{
    families::{FamilyUpdate, select_families},
    notices::insert_notices,
};
use super::{Bounds, Snapshot, Step, Store, StoreError, Swept};
use crate::{
    clock::{Clock as _, SystemClock, Timestamp},
    domain::{
        assertion::AssertionId,
        browser_session::BrowserSession,
        change::{Applied, Cause, Change, ChangeRow, Changes, EventType, Position, Topic},
        client::{Client, Revision},
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
        revocation::{LONGEST_CHANGE, Revocation},
        secret::SecretHash,
        session_family::{SessionFamily, SessionGrant},
        user::{User, UsernameKey},
    },
    entropy::{Entropy, EntropyError},
};

/// How often a transaction is tried again that lost to another one.
const ATTEMPTS: u32 = 8;

/// After how long without a sign of life a node is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);

// Small batches in the order of an index: no statement holds locks for long. What is over is asked
// twice, as a row may have been renewed since it was chosen.
const OLD_REVOCATIONS: &str = "delete from revocation where seq in \
     (select seq from revocation where expires_at <= $1 order by expires_at limit $2) \
     and expires_at <= $1 returning seq";
const OLD_ASSERTIONS: &str = "delete from used_assertion where id in \
     (select id from used_assertion where expires_at <= $1 order by expires_at limit $2) \
     and expires_at <= $1 returning id";
const OLD_CHANGES: &str = "delete from change where seq in \
     (select seq from change where at <= $1 order by at limit $2) returning seq";
const OLD_EVENTS: &str = "delete from event where id in \
     (select id from event where at <= $1 order by at limit $2) returning id";
const OLD_CODES: &str = "delete from authorization_code where hash in \
     (select hash from authorization_code where expires_at <= $1 order by expires_at limit $2) \
     returning hash";
const OLD_CHALLENGES: &str = "delete from challenge_session where hash in \
     (select hash from challenge_session where expires_at <= $1 order by expires_at limit $2) \
     returning hash";

const OLD_SESSIONS: &str = "delete from browser_session where id in \
     (select id from browser_session where expires_at <= $1 order by expires_at limit $2) \
     and expires_at <= $1 returning id";

/// What to do about rows that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Wait for them, though not for long.
    Await,
    /// Do without them.
    PassOver,
}

/// What differs between the engines; nothing else may.
#[async_trait]
pub(super) trait Dialect: Database<Connection: Migrate> {
    /// Begins a transaction that will write.
    const BEGIN_WRITE: &'static str;
    /// Begins a transaction whose reads all see the same moment.
    const BEGIN_READ: &'static str;
    /// Selects the database's clock in milliseconds since 1970.
    const DATABASE_TIME: &'static str;

    // What is written or ended at once goes in one statement, however many rows there are: as JSON,
    // which both engines take apart.

    /// Writes changes made at `$2`: `$1` is an array of `[seq, topic, target]`.
    const INSERT_CHANGES: &'static str;
    /// Writes entries of revocation, each in the place of one of the same kind and value: `$1` is an
    /// array of `[seq, kind, value in hexadecimal digits, not_before, expires_at, client_id]`.
    const PUT_ENTRIES: &'static str;
    /// Ends those of the families `$1`, an array of ids, that have not ended, at `$2`, for the reason
    /// `$3`; selects their ids. Locks them in order.
    const END_FAMILIES: &'static str;
    /// Has clients told of the families `$1`, an array of ids, that ended at `$2`: each of the `$3`
    /// latest of its own.
    const NOTIFY_OF_FAMILIES: &'static str;

    /// Takes on at most `$2` notices that are due at `$1`, none that somebody else takes on, until `$3`:
    /// at most `$4` of each client, none of those in the array `$5`. No client waits until another has
    /// been told all.
    const CLAIM_NOTICES: &'static str;

    /// Selects the session `$1` unless it has ended, and keeps everybody else from changing it until
    /// the transaction ends. Not shared: who shares a row does not let pass who waits to change it.
    const HOLD_SESSION: &'static str;

    /// Selects what user `$1` has allowed client `$2`, and keeps it as it is until the transaction
    /// ends.
    const SHARE_CONSENT: &'static str;

    /// Deletes families that expired up to `$1`, at most `$2`, none that somebody else has locked.
    const DELETE_EXPIRED_FAMILIES: &'static str;
    /// Deletes families from behind `$1` to `$2` that were ended, or not refreshed for too long, up
    /// to `$3`; none that somebody else has locked.
    const DELETE_ENDED_FAMILIES: &'static str;

    /// Selects families with client and user, in the order of `ids`, which are sorted, and keeps
    /// the families for this transaction.
    async fn lock_families(
        connection: &mut Self::Connection,
        ids: &[Uuid],
        held: Held,
    ) -> Result<Vec<Self::Row>, sqlx::Error>;

    /// Writes what has changed of families that are locked.
    async fn update_families(
        connection: &mut Self::Connection,
        updates: Vec<FamilyUpdate>,
    ) -> Result<(), sqlx::Error>;

    /// Whether a failure means that somebody has held a row for too long.
    fn is_locked(error: &dyn sqlx::error::DatabaseError) -> bool;

    /// Whether a failure means that another transaction was in the way.
    fn is_contention(error: &dyn sqlx::error::DatabaseError) -> bool;

    /// Tells listening nodes of new changes, with the commit.
    async fn announce(connection: &mut Self::Connection) -> Result<(), sqlx::Error>;

    /// Turns what other processes announce into hints, where the engine lets them announce it.
    fn listen(pool: &Pool<Self>, hints: &Arc<Notify>) -> Option<AbortHandle>;
}

/// The connections of a store.
pub(super) struct Pools<DB: Database> {
    /// Those that may write.
    pub(super) writers: Pool<DB>,
    /// Those that only read.
    pub(super) readers: Pool<DB>,
}

/// The store over one engine.
pub(super) struct SqlStore<DB: Dialect> {
    /// Makes the connections anew, where they can be lost on the way: see [`Store::reconnect`].
    pub(super) connect: Option<Box<dyn Fn() -> Pool<DB> + Send + Sync>>,
    /// The connections in use.
    pub(super) pools: ArcSwap<Pools<DB>>,
    /// Draws the ids of events and epochs.
    pub(super) entropy: Entropy,
    /// Measures how long a change takes.
    pub(super) stopwatch: SystemClock,
    /// Wakes [`Store::changed`].
    pub(super) hints: Arc<Notify>,
    /// The task behind [`Dialect::listen`], begun when hints are first waited for.
    pub(super) listening: Mutex<Option<AbortHandle>>,
    /// The lock on a file that is being served; released by the operating system at the latest.
    pub(super) _serving: Option<File>,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause)
                if cause.is_unique_violation() || cause.is_foreign_key_violation() =>
            {
                Self::Conflict
            }
            sqlx::Error::Database(cause) if !may_pass(&**cause) => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Whether a failure that the database reports is worth another attempt.
///
/// The code is an SQLSTATE, whose first two characters are its class, or a number of `SQLite`.
fn may_pass(error: &dyn sqlx::error::DatabaseError) -> bool {
    let Some(code) = error.code() else {
        return true;
    };
    match code.parse::<u32>() {
        // busy, locked, input or output failed, full, cannot open
        Ok(number) if code.len() < 5 => matches!(number & 0xff, 5 | 6 | 10 | 13 | 14),
        // connection, transaction rollback, resources, operator intervention, system; and that of
        // a transaction in which nothing was done for too long, as this process was halted
        _ => ["08", "25P03", "40", "53", "55", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class)),
    }
}

impl From<EntropyError> for StoreError {
    fn from(error: EntropyError) -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::Error::other(error)))
    }
}

/// A change could not be committed soon enough after the moment it was made at.
fn too_slow() -> StoreError {
    let error = std::io::Error::other("a change took too long; nothing was done");
    StoreError::Unavailable(sqlx::Error::Io(error))
}

/// A value in a row that cannot be.
fn corrupt(table: &'static str, column: &'static str, id: &impl ToString) -> StoreError {
    StoreError::Corrupt {
        table,
        column,
        id: id.to_string(),
    }
}

/// The rows that can be read.
///
/// One that cannot must not keep a node from following the others: a later version may have written
/// it, or somebody by hand. What it stands for is refused meanwhile.
fn legible<T>(rows: Vec<Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
    let mut read = Vec::with_capacity(rows.len());
    for row in rows {
        match row {
            Ok(row) => read.push(row),
            Err(StoreError::Corrupt { table, column, id }) => {
                tracing::error!(table, column, id, "a row that cannot be read is left out");
            }
            Err(other) => return Err(other),
        }
    }
    Ok(read)
}

/// A list as JSON text.
fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Value = items
        .into_iter()
        .map(|item| item.as_ref().to_owned())
        .collect();
    items.to_string()
}

/// A list read from JSON text, each item read by `parse`; `None` if any of it is malformed.
fn unlist<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let items: Vec<String> = serde_json::from_str(text).ok()?;
    items.iter().map(|item| parse(item)).collect()
}

/// One row about to be written into the audit trail.
struct NewEvent {
    kind: EventType,
    target: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// What a change did, before its place is known.
struct Done {
    revision: Revision,
    event: NewEvent,
    published: Vec<Published>,
}

/// One row about to be written into the order of changes.
struct Published {
    topic: Topic,
    target: String,
    /// Gets the same place.
    entry: Option<Entry>,
}

impl Published {
    /// A change of something.
    fn of(topic: Topic, target: &(impl ToString + ?Sized)) -> Self {
        Self {
            topic,
            target: target.to_string(),
            entry: None,
        }
    }
}

impl<DB: Dialect> SqlStore<DB>
where
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'c> &'c Pool<DB>: Executor<'c, Database = DB>,
    for<'a> i64: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<i64>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Uuid: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<Uuid>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> String: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<String>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Vec<u8>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> &'a str: sqlx::ColumnIndex<DB::Row>,
    usize: sqlx::ColumnIndex<DB::Row>,
{
    /// Connections that may write.
    fn writers(&self) -> Pool<DB> {
        self.pools.load().writers.clone()
    }

    /// Connections that only read.
    fn readers(&self) -> Pool<DB> {
        self.pools.load().readers.clone()
    }

    /// Tries again what has lost to another transaction; whoever asked never hears of that.
    async fn uncontended<T, F>(attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut attempts = 1;
        loop {
            match attempt().await {
                Err(StoreError::Unavailable(sqlx::Error::Database(error)))
                    if DB::is_contention(&*error) && attempts < ATTEMPTS =>
                {
                    attempts += 1;
                }
                result => return result,
            }
        }
    }

    fn stop_listening(&self) {
        let mut listening = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(listening) = listening.take() {
            listening.abort();
        }
    }

    /// Applies a change at `now`, when the stopwatch showed `begun`. Does nothing, and returns nothing,
    /// where tokens may have been issued meanwhile that it does not revoke.
    async fn try_apply(
        &self,
        change: &Change,
        cause: &Cause,
        (now, begun): (Timestamp, Duration),
    ) -> Result<Option<Applied>, StoreError> {
        let mut tx = self.writers().begin_with(DB::BEGIN_WRITE).await?;
        let done = self.make(&mut tx, change, now).await?;
        let position = Self::publish(&mut tx, &done.published, now).await?;
        self.record(&mut tx, &done.event, position.seq, cause, now)
            .await?;
        DB::announce(&mut tx).await?;
        let took = self.stopwatch.monotonic().saturating_sub(begun);
        // A restored database is given time for each of its clients.
        let has_time = matches!(change, Change::Restore { .. });
        if took > LONGEST_CHANGE && !has_time && done.published.iter().any(Published::bounds_tokens)
        {
            tx.rollback().await?;
            return Ok(None);
        }
        tx.commit().await?;
        self.hints.notify_one();
        Ok(Some(Applied {
            position,
            revision: done.revision,
        }))
    }

    /// Makes a change at `now`, but for its place in the order and its event.
    #[expect(clippy::too_many_lines, reason = "an arm for each change")]
    async fn make(
        &self,
        tx: &mut Transaction<'_, DB>,
        change: &Change,
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        Ok(match change {
            Change::PutClient {
                client,
                expected,
                event,
                tokens_die_at,
            } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.put_client(tx, client, *expected, *event, spans)
                    .await?
            }
            Change::DeleteClient {
                client_id,
                expected,
                tokens_die_at,
            } => Self::delete_client(tx, client_id, *expected, *tokens_die_at).await?,
            Change::CreateResource(resource) => Self::create_resource(tx, resource).await?,
            Change::DeleteResource(id) => Self::delete_resource(tx, *id).await?,
            Change::PutKeys { schedule, event } => Self::put_keys(tx, schedule, *event).await?,
            Change::RevokeToken {
                jti,
                family,
                client_id,
                token_dies_at,
                tokens_die_at,
            } => {
                let spans = Spans::new(now, *tokens_die_at);
                let owner = client_id.as_ref();
                self.revoke_token(tx, (jti, *family), owner, *token_dies_at, spans)
                    .await?
            }
            Change::RevokeClientTokens {
                client_id,
                tokens_die_at,
            } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.revoke_client_tokens(tx, client_id, spans).await?
            }
            Change::EndFamily {
                family,
                reason,
                tokens_die_at,
            } => Self::end_family(tx, *family, *reason, *tokens_die_at, now).await?,
            Change::PutUser {
                user,
                expected,
                event,
                ends_sessions,
                tokens_die_at,
            } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.put_user(tx, user, *expected, *event, *ends_sessions, spans)
                    .await?
            }
            Change::DeleteUser {
                id,
                expected,
                tokens_die_at,
            } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.delete_user(tx, *id, *expected, spans).await?
            }
            Change::EndUserSessions { id, tokens_die_at } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.end_user_sessions(tx, *id, spans).await?
            }
            Change::EndSession {
                session,
                tokens_die_at,
            } => self.end_session(tx, *session, *tokens_die_at, now).await?,
            Change::PutConsent { consent, expected } => {
                Self::put_consent(tx, consent, *expected).await?
            }
            Change::WithdrawConsent {
                subject,
                client_id,
                tokens_die_at,
            } => {
                let die_at = *tokens_die_at;
                self.withdraw_consent(tx, *subject, client_id, die_at, now)
                    .await?
            }
            Change::ChangeFactors {
                subject,
                user_epoch,
                is_first,
                change,
            } => {
                let user = (*subject, *user_epoch);
                Self::change_factors(tx, user, *is_first, change).await?
            }
            Change::ResetFactors { id, tokens_die_at } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.reset_factors(tx, *id, spans).await?
            }
            Change::DropNotice {
                notice,
                hopeless,
                event,
                problem,
            } => Self::drop_notice(tx, notice, *hopeless, (*event, problem), now).await?,
            Change::Restore {
                keep_tokens,
                tokens_die_at,
            } => {
                let spans = Spans::new(now, *tokens_die_at);
                self.restore(tx, *keep_tokens, spans).await?
            }
        })
    }

    /// Gives the changes their places. The head is locked last and until the commit, so that the
    /// order of places is the order of commits, without gaps.
    async fn publish(
        tx: &mut Transaction<'_, DB>,
        published: &[Published],
        now: Timestamp,
    ) -> Result<Position, StoreError> {
        let count = i64::try_from(published.len()).unwrap_or(i64::MAX);
        let head = sqlx::query::<DB>(
            "update change_head set seq = seq + $1 where id = 1 returning epoch, seq",
        )
        .bind(count)
        .fetch_one(&mut **tx)
        .await?;
        let position = Self::position_of(&head)?;
        let first = position.seq - count + 1;
        let changes: Value = (first..)
            .zip(published)
            .map(|(seq, row)| json!([seq, row.topic.as_str(), row.target]))
            .collect();
        sqlx::query::<DB>(DB::INSERT_CHANGES)
            .bind(changes.to_string())
            .bind(now.millis())
            .execute(&mut **tx)
            .await?;
        Self::put_entries(tx, first, published).await?;
        Ok(position)
    }

    /// Deletes what ends at or before `moment`, at most `limit` rows; tells how many there were.
    async fn delete_up_to(
        &self,
        sql: &'static str,
        moment: Timestamp,
        limit: i64,
    ) -> Result<u64, StoreError> {
        // Two sweepers may meet, or one and whoever deletes the entries of a client.
        let deleted = Self::uncontended(|| async {
            let writers = self.writers();
            let query = sqlx::query::<DB>(sql).bind(moment.millis()).bind(limit);
            Ok(query.fetch_all(&writers).await?)
        });
        Ok(u64::try_from(deleted.await?.len()).unwrap_or(u64::MAX))
    }

    /// A number that ends all sessions which carry another one.
    fn epoch(&self) -> Result<i64, StoreError> {
        Ok(i64::from_le_bytes(self.entropy.bytes()?) & i64::MAX)
    }

    /// Gives a new database its epoch.
    pub(super) async fn found(&self, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query::<DB>("insert into change_head (id, epoch, seq) values (1, $1, 0) on conflict (id) do nothing")
            .bind(self.entropy.uuid_v7(now)?)
            .execute(&self.writers())
            .await?;
        Ok(())
    }

    async fn read_head(connection: &mut DB::Connection) -> Result<Position, StoreError> {
        let row = sqlx::query::<DB>("select epoch, seq from change_head where id = 1")
            .fetch_one(connection)
            .await?;
        Self::position_of(&row)
    }

    fn column<'r, T>(
        row: &'r DB::Row,
        table: &'static str,
        column: &'static str,
    ) -> Result<T, StoreError>
    where
        T: sqlx::Type<DB> + sqlx::Decode<'r, DB>,
    {
        row.try_get(column)
            .map_err(|_| corrupt(table, column, &"?"))
    }

    fn position_of(row: &DB::Row) -> Result<Position, StoreError> {
        Ok(Position {
            epoch: Self::column(row, "change_head", "epoch")?,
            seq: Self::column(row, "change_head", "seq")?,
        })
    }

    fn time(
        row: &DB::Row,
        table: &'static str,
        column: &'static str,
    ) -> Result<Timestamp, StoreError> {
        Self::column(row, table, column).map(Timestamp::from_millis)
    }

    fn change_of(row: &DB::Row) -> Result<ChangeRow, StoreError> {
        const TABLE: &str = "change";
        let seq: i64 = Self::column(row, TABLE, "seq")?;
        Ok(ChangeRow {
            seq,
            topic: Self::column::<String>(row, TABLE, "topic")?.parse().ok(),
            target: Self::column(row, TABLE, "target")?,
        })
    }

    fn node_of(row: &DB::Row) -> Result<Node, StoreError> {
        const TABLE: &str = "node";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let masters: String = Self::column(row, TABLE, "master_keys")?;
        Ok(Node {
            id: NodeId::from_uuid(id),
            name: Self::column(row, TABLE, "name")?,
            master_keys: unlist(&masters, |id| MasterKeyId::parse(id).ok())
                .ok_or_else(|| corrupt(TABLE, "master_keys", &id))?,
            seen_at: Self::time(row, TABLE, "seen_at")?,
        })
    }
}

#[async_trait]
impl<DB: Dialect> Store for SqlStore<DB>
where
    DB::Arguments: IntoArguments<DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'c> &'c Pool<DB>: Executor<'c, Database = DB>,
    for<'a> i64: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<i64>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Uuid: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<Uuid>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> String: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Option<String>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> Vec<u8>: sqlx::Type<DB> + sqlx::Encode<'a, DB> + sqlx::Decode<'a, DB>,
    for<'a> &'a str: sqlx::ColumnIndex<DB::Row>,
    usize: sqlx::ColumnIndex<DB::Row>,
{
    async fn apply(
        &self,
        change: &Change,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let called = self.stopwatch.monotonic();
        let mut attempt = 1;
        loop {
            // What is done again is done later.
            let late = match attempt {
                1 => Duration::ZERO,
                _ => self.stopwatch.monotonic().saturating_sub(called),
            };
            let applied = self.try_apply(change, cause, (now.plus(late), called + late));
            match applied.await {
                Ok(None) if attempt < ATTEMPTS => attempt += 1,
                Ok(Some(applied)) => return Ok(applied),
                Ok(None) => return Err(too_slow()),
                Err(StoreError::Unavailable(sqlx::Error::Database(error)))
                    if DB::is_contention(&*error) && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn changes_since(
        &self,
        at: Position,
        limit: u32,
        now: Timestamp,
    ) -> Result<Changes, StoreError> {
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let head = Self::read_head(&mut tx).await?;
        let rows = sqlx::query::<DB>(
            "select seq, topic, target from change where seq > $1 order by seq limit $2",
        )
        .bind(at.seq)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let changes = Changes {
            epoch: head.epoch,
            head: head.seq,
            rows: rows.iter().map(Self::change_of).collect::<Result<_, _>>()?,
        };
        if head.epoch != at.epoch || head.seq >= at.seq {
            return Ok(changes);
        }
        // The database has lost changes that this node has seen.
        let epoch = self.entropy.uuid_v7(now)?;
        sqlx::query::<DB>(
            "update change_head set epoch = $1 where id = 1 and epoch = $2 and seq < $3",
        )
        .bind(epoch)
        .bind(at.epoch)
        .bind(at.seq)
        .execute(&self.writers())
        .await?;
        let mut connection = self.readers().acquire().await?;
        let head = Self::read_head(&mut connection).await?;
        Ok(Changes {
            epoch: head.epoch,
            head: head.seq,
            rows: Vec::new(),
        })
    }

    async fn changed(&self) {
        {
            let mut listening = self
                .listening
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if listening.is_none() {
                *listening = DB::listen(&self.readers(), &self.hints);
            }
        }
        self.hints.notified().await;
    }

    fn reconnect(&self) {
        if let Some(connect) = &self.connect {
            let pool = connect();
            self.pools.store(Arc::new(Pools {
                writers: pool.clone(),
                readers: pool,
            }));
            self.stop_listening();
        }
    }

    async fn database_time(&self) -> Result<Timestamp, StoreError> {
        let row = sqlx::query::<DB>(DB::DATABASE_TIME)
            .fetch_one(&self.readers())
            .await?;
        let millis: i64 = row.try_get(0)?;
        Ok(Timestamp::from_millis(millis))
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let snapshot = Snapshot {
            position: Self::read_head(&mut tx).await?,
            clients: legible(Self::read_clients(&mut tx).await?)?,
            resources: legible(Self::read_resources(&mut tx).await?)?,
            schedule: Self::read_schedule(&mut tx, KeyUse::Signing).await?,
            mac_schedule: Self::read_schedule(&mut tx, KeyUse::RefreshMac).await?,
            rs256_schedule: Self::read_schedule(&mut tx, KeyUse::IdTokenRs256).await?,
            revocations: legible(Self::read_revocations(&mut tx, 0).await?)?,
        };
        tx.rollback().await?;
        Ok(snapshot)
    }

    async fn client(&self, id: &ClientId) -> Result<Option<Client>, StoreError> {
        // One moment for both reads, so that nobody sees a client without its secrets.
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let client = Self::read_client(&mut tx, id).await?;
        tx.rollback().await?;
        Ok(client)
    }

    async fn clients(&self) -> Result<Vec<Client>, StoreError> {
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let clients = Self::read_clients(&mut tx).await?;
        tx.rollback().await?;
        clients.into_iter().collect()
    }

    async fn resources(&self) -> Result<Vec<Resource>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        let resources = Self::read_resources(&mut connection).await?;
        resources.into_iter().collect()
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_user(&mut connection, id).await
    }

    async fn user_by_name(&self, key: &UsernameKey) -> Result<Option<User>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_user_by_name(&mut connection, key).await
    }

    async fn users(&self, after: Option<UserId>, limit: u32) -> Result<Vec<User>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_users(&mut connection, after, limit).await
    }

    async fn demo_user(&self) -> Result<Option<UserId>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_demo_user(&mut connection).await
    }

    async fn key_schedule(&self, key_use: KeyUse) -> Result<KeySchedule, StoreError> {
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let schedule = Self::read_schedule(&mut tx, key_use).await?;
        tx.rollback().await?;
        Ok(schedule)
    }

    async fn revocations_since(&self, seq: i64) -> Result<Vec<Revocation>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        legible(Self::read_revocations(&mut connection, seq).await?)
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_events(&mut connection, query).await
    }

    async fn family(&self, id: FamilyId) -> Result<Option<(Family, Standing)>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_family(&mut connection, id).await
    }

    async fn families(&self, query: &FamilyQuery) -> Result<Vec<(Family, Standing)>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_families(&mut connection, query).await
    }

    async fn rotate(
        &self,
        batch: &[Presentation],
        terms: &Terms,
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let rotated = Self::uncontended(|| self.try_rotate(batch, terms, now, Held::Await)).await;
        match rotated {
            // Somebody does not go on who holds one of the families: the others need not wait for
            // that. All at once, so that there is one answer to what was done.
            Err(StoreError::Unavailable(sqlx::Error::Database(error)))
                if DB::is_locked(&*error) =>
            {
                Self::uncontended(|| self.try_rotate(batch, terms, now, Held::PassOver)).await
            }
            rotated => rotated,
        }
    }

    async fn put_code(
        &self,
        hash: &SecretHash,
        code: &AuthorizationCode,
        asked: &BTreeSet<Permission>,
    ) -> Result<bool, StoreError> {
        Self::uncontended(|| self.try_put_code(hash, code, asked)).await
    }

    async fn redeem_code(
        &self,
        redemption: &Redemption,
        now: Timestamp,
    ) -> Result<Redeemed, StoreError> {
        Self::uncontended(|| self.try_redeem(redemption, now)).await
    }

    async fn session_family(
        &self,
        asked: &SessionGrant,
        now: Timestamp,
    ) -> Result<SessionFamily, StoreError> {
        Self::uncontended(|| self.try_session_family(asked, now)).await
    }

    async fn put_session(
        &self,
        hash: &SecretHash,
        session: &BrowserSession,
    ) -> Result<bool, StoreError> {
        self.upsert_session(hash, session).await
    }

    async fn session(
        &self,
        hash: &SecretHash,
    ) -> Result<Option<(BrowserSession, Option<UserStanding>)>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_session(&mut connection, hash).await
    }

    async fn sessions(
        &self,
        subject: UserId,
        idle_since: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<BrowserSession>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_sessions(&mut connection, subject, (idle_since, now), limit).await
    }

    async fn note_session(
        &self,
        id: SessionId,
        party: &Party,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.note_use(id, party, now).await
    }

    async fn factors(&self, subject: UserId) -> Result<Factors, StoreError> {
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let factors = Self::read_factors(&mut tx, subject).await?;
        tx.rollback().await?;
        Ok(factors)
    }

    async fn take_totp_step(&self, subject: UserId, step: i64) -> Result<bool, StoreError> {
        Self::uncontended(|| self.take_step(subject, step)).await
    }

    async fn passkey(&self, id: &PasskeyId) -> Result<Option<Passkey>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_passkey(&mut connection, id).await
    }

    async fn note_passkey(&self, passkey: &Passkey, now: Timestamp) -> Result<bool, StoreError> {
        Self::uncontended(|| self.note_use_of_passkey(passkey, now)).await
    }

    async fn factors_sealed(&self) -> Result<Vec<(MasterKeyId, usize)>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::count_totp(&mut connection).await
    }

    async fn factors_sealed_elsewhere(
        &self,
        master: MasterKeyId,
        limit: u32,
    ) -> Result<Vec<SealedTotp>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_totp_elsewhere(&mut connection, master, limit).await
    }

    async fn reseal_factor(
        &self,
        before: &SealedTotp,
        after: &SealedKey,
    ) -> Result<bool, StoreError> {
        Self::uncontended(|| self.replace_totp(before, after)).await
    }

    async fn consent(
        &self,
        subject: UserId,
        client: &ClientId,
    ) -> Result<Option<Consent>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_consent(&mut connection, subject, client).await
    }

    async fn consents(&self, subject: UserId) -> Result<Vec<Consent>, StoreError> {
        let mut connection = self.readers().acquire().await?;
        Self::read_consents(&mut connection, subject).await
    }

    async fn claim_notices(
        &self,
        claim: &NoticeClaim,
        now: Timestamp,
    ) -> Result<ClaimedNotices, StoreError> {
        Self::uncontended(|| self.take_notices(claim, now)).await
    }

    async fn settle_notice(
        &self,
        notice: &LogoutNotice,
        settling: Settling,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        Self::uncontended(|| self.settle(notice, settling, now)).await
    }

    async fn put_challenge(
        &self,
        hash: &SecretHash,
        session: &ChallengeSession,
    ) -> Result<(), StoreError> {
        self.insert_challenge(hash, session).await
    }

    async fn take_challenge(
        &self,
        hash: &SecretHash,
        client: &ClientId,
        now: Timestamp,
    ) -> Result<Option<ChallengeSession>, StoreError> {
        self.delete_challenge(hash, client, now).await
    }

    async fn first_use(
        &self,
        assertion: &AssertionId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        // One that has expired would be refused as such; its id may be taken again.
        let row = sqlx::query::<DB>(
            "insert into used_assertion (id, expires_at) values ($1, $2) \
             on conflict (id) do update set expires_at = excluded.expires_at \
             where used_assertion.expires_at <= $3 \
             returning id",
        )
        .bind(assertion.as_bytes().to_vec())
        .bind(expires_at.millis())
        .bind(now.millis())
        .fetch_optional(&self.writers())
        .await?;
        Ok(row.is_some())
    }

    async fn sweep(&self, bounds: &Bounds, limit: u32) -> Result<Swept, StoreError> {
        let limit = i64::from(limit);
        Ok(Swept {
            revocations: self
                .delete_up_to(OLD_REVOCATIONS, bounds.now, limit)
                .await?,
            assertions: self.delete_up_to(OLD_ASSERTIONS, bounds.now, limit).await?,
            changes: self
                .delete_up_to(OLD_CHANGES, bounds.changes_before, limit)
                .await?,
            events: match bounds.events_before {
                Some(before) => self.delete_up_to(OLD_EVENTS, before, limit).await?,
                None => 0,
            },
            codes: self.delete_up_to(OLD_CODES, bounds.now, limit).await?,
            challenges: self.delete_up_to(OLD_CHALLENGES, bounds.now, limit).await?,
            families: self
                .delete_up_to(DB::DELETE_EXPIRED_FAMILIES, bounds.families_before, limit)
                .await?,
            sessions: self
                .delete_up_to(OLD_SESSIONS, bounds.families_before, limit)
                .await?,
        })
    }

    async fn sweep_families(
        &self,
        after: Option<FamilyId>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Step, StoreError> {
        self.delete_ended_families(after, before, limit).await
    }

    async fn heartbeat(&self, node: &Node) -> Result<(), StoreError> {
        sqlx::query::<DB>(
            "insert into node (id, name, master_keys, seen_at) values ($1, $2, $3, $4) \
             on conflict (id) do update set \
             name = excluded.name, master_keys = excluded.master_keys, seen_at = excluded.seen_at",
        )
        .bind(node.id.uuid())
        .bind(node.name.clone())
        .bind(list(node.master_keys.iter().map(ToString::to_string)))
        .bind(node.seen_at.millis())
        .execute(&self.writers())
        .await?;
        // A process that was killed took no leave.
        sqlx::query::<DB>("delete from node where seen_at < $1")
            .bind(node.seen_at.minus(FORGOTTEN_AFTER).millis())
            .execute(&self.writers())
            .await?;
        Ok(())
    }

    async fn enter(&self, environment: Environment) -> Result<Environment, StoreError> {
        let sql = match environment {
            Environment::Development => {
                "insert into installation (id, environment) values (1, $1) on conflict (id) do nothing"
            }
            Environment::Production => {
                "insert into installation (id, environment) values (1, $1) \
                 on conflict (id) do update set environment = excluded.environment"
            }
        };
        sqlx::query::<DB>(sql)
            .bind(environment.as_str().to_owned())
            .execute(&self.writers())
            .await?;
        let row = sqlx::query::<DB>("select environment from installation where id = 1")
            .fetch_one(&self.writers())
            .await?;
        Self::column::<String>(&row, "installation", "environment")?
            .parse()
            .map_err(|_| corrupt("installation", "environment", &1))
    }

    async fn forget_node(&self, id: NodeId) -> Result<(), StoreError> {
        sqlx::query::<DB>("delete from node where id = $1")
            .bind(id.uuid())
            .execute(&self.writers())
            .await?;
        Ok(())
    }

    async fn nodes(&self, since: Timestamp) -> Result<Vec<Node>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select id, name, master_keys, seen_at from node where seen_at >= $1 order by name, id",
        )
        .bind(since.millis())
        .fetch_all(&self.readers())
        .await?;
        rows.iter().map(Self::node_of).collect()
    }

    async fn close(&self) {
        // From here on nobody can listen anew, and who listens is woken.
        let writers = self.writers();
        let closing = writers.close();
        // The pool waits for its connections, also for that of the listener.
        self.stop_listening();
        closing.await;
        self.readers().close().await;
    }
}
