//! Classes of attacks that other verifiers have fallen for.
//!
//! Where it can be, the forged token is signed by the issuer's own key, so that nothing but the rule
//! under test stands in its way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_verifier::VerifyError;
use countersign_verifier::base64url;
use countersign_verifier::json::{JsonError, MemberError};
use countersign_verifier::jwk::WrongSignature;
use countersign_verifier::jws::{JwsError, MAX_TOKEN_BYTES};
use ring::hmac;
use serde_json::{Value, json};

use crate::issuer::{
    attacker, claims, header, issuer, judge, judge_claims, judge_header, signing_input, with,
    without,
};

const WRONG_SIGNATURE: VerifyError = VerifyError::Jws(JwsError::Signature(WrongSignature));

fn valid_token() -> String {
    issuer().sign(&header().to_string(), &claims().to_string())
}

#[test]
fn a_token_of_the_issuer_is_accepted() {
    assert_eq!(judge(&valid_token()).unwrap().sub, "user-1");
}

#[test]
fn an_altered_token_is_refused() {
    let token = valid_token();
    let (input, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = input.split_once('.').unwrap();
    let payload = base64url::encode(with(claims(), "sub", json!("root")).to_string().as_bytes());
    assert_eq!(
        judge(&format!("{header}.{payload}.{signature}")),
        Err(WRONG_SIGNATURE)
    );
}

#[test]
fn alg_none_is_refused_however_it_is_spelt() {
    for capitals in 0..16_u8 {
        let alg: String = "none"
            .chars()
            .enumerate()
            .map(|(i, c)| {
                if capitals >> i & 1 == 1 {
                    c.to_ascii_uppercase()
                } else {
                    c
                }
            })
            .collect();
        let header = with(header(), "alg", json!(alg));
        assert_eq!(
            judge_header(&header),
            Err(JwsError::Algorithm.into()),
            "{alg}"
        );
        let unsigned = signing_input(&header.to_string(), &claims().to_string());
        assert_eq!(
            judge(&format!("{unsigned}.")),
            Err(JwsError::Parts.into()),
            "{alg}"
        );
        assert_eq!(judge(&unsigned), Err(JwsError::Parts.into()), "{alg}");
    }
}

#[test]
fn only_the_exact_name_of_the_algorithm_is_accepted() {
    for alg in [
        "es256",
        "ES256 ",
        "ES384",
        "ES256K",
        "RS256",
        "HS256",
        "EdDSA",
        "\u{ff25}S256",
    ] {
        let header = with(header(), "alg", json!(alg));
        assert_eq!(
            judge_header(&header),
            Err(JwsError::Algorithm.into()),
            "{alg}"
        );
    }
    for alg in [json!(["ES256"]), json!(null), json!(256)] {
        let wrong = MemberError::WrongType {
            name: "alg",
            expected: "a string",
        };
        assert_eq!(
            judge_header(&with(header(), "alg", alg)),
            Err(JwsError::HeaderParameter(wrong).into())
        );
    }
    assert_eq!(
        judge_header(&without(header(), "alg")),
        Err(JwsError::HeaderParameter(MemberError::Missing { name: "alg" }).into())
    );
}

#[test]
fn a_public_key_is_never_a_mac_secret() {
    let point = issuer().point().to_vec();
    let mut der = STANDARD
        .decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE")
        .unwrap();
    der.extend_from_slice(&point[1..]);
    let base64 = STANDARD.encode(&der);
    let (first, rest) = base64.split_at(64);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{first}\n{rest}\n-----END PUBLIC KEY-----\n");
    let jwk = serde_json::to_string(&issuer().public_key().to_jwk()).unwrap();
    for alg in ["HS256", "ES256"] {
        let header = with(header(), "alg", json!(alg));
        let input = signing_input(&header.to_string(), &claims().to_string());
        for secret in [
            &point[..],
            &point[1..],
            &der,
            pem.as_bytes(),
            pem.trim().as_bytes(),
            jwk.as_bytes(),
        ] {
            let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), input.as_bytes());
            let token = format!("{input}.{}", base64url::encode(mac.as_ref()));
            let refusal = match alg {
                "HS256" => JwsError::Algorithm,
                _ => JwsError::SignatureLength,
            };
            assert_eq!(judge(&token), Err(refusal.into()));
        }
    }
}

#[test]
fn a_key_inside_the_token_is_not_used() {
    let own = serde_json::to_value(attacker().public_key().to_jwk()).unwrap();
    let header = with(header(), "jwk", own);
    let forge = |header: &Value| attacker().sign(&header.to_string(), &claims().to_string());
    assert_eq!(judge(&forge(&header)), Err(WRONG_SIGNATURE));
    assert_eq!(
        judge(&forge(&without(header.clone(), "kid"))),
        Err(VerifyError::MissingKid)
    );
    let own_kid = with(header, "kid", json!(attacker().public_key().kid()));
    assert_eq!(judge(&forge(&own_kid)), Err(VerifyError::UnknownKid));
}

