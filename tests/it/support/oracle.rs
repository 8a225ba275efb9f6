//! Verifiers that others wrote, to judge our tokens by.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::Value;

/// Names the folder that `scripts/test` prepares.
const FOLDER: &str = "COUNTERSIGN_TEST_INTEROP";

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
    let folder = std::env::var(FOLDER)
        .unwrap_or_else(|_| panic!("{FOLDER} is not set: run scripts/test, which prepares it."));
    let folder = Path::new(&folder);
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

/// Lets jsonwebtoken verify ES256 with ring, and nothing else.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "jsonwebtoken wants these signatures"
)]
mod ring_provider {
    use jsonwebtoken::{
        Algorithm, DecodingKey, EncodingKey,
        crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
        errors::{ErrorKind, Result},
        signature::{Error, Verifier},
    };
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    pub(super) static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: no_signer,
        verifier_factory: es256_verifier,
        key_utils: KeyUtils::new_unimplemented(),
    };

    struct Es256(Vec<u8>);

    impl Verifier<Vec<u8>> for Es256 {
        fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0)
                .verify(message, signature)
                .map_err(|_| Error::new())
        }
    }

    impl JwtVerifier for Es256 {
        fn algorithm(&self) -> Algorithm {
            Algorithm::ES256
        }
    }

    fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
        Err(ErrorKind::UnsupportedAlgorithm.into())
    }

    fn es256_verifier(alg: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
        match alg {
            Algorithm::ES256 => Ok(Box::new(Es256(key.try_get_as_bytes()?.to_vec()))),
            _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
        }
    }
}
