//! What a good client notices of a stranger who guesses its secret.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use reqwest::Client;

use crate::support::{
    client,
    database::{Database, Engine},
    process::{Credentials, Installation, Node, Stopwatch, pause},
};

/// How often the good client is measured alone and, by turns, beside the stranger.
const ROUNDS: usize = 12;

/// How often that is done at most.
const MEASUREMENTS: usize = 4;

/// How many requests the good client sends in a round.
const REQUESTS: usize = 100;

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

/// Half and nineteen twentieths of a round were faster than these.
#[derive(Clone, Copy)]
struct Latency {
    p50: f64,
    p95: f64,
}

async fn measure(node: &Node, http: &Client, good: &Credentials) -> Latency {
    let url = node.url("/oauth2/token");
    let mut took = Vec::new();
    for _ in 0..REQUESTS {
        let begun = Stopwatch::start();
        let answer = good.ask(http, &url).await.unwrap();
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(answer.status(), 200);
    }
    Latency {
        p50: quantile(took.clone(), 50),
        p95: quantile(took, 95),
    }
}

fn quantile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

/// Guesses for as long as it is on; counts what came of it.
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

/// By how much the good client got slower, in both respects.
struct Ratios {
    p50: f64,
    p95: f64,
}

/// Measures the good client alone and beside the stranger, by turns.
#[expect(clippy::print_stdout, reason = "the table is for whoever runs it")]
async fn compare(node: &Node, http: &Client, good: &Credentials, is_on: &AtomicBool) -> Ratios {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        is_on.store(false, Ordering::Relaxed);
        alone.push(measure(node, http, good).await);
        is_on.store(true, Ordering::Relaxed);
        beside.push(measure(node, http, good).await);
    }
    // The median of the rounds: what else goes on on this machine hits both in some of them.
    let median = |of: &dyn Fn(&Latency) -> f64, rounds: &[Latency]| {
        quantile(rounds.iter().map(of).collect(), 50)
    };
    println!("\nlatency    alone  beside guesses   ratio");
    let ratio = |name: &str, of: &dyn Fn(&Latency) -> f64| {
        let (alone, beside) = (median(of, &alone), median(of, &beside));
        let ratio = beside / alone;
        println!("{name}     {alone:7.3}  {beside:11.3} ms  {ratio:6.2}");
        ratio
    };
    Ratios {
        p50: ratio("p50", &|latency| latency.p50),
        p95: ratio("p95", &|latency| latency.p95),
    }
}

#[expect(clippy::print_stdout, reason = "the table is for whoever runs it")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_who_guesses_does_not_slow_down_the_client_it_guesses_at() {
    let database = Database::create(Engine::Sqlite).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let good = installation.client("good").await;
    let node = installation.start().await;
    let http = from("127.0.0.2");
    measure(&node, &http, &good).await;

    let is_on = AtomicBool::new(false);
    let refused = [AtomicU32::new(0), AtomicU32::new(0)];
    let hammering = (0..CONNECTIONS).map(|_| hammer(&node, &good.id, &is_on, &refused));
    let hammering = futures_util::future::join_all(hammering);
    // Other tests want the processors as well, and the stranger's side of this one: that makes the
    // service look slower, never faster. What the service itself does to the client is there in
    // every measurement, so the best of a few counts.
    let measuring = async {
        for _ in 0..MEASUREMENTS {
            let ratios = compare(&node, &http, &good, &is_on).await;
            if ratios.p50 <= MOST && ratios.p95 <= MOST {
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
