//! People who sign in at every node, over and over, while an operator gives them another password or
//! disables them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use countersign::{
    domain::{
        code::s256,
        family::{Family, FamilyQuery, Standing},
        id::UserId,
    },
    store::{Access, Store},
};
use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use serde_json::Value;

use super::{show, turn};
use crate::support::{
    database::{Database, Engine, open},
    process::{Installation, Node, free_address, http, now, until},
    sign_in::{VERIFIER, claims, redeem, refresh},
};

/// How many users there are; something is changed about all of them at the same time.
const USERS: usize = 2;

/// How many sign in as each of them at the same time.
const HANDS: usize = 3;

/// How often something is changed about each user.
const ROUNDS: usize = 2;

/// What is changed about a user.
#[derive(Clone, Copy, Debug)]
enum How {
    Password,
    Disabled,
}

/// The nodes of one installation, and a client that takes its users' passwords.
struct Site {
    installation: Installation,
    nodes: Vec<Node>,
    http: Client,
    client_id: String,
    store: Arc<dyn Store>,
    _database: Database,
}

/// A user, with the password that is good at the moment.
struct Person {
    id: UserId,
    name: String,
    password: String,
}

/// What one who signs in over and over was given, and how often there was nothing.
#[derive(Default)]
struct Seen {
    tokens: Vec<String>,
    sessions: BTreeSet<String>,
    /// Codes that were not exchanged.
    codes: Vec<String>,
    /// How often the password was not taken, before the change was answered and after it.
    refused: [usize; 2],
    /// How often a code or a token was refused that had been given out a moment before.
    overtaken: usize,
}

impl Seen {
    fn extend(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.sessions.extend(other.sessions);
        self.codes.extend(other.codes);
        self.refused[0] += other.refused[0];
        self.refused[1] += other.refused[1];
        self.overtaken += other.overtaken;
    }
}

/// An answer of the public listener.
struct Told {
    status: StatusCode,
    reason: Option<String>,
    document: Value,
}

impl Told {
    /// A member of a good answer; none of a refusal. Anything else fails the test.
    fn given(&self, member: &str) -> Option<&str> {
        match self.status {
            StatusCode::OK => Some(self.document[member].as_str().unwrap()),
            StatusCode::BAD_REQUEST => {
                assert_eq!(self.document["error"], "invalid_grant");
                None
            }
            other => panic!("{other}: {}", self.document),
        }
    }
}

impl Site {
    async fn start(engine: Engine) -> Self {
        let database = Database::create(engine).await;
        let installation = Installation::production(database.url())
            .await
            .with("limits.password_failures_per_minute", 0)
            .with("limits.password_failures_per_address_per_minute", 0);
        installation.register_resource().await;
        let client_id = installation.first_party_client("standard").await;
        let mut nodes = vec![installation.start_at(free_address()).await];
        if engine == Engine::Postgres {
            nodes.push(installation.twin().start_at(free_address()).await);
        }
        Self {
            installation,
            nodes,
            http: http(),
            client_id,
            store: open(database.url(), Access::Command).await.unwrap(),
            _database: database,
        }
    }

    async fn person(&self, number: usize) -> Person {
        let name = format!("user-{number}");
        let created = ["users", "create", "--username", &name];
        let created = [&created[..], &["--generate-password"]].concat();
        let created = self.installation.json(&created).await;
        Person {
            id: UserId::parse(created["id"].as_str().unwrap()).unwrap(),
            name,
            password: created["password"].as_str().unwrap().to_owned(),
        }
    }

