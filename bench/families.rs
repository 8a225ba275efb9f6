//! What a family costs in the database, and how many rotations it carries.
//!
//! `cargo bench -p countersign-bench --bench families` starts a Postgres server of its own as it comes (its commits wait
//! for the disk), prints each figure beside its limit, and fails when one is over it:
//!
//! - bytes of the table and its indexes after each of 10,000 families was refreshed 100 times,
//!   beside those before, and the share of updates that were made in place (HOT);
//! - rotations through the queue with 256 callers, beside one transaction for each rotation on the
//!   same connections; and how long a lone caller waits, beside the same. Both by turns, so that a
//!   noisy machine disturbs both alike.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has nothing to say"
)]
#![expect(
    clippy::print_stdout,
    reason = "its figures are what a benchmark is for"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use countersign::{
    clock::{AgreedClock, Clock as _, SystemClock},
    domain::{
        change::Cause,
        claims::RequestedClaims,
        code::{AuthorizationCode, Redeemed, Redemption},
        family::{Grant, Intent, Outcome, Presentation, Terms, Turn, Verdict},
        id::{ClientId, FamilyId, UserId},
        key::{KeyRecord, KeySchedule, KeyTimes},
        resource::ResourceUri,
        scope::Scope,
        secret::SecretHash,
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
        refresh_tokens::RefreshTokens,
        rotation_queue::{RotationQueue, RotationWorker},
    },
    registry::{Registry, Snapshots},
    store::{self, Access, Schema, Store},
};
use futures_util::{StreamExt as _, future::join_all, stream};
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

const FAMILIES: usize = 10_000;
const REFRESHES: usize = 100;
/// How many rotations one transaction of the storage part has.
const BATCH: usize = 250;

/// How many times as large the table may become.
const GROWTH_LIMIT: f64 = 1.5;
/// How large the share of updates in place must be.
const HOT_LIMIT: f64 = 0.95;

/// How many callers refresh at the same time, each a family of its own.
const CALLERS: usize = 256;
/// How often each of them does in a round.
const EACH: usize = 20;
/// How often a lone caller does.
const ALONE: i64 = 1000;
/// How many rounds there are of each.
const ROUNDS: usize = 5;

/// How many times as many rotations the queue must carry as transactions of their own.
const QUEUE_LIMIT: f64 = 4.0;
/// How many times as long a lone caller may wait.
const LONE_LIMIT: f64 = 1.2;

/// A server that ends with it.
struct Server {
    folder: String,
    url: String,
}

