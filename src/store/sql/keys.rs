//! The key schedules, one for each use.
//!
//! The master key that seals new keys is one for all uses: the row of the signing keys has it.

use serde_json::{Value, json};
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, Done, NewEvent, Published, SqlStore, corrupt};
use crate::{
    clock::Timestamp,
    domain::{
        change::{EventType, Topic},
        id::{Kid, MasterKeyId},
        key::{KeyRecord, KeySchedule, KeyTimes, KeyUse, SealedKey},
    },
    store::StoreError,
};

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
    pub(super) async fn put_keys(
        tx: &mut Transaction<'_, DB>,
        schedule: &KeySchedule,
        event: EventType,
    ) -> Result<Done, StoreError> {
        let revision = schedule.revision + 1;
        let is_signing = schedule.key_use == KeyUse::Signing;
        if !is_signing {
            // Locks it, so that no key is sealed under a master key that was given up meanwhile.
            let primary = sqlx::query::<DB>(
                "update key_schedule set primary_master = primary_master \
                 where key_use = $1 and primary_master = $2 \
                 returning key_use",
            )
            .bind(KeyUse::Signing.as_str().to_owned())
            .bind(schedule.primary_master.map(MasterKeyId::uuid))
            .fetch_optional(&mut **tx)
            .await?;
            if primary.is_none() {
                return Err(StoreError::Conflict);
            }
        }
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
            .bind(
                schedule
                    .primary_master
                    .filter(|_| is_signing)
                    .map(MasterKeyId::uuid),
            )
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
                 revoked_at, master_id, ciphertext, version) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
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
            .bind(key.version.map(i64::from))
            .execute(&mut **tx)
            .await?;
        }
        let was_revoked = |kid: &Kid| {
            before
                .iter()
                .any(|key| key.kid == *kid && key.times.revoked_at.is_some())
        };
        let mut published = vec![Published::of(Topic::Keys, &schedule.key_use)];
        // Verifiers never see other keys.
        for key in schedule.keys.iter().filter(|_| is_signing) {
            if key.times.revoked_at.is_some() && !was_revoked(&key.kid) {
                published.push(Published::key(&key.kid));
            }
        }
        let document = |keys: &[KeyRecord]| keys.iter().map(KeyRecord::document).collect::<Value>();
        Ok(Done {
            revision,
            event: NewEvent {
                kind: event,
                target: schedule.key_use.to_string(),
                before: Some(document(&before)),
                after: Some(json!({
                    "primary_master_key": schedule.primary_master.map(|id| id.to_string()),
                    "keys": document(&schedule.keys),
                })),
            },
            published,
        })
    }

    pub(super) async fn read_schedule(
        connection: &mut DB::Connection,
        key_use: KeyUse,
    ) -> Result<KeySchedule, StoreError> {
        let row = sqlx::query::<DB>(
            "select \
             coalesce((select revision from key_schedule where key_use = $1), 0) as revision, \
             (select primary_master from key_schedule where key_use = $2) as primary_master",
        )
        .bind(key_use.as_str().to_owned())
        .bind(KeyUse::Signing.as_str().to_owned())
        .fetch_one(&mut *connection)
        .await?;
        let primary_master: Option<Uuid> = Self::column(&row, "key_schedule", "primary_master")?;
        let keys = Self::read_keys(connection, key_use).await?;
        Ok(KeySchedule {
            key_use,
            revision: Self::column(&row, "key_schedule", "revision")?,
            primary_master: primary_master.map(MasterKeyId::from_uuid),
            keys,
        })
    }

    pub(super) async fn read_keys(
        connection: &mut DB::Connection,
        key_use: KeyUse,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select kid, key_use, algorithm, published_at, activates_at, withdrawn_at, revoked_at, \
             master_id, ciphertext, version \
             from sealed_key where key_use = $1 order by activates_at, published_at, kid",
        )
        .bind(key_use.as_str().to_owned())
        .fetch_all(connection)
        .await?;
        rows.iter().map(Self::key_of).collect()
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
        let version: Option<i64> = Self::column(row, TABLE, "version")?;
        let version = version.map(u32::try_from).transpose();
        Ok(KeyRecord {
            kid: Kid::parse(&kid).map_err(|_| bad("kid"))?,
            key_use: text("key_use")?.parse().map_err(|_| bad("key_use"))?,
            algorithm: text("algorithm")?.parse().map_err(|_| bad("algorithm"))?,
            version: version.map_err(|_| bad("version"))?,
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
}
