//! What operators do, where somebody else is faster or something is gone.

use std::{
    collections::BTreeSet,
    fs,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use countersign::{
    admin::{
        AdminError, FieldError,
        client::{ClientAdmin, ClientMetadata},
        key::{KeyAdmin, MasterKeyStatus, Rotation},
        operator::Authority,
        resource::{ResourceAdmin, ResourceMetadata},
    },
    clock::{AgreedClock, Clock as _, ManualClock, Timestamp},
    domain::{
        assertion::AssertionId,
        browser_session::BrowserSession,
        change::{Applied, Cause, Change, Changes, EventType, Position},
        client::Client,
        code::{AuthorizationCode, ChallengeSession, Redeemed, Redemption},
        consent::{Consent, Permission},
        event::{Event, EventQuery},
        factor::{Factors, Passkey, PasskeyId, SealedTotp},
        family::{
            Family, FamilyQuery, Outcome, Party, Presentation, Standing, Terms, UserStanding,
        },
        id::{ClientId, FamilyId, Kid, MasterKeyId, NodeId, SessionId, UserId},
        key::{KeySchedule, KeyUse, SealedKey},
        logout_notice::{ClaimedNotices, LogoutNotice, NoticeClaim, Settling},
        node::{Environment, Node},
        resource::Resource,
        revocation::Revocation,
        secret::SecretHash,
        session_family::{SessionFamily, SessionGrant},
        user::{User, UsernameKey},
    },
    entropy::Entropy,
    keys::{
        lifecycle::{Policy, Spans},
        mac::MacError,
        master::MasterKeySource,
        sealing,
    },
    store::{Bounds, Snapshot, Step, Store, StoreError, Swept},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::support::database::{Database, Engine};

/// Makes each case a test on each engine. A case takes an office.
macro_rules! on_both_engines {
    ($($case:ident,)+) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&super::Office::open(super::Engine::Sqlite).await).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&super::Office::open(super::Engine::Postgres).await).await;
            })+
        }
    };
}

