//! A store whose operations are counted when they fail, and seen in the traces of requests.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use tracing::{Instrument as _, Span};

use super::{Bounds, Snapshot, Step, Store, StoreError, Swept};
use crate::{
    clock::Timestamp,
    domain::{
        assertion::AssertionId,
        browser_session::BrowserSession,
        change::{Applied, Cause, Change, Changes, Position},
        client::Client,
        code::{AuthorizationCode, ChallengeSession, CodeRefusal, Redeemed, Redemption},
        consent::{Consent, Permission},
        event::{Event, EventQuery},
        factor::{Factors, Passkey, PasskeyId, SealedTotp},
        family::{
            EndReason, Family, FamilyQuery, Outcome, Party, Presentation, Standing, Terms,
            UserStanding, Verdict,
        },
        id::{ClientId, FamilyId, MasterKeyId, NodeId, SessionId, UserId},
        key::{KeySchedule, KeyUse, SealedKey},
        logout_notice::{ClaimedNotices, LogoutNotice, NoticeClaim, Settling},
        node::{Environment, Node},
        resource::Resource,
        revocation::Revocation,
        secret::SecretHash,
        session_family::{SessionFamily, SessionGrant},
        user::{User, UsernameKey},
    },
    metrics::Metrics,
};

struct Watched {
    inner: Arc<dyn Store>,
    metrics: Metrics,
}

/// The same store, with its failures counted and its operations in traces.
pub fn watched(inner: Arc<dyn Store>, metrics: Metrics) -> Arc<dyn Store> {
    Arc::new(Watched { inner, metrics })
}

impl Watched {
    /// A conflict is no failure: it is how the faster of two is told from the other.
    async fn watch<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        // What goes on without a request is in the metrics; as traces it would be a flood.
        let span = if Span::current().is_none() {
            Span::none()
        } else {
            tracing::debug_span!("store", operation)
        };
        let result = call.instrument(span).await;
        match &result {
            Ok(_) | Err(StoreError::Conflict) => {}
            Err(error) => self.metrics.store_failed(operation, error.kind()),
        }
        result
    }
}

#[async_trait]
impl Store for Watched {
    async fn apply(
        &self,
        change: &Change,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let call = self.inner.apply(change, cause, now);
        let applied = self.watch("apply", call).await?;
        if let Change::EndFamily { reason, .. } = change {
            self.metrics.family_ended(reason.as_str());
        }
        Ok(applied)
    }

    async fn changes_since(
        &self,
        at: Position,
        limit: u32,
        now: Timestamp,
    ) -> Result<Changes, StoreError> {
        let call = self.inner.changes_since(at, limit, now);
        self.watch("changes_since", call).await
    }

    async fn changed(&self) {
        self.inner.changed().await;
    }

    async fn database_time(&self) -> Result<Timestamp, StoreError> {
        self.watch("database_time", self.inner.database_time())
            .await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.watch("snapshot", self.inner.snapshot()).await
    }

    async fn client(&self, id: &ClientId) -> Result<Option<Client>, StoreError> {
        self.watch("client", self.inner.client(id)).await
    }

    async fn clients(&self) -> Result<Vec<Client>, StoreError> {
        self.watch("clients", self.inner.clients()).await
    }

    async fn resources(&self) -> Result<Vec<Resource>, StoreError> {
        self.watch("resources", self.inner.resources()).await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.watch("user", self.inner.user(id)).await
    }

    async fn user_by_name(&self, key: &UsernameKey) -> Result<Option<User>, StoreError> {
        let call = self.inner.user_by_name(key);
        self.watch("user_by_name", call).await
    }

    async fn users(&self, after: Option<UserId>, limit: u32) -> Result<Vec<User>, StoreError> {
        self.watch("users", self.inner.users(after, limit)).await
    }

    async fn demo_user(&self) -> Result<Option<UserId>, StoreError> {
        let call = self.inner.demo_user();
        self.watch("demo_user", call).await
    }

