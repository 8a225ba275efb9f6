//! A code that is presented over and over by whoever cannot exchange it, while those who could lose
//! the right to.

use countersign::domain::family::FamilyQuery;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use crate::support::{
    database::{Database, Engine},
    server::{Answer, Node, Registered, Setup, TestServer, answer},
    sign_in::{SignedIn, by, public, redeem, refresh, update_user},
    soon,
};

on_both_engines! {
    wrong_verifiers_beside_a_disabled_user_lock_up_nothing,
    wrong_verifiers_beside_a_disabled_client_lock_up_nothing,
    whoever_has_no_verifier_waits_for_nobody,
}

/// How many present a code at the same moment.
const CALLERS: usize = 100;

/// A server, one more node where the engine has room for two, and two public clients.
struct Site {
    server: TestServer,
    second: Option<Node>,
    database: Database,
}

impl Site {
    async fn on(engine: Engine) -> Self {
        let database = Database::create(engine).await;
        let setup = Setup::new().at(database.url());
        // A disabled client fails to authenticate.
        let setup = setup
            .set("limits.failures_per_minute", "0")
            .set("limits.failures_per_address_per_minute", "0")
            .client("spa", public())
            .client("other", public());
        let server = setup.start().await;
        Self {
            second: match engine {
                Engine::Sqlite => None,
                Engine::Postgres => Some(server.beside().await),
            },
            server,
            database,
        }
    }

    fn spa(&self) -> &Registered {
        self.server.other("spa")
    }

    /// Presents codes a hundred times at once: by their own client with a wrong verifier or none, and
    /// by another client with a wrong verifier or the right one.
    fn flood(&self, codes: &[&str]) -> JoinSet<Answer> {
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            let request = match &self.second {
                Some(node) if number % 2 == 1 => node.request(Method::POST, "/oauth2/token"),
                _ => self.server.token_request(),
            };
            let mut form = redeem(codes[number % codes.len()]).to_vec();
            let wrong = format!("{number:x<43}");
            let client = match number % 4 {
                0 => {
                    form.pop();
                    self.spa()
                }
                1 => self.server.other("other"),
                _ => {
                    form[2].1 = &wrong;
                    self.server.other(["spa", "other"][number % 4 - 2])
                }
            };
            callers.spawn(answer(by(request, client, &form)));
        }
        callers
    }

    /// Floods two codes: one is exchanged in the middle of that, before `disable`, the other one is
    /// tried after it. What was answered otherwise is returned by its reasons.
    async fn through_the_flood(&self, disable: impl Future<Output = ()>, reason: &str) {
        let ada = self.server.user("ada").await;
        let early = self.server.code(self.spa(), ada).await;
        let late = self.server.code(self.spa(), ada).await;
        let mut callers = self.flood(&[&early, &late]);
        let mut answers = Vec::new();
        let mut some = async |callers: &mut JoinSet<Answer>| {
            for _ in 0..CALLERS / 5 {
                answers.push(soon(callers.join_next()).await.unwrap().unwrap());
            }
        };
        some(&mut callers).await;
        let signed_in = SignedIn::of(&self.server.redeem(self.spa(), &early).await);
        some(&mut callers).await;
        disable.await;
        // Nobody waits for the rest of them.
        let refused = self.server.redeem(self.spa(), &late).await;
        assert_eq!(
            refused.header("countersign-reason"),
            Some(reason),
            "{refused:?}"
        );
        let mut more = self.flood(&[&early, &late]);
        answers.extend(soon(callers.join_all()).await);
        answers.extend(soon(async { std::mem::take(&mut more).join_all().await }).await);
        assert_eq!(answers.len(), 2 * CALLERS);
        for answer in &answers {
            let told = answer.header("countersign-reason").unwrap();
            let is_known = ["code_verifier", "other_client"].contains(&told);
            assert!(is_known || told == reason, "{answer:?}");
            assert!([400, 401].contains(&answer.status), "{answer:?}");
        }
        for form in [&redeem(&late)[..], &refresh(&signed_in.refresh_token)] {
            let refused = self.server.exchange(self.spa(), form).await;
            assert_eq!(
                refused.header("countersign-reason"),
                Some(reason),
                "{refused:?}"
            );
        }
        let all = FamilyQuery {
            limit: 9,
            ..FamilyQuery::default()
        };
        let families = self.server.store().families(&all).await.unwrap();
        let [(family, _)] = &families[..] else {
            panic!("{families:?}")
        };
        // Not even the code that was used already let anybody end what it was exchanged for.
        assert_eq!((family.id, family.revoked_at), (signed_in.family, None));
        let unused = "select count(*) from authorization_code where family_id is null";
        assert_eq!(self.database.rows::<(i64,)>(unused).await, [(1,)]);
    }
}

async fn wrong_verifiers_beside_a_disabled_user_lock_up_nothing(engine: Engine) {
    let site = Site::on(engine).await;
    let disable = async {
        let query = site.server.store().users(None, 9).await.unwrap();
        let now = site.server.clients.clock.now();
        let ada = query.first().unwrap().id;
        update_user(site.server.store(), ada, now, |user| user.disabled = true).await;
    };
    site.through_the_flood(disable, "user_disabled").await;
}

async fn wrong_verifiers_beside_a_disabled_client_lock_up_nothing(engine: Engine) {
    let site = Site::on(engine).await;
    let disable = site.server.update(site.spa(), json!({ "disabled": true }));
    site.through_the_flood(disable, "client_disabled").await;
}

/// Although somebody holds all that an exchange is about.
async fn whoever_has_no_verifier_waits_for_nobody(engine: Engine) {
    let site = Site::on(engine).await;
    let ada = site.server.user("ada").await;
    let code = site.server.code(site.spa(), ada).await;
    // At its start a node writes that it is there.
    assert_eq!(site.server.token().await.status, 200);
    let (mut row, mut file) = (None, None);
    match engine {
        Engine::Postgres => {
            let mut holder = PgConnection::connect(site.database.url()).await.unwrap();
            let lock = "begin; select 1 from client, end_user, authorization_code for update; \
                 select 1 from change_head for update";
            sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
            row = Some(holder);
        }
        Engine::Sqlite => file = Some(site.database.lock().await),
    }
    for answer in soon(site.flood(&[&code]).join_all()).await {
        let told = answer.header("countersign-reason").unwrap();
        assert!(
            ["code_verifier", "other_client"].contains(&told),
            "{answer:?}"
        );
    }
    if let Some(holder) = row.take() {
        holder.close().await.unwrap();
    }
    drop(file.take());
    site.server.redeem(site.spa(), &code).await.refresh_token();
}
