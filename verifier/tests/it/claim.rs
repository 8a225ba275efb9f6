//! The rules about claims, on tokens the issuer signed.

use countersign_verifier::claims::ClaimsError;
use countersign_verifier::json::{JsonError, MemberError};
use countersign_verifier::{AccessTokenClaims, Audience, Expectation, KeySet, VerifyError, verify};
use serde_json::{Value, json};

use crate::issuer::{
    AUDIENCE, ISSUER, LEEWAY, NOW, claims, expectation, header, issuer, judge_at, judge_claims,
    with, without,
};

#[test]
fn every_claim_arrives_as_it_was_issued() {
    let parsed = AccessTokenClaims {
        iss: ISSUER.into(),
        sub: "user-1".into(),
        aud: Audience::One(AUDIENCE.into()),
        client_id: "app".into(),
        iat: NOW - 10,
        exp: NOW + 600,
        jti: "token-1".into(),
        scope: Some("read write".into()),
        auth_time: Some(NOW - 100),
        acr: Some("1".into()),
        amr: Some(vec!["pwd".into(), "otp".into()]),
        sid: Some("family-1".into()),
    };
    assert_eq!(judge_claims(&claims()), Ok(parsed.clone()));
    assert_eq!(serde_json::to_value(parsed).unwrap(), claims());
}

#[test]
fn absent_claims_are_not_written_and_the_issuer_comes_first() {
    let claims = AccessTokenClaims {
        iss: "i".into(),
        sub: "s".into(),
        aud: ["a", "b"].map(Into::into).into_iter().collect(),
        client_id: "c".into(),
        iat: 1,
        exp: 2,
        jti: "j".into(),
        scope: None,
        auth_time: None,
        acr: None,
        amr: None,
        sid: None,
    };
    assert_eq!(
        serde_json::to_string(&claims).unwrap(),
        r#"{"iss":"i","sub":"s","aud":["a","b"],"client_id":"c","iat":1,"exp":2,"jti":"j"}"#
    );
}

#[test]
fn one_audience_is_a_string_and_several_are_an_array() {
    let collect = |names: &[&'static str]| -> Value {
        let audience: Audience<'_> = names.iter().map(|name| (*name).into()).collect();
        serde_json::to_value(audience).unwrap()
    };
    assert_eq!(collect(&["a"]), json!("a"));
    assert_eq!(collect(&["a", "b", "c"]), json!(["a", "b", "c"]));
    assert_eq!(collect(&[]), json!([]));
}

#[test]
fn required_claims_are_there_and_not_empty() {
    for name in ["iss", "sub", "aud", "client_id", "iat", "exp", "jti"] {
        let missing = without(claims(), name);
        assert_eq!(
            judge_claims(&missing),
            Err(MemberError::Missing { name }.into())
        );
        assert_eq!(
            AccessTokenClaims::parse(missing.to_string().as_bytes()),
            Err(ClaimsError::Claim(MemberError::Missing { name }))
        );
    }
    for name in ["iss", "sub", "aud", "client_id", "jti"] {
        let empty = with(claims(), name, json!(""));
        assert_eq!(
            judge_claims(&empty),
            Err(MemberError::Empty { name }.into())
        );
    }
    for aud in [json!([]), json!([AUDIENCE, ""])] {
        let empty = with(claims(), "aud", aud);
        assert_eq!(
            judge_claims(&empty),
            Err(MemberError::Empty { name: "aud" }.into())
        );
    }
}

#[test]
fn other_claims_may_be_absent_and_unknown_ones_are_ignored() {
    for name in ["scope", "auth_time", "acr", "amr", "sid"] {
        assert!(judge_claims(&without(claims(), name)).is_ok(), "{name}");
    }
    assert!(
        judge_claims(&with(
            claims(),
            "https://api.example/tier",
            json!({"gold": 1})
        ))
        .is_ok()
    );
}

#[test]
fn a_token_ends_when_its_time_and_the_leeway_are_over() {
    let token = issuer().sign(&header().to_string(), &claims().to_string());
    let end = NOW + 600 + LEEWAY;
    assert!(judge_at(&token, end - 1).is_ok());
    assert_eq!(judge_at(&token, end), Err(VerifyError::Expired));
    assert_eq!(judge_at(&token, u64::MAX), Err(VerifyError::Expired));
}

