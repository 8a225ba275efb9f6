//! Relying parties that others wrote do the whole dance: discovery, sign-in, ID Token, userinfo, refresh.

use std::{
    path::Path,
    process::{Command, Output},
};

use countersign::{admin::client::ClientMetadata, domain::profile::Profile};
use openidconnect::{
    AccessTokenHash, AuthorizationCode, ClientId, ClientSecret, CsrfToken, HttpRequest,
    HttpResponse, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, RedirectUrl,
    Scope, TokenResponse as _,
    core::{CoreAuthenticationFlow, CoreClient, CoreProviderMetadata, CoreUserInfoClaims},
    http,
};
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use super::{super::browser::Site, relying_party, rp};
use crate::support::{
    client, oracle,
    server::{ISSUER, Setup},
    sign_in::{PASSWORD, update_user},
};

const CALLBACK: &str = "https://app.example/callback";

/// A server whose client `rp` wants its ID Tokens signed so.
async fn site(alg: &str) -> Site {
    let metadata = ClientMetadata {
        redirect_uris: vec![CALLBACK.to_owned()],
        id_token_signed_response_alg: Some(alg.to_owned()),
        ..relying_party()
    };
    let setup = Setup::new().set("keys.rs256_id_tokens", &(alg == "RS256").to_string());
    let site = Site::of(setup.client("rp", metadata)).await;
    let profile = json!({ "name": "Ada Lovelace", "email": "ada@example.com" });
    let profile = Profile::parse(profile.as_object().unwrap().clone()).unwrap();
    let now = site.server.clients.clock.now();
    update_user(site.server.store(), site.ada, now, |user| {
        user.profile = profile;
    })
    .await;
    site
}

/// Runs a program of `tests/interop` and judges what it says that it was told.
async fn dances(command: &str, program: &str, alg: &str) {
    let site = site(alg).await;
    let folder = oracle::folder();
    let command = if command == "node" {
        Path::new(command).to_owned()
    } else {
        folder.join(command)
    };
    let mut running = Command::new(command);
    running.arg(folder.join(program)).args([
        &format!("http://{}", site.server.public),
        ISSUER,
        "rp",
        &rp(&site.server).secret,
        CALLBACK,
        "openid profile email offline_access",
        "ada",
        PASSWORD,
    ]);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        running.env_remove(proxy);
    }
    let ended = tokio::task::spawn_blocking(move || running.output());
    let Output {
        status,
        stdout,
        stderr,
    } = ended.await.unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program}: {stderr}");
    let told: Value = serde_json::from_slice(&stdout).unwrap();
    let sub = json!(site.ada.to_string());
    for part in ["id_token", "userinfo", "refreshed"] {
        assert_eq!(told[part]["sub"], sub, "{told}");
    }
    assert_eq!(told["userinfo"]["email"], "ada@example.com");
    assert_eq!(told["userinfo"]["preferred_username"], "ada");
    assert_eq!(
        told["refreshed"]["auth_time"],
        told["id_token"]["auth_time"]
    );
    assert!(told["id_token"]["nonce"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn openid_client_for_node_signs_in() {
    dances("node", "openid_client.mjs", "ES256").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openid_client_for_node_signs_in_with_rs256() {
    dances("node", "openid_client.mjs", "RS256").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oauth4webapi_for_node_signs_in() {
    dances("node", "oauth4webapi.mjs", "ES256").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authlib_for_python_signs_in() {
    dances("venv/bin/python", "authlib_client.py", "ES256").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authlib_for_python_signs_in_with_rs256() {
    dances("venv/bin/python", "authlib_client.py", "RS256").await;
}

#[tokio::test]
async fn openidconnect_for_rust_signs_in() {
    openidconnect_dances("ES256").await;
}

#[tokio::test]
async fn openidconnect_for_rust_signs_in_with_rs256() {
    openidconnect_dances("RS256").await;
}

async fn openidconnect_dances(alg: &str) {
    let site = site(alg).await;
    let base = format!("http://{}", site.server.public);
    let http = client().build().unwrap();
    // The way to an issuer that is somewhere else than its URL says.
    let there = |request: HttpRequest| {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().replace(ISSUER, &base);
        let request = http
            .request(parts.method, url)
            .headers(parts.headers)
            .body(body);
        async move {
            let answer = request.send().await?;
            let mut response = http::Response::new(Vec::new());
            *response.status_mut() = answer.status();
            *response.headers_mut() = answer.headers().clone();
            *response.body_mut() = answer.bytes().await?.to_vec();
            Ok::<HttpResponse, reqwest::Error>(response)
        }
    };
    let issuer = IssuerUrl::new(ISSUER.to_owned()).unwrap();
    let provider = CoreProviderMetadata::discover_async(issuer, &there)
        .await
        .unwrap();
    let secret = ClientSecret::new(rp(&site.server).secret.clone());
    let relying_party =
        CoreClient::from_provider_metadata(provider, ClientId::new("rp".to_owned()), Some(secret))
            .set_redirect_uri(RedirectUrl::new(CALLBACK.to_owned()).unwrap());
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let flow = CoreAuthenticationFlow::AuthorizationCode;
    let (request, state, nonce) = relying_party
        .authorize_url(flow, CsrfToken::new_random, Nonce::new_random)
        .add_scope(Scope::new("email".to_owned()))
        .set_pkce_challenge(challenge)
        .url();
    let mut browser = site.browser();
    let path = request.as_str().strip_prefix(ISSUER).unwrap().to_owned();
    let page = browser.send(browser.request(Method::GET, &path)).await;
    let answer = browser.sign_in(&page, "ada", PASSWORD).await;
    let location = Url::parse(answer.header("location").unwrap()).unwrap();
    let value = |name: &str| {
        let mut pairs = location.query_pairs();
        pairs
            .find(|(other, _)| other == name)
            .unwrap()
            .1
            .into_owned()
    };
    assert_eq!(
        (&value("state"), value("iss").as_str()),
        (state.secret(), ISSUER)
    );
    let tokens = relying_party
        .exchange_code(AuthorizationCode::new(value("code")))
        .unwrap()
        .set_pkce_verifier(verifier)
        .request_async(&there)
        .await
        .unwrap();
    let id_token = tokens.id_token().unwrap();
    let judge = relying_party.id_token_verifier();
    assert_eq!(json!(id_token.signing_alg().unwrap()), alg);
    let claims = id_token.claims(&judge, &nonce).unwrap();
    let hash = AccessTokenHash::from_token(
        tokens.access_token(),
        id_token.signing_alg().unwrap(),
        id_token.signing_key(&judge).unwrap(),
    );
    assert_eq!(claims.access_token_hash(), Some(&hash.unwrap()));
    assert_eq!(claims.subject().as_str(), site.ada.to_string());
    let told: CoreUserInfoClaims = relying_party
        .user_info(
            tokens.access_token().clone(),
            Some(claims.subject().clone()),
        )
        .unwrap()
        .request_async(&there)
        .await
        .unwrap();
    assert_eq!(told.email().unwrap().as_str(), "ada@example.com");
    let next = relying_party
        .exchange_refresh_token(tokens.refresh_token().unwrap())
        .unwrap()
        .request_async(&there)
        .await
        .unwrap();
    let without_nonce = |nonce: Option<&Nonce>| match nonce {
        None => Ok(()),
        Some(_) => Err("a refreshed ID Token repeats no nonce".to_owned()),
    };
    let refreshed = next
        .id_token()
        .unwrap()
        .claims(&judge, without_nonce)
        .unwrap();
    assert_eq!(refreshed.auth_time(), claims.auth_time());
}