#[test]
fn keys_and_addresses_in_the_header_of_a_valid_token_are_ignored() {
    for (name, value) in [
        ("jwk", json!({"kty": "oct", "k": ""})),
        ("jku", json!("http://127.0.0.1:9/keys")),
        ("x5u", json!("file:///etc/passwd")),
        ("x5c", json!(["AAAA"])),
    ] {
        assert!(judge_header(&with(header(), name, value)).is_ok(), "{name}");
    }
}

#[test]
fn a_key_identifier_is_a_short_plain_word() {
    for kid in [
        "",
        "../../../dev/null",
        "' OR 1=1--",
        "https://attacker.example/key",
        "a\0b",
        "a b",
        "k\u{e9}y",
        &"a".repeat(65),
        &"a".repeat(10 * 1024),
    ] {
        let header = with(header(), "kid", json!(kid));
        assert_eq!(judge_header(&header), Err(JwsError::Kid.into()), "{kid:?}");
    }
    for kid in [
        json!([issuer().public_key().kid()]),
        json!(null),
        json!(1),
        json!({}),
    ] {
        let wrong = MemberError::WrongType {
            name: "kid",
            expected: "a string",
        };
        assert_eq!(
            judge_header(&with(header(), "kid", kid)),
            Err(JwsError::HeaderParameter(wrong).into())
        );
    }
}

#[test]
fn a_key_identifier_is_compared_exactly() {
    let kid = issuer().public_key().kid().to_owned();
    for near in [
        kid.to_ascii_lowercase(),
        kid[1..].to_owned(),
        format!("{kid}A"),
        "a".repeat(64),
    ] {
        let header = with(header(), "kid", json!(near));
        assert_eq!(
            judge_header(&header),
            Err(VerifyError::UnknownKid),
            "{near}"
        );
    }
}

#[test]
fn signatures_that_fit_every_key_are_refused() {
    let n = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let n: Vec<u8> = (0..n.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&n[i..i + 2], 16).unwrap())
        .collect();
    let below = |number: &[u8]| {
        let mut number = number.to_vec();
        *number.last_mut().unwrap() -= 1;
        number
    };
    let zero = vec![0; 32];
    let one = [vec![0; 31], vec![1]].concat();
    let scalars = [zero, one, below(&n), n, vec![0xff; 32]];
    let input = signing_input(&header().to_string(), &claims().to_string());
    for r in &scalars {
        for s in &scalars {
            let signature = base64url::encode(&[r.as_slice(), s.as_slice()].concat());
            assert_eq!(judge(&format!("{input}.{signature}")), Err(WRONG_SIGNATURE));
        }
    }
}

#[test]
fn a_signature_in_der_is_refused() {
    let token = issuer().sign_as_der(&header().to_string(), &claims().to_string());
    assert_eq!(judge(&token), Err(JwsError::SignatureLength.into()));
}