#[test]
fn a_token_from_the_future_is_refused_beyond_the_leeway() {
    for (claim, refusal) in [
        ("iat", VerifyError::IssuedInFuture),
        ("nbf", VerifyError::NotYetValid),
    ] {
        let dated = |time: u64| judge_claims(&with(claims(), claim, json!(time)));
        assert!(dated(NOW + LEEWAY).is_ok(), "{claim}");
        assert_eq!(dated(NOW + LEEWAY + 1), Err(refusal), "{claim}");
    }
}

#[test]
fn strange_numbers_are_not_times() {
    for exp in [
        "-1",
        "-1e-9",
        "9007199254740992",
        "1e300",
        "18446744073709551616",
    ] {
        let refusal = MemberError::OutOfRange { name: "exp" };
        assert_eq!(judge_exp(exp), Err(refusal.into()), "{exp}");
    }
    for exp in [
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "0x7fffffff",
        "01",
        "+1",
        "1.",
        ".5",
    ] {
        assert_eq!(judge_exp(exp), Err(JsonError::Syntax.into()), "{exp}");
    }
    for exp in ["0", "-0", "-0.0", "1e-9"] {
        assert_eq!(judge_exp(exp), Err(VerifyError::Expired), "{exp}");
    }
}

#[test]
fn a_fraction_of_a_second_is_cut_off() {
    for exp in [
        "1800000600.0",
        "1800000600.999",
        "18000006e2",
        "1.8000006e9",
    ] {
        assert_eq!(judge_exp(exp).unwrap().exp, NOW + 600, "{exp}");
    }
}

#[test]
fn the_greatest_time_does_not_overflow() {
    assert_eq!(judge_exp("9007199254740991").unwrap().exp, (1 << 53) - 1);
    let keys = KeySet::from_keys([issuer().public_key()]);
    let endless = Expectation {
        leeway_seconds: u64::MAX,
        ..expectation()
    };
    let token = issuer().sign(&header().to_string(), &claims().to_string());
    assert!(verify(&token, &keys, &endless, NOW).is_ok());
}

#[test]
fn the_issuer_is_compared_exactly() {
    for iss in [
        "https://issuer.example/",
        "https://ISSUER.example",
        "issuer.example",
        "https://a",
    ] {
        let claims = with(claims(), "iss", json!(iss));
        assert_eq!(judge_claims(&claims), Err(VerifyError::Issuer), "{iss}");
    }
}

#[test]
fn a_token_for_another_resource_server_is_refused() {
    let other = "https://other.example";
    for aud in [
        json!(other),
        json!([other]),
        json!("https://api.example/"),
        json!("https://api"),
    ] {
        let claims = with(claims(), "aud", aud.clone());
        assert_eq!(judge_claims(&claims), Err(VerifyError::Audience), "{aud}");
    }
    for aud in [json!([AUDIENCE]), json!([other, AUDIENCE])] {
        assert!(judge_claims(&with(claims(), "aud", aud)).is_ok());
    }
}

#[test]
fn no_expected_audience_accepts_any_but_not_none() {
    let anyone = Expectation {
        audience: None,
        ..expectation()
    };
    let keys = KeySet::from_keys([issuer().public_key()]);
    let judge = |claims: Value| {
        let token = issuer().sign(&header().to_string(), &claims.to_string());
        verify(&token, &keys, &anyone, NOW)
    };
    assert!(judge(with(claims(), "aud", json!("https://other.example"))).is_ok());
    let missing = MemberError::Missing { name: "aud" };
    assert_eq!(judge(without(claims(), "aud")), Err(missing.into()));
}

#[test]
fn every_refusal_is_an_invalid_token_and_repeats_nothing_of_it() {
    let error = judge_claims(&with(claims(), "iss", json!("https://attacker"))).unwrap_err();
    assert_eq!(error.code(), "invalid_token");
    assert_eq!(error.to_string(), "the token was issued by somebody else");
}

fn judge_exp(exp: &str) -> Result<AccessTokenClaims<'static>, VerifyError> {
    let payload = with(claims(), "exp", json!("EXP"))
        .to_string()
        .replace("\"EXP\"", exp);
    crate::issuer::judge(&issuer().sign(&header().to_string(), &payload))
}
