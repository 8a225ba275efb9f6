//! `GET` and `POST /oauth2/userinfo` (`OpenID` Connect Core §5.3, §5.4; RFC 6750).

use std::time::Duration;

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
    domain::profile::Profile,
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{
    super::browser::Site, USERINFO, code, exchange, id_token, refreshed, relying_party, rp, site,
};
use crate::support::{
    database::Engine,
    server::{API, Answer, Setup, TestServer, answer},
    sign_in::{PASSWORD, claims, update_user},
};

on_both_engines! {
    each_scope_tells_its_claims_and_no_others,
    a_token_of_a_sign_in_that_has_ended_tells_nothing,
}

const PATH: &str = "/oauth2/userinfo";
const NOW: i64 = 1_800_000_000;
const PAGE: &str = "https://app.example";

/// All that is known of Ada.
fn profile() -> Value {
    json!({
        "name": "Ada Lovelace",
        "given_name": "Ada",
        "birthdate": "1815-12-10",
        "email": "ada@example.com",
        "email_verified": true,
        "phone_number": "+44 20 7946 0000",
        "phone_number_verified": false,
        "address": { "locality": "London", "country": "UK" },
    })
}

async fn describe(site: &Site) {
    let now = site.server.clients.clock.now();
    let profile = Profile::parse(profile().as_object().unwrap().clone()).unwrap();
    update_user(site.server.store(), site.ada, now, |user| {
        user.profile = profile;
    })
    .await;
}

fn get(server: &TestServer) -> RequestBuilder {
    server.get(PATH)
}

async fn told(server: &TestServer, token: &str) -> Answer {
    answer(get(server).bearer_auth(token)).await
}

/// Status, error and challenge of a refusal.
fn refused(answer: &Answer) -> (u16, String, String) {
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let error = if answer.body.is_empty() {
        String::new()
    } else {
        answer.json()["error"].as_str().unwrap().to_owned()
    };
    (answer.status, error, challenge.to_owned())
}

fn is_invalid_token(answer: &Answer) {
    let (status, error, challenge) = refused(answer);
    assert_eq!(
        (status, error.as_str()),
        (401, "invalid_token"),
        "{answer:?}"
    );
    assert!(
        challenge.starts_with("Bearer realm=\"countersign\", error=\"invalid_token\""),
        "{challenge}"
    );
}

/// Core §5.4.
async fn each_scope_tells_its_claims_and_no_others(engine: Engine) {
    let clock = ManualClock::new(Timestamp::from_seconds(NOW));
    let setup = Setup::new().on(engine).clock(clock);
    let site = Site::of(setup.client("rp", relying_party())).await;
    describe(&site).await;
    let all = profile();
    let sub = site.ada.to_string();
    for (scope, names) in [
        ("openid", &[][..]),
        ("openid profile", &["name", "given_name", "birthdate"]),
        ("openid email", &["email", "email_verified"]),
        ("openid phone", &["phone_number", "phone_number_verified"]),
        ("openid address", &["address"]),
        (
            "openid profile email phone address",
            &[
                "name",
                "given_name",
                "birthdate",
                "email",
                "email_verified",
                "phone_number",
                "phone_number_verified",
                "address",
            ],
        ),
    ] {
        let code = code(&site, &[("scope", scope)]).await;
        let answered = exchange(&site.server, &code, &[]).await;
        let told = told(&site.server, &answered.access_token()).await;
        assert_eq!(told.status, 200, "{told:?}");
        assert_eq!(told.header("content-type"), Some("application/json"));
        assert_eq!(told.header("cache-control"), Some("no-store"));
        let mut expected = json!({ "sub": sub });
        for name in names {
            expected[*name] = all[*name].clone();
        }
        if scope.contains("profile") {
            expected["preferred_username"] = "ada".into();
            expected["updated_at"] = NOW.into();
        }
        assert_eq!(told.json(), expected, "{scope}");
        assert_eq!(claims(&id_token(&answered))["sub"], sub);
    }
    // A refresh for less tells less.
    let code = code(&site, &[("scope", "openid email phone")]).await;
    let first = exchange(&site.server, &code, &[]).await;
    let less = refreshed(&site.server, &first, &[("scope", "openid email")]).await;
    let told = told(&site.server, &less.access_token()).await.json();
    assert_eq!(told.get("phone_number"), None);
    assert_eq!(told["email"], "ada@example.com");
}

