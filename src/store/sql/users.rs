//! Users.
//!
//! Whatever ends the sessions of a user gives it another epoch and writes one entry of revocation,
//! however many sessions there are.

use serde_json::{Map, Value, json};
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{
    Dialect, Done, NewEvent, Published, SqlStore, corrupt, list, revocations::Spans, unlist,
};
use crate::{
    clock::Timestamp,
    domain::{
        change::{EventType, Topic},
        client::Revision,
        id::UserId,
        profile::Profile,
        revocation::next_second,
        user::{PasswordHash, User, Username, UsernameKey},
    },
    store::StoreError,
};

/// What is read of a user.
macro_rules! user_columns {
    () => {
        "id, username, password_hash, roles, claims, disabled, demo, session_epoch, \
         tokens_not_before, revision, created_at, updated_at, password_changed_at, \
         second_factor_required, profile"
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
    pub(super) async fn put_user(
        &self,
        tx: &mut Transaction<'_, DB>,
        user: &User,
        expected: Option<Revision>,
        event: EventType,
        ends_sessions: bool,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        let before = Self::read_user(tx, user.id).await?;
        if before.as_ref().map(|before| before.revision) != expected {
            return Err(StoreError::Conflict);
        }
        let mut after = User {
            revision: expected.map_or(1, |revision| revision + 1),
            created_at: before.as_ref().map_or(spans.now, |user| user.created_at),
            updated_at: spans.now,
            tokens_not_before: before.as_ref().and_then(|user| user.tokens_not_before),
            ..user.clone()
        };
        let mut entry = None;
        after.session_epoch = match &before {
            Some(before) if before.disabled == user.disabled && !ends_sessions => {
                before.session_epoch
            }
            Some(_) => {
                Self::notify_of_user(tx, user.id, spans.now).await?;
                let not_before = next_second(spans.now);
                after.tokens_not_before = Some(not_before);
                // While it is disabled, a clock that runs ahead spares no token.
                let bound = (!user.disabled).then_some(not_before);
                entry = Some(Published::user(user.id, bound, spans.tokens_die_at));
                self.epoch()?
            }
            None => self.epoch()?,
        };
        // The conditions make a writer between our read and this write a conflict. An upsert would
        // not do: it would bring back a user that was deleted in between.
        let sql = match before {
            None => concat!(
                "insert into end_user (",
                user_columns!(),
                ", username_key) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                 $15, $16) \
                 on conflict (id) do nothing \
                 returning id"
            ),
            Some(_) => {
                "update end_user set username = $2, password_hash = $3, roles = $4, claims = $5, \
                 disabled = $6, demo = $7, session_epoch = $8, tokens_not_before = $9, \
                 revision = $10, created_at = $11, updated_at = $12, password_changed_at = $13, \
                 second_factor_required = $14, profile = $15, username_key = $16 \
                 where id = $1 and revision = $10 - 1 \
                 returning id"
            }
        };
        let claims = Value::Object(after.claims.clone()).to_string();
        let written = sqlx::query::<DB>(sql)
            .bind(after.id.uuid())
            .bind(after.username.as_str().to_owned())
            .bind(
                after
                    .password_hash
                    .as_ref()
                    .map(|hash| hash.phc().to_owned()),
            )
            .bind(list(&after.roles))
            .bind(claims)
            .bind(i64::from(after.disabled))
            .bind(i64::from(after.demo))
            .bind(after.session_epoch)
            .bind(after.tokens_not_before.map(Timestamp::millis))
            .bind(after.revision)
            .bind(after.created_at.millis())
            .bind(after.updated_at.millis())
            .bind(after.password_changed_at.map(Timestamp::millis))
            .bind(i64::from(after.second_factor_required))
            .bind(Value::Object(after.profile.members().clone()).to_string())
            .bind(after.username.key().as_str().to_owned())
            .fetch_optional(&mut **tx)
            .await?;
        if written.is_none() {
            return Err(StoreError::Conflict);
        }
        Ok(Done {
            revision: after.revision,
            event: NewEvent {
                kind: event,
                target: after.id.to_string(),
                before: before.map(|before| before.document()),
                after: Some(after.document()),
            },
            published: entry
                .into_iter()
                .chain([Published::of(Topic::User, &after.id)])
                .collect(),
        })
    }

    pub(super) async fn delete_user(
        &self,
        tx: &mut Transaction<'_, DB>,
        id: UserId,
        expected: Revision,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        Self::notify_of_user(tx, id, spans.now).await?;
        let before = sqlx::query::<DB>(concat!(
            "delete from end_user where id = $1 and revision = $2 returning ",
            user_columns!()
        ))
        .bind(id.uuid())
        .bind(expected)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        sqlx::query::<DB>("delete from consent where subject = $1")
            .bind(id.uuid())
            .execute(&mut **tx)
            .await?;
        Ok(Done {
            revision: expected,
            event: NewEvent {
                kind: EventType::UserDeleted,
                target: id.to_string(),
                before: Some(Self::user_of(&before)?.document()),
                after: None,
            },
            published: vec![
                Published::user(id, None, spans.tokens_die_at),
                Published::of(Topic::User, &id),
            ],
        })
    }

    pub(super) async fn end_user_sessions(
        &self,
        tx: &mut Transaction<'_, DB>,
        id: UserId,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        Self::notify_of_user(tx, id, spans.now).await?;
        let not_before = next_second(spans.now);
        let row = sqlx::query::<DB>(
            "update end_user set session_epoch = $2, tokens_not_before = $3, \
             revision = revision + 1 where id = $1 \
             returning disabled, revision",
        )
        .bind(id.uuid())
        .bind(self.epoch()?)
        .bind(not_before.millis())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        let disabled = Self::column::<i64>(&row, "end_user", "disabled")? != 0;
        let bound = (!disabled).then_some(not_before);
        Ok(Done {
            revision: Self::column(&row, "end_user", "revision")?,
            event: NewEvent {
                kind: EventType::UserSessionsEnded,
                target: id.to_string(),
                before: None,
                after: Some(json!({ "tokens_not_before": not_before.seconds() })),
            },
            published: vec![
                Published::user(id, bound, spans.tokens_die_at),
                Published::of(Topic::User, &id),
            ],
        })
    }

    pub(super) async fn read_user(
        connection: &mut DB::Connection,
        id: UserId,
    ) -> Result<Option<User>, StoreError> {
        let row = sqlx::query::<DB>(concat!(
            "select ",
            user_columns!(),
            " from end_user where id = $1"
        ))
        .bind(id.uuid())
        .fetch_optional(connection)
        .await?;
        row.as_ref().map(Self::user_of).transpose()
    }

    pub(super) async fn read_user_by_name(
        connection: &mut DB::Connection,
        key: &UsernameKey,
    ) -> Result<Option<User>, StoreError> {
        // Uses the index end_user_username.
        let row = sqlx::query::<DB>(concat!(
            "select ",
            user_columns!(),
            " from end_user where username_key = $1"
        ))
        .bind(key.as_str().to_owned())
        .fetch_optional(connection)
        .await?;
        row.as_ref().map(Self::user_of).transpose()
    }

    pub(super) async fn read_users(
        connection: &mut DB::Connection,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        // Uses the primary key. Nobody has the nil UUID.
        let rows = sqlx::query::<DB>(concat!(
            "select ",
            user_columns!(),
            " from end_user where id > $1 order by id limit $2"
        ))
        .bind(after.map_or(Uuid::nil(), UserId::uuid))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
        rows.iter().map(Self::user_of).collect()
    }

    pub(super) async fn read_demo_user(
        connection: &mut DB::Connection,
    ) -> Result<Option<UserId>, StoreError> {
        // Uses the index end_user_demo.
        let row = sqlx::query::<DB>("select id from end_user where demo = 1 limit 1")
            .fetch_optional(connection)
            .await?;
        let id = |row| Self::column(&row, "end_user", "id").map(UserId::from_uuid);
        row.map(id).transpose()
    }

    fn user_of(row: &DB::Row) -> Result<User, StoreError> {
        const TABLE: &str = "end_user";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let moment = |column| {
            Self::column::<Option<i64>>(row, TABLE, column)
                .map(|millis| millis.map(Timestamp::from_millis))
        };
        let bad = |column| corrupt(TABLE, column, &id);
        Ok(User {
            id: UserId::from_uuid(id),
            username: Username::parse(&text("username")?).map_err(|_| bad("username"))?,
            password_hash: Self::column::<Option<String>>(row, TABLE, "password_hash")?
                .map(PasswordHash::from_phc),
            roles: unlist(&text("roles")?, |role| Some(role.to_owned()))
                .ok_or_else(|| bad("roles"))?,
            claims: serde_json::from_str::<Map<String, Value>>(&text("claims")?)
                .map_err(|_| bad("claims"))?,
            profile: serde_json::from_str(&text("profile")?)
                .map(Profile::from_stored)
                .map_err(|_| bad("profile"))?,
            disabled: Self::column::<i64>(row, TABLE, "disabled")? != 0,
            demo: Self::column::<i64>(row, TABLE, "demo")? != 0,
            session_epoch: Self::column(row, TABLE, "session_epoch")?,
            tokens_not_before: moment("tokens_not_before")?,
            revision: Self::column(row, TABLE, "revision")?,
            created_at: Self::time(row, TABLE, "created_at")?,
            updated_at: Self::time(row, TABLE, "updated_at")?,
            password_changed_at: moment("password_changed_at")?,
            second_factor_required: Self::column::<i64>(row, TABLE, "second_factor_required")? != 0,
        })
    }
}
