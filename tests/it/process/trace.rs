//! Traces: what a collector gets, and what becomes of the service without one.

use std::{fs, time::Duration};

use reqwest::StatusCode;
use serde_json::Value;

use crate::support::{
    process::{Credentials, Installation, Node, Stopwatch, free_address, http, until},
    site::Site,
};

/// A collector that takes whatever comes.
fn taking(collector: Site) -> Site {
    collector.answer("", "");
    collector
}

fn demo(installation: &Installation) -> Credentials {
    let kept = fs::read(installation.path("data/development.json")).unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    Credentials {
        id: "demo".to_owned(),
        secret: kept["demo"].as_str().unwrap().to_owned(),
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A string as protobuf writes it, without the number of its field.
fn text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    [&[length], text.as_bytes()].concat()
}

async fn collected(collector: &Site, part: &[u8]) -> Vec<u8> {
    until("the trace", async || {
        Some(collector.bodies()).filter(|bodies| holds(bodies, part))
    })
    .await
}

/// Lines of the log with this text.
fn lines(node: &Node, text: &str) -> Vec<String> {
    let log = node.process.stderr();
    let lines = log.lines().filter(|line| line.contains(text));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_collector_gets_the_spans_of_a_token_request_and_nothing_secret() {
    let collector = taking(Site::plain());
    let installation = Installation::development()
        .with("telemetry.otlp_endpoint", collector.url(""))
        .with("telemetry.log_format", "json");
    let node = installation.start().await;
    let credentials = demo(&installation);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let url = node.url("/oauth2/token?chosen=query");
    let answer = http()
        .post(&url)
        .basic_auth(&credentials.id, Some(&credentials.secret))
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("user-agent", "chosen-agent")
        .form(&[("grant_type", "client_credentials")])
        .send()
        .await
        .unwrap();
    let id = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let answer: Value = answer.json().await.unwrap();
    let token = answer["access_token"].as_str().unwrap().to_owned();
    let revoked = http()
        .post(node.url("/oauth2/revoke"))
        .basic_auth(&credentials.id, Some(&credentials.secret))
        .form(&[("token", &token)]);
    assert_eq!(revoked.send().await.unwrap().status(), StatusCode::OK);
    let refused = Credentials {
        id: "chosen-client".to_owned(),
        secret: "chosen-secret".to_owned(),
    };
    assert_eq!(node.ask(&refused).await.status(), StatusCode::UNAUTHORIZED);

    let bodies = collected(&collector, &text("client_authentication")).await;
    for expected in [
        "service.name",
        "countersign",
        "service.version",
        "POST /oauth2/token",
        "authenticate_client",
        "store",
        "db.operation.name",
        "apply",
        "sign",
        "http.request.method",
        "http.route",
        "http.response.status_code",
        "countersign.request_id",
        "countersign.reason",
        &id,
    ] {
        assert!(holds(&bodies, &text(expected)), "{expected} is missing");
    }
    let signature = token.rsplit_once('.').unwrap().1;
    for hidden in ["chosen", &credentials.secret, &token, signature, "busy_ns"] {
        assert!(!holds(&bodies, hidden.as_bytes()), "{hidden} is told");
    }
    // Nobody else's trace.
    let theirs = u128::from_str_radix(trace, 16).unwrap().to_be_bytes();
    assert!(!holds(&bodies, &theirs));
    // The looks at the database that go on all the time are none of a request's.
    assert!(!holds(&bodies, &text("changes_since")));

    // The line of the log names the trace.
    let line = lines(&node, &id).pop().unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let trace_id = line["span"]["trace_id"].as_str().unwrap();
    let trace_id = u128::from_str_radix(trace_id, 16).unwrap().to_be_bytes();
    assert!(holds(&bodies, &trace_id), "{line}");
    assert_eq!(line["status"], 200);
}

#[tokio::test]
async fn what_has_been_gathered_is_delivered_at_the_end() {
    let collector = taking(Site::plain());
    let installation =
        Installation::development().with("telemetry.otlp_endpoint", collector.url(""));
    let node = installation.start().await;
    let answer = node.ask(&demo(&installation)).await;
    let id = answer.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(node.stop().await.success());
    assert!(holds(&collector.bodies(), &text(&id)));
}

#[tokio::test]
async fn a_collector_with_tls_is_trusted_by_the_roots_of_the_settings() {
    let collector = taking(Site::secure());
    let installation = Installation::development()
        .with(
            "telemetry.otlp_endpoint",
            collector.url_at("localhost", "/"),
        )
        .with("outbound.ca_certificates", "collector.pem");
    fs::write(installation.path("collector.pem"), &collector.certificate).unwrap();
    let node = installation.start().await;
    collected(&collector, &text("GET /health/ready")).await;
    assert!(node.stop().await.success());
}

/// One that is not there, and one that never answers.
#[tokio::test]
async fn without_its_collector_the_service_goes_on_and_ends_in_time() {
    let gone = free_address();
    let silent = Site::plain();
    for endpoint in [format!("http://{gone}"), silent.url("")] {
        let installation = Installation::development().with("telemetry.otlp_endpoint", &endpoint);
        let mut node = installation.start().await;
        let credentials = demo(&installation);
        let begun = Stopwatch::start();
        let told = "traces cannot be delivered";
        until("the trouble", async || {
            node.token(&credentials).await;
            lines(&node, told).pop()
        })
        .await;
        for _ in 0..200 {
            node.token(&credentials).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        let stopping = Stopwatch::start();
        node.process.terminate();
        assert!(node.process.ended().await.success());
        assert!(stopping.elapsed() < Duration::from_secs(4), "{endpoint}");
        assert_eq!(lines(&node, told).len(), 1, "{endpoint}");
    }
}

/// Not even where the environment names a collector for all programs.
#[tokio::test]
async fn without_an_endpoint_nothing_is_sent() {
    let collector = taking(Site::plain());
    let installation =
        Installation::development().with_variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url(""));
    let node = installation.start().await;
    node.token(&demo(&installation)).await;
    assert!(lines(&node, "trace_id").is_empty());
    assert!(node.stop().await.success());
    assert_eq!(collector.connections(), 0);
}

#[tokio::test]
async fn what_is_not_sampled_is_not_sent() {
    let collector = taking(Site::plain());
    let installation = Installation::development()
        .with("telemetry.otlp_endpoint", collector.url(""))
        .with("telemetry.otlp_sample_ratio", 0);
    let node = installation.start().await;
    node.token(&demo(&installation)).await;
    assert!(lines(&node, "trace_id").is_empty());
    assert!(node.stop().await.success());
    assert_eq!(collector.connections(), 0);
}
