//! All SQL that both engines read, once.
//!
//! Portable means: `$1` placeholders, `on conflict`, `returning`, `uuid` ids, 64-bit integers for
//! everything that counts or tells time, `text`. Lists and documents are JSON text.

use std::{
    collections::HashMap,
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

use super::{Snapshot, Store, StoreError};
use crate::{
    clock::Timestamp,
    domain::{
        change::{Applied, Cause, Change, ChangeRow, Changes, EventType, Position, Topic},
        client::{Client, Revision},
        id::{ClientId, Kid, MasterKeyId, NodeId, ResourceId, SecretId},
        key::{KeyRecord, KeySchedule, KeyTimes, KeyUse, SealedKey},
        node::{Environment, Node},
        resource::{Resource, ResourceUri},
        scope::Scope,
        secret::{SecretHash, StoredSecret},
    },
    entropy::{Entropy, EntropyError},
};

/// How often a transaction is tried again that lost to another one.
const ATTEMPTS: u32 = 8;

/// After how long without a sign of life a node is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);

/// What differs between the engines; nothing else may.
#[async_trait]
pub(super) trait Dialect: Database<Connection: Migrate> {
    /// Begins a transaction that will write.
    const BEGIN_WRITE: &'static str;
    /// Begins a transaction whose reads all see the same moment.
    const BEGIN_READ: &'static str;
    /// Selects the database's clock in milliseconds since 1970.
    const DATABASE_TIME: &'static str;
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
        // connection, transaction rollback, resources, operator intervention, system
        _ => ["08", "40", "53", "55", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class)),
    }
}

impl From<EntropyError> for StoreError {
    fn from(error: EntropyError) -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::Error::other(error)))
    }
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
struct Event {
    kind: EventType,
    target: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// What a change did, before its place is known.
struct Done {
    revision: Revision,
    event: Event,
    topics: Vec<(Topic, String)>,
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

    fn stop_listening(&self) {
        let mut listening = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(listening) = listening.take() {
            listening.abort();
        }
    }

    async fn try_apply(
        &self,
        change: &Change,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let mut tx = self.writers().begin_with(DB::BEGIN_WRITE).await?;
        let done = match change {
            Change::PutClient {
                client,
                expected,
                event,
            } => Self::put_client(&mut tx, client, *expected, *event, now).await?,
            Change::DeleteClient {
                client_id,
                expected,
            } => Self::delete_client(&mut tx, client_id, *expected).await?,
            Change::CreateResource(resource) => Self::create_resource(&mut tx, resource).await?,
            Change::DeleteResource(id) => Self::delete_resource(&mut tx, *id).await?,
            Change::PutKeys { schedule, event } => {
                Self::put_keys(&mut tx, schedule, *event).await?
            }
        };
        self.record(&mut tx, &done.event, cause, now).await?;
        let position = Self::publish(&mut tx, &done.topics, now).await?;
        DB::announce(&mut tx).await?;
        tx.commit().await?;
        self.hints.notify_one();
        Ok(Applied {
            position,
            revision: done.revision,
        })
    }

