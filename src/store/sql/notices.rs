//! What clients are still to be told: that their users have been signed out.

use serde_json::json;
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, Done, NewEvent, Published, SqlStore, corrupt};
use crate::{
    clock::Timestamp,
    domain::{
        change::{EventType, Topic},
        family::EndReason,
        id::{ClientId, FamilyId, NoticeId, UserId},
        logout_notice::{ClaimedNotices, LogoutNotice},
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
    /// Has the client of a family told that it has ended, if it wants to be.
    pub(super) async fn notify_of_family(
        &self,
        tx: &mut Transaction<'_, DB>,
        family: FamilyId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query::<DB>(
            "insert into logout_notice \
             (id, client_id, subject, family_id, attempts, due_at, created_at) \
             select $1, f.client_id, f.subject, f.id, 0, $3, $3 \
             from family f join client c on c.client_id = f.client_id \
             where f.id = $2 and c.backchannel_logout_uri is not null",
        )
        .bind(self.entropy.uuid_v7(now)?)
        .bind(family.uuid())
        .bind(now.millis())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// The same for the end of one family by itself: a client that has ended it knows.
    pub(super) async fn notify_of_end(
        &self,
        tx: &mut Transaction<'_, DB>,
        family: FamilyId,
        reason: EndReason,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        match reason {
            EndReason::RevokedByClient => Ok(()),
            _ => self.notify_of_family(tx, family, now).await,
        }
    }

    /// Has every client told at which a user has sign-ins that live, before they end all at once: once
    /// each, but those that have to be told of which one.
    pub(super) async fn notify_of_user(
        &self,
        tx: &mut Transaction<'_, DB>,
        user: UserId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // Uses family_subject.
        let rows = sqlx::query::<DB>(
            "select f.id, f.client_id, c.backchannel_logout_session_required from family f \
             join client c on c.client_id = f.client_id join end_user u on u.id = f.subject \
             where f.subject = $1 and f.user_epoch = u.session_epoch and f.revoked_at is null \
             and f.idle_expires_at > $2 and f.expires_at > $2 \
             and c.backchannel_logout_uri is not null \
             order by f.client_id, f.id",
        )
        .bind(user.uuid())
        .bind(now.millis())
        .fetch_all(&mut **tx)
        .await?;
        let mut told = None;
        for row in rows {
            let client: String = Self::column(&row, "family", "client_id")?;
            let required: i64 =
                Self::column(&row, "client", "backchannel_logout_session_required")?;
            if required != 0 {
                let family: Uuid = Self::column(&row, "family", "id")?;
                let family = FamilyId::from_uuid(family);
                self.notify_of_family(tx, family, now).await?;
            } else if told.as_ref() != Some(&client) {
                sqlx::query::<DB>(
                    "insert into logout_notice \
                     (id, client_id, subject, family_id, attempts, due_at, created_at) \
                     values ($1, $2, $3, null, 0, $4, $4)",
                )
                .bind(self.entropy.uuid_v7(now)?)
                .bind(client.clone())
                .bind(user.uuid())
                .bind(now.millis())
                .execute(&mut **tx)
                .await?;
                told = Some(client);
            }
        }
        Ok(())
    }

    /// Takes on what is due: until `lease_until` nobody else does.
    pub(super) async fn take_notices(
        &self,
        limit: u32,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<ClaimedNotices, StoreError> {
        // Mostly there is nothing, and nobody has to wait for a writer to learn that.
        let row = sqlx::query::<DB>(
            "select count(*) as waiting, min(due_at) as due_at from logout_notice",
        )
        .fetch_one(&self.readers())
        .await?;
        let waiting: i64 = Self::column(&row, "logout_notice", "waiting")?;
        let waiting = u64::try_from(waiting).unwrap_or(0);
        let due_at: Option<i64> = Self::column(&row, "logout_notice", "due_at")?;
        if due_at.is_none_or(|due_at| due_at > now.millis()) {
            return Ok(ClaimedNotices {
                notices: Vec::new(),
                waiting,
            });
        }
        let rows = sqlx::query::<DB>(DB::CLAIM_NOTICES)
            .bind(now.millis())
            .bind(i64::from(limit))
            .bind(lease_until.millis())
            .fetch_all(&self.writers())
            .await?;
        Ok(ClaimedNotices {
            notices: rows.iter().map(Self::notice_of).collect::<Result<_, _>>()?,
            waiting,
        })
    }

    /// Puts off a notice, or forgets it.
    pub(super) async fn settle_notice(
        &self,
        id: NoticeId,
        due_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let query = match due_at {
            Some(due_at) => sqlx::query::<DB>("update logout_notice set due_at = $2 where id = $1")
                .bind(id.uuid())
                .bind(due_at.millis()),
            None => sqlx::query::<DB>("delete from logout_notice where id = $1").bind(id.uuid()),
        };
        query.execute(&self.writers()).await?;
        Ok(())
    }

    /// Gives up telling a client something, and says so in the audit trail.
    pub(super) async fn drop_notice(
        tx: &mut Transaction<'_, DB>,
        notice: &LogoutNotice,
        event: EventType,
        problem: &str,
    ) -> Result<Done, StoreError> {
        sqlx::query::<DB>("delete from logout_notice where id = $1 returning id")
            .bind(notice.id.uuid())
            .fetch_optional(&mut **tx)
            .await?
            .ok_or(StoreError::Conflict)?;
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: event,
                target: notice.client_id.to_string(),
                before: None,
                after: Some(json!({
                    "subject": notice.subject.to_string(),
                    "family": notice.family.map(|family| family.to_string()),
                    "attempts": notice.attempts,
                    "problem": problem,
                })),
            },
            published: vec![Published::of(Topic::User, &notice.subject)],
        })
    }

    fn notice_of(row: &DB::Row) -> Result<LogoutNotice, StoreError> {
        const TABLE: &str = "logout_notice";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let client: String = Self::column(row, TABLE, "client_id")?;
        let attempts: i64 = Self::column(row, TABLE, "attempts")?;
        Ok(LogoutNotice {
            id: NoticeId::from_uuid(id),
            client_id: ClientId::parse(&client).map_err(|_| corrupt(TABLE, "client_id", &id))?,
            subject: UserId::from_uuid(Self::column(row, TABLE, "subject")?),
            family: Self::column::<Option<Uuid>>(row, TABLE, "family_id")?.map(FamilyId::from_uuid),
            attempts: u32::try_from(attempts).map_err(|_| corrupt(TABLE, "attempts", &id))?,
            created_at: Self::time(row, TABLE, "created_at")?,
        })
    }
}
