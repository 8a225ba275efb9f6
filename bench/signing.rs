//! What one signed access token costs, beside the bare signature in it.
//!
//! `cargo bench -p countersign-bench --bench signing` prints both and their ratio, and fails when the ratio is over its
//! limit. The ratio is measured in interleaved rounds, so that a noisy machine disturbs both alike.

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
    hint::black_box,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use countersign::{
    clock::{AgreedClock, Clock as _, SystemClock, Timestamp},
    domain::{
        client::{AuthMethod, Client, GrantType, IdTokenAlg},
        family::RefreshPolicy,
        id::ClientId,
        key::{KeySchedule, KeyTimes, KeyUse},
        resource::ResourceUri,
        scope::Scope,
    },
    entropy::Entropy,
    keys::{
        mac::MacRing,
        master::MasterKeySource,
        ring::{KeyRing, Rs256Ring},
        sealing,
    },
    metrics::Metrics,
    oauth::access_token::{AccessGrant, Minter},
    registry::{Registry, Snapshots},
};
use criterion::Criterion;

/// One token may cost at most this many bare signatures.
const LIMIT: f64 = 1.1;

const ROUNDS: usize = 41;
const TOKENS_PER_ROUND: u32 = 500;

struct Bench {
    minter: Minter,
    client: Client,
    resources: Vec<ResourceUri>,
    signing_input: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let entropy = Entropy::new();
        let clock = SystemClock::new();
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
        let schedule = KeySchedule {
            key_use: KeyUse::Signing,
            revision: 1,
            primary_master: Some(master),
            keys: vec![sealing::generate(&masters, master, times, &entropy).unwrap()],
        };
        let ring = KeyRing::open(&schedule, Rs256Ring::none(), &masters, &entropy, now).unwrap();
        let none = KeySchedule {
            key_use: KeyUse::RefreshMac,
            keys: Vec::new(),
            ..schedule
        };
        let mac_ring = MacRing::open(&none, &masters, now).unwrap();
        let minter = Minter {
            issuer: "https://issuer.example".to_owned(),
            default_ttl_seconds: 600,
            offline_limit: Duration::from_hours(24),
            snapshots: Arc::new(Snapshots::new(
                Registry::default(),
                ring,
                mac_ring,
                Duration::ZERO,
            )),
            clock: AgreedClock::new(Arc::new(clock)),
            entropy,
            metrics: Metrics::new(now, Duration::from_hours(24), Duration::from_hours(24)),
        };
        let client = client(now);
        let resources = client.resources.clone();
        let mut bench = Self {
            minter,
            client,
            resources,
            signing_input: Vec::new(),
        };
        // The bare signature is made over exactly as many bytes as a token's.
        let token = bench.token();
        bench.signing_input = token.rsplit_once('.').unwrap().0.as_bytes().to_vec();
        bench
    }

    fn token(&self) -> String {
        let grant = AccessGrant {
            client: &self.client,
            subject: self.client.client_id.as_str(),
            resources: &self.resources,
            scope: &self.client.scope,
            sign_in: None,
        };
        self.minter.mint(&grant).unwrap().token
    }

    fn signature(&self) -> [u8; 64] {
        let ring = self.minter.snapshots.ring();
        let key = ring.active(self.minter.clock.now()).unwrap();
        key.signer.sign(&self.signing_input).unwrap()
    }
}

fn client(now: Timestamp) -> Client {
    let resource = ResourceUri::parse("https://api.example.com").unwrap();
    Client {
        client_id: ClientId::parse("orders-service").unwrap(),
        client_name: "Orders".to_owned(),
        auth_method: AuthMethod::ClientSecretBasic,
        grant_types: vec![GrantType::ClientCredentials],
        scope: Scope::parse("orders:read orders:write").unwrap(),
        resources: vec![resource.clone()],
        default_resource: Some(resource),
        allowed_origins: Vec::new(),
        jwks: None,
        jwks_uri: None,
        tokens_not_before: None,
        access_token_ttl_seconds: None,
        redirect_uris: Vec::new(),
        post_logout_redirect_uris: Vec::new(),
        backchannel_logout_uri: None,
        backchannel_logout_session_required: false,
        id_token_alg: IdTokenAlg::Es256,
        require_pkce: true,
        second_factor_required: false,
        first_party: false,
        session_tokens: false,
        forward_auth: false,
        refresh_policy: RefreshPolicy::Standard,
        refresh_sharing_acknowledged: false,
        session_epoch: 0,
        disabled: false,
        demo: false,
        secrets: Vec::new(),
        revision: 1,
        created_at: now,
        updated_at: now,
    }
}

fn round<T>(work: impl Fn() -> T) -> f64 {
    let begun = Instant::now();
    for _ in 0..TOKENS_PER_ROUND {
        black_box(work());
    }
    begun.elapsed().as_secs_f64()
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> ExitCode {
    let bench = Bench::new();
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("bare ES256 signature", |b| b.iter(|| bench.signature()));
    criterion.bench_function("signed access token", |b| b.iter(|| bench.token()));
    criterion.final_summary();

    let ratios = (0..ROUNDS).map(|_| round(|| bench.token()) / round(|| bench.signature()));
    let ratio = median(ratios.collect());
    let verdict = if ratio <= LIMIT { "within" } else { "OVER" };
    println!("one token costs {ratio:.3} bare signatures, {verdict} the limit of {LIMIT:.2}");
    if ratio <= LIMIT {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
