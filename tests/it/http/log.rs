//! What is told of requests: an id to the client, and to the log nothing that is secret.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, Method};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::server::{FORM, GRANT, TestServer, answer};

#[tokio::test]
async fn every_answer_carries_an_id_of_its_own() {
    let server = TestServer::start().await;
    let mut seen = HashSet::new();
    for (method, path) in [
        (Method::GET, "/.well-known/jwks.json"),
        (Method::HEAD, "/.well-known/jwks.json"),
        (Method::OPTIONS, "/.well-known/jwks.json"),
        (Method::GET, "/.well-known/oauth-authorization-server"),
        (Method::GET, "/health/live"),
        (Method::GET, "/health/ready"),
        (Method::GET, "/oauth2/token"),
        (Method::POST, "/oauth2/token"),
        (Method::OPTIONS, "/oauth2/token"),
        (Method::GET, "/nowhere"),
    ] {
        // Not one that the sender chooses.
        let request = server.request(method, path).header("x-request-id", "mine");
        let answer = answer(request).await;
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(uuid::Uuid::try_parse(id).unwrap().get_version_num(), 7);
        assert!(seen.insert(id.to_owned()), "{path}");
    }
    let granted = server.token().await;
    assert!(seen.insert(granted.header("x-request-id").unwrap().to_owned()));
}

/// Even with every log line there is.
#[tokio::test]
async fn no_secret_gets_into_the_log() {
    let mut process = Process::start();
    let (issuer, mut stdout) = process.read_banner();
    // What a private key looks like in PEM, as a JWK, and what an encoded PKCS#8 begins with.
    let mut secrets = ["PRIVATE KEY", "\"d\":", "MIGHAgEA"]
        .map(str::to_owned)
        .to_vec();
    let kept = fs::read(process.folder.path().join("data/development.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    for id in ["demo", "ops"] {
        let secret = kept[id].as_str().unwrap();
        secrets.push(secret.to_owned());
        secrets.push(STANDARD.encode(format!("{id}:{secret}")));
    }
    for file in fs::read_dir(process.folder.path().join("keys")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "key") {
            secrets.push(fs::read_to_string(path).unwrap().trim().to_owned());
        }
    }
    assert_eq!(secrets.len(), 8, "there is one master key");

    secrets.extend(send_requests(&issuer, kept["demo"].as_str().unwrap()).await);

    let log = process.stop();
    let mut output = String::new();
    stdout.read_to_string(&mut output).unwrap();
    // It was written, and in detail.
    for expected in [
        "TRACE",
        "DEBUG",
        "/oauth2/token",
        "client_authentication",
        "answered",
    ] {
        assert!(log.contains(expected), "the log has no {expected}:\n{log}");
    }
    for line in log.lines().chain(output.lines()) {
        for secret in &secrets {
            assert!(!line.contains(secret), "{secret} stands in the line {line}");
        }
    }
}

/// Sends secrets wherever a request can hold one; returns all that must not be seen.
async fn send_requests(issuer: &str, demo_secret: &str) -> Vec<String> {
    let url = format!("{issuer}/oauth2/token");
    let mut secrets: Vec<String> = [
        "header", "body", "query", "path", "bearer", "cookie", "broken",
    ]
    .iter()
    .map(|place| format!("hunter2-in-{place}"))
    .collect();
    let [header, body, query, path, bearer, cookie, broken] = &secrets[..] else {
        unreachable!()
    };
    let wrong_basic = STANDARD.encode(format!("demo:{header}"));
    let client = Client::new();
    let good = client
        .post(&url)
        .basic_auth("demo", Some(demo_secret))
        .form(&GRANT);
    let token = answer(good).await.access_token();
    for (request, expected) in [
        (
            client
                .post(&url)
                .basic_auth("demo", Some(header))
                .form(&GRANT),
            401,
        ),
        (
            client
                .post(&url)
                .form(&[GRANT[0], ("client_id", "demo"), ("client_secret", body)]),
            401,
        ),
        (
            client
                .post(format!("{url}?client_secret={query}&access_token={token}"))
                .header("cookie", cookie)
                .form(&GRANT),
            401,
        ),
        (client.get(format!("{issuer}/{path}?code={query}")), 404),
        (client.post(&url).bearer_auth(bearer).form(&GRANT), 401),
        (client.post(&url).bearer_auth(&token).form(&GRANT), 401),
        (
            client
                .post(&url)
                .header("content-type", FORM)
                .body(format!("grant_type=%&client_secret={broken}")),
            400,
        ),
        (
            client
                .post(&url)
                .json(&serde_json::json!({"client_secret": broken, "token": token})),
            400,
        ),
    ] {
        assert_eq!(answer(request).await.status, expected);
    }
    let mut connection = TcpStream::connect(issuer.strip_prefix("http://").unwrap()).unwrap();
    let garbage = format!("{broken} {token}\r\nAuthorization: {broken}\r\n\r\n");
    connection.write_all(garbage.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");

    secrets.push(wrong_basic);
    // Also without its signature a token tells things about somebody.
    secrets.extend(token.split('.').skip(1).map(str::to_owned));
    secrets
}

/// A development start in a folder of its own, with everything logged.
struct Process {
    child: Child,
    folder: TempDir,
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // A pipe that nobody reads would fill up.
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_countersign"))
            .current_dir(&folder)
            .env_clear()
            .env("COUNTERSIGN__PUBLIC__LISTEN", "127.0.0.1:0")
            .env("COUNTERSIGN__ADMIN__LISTEN", "127.0.0.1:0")
            .env("COUNTERSIGN__TELEMETRY__LOG_FILTER", "trace")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Reads the banner; returns the issuer it names, and the rest of standard output.
    fn read_banner(&mut self) -> (String, BufReader<ChildStdout>) {
        let mut stdout = BufReader::new(self.child.stdout.take().unwrap());
        let mut issuer = None;
        let mut line = String::new();
        while stdout.read_line(&mut line).unwrap() > 0 {
            // The lines to paste are the one place that shows a secret.
            assert!(
                line.starts_with("curl -s ") || !line.contains("cs_cs_"),
                "{line}"
            );
            if let Some((_, rest)) = line.split_once("Countersign serves ") {
                issuer = rest.split(' ').next().map(str::to_owned);
            }
            if line.contains("development.json") {
                break;
            }
            line.clear();
        }
        (issuer.expect("the banner names the issuer"), stdout)
    }

    /// Ends the process as an operator does; returns what it has logged.
    fn stop(&mut self) -> String {
        let id = self.child.id().to_string();
        let signalled = Command::new("kill").arg(id).status().unwrap();
        assert!(signalled.success());
        let status = self.child.wait().unwrap();
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        assert!(status.success(), "{log}");
        log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Does nothing when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
