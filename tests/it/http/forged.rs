//! Forged tokens and tokens of other kinds, at every place that takes an access token: introspection,
//! revocation, and the admin interface. What the verifier's own tests show of each class of attacks,
//! these show of the places where it is called.

use std::net::TcpListener;

use countersign::admin::client::ClientMetadata;
use countersign_verifier::base64url;
use reqwest::{Method, header::AUTHORIZATION};
use ring::hmac;
use serde_json::{Value, json};

use crate::support::{
    client,
    jwt::{self, SigningKey, jwks},
    server::{API, GRANT, Registered, Setup, TestServer, answer},
};

const ADMIN: &str = "https://issuer.example/admin";

/// The order of P-256 and the number before it, as the halves of signatures are written.
const N: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
const N_MINUS_ONE: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550";

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn parts(token: &str) -> (Value, Value, String) {
    let parts: Vec<&str> = token.split('.').collect();
    let read = |part: &str| serde_json::from_slice(&base64url::decode(part).unwrap()).unwrap();
    (read(parts[0]), read(parts[1]), parts[2].to_owned())
}

fn input(header: &Value, claims: &Value) -> String {
    jwt::input(&header.to_string(), &claims.to_string())
}

fn with(mut document: Value, member: &str, value: Value) -> Value {
    document[member] = value;
    document
}

/// Every token that must be refused, made from a good one of the same client, with what it is.
fn forgeries(
    good: &str,
    published: &Value,
    attacker: &SigningKey,
    listener: &str,
) -> Vec<(String, String)> {
    let (header, claims, signature) = parts(good);
    let mut forged: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, token: String| forged.push((what.to_owned(), token));

    for alg in ["none", "None", "NONE", "nOnE"] {
        let unsigned = input(&with(header.clone(), "alg", json!(alg)), &claims);
        add(alg, format!("{unsigned}."));
        add(alg, unsigned.clone());
        add(alg, format!("{unsigned}.{signature}"));
    }
    let jwk = published["keys"][0].to_string();
    let coordinate =
        |name: &str| base64url::decode(published["keys"][0][name].as_str().unwrap()).unwrap();
    let point = [&[4][..], &coordinate("x"), &coordinate("y")].concat();
    for secret in [jwk.as_bytes(), &point, &point[1..]] {
        let text = input(&with(header.clone(), "alg", json!("HS256")), &claims);
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
        add(
            "a public key as a MAC secret",
            format!("{text}.{}", base64url::encode(mac.as_ref())),
        );
    }
    let own: Value = jwks(&[attacker]);
    for (what, header) in [
        (
            "an own key inside",
            with(header.clone(), "jwk", own["keys"][0].clone()),
        ),
        (
            "a key somewhere else",
            with(header.clone(), "jku", json!(listener)),
        ),
        (
            "a certificate somewhere else",
            with(header.clone(), "x5u", json!(listener)),
        ),
        (
            "an unknown extension",
            with(header.clone(), "crit", json!(["x"])),
        ),
        ("no extension", with(header.clone(), "crit", json!([]))),
        ("another's kid", header.clone()),
        (
            "an own kid",
            with(header.clone(), "kid", own["keys"][0]["kid"].clone()),
        ),
    ] {
        add(what, attacker.sign(&header, &claims));
    }
    for kid in [
        "../../dev/null",
        "' or 1=1--",
        listener,
        "\0",
        &"k".repeat(10_000),
    ] {
        add(
            "a strange kid",
            attacker.sign(&with(header.clone(), "kid", json!(kid)), &claims),
        );
    }
    let (zero, one) = ("00".repeat(32), format!("{}01", "00".repeat(31)));
    for r in [zero.as_str(), &one, N_MINUS_ONE, N] {
        for s in [zero.as_str(), &one, N_MINUS_ONE, N] {
            let signature = base64url::encode(&[bytes(r), bytes(s)].concat());
            add(
                "a signature of nothing",
                format!("{}.{signature}", input(&header, &claims)),
            );
        }
    }
    let text = input(&header, &claims);
    let (protected, payload) = text.split_once('.').unwrap();
    add(
        "five parts",
        format!("{protected}..{payload}.{signature}.{signature}"),
    );
    add(
        "a flattened serialization",
        json!({ "protected": protected, "payload": payload, "signature": signature }).to_string(),
    );
    add(
        "other claims",
        format!(
            "{}.{signature}",
            input(&header, &with(claims.clone(), "scope", json!("root")))
        ),
    );
    add("padding", format!("{good}="));
    forged
}

impl TestServer {
    async fn token_at(&self, by: &Registered, resource: &str) -> String {
        let request = self.token_request();
        let request = request.basic_auth(&by.id, Some(&by.secret));
        let form = [GRANT[0], ("resource", resource)];
        answer(request.form(&form)).await.access_token()
    }

    /// Shows a token wherever one is taken; tells whether all of them refused it.
    async fn refuses(&self, by: &Registered, token: &str) -> bool {
        let introspected = self.request(Method::POST, "/oauth2/introspect");
        let introspected = introspected.basic_auth(&by.id, Some(&by.secret));
        let introspected = answer(introspected.form(&[("token", token)])).await;
        assert_eq!(introspected.status, 200, "{introspected:?}");
        let admin = client().build().unwrap();
        let admin = admin.get(format!("http://{}/admin/v1/keys", self.admin));
        // What cannot stand in a header at all cannot be shown there.
        let refused = match admin
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .build()
        {
            Ok(request) => {
                let status = client()
                    .build()
                    .unwrap()
                    .execute(request)
                    .await
                    .unwrap()
                    .status();
                status == 401 || status == 400 || status == 431
            }
            Err(_) => true,
        };
        refused && introspected.body == "{\"active\":false}"
    }
}

#[tokio::test]
async fn no_forged_token_is_taken_anywhere() {
    let server = Setup::new().start().await;
    let operator = server
        .register(&ClientMetadata {
            client_name: "An operator".to_owned(),
            scope: "keys:read read".to_owned(),
            resources: vec![ADMIN.to_owned(), API.to_owned()],
            ..ClientMetadata::default()
        })
        .await;
    let good = server.token_at(&operator, ADMIN).await;
    assert!(!server.refuses(&operator, &good).await);
    let published: Value = serde_json::from_str(&server.jwks().await).unwrap();
    let attacker = SigningKey::new("attacker");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let forged = forgeries(&good, &published, &attacker, &url);
    assert!(forged.len() > 40);
    for (what, token) in forged {
        assert!(server.refuses(&operator, &token).await, "{what}: {token}");
        let revoked = server.request(Method::POST, "/oauth2/revoke");
        let revoked = revoked.basic_auth(&operator.id, Some(&operator.secret));
        let revoked = answer(revoked.form(&[("token", token.as_str())])).await;
        assert_eq!(revoked.status, 200, "{what}");
    }
    assert!(
        listener.accept().is_err(),
        "somebody fetched what a token names"
    );
    assert!(
        !server.refuses(&operator, &good).await,
        "a forged token revoked the good one"
    );
    // A token for something else is active, and no operator's.
    let ordinary = server.token_at(&operator, API).await;
    let admin = client().build().unwrap();
    let admin = admin.get(format!("http://{}/admin/v1/keys", server.admin));
    assert_eq!(answer(admin.bearer_auth(&ordinary)).await.status, 401);
}
