//! Clocks that are set while sessions live: the database's, which every node follows, or the one that
//! a node is given. Between two steps time is real.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock, SystemClock, Timestamp},
    domain::{
        change::{Change, EventType},
        family::Family,
        id::UserId,
    },
};
use reqwest::Method;

use super::{Refusal, refused};
use crate::support::{
    database::{Database, Engine},
    openmetrics,
    server::{Registered, Setup, TestServer, answer},
    sign_in::{SignedIn, by, claims, public, redeem, refresh},
    soon,
};

const REUSE: Refusal = (400, "invalid_grant", "reuse");
const REVOKED: Refusal = (400, "invalid_grant", "revoked");
const SESSIONS_ENDED: Refusal = (400, "invalid_grant", "user_sessions_ended");
const EXPIRED: Refusal = (400, "invalid_grant", "expired");
const NOT_YET: Refusal = (503, "temporarily_unavailable", "not_yet");

const HOUR: i64 = 3600;

/// This machine's clock, set forth or back.
#[derive(Debug)]
struct Set {
    clock: SystemClock,
    by_ms: Arc<AtomicI64>,
}

#[async_trait]
impl Clock for Set {
    fn now(&self) -> Timestamp {
        let by = self.by_ms.load(Ordering::SeqCst);
        Timestamp::from_millis(self.clock.now().millis() + by)
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    async fn sleep(&self, span: Duration) {
        self.clock.sleep(span).await;
    }

    fn follows_database(&self) -> bool {
        false
    }
}

/// Lets a database tell another time to all who connect from now on.
const CLOCK: &str = "create schema clock; \
     create table clock.step (seconds bigint not null); \
     insert into clock.step values (0); \
     create function clock.clock_timestamp() returns timestamptz language sql volatile as \
     'select pg_catalog.clock_timestamp() + seconds * interval ''1 second'' from clock.step'; \
     do $$ begin execute format('alter database %I set search_path = public, clock, pg_catalog', \
     current_database()); end $$";

/// The sessions that the clock is set beside.
struct Site {
    server: TestServer,
    /// How far the server's own clock is off; it goes by the database's where that can be set.
    by_ms: Arc<AtomicI64>,
    database: Database,
}

impl Site {
    async fn on(engine: Engine) -> Self {
        let strict = ClientMetadata {
            refresh_policy: Some("strict".to_owned()),
            ..public()
        };
        let database = Database::create(engine).await;
        let by_ms = Arc::<AtomicI64>::default();
        let setup = Setup::new()
            .at(database.url())
            .client("spa", public())
            .client("strict", strict);
        let setup = match engine {
            Engine::Sqlite => setup.clock(Set {
                clock: SystemClock::new(),
                by_ms: Arc::clone(&by_ms),
            }),
            Engine::Postgres => {
                database.execute(CLOCK).await;
                setup
            }
        };
        Self {
            server: setup.start().await,
            by_ms,
            database,
        }
    }

    /// Sets the clock so many seconds off the true time, and waits until the server goes by it.
    async fn set(&self, seconds: i64) {
        if self.database.engine() == Engine::Sqlite {
            self.by_ms.store(seconds * 1000, Ordering::SeqCst);
            return;
        }
        let sql = format!("update clock.step set seconds = {seconds}");
        self.database.execute(&sql).await;
        let expected: f64 = format!("{seconds}").parse().unwrap();
        let follows = async || {
            let (_, metrics) = openmetrics::scrape(self.server.admin).await;
            (metrics.value("countersign_clock_offset_seconds") - expected).abs() < 1.0
        };
        soon(async { while !follows().await {} }).await;
    }

    async fn refused(&self, client: &Registered, form: &[(&str, &str)], why: Refusal) {
        for _ in 0..2 {
            refused(self.server.by(client, form), why).await;
        }
    }

    async fn row(&self, signed_in: &SignedIn) -> Family {
        self.server.family(signed_in.family).await
    }

    async fn is_active(&self, token: &str) -> bool {
        let request = self.server.request(Method::POST, "/oauth2/introspect");
        let request = by(request, &self.server.app, &[("token", token)]);
        answer(request).await.json()["active"] == true
    }

    /// What was ended is over, whatever the clock shows.
    async fn stay_ended(&self, ended: &[(SignedIn, Refusal)]) {
        for (signed_in, why) in ended {
            let token = refresh(&signed_in.refresh_token);
            self.refused(&self.server.app, &token, *why).await;
            assert!(!self.is_active(&signed_in.access_token).await);
        }
    }