on_both_engines! {
    an_emergency_that_loses_against_the_same_one_revokes_no_second_key,
    an_emergency_that_discards_next_is_not_lost_against_one_that_keeps_it,
    an_emergency_revokes_the_key_it_meant_also_where_that_is_succeeded_meanwhile,
    a_removal_that_loses_against_a_change_is_made_nonetheless,
    a_rotation_that_loses_against_another_is_too_early,
    an_emergency_that_discards_next_revokes_every_key_there_was,
    a_master_key_is_exchanged_for_keys_of_every_use_also_where_that_ends_half_way,
    a_key_made_during_a_promotion_is_sealed_under_the_promoted_master_key,
    a_database_from_before_there_were_mac_keys_gets_some_under_its_master_key,
    an_emergency_of_mac_keys_refuses_what_they_have_made_and_nothing_else,
    a_master_key_is_not_promoted_past_a_node_that_may_still_sign,
    keys_for_rs256_are_made_only_where_the_service_has_opted_in,
    keys_for_rs256_rotate_and_are_revoked_like_those_of_access_tokens,
    a_key_for_rs256_is_revoked_also_where_no_other_can_be_made,
    of_two_nodes_that_make_keys_for_rs256_at_once_one_gets_through,
    a_node_that_ends_while_it_makes_keys_for_rs256_leaves_none_or_all,
    keys_for_rs256_move_to_another_master_key_also_where_the_service_has_opted_out,
    keys_for_rs256_made_during_a_promotion_are_sealed_under_the_promoted_master_key,
    a_client_keeps_rs256_where_the_service_has_opted_out_and_none_gets_it,
    a_client_is_disabled_although_one_of_its_resources_is_gone,
    an_update_without_a_revision_is_made_to_whatever_is_there,
    an_update_with_a_revision_that_has_passed_conflicts,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

const POLICY: Policy = Policy {
    poll: Duration::from_millis(250),
    jwks_max_age: Duration::from_mins(5),
    clock_skew: Duration::from_secs(5),
    period: Duration::from_hours(30 * 24),
    offline_limit: Duration::from_mins(15),
};

fn spans() -> Spans {
    POLICY.spans(KeyUse::Signing)
}

const EMERGENCY: Rotation = Rotation::Emergency {
    discard_next: false,
};

type Deed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A store on which somebody else can be faster.
struct Contested {
    store: Arc<dyn Store>,
    first: Mutex<Option<Deed>>,
}

#[async_trait]
impl Store for Contested {
    async fn apply(
        &self,
        change: &Change,
        cause: &Cause,
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let first = self.first.lock().unwrap().take();
        if let Some(first) = first {
            first.await;
        }
        self.store.apply(change, cause, now).await
    }

    async fn changes_since(
        &self,
        at: Position,
        limit: u32,
        now: Timestamp,
    ) -> Result<Changes, StoreError> {
        self.store.changes_since(at, limit, now).await
    }

    async fn changed(&self) {
        self.store.changed().await;
    }

    async fn database_time(&self) -> Result<Timestamp, StoreError> {
        self.store.database_time().await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.store.snapshot().await
    }

    async fn client(&self, id: &ClientId) -> Result<Option<Client>, StoreError> {
        self.store.client(id).await
    }

    async fn clients(&self) -> Result<Vec<Client>, StoreError> {
        self.store.clients().await
    }

    async fn resources(&self) -> Result<Vec<Resource>, StoreError> {
        self.store.resources().await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.store.user(id).await
    }

    async fn user_by_name(&self, key: &UsernameKey) -> Result<Option<User>, StoreError> {
        self.store.user_by_name(key).await
    }

    async fn users(&self, after: Option<UserId>, limit: u32) -> Result<Vec<User>, StoreError> {
        self.store.users(after, limit).await
    }

    async fn demo_user(&self) -> Result<Option<UserId>, StoreError> {
        self.store.demo_user().await
    }

    async fn key_schedule(&self, key_use: KeyUse) -> Result<KeySchedule, StoreError> {
        self.store.key_schedule(key_use).await
    }

    async fn revocations_since(&self, seq: i64) -> Result<Vec<Revocation>, StoreError> {
        self.store.revocations_since(seq).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError> {
        self.store.events(query).await
    }

    async fn family(&self, id: FamilyId) -> Result<Option<(Family, Standing)>, StoreError> {
        self.store.family(id).await
    }

    async fn families(&self, query: &FamilyQuery) -> Result<Vec<(Family, Standing)>, StoreError> {
        self.store.families(query).await
    }

    async fn rotate(
        &self,
        batch: &[Presentation],
        terms: &Terms,
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.store.rotate(batch, terms, now).await
    }

    async fn put_code(
        &self,
        hash: &SecretHash,
        code: &AuthorizationCode,
        asked: &BTreeSet<Permission>,
    ) -> Result<bool, StoreError> {
        self.store.put_code(hash, code, asked).await
    }

    async fn redeem_code(
        &self,
        redemption: &Redemption,
        now: Timestamp,
    ) -> Result<Redeemed, StoreError> {
        self.store.redeem_code(redemption, now).await
    }

    async fn session_family(
        &self,
        asked: &SessionGrant,
        now: Timestamp,
    ) -> Result<SessionFamily, StoreError> {
        self.store.session_family(asked, now).await
    }

    async fn put_session(
        &self,
        hash: &SecretHash,
        session: &BrowserSession,
    ) -> Result<bool, StoreError> {
        self.store.put_session(hash, session).await
    }

    async fn session(
        &self,
        hash: &SecretHash,
    ) -> Result<Option<(BrowserSession, Option<UserStanding>)>, StoreError> {
        self.store.session(hash).await
    }

    async fn sessions(
        &self,
        subject: UserId,
        idle_since: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<BrowserSession>, StoreError> {
        self.store.sessions(subject, idle_since, now, limit).await
    }

    async fn note_session(
        &self,
        id: SessionId,
        party: &Party,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.store.note_session(id, party, now).await
    }

    async fn factors(&self, subject: UserId) -> Result<Factors, StoreError> {
        self.store.factors(subject).await
    }

    async fn take_totp_step(&self, subject: UserId, step: i64) -> Result<bool, StoreError> {
        self.store.take_totp_step(subject, step).await
    }

    async fn passkey(&self, id: &PasskeyId) -> Result<Option<Passkey>, StoreError> {
        self.store.passkey(id).await
    }

    async fn note_passkey(&self, passkey: &Passkey, now: Timestamp) -> Result<bool, StoreError> {
        self.store.note_passkey(passkey, now).await
    }

    async fn factors_sealed(&self) -> Result<Vec<(MasterKeyId, usize)>, StoreError> {
        self.store.factors_sealed().await
    }

    async fn factors_sealed_elsewhere(
        &self,
        master: MasterKeyId,
        limit: u32,
    ) -> Result<Vec<SealedTotp>, StoreError> {
        self.store.factors_sealed_elsewhere(master, limit).await
    }

    async fn reseal_factor(
        &self,
        before: &SealedTotp,
        after: &SealedKey,
    ) -> Result<bool, StoreError> {
        self.store.reseal_factor(before, after).await
    }

    async fn consent(
        &self,
        subject: UserId,
        client: &ClientId,
    ) -> Result<Option<Consent>, StoreError> {
        self.store.consent(subject, client).await
    }

    async fn consents(&self, subject: UserId) -> Result<Vec<Consent>, StoreError> {
        self.store.consents(subject).await
    }

    async fn claim_notices(
        &self,
        claim: &NoticeClaim,
        now: Timestamp,
    ) -> Result<ClaimedNotices, StoreError> {
        self.store.claim_notices(claim, now).await
    }

    async fn settle_notice(
        &self,
        notice: &LogoutNotice,
        settling: Settling,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.store.settle_notice(notice, settling, now).await
    }

    async fn put_challenge(
        &self,
        hash: &SecretHash,
        session: &ChallengeSession,
    ) -> Result<(), StoreError> {
        self.store.put_challenge(hash, session).await
    }

    async fn take_challenge(
        &self,
        hash: &SecretHash,
        client: &ClientId,
        now: Timestamp,
    ) -> Result<Option<ChallengeSession>, StoreError> {
        self.store.take_challenge(hash, client, now).await
    }

    async fn first_use(
        &self,
        assertion: &AssertionId,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.store.first_use(assertion, expires_at, now).await
    }

    async fn sweep(&self, bounds: &Bounds, limit: u32) -> Result<Swept, StoreError> {
        self.store.sweep(bounds, limit).await
    }

    async fn sweep_families(
        &self,
        after: Option<FamilyId>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Step, StoreError> {
        self.store.sweep_families(after, before, limit).await
    }

    fn reconnect(&self) {
        self.store.reconnect();
    }

    async fn enter(&self, environment: Environment) -> Result<Environment, StoreError> {
        self.store.enter(environment).await
    }

    async fn heartbeat(&self, node: &Node) -> Result<(), StoreError> {
        self.store.heartbeat(node).await
    }

    async fn forget_node(&self, id: NodeId) -> Result<(), StoreError> {
        self.store.forget_node(id).await
    }

    async fn nodes(&self, since: Timestamp) -> Result<Vec<Node>, StoreError> {
        self.store.nodes(since).await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// A database with keys, and two operators: one acts on `contested`, the other is faster.
struct Office {
    clock: ManualClock,
    entropy: Entropy,
    contested: Arc<Contested>,
    /// The other operator's.
    store: Arc<dyn Store>,
    folder: TempDir,
    database: Database,
}

impl Office {
    async fn open(engine: Engine) -> Self {
        let database = Database::create(engine).await;
        let store = database.open().await;
        let office = Self {
            clock: ManualClock::new(NOW),
            entropy: Entropy::new(),
            contested: Arc::new(Contested {
                store: Arc::clone(&store),
                first: Mutex::default(),
            }),
            store,
            folder: tempfile::tempdir().unwrap(),
            database,
        };
        office.rivals_keys().bootstrap(true).await.unwrap();
        office
    }

    fn clock(&self) -> AgreedClock {
        AgreedClock::new(Arc::new(self.clock.clone()))
    }

    fn keys_on(&self, store: Arc<dyn Store>) -> KeyAdmin {
        KeyAdmin {
            store,
            clock: self.clock(),
            entropy: self.entropy.clone(),
            masters: MasterKeySource::Folder {
                path: self.folder.path().to_owned(),
                group_may_read: false,
            },
            policy: POLICY,
            rs256_id_tokens: false,
            background: Handle::current(),
        }
    }

    fn clients_on(&self, store: Arc<dyn Store>) -> ClientAdmin {
        ClientAdmin {
            store,
            clock: self.clock(),
            entropy: self.entropy.clone(),
            issuer: "https://issuer.example".to_owned(),
            rs256_id_tokens: false,
            token_retention: POLICY.retention(),
            authority: Authority::Everything,
        }
    }

    fn keys(&self) -> KeyAdmin {
        self.keys_on(Arc::<Contested>::clone(&self.contested))
    }

    /// The same of a service that has opted in to RS256.
    fn keys_with_rs256(&self) -> KeyAdmin {
        KeyAdmin {
            rs256_id_tokens: true,
            ..self.keys()
        }
    }

    fn rivals_keys(&self) -> KeyAdmin {
        self.keys_on(Arc::clone(&self.store))
    }

    fn clients(&self) -> ClientAdmin {
        self.clients_on(Arc::<Contested>::clone(&self.contested))
    }

    fn rivals_clients(&self) -> ClientAdmin {
        self.clients_on(Arc::clone(&self.store))
    }

    fn resources(&self) -> ResourceAdmin {
        ResourceAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock(),
            entropy: self.entropy.clone(),
            issuer: "https://issuer.example".to_owned(),
        }
    }

    async fn resource(&self, uri: &str) -> Resource {
        let metadata = ResourceMetadata {
            resource: uri.to_owned(),
            name: "A resource".to_owned(),
            scopes: vec!["read".to_owned()],
            ..ResourceMetadata::default()
        };
        let created = self.resources().create(&metadata, false, &cause()).await;
        created.unwrap()
    }

    /// Registers a client of these resources.
    async fn client(&self, resources: &[&str]) -> Client {
        let metadata = ClientMetadata {
            client_name: "A client".to_owned(),
            scope: "read".to_owned(),
            resources: resources.iter().map(ToString::to_string).collect(),
            ..ClientMetadata::default()
        };
        let clients = self.clients();
        let created = clients.create(None, &metadata, false, &cause()).await;
        created.unwrap().0
    }

    /// Lets somebody else act before the next change is applied.
    fn first(&self, deed: impl Future<Output = ()> + Send + 'static) {
        let earlier = self.contested.first.lock().unwrap().replace(Box::pin(deed));
        assert!(earlier.is_none());
    }

    /// Whether whoever was to be faster has acted.
    fn was_contested(&self) -> bool {
        self.contested.first.lock().unwrap().is_none()
    }
}

fn family() -> FamilyId {
    FamilyId::from_uuid(Uuid::from_u128(7))
}

fn cause() -> Cause {
    Cause::system()
}

/// The states of keys, by when they activate.
fn states(keys: &[Value]) -> Vec<&str> {
    keys.iter()
        .map(|key| key["state"].as_str().unwrap())
        .collect()
}

async fn an_emergency_that_loses_against_the_same_one_revokes_no_second_key(office: &Office) {
    let rotations = [EMERGENCY, Rotation::Emergency { discard_next: true }];
    let cases = KeyUse::ALL
        .iter()
        .flat_map(|key_use| rotations.map(|rotation| (*key_use, rotation)));
    for (key_use, rotation) in cases {
        let revoked = |keys: &[Value]| {
            let states = states(keys);
            states.iter().filter(|state| **state == "revoked").count()
        };
        let rival = KeyAdmin {
            rs256_id_tokens: true,
            ..office.rivals_keys()
        };
        rival.ensure().await.unwrap();
        let before = revoked(&rival.list(key_use).await.unwrap());
        let applied = Arc::new(Mutex::new(Vec::new()));
        office.first({
            let (rival, applied) = (rival.clone(), Arc::clone(&applied));
            async move {
                rival.rotate(key_use, rotation, &cause()).await.unwrap();
                *applied.lock().unwrap() = rival.list(key_use).await.unwrap();
            }
        });
        let change = office
            .keys_with_rs256()
            .rotate(key_use, rotation, &cause())
            .await
            .unwrap();
        assert!(office.was_contested());
        let applied = applied.lock().unwrap().clone();
        assert!(revoked(&applied) > before);
        assert_eq!(change.keys, applied);
        assert_eq!(rival.list(key_use).await.unwrap(), applied);
    }
}

async fn an_emergency_that_discards_next_is_not_lost_against_one_that_keeps_it(office: &Office) {
    let rival = office.rivals_keys();
    office.first({
        let rival = rival.clone();
        async move {
            rival
                .rotate(KeyUse::Signing, EMERGENCY, &cause())
                .await
                .unwrap();
        }
    });
    let rotation = Rotation::Emergency { discard_next: true };
    let refused = office
        .keys()
        .rotate(KeyUse::Signing, rotation, &cause())
        .await;
    assert!(office.was_contested());
    assert!(
        matches!(refused, Err(AdminError::Conflict(_))),
        "{refused:?}"
    );
    // Nothing of it was done; asked again, it is.
    let before = rival.list(KeyUse::Signing).await.unwrap();
    let mut found = states(&before);
    found.sort_unstable();
    assert_eq!(found, ["active", "next", "revoked"]);
    let change = office
        .keys()
        .rotate(KeyUse::Signing, rotation, &cause())
        .await
        .unwrap();
    for key in &change.keys {
        let was_there = before.iter().any(|other| other["kid"] == key["kid"]);
        assert_eq!(key["state"] == "revoked", was_there, "{key}");
    }
}

async fn an_emergency_revokes_the_key_it_meant_also_where_that_is_succeeded_meanwhile(
    office: &Office,
) {
    let rival = KeyAdmin {
        rs256_id_tokens: true,
        ..office.rivals_keys()
    };
    rival.ensure().await.unwrap();
    let state_of = |keys: &[Value], kid: &str| {
        let found = kids(keys).into_iter().find(|(other, _)| other == kid);
        found.unwrap().1
    };
    let rotations = [EMERGENCY, Rotation::Emergency { discard_next: true }];
    for key_use in KeyUse::ALL {
        for rotation in rotations {
            let spans = POLICY.spans(*key_use);
            office.clock.advance(spans.lead + spans.notice);
            let cause = cause();
            let rotated = rival.rotate(*key_use, Rotation::Scheduled, &cause).await;
            let before = kids(&rotated.unwrap().keys);
            let mut signing = before
                .into_iter()
                .filter(|(_, state)| ["active", "next"].contains(&state.as_str()))
                .map(|(kid, _)| kid);
            let [meant, successor, last] = [(); 3].map(|()| signing.next().unwrap());
            // The switch comes, and a change that lets the emergency be worked out anew.
            office.first({
                let (rival, clock) = (rival.clone(), office.clock.clone());
                let last = Kid::parse(&last).unwrap();
                async move {
                    clock.advance(spans.notice);
                    rival.revoke(&last, &self::cause()).await.unwrap();
                }
            });
            let keys = office.keys_with_rs256();
            keys.rotate(*key_use, rotation, &cause).await.unwrap();
            assert!(office.was_contested());
            let after = rival.list(*key_use).await.unwrap();
            assert_eq!(state_of(&after, &meant), "revoked");
            let successors = if rotation == EMERGENCY {
                "active"
            } else {
                "revoked"
            };
            assert_eq!(state_of(&after, &successor), successors);
        }
    }
}

async fn a_removal_that_loses_against_a_change_is_made_nonetheless(office: &Office) {
    let client = office.client(&[]).await;
    let id = client.client_id.clone();
    office.first({
        let (rival, id) = (office.rivals_clients(), id.clone());
        async move {
            let patch = json!({ "client_name": "Renamed" });
            rival.update(&id, &patch, None, &cause()).await.unwrap();
        }
    });
    office.clients().delete(&id, &cause()).await.unwrap();
    assert!(office.was_contested());
    let again = office.clients().delete(&id, &cause()).await;
    assert!(
        matches!(again, Err(AdminError::NotFound("client"))),
        "{again:?}"
    );
}

async fn a_rotation_that_loses_against_another_is_too_early(office: &Office) {
    office.clock.advance(spans().lead + spans().notice);
    let rival = office.rivals_keys();
    office.first({
        let rival = rival.clone();
        async move {
            rival
                .rotate(KeyUse::Signing, Rotation::Scheduled, &cause())
                .await
                .unwrap();
        }
    });
    let refused = office
        .keys()
        .rotate(KeyUse::Signing, Rotation::Scheduled, &cause())
        .await;
    assert!(office.was_contested());
    assert!(
        matches!(refused, Err(AdminError::TooEarly { .. })),
        "{refused:?}"
    );
    let keys = rival.list(KeyUse::Signing).await.unwrap();
    assert_eq!(states(&keys), ["active", "next", "next"]);
}

async fn an_emergency_that_discards_next_revokes_every_key_there_was(office: &Office) {
    let keys = office.keys();
    office.clock.advance(spans().lead + spans().notice);
    keys.rotate(KeyUse::Signing, Rotation::Scheduled, &cause())
        .await
        .unwrap();
    office.clock.advance(spans().notice);
    let before = keys.list(KeyUse::Signing).await.unwrap();
    assert_eq!(states(&before), ["retiring", "active", "next"]);

    let rotation = Rotation::Emergency { discard_next: true };
    let after = keys
        .rotate(KeyUse::Signing, rotation, &cause())
        .await
        .unwrap();
    for key in &after.keys {
        let was_there = before.iter().any(|other| other["kid"] == key["kid"]);
        assert_eq!(key["state"] == "revoked", was_there, "{key}");
    }
    assert_eq!(after.keys.len(), 5);
    assert!(after.verifiers_may_lag_until.is_some());
}

async fn a_master_key_is_exchanged_for_keys_of_every_use_also_where_that_ends_half_way(
    office: &Office,
) {
    let keys = office.keys();
    let token = keys.mac_ring().await.unwrap();
    let token = token.active(NOW).unwrap().mint(family(), 3);
    // Master keys sort by when they were drawn.
    office.clock.advance(Duration::from_secs(1));
    let (new, _) = keys.add_master().unwrap();
    keys.promote_master(new, &cause()).await.unwrap();
    let status = |masters: Vec<MasterKeyStatus>| {
        let status = |master: &MasterKeyStatus| (master.id == new, master.is_primary, master.seals);
        masters.iter().map(status).collect::<Vec<_>>()
    };
    let old = keys.master_keys().await.unwrap()[0].id;
    let found = status(keys.master_keys().await.unwrap());
    assert_eq!(found, [(false, false, 4), (true, true, 0)]);

    // Whoever rewraps is killed after the signing keys.
    let mut schedule = office.store.key_schedule(KeyUse::Signing).await.unwrap();
    let masters = keys.masters.load().unwrap();
    for key in &mut schedule.keys {
        key.sealed = sealing::reseal(&masters, key, new, &office.entropy).unwrap();
    }
    let change = Change::PutKeys {
        schedule,
        event: EventType::KeysRewrapped,
    };
    office.store.apply(&change, &cause(), NOW).await.unwrap();
    let found = status(keys.master_keys().await.unwrap());
    assert_eq!(found, [(false, false, 2), (true, true, 2)]);
    let refused = keys.remove_master(old).await;
    assert!(
        matches!(&refused, Err(AdminError::Conflict(why)) if why.contains("2 keys")),
        "{refused:?}"
    );

    // The MAC keys alone still need the old one, which is as much of a reason not to start.
    let file = office.folder.path().join(format!("master-{old}.key"));
    let elsewhere = office.folder.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    let refused = keys.bootstrap(true).await;
    assert!(
        matches!(&refused, Err(AdminError::Conflict(why)) if why.contains(&old.to_string())),
        "{refused:?}"
    );
    fs::rename(&elsewhere, &file).unwrap();

    assert_eq!(keys.rewrap(&cause()).await.unwrap(), 2);
    assert_eq!(keys.rewrap(&cause()).await.unwrap(), 0);
    let found = status(keys.master_keys().await.unwrap());
    assert_eq!(found, [(false, false, 0), (true, true, 4)]);
    keys.remove_master(old).await.unwrap();
    keys.bootstrap(false).await.unwrap();
    let ring = keys.mac_ring().await.unwrap();
    assert_eq!(ring.verify(&token, NOW).unwrap().counter, 3);
}

async fn a_key_made_during_a_promotion_is_sealed_under_the_promoted_master_key(office: &Office) {
    for (key_use, other) in [
        (KeyUse::Signing, KeyUse::RefreshMac),
        (KeyUse::RefreshMac, KeyUse::Signing),
    ] {
        let rival = office.rivals_keys();
        let (new, _) = rival.add_master().unwrap();
        office.first({
            let rival = rival.clone();
            async move { rival.promote_master(new, &cause()).await.unwrap() }
        });
        let keys = office.keys();
        keys.rotate(key_use, EMERGENCY, &cause()).await.unwrap();
        assert!(office.was_contested());
        let sealed_under = async |key_use| {
            let schedule = office.store.key_schedule(key_use).await.unwrap();
            assert_eq!(schedule.primary_master, Some(new));
            let sealed = schedule.keys.iter().map(|key| key.sealed.master_id);
            sealed.filter(|id| *id == new).count()
        };
        assert_eq!(sealed_under(key_use).await, 1);
        assert_eq!(sealed_under(other).await, 0);
        rival.rewrap(&cause()).await.unwrap();
    }
}

async fn a_database_from_before_there_were_mac_keys_gets_some_under_its_master_key(
    office: &Office,
) {
    for table in ["sealed_key", "key_schedule"] {
        let forget = format!("delete from {table} where key_use = 'refresh_mac'");
        office.database.execute(&forget).await;
    }
    let keys = office.keys();
    let before = office.store.key_schedule(KeyUse::Signing).await.unwrap();
    // One that waits to be promoted is not to be used.
    keys.add_master().unwrap();
    keys.bootstrap(false).await.unwrap();
    keys.bootstrap(true).await.unwrap();
    let made = office.store.key_schedule(KeyUse::RefreshMac).await.unwrap();
    let sealed: Vec<_> = made
        .keys
        .iter()
        .map(|key| (key.version, Some(key.sealed.master_id)))
        .collect();
    let primary = before.primary_master;
    assert_eq!(sealed, [(Some(1), primary), (Some(2), primary)]);
    let after = office.store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(after, before);
    assert_eq!(keys.masters.load().unwrap().ids().count(), 2);
}

async fn an_emergency_of_mac_keys_refuses_what_they_have_made_and_nothing_else(office: &Office) {
    let keys = office.keys();
    let mint = async || {
        let ring = keys.mac_ring().await.unwrap();
        ring.active(office.clock.now()).unwrap().mint(family(), 0)
    };
    let first = mint().await;
    let mac = POLICY.spans(KeyUse::RefreshMac);
    office.clock.advance(mac.lead + mac.notice);
    let signing = keys.list(KeyUse::Signing).await.unwrap();
    keys.rotate(KeyUse::RefreshMac, Rotation::Scheduled, &cause())
        .await
        .unwrap();
    office.clock.advance(mac.notice);
    let second = mint().await;
    let refusals = async |tokens: [&String; 2]| {
        let ring = keys.mac_ring().await.unwrap();
        tokens.map(|token| ring.verify(token, office.clock.now()).err())
    };
    assert_eq!(refusals([&first, &second]).await, [None, None]);

    let change = keys
        .rotate(KeyUse::RefreshMac, EMERGENCY, &cause())
        .await
        .unwrap();
    assert_eq!(change.verifiers_may_lag_until, None);
    let gone = Some(MacError::KeyGone);
    assert_eq!(refusals([&first, &second]).await, [None, gone]);
    let third = mint().await;
    let discard_next = Rotation::Emergency { discard_next: true };
    keys.rotate(KeyUse::RefreshMac, discard_next, &cause())
        .await
        .unwrap();
    assert_eq!(refusals([&first, &third]).await, [gone, gone]);
    assert_eq!(keys.list(KeyUse::Signing).await.unwrap(), signing);
    let snapshot = office.store.snapshot().await.unwrap();
    assert!(snapshot.revocations.is_empty());
}

const RS256: KeyUse = KeyUse::IdTokenRs256;

/// The kids of keys, with their states.
fn kids(keys: &[Value]) -> Vec<(String, String)> {
    let text = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
    let kid = |key| (text(key, "kid"), text(key, "state"));
    keys.iter().map(kid).collect()
}

async fn keys_for_rs256_are_made_only_where_the_service_has_opted_in(office: &Office) {
    let (off, on) = (office.keys(), office.keys_with_rs256());
    let none = office.store.key_schedule(RS256).await.unwrap();
    assert_eq!((none.revision, none.keys.len()), (0, 0));
    let is_refused = async || {
        let refused = off.rotate(RS256, EMERGENCY, &cause()).await;
        let Err(AdminError::Invalid(errors)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(errors[0].pointer, "/use");
        assert!(errors[0].detail.contains("keys.rs256_id_tokens"));
        assert_eq!(off.list(RS256).await.unwrap(), [] as [Value; 0]);
    };
    is_refused().await;
    off.ensure().await.unwrap();
    is_refused().await;

    on.ensure().await.unwrap();
    let listed = on.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["active", "next"]);
    for key in &listed {
        assert_eq!(
            [&key["jwk"]["kty"], &key["jwk"]["alg"], &key["jwk"]["kid"]],
            [&json!("RSA"), &json!("RS256"), &key["kid"]]
        );
    }
    let made = office.store.key_schedule(RS256).await.unwrap();
    for key in &made.keys {
        assert_eq!(key.algorithm.as_str(), "RS256");
        assert_eq!(key.version, None);
    }
    on.ensure().await.unwrap();

    // Off again, none is made; those that are there may have leaked all the same.
    office.clock.advance(POLICY.period * 2);
    off.ensure().await.unwrap();
    assert_eq!(office.store.key_schedule(RS256).await.unwrap(), made);
    let listed = off.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["retired", "active"]);
    off.rotate(RS256, EMERGENCY, &cause()).await.unwrap();
    off.revoke(&made.keys[0].kid, &cause()).await.unwrap();
    let listed = off.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["revoked", "revoked", "active", "next"]);
    on.ensure().await.unwrap();
    assert_eq!(on.list(RS256).await.unwrap(), listed);
}

async fn keys_for_rs256_rotate_and_are_revoked_like_those_of_access_tokens(office: &Office) {
    let keys = office.keys_with_rs256();
    keys.ensure().await.unwrap();
    let signing = keys.list(KeyUse::Signing).await.unwrap();
    let early = keys.rotate(RS256, Rotation::Scheduled, &cause()).await;
    let earliest = NOW.plus(spans().lead);
    assert!(
        matches!(early, Err(AdminError::TooEarly { earliest_activation_at }) if earliest_activation_at == earliest),
        "{early:?}"
    );
    office.clock.advance(spans().lead);
    let change = keys.rotate(RS256, Rotation::Scheduled, &cause()).await;
    assert_eq!(change.unwrap().verifiers_may_lag_until, None);
    office.clock.advance(spans().notice);
    let listed = keys.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["retiring", "active", "next"]);

    // Clients that verify ID Tokens are told by the JWKS, like all others.
    let change = keys.rotate(RS256, EMERGENCY, &cause()).await.unwrap();
    let made = office.clock.now().minus(spans().notice);
    assert_eq!(
        change.verifiers_may_lag_until,
        Some(made.plus(spans().lead))
    );
    let listed = keys.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["retiring", "revoked", "active", "next"]);
    let next = Kid::parse(listed[3]["kid"].as_str().unwrap()).unwrap();
    let change = keys.revoke(&next, &cause()).await.unwrap();
    assert_eq!(change.key_use, RS256);
    let mut states = states(&change.keys);
    states.sort_unstable();
    assert_eq!(states, ["active", "next", "retiring", "revoked", "revoked"]);
    // Whoever verifies access tokens never takes them, and need not hear of them.
    let after = keys.list(KeyUse::Signing).await.unwrap();
    assert_eq!(kids(&after), kids(&signing));
    let snapshot = office.store.snapshot().await.unwrap();
    assert!(snapshot.revocations.is_empty());
}

async fn a_key_for_rs256_is_revoked_also_where_no_other_can_be_made(office: &Office) {
    let keys = office.keys_with_rs256();
    keys.ensure().await.unwrap();
    // The keys are listed by when they activate.
    office.clock.advance(Duration::from_secs(1));
    // Its threads have ended.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let background = runtime.handle().clone();
    runtime.shutdown_background();
    let makes_none = KeyAdmin {
        background,
        ..keys.clone()
    };
    let change = makes_none.rotate(RS256, EMERGENCY, &cause()).await.unwrap();
    assert_eq!(states(&change.keys), ["revoked", "active"]);
    assert_eq!(keys.list(RS256).await.unwrap(), change.keys);
    let refused = makes_none.ensure().await;
    assert!(refused.is_err(), "{refused:?}");
    keys.ensure().await.unwrap();
    let listed = keys.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["revoked", "active", "next"]);
    let next = Kid::parse(listed[2]["kid"].as_str().unwrap()).unwrap();
    let change = makes_none.revoke(&next, &cause()).await.unwrap();
    assert_eq!(states(&change.keys), ["revoked", "active", "revoked"]);
    // The key that takes over has to be there first.
    let discard_next = Rotation::Emergency { discard_next: true };
    let refused = makes_none.rotate(RS256, discard_next, &cause()).await;
    assert!(refused.is_err(), "{refused:?}");
    let listed = keys.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["revoked", "active", "revoked"]);
}

