//! What a good client notices of a stranger who guesses its secret.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use reqwest::Client;

use crate::{
    process::turn,
    support::{
        client,
        database::{Database, Engine},
        latency::Plan,
        process::{Credentials, Installation, Node, pause},
    },
};

/// How often that is done at most.
const MEASUREMENTS: usize = 8;

/// How often the good client is measured beside a stranger who guesses and, by turns, beside one who is
/// harmless.
const PLAN: Plan = Plan {
    rounds: 7,
    requests: 60,
};

/// How many connections the stranger has, and how long it waits before each request: so that what
/// is measured is the service, not how many processors this machine has.
const CONNECTIONS: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);

/// How much slower the good client may get.
const MOST: f64 = 1.5;

fn from(address: &str) -> Client {
    let address: IpAddr = address.parse().unwrap();
    client().local_address(address).build().unwrap()
}

/// Guesses for as long as it is on; counts what came of it. Asks for something else as often otherwise.
async fn hammer(node: &Node, id: &str, is_on: &AtomicBool, refused: &[AtomicU32; 2]) {
    let http = from("127.0.0.1");
    let url = node.url("/oauth2/token");
    let guess = Credentials {
        id: id.to_owned(),
        secret: "guess".to_owned(),
    };
    loop {
        pause(PAUSE).await;
        if !is_on.load(Ordering::Relaxed) {
            let answer = http.get(node.url("/health/live")).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            continue;
        }
        let status = guess.ask(&http, &url).await.unwrap().status();
        let [failed, limited] = refused;
        match status.as_u16() {
            401 => failed,
            429 => limited,
            other => panic!("{other}"),
        }
        .fetch_add(1, Ordering::Relaxed);
    }
}

#[expect(clippy::print_stdout, reason = "the table is for whoever runs it")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_who_guesses_does_not_slow_down_the_client_it_guesses_at() {
    let _turn = turn().await;
    let database = Database::create(Engine::Sqlite).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let good = installation.client("good").await;
    let node = installation.start().await;
    let http = from("127.0.0.2");
    let url = node.url("/oauth2/token");
    let ask = async || {
        let answer = good.ask(&http, &url).await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    ask().await;

    let is_on = AtomicBool::new(false);
    let refused = [AtomicU32::new(0), AtomicU32::new(0)];
    let hammering = (0..CONNECTIONS).map(|_| hammer(&node, &good.id, &is_on, &refused));
    let hammering = futures_util::future::join_all(hammering);
    // Other processes want the processors as well: that makes the service look slower, never faster. What
    // the service itself does to the client is there in every measurement, so the best of a few counts.
    let measuring = async {
        for _ in 0..MEASUREMENTS {
            let ratios = PLAN.compare("a token", &is_on, &ask).await;
            if ratios.is_within(MOST, MOST) {
                return true;
            }
        }
        false
    };
    let is_undisturbed = tokio::select! {
        _ = hammering => unreachable!(),
        is_undisturbed = measuring => is_undisturbed,
    };
    let [failed, limited] = refused.map(AtomicU32::into_inner);
    println!("\nguesses: {failed} refused after comparing, {limited} before\n");
    assert!(is_undisturbed, "the client got slower each time");
    // The stranger was there, and was stopped.
    assert!(limited > failed, "{failed} {limited}");
}
