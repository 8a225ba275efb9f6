//! Connections: nobody takes them all, nobody holds one for ever.

use std::{cell::Cell, net::SocketAddr, pin::pin, time::Duration};

use countersign::clock::{ManualClock, Timestamp};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    client,
    server::{Setup, TestServer, read_to_end, send_raw},
    soon,
};

const HEALTH: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";

/// A connection from one of this machine's addresses.
async fn connect_from(address: &str, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(address.parse().unwrap(), 0))
        .unwrap();
    soon(socket.connect(server)).await.unwrap()
}

/// Whether the connection is served.
async fn is_served(connection: &mut TcpStream) -> bool {
    let mut status = [0; 12];
    // One that has been ended may take the request or not.
    let sent = connection.write_all(HEALTH.as_bytes()).await;
    let read = soon(connection.read_exact(&mut status)).await;
    sent.is_ok() && read.is_ok() && status == *b"HTTP/1.1 200"
}

/// Connections from one address that are served all at one time.
async fn served_from(address: &str, count: usize, server: SocketAddr) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for number in 0..count {
        let mut connection = connect_from(address, server).await;
        assert!(is_served(&mut connection).await, "{address}: {number}");
        connections.push(connection);
    }
    connections
}

/// Waits until the server has noticed what has been closed.
async fn becomes_served(address: &str, server: SocketAddr) {
    soon(async {
        while !is_served(&mut connect_from(address, server).await).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stranger_cannot_take_all_connections() {
    let setup = Setup::new().set("limits.connections_per_address", "4");
    let server = setup.start().await;
    let held = served_from("127.0.0.3", 4, server.public).await;
    for _ in 0..8 {
        let mut excess = connect_from("127.0.0.3", server.public).await;
        assert!(!is_served(&mut excess).await);
    }
    served_from("127.0.0.2", 4, server.public).await;
    drop(held);
    becomes_served("127.0.0.3", server.public).await;
}

#[tokio::test]
async fn a_trusted_proxy_has_as_many_connections_as_it_needs_but_not_more_than_there_are() {
    let setup = Setup::new()
        .set("limits.connections", "6")
        .set("limits.connections_per_address", "2")
        .set("public.trusted_proxies", "127.0.0.9");
    let server = setup.start().await;
    let held = served_from("127.0.0.9", 6, server.public).await;
    for address in ["127.0.0.9", "127.0.0.2"] {
        let mut excess = connect_from(address, server.public).await;
        assert!(!is_served(&mut excess).await, "{address}");
    }
    drop(held);
    becomes_served("127.0.0.2", server.public).await;
}

/// Whoever opens connections and says nothing, or nothing more, makes room for others.
#[tokio::test]
async fn a_newcomer_takes_the_place_of_a_connection_that_is_not_used() {
    let setup = Setup::new().set("limits.connections", "6");
    let server = setup.start().await;
    let idle = served_from("127.0.0.3", 3, server.public).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(connect_from("127.0.0.4", server.public).await);
    }
    // Each waits for room to be made for it; which is the last silent one does not matter.
    let newcomers = served_from("127.0.0.2", 3, server.public).await;
    for mut silent in silent {
        assert_eq!(read_to_end(&mut silent).await, "");
    }
    let late = served_from("127.0.0.5", 3, server.public).await;
    for mut idle in idle {
        // What is left of the answer, and the end.
        let rest = read_to_end(&mut idle).await;
        assert_eq!(rest.matches("HTTP/1.1 ").count(), 0, "{rest}");
    }
    drop((newcomers, late));
}

/// Nor does it help to begin a request and hold back the rest of it.
#[tokio::test]
async fn a_newcomer_takes_the_place_of_a_request_that_does_not_arrive() {
    for length in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let setup = Setup::new()
            .set("limits.connections", "4")
            .set("limits.request_timeout_seconds", "0");
        let server = setup.start().await;
        // The answer to the head, that the body may come, shows that the service waits for it.
        let head = format!(
            "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n{length}\r\n\r\n"
        );
        let mut withheld = Vec::new();
        for _ in 0..4 {
            let mut connection = connect_from("127.0.0.3", server.public).await;
            connection.write_all(head.as_bytes()).await.unwrap();
            let mut go_on = [0; 25];
            soon(connection.read_exact(&mut go_on)).await.unwrap();
            assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
            connection.write_all(b"1").await.unwrap();
            withheld.push(connection);
        }
        // Each that has its answer makes room for the next.
        let newcomers = served_from("127.0.0.2", 4, server.public).await;
        // What is there of the request is not taken for the whole.
        let rest = read_to_end(&mut withheld[0]).await;
        assert!(!rest.contains("HTTP/1.1 2"), "{rest}");
        drop(newcomers);
    }
}

#[tokio::test]
async fn a_request_head_over_the_limit_is_refused_and_ends_the_connection() {
    let setup = Setup::new().set("limits.request_header_bytes", "2000");
    let server = setup.start().await;
    let request = |padding: usize| {
        let value = "x".repeat(padding);
        format!("GET /health/live HTTP/1.1\r\nHost: x\r\nX-Padding: {value}\r\n\r\n")
    };
    let several = "X-P: 01234567890123456789\r\n".repeat(80);
    let several = format!("GET /health/live HTTP/1.1\r\nHost: x\r\n{several}\r\n");
    let target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(2000));
    for too_large in [
        request(2000),
        request(100_000),
        request(200_000),
        several,
        target,
    ] {
        let answer = send_raw(server.public, &too_large).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let mut connection = server.connect().await;
    connection
        .write_all(request(1900).as_bytes())
        .await
        .unwrap();
    let mut status = [0; 12];
    soon(connection.read_exact(&mut status)).await.unwrap();
    assert_eq!(status, *b"HTTP/1.1 200");
}

fn clock() -> ManualClock {
    ManualClock::new(Timestamp::from_seconds(1_800_000_000))
}

/// What comes of a connection while the time goes on.
async fn in_time<T>(clock: &ManualClock, awaited: impl Future<Output = T>) -> T {
    let mut awaited = pin!(soon(awaited));
    loop {
        tokio::select! {
            done = &mut awaited => return done,
            () = tokio::task::yield_now() => clock.advance(Duration::from_millis(100)),
        }
    }
}

async fn assert_serves(server: &TestServer) {
    let url = format!("http://{}/health/live", server.public);
    let answer = client().build().unwrap().get(url).send();
    assert_eq!(soon(answer).await.unwrap().status(), 200);
}

/// What is limited is the time between an answer and the next request, not their sum.
#[tokio::test]
async fn a_connection_that_is_used_goes_on() {
    let clock = clock();
    let server = Setup::new().clock(clock.clone()).start().await;
    let mut connection = server.connect().await;
    let request = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut answers = String::new();
    // Ten times as long as a connection may be idle and a request take to arrive.
    for number in 1..=80 {
        connection.write_all(request.as_bytes()).await.unwrap();
        while answers.matches("\r\n\r\n").count() < number {
            let mut part = [0; 1024];
            let read = soon(connection.read(&mut part)).await.unwrap();
            assert!(read > 0, "ended with request {number}");
            answers.push_str(str::from_utf8(&part[..read]).unwrap());
        }
        clock.advance(Duration::from_secs(5));
        tokio::task::yield_now().await;
    }
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 80);
}

