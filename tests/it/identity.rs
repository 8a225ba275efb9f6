//! Signing in with a password: nobody learns who exists, and nobody locks somebody else out.

use std::{
    net::IpAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use countersign::{
    clock::{AgreedClock, ManualClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        id::{ClientId, UserId},
        profile::Profile,
        user::{PasswordHash, User, Username},
    },
    entropy::Entropy,
    identity::{
        password::{Password, Passwords, Settings},
        session::{Authentication, SessionError, Sessions},
        sign_in::{Limits, Place, Refused, SignIn},
    },
    metrics::{Metrics, Reading},
    store::Store,
    throttle::AddressPrefix,
};
use serde_json::Map;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinSet,
};
use uuid::Uuid;

use crate::support::{
    database::{Database, Engine},
    openmetrics::Exposition,
};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// The password of every user here.
const PASSWORD: &str = "zwölf Boxkämpfer jagen Eva";

/// A service that signs in, with as many failures a minute as the default settings allow.
struct Hall {
    database: Database,
    store: Arc<dyn Store>,
    clock: ManualClock,
    metrics: Metrics,
    passwords: Passwords,
    sign_in: SignIn,
    /// Hashed once: that takes long.
    hash: PasswordHash,
}

impl Hall {
    async fn open() -> Self {
        Self::with(2, 10, 100).await
    }

    async fn with(workers: usize, failures: u32, failures_of_address: u32) -> Self {
        Self::on(Handle::current(), workers, failures, failures_of_address).await
    }

    async fn on(runtime: Handle, workers: usize, failures: u32, failures_of_address: u32) -> Self {
        let database = Database::create(Engine::Sqlite).await;
        let store = database.open().await;
        let clock = ManualClock::new(NOW);
        let agreed = AgreedClock::new(Arc::new(clock.clone()));
        let span = Duration::from_secs(1);
        let metrics = Metrics::new(NOW, span, span);
        let settings = Settings {
            minimum_length: 15,
            concurrent_hashes: workers,
        };
        let passwords = Passwords::new(
            settings,
            "https://issuer.example".to_owned(),
            runtime,
            agreed.clone(),
            Entropy::new(),
            metrics.clone(),
        );
        let limits = Limits::per_minute(failures, failures_of_address);
        let sign_in = SignIn::new(
            Arc::clone(&store),
            agreed,
            passwords.clone(),
            limits,
            metrics.clone(),
        );
        let sign_in = sign_in.await.unwrap();
        let password = Password::read(PASSWORD).unwrap();
        let hash = passwords.hash(password, name("somebody")).await.unwrap();
        Self {
            database,
            store,
            clock,
            metrics,
            passwords,
            sign_in,
            hash,
        }
    }

    /// Creates a user of this number with the password, and perhaps something else.
    async fn user(&self, number: u128, username: &str, change: impl FnOnce(&mut User)) -> User {
        let mut user = User {
            id: UserId::from_uuid(Uuid::from_u128(number)),
            username: name(username),
            password_hash: Some(self.hash.clone()),
            roles: Vec::new(),
            claims: Map::new(),
            profile: Profile::default(),
            disabled: false,
            second_factor_required: false,
            demo: false,
            session_epoch: 0,
            tokens_not_before: None,
            revision: 0,
            created_at: NOW,
            updated_at: NOW,
            password_changed_at: Some(NOW),
        };
        change(&mut user);
        let change = Change::PutUser {
            user: Box::new(user.clone()),
            expected: None,
            event: EventType::UserCreated,
            ends_sessions: false,
            tokens_die_at: NOW,
        };
        self.store
            .apply(&change, &Cause::system(), NOW)
            .await
            .unwrap();
        self.store.user(user.id).await.unwrap().unwrap()
    }

    async fn present(&self, username: &str, password: &str, place: &Place) -> Outcome {
        self.present_at(username, password, Some(place)).await
    }