async fn of_two_nodes_that_make_keys_for_rs256_at_once_one_gets_through(office: &Office) {
    let rival = KeyAdmin {
        rs256_id_tokens: true,
        ..office.rivals_keys()
    };
    office.first({
        let rival = rival.clone();
        async move { rival.ensure().await.unwrap() }
    });
    let keys = office.keys_with_rs256();
    keys.ensure().await.unwrap();
    assert!(office.was_contested());
    let made = office.store.key_schedule(RS256).await.unwrap();
    assert_eq!((made.revision, made.keys.len()), (1, 2));
    assert_eq!(
        keys.list(RS256).await.unwrap(),
        rival.list(RS256).await.unwrap()
    );
}

async fn a_node_that_ends_while_it_makes_keys_for_rs256_leaves_none_or_all(office: &Office) {
    let keys = office.keys_with_rs256();
    for turns in [1, 100, 10_000] {
        // At some moment, as it happens.
        let ended = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            made = keys.ensure() => made.unwrap(),
            () = ended => {}
        }
        let made = office.store.key_schedule(RS256).await.unwrap();
        assert!([0, 2].contains(&made.keys.len()), "{made:?}");
    }
    keys.ensure().await.unwrap();
    let listed = keys.list(RS256).await.unwrap();
    assert_eq!(states(&listed), ["active", "next"]);
}

