//! The audit trail.

use serde_json::Value;
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, NewEvent, SqlStore, corrupt};
use crate::{
    clock::Timestamp,
    domain::{
        change::Cause,
        event::{Event, EventQuery},
        id::EventId,
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
    pub(super) async fn record(
        &self,
        tx: &mut Transaction<'_, DB>,
        event: &NewEvent,
        seq: i64,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query::<DB>(
            "insert into event (id, at, type, actor, target, address, user_agent, request_id, reason, \
             before, after, seq, subject) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
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
        .bind(seq)
        .bind(subject_of(event))
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Events in the order of commits: whoever asks for those after the last one seen misses none.
    pub(super) async fn read_events(
        connection: &mut DB::Connection,
        query: &EventQuery,
    ) -> Result<Vec<Event>, StoreError> {
        if let Some(user) = query.concerning {
            // Uses event_subject.
            let rows = sqlx::query::<DB>(
                "select id, at, type, actor, target, address, user_agent, request_id, reason, before, \
                 after from event where subject = $1 order by seq desc limit $2",
            )
            .bind(user.to_string())
            .bind(i64::from(query.limit))
            .fetch_all(connection)
            .await?;
            return rows.iter().map(Self::event_of).collect();
        }
        let sql = if query.latest_first {
            "select id, at, type, actor, target, address, user_agent, request_id, reason, before, after \
             from event \
             where ($1 = '' or $1 like '%,' || type || ',%') and ($2 = '' or target = $2 or subject = $2) \
             and (seq < $3 or seq = $3 and id < $4) \
             order by seq desc, id desc limit $5"
        } else {
            "select id, at, type, actor, target, address, user_agent, request_id, reason, before, after \
             from event \
             where ($1 = '' or $1 like '%,' || type || ',%') and ($2 = '' or target = $2 or subject = $2) \
             and (seq > $3 or seq = $3 and id > $4) \
             order by seq, id limit $5"
        };
        let (seq, id) = match query.after {
            Some(after) => (Self::place_of(connection, after).await?, after.uuid()),
            None if query.latest_first => (i64::MAX, Uuid::max()),
            None => (-1, Uuid::nil()),
        };
        let mut kinds = String::new();
        for kind in &query.kinds {
            kinds.push(',');
            kinds.push_str(kind.as_str());
            kinds.push(',');
        }
        let rows = sqlx::query::<DB>(sql)
            .bind(kinds)
            .bind(query.subject.clone().unwrap_or_default())
            .bind(seq)
            .bind(id)
            .bind(i64::from(query.limit))
            .fetch_all(connection)
            .await?;
        rows.iter().map(Self::event_of).collect()
    }

    /// The place of an event. One that was deleted by age lay before all that are left.
    async fn place_of(connection: &mut DB::Connection, id: EventId) -> Result<i64, StoreError> {
        let row = sqlx::query::<DB>("select seq from event where id = $1")
            .bind(id.uuid())
            .fetch_optional(connection)
            .await?;
        row.map_or(Ok(-1), |row| Self::column(&row, "event", "seq"))
    }

    fn event_of(row: &DB::Row) -> Result<Event, StoreError> {
        const TABLE: &str = "event";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let maybe = |column| Self::column::<Option<String>>(row, TABLE, column);
        let document = |column| {
            maybe(column)?
                .map(|text| serde_json::from_str::<Value>(&text))
                .transpose()
                .map_err(|_| corrupt(TABLE, column, &id))
        };
        Ok(Event {
            id: EventId::from_uuid(id),
            at: Self::time(row, TABLE, "at")?,
            kind: text("type")?,
            target: text("target")?,
            cause: Cause {
                actor: text("actor")?,
                address: maybe("address")?,
                user_agent: maybe("user_agent")?,
                request_id: maybe("request_id")?,
                reason: maybe("reason")?,
            },
            before: document("before")?,
            after: document("after")?,
        })
    }
}

/// The user whom an event is about, if it is about one.
fn subject_of(event: &NewEvent) -> Option<String> {
    if event.kind.as_str().starts_with("user.") {
        return Some(event.target.clone());
    }
    let subject = event.after.as_ref()?.get("subject")?;
    subject.as_str().map(str::to_owned)
}
