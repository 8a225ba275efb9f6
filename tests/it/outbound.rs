//! Fetching from others: what is asked, and what is taken of the answer.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use countersign::{
    clock::{AgreedClock, Clock, ManualClock, SystemClock, Timestamp},
    outbound::{
        Document, FetchError, LONGEST_DOCUMENT, Outbound, OutboundError, Resolver, Settings,
        SystemResolver,
    },
};
use url::Url;

use crate::support::{site::Site, soon};

/// Long enough never to pass in a test.
const TIMEOUT: Duration = Duration::from_mins(10);

fn settings(allowed: &[&str]) -> Settings {
    Settings {
        allowed_networks: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        ca_certificates: None,
        timeout: TIMEOUT,
    }
}

fn clock(clock: impl Clock) -> AgreedClock {
    AgreedClock::new(Arc::new(clock))
}

fn outbound(settings: &Settings, resolver: impl Resolver) -> Outbound {
    let resolver: Arc<dyn Resolver> = Arc::new(resolver);
    Outbound::new(settings, &resolver, clock(SystemClock::new())).unwrap()
}

fn system() -> Arc<dyn Resolver> {
    Arc::new(SystemResolver)
}

async fn fetch(outbound: &Outbound, url: &str) -> Result<Document, FetchError> {
    soon(outbound.fetch(&Url::parse(url).unwrap())).await
}

/// Answers with the next of its lists each time it is asked, and with the last for ever.
struct Names {
    answers: Mutex<Vec<Vec<IpAddr>>>,
    asked: Arc<AtomicUsize>,
}

impl Names {
    fn new(answers: &[&[&str]]) -> Self {
        let parse = |list: &&[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
        Self {
            answers: Mutex::new(answers.iter().map(parse).collect()),
            asked: Arc::default(),
        }
    }
}

#[async_trait]
impl Resolver for Names {
    async fn addresses(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        if answers.len() > 1 {
            return Ok(answers.remove(0));
        }
        Ok(answers[0].clone())
    }
}

/// RFC 6890, in every spelling that a URL has for an address. Nobody is connected to.
#[tokio::test]
async fn an_address_that_is_not_of_the_world_outside_is_not_asked() {
    let site = Site::plain();
    let outbound = outbound(&settings(&[]), SystemResolver);
    let port = site.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "%31%32%37.0.0.1",
        "①②⑦.⓪.⓪.①",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[::ffff:169.254.169.254]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
        "localhost",
        "LOCALHOST",
    ] {
        for scheme in ["https", "http"] {
            let url = format!("{scheme}://{host}:{port}/jwks.json");
            let refused = fetch(&outbound, &url).await;
            assert!(
                matches!(refused, Err(FetchError::Forbidden)),
                "{url}: {refused:?}"
            );
        }
    }
    assert_eq!(site.connections(), 0);
}

#[tokio::test]
async fn a_name_with_one_forbidden_address_is_not_asked() {
    let site = Site::plain();
    for addresses in [
        &["127.0.0.1"][..],
        &["1.1.1.1", "127.0.0.1"],
        &["127.0.0.1", "1.1.1.1"],
        &["::ffff:127.0.0.1"],
        &["64:ff9b::127.0.0.1"],
        &["169.254.169.254"],
        &["fd00::1"],
    ] {
        let outbound = outbound(&settings(&[]), Names::new(&[addresses]));
        let url = format!("https://keys.example:{}/", site.port());
        let refused = fetch(&outbound, &url).await;
        assert!(
            matches!(refused, Err(FetchError::Forbidden)),
            "{addresses:?}: {refused:?}"
        );
    }
    assert_eq!(site.connections(), 0);
}