async fn keys_for_rs256_move_to_another_master_key_also_where_the_service_has_opted_out(
    office: &Office,
) {
    let (on, off) = (office.keys_with_rs256(), office.keys());
    on.ensure().await.unwrap();
    let before = on.list(RS256).await.unwrap();
    let made = office.store.key_schedule(RS256).await.unwrap();
    let old = made.primary_master.unwrap();
    let (new, _) = off.add_master().unwrap();
    off.promote_master(new, &cause()).await.unwrap();
    let refused = off.remove_master(old).await;
    assert!(
        matches!(&refused, Err(AdminError::Conflict(why)) if why.contains("6 keys")),
        "{refused:?}"
    );
    assert_eq!(off.rewrap(&cause()).await.unwrap(), 6);
    off.remove_master(old).await.unwrap();
    on.bootstrap(false).await.unwrap();
    assert_eq!(on.list(RS256).await.unwrap(), before);
}

async fn keys_for_rs256_made_during_a_promotion_are_sealed_under_the_promoted_master_key(
    office: &Office,
) {
    let keys = office.keys_with_rs256();
    keys.ensure().await.unwrap();
    let rival = office.rivals_keys();
    let (new, _) = rival.add_master().unwrap();
    office.first(async move { rival.promote_master(new, &cause()).await.unwrap() });
    keys.rotate(RS256, EMERGENCY, &cause()).await.unwrap();
    assert!(office.was_contested());
    let schedule = office.store.key_schedule(RS256).await.unwrap();
    let sealed = schedule.keys.iter().map(|key| key.sealed.master_id == new);
    assert_eq!(sealed.collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(keys.list(RS256).await.unwrap().len(), 3);
}

async fn a_client_keeps_rs256_where_the_service_has_opted_out_and_none_gets_it(office: &Office) {
    let off = office.clients();
    let on = ClientAdmin {
        rs256_id_tokens: true,
        ..office.clients()
    };
    let metadata = ClientMetadata {
        client_name: "Old".to_owned(),
        id_token_signed_response_alg: Some("RS256".to_owned()),
        ..ClientMetadata::default()
    };
    let is_refused = |refused: Result<(), AdminError>| {
        let Err(AdminError::Invalid(errors)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].pointer, "/id_token_signed_response_alg");
        assert!(errors[0].detail.contains("keys.rs256_id_tokens"));
    };
    let refused = off.create(None, &metadata, false, &cause()).await;
    is_refused(refused.map(drop));
    let (client, _) = on.create(None, &metadata, false, &cause()).await.unwrap();
    let (id, alg) = (client.client_id, "id_token_signed_response_alg");
    // What it has is no reason to refuse another change, and is seen.
    let disable = json!({ "disabled": true });
    let client = off.update(&id, &disable, None, &cause()).await.unwrap();
    assert_eq!(client.document()[alg], "RS256");
    let without = json!({ alg: null });
    let client = off.update(&id, &without, None, &cause()).await.unwrap();
    assert_eq!(client.document()[alg], "ES256");
    let again = json!({ alg: "RS256" });
    is_refused(off.update(&id, &again, None, &cause()).await.map(drop));
    on.update(&id, &again, None, &cause()).await.unwrap();
    let unknown = json!({ alg: "none" });
    let refused = on.update(&id, &unknown, None, &cause()).await;
    assert!(
        matches!(&refused, Err(AdminError::Invalid(errors)) if errors[0].detail == "must be ES256 or RS256"),
        "{refused:?}"
    );
}

