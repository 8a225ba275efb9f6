//! What holds of every token, tried on thousands of slightly wrong ones.

use countersign_verifier::json::{JsonError, parse_object};
use countersign_verifier::jws::Compact;
use countersign_verifier::{
    AccessTokenClaims, Audience, Expectation, KeySet, base64url, inspect, verify,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

use crate::issuer::{
    AUDIENCE, ISSUER, LEEWAY, NOW, attacker, claims, expectation, header, issuer, with,
};

proptest! {
    #[test]
    fn base64url_round_trips(bytes: Vec<u8>) {
        prop_assert_eq!(base64url::decode(&base64url::encode(&bytes)), Ok(bytes));
    }

    #[test]
    fn a_byte_string_has_one_base64url_spelling(text in "[A-Za-z0-9_=+/ -]{0,12}") {
        if let Ok(bytes) = base64url::decode(&text) {
            prop_assert_eq!(base64url::encode(&bytes), text);
        }
    }

    #[test]
    fn json_is_read_as_serde_json_reads_it(members in json_object()) {
        let text = Value::Object(members).to_string();
        let reread: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let object = parse_object(text.as_bytes()).unwrap();
        for (name, value) in &reread {
            prop_assert_eq!(object.value(name), Some(value));
        }
    }

    #[test]
    fn a_repeated_member_is_refused_wherever_it_is(mut members in json_object(), name: String) {
        members.insert(name.clone(), Value::Null);
        let text = Value::Object(members).to_string();
        let name = json!(name);
        let repeated = text.replacen('{', &format!("{{{name}:1,"), 1);
        let nested = format!(r#"{{"outer":[{repeated}]}}"#);
        prop_assert_eq!(parse_object(repeated.as_bytes()), Err(JsonError::DuplicateMember));
        prop_assert_eq!(parse_object(nested.as_bytes()), Err(JsonError::DuplicateMember));
    }

    #[test]
    fn claims_round_trip(claims in access_token_claims()) {
        let payload = serde_json::to_vec(&claims).unwrap();
        prop_assert_eq!(AccessTokenClaims::parse(&payload), Ok(claims));
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC{0,200}", bytes: Vec<u8>) {
        let _ = Compact::parse(&text);
        let _ = parse_object(&bytes);
        let _ = KeySet::parse(&bytes);
        let _ = AccessTokenClaims::parse(text.as_bytes());
    }

    #[test]
    fn a_token_is_accepted_exactly_when_nothing_is_found_wrong(token in tokens(NOW, &NEAR_NOW)) {
        let keys = KeySet::from_keys([issuer().public_key()]);
        let verdict = verify(&token, &keys, &expectation(), NOW);
        let findings = inspect(&token, &keys, &expectation(), NOW);
        let wrong = findings.iter().find(|finding| finding.outcome.is_err());
        prop_assert_eq!(verdict.is_ok(), wrong.is_none(), "{:?} but {:?}", verdict, wrong);
    }

    #[test]
    fn what_is_accepted_here_is_accepted_by_jsonwebtoken(token in tokens(wall_clock(), &FAR_FROM_NOW)) {
        let keys = KeySet::from_keys([issuer().public_key()]);
        if let Ok(claims) = verify(&token, &keys, &expectation(), wall_clock()) {
            match oracle(&token) {
                Ok(theirs) => prop_assert_eq!(theirs["sub"].as_str(), Some(&*claims.sub)),
                Err(error) => prop_assert!(false, "{:?}", error),
            }
        }
    }
}

#[test]
fn jsonwebtoken_accepts_a_token_of_the_issuer() {
    let claims = with(claims(), "exp", json!(wall_clock() + 600));
    let token = issuer().sign(&header().to_string(), &claims.to_string());
    assert!(oracle(&token).is_ok());
    let forged = attacker().sign(&header().to_string(), &claims.to_string());
    assert!(oracle(&forged).is_err());
}

/// Offsets at which the answer changes, and their neighbours.
const NEAR_NOW: [i64; 9] = [-600, -31, -30, -29, 0, 29, 30, 31, 600];
/// Offsets that mean the same a few seconds later, as the oracle reads the clock by itself.
const FAR_FROM_NOW: [i64; 2] = [-600, 600];

fn wall_clock() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

/// Tokens with up to two things wrong in the header and in the claims, by either signer, and now
/// and then with one character changed.
fn tokens(now: u64, offsets: &'static [i64]) -> impl Strategy<Value = String> {
    // Not `jwk`, `cty` and the like: the oracle wants them well-formed, and here they are not read.
    let header_names = ["typ", "alg", "kid", "crit", "b64", "zip", "enc"].to_vec();
    let claim_names = [
        "iss",
        "sub",
        "aud",
        "client_id",
        "iat",
        "exp",
        "nbf",
        "jti",
        "scope",
        "auth_time",
        "acr",
        "amr",
        "sid",
        "cnf",
    ]
    .to_vec();
    let edit = prop::option::weighted(0.2, (any::<Index>(), select(b"AQZaz09-_.=".to_vec())));
    (
        changes(header_names, header_values()),
        changes(claim_names, claim_values(now, offsets)),
        prop::bool::weighted(0.9),
        edit,
    )
        .prop_map(move |(header_changes, claim_changes, honest, edit)| {
            let claims = with(
                with(claims(), "iat", json!(now - 1)),
                "exp",
                json!(now + 600),
            );
            let header = apply(header_changes, header()).to_string();
            let claims = apply(claim_changes, claims).to_string();
            let token = if honest { issuer() } else { attacker() }.sign(&header, &claims);
            let Some((index, byte)) = edit else {
                return token;
            };
            let mut bytes = token.into_bytes();
            *index.get_mut(&mut bytes) = byte;
            String::from_utf8(bytes).unwrap()
        })
}

/// Members to be replaced, or removed.
type Changes = Vec<(&'static str, Option<Value>)>;

fn changes(names: Vec<&'static str>, values: Vec<Value>) -> impl Strategy<Value = Changes> {
    prop::collection::vec(
        (select(names), prop::option::weighted(0.8, select(values))),
        0..3,
    )
}

fn apply(changes: Changes, object: Value) -> Value {
    let Value::Object(mut members) = object else {
        panic!("not an object")
    };
    for (name, value) in changes {
        match value {
            Some(value) => members.insert(name.to_owned(), value),
            None => members.remove(name),
        };
    }
    Value::Object(members)
}

fn header_values() -> Vec<Value> {
    vec![
        json!("at+jwt"),
        json!("application/AT+JWT"),
        json!("JWT"),
        json!("ES256"),
        json!("none"),
        json!("HS256"),
        json!(issuer().public_key().kid()),
        json!(attacker().public_key().kid()),
        json!(""),
        json!(null),
        json!([]),
        json!(1),
    ]
}

fn claim_values(now: u64, offsets: &[i64]) -> Vec<Value> {
    let times = offsets
        .iter()
        .map(|offset| json!(now.saturating_add_signed(*offset)));
    let others = vec![
        json!(ISSUER),
        json!(AUDIENCE),
        json!([AUDIENCE]),
        json!(["x", AUDIENCE]),
        json!(["x", 1]),
        json!([]),
        json!([""]),
        json!(""),
        json!("x"),
        json!("1900000000"),
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!((1_u64 << 53) - 1),
        json!(1_u64 << 53),
        json!(u64::MAX),
        json!({}),
    ];
    times.chain(others).collect()
}

/// Asks jsonwebtoken, at the time of the wall clock.
fn oracle(token: &str) -> jsonwebtoken::errors::Result<Value> {
    // Only the first call of the process installs it; the others fail, which is as good.
    let _ = crate::ring_provider::PROVIDER.install_default();
    let Expectation {
        issuer: iss,
        audience,
        ..
    } = expectation();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[iss]);
    validation.set_audience(&[audience.unwrap()]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let key = DecodingKey::from_jwk(&issuer().public_key().to_jwk()).unwrap();
    jsonwebtoken::decode::<Value>(token, &key, &validation).map(|data| data.claims)
}

fn json_object() -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|members| members.into_iter().collect()),
        ]
    });
    prop::collection::btree_map(any::<String>(), value, 0..6)
        .prop_map(|members| members.into_iter().collect())
}

fn access_token_claims() -> impl Strategy<Value = AccessTokenClaims<'static>> {
    let text = || any::<String>().prop_map(std::borrow::Cow::Owned);
    let some_text = || "\\PC{1,20}".prop_map(std::borrow::Cow::Owned);
    let time = || 0_u64..1 << 53;
    let audience = prop::collection::vec(some_text(), 1..4).prop_map(|names| {
        let audience: Audience<'static> = names.into_iter().collect();
        audience
    });
    let required = (
        some_text(),
        some_text(),
        audience,
        some_text(),
        time(),
        time(),
        some_text(),
    );
    let optional = (
        prop::option::of(text()),
        prop::option::of(time()),
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(text(), 0..3)),
        prop::option::of(text()),
    );
    (required, optional).prop_map(
        |((iss, sub, aud, client_id, iat, exp, jti), (scope, auth_time, acr, amr, sid))| {
            AccessTokenClaims {
                iss,
                sub,
                aud,
                client_id,
                iat,
                exp,
                jti,
                scope,
                auth_time,
                acr,
                amr,
                sid,
            }
        },
    )
}
