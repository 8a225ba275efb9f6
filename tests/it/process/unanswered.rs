//! Nodes that are killed between a verdict and its answer.
//!
//! On Postgres the commit is done and the node is not told. On `SQLite` nothing can stand between: the
//! node is killed as soon as the verdict is to be seen in the file.

use std::net::SocketAddr;

use countersign::domain::family::{EndReason, Family};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::turn;
use crate::support::{
    database::{Database, Engine},
    people::App,
    process::{Installation, Node, free_address, http, until},
    proxy::Proxy,
};

/// An app with one sign-in, a node that is going to be killed, and one that is not.
struct Scene {
    http: Client,
    app: App,
    client_id: String,
    /// The code that the sign-in began with.
    code: String,
    access_token: String,
    /// The refresh tokens so far.
    tokens: Vec<String>,
    proxy: Option<Proxy>,
    victim: Option<Node>,
    machine: Installation,
    _database: Database,
}

impl Scene {
    /// A scene after so many refreshes.
    async fn set(engine: Engine, refreshes: usize) -> Self {
        let database = Database::create(engine).await;
        let direct = Installation::production(database.url()).await;
        direct.register_resource().await;
        let client_id = direct.first_party_client("standard").await;
        let app = App::new(database.url(), &client_id).await;
        let (proxy, victim) = match engine {
            Engine::Postgres => {
                let proxy = Proxy::start(database.url());
                let behind = direct.twin().with("database.url", proxy.url());
                (Some(proxy), behind.start_at(free_address()).await)
            }
            Engine::Sqlite => (None, direct.start_at(free_address()).await),
        };
        let http = http();
        let code = app.code().await;
        let answer = app.exchange(&http, victim.public, &code).await;
        let answer: Value = answer.json().await.unwrap();
        let mut scene = Self {
            access_token: text(&answer, "access_token"),
            tokens: vec![text(&answer, "refresh_token")],
            http,
            app,
            client_id,
            code,
            proxy,
            victim: Some(victim),
            machine: direct,
            _database: database,
        };
        for _ in 0..refreshes {
            let node = scene.victim().public;
            let token = scene.tokens.last().unwrap().clone();
            let (status, answer) = scene.refresh(node, &token).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            scene.tokens.push(text(&answer, "refresh_token"));
        }
        scene
    }

    fn victim(&self) -> &Node {
        self.victim.as_ref().unwrap()
    }

    async fn family(&self) -> Family {
        self.app.family(&self.access_token).await
    }

    fn form<'a>(&'a self, token: &'a str) -> [(&'static str, &'a str); 3] {
        [
            ("client_id", &self.client_id),
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
        ]
    }

    async fn refresh(&self, node: SocketAddr, token: &str) -> (StatusCode, Value) {
        let url = format!("http://{node}/oauth2/token");
        let answer = self.http.post(url).form(&self.form(token)).send();
        let answer = answer.await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Has the victim judge something, and kills it when the verdict is to be seen, before it has
    /// answered. Returns another node, and the family.
    async fn kill_after_verdict(
        &mut self,
        presented: impl FnOnce(&Self, &Node) -> JoinHandle<reqwest::Result<StatusCode>>,
        is_judged: impl Fn(&Family) -> bool,
    ) -> (Node, Family) {
        if let Some(proxy) = &self.proxy {
            proxy.lose_answers_to_commits();
        }
        let asking = presented(self, self.victim());
        let family = until("a verdict", async || {
            Some(self.family().await).filter(|family| is_judged(family))
        })
        .await;
        assert!(self.proxy.is_none() || !asking.is_finished());
        self.victim.take().unwrap().kill();
        let answered = asking.await.unwrap();
        assert!(self.proxy.is_none() || answered.is_err(), "{answered:?}");
        let next = self.machine.start_at(free_address()).await;
        // The end of the node has changed nothing.
        assert_eq!(self.family().await, family);
        (next, family)
    }

    /// Presents a refresh token to a node without waiting for the answer.
    fn present(&self, node: &Node, token: &str) -> JoinHandle<reqwest::Result<StatusCode>> {
        let request = self.http.post(node.url("/oauth2/token"));
        let answer = request.form(&self.form(token)).send();
        tokio::spawn(async move { Ok(answer.await?.status()) })
    }

    async fn is_over(&self, node: &Node) {
        for token in self.tokens.iter().rev() {
            let (status, answer) = self.refresh(node.public, token).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
            assert_eq!(text(&answer, "error"), "invalid_grant");
        }
    }
}

fn text(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap().to_owned()
}

/// Although the request of whoever used it failed in more than one way.
async fn a_session_that_reuse_has_ended_stays_ended_if_nobody_was_answered(engine: Engine) {
    let _turn = turn().await;
    let mut scene = Scene::set(engine, 2).await;
    let spent = scene.tokens[0].clone();
    let (node, family) = scene
        .kill_after_verdict(
            |scene, victim| scene.present(victim, &spent),
            |family| family.revoked_at.is_some(),
        )
        .await;
    assert_eq!(family.revoke_reason, Some(EndReason::Reuse));
    scene.is_over(&node).await;
}

async fn a_session_that_a_used_code_has_ended_stays_ended_if_nobody_was_answered(engine: Engine) {
    let _turn = turn().await;
    let mut scene = Scene::set(engine, 1).await;
    let (node, family) = scene
        .kill_after_verdict(
            |scene, victim| {
                let answer = scene
                    .app
                    .exchange_later(&scene.http, victim.public, &scene.code);
                tokio::spawn(async move { Ok(answer.await?.status()) })
            },
            |family| family.revoked_at.is_some(),
        )
        .await;
    assert_eq!(family.revoke_reason, Some(EndReason::CodeReuse));
    scene.is_over(&node).await;
}

/// It is repeated elsewhere, and gets what the first answer would have had.
async fn a_refresh_that_nobody_was_answered_has_happened_once(engine: Engine) {
    let _turn = turn().await;
    let mut scene = Scene::set(engine, 2).await;
    let newest = scene.tokens[2].clone();
    let (node, family) = scene
        .kill_after_verdict(
            |scene, victim| scene.present(victim, &newest),
            |family| family.counter == 3,
        )
        .await;
    assert_eq!(family.revoked_at, None);
    let mut successors = Vec::new();
    for _ in 0..2 {
        let (status, answer) = scene.refresh(node.public, &newest).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        successors.push(text(&answer, "refresh_token"));
    }
    assert_eq!(successors[0], successors[1]);
    assert_eq!(scene.family().await.counter, 3);
    let (status, _) = scene.refresh(node.public, &successors[0]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(scene.family().await.counter, 4);
}

on_both_engines! {
    a_session_that_reuse_has_ended_stays_ended_if_nobody_was_answered,
    a_session_that_a_used_code_has_ended_stays_ended_if_nobody_was_answered,
    a_refresh_that_nobody_was_answered_has_happened_once,
}