#[tokio::test]
async fn a_later_request_head_that_dribbles_in_ends_the_connection() {
    let clock = clock();
    let server = Setup::new().clock(clock.clone()).start().await;
    let mut connection = server.connect().await;
    assert!(is_served(&mut connection).await);
    let begun = b"GET /health/live HTTP/1.1\r\nHost: x\r\nx: ";
    connection.write_all(begun).await.unwrap();
    assert_serves(&server).await;
    let rest = in_time(&clock, async {
        let (mut from, mut to) = connection.split();
        let dribble = async {
            while to.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        let mut rest = Vec::new();
        tokio::select! {
            _ = from.read_to_end(&mut rest) => rest,
            () = dribble => unreachable!(),
        }
    })
    .await;
    let rest = String::from_utf8(rest).unwrap();
    // Either the time is over first, or the head is too large.
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 0, "{rest}");
    assert_serves(&server).await;
}

/// Answers do not pile up either: the server stops to read where a client stops.
#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_cut_off() {
    // More than what the system keeps for both sides of a connection.
    const MOST: usize = 24 << 20;
    /// After so many answers to others nothing more is expected.
    const PATIENCE: u32 = 50;
    let clock = clock();
    let server = Setup::new().clock(clock.clone()).start().await;
    let mut connection = server.connect().await;
    // actix-web itself holds back answers that have a body; these have none.
    let requests = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let taken = Cell::new(0);
    let mut write = pin!(async {
        let mut at = 0;
        while let Ok(count) = connection.write(&requests.as_bytes()[at..]).await {
            at = (at + count) % requests.len();
            taken.set(taken.get() + count);
        }
    });
    let stalls = async {
        let (mut seen, mut quiet) = (0, 0);
        while quiet < PATIENCE {
            assert_serves(&server).await;
            assert!(taken.get() < MOST, "the server goes on reading");
            quiet = if taken.get() == seen { quiet + 1 } else { 0 };
            seen = taken.get();
        }
    };
    tokio::select! {
        () = &mut write => panic!("cut off before its time"),
        () = stalls => {}
    }
    in_time(&clock, write).await;
    assert_serves(&server).await;
}

#[tokio::test]
async fn tls_that_does_not_begin_ends_the_connection() {
    let clock = clock();
    let files = super::tls::Pair::new();
    let server = files.set(Setup::new().clock(clock.clone())).start().await;
    let mut connection = server.connect().await;
    connection.write_all(&[22, 3, 1]).await.unwrap();
    let answer = in_time(&clock, read_to_end(&mut connection)).await;
    assert_eq!(answer, "");
}

/// Whoever sends one request after the other without waiting does not keep others from being served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pipelines_without_end_leaves_room_for_others() {
    let server = TestServer::start().await;
    let requests = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    // Several for every worker.
    let mut floods = Vec::new();
    for _ in 0..8 {
        let (mut from, mut to) = server.connect().await.into_split();
        let requests = requests.clone();
        floods.push(tokio::spawn(async move {
            while to.write_all(requests.as_bytes()).await.is_ok() {}
        }));
        floods.push(tokio::spawn(async move {
            let mut answers = vec![0; 1 << 20];
            while from.read(&mut answers).await.is_ok_and(|read| read > 0) {}
        }));
    }
    for _ in 0..5 {
        assert_serves(&server).await;
    }
    for flood in floods {
        flood.abort();
    }
}
