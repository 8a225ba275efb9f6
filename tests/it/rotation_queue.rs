//! The queue in which presented refresh tokens wait for the database, over a real one.
//!
//! What waits while nobody works is one batch: the worker is started when all is there.

use std::{sync::Arc, time::Duration};

use countersign::{
    admin::{
        client::{ClientAdmin, ClientMetadata},
        operator::Authority,
    },
    clock::{AgreedClock, ManualClock, Timestamp},
    domain::{
        change::Cause,
        client::Client,
        code::{Redeemed, Redemption, s256},
        family::{EndReason, Intent, Outcome, Presentation, Refusal, Turn, Verdict},
        id::FamilyId,
        key::{KeySchedule, KeyTimes, KeyUse},
        resource::ResourceUri,
        scope::Scope,
        secret::SecretHash,
        user::User,
    },
    entropy::Entropy,
    keys::{
        mac::MacRing,
        master::MasterKeySource,
        ring::{KeyRing, Rs256Ring},
        sealing,
    },
    metrics::Metrics,
    oauth::{
        error::{ErrorCode, OAuthError},
        refresh_tokens::RefreshTokens,
        rotation_queue::{RotationQueue, RotationWorker},
    },
    registry::{Registry, Snapshots},
    store::Store,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    database::{Database, Engine},
    openmetrics::{Exposition, NOTHING},
    server::{API, ISSUER},
    sign_in::{VERIFIER, code_for, create_user, grant, put_code},
    soon,
};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// A database with a client and a user, and the queue in front of it. Nobody works yet.
struct Bench {
    database: Database,
    store: Arc<dyn Store>,
    clock: ManualClock,
    tokens: RefreshTokens,
    metrics: Metrics,
    queue: RotationQueue,
    stop: CancellationToken,
    client: Client,
    user: User,
}

type Judged = Result<(Outcome, Timestamp), OAuthError>;

impl Bench {
    async fn new() -> Self {
        Self::with_keys(1).await
    }