    async fn present_at(&self, username: &str, password: &str, place: Option<&Place>) -> Outcome {
        match self.sign_in.verify(username, password, place).await {
            Ok(user) => Outcome::Is(user.id.uuid().as_u128()),
            Err(Refused::Credentials) => Outcome::Wrong,
            Err(Refused::TooOften(wait)) => Outcome::TooOften(wait.seconds()),
            Err(Refused::Busy(_)) => Outcome::Busy,
            Err(Refused::Store(_)) => Outcome::Failed,
        }
    }

    fn exposition(&self) -> Exposition {
        Exposition::parse(&self.metrics.text(&Reading {
            keys: Vec::new(),
            sync_lag: Duration::ZERO,
            database_up: true,
            clock_offset_ms: 0,
            revocation_entries: 0,
            queues: Vec::new(),
        }))
    }

    /// How many hashes were made so far.
    fn hashes(&self) -> usize {
        let series = &self.exposition().series;
        whole(series["countersign_password_hash_duration_seconds_count"])
    }
}

/// A runtime with one thread for blocking work, which can be held up.
struct Bench(Option<Runtime>);

impl Bench {
    fn new() -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .build();
        Self(Some(runtime.unwrap()))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().unwrap().handle().clone()
    }

    /// Holds up all work until what is returned is dropped.
    fn hold(&self) -> mpsc::Sender<()> {
        let (held, release) = mpsc::channel();
        self.handle().spawn_blocking(move || release.recv());
        held
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // It must not be waited for where others are waited for without blocking.
        self.0.take().unwrap().shutdown_background();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Is(u128),
    Wrong,
    TooOften(u64),
    Busy,
    Failed,
}
use Outcome::{Busy, Failed, Is, TooOften, Wrong};

/// What was counted.
fn whole(value: f64) -> usize {
    value.to_string().parse().unwrap()
}

fn name(text: &str) -> Username {
    Username::parse(text).unwrap()
}

fn address(text: &str) -> Place {
    Place {
        network: AddressPrefix::from(text.parse::<IpAddr>().unwrap()),
        told_by: None,
    }
}

/// A place that this client tells.
fn told(id: &str, text: &str) -> Place {
    Place {
        told_by: Some(ClientId::parse(id).unwrap()),
        ..address(text)
    }
}

#[tokio::test]
async fn a_user_signs_in_whatever_form_name_and_password_are_written_in() {
    let hall = Hall::open().await;
    let place = address("192.0.2.1");
    let user = hall.user(1, "Ada@example.com", |_| {}).await;
    let signed_in = hall
        .sign_in
        .verify("ada@EXAMPLE.com", PASSWORD, Some(&place));
    assert_eq!(signed_in.await.unwrap(), user);
    let decomposed = PASSWORD.replace('ö', "o\u{308}").replace('ä', "a\u{308}");
    assert_eq!(
        hall.present("ada@example.com", &decomposed, &place).await,
        Is(1)
    );
    for wrong in [
        PASSWORD.to_uppercase(),
        format!("{PASSWORD} "),
        PASSWORD[..PASSWORD.len() - 1].to_owned(),
        PASSWORD.replace(' ', "\u{a0}"),
    ] {
        assert_eq!(hall.present("ada@example.com", &wrong, &place).await, Wrong);
    }
}

#[tokio::test]
async fn whatever_is_wrong_gets_the_same_answer_for_the_same_work() {
    let hall = Hall::with(2, 0, 0).await;
    hall.user(1, "ada", |_| {}).await;
    hall.user(2, "disabled", |user| user.disabled = true).await;
    hall.user(3, "without", |user| user.password_hash = None)
        .await;
    let place = address("192.0.2.1");
    for (username, password) in [
        ("ada", "not the password of Ada"),
        ("ada", ""),
        ("ada", "\0"),
        ("nobody", PASSWORD),
        ("disabled", PASSWORD),
        ("disabled", "not the password"),
        ("without", PASSWORD),
        ("without", ""),
        // What can be nobody's name.
        ("", PASSWORD),
        (" ada", PASSWORD),
        ("a\0b", PASSWORD),
        (&"x".repeat(60_000), PASSWORD),
    ] {
        let before = hall.hashes();
        let refused = hall.sign_in.verify(username, password, Some(&place)).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Refused::Credentials));
        let said = format!("{refused} {refused:?}");
        assert_eq!(said, "the user name or the password is wrong Credentials");
        assert_eq!(hall.hashes() - before, 1, "{username:.20} {password}");
    }
    // Longer than any password: no work, but for nobody.
    let before = hall.hashes();
    for username in ["ada", "nobody"] {
        assert_eq!(
            hall.present(username, &"x".repeat(1025), &place).await,
            Wrong
        );
    }
    assert_eq!(hall.hashes(), before);
    assert_eq!(hall.present("ada", PASSWORD, &place).await, Is(1));
}