/// Introspection and this judge alike: whatever ends a sign-in ends what its tokens open.
async fn a_token_of_a_sign_in_that_has_ended_tells_nothing(engine: Engine) {
    let site = site(engine).await;
    let server = &site.server;
    for end in 0..4 {
        let code = code(&site, &[]).await;
        let answered = exchange(server, &code, &[]).await;
        let token = answered.access_token();
        assert_eq!(told(server, &token).await.status, 200);
        match end {
            // Its client signs out.
            0 => {
                let refresh_token = answered.refresh_token();
                let request = server.request(Method::POST, "/oauth2/revoke");
                let rp = rp(server);
                let request = request.basic_auth(&rp.id, Some(&rp.secret));
                let request = request.form(&[("token", refresh_token.as_str())]);
                assert_eq!(answer(request).await.status, 200);
            }
            // The code comes a second time.
            1 => assert_eq!(exchange(server, &code, &[]).await.status, 400),
            // The token itself is revoked.
            2 => {
                let request = server.request(Method::POST, "/oauth2/revoke");
                let rp = rp(server);
                let request = request.basic_auth(&rp.id, Some(&rp.secret));
                let request = request.form(&[("token", token.as_str())]);
                assert_eq!(answer(request).await.status, 200);
                server.renewed().await;
            }
            // The user is disabled.
            _ => {
                let now = server.clients.clock.now();
                update_user(server.store(), site.ada, now, |user| user.disabled = true).await;
            }
        }
        is_invalid_token(&told(server, &token).await);
    }
}

/// Core §5.3.1, RFC 6750 §2: in the header or the body of a form, and in one of them alone.
#[tokio::test]
async fn a_token_is_sent_in_one_of_two_ways() {
    let site = site(Engine::Sqlite).await;
    let server = &site.server;
    let code = code(&site, &[]).await;
    let token = exchange(server, &code, &[]).await.access_token();
    let post = || server.request(Method::POST, PATH);
    let form = [("access_token", token.as_str())];
    let expected = json!({ "sub": site.ada.to_string() });
    let with_query = format!("{PATH}?access_token={token}");
    for request in [
        get(server).bearer_auth(&token),
        get(server).header("authorization", format!("bearer {token}")),
        post().bearer_auth(&token),
        post().bearer_auth(&token).form(&[("other", "x")]),
        post().form(&form),
    ] {
        let told = answer(request).await;
        assert_eq!((told.status, told.json()), (200, expected.clone()));
    }
    for request in [
        get(server),
        post(),
        server.get(&with_query),
        server.request(Method::POST, &with_query),
        get(server).basic_auth("rp", Some("x")),
        post().form(&[("token", &token)]),
        post()
            .header("content-type", "application/json")
            .body(json!({ "access_token": token }).to_string()),
    ] {
        let none = answer(request).await;
        let challenge = "Bearer realm=\"countersign\"".to_owned();
        assert_eq!(refused(&none), (401, String::new(), challenge));
    }
    for request in [
        post().bearer_auth(&token).form(&form),
        post().form(&[form[0], form[0]]),
        get(server).header("authorization", "Bearer"),
        get(server).header("authorization", format!("Bearer {token} {token}")),
        get(server).bearer_auth(&token).bearer_auth(&token),
        post()
            .header("content-type", "application/x-www-form-urlencoded")
            .body("%zz"),
    ] {
        let (status, error, challenge) = refused(&answer(request).await);
        assert_eq!((status, error.as_str()), (400, "invalid_request"));
        assert!(
            challenge.contains("error=\"invalid_request\""),
            "{challenge}"
        );
    }
    let other = answer(server.request(Method::PUT, PATH)).await;
    assert_eq!(
        (other.status, other.header("allow")),
        (405, Some("GET, POST, OPTIONS"))
    );
}

/// Every other kind of token, and every token for something else.
#[tokio::test]
async fn a_token_that_is_not_for_this_tells_nothing() {
    let clock = ManualClock::new(Timestamp::from_seconds(NOW));
    let setup = Setup::new().clock(clock.clone());
    let site = Site::of(setup.client("rp", relying_party())).await;
    let server = &site.server;
    let code = code(&site, &[("scope", "openid email read")]).await;
    let answered = exchange(server, &code, &[]).await;
    let elsewhere = refreshed(server, &answered, &[("resource", API)]).await;
    let own = server.token_for(rp(server)).await.access_token();
    let mut forged = answered.access_token();
    forged.push('A');
    for token in [
        id_token(&answered),
        answered.refresh_token(),
        elsewhere.access_token(),
        own,
        forged,
        "x".to_owned(),
    ] {
        is_invalid_token(&told(server, &token).await);
    }
    // For this, but not to say who it is.
    let more = [("resource", USERINFO), ("scope", "email")];
    let only = refreshed(server, &elsewhere, &more).await;
    let (status, error, challenge) = refused(&told(server, &only.access_token()).await);
    assert_eq!((status, error.as_str()), (403, "insufficient_scope"));
    assert!(challenge.ends_with("scope=\"openid\""), "{challenge}");
    let good = answered.access_token();
    assert_eq!(told(server, &good).await.status, 200);
    let life = answered.json()["expires_in"].as_u64().unwrap();
    clock.advance(Duration::from_secs(life));
    is_invalid_token(&told(server, &good).await);
}

