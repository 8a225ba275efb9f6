//! Replays the inputs of the fuzz targets, so that they are tried where no fuzzer is installed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fs;
use std::path::Path;

use countersign_verifier::json::parse_object;
use countersign_verifier::jws::Compact;

#[expect(unreachable_pub, reason = "the fuzz targets are another crate")]
#[path = "../../fuzz/src/verifier.rs"]
mod invariant;

#[test]
fn tokens_of_the_corpus_are_accepted_or_refused_as_named() {
    replay("jws", |data| {
        invariant::jws(data);
        std::str::from_utf8(data).is_ok_and(|token| Compact::parse(token).is_ok())
    });
}

#[test]
fn json_of_the_corpus_is_accepted_or_refused_as_named() {
    replay("json", |data| {
        invariant::json(data);
        parse_object(data).is_ok()
    });
}

/// Gives every input to `accepts` and compares the answer with the input's name.
fn replay(target: &str, accepts: impl Fn(&[u8]) -> bool) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            name.starts_with("good-") || name.starts_with("bad-"),
            "{name}"
        );
        assert_eq!(
            accepts(&fs::read(&path).unwrap()),
            name.starts_with("good-"),
            "{name}"
        );
        count += 1;
    }
    assert!(count >= 20, "only {count} inputs");
}