#[tokio::test]
async fn too_many_failures_are_held_against_name_and_place_and_nobody_else() {
    let hall = Hall::open().await;
    hall.user(1, "ada", |_| {}).await;
    hall.user(2, "bob", |_| {}).await;
    let (stranger, home) = (address("192.0.2.1"), address("192.0.2.2"));
    let as_told = told("app", "192.0.2.1");
    // As often for a name that nobody has: the limit tells nothing either.
    for victim in ["ada", "nobody"] {
        for spelling in [victim.to_owned(), victim.to_uppercase()]
            .iter()
            .cycle()
            .take(10)
        {
            assert_eq!(hall.present(spelling, "wrong", &stranger).await, Wrong);
        }
        let hashes = hall.hashes();
        assert_eq!(hall.present(victim, PASSWORD, &stranger).await, TooOften(6));
        assert_eq!(hall.hashes(), hashes, "nothing is looked at");
    }
    for _ in 0..11 {
        assert_eq!(hall.present("ada", PASSWORD, &home).await, Is(1));
        assert_eq!(hall.present("ada", PASSWORD, &as_told).await, Is(1));
        assert_eq!(hall.present_at("ada", PASSWORD, None).await, Is(1));
        assert_eq!(hall.present("bob", PASSWORD, &stranger).await, Is(2));
    }
    // It passes.
    hall.clock.advance(Duration::from_secs(6));
    assert_eq!(hall.present("ada", PASSWORD, &stranger).await, Is(1));
    assert_eq!(hall.present("ada", "wrong", &stranger).await, Wrong);
    assert_eq!(hall.present("ada", PASSWORD, &stranger).await, TooOften(6));
}

/// A back end knows where its user is; what it says counts there and nowhere else.
#[tokio::test]
async fn a_stranger_at_the_form_of_a_back_end_locks_nobody_out_there() {
    let hall = Hall::open().await;
    hall.user(1, "ada", |_| {}).await;
    let stranger = told("app", "192.0.2.1");
    for _ in 0..10 {
        assert_eq!(hall.present("ada", "wrong", &stranger).await, Wrong);
    }
    assert_eq!(hall.present("ada", PASSWORD, &stranger).await, TooOften(6));
    for elsewhere in [
        told("app", "192.0.2.2"),
        told("other", "192.0.2.1"),
        address("192.0.2.1"),
    ] {
        assert_eq!(hall.present("ada", PASSWORD, &elsewhere).await, Is(1));
    }
    // Of one that tells nothing nobody knows who guesses.
    for _ in 0..20 {
        assert_eq!(hall.present_at("ada", "wrong", None).await, Wrong);
    }
    assert_eq!(hall.present_at("ada", PASSWORD, None).await, Is(1));
}