/// Core §5.5: claims by name, as long as the client is registered for their scope.
#[tokio::test]
async fn claims_that_were_asked_for_by_name_are_told_where_they_were_asked_for() {
    let site = site(Engine::Sqlite).await;
    describe(&site).await;
    let server = &site.server;
    let asked = json!({
        "userinfo": { "given_name": { "essential": true }, "nickname": null, "email": null },
        "id_token": { "email": { "essential": true }, "phone_number": null, "x": null },
    });
    let code = code(&site, &[("claims", &asked.to_string())]).await;
    let first = exchange(server, &code, &[]).await;
    let second = refreshed(server, &first, &[]).await;
    for answered in [&first, &second] {
        let id = claims(&id_token(answered));
        assert_eq!(id["email"], "ada@example.com");
        assert_eq!(id["phone_number"], "+44 20 7946 0000");
        for name in ["given_name", "nickname", "email_verified", "x"] {
            assert_eq!(id.get(name), None, "{name}");
        }
        let info = told(server, &answered.access_token()).await.json();
        let sub = site.ada.to_string();
        let email = "ada@example.com";
        assert_eq!(
            info,
            json!({ "sub": sub, "given_name": "Ada", "email": email })
        );
    }
    // It may have them no more.
    server
        .update(rp(server), json!({ "scope": "openid read profile" }))
        .await;
    server.renewed().await;
    let third = refreshed(server, &second, &[]).await;
    assert_eq!(claims(&id_token(&third)).get("email"), None);
    let info = told(server, &third.access_token()).await.json();
    assert_eq!(
        info,
        json!({ "sub": site.ada.to_string(), "given_name": "Ada" })
    );
}

/// Pages of origins that clients have registered may ask, as at the token endpoint.
#[tokio::test]
async fn pages_of_registered_origins_may_ask() {
    let of_pages = ClientMetadata {
        allowed_origins: vec![PAGE.to_owned()],
        ..relying_party()
    };
    let site = Site::of(Setup::new().client("rp", of_pages)).await;
    let server = &site.server;
    let code = code(&site, &[]).await;
    let token = exchange(server, &code, &[]).await.access_token();
    for (origin, allowed) in [(PAGE, Some(PAGE)), ("https://evil.example", None)] {
        let request = get(server).bearer_auth(&token).header("origin", origin);
        let told = answer(request).await;
        assert_eq!(told.header("access-control-allow-origin"), allowed);
        assert_eq!(told.header("access-control-allow-credentials"), None);
        let request = server
            .request(Method::OPTIONS, PATH)
            .header("origin", origin);
        let preflight = answer(request).await;
        assert_eq!(preflight.header("access-control-allow-origin"), allowed);
        let methods = preflight.header("access-control-allow-methods");
        assert_eq!((preflight.status, methods), (204, Some("GET, POST")));
    }
}

/// What a user was asked for is what clients are told: a claim is a line of its own.
#[tokio::test]
async fn a_claim_that_is_asked_for_by_name_is_on_the_page_of_consent() {
    let site = site(Engine::Sqlite).await;
    let mut browser = site.browser();
    let third = ("client_id", "third");
    let page = super::ask(&mut browser, &[third]).await;
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    assert!(!page.body.contains("e-mail address"), "{page:?}");
    let allowed = browser.decide(&page, "allow").await;
    super::returned(&allowed);
    let claims = ("claims", r#"{"userinfo":{"email":null}}"#);
    let page = super::ask(&mut browser, &[third, claims]).await;
    assert!(page.body.contains("See your e-mail address"), "{page:?}");
    let silent = [third, claims, ("prompt", "none")];
    let refused = super::ask(&mut browser, &silent).await;
    assert_eq!(super::returned(&refused)["error"], "consent_required");
}
