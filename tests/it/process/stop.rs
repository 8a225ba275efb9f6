//! SIGTERM: what has begun is finished, then the node takes its leave.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::support::{
    database::{Database, Engine},
    process::{AUDIENCE, Credentials, Installation, until},
};

/// How many requests are under way when the signal comes.
const UNDER_WAY: usize = 8;

/// A token request of which the last byte is still missing.
struct Unfinished {
    connection: TcpStream,
    rest: [u8; 1],
}

impl Unfinished {
    fn begin(address: SocketAddr, credentials: &Credentials) -> Self {
        let Credentials { id, secret } = credentials;
        // A client that authenticates by Basic would need base64; nothing here is about that.
        let body = format!(
            "grant_type=client_credentials&client_id={id}&client_secret={secret}&resource={AUDIENCE}"
        );
        let head = format!(
            "POST /oauth2/token HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\
             content-type: application/x-www-form-urlencoded\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        let mut connection = TcpStream::connect(address).unwrap();
        connection
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let (begun, rest) = body.as_bytes().split_at(body.len() - 1);
        connection.write_all(head.as_bytes()).unwrap();
        // From here on the server has begun with it.
        let mut go_on = [0; 25];
        connection.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        connection.write_all(begun).unwrap();
        Self {
            connection,
            rest: [rest[0]],
        }
    }

    /// Sends the rest and reads until the server closes the connection.
    fn finish(mut self) -> String {
        self.connection.write_all(&self.rest).unwrap();
        let mut answer = String::new();
        self.connection.read_to_string(&mut answer).unwrap();
        answer
    }
}

async fn nodes_known_to(database: &Database) -> usize {
    let rows: Vec<(String,)> = database.rows("select name from node").await;
    rows.len()
}

async fn a_stopped_node_has_answered_every_request_and_left(engine: Engine) {
    let database = Database::create(engine).await;
    let installation = Installation::production(database.url()).await;
    installation.register_resource().await;
    let arguments = ["--scope", "read", "--resource", AUDIENCE, "--name", "late"];
    let method = ["--auth-method", "client_secret_post"];
    let answer = installation
        .json(&[&["clients", "create"], &arguments[..], &method].concat())
        .await;
    let credentials = Credentials::of(&answer);
    let mut node = installation.start().await;
    assert_eq!(nodes_known_to(&database).await, 1);

    let requests: Vec<Unfinished> = (0..UNDER_WAY)
        .map(|_| Unfinished::begin(node.public, &credentials))
        .collect();
    node.process.terminate();
    until("the listener to close", async || {
        TcpStream::connect(node.public).err()
    })
    .await;
    assert_eq!(node.process.status(), None, "requests are under way");
    for request in requests {
        let answer = tokio::task::spawn_blocking(|| request.finish())
            .await
            .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("access_token"), "{answer}");
    }
    let status = node.process.ended().await;
    assert_eq!(status.code(), Some(0), "{}", node.process.stderr());
    assert_eq!(nodes_known_to(&database).await, 0);
}

#[tokio::test]
async fn a_stopped_node_has_answered_every_request_and_left_on_sqlite() {
    a_stopped_node_has_answered_every_request_and_left(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_stopped_node_has_answered_every_request_and_left_on_postgres() {
    a_stopped_node_has_answered_every_request_and_left(Engine::Postgres).await;
}

#[tokio::test]
async fn an_interrupt_ends_a_node_as_well() {
    let database = Database::create(Engine::Sqlite).await;
    let installation = Installation::production(database.url()).await;
    let mut node = installation.start().await;
    node.process.interrupt();
    assert_eq!(node.process.ended().await.code(), Some(0));
    assert_eq!(nodes_known_to(&database).await, 0);
}
