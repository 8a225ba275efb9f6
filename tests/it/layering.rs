//! Imports go only rightwards: the layers of docs/architecture.md, held by reading the sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The layers; each may import itself and what stands to its right. The last ones import each
/// other only in this order, too.
const LAYERS: [&str; 17] = [
    "cli",
    "app",
    "http",
    "account",
    "admin",
    "oauth",
    "identity",
    "revocation",
    "registry",
    "keys",
    "store",
    "domain",
    "outbound",
    "throttle",
    "metrics",
    "entropy",
    "clock",
];

/// Settings and logs are for those who put things together.
const FOR_ASSEMBLY: [&str; 2] = ["config", "telemetry"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The source without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The module of `src/` that a file belongs to.
fn module(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inner = path.strip_prefix(src).unwrap();
    let first = inner
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that follow `crate::`, be it one path or a tree of them.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let name = |text: &str| -> String {
            text.trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        let Some(tree) = rest.strip_prefix('{') else {
            found.insert(name(rest));
            continue;
        };
        let mut depth = 1;
        let mut at_item = true;
        for (index, character) in tree.char_indices() {
            if depth == 1 && at_item && !character.is_whitespace() {
                found.insert(name(&tree[index..]));
                at_item = false;
            }
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_item = true,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.retain(|name| LAYERS.contains(&name.as_str()) || FOR_ASSEMBLY.contains(&name.as_str()));
    found
}

#[test]
fn modules_import_only_what_stands_to_their_right() {
    let position = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let module = module(&path);
        let Some(own) = position(&module) else {
            continue;
        };
        for import in imports(&code(&path)) {
            let allowed = match position(&import) {
                Some(other) => own <= other,
                None => matches!(module.as_str(), "cli" | "app"),
            };
            assert!(allowed, "{} imports {import}", path.display());
        }
    }
}

#[test]
fn what_belongs_to_one_layer_is_named_in_no_other() {
    let rules: [(&str, &[&str]); 5] = [
        ("actix_web", &["http"]),
        ("sqlx", &["store"]),
        ("clap", &["cli", "main"]),
        ("opentelemetry", &["telemetry"]),
        ("prometheus_client", &["metrics"]),
    ];
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let module = module(&path);
        let code = code(&path);
        for (library, layers) in rules {
            let named = code.contains(&format!("{library}::"));
            assert!(
                !named || layers.contains(&module.as_str()),
                "{} names {library}",
                path.display()
            );
        }
        let sees_store = imports(&code).contains("store");
        assert!(
            module != "http" || !sees_store,
            "{} sees the store",
            path.display()
        );
        assert!(
            module != "domain" || !code.contains("async "),
            "{} is async",
            path.display()
        );
    }
}

#[test]
fn the_verifier_knows_nothing_of_the_issuer() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("verifier/Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    assert!(
        !manifest.contains("path ="),
        "the verifier depends on a crate of this workspace"
    );
}

#[test]
fn main_stays_short() {
    let main = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
    assert!(fs::read_to_string(main).unwrap().lines().count() < 60);
}

#[test]
fn the_reader_of_imports_sees_trees_and_single_paths() {
    let code = "use crate::{\n    clock::{Clock, Timestamp},\n    store::Store,\n};\nlet x = crate::keys::y();";
    let expected = ["clock", "keys", "store"].map(str::to_owned);
    assert_eq!(imports(code), expected.into());
}