impl Server {
    fn start() -> Self {
        let folder = format!("/tmp/countersign-bench.{}", std::process::id());
        let started = script(&["start", &folder, "durable"]);
        Self {
            folder,
            url: started,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        script(&["remove", &self.folder]);
    }
}

fn script(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres");
    let output = Command::new(script).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The service's store, and what stands around it.
struct Bench {
    store: Arc<dyn Store>,
    clock: SystemClock,
    client: ClientId,
    cause: Cause,
    statistics: PgConnection,
}

impl Bench {
    async fn open(url: &str) -> Self {
        let (entropy, clock) = (Entropy::new(), SystemClock::new());
        let schema = Schema::default();
        let store = store::open(url, Access::Serve, schema, &entropy, clock.now()).await;
        let mut statistics = PgConnection::connect(url).await.unwrap();
        let client = ClientId::parse("bench").unwrap();
        sqlx::raw_sql(
            "insert into client (client_id, client_name, auth_method, grant_types, scope, resources, \
             allowed_origins, disabled, demo, revision, created_at, updated_at, session_epoch) \
             values ('bench', 'Bench', 'none', '[]', '', '[]', '[]', 0, 0, 1, 0, 0, 7); \
             insert into end_user (id, username, username_key, roles, claims, disabled, demo, \
             session_epoch, revision, created_at, updated_at) \
             values ('00000000-0000-0000-0000-000000000001', 'bench', 'bench', '[]', '{}', 0, 0, 7, 1, 0, 0)",
        )
        .execute(&mut statistics)
        .await
        .unwrap();
        Self {
            store: store.unwrap(),
            clock,
            client,
            cause: Cause {
                actor: "bench".to_owned(),
                address: Some("192.0.2.143".to_owned()),
                user_agent: Some(
                    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
                        .to_owned(),
                ),
                ..Cause::default()
            },
            statistics,
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            mac_version: 1,
            idle: Duration::from_hours(7 * 24),
            tokens_die_at: self.clock.now().plus(Duration::from_hours(2)),
        }
    }

    /// Signs in: a code, exchanged for a family.
    async fn sign_in(&self, number: u128) -> FamilyId {
        let now = self.clock.now();
        let hash = SecretHash::of(&number.to_string());
        let code = AuthorizationCode {
            grant: Grant {
                client_id: self.client.clone(),
                client_epoch: 7,
                subject: UserId::parse("00000000-0000-0000-0000-000000000001").unwrap(),
                user_epoch: 7,
                session_id: None,
                scope: Scope::parse("orders:read orders:write").unwrap(),
                resources: vec![ResourceUri::parse("https://api.example.com").unwrap()],
                auth_time: now,
                amr: vec!["pwd".to_owned()],
                dpop_jkt: None,
                claims: RequestedClaims::default(),
            },
            redirect_uri: None,
            code_challenge: None,
            nonce: None,
            expires_at: now.plus(Duration::from_mins(1)),
            family_id: None,
        };
        assert!(self.store.put_code(&hash, &code, &[].into()).await.unwrap());
        let redemption = Redemption {
            hash,
            client_id: self.client.clone(),
            code_challenge: None,
            redirect_uri: None,
            dpop_jkt: None,
            scope: None,
            resources: Vec::new(),
            family_id: FamilyId::from_uuid(Entropy::new().uuid_v7(now).unwrap()),
            for_session: false,
            lifetime: Duration::from_hours(30 * 24),
            terms: self.terms(),
            cause: self.cause.clone(),
        };
        let redeemed = self.store.redeem_code(&redemption, now).await.unwrap();
        assert!(matches!(redeemed, Redeemed::Opened { .. }));
        redemption.family_id
    }

    /// Signs in many times.
    async fn sign_ins(&self, from: usize, count: usize) -> Vec<FamilyId> {
        stream::iter(from..from + count)
            .map(|number| self.sign_in(number as u128))
            .buffer_unordered(8)
            .collect()
            .await
    }

    fn presentation(&self, family: FamilyId, counter: i64) -> Presentation {
        Presentation {
            family,
            counter,
            mac_version: 1,
            client_id: self.client.clone(),
            dpop_jkt: None,
            intent: Intent::Refresh {
                scope: None,
                resources: Vec::new(),
                offered: vec![ResourceUri::parse("https://api.example.com").unwrap()],
            },
            cause: self.cause.clone(),
        }
    }

    async fn rotate(&self, batch: &[Presentation]) {
        let outcomes = self
            .store
            .rotate(batch, &self.terms(), self.clock.now())
            .await;
        for outcome in outcomes.unwrap() {
            assert!(is_rotated(&outcome), "{outcome:?}");
        }
    }

    /// Bytes of the table and of its indexes.
    async fn bytes(&mut self) -> (i64, i64) {
        sqlx::query_as("select pg_table_size('family'), pg_indexes_size('family')")
            .fetch_one(&mut self.statistics)
            .await
            .unwrap()
    }

    /// Updates of families so far, and how many of them were made in place.
    async fn updates(&mut self) -> (i64, i64) {
        // What other connections have done is told a moment later.
        tokio::time::sleep(Duration::from_secs(2)).await;
        sqlx::query_as(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'family'",
        )
        .fetch_one(&mut self.statistics)
        .await
        .unwrap()
    }
}

fn is_rotated(outcome: &Outcome) -> bool {
    let rotated = Verdict::Granted(Turn::Rotated);
    matches!(outcome, Outcome::Judged { verdict, .. } if *verdict == rotated)
}

/// Prints a figure beside its limit; whether it is within.
fn verdict(figure: &str, is_within: bool, limit: &str) -> bool {
    let verdict = if is_within { "within" } else { "OVER" };
    println!("{figure}, {verdict} the limit of {limit}");
    is_within
}

/// Refreshes every family over and over, in an order that differs from round to round.
#[expect(clippy::cast_precision_loss, reason = "a ratio of sizes")]
async fn storage(bench: &mut Bench) -> bool {
    let families = bench.sign_ins(0, FAMILIES).await;
    let (table, indexes) = bench.bytes().await;
    println!(
        "{FAMILIES} families: table {table} bytes, indexes {indexes} bytes, {} a family",
        (table + indexes) / 10_000
    );
    let begun = Instant::now();
    for round in 0..REFRESHES {
        // Coprime to the number of families, so that each occurs once.
        let step = 7919 + 2 * round * BATCH;
        let order: Vec<FamilyId> = (0..FAMILIES)
            .filter_map(|place| families.get((place * step + round) % FAMILIES).copied())
            .collect();
        for chunk in order.chunks(BATCH) {
            let counter = i64::try_from(round).unwrap();
            let batch: Vec<_> = chunk
                .iter()
                .map(|family| bench.presentation(*family, counter))
                .collect();
            bench.rotate(&batch).await;
        }
        if round % 10 == 9 {
            let (table, indexes) = bench.bytes().await;
            println!(
                "{:>4} refreshes each: table {table} bytes, indexes {indexes} bytes, {:.0} s",
                round + 1,
                begun.elapsed().as_secs_f64()
            );
            std::io::stdout().flush().unwrap();
        }
    }
    let (table_after, indexes_after) = bench.bytes().await;
    let growth = (table_after + indexes_after) as f64 / (table + indexes) as f64;
    let (updates, in_place) = bench.updates().await;
    let hot = in_place as f64 / updates as f64;
    let count = FAMILIES * REFRESHES;
    println!(
        "{count} refreshes, {:.0} a second",
        count as f64 / begun.elapsed().as_secs_f64()
    );
    let grew = verdict(
        &format!("table and indexes grew to {growth:.2} of their size"),
        growth <= GROWTH_LIMIT,
        "1.5",
    );
    let moved = verdict(
        &format!(
            "{:.2} % of {updates} updates were made in place",
            hot * 100.0
        ),
        hot >= HOT_LIMIT,
        "95 % at least",
    );
    grew && moved
}

/// The queue before the store, as the service has it.
fn queue(bench: &Bench, stop: &CancellationToken) -> RotationQueue {
    let (entropy, clock) = (Entropy::new(), SystemClock::new());
    let now = clock.now();
    let folder = std::env::temp_dir().join(format!("countersign-bench-{}", std::process::id()));
    let masters = MasterKeySource::Folder {
        path: folder.clone(),
        group_may_read: false,
    };
    let (master, _) = masters.add(&entropy, now).unwrap();
    let masters = masters.load().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let times = KeyTimes {
        published_at: now,
        activates_at: now,
        withdrawn_at: None,
        revoked_at: None,
    };
    let schedule = |key: KeyRecord| KeySchedule {
        key_use: key.key_use,
        revision: 1,
        primary_master: Some(master),
        keys: vec![key],
    };
    let signing = schedule(sealing::generate(&masters, master, times, &entropy).unwrap());
    let mac = schedule(sealing::generate_mac(&masters, master, 1, times, &entropy).unwrap());
    let snapshots = Snapshots::new(
        Registry::default(),
        KeyRing::open(&signing, Rs256Ring::none(), &masters, &entropy, now).unwrap(),
        MacRing::open(&mac, &masters, now).unwrap(),
        Duration::ZERO,
    );
    let queue = RotationQueue::default();
    let worker = RotationWorker {
        queue: queue.clone(),
        store: Arc::clone(&bench.store),
        tokens: RefreshTokens {
            snapshots: Arc::new(snapshots),
            clock: AgreedClock::new(Arc::new(clock)),
            idle: bench.terms().idle,
            lifetime: Duration::from_hours(30 * 24),
            token_retention: Duration::from_hours(2),
        },
        metrics: Metrics::new(now, Duration::from_hours(24), Duration::from_hours(24)),
    };
    tokio::spawn(worker.run(stop.clone()));
    queue
}

/// A rotation by itself, or through the queue.
struct Ways<'a> {
    bench: &'a Bench,
    queue: RotationQueue,
}

impl Ways<'_> {
    async fn alone(&self, family: FamilyId, counter: i64) {
        self.bench
            .rotate(&[self.bench.presentation(family, counter)])
            .await;
    }

