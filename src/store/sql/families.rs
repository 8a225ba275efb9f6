//! Families, and the codes that open them.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use sqlx::{Executor, IntoArguments, Pool, Transaction};
use uuid::Uuid;

use super::{Dialect, Done, Held, NewEvent, Published, SqlStore, corrupt, list, unlist};
use crate::{
    clock::Timestamp,
    domain::{
        change::{Cause, EventType},
        claims::RequestedClaims,
        code::{AuthorizationCode, ChallengeSession, CodeRefusal, Redeemed, Redemption},
        consent::Permission,
        factor::Proved,
        family::{
            ClientStanding, EndReason, Family, FamilyQuery, Grant, NoteKind, Notes, Outcome, Party,
            Presentation, Refusal, Standing, Terms, UserStanding, Verdict, judge,
        },
        id::{ClientId, FamilyId, SessionId, UserId},
        resource::ResourceUri,
        scope::Scope,
        secret::SecretHash,
        session_family::Course,
    },
    store::{Step, StoreError},
};

/// What is read of a family, with what its client and user are now. The names of columns that
/// several tables have are told apart by a prefix.
macro_rules! select_families {
    ($rest:expr) => {
        concat!(
            "select f.id, f.client_id, f.client_epoch, f.subject, f.user_epoch, f.session_id, f.scope, \
             f.resources, f.auth_time, f.amr, f.dpop_jkt, f.claims as asked_claims, f.for_session, f.counter, \
             f.mac_version, f.mac_since, f.rotated_at, \
             f.created_at, f.idle_expires_at, f.expires_at, f.revoked_at, f.revoke_reason, \
             f.first_address, f.first_agent, f.last_address, f.last_agent, f.notes, \
             c.session_epoch as client_session_epoch, c.disabled as client_disabled, c.refresh_policy, \
             c.tokens_not_before as client_not_before, \
             c.second_factor_required as client_second_factor, \
             u.session_epoch as user_session_epoch, u.disabled as user_disabled, \
             u.tokens_not_before as user_not_before, u.second_factor_required as user_second_factor, \
             u.username, u.roles, u.claims, \
             s.ended_at as session_ended_at \
             from family f left join client c on c.client_id = f.client_id \
             left join end_user u on u.id = f.subject \
             left join browser_session s on s.id = f.session_id ",
            $rest
        )
    };
}
pub(in crate::store) use select_families;

/// The columns of a family that change after it was opened. None of them is in an index.
pub(in crate::store) struct FamilyUpdate {
    pub(in crate::store) id: Uuid,
    pub(in crate::store) counter: i64,
    pub(in crate::store) mac_version: i64,
    pub(in crate::store) mac_since: i64,
    pub(in crate::store) rotated_at: i64,
    pub(in crate::store) idle_expires_at: i64,
    pub(in crate::store) revoked_at: Option<i64>,
    pub(in crate::store) revoke_reason: Option<&'static str>,
    pub(in crate::store) last_address: Option<String>,
    pub(in crate::store) last_agent: Option<String>,
    pub(in crate::store) notes: String,
}

impl FamilyUpdate {
    fn of(family: &Family) -> Self {
        Self {
            id: family.id.uuid(),
            counter: family.counter,
            mac_version: i64::from(family.mac_version),
            mac_since: family.mac_since,
            rotated_at: family.rotated_at.millis(),
            idle_expires_at: family.idle_expires_at.millis(),
            revoked_at: family.revoked_at.map(Timestamp::millis),
            revoke_reason: family.revoke_reason.map(EndReason::as_str),
            last_address: family.last.address.clone(),
            last_agent: family.last.user_agent.clone(),
            notes: family.notes.to_text(),
        }
    }
}

/// A family with its standing, on the way through a batch.
struct Judged {
    family: Family,
    standing: Standing,
    is_changed: bool,
}

/// What a batch has written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Nothing,
    Rows,
    /// And what others have to hear of.
    Ends,
}

/// Families, as a statement about many takes them.
pub(super) fn id_list(ids: impl IntoIterator<Item = FamilyId>) -> String {
    let ids: Value = ids.into_iter().map(|id| id.to_string()).collect();
    ids.to_string()
}

/// The end of a family, about to be published.
struct Ending<'a> {
    published: Published,
    event: NewEvent,
    cause: &'a Cause,
}

