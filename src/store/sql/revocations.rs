//! Entries of revocation.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};
use sqlx::{Executor, IntoArguments, Pool, Row as _, Transaction};
use uuid::Uuid;

use super::{Dialect, Done, NewEvent, Published, SqlStore, corrupt};
use crate::{
    clock::Timestamp,
    domain::{
        change::{DATABASE, EventType, Topic},
        family::EndReason,
        id::{ClientId, FamilyId, Kid, UserId},
        revocation::{MOST_TOKENS, Revocation, RevocationKind, RevokedValue, next_second},
    },
    store::StoreError,
};

/// An entry whose place is not known yet.
pub(super) struct Entry {
    kind: RevocationKind,
    value: RevokedValue,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    /// Whose token it is about; counts against [`MOST_TOKENS`].
    owner: Option<ClientId>,
}

impl Entry {
    /// As [`Dialect::PUT_ENTRIES`] takes it.
    fn row(&self, seq: i64) -> Value {
        let mut value = String::new();
        for byte in self.value.as_bytes() {
            // Nothing fails that is written into a text.
            let _ = write!(value, "{byte:02x}");
        }
        json!([
            seq,
            self.kind.as_str(),
            value,
            self.not_before.map(Timestamp::millis),
            self.expires_at.map(Timestamp::millis),
            self.owner.as_ref().map(ClientId::as_str),
        ])
    }
}

/// The moments on which entries about a client depend.
#[derive(Clone, Copy)]
pub(super) struct Spans {
    pub(super) now: Timestamp,
    pub(super) tokens_die_at: Timestamp,
}

impl Spans {
    pub(super) fn new(now: Timestamp, tokens_die_at: Timestamp) -> Self {
        Self { now, tokens_die_at }
    }
}

/// How long it takes at most to end the sign-ins of so many clients.
fn for_each(clients: i64) -> Duration {
    Duration::from_millis(u64::try_from(clients).unwrap_or(0).saturating_mul(10))
}

impl Published {
    fn revocation(target: &str, entry: Entry) -> Self {
        Self {
            topic: Topic::Revocation,
            target: target.to_owned(),
            entry: Some(entry),
        }
    }

    /// Revokes what a key has signed, for ever: a compromised key stays compromised.
    pub(super) fn key(kid: &Kid) -> Self {
        let entry = Entry {
            kind: RevocationKind::Kid,
            value: RevokedValue::of(kid.as_str()),
            not_before: None,
            expires_at: None,
            owner: None,
        };
        Self::revocation(kid.as_str(), entry)
    }

    /// Whether it revokes the tokens from before some moment: none may be issued after that which
    /// does not know of it.
    pub(super) fn bounds_tokens(&self) -> bool {
        let entry = self.entry.as_ref();
        entry.is_some_and(|entry| entry.not_before.is_some())
    }

    /// Revokes the access tokens of a family.
    pub(super) fn family(id: FamilyId, tokens_die_at: Timestamp) -> Self {
        let sid = id.to_string();
        let entry = Entry {
            kind: RevocationKind::Sid,
            value: RevokedValue::of(&sid),
            not_before: None,
            expires_at: Some(tokens_die_at),
            owner: None,
        };
        Self::revocation(&sid, entry)
    }

    /// Revokes the tokens of a client: those issued before `not_before`, or all.
    pub(super) fn client(
        id: &ClientId,
        not_before: Option<Timestamp>,
        expires_at: Option<Timestamp>,
    ) -> Self {
        let entry = Entry {
            kind: RevocationKind::ClientId,
            value: RevokedValue::of(id.as_str()),
            not_before,
            expires_at,
            owner: None,
        };
        Self::revocation(id.as_str(), entry)
    }

