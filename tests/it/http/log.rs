//! What is told of requests: an id to the client, and to the log nothing that is secret.

use std::{collections::HashSet, fs, net::SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    client,
    process::{Installation, Node},
    server::{FORM, GRANT, TestServer, answer, send_raw},
};

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

/// Limits would be at a loss behind such a proxy, and nobody would know why.
#[tokio::test]
async fn a_proxy_that_writes_no_address_is_warned_of_once_and_without_its_words() {
    let installation = Installation::development().with("public.trusted_proxies", "127.0.0.1/32");
    let mut node = installation.start().await;
    let url = format!("http://{}/health/live", node.public);
    let client = client().build().unwrap();
    for word in ["203.0.113.5:80", "hunter2", "hunter2"] {
        let request = client.get(&url).header("x-forwarded-for", word);
        assert_eq!(answer(request).await.status, 200);
    }
    node.process.terminate();
    node.process.ended().await;
    let log = node.process.stderr();
    let warnings = log.matches("a trusted proxy has written").count();
    assert_eq!(warnings, 1, "{log}");
    assert!(
        log.contains("203.0.113.5") && !log.contains("hunter2"),
        "{log}"
    );
}

/// Even with every log line there is.
#[tokio::test]
async fn no_secret_gets_into_the_log() {
    let installation = Installation::development().with("telemetry.log_filter", "trace");
    let mut node = installation.start().await;
    // What a private key looks like in PEM, as a JWK, and what an encoded PKCS#8 begins with.
    let mut secrets = ["PRIVATE KEY", "\"d\":", "MIGHAgEA"]
        .map(str::to_owned)
        .to_vec();
    let kept = fs::read(installation.path("data/development.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    secrets.push(kept["user:demo"].as_str().unwrap().to_owned());
    // How a stored hash of a password begins.
    secrets.push("$argon2".to_owned());
    for id in ["demo", "ops"] {
        let secret = kept[id].as_str().unwrap();
        secrets.push(secret.to_owned());
        secrets.push(STANDARD.encode(format!("{id}:{secret}")));
    }
    let master_keys = installation.master_key_files();
    assert_eq!(master_keys.len(), 1);
    let master_key = fs::read_to_string(&master_keys[0]).unwrap();
    secrets.push(master_key.trim().to_owned());

    secrets.extend(send_requests(node.public, kept["demo"].as_str().unwrap()).await);
    secrets.extend(send_passwords(&node, kept["ops"].as_str().unwrap()).await);

    node.process.terminate();
    let status = node.process.ended().await;
    let (log, output) = (node.process.stderr(), node.process.stdout());
    assert!(status.success(), "{log}");
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
    // The lines to paste are the one place that shows a secret.
    let banner = output.lines().filter(|line| !line.starts_with("curl -s "));
    for line in log.lines().chain(banner) {
        for secret in &secrets {
            assert!(!line.contains(secret), "{secret} stands in the line {line}");
        }
    }
}

/// Gives users passwords, good ones and bad ones; returns them.
async fn send_passwords(node: &Node, ops_secret: &str) -> Vec<String> {
    let client = client().build().unwrap();
    let issuer = format!("http://{}", node.public);
    let request = client
        .post(format!("{issuer}/oauth2/token"))
        .basic_auth("ops", Some(ops_secret))
        .form(&[GRANT[0], ("resource", &format!("{issuer}/admin"))]);
    let token = answer(request).await.access_token();
    let passwords = ["hunter2 hunted one too many", "hunter2-in-use"];
    let users = node.admin_url("/admin/v1/users");
    for (password, expected) in passwords.iter().zip([201, 400]) {
        let user = json!({ "username": "ada", "password": password });
        let request = client.post(&users).bearer_auth(&token).json(&user);
        let created = answer(request).await;
        assert_eq!(created.status, expected, "{created:?}");
        assert!(!created.body.contains("hunter2"), "{created:?}");
    }
    passwords.map(str::to_owned).to_vec()
}

/// Sends secrets wherever a request can hold one; returns all that must not be seen.
async fn send_requests(address: SocketAddr, demo_secret: &str) -> Vec<String> {
    let url = format!("http://{address}/oauth2/token");
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
    let client = client().build().unwrap();
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
        (
            client.get(format!("http://{address}/{path}?code={query}")),
            404,
        ),
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
                .json(&json!({"client_secret": broken, "token": token})),
            400,
        ),
    ] {
        assert_eq!(answer(request).await.status, expected);
    }
    let garbage = format!("{broken} {token}\r\nAuthorization: {broken}\r\n\r\n");
    let answer = send_raw(address, &garbage).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");

    secrets.push(wrong_basic);
    // Also without its signature a token tells things about somebody.
    secrets.extend(token.split('.').skip(1).map(str::to_owned));
    secrets
}
