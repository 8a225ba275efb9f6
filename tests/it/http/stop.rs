//! Stopping: what has begun is finished, nothing new begins.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    client,
    server::{FORM, TestServer, read_to_end},
    soon,
};

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
