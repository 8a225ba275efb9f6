//! Sign-ins at the service itself, and what users have allowed clients.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, Done, NewEvent, Published, SqlStore, corrupt, list, unlist};
use crate::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        change::{EventType, Topic},
        consent::{Consent, Permission},
        family::{EndReason, Grant, Party, UserStanding},
        id::{ClientId, FamilyId, SessionId, UserId},
        resource::ResourceUri,
        scope::Scope,
        secret::SecretHash,
    },
    store::StoreError,
};

/// How many of the families that have ended together an event lists: the latest.
const MOST_LISTED: usize = 100;

/// What is read of a session. The names of columns that several tables have are told apart by a
/// prefix.
macro_rules! select_sessions {
    ($rest:literal) => {
        concat!(
            "select s.id, s.subject, s.user_epoch, s.auth_time, s.amr, s.seen_at, s.expires_at, \
             s.ended_at, s.first_address, s.first_agent, s.last_address, s.last_agent, \
             u.session_epoch as user_session_epoch, u.disabled as user_disabled, \
             u.tokens_not_before as user_not_before, u.second_factor_required as user_second_factor, \
             u.username, u.roles, u.claims \
             from browser_session s left join end_user u on u.id = s.subject ",
            $rest
        )
    };
}
pub(super) use select_sessions;

