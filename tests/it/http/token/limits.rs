//! Limits on failures and on requests: whom they concern, and whom not.

use std::net::IpAddr;

use countersign::admin::client::ClientMetadata;
use futures_util::future::join_all;
use reqwest::RequestBuilder;

use crate::support::{
    client,
    server::{Answer, GRANT, Registered, Setup, TestServer, answer, metadata},
};

const GOOD: u16 = 200;
const FAILED: u16 = 401;
const LIMITED: u16 = 429;

/// A token request from one of this machine's addresses.
fn from(address: &str, server: &TestServer, id: &str, secret: &str) -> RequestBuilder {
    let address: IpAddr = address.parse().unwrap();
    let client = client().local_address(address).build().unwrap();
    client
        .post(format!("http://{}/oauth2/token", server.public))
        .basic_auth(id, Some(secret))
        .form(&GRANT)
}

async fn status(request: RequestBuilder) -> u16 {
    let answer = answer(request).await;
    if answer.status == LIMITED {
        assert_limited(&answer);
    }
    answer.status
}

fn assert_limited(answer: &Answer) {
    assert_eq!(answer.status, LIMITED, "{answer:?}");
    assert_eq!(answer.json()["error"], "temporarily_unavailable");
    assert_eq!(answer.header("countersign-reason"), Some("rate_limited"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("www-authenticate"), None);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
}

#[tokio::test]
async fn failures_are_held_against_their_address_and_client_alone() {
    let setup = Setup::new().set("limits.failures_per_minute", "3");
    let server = setup.start().await;
    let other = server.register(&metadata()).await;
    let Registered { id, secret, .. } = &server.app;
    // What succeeds takes nothing and gives nothing back.
    for (secret, expected) in [
        (secret.as_str(), GOOD),
        ("wrong", FAILED),
        (secret, GOOD),
        ("wrong", FAILED),
        (secret, GOOD),
        ("wrong", FAILED),
        ("wrong", LIMITED),
        // Whoever knows the secret pays for nobody else behind the same address.
        (secret, GOOD),
        ("wrong", LIMITED),
    ] {
        let request = from("127.0.0.1", &server, id, secret);
        assert_eq!(status(request).await, expected, "{secret}");
    }
    let cases = [
        ("127.0.0.2", id, secret, GOOD),
        ("127.0.0.2", id, &"wrong".to_owned(), FAILED),
        ("127.0.0.1", &other.id, &other.secret, GOOD),
    ];
    for (address, id, secret, expected) in cases {
        let request = from(address, &server, id, secret);
        assert_eq!(status(request).await, expected, "{address} {id}");
    }
    // However often it is tried, and whoever else is served.
    for _ in 0..10 {
        let request = from("127.0.0.1", &server, id, "wrong");
        assert_eq!(status(request).await, LIMITED);
    }
    let request = from("127.0.0.2", &server, id, secret);
    assert_eq!(status(request).await, GOOD);
}

/// Whether a client exists cannot be told from when it is limited.
#[tokio::test]
async fn unknown_clients_are_limited_like_known_ones() {
    let setup = Setup::new().set("limits.failures_per_minute", "2");
    let server = setup.start().await;
    for id in ["nobody", "not an id", server.app.id.as_str()] {
        for expected in [FAILED, FAILED, LIMITED] {
            let request = from("127.0.0.1", &server, id, "wrong");
            assert_eq!(status(request).await, expected, "{id}");
        }
    }
}

#[tokio::test]
async fn failures_about_many_clients_are_held_against_their_address() {
    let setup = Setup::new().set("limits.failures_per_address_per_minute", "4");
    let server = setup.start().await;
    let Registered { id, secret, .. } = &server.app;
    for number in 0..4 {
        let request = from("127.0.0.1", &server, &format!("guess-{number}"), "wrong");
        assert_eq!(status(request).await, FAILED);
    }
    let request = from("127.0.0.1", &server, "guess-4", "wrong");
    assert_eq!(status(request).await, LIMITED);
    for (address, secret, expected) in [
        ("127.0.0.1", "wrong", LIMITED),
        ("127.0.0.2", "wrong", FAILED),
        ("127.0.0.1", secret.as_str(), GOOD),
        ("127.0.0.2", secret.as_str(), GOOD),
    ] {
        let request = from(address, &server, id, secret);
        assert_eq!(status(request).await, expected, "{address} {secret}");
    }
}

/// All of them wait for the same look at the database.
#[tokio::test]
async fn nobody_gets_more_tries_by_asking_all_at_once() {
    for limit in ["failures_per_minute", "failures_per_address_per_minute"] {
        let setup = Setup::new().set(&format!("limits.{limit}"), "3");
        let server = setup.start().await;
        let tries = (0..12).map(|_| status(from("127.0.0.1", &server, "app", "wrong")));
        let mut statuses = join_all(tries).await;
        statuses.sort_unstable();
        assert_eq!(statuses[..3], [FAILED; 3], "{limit}");
        assert_eq!(statuses[3..], [LIMITED; 9], "{limit}");
    }
}

/// What this node does not know yet seems wrong at first.
#[tokio::test]
async fn what_proves_right_after_a_look_at_the_database_is_no_failure() {
    let setup = Setup::new()
        .set("sync.poll_interval_ms", "10000")
        .set("limits.failures_per_address_per_minute", "2");
    let server = setup.start().await;
    for number in 0..6 {
        let Registered { id, secret, .. } = server.register(&metadata()).await;
        let request = from("127.0.0.1", &server, &id, &secret);
        assert_eq!(status(request).await, GOOD, "{number}");
    }
}

#[tokio::test]
async fn requests_of_a_client_are_limited_and_nobody_else_can_use_them_up() {
    let setup = Setup::new()
        .set("limits.requests_per_minute_per_client", "3")
        .set("limits.failures_per_minute", "0");
    let server = setup.start().await;
    let other = server.register(&metadata()).await;
    let Registered { id, secret, .. } = &server.app;
    for _ in 0..6 {
        let request = from("127.0.0.2", &server, id, "wrong");
        assert_eq!(status(request).await, FAILED);
    }
    for (address, expected) in [
        ("127.0.0.1", GOOD),
        ("127.0.0.2", GOOD),
        ("127.0.0.1", GOOD),
        ("127.0.0.1", LIMITED),
        ("127.0.0.2", LIMITED),
    ] {
        let request = from(address, &server, id, secret);
        assert_eq!(status(request).await, expected, "{address}");
    }
    let request = from("127.0.0.1", &server, &other.id, &other.secret);
    assert_eq!(status(request).await, GOOD);
}

/// A public client proves nothing: whoever names it uses up the requests of one address alone.
#[tokio::test]
async fn requests_of_a_public_client_are_limited_for_each_address() {
    const UNAUTHORIZED: u16 = 400;
    let setup = Setup::new().set("limits.requests_per_minute_per_client", "2");
    let server = setup.start().await;
    let public = ClientMetadata {
        token_endpoint_auth_method: Some("none".to_owned()),
        ..metadata()
    };
    let Registered { id, .. } = server.register(&public).await;
    for (address, expected) in [
        ("127.0.0.1", UNAUTHORIZED),
        ("127.0.0.1", UNAUTHORIZED),
        ("127.0.0.1", LIMITED),
        ("127.0.0.2", UNAUTHORIZED),
        ("127.0.0.2", UNAUTHORIZED),
        ("127.0.0.2", LIMITED),
    ] {
        let address: IpAddr = address.parse().unwrap();
        let client = client().local_address(address).build().unwrap();
        let url = format!("http://{}/oauth2/token", server.public);
        let request = client.post(url).form(&[GRANT[0], ("client_id", &id)]);
        assert_eq!(status(request).await, expected, "{address}");
    }
}

/// Which statuses a wrong secret gets, sent by way of `from` under these words about its origin.
async fn forwarded(server: &TestServer, peer: &str, headers: &[&str]) -> Vec<u16> {
    let mut statuses = Vec::new();
    for header in headers {
        let request = from(peer, server, &server.app.id, "wrong");
        let request = match *header {
            "" => request,
            header => request.header("x-forwarded-for", header),
        };
        statuses.push(status(request).await);
    }
    statuses
}

#[tokio::test]
async fn behind_a_proxy_each_client_counts_by_its_own_address() {
    let setup = Setup::new()
        .set("limits.failures_per_minute", "1")
        .set("public.trusted_proxies", "127.0.0.9");
    let server = setup.start().await;
    for (peer, headers, expected) in [
        (
            "127.0.0.9",
            &[
                "203.0.113.5",
                "203.0.113.6",
                "203.0.113.5",
                "1.1.1.1, 203.0.113.6",
            ][..],
            &[FAILED, FAILED, LIMITED, LIMITED][..],
        ),
        // One network of IPv6 is one address.
        (
            "127.0.0.9",
            &["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"],
            &[FAILED, LIMITED, FAILED],
        ),
        // Whoever is no proxy is believed nothing.
        (
            "127.0.0.3",
            &["203.0.113.7", "203.0.113.8", ""],
            &[FAILED, LIMITED, LIMITED],
        ),
        // A proxy that tells nothing stands for everybody.
        ("127.0.0.9", &["", "", "unknown"], &[FAILED, FAILED, FAILED]),
    ] {
        let statuses = forwarded(&server, peer, headers).await;
        assert_eq!(statuses, expected, "{peer} {headers:?}");
    }
}

/// A network that proxies and users share: a user in it is told, and so is none of the proxies.
#[tokio::test]
async fn a_user_in_a_trusted_network_counts_by_its_own_address() {
    let setup = Setup::new()
        .set("limits.failures_per_minute", "1")
        .set("public.trusted_proxies", "127.0.0.0/8");
    let server = setup.start().await;
    let headers = ["127.0.0.7", "127.0.0.8", "127.0.0.7"];
    let statuses = forwarded(&server, "127.0.0.9", &headers).await;
    assert_eq!(statuses, [FAILED, FAILED, LIMITED]);
}
