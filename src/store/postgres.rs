//! What only Postgres needs.

use std::{
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool, Postgres,
    migrate::{Migrate as _, Migrator},
    postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow},
};
use tokio::{sync::Notify, task::AbortHandle};
use uuid::Uuid;

use super::{
    Access, OpenError, Schema, Store,
    open::must_migrate,
    sql::{Dialect, FamilyUpdate, Held, Pools, SqlStore, insert_notices, select_families},
};
use crate::{
    clock::{SystemClock, Timestamp},
    entropy::Entropy,
};

/// The schema, step by step.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The channel on which nodes tell each other that there are changes.
const CHANNEL: &str = "countersign";

/// How long to wait for a connection before the database counts as down.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that has been idle for longer is asked whether it still lives before its use.
const PING_AFTER: Duration = Duration::from_secs(1);

/// How long to wait before listening is tried again.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

#[async_trait]
impl Dialect for Postgres {
    const BEGIN_WRITE: &'static str = "begin";
    const BEGIN_READ: &'static str = "begin isolation level repeatable read read only";
    const DATABASE_TIME: &'static str =
        "select (extract(epoch from clock_timestamp()) * 1000)::bigint";

    const INSERT_CHANGES: &'static str = "insert into change (seq, topic, target, at) \
         select cast(value ->> 0 as bigint), value ->> 1, value ->> 2, $2 \
         from json_array_elements(cast($1 as json))";
    const PUT_ENTRIES: &'static str = "insert into revocation \
         (seq, kind, value, not_before, expires_at, client_id) \
         select cast(value ->> 0 as bigint), value ->> 1, decode(value ->> 2, 'hex'), \
         cast(value ->> 3 as bigint), cast(value ->> 4 as bigint), value ->> 5 \
         from json_array_elements(cast($1 as json)) \
         on conflict (kind, value) do update set \
         seq = excluded.seq, not_before = excluded.not_before, \
         expires_at = excluded.expires_at, client_id = excluded.client_id";
    // What was refreshed meanwhile is asked once more when its lock is taken.
    const END_FAMILIES: &'static str = "with held as materialized \
         (select id from family where id in \
         (select cast(value as uuid) from json_array_elements_text(cast($1 as json))) \
         order by id for update of family) \
         update family f set revoked_at = $2, revoke_reason = $3 from held \
         where f.id = held.id and f.revoked_at is null returning f.id";
    const NOTIFY_OF_FAMILIES: &'static str = insert_notices!(
        "f.id in \
         (select cast(value as uuid) from json_array_elements_text(cast($1 as json)))"
    );

    const CLAIM_NOTICES: &'static str = "with taken as materialized \
         (select n.id from logout_notice n join \
         (select id, row_number() over (partition by client_id order by due_at, id) as place \
         from logout_notice where due_at <= $1 \
         and client_id not in (select json_array_elements_text(cast($5 as json)))) due on due.id = n.id \
         where due.place <= $4 and n.due_at <= $1 order by due.place, n.due_at, n.id limit $2 \
         for update of n skip locked) \
         update logout_notice n set due_at = $3, attempts = n.attempts + 1 \
         from taken where n.id = taken.id \
         returning n.id, n.client_id, n.subject, n.family_id, n.attempts, n.created_at";

    const HOLD_SESSION: &'static str =
        "select id from browser_session where id = $1 and ended_at is null for no key update";

    const SHARE_CONSENT: &'static str = "select subject, client_id, client_epoch, permissions, given_at from consent \
         where subject = $1 and client_id = $2 for share";

    // A row that is locked is being refreshed, or deleted by another node: it is passed over, so that
    // nobody waits for anybody. The others are asked again when their locks are taken.
    const DELETE_EXPIRED_FAMILIES: &'static str = "with old as materialized \
         (select id from family where expires_at <= $1 order by expires_at limit $2 \
         for update skip locked) \
         delete from family f using old where f.id = old.id returning f.id";
    const DELETE_ENDED_FAMILIES: &'static str = "with old as materialized \
         (select id from family where id > $1 and id <= $2 \
         and (revoked_at <= $3 or idle_expires_at <= $3) for update skip locked) \
         delete from family f using old where f.id = old.id returning f.id";

    async fn lock_families(
        connection: &mut PgConnection,
        ids: &[Uuid],
        held: Held,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        if held == Held::PassOver {
            // There was one wait already, and callers wait no longer than for two.
            sqlx::query("set local lock_timeout = 500")
                .execute(&mut *connection)
                .await?;
        }
        let sql = match held {
            Held::Await => select_families!("where f.id = any($1) order by f.id for update of f"),
            Held::PassOver => {
                select_families!("where f.id = any($1) order by f.id for update of f skip locked")
            }
        };
        sqlx::query(sql).bind(ids).fetch_all(connection).await
    }

    async fn update_families(
        connection: &mut PgConnection,
        updates: Vec<FamilyUpdate>,
    ) -> Result<(), sqlx::Error> {
        let column =
            |value: fn(&FamilyUpdate) -> i64| updates.iter().map(value).collect::<Vec<_>>();
        sqlx::query(
            "update family f set counter = i.counter, mac_version = i.mac_version, \
             mac_since = i.mac_since, rotated_at = i.rotated_at, idle_expires_at = i.idle_expires_at, \
             revoked_at = i.revoked_at, revoke_reason = i.revoke_reason, \
             last_address = i.last_address, last_agent = i.last_agent, notes = i.notes \
             from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], \
             $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[], $11::text[]) \
             as i(id, counter, mac_version, mac_since, rotated_at, idle_expires_at, revoked_at, revoke_reason, \
             last_address, last_agent, notes) \
             where f.id = i.id",
        )
        .bind(updates.iter().map(|update| update.id).collect::<Vec<_>>())
        .bind(column(|update| update.counter))
        .bind(column(|update| update.mac_version))
        .bind(column(|update| update.mac_since))
        .bind(column(|update| update.rotated_at))
        .bind(column(|update| update.idle_expires_at))
        .bind(updates.iter().map(|update| update.revoked_at).collect::<Vec<_>>())
        .bind(updates.iter().map(|update| update.revoke_reason).collect::<Vec<_>>())
        .bind(updates.iter().map(|update| update.last_address.as_deref()).collect::<Vec<_>>())
        .bind(updates.iter().map(|update| update.last_agent.as_deref()).collect::<Vec<_>>())
        .bind(updates.iter().map(|update| update.notes.as_str()).collect::<Vec<_>>())
        .execute(connection)
        .await?;
        Ok(())
    }

    fn is_locked(error: &dyn sqlx::error::DatabaseError) -> bool {
        // lock_not_available
        error.code().as_deref() == Some("55P03")
    }

    fn is_contention(error: &dyn sqlx::error::DatabaseError) -> bool {
        // serialization_failure and deadlock_detected
        matches!(error.code().as_deref(), Some("40001" | "40P01"))
    }

    async fn announce(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query("select pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(connection)
            .await?;
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "backing off from a server that refuses to be listened to; no rule depends on it"
    )]
    fn listen(pool: &PgPool, hints: &Arc<Notify>) -> Option<AbortHandle> {
        let (pool, hints) = (pool.clone(), Arc::clone(hints));
        let listening = tokio::spawn(async move {
            while !pool.is_closed() {
                if let Ok(mut listener) = PgListener::connect_with(&pool).await
                    && listener.listen(CHANNEL).await.is_ok()
                {
                    // What was announced before is not heard of any more.
                    hints.notify_one();
                    while listener.recv().await.is_ok() {
                        hints.notify_one();
                    }
                }
                tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
            }
        });
        Some(listening.abort_handle())
    }
}