    async fn queued(&self, family: FamilyId, counter: i64) {
        let presented = self.bench.presentation(family, counter);
        let (outcome, _) = self.queue.submit(presented, false).await.unwrap();
        assert!(is_rotated(&outcome), "{outcome:?}");
    }

    /// Has all families refreshed at the same time, in both ways; how many times as fast the queue is.
    async fn together(&self, families: &[FamilyId]) -> bool {
        let count = number(families.len()) * number(EACH);
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let first = i64::try_from(round * 2 * EACH).unwrap();
            let second = first + i64::try_from(EACH).unwrap();
            let begun = Instant::now();
            join_all(families.iter().map(async |family| {
                for counter in first..second {
                    self.alone(*family, counter).await;
                }
            }))
            .await;
            own.push(count / begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            join_all(families.iter().map(async |family| {
                for counter in second..second + (second - first) {
                    self.queued(*family, counter).await;
                }
            }))
            .await;
            shared.push(count / begun.elapsed().as_secs_f64());
        }
        let ratio = median(own.iter().zip(&shared).map(|(own, shared)| shared / own));
        println!(
            "{CALLERS} callers: {:.0} rotations a second in transactions of their own, {:.0} through the queue",
            median(own.into_iter()),
            median(shared.into_iter()),
        );
        let figure = format!("the queue carries {ratio:.1} times as many");
        verdict(&figure, ratio >= QUEUE_LIMIT, "4 at least")
    }

