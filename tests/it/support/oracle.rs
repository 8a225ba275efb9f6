//! Verifiers that others wrote, to judge our tokens by.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::Value;

#[path = "../../../verifier/tests/it/ring_provider.rs"]
mod ring_provider;

/// Names the folder that `scripts/test` prepares.
const FOLDER: &str = "COUNTERSIGN_TEST_INTEROP";

/// The folder with the programs of `tests/interop` and all that they need.
pub(crate) fn folder() -> PathBuf {
    std::env::var(FOLDER)
        .unwrap_or_else(|_| panic!("{FOLDER} is not set: run scripts/test, which prepares it."))
        .into()
}

/// What jsonwebtoken reads in a token: header and claims.
pub(crate) fn jsonwebtoken(token: &str, jwks: &str, issuer: &str, audience: &str) -> Value {
    // Only the first call of the process installs it; the others fail, which is as good.
    let _ = ring_provider::PROVIDER.install_default();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let jwks: JwkSet = serde_json::from_str(jwks).unwrap();
    let jwk = jwks.find(&header.kid.unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.leeway = 0;
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let key = DecodingKey::from_jwk(jwk).unwrap();
    let decoded = jsonwebtoken::decode::<Value>(token, &key, &validation);
    decoded.unwrap().claims
}

/// What jose, `PyJWT` and openssl alone read in a token.
pub(crate) fn independent_tools(
    token: &str,
    jwks: &str,
    issuer: &str,
    audience: &str,
) -> [Value; 3] {
    let folder = folder();
    let place = tempfile::tempdir().unwrap();
    let jwks_file = place.path().join("jwks.json");
    std::fs::write(&jwks_file, jwks).unwrap();
    let mut jose = Command::new("node");
    jose.arg(folder.join("verify.mjs"));
    let mut pyjwt = Command::new(folder.join("venv/bin/python"));
    pyjwt.arg(folder.join("verify.py"));
    let openssl = Command::new(folder.join("verify.sh"));
    [jose, pyjwt, openssl].map(|mut tool| {
        tool.arg(&jwks_file).args([issuer, audience]);
        run(tool, token)
    })
}

fn run(mut tool: Command, token: &str) -> Value {
    tool.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = tool.spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(token.as_bytes()).unwrap();
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{tool:?} refused {token}");
    serde_json::from_slice(&output.stdout).unwrap()
}