    async fn post(&self, node: usize, path: &str, form: &[(&str, &str)]) -> Told {
        let node = &self.nodes[node % self.nodes.len()];
        let form = [form, &[("client_id", &self.client_id)]].concat();
        let request = self.http.post(node.url(path)).form(&form);
        // Whoever would have to wait for too long is told to come back.
        let answer = until("an answer", async || {
            let answer = request.try_clone().unwrap().send().await.unwrap();
            (answer.status() != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
        })
        .await;
        let reason = answer.headers().get("countersign-reason");
        Told {
            status: answer.status(),
            reason: reason.map(|reason| reason.to_str().unwrap().to_owned()),
            document: answer.json().await.unwrap(),
        }
    }

    async fn present(&self, node: usize, person: &Person) -> Told {
        let challenge = s256(VERIFIER).unwrap();
        let form = [
            ("username", person.name.as_str()),
            ("password", &person.password),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        self.post(node, "/oauth2/challenge", &form).await
    }

    /// Signs in as a person until that is refused although nobody is at work any more: what was given
    /// out, each step at another node than the one before. Nothing is, once the change is answered.
    async fn sign_in_until_refused(
        &self,
        first: usize,
        person: &Person,
        [granted, kept]: &[AtomicUsize; 2],
        is_answered: &AtomicBool,
    ) -> Seen {
        let mut seen = Seen::default();
        let exchange = async |node, form: &[(&str, &str)]| {
            let is_late = is_answered.load(Ordering::SeqCst);
            let told = self.post(node, "/oauth2/token", form).await;
            assert!(
                !is_late || told.status != StatusCode::OK,
                "{}",
                told.document
            );
            told
        };
        for attempt in first.. {
            let is_late = is_answered.load(Ordering::SeqCst);
            let told = self.present(attempt, person).await;
            assert!(
                !is_late || told.status != StatusCode::OK,
                "{}",
                told.document
            );
            let Some(code) = told.given("authorization_code") else {
                seen.refused[usize::from(is_late)] += 1;
                if is_late {
                    return seen;
                }
                continue;
            };
            if attempt % HANDS == HANDS - 1 {
                seen.codes.push(code.to_owned());
                kept.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let mut told = exchange(attempt + 1, &redeem(code)).await;
            for step in 0..2 {
                let Some(token) = told.given("refresh_token") else {
                    seen.overtaken += 1;
                    break;
                };
                let sid = claims(told.given("access_token").unwrap())["sid"].clone();
                seen.sessions.insert(sid.as_str().unwrap().to_owned());
                seen.tokens.push(token.to_owned());
                granted.fetch_add(1, Ordering::SeqCst);
                if step == 0 {
                    told = exchange(attempt, &refresh(token)).await;
                }
            }
        }
        unreachable!()
    }

    /// Has the operator change something about a person in the middle of sign-ins: what these got, and
    /// what the command has printed.
    async fn change(&self, how: How, person: &Person) -> (Seen, Value) {
        let granted = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let is_answered = AtomicBool::new(false);
        let signing_in =
            (0..HANDS).map(|hand| self.sign_in_until_refused(hand, person, &granted, &is_answered));
        let changing = async {
            until("enough sign-ins", async || {
                let [granted, kept] = granted.each_ref().map(|count| count.load(Ordering::SeqCst));
                (granted >= HANDS * 2 && kept > 0).then_some(())
            })
            .await;
            let set = ["users", "set-password", &person.name, "--generate-password"];
            let disable = ["users", "disable", &person.name];
            let printed = match how {
                How::Password => self.installation.json(&set).await,
                How::Disabled => self.installation.json(&disable).await,
            };
            is_answered.store(true, Ordering::SeqCst);
            printed
        };
        let (all, printed) = tokio::join!(join_all(signing_in), changing);
        let mut seen = Seen::default();
        for one in all {
            seen.extend(one);
        }
        (seen, printed)
    }

    /// Nothing of what was given out is good for anything, at no node.
    async fn is_over(&self, person: &Person, seen: &Seen, reason: &str) {
        for node in 0..self.nodes.len() {
            for token in &seen.tokens {
                let told = self.post(node, "/oauth2/token", &refresh(token)).await;
                assert_eq!(told.given("refresh_token"), None);
                assert_eq!(told.reason.as_deref(), Some(reason));
            }
            for code in &seen.codes {
                let told = self.post(node, "/oauth2/token", &redeem(code)).await;
                assert_eq!(told.given("refresh_token"), None);
                assert_eq!(told.reason.as_deref(), Some(reason));
            }
        }
        let (families, living) = self.families(person).await;
        assert_eq!(living, 0, "of {families}");
        assert!(families >= seen.sessions.len());
    }

    /// How many families a person has, and how many of them live.
    async fn families(&self, person: &Person) -> (usize, usize) {
        let query = FamilyQuery {
            subject: Some(person.id),
            limit: 10_000,
            ..FamilyQuery::default()
        };
        let families = self.store.families(&query).await.unwrap();
        let is_living =
            |(family, standing): &&(Family, Standing)| family.ending(standing, now()).is_none();
        (families.len(), families.iter().filter(is_living).count())
    }

    /// The good password opens sessions at each node, and these go on.
    async fn is_let_in(&self, person: &Person) {
        for node in 0..self.nodes.len() {
            let told = self.present(node, person).await;
            let code = told.given("authorization_code").unwrap();
            let told = self.post(node, "/oauth2/token", &redeem(code)).await;
            let token = told.given("refresh_token").unwrap();
            let told = self.post(node + 1, "/oauth2/token", &refresh(token)).await;
            assert!(told.given("refresh_token").is_some());
        }
        let (_, living) = self.families(person).await;
        assert_eq!(living, self.nodes.len());
    }
}

/// Changes something about a person a few times; what was given out on the way.
async fn change_again_and_again(site: &Site, how: How, number: usize) -> Seen {
    let mut person = site.person(number).await;
    let mut total = Seen::default();
    for _ in 0..ROUNDS {
        let (seen, printed) = site.change(how, &person).await;
        match how {
            How::Password => {
                site.is_over(&person, &seen, "user_sessions_ended").await;
                let password = printed["password"].as_str().unwrap();
                password.clone_into(&mut person.password);
            }
            How::Disabled => {
                site.is_over(&person, &seen, "user_disabled").await;
                let enable = ["users", "enable", &person.name];
                site.installation.json(&enable).await;
                // That brings nobody back.
                site.is_over(&person, &seen, "user_sessions_ended").await;
            }
        }
        site.is_let_in(&person).await;
        total.extend(seen);
    }
    total
}

async fn nothing_outlives_a_change(engine: Engine, how: How) {
    let _turn = turn().await;
    let site = Site::start(engine).await;
    let people = (0..USERS).map(|number| change_again_and_again(&site, how, number));
    let mut total = Seen::default();
    for seen in join_all(people).await {
        total.extend(seen);
    }
    let [before, after] = total.refused;
    show(&format!(
        "{how:?} on {engine:?}, {USERS} users, {ROUNDS} times each: {} sessions opened and {} codes kept; \
         passwords refused: {before} before the change was answered and {after} after; \
         codes and tokens overtaken: {}\n",
        total.sessions.len(),
        total.codes.len(),
        total.overtaken,
    ));
    // It happened in the middle: all were in before it, and went on until it was answered.
    assert!(total.sessions.len() >= USERS * ROUNDS * HANDS);
    assert!(total.codes.len() >= USERS * ROUNDS);
    assert_eq!(after, USERS * ROUNDS * HANDS);
}

async fn a_password_change_signs_everybody_out_who_used_the_old_one(engine: Engine) {
    nothing_outlives_a_change(engine, How::Password).await;
}

async fn disabling_a_user_signs_out_whoever_has_just_signed_in(engine: Engine) {
    nothing_outlives_a_change(engine, How::Disabled).await;
}

on_both_engines! {
    a_password_change_signs_everybody_out_who_used_the_old_one,
    disabling_a_user_signs_out_whoever_has_just_signed_in,
}