    /// With so many MAC keys.
    async fn with_keys(count: u32) -> Self {
        let database = Database::create(Engine::Sqlite).await;
        let store = database.open().await;
        let clock = ManualClock::new(NOW);
        let span = Duration::from_hours(1);
        let tokens = RefreshTokens {
            snapshots: Arc::new(snapshots(count)),
            clock: AgreedClock::new(Arc::new(clock.clone())),
            idle: Duration::from_hours(24),
            lifetime: Duration::from_hours(48),
            token_retention: span,
        };
        let client = register(&store).await;
        Self {
            user: create_user(&*store, "ada", NOW).await,
            client,
            database,
            store,
            tokens,
            clock,
            metrics: Metrics::new(NOW, span, span),
            queue: RotationQueue::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Lets somebody work.
    fn work(&self) -> JoinHandle<()> {
        let worker = RotationWorker {
            queue: self.queue.clone(),
            store: Arc::clone(&self.store),
            tokens: self.tokens.clone(),
            metrics: self.metrics.clone(),
        };
        tokio::spawn(worker.run(self.stop.clone()))
    }

    async fn family(&self) -> FamilyId {
        let code = code_for(grant(&self.client, &self.user, NOW), NOW);
        let text = put_code(&*self.store, &code).await;
        let family_id = FamilyId::from_uuid(Entropy::new().uuid_v7(NOW).unwrap());
        let redemption = Redemption {
            hash: SecretHash::of(&text),
            client_id: self.client.client_id.clone(),
            code_challenge: s256(VERIFIER),
            redirect_uri: None,
            dpop_jkt: None,
            scope: None,
            resources: Vec::new(),
            family_id,
            for_session: false,
            lifetime: self.tokens.lifetime,
            terms: self.tokens.terms(NOW).unwrap(),
            cause: Cause::default(),
        };
        let redeemed = self.store.redeem_code(&redemption, NOW).await.unwrap();
        assert!(matches!(redeemed, Redeemed::Opened { .. }), "{redeemed:?}");
        family_id
    }

    async fn families(&self, count: usize) -> Vec<FamilyId> {
        let mut families = Vec::new();
        for _ in 0..count {
            families.push(self.family().await);
        }
        families
    }

    fn presented(&self, family: FamilyId, counter: i64) -> Presentation {
        Presentation {
            family,
            counter,
            mac_version: 1,
            client_id: self.client.client_id.clone(),
            dpop_jkt: None,
            intent: Intent::Refresh {
                scope: None,
                resources: Vec::new(),
                offered: vec![ResourceUri::parse(API).unwrap()],
            },
            cause: Cause::default(),
        }
    }

    /// The same token with another request.
    fn with_scope(&self, family: FamilyId, counter: i64, scope: &str) -> Presentation {
        Presentation {
            intent: Intent::Refresh {
                scope: Some(Scope::parse(scope).unwrap()),
                resources: Vec::new(),
                offered: vec![ResourceUri::parse(API).unwrap()],
            },
            ..self.presented(family, counter)
        }
    }

    fn revocation(&self, family: FamilyId) -> Presentation {
        Presentation {
            intent: Intent::Revoke,
            ..self.presented(family, 0)
        }
    }

    /// Presents a token, and returns when it waits.
    async fn submit(&self, presented: Presentation, is_strict: bool) -> JoinHandle<Judged> {
        let waiting = self.queue.len();
        let queue = self.queue.clone();
        let caller = tokio::spawn(async move { queue.submit(presented, is_strict).await });
        soon(async {
            while self.queue.len() == waiting && !caller.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        caller
    }

    /// Presents a token when somebody works.
    async fn judged(&self, presented: Presentation) -> Judged {
        soon(self.queue.submit(presented, false)).await
    }

    /// How many batches there were, and how many tokens in all of them.
    fn batches(&self) -> (u32, u32) {
        let metrics = Exposition::parse(&self.metrics.text(&NOTHING));
        let value = |name: &str| {
            let value = metrics.value(&format!("countersign_refresh_batch_{name}"));
            format!("{value}").parse().unwrap()
        };
        (value("count"), value("sum"))
    }

    async fn counter(&self, family: FamilyId) -> i64 {
        self.store.family(family).await.unwrap().unwrap().0.counter
    }
}

fn clients(store: &Arc<dyn Store>) -> ClientAdmin {
    ClientAdmin {
        store: Arc::clone(store),
        clock: AgreedClock::new(Arc::new(ManualClock::new(NOW))),
        entropy: Entropy::new(),
        issuer: ISSUER.to_owned(),
        rs256_id_tokens: false,
        token_retention: Duration::from_hours(1),
        authority: Authority::Everything,
    }
}

async fn register(store: &Arc<dyn Store>) -> Client {
    let metadata = ClientMetadata {
        client_name: "An app".to_owned(),
        token_endpoint_auth_method: Some("none".to_owned()),
        scope: "read write".to_owned(),
        ..ClientMetadata::default()
    };
    let cause = Cause::system();
    let (client, _) = clients(store)
        .create(None, &metadata, false, &cause)
        .await
        .unwrap();
    store.client(&client.client_id).await.unwrap().unwrap()
}

/// The keys of a node, and nothing else.
fn snapshots(count: u32) -> Snapshots {
    let folder = tempfile::tempdir().unwrap();
    let source = MasterKeySource::Folder {
        path: folder.path().to_owned(),
        group_may_read: false,
    };
    let entropy = Entropy::new();
    let (master, _) = source.add(&entropy, NOW).unwrap();
    let masters = source.load().unwrap();
    let times = KeyTimes {
        published_at: NOW,
        activates_at: NOW,
        withdrawn_at: None,
        revoked_at: None,
    };
    let schedule = |key_use, keys| KeySchedule {
        key_use,
        revision: 1,
        primary_master: Some(master),
        keys,
    };
    let signing = schedule(KeyUse::Signing, Vec::new());
    let keys = (1..=count)
        .map(|version| sealing::generate_mac(&masters, master, version, times, &entropy).unwrap());
    let macs = schedule(KeyUse::RefreshMac, keys.collect());
    Snapshots::new(
        Registry::default(),
        KeyRing::open(&signing, Rs256Ring::none(), &masters, &entropy, NOW).unwrap(),
        MacRing::open(&macs, &masters, NOW).unwrap(),
        Duration::ZERO,
    )
}

fn verdict(judged: &Judged) -> Verdict {
    match judged {
        Ok((Outcome::Judged { verdict, .. }, judged_at)) => {
            assert_eq!(*judged_at, NOW);
            *verdict
        }
        other => panic!("{other:?}"),
    }
}

fn code(judged: Judged) -> ErrorCode {
    judged.unwrap_err().code()
}

const ROTATED: Verdict = Verdict::Granted(Turn::Rotated);
const REPLAYED: Verdict = Verdict::Granted(Turn::Replayed { is_first: true });

/// Time stands still: were there a timer, nobody would ever be answered.
#[tokio::test]
async fn a_lone_caller_waits_for_nothing() {
    let bench = Bench::new().await;
    let family = bench.family().await;
    bench.work();
    for counter in 0..3 {
        let judged = bench.judged(bench.presented(family, counter)).await;
        assert_eq!(verdict(&judged), ROTATED);
    }
    assert_eq!(bench.batches(), (3, 3));
    assert!(bench.queue.is_empty());
}

#[tokio::test]
async fn what_waits_together_shares_one_transaction_up_to_256_families() {
    let bench = Bench::new().await;
    let mut callers = Vec::new();
    for family in bench.families(300).await {
        callers.push(bench.submit(bench.presented(family, 0), false).await);
    }
    assert_eq!(bench.queue.len(), 300);
    bench.work();
    for caller in callers {
        assert_eq!(verdict(&soon(caller).await.unwrap()), ROTATED);
    }
    assert_eq!(bench.batches(), (2, 300));
    assert_eq!(bench.queue.len(), 0);
}

#[tokio::test]
async fn a_family_has_one_turn_in_each_batch() {
    let bench = Bench::new().await;
    let (family, other) = (bench.family().await, bench.family().await);
    let mut callers = Vec::new();
    for presented in [
        bench.presented(family, 0),
        bench.with_scope(family, 0, "read"),
        bench.presented(family, 7),
        bench.presented(other, 0),
    ] {
        callers.push(bench.submit(presented, false).await);
    }
    bench.work();
    let mut verdicts = Vec::new();
    for caller in callers {
        verdicts.push(verdict(&soon(caller).await.unwrap()));
    }
    // Each is judged by what the one before has left.
    let recovered = Verdict::Granted(Turn::Recovered);
    assert_eq!(verdicts, [ROTATED, REPLAYED, recovered, ROTATED]);
    assert_eq!(bench.batches(), (3, 4));
}

#[tokio::test]
async fn identical_presentations_are_judged_once_and_share_the_verdict() {
    let bench = Bench::new().await;
    let family = bench.family().await;
    let mut callers = Vec::new();
    for _ in 0..64 {
        callers.push(bench.submit(bench.presented(family, 0), false).await);
    }
    assert_eq!(bench.queue.len(), 64);
    bench.work();
    for caller in callers {
        assert_eq!(verdict(&soon(caller).await.unwrap()), ROTATED);
    }
    assert_eq!(bench.batches(), (1, 1));
    assert_eq!(bench.counter(family).await, 1);
}

/// All that makes them different is asked.
#[tokio::test]
async fn only_identical_presentations_share_a_verdict() {
    let bench = Bench::new().await;
    let family = bench.family().await;
    let first = bench.presented(family, 0);
    let stranger = register(&bench.store).await.client_id;
    let others = [
        bench.presented(bench.family().await, 0),
        bench.presented(family, 1),
        bench.with_scope(family, 0, "read"),
        bench.revocation(family),
        Presentation {
            client_id: stranger,
            ..first.clone()
        },
        Presentation {
            dpop_jkt: Some("key".to_owned()),
            ..first.clone()
        },
    ];
    let count = 1 + u32::try_from(others.len()).unwrap();
    let mut callers = vec![bench.submit(first, false).await];
    for other in others {
        callers.push(bench.submit(other, false).await);
    }
    bench.work();
    for caller in callers {
        assert!(soon(caller).await.unwrap().is_ok());
    }
    assert_eq!(bench.batches().1, count);
}

#[tokio::test]
async fn where_the_policy_is_strict_nothing_is_shared() {
    let bench = Bench::new().await;
    let id = &bench.client.client_id;
    let patch = json!({ "refresh_policy": "strict" });
    let (clients, cause) = (clients(&bench.store), Cause::system());
    clients.update(id, &patch, None, &cause).await.unwrap();
    let family = bench.family().await;
    let mut callers = Vec::new();
    for _ in 0..3 {
        callers.push(bench.submit(bench.presented(family, 0), true).await);
    }
    bench.work();
    let mut verdicts = Vec::new();
    for caller in callers {
        verdicts.push(verdict(&soon(caller).await.unwrap()));
    }
    let ended = Verdict::Refused(Refusal::Ended);
    assert_eq!(verdicts, [ROTATED, Verdict::Reused, ended]);
}

#[tokio::test]
async fn a_family_waits_8_deep_and_no_deeper() {
    let bench = Bench::new().await;
    let family = bench.family().await;
    let mut callers = Vec::new();
    for counter in 0..8 {
        callers.push(bench.submit(bench.presented(family, counter), false).await);
    }
    let refused = bench.judged(bench.presented(family, 8)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TooOften);
    assert_eq!(refused.retry_after().unwrap().seconds(), 1);
    // What is there already goes no deeper; another family is not concerned.
    callers.push(bench.submit(bench.presented(family, 7), false).await);
    let other = bench.family().await;
    callers.push(bench.submit(bench.presented(other, 0), false).await);
    assert_eq!(bench.queue.len(), 10);
    bench.work();
    for caller in callers {
        assert!(soon(caller).await.unwrap().is_ok());
    }
    assert_eq!(bench.batches(), (8, 9));
}

#[tokio::test]
async fn no_more_wait_than_the_queue_has_room_for() {
    let bench = Bench::new().await;
    let family = bench.family().await;
    let mut callers = Vec::new();
    for _ in 0..4096 {
        let (queue, presented) = (bench.queue.clone(), bench.presented(family, 0));
        callers.push(tokio::spawn(
            async move { queue.submit(presented, false).await },
        ));
    }
    soon(async {
        while bench.queue.len() < 4096 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = bench.judged(bench.presented(family, 0)).await;
    assert_eq!(code(refused), ErrorCode::TemporarilyUnavailable);
    bench.work();
    for caller in callers {
        assert_eq!(verdict(&soon(caller).await.unwrap()), ROTATED);
    }
    let judged = bench.judged(bench.presented(family, 1)).await;
    assert_eq!(verdict(&judged), ROTATED);
}

#[tokio::test]
async fn a_caller_who_goes_away_changes_nothing() {
    let bench = Bench::new().await;
    let (shared, ended) = (bench.family().await, bench.family().await);
    let first = bench.submit(bench.presented(shared, 0), false).await;
    let second = bench.submit(bench.presented(shared, 0), false).await;
    let revoking = bench.submit(bench.revocation(ended), false).await;
    first.abort();
    revoking.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert!(revoking.await.unwrap_err().is_cancelled());
    let work = bench.work();
    assert_eq!(verdict(&soon(second).await.unwrap()), ROTATED);
    bench.stop.cancel();
    soon(work).await.unwrap();
    let (family, _) = bench.store.family(ended).await.unwrap().unwrap();
    assert_eq!(family.revoke_reason, Some(EndReason::RevokedByClient));
}

#[tokio::test]
async fn a_batch_that_fails_is_told_to_all_of_it_and_the_next_one_is_judged() {
    let bench = Bench::new().await;
    let families = bench.families(3).await;
    let mut callers = Vec::new();
    for family in &families {
        callers.push(bench.submit(bench.presented(*family, 0), false).await);
    }
    bench
        .database
        .execute("alter table family rename to gone")
        .await;
    bench.work();
    for caller in callers {
        assert_eq!(code(soon(caller).await.unwrap()), ErrorCode::ServerError);
    }
    bench
        .database
        .execute("alter table gone rename to family")
        .await;
    let judged = bench.judged(bench.presented(families[0], 0)).await;
    assert_eq!(verdict(&judged), ROTATED);
}

/// Whoever has come while the database did not answer does not wait for as long once more.
#[tokio::test]
async fn a_database_that_does_not_answer_is_told_to_all_who_wait() {
    let bench = Bench::new().await;
    let (family, other) = (bench.family().await, bench.family().await);
    let lock = bench.database.lock().await;
    bench.work();
    let queue = bench.queue.clone();
    let presented = bench.presented(family, 0);
    let first = tokio::spawn(async move { queue.submit(presented, false).await });
    soon(async {
        // It is taken at once.
        tokio::task::yield_now().await;
        while !bench.queue.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let second = bench.submit(bench.presented(other, 0), false).await;
    soon(async {
        while !first.is_finished() || !second.is_finished() {
            bench.clock.advance(Duration::from_secs(4));
            tokio::task::yield_now().await;
        }
    })
    .await;
    for caller in [first, second] {
        let refused = caller.await.unwrap();
        assert_eq!(code(refused), ErrorCode::TemporarilyUnavailable);
    }
    drop(lock);
    let judged = bench.judged(bench.presented(other, 0)).await;
    assert!(judged.is_ok(), "{judged:?}");
}

#[tokio::test]
async fn without_a_key_nothing_is_judged() {
    let bench = Bench::with_keys(0).await;
    bench.work();
    let family = FamilyId::from_uuid(Entropy::new().uuid_v7(NOW).unwrap());
    let refused = bench.judged(bench.presented(family, 0)).await;
    assert_eq!(code(refused), ErrorCode::TemporarilyUnavailable);
}

#[tokio::test]
async fn what_waits_is_judged_before_the_end_and_nothing_after_it() {
    let bench = Bench::new().await;
    let families = bench.families(3).await;
    let mut callers = Vec::new();
    for family in &families {
        callers.push(bench.submit(bench.presented(*family, 0), false).await);
    }
    bench.stop.cancel();
    soon(bench.work()).await.unwrap();
    for caller in callers {
        assert_eq!(verdict(&soon(caller).await.unwrap()), ROTATED);
    }
    let refused = bench.judged(bench.presented(families[0], 1)).await;
    assert_eq!(code(refused), ErrorCode::TemporarilyUnavailable);
}
