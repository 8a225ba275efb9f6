//! More people who sign in at once than the password workers can serve, and what all others notice.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use countersign::domain::code::s256;
use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;

use super::{show, turn};
use crate::support::{
    database::{Database, Engine},
    latency::Plan,
    process::{Installation, Node, Stopwatch, http, pause, until},
    sign_in::{VERIFIER, redeem, refresh},
};

on_both_engines! {
    sign_ins_beyond_the_workers_are_shed_and_nobody_else_waits,
}

/// How many people sign in at the same time for each worker, of which there is one for each core: many
/// more than can be at work or in line.
const PEOPLE: usize = 48;

/// How long each waits before the next try: what is measured is the service, not those who storm it.
const PAUSE: Duration = Duration::from_millis(200);

const PLAN: Plan = Plan {
    rounds: 5,
    requests: 30,
};

/// How often all is measured at most; the best counts, for other processes disturb it, too.
///
/// Whoever is not slower by a factor is undisturbed, and where all this makes the processors scarce, so is
/// whoever does not wait for the work of any password.
const MEASUREMENTS: usize = 6;

/// How much slower everybody else may get, at the median, than beside as many people who ask for
/// something else as often.
const MOST: f64 = 1.5;

/// And one request in twenty: where two cores run other tests beside a hundred people, what waits is
/// now and then one of these.
const MOST_OF_SOME: f64 = 2.0;

/// How long each of some requests took, without the storm and in it.
#[derive(Default)]
struct Took(Mutex<[Vec<Duration>; 2]>);

impl Took {
    fn add(&self, is_storm: bool, begun: Stopwatch) {
        self.0.lock().unwrap()[usize::from(is_storm)].push(begun.elapsed());
    }

    /// Whether nobody waited for the work of a password, which takes so long: at the median less than a
    /// quarter of it was waited for, and less than all of it by all but one in twenty. However few cores
    /// there are for everything else, whoever needs a worker waits longer.
    fn is_without(&self, work: Duration) -> bool {
        let mut took = std::mem::take(&mut *self.0.lock().unwrap());
        for requests in &mut took {
            requests.sort();
        }
        let waited = |percent: usize| {
            let [alone, beside] = took
                .each_ref()
                .map(|all| all[(all.len() - 1) * percent / 100]);
            beside.saturating_sub(alone)
        };
        waited(50) < work / 4 && waited(95) < work
    }
}

struct Site {
    node: Node,
    client_id: String,
    password: String,
}

impl Site {
    fn post(&self, http: &Client, path: &str, form: &[(&str, &str)]) -> RequestBuilder {
        let form = [form, &[("client_id", &self.client_id)]].concat();
        http.post(self.node.url(path)).form(&form)
    }

