//! `GET /.well-known/oauth-authorization-server` and `/.well-known/openid-configuration`
//! (RFC 8414 §3; Discovery §4).

use reqwest::Method;
use serde_json::json;

use crate::support::server::{ISSUER, Setup, TestServer, answer};

const OAUTH: &str = "/.well-known/oauth-authorization-server";
const OPENID: &str = "/.well-known/openid-configuration";

/// RFC 8414 §2.
#[tokio::test]
async fn the_metadata_says_what_is_there_and_no_more() {
    let server = TestServer::start().await;
    for path in [OAUTH, OPENID] {
        let answer = answer(server.get(path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(
            answer.json(),
            json!({
                "issuer": ISSUER,
                "authorization_endpoint": "https://issuer.example/oauth2/authorize",
                "authorization_response_iss_parameter_supported": true,
                "response_modes_supported": ["query", "form_post"],
                "prompt_values_supported": ["consent", "login", "none", "select_account"],
                "ui_locales_supported": ["en"],
                "claims_parameter_supported": true,
                "request_parameter_supported": false,
                "request_uri_parameter_supported": false,
                "userinfo_endpoint": "https://issuer.example/oauth2/userinfo",
                "scopes_supported":
                    ["address", "email", "offline_access", "openid", "phone", "profile"],
                "claim_types_supported": ["normal"],
                "claims_supported": [
                    "acr", "amr", "at_hash", "aud", "auth_time", "exp", "iat", "iss", "nonce",
                    "sid", "sub", "address", "birthdate", "email", "email_verified",
                    "family_name", "gender", "given_name", "locale", "middle_name", "name",
                    "nickname", "phone_number", "phone_number_verified", "picture",
                    "preferred_username", "profile", "updated_at", "website", "zoneinfo",
                ],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
                "jwks_uri": "https://issuer.example/.well-known/jwks.json",
                "token_endpoint": "https://issuer.example/oauth2/token",
                "token_endpoint_auth_methods_supported":
                    ["client_secret_basic", "client_secret_post", "none", "private_key_jwt"],
                "token_endpoint_auth_signing_alg_values_supported": ["ES256"],
                "introspection_endpoint": "https://issuer.example/oauth2/introspect",
                "introspection_endpoint_auth_methods_supported":
                    ["client_secret_basic", "client_secret_post", "private_key_jwt"],
                "introspection_endpoint_auth_signing_alg_values_supported": ["ES256"],
                "backchannel_logout_session_supported": true,
                "backchannel_logout_supported": true,
                "end_session_endpoint": "https://issuer.example/oauth2/logout",
                "revocation_endpoint": "https://issuer.example/oauth2/revoke",
                "revocation_endpoint_auth_methods_supported":
                    ["client_secret_basic", "client_secret_post", "none", "private_key_jwt"],
                "revocation_endpoint_auth_signing_alg_values_supported": ["ES256"],
                "authorization_challenge_endpoint": "https://issuer.example/oauth2/challenge",
                "acr_values_supported": ["urn:countersign:acr:1", "urn:countersign:acr:2"],
                "code_challenge_methods_supported": ["S256"],
                "grant_types_supported":
                    ["authorization_code", "client_credentials", "refresh_token"],
                "response_types_supported": ["code"],
            })
        );
    }
}

/// RFC 8414 §3.1 and §5 insert the well-known part before the issuer's path, Discovery §4 appends
/// it.
#[tokio::test]
async fn an_issuer_with_a_path_has_the_same_metadata_in_all_forms() {
    let issuer = "https://issuer.example/auth";
    let server = Setup::new().set("issuer", issuer).start().await;
    let mut documents = Vec::new();
    for path in [
        format!("{OAUTH}/auth"),
        format!("{OPENID}/auth"),
        format!("/auth{OAUTH}"),
        format!("/auth{OPENID}"),
    ] {
        let answer = answer(server.get(&path)).await;
        assert_eq!(answer.status, 200, "{path}");
        documents.push(answer.json());
    }
    for path in [OAUTH, OPENID, "/.well-known/jwks.json"] {
        assert_eq!(answer(server.get(path)).await.status, 404, "{path}");
    }
    for document in &documents {
        assert_eq!(document, &documents[0]);
        assert_eq!(document["issuer"], issuer);
        for endpoint in ["jwks_uri", "token_endpoint", "userinfo_endpoint"] {
            let url = document[endpoint].as_str().unwrap();
            let path = url.strip_prefix("https://issuer.example").unwrap();
            // Each is where it is said to be: there is a resource, if not for GET.
            let found = answer(server.get(path)).await.status;
            assert!(matches!(found, 200 | 401 | 405), "{url}: {found}");
        }
    }
}

/// What a request says about its host is its sender's word.
#[tokio::test]
async fn no_header_of_a_request_changes_an_endpoint() {
    let server = TestServer::start().await;
    let expected = answer(server.get(OAUTH)).await.body;
    for (name, value) in [
        ("host", "attacker.example"),
        ("x-forwarded-host", "attacker.example"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-prefix", "/attacker"),
        ("forwarded", "host=attacker.example;proto=http"),
        ("x-original-url", "/attacker"),
    ] {
        let answer = answer(server.get(OAUTH).header(name, value)).await;
        assert_eq!(answer.body, expected, "{name}");
    }
}

#[tokio::test]
async fn the_metadata_is_only_read() {
    let server = TestServer::start().await;
    for path in [OAUTH, OPENID] {
        let head = answer(server.request(Method::HEAD, path)).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        let preflight = answer(server.request(Method::OPTIONS, path)).await;
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        let posted = answer(server.request(Method::POST, path)).await;
        assert_eq!(posted.status, 405);
        assert_eq!(posted.header("allow"), Some("GET, HEAD, OPTIONS"));
    }
}