/// Plain http would let anybody on the way answer.
#[tokio::test]
async fn plain_http_is_for_allowed_networks_alone() {
    let world = outbound(&settings(&["10.0.0.0/8"]), Names::new(&[&["1.1.1.1"]]));
    for url in ["http://keys.example/", "http://1.1.1.1/"] {
        let refused = fetch(&world, url).await;
        assert!(
            matches!(refused, Err(FetchError::Forbidden)),
            "{url}: {refused:?}"
        );
    }
    let site = Site::plain();
    site.answer("", "{}");
    let allowed = outbound(&settings(&["127.0.0.1/32"]), Names::new(&[&["127.0.0.1"]]));
    for host in ["keys.example", "127.0.0.1", "[::ffff:127.0.0.1]"] {
        // A mapped address is an IPv6 socket, which this machine may not have.
        if host.starts_with('[') {
            let tried = fetch(&allowed, &site.url_at(host, "/")).await;
            assert!(!matches!(tried, Err(FetchError::Forbidden)));
            continue;
        }
        let document = fetch(&allowed, &site.url_at(host, "/")).await.unwrap();
        assert_eq!(document.body, b"{}");
    }
}

#[tokio::test]
async fn only_http_urls_without_credentials_are_fetched() {
    let outbound = outbound(&settings(&["127.0.0.0/8"]), Names::new(&[&["127.0.0.1"]]));
    for url in [
        "ftp://keys.example/",
        "file:///etc/passwd",
        "data:application/json,{}",
        "unix:/run/socket",
        "https://user@keys.example/",
        "https://user:password@keys.example/",
        "https://:password@keys.example/",
    ] {
        let refused = fetch(&outbound, url).await;
        assert!(
            matches!(refused, Err(FetchError::Url)),
            "{url}: {refused:?}"
        );
    }
}