    async fn key_schedule(&self, key_use: KeyUse) -> Result<KeySchedule, StoreError> {
        let call = self.inner.key_schedule(key_use);
        self.watch("key_schedule", call).await
    }

    async fn revocations_since(&self, seq: i64) -> Result<Vec<Revocation>, StoreError> {
        let call = self.inner.revocations_since(seq);
        self.watch("revocations_since", call).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError> {
        self.watch("events", self.inner.events(query)).await
    }

    async fn family(&self, id: FamilyId) -> Result<Option<(Family, Standing)>, StoreError> {
        self.watch("family", self.inner.family(id)).await
    }

    async fn families(&self, query: &FamilyQuery) -> Result<Vec<(Family, Standing)>, StoreError> {
        self.watch("families", self.inner.families(query)).await
    }

    async fn rotate(
        &self,
        batch: &[Presentation],
        terms: &Terms,
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let call = self.inner.rotate(batch, terms, now);
        let outcomes = self.watch("rotate", call).await?;
        for outcome in &outcomes {
            if let Outcome::Judged {
                verdict: Verdict::Reused | Verdict::Ended,
                family,
                ..
            } = outcome
                && let Some(reason) = family.revoke_reason
            {
                self.metrics.family_ended(reason.as_str());
            }
        }
        Ok(outcomes)
    }

    async fn put_code(
        &self,
        hash: &SecretHash,
        code: &AuthorizationCode,
        asked: &BTreeSet<Permission>,
    ) -> Result<bool, StoreError> {
        let call = self.inner.put_code(hash, code, asked);
        self.watch("put_code", call).await
    }

    async fn redeem_code(
        &self,
        redemption: &Redemption,
        now: Timestamp,
    ) -> Result<Redeemed, StoreError> {
        let call = self.inner.redeem_code(redemption, now);
        let redeemed = self.watch("redeem_code", call).await?;
        if let Redeemed::Refused(CodeRefusal::Reused) = redeemed {
            self.metrics.family_ended(EndReason::CodeReuse.as_str());
        }
        Ok(redeemed)
    }

    async fn session_family(
        &self,
        asked: &SessionGrant,
        now: Timestamp,
    ) -> Result<SessionFamily, StoreError> {
        let call = self.inner.session_family(asked, now);
        self.watch("session_family", call).await
    }

    async fn put_session(
        &self,
        hash: &SecretHash,
        session: &BrowserSession,
    ) -> Result<bool, StoreError> {
        let call = self.inner.put_session(hash, session);
        self.watch("put_session", call).await
    }

    async fn session(
        &self,
        hash: &SecretHash,
    ) -> Result<Option<(BrowserSession, Option<UserStanding>)>, StoreError> {
        self.watch("session", self.inner.session(hash)).await
    }

    async fn sessions(
        &self,
        subject: UserId,
        idle_since: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<BrowserSession>, StoreError> {
        let call = self.inner.sessions(subject, idle_since, now, limit);
        self.watch("sessions", call).await
    }

    async fn note_session(
        &self,
        id: SessionId,
        party: &Party,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let call = self.inner.note_session(id, party, now);
        self.watch("note_session", call).await
    }

    async fn factors(&self, subject: UserId) -> Result<Factors, StoreError> {
        self.watch("factors", self.inner.factors(subject)).await
    }

    async fn take_totp_step(&self, subject: UserId, step: i64) -> Result<bool, StoreError> {
        let call = self.inner.take_totp_step(subject, step);
        self.watch("take_totp_step", call).await
    }

    async fn passkey(&self, id: &PasskeyId) -> Result<Option<Passkey>, StoreError> {
        self.watch("passkey", self.inner.passkey(id)).await
    }

    async fn note_passkey(&self, passkey: &Passkey, now: Timestamp) -> Result<bool, StoreError> {
        let call = self.inner.note_passkey(passkey, now);
        self.watch("note_passkey", call).await
    }

    async fn factors_sealed(&self) -> Result<Vec<(MasterKeyId, usize)>, StoreError> {
        self.watch("factors_sealed", self.inner.factors_sealed())
            .await
    }

    async fn factors_sealed_elsewhere(
        &self,
        master: MasterKeyId,
        limit: u32,
    ) -> Result<Vec<SealedTotp>, StoreError> {
        let call = self.inner.factors_sealed_elsewhere(master, limit);
        self.watch("factors_sealed_elsewhere", call).await
    }

    async fn reseal_factor(
        &self,
        before: &SealedTotp,
        after: &SealedKey,
    ) -> Result<bool, StoreError> {
        let call = self.inner.reseal_factor(before, after);
        self.watch("reseal_factor", call).await
    }

    async fn consent(
        &self,
        subject: UserId,
        client: &ClientId,
    ) -> Result<Option<Consent>, StoreError> {
        let call = self.inner.consent(subject, client);
        self.watch("consent", call).await
    }

    async fn consents(&self, subject: UserId) -> Result<Vec<Consent>, StoreError> {
        self.watch("consents", self.inner.consents(subject)).await
    }

    async fn claim_notices(
        &self,
        claim: &NoticeClaim,
        now: Timestamp,
    ) -> Result<ClaimedNotices, StoreError> {
        let call = self.inner.claim_notices(claim, now);
        self.watch("claim_notices", call).await
    }

    async fn settle_notice(
        &self,
        notice: &LogoutNotice,
        settling: Settling,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let call = self.inner.settle_notice(notice, settling, now);
        self.watch("settle_notice", call).await
    }

    async fn put_challenge(
        &self,
        hash: &SecretHash,
        session: &ChallengeSession,
    ) -> Result<(), StoreError> {
        let call = self.inner.put_challenge(hash, session);
        self.watch("put_challenge", call).await
    }

    async fn take_challenge(
        &self,
        hash: &SecretHash,
        client: &ClientId,
        now: Timestamp,
    ) -> Result<Option<ChallengeSession>, StoreError> {
        let call = self.inner.take_challenge(hash, client, now);
        self.watch("take_challenge", call).await
    }

    async fn first_use(
        &self,
        assertion: &AssertionId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let call = self.inner.first_use(assertion, expires_at, now);
        self.watch("first_use", call).await
    }

    async fn sweep(&self, bounds: &Bounds, limit: u32) -> Result<Swept, StoreError> {
        let swept = self.watch("sweep", self.inner.sweep(bounds, limit)).await?;
        for (table, rows) in [
            ("assertion", swept.assertions),
            ("authorization_code", swept.codes),
            ("browser_session", swept.sessions),
            ("challenge_session", swept.challenges),
            ("change", swept.changes),
            ("event", swept.events),
            ("family", swept.families),
            ("revocation", swept.revocations),
        ] {
            self.metrics.swept(table, rows);
        }
        Ok(swept)
    }

    async fn sweep_families(
        &self,
        after: Option<FamilyId>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Step, StoreError> {
        let call = self.inner.sweep_families(after, before, limit);
        let step = self.watch("sweep_families", call).await?;
        self.metrics.swept("family", step.deleted);
        Ok(step)
    }

    fn reconnect(&self) {
        self.inner.reconnect();
    }

    async fn enter(&self, environment: Environment) -> Result<Environment, StoreError> {
        self.watch("enter", self.inner.enter(environment)).await
    }

    async fn heartbeat(&self, node: &Node) -> Result<(), StoreError> {
        self.watch("heartbeat", self.inner.heartbeat(node)).await
    }

    async fn forget_node(&self, id: NodeId) -> Result<(), StoreError> {
        self.watch("forget_node", self.inner.forget_node(id)).await
    }

    async fn nodes(&self, since: Timestamp) -> Result<Vec<Node>, StoreError> {
        self.watch("nodes", self.inner.nodes(since)).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