    fn sign_in(&self, http: &Client) -> RequestBuilder {
        let challenge = s256(VERIFIER).unwrap();
        let form = [
            ("username", "ada"),
            ("password", &self.password),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        self.post(http, "/oauth2/challenge", &form)
    }

    /// The refresh token of an answer of the token endpoint.
    async fn refreshed(&self, http: &Client, form: &[(&str, &str)]) -> String {
        let answer = self.post(http, "/oauth2/token", form).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let document: Value = answer.json().await.unwrap();
        document["refresh_token"].as_str().unwrap().to_owned()
    }

    /// The sign-in page of a browser, as its form is sent.
    async fn page(&self, http: &Client) -> RequestBuilder {
        let page = http.get(self.node.url("/account")).send().await.unwrap();
        assert_eq!(page.status(), StatusCode::OK);
        let cookie = page.headers()["set-cookie"].to_str().unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let page = page.text().await.unwrap();
        let (_, flow) = page.split_once("name=\"flow\" value=\"").unwrap();
        let form = [
            ("flow", flow.split('"').next().unwrap()),
            ("username", "ada"),
            ("password", &self.password),
        ];
        let request = http.post(self.node.url("/signin")).form(&form);
        request.header("cookie", cookie)
    }

    /// Signs in over and over while it is on, at the page or by an app of the house; counts who got in
    /// and who was told to come back. Asks for what needs no password otherwise.
    async fn storm(&self, nth: usize, is_on: &AtomicBool, [let_in, shed]: &[AtomicUsize; 2]) {
        let http = http();
        let request = match nth % 2 {
            0 => self.sign_in(&http),
            _ => self.page(&http).await,
        };
        loop {
            pause(PAUSE).await;
            if !is_on.load(Ordering::Relaxed) {
                let answer = http.get(self.node.url("/health/live")).send().await;
                assert_eq!(answer.unwrap().status(), StatusCode::OK);
                continue;
            }
            let answer = request.try_clone().unwrap().send().await.unwrap();
            match answer.status() {
                StatusCode::OK | StatusCode::SEE_OTHER => let_in,
                StatusCode::SERVICE_UNAVAILABLE => {
                    assert!(answer.headers().contains_key("retry-after"));
                    shed
                }
                other => panic!("{other}"),
            }
            .fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn sign_ins_beyond_the_workers_are_shed_and_nobody_else_waits(engine: Engine) {
    let _turn = turn().await;
    let database = Database::create(engine).await;
    // All of them are one user at one address.
    let installation = Installation::production(database.url())
        .await
        .with("limits.password_failures_per_minute", 0)
        .with("limits.password_failures_per_address_per_minute", 0);
    installation.register_resource().await;
    let client_id = installation.first_party_client("standard").await;
    let service = installation.client("service").await;
    let created = [
        "users",
        "create",
        "--username",
        "ada",
        "--generate-password",
    ];
    let created = installation.json(&created).await;
    let site = Site {
        node: installation.start().await,
        client_id,
        password: created["password"].as_str().unwrap().to_owned(),
    };
    let http = http();
    // The fastest of a few, with nobody else there.
    let (mut document, mut work) = (Value::Null, Duration::MAX);
    for _ in 0..5 {
        let begun = Stopwatch::start();
        let signed_in = site.sign_in(&http).send().await.unwrap();
        work = work.min(begun.elapsed());
        document = signed_in.json().await.unwrap();
    }
    let code = document["authorization_code"].as_str().unwrap();
    let token = Mutex::new(site.refreshed(&http, &redeem(code)).await);

    let people = PEOPLE * available_parallelism().unwrap().get();
    let is_on = AtomicBool::new(true);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let storm = join_all((0..people).map(|nth| site.storm(nth, &is_on, &counts)));
    let url = site.node.url("/oauth2/token");
    let took = Took::default();
    let by_credentials = async || {
        let begun = Stopwatch::start();
        let answer = service.ask(&http, &url).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        took.add(is_on.load(Ordering::Relaxed), begun);
    };
    let by_refreshing = async || {
        let begun = Stopwatch::start();
        let before = token.lock().unwrap().clone();
        let after = site.refreshed(&http, &refresh(&before)).await;
        *token.lock().unwrap() = after;
        took.add(is_on.load(Ordering::Relaxed), begun);
    };
    let measuring = async {
        // Until there are more than can be in line.
        until("somebody who is told to come back", async || {
            let [let_in, shed] = &counts;
            let is_full = let_in.load(Ordering::Relaxed) > 0 && shed.load(Ordering::Relaxed) > 0;
            is_full.then_some(())
        })
        .await;
        let (mut credentials, mut refreshes) = (false, false);
        for _ in 0..MEASUREMENTS {
            if !credentials {
                let ratios = PLAN.compare("client credentials", &is_on, &by_credentials);
                let is_as_fast = ratios.await.is_within(MOST, MOST_OF_SOME);
                credentials = took.is_without(work) || is_as_fast;
            }
            if !refreshes {
                let ratios = PLAN.compare("refreshes", &is_on, &by_refreshing);
                let is_as_fast = ratios.await.is_within(MOST, MOST_OF_SOME);
                refreshes = took.is_without(work) || is_as_fast;
            }
            if credentials && refreshes {
                break;
            }
        }
        (credentials, refreshes)
    };
    let undisturbed = tokio::select! {
        _ = storm => unreachable!(),
        undisturbed = measuring => undisturbed,
    };
    let [let_in, shed] = counts.map(AtomicUsize::into_inner);
    show(&format!(
        "\nsign-ins: {let_in} let in, {shed} told to come back; alone, one takes {work:?}\n"
    ));
    assert_eq!(undisturbed, (true, true), "credentials, refreshes");
}
