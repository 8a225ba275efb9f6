//! No route without a test, and no test promised that is not there.

use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_route_is_requested_by_some_test() {
    let mut tests = String::new();
    for file in files(&Path::new(ROOT).join("tests/it/http")) {
        tests.push_str(&fs::read_to_string(file).unwrap());
    }
    let routes: Vec<String> = ["src/http/mod.rs", "src/oauth/metadata.rs"]
        .iter()
        .flat_map(|file| paths(&fs::read_to_string(Path::new(ROOT).join(file)).unwrap()))
        .collect();
    assert!(routes.contains(&"/oauth2/token".to_owned()), "{routes:?}");
    for route in routes {
        assert!(tests.contains(&route), "no test requests {route}");
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let read = |file: &str| fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    for (document, least) in [
        ("docs/conformance.md", 40),
        ("docs/divergences.md", 40),
        ("docs/threat-model.md", 1),
    ] {
        let text = read(document);
        let quoted = text.split('`').skip(1).step_by(2);
        let named: Vec<(&str, &str)> = quoted.filter_map(|text| text.split_once(".rs::")).collect();
        assert!(named.len() >= least, "{document}: {named:?}");
        for (file, test) in named {
            let source = read(&format!("{file}.rs"));
            let declared = source.contains(&format!("fn {test}("));
            assert!(declared, "{document}: {file}.rs::{test}");
        }
    }
}

#[test]
fn every_rule_of_sign_ins_names_its_test() {
    let path = Path::new(ROOT).join("docs/conformance.md");
    let document = fs::read_to_string(path).unwrap();
    let rows = document.lines().filter(|line| line.starts_with("| "));
    let rules = rows.filter(|row| !row.starts_with("| rule") && !row.starts_with("| ---"));
    for rule in rules {
        assert!(rule.contains(".rs::"), "{rule}");
    }
}

/// The string literals that are absolute paths, up to what varies in them.
fn paths(source: &str) -> Vec<String> {
    let literals = source.split('"').skip(1).step_by(2);
    literals
        .filter(|literal| literal.starts_with('/'))
        .filter_map(|literal| literal.split('{').next())
        .map(str::to_owned)
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}
