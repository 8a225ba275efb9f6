//! Second factors.
//!
//! Whatever changes what a user has enrolled locks the user first: of two who do so at once, one
//! sees what the other has done.

use serde_json::{Map, Value, json};
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, Done, NewEvent, Published, SqlStore, corrupt, revocations::Spans};
use crate::{
    clock::Timestamp,
    domain::{
        change::{EventType, Topic},
        factor::{FactorChange, Factors, Passkey, PasskeyId, SealedTotp, Totp},
        id::{MasterKeyId, UserId},
        key::{KeyUse, SealedKey},
        secret::SecretHash,
    },
    store::StoreError,
};

/// What is read of a passkey.
macro_rules! select_passkeys {
    ($rest:literal) => {
        concat!(
            "select credential_id, subject, name, credential, counter, created_at, last_used_at \
             from passkey ",
            $rest
        )
    };
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
    pub(super) async fn change_factors(
        tx: &mut Transaction<'_, DB>,
        (subject, user_epoch): (UserId, i64),
        is_first: bool,
        change: &FactorChange,
    ) -> Result<Done, StoreError> {
        if let FactorChange::AddTotp(totp) = change {
            Self::hold_primary(tx, totp.sealed.master_id).await?;
        }
        let user = sqlx::query::<DB>(
            "update end_user set username = username \
             where id = $1 and session_epoch = $2 and disabled = 0 \
             returning second_factor_required, revision",
        )
        .bind(subject.uuid())
        .bind(user_epoch)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        // Nobody else adds one as long as the user is locked.
        if is_first {
            let before = Self::read_factors(tx, subject).await?;
            let is_there = match change {
                FactorChange::MakeRecoveryCodes(_) => before.recovery_codes > 0,
                _ => before.is_enrolled(),
            };
            if is_there {
                return Err(StoreError::Conflict);
            }
        }
        let (kind, mut detail) = Self::make_factors(tx, subject, change).await?;
        detail.insert("subject".to_owned(), subject.to_string().into());
        let removes = matches!(
            change,
            FactorChange::RemoveTotp | FactorChange::RemovePasskey(_)
        );
        if removes && !Self::read_factors(tx, subject).await?.is_enrolled() {
            if Self::column::<i64>(&user, "end_user", "second_factor_required")? != 0 {
                return Err(StoreError::Conflict);
            }
            Self::delete_factors(tx, "delete from recovery_code where subject = $1", subject)
                .await?;
        }
        Ok(Done {
            revision: Self::column(&user, "end_user", "revision")?,
            event: NewEvent {
                kind,
                target: subject.to_string(),
                before: None,
                after: Some(detail.into()),
            },
            published: vec![Published::of(Topic::User, &subject)],
        })
    }

    /// Keeps the primary master key as it is until the transaction ends. That it is another one by
    /// now is a conflict: what is sealed under one that was given up could not be opened later.
    async fn hold_primary(
        tx: &mut Transaction<'_, DB>,
        master: MasterKeyId,
    ) -> Result<(), StoreError> {
        let held = sqlx::query::<DB>(
            "update key_schedule set primary_master = primary_master \
             where key_use = $1 and primary_master = $2 \
             returning key_use",
        )
        .bind(KeyUse::Signing.as_str().to_owned())
        .bind(master.uuid())
        .fetch_optional(&mut **tx)
        .await?;
        held.map(|_| ()).ok_or(StoreError::Conflict)
    }

    /// Does what is asked for; with what the audit trail says of it.
    async fn make_factors(
        tx: &mut Transaction<'_, DB>,
        subject: UserId,
        change: &FactorChange,
    ) -> Result<(EventType, Map<String, Value>), StoreError> {
        let (kind, detail) = match change {
            FactorChange::AddTotp(totp) => {
                sqlx::query::<DB>(
                    "insert into totp (subject, master_id, ciphertext, last_step, created_at) \
                     values ($1, $2, $3, $4, $5)",
                )
                .bind(subject.uuid())
                .bind(totp.sealed.master_id.uuid())
                .bind(totp.sealed.ciphertext.clone())
                .bind(totp.last_step)
                .bind(totp.created_at.millis())
                .execute(&mut **tx)
                .await?;
                (EventType::TotpEnrolled, json!({}))
            }
            FactorChange::RemoveTotp => {
                sqlx::query::<DB>("delete from totp where subject = $1 returning subject")
                    .bind(subject.uuid())
                    .fetch_optional(&mut **tx)
                    .await?
                    .ok_or(StoreError::Conflict)?;
                (EventType::TotpRemoved, json!({}))
            }
            FactorChange::MakeRecoveryCodes(hashes) => {
                Self::delete_factors(tx, "delete from recovery_code where subject = $1", subject)
                    .await?;
                for hash in hashes {
                    sqlx::query::<DB>("insert into recovery_code (subject, hash) values ($1, $2)")
                        .bind(subject.uuid())
                        .bind(hash.as_bytes().to_vec())
                        .execute(&mut **tx)
                        .await?;
                }
                let detail = json!({ "recovery_codes": hashes.len() });
                (EventType::RecoveryCodesMade, detail)
            }
            FactorChange::UseRecoveryCode(hash) => {
                Self::use_recovery_code(tx, subject, hash).await?;
                let left = Self::read_factors(tx, subject).await?.recovery_codes;
                let detail = json!({ "recovery_codes": left });
                (EventType::RecoveryCodeUsed, detail)
            }
            FactorChange::AddPasskey(passkey) => {
                sqlx::query::<DB>(
                    "insert into passkey (credential_id, subject, name, credential, counter, \
                     created_at, last_used_at) values ($1, $2, $3, $4, $5, $6, $7)",
                )
                .bind(passkey.id.as_bytes().to_vec())
                .bind(subject.uuid())
                .bind(passkey.name.clone())
                .bind(passkey.credential.clone())
                .bind(passkey.counter)
                .bind(passkey.created_at.millis())
                .bind(passkey.last_used_at.map(Timestamp::millis))
                .execute(&mut **tx)
                .await?;
                let detail = json!({ "passkey": passkey.id.to_string(), "name": passkey.name });
                (EventType::PasskeyAdded, detail)
            }
            FactorChange::RemovePasskey(id) => {
                let row = sqlx::query::<DB>(
                    "delete from passkey where credential_id = $1 and subject = $2 returning name",
                )
                .bind(id.as_bytes().to_vec())
                .bind(subject.uuid())
                .fetch_optional(&mut **tx)
                .await?
                .ok_or(StoreError::Conflict)?;
                let name: String = Self::column(&row, "passkey", "name")?;
                let detail = json!({ "passkey": id.to_string(), "name": name });
                (EventType::PasskeyRemoved, detail)
            }
        };
        Ok((kind, detail.as_object().cloned().unwrap_or_default()))
    }

    async fn use_recovery_code(
        tx: &mut Transaction<'_, DB>,
        subject: UserId,
        hash: &SecretHash,
    ) -> Result<(), StoreError> {
        let used = sqlx::query::<DB>(
            "delete from recovery_code where subject = $1 and hash = $2 returning subject",
        )
        .bind(subject.uuid())
        .bind(hash.as_bytes().to_vec())
        .fetch_optional(&mut **tx)
        .await?;
        used.map(|_| ()).ok_or(StoreError::Conflict)
    }

    async fn delete_factors(
        tx: &mut Transaction<'_, DB>,
        sql: &'static str,
        subject: UserId,
    ) -> Result<(), StoreError> {
        sqlx::query::<DB>(sql)
            .bind(subject.uuid())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Removes all factors of a user, and ends its sessions.
    pub(super) async fn reset_factors(
        &self,
        tx: &mut Transaction<'_, DB>,
        id: UserId,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        // Locks the user.
        let done = self.end_user_sessions(tx, id, spans).await?;
        let before = Self::read_factors(tx, id).await?;
        for sql in [
            "delete from totp where subject = $1",
            "delete from recovery_code where subject = $1",
            "delete from passkey where subject = $1",
        ] {
            Self::delete_factors(tx, sql, id).await?;
        }
        Ok(Done {
            event: NewEvent {
                kind: EventType::UserFactorsReset,
                before: Some(json!({
                    "totp": before.totp.is_some(),
                    "recovery_codes": before.recovery_codes,
                    "passkeys": before.passkeys.len(),
                })),
                ..done.event
            },
            ..done
        })
    }

    pub(super) async fn read_factors(
        connection: &mut DB::Connection,
        subject: UserId,
    ) -> Result<Factors, StoreError> {
        let totp = sqlx::query::<DB>(
            "select subject, master_id, ciphertext, last_step, created_at from totp \
             where subject = $1",
        )
        .bind(subject.uuid())
        .fetch_optional(&mut *connection)
        .await?;
        let codes =
            sqlx::query::<DB>("select count(*) as codes from recovery_code where subject = $1")
                .bind(subject.uuid())
                .fetch_one(&mut *connection)
                .await?;
        // Uses passkey_subject.
        let passkeys = sqlx::query::<DB>(select_passkeys!(
            "where subject = $1 order by created_at, credential_id"
        ))
        .bind(subject.uuid())
        .fetch_all(connection)
        .await?;
        let codes: i64 = Self::column(&codes, "recovery_code", "codes")?;
        Ok(Factors {
            totp: totp.as_ref().map(Self::totp_of).transpose()?,
            recovery_codes: u32::try_from(codes).unwrap_or(u32::MAX),
            passkeys: passkeys
                .iter()
                .map(Self::passkey_of)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Takes a step of one-time passwords: whether it is later than all that were taken before.
    pub(super) async fn take_step(&self, subject: UserId, step: i64) -> Result<bool, StoreError> {
        let taken = sqlx::query::<DB>(
            "update totp set last_step = $2 where subject = $1 and last_step < $2 \
             returning subject",
        )
        .bind(subject.uuid())
        .bind(step)
        .fetch_optional(&self.writers())
        .await?;
        Ok(taken.is_some())
    }

    pub(super) async fn read_passkey(
        connection: &mut DB::Connection,
        id: &PasskeyId,
    ) -> Result<Option<Passkey>, StoreError> {
        let row = sqlx::query::<DB>(select_passkeys!("where credential_id = $1"))
            .bind(id.as_bytes().to_vec())
            .fetch_optional(connection)
            .await?;
        row.as_ref().map(Self::passkey_of).transpose()
    }

    /// Notes that a passkey was used: whether its counter has gone on, where it counts.
    pub(super) async fn note_use_of_passkey(
        &self,
        passkey: &Passkey,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let noted = sqlx::query::<DB>(
            "update passkey set counter = $2, credential = $3, last_used_at = $4 \
             where credential_id = $1 and (counter < $2 or counter = 0 and $2 = 0) \
             returning credential_id",
        )
        .bind(passkey.id.as_bytes().to_vec())
        .bind(passkey.counter)
        .bind(passkey.credential.clone())
        .bind(now.millis())
        .fetch_optional(&self.writers())
        .await?;
        Ok(noted.is_some())
    }

    /// How many secrets each master key seals.
    pub(super) async fn count_totp(
        connection: &mut DB::Connection,
    ) -> Result<Vec<(MasterKeyId, usize)>, StoreError> {
        // Uses totp_master.
        let rows = sqlx::query::<DB>(
            "select master_id, count(*) as secrets from totp group by master_id order by master_id",
        )
        .fetch_all(connection)
        .await?;
        let count = |row: &DB::Row| {
            let secrets: i64 = Self::column(row, "totp", "secrets")?;
            let master = MasterKeyId::from_uuid(Self::column(row, "totp", "master_id")?);
            Ok((master, usize::try_from(secrets).unwrap_or(usize::MAX)))
        };
        rows.iter().map(count).collect()
    }

    /// Secrets that are sealed under another master key than this one.
    pub(super) async fn read_totp_elsewhere(
        connection: &mut DB::Connection,
        master: MasterKeyId,
        limit: u32,
    ) -> Result<Vec<SealedTotp>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select subject, master_id, ciphertext, last_step, created_at from totp \
             where master_id <> $1 order by subject limit $2",
        )
        .bind(master.uuid())
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
        let sealed = |row: &DB::Row| {
            Ok(SealedTotp {
                subject: UserId::from_uuid(Self::column(row, "totp", "subject")?),
                sealed: Self::totp_of(row)?.sealed,
            })
        };
        rows.iter().map(sealed).collect()
    }

    /// Replaces a sealed secret: whether it still was what it was, and the master key the primary
    /// one.
    pub(super) async fn replace_totp(
        &self,
        before: &SealedTotp,
        after: &SealedKey,
    ) -> Result<bool, StoreError> {
        let replaced = sqlx::query::<DB>(
            "update totp set master_id = $3, ciphertext = $4 \
             where subject = $1 and ciphertext = $2 and exists \
             (select 1 from key_schedule where key_use = $5 and primary_master = $3) \
             returning subject",
        )
        .bind(before.subject.uuid())
        .bind(before.sealed.ciphertext.clone())
        .bind(after.master_id.uuid())
        .bind(after.ciphertext.clone())
        .bind(KeyUse::Signing.as_str().to_owned())
        .fetch_optional(&self.writers())
        .await?;
        Ok(replaced.is_some())
    }

    fn totp_of(row: &DB::Row) -> Result<Totp, StoreError> {
        const TABLE: &str = "totp";
        Ok(Totp {
            sealed: SealedKey {
                master_id: MasterKeyId::from_uuid(Self::column(row, TABLE, "master_id")?),
                ciphertext: Self::column(row, TABLE, "ciphertext")?,
            },
            last_step: Self::column(row, TABLE, "last_step")?,
            created_at: Self::time(row, TABLE, "created_at")?,
        })
    }

    fn passkey_of(row: &DB::Row) -> Result<Passkey, StoreError> {
        const TABLE: &str = "passkey";
        let subject: Uuid = Self::column(row, TABLE, "subject")?;
        let id: Vec<u8> = Self::column(row, TABLE, "credential_id")?;
        Ok(Passkey {
            id: PasskeyId::from_bytes(&id)
                .ok_or_else(|| corrupt(TABLE, "credential_id", &subject))?,
            subject: UserId::from_uuid(subject),
            name: Self::column(row, TABLE, "name")?,
            credential: Self::column(row, TABLE, "credential")?,
            counter: Self::column(row, TABLE, "counter")?,
            created_at: Self::time(row, TABLE, "created_at")?,
            last_used_at: Self::column::<Option<i64>>(row, TABLE, "last_used_at")?
                .map(Timestamp::from_millis),
        })
    }
}
