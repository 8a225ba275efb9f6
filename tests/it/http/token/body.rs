//! Bodies that are no form, too large, or too slow (RFC 6749 §3.2, RFC 9110 §15.5).

use std::{pin::pin, time::Duration};

use countersign::clock::{ManualClock, Timestamp};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{MALFORMED, REPEATED, refused};
use crate::support::{
    server::{FORM, GRANT, Setup, TestServer, answer, read_to_end, send_raw},
    soon,
};

const TOO_LARGE: super::Refusal = (413, "invalid_request", "too_large");

#[tokio::test]
async fn a_body_that_is_no_well_formed_form_is_refused() {
    let server = TestServer::start().await;
    let good = b"grant_type=client_credentials";
    for end in [
        &b"&scope=%"[..],
        b"&scope=%2",
        b"&scope=%zz",
        b"&%=x",
        b"&scope=%ff",
        b"&scope=%c3%28",
        b"&scope=\xff",
        b"&\xc3=x",
        // An overlong slash and half of a surrogate pair.
        b"&scope=%c0%af",
        b"&scope=%ed%a0%80",
    ] {
        refused(server.by_app_with([good, end].concat()), MALFORMED).await;
    }
    let many = format!("grant_type=client_credentials{}", "&x=1".repeat(64));
    refused(server.by_app_with(many), MALFORMED).await;
}

/// "Human-readable ASCII text providing additional information, used to assist the client developer"
/// (RFC 6749 §5.2).
#[tokio::test]
async fn a_refusal_says_what_is_wrong_with_the_form() {
    let server = TestServer::start().await;
    let many = "&x=1".repeat(64);
    for (end, refusal, says) in [
        ("&scope=%2x", MALFORMED, "hexadecimal"),
        ("&scope=%ff", MALFORMED, "UTF-8"),
        (&*many, MALFORMED, "64 parameters"),
        ("&scope=a&scope=b", REPEATED, "the parameter scope "),
        ("&grant_type=x", REPEATED, "the parameter grant_type "),
        (
            "&client_id=a&client_id=a",
            REPEATED,
            "the parameter client_id ",
        ),
    ] {
        let body = format!("grant_type=client_credentials{end}");
        let answer = refused(server.by_app_with(body), refusal).await;
        let document = answer.json();
        let description = document["error_description"].as_str().unwrap();
        assert!(description.contains(says), "{end}: {description}");
    }
}

#[tokio::test]
async fn a_body_of_another_media_type_is_refused() {
    let server = TestServer::start().await;
    let json = server
        .by_app()
        .json(&serde_json::json!({"grant_type": "client_credentials"}));
    refused(json, MALFORMED).await;
    for media_type in [
        "",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded-not",
        "application/json; application/x-www-form-urlencoded",
    ] {
        let request = server.by_app().header(CONTENT_TYPE, media_type);
        refused(request.body("grant_type=client_credentials"), MALFORMED).await;
    }
    refused(
        server.by_app().body("grant_type=client_credentials"),
        MALFORMED,
    )
    .await;
}

