//! Stopping: what has begun is finished, nothing new begins.

use std::time::Duration;

use async_trait::async_trait;
use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock, SystemClock, Timestamp},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    client,
    server::{Answer, FORM, Setup, TestServer, answer, read_to_end},
    soon,
};

/// The admin interface as a resource.
const ADMIN: &str = "https://issuer.example/admin";

#[tokio::test]
async fn a_request_under_way_is_answered_and_new_connections_are_refused() {
    let server = TestServer::start().await;
    let credentials = client()
        .build()
        .unwrap()
        .get("http://x")
        .basic_auth(&server.app.id, Some(&server.app.secret))
        .build()
        .unwrap();
    let authorization = credentials.headers()["authorization"].to_str().unwrap();
    let mut connection = server.connect().await;
    let head = format!(
        "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n\
         Authorization: {authorization}\r\nContent-Length: 29\r\nExpect: 100-continue\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body: the request is under way.
    let mut invitation = [0; 25];
    soon(connection.read_exact(&mut invitation)).await.unwrap();
    assert_eq!(&invitation, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.write_all(b"grant_type=client_").await.unwrap();

    server.begin_to_stop();
    soon(async {
        while TcpStream::connect(server.public).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;

    connection.write_all(b"credentials").await.unwrap();
    let answer = read_to_end(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"access_token\""), "{answer}");
}

/// The system's clock, until it fails the task that tells clients of logouts.
#[derive(Debug)]
struct Failing {
    clock: SystemClock,
    fail: CancellationToken,
}

#[async_trait]
impl Clock for Failing {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    async fn sleep(&self, span: Duration) {
        let of_logouts = span == Duration::from_secs(1);
        tokio::select! {
            () = self.clock.sleep(span) => {}
            () = self.fail.cancelled(), if of_logouts => panic!("the test wants it so"),
        }
    }

    fn follows_database(&self) -> bool {
        self.clock.follows_database()
    }
}

/// Otherwise whoever follows events would hold up every restart.
#[tokio::test]
async fn whoever_waits_for_events_is_answered_at_once() {
    let server = TestServer::start().await;
    let waiting = waiting(&server).await;
    server.begin_to_stop();
    let answered = soon(waiting).await.unwrap();
    assert_eq!(
        (answered.status, &answered.json()["items"]),
        (200, &json!([]))
    );
}

/// Also where no operator has asked it to stop.
#[tokio::test]
async fn whoever_waits_for_events_does_not_hold_up_the_end_after_a_task_has_failed() {
    let fail = CancellationToken::new();
    let clock = Failing {
        clock: SystemClock::new(),
        fail: fail.clone(),
    };
    let mut server = Setup::new().clock(clock).start().await;
    let waiting = waiting(&server).await;
    fail.cancel();
    // Long before what it waits for would be over.
    let answered = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert_eq!(answered.unwrap().unwrap().status, 200);
    assert!(server.has_failed().await);
}

/// An operator's request for events that has to wait, and is under way.
async fn waiting(server: &TestServer) -> JoinHandle<Answer> {
    let operator = server
        .register(&ClientMetadata {
            client_name: "An operator".to_owned(),
            scope: "events:read".to_owned(),
            resources: vec![ADMIN.to_owned()],
            default_resource: Some(ADMIN.to_owned()),
            ..ClientMetadata::default()
        })
        .await;
    let token = server.token_for(&operator).await.access_token();
    let events = |query: &str| {
        let url = format!("http://{}/admin/v1/events?{query}", server.admin);
        let request = client().build().unwrap().get(url);
        answer(request.bearer_auth(&token))
    };
    let last = events("limit=200").await.json();
    let last = last["items"].as_array().unwrap().last().unwrap()["id"].clone();
    let query = format!("wait=30&after={}", last.as_str().unwrap());
    let waiting = tokio::spawn(events(&query));
    // Under way as soon as the server counts it among its connections.
    soon(async {
        let open = "countersign_connections{listener=\"admin\"} 2";
        let metrics = format!("http://{}/metrics", server.admin);
        while !answer(client().build().unwrap().get(&metrics))
            .await
            .body
            .contains(open)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    waiting
}