impl<'a> Ending<'a> {
    fn of(family: &Family, kind: EventType, tokens_die_at: Timestamp, cause: &'a Cause) -> Self {
        Self {
            published: Published::family(family.id, tokens_die_at),
            event: NewEvent {
                kind,
                target: family.id.to_string(),
                before: None,
                after: Some(json!({
                    "client_id": family.grant.client_id.as_str(),
                    "subject": family.grant.subject.to_string(),
                    "reason": family.revoke_reason.map(EndReason::as_str),
                    "refreshes": family.counter,
                    "last_refresh_at": family.rotated_at.seconds(),
                    "last": family.last.document(),
                })),
            },
            cause,
        }
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
    /// Judges a batch and does what the verdicts say, in one transaction. A family that occurs
    /// twice is judged twice, the second time as the first has left it. What is passed over, as
    /// somebody holds it, is [`Outcome::Locked`].
    pub(super) async fn try_rotate(
        &self,
        batch: &[Presentation],
        terms: &Terms,
        now: Timestamp,
        held: Held,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.writers().begin_with(DB::BEGIN_WRITE).await?;
        let judged = self.judge_batch(&mut tx, batch, terms, now, held).await;
        match judged {
            Ok((outcomes, Wrote::Nothing)) => {
                tx.rollback().await?;
                Ok(outcomes)
            }
            Ok((outcomes, wrote)) => {
                tx.commit().await?;
                if wrote == Wrote::Ends {
                    self.hints.notify_one();
                }
                Ok(outcomes)
            }
            Err(error) => {
                // Until that is done it would be this transaction that holds families against the
                // next attempt.
                tx.rollback().await?;
                Err(error)
            }
        }
    }

    async fn judge_batch(
        &self,
        tx: &mut Transaction<'_, DB>,
        batch: &[Presentation],
        terms: &Terms,
        now: Timestamp,
        held: Held,
    ) -> Result<(Vec<Outcome>, Wrote), StoreError> {
        let mut ids: Vec<Uuid> = batch.iter().map(|one| one.family.uuid()).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut families = HashMap::with_capacity(ids.len());
        for row in DB::lock_families(tx, &ids, held).await? {
            let id: Uuid = Self::column(&row, "family", "id")?;
            let judged = Self::family_of(&row);
            let judged = judged.map(|(family, standing)| Judged {
                family,
                standing,
                is_changed: false,
            });
            families.insert(id, judged);
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut endings = Vec::new();
        // Of what a client ends itself it knows.
        let mut stolen = Vec::new();
        for presented in batch {
            let found = families.get_mut(&presented.family.uuid());
            outcomes.push(match found {
                None if held == Held::PassOver && Self::is_there(tx, presented).await? => {
                    Outcome::Locked
                }
                None => Outcome::Unknown,
                Some(Err(error)) => {
                    tracing::error!(%error, "a family that cannot be read is refused");
                    Outcome::Illegible
                }
                Some(Ok(judged)) => {
                    let Judged {
                        family, standing, ..
                    } = judged;
                    let verdict = judge(family, standing, presented, now);
                    judged.is_changed |= family.follow(verdict, presented, terms, now);
                    let kind = match verdict {
                        Verdict::Reused => {
                            stolen.push(family.id);
                            Some(EventType::FamilyReuseDetected)
                        }
                        Verdict::Ended => Some(EventType::FamilyRevoked),
                        Verdict::Refused(_) | Verdict::Granted(_) => None,
                    };
                    let cause = &presented.cause;
                    endings.extend(
                        kind.map(|kind| Ending::of(family, kind, terms.tokens_die_at, cause)),
                    );
                    Outcome::Judged {
                        verdict,
                        family: Box::new(family.clone()),
                        standing: Box::new(standing.clone()),
                    }
                }
            });
        }
        let updates: Vec<FamilyUpdate> = families
            .values()
            .flatten()
            .filter(|judged| judged.is_changed)
            .map(|judged| FamilyUpdate::of(&judged.family))
            .collect();
        if updates.is_empty() {
            return Ok((outcomes, Wrote::Nothing));
        }
        DB::update_families(tx, updates).await?;
        let wrote = if endings.is_empty() {
            Wrote::Rows
        } else {
            Wrote::Ends
        };
        Self::notify_of_families(tx, stolen, now).await?;
        self.publish_endings(tx, endings, now).await?;
        Ok((outcomes, wrote))
    }

    /// Whether there is a family to what is presented, whoever holds it.
    async fn is_there(
        tx: &mut Transaction<'_, DB>,
        presented: &Presentation,
    ) -> Result<bool, StoreError> {
        let row = sqlx::query::<DB>("select id from family where id = $1")
            .bind(presented.family.uuid())
            .fetch_optional(&mut **tx)
            .await?;
        Ok(row.is_some())
    }

    /// Publishes the ends of families, whose rows are locked and written: each event at the place of
    /// its entry. Leaves the order of changes alone when there are none.
    async fn publish_endings(
        &self,
        tx: &mut Transaction<'_, DB>,
        endings: Vec<Ending<'_>>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if endings.is_empty() {
            return Ok(());
        }
        let count = i64::try_from(endings.len()).unwrap_or(i64::MAX);
        let (published, events): (Vec<_>, Vec<_>) = endings
            .into_iter()
            .map(|ending| (ending.published, (ending.event, ending.cause)))
            .unzip();
        let last = Self::publish(tx, &published, now).await?.seq;
        for (seq, (event, cause)) in (last - count + 1..).zip(events) {
            self.record(tx, &event, seq, cause, now).await?;
        }
        DB::announce(tx).await?;
        Ok(())
    }

    /// Ends a family that an operator names.
    pub(super) async fn end_family(
        tx: &mut Transaction<'_, DB>,
        id: FamilyId,
        reason: EndReason,
        tokens_die_at: Timestamp,
        now: Timestamp,
    ) -> Result<Done, StoreError> {
        let rows = DB::lock_families(tx, &[id.uuid()], Held::Await).await?;
        let (mut family, _) = Self::family_of(rows.first().ok_or(StoreError::Conflict)?)?;
        if family.revoked_at.is_some() {
            return Err(StoreError::Conflict);
        }
        family.end(reason, now);
        DB::update_families(tx, vec![FamilyUpdate::of(&family)]).await?;
        // A client that has ended it knows.
        if reason != EndReason::RevokedByClient {
            Self::notify_of_families(tx, [id], now).await?;
        }
        let cause = Cause::default();
        let ending = Ending::of(&family, EventType::FamilyRevoked, tokens_die_at, &cause);
        Ok(Done {
            revision: 1,
            event: ending.event,
            published: vec![ending.published],
        })
    }

    /// Ends those of these families that have not ended, and has their clients told; which ones, in
    /// order.
    pub(super) async fn end_families(
        tx: &mut Transaction<'_, DB>,
        ids: impl IntoIterator<Item = FamilyId>,
        reason: EndReason,
        now: Timestamp,
    ) -> Result<Vec<FamilyId>, StoreError> {
        let rows = sqlx::query::<DB>(DB::END_FAMILIES)
            .bind(id_list(ids))
            .bind(now.millis())
            .bind(reason.as_str().to_owned())
            .fetch_all(&mut **tx)
            .await?;
        let mut ended = Self::family_ids(&rows)?;
        ended.sort_unstable();
        Self::notify_of_families(tx, ended.iter().copied(), now).await?;
        Ok(ended)
    }

    pub(super) fn family_ids(rows: &[DB::Row]) -> Result<Vec<FamilyId>, StoreError> {
        let id = |row| Self::column(row, "family", "id").map(FamilyId::from_uuid);
        rows.iter().map(id).collect()
    }

    pub(super) async fn read_family(
        connection: &mut DB::Connection,
        id: FamilyId,
    ) -> Result<Option<(Family, Standing)>, StoreError> {
        let row = sqlx::query::<DB>(select_families!("where f.id = $1"))
            .bind(id.uuid())
            .fetch_optional(connection)
            .await?;
        row.map(|row| Self::family_of(&row)).transpose()
    }

    pub(super) async fn read_families(
        connection: &mut DB::Connection,
        query: &FamilyQuery,
    ) -> Result<Vec<(Family, Standing)>, StoreError> {
        macro_rules! select {
            ($conditions:literal) => {
                select_families!(concat!(
                    "where f.id < $1 and ($3 is null or f.revoked_at is null \
                     and f.idle_expires_at > $3 and f.expires_at > $3 \
                     and f.user_epoch = u.session_epoch and f.client_epoch = c.session_epoch)",
                    $conditions,
                    " order by f.id desc limit $2"
                ))
            };
        }
        // A statement for each set of conditions: each uses an index that has the order, too, which
        // are family_client, family_subject and the primary key.
        let (sql, subject, client) = match (&query.subject, &query.client_id) {
            (None, None) => (select!(""), None, None),
            (Some(subject), None) => (select!(" and f.subject = $4"), Some(subject), None),
            (None, Some(client)) => (select!(" and f.client_id = $4"), None, Some(client)),
            (Some(subject), Some(client)) => (
                select!(" and f.subject = $4 and f.client_id = $5"),
                Some(subject),
                Some(client),
            ),
        };
        let mut select = sqlx::query::<DB>(sql)
            .bind(query.after.map_or(Uuid::max(), FamilyId::uuid))
            .bind(i64::from(query.limit))
            .bind(query.living_at.map(Timestamp::millis));
        if let Some(subject) = subject {
            select = select.bind(subject.uuid());
        }
        if let Some(client) = client {
            select = select.bind(client.as_str().to_owned());
        }
        let rows = select.fetch_all(connection).await?;
        rows.iter().map(Self::family_of).collect()
    }

    /// One step of the walk through all families.
    pub(super) async fn delete_ended_families(
        &self,
        after: Option<FamilyId>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Step, StoreError> {
        let from = after.map_or(Uuid::nil(), FamilyId::uuid);
        // Uses the primary key.
        let last =
            sqlx::query::<DB>("select id from family where id > $1 order by id limit 1 offset $2")
                .bind(from)
                .bind(i64::from(limit.saturating_sub(1)))
                .fetch_optional(&self.readers())
                .await?;
        let next: Option<Uuid> = last
            .map(|row| Self::column(&row, "family", "id"))
            .transpose()?;
        let deleted = sqlx::query::<DB>(DB::DELETE_ENDED_FAMILIES)
            .bind(from)
            .bind(next.unwrap_or(Uuid::max()))
            .bind(before.millis())
            .fetch_all(&self.writers())
            .await?;
        Ok(Step {
            deleted: u64::try_from(deleted.len()).unwrap_or(u64::MAX),
            next: next.map(FamilyId::from_uuid),
        })
    }

    /// Stores a code, unless client or user may not have what it stands for any more.
    pub(super) async fn try_put_code(
        &self,
        hash: &SecretHash,
        code: &AuthorizationCode,
        asked: &BTreeSet<Permission>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.writers().begin_with(DB::BEGIN_WRITE).await?;
        let standing = Self::read_standing(&mut tx, &code.grant).await?;
        let grant = &code.grant;
        let is_by_browser = grant.session_id.is_some();
        let is_refused = standing.refusal(grant).is_some()
            || is_by_browser && !Self::has_consented(&mut tx, grant, asked).await?;
        if is_refused {
            tx.rollback().await?;
            return Ok(false);
        }
        sqlx::query::<DB>(
            "insert into authorization_code (hash, client_id, client_epoch, subject, user_epoch, \
             session_id, redirect_uri, code_challenge, nonce, scope, resources, auth_time, amr, dpop_jkt, \
             expires_at, claims) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        )
        .bind(hash.as_bytes().to_vec())
        .bind(grant.client_id.as_str().to_owned())
        .bind(grant.client_epoch)
        .bind(grant.subject.uuid())
        .bind(grant.user_epoch)
        .bind(grant.session_id.map(SessionId::uuid))
        .bind(code.redirect_uri.clone())
        .bind(code.code_challenge.clone())
        .bind(code.nonce.clone())
        .bind(grant.scope.to_string())
        .bind(list(grant.resources.iter().map(ResourceUri::as_str)))
        .bind(grant.auth_time.millis())
        .bind(list(&grant.amr))
        .bind(grant.dpop_jkt.clone())
        .bind(code.expires_at.millis())
        .bind(grant.claims.to_text())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Exchanges a code for a family: claim, family and link are one transaction. So is the end of
    /// what a code was exchanged for that is presented again.
    pub(super) async fn try_redeem(
        &self,
        redemption: &Redemption,
        now: Timestamp,
    ) -> Result<Redeemed, StoreError> {
        // Whoever could not have the code in any case gets no lock.
        let mut connection = self.readers().acquire().await?;
        let found = Self::read_code(&mut connection, &redemption.hash).await?;
        drop(connection);
        let Some(found) = found else {
            return Ok(Redeemed::Refused(CodeRefusal::Unknown));
        };
        match found.refusal(redemption, now) {
            None | Some(CodeRefusal::Reused) => {}
            Some(refusal) => return Ok(Redeemed::Refused(refusal)),
        }
        let mut tx = self.writers().begin_with(DB::BEGIN_WRITE).await?;
        // Whoever ends the session comes before, and this sees it, or after, and sees the family. A code
        // that was used opens none: it may come again and again, and holds up nobody.
        let session = found.grant.session_id.filter(|_| found.family_id.is_none());
        let has_ended = match session {
            Some(session) => Self::has_ended(&mut tx, session).await?,
            None => false,
        };
        // What a session is at a client it is once.
        let (course, kept) = match session {
            Some(session) if redemption.for_session && !has_ended => {
                Self::course_of(&mut tx, session, &found.grant).await?
            }
            _ => (Course::Open, None),
        };
        let kept = kept.filter(|_| course == Course::Keep);
        let family_id = kept.as_ref().map_or(redemption.family_id, |it| it.id);
        // Waits for whoever redeems the same code.
        let claimed = sqlx::query::<DB>(
            "update authorization_code set family_id = $2 where hash = $1 and family_id is null \
             returning hash",
        )
        .bind(redemption.hash.as_bytes().to_vec())
        .bind(family_id.uuid())
        .fetch_optional(&mut *tx)
        .await?;
        let code = if claimed.is_some() {
            Some(found)
        } else {
            Self::read_code(&mut tx, &redemption.hash).await?
        };
        let Some(code) = code else {
            tx.rollback().await?;
            return Ok(Redeemed::Refused(CodeRefusal::Unknown));
        };
        let refusal = code.refusal(redemption, now);
        // Browsers repeat what brings them to a host; what it has led to there is of the session.
        if refusal == Some(CodeRefusal::Reused)
            && !redemption.for_session
            && let Some(family) = code.family_id
        {
            self.end_replayed(&mut tx, family, redemption, now).await?;
            tx.commit().await?;
            self.hints.notify_one();
            return Ok(Redeemed::Refused(CodeRefusal::Reused));
        }
        let standing = Self::read_standing(&mut tx, &code.grant).await?;
        let refusal = refusal.or_else(|| {
            let refusal = if has_ended {
                Some(Refusal::SignedOut)
            } else if course == Course::Refuse {
                Some(Refusal::Ended)
            } else {
                standing.refusal(&code.grant)
            };
            let one_factor = standing
                .lacks_factor(&code.grant)
                .then_some(Refusal::OneFactor);
            let not_yet = standing
                .is_before_new_tokens(now)
                .then_some(Refusal::NotYet);
            refusal.or(one_factor).or(not_yet).map(CodeRefusal::Grant)
        });
        if let Some(refusal) = refusal {
            tx.rollback().await?;
            return Ok(Redeemed::Refused(refusal));
        }
        let is_kept = kept.is_some();
        let mut grant = code.grant;
        if redemption.for_session {
            // The session is asked anew each time, and for no claims.
            grant.claims = RequestedClaims::default();
        }
        let family = kept.unwrap_or_else(|| Family {
            for_session: redemption.for_session,
            ..Family::open(
                family_id,
                grant,
                redemption.lifetime,
                &redemption.terms,
                &redemption.cause,
                now,
            )
        });
        if !is_kept {
            Self::insert_family(&mut tx, &family).await?;
        }
        tx.commit().await?;
        Ok(Redeemed::Opened {
            family: Box::new(family),
            standing: Box::new(standing),
            nonce: code.nonce,
        })
    }

    /// Ends what a code was exchanged for.
    async fn end_replayed(
        &self,
        tx: &mut Transaction<'_, DB>,
        id: FamilyId,
        redemption: &Redemption,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let rows = DB::lock_families(tx, &[id.uuid()], Held::Await).await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let (mut family, _) = Self::family_of(row)?;
        if family.revoked_at.is_some() {
            return Ok(());
        }
        let cause = &redemption.cause;
        family.end(EndReason::CodeReuse, now);
        family.note(NoteKind::CodeReused, cause, now);
        DB::update_families(tx, vec![FamilyUpdate::of(&family)]).await?;
        Self::notify_of_families(tx, [id], now).await?;
        let tokens_die_at = redemption.terms.tokens_die_at;
        let kind = EventType::FamilyReuseDetected;
        let ending = Ending::of(&family, kind, tokens_die_at, cause);
        self.publish_endings(tx, vec![ending], now).await
    }

    pub(super) async fn insert_family(
        tx: &mut Transaction<'_, DB>,
        family: &Family,
    ) -> Result<(), StoreError> {
        let grant = &family.grant;
        let update = FamilyUpdate::of(family);
        sqlx::query::<DB>(
            "insert into family (id, client_id, client_epoch, subject, user_epoch, session_id, scope, \
             resources, auth_time, amr, dpop_jkt, counter, mac_version, mac_since, rotated_at, created_at, \
             idle_expires_at, expires_at, first_address, first_agent, last_address, last_agent, notes, claims, \
             for_session) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
             $19, $20, $21, $22, $23, $24, $25)",
        )
        .bind(update.id)
        .bind(grant.client_id.as_str().to_owned())
        .bind(grant.client_epoch)
        .bind(grant.subject.uuid())
        .bind(grant.user_epoch)
        .bind(grant.session_id.map(SessionId::uuid))
        .bind(grant.scope.to_string())
        .bind(list(grant.resources.iter().map(ResourceUri::as_str)))
        .bind(grant.auth_time.millis())
        .bind(list(&grant.amr))
        .bind(grant.dpop_jkt.clone())
        .bind(update.counter)
        .bind(update.mac_version)
        .bind(update.mac_since)
        .bind(update.rotated_at)
        .bind(family.created_at.millis())
        .bind(update.idle_expires_at)
        .bind(family.expires_at.millis())
        .bind(family.first.address.clone())
        .bind(family.first.user_agent.clone())
        .bind(update.last_address)
        .bind(update.last_agent)
        .bind(update.notes)
        .bind(grant.claims.to_text())
        .bind(i64::from(family.for_session))
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// What client, user and session of a grant are now. They are not locked: whoever ends their sessions must
    /// never have to wait for those who sign in, and what is stored meanwhile carries epochs that are
    /// over.
    pub(super) async fn read_standing(
        connection: &mut DB::Connection,
        grant: &Grant,
    ) -> Result<Standing, StoreError> {
        let row = sqlx::query::<DB>(
            "select c.session_epoch as client_session_epoch, c.disabled as client_disabled, \
             c.refresh_policy, c.tokens_not_before as client_not_before, \
             c.second_factor_required as client_second_factor, \
             u.session_epoch as user_session_epoch, u.disabled as user_disabled, \
             u.tokens_not_before as user_not_before, u.second_factor_required as user_second_factor, \
             u.username, u.roles, u.claims, \
             s.ended_at as session_ended_at \
             from (select 1 as one) as it left join client c on c.client_id = $1 \
             left join end_user u on u.id = $2 left join browser_session s on s.id = $3",
        )
        .bind(grant.client_id.as_str().to_owned())
        .bind(grant.subject.uuid())
        .bind(grant.session_id.map(SessionId::uuid))
        .fetch_one(connection)
        .await?;
        Self::standing(&row)
    }

    async fn read_code(
        connection: &mut DB::Connection,
        hash: &SecretHash,
    ) -> Result<Option<AuthorizationCode>, StoreError> {
        const TABLE: &str = "authorization_code";
        let row = sqlx::query::<DB>(
            "select client_id, client_epoch, subject, user_epoch, session_id, redirect_uri, \
             code_challenge, nonce, scope, resources, auth_time, amr, dpop_jkt, expires_at, family_id, \
             claims as asked_claims \
             from authorization_code where hash = $1",
        )
        .bind(hash.as_bytes().to_vec())
        .fetch_optional(connection)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        Ok(Some(AuthorizationCode {
            grant: Self::grant_of(&row, TABLE)?,
            redirect_uri: Self::column(&row, TABLE, "redirect_uri")?,
            code_challenge: Self::column(&row, TABLE, "code_challenge")?,
            nonce: Self::column(&row, TABLE, "nonce")?,
            expires_at: Self::time(&row, TABLE, "expires_at")?,
            family_id: Self::column::<Option<Uuid>>(&row, TABLE, "family_id")?
                .map(FamilyId::from_uuid),
        }))
    }

    pub(super) async fn insert_challenge(
        &self,
        hash: &SecretHash,
        session: &ChallengeSession,
    ) -> Result<(), StoreError> {
        sqlx::query::<DB>(
            "insert into challenge_session (hash, client_id, client_epoch, username, code_challenge, \
             scope, resources, dpop_jkt, failures, expires_at, proved) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(hash.as_bytes().to_vec())
        .bind(session.client_id.as_str().to_owned())
        .bind(session.client_epoch)
        .bind(session.username.clone())
        .bind(session.code_challenge.clone())
        .bind(session.scope.to_string())
        .bind(list(session.resources.iter().map(ResourceUri::as_str)))
        .bind(session.dpop_jkt.clone())
        .bind(i64::from(session.failures))
        .bind(session.expires_at.millis())
        .bind(session.proved.as_ref().map(Proved::to_json))
        .execute(&self.writers())
        .await?;
        Ok(())
    }

    /// Takes a session away: each step of a sign-in has one of its own.
    pub(super) async fn delete_challenge(
        &self,
        hash: &SecretHash,
        client: &ClientId,
        now: Timestamp,
    ) -> Result<Option<ChallengeSession>, StoreError> {
        const TABLE: &str = "challenge_session";
        let row = sqlx::query::<DB>(
            "delete from challenge_session where hash = $1 and client_id = $2 and expires_at > $3 \
             returning client_id, client_epoch, username, code_challenge, scope, resources, dpop_jkt, \
             failures, expires_at, proved",
        )
        .bind(hash.as_bytes().to_vec())
        .bind(client.as_str().to_owned())
        .bind(now.millis())
        .fetch_optional(&self.writers())
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let bad = |column| corrupt(TABLE, column, &client);
        let text = |column| Self::column::<String>(&row, TABLE, column);
        Ok(Some(ChallengeSession {
            client_id: client.clone(),
            client_epoch: Self::column(&row, TABLE, "client_epoch")?,
            username: text("username")?,
            code_challenge: text("code_challenge")?,
            scope: Scope::parse(&text("scope")?).map_err(|_| bad("scope"))?,
            resources: unlist(&text("resources")?, |uri| ResourceUri::parse(uri).ok())
                .ok_or_else(|| bad("resources"))?,
            dpop_jkt: Self::column(&row, TABLE, "dpop_jkt")?,
            failures: u32::try_from(Self::column::<i64>(&row, TABLE, "failures")?)
                .map_err(|_| bad("failures"))?,
            expires_at: Self::time(&row, TABLE, "expires_at")?,
            proved: Self::column::<Option<String>>(&row, TABLE, "proved")?
                .map(|json| Proved::from_json(&json).ok_or_else(|| bad("proved")))
                .transpose()?,
        }))
    }

    fn grant_of(row: &DB::Row, table: &'static str) -> Result<Grant, StoreError> {
        let subject: Uuid = Self::column(row, table, "subject")?;
        let text = |column| Self::column::<String>(row, table, column);
        let bad = |column| corrupt(table, column, &subject);
        Ok(Grant {
            client_id: ClientId::parse(&text("client_id")?).map_err(|_| bad("client_id"))?,
            client_epoch: Self::column(row, table, "client_epoch")?,
            subject: UserId::from_uuid(subject),
            user_epoch: Self::column(row, table, "user_epoch")?,
            session_id: Self::column::<Option<Uuid>>(row, table, "session_id")?
                .map(SessionId::from_uuid),
            scope: Scope::parse(&text("scope")?).map_err(|_| bad("scope"))?,
            resources: unlist(&text("resources")?, |uri| ResourceUri::parse(uri).ok())
                .ok_or_else(|| bad("resources"))?,
            auth_time: Self::time(row, table, "auth_time")?,
            amr: unlist(&text("amr")?, |amr| Some(amr.to_owned())).ok_or_else(|| bad("amr"))?,
            dpop_jkt: Self::column(row, table, "dpop_jkt")?,
            claims: match Self::column::<Option<String>>(row, table, "asked_claims")? {
                Some(claims) => RequestedClaims::parse(&claims).ok_or_else(|| bad("claims"))?,
                None => RequestedClaims::default(),
            },
        })
    }

    pub(super) fn family_of(row: &DB::Row) -> Result<(Family, Standing), StoreError> {
        const TABLE: &str = "family";
        let id: Uuid = Self::column(row, TABLE, "id")?;
        let time = |column| Self::time(row, TABLE, column);
        let maybe = |column| Self::column::<Option<String>>(row, TABLE, column);
        let notes: String = Self::column(row, TABLE, "notes")?;
        let family = Family {
            id: FamilyId::from_uuid(id),
            grant: Self::grant_of(row, TABLE)?,
            for_session: Self::column::<i64>(row, TABLE, "for_session")? != 0,
            counter: Self::column(row, TABLE, "counter")?,
            mac_version: u32::try_from(Self::column::<i64>(row, TABLE, "mac_version")?)
                .map_err(|_| corrupt(TABLE, "mac_version", &id))?,
            mac_since: Self::column(row, TABLE, "mac_since")?,
            rotated_at: time("rotated_at")?,
            created_at: time("created_at")?,
            idle_expires_at: time("idle_expires_at")?,
            expires_at: time("expires_at")?,
            revoked_at: Self::column::<Option<i64>>(row, TABLE, "revoked_at")?
                .map(Timestamp::from_millis),
            revoke_reason: maybe("revoke_reason")?.and_then(|reason| reason.parse().ok()),
            first: Party {
                address: maybe("first_address")?,
                user_agent: maybe("first_agent")?,
            },
            last: Party {
                address: maybe("last_address")?,
                user_agent: maybe("last_agent")?,
            },
            notes: Notes::parse(&notes).ok_or_else(|| corrupt(TABLE, "notes", &id))?,
        };
        Ok((family, Self::standing(row)?))
    }

    fn standing(row: &DB::Row) -> Result<Standing, StoreError> {
        let ended_at: Option<i64> = Self::column(row, "browser_session", "session_ended_at")?;
        Ok(Standing {
            client: Self::client_standing(row)?,
            user: Self::user_standing(row)?,
            session_ended_at: ended_at.map(Timestamp::from_millis),
        })
    }

    fn client_standing(row: &DB::Row) -> Result<Option<ClientStanding>, StoreError> {
        const TABLE: &str = "client";
        let Some(epoch) = Self::column(row, TABLE, "client_session_epoch")? else {
            return Ok(None);
        };
        Ok(Some(ClientStanding {
            epoch,
            disabled: Self::column::<i64>(row, TABLE, "client_disabled")? != 0,
            second_factor_required: Self::column::<i64>(row, TABLE, "client_second_factor")? != 0,
            policy: Self::column::<String>(row, TABLE, "refresh_policy")?
                .parse()
                .map_err(|_| corrupt(TABLE, "refresh_policy", &"?"))?,
            tokens_not_before: Self::column::<Option<i64>>(row, TABLE, "client_not_before")?
                .map(Timestamp::from_millis),
        }))
    }

    pub(super) fn user_standing(row: &DB::Row) -> Result<Option<UserStanding>, StoreError> {
        const TABLE: &str = "end_user";
        let Some(epoch) = Self::column(row, TABLE, "user_session_epoch")? else {
            return Ok(None);
        };
        let username: String = Self::column(row, TABLE, "username")?;
        let roles: String = Self::column(row, TABLE, "roles")?;
        let claims: String = Self::column(row, TABLE, "claims")?;
        Ok(Some(UserStanding {
            epoch,
            disabled: Self::column::<i64>(row, TABLE, "user_disabled")? != 0,
            second_factor_required: Self::column::<i64>(row, TABLE, "user_second_factor")? != 0,
            tokens_not_before: Self::column::<Option<i64>>(row, TABLE, "user_not_before")?
                .map(Timestamp::from_millis),
            roles: unlist(&roles, |role| Some(role.to_owned()))
                .ok_or_else(|| corrupt(TABLE, "roles", &username))?,
            claims: serde_json::from_str(&claims)
                .map_err(|_| corrupt(TABLE, "claims", &username))?,
            username,
        }))
    }
}