    /// Sessions that were ended: by their client, by the end of all of a user's, and with another
    /// password.
    async fn ended(&self, eve: UserId) -> Vec<(SignedIn, Refusal)> {
        let (server, app) = (&self.server, &self.server.app);
        let bob = server.user("bob").await;
        let revoked = server.sign_in(app, bob).await;
        let all = server.sign_in(app, eve).await;
        let dan = server.user("dan").await;
        let password = server.sign_in(app, dan).await;
        let revoke = server.request(Method::POST, "/oauth2/revoke");
        let revoke = by(revoke, app, &[("token", &revoked.refresh_token)]);
        assert_eq!(answer(revoke).await.status, 200);
        let tokens_die_at = server.clients.clock.now().plus(Duration::from_hours(2));
        let end = Change::EndUserSessions {
            id: eve,
            tokens_die_at,
        };
        server.apply(end).await;
        let user = server.store().user(dan).await.unwrap().unwrap();
        let change = Change::PutUser {
            expected: Some(user.revision),
            user: Box::new(user),
            event: EventType::UserPasswordChanged,
            ends_sessions: true,
            tokens_die_at,
        };
        server.apply(change).await;
        vec![
            (revoked, REVOKED),
            (all, SESSIONS_ENDED),
            (password, SESSIONS_ENDED),
        ]
    }
}

async fn a_clock_that_is_set_revives_nothing_and_keeps_no_window_open(engine: Engine) {
    let site = Site::on(engine).await;
    let server = &site.server;
    let (spa, strict) = (server.other("spa"), server.other("strict"));
    let (ada, eve) = (server.user("ada").await, server.user("eve").await);
    let living = server.sign_in(spa, ada).await;
    let first = living.refresh_token.as_str();
    let second = server.refresh(spa, first).await.refresh_token();
    let before = site.row(&living).await;
    let ended = site.ended(eve).await;
    site.stay_ended(&ended).await;
    // New tokens count a moment later.
    let anew = server.sign_in(strict, eve).await;
    let row = site.row(&anew).await;
    let code = server.code(strict, eve).await;

    site.set(-HOUR).await;
    site.stay_ended(&ended).await;
    // A rotation that lies ahead is as one of now, and the next one is of now.
    assert_eq!(server.refresh(spa, first).await.refresh_token(), second);
    let answered = server.refresh(spa, &second).await;
    let third = answered.refresh_token();
    let true_time = SystemClock::new().now().seconds();
    let issued_at = claims(&answered.access_token())["iat"].as_i64().unwrap();
    let off = issued_at - (true_time - HOUR);
    assert!((-30..=1).contains(&off), "{off} s ahead");
    let after = site.row(&living).await;
    assert!(after.rotated_at < before.rotated_at);
    assert!(after.idle_expires_at < before.idle_expires_at);
    assert_eq!(after.expires_at, before.expires_at);
    // Whatever is issued to her now is revoked, and nothing is dated ahead: nothing is spent for it.
    site.refused(strict, &refresh(&anew.refresh_token), NOT_YET)
        .await;
    site.refused(strict, &redeem(&code), NOT_YET).await;
    assert_eq!(site.row(&anew).await, row);

    site.set(0).await;
    site.stay_ended(&ended).await;
    // By this clock its successor was made an hour ago.
    refused(server.by(spa, &refresh(&second)), REUSE).await;
    site.refused(spa, &refresh(&third), REVOKED).await;
    let next = server.refresh(strict, &anew.refresh_token).await;
    server
        .refresh(strict, &next.refresh_token())
        .await
        .refresh_token();
    server.redeem(strict, &code).await.refresh_token();

    // Past its absolute end a session is over for as long as the clock says so, and not a moment
    // is added to it.
    let lasting = server.sign_in(spa, ada).await;
    let row = site.row(&lasting).await;
    site.set(31 * 24 * HOUR).await;
    for (signed_in, why) in &ended {
        let why = if *why == REVOKED { REVOKED } else { EXPIRED };
        site.refused(&server.app, &refresh(&signed_in.refresh_token), why)
            .await;
    }
    site.refused(spa, &refresh(&lasting.refresh_token), EXPIRED)
        .await;
    assert_eq!(site.row(&lasting).await, row);
    site.set(0).await;
    site.stay_ended(&ended).await;
    server
        .refresh(spa, &lasting.refresh_token)
        .await
        .refresh_token();
    assert_eq!(site.row(&lasting).await.expires_at, row.expires_at);
}

on_both_engines! {
    a_clock_that_is_set_revives_nothing_and_keeps_no_window_open,
}
