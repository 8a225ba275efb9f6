//! `OpenID` Connect: who has signed in, as clients are told.

mod id_token;
mod library;
mod oidcc;
mod request;
mod rs256;
mod userinfo;

use countersign::admin::client::ClientMetadata;
use countersign_verifier::{KeySet, base64url, jws::Compact};
use serde_json::Value;

use super::browser::{Browser, CALLBACK, Site, of_browsers, returned};
use crate::support::{
    database::Engine,
    server::{Answer, Registered, Setup, TestServer},
    sign_in::{PASSWORD, VERIFIER, refresh},
};

/// What every access token with the scope `openid` is for, too.
const USERINFO: &str = "https://issuer.example/oauth2/userinfo";

/// All scopes that tell about a user.
const EVERYTHING: &str = "openid profile email address phone offline_access";

/// A client of the same house that authenticates and asks who its users are.
fn relying_party() -> ClientMetadata {
    ClientMetadata {
        token_endpoint_auth_method: None,
        first_party: true,
        scope: format!("read write files:read {EVERYTHING}"),
        ..of_browsers()
    }
}

/// A server with the clients `rp`, which is one of those, and `third`, which has to ask for consent.
async fn site(engine: Engine) -> Site {
    let third = ClientMetadata {
        first_party: false,
        ..relying_party()
    };
    let setup = Setup::new().on(engine).client("rp", relying_party());
    Site::of(setup.client("third", third)).await
}

/// A sign-in at `rp` in a new browser; the code.
async fn code(site: &Site, changes: &[(&str, &str)]) -> String {
    let mut browser = site.browser();
    let answer = sign_in(&mut browser, changes).await;
    returned(&answer)["code"].clone()
}

/// Asks for a code for `rp`, and signs Ada in.
async fn sign_in(browser: &mut Browser<'_>, changes: &[(&str, &str)]) -> Answer {
    let page = ask(browser, changes).await;
    browser.sign_in(&page, "ada", PASSWORD).await
}

/// Asks for a code for `rp`: `openid`, unless another scope is asked for.
async fn ask(browser: &mut Browser<'_>, changes: &[(&str, &str)]) -> Answer {
    let mut all = changes.to_vec();
    for (name, value) in [("client_id", "rp"), ("scope", "openid")] {
        if changes.iter().all(|(changed, _)| *changed != name) {
            all.push((name, value));
        }
    }
    browser.ask(&all).await
}

/// What a code gets `rp`, with more parameters.
async fn exchange(server: &TestServer, code: &str, more: &[(&str, &str)]) -> Answer {
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("code_verifier", VERIFIER),
        ("redirect_uri", CALLBACK),
    ];
    let form = [&form[..], more].concat();
    server.exchange(rp(server), &form).await
}

/// What the refresh token of an answer gets `rp`, with more parameters.
async fn refreshed(server: &TestServer, before: &Answer, more: &[(&str, &str)]) -> Answer {
    let token = before.refresh_token();
    let form = [&refresh(&token)[..], more].concat();
    server.exchange(rp(server), &form).await
}

fn rp(server: &TestServer) -> &Registered {
    server.other("rp")
}

pub(super) use rs256::verified as verified_with_rs256;

/// The header of a JWT.
pub(super) fn header(token: &str) -> Value {
    let header = token.split('.').next().unwrap();
    serde_json::from_slice(&base64url::decode(header).unwrap()).unwrap()
}

/// The claims of an ID Token whose signature is right.
async fn verified(server: &TestServer, token: &str) -> Value {
    let keys = KeySet::parse(server.jwks().await.as_bytes()).unwrap();
    let compact = Compact::parse(token).unwrap();
    let key = keys.find(compact.header().kid().unwrap()).unwrap();
    serde_json::from_slice(compact.verify(key).unwrap()).unwrap()
}

/// The ID Token of a successful answer.
fn id_token(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["id_token"].as_str().unwrap().to_owned()
}