    async fn put_client(
        tx: &mut Transaction<'_, DB>,
        client: &Client,
        expected: Option<Revision>,
        event: EventType,
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        let before = Self::read_client(tx, &client.client_id).await?;
        if before.as_ref().map(|before| before.revision) != expected {
            return Err(StoreError::Conflict);
        }
        let after = Client {
            revision: expected.map_or(1, |revision| revision + 1),
            created_at: before.as_ref().map_or(now, |before| before.created_at),
            updated_at: now,
            ..client.clone()
        };
        // The conditions make a writer between our read and this write a conflict. An upsert would
        // not do: it would bring back a client that was deleted in between.
        let sql = match before {
            None => {
                "insert into client (client_id, client_name, auth_method, grant_types, scope, resources, \
                 default_resource, allowed_origins, access_token_ttl_seconds, disabled, demo, revision, \
                 created_at, updated_at) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
                 on conflict (client_id) do nothing \
                 returning client_id"
            }
            Some(_) => {
                "update client set client_name = $2, auth_method = $3, grant_types = $4, scope = $5, \
                 resources = $6, default_resource = $7, allowed_origins = $8, \
                 access_token_ttl_seconds = $9, disabled = $10, demo = $11, revision = $12, \
                 created_at = $13, updated_at = $14 \
                 where client_id = $1 and revision = $12 - 1 \
                 returning client_id"
            }
        };
        let written = sqlx::query::<DB>(sql)
            .bind(after.client_id.as_str().to_owned())
            .bind(after.client_name.clone())
            .bind(after.auth_method.as_str().to_owned())
            .bind(list(after.grant_types.iter().map(|grant| grant.as_str())))
            .bind(after.scope.to_string())
            .bind(list(after.resources.iter().map(ResourceUri::as_str)))
            .bind(
                after
                    .default_resource
                    .as_ref()
                    .map(|uri| uri.as_str().to_owned()),
            )
            .bind(list(&after.allowed_origins))
            .bind(after.access_token_ttl_seconds.map(i64::from))
            .bind(i64::from(after.disabled))
            .bind(i64::from(after.demo))
            .bind(after.revision)
            .bind(after.created_at.millis())
            .bind(after.updated_at.millis())
            .fetch_optional(&mut **tx)
            .await?;
        if written.is_none() {
            return Err(StoreError::Conflict);
        }
        let old: &[StoredSecret] = before.as_ref().map_or(&[], |before| &before.secrets);
        for secret in old
            .iter()
            .filter(|secret| after.secret(secret.id).is_none())
        {
            sqlx::query::<DB>("delete from client_secret where id = $1")
                .bind(secret.id.uuid())
                .execute(&mut **tx)
                .await?;
        }
        for secret in after.secrets.iter().filter(|secret| !old.contains(secret)) {
            sqlx::query::<DB>("insert into client_secret (id, client_id, hash, created_at) values ($1, $2, $3, $4)")
                .bind(secret.id.uuid())
                .bind(after.client_id.as_str().to_owned())
                .bind(secret.hash.as_bytes().to_vec())
                .bind(secret.created_at.millis())
                .execute(&mut **tx)
                .await?;
        }
        let target = after.client_id.to_string();
        Ok(Done {
            revision: after.revision,
            event: Event {
                kind: event,
                target: target.clone(),
                before: before.map(|before| before.document()),
                after: Some(after.document()),
            },
            topics: vec![(Topic::Client, target)],
        })
    }

    async fn delete_client(
        tx: &mut Transaction<'_, DB>,
        client_id: &ClientId,
        expected: Revision,
    ) -> Result<Done, StoreError> {
        let before = Self::read_client(tx, client_id)
            .await?
            .ok_or(StoreError::Conflict)?;
        // Secrets go with it: `on delete cascade`.
        let deleted = sqlx::query::<DB>(
            "delete from client where client_id = $1 and revision = $2 returning client_id",
        )
        .bind(client_id.as_str().to_owned())
        .bind(expected)
        .fetch_optional(&mut **tx)
        .await?;
        if deleted.is_none() {
            return Err(StoreError::Conflict);
        }
        Ok(Done {
            revision: expected,
            event: Event {
                kind: EventType::ClientDeleted,
                target: client_id.to_string(),
                before: Some(before.document()),
                after: None,
            },
            topics: vec![(Topic::Client, client_id.to_string())],
        })
    }