#[tokio::test]
async fn a_place_that_tries_many_names_is_stopped() {
    let hall = Hall::with(2, 10, 10).await;
    hall.user(1, "ada", |_| {}).await;
    let stranger = address("2001:db8::1");
    for number in 0..10 {
        // Another address of the same network.
        let place = address(&format!("2001:db8::{number:x}"));
        assert_eq!(
            hall.present(&format!("n{number}"), "wrong", &place).await,
            Wrong
        );
    }
    assert_eq!(hall.present("ada", PASSWORD, &stranger).await, TooOften(6));
    // It was not counted against the name: what counts is what is looked at.
    hall.clock.advance(Duration::from_secs(6));
    assert_eq!(hall.present("ada", PASSWORD, &stranger).await, Is(1));
    assert_eq!(
        hall.present("ada", PASSWORD, &address("2001:db8:0:1::1"))
            .await,
        Is(1)
    );
    // A client that tells it is held to what it tells.
    let network = told("app", "192.0.2.1");
    for number in 0..10 {
        let username = format!("n{number}");
        assert_eq!(hall.present(&username, "wrong", &network).await, Wrong);
    }
    assert_eq!(hall.present("ada", PASSWORD, &network).await, TooOften(6));
    let other = told("app", "192.0.2.2");
    assert_eq!(hall.present("ada", PASSWORD, &other).await, Is(1));
}

/// Whoever has an IPv6 site has 65536 networks.
#[tokio::test]
async fn a_site_that_tries_from_all_its_networks_is_stopped() {
    let hall = Hall::with(2, 10, 3).await;
    hall.user(1, "ada", |_| {}).await;
    let network = |number| address(&format!("2001:db8:7:{number:x}::1"));
    for number in 0..12 {
        assert_eq!(hall.present("ada", "wrong", &network(number)).await, Wrong);
    }
    assert_eq!(
        hall.present("ada", PASSWORD, &network(99)).await,
        TooOften(5)
    );
    let elsewhere = address("2001:db8:8::1");
    assert_eq!(hall.present("ada", PASSWORD, &elsewhere).await, Is(1));
    // What was not looked at is counted nowhere.
    hall.clock.advance(Duration::from_secs(5));
    for _ in 0..5 {
        assert_eq!(hall.present("ada", PASSWORD, &network(99)).await, Is(1));
    }
}

#[tokio::test]
async fn asking_all_at_once_gives_no_more_tries() {
    let hall = Arc::new(Hall::open().await);
    hall.user(1, "ada", |_| {}).await;
    let before = hall.hashes();
    let mut tries = JoinSet::new();
    for number in 0..40 {
        let hall = Arc::clone(&hall);
        tries.spawn(async move {
            let password = format!("guess number {number}");
            hall.present("ada", &password, &address("192.0.2.1")).await
        });
    }
    let outcomes = tries.join_all().await;
    let wrong = outcomes.iter().filter(|outcome| **outcome == Wrong);
    assert_eq!(wrong.count(), 10, "{outcomes:?}");
    assert_eq!(hall.hashes() - before, 10);
}

#[tokio::test]
async fn our_own_failures_are_nobodys() {
    let hall = Hall::with(2, 3, 3).await;
    hall.user(1, "ada", |_| {}).await;
    let place = address("192.0.2.1");
    hall.database
        .execute("alter table end_user rename to elsewhere")
        .await;
    for _ in 0..9 {
        assert_eq!(hall.present("ada", PASSWORD, &place).await, Failed);
    }
    hall.database
        .execute("alter table elsewhere rename to end_user")
        .await;
    for _ in 0..9 {
        assert_eq!(hall.present("ada", PASSWORD, &place).await, Is(1));
    }
    let series = hall.exposition().series;
    let counted = |outcome: &str| {
        whole(series[&format!("countersign_presented_passwords_total{{outcome=\"{outcome}\"}}")])
    };
    assert_eq!((counted("unavailable"), counted("right")), (9, 9));
}

/// One worker has a line of 32; whoever does not fit in is told so, and costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_line_for_a_hash_is_bounded() {
    let bench = Bench::new();
    let hall = Arc::new(Hall::on(bench.handle(), 1, 10, 0).await);
    hall.user(1, "ada", |_| {}).await;
    let before = hall.hashes();
    let held = bench.hold();
    let mut callers = JoinSet::new();
    for number in 0..80 {
        let hall = Arc::clone(&hall);
        callers.spawn(async move {
            let place = address(&format!("192.0.2.{number}"));
            hall.present("ada", PASSWORD, &place).await
        });
    }
    for _ in 33..80 {
        assert_eq!(callers.join_next().await.unwrap().unwrap(), Busy);
    }
    assert_eq!(hall.passwords.waiting(), 32);
    drop(held);
    assert_eq!(callers.join_all().await, [Is(1); 33]);
    assert_eq!(hall.hashes() - before, 33);
    assert_eq!(hall.passwords.waiting(), 0);
}

