//! TLS on the public listener, and a certificate that is replaced while it is in use.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use countersign::{
    clock::{ManualClock, Timestamp},
    outbound,
};
use reqwest::Client;
use rustls::{ClientConfig, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use crate::support::{
    database::{Database, Engine},
    openmetrics,
    process::{Installation, free_address, until},
    server::{GRANT, Setup, TestServer},
    soon,
};

/// The files of a certificate and its key.
pub(super) struct Pair {
    folder: TempDir,
}

impl Pair {
    pub(super) fn new() -> Self {
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        pair.replace();
        pair
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("chain.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Writes another certificate with another key; returns the certificate.
    fn replace(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let chain = made.cert.pem();
        fs::write(self.certificate(), &chain).unwrap();
        fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(self.key(), fs::Permissions::from_mode(0o600)).unwrap();
        CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()
    }

    pub(super) fn set(&self, setup: Setup) -> Setup {
        setup
            .set("public.trusted_proxies", "")
            .set(
                "public.tls.certificate",
                self.certificate().to_str().unwrap(),
            )
            .set("public.tls.key", self.key().to_str().unwrap())
    }
}

/// A client that trusts these certificates alone.
fn trusting(certificates: &[&CertificateDer<'static>]) -> Client {
    let roots = certificates.iter().map(|one| (*one).clone().into_owned());
    Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(outbound::tls(roots).unwrap())
        .build()
        .unwrap()
}

/// Whether a client that trusts these is served. It resumes no session of another one.
async fn is_served(server: &TestServer, certificates: &[&CertificateDer<'static>]) -> bool {
    let url = format!("https://{}/health/live", server.public);
    let answer = soon(trusting(certificates).get(url).send()).await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test]
async fn tokens_are_issued_over_tls_and_over_nothing_else() {
    let files = Pair::new();
    let root = files.replace();
    let server = files.set(Setup::new()).start().await;
    let request = |scheme: &str| {
        trusting(&[&root])
            .post(format!("{scheme}://{}/oauth2/token", server.public))
            .basic_auth(&server.app.id, Some(&server.app.secret))
            .form(&GRANT)
            .send()
    };
    assert_eq!(soon(request("https")).await.unwrap().status(), 200);
    assert!(soon(request("http")).await.is_err());
    assert!(!is_served(&server, &[]).await);
}

/// Which protocol a client gets that offers these.
async fn negotiated(
    server: &TestServer,
    root: &CertificateDer<'static>,
    version: &'static rustls::SupportedProtocolVersion,
    offered: &[&[u8]],
) -> Option<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = soon(connector.connect(name, server.connect().await)).await;
    let stream = stream.ok()?;
    Some(
        stream
            .get_ref()
            .1
            .alpn_protocol()
            .unwrap_or_default()
            .to_vec(),
    )
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_http_1_1_alone() {
    let files = Pair::new();
    let root = files.replace();
    let server = files.set(Setup::new()).start().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let get = |offered| negotiated(&server, &root, version, offered);
        assert_eq!(get(&[]).await, Some(vec![]));
        assert_eq!(get(&[b"h2", b"http/1.1"]).await, Some(b"http/1.1".to_vec()));
        assert_eq!(get(&[b"h2"]).await, None);
    }
}

/// Lets the time go on until it is so.
async fn becomes(clock: &ManualClock, mut is_so: impl AsyncFnMut() -> bool) {
    soon(async {
        while !is_so().await {
            clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_under_traffic_and_a_broken_one_is_not() {
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let files = Pair::new();
    let first = files.replace();
    // However far the clock goes on in the middle of a handshake.
    let setup = Setup::new().set("limits.request_timeout_seconds", "0");
    let server = files.set(setup.clock(clock.clone())).start().await;
    let old = [&first];
    assert!(is_served(&server, &old).await);

    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let chain = made.cert.pem();
    let second = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let (anyone, new) = ([&first, &second], [&second]);
    let (stop, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let traffic = async {
        while !stop.load(Ordering::Relaxed) {
            assert!(
                is_served(&server, &anyone).await,
                "a connection was refused"
            );
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let replacing = async {
        // The certificate comes first, without its key.
        fs::write(files.certificate(), &chain).unwrap();
        for _ in 0..20 {
            clock.advance(Duration::from_secs(1));
            assert!(is_served(&server, &old).await);
        }
        fs::write(files.key(), made.signing_key.serialize_pem()).unwrap();
        becomes(&clock, async || is_served(&server, &new).await).await;
        assert!(!is_served(&server, &old).await);
        let (_, before) = openmetrics::scrape(server.admin).await;
        // What cannot be used changes nothing.
        for (certificate, key) in [("", None), ("nonsense", None), (chain.as_str(), Some(""))] {
            fs::write(files.certificate(), certificate).unwrap();
            if let Some(key) = key {
                fs::write(files.key(), key).unwrap();
            }
            for _ in 0..12 {
                clock.advance(Duration::from_secs(1));
                assert!(is_served(&server, &new).await);
            }
        }
        let (_, after) = openmetrics::scrape(server.admin).await;
        let reloads = |outcome: &str| {
            let family = "countersign_certificate_reloads_total";
            let series = format!("{family}{{outcome=\"{outcome}\"}}");
            (before.value(&series), after.value(&series))
        };
        let (replaced, still) = reloads("succeeded");
        assert!((replaced - 1.0).abs() < f64::EPSILON && (still - 1.0).abs() < f64::EPSILON);
        let (known, more) = reloads("failed");
        assert!(known >= 1.0 && more > known);
        let third = files.replace();
        stop.store(true, Ordering::Relaxed);
        becomes(&clock, async || is_served(&server, &[&third]).await).await;
    };
    tokio::join!(traffic, replacing);
    assert!(count.load(Ordering::Relaxed) > 20);
}

#[tokio::test]
async fn a_node_with_tls_logs_a_broken_certificate_once_and_is_found_healthy() {
    let database = Database::create(Engine::Sqlite).await;
    let files = Pair::new();
    let installation = Installation::production(database.url())
        .await
        .with("public.trusted_proxies", "")
        .with("public.tls.certificate", files.certificate().display())
        .with("public.tls.key", files.key().display());
    let node = installation.launch(free_address());
    let admin = format!("admin.listen={}", node.admin);
    until("a healthy node", async || {
        let outcome = installation.run(&["health", "--set", &admin]).await;
        outcome.status.success().then_some(())
    })
    .await;
    fs::write(files.key(), "").unwrap();
    let complaints = || node.process.stderr().matches("public.tls.key").count();
    until("a complaint", async || (complaints() > 0).then_some(())).await;
    files.replace();
    until("another certificate", async || {
        let log = node.process.stderr();
        log.contains("was replaced").then_some(())
    })
    .await;
    assert_eq!(complaints(), 1);
}