#[test]
fn an_encrypted_token_is_refused_unread() {
    let inner = signing_input(r#"{"alg":"none"}"#, &claims().to_string());
    let header = base64url::encode(br#"{"alg":"dir","enc":"A128GCM","zip":"DEF","cty":"JWT"}"#);
    let inner = base64url::encode(format!("{inner}.").as_bytes());
    assert_eq!(
        judge(&format!("{header}.AAAA.AAAA.{inner}.AAAA")),
        Err(JwsError::Encrypted.into())
    );
    assert_eq!(
        judge(&format!("{header}..AAAA.{inner}.AAAA")),
        Err(JwsError::Encrypted.into())
    );
}

#[test]
fn a_token_inside_a_signed_token_is_refused() {
    let inner = signing_input(r#"{"alg":"none"}"#, &claims().to_string()) + ".";
    let header = with(header(), "cty", json!("JWT"));
    for payload in [inner.clone(), json!(inner).to_string()] {
        assert!(matches!(
            judge(&issuer().sign(&header.to_string(), &payload)),
            Err(VerifyError::Payload(
                JsonError::Syntax | JsonError::NotAnObject
            ))
        ));
    }
}

#[test]
fn header_parameters_that_change_the_meaning_are_refused_whatever_their_value() {
    for name in ["crit", "b64", "zip", "enc"] {
        for value in [
            json!(null),
            json!(false),
            json!(true),
            json!("DEF"),
            json!([]),
            json!(["exp"]),
        ] {
            assert_eq!(
                judge_header(&with(header(), name, value)),
                Err(JwsError::RefusedParameter { name }.into())
            );
        }
    }
}

#[test]
fn json_serializations_are_refused() {
    let token = valid_token();
    let [protected, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    for object in [
        json!({"protected": protected, "payload": payload, "signature": signature}),
        json!({"payload": payload,
            "signatures": [{"protected": protected, "signature": signature}]}),
        json!({&token: "", "payload": payload}),
    ] {
        assert_eq!(judge(&object.to_string()), Err(JwsError::Character.into()));
    }
}

#[test]
fn a_token_has_one_spelling() {
    let token = valid_token();
    for other in [
        format!("{token}="),
        format!("{token}=="),
        format!(" {token}"),
        format!("{token}\n"),
        format!("Bearer {token}"),
        token.replacen('.', ".\t", 1),
        token.replacen('.', "%2E", 1),
        format!("{token}\u{200b}"),
    ] {
        assert_eq!(judge(&other), Err(JwsError::Character.into()), "{other:?}");
    }
    for other in [
        format!(".{token}"),
        format!("{token}."),
        token.replacen('.', "..", 1),
    ] {
        assert_eq!(judge(&other), Err(JwsError::Parts.into()), "{other:?}");
    }
    for other in [
        "",
        ".",
        "..",
        "a",
        "a.b",
        "a..c",
        "...",
        ".....",
        "a.b.c.d.e.f",
    ] {
        assert_eq!(judge(other), Err(JwsError::Parts.into()), "{other:?}");
    }
}

#[test]
fn a_token_longer_than_the_cap_is_refused() {
    assert_eq!(
        judge(&"a".repeat(MAX_TOKEN_BYTES)),
        Err(JwsError::Parts.into())
    );
    assert_eq!(
        judge(&"a".repeat(MAX_TOKEN_BYTES + 1)),
        Err(JwsError::TooLong.into())
    );
}

#[test]
fn only_access_tokens_pass_for_access_tokens() {
    for typ in [
        "at+jwt",
        "AT+JWT",
        "At+Jwt",
        "application/at+jwt",
        "Application/AT+JWT",
    ] {
        assert!(
            judge_header(&with(header(), "typ", json!(typ))).is_ok(),
            "{typ}"
        );
    }
    for typ in [
        "",
        "JWT",
        "jwt",
        "at",
        "at+jwt ",
        "at+jwt;v=1",
        "text/at+jwt",
        "application/application/at+jwt",
        "logout+jwt",
        "secevent+jwt",
        "statuslist+jwt",
        "token-introspection+jwt",
        "dpop+jwt",
        "oauth-authz-req+jwt",
        "client-authentication+jwt",
        "countersign-revocations+jwt",
    ] {
        let header = with(header(), "typ", json!(typ));
        assert_eq!(judge_header(&header), Err(VerifyError::Type), "{typ}");
    }
    assert_eq!(
        judge_header(&without(header(), "typ")),
        Err(VerifyError::Type)
    );
    let wrong = MemberError::WrongType {
        name: "typ",
        expected: "a string",
    };
    assert_eq!(
        judge_header(&with(header(), "typ", json!(["at+jwt"]))),
        Err(JwsError::HeaderParameter(wrong).into())
    );
}

#[test]
fn a_name_said_twice_is_refused() {
    let twice =
        |object: &Value, member: &str| object.to_string().replacen('{', &format!("{{{member},"), 1);
    let (valid_header, valid_claims) = (header().to_string(), claims().to_string());
    for member in [
        r#""alg":"none""#,
        r#""alg":"ES256""#,
        r#""\u0061lg":"none""#,
        r#""x":[{"a":1,"a":1}]"#,
    ] {
        let token = issuer().sign(&twice(&header(), member), &valid_claims);
        assert_eq!(
            judge(&token),
            Err(JwsError::Header(JsonError::DuplicateMember).into())
        );
    }
    for member in [
        r#""sub":"root""#,
        r#""\u0073ub":"root""#,
        r#""cnf":{"jkt":"a","jkt":"b"}"#,
    ] {
        let token = issuer().sign(&valid_header, &twice(&claims(), member));
        assert_eq!(
            judge(&token),
            Err(VerifyError::Payload(JsonError::DuplicateMember))
        );
    }
}

#[test]
fn a_claim_of_the_wrong_type_is_not_an_absent_claim() {
    let values = [
        json!(null),
        json!(true),
        json!("9"),
        json!(9),
        json!([]),
        json!({}),
        json!([["x"]]),
    ];
    let fits = |claim: &str, value: &Value| match claim {
        "exp" | "nbf" | "iat" | "auth_time" => value.is_number(),
        "amr" => value == &json!([]),
        // An empty array has the right type and is refused for another reason.
        "aud" => value.is_string() || value == &json!([]),
        _ => value.is_string(),
    };
    for claim in [
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
    ] {
        for value in values.iter().filter(|value| !fits(claim, value)) {
            let result = judge_claims(&with(claims(), claim, value.clone()));
            let Err(VerifyError::Claim(MemberError::WrongType { name, .. })) = result else {
                panic!("{claim}: {value} gave {result:?}");
            };
            assert_eq!(name, claim);
        }
    }
}
