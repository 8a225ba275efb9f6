//! The parsers of `countersign-verifier`.

use countersign_verifier::json::parse_object;
use countersign_verifier::jws::Compact;
use countersign_verifier::{AccessTokenClaims, Expectation, KeySet, base64url, inspect, verify};
use serde_json::{Map, Value};

/// Nobody can forge a token, spell one in two ways, or write to the terminal of who inspects it.
pub fn jws(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(parsed) = Compact::parse(token) {
        let payload = base64url::encode(parsed.unverified_payload().expose_unverified());
        let signature = base64url::encode(parsed.signature());
        assert_eq!(token, format!("{}.{signature}", parsed.signing_input()));
        assert!(parsed.signing_input().ends_with(&format!(".{payload}")));
    }
    let nobody = KeySet::default();
    let expected = Expectation {
        issuer: "https://issuer.example".into(),
        audience: None,
        leeway_seconds: 0,
    };
    assert!(verify(token, &nobody, &expected, 0).is_err());
    let findings = inspect(token, &nobody, &expected, 0);
    assert!(findings.iter().any(|finding| finding.outcome.is_err()));
    for finding in &findings {
        let (Ok(text) | Err(text)) = &finding.outcome;
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// What is accepted means the same to a lenient parser, and claims survive being written again.
pub fn json(data: &[u8]) {
    if let Ok(object) = parse_object(data) {
        let lenient: Result<Map<String, Value>, _> = serde_json::from_slice(data);
        for (name, value) in &lenient.unwrap_or_else(|error| panic!("accepted, but {error}")) {
            assert_eq!(object.value(name), Some(value));
        }
    }
    if let Ok(claims) = AccessTokenClaims::parse(data) {
        let written = serde_json::to_vec(&claims).unwrap_or_default();
        assert_eq!(AccessTokenClaims::parse(&written), Ok(claims));
    }
    if let Ok(keys) = KeySet::parse(data) {
        for key in keys.kids().filter_map(|kid| keys.find(kid)) {
            assert!(key.verify(b"", &[0; 64]).is_err());
        }
    }
}
