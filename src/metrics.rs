//! What is counted and measured, and its text in the format of `OpenMetrics` 1.0.
//!
//! Owns every metric of the service; `prometheus_client` is named nowhere else. Each layer counts
//! what it does through its handle; what follows from the state at a moment is handed over as a
//! [`Reading`] when somebody asks.
//!
//! To add a metric: a field of `Inner`, its line in [`Metrics::new`], and the method that counts,
//! or a field of [`Reading`]; then its panel in `docs/grafana-dashboard.json` and its line in
//! `docs/observability.md`, which a test demands.
//!
//! # Security
//! A label is a constant of this program or a pattern of its route table. Nothing of a request gets
//! into one: neither could a stranger make series without end, nor is anything secret told.

use std::{fs, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::clock::Timestamp;

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds for requests, in seconds: from an answer out of memory to the slowest client.
const REQUEST_BUCKETS: [f64; 13] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// Upper bounds for signatures, in seconds: from a key in memory to one behind a network.
const SIGNING_BUCKETS: [f64; 12] = [
    0.00001, 0.00002, 0.00003, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0,
];

/// Upper bounds for how many refresh tokens are judged in one transaction.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Upper bounds for hashes of passwords, in seconds: slow on purpose, and slower where cores are few.
const PASSWORD_HASH_BUCKETS: [f64; 9] = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// The status of what a limit turns away (RFC 6585 §4).
const TOO_MANY_REQUESTS: u16 = 429;

/// Constant names with constant values, or none that a request chooses.
type Labels<const N: usize> = [(&'static str, &'static str); N];

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswer {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRefusal {
    route: String,
    reason: &'static str,
}

/// The metrics of this process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    token_requests: Family<Labels<2>, Counter>,
    refusals: Family<OfRefusal, Counter>,
    http_requests: Family<OfAnswer, Counter>,
    http_request_duration: Family<OfRoute, Histogram, fn() -> Histogram>,
    connections: Family<Labels<1>, Gauge>,
    throttled_requests: Family<Labels<1>, Counter>,
    signing_duration: Histogram,
    refresh_batch: Histogram,
    refresh_verdicts: Family<Labels<1>, Counter>,
    families_ended: Family<Labels<1>, Counter>,
    keys: Family<Labels<2>, Gauge>,
    key_age: Family<Labels<1>, Seconds>,
    key_next_transition: Family<Labels<1>, Seconds>,
    sync_lag: Seconds,
    database_up: Gauge,
    clock_offset: Seconds,
    change_position: Gauge,
    epoch_changes: Counter,
    queue_depth: Family<Labels<1>, Gauge>,
    revocation_entries: Gauge,
    store_failures: Family<Labels<2>, Counter>,
    sweeps: Family<Labels<1>, Counter>,
    swept_rows: Family<Labels<1>, Counter>,
    password_hash_duration: Histogram,
    presented_passwords: Family<Labels<1>, Counter>,
    jwks_fetches: Family<Labels<1>, Counter>,
    logout_notices: Family<Labels<1>, Counter>,
    logout_notices_waiting: Gauge,
    certificate_reloads: Family<Labels<1>, Counter>,
    process_resident_memory: Seconds,
    process_open_fds: Seconds,
}

/// The state of the keys of one use at a moment.
pub struct Keys {
    /// What they are for.
    pub key_use: &'static str,
    /// How many are in each state; all states, also those without a key.
    pub states: Vec<(&'static str, usize)>,
    /// For how long the active key has signed.
    pub age: Option<Duration>,
    /// In what time the next key takes over.
    pub next_transition: Option<Duration>,
}

/// What is told of one request that has been answered.
pub struct Answered {
    /// The pattern of the route table that it matched; never the path as it came.
    pub route: String,
    /// Its method, where that is one that some route knows; `other` else.
    pub method: &'static str,
    /// The status of the answer.
    pub status: u16,
    /// How long it took until the answer began.
    pub duration: Duration,
    /// Why it was refused, if it was: the word of `Countersign-Reason`.
    pub refusal: Option<&'static str>,
}

/// The state at the moment when somebody asks.
pub struct Reading {
    /// The keys of each use.
    pub keys: Vec<Keys>,
    /// How long ago the database was read to the end.
    pub sync_lag: Duration,
    /// Whether the last attempt to read it succeeded.
    pub database_up: bool,
    /// What is added to this machine's clock, in milliseconds.
    pub clock_offset_ms: i64,
    /// How many revocations this node knows that may still matter.
    pub revocation_entries: usize,
    /// How many requests wait for what.
    pub queues: Vec<(&'static str, usize)>,
}

/// A connection that is open; it counts until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Metrics of a process that began at `started`, with the limits that alerts compare with:
    /// how long a key signs, and for how long a node goes on without its database.
    pub fn new(started: Timestamp, rotation_period: Duration, offline_limit: Duration) -> Self {
        let mut inner = Inner::unregistered();
        let mut registry = Registry::with_prefix("countersign");
        inner.register_requests(&mut registry);
        inner.register_state(&mut registry);
        let constants = [
            (
                "key_rotation_period",
                "How long a key signs before the next one takes over",
                rotation_period.as_secs_f64(),
            ),
            (
                "offline_issuance_limit",
                "For how long a node that cannot read the database goes on issuing tokens",
                offline_limit.as_secs_f64(),
            ),
            (
                "process_start_time",
                "When the process began, in seconds since 1970",
                Duration::from_millis(u64::try_from(started.millis()).unwrap_or(0)).as_secs_f64(),
            ),
        ];
        for (name, help, value) in constants {
            let gauge = Seconds::default();
            gauge.set(value);
            registry.register_with_unit(name, help, Unit::Seconds, gauge);
        }
        registry.register(
            "build",
            "The version of this binary",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        // What an alert watches has to be there before it happens for the first time.
        for outcome in ["succeeded", "failed"] {
            let labels = [("outcome", outcome)];
            drop(inner.certificate_reloads.get_or_create(&labels));
            drop(inner.sweeps.get_or_create(&labels));
        }
        for verdict in ["recovered", "reuse"] {
            drop(
                inner
                    .refresh_verdicts
                    .get_or_create(&[("verdict", verdict)]),
            );
        }
        drop(
            inner
                .families_ended
                .get_or_create(&[("reason", "code_reuse")]),
        );
        inner.registry = registry;
        Self(Arc::new(inner))
    }

    /// Counts a request to the token endpoint. `outcome` is `issued` or the reason of the refusal.
    pub fn token_request(&self, grant: &'static str, outcome: &'static str) {
        let labels = [("grant", grant), ("outcome", outcome)];
        self.0.token_requests.get_or_create(&labels).inc();
    }

    /// Counts a request that has been answered.
    pub fn answered(&self, answered: Answered) {
        let Answered {
            route,
            method,
            status,
            duration,
            refusal,
        } = answered;
        let of_route = OfRoute { route };
        let durations = &self.0.http_request_duration;
        durations
            .get_or_create(&of_route)
            .observe(duration.as_secs_f64());
        let route = of_route.route;
        if let Some(reason) = refusal {
            if status == TOO_MANY_REQUESTS {
                self.throttled(reason);
            }
            let route = route.clone();
            let labels = OfRefusal { route, reason };
            self.0.refusals.get_or_create(&labels).inc();
        }
        let labels = OfAnswer {
            route,
            method,
            status,
        };
        self.0.http_requests.get_or_create(&labels).inc();
    }

    /// Counts a connection to the listener of this name for as long as the answer lives.
    pub fn connection(&self, listener: &'static str) -> OpenConnection {
        let gauge = self
            .0
            .connections
            .get_or_create_owned(&[("listener", listener)]);
        gauge.inc();
        OpenConnection(gauge)
    }

    /// Counts a request or a connection that was turned away by the limit of this name.
    pub fn throttled(&self, limit: &'static str) {
        let labels = [("limit", limit)];
        self.0.throttled_requests.get_or_create(&labels).inc();
    }

    /// Notes how long a signature took.
    pub fn signed(&self, duration: Duration) {
        self.0.signing_duration.observe(duration.as_secs_f64());
    }

    /// Notes how many refresh tokens were judged in one transaction.
    pub fn rotated(&self, presented: usize) {
        let presented = u32::try_from(presented).unwrap_or(u32::MAX);
        self.0.refresh_batch.observe(f64::from(presented));
    }

    /// Counts a presented refresh token that was judged, and what became of it.
    pub fn refresh_verdict(&self, verdict: &'static str) {
        let labels = [("verdict", verdict)];
        self.0.refresh_verdicts.get_or_create(&labels).inc();
    }

    /// Counts a session that was ended by itself, and why.
    pub fn family_ended(&self, reason: &'static str) {
        let labels = [("reason", reason)];
        self.0.families_ended.get_or_create(&labels).inc();
    }

    /// Notes up to which change the database has been read.
    pub fn followed_to(&self, seq: i64) {
        self.0.change_position.set(seq);
    }

    /// Counts that the database was found in another epoch than before: restored, or with commits lost.
    pub fn epoch_changed(&self) {
        self.0.epoch_changes.inc();
    }

    /// Counts an operation on the database that failed, and in what way.
    pub fn store_failed(&self, operation: &'static str, kind: &'static str) {
        let labels = [("operation", operation), ("kind", kind)];
        self.0.store_failures.get_or_create(&labels).inc();
    }

    /// Counts an attempt to delete all that is over.
    pub fn sweep_ended(&self, succeeded: bool) {
        count_attempt(&self.0.sweeps, succeeded);
    }

    /// Counts rows of a table that were deleted because their time had passed.
    pub fn swept(&self, table: &'static str, rows: u64) {
        let labels = [("table", table)];
        self.0.swept_rows.get_or_create(&labels).inc_by(rows);
    }

    /// Notes how long it took to make or verify the hash of a password.
    pub fn password_hashed(&self, duration: Duration) {
        self.0
            .password_hash_duration
            .observe(duration.as_secs_f64());
    }

    /// Counts a password that somebody presented to sign in.
    pub fn password_presented(&self, outcome: &'static str) {
        let labels = [("outcome", outcome)];
        self.0.presented_passwords.get_or_create(&labels).inc();
    }

    /// Counts an attempt to tell a client that a user has been signed out.
    pub fn logout_notice(&self, outcome: &'static str) {
        let labels = [("outcome", outcome)];
        self.0.logout_notices.get_or_create(&labels).inc();
    }

    /// Notes how many such notices there are to tell.
    pub fn logout_notices_waiting(&self, waiting: u64) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.0.logout_notices_waiting.set(waiting);
    }

    /// Counts a fetch of some client's `jwks_uri`.
    pub fn jwks_fetched(&self, outcome: &'static str) {
        let labels = [("outcome", outcome)];
        self.0.jwks_fetches.get_or_create(&labels).inc();
    }

    /// Counts an attempt to take on a new TLS certificate.
    pub fn certificate_reloaded(&self, succeeded: bool) {
        count_attempt(&self.0.certificate_reloads, succeeded);
    }

    /// Everything as text. Reads `/proc`, so that it may take a moment.
    pub fn text(&self, reading: &Reading) -> String {
        let inner = &*self.0;
        for keys in &reading.keys {
            let of_use = ("use", keys.key_use);
            for (state, count) in &keys.states {
                let gauge = inner.keys.get_or_create(&[of_use, ("state", state)]);
                gauge.set(whole(*count));
            }
            let spans = [
                (&inner.key_age, keys.age),
                (&inner.key_next_transition, keys.next_transition),
            ];
            for (family, span) in spans {
                let span = span.map_or(f64::NAN, |span| span.as_secs_f64());
                family.get_or_create(&[of_use]).set(span);
            }
        }
        for (queue, waiting) in &reading.queues {
            set(&inner.queue_depth, "queue", queue, *waiting);
        }
        inner
            .revocation_entries
            .set(whole(reading.revocation_entries));
        inner.sync_lag.set(reading.sync_lag.as_secs_f64());
        inner.database_up.set(i64::from(reading.database_up));
        let offset = Duration::from_millis(reading.clock_offset_ms.unsigned_abs()).as_secs_f64();
        inner
            .clock_offset
            .set(offset.copysign(if reading.clock_offset_ms < 0 {
                -1.0
            } else {
                1.0
            }));
        inner
            .process_resident_memory
            .set(resident_memory().unwrap_or(f64::NAN));
        inner.process_open_fds.set(open_fds().unwrap_or(f64::NAN));
        let mut text = String::new();
        // Fails only where writing fails, and writing to a string does not.
        let _ = text::encode(&mut text, &inner.registry);
        text
    }
}

impl Inner {
    fn unregistered() -> Self {
        Self {
            registry: Registry::default(),
            token_requests: Family::default(),
            refusals: Family::default(),
            http_requests: Family::default(),
            http_request_duration: Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS)),
            connections: Family::default(),
            throttled_requests: Family::default(),
            signing_duration: Histogram::new(SIGNING_BUCKETS),
            refresh_batch: Histogram::new(BATCH_BUCKETS),
            refresh_verdicts: Family::default(),
            families_ended: Family::default(),
            password_hash_duration: Histogram::new(PASSWORD_HASH_BUCKETS),
            presented_passwords: Family::default(),
            logout_notices: Family::default(),
            logout_notices_waiting: Gauge::default(),
            keys: Family::default(),
            key_age: Family::default(),
            key_next_transition: Family::default(),
            sync_lag: Seconds::default(),
            database_up: Gauge::default(),
            clock_offset: Seconds::default(),
            change_position: Gauge::default(),
            epoch_changes: Counter::default(),
            queue_depth: Family::default(),
            revocation_entries: Gauge::default(),
            store_failures: Family::default(),
            sweeps: Family::default(),
            swept_rows: Family::default(),
            jwks_fetches: Family::default(),
            certificate_reloads: Family::default(),
            process_resident_memory: Seconds::default(),
            process_open_fds: Seconds::default(),
        }
    }

    fn register_requests(&self, registry: &mut Registry) {
        registry.register(
            "token_requests",
            "Requests to the token endpoint by grant and outcome: issued, or why not",
            self.token_requests.clone(),
        );
        registry.register(
            "refusals",
            "Refused requests by route and reason",
            self.refusals.clone(),
        );
        registry.register(
            "http_requests",
            "Answered requests by route, method and status",
            self.http_requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request's head to its answer's",
            Unit::Seconds,
            self.http_request_duration.clone(),
        );
        registry.register(
            "connections",
            "Open connections by listener",
            self.connections.clone(),
        );
        registry.register(
            "throttled_requests",
            "Requests and connections turned away by a limit",
            self.throttled_requests.clone(),
        );
        registry.register_with_unit(
            "signing_duration",
            "Time that one signature takes",
            Unit::Seconds,
            self.signing_duration.clone(),
        );
        registry.register_with_unit(
            "password_hash_duration",
            "Time that one hash of a password takes",
            Unit::Seconds,
            self.password_hash_duration.clone(),
        );
        registry.register(
            "logout_notices",
            "Attempts to tell clients that users were signed out, by outcome",
            self.logout_notices.clone(),
        );
        registry.register(
            "logout_notices_waiting",
            "Notices to clients that users were signed out, not told yet",
            self.logout_notices_waiting.clone(),
        );
        registry.register(
            "presented_passwords",
            "Passwords presented to sign in by outcome",
            self.presented_passwords.clone(),
        );
        registry.register(
            "refresh_batch",
            "Refresh tokens judged in one transaction",
            self.refresh_batch.clone(),
        );
        registry.register(
            "refresh_verdicts",
            "Presented refresh tokens by what became of them",
            self.refresh_verdicts.clone(),
        );
        registry.register(
            "families_ended",
            "Sessions that were ended one by one, by reason",
            self.families_ended.clone(),
        );
        registry.register(
            "jwks_fetches",
            "Fetches of the key sets of clients by outcome",
            self.jwks_fetches.clone(),
        );
        registry.register(
            "certificate_reloads",
            "Attempts to take on a new TLS certificate by outcome",
            self.certificate_reloads.clone(),
        );
        registry.register(
            "queue_depth",
            "Requests that wait, by what they wait for",
            self.queue_depth.clone(),
        );
    }

    fn register_state(&self, registry: &mut Registry) {
        registry.register("keys", "Keys by use and state", self.keys.clone());
        let of_keys = [
            (
                "key_age",
                "For how long the active key has signed, by use; not a number without one",
                &self.key_age,
            ),
            (
                "key_next_transition",
                "In what time the next key takes over, by use; not a number without one",
                &self.key_next_transition,
            ),
        ];
        for (name, help, family) in of_keys {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        let seconds = [
            (
                "sync_lag",
                "How long ago the database was read to the end",
                &self.sync_lag,
            ),
            (
                "clock_offset",
                "What is added to this machine's clock to follow the database's",
                &self.clock_offset,
            ),
        ];
        for (name, help, gauge) in seconds {
            registry.register_with_unit(name, help, Unit::Seconds, gauge.clone());
        }
        registry.register(
            "database_up",
            "Whether the last attempt to read the database succeeded",
            self.database_up.clone(),
        );
        registry.register(
            "change_position",
            "The number of the last change that this node has followed",
            self.change_position.clone(),
        );
        registry.register(
            "epoch_changes",
            "How often the database was found in another epoch: restored, or with commits lost",
            self.epoch_changes.clone(),
        );
        registry.register(
            "revocation_entries",
            "Revocations in force, as this node knows them",
            self.revocation_entries.clone(),
        );
        registry.register(
            "store_failures",
            "Operations on the database that failed, by operation and kind",
            self.store_failures.clone(),
        );
        registry.register(
            "sweeps",
            "Attempts to delete all that is over by outcome",
            self.sweeps.clone(),
        );
        registry.register(
            "swept_rows",
            "Rows deleted because their time had passed, by table",
            self.swept_rows.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Memory of this process that is in use",
            Unit::Bytes,
            self.process_resident_memory.clone(),
        );
        registry.register(
            "process_open_fds",
            "Files and connections that this process holds open",
            self.process_open_fds.clone(),
        );
    }
}

fn set(family: &Family<Labels<1>, Gauge>, name: &'static str, value: &'static str, count: usize) {
    family.get_or_create(&[(name, value)]).set(whole(count));
}

fn count_attempt(family: &Family<Labels<1>, Counter>, succeeded: bool) {
    let outcome = if succeeded { "succeeded" } else { "failed" };
    family.get_or_create(&[("outcome", outcome)]).inc();
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// In bytes; none where there is no `/proc`.
fn resident_memory() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(f64::from(kibibytes) * 1024.0)
}

/// Without the one that counting takes; none where there is no `/proc`.
fn open_fds() -> Option<f64> {
    let open = fs::read_dir("/proc/self/fd")
        .ok()?
        .count()
        .saturating_sub(1);
    u32::try_from(open).ok().map(f64::from)
}
