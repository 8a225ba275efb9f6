//! A web site of somebody else, on loopback.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};
use rustls_pki_types::PrivateKeyDer;

/// What it does with a request.
#[derive(Clone)]
enum Behaviour {
    Answer(Vec<u8>),
    /// Says this and nothing more until the other side gives up.
    Begin(Vec<u8>),
}

/// A site that answers every request in the same way, until it is told another. Ends with the
/// process.
pub(crate) struct Site {
    address: SocketAddr,
    scheme: &'static str,
    /// Its certificate, as PEM; it signs itself.
    pub(crate) certificate: String,
    behaviour: Arc<Mutex<Behaviour>>,
    connections: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<u8>>>,
}

impl Site {
    /// A site without TLS, at a free port of this address.
    pub(crate) fn plain_at(ip: &str) -> Self {
        Self::begin(ip, None, String::new())
    }

    pub(crate) fn plain() -> Self {
        Self::plain_at("127.0.0.1")
    }

    /// A site with TLS that is called `localhost`, and 127.0.0.1.
    pub(crate) fn secure() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let key = KeyPair::serialize_der(&signing_key);
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.into()))
            .unwrap();
        Self::begin("127.0.0.1", Some(Arc::new(tls)), cert.pem())
    }

    fn begin(ip: &str, tls: Option<Arc<ServerConfig>>, certificate: String) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let site = Self {
            address: listener.local_addr().unwrap(),
            scheme: if tls.is_some() { "https" } else { "http" },
            certificate,
            behaviour: Arc::new(Mutex::new(Behaviour::Begin(Vec::new()))),
            connections: Arc::default(),
            bodies: Arc::default(),
        };
        let behaviour = Arc::clone(&site.behaviour);
        let connections = Arc::clone(&site.connections);
        let bodies = Arc::clone(&site.bodies);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let connection = connection.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (behaviour, tls) = (Arc::clone(&behaviour), tls.clone());
                let bodies = Arc::clone(&bodies);
                thread::spawn(move || match tls {
                    None => answer(connection, &behaviour, &bodies),
                    Some(tls) => {
                        let tls = ServerConnection::new(tls).unwrap();
                        answer(StreamOwned::new(tls, connection), &behaviour, &bodies);
                    }
                });
            }
        });
        site
    }

    /// From now on, answers every request with these bytes.
    pub(crate) fn answer_raw(&self, answer: impl Into<Vec<u8>>) {
        *self.behaviour.lock().unwrap() = Behaviour::Answer(answer.into());
    }

    /// From now on, answers with this document and these header lines, each ending in CRLF.
    pub(crate) fn answer(&self, headers: &str, document: &str) {
        let length = document.len();
        self.answer_raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\
             Connection: close\r\n\r\n{document}"
        ));
    }

    /// From now on, answers with this page.
    pub(crate) fn page(&self, html: &str) {
        let length = html.len();
        self.answer_raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{html}"
        ));
    }

    /// From now on, answers with this status and nothing else.
    pub(crate) fn fail(&self, status: u16) {
        self.answer_raw(format!(
            "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ));
    }

    /// From now on, begins every answer with these bytes and goes no further.
    pub(crate) fn stall_after(&self, beginning: impl Into<Vec<u8>>) {
        *self.behaviour.lock().unwrap() = Behaviour::Begin(beginning.into());
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL of a document there; `host` is what stands for it.
    pub(crate) fn url_at(&self, host: &str, path: &str) -> String {
        format!("{}://{host}:{}{path}", self.scheme, self.port())
    }

    pub(crate) fn url(&self, path: &str) -> String {
        self.url_at("127.0.0.1", path)
    }

    /// The bodies of all requests, one after the other.
    pub(crate) fn bodies(&self) -> Vec<u8> {
        self.bodies.lock().unwrap().clone()
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn answer(
    mut connection: impl Read + Write,
    behaviour: &Mutex<Behaviour>,
    bodies: &Mutex<Vec<u8>>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        // The other side may go at any time.
        match connection.read(&mut byte) {
            Ok(1) => request.extend(byte),
            _ => return,
        }
    }
    let mut body = vec![0; length(&request)];
    if connection.read_exact(&mut body).is_err() {
        return;
    }
    bodies.lock().unwrap().extend(body);
    let behaviour = behaviour.lock().unwrap().clone();
    match behaviour {
        Behaviour::Answer(answer) => {
            let _ = connection.write_all(&answer);
            let _ = connection.flush();
        }
        Behaviour::Begin(beginning) => {
            let _ = connection.write_all(&beginning);
            let _ = connection.flush();
            let _ = connection.read(&mut [0]);
        }
    }
}

/// How long the body is that follows this head.
fn length(head: &[u8]) -> usize {
    let head = String::from_utf8(head.to_vec()).unwrap().to_lowercase();
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    line.map_or(0, |length| length.trim().parse().unwrap())
}
