//! Keys change in mid-traffic, and no verifier refuses a valid token.
//!
//! A token is valid unless it has expired or its key has been revoked. The verifiers are as badly
//! off as they may be: each keeps the JWKS for as long as it is allowed to, whatever it meets, and
//! the clocks of some are wrong by almost the permitted skew.
//!
//! The order of the two rotations follows from what is promised. A key takes over without anybody
//! noticing once it has been published for the lead (7.25 s with the settings of the first test).
//! The first next key has been by then, so the emergency comes first; it makes a new next key,
//! which takes over on schedule one lead later. The other order, a scheduled switch and an
//! emergency at once, is smooth when the schedule itself made the switch, as it makes the key after
//! the next in advance: that is the second test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use countersign::clock::Timestamp;
use countersign_verifier::{KeySet, VerifyError};
use reqwest::{Client, StatusCode, header};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::show;
use crate::support::{
    database::{Database, Engine},
    process::{
        Credentials, Installation, Node, Stopwatch, expectation, http, kid_of, now, pause, reach,
        token_of, until,
    },
};

/// How late a node may be seen to switch, for want of the processor and by the correction of its
/// clock.
const TOLERANCE: Duration = Duration::from_millis(300);

/// By when every node has been told of a change that was answered, on a busy machine.
const NEWS: Duration = Duration::from_secs(2);

/// How many clients fetch tokens.
const CONNECTIONS: usize = 8;

/// How often it is begun anew where this machine was too slow for the times of the keys.
const ATTEMPTS: usize = 5;

/// The settings that the lead follows from, in milliseconds.
struct Spans {
    poll: u64,
    max_age: u64,
    skew: u64,
}

impl Spans {
    /// How long a key is published before it signs. Written out here, apart from the program.
    fn lead(&self) -> Duration {
        Duration::from_millis(self.poll + 2 * self.max_age + self.max_age + self.skew)
    }
}

/// A resource server that keeps the JWKS for as long as it may.
struct Verifier {
    /// Until what age it keeps its copy, even when a token names a key that is not in it.
    keeps: Duration,
    /// How far its clock is off, in milliseconds.
    clock_error: i64,
    jwks: String,
    /// What the JWKS has to allow.
    cache_control: String,
    http: Client,
    copy: tokio::sync::Mutex<CachedKeys>,
}

/// A JWKS as it was fetched.
struct CachedKeys {
    keys: Arc<KeySet>,
    /// A copy gets old also while this machine stands still.
    fetched: Timestamp,
    /// How old it was then.
    age: Duration,
}

impl Verifier {
    /// A verifier whose first copy is `age` old already, as if a cache in between had kept it.
    async fn begin(
        jwks: String,
        keeps: Duration,
        clock_error: i64,
        age: Duration,
        spans: &Spans,
    ) -> Self {
        let seconds = spans.max_age / 1000;
        let (keys, fetched) = (Arc::default(), now());
        let verifier = Self {
            keeps,
            clock_error,
            jwks,
            cache_control: format!("public, max-age={seconds}, stale-if-error={seconds}"),
            http: http(),
            copy: tokio::sync::Mutex::new(CachedKeys { keys, fetched, age }),
        };
        verifier.copy.lock().await.keys = verifier.fetch().await;
        verifier
    }

    async fn fetch(&self) -> Arc<KeySet> {
        let answer = self.http.get(&self.jwks).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(
            answer.headers()[header::CACHE_CONTROL].to_str().unwrap(),
            self.cache_control
        );
        let body = answer.bytes().await.unwrap();
        Arc::new(KeySet::parse(&body).unwrap())
    }

    async fn keys(&self) -> Arc<KeySet> {
        let mut copy = self.copy.lock().await;
        if now().since(copy.fetched) + copy.age >= self.keeps {
            let (fetched, age) = (now(), Duration::ZERO);
            let keys = self.fetch().await;
            *copy = CachedKeys { keys, fetched, age };
        }
        Arc::clone(&copy.keys)
    }

    async fn verify(&self, token: &str) -> Result<(), VerifyError> {
        let keys = self.keys().await;
        let now = now().seconds() + self.clock_error.div_euclid(1000);
        let now = u64::try_from(now).unwrap();
        countersign_verifier::verify(token, &keys, &expectation(), now).map(|_| ())
    }
}

