//! A real nginx in front of hosts that are protected, with the locations that the documentation gives,
//! and the application behind it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use countersign_verifier::base64url;
use tempfile::TempDir;

use super::process::{free_address, until};

/// The locations of a protected host, as documented.
const LOCATIONS: &str = "docs/forward-auth.nginx.conf";

/// nginx before some hosts. Ends when it is dropped.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Nginx {
    /// nginx before these hosts, each with the id and secret of the client that protects it.
    pub(crate) async fn start(hosts: &[(&str, &str, &str)], countersign: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, application) = (free_address(), echo());
        let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join(LOCATIONS);
        let documented = fs::read_to_string(documented).unwrap();
        let mut servers = String::new();
        for (host, id, secret) in hosts {
            let locations = documented
                .replace("127.0.0.1:8080", &countersign.to_string())
                .replace("127.0.0.1:3000", &application.to_string())
                .replace("Y2xpZW50OnNlY3JldA==", &base64(&format!("{id}:{secret}")));
            let names = format!("listen {address}; server_name {host};");
            servers += &["server { ", &names, "\n", &locations, "}\n"].concat();
        }
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 64; }}
             http {{
                 access_log off;
                 client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
                 fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
                 {servers}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "nginx", "-e", "stderr", "-c"])
            .arg(&file)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx: scripts/test installs it");
        until("nginx", async || TcpStream::connect(address).ok()).await;
        Self {
            address,
            process,
            _folder: folder,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The base64 of RFC 4648 §4, with padding.
fn base64(text: &str) -> String {
    let mut encoded = base64url::encode(text.as_bytes())
        .replace('-', "+")
        .replace('_', "/");
    while !encoded.len().is_multiple_of(4) {
        encoded.push('=');
    }
    encoded
}

/// An application that answers with the request head that it has got, on a page. Ends with the process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let lines = BufReader::new(connection.try_clone().unwrap()).lines();
            let head: Vec<String> = lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let head = head.join("\n").replace('&', "&amp;").replace('<', "&lt;");
            let page = format!("<!doctype html><h1>Wiki</h1><pre>{head}</pre>");
            let _ = write!(
                connection,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    address
}