    /// Refreshes one family over and over, in both ways by turns; how many times as long the queue
    /// takes.
    async fn lone(&self, family: FamilyId) -> bool {
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        for counter in 0..ALONE {
            let begun = Instant::now();
            if counter % 2 == 0 {
                self.alone(family, counter).await;
                own.push(begun.elapsed().as_secs_f64() * 1e3);
            } else {
                self.queued(family, counter).await;
                shared.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        let (own, shared) = (median(own.into_iter()), median(shared.into_iter()));
        println!(
            "a lone caller: {own:.2} ms in a transaction of its own, {shared:.2} ms through the queue"
        );
        let ratio = shared / own;
        verdict(
            &format!("a lone caller waits {ratio:.2} times as long"),
            ratio <= LONE_LIMIT,
            "1.2",
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn number(count: usize) -> f64 {
    count as f64
}

fn median(samples: impl Iterator<Item = f64>) -> f64 {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Compares the queue with one transaction for each rotation.
async fn throughput(bench: &Bench) -> bool {
    let stop = CancellationToken::new();
    let ways = Ways {
        bench,
        queue: queue(bench, &stop),
    };
    let families = bench.sign_ins(FAMILIES, CALLERS + 1).await;
    let (lone, many) = families.split_first().unwrap();
    let carries = ways.together(many).await;
    let waits = ways.lone(*lone).await;
    stop.cancel();
    carries && waits
}

fn main() -> ExitCode {
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let is_well = runtime.block_on(async {
        let mut bench = Bench::open(&server.url).await;
        let is_fast = throughput(&bench).await;
        let is_small = storage(&mut bench).await;
        bench.store.close().await;
        is_fast && is_small
    });
    drop(server);
    if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
