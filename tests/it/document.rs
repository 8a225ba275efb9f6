//! What the documents say of settings, and where their links lead.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use countersign::config::{Config, ConfigError, DEFAULTS, Sources};

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

/// The settings of the nodes in `docs/compose.yaml`.
fn compose() -> (String, HashMap<String, String>) {
    let text = fs::read_to_string(root().join("docs/compose.yaml")).unwrap();
    let lines = text.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once(": ")?;
        let is_ours = name.starts_with("COUNTERSIGN__") || name == "DATABASE_URL";
        is_ours.then(|| (name.to_owned(), value.to_owned()))
    });
    let environment = lines.collect();
    (text, environment)
}

#[test]
fn the_nodes_of_the_compose_file_have_settings_that_start() {
    let (text, environment) = compose();
    assert!(environment.len() >= 6, "{environment:?}");
    let config = Config::load(&Sources {
        environment,
        ..Sources::default()
    })
    .unwrap();
    assert!(config.admin_listen.ip().is_loopback());
    assert_eq!(config.public_listen.port(), 8080);
    let proxy = "172.30.0.2".parse().unwrap();
    assert!(
        config
            .trusted_proxies
            .iter()
            .any(|net| net.contains::<&std::net::IpAddr>(&proxy))
    );
    assert!(text.contains("ipv4_address: 172.30.0.2\n"));
    // One port is published, and it is the proxy's.
    assert_eq!(text.matches("ports:").count(), 1);
    assert!(text.contains("    ports:\n      - \"443:443\"\n"));
    // No secret stands in the file: each comes from a file beside it.
    assert_eq!(text.matches("\n    file: secrets/").count(), 4);
}
