//! JWK Sets: which keys are used, and what is published of them.

use countersign_verifier::json::{JsonError, MemberError};
use countersign_verifier::jwk::{KeyError, KeySetError, MAX_KEY_SET_BYTES};
use countersign_verifier::{KeySet, PublicKey};
use jsonwebtoken::jwk::Jwk;
use serde_json::{Value, json};

use crate::issuer::{attacker, issuer, with, without};

fn jwk() -> Value {
    serde_json::to_value(issuer().public_key().to_jwk()).unwrap()
}

fn from_jwk(jwk: Value) -> Result<PublicKey, KeyError> {
    PublicKey::from_jwk(&serde_json::from_value::<Jwk>(jwk).unwrap())
}

fn parse(document: &Value) -> Result<KeySet, KeySetError> {
    KeySet::parse(document.to_string().as_bytes())
}

#[test]
fn a_key_is_published_with_its_purpose_and_no_secret() {
    assert_eq!(
        jwk(),
        json!({
            "kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            "kid": "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U", "use": "sig", "alg": "ES256",
        })
    );
    assert_eq!(from_jwk(jwk()), Ok(issuer().public_key()));
}

#[test]
fn a_private_member_is_never_published_or_shown() {
    let key = from_jwk(with(jwk(), "d", json!("jpsQnnGQmL"))).unwrap();
    assert_eq!(serde_json::to_value(key.to_jwk()).unwrap(), jwk());
    assert_eq!(format!("{key:?}"), format!("PublicKey({:?})", key.kid()));
}

#[test]
fn a_key_says_nothing_about_its_purpose_or_the_right_thing() {
    assert!(from_jwk(without(without(jwk(), "use"), "alg")).is_ok());
    assert!(from_jwk(with(jwk(), "key_ops", json!(["verify"]))).is_ok());
    for (name, value, refusal) in [
        ("kty", json!("RSA"), KeyError::Curve),
        ("kty", json!("ec"), KeyError::Curve),
        ("crv", json!("P-384"), KeyError::Curve),
        ("crv", json!("secp256k1"), KeyError::Curve),
        ("crv", json!("Ed25519"), KeyError::Curve),
        ("alg", json!("ES384"), KeyError::Algorithm),
        ("alg", json!("HS256"), KeyError::Algorithm),
        ("alg", json!("es256"), KeyError::Algorithm),
        ("use", json!("enc"), KeyError::Use),
        ("use", json!(""), KeyError::Use),
        ("key_ops", json!(["sign"]), KeyError::Use),
        ("key_ops", json!([]), KeyError::Use),
    ] {
        let jwk = with(jwk(), name, value);
        assert_eq!(from_jwk(jwk.clone()), Err(refusal), "{jwk}");
    }
}

#[test]
fn coordinates_have_exactly_32_bytes() {
    let x = jwk()["x"].as_str().unwrap().to_owned();
    for other in [
        "",
        "AA",
        &x[..42],
        &format!("{x}A"),
        &format!("{x}="),
        &format!("AA{x}"),
    ] {
        assert_eq!(
            from_jwk(with(jwk(), "x", json!(other))),
            Err(KeyError::Coordinate),
            "{other}"
        );
        assert_eq!(
            from_jwk(with(jwk(), "y", json!(other))),
            Err(KeyError::Coordinate),
            "{other}"
        );
    }
}

#[test]
fn a_point_is_65_bytes_and_uncompressed() {
    let point = issuer().point().to_vec();
    assert!(PublicKey::from_uncompressed(&point).is_ok());
    let mut other_form = point.clone();
    other_form[0] = 0x06;
    for bytes in [
        &[][..],
        &[0],
        &point[..64],
        &[&point[..], &[0]].concat(),
        &other_form,
    ] {
        assert_eq!(PublicKey::from_uncompressed(bytes), Err(KeyError::Point));
    }
}