    /// Revokes the tokens of a user: those issued before `not_before`, or all. An entry without a
    /// bound ends, too: a disabled user gets no token, on whatever node.
    pub(super) fn user(
        id: UserId,
        not_before: Option<Timestamp>,
        tokens_die_at: Timestamp,
    ) -> Self {
        let id = id.to_string();
        let entry = Entry {
            kind: RevocationKind::Sub,
            value: RevokedValue::of(&id),
            not_before,
            expires_at: Some(tokens_die_at),
            owner: None,
        };
        Self::revocation(&id, entry)
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
    /// Writes the entries of what is published from the place `first` on.
    pub(super) async fn put_entries(
        tx: &mut Transaction<'_, DB>,
        first: i64,
        published: &[Published],
    ) -> Result<(), StoreError> {
        let entries = || {
            let rows = (first..).zip(published);
            rows.filter_map(|(seq, row)| Some((seq, row, row.entry.as_ref()?)))
        };
        for (_, row, entry) in entries() {
            if entry.kind == RevocationKind::ClientId {
                // Included in this one. Not earlier: nobody else writes entries while the head is locked.
                sqlx::query::<DB>("delete from revocation where client_id = $1")
                    .bind(row.target.clone())
                    .execute(&mut **tx)
                    .await?;
            }
        }
        let rows: Vec<Value> = entries().map(|(seq, _, entry)| entry.row(seq)).collect();
        if !rows.is_empty() {
            sqlx::query::<DB>(DB::PUT_ENTRIES)
                .bind(Value::from(rows).to_string())
                .execute(&mut **tx)
                .await?;
        }
        Ok(())
    }

    /// Whether tokens of a client of this id are revoked: a client that is registered anew must not
    /// inherit that.
    pub(super) async fn has_entry(
        tx: &mut Transaction<'_, DB>,
        id: &ClientId,
    ) -> Result<bool, StoreError> {
        let row = sqlx::query::<DB>("select seq from revocation where kind = $1 and value = $2")
            .bind(RevocationKind::ClientId.as_str().to_owned())
            .bind(RevokedValue::of(id.as_str()).as_bytes().to_vec())
            .fetch_optional(&mut **tx)
            .await?;
        Ok(row.is_some())
    }

    pub(super) async fn revoke_token(
        &self,
        tx: &mut Transaction<'_, DB>,
        (jti, family): (&str, Option<FamilyId>),
        owner: Option<&ClientId>,
        token_dies_at: Timestamp,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        if let Some(owner) = owner {
            // Uses the index revocation_client. Two at once may both get in as the last one: the
            // bound is about memory, not about counting.
            let row = sqlx::query::<DB>(
                "select count(*) from revocation where client_id = $1 and expires_at > $2",
            )
            .bind(owner.as_str().to_owned())
            .bind(spans.now.millis())
            .fetch_one(&mut **tx)
            .await?;
            let count: i64 = row.try_get(0)?;
            if count >= MOST_TOKENS {
                let Some(family) = family else {
                    return Self::revoke_tokens_before(tx, owner, None, spans).await;
                };
                let reason = EndReason::RevokedByClient;
                let Spans { now, tokens_die_at } = spans;
                match Self::end_family(tx, family, reason, tokens_die_at, now).await {
                    // It has ended meanwhile: one more that is remembered does no harm.
                    Err(StoreError::Conflict) => {}
                    ended => return ended,
                }
            }
        }
        let entry = Entry {
            kind: RevocationKind::Jti,
            value: RevokedValue::of(jti),
            not_before: None,
            expires_at: Some(token_dies_at),
            owner: owner.cloned(),
        };
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: EventType::TokenRevoked,
                target: jti.to_owned(),
                before: None,
                after: Some(json!({ "client_id": owner.map(ClientId::as_str) })),
            },
            published: vec![Published::revocation(jti, entry)],
        })
    }

    /// Revokes every token that a client holds and ends every sign-in at it, by one update.
    pub(super) async fn revoke_client_tokens(
        &self,
        tx: &mut Transaction<'_, DB>,
        id: &ClientId,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        Self::revoke_tokens_before(tx, id, Some(self.epoch()?), spans).await
    }

    /// Revokes every access token that a client holds; with another epoch, its sign-ins, too.
    async fn revoke_tokens_before(
        tx: &mut Transaction<'_, DB>,
        id: &ClientId,
        epoch: Option<i64>,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        let not_before = next_second(spans.now);
        let row = sqlx::query::<DB>(
            "update client set tokens_not_before = $2, session_epoch = coalesce($3, session_epoch), \
             revision = revision + 1 where client_id = $1 returning disabled, revision",
        )
        .bind(id.as_str().to_owned())
        .bind(not_before.millis())
        .bind(epoch)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        let disabled = Self::column::<i64>(&row, "client", "disabled")? != 0;
        let entry = if disabled {
            Published::client(id, None, None)
        } else {
            Published::client(id, Some(not_before), Some(spans.tokens_die_at))
        };
        Ok(Done {
            revision: Self::column(&row, "client", "revision")?,
            event: NewEvent {
                kind: EventType::ClientTokensRevoked,
                target: id.to_string(),
                before: None,
                after: Some(json!({
                    "tokens_not_before": not_before.seconds(),
                    "ends_sessions": epoch.is_some(),
                })),
            },
            published: vec![Published::of(Topic::Client, &id), entry],
        })
    }

    /// Begins a new epoch. Nobody knows what was revoked after the backup was made, so that every
    /// token issued so far is, unless it is to be kept.
    pub(super) async fn restore(
        &self,
        tx: &mut Transaction<'_, DB>,
        keep_tokens: bool,
        spans: Spans,
    ) -> Result<Done, StoreError> {
        let mut published = vec![Published::of(Topic::Keys, "restored")];
        if !keep_tokens {
            let row = sqlx::query::<DB>("select count(*) from client")
                .fetch_one(&mut **tx)
                .await?;
            let clients: i64 = row.try_get(0)?;
            let not_before = next_second(spans.now.plus(for_each(clients)));
            sqlx::query::<DB>("update browser_session set ended_at = $1 where ended_at is null")
                .bind(spans.now.millis())
                .execute(&mut **tx)
                .await?;
            let rows = sqlx::query::<DB>(
                "update client set tokens_not_before = $1, session_epoch = $2, revision = revision + 1 \
                 returning client_id, disabled",
            )
            .bind(not_before.millis())
            .bind(self.epoch()?)
            .fetch_all(&mut **tx)
            .await?;
            for row in rows {
                let id: String = Self::column(&row, "client", "client_id")?;
                let disabled = Self::column::<i64>(&row, "client", "disabled")? != 0;
                if let (Ok(id), false) = (ClientId::parse(&id), disabled) {
                    let end = Some(spans.tokens_die_at);
                    published.push(Published::client(&id, Some(not_before), end));
                }
            }
        }
        let epoch = self.entropy.uuid_v7(spans.now)?;
        sqlx::query::<DB>("update change_head set epoch = $1 where id = 1")
            .bind(epoch)
            .execute(&mut **tx)
            .await?;
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: EventType::DatabaseRestored,
                target: DATABASE.to_owned(),
                before: None,
                after: Some(json!({ "keep_tokens": keep_tokens, "epoch": epoch.to_string() })),
            },
            published,
        })
    }

    /// The entries whose place is after `seq`.
    pub(super) async fn read_revocations(
        connection: &mut DB::Connection,
        seq: i64,
    ) -> Result<Vec<Result<Revocation, StoreError>>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select seq, kind, value, not_before, expires_at, client_id from revocation \
             where seq > $1 order by seq",
        )
        .bind(seq)
        .fetch_all(connection)
        .await?;
        Ok(rows.iter().map(Self::revocation_of).collect())
    }

    fn revocation_of(row: &DB::Row) -> Result<Revocation, StoreError> {
        const TABLE: &str = "revocation";
        let seq: i64 = Self::column(row, TABLE, "seq")?;
        let kind: String = Self::column(row, TABLE, "kind")?;
        let value: Vec<u8> = Self::column(row, TABLE, "value")?;
        let moment = |column| {
            Self::column::<Option<i64>>(row, TABLE, column)
                .map(|millis| millis.map(Timestamp::from_millis))
        };
        Ok(Revocation {
            seq,
            kind: kind.parse().map_err(|_| corrupt(TABLE, "kind", &seq))?,
            value: RevokedValue::from_bytes(&value).ok_or_else(|| corrupt(TABLE, "value", &seq))?,
            not_before: moment("not_before")?,
            expires_at: moment("expires_at")?,
            owner: Self::column::<Option<String>>(row, TABLE, "client_id")?
                .map(|owner| RevokedValue::of(&owner)),
        })
    }
}
