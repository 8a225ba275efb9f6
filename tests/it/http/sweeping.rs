//! What the service deletes by itself, from the end of a session to the end of its row.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock as _, ManualClock, Timestamp},
    domain::{family::FamilyQuery, id::FamilyId},
};
use reqwest::Method;

use crate::support::{
    client,
    database::{Database, Engine},
    openmetrics,
    server::{Node, Setup, TestServer, answer},
    sign_in::{SignedIn, by, code_for, public, put_code},
    soon,
};

on_both_engines! {
    what_is_over_is_deleted_in_its_time_and_what_lives_is_not,
    families_are_deleted_although_something_else_cannot_be,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// How long a family is kept after its end: its last access token, and thirty days.
const KEPT: Duration = Duration::from_hours(30 * 24 + 1);

/// How often to ask whether something is done before the time is moved on once more.
const PATIENCE: u32 = 500;

/// A server, and one more node where the engine has room for two: they delete side by side.
struct Site {
    server: TestServer,
    second: Option<Node>,
    clock: ManualClock,
    database: Database,
}

impl Site {
    async fn on(engine: Engine) -> Self {
        let database = Database::create(engine).await;
        let clock = ManualClock::new(NOW);
        let app = ClientMetadata {
            first_party: true,
            ..public()
        };
        let setup = Setup::new().at(database.url()).clock(clock.clone());
        let server = setup.client("phone", app).start().await;
        Self {
            second: match engine {
                Engine::Sqlite => None,
                Engine::Postgres => Some(server.beside().await),
            },
            server,
            clock,
            database,
        }
    }

    fn admins(&self) -> Vec<SocketAddr> {
        let second = self.second.as_ref().map(|node| node.admin);
        [self.server.admin].into_iter().chain(second).collect()
    }

    /// Lets it be so long after the beginning, or little later, and waits until each node has seen its
    /// database since.
    async fn reach(&self, span: Duration) {
        let left = NOW.plus(span).since(self.clock.now());
        assert!(!left.is_zero(), "that has passed");
        self.clock.advance(left);
        for admin in self.admins() {
            let url = format!("http://{admin}/health/ready");
            let http = client().build().unwrap();
            soon(async {
                // A look that was under way has taken too long, and another one comes in a second.
                for tries in 1.. {
                    if answer(http.get(&url)).await.status == 200 {
                        return;
                    }
                    if tries % PATIENCE == 0 {
                        self.clock.advance(Duration::from_secs(1));
                    }
                }
            })
            .await;
        }
    }

    /// How often each node has looked for what is over.
    async fn sweeps(&self) -> Vec<f64> {
        let mut sweeps = Vec::new();
        for admin in self.admins() {
            let (_, metrics) = openmetrics::scrape(admin).await;
            sweeps.push(metrics.value("countersign_sweeps_total{outcome=\"succeeded\"}"));
        }
        sweeps
    }

    /// Waits until each node has looked for what is over, all of it after this call. That takes some
    /// minutes at most.
    async fn swept(&self) {
        // One may be under way.
        for _ in 0..2 {
            let before = self.sweeps().await;
            soon(async {
                loop {
                    // Not again before it is done: a sweep under way would find that its database
                    // takes too long.
                    self.clock.advance(Duration::from_secs(31));
                    for _ in 0..PATIENCE {
                        let after = self.sweeps().await;
                        if before
                            .iter()
                            .zip(&after)
                            .all(|(before, after)| before < after)
                        {
                            return;
                        }
                    }
                }
            })
            .await;
        }
    }

    /// Which families there are.
    async fn families(&self) -> BTreeSet<FamilyId> {
        let all = FamilyQuery {
            limit: 100,
            ..FamilyQuery::default()
        };
        let families = self.server.store().families(&all).await.unwrap();
        families.iter().map(|(family, _)| family.id).collect()
    }

    /// How many codes and unfinished sign-ins there are.
    async fn others(&self) -> (i64, i64) {
        let counts = "select (select count(*) from authorization_code), \
             (select count(*) from challenge_session)";
        self.database.rows(counts).await[0]
    }
}

async fn families_are_deleted_although_something_else_cannot_be(engine: Engine) {
    let site = Site::on(engine).await;
    let (server, phone) = (&site.server, site.server.other("phone"));
    let ada = server.user("ada").await;
    let revoked = server.sign_in(phone, ada).await;
    let revoke = server.request(Method::POST, "/oauth2/revoke");
    let revoke = by(revoke, phone, &[("token", &revoked.refresh_token)]);
    assert_eq!(answer(revoke).await.status, 200);
    assert_eq!(site.families().await.len(), 1);
    let rename = "alter table challenge_session rename to elsewhere";
    site.database.execute(rename).await;
    site.reach(KEPT + MINUTE).await;
    soon(async {
        while !site.families().await.is_empty() {
            site.clock.advance(Duration::from_secs(31));
            for _ in 0..10 {
                site.families().await;
            }
        }
    })
    .await;
    // Nor does that pass for a success.
    soon(async {
        let failed = "countersign_sweeps_total{outcome=\"failed\"}";
        for admin in site.admins() {
            while openmetrics::scrape(admin).await.1.value(failed) == 0.0 {
                site.clock.advance(Duration::from_secs(1));
            }
        }
    })
    .await;
    assert!(site.sweeps().await.iter().all(|swept| *swept == 0.0));
}

async fn what_is_over_is_deleted_in_its_time_and_what_lives_is_not(engine: Engine) {
    let site = Site::on(engine).await;
    let (server, phone) = (&site.server, site.server.other("phone"));
    let ada = server.user("ada").await;
    let refreshed = async |signed_in: &mut SignedIn| {
        let answer = server.refresh(phone, &signed_in.refresh_token).await;
        *signed_in = SignedIn::of(&answer);
    };
    let revoked = server.sign_in(phone, ada).await;
    let reused = server.sign_in(phone, ada).await;
    let idle = server.sign_in(phone, ada).await;
    let mut lasting = server.sign_in(phone, ada).await;
    let ids = |of: &[&SignedIn]| of.iter().map(|one| one.family).collect::<BTreeSet<_>>();
    let revoke = server.request(Method::POST, "/oauth2/revoke");
    let revoke = by(revoke, phone, &[("token", &revoked.refresh_token)]);
    assert_eq!(answer(revoke).await.status, 200);
    let mut last = reused.clone();
    for _ in 0..2 {
        refreshed(&mut last).await;
    }
    let again = server.refresh(phone, &reused.refresh_token).await;
    assert_eq!(again.header("countersign-reason"), Some("reuse"));
    server.code(phone, ada).await;
    let mut living = code_for(server.grant(phone, ada).await, NOW);
    living.expires_at = NOW.plus(MINUTE * 30);
    put_code(server.store(), &living).await;
    let begin = [
        ("username", "ada"),
        (
            "code_challenge",
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        ),
        ("code_challenge_method", "S256"),
    ];
    let begin = by(
        server.request(Method::POST, "/oauth2/challenge"),
        phone,
        &begin,
    );
    assert_eq!(answer(begin).await.status, 400);

    // Codes are over after a minute, unfinished sign-ins after ten.
    assert_eq!(site.others().await, (6, 1));
    site.swept().await;
    assert_eq!(site.others().await, (1, 1));
    site.reach(MINUTE * 10).await;
    site.swept().await;
    assert_eq!(site.others().await, (1, 0));
    site.reach(MINUTE * 30).await;
    site.swept().await;
    assert_eq!(site.others().await, (0, 0));
    let all = ids(&[&revoked, &reused, &idle, &lasting]);
    assert_eq!(site.families().await, all);

    // One is refreshed to its last day, and another one is opened meanwhile.
    for week in 1..=4 {
        site.reach(DAY * 6 * week).await;
        refreshed(&mut lasting).await;
    }
    site.reach(DAY * 29).await;
    refreshed(&mut lasting).await;
    let mut going_on = server.sign_in(phone, ada).await;
    site.reach(KEPT.saturating_sub(MINUTE * 10)).await;
    site.swept().await;
    let all = ids(&[&revoked, &reused, &idle, &lasting, &going_on]);
    assert_eq!(site.families().await, all, "{:?}", site.clock.now());
    assert!(site.clock.now() < NOW.plus(KEPT));
    site.reach(KEPT + MINUTE).await;
    site.swept().await;
    let rest = ids(&[&idle, &lasting, &going_on]);
    assert_eq!(site.families().await, rest);

    // What was not refreshed for a week ended then.
    site.reach(DAY * 34).await;
    refreshed(&mut going_on).await;
    let mut newest = server.sign_in(phone, ada).await;
    site.reach((DAY * 7 + KEPT).saturating_sub(MINUTE * 10))
        .await;
    site.swept().await;
    assert_eq!(
        site.families().await,
        ids(&[&idle, &lasting, &going_on, &newest])
    );
    assert!(site.clock.now() < NOW.plus(DAY * 7 + KEPT));
    site.reach(DAY * 7 + KEPT + MINUTE).await;
    site.swept().await;
    assert_eq!(site.families().await, ids(&[&lasting, &going_on, &newest]));

    // And what has had its thirty days ended with these.
    for day in [39, 44, 49, 54] {
        site.reach(DAY * day).await;
        refreshed(&mut going_on).await;
        refreshed(&mut newest).await;
    }
    site.reach(DAY * 58).await;
    refreshed(&mut newest).await;
    site.reach((DAY * 30 + KEPT).saturating_sub(MINUTE * 10))
        .await;
    site.swept().await;
    assert_eq!(site.families().await, ids(&[&lasting, &going_on, &newest]));
    assert!(site.clock.now() < NOW.plus(DAY * 30 + KEPT));
    site.reach(DAY * 30 + KEPT + MINUTE).await;
    site.swept().await;
    assert_eq!(site.families().await, ids(&[&going_on, &newest]));
    refreshed(&mut newest).await;
}