async fn a_master_key_is_not_promoted_past_a_node_that_may_still_sign(office: &Office) {
    let keys = office.keys();
    let (new, _) = keys.add_master().unwrap();
    let seen = async |name: &str, ago: Duration, master_keys: &[MasterKeyId]| {
        let node = Node {
            id: NodeId::from_uuid(Uuid::from_u128(ago.as_millis())),
            name: name.to_owned(),
            master_keys: master_keys.to_vec(),
            seen_at: NOW.minus(ago),
        };
        office.store.heartbeat(&node).await.unwrap();
    };
    let silent_for = Duration::from_mins(1);
    let longest = POLICY.offline_limit;
    seen("gone", longest + Duration::from_secs(1), &[]).await;
    seen("silent", silent_for, &[]).await;
    seen("last", longest, &[]).await;
    seen("ready", Duration::ZERO, &[new]).await;

    let refused = keys.promote_master(new, &cause()).await.unwrap_err();
    let AdminError::Conflict(sentence) = refused else {
        panic!("{refused:?}");
    };
    let missing = "missing at last (seen 900 s ago), silent (seen 60 s ago);";
    assert!(sentence.contains(missing), "{sentence}");

    seen("last", longest, &[new]).await;
    seen("silent", silent_for, &[new]).await;
    keys.promote_master(new, &cause()).await.unwrap();
    let schedule = office.store.key_schedule(KeyUse::Signing).await.unwrap();
    assert_eq!(schedule.primary_master, Some(new));
}

