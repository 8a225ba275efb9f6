//! Two nodes under refresh load, killed over and over, and their database with them.
//!
//! Clients do as real ones do: they send what they have again until there is an answer, to whatever
//! node, sometimes twice at once, and sometimes they lose what was answered. Whatever they saw is
//! judged afterwards: see [`history`].

mod history;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;

use self::history::{Attempt, History, Seen};
use super::{Seeded, show, turn};
use crate::support::{
    database::{Cluster, Durability},
    people::App,
    process::{Installation, Node, Stopwatch, free_address, http, pause},
};

/// Says how many kills there are to be instead of [`KILLS`].
const VARIABLE: &str = "COUNTERSIGN_TEST_KILLS";

/// How many there are in each run of the tests.
const KILLS: usize = 9;

/// How many families are refreshed at the same time.
const FAMILIES: usize = 16;

/// The longest time between two kills, in milliseconds.
const LONGEST_LIFE: u64 = 700;

/// What the clients share.
struct Load {
    http: Client,
    nodes: [SocketAddr; 2],
    client_id: String,
    since: Stopwatch,
    history: Mutex<History>,
    is_over: AtomicBool,
}

impl Load {
    /// Presents a refresh token to one of the nodes.
    async fn present(&self, node: u64, family: usize, token: &str, revokes: bool) -> Seen {
        let begun = self.since.elapsed();
        let seen = self.ask(node, token, revokes).await;
        self.history.lock().unwrap().0.push(Attempt {
            family,
            begun,
            ended: self.since.elapsed(),
            token: token.to_owned(),
            revokes,
            seen: seen.clone(),
        });
        seen
    }

    async fn ask(&self, node: u64, token: &str, revokes: bool) -> Seen {
        let node = self.nodes[usize::try_from(node % 2).unwrap()];
        let client = ("client_id", self.client_id.as_str());
        let request = if revokes {
            let request = self.http.post(format!("http://{node}/oauth2/revoke"));
            request.form(&[client, ("token", token)])
        } else {
            let request = self.http.post(format!("http://{node}/oauth2/token"));
            let grant = ("grant_type", "refresh_token");
            request.form(&[client, grant, ("refresh_token", token)])
        };
        let Ok(answer) = request.send().await else {
            return Seen::Nothing;
        };
        let status = answer.status();
        let reason = answer.headers().get("countersign-reason").cloned();
        let Ok(body) = answer.text().await else {
            return Seen::Nothing;
        };
        match status {
            StatusCode::OK if revokes => Seen::Revoked,
            StatusCode::OK => {
                let document: Value = serde_json::from_str(&body).unwrap();
                Seen::Successor(document["refresh_token"].as_str().unwrap().to_owned())
            }
            StatusCode::SERVICE_UNAVAILABLE => Seen::Nothing,
            StatusCode::BAD_REQUEST => {
                Seen::Refused(reason.map_or(body, |reason| reason.to_str().unwrap().to_owned()))
            }
            _ => Seen::Unexpected(format!("{status} {reason:?} {body}")),
        }
    }

    /// Refreshes a family until it is time to end, or it is refused. Returns the tokens it has had.
    async fn refresh(self: Arc<Self>, family: usize, first: String) -> Vec<String> {
        let mut seeded = Seeded::new(family as u64 + 1);
        let mut tokens = vec![first];
        let mut is_revoked = false;
        while !self.is_over.load(Ordering::Relaxed) {
            let token = tokens.last().unwrap().clone();
            let node = seeded.below(2);
            // One family in four ends in the middle.
            let may_revoke = family.is_multiple_of(4) && tokens.len() > 20 && !is_revoked;
            let revokes = may_revoke && seeded.below(20) == 0;
            let seen = if !revokes && seeded.below(6) == 0 {
                // Two tabs at once; the later answer counts.
                let tabs = tokio::join!(
                    self.present(node, family, &token, false),
                    self.present(node + 1, family, &token, false),
                );
                match tabs {
                    (one, Seen::Nothing) => one,
                    (_, other) => other,
                }
            } else {
                self.present(node, family, &token, revokes).await
            };
            match seen {
                // One answer in eight is lost on the way.
                Seen::Successor(_) if seeded.below(8) == 0 => {}
                Seen::Successor(successor) => tokens.push(successor),
                Seen::Nothing => pause(Duration::from_millis(50 + seeded.below(200))).await,
                // Whatever is killed from now on, it stays so.
                Seen::Revoked => is_revoked = true,
                Seen::Refused(_) if is_revoked => pause(Duration::from_millis(200)).await,
                Seen::Refused(_) | Seen::Unexpected(_) => break,
            }
            pause(Duration::from_millis(seeded.below(60))).await;
        }
        tokens
    }

