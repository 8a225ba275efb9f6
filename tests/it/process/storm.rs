//! More people who sign in at once than the password workers can serve, and what all others notice.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
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
    process::{Installation, Node, http, pause},
    sign_in::{VERIFIER, redeem, refresh},
};

on_both_engines! {
    sign_ins_beyond_the_workers_are_shed_and_nobody_else_waits,
}

/// How many people sign in at the same time: many more than can be at work or in line.
const PEOPLE: usize = 96;

/// How long each waits before the next try: what is measured is the service, not those who storm it.
const PAUSE: Duration = Duration::from_millis(200);

const PLAN: Plan = Plan {
    rounds: 6,
    requests: 60,
};

/// How often all is measured at most; the best counts, for other processes disturb it, too.
const MEASUREMENTS: usize = 4;

/// How much slower everybody else may get, at the median.
const MOST: f64 = 1.5;

/// And one request in twenty: where two cores run other tests beside a hundred people, what waits is
/// now and then one of these.
const MOST_OF_SOME: f64 = 2.0;

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
    /// and who was told to come back.
    async fn storm(&self, nth: usize, is_on: &AtomicBool, [let_in, shed]: &[AtomicUsize; 2]) {
        let http = http();
        let request = match nth % 2 {
            0 => self.sign_in(&http),
            _ => self.page(&http).await,
        };
        loop {
            pause(PAUSE).await;
            if !is_on.load(Ordering::Relaxed) {
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
    let signed_in = site.sign_in(&http).send().await.unwrap();
    let document: Value = signed_in.json().await.unwrap();
    let code = document["authorization_code"].as_str().unwrap();
    let token = Mutex::new(site.refreshed(&http, &redeem(code)).await);

    let is_on = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let storm = join_all((0..PEOPLE).map(|nth| site.storm(nth, &is_on, &counts)));
    let url = site.node.url("/oauth2/token");
    let by_credentials = async || {
        let answer = service.ask(&http, &url).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    };
    let by_refreshing = async || {
        let before = token.lock().unwrap().clone();
        let after = site.refreshed(&http, &refresh(&before)).await;
        *token.lock().unwrap() = after;
    };
    let measuring = async {
        let (mut credentials, mut refreshes) = (false, false);
        for _ in 0..MEASUREMENTS {
            if !credentials {
                let ratios = PLAN.compare("client credentials", &is_on, &by_credentials);
                credentials = ratios.await.is_within(MOST, MOST_OF_SOME);
            }
            if !refreshes {
                let ratios = PLAN.compare("refreshes", &is_on, &by_refreshing);
                refreshes = ratios.await.is_within(MOST, MOST_OF_SOME);
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
        "\nsign-ins: {let_in} let in, {shed} told to come back\n"
    ));
    assert_eq!(undisturbed, (true, true), "credentials, refreshes");
    // There was a storm, and it was more than the workers could do.
    assert!(let_in > 0 && shed > 0, "{let_in} {shed}");
}