async fn a_client_is_disabled_although_one_of_its_resources_is_gone(office: &Office) {
    const KEPT: &str = "https://kept.example";
    const GONE: &str = "https://gone.example";
    office.resource(KEPT).await;
    let gone = office.resource(GONE).await;
    let (both, one) = (
        office.client(&[KEPT, GONE]).await,
        office.client(&[KEPT]).await,
    );
    let deleted = office.resources().delete(gone.id, &cause()).await;
    deleted.unwrap();

    let clients = office.clients();
    let patch = json!({"disabled": true});
    let updated = clients
        .update(&both.client_id, &patch, None, &cause())
        .await;
    let updated = updated.unwrap();
    assert!(updated.disabled);
    assert_eq!(updated.resources, both.resources);

    for (client, uri) in [(&both, "https://unknown.example"), (&one, GONE)] {
        let patch = json!({"resources": [KEPT, uri]});
        let refused = clients
            .update(&client.client_id, &patch, None, &cause())
            .await;
        let Err(AdminError::Invalid(errors)) = refused else {
            panic!("{refused:?}");
        };
        let pointers: Vec<&str> = errors
            .iter()
            .map(|FieldError { pointer, .. }| pointer.as_str())
            .collect();
        assert_eq!(pointers, ["/resources/1"]);
    }
}

