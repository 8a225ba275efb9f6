//! What sessions of browsers are at clients that have tokens for them.

use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, Held, SqlStore, list, sessions::select_sessions};
use crate::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        family::{Family, Grant, Refusal, Standing, UserStanding},
        id::{ClientId, SessionId},
        resource::ResourceUri,
        session_family::{Course, SessionFamily, SessionGrant},
    },
    store::{StoreError, sql::select_families},
};

/// A session and its latest family at a client, with what client and user are.
type Seen = (BrowserSession, Option<(Family, Standing)>);

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
    /// Finds the family of a session at a client, makes it follow the session, or opens it.
    pub(super) async fn try_session_family(
        &self,
        asked: &SessionGrant,
        now: Timestamp,
    ) -> Result<SessionFamily, StoreError> {
        // Mostly all is as it should be: for that nothing is locked or written.
        let mut connection = self.readers().acquire().await?;
        let seen = Self::see(&mut connection, asked, now).await?;
        drop(connection);
        let (session, found) = match seen {
            Err(refusal) => return Ok(SessionFamily::Refused(refusal)),
            Ok(seen) => seen,
        };
        let course = asked.course(&session, found.as_ref().map(|(family, _)| family));
        match (course, found) {
            (Course::Keep, Some((family, standing))) => {
                return Ok(Self::outcome(session, family, standing, now));
            }
            (Course::Refuse, _) => return Ok(SessionFamily::Refused(Refusal::Ended)),
            _ => {}
        }

        let mut tx = self.writers().begin_with(DB::BEGIN_WRITE).await?;
        Self::lock_session(&mut tx, asked.session).await?;
        let (session, found) = match Self::see(&mut tx, asked, now).await? {
            Err(refusal) => {
                tx.rollback().await?;
                return Ok(SessionFamily::Refused(refusal));
            }
            Ok(seen) => seen,
        };
        // What is allowed may have been taken back since it was looked at. Before families: who takes it
        // back locks in this order, too.
        if !Self::has_consented(&mut tx, &asked.grant(&session), &asked.allowed).await? {
            tx.rollback().await?;
            return Ok(SessionFamily::Refused(Refusal::SignedOut));
        }
        let found = match found {
            Some((family, _)) => {
                let rows = DB::lock_families(&mut tx, &[family.id.uuid()], Held::Await).await?;
                rows.first().map(|row| Self::family_of(row)).transpose()?
            }
            None => None,
        };
        let course = asked.course(&session, found.as_ref().map(|(family, _)| family));
        let (family, standing) = match (course, found) {
            (Course::Keep, Some(found)) => found,
            (Course::Follow, Some((mut family, standing))) => {
                asked.follow(&session, &mut family, now);
                Self::update_followed(&mut tx, &family).await?;
                (family, standing)
            }
            (Course::Refuse, _) => {
                tx.rollback().await?;
                return Ok(SessionFamily::Refused(Refusal::Ended));
            }
            (Course::Open | Course::Keep | Course::Follow, _) => {
                let family = asked.opened(&session, now);
                let standing = Self::read_standing(&mut tx, &family.grant).await?;
                Self::insert_family(&mut tx, &family).await?;
                (family, standing)
            }
        };
        let outcome = Self::outcome(session, family, standing, now);
        match &outcome {
            SessionFamily::Open { .. } => tx.commit().await?,
            SessionFamily::Refused(_) => tx.rollback().await?,
        }
        Ok(outcome)
    }

    /// The session, with its latest family at the client, or why there is nothing for it.
    async fn see(
        connection: &mut DB::Connection,
        asked: &SessionGrant,
        now: Timestamp,
    ) -> Result<Result<Seen, Refusal>, StoreError> {
        let Some((session, user)) = Self::read_session_of(connection, asked.session).await? else {
            return Ok(Err(Refusal::SignedOut));
        };
        if let Some(refusal) = asked.refusal(&session, user.as_ref(), now) {
            return Ok(Err(refusal));
        }
        let family =
            Self::read_latest_for_session(connection, asked.session, &asked.client_id).await?;
        Ok(Ok((session, family)))
    }

    fn outcome(
        session: BrowserSession,
        family: Family,
        standing: Standing,
        now: Timestamp,
    ) -> SessionFamily {
        let not_yet = standing
            .is_before_new_tokens(now)
            .then_some(Refusal::NotYet);
        match family.ending(&standing, now).or(not_yet) {
            Some(refusal) => SessionFamily::Refused(refusal),
            None => SessionFamily::Open {
                session: Box::new(session),
                family: Box::new(family),
                standing: Box::new(standing),
            },
        }
    }

    /// Has whoever ends the session, or asks for the same, come before or after.
    async fn lock_session(tx: &mut Transaction<'_, DB>, id: SessionId) -> Result<(), StoreError> {
        sqlx::query::<DB>("update browser_session set seen_at = seen_at where id = $1")
            .bind(id.uuid())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    /// What there is for a session at the client of this grant: its latest family, and what is to be
    /// done about that. The session is locked.
    pub(super) async fn course_of(
        tx: &mut Transaction<'_, DB>,
        id: SessionId,
        grant: &Grant,
    ) -> Result<(Course, Option<Family>), StoreError> {
        let Some((session, _)) = Self::read_session_of(tx, id).await? else {
            return Ok((Course::Open, None));
        };
        let found = Self::read_latest_for_session(tx, id, &grant.client_id).await?;
        let family = found.map(|(family, _)| family);
        let course = Course::of(&session, grant.client_epoch, family.as_ref());
        Ok((course, family))
    }

    async fn read_session_of(
        connection: &mut DB::Connection,
        id: SessionId,
    ) -> Result<Option<(BrowserSession, Option<UserStanding>)>, StoreError> {
        let row = sqlx::query::<DB>(select_sessions!("where s.id = $1"))
            .bind(id.uuid())
            .fetch_optional(connection)
            .await?;
        row.map(|row| Ok((Self::session_of(&row)?, Self::user_standing(&row)?)))
            .transpose()
    }

    async fn read_latest_for_session(
        connection: &mut DB::Connection,
        session: SessionId,
        client: &ClientId,
    ) -> Result<Option<(Family, Standing)>, StoreError> {
        // Uses family_for_session.
        let row = sqlx::query::<DB>(select_families!(
            "where f.session_id = $1 and f.client_id = $2 and f.for_session = 1 \
             order by f.id desc limit 1"
        ))
        .bind(session.uuid())
        .bind(client.as_str().to_owned())
        .fetch_optional(connection)
        .await?;
        row.map(|row| Self::family_of(&row)).transpose()
    }

    /// Writes what follows the session. Of that only `expires_at` is in an index, and moves when the user
    /// authenticates again.
    async fn update_followed(
        tx: &mut Transaction<'_, DB>,
        family: &Family,
    ) -> Result<(), StoreError> {
        let grant = &family.grant;
        sqlx::query::<DB>(
            "update family set scope = $2, resources = $3, auth_time = $4, amr = $5, \
             rotated_at = $6, idle_expires_at = $7, expires_at = $8, last_address = $9, \
             last_agent = $10, claims = $11 where id = $1",
        )
        .bind(family.id.uuid())
        .bind(grant.scope.to_string())
        .bind(list(grant.resources.iter().map(ResourceUri::as_str)))
        .bind(grant.auth_time.millis())
        .bind(list(&grant.amr))
        .bind(family.rotated_at.millis())
        .bind(family.idle_expires_at.millis())
        .bind(family.expires_at.millis())
        .bind(family.last.address.clone())
        .bind(family.last.user_agent.clone())
        .bind(grant.claims.to_text())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}