/// What is not unpacked cannot be a bomb.
#[tokio::test]
async fn a_compressed_body_is_refused() {
    let server = TestServer::start().await;
    for coding in ["gzip", "br", "deflate", "gzip, identity"] {
        let request = server.by_app().header(CONTENT_ENCODING, coding);
        refused(request.form(&GRANT), MALFORMED).await;
    }
    let plain = server.by_app().header(CONTENT_ENCODING, "identity");
    assert_eq!(answer(plain.form(&GRANT)).await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = Setup::new()
        .set("limits.request_body_bytes", "2000")
        .start()
        .await;
    let of_length = |length: usize| {
        let form = "grant_type=client_credentials&x=";
        form.to_owned() + &"x".repeat(length - form.len())
    };
    assert_eq!(
        answer(server.by_app_with(of_length(2000))).await.status,
        200
    );
    refused(server.by_app_with(of_length(2001)), TOO_LARGE).await;
    refused(server.by_app_with(of_length(1 << 20)), TOO_LARGE).await;
}

/// A length that is announced is believed before anything is read.
#[tokio::test]
async fn a_body_announced_as_too_large_is_refused_unread() {
    let server = TestServer::start().await;
    let head = head("Content-Length: 1048576\r\n");
    let mut connection = server.connect().await;
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    soon(connection.read_exact(&mut status)).await.unwrap();
    assert_eq!(status, *b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_body_in_chunks_is_refused_as_soon_as_it_is_too_large() {
    let server = TestServer::start().await;
    let mut connection = server.connect().await;
    let head = head("Transfer-Encoding: chunked\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    // It would be one MiB; the answer comes before its end.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    for _ in 0..17 {
        connection.write_all(chunk.as_bytes()).await.unwrap();
    }
    let mut status = [0; 12];
    soon(connection.read_exact(&mut status)).await.unwrap();
    assert_eq!(status, *b"HTTP/1.1 413");
}

/// Whoever sends chunks without end holds no connection with them, whatever the answer is.
#[tokio::test]
async fn a_body_that_was_not_read_to_its_end_ends_the_connection() {
    let server = TestServer::start().await;
    let form = head("Transfer-Encoding: chunked\r\n");
    let too_large = format!("20000\r\n{}", "x".repeat(0x1_0001));
    for (status, head, body) in [
        (413, form.clone(), too_large.as_str()),
        (400, form.replace(FORM, "text/plain"), "1\r\nx\r\n"),
        (404, form.replace("/oauth2/token", "/nowhere"), "1\r\nx\r\n"),
        (405, form.replace("POST", "PUT"), "1\r\nx\r\n"),
    ] {
        let answer = send_raw(server.public, &(head + body)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_in_chunks_is_read_and_its_connection_goes_on() {
    let server = TestServer::start().await;
    let request =
        head("Transfer-Encoding: chunked\r\n") + "1d\r\ngrant_type=client_credentials\r\n0\r\n\r\n";
    let last = "GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = send_raw(server.public, &(request + last)).await;
    assert!(answers.starts_with("HTTP/1.1 401"), "{answers}");
    assert!(answers.contains("HTTP/1.1 200"), "{answers}");
}

/// RFC 9110 §15.5.9: a sender that dribbles does not hold a connection for ever.
#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_refused() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let server = Setup::new().clock(clock.clone()).start().await;
    let mut connection = server.connect().await;
    let request = head("Content-Length: 29\r\n") + "grant_type=client_";
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = pin!(soon(read_to_end(&mut connection)));
    // The server may not have begun to read yet: time goes on until it answers.
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            () = tokio::task::yield_now() => clock.advance(Duration::from_secs(1)),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("countersign-reason: too_slow"), "{answer}");
}

/// RFC 9112 §6.3 and §11.2: where one request ends must not be open to interpretation (smuggling).
#[tokio::test]
async fn a_request_of_ambiguous_length_is_refused_and_ends_the_connection() {
    let server = TestServer::start().await;
    let smuggled = "GET /health/live HTTP/1.1\r\nHost: issuer.example\r\n\r\n";
    for headers in [
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nContent-Length: 55\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: 0x0\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
    ] {
        let request = head(headers) + "0\r\n\r\n" + smuggled;
        let answers = send_raw(server.public, &request).await;
        assert!(answers.starts_with("HTTP/1.1 400"), "{headers}: {answers}");
        assert_eq!(
            answers.matches("HTTP/1.1 ").count(),
            1,
            "{headers}: {answers}"
        );
    }
}

/// The head of a token request with these further headers.
fn head(headers: &str) -> String {
    format!(
        "POST /oauth2/token HTTP/1.1\r\nHost: issuer.example\r\nContent-Type: {FORM}\r\n{headers}\r\n"
    )
}