/// Lets somebody else give a client the name "Theirs" first, then disables it.
async fn disable_second(
    office: &Office,
    client: &Client,
    expected: Option<i64>,
) -> Result<Client, AdminError> {
    let (rival, id) = (office.rivals_clients(), client.client_id.clone());
    office.first(async move {
        let patch = json!({"client_name": "Theirs"});
        rival.update(&id, &patch, None, &cause()).await.unwrap();
    });
    let patch = json!({"disabled": true});
    let clients = office.clients();
    let updated = clients
        .update(&client.client_id, &patch, expected, &cause())
        .await;
    assert!(office.was_contested());
    updated
}

async fn an_update_without_a_revision_is_made_to_whatever_is_there(office: &Office) {
    let client = office.client(&[]).await;
    let updated = disable_second(office, &client, None).await.unwrap();
    assert!(updated.disabled);
    assert_eq!(updated.client_name, "Theirs");
    assert_eq!(updated.revision, client.revision + 2);
}

async fn an_update_with_a_revision_that_has_passed_conflicts(office: &Office) {
    let client = office.client(&[]).await;
    let first = Some(client.revision);
    let refused = disable_second(office, &client, first).await;
    assert!(
        matches!(refused, Err(AdminError::Conflict(_))),
        "{refused:?}"
    );
    let clients = office.clients();
    let patch = json!({"disabled": true});
    let refused = clients
        .update(&client.client_id, &patch, first, &cause())
        .await;
    assert!(
        matches!(refused, Err(AdminError::Conflict(_))),
        "{refused:?}"
    );
    let stored = clients.show(&client.client_id).await.unwrap();
    assert!(!stored.disabled);
    assert_eq!(stored.client_name, "Theirs");
}