#[tokio::test]
async fn whoever_leaves_the_line_makes_room() {
    let bench = Bench::new();
    let hall = Hall::on(bench.handle(), 1, 0, 0).await;
    hall.user(1, "ada", |_| {}).await;
    let place = address("192.0.2.1");
    let held = bench.hold();
    let line = || {
        let caller = |_| Box::pin(hall.present("ada", PASSWORD, &place));
        (0..32).map(caller).collect::<Vec<_>>()
    };
    let at_work = Box::pin(hall.present("ada", PASSWORD, &place));
    let mut callers = line();
    callers.push(at_work);
    for _ in 0..3 {
        while hall.passwords.waiting() < 32 {
            for caller in &mut callers {
                assert!(futures_util::poll!(caller).is_pending());
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(hall.present("ada", PASSWORD, &place).await, Busy);
        // All leave. What is at work stays there, whoever waits for it.
        drop(callers);
        assert_eq!(hall.passwords.waiting(), 0);
        callers = line();
    }
    drop(callers);
    drop(held);
    assert_eq!(hall.present("ada", PASSWORD, &place).await, Is(1));
}

#[tokio::test]
async fn a_hash_is_of_the_recommended_strength_and_salted() {
    let hall = Hall::open().await;
    let password = || Password::read(PASSWORD).unwrap();
    let other = hall.passwords.hash(password(), name("ada")).await.unwrap();
    assert_ne!(other, hall.hash);
    for hash in [&other, &hall.hash] {
        let phc = hash.phc();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        let is_it = hall.passwords.verify(password(), hash.clone()).await;
        assert_eq!(is_it, Ok(true));
    }
    // Made by another program with other parameters (the reference implementation).
    let foreign =
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    let foreign = PasswordHash::from_phc(foreign.to_owned());
    let of_foreign = Password::read("password").unwrap();
    let verified = hall.passwords.verify(of_foreign, foreign).await;
    assert_eq!(verified, Ok(true));
    // A row that somebody has damaged is nobody's password.
    let damaged = PasswordHash::from_phc("$argon2id$".to_owned());
    assert!(hall.passwords.verify(password(), damaged).await.is_err());
}

/// Whoever ends a session ends it also for a step that is under way in it.
#[tokio::test]
async fn what_is_added_to_a_session_that_was_ended_brings_it_not_back() {
    let hall = Hall::open().await;
    let ada = hall.user(1, "ada", |_| {}).await;
    let sessions = Sessions {
        store: Arc::clone(&hall.store),
        clock: AgreedClock::new(Arc::new(hall.clock.clone())),
        entropy: Entropy::new(),
        idle: Duration::from_hours(1),
        lifetime: Duration::from_hours(24),
        token_retention: Duration::from_hours(1),
    };
    let cause = Cause::system();
    let by_password = || sessions.authenticated(vec!["pwd".to_owned()]);
    let opened = sessions.open(&ada, by_password(), &cause, None).await;
    let (present, _) = opened.unwrap();
    sessions.end(present.session.id, &cause).await.unwrap();
    let more = Authentication::continued(&present.session, vec!["otp".to_owned()]);
    let refused = sessions.open(&ada, more, &cause, Some(&present)).await;
    assert!(matches!(refused, Err(SessionError::Ended)), "{refused:?}");
    let living = hall.store.sessions(
        ada.id,
        present.session.seen_at.minus(Duration::from_secs(1)),
        NOW,
        9,
    );
    assert_eq!(living.await.unwrap(), []);
    // Who authenticates from the beginning has another one.
    let again = sessions
        .open(&ada, by_password(), &cause, Some(&present))
        .await;
    let (again, _) = again.unwrap();
    assert_ne!(again.session.id, present.session.id);
}
