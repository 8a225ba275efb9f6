//! What clients are still to be told: that their users have been signed out.

use serde_json::json;
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{
    Dialect, Done, NewEvent, Published, SqlStore, corrupt, families::id_list, legible, list,
};
use crate::{
    clock::Timestamp,
    domain::{
        change::{EventType, Topic},
        id::{ClientId, FamilyId, NoticeId, UserId},
        logout_notice::{
            ClaimedNotices, Hopeless, LogoutNotice, MOST_COUNTED, NoticeClaim, Settling,
        },
    },
    store::StoreError,
};

/// Of how many sign-ins of a user that end together a client is told: the latest ones. A user has no
/// more at an app that it could still know of, and whoever signs somebody in without end must not make
/// it impossible to sign out.
const MOST_OF_A_CLIENT: i64 = 100;

/// Has clients told of families that end at `$2`, each of the `$3` latest of its own, and of none that
/// an epoch had ended before. A notice is called what its family is, so that there is one.
macro_rules! insert_notices {
    ($which:literal) => {
        concat!(
            "insert into logout_notice \
             (id, client_id, subject, family_id, attempts, due_at, created_at) \
             select id, client_id, subject, id, 0, $2, $2 from \
             (select f.id, f.client_id, f.subject, \
             row_number() over (partition by f.client_id, f.subject order by f.id desc) as place \
             from family f join client c on c.client_id = f.client_id \
             join end_user u on u.id = f.subject \
             where c.backchannel_logout_uri is not null \
             and f.client_epoch = c.session_epoch and f.user_epoch = u.session_epoch and ",
            $which,
            ") ended where place <= $3 on conflict (id) do nothing"
        )
    };
}
pub(in crate::store) use insert_notices;

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
    /// Has the clients of these families told that they have ended at `now`, if they want to be.
    pub(super) async fn notify_of_families(
        tx: &mut Transaction<'_, DB>,
        families: impl IntoIterator<Item = FamilyId>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut families = families.into_iter().peekable();
        if families.peek().is_none() {
            return Ok(());
        }
        sqlx::query::<DB>(DB::NOTIFY_OF_FAMILIES)
            .bind(id_list(families))
            .bind(now.millis())
            .bind(MOST_OF_A_CLIENT)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// Has every client told of the sign-ins of a user there that live, before they end all at once.
    pub(super) async fn notify_of_user(
        tx: &mut Transaction<'_, DB>,
        user: UserId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // Uses family_subject.
        sqlx::query::<DB>(insert_notices!(
            "f.subject = $1 and f.revoked_at is null \
             and f.idle_expires_at > $2 and f.expires_at > $2"
        ))
        .bind(user.uuid())
        .bind(now.millis())
        .bind(MOST_OF_A_CLIENT)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Takes on what is due.
    pub(super) async fn take_notices(
        &self,
        claim: &NoticeClaim,
        now: Timestamp,
    ) -> Result<ClaimedNotices, StoreError> {
        // Mostly there is nothing, and nobody has to wait for a writer to learn that. Uses
        // logout_notice_due.
        let row = sqlx::query::<DB>(
            "select count(*) as waiting, min(due_at) as due_at from \
             (select due_at from logout_notice order by due_at limit $1) earliest",
        )
        .bind(i64::from(MOST_COUNTED))
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
            .bind(i64::from(claim.limit))
            .bind(claim.lease_until.millis())
            .bind(i64::from(claim.limit_of_a_client))
            .bind(list(claim.except.iter().map(ClientId::as_str)))
            .fetch_all(&self.writers())
            .await?;
        Ok(ClaimedNotices {
            notices: legible(rows.iter().map(Self::notice_of).collect())?,
            waiting,
        })
    }

    /// Forgets a notice, or puts it off. What somebody else has taken on since has another number of
    /// attempts.
    pub(super) async fn settle(
        &self,
        notice: &LogoutNotice,
        settling: Settling,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (Settling::PutOff(due_at) | Settling::PutOffAll(due_at)) = settling else {
            sqlx::query::<DB>("delete from logout_notice where id = $1 and attempts = $2")
                .bind(notice.id.uuid())
                .bind(i64::from(notice.attempts))
                .execute(&self.writers())
                .await?;
            return Ok(());
        };
        let own = sqlx::query::<DB>(
            "update logout_notice set due_at = $3 where id = $1 and attempts = $2 returning id",
        )
        .bind(notice.id.uuid())
        .bind(i64::from(notice.attempts))
        .bind(due_at.millis())
        .fetch_optional(&self.writers())
        .await?;
        if own.is_some() && matches!(settling, Settling::PutOffAll(_)) {
            sqlx::query::<DB>(
                // Uses logout_notice_client.
                "update logout_notice set due_at = $2, attempts = attempts + 1 \
                 where client_id = $1 and due_at <= $3",
            )
            .bind(notice.client_id.as_str().to_owned())
            .bind(due_at.millis())
            .bind(now.millis())
            .execute(&self.writers())
            .await?;
        }
        Ok(())
    }

    /// Gives up telling a client something, and what is as hopeless, and says so in the audit trail.
    pub(super) async fn drop_notice(
        tx: &mut Transaction<'_, DB>,
        notice: &LogoutNotice,
        hopeless: Option<Hopeless>,
        (event, problem): (EventType, &str),
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        sqlx::query::<DB>("delete from logout_notice where id = $1 and attempts = $2 returning id")
            .bind(notice.id.uuid())
            .bind(i64::from(notice.attempts))
            .fetch_optional(&mut **tx)
            .await?
            .ok_or(StoreError::Conflict)?;
        let mut dropped = 1;
        if let Some(hopeless) = hopeless {
            let others = sqlx::query::<DB>(
                // Uses logout_notice_client. What somebody is telling at this moment is not due.
                "delete from logout_notice where client_id = $1 and due_at <= $4 \
                 and created_at <= $2 and attempts >= $3 returning id",
            )
            .bind(notice.client_id.as_str().to_owned())
            .bind(hopeless.until.millis())
            .bind(i64::from(hopeless.attempts))
            .bind(now.millis())
            .fetch_all(&mut **tx)
            .await?;
            dropped += others.len();
        }
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: event,
                target: notice.client_id.to_string(),
                before: None,
                after: Some(json!({
                    "subject": notice.subject.to_string(),
                    "family": notice.family.to_string(),
                    "attempts": notice.attempts,
                    "notices": dropped,
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
            family: FamilyId::from_uuid(Self::column(row, TABLE, "family_id")?),
            attempts: u32::try_from(attempts).map_err(|_| corrupt(TABLE, "attempts", &id))?,
            created_at: Self::time(row, TABLE, "created_at")?,
        })
    }
}