/// Selects the families that have not been ended one by one, nor by an epoch of the user. Those that are
/// over by their age as well: by another clock they might go on.
macro_rules! unended_families {
    ($which:literal) => {
        concat!(
            "select f.id, f.scope from family f join end_user u on u.id = f.subject \
             where f.revoked_at is null and f.user_epoch = u.session_epoch and ",
            $which
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
    pub(super) async fn upsert_session(
        &self,
        hash: &SecretHash,
        session: &BrowserSession,
    ) -> Result<bool, StoreError> {
        let put = sqlx::query::<DB>(
            "insert into browser_session (id, hash, subject, user_epoch, auth_time, amr, seen_at, \
             expires_at, ended_at, first_address, first_agent, last_address, last_agent) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             on conflict (id) do update set \
             hash = excluded.hash, user_epoch = excluded.user_epoch, \
             auth_time = excluded.auth_time, amr = excluded.amr, seen_at = excluded.seen_at, \
             expires_at = excluded.expires_at, last_address = excluded.last_address, \
             last_agent = excluded.last_agent \
             where browser_session.ended_at is null \
             and browser_session.subject = excluded.subject \
             returning id",
        )
        .bind(session.id.uuid())
        .bind(hash.as_bytes().to_vec())
        .bind(session.subject.uuid())
        .bind(session.user_epoch)
        .bind(session.auth_time.millis())
        .bind(list(&session.amr))
        .bind(session.seen_at.millis())
        .bind(session.expires_at.millis())
        .bind(session.ended_at.map(Timestamp::millis))
        .bind(session.first.address.clone())
        .bind(session.first.user_agent.clone())
        .bind(session.last.address.clone())
        .bind(session.last.user_agent.clone())
        .fetch_optional(&self.writers())
        .await?;
        Ok(put.is_some())
    }

    pub(super) async fn read_session(
        connection: &mut DB::Connection,
        hash: &SecretHash,
    ) -> Result<Option<(BrowserSession, Option<UserStanding>)>, StoreError> {
        let row = sqlx::query::<DB>(select_sessions!("where s.hash = $1"))
            .bind(hash.as_bytes().to_vec())
            .fetch_optional(connection)
            .await?;
        row.map(|row| Ok((Self::session_of(&row)?, Self::user_standing(&row)?)))
            .transpose()
    }

    /// The latest sessions of a user that live, the latest first.
    pub(super) async fn read_sessions(
        connection: &mut DB::Connection,
        subject: UserId,
        (idle_since, now): (Timestamp, Timestamp),
        limit: u32,
    ) -> Result<Vec<BrowserSession>, StoreError> {
        // Uses browser_session_subject.
        let rows = sqlx::query::<DB>(select_sessions!(
            "where s.subject = $1 and s.ended_at is null and s.seen_at > $2 and s.expires_at > $3 \
             and s.user_epoch = u.session_epoch order by s.id desc limit $4"
        ))
        .bind(subject.uuid())
        .bind(idle_since.millis())
        .bind(now.millis())
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
        rows.iter().map(Self::session_of).collect()
    }

    /// Notes that a session was used; one that was noted later stays as it is.
    pub(super) async fn note_use(
        &self,
        id: SessionId,
        party: &Party,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query::<DB>(
            "update browser_session set seen_at = $2, last_address = $3, last_agent = $4 \
             where id = $1 and seen_at <= $2",
        )
        .bind(id.uuid())
        .bind(now.millis())
        .bind(party.address.clone())
        .bind(party.user_agent.clone())
        .execute(&self.writers())
        .await?;
        Ok(())
    }

    /// Ends a session, and with it the sign-ins at clients that it has brought, but for those that
    /// were to outlast it.
    pub(super) async fn end_session(
        &self,
        tx: &mut Transaction<'_, DB>,
        id: SessionId,
        tokens_die_at: Timestamp,
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        // Waits for whoever is exchanging a code of it: what that opens is seen by then.
        let ended = sqlx::query::<DB>(
            "update browser_session set ended_at = $2 where id = $1 and ended_at is null \
             returning subject",
        )
        .bind(id.uuid())
        .bind(now.millis())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        let subject: Uuid = Self::column(&ended, "browser_session", "subject")?;
        // Uses family_session.
        let rows = sqlx::query::<DB>(unended_families!("f.session_id = $1"))
            .bind(id.uuid())
            .fetch_all(&mut **tx)
            .await?;
        let mut ids = Vec::with_capacity(rows.len());
        for row in &rows {
            let scope: String = Self::column(row, "family", "scope")?;
            let outlasts_it = Scope::parse(&scope).is_ok_and(|scope| scope.is_offline());
            if !outlasts_it {
                ids.push(FamilyId::from_uuid(Self::column(row, "family", "id")?));
            }
        }
        let families = Self::end_families(tx, ids, EndReason::SignedOut, now).await?;
        Ok(Self::ending_several(
            EventType::SessionEnded,
            &id,
            UserId::from_uuid(subject),
            families,
            tokens_die_at,
        ))
    }

    /// Whether a session has ended, or is no more. Whoever ends it waits for this transaction: what it
    /// brings is seen by then.
    pub(super) async fn has_ended(
        tx: &mut Transaction<'_, DB>,
        id: SessionId,
    ) -> Result<bool, StoreError> {
        let row = sqlx::query::<DB>(DB::HOLD_SESSION)
            .bind(id.uuid())
            .fetch_optional(&mut **tx)
            .await?;
        Ok(row.is_none())
    }

    /// Whether a user allows a client all that is asked, and anything at all, or need not, as it is of
    /// the house. Who takes it back waits for this transaction: what it brings is seen by then.
    pub(super) async fn has_consented(
        tx: &mut Transaction<'_, DB>,
        grant: &Grant,
        asked: &BTreeSet<Permission>,
    ) -> Result<bool, StoreError> {
        let of_house = sqlx::query::<DB>(
            "select client_id from client where client_id = $1 and first_party = 1",
        )
        .bind(grant.client_id.as_str().to_owned())
        .fetch_optional(&mut **tx)
        .await?;
        if of_house.is_some() {
            return Ok(true);
        }
        let row = sqlx::query::<DB>(DB::SHARE_CONSENT)
            .bind(grant.subject.uuid())
            .bind(grant.client_id.as_str().to_owned())
            .fetch_optional(&mut **tx)
            .await?;
        let consent = row.map(|row| Self::consent_of(&row)).transpose()?;
        Ok(consent.is_some_and(|consent| {
            consent.client_epoch == grant.client_epoch && asked.is_subset(&consent.permissions)
        }))
    }

    pub(super) async fn read_consent(
        connection: &mut DB::Connection,
        subject: UserId,
        client: &ClientId,
    ) -> Result<Option<Consent>, StoreError> {
        let row = sqlx::query::<DB>(
            "select subject, client_id, client_epoch, permissions, given_at from consent \
             where subject = $1 and client_id = $2",
        )
        .bind(subject.uuid())
        .bind(client.as_str().to_owned())
        .fetch_optional(connection)
        .await?;
        row.map(|row| Self::consent_of(&row)).transpose()
    }

    /// What a user has allowed, by client.
    pub(super) async fn read_consents(
        connection: &mut DB::Connection,
        subject: UserId,
    ) -> Result<Vec<Consent>, StoreError> {
        let rows = sqlx::query::<DB>(
            "select subject, client_id, client_epoch, permissions, given_at from consent \
             where subject = $1 order by client_id",
        )
        .bind(subject.uuid())
        .fetch_all(connection)
        .await?;
        rows.iter().map(Self::consent_of).collect()
    }

    /// Keeps what a user has allowed a client, in place of what was given at `expected`.
    pub(super) async fn put_consent(
        tx: &mut Transaction<'_, DB>,
        consent: &Consent,
        expected: Option<Timestamp>,
    ) -> Result<Done, StoreError> {
        // Nothing is kept of a user who is removed at this moment.
        let sql = match expected {
            None => {
                "insert into consent (subject, client_id, client_epoch, permissions, given_at) \
                 select $1, $2, $3, $4, $5 from end_user where id = $1 and $6 = 0 \
                 on conflict (subject, client_id) do nothing returning subject"
            }
            Some(_) => {
                "update consent set client_epoch = $3, permissions = $4, given_at = $5 \
                 where subject = $1 and client_id = $2 and given_at = $6 returning subject"
            }
        };
        let lines = consent.permissions.iter();
        let lines: Vec<String> = lines
            .map(|(resource, token)| format!("{resource} {token}"))
            .collect();
        sqlx::query::<DB>(sql)
            .bind(consent.subject.uuid())
            .bind(consent.client_id.as_str().to_owned())
            .bind(consent.client_epoch)
            .bind(list(&lines))
            .bind(consent.given_at.millis())
            .bind(expected.map_or(0, Timestamp::millis))
            .fetch_optional(&mut **tx)
            .await?
            .ok_or(StoreError::Conflict)?;
        Ok(Done {
            revision: 1,
            event: NewEvent {
                kind: EventType::ConsentGiven,
                target: consent.client_id.to_string(),
                before: None,
                after: Some(json!({
                    "subject": consent.subject.to_string(),
                    "permissions": lines,
                })),
            },
            published: vec![Published::of(Topic::User, &consent.subject)],
        })
    }

    /// Takes back what a user has allowed a client, and ends the user's sign-ins there.
    pub(super) async fn withdraw_consent(
        &self,
        tx: &mut Transaction<'_, DB>,
        subject: UserId,
        client: &ClientId,
        tokens_die_at: Timestamp,
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        sqlx::query::<DB>(
            "delete from consent where subject = $1 and client_id = $2 returning subject",
        )
        .bind(subject.uuid())
        .bind(client.as_str().to_owned())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(StoreError::Conflict)?;
        // Uses authorization_code_subject. Waits for whoever is exchanging one: what that opens is
        // seen by then. One that was exchanged stays, to tell when it comes again.
        sqlx::query::<DB>(
            "delete from authorization_code \
             where subject = $1 and client_id = $2 and family_id is null",
        )
        .bind(subject.uuid())
        .bind(client.as_str().to_owned())
        .execute(&mut **tx)
        .await?;
        // Uses family_subject.
        let rows = sqlx::query::<DB>(unended_families!("f.subject = $1 and f.client_id = $2"))
            .bind(subject.uuid())
            .bind(client.as_str().to_owned())
            .fetch_all(&mut **tx)
            .await?;
        let ids = Self::family_ids(&rows)?;
        let reason = EndReason::ConsentWithdrawn;
        let families = Self::end_families(tx, ids, reason, now).await?;
        Ok(Self::ending_several(
            EventType::ConsentWithdrawn,
            client,
            subject,
            families,
            tokens_die_at,
        ))
    }

    fn ending_several(
        kind: EventType,
        target: &impl ToString,
        subject: UserId,
        families: Vec<FamilyId>,
        tokens_die_at: Timestamp,
    ) -> Done {
        let count = families.len();
        let latest = families.iter().rev().take(MOST_LISTED);
        let latest: Vec<String> = latest.map(ToString::to_string).collect();
        let entries = families
            .into_iter()
            .map(|family| Published::family(family, tokens_die_at));
        Done {
            revision: 1,
            event: NewEvent {
                kind,
                target: target.to_string(),
                before: None,
                after: Some(json!({
                    "subject": subject.to_string(),
                    "families": latest,
                    "families_ended": count,
                })),
            },
            published: std::iter::once(Published::of(Topic::User, &subject))
                .chain(entries)
                .collect(),
        }
    }

    pub(super) fn session_of(row: &DB::Row) -> Result<BrowserSession, StoreError> {
        const TABLE: &str = "browser_session";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let time = |column| Self::time(row, TABLE, column);
        let text = |column| Self::column::<Option<String>>(row, TABLE, column);
        let amr: String = Self::column(row, TABLE, "amr")?;
        Ok(BrowserSession {
            id: SessionId::from_uuid(id),
            subject: UserId::from_uuid(Self::column(row, TABLE, "subject")?),
            user_epoch: Self::column(row, TABLE, "user_epoch")?,
            auth_time: time("auth_time")?,
            amr: unlist(&amr, |amr| Some(amr.to_owned()))
                .ok_or_else(|| corrupt(TABLE, "amr", &id))?,
            seen_at: time("seen_at")?,
            expires_at: time("expires_at")?,
            ended_at: Self::column::<Option<i64>>(row, TABLE, "ended_at")?
                .map(Timestamp::from_millis),
            first: Party {
                address: text("first_address")?,
                user_agent: text("first_agent")?,
            },
            last: Party {
                address: text("last_address")?,
                user_agent: text("last_agent")?,
            },
        })
    }

    fn consent_of(row: &DB::Row) -> Result<Consent, StoreError> {
        const TABLE: &str = "consent";
        let subject: Uuid = Self::column(row, TABLE, "subject")?;
        let text = |column| Self::column::<String>(row, TABLE, column);
        let bad = |column| corrupt(TABLE, column, &subject);
        Ok(Consent {
            subject: UserId::from_uuid(subject),
            client_id: ClientId::parse(&text("client_id")?).map_err(|_| bad("client_id"))?,
            client_epoch: Self::column(row, TABLE, "client_epoch")?,
            permissions: unlist(&text("permissions")?, permission)
                .map(|permissions: Vec<Permission>| permissions.into_iter().collect())
                .ok_or_else(|| bad("permissions"))?,
            given_at: Self::time(row, TABLE, "given_at")?,
        })
    }
}

/// A stored permission: a resource has no space in it.
fn permission(text: &str) -> Option<Permission> {
    let (resource, token) = text.split_once(' ')?;
    Some((ResourceUri::parse(resource).ok()?, token.to_owned()))
}