#[test]
fn a_point_off_the_curve_verifies_nothing() {
    let mut point = issuer().point().to_vec();
    point[64] ^= 1;
    let key = PublicKey::from_uncompressed(&point).unwrap();
    assert!(key.verify(b"message", &[1; 64]).is_err());
    let nowhere = PublicKey::from_uncompressed(&[&[4][..], &[0; 64]].concat()).unwrap();
    assert!(nowhere.verify(b"message", &[1; 64]).is_err());
}

#[test]
fn keys_are_found_by_their_kid_and_not_otherwise() {
    let keys = KeySet::from_keys([issuer().public_key(), attacker().public_key()]);
    for key in [issuer().public_key(), attacker().public_key()] {
        assert_eq!(keys.find(key.kid()), Some(&key));
    }
    assert_eq!(keys.find(""), None);
    assert_eq!(keys.find(&issuer().public_key().kid().to_lowercase()), None);
}

#[test]
fn unusable_keys_are_skipped() {
    let rsa = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "rsa"});
    // As an issuer publishes it that signs ID Tokens with RS256, too.
    let id_tokens = json!({
        "kty": "RSA", "n": "_".repeat(342), "e": "AQAB", "kid": "id-tokens", "alg": "RS256", "use": "sig",
    });
    let keys = parse(&json!({"unknown": 1, "keys": [
        rsa, id_tokens, 1, null, "x", {}, {"kty": "oct", "k": "AA", "kid": "oct"}, {"kty": "new", "kid": "new"},
        with(jwk(), "crv", json!("P-521")), with(jwk(), "kid", json!(7)), with(jwk(), "x", json!(7)),
        with(jwk(), "use", json!("enc")), jwk(),
    ]}))
    .unwrap();
    assert_eq!(
        keys.kids().collect::<Vec<_>>(),
        [issuer().public_key().kid()]
    );
}

#[test]
fn a_key_keeps_the_kid_it_is_published_under() {
    let keys = parse(&json!({"keys": [with(jwk(), "kid", json!("2026-11"))]})).unwrap();
    assert_eq!(keys.find("2026-11"), Some(&issuer().public_key()));
    assert_eq!(keys.find(issuer().public_key().kid()), None);
    let keys = parse(&json!({"keys": [without(jwk(), "kid")]})).unwrap();
    assert_eq!(
        keys.find(issuer().public_key().kid()),
        Some(&issuer().public_key())
    );
}

#[test]
fn a_kid_of_two_different_keys_finds_neither() {
    let other = serde_json::to_value(attacker().public_key().to_jwk()).unwrap();
    let ambiguous = parse(&json!({"keys": [jwk(), with(other, "kid", jwk()["kid"].clone())]}));
    assert_eq!(ambiguous.unwrap().find(issuer().public_key().kid()), None);
    let repeated = parse(&json!({"keys": [jwk(), jwk()]})).unwrap();
    assert_eq!(
        repeated.find(issuer().public_key().kid()),
        Some(&issuer().public_key())
    );
}

#[test]
fn a_document_that_is_no_key_set_is_refused() {
    assert!(parse(&json!({"keys": []})).unwrap().kids().next().is_none());
    for (document, refusal) in [
        (json!([jwk()]), KeySetError::Json(JsonError::NotAnObject)),
        (
            jwk(),
            KeySetError::Keys(MemberError::Missing { name: "keys" }),
        ),
        (
            json!({"keys": {}}),
            KeySetError::Keys(MemberError::WrongType {
                name: "keys",
                expected: "an array",
            }),
        ),
    ] {
        assert_eq!(parse(&document).unwrap_err(), refusal);
    }
    let padded = |length: usize| {
        let mut document = br#"{"keys":[]}"#.to_vec();
        document.resize(length, b' ');
        document
    };
    assert!(KeySet::parse(&padded(MAX_KEY_SET_BYTES)).is_ok());
    assert_eq!(
        KeySet::parse(&padded(MAX_KEY_SET_BYTES + 1)).unwrap_err(),
        KeySetError::TooLong
    );
}
