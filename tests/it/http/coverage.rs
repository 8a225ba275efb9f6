//! No route without a test.

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
