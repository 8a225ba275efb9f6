//! Many requests about one sign-in at the same moment, at two nodes where the database takes two.

use std::{collections::BTreeSet, net::SocketAddr};

use countersign::domain::family::{EndReason, Family};
use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use serde_json::Value;

use super::turn;
use crate::support::{
    database::{Database, Engine},
    people::App,
    process::{Installation, Node, free_address, http},
};

/// How many present one token at the same moment.
const CALLERS: usize = 64;

/// How many present one code at the same moment.
const REDEEMERS: usize = 50;

/// How often that is tried at most.
const ATTEMPTS: usize = 5;

/// The nodes of one installation, a client and a user.
struct Site {
    nodes: Vec<Node>,
    http: Client,
    client_id: String,
    app: App,
    _database: Database,
}

impl Site {
    async fn start(engine: Engine, refresh_policy: &str) -> Self {
        let database = Database::create(engine).await;
        let installation = Installation::production(database.url()).await;
        installation.register_resource().await;
        let client_id = installation.first_party_client(refresh_policy).await;
        let app = App::new(database.url(), &client_id).await;
        let mut nodes = vec![installation.start_at(free_address()).await];
        if engine == Engine::Postgres {
            nodes.push(installation.twin().start_at(free_address()).await);
        }
        Self {
            nodes,
            http: http(),
            client_id,
            app,
            _database: database,
        }
    }

    fn address(&self, number: usize) -> SocketAddr {
        self.nodes[number % self.nodes.len()].public
    }

    /// The first refresh token of a new sign-in.
    async fn sign_in(&self) -> String {
        self.app.sign_in(&self.http, self.address(0)).await
    }

    async fn refresh(&self, number: usize, token: &str) -> (StatusCode, Value) {
        let form = [
            ("client_id", self.client_id.as_str()),
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
        ];
        let url = format!("http://{}/oauth2/token", self.address(number));
        let answer = self.http.post(url).form(&form).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Presents a token many times at once; what was answered.
    async fn at_once(&self, token: &str) -> Vec<(StatusCode, Value)> {
        join_all((0..CALLERS).map(|number| self.refresh(number, token))).await
    }

    /// Redeems a new code many times at once; what was answered.
    async fn exchange_at_once(&self) -> Vec<(StatusCode, Value)> {
        let code = &self.app.code().await;
        let exchange = async |number| {
            let node = self.address(number);
            let answer = self.app.exchange(&self.http, node, code).await;
            (answer.status(), answer.json().await.unwrap())
        };
        join_all((0..REDEEMERS).map(exchange)).await
    }

    /// The family of an answer's tokens, as stored.
    async fn family_of(&self, answer: &Value) -> Family {
        self.app.family(text(answer, "access_token")).await
    }
}

/// Whether some were told to come back: where the machine stood still they would have had to wait for
/// too long.
fn are_some_too_late(answers: &[(StatusCode, Value)]) -> bool {
    let mut statuses = answers.iter().map(|(status, _)| *status);
    statuses.any(|status| status == StatusCode::SERVICE_UNAVAILABLE)
}

fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer[name].as_str().unwrap()
}

async fn of_64_who_present_one_token_at_once_all_get_one_successor(engine: Engine) {
    let _turn = turn().await;
    let site = Site::start(engine, "standard").await;
    let mut token = site.sign_in().await;
    let (mut round, mut attempts) = (1, 1);
    while round <= 3 {
        let answers = site.at_once(&token).await;
        if are_some_too_late(&answers) {
            assert!(attempts < ATTEMPTS, "{answers:?}");
            (token, round, attempts) = (site.sign_in().await, 1, attempts + 1);
            continue;
        }
        let wrong: Vec<_> = answers
            .iter()
            .filter(|(status, _)| *status != StatusCode::OK)
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let of_all = |name| -> BTreeSet<&str> {
            answers
                .iter()
                .map(|(_, answer)| text(answer, name))
                .collect()
        };
        assert_eq!(of_all("access_token").len(), CALLERS);
        let successors = of_all("refresh_token");
        assert_eq!(successors.len(), 1, "{successors:?}");
        let family = site.family_of(&answers[0].1).await;
        assert_eq!(family.counter, round);
        token = (*successors.first().unwrap()).to_owned();
        round += 1;
    }
}

async fn under_the_strict_policy_64_who_present_one_token_at_once_end_its_family(engine: Engine) {
    let _turn = turn().await;
    let site = Site::start(engine, "strict").await;
    let mut answers = site.at_once(&site.sign_in().await).await;
    for _ in 1..ATTEMPTS {
        if are_some_too_late(&answers) {
            answers = site.at_once(&site.sign_in().await).await;
        }
    }
    let answered = |status| answers.iter().filter(move |(other, _)| *other == status);
    // Those whose turn did not come are told to come back.
    let refused = answered(StatusCode::BAD_REQUEST).count();
    let too_many = answered(StatusCode::TOO_MANY_REQUESTS).count();
    let winners: Vec<_> = answered(StatusCode::OK).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert!(refused > 0 && refused + too_many == CALLERS - 1);
    let (_, winner) = winners[0];
    let (status, _) = site.refresh(0, text(winner, "refresh_token")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let family = site.family_of(winner).await;
    assert_eq!(family.revoke_reason, Some(EndReason::Reuse));
}

async fn of_50_who_redeem_one_code_at_once_one_gets_tokens_and_they_are_over(engine: Engine) {
    let _turn = turn().await;
    let site = Site::start(engine, "standard").await;
    let mut answers = site.exchange_at_once().await;
    for _ in 1..ATTEMPTS {
        if are_some_too_late(&answers) {
            answers = site.exchange_at_once().await;
        }
    }
    let (winners, others): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|(status, _)| *status == StatusCode::OK);
    assert_eq!(winners.len(), 1);
    assert!(
        others
            .iter()
            .all(|(status, _)| *status == StatusCode::BAD_REQUEST)
    );
    let (_, winner) = &winners[0];
    let (status, _) = site.refresh(1, text(winner, "refresh_token")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let family = site.family_of(winner).await;
    assert_eq!(family.revoke_reason, Some(EndReason::CodeReuse));
}

on_both_engines! {
    of_64_who_present_one_token_at_once_all_get_one_successor,
    under_the_strict_policy_64_who_present_one_token_at_once_end_its_family,
    of_50_who_redeem_one_code_at_once_one_gets_tokens_and_they_are_over,
}
