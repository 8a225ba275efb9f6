//! What only `SQLite` needs.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use sqlx::{
    Sqlite, SqliteConnection, SqlitePool,
    migrate::Migrator,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use tokio::{sync::Notify, task::AbortHandle};
use uuid::Uuid;

use super::{
    OpenError, Schema, Store,
    open::{Access, must_migrate},
    sql::{Dialect, FamilyUpdate, Held, Pools, SqlStore, insert_notices, select_families},
};
use crate::{
    clock::{SystemClock, Timestamp},
    entropy::Entropy,
};

/// The schema, step by step.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a writer waits for another process to finish writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections read side by side.
const READERS: u32 = 4;

#[async_trait]
impl Dialect for Sqlite {
    // Immediate: a transaction that will write waits for its turn before it reads.
    const BEGIN_WRITE: &'static str = "begin immediate";
    const BEGIN_READ: &'static str = "begin deferred";
    const DATABASE_TIME: &'static str = "select cast(unixepoch('subsec') * 1000 as integer)";

    const INSERT_CHANGES: &'static str = "insert into change (seq, topic, target, at) \
         select value ->> 0, value ->> 1, value ->> 2, $2 from json_each($1)";
    // A condition that always holds tells the conflict from one of a join.
    const PUT_ENTRIES: &'static str = "insert into revocation \
         (seq, kind, value, not_before, expires_at, client_id) \
         select value ->> 0, value ->> 1, unhex(value ->> 2), value ->> 3, value ->> 4, value ->> 5 \
         from json_each($1) where true \
         on conflict (kind, value) do update set \
         seq = excluded.seq, not_before = excluded.not_before, \
         expires_at = excluded.expires_at, client_id = excluded.client_id";
    const END_FAMILIES: &'static str = "update family set revoked_at = $2, revoke_reason = $3 \
         where id in (select unhex(value, '-') from json_each($1)) and revoked_at is null \
         returning id";
    const NOTIFY_OF_FAMILIES: &'static str =
        insert_notices!("f.id in (select unhex(value, '-') from json_each($1))");

    // Whoever has begun to write is alone.
    const CLAIM_NOTICES: &'static str = "update logout_notice \
         set due_at = $3, attempts = attempts + 1 where id in (select id from \
         (select id, due_at, row_number() over (partition by client_id order by due_at, id) as place \
         from logout_notice where due_at <= $1 \
         and client_id not in (select value from json_each($5))) \
         where place <= $4 order by place, due_at, id limit $2) \
         returning id, client_id, subject, family_id, attempts, created_at";

    const HOLD_SESSION: &'static str =
        "select id from browser_session where id = $1 and ended_at is null";

    const SHARE_CONSENT: &'static str = "select subject, client_id, client_epoch, permissions, given_at from consent \
         where subject = $1 and client_id = $2";

    // Nor does anybody else write.
    const DELETE_EXPIRED_FAMILIES: &'static str = "delete from family where id in \
         (select id from family where expires_at <= $1 order by expires_at limit $2) returning id";
    const DELETE_ENDED_FAMILIES: &'static str = "delete from family where id > $1 and id <= $2 \
         and (revoked_at <= $3 or idle_expires_at <= $3) returning id";