/// Opens a Postgres database, which any number of processes may serve.
pub(super) async fn open(
    url: &str,
    access: Access,
    schema: Schema,
    entropy: &Entropy,
    now: Timestamp,
) -> Result<Arc<dyn Store>, OpenError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| OpenError::Url("it is no postgres URL"))?
        .application_name("countersign")
        .options([("client_min_messages", "warning")]);
    {
        // On a connection of its own: a migration may take longer than any request.
        let migrating = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Whatever waits for a table holds up all who come after it.
            .connect_with(options.clone().options([("lock_timeout", "10s")]))
            .await
            .map_err(OpenError::Unreachable)?;
        let migrated = migrate(&migrating, access, &schema.migrator(&MIGRATIONS)).await;
        // With the connection goes its lock.
        migrating.close().await;
        migrated?;
    }
    let connect = move || pool_options().connect_lazy_with(options.clone());
    let pool = connect();
    let store = SqlStore {
        connect: Some(Box::new(connect)),
        pools: ArcSwap::from_pointee(Pools {
            writers: pool.clone(),
            readers: pool,
        }),
        entropy: entropy.clone(),
        stopwatch: SystemClock::new(),
        hints: Arc::default(),
        listening: Mutex::default(),
        _serving: None,
    };
    store.found(now).await.map_err(OpenError::Store)?;
    Ok(Arc::new(store))
}

/// Brings the schema up to date if that is asked for, one process at a time.
///
/// A database that is up to date is only read: whoever serves it need not own its tables.
async fn migrate(pool: &PgPool, access: Access, migrator: &Migrator) -> Result<(), OpenError> {
    let mut connection = pool.acquire().await.map_err(OpenError::Unreachable)?;
    connection.lock().await?;
    let has_history = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await
        .map_err(OpenError::Unreachable)?;
    let must_migrate = must_migrate(&mut *connection, has_history, migrator, access).await?;
    // The pool has this connection only: the migration runs on it, still under the lock.
    drop(connection);
    if must_migrate {
        migrator.run(pool).await?;
    }
    Ok(())
}

fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > PING_AFTER {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A commit that a crash could undo would bring back what was revoked. What a node
                // holds that has stopped in the middle is taken from it.
                connection
                    .execute(
                        "set synchronous_commit = on; set statement_timeout = '10s'; \
                         set lock_timeout = '2s'; \
                         set idle_in_transaction_session_timeout = '5s'",
                    )
                    .await?;
                Ok(())
            })
        })
}
