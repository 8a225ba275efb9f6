//! Dashboard, alerts and documentation speak of exactly the metrics that there are.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use countersign::{
    clock::Timestamp,
    metrics::{Answered, Keys, Metrics, Reading},
};
use serde_json::Value;

use crate::support::openmetrics::Exposition;

const PREFIX: &str = "countersign_";

/// Everything that can be exported: each metric counted once.
fn exported() -> Exposition {
    let span = Duration::from_secs(1);
    let metrics = Metrics::new(Timestamp::from_seconds(1), span, span);
    metrics.token_request("client_credentials", "issued");
    metrics.answered(Answered {
        route: "/oauth2/token".to_owned(),
        method: "POST",
        status: 429,
        duration: span,
        refusal: Some("too_many_requests"),
    });
    metrics.signed(span);
    metrics.rotated(1);
    metrics.refresh_verdict("rotated");
    metrics.family_ended("reuse");
    metrics.followed_to(1);
    metrics.store_failed("apply", "unavailable");
    metrics.epoch_changed();
    metrics.sweep_ended(true);
    metrics.swept("event", 1);
    metrics.password_hashed(span);
    metrics.password_presented("right");
    metrics.jwks_fetched("fetched");
    metrics.logout_notice("delivered");
    metrics.logout_notices_waiting(1);
    metrics.certificate_reloaded(true);
    let _open = metrics.connection("public");
    Exposition::parse(&metrics.text(&Reading {
        keys: vec![Keys {
            key_use: "signing",
            states: vec![("active", 1)],
            age: Some(span),
            next_transition: None,
        }],
        sync_lag: span,
        database_up: true,
        clock_offset_ms: -1,
        revocation_entries: 0,
        queues: vec![("database_look", 0), ("passwords", 0)],
    }))
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    fs::read_to_string(path).unwrap()
}

/// The names of ours in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_word(c))
        .filter(|word| word.starts_with(PREFIX))
        .map(str::to_owned)
        .collect()
}

/// The names under which samples of a family are found.
fn samples(exposition: &Exposition) -> BTreeSet<String> {
    let series = exposition.series.keys();
    series
        .map(|series| series.split('{').next().unwrap().to_owned())
        .collect()
}

/// Families of which no sample is named.
fn unnamed<'a>(exposition: &'a Exposition, named: &BTreeSet<String>) -> Vec<&'a str> {
    let families = exposition.families.keys().map(String::as_str);
    families
        .filter(|family| {
            let suffixes = ["", "_total", "_bucket", "_sum", "_count", "_info"];
            !suffixes
                .iter()
                .any(|suffix| named.contains(&format!("{family}{suffix}")))
        })
        .collect()
}

/// Every expression of the dashboard.
fn expressions(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), member) {
                    ("expr", Value::String(expression)) => into.push(expression.clone()),
                    _ => expressions(member, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, into)),
        _ => {}
    }
}

#[test]
fn the_dashboard_shows_every_metric_and_no_other() {
    let exported = exported();
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    let named = names(&found.join("\n"));
    let samples = samples(&exported);
    assert_eq!(named.difference(&samples).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(unnamed(&exported, &named), [""; 0]);
}

/// What Grafana asks for on import, and what makes a dashboard usable anywhere.
#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    assert!(dashboard["id"].is_null());
    assert_eq!(dashboard["uid"], "countersign");
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["description"].as_str().unwrap().is_empty());
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
        }
    }
}

#[test]
fn alerts_watch_metrics_that_exist_and_say_what_to_do() {
    let exported = exported();
    let alerts = read("alerts.yaml");
    let named = names(&alerts);
    let samples = samples(&exported);
    assert_eq!(named.difference(&samples).collect::<Vec<_>>(), [""; 0]);
    let mut rules = alerts.split("- alert: ").skip(1).peekable();
    assert!(rules.peek().is_some());
    for rule in rules {
        let name = rule.lines().next().unwrap();
        assert!(name.starts_with("Countersign"), "{name}");
        for part in ["expr: ", "severity: ", "summary: ", "description: "] {
            assert_eq!(rule.matches(part).count(), 1, "{name}: {part}");
        }
    }
}

#[test]
fn every_metric_is_explained() {
    let exported = exported();
    let named = names(&read("observability.md"));
    let samples = samples(&exported);
    let histograms = exported.families.keys().cloned();
    let known: BTreeSet<String> = samples.into_iter().chain(histograms).collect();
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(unnamed(&exported, &named), [""; 0]);
}
