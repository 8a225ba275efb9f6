//! Client authentication (RFC 6749 §2.3).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use countersign::{
    admin::client::ClientMetadata,
    clock::{Clock as _, SystemClock},
    domain::{change::Cause, id::ClientId},
};
use reqwest::{
    RequestBuilder,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde_json::json;

use super::{INVALID_CLIENT, SEVERAL_WAYS, refused};
use crate::support::{
    database::Engine,
    server::{FORM, GRANT, Registered, Setup, TestServer, answer, metadata},
    soon,
};

on_both_engines! {
    a_client_registered_by_another_process_works_with_its_first_request,
    a_client_disabled_by_another_process_is_refused,
    two_secrets_work_until_one_is_removed,
}

/// Also on a node that would look at the database only much later.
async fn a_client_registered_by_another_process_works_with_its_first_request(engine: Engine) {
    let rarely = Setup::new().set("sync.poll_interval_ms", "10000");
    let server = rarely.on(engine).start().await;
    let client = server.register(&metadata()).await;
    assert_eq!(server.token_for(&client).await.status, 200);
}

async fn a_client_disabled_by_another_process_is_refused(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    assert_eq!(server.token().await.status, 200);
    let id = ClientId::parse(&server.app.id).unwrap();
    let disable = json!({"disabled": true});
    let cause = Cause::system();
    let disabled = server.clients.update(&id, &disable, None, &cause).await;
    disabled.unwrap();
    until(async || server.token().await.status == 401).await;
    let reason = (401, "invalid_client", "client_disabled");
    refused(server.by_app().form(&GRANT), reason).await;
    // Only its owner is told that it is disabled.
    let stranger = server
        .token_request()
        .basic_auth(&server.app.id, Some("wrong"));
    refused(stranger.form(&GRANT), INVALID_CLIENT).await;
}

/// So that a secret can be exchanged without a gap.
async fn two_secrets_work_until_one_is_removed(engine: Engine) {
    let server = Setup::new().on(engine).start().await;
    let id = ClientId::parse(&server.app.id).unwrap();
    let (_, _, second) = server
        .clients
        .add_secret(&id, &Cause::system())
        .await
        .unwrap();
    let with_second = Registered {
        id: server.app.id.clone(),
        secret: second.expose().to_owned(),
        secret_id: None,
    };
    assert_eq!(server.token_for(&with_second).await.status, 200);
    assert_eq!(server.token().await.status, 200);

    let first = server.app.secret_id.unwrap();
    let cause = Cause::system();
    server
        .clients
        .remove_secret(&id, first, &cause)
        .await
        .unwrap();
    until(async || server.token().await.status == 401).await;
    assert_eq!(server.token_for(&with_second).await.status, 200);
    refused(server.by_app().form(&GRANT), INVALID_CLIENT).await;
}

/// Asks again until it is so.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    soon(async {
        while !is_so().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// RFC 6749 §2.3.1: id and secret are each form-encoded; RFC 9110 §11.1: the scheme has no case.
#[tokio::test]
async fn basic_credentials_are_form_encoded_and_the_scheme_has_no_case() {
    let server = TestServer::start().await;
    let encoded = server.app.secret.replace('_', "%5F").replace('c', "%63");
    for header in [
        format!("Basic {}", STANDARD.encode(format!("%61pp:{encoded}"))),
        format!(
            "bAsIc {}",
            STANDARD.encode(format!("app:{}", server.app.secret))
        ),
    ] {
        let request = server.token_request().header(AUTHORIZATION, header);
        assert_eq!(answer(request.form(&GRANT)).await.status, 200);
    }
}

/// RFC 6749 §5.2: "the client attempted to authenticate via the Authorization request header".
#[tokio::test]
async fn a_header_that_authenticates_nobody_is_refused_with_a_challenge() {
    let server = TestServer::start().await;
    let secret = &server.app.secret;
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for header in [
        basic("app:wrong"),
        basic("app:"),
        basic(&format!("nobody:{secret}")),
        basic(&format!("App:{secret}")),
        basic(&format!(" app:{secret}")),
        basic(&format!("app\0:{secret}")),
        basic(&format!("app:{secret}\0")),
        basic(&format!("app:{secret}\r\n")),
        basic(&format!("app:{secret}%")),
        basic(&format!("app:{secret}%zz")),
        basic(&format!("app:{secret}%ff")),
        basic("app"),
        basic(":"),
        basic("../../etc/passwd:x"),
        basic("' OR 1=1--:x"),
        basic(&format!("{}:x", "a".repeat(5000))),
        basic(&format!("app:{}", "a".repeat(5000))),
        format!("Basic {}", STANDARD.encode(b"app:\xff\xfe")),
        "Basic !!!!".to_owned(),
        "Basic".to_owned(),
        String::new(),
        format!(
            "Basic {}",
            STANDARD
                .encode(format!("app:{secret}"))
                .trim_end_matches('=')
        ) + "~",
        format!("Bearer {secret}"),
        format!("Digest username=\"app\", response=\"{secret}\""),
        format!("Basic realm=\"x\", app:{secret}"),
    ] {
        let request = server.token_request().header(AUTHORIZATION, &header);
        refused(request.form(&GRANT), INVALID_CLIENT).await;
    }
    let no_text = HeaderValue::from_bytes(b"Basic \xff\xfe").unwrap();
    let request = server.token_request().header(AUTHORIZATION, no_text);
    refused(request.form(&GRANT), INVALID_CLIENT).await;
}

#[tokio::test]
async fn a_body_that_authenticates_nobody_is_refused_without_a_challenge() {
    let server = TestServer::start().await;
    let poster = server.register(&with_method("client_secret_post")).await;
    let long = "a".repeat(10_000);
    for (id, secret) in [
        (None, None),
        (None, Some(poster.secret.as_str())),
        (Some(""), Some(poster.secret.as_str())),
        (Some(poster.id.as_str()), None),
        (Some(poster.id.as_str()), Some("")),
        (Some(poster.id.as_str()), Some("wrong")),
        (Some(poster.id.as_str()), Some(server.app.secret.as_str())),
        (Some("nobody"), Some(poster.secret.as_str())),
        (Some("nobody"), None),
        (Some("https://attacker.example/client"), None),
        (Some("../../etc/passwd"), Some("x")),
        (Some("' OR 1=1--"), Some("x")),
        (Some("a\0b"), Some("x")),
        (Some("a\r\nb"), Some("x")),
        (Some(long.as_str()), Some("x")),
    ] {
        let mut form = GRANT.to_vec();
        form.extend(id.map(|id| ("client_id", id)));
        form.extend(secret.map(|secret| ("client_secret", secret)));
        refused(server.token_request().form(&form), INVALID_CLIENT).await;
    }
}

/// RFC 7591 §2: `token_endpoint_auth_method` is the one that the client uses.
#[tokio::test]
async fn a_client_authenticates_only_in_the_way_it_is_registered_for() {
    let server = TestServer::start().await;
    let poster = server.register(&with_method("client_secret_post")).await;
    let public = server.register(&with_method("none")).await;
    let basic = |id: &str, secret: &str| server.token_request().basic_auth(id, Some(secret));
    let post = |id: &str, secret: &str| {
        let form = [GRANT[0], ("client_id", id), ("client_secret", secret)];
        server.token_request().form(&form)
    };
    for request in [
        post(&server.app.id, &server.app.secret),
        basic(&poster.id, &poster.secret).form(&GRANT),
        post(&public.id, "anything"),
        basic(&public.id, "").form(&GRANT),
        server
            .token_request()
            .form(&[GRANT[0], ("client_id", &server.app.id)]),
    ] {
        refused(request, INVALID_CLIENT).await;
    }
}

/// RFC 6749 §2.3: "The client MUST NOT use more than one authentication method in each request."
#[tokio::test]
async fn a_request_that_authenticates_in_two_ways_is_refused() {
    let server = TestServer::start().await;
    let secret = ("client_secret", server.app.secret.as_str());
    let assertion = ("client_assertion", "e30.e30.e30");
    for extra in [secret, assertion, ("client_assertion_type", "jwt-bearer")] {
        refused(server.by_app().form(&[GRANT[0], extra]), SEVERAL_WAYS).await;
    }
    let both = [GRANT[0], ("client_id", "app"), secret, assertion];
    refused(server.token_request().form(&both), SEVERAL_WAYS).await;
    for (first, second) in [
        (&server.app.secret[..], "wrong"),
        (&server.app.secret, &server.app.secret),
    ] {
        let mut headers = HeaderMap::new();
        for secret in [first, second] {
            let value = format!("Basic {}", STANDARD.encode(format!("app:{secret}")));
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        refused(
            server.token_request().headers(headers).form(&GRANT),
            SEVERAL_WAYS,
        )
        .await;
    }
}

#[tokio::test]
async fn the_body_may_repeat_the_client_id_of_the_header_but_not_name_another() {
    let server = TestServer::start().await;
    let other = server.register(&metadata()).await;
    let same = [GRANT[0], ("client_id", server.app.id.as_str())];
    assert_eq!(answer(server.by_app().form(&same)).await.status, 200);
    for id in [other.id.as_str(), "nobody", "App"] {
        let differing = [GRANT[0], ("client_id", id)];
        refused(server.by_app().form(&differing), INVALID_CLIENT).await;
    }
}

/// Whether a client exists is nobody's business: neither the answer nor its time tells.
#[tokio::test]
async fn an_unknown_client_and_a_wrong_secret_get_the_same_answer() {
    let server = TestServer::start().await;
    let by_basic = |id: &str| {
        let request = server.token_request().basic_auth(id, Some("wrong"));
        request.form(&GRANT)
    };
    let by_post = |id: &str| {
        let form = [GRANT[0], ("client_id", id), ("client_secret", "wrong")];
        server.token_request().form(&form)
    };
    let without_secret = |id: &str| server.token_request().form(&[GRANT[0], ("client_id", id)]);
    let ways: [&dyn Fn(&str) -> RequestBuilder; 3] = [&by_basic, &by_post, &without_secret];
    for way in ways {
        let mut known = refused(way("app"), INVALID_CLIENT).await;
        let mut unknown = refused(way("nobody"), INVALID_CLIENT).await;
        assert_eq!(known.body, unknown.body);
        for answer in [&mut known, &mut unknown] {
            for varies in ["date", "x-request-id"] {
                assert!(answer.headers.remove(varies).is_some());
            }
        }
        assert_eq!(known.headers, unknown.headers);
    }
}

/// Medians of interleaved measurements, so that what else the machine does falls on both alike.
#[tokio::test]
async fn an_unknown_client_and_a_wrong_secret_take_the_same_time() {
    const PAIRS: usize = 200;
    let unlimited = Setup::new()
        .set("limits.failures_per_minute", "0")
        .set("limits.failures_per_address_per_minute", "0");
    let server = unlimited.start().await;
    let clock = SystemClock::new();
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..PAIRS {
        for (id, times) in ["app", "nobody"].into_iter().zip(&mut times) {
            let request = server.token_request().basic_auth(id, Some("wrong"));
            let begun = clock.monotonic();
            let answer = answer(request.form(&GRANT)).await;
            times.push(clock.monotonic().saturating_sub(begun));
            assert_eq!(answer.status, 401);
        }
    }
    let [known, unknown] = times.map(|mut times| {
        times.sort_unstable();
        times[PAIRS / 2]
    });
    assert!(known < unknown * 2, "{known:?} {unknown:?}");
    assert!(unknown < known * 2, "{known:?} {unknown:?}");
}

/// RFC 6749 §2.3.1: the form may be broken in ways that the header is not.
#[tokio::test]
async fn a_secret_that_ends_in_a_line_break_is_wrong() {
    let server = TestServer::start().await;
    let poster = server.register(&with_method("client_secret_post")).await;
    let body = |end: &str| {
        format!(
            "grant_type=client_credentials&client_id={}&client_secret={}{end}",
            poster.id, poster.secret
        )
    };
    let send = |end: &str| {
        let request = server.token_request().header(CONTENT_TYPE, FORM);
        request.body(body(end))
    };
    assert_eq!(answer(send("")).await.status, 200);
    for end in ["\n", "\r\n", "\0", "%00", "+", "%0d%0a"] {
        refused(send(end), INVALID_CLIENT).await;
    }
}

fn with_method(method: &str) -> ClientMetadata {
    ClientMetadata {
        token_endpoint_auth_method: Some(method.to_owned()),
        ..metadata()
    }
}