/// The name is looked up for each connection, and what it meant before counts for nothing.
#[tokio::test]
async fn a_name_that_changes_its_address_is_judged_again() {
    let site = Site::plain();
    let inner = Site::plain_at("127.0.0.2");
    site.answer("Connection: keep-alive\r\n", "{}");
    let names = Names::new(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let asked = Arc::clone(&names.asked);
    let outbound = outbound(&settings(&["127.0.0.1/32"]), names);
    let url = format!("http://keys.example:{}/", site.port());
    assert_eq!(fetch(&outbound, &url).await.unwrap().body, b"{}");
    // One look for one connection: nothing comes between looking and connecting.
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    for port in [site.port(), inner.port()] {
        let url = format!("http://keys.example:{port}/");
        let refused = fetch(&outbound, &url).await;
        assert!(matches!(refused, Err(FetchError::Forbidden)), "{refused:?}");
    }
    assert_eq!((site.connections(), inner.connections()), (1, 0));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let site = Site::plain();
    let target = Site::plain();
    target.answer("", "{}");
    let outbound = outbound(&settings(&["127.0.0.1/32"]), SystemResolver);
    for status in [301, 302, 303, 307, 308] {
        site.answer_raw(format!(
            "HTTP/1.1 {status} Moved\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            target.url("/")
        ));
        let refused = fetch(&outbound, &site.url("/")).await;
        assert!(
            matches!(refused, Err(FetchError::Status(_))),
            "{status}: {refused:?}"
        );
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn only_a_complete_answer_with_status_200_is_taken() {
    let site = Site::plain();
    let outbound = outbound(&settings(&["127.0.0.1/32"]), SystemResolver);
    for status in [201, 204, 206, 400, 404, 500, 503] {
        site.fail(status);
        let refused = fetch(&outbound, &site.url("/")).await;
        assert!(
            matches!(refused, Err(FetchError::Status(_))),
            "{status}: {refused:?}"
        );
    }
    for answer in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"nonsense\r\n\r\n",
    ] {
        site.answer_raw(answer);
        let refused = fetch(&outbound, &site.url("/")).await;
        assert!(
            matches!(refused, Err(FetchError::Unreachable(_))),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_document_of_64_kib_is_read_and_a_longer_one_is_not() {
    let site = Site::plain();
    let outbound = outbound(&settings(&["127.0.0.1/32"]), SystemResolver);
    site.answer("", &" ".repeat(LONGEST_DOCUMENT));
    let document = fetch(&outbound, &site.url("/")).await.unwrap();
    assert_eq!(document.body.len(), LONGEST_DOCUMENT);
    let longer = " ".repeat(LONGEST_DOCUMENT + 1);
    site.answer("", &longer);
    let refused = fetch(&outbound, &site.url("/")).await;
    assert!(matches!(refused, Err(FetchError::TooLong)), "{refused:?}");
    // One that does not say its length.
    site.answer_raw(format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{longer}"
    ));
    let refused = fetch(&outbound, &site.url("/")).await;
    assert!(matches!(refused, Err(FetchError::TooLong)), "{refused:?}");
}

#[tokio::test]
async fn a_site_that_does_not_answer_in_time_is_given_up() {
    let site = Site::plain();
    for partial in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"] {
        let manual = ManualClock::new(Timestamp::from_seconds(1_000_000));
        let outbound = Outbound::new(
            &settings(&["127.0.0.1/32"]),
            &system(),
            clock(manual.clone()),
        )
        .unwrap();
        site.stall_after(partial);
        let before = site.connections();
        let url = site.url("/");
        let fetching = tokio::spawn(async move { fetch(&outbound, &url).await });
        soon(async {
            while site.connections() == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(!fetching.is_finished());
        manual.advance(TIMEOUT);
        let given_up = soon(fetching).await.unwrap();
        assert!(matches!(given_up, Err(FetchError::TooSlow)), "{given_up:?}");
    }
}

/// RFC 9111 §5.2.2.
#[tokio::test]
async fn the_answer_tells_for_how_long_it_may_be_kept() {
    let site = Site::plain();
    let outbound = outbound(&settings(&["127.0.0.1/32"]), SystemResolver);
    for (headers, expected) in [
        ("", None),
        ("Cache-Control: max-age=60\r\n", Some(60)),
        (
            "cache-control: public, Max-Age=60, stale-if-error=5\r\n",
            Some(60),
        ),
        (
            "Cache-Control: max-age=60\r\nCache-Control: no-store\r\n",
            Some(0),
        ),
        ("Cache-Control: no-cache\r\n", Some(0)),
        ("Cache-Control: max-age=-1\r\n", None),
        ("Cache-Control: max-age=99999999999999999999999\r\n", None),
        ("Cache-Control: s-maxage=60\r\n", None),
    ] {
        site.answer(headers, "{}");
        let document = fetch(&outbound, &site.url("/")).await.unwrap();
        assert_eq!(
            document.max_age,
            expected.map(Duration::from_secs),
            "{headers}"
        );
    }
}

#[tokio::test]
async fn a_certificate_is_trusted_if_its_root_is_set_and_not_otherwise() {
    let site = Site::secure();
    site.answer("", "{}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    std::fs::write(&path, &site.certificate).unwrap();
    let mut settings = settings(&["127.0.0.1/32"]);
    let untrusting = outbound(&settings, SystemResolver);
    let refused = fetch(&untrusting, &site.url("/")).await;
    assert!(
        matches!(refused, Err(FetchError::Unreachable(_))),
        "{refused:?}"
    );
    settings.ca_certificates = Some(path.clone());
    let trusting = outbound(&settings, Names::new(&[&["127.0.0.1"]]));
    for host in ["127.0.0.1", "localhost"] {
        let document = fetch(&trusting, &site.url_at(host, "/")).await.unwrap();
        assert_eq!(document.body, b"{}");
    }
    let refused = fetch(&trusting, &site.url_at("another.example", "/")).await;
    assert!(
        matches!(refused, Err(FetchError::Unreachable(_))),
        "{refused:?}"
    );
}

#[test]
fn a_file_without_certificates_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("absent.pem", None),
        ("empty.pem", Some("")),
        (
            "nonsense.pem",
            Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"),
        ),
        (
            "no-certificate.pem",
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ),
    ] {
        let path = folder.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let settings = Settings {
            ca_certificates: Some(path),
            ..settings(&[])
        };
        let error = Outbound::new(&settings, &system(), clock(SystemClock::new()));
        let error = error.unwrap_err();
        assert!(matches!(error, OutboundError::Roots { .. }), "{error}");
        assert!(error.to_string().contains("outbound.ca_certificates"));
        assert!(error.to_string().contains(name));
    }
}