    async fn lock_families(
        connection: &mut SqliteConnection,
        ids: &[Uuid],
        _: Held,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            let row = sqlx::query(select_families!("where f.id = $1"))
                .bind(id)
                .fetch_optional(&mut *connection)
                .await?;
            rows.extend(row);
        }
        Ok(rows)
    }

    async fn update_families(
        connection: &mut SqliteConnection,
        updates: Vec<FamilyUpdate>,
    ) -> Result<(), sqlx::Error> {
        for update in updates {
            sqlx::query(
                "update family set counter = $2, mac_version = $3, mac_since = $4, rotated_at = $5, \
                 idle_expires_at = $6, revoked_at = $7, revoke_reason = $8, last_address = $9, \
                 last_agent = $10, notes = $11 where id = $1",
            )
            .bind(update.id)
            .bind(update.counter)
            .bind(update.mac_version)
            .bind(update.mac_since)
            .bind(update.rotated_at)
            .bind(update.idle_expires_at)
            .bind(update.revoked_at)
            .bind(update.revoke_reason)
            .bind(update.last_address)
            .bind(update.last_agent)
            .bind(update.notes)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    fn is_locked(_: &dyn sqlx::error::DatabaseError) -> bool {
        // No row is held by itself.
        false
    }

    fn is_contention(error: &dyn sqlx::error::DatabaseError) -> bool {
        // SQLITE_BUSY and its extended codes
        let code = error.code().and_then(|code| code.parse::<u32>().ok());
        code.is_some_and(|code| code & 0xff == 5)
    }

    async fn announce(_: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        Ok(())
    }

    fn listen(_: &SqlitePool, _: &Arc<Notify>) -> Option<AbortHandle> {
        // The commits of other processes are found by polling.
        None
    }
}

/// Opens a database file, creating it if need be.
pub(super) async fn open(
    url: &str,
    access: Access,
    schema: Schema,
    entropy: &Entropy,
    now: Timestamp,
) -> Result<Arc<dyn Store>, OpenError> {
    let options =
        SqliteConnectOptions::from_str(url).map_err(|_| OpenError::Url("it is no sqlite URL"))?;
    let path = options.get_filename().to_owned();
    let in_memory = url.contains(":memory:") || url.contains("mode=memory");
    if path.as_os_str().is_empty() || in_memory {
        return Err(OpenError::Url("it names no file"));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| OpenError::File {
            path: folder.to_owned(),
            source,
        })?;
    }
    let serving = match access {
        Access::Serve => {
            let lock = private_file(&beside(&path, ".serving"))?;
            match lock.try_lock() {
                Ok(()) => Some(lock),
                Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path)),
                Err(TryLockError::Error(source)) => return Err(OpenError::File { path, source }),
            }
        }
        Access::Command | Access::Look | Access::Migrate => None,
    };
    let options = options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true);
    let pool = |connections| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false)
    };
    let writers = {
        // SQLite has no lock that spans a migration: two processes could both find one missing.
        let migrating = private_file(&beside(&path, ".migrating"))?;
        let locked =
            tokio::task::spawn_blocking(move || migrating.lock().map(|()| migrating)).await;
        let _migrating = locked
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|source| OpenError::File {
                path: path.clone(),
                source,
            })?;
        // Not when it is there: whoever closes any handle of a file gives up all locks that their
        // process has on it, those of SQLite too.
        if !path.exists() {
            private_file(&path)?;
        }
        let writers = pool(1)
            .connect_with(options.clone())
            .await
            .map_err(|error| unusable(error, &path))?;
        migrate(&writers, access, &schema.migrator(&MIGRATIONS), &path).await?;
        writers
    };
    let readers = pool(READERS)
        .connect_with(options.read_only(true))
        .await
        .map_err(|error| unusable(error, &path))?;
    let store = SqlStore {
        connect: None,
        pools: ArcSwap::from_pointee(Pools { writers, readers }),
        entropy: entropy.clone(),
        stopwatch: SystemClock::new(),
        hints: Arc::default(),
        listening: Mutex::default(),
        _serving: serving,
    };
    store.found(now).await.map_err(OpenError::Store)?;
    Ok(Arc::new(store))
}

/// Brings the schema up to date if that is asked for. The caller holds the lock.
async fn migrate(
    pool: &SqlitePool,
    access: Access,
    migrator: &Migrator,
    path: &Path,
) -> Result<(), OpenError> {
    let mut connection = pool
        .acquire()
        .await
        .map_err(|error| unusable(error, path))?;
    let history = "select exists (select 1 from sqlite_schema where name = '_sqlx_migrations')";
    let has_history = sqlx::query_scalar(history)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| unusable(error, path))?;
    let must_migrate = must_migrate(&mut *connection, has_history, migrator, access).await?;
    drop(connection);
    if must_migrate {
        migrator.run(pool).await?;
    }
    Ok(())
}

/// The path of a file that belongs to the database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens a file, creating it readable by its owner only: the database holds hashes and sealed keys.
fn private_file(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| OpenError::File {
            path: path.to_owned(),
            source,
        })
}

fn unusable(error: sqlx::Error, path: &Path) -> OpenError {
    OpenError::File {
        path: path.to_owned(),
        source: io::Error::other(error),
    }
}