/// A token, from which node, and between which moments.
struct Sample {
    node: usize,
    asked_at: Timestamp,
    got_at: Timestamp,
    kid: String,
    token: String,
}

/// A token that a verifier did not take.
struct Refusal {
    verifier: usize,
    kid: String,
    at: Timestamp,
    error: VerifyError,
}

/// Clients that fetch tokens from every node, and verifiers that look at each of them.
struct Traffic {
    verifiers: Vec<Verifier>,
    samples: Mutex<Vec<Arc<Sample>>>,
    refusals: Mutex<Vec<Refusal>>,
    verifications: AtomicU64,
    stop: CancellationToken,
}

impl Traffic {
    /// Starts the clients, spread over the nodes.
    async fn begin(
        nodes: &[Node],
        credentials: &Credentials,
        spans: &Spans,
    ) -> (Arc<Self>, JoinSet<()>) {
        let traffic = Arc::new(Self {
            verifiers: verifiers(nodes, spans).await,
            samples: Mutex::default(),
            refusals: Mutex::default(),
            verifications: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        for connection in 0..CONNECTIONS {
            let node = connection % nodes.len();
            let url = nodes[node].url("/oauth2/token");
            let (traffic, credentials) = (Arc::clone(&traffic), credentials.clone());
            tasks.spawn(async move { traffic.fetch_tokens(node, &url, &credentials).await });
        }
        for verifier in 0..traffic.verifiers.len() {
            let traffic = Arc::clone(&traffic);
            tasks.spawn(async move { traffic.look_again(verifier).await });
        }
        (traffic, tasks)
    }

    async fn fetch_tokens(&self, node: usize, url: &str, credentials: &Credentials) {
        let connection = http();
        while !self.stop.is_cancelled() {
            let asked_at = now();
            let answer = credentials.ask(&connection, url).await.unwrap();
            let token = token_of(answer).await;
            let sample = Arc::new(Sample {
                node,
                asked_at,
                got_at: now(),
                kid: kid_of(&token),
                token,
            });
            let number = {
                let mut samples = self.samples.lock().unwrap();
                samples.push(Arc::clone(&sample));
                samples.len()
            };
            // One of each kind; over time, all of them.
            for kind in 0..KINDS {
                self.verify(kind * PHASES + number % PHASES, &sample).await;
            }
            pause(Duration::from_millis(40)).await;
        }
    }

    /// Returns when each of two nodes has signed with this key; `false` if that has not come before a
    /// moment.
    async fn has_seen(&self, kid: &str, before: Timestamp) -> bool {
        until("tokens of a key", async || {
            let has_signed = |node| {
                let samples = self.samples.lock().unwrap();
                let mut of_key = samples.iter().filter(|sample| sample.kid == kid);
                of_key.any(|sample| sample.node == node)
            };
            if now() >= before {
                return Some(false);
            }
            (has_signed(0) && has_signed(1)).then_some(true)
        })
        .await
    }

    /// Presents tokens of every age to one verifier, again and again.
    async fn look_again(&self, verifier: usize) {
        while !self.stop.is_cancelled() {
            pause(Duration::from_millis(500)).await;
            let tokens: Vec<Arc<Sample>> = {
                let samples = self.samples.lock().unwrap();
                let step = samples.len() / 20 + 1;
                samples.iter().step_by(step).cloned().collect()
            };
            for sample in tokens {
                self.verify(verifier, &sample).await;
            }
        }
    }

    async fn verify(&self, verifier: usize, sample: &Sample) {
        let outcome = self.verifiers[verifier].verify(&sample.token).await;
        self.verifications.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            self.refusals.lock().unwrap().push(Refusal {
                verifier,
                kid: sample.kid.clone(),
                at: now(),
                error,
            });
        }
    }

    /// Ends the traffic; every token is then looked at once more.
    async fn end(&self, tasks: JoinSet<()>) {
        self.stop.cancel();
        tasks.join_all().await;
        let samples = std::mem::take(&mut *self.samples.lock().unwrap());
        for (number, sample) in samples.iter().enumerate() {
            self.verify(number % self.verifiers.len(), sample).await;
        }
        *self.samples.lock().unwrap() = samples;
    }
}

const KINDS: usize = 3;
const PHASES: usize = 4;

/// Verifiers of every kind, each kind in several phases, so that their copies are of every age.
async fn verifiers(nodes: &[Node], spans: &Spans) -> Vec<Verifier> {
    let max_age = Duration::from_millis(spans.max_age);
    let clock_error = i64::try_from(spans.skew).unwrap() * 9 / 10;
    let kinds = [
        // Fetches when max-age is over.
        (max_age, 0),
        // Cannot fetch then, and lives on its copy under stale-if-error.
        (max_age * 2, clock_error),
        // Has just failed to fetch when that is over, too, and may not ask again for a cooldown.
        (max_age * 3, -clock_error),
    ];
    let mut verifiers = Vec::new();
    for (keeps, clock_error) in kinds {
        for phase in 0..PHASES {
            let jwks = nodes[phase % nodes.len()].url("/.well-known/jwks.json");
            let first_age = keeps * u32::try_from(phase).unwrap() / 4;
            verifiers.push(Verifier::begin(jwks, keeps, clock_error, first_age, spans).await);
        }
    }
    verifiers
}

/// A signing key as the database has it.
struct Key {
    kid: String,
    published_at: Timestamp,
    activates_at: Timestamp,
    revoked_at: Option<Timestamp>,
}

/// Every signing key, in the order in which they sign.
async fn keys(database: &Database) -> Vec<Key> {
    keys_of(database, "signing").await
}

async fn keys_of(database: &Database, key_use: &str) -> Vec<Key> {
    let rows: Vec<(String, String, i64, i64, Option<i64>)> = database
        .rows(
            "select key_use, kid, published_at, activates_at, revoked_at from sealed_key \
             order by activates_at",
        )
        .await;
    let key = |(_, kid, published_at, activates_at, revoked_at)| Key {
        kid,
        published_at: Timestamp::from_millis(published_at),
        activates_at: Timestamp::from_millis(activates_at),
        revoked_at: Option::map(revoked_at, Timestamp::from_millis),
    };
    let rows = rows.into_iter().filter(|row| row.0 == key_use);
    rows.map(key).collect()
}

/// Checks what the traffic has seen against the keys, of which at least the first `signers` must have
/// signed, and reports it. The emergency was answered at a moment.
fn judge(
    traffic: &Traffic,
    keys: &[Key],
    signers: usize,
    answered_at: Timestamp,
    seconds: f64,
) -> String {
    let samples = traffic.samples.lock().unwrap();
    let refusals = traffic.refusals.lock().unwrap();
    let verifications = traffic.verifications.load(Ordering::Relaxed);

    let revoked_at: BTreeMap<&str, Timestamp> = keys
        .iter()
        .filter_map(|key| Some((key.kid.as_str(), key.revoked_at?)))
        .collect();
    let wrong: Vec<&Refusal> = refusals
        .iter()
        .filter(|refusal| {
            let revoked_at = revoked_at.get(refusal.kid.as_str());
            revoked_at.is_none_or(|revoked_at| refusal.at < revoked_at.minus(TOLERANCE))
        })
        .collect();
    if let Some(first) = wrong.first() {
        panic!(
            "{} valid tokens were refused; the first by verifier {} at {:?} ({})",
            wrong.len(),
            first.verifier,
            first.at,
            first.error
        );
    }

    let mut report = format!(
        "tokens {} ({:.0}/s), verifications {verifications}, refusals of valid tokens 0, \
         of tokens whose key was revoked {}\n",
        samples.len(),
        f64::from(u32::try_from(samples.len()).unwrap()) / seconds,
        refusals.len(),
    );
    let used: BTreeSet<&str> = samples.iter().map(|sample| sample.kid.as_str()).collect();
    let of_keys: BTreeSet<&str> = keys.iter().map(|key| key.kid.as_str()).collect();
    assert!(used.is_subset(&of_keys));
    assert!(used.len() >= signers, "so many keys should have signed");

    // Every node signs with the key that its times say, and no other.
    for (number, key) in keys.iter().enumerate().take(used.len()) {
        for node in [0, 1] {
            let of_node = || {
                samples
                    .iter()
                    .filter(move |sample| sample.node == node && sample.kid == key.kid)
            };
            let count = of_node().count();
            if count == 0 && number >= signers {
                continue;
            }
            assert!(count > 0, "node {node} never signed with key {number}");
            let first = of_node().map(|sample| sample.got_at).min().unwrap();
            let last = of_node().map(|sample| sample.asked_at).max().unwrap();
            let begin = key.activates_at;
            let end = keys[number + 1].activates_at;
            // Of a switch on schedule the nodes know in advance, of a revocation they are told.
            let latest = match key.revoked_at {
                None => end.plus(TOLERANCE),
                Some(_) => answered_at.plus(NEWS),
            };
            assert!(
                first > begin.minus(TOLERANCE) && last < latest,
                "node {node} signed with key {number} before or after its time"
            );
            let _ = writeln!(
                report,
                "key {number}, node {node}: {count} tokens, the first at {:+} ms from its \
                 beginning, the last asked for at {:+} ms from its end",
                first.millis() - begin.millis(),
                last.millis() - end.millis(),
            );
        }
    }
    report
}

/// "HH:MM:SS UTC" of a moment, rounded up to whole seconds.
fn clock_face(moment: Timestamp) -> String {
    let seconds = (moment.millis() + 999).div_euclid(1000).rem_euclid(86_400);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

/// Rotates and returns until when verifiers may lag.
async fn rotate(installation: &Installation, flags: &[&str]) -> Value {
    let arguments = [&["keys", "rotate", "--reason", "test"], flags].concat();
    let mut answer = installation.json(&arguments).await;
    answer["verifiers_may_lag_until"].take()
}

/// Rotates before that is allowed, and is told when it is; `false` if it was allowed by then.
async fn is_told_the_time(installation: &Installation, allowed_at: Timestamp) -> bool {
    let outcome = installation.run(&["keys", "rotate"]).await;
    if outcome.status.success() {
        assert!(now() >= allowed_at, "too early: {outcome:?}");
        return false;
    }
    let sentence = outcome.refusal();
    assert!(sentence.contains(&clock_face(allowed_at)), "{sentence}");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_in_mid_traffic_make_no_verifier_refuse_a_valid_token() {
    for _ in 0..ATTEMPTS {
        if rotations_in_mid_traffic().await {
            return;
        }
    }
    panic!("too slow each time");
}

/// `false` if this machine was too slow for it.
async fn rotations_in_mid_traffic() -> bool {
    let spans = Spans {
        poll: 250,
        max_age: 2000,
        skew: 1000,
    };
    let database = Database::create(Engine::Postgres).await;
    let installation = Installation::production(database.url())
        .await
        .with("keys.jwks_max_age_seconds", 2)
        .with("keys.clock_skew_seconds", 1)
        .with("keys.rotation_period_seconds", 3600);
    installation.register_resource().await;
    let credentials = installation.client("load").await;
    let twin = installation.twin();
    let nodes = [installation.start().await, twin.start().await];
    let begun = Stopwatch::start();
    let (traffic, tasks) = Traffic::begin(&nodes, &credentials, &spans).await;

    let first = keys(&database).await;
    assert_eq!(first.len(), 2);
    let known_at = first[1].published_at.plus(spans.lead());
    if !is_told_the_time(&installation, known_at).await {
        return false;
    }

    reach(known_at).await;
    assert_eq!(rotate(&installation, &["--emergency"]).await, Value::Null);
    let answered_at = now();

    let second = keys(&database).await;
    assert_eq!(second.len(), 3);
    let known_at = second[2].published_at.plus(spans.lead());
    if !is_told_the_time(&installation, known_at).await {
        return false;
    }
    reach(known_at).await;
    assert_eq!(rotate(&installation, &[]).await, Value::Null);

    let third = keys(&database).await;
    let switch = third[2].activates_at;
    assert!(switch > known_at, "a switch that nodes could not know of");
    // Until the copies that were fetched right before the switch have been replaced.
    reach(switch.plus(Duration::from_secs(5))).await;
    let seconds = begun.elapsed().as_secs_f64();
    traffic.end(tasks).await;

    let all = keys(&database).await;
    show(&judge(&traffic, &all, 3, answered_at, seconds));
    // The key of the emergency is gone, and with it every token it has signed.
    for node in &nodes {
        let published = node.jwks().await;
        let kids: Vec<&str> = published.kids().collect();
        let expected: BTreeSet<&str> = third[1..].iter().map(|key| key.kid.as_str()).collect();
        assert_eq!(kids.iter().copied().collect::<BTreeSet<_>>(), expected);
        assert_eq!(kids.len(), expected.len());
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_nodes_one_makes_the_next_key_and_all_switch_to_it_on_schedule() {
    for _ in 0..ATTEMPTS {
        if all_switch_on_schedule().await {
            return;
        }
    }
    panic!("too slow each time");
}

/// `false` if this machine was too slow for it.
async fn all_switch_on_schedule() -> bool {
    let spans = Spans {
        poll: 100,
        max_age: 1000,
        skew: 0,
    };
    let period = Duration::from_secs(7);
    let database = Database::create(Engine::Postgres).await;
    let installation = Installation::production(database.url())
        .await
        .with("sync.poll_interval_ms", 100)
        .with("keys.jwks_max_age_seconds", 1)
        .with("keys.clock_skew_seconds", 0)
        .with("keys.rotation_period_seconds", period.as_secs());
    installation.register_resource().await;
    let credentials = installation.client("load").await;
    let twin = installation.twin();
    let nodes = [installation.start().await, twin.start().await];
    let begun = Stopwatch::start();
    let (traffic, tasks) = Traffic::begin(&nodes, &credentials, &spans).await;

    let first = keys(&database).await;
    if !traffic.has_seen(&first[0].kid, first[1].activates_at).await {
        return false;
    }
    // Two switches of the schedule by itself.
    reach(first[1].activates_at.plus(period)).await;
    let on_schedule = until("the key after the next", async || {
        let keys = keys(&database).await;
        (keys.len() == 4 && keys[3].published_at.plus(spans.lead()) < now()).then_some(keys)
    })
    .await;
    for pair in on_schedule.windows(2) {
        assert_eq!(pair[1].activates_at, pair[0].activates_at.plus(period));
        assert!(pair[1].activates_at.since(pair[1].published_at) >= spans.lead());
    }
    // An emergency soon after a switch: the key after the next is known to all already.
    let switch = on_schedule[2].activates_at;
    reach(switch.plus(Duration::from_secs(1))).await;
    let next_at = on_schedule[3].activates_at;
    if !traffic.has_seen(&on_schedule[2].kid, next_at).await {
        return false;
    }
    let lag = rotate(&installation, &["--emergency"]).await;
    let answered_at = now();
    if answered_at.since(switch) >= spans.lead() {
        return false;
    }
    assert_eq!(lag, Value::Null);
    let last = on_schedule[3].kid.as_str();
    traffic.has_seen(last, answered_at.plus(period)).await;
    pause(spans.lead()).await;
    let seconds = begun.elapsed().as_secs_f64();
    traffic.end(tasks).await;

    let mut keys = keys(&database).await;
    show(&judge(&traffic, &keys, 4, answered_at, seconds));
    // From then on the schedule may have made yet another key.
    let more_at = switch.plus(period).minus(spans.lead());
    keys.retain(|key| key.published_at < more_at);
    let mut mac_keys = keys_of(&database, "refresh_mac").await;
    mac_keys.retain(|key| key.published_at < more_at);
    let mut events: Vec<(String, String, i64)> = database
        .rows(
            "select target, type, at from event \
             where type in ('key.created', 'key.revoked', 'key.rotated') \
             order by target desc, type",
        )
        .await;
    events.retain(|(_, _, at)| Timestamp::from_millis(*at) < more_at);
    assert_eq!(keys.len(), 5, "one new key for each switch");
    // The first two keys together, then one for each switch of the schedule.
    let expected = [
        ("signing", "key.created"),
        ("signing", "key.created"),
        ("signing", "key.created"),
        ("signing", "key.revoked"),
        ("refresh_mac", "key.created"),
        ("refresh_mac", "key.created"),
        ("refresh_mac", "key.created"),
    ];
    let events = events.iter().map(|(target, kind, _)| (&**target, &**kind));
    assert!(events.eq(expected));
    assert_eq!(mac_keys.len(), 4);
    for pair in mac_keys.windows(2) {
        assert_eq!(pair[1].activates_at, pair[0].activates_at.plus(period));
    }
    true
}