    async fn create_resource(
        tx: &mut Transaction<'_, DB>,
        resource: &Resource,
    ) -> Result<Done, StoreError> {
        sqlx::query::<DB>(
            "insert into resource (id, resource, name, scopes, introspection_clients, demo) \
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(resource.id.uuid())
        .bind(resource.resource.as_str().to_owned())
        .bind(resource.name.clone())
        .bind(resource.scopes.to_string())
        .bind(list(
            resource.introspection_clients.iter().map(ClientId::as_str),
        ))
        .bind(i64::from(resource.demo))
        .execute(&mut **tx)
        .await?;
        Ok(Done {
            revision: 1,
            event: Event {
                kind: EventType::ResourceCreated,
                target: resource.id.to_string(),
                before: None,
                after: Some(resource.document()),
            },
            topics: vec![(Topic::Resource, resource.id.to_string())],
        })
    }

    async fn delete_resource(
        tx: &mut Transaction<'_, DB>,
        id: ResourceId,
    ) -> Result<Done, StoreError> {
        let before = sqlx::query::<DB>(
            "delete from resource where id = $1 \
             returning id, resource, name, scopes, introspection_clients, demo",
        )
        .bind(id.uuid())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        Ok(Done {
            revision: 1,
            event: Event {
                kind: EventType::ResourceDeleted,
                target: id.to_string(),
                before: Some(Self::resource_of(&before)?.document()),
                after: None,
            },
            topics: vec![(Topic::Resource, id.to_string())],
        })
    }

    async fn put_keys(
        tx: &mut Transaction<'_, DB>,
        schedule: &KeySchedule,
        event: EventType,
    ) -> Result<Done, StoreError> {
        let revision = schedule.revision + 1;
        // Also the lock under which everything else here happens.
        let sql = if schedule.revision == 0 {
            "insert into key_schedule (key_use, revision, primary_master) values ($1, $2, $3) \
             on conflict (key_use) do nothing \
             returning key_use"
        } else {
            "update key_schedule set revision = $2, primary_master = $3 \
             where key_use = $1 and revision = $2 - 1 \
             returning key_use"
        };
        let written = sqlx::query::<DB>(sql)
            .bind(schedule.key_use.as_str().to_owned())
            .bind(revision)
            .bind(schedule.primary_master.map(MasterKeyId::uuid))
            .fetch_optional(&mut **tx)
            .await?;
        if written.is_none() {
            return Err(StoreError::Conflict);
        }
        let before = Self::read_keys(tx, schedule.key_use).await?;
        let mut changed: Vec<&KeyRecord> = schedule
            .keys
            .iter()
            .filter(|key| !before.contains(key))
            .collect();
        // Revoked keys first: only then are their moments of activation free for others.
        changed.sort_by_key(|key| key.times.revoked_at.is_none());
        for key in changed {
            sqlx::query::<DB>(
                "insert into sealed_key (kid, key_use, algorithm, published_at, activates_at, withdrawn_at, \
                 revoked_at, master_id, ciphertext) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 on conflict (kid) do update set \
                 activates_at = excluded.activates_at, withdrawn_at = excluded.withdrawn_at, \
                 revoked_at = excluded.revoked_at, master_id = excluded.master_id, \
                 ciphertext = excluded.ciphertext",
            )
            .bind(key.kid.as_str().to_owned())
            .bind(key.key_use.as_str().to_owned())
            .bind(key.algorithm.as_str().to_owned())
            .bind(key.times.published_at.millis())
            .bind(key.times.activates_at.millis())
            .bind(key.times.withdrawn_at.map(Timestamp::millis))
            .bind(key.times.revoked_at.map(Timestamp::millis))
            .bind(key.sealed.master_id.uuid())
            .bind(key.sealed.ciphertext.clone())
            .execute(&mut **tx)
            .await?;
        }
        let was_revoked = |kid: &Kid| {
            before
                .iter()
                .any(|key| key.kid == *kid && key.times.revoked_at.is_some())
        };
        let mut topics = vec![(Topic::Keys, schedule.key_use.to_string())];
        for key in &schedule.keys {
            if key.times.revoked_at.is_some() && !was_revoked(&key.kid) {
                topics.push((Topic::Revocation, key.kid.to_string()));
            }
        }
        let document = |keys: &[KeyRecord]| keys.iter().map(KeyRecord::document).collect::<Value>();
        Ok(Done {
            revision,
            event: Event {
                kind: event,
                target: schedule.key_use.to_string(),
                before: Some(document(&before)),
                after: Some(json!({
                    "primary_master_key": schedule.primary_master.map(|id| id.to_string()),
                    "keys": document(&schedule.keys),
                })),
            },
            topics,
        })
    }

    async fn record(
        &self,
        tx: &mut Transaction<'_, DB>,
        event: &Event,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query::<DB>(
            "insert into event (id, at, type, actor, target, address, user_agent, request_id, reason, \
             before, after) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(self.entropy.uuid_v7(now)?)
        .bind(now.millis())
        .bind(event.kind.as_str().to_owned())
        .bind(cause.actor.clone())
        .bind(event.target.clone())
        .bind(cause.address.clone())
        .bind(cause.user_agent.clone())
        .bind(cause.request_id.clone())
        .bind(cause.reason.clone())
        .bind(event.before.as_ref().map(Value::to_string))
        .bind(event.after.as_ref().map(Value::to_string))
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Gives the changes their places. The head is locked last and until the commit, so that the
    /// order of places is the order of commits, without gaps.
    async fn publish(
        tx: &mut Transaction<'_, DB>,
        topics: &[(Topic, String)],
        now: Timestamp,
    ) -> Result<Position, StoreError> {
        let count = i64::try_from(topics.len()).unwrap_or(i64::MAX);
        let head = sqlx::query::<DB>(
            "update change_head set seq = seq + $1 where id = 1 returning epoch, seq",
        )
        .bind(count)
        .fetch_one(&mut **tx)
        .await?;
        let position = Self::position_of(&head)?;
        for (seq, (topic, target)) in (position.seq - count + 1..).zip(topics) {
            sqlx::query::<DB>(
                "insert into change (seq, topic, target, at) values ($1, $2, $3, $4)",
            )
            .bind(seq)
            .bind(topic.as_str().to_owned())
            .bind(target.clone())
            .bind(now.millis())
            .execute(&mut **tx)
            .await?;
            if *topic == Topic::Revocation {
                // Entries about keys never expire: a compromised key stays compromised.
                sqlx::query::<DB>(
                    "insert into revocation (seq, kind, value, not_before, expires_at) \
                     values ($1, 'kid', $2, null, null)",
                )
                .bind(seq)
                .bind(
                    ring::digest::digest(&ring::digest::SHA256, target.as_bytes())
                        .as_ref()
                        .to_vec(),
                )
                .execute(&mut **tx)
                .await?;
            }
        }
        Ok(position)
    }

    /// Gives a new database its epoch.
    pub(super) async fn found(&self, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query::<DB>("insert into change_head (id, epoch, seq) values (1, $1, 0) on conflict (id) do nothing")
            .bind(self.entropy.uuid_v7(now)?)
            .execute(&self.writers())
            .await?;
        Ok(())
    }

    async fn read_client(
        connection: &mut DB::Connection,
        id: &ClientId,
    ) -> Result<Option<Client>, StoreError> {
        let Some(row) = sqlx::query::<DB>(
            "select client_id, client_name, auth_method, grant_types, scope, resources, default_resource, \
             allowed_origins, access_token_ttl_seconds, disabled, demo, revision, created_at, updated_at \
             from client where client_id = $1",
        )
        .bind(id.as_str().to_owned())
        .fetch_optional(&mut *connection)
        .await?
        else {
            return Ok(None);
        };
        // Uses the index client_secret_client.
        let secrets = sqlx::query::<DB>(
            "select id, client_id, hash, created_at from client_secret \
             where client_id = $1 order by created_at, id",
        )
        .bind(id.as_str().to_owned())
        .fetch_all(&mut *connection)
        .await?;
        let secrets = secrets
            .iter()
            .map(Self::secret_of)
            .collect::<Result<_, _>>()?;
        Self::client_of(&row, secrets).map(Some)
    }

    async fn read_clients(
        connection: &mut DB::Connection,
    ) -> Result<Vec<Result<Client, StoreError>>, StoreError> {
        let mut secrets: HashMap<String, Vec<_>> = HashMap::new();
        for row in sqlx::query::<DB>(
            "select id, client_id, hash, created_at from client_secret order by created_at, id",
        )
        .fetch_all(&mut *connection)
        .await?
        {
            let owner: String = Self::column(&row, "client_secret", "client_id")?;
            secrets
                .entry(owner)
                .or_default()
                .push(Self::secret_of(&row));
        }
        let rows = sqlx::query::<DB>(
            "select client_id, client_name, auth_method, grant_types, scope, resources, default_resource, \
             allowed_origins, access_token_ttl_seconds, disabled, demo, revision, created_at, updated_at \
             from client order by client_id",
        )
        .fetch_all(&mut *connection)
        .await?;
        let read = |row: &DB::Row| {
            let id: String = Self::column(row, "client", "client_id")?;
            let secrets = secrets.remove(&id).unwrap_or_default();
            Self::client_of(row, secrets.into_iter().collect::<Result<_, _>>()?)
        };
        Ok(rows.iter().map(read).collect())
    }

    async fn read_resources(
        connection: &mut DB::Connection,
    ) -> Result<Vec<Result<Resource, StoreError>>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select id, resource, name, scopes, introspection_clients, demo from resource order by resource",
        )
        .fetch_all(connection)
        .await?;
        Ok(rows.iter().map(Self::resource_of).collect())
    }

    async fn read_schedule(
        connection: &mut DB::Connection,
        key_use: KeyUse,
    ) -> Result<KeySchedule, StoreError> {
        let row = sqlx::query::<DB>(
            "select revision, primary_master from key_schedule where key_use = $1",
        )
        .bind(key_use.as_str().to_owned())
        .fetch_optional(&mut *connection)
        .await?;
        let (revision, primary_master) = match row {
            Some(row) => (
                Self::column(&row, "key_schedule", "revision")?,
                Self::column::<Option<Uuid>>(&row, "key_schedule", "primary_master")?
                    .map(MasterKeyId::from_uuid),
            ),
            None => (0, None),
        };
        let keys = Self::read_keys(connection, key_use).await?;
        Ok(KeySchedule {
            key_use,
            revision,
            primary_master,
            keys,
        })
    }

    async fn read_keys(
        connection: &mut DB::Connection,
        key_use: KeyUse,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select kid, key_use, algorithm, published_at, activates_at, withdrawn_at, revoked_at, \
             master_id, ciphertext \
             from sealed_key where key_use = $1 order by activates_at, published_at, kid",
        )
        .bind(key_use.as_str().to_owned())
        .fetch_all(connection)
        .await?;
        rows.iter().map(Self::key_of).collect()
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

    fn secret_of(row: &DB::Row) -> Result<StoredSecret, StoreError> {
        const TABLE: &str = "client_secret";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let hash: Vec<u8> = Self::column(row, TABLE, "hash")?;
        Ok(StoredSecret {
            id: SecretId::from_uuid(id),
            hash: SecretHash::from_bytes(&hash).ok_or_else(|| corrupt(TABLE, "hash", &id))?,
            created_at: Self::time(row, TABLE, "created_at")?,
        })
    }

    fn client_of(row: &DB::Row, secrets: Vec<StoredSecret>) -> Result<Client, StoreError> {
        const TABLE: &str = "client";
        let id: String = Self::column(row, TABLE, "client_id")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let bad = |column| corrupt(TABLE, column, &id);
        let default_resource = Self::column::<Option<String>>(row, TABLE, "default_resource")?
            .map(|uri| ResourceUri::parse(&uri).map_err(|_| bad("default_resource")))
            .transpose()?;
        let ttl = Self::column::<Option<i64>>(row, TABLE, "access_token_ttl_seconds")?
            .map(|ttl| u32::try_from(ttl).map_err(|_| bad("access_token_ttl_seconds")))
            .transpose()?;
        Ok(Client {
            client_id: ClientId::parse(&id).map_err(|_| bad("client_id"))?,
            client_name: text("client_name")?,
            auth_method: text("auth_method")?
                .parse()
                .map_err(|_| bad("auth_method"))?,
            grant_types: unlist(&text("grant_types")?, |name| name.parse().ok())
                .ok_or_else(|| bad("grant_types"))?,
            scope: Scope::parse(&text("scope")?).map_err(|_| bad("scope"))?,
            resources: unlist(&text("resources")?, |uri| ResourceUri::parse(uri).ok())
                .ok_or_else(|| bad("resources"))?,
            default_resource,
            allowed_origins: unlist(&text("allowed_origins")?, |origin| Some(origin.to_owned()))
                .ok_or_else(|| bad("allowed_origins"))?,
            access_token_ttl_seconds: ttl,
            disabled: Self::column::<i64>(row, TABLE, "disabled")? != 0,
            demo: Self::column::<i64>(row, TABLE, "demo")? != 0,
            secrets,
            revision: Self::column(row, TABLE, "revision")?,
            created_at: Self::time(row, TABLE, "created_at")?,
            updated_at: Self::time(row, TABLE, "updated_at")?,
        })
    }

    fn resource_of(row: &DB::Row) -> Result<Resource, StoreError> {
        const TABLE: &str = "resource";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let bad = |column| corrupt(TABLE, column, &id);
        Ok(Resource {
            id: ResourceId::from_uuid(id),
            resource: ResourceUri::parse(&text("resource")?).map_err(|_| bad("resource"))?,
            name: text("name")?,
            scopes: Scope::parse(&text("scopes")?).map_err(|_| bad("scopes"))?,
            introspection_clients: unlist(&text("introspection_clients")?, |id| {
                ClientId::parse(id).ok()
            })
            .ok_or_else(|| bad("introspection_clients"))?,
            demo: Self::column::<i64>(row, TABLE, "demo")? != 0,
        })
    }

    fn key_of(row: &DB::Row) -> Result<KeyRecord, StoreError> {
        const TABLE: &str = "sealed_key";
        let kid: String = Self::column(row, TABLE, "kid")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let bad = |column| corrupt(TABLE, column, &kid);
        let maybe = |column| {
            Self::column::<Option<i64>>(row, TABLE, column)
                .map(|millis| millis.map(Timestamp::from_millis))
        };
        Ok(KeyRecord {
            kid: Kid::parse(&kid).map_err(|_| bad("kid"))?,
            key_use: text("key_use")?.parse().map_err(|_| bad("key_use"))?,
            algorithm: text("algorithm")?.parse().map_err(|_| bad("algorithm"))?,
            times: KeyTimes {
                published_at: Self::time(row, TABLE, "published_at")?,
                activates_at: Self::time(row, TABLE, "activates_at")?,
                withdrawn_at: maybe("withdrawn_at")?,
                revoked_at: maybe("revoked_at")?,
            },
            sealed: SealedKey {
                master_id: MasterKeyId::from_uuid(Self::column(row, TABLE, "master_id")?),
                ciphertext: Self::column(row, TABLE, "ciphertext")?,
            },
        })
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
        let mut attempt = 1;
        loop {
            match self.try_apply(change, cause, now).await {
                Err(StoreError::Unavailable(sqlx::Error::Database(error)))
                    if DB::is_contention(&*error) && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                result => return result,
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

    async fn key_schedule(&self, key_use: KeyUse) -> Result<KeySchedule, StoreError> {
        let mut tx = self.readers().begin_with(DB::BEGIN_READ).await?;
        let schedule = Self::read_schedule(&mut tx, key_use).await?;
        tx.rollback().await?;
        Ok(schedule)
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
