//! What the documents say of settings, and where their links lead.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use countersign::{
    config::{Config, ConfigError, DEFAULTS, Sources},
    domain::node::Environment,
};
use serde_json::Value;

use crate::support::oracle;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document by its path.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "keys/README.md"]
        .map(|name| root().join(name))
        .into();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            paths.push(path);
        }
    }
    let text = |path: PathBuf| (path.clone(), fs::read_to_string(path).unwrap());
    paths.into_iter().map(text).collect()
}

fn setting_exists(key: &str) -> bool {
    let loaded = Config::load(&Sources {
        overrides: vec![(key.to_owned(), String::new())],
        ..Sources::default()
    });
    let is_table = DEFAULTS.contains(&format!("\n[{key}]\n"));
    is_table || !matches!(loaded, Err(ConfigError::Unknown { .. }))
}

/// The settings named in a text, as `table.name` in backquotes or as a variable.
fn settings(text: &str) -> Vec<String> {
    const TABLES: [&str; 12] = [
        "public",
        "admin",
        "database",
        "keys",
        "tokens",
        "sync",
        "events",
        "outbound",
        "limits",
        "telemetry",
        "throttle",
        "operators",
    ];
    let quoted = text.split('`').skip(1).step_by(2).filter(|code| {
        let (table, name) = code.split_once('.').unwrap_or_default();
        let is_name = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_' || c == '.');
        let is_file = [".rs", ".md", ".toml", ".key", ".json", ".yaml"];
        TABLES.contains(&table) && is_name && !is_file.iter().any(|end| code.ends_with(end))
    });
    let variables = text.split("COUNTERSIGN__").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c == '_'));
        rest[..end.unwrap_or(rest.len())]
            .to_lowercase()
            .replace("__", ".")
    });
    let variables = variables.filter(|name| !name.is_empty());
    quoted.map(str::to_owned).chain(variables).collect()
}

#[test]
fn every_setting_that_a_document_names_exists() {
    let mut count = 0;
    for (path, text) in documents() {
        for key in settings(&text) {
            count += 1;
            assert!(setting_exists(&key), "{} names {key}", path.display());
        }
    }
    assert!(count > 20, "only {count} settings were found");
    assert!(!setting_exists("public.port"));
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    for (path, text) in documents() {
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let file = path.parent().unwrap().join(target);
            assert!(file.exists(), "{} links to {target}", path.display());
        }
    }
}

/// `docs/compose.yaml` as a YAML parser reads it, merged keys included.
fn compose() -> Value {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let read = Command::new(oracle::folder().join("venv/bin/python"))
        .args(["-c", script])
        .arg(root().join("docs/compose.yaml"))
        .output()
        .unwrap();
    assert!(read.status.success(), "{read:?}");
    serde_json::from_slice(&read.stdout).unwrap()
}

#[test]
fn the_nodes_of_the_compose_file_have_settings_that_start() {
    let compose = compose();
    let proxy = &compose["services"]["proxy"]["networks"]["inside"]["ipv4_address"];
    let proxy: IpAddr = proxy.as_str().unwrap().parse().unwrap();
    for node in ["node1", "node2"] {
        let variables = compose["services"][node]["environment"]
            .as_object()
            .unwrap();
        let text =
            |(name, value): (&String, &Value)| (name.clone(), value.as_str().unwrap().to_owned());
        let environment: HashMap<_, _> = variables.iter().map(text).collect();
        let config = Config::load(&Sources {
            environment,
            ..Sources::default()
        })
        .unwrap();
        assert_eq!(config.environment, Environment::Production);
        assert_eq!(config.public_listen.port(), 8080);
        assert!(config.admin_listen.ip().is_loopback());
        assert!(
            config
                .trusted_proxies
                .iter()
                .all(|net| net.contains(&proxy))
        );
        assert_eq!(config.trusted_proxies.len(), 1);
    }
}

#[test]
fn the_compose_file_publishes_the_proxy_alone_and_takes_secrets_from_files() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    assert_eq!(services.len(), 4);
    for (name, service) in services {
        let ports = service["ports"].as_array().map_or(0, Vec::len);
        assert_eq!(ports, usize::from(name == "proxy"), "{name}");
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        for secret in service["secrets"].as_array().unwrap() {
            let file = &compose["secrets"][secret.as_str().unwrap()]["file"];
            assert!(file.as_str().unwrap().starts_with("secrets/"), "{name}");
        }
        let variables = service["environment"].as_object().into_iter().flatten();
        for (variable, value) in variables {
            let is_secret = variable.contains("PASSWORD") || variable.contains("PASSFILE");
            let path = value.as_str().unwrap().starts_with("/run/secrets/");
            assert!(!is_secret || path, "{name} {variable}");
        }
    }
    // The proxy names the nodes as the file does.
    let nginx = fs::read_to_string(root().join("docs/nginx.conf")).unwrap();
    for node in services.keys().filter(|name| name.starts_with("node")) {
        assert!(nginx.contains(&format!("server {node}:8080 ")), "{node}");
    }
}