    /// After all that, the newest token is good and those before it still tell a thief.
    async fn is_intact(&self, family: usize, tokens: &[String]) {
        let [.., spent, _, newest] = tokens else {
            panic!("family {family} was hardly refreshed");
        };
        // What was lost on the way last is made up for.
        let Seen::Successor(next) = self.present(0, family, newest, false).await else {
            panic!("family {family} is lost");
        };
        let refused = self.ask(1, spent, false).await;
        assert_eq!(refused, Seen::Refused("reuse".to_owned()));
        let refused = self.ask(0, &next, false).await;
        assert_eq!(refused, Seen::Refused("revoked".to_owned()));
    }
}

/// Kills one of the nodes, or the database, and starts it again.
async fn kill(
    victim: usize,
    nodes: &mut [Option<Node>; 2],
    installations: &[Installation; 2],
    cluster: &Cluster,
) {
    let Some(place) = nodes.get_mut(victim) else {
        cluster.crash();
        cluster.start_again();
        return;
    };
    let node = place.take().unwrap();
    let address = node.public;
    node.kill();
    *place = Some(installations[victim].start_at(address).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_a_family_or_revives_one() {
    let _turn = turn().await;
    let kills = std::env::var(VARIABLE).map_or(KILLS, |kills| kills.parse().unwrap());
    let cluster = Cluster::start(Durability::Durable);
    let installation = Installation::production(cluster.url()).await;
    installation.register_resource().await;
    let client_id = installation.first_party_client("standard").await;
    let app = App::new(cluster.url(), &client_id).await;
    let installations = [installation.twin(), installation];
    let mut nodes = [None, None];
    for (node, installation) in nodes.iter_mut().zip(&installations) {
        *node = Some(installation.start_at(free_address()).await);
    }
    let addresses = [0, 1].map(|index: usize| nodes[index].as_ref().unwrap().public);
    let load = Arc::new(Load {
        http: http(),
        nodes: addresses,
        client_id: client_id.clone(),
        since: Stopwatch::start(),
        history: Mutex::default(),
        is_over: AtomicBool::new(false),
    });
    let mut clients = JoinSet::new();
    for family in 0..FAMILIES {
        let first = app.sign_in(&load.http, addresses[0]).await;
        let load = Arc::clone(&load);
        clients.spawn(async move { (family, load.refresh(family, first).await) });
    }
    let mut seeded = Seeded::new(99);
    let mut killed = [0; 3];
    for number in 0..kills {
        pause(Duration::from_millis(seeded.below(LONGEST_LIFE))).await;
        let victim = number % killed.len();
        killed[victim] += 1;
        kill(victim, &mut nodes, &installations, &cluster).await;
    }
    // Whatever was lost last is tried again before the end.
    pause(Duration::from_secs(1)).await;
    load.is_over.store(true, Ordering::Relaxed);
    let mut families = clients.join_all().await;
    families.sort_unstable();
    let problems = load.history.lock().unwrap().problems();
    assert!(problems.is_empty(), "{problems:#?}");
    let (tried, revoked): (BTreeSet<usize>, BTreeSet<usize>) = {
        let history = load.history.lock().unwrap();
        let families = |is_one: fn(&Attempt) -> bool| {
            let attempts = history.0.iter().filter(|attempt| is_one(attempt));
            attempts.map(|attempt| attempt.family).collect()
        };
        (
            families(|attempt| attempt.revokes),
            families(|attempt| attempt.seen == Seen::Revoked),
        )
    };
    for (family, tokens) in &families {
        if tried.contains(family) && !revoked.contains(family) {
            // Nobody knows whether it was.
            continue;
        }
        if revoked.contains(family) {
            let refused = load.ask(0, tokens.last().unwrap(), false).await;
            assert_eq!(refused, Seen::Refused("revoked".to_owned()));
        } else {
            load.is_intact(*family, tokens).await;
        }
    }
    let history = load.history.lock().unwrap();
    let refreshes = history.count(|seen| matches!(seen, Seen::Successor(_)));
    let nothing = history.count(|seen| *seen == Seen::Nothing);
    assert!(refreshes > FAMILIES * 10, "too few refreshes: {refreshes}");
    show(&format!(
        "{kills} kills ({} and {} of the nodes, {} of the database) in {:.0} s: {refreshes} refreshes were \
         answered and {nothing} were not; of {FAMILIES} families {} were revoked and none was lost\n",
        killed[0],
        killed[1],
        killed[2],
        load.since.elapsed().as_secs_f64(),
        revoked.len(),
    ));
}
