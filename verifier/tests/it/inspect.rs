//! The explanation of a token.

use countersign_verifier::{Expectation, Finding, KeySet, inspect};
use serde_json::{Value, json};

use crate::issuer::{NOW, attacker, claims, expectation, header, issuer, with, without};

fn explain(token: &str, expected: &Expectation) -> Vec<Finding> {
    inspect(
        token,
        &KeySet::from_keys([issuer().public_key()]),
        expected,
        NOW,
    )
}

fn explain_claims(claims: &Value) -> Vec<Finding> {
    explain(
        &issuer().sign(&header().to_string(), &claims.to_string()),
        &expectation(),
    )
}

fn outcome<'f>(findings: &'f [Finding], subject: &str) -> Result<&'f str, &'f str> {
    let finding = findings
        .iter()
        .find(|finding| finding.subject == subject)
        .unwrap();
    finding.outcome.as_deref().map_err(String::as_str)
}

#[test]
fn a_good_token_is_explained_in_full() {
    let findings = explain_claims(&claims());
    let subjects: Vec<_> = findings.iter().map(|finding| finding.subject).collect();
    assert_eq!(
        subjects,
        [
            "typ",
            "alg",
            "kid",
            "signature",
            "exp",
            "nbf",
            "iat",
            "iss",
            "aud",
            "sub",
            "client_id",
            "jti",
            "scope",
            "auth_time",
            "acr",
            "amr",
            "sid",
        ]
    );
    assert!(findings.iter().all(|finding| finding.outcome.is_ok()));
    assert_eq!(outcome(&findings, "iss"), Ok(r#""https://issuer.example""#));
    assert_eq!(outcome(&findings, "exp"), Ok("1800000600 (in 600 s)"));
    assert_eq!(outcome(&findings, "iat"), Ok("1799999990 (10 s ago)"));
    assert_eq!(outcome(&findings, "nbf"), Ok("nothing"));
}

#[test]
fn a_wrong_value_is_shown_beside_the_right_one() {
    let wrong = json!({"iss": "https://attacker", "aud": "x", "exp": NOW - 100, "sub": 7});
    let findings = explain_claims(&wrong);
    assert_eq!(
        outcome(&findings, "iss"),
        Err(
            r#"the token was issued by somebody else: found "https://attacker", expected "https://issuer.example""#
        )
    );
    assert_eq!(
        outcome(&findings, "aud"),
        Err(r#"the token is for another audience: found "x", expected "https://api.example""#)
    );
    assert_eq!(
        outcome(&findings, "exp"),
        Err("the token has expired: found 1799999900 (100 s ago), expected later than 1799999970")
    );
    assert_eq!(
        outcome(&findings, "sub"),
        Err("`sub` is not a string: found 7")
    );
    assert_eq!(
        outcome(&findings, "jti"),
        Err("`jti` is missing: found nothing")
    );
}

#[test]
fn claims_are_explained_although_the_signature_is_wrong() {
    let forged = attacker().sign(&header().to_string(), &claims().to_string());
    let findings = explain(&forged, &expectation());
    assert_eq!(
        outcome(&findings, "signature"),
        Err("the signature does not match")
    );
    assert_eq!(outcome(&findings, "sub"), Ok(r#""user-1""#));
}

#[test]
fn an_unknown_key_is_named_beside_the_known_ones() {
    let header = with(header(), "kid", json!("other"));
    let findings = explain(
        &issuer().sign(&header.to_string(), &claims().to_string()),
        &expectation(),
    );
    assert_eq!(
        outcome(&findings, "kid"),
        Err(
            r#"the token names a key that is not in the key set: found "other", expected "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U""#
        )
    );
    assert!(outcome(&findings, "signature").is_err());
    assert!(outcome(&findings, "iss").is_ok());
}

#[test]
fn each_wrong_header_parameter_is_explained() {
    let header = json!({"typ": "JWT", "alg": "none"});
    let findings = explain(
        &issuer().sign(&header.to_string(), &claims().to_string()),
        &expectation(),
    );
    assert_eq!(
        outcome(&findings, "typ"),
        Err(r#"the token is not an access token: found "JWT", expected "at+jwt""#)
    );
    assert_eq!(
        outcome(&findings, "alg"),
        Err(r#"the algorithm is not ES256: found "none", expected "ES256""#)
    );
    assert!(outcome(&findings, "kid").is_err());
}

#[test]
fn what_cannot_be_read_is_one_finding() {
    let findings = explain("no token", &expectation());
    assert_eq!(findings.len(), 1);
    assert_eq!(
        outcome(&findings, "token"),
        Err("the token contains a character that no compact token has")
    );
    let findings = explain(&issuer().sign(&header().to_string(), "[]"), &expectation());
    assert_eq!(
        outcome(&findings, "claims"),
        Err("the JSON is not an object")
    );
    let repeated = r#"{"alg":"ES256","alg":"ES256"}"#;
    let findings = explain(&issuer().sign(repeated, "{}"), &expectation());
    assert_eq!(
        outcome(&findings, "token"),
        Err("the JSON repeats a member name")
    );
}

#[test]
fn any_audience_is_right_when_none_is_expected() {
    let anyone = Expectation {
        audience: None,
        ..expectation()
    };
    let token = issuer().sign(&header().to_string(), &without(claims(), "aud").to_string());
    assert!(outcome(&explain(&token, &anyone), "aud").is_err());
    let token = issuer().sign(
        &header().to_string(),
        &with(claims(), "aud", json!("x")).to_string(),
    );
    assert_eq!(outcome(&explain(&token, &anyone), "aud"), Ok(r#""x""#));
}

#[test]
fn nothing_in_a_token_reaches_the_terminal_as_a_command() {
    let hostile = "\u{1b}[2J\u{9b}31m\r\n\0\u{7}\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}";
    let header = with(header(), "typ", json!(hostile));
    for value in [
        json!(hostile),
        json!([hostile]),
        json!({hostile: hostile}),
        json!("a".repeat(1000)),
    ] {
        let mut payload = claims();
        for claim in ["exp", "nbf", "iss", "aud", "sub", "scope", "amr"] {
            payload = with(payload, claim, value.clone());
        }
        let token = issuer().sign(&header.to_string(), &payload.to_string());
        let findings = explain(&token, &expectation());
        assert!(outcome(&findings, "sub").is_ok() == value.is_string());
        for Finding { subject, outcome } in findings {
            let (Ok(text) | Err(text)) = outcome;
            let harmful = |c: char| c.is_control() || hostile.contains(c) && !c.is_ascii_graphic();
            assert!(!text.contains(harmful), "{subject}: {text:?}");
            assert!(text.len() < 500, "{subject}: {text:?}");
        }
    }
}
