//! Authorization server metadata (RFC 8414, `OpenID` Connect Discovery §3), derived from what is there.

use serde_json::{Value, json};

use super::{
    authorization::request::{Prompt, ResponseMode},
    userinfo::{self, USERINFO_PATH},
};
use crate::domain::{
    client::{AuthMethod, GrantType, IdTokenAlg},
    factor::ACR_VALUES,
    profile,
};

/// Where the endpoints are, below the issuer.
pub const JWKS_PATH: &str = "/.well-known/jwks.json";
/// Where users are sent to sign in, below the issuer.
pub const AUTHORIZATION_PATH: &str = "/oauth2/authorize";
/// Where tokens are issued, below the issuer.
pub const TOKEN_PATH: &str = "/oauth2/token";
/// Where users of first-party clients sign in without a browser, below the issuer.
pub const CHALLENGE_PATH: &str = "/oauth2/challenge";
/// Where tokens are introspected, below the issuer.
pub const INTROSPECTION_PATH: &str = "/oauth2/introspect";
/// Where users sign out, below the issuer.
pub const LOGOUT_PATH: &str = "/oauth2/logout";
/// Where tokens are revoked, below the issuer.
pub const REVOCATION_PATH: &str = "/oauth2/revoke";

/// What client assertions are signed with (RFC 8414 §2).
const ASSERTION_ALGS: [&str; 1] = ["ES256"];

/// The claims of ID Tokens that are not about the user as a person (Core §2).
const ID_TOKEN_CLAIMS: [&str; 11] = [
    "acr",
    "amr",
    "at_hash",
    "aud",
    "auth_time",
    "exp",
    "iat",
    "iss",
    "nonce",
    "sid",
    "sub",
];

/// The metadata of an issuer.
///
/// Nothing of a request goes into it, so that no `Host` header can bend an endpoint. ID Tokens are
/// signed with RS256 for clients that want it where the service has opted in.
pub fn document(issuer: &str, rs256_id_tokens: bool) -> Value {
    let algs = IdTokenAlg::ALL.iter();
    let algs = algs.filter(|alg| rs256_id_tokens || **alg != IdTokenAlg::Rs256);
    let id_token_algs: Vec<&str> = algs.map(|alg| alg.as_str()).collect();
    let methods: Vec<&str> = AuthMethod::ALL
        .iter()
        .map(|method| method.as_str())
        .collect();
    let grants: Vec<&str> = GrantType::ALL.iter().map(|grant| grant.as_str()).collect();
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}{AUTHORIZATION_PATH}"),
        "authorization_response_iss_parameter_supported": true,
        "response_modes_supported":
            ResponseMode::ALL.iter().rev().map(|mode| mode.as_str()).collect::<Vec<_>>(),
        "prompt_values_supported": Prompt::ALL.iter().map(|prompt| prompt.as_str()).collect::<Vec<_>>(),
        "ui_locales_supported": ["en"],
        "claims_parameter_supported": true,
        // "If omitted, the default value is true" (Discovery §3).
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
        "userinfo_endpoint": format!("{issuer}{USERINFO_PATH}"),
        "scopes_supported": userinfo::SCOPES.split(' ').collect::<Vec<_>>(),
        "claim_types_supported": ["normal"],
        "claims_supported": ID_TOKEN_CLAIMS.into_iter().chain(profile::names()).collect::<Vec<_>>(),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": id_token_algs,
        "jwks_uri": format!("{issuer}{JWKS_PATH}"),
        "token_endpoint": format!("{issuer}{TOKEN_PATH}"),
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": ASSERTION_ALGS,
        "introspection_endpoint": format!("{issuer}{INTROSPECTION_PATH}"),
        "introspection_endpoint_auth_methods_supported": methods.iter().filter(|name| **name != "none").collect::<Vec<_>>(),
        "introspection_endpoint_auth_signing_alg_values_supported": ASSERTION_ALGS,
        "backchannel_logout_session_supported": true,
        "backchannel_logout_supported": true,
        "end_session_endpoint": format!("{issuer}{LOGOUT_PATH}"),
        "revocation_endpoint": format!("{issuer}{REVOCATION_PATH}"),
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": ASSERTION_ALGS,
        "authorization_challenge_endpoint": format!("{issuer}{CHALLENGE_PATH}"),
        "acr_values_supported": ACR_VALUES,
        "code_challenge_methods_supported": ["S256"],
        "grant_types_supported": grants,
        "response_types_supported": ["code"],
    })
}
