//! What the conformance suite of the `OpenID` Foundation asks of a provider, module by module, under the
//! names of its plans for basic providers and for those with `form_post`: each in both response modes.
//!
//! What a module wants that this service does not do is in docs/divergences.md.

use std::{collections::BTreeMap, time::Duration};

use countersign::{
    admin::client::ClientMetadata,
    clock::{ManualClock, Timestamp},
    domain::profile::Profile,
};
use reqwest::Method;
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use super::{
    super::browser::{Browser, CALLBACK, STATE, Site, heading, hidden, returned},
    EVERYTHING, exchange, header, id_token, refreshed, relying_party, rp, verified,
};
use crate::support::{
    jwt::input,
    server::{Answer, ISSUER, Setup, answer},
    sign_in::{PASSWORD, claims, refresh, update_user},
};

macro_rules! in_both_response_modes {
    ($($module:ident,)+) => {
        mod query {
            $(#[tokio::test]
            async fn $module() {
                super::$module(super::Plan::new("query").await).await;
            })+
        }
        mod form_post {
            $(#[tokio::test]
            async fn $module() {
                super::$module(super::Plan::new("form_post").await).await;
            })+
        }
    };
}

in_both_response_modes! {
    oidcc_server,
    oidcc_response_type_missing,
    oidcc_idtoken_signature,
    oidcc_idtoken_unsigned,
    oidcc_userinfo_get,
    oidcc_userinfo_post_header,
    oidcc_userinfo_post_body,
    oidcc_ensure_request_without_nonce_succeeds_for_code_flow,
    oidcc_scope_profile,
    oidcc_scope_email,
    oidcc_scope_address,
    oidcc_scope_phone,
    oidcc_scope_all,
    oidcc_alternate_happy_flow,
    oidcc_display_page,
    oidcc_display_popup,
    oidcc_prompt_login,
    oidcc_prompt_none_not_logged_in,
    oidcc_prompt_none_logged_in,
    oidcc_max_age_1,
    oidcc_max_age_10000,
    oidcc_ensure_request_with_unknown_parameter_succeeds,
    oidcc_id_token_hint,
    oidcc_login_hint,
    oidcc_ui_locales,
    oidcc_claims_locales,
    oidcc_ensure_request_with_acr_values_succeeds,
    oidcc_codereuse,
    oidcc_codereuse_30seconds,
    oidcc_ensure_registered_redirect_uri,
    oidcc_ensure_post_request_succeeds,
    oidcc_server_client_secret_post,
    oidcc_request_uri_unsigned_supported_correctly_or_rejected_as_unsupported,
    oidcc_unsigned_request_object_supported_correctly_or_rejected_as_unsupported,
    oidcc_claims_essential,
    oidcc_ensure_request_object_with_redirect_uri,
    oidcc_refresh_token,
    oidcc_ensure_request_with_valid_pkce_succeeds,
    oidcc_discovery_endpoint_verification,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

/// Without a challenge, as the suite asks but in one of its modules.
const BARE: [(&str, &str); 3] = [
    ("code_challenge", ""),
    ("code_challenge_method", ""),
    ("nonce", "n-1"),
];

/// A server as the suite needs it, and how it answers.
struct Plan {
    site: Site,
    clock: ManualClock,
    mode: &'static str,
}

impl Plan {
    async fn new(mode: &'static str) -> Self {
        Self::with(mode, Setup::new(), "ES256").await
    }

    /// The same at a service that has opted in to RS256, which its client wants.
    async fn with_rs256(mode: &'static str) -> Self {
        let setup = Setup::new().set("keys.rs256_id_tokens", "true");
        Self::with(mode, setup, "RS256").await
    }

    async fn with(mode: &'static str, setup: Setup, alg: &str) -> Self {
        let bare = ClientMetadata {
            require_pkce: Some(false),
            id_token_signed_response_alg: Some(alg.to_owned()),
            ..relying_party()
        };
        let posting = ClientMetadata {
            token_endpoint_auth_method: Some("client_secret_post".to_owned()),
            ..bare.clone()
        };
        let clock = ManualClock::new(NOW);
        let setup = setup.clock(clock.clone());
        let setup = setup.client("rp", bare).client("posting", posting);
        let site = Site::of(setup).await;
        let profile = json!({
            "name": "Ada Lovelace", "email": "ada@example.com", "email_verified": true,
            "phone_number": "+44 20 7946 0000", "address": { "country": "UK" },
        });
        let profile = Profile::parse(profile.as_object().unwrap().clone()).unwrap();
        update_user(site.server.store(), site.ada, NOW, |user| {
            user.profile = profile;
        })
        .await;
        Self { site, clock, mode }
    }

    async fn ask(&self, browser: &mut Browser<'_>, changes: &[(&str, &str)]) -> Answer {
        let mut all = vec![("response_mode", self.mode)];
        let bare = BARE
            .iter()
            .filter(|(name, _)| changes.iter().all(|it| it.0 != *name));
        all.extend(bare.chain(changes));
        super::ask(browser, &all).await
    }

    /// What the client is answered.
    fn answered(&self, answer: &Answer) -> BTreeMap<String, String> {
        if self.mode == "query" {
            return returned(answer);
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let names = ["code", "state", "iss", "error"];
        let is_there = |name: &&str| answer.body.contains(&format!("name=\"{name}\""));
        let names = names.into_iter().filter(is_there);
        let value = |name| hidden(answer, name).replace("&#38;", "&");
        names.map(|name| (name.to_owned(), value(name))).collect()
    }

    /// Signs Ada in in a new browser; what the client is answered.
    async fn signed_in(&self, changes: &[(&str, &str)]) -> BTreeMap<String, String> {
        self.sign_in(&mut self.site.browser(), changes).await
    }

    async fn sign_in(
        &self,
        browser: &mut Browser<'_>,
        changes: &[(&str, &str)],
    ) -> BTreeMap<String, String> {
        let page = self.ask(browser, changes).await;
        assert_eq!(heading(&page), "Sign in");
        let answer = browser.sign_in(&page, "ada", PASSWORD).await;
        let answered = self.answered(&answer);
        assert_eq!(
            (answered["state"].as_str(), answered["iss"].as_str()),
            (STATE, ISSUER)
        );
        answered
    }

    async fn redeem(&self, answered: &BTreeMap<String, String>) -> Answer {
        let form = redemption(answered);
        self.site
            .server
            .exchange(rp(&self.site.server), &form)
            .await
    }

    /// What the second client is answered, which authenticates in the body.
    async fn by_posting(&self, form: &[(&str, &str)]) -> Answer {
        let posting = self.site.server.other("posting");
        let credentials = [
            ("client_id", posting.id.as_str()),
            ("client_secret", posting.secret.as_str()),
        ];
        let form = [form, &credentials].concat();
        answer(self.site.server.token_request().form(&form)).await
    }

    /// The whole dance, with all that a client has to check; the answer of the token endpoint, and the
    /// claims of its ID Token.
    async fn tokens(&self, changes: &[(&str, &str)]) -> (Answer, Value) {
        let answered = self.redeem(&self.signed_in(changes).await).await;
        let id = self.checked(&answered).await;
        (answered, id)
    }

    async fn checked(&self, answered: &Answer) -> Value {
        let id = verified(&self.site.server, &id_token(answered)).await;
        let now = self.clock_now();
        assert_eq!((&id["iss"], &id["aud"]), (&json!(ISSUER), &json!("rp")));
        assert_eq!(id["sub"], self.site.ada.to_string());
        assert!(id["iat"].as_i64().unwrap() <= now && now < id["exp"].as_i64().unwrap());
        assert_eq!(answered.json()["token_type"], "Bearer");
        id
    }

    fn clock_now(&self) -> i64 {
        self.site.server.clients.clock.now().seconds()
    }

    async fn userinfo(&self, token: &str) -> Value {
        let request = self.site.server.get("/oauth2/userinfo");
        let told = answer(request.bearer_auth(token)).await;
        assert_eq!(told.status, 200, "{told:?}");
        told.json()
    }

    /// The dance with parameters that change nothing.
    async fn succeeds_with(&self, changes: &[(&str, &str)]) {
        let (answered, id) = self.tokens(changes).await;
        assert_eq!(id["nonce"], "n-1");
        let sub = self.userinfo(&answered.access_token()).await["sub"].clone();
        assert_eq!(sub, id["sub"]);
    }

    /// The claims that a scope brings to userinfo.
    async fn scope_tells(&self, scope: &str, names: &[&str]) {
        let scope = format!("openid {scope}");
        let (answered, id) = self.tokens(&[("scope", &scope)]).await;
        let told = self.userinfo(&answered.access_token()).await;
        let mut found: Vec<&String> = told.as_object().unwrap().keys().collect();
        found.retain(|name| *name != "sub");
        assert_eq!(found, names, "{scope}");
        // They are at userinfo, and not in the ID Token (Core §5.4).
        assert!(names.iter().all(|name| id.get(name).is_none()));
    }
}

/// The form that exchanges a code.
fn redemption(answered: &BTreeMap<String, String>) -> [(&str, &str); 3] {
    [
        ("grant_type", "authorization_code"),
        ("code", &answered["code"]),
        ("redirect_uri", CALLBACK),
    ]
}

async fn oidcc_server(plan: Plan) {
    let (answered, id) = plan.tokens(&[]).await;
    assert_eq!(
        (&id["nonce"], &id["auth_time"]),
        (&json!("n-1"), &json!(NOW.seconds()))
    );
    assert!(id["at_hash"].is_string());
    assert_eq!(
        plan.userinfo(&answered.access_token()).await["sub"],
        id["sub"]
    );
}

async fn oidcc_response_type_missing(plan: Plan) {
    let answer = plan
        .ask(&mut plan.site.browser(), &[("response_type", "")])
        .await;
    assert_eq!(plan.answered(&answer)["error"], "invalid_request");
}

async fn oidcc_idtoken_signature(plan: Plan) {
    let (answered, _) = plan.tokens(&[]).await;
    let header = header(&id_token(&answered));
    assert_eq!(header["alg"], "ES256");
    assert!(
        plan.site
            .server
            .jwks()
            .await
            .contains(header["kid"].as_str().unwrap())
    );
    // Where the service has opted in, also with the algorithm that the suite asks for.
    let plan = Plan::with_rs256(plan.mode).await;
    let answered = plan.redeem(&plan.signed_in(&[]).await).await;
    let jwks = plan.site.server.jwks().await;
    let jwks = serde_json::from_str(&jwks).unwrap();
    let told = super::rs256::verified(&id_token(&answered), &jwks).unwrap();
    assert_eq!(told["nonce"], "n-1");
}

async fn oidcc_idtoken_unsigned(plan: Plan) {
    let metadata = answer(plan.site.server.get("/.well-known/openid-configuration")).await;
    let supported = metadata.json()["id_token_signing_alg_values_supported"].clone();
    assert!(!supported.as_array().unwrap().contains(&json!("none")));
}

async fn oidcc_userinfo_get(plan: Plan) {
    plan.succeeds_with(&[]).await;
}

async fn oidcc_userinfo_post_header(plan: Plan) {
    let (answered, id) = plan.tokens(&[]).await;
    let request = plan.site.server.request(Method::POST, "/oauth2/userinfo");
    let told = answer(request.bearer_auth(answered.access_token())).await;
    assert_eq!(told.json()["sub"], id["sub"]);
}

async fn oidcc_userinfo_post_body(plan: Plan) {
    let (answered, id) = plan.tokens(&[]).await;
    let request = plan.site.server.request(Method::POST, "/oauth2/userinfo");
    let form = [("access_token", answered.access_token())];
    let told = answer(request.form(&form)).await;
    assert_eq!(told.json()["sub"], id["sub"]);
}

/// With PKCE, which takes its place.
async fn oidcc_ensure_request_without_nonce_succeeds_for_code_flow(plan: Plan) {
    let changes = [
        ("nonce", ""),
        ("code_challenge", super::super::browser::CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let answered = plan.signed_in(&changes).await;
    let answered = exchange(&plan.site.server, &answered["code"], &[]).await;
    assert_eq!(plan.checked(&answered).await.get("nonce"), None);
}

async fn oidcc_scope_profile(plan: Plan) {
    let names = ["name", "preferred_username", "updated_at"];
    plan.scope_tells("profile", &names).await;
}

async fn oidcc_scope_email(plan: Plan) {
    plan.scope_tells("email", &["email", "email_verified"])
        .await;
}

async fn oidcc_scope_address(plan: Plan) {
    plan.scope_tells("address", &["address"]).await;
}

async fn oidcc_scope_phone(plan: Plan) {
    plan.scope_tells("phone", &["phone_number"]).await;
}

async fn oidcc_scope_all(plan: Plan) {
    let names = [
        "address",
        "email",
        "email_verified",
        "name",
        "phone_number",
        "preferred_username",
        "updated_at",
    ];
    plan.scope_tells("profile email address phone", &names)
        .await;
}

/// The scopes the other way round, `openid` last, and so all parameters.
async fn oidcc_alternate_happy_flow(plan: Plan) {
    let mut scopes: Vec<&str> = EVERYTHING.split(' ').collect();
    scopes.reverse();
    let scope = scopes.join(" ");
    let mut parameters = [
        ("client_id", "rp"),
        ("redirect_uri", CALLBACK),
        ("response_type", "code"),
        ("response_mode", plan.mode),
        ("scope", &scope),
        ("state", STATE),
        ("nonce", "n-1"),
    ];
    parameters.reverse();
    let mut query = Serializer::new(String::new());
    query.extend_pairs(parameters);
    let path = format!("/oauth2/authorize?{}", query.finish());
    let mut browser = plan.site.browser();
    let page = browser.send(browser.request(Method::GET, &path)).await;
    let answer = browser.sign_in(&page, "ada", PASSWORD).await;
    let answered = plan.answered(&answer);
    assert_eq!(
        (answered["state"].as_str(), answered["iss"].as_str()),
        (STATE, ISSUER)
    );
    let tokens = plan.redeem(&answered).await;
    let id = plan.checked(&tokens).await;
    assert_eq!(id["nonce"], "n-1");
    let told = plan.userinfo(&tokens.access_token()).await;
    assert_eq!(
        (&told["sub"], &told["email"]),
        (&id["sub"], &json!("ada@example.com"))
    );
    tokens.refresh_token();
}

async fn oidcc_display_page(plan: Plan) {
    plan.succeeds_with(&[("display", "page")]).await;
}

async fn oidcc_display_popup(plan: Plan) {
    plan.succeeds_with(&[("display", "popup")]).await;
}

async fn oidcc_prompt_login(plan: Plan) {
    let mut browser = plan.site.browser();
    let first = plan.sign_in(&mut browser, &[]).await;
    let first = plan.checked(&plan.redeem(&first).await).await;
    plan.clock.advance(Duration::from_secs(1));
    let second = plan.sign_in(&mut browser, &[("prompt", "login")]).await;
    let second = plan.checked(&plan.redeem(&second).await).await;
    assert_eq!(second["sub"], first["sub"]);
    let later = |id: &Value| id["auth_time"].as_i64().unwrap();
    assert!(later(&second) > later(&first));
}

async fn oidcc_prompt_none_not_logged_in(plan: Plan) {
    let answer = plan
        .ask(&mut plan.site.browser(), &[("prompt", "none")])
        .await;
    assert_eq!(plan.answered(&answer)["error"], "login_required");
}

async fn oidcc_prompt_none_logged_in(plan: Plan) {
    let mut browser = plan.site.browser();
    let first = plan.sign_in(&mut browser, &[]).await;
    let first = plan.checked(&plan.redeem(&first).await).await;
    plan.clock.advance(Duration::from_secs(1));
    let silent = plan.ask(&mut browser, &[("prompt", "none")]).await;
    let silent = plan.redeem(&plan.answered(&silent)).await;
    let silent = plan.checked(&silent).await;
    for name in ["sub", "auth_time"] {
        assert_eq!(silent[name], first[name]);
    }
}

async fn oidcc_max_age_1(plan: Plan) {
    let mut browser = plan.site.browser();
    plan.sign_in(&mut browser, &[]).await;
    plan.clock.advance(Duration::from_secs(2));
    let second = plan.sign_in(&mut browser, &[("max_age", "1")]).await;
    let second = plan.checked(&plan.redeem(&second).await).await;
    assert_eq!(second["auth_time"], NOW.seconds() + 2);
}

async fn oidcc_max_age_10000(plan: Plan) {
    let mut browser = plan.site.browser();
    plan.sign_in(&mut browser, &[]).await;
    plan.clock.advance(Duration::from_secs(2));
    let second = plan.ask(&mut browser, &[("max_age", "10000")]).await;
    let second = plan.redeem(&plan.answered(&second)).await;
    assert_eq!(plan.checked(&second).await["auth_time"], NOW.seconds());
}

async fn oidcc_ensure_request_with_unknown_parameter_succeeds(plan: Plan) {
    plan.succeeds_with(&[("extra", "foobar")]).await;
}

async fn oidcc_id_token_hint(plan: Plan) {
    let mut browser = plan.site.browser();
    let first = plan.sign_in(&mut browser, &[]).await;
    let hint = id_token(&plan.redeem(&first).await);
    let silent = [("prompt", "none"), ("id_token_hint", hint.as_str())];
    let second = plan.ask(&mut browser, &silent).await;
    let second = plan.redeem(&plan.answered(&second)).await;
    assert_eq!(plan.checked(&second).await["sub"], claims(&hint)["sub"]);
}

async fn oidcc_login_hint(plan: Plan) {
    let page = plan
        .ask(&mut plan.site.browser(), &[("login_hint", "ada")])
        .await;
    assert!(page.body.contains("value=\"ada\""), "{page:?}");
    plan.succeeds_with(&[("login_hint", "bob@issuer.example")])
        .await;
}

async fn oidcc_ui_locales(plan: Plan) {
    plan.succeeds_with(&[("ui_locales", "se")]).await;
}

async fn oidcc_claims_locales(plan: Plan) {
    plan.succeeds_with(&[("claims_locales", "se")]).await;
}

async fn oidcc_ensure_request_with_acr_values_succeeds(plan: Plan) {
    let values = [("acr_values", "urn:mace:incommon:iap:silver 1 2")];
    let (_, id) = plan.tokens(&values).await;
    assert!(id["acr"].is_string());
}

async fn oidcc_codereuse(plan: Plan) {
    reused_after(&plan, Duration::ZERO).await;
}

async fn oidcc_codereuse_30seconds(plan: Plan) {
    reused_after(&plan, Duration::from_secs(30)).await;
}

/// RFC 6749 §4.1.2: the code is refused, and what it got before is revoked.
async fn reused_after(plan: &Plan, pause: Duration) {
    let code = plan.signed_in(&[]).await;
    let first = plan.redeem(&code).await;
    plan.clock.advance(pause);
    let second = plan.redeem(&code).await;
    assert_eq!(
        (second.status, &second.json()["error"]),
        (400, &json!("invalid_grant"))
    );
    let request = plan.site.server.get("/oauth2/userinfo");
    let told = answer(request.bearer_auth(first.access_token())).await;
    assert_eq!(told.status, 401);
}

async fn oidcc_ensure_registered_redirect_uri(plan: Plan) {
    let other = [("redirect_uri", "https://app.example/other")];
    let page = plan.ask(&mut plan.site.browser(), &other).await;
    assert_eq!((page.status, page.header("location")), (400, None));
}

async fn oidcc_ensure_post_request_succeeds(plan: Plan) {
    let mut browser = plan.site.browser();
    let form = [
        ("client_id", "rp"),
        ("redirect_uri", CALLBACK),
        ("response_type", "code"),
        ("response_mode", plan.mode),
        ("scope", "openid"),
        ("state", STATE),
        ("nonce", "n-1"),
    ];
    let request = browser.request(Method::POST, "/oauth2/authorize");
    let posted = browser.send(request.form(&form)).await;
    assert_eq!(posted.status, 303);
    let location = posted.header("location").unwrap().to_owned();
    let page = browser.send(browser.request(Method::GET, &location)).await;
    let answer = browser.sign_in(&page, "ada", PASSWORD).await;
    let answered = plan.redeem(&plan.answered(&answer)).await;
    plan.checked(&answered).await;
}

async fn oidcc_server_client_secret_post(plan: Plan) {
    let answered = plan.signed_in(&[("client_id", "posting")]).await;
    let tokens = plan.by_posting(&redemption(&answered)).await;
    let id = verified(&plan.site.server, &id_token(&tokens)).await;
    assert_eq!(id["aud"], "posting");
}

async fn oidcc_request_uri_unsigned_supported_correctly_or_rejected_as_unsupported(plan: Plan) {
    let by_reference = [("request_uri", "https://app.example/request.jwt")];
    let answer = plan.ask(&mut plan.site.browser(), &by_reference).await;
    assert_eq!(plan.answered(&answer)["error"], "request_uri_not_supported");
}

async fn oidcc_unsigned_request_object_supported_correctly_or_rejected_as_unsupported(plan: Plan) {
    let object = [("request", "eyJhbGciOiJub25lIn0.e30.")];
    let answer = plan.ask(&mut plan.site.browser(), &object).await;
    assert_eq!(plan.answered(&answer)["error"], "request_not_supported");
}

async fn oidcc_claims_essential(plan: Plan) {
    let wanted = r#"{"userinfo":{"name":{"essential":true}}}"#;
    let (answered, id) = plan.tokens(&[("claims", wanted)]).await;
    let told = plan.userinfo(&answered.access_token()).await;
    assert_eq!(told["name"], "Ada Lovelace");
    // It is told where it was asked for.
    assert_eq!(id.get("name"), None);
    let wanted = r#"{"id_token":{"name":{"essential":true}}}"#;
    let (answered, id) = plan.tokens(&[("claims", wanted)]).await;
    assert_eq!(id["name"], "Ada Lovelace");
    let told = plan.userinfo(&answered.access_token()).await;
    assert_eq!(told.get("name"), None);
}

/// What is in the object counts no more than the object: neither is a URI that is wrong outside made
/// good by it, nor one that is not there.
async fn oidcc_ensure_request_object_with_redirect_uri(plan: Plan) {
    let claims = json!({
        "client_id": "rp", "redirect_uri": CALLBACK, "response_type": "code", "scope": "openid",
        "state": STATE, "nonce": "n-1",
    });
    let object = format!("{}.", input(r#"{"alg":"none"}"#, &claims.to_string()));
    for outside in ["https://app.example/other", ""] {
        let asked = [("request", object.as_str()), ("redirect_uri", outside)];
        let page = plan.ask(&mut plan.site.browser(), &asked).await;
        assert_eq!((page.status, page.header("location")), (400, None));
    }
    // Beside one that is right it is refused to the client.
    let asked = [("request", object.as_str())];
    let answer = plan.ask(&mut plan.site.browser(), &asked).await;
    assert_eq!(plan.answered(&answer)["error"], "request_not_supported");
}

async fn oidcc_refresh_token(plan: Plan) {
    let lasting = [("scope", "openid offline_access"), ("prompt", "consent")];
    let mut browser = plan.site.browser();
    let page = plan.ask(&mut browser, &lasting).await;
    let page = browser.sign_in(&page, "ada", PASSWORD).await;
    assert!(heading(&page).starts_with("Allow "), "{page:?}");
    let answer = browser.decide(&page, "allow").await;
    let answered = plan.redeem(&plan.answered(&answer)).await;
    let first = plan.checked(&answered).await;
    plan.clock.advance(Duration::from_secs(1));
    let next = refreshed(&plan.site.server, &answered, &[]).await;
    let second = plan.checked(&next).await;
    for name in ["iss", "sub", "aud", "auth_time"] {
        assert_eq!(second[name], first[name], "{name}");
    }
    assert_ne!(second["iat"], first["iat"]);
    assert_eq!(
        plan.userinfo(&next.access_token()).await["sub"],
        first["sub"]
    );
    // That of the second client is of no use to the first, and is good afterwards.
    let of_posting = [("client_id", "posting"), ("scope", "openid offline_access")];
    let of_posting = plan.signed_in(&of_posting).await;
    let of_posting = plan.by_posting(&redemption(&of_posting)).await;
    let refused = refreshed(&plan.site.server, &of_posting, &[]).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (400, &json!("invalid_grant"))
    );
    let own = plan.by_posting(&refresh(&of_posting.refresh_token())).await;
    assert_eq!(own.status, 200, "{own:?}");
    assert_eq!(claims(&id_token(&own))["aud"], "posting");
}

async fn oidcc_ensure_request_with_valid_pkce_succeeds(plan: Plan) {
    let challenge = [
        ("code_challenge", super::super::browser::CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let answered = plan.signed_in(&challenge).await;
    let answered = exchange(&plan.site.server, &answered["code"], &[]).await;
    plan.checked(&answered).await;
}

async fn oidcc_discovery_endpoint_verification(plan: Plan) {
    // "The algorithm RS256 MUST be included" (Discovery §3): where the service has opted in.
    let opted_in = Plan::with_rs256(plan.mode).await;
    let metadata = answer(
        opted_in
            .site
            .server
            .get("/.well-known/openid-configuration"),
    )
    .await;
    let algs = metadata.json()["id_token_signing_alg_values_supported"].clone();
    assert_eq!(algs, json!(["ES256", "RS256"]));
    let metadata = answer(plan.site.server.get("/.well-known/openid-configuration")).await;
    assert_eq!(metadata.header("content-type"), Some("application/json"));
    let metadata = metadata.json();
    assert_eq!(metadata["issuer"], ISSUER);
    // Whatever is named is reached by https, and at this issuer.
    let named = metadata.as_object().unwrap().iter();
    let endpoints: BTreeMap<&str, &str> = named
        .filter(|(name, _)| name.ends_with("_endpoint") || name.ends_with("_uri"))
        .map(|(name, url)| (name.as_str(), url.as_str().unwrap()))
        .collect();
    for endpoint in [
        "authorization_endpoint",
        "end_session_endpoint",
        "introspection_endpoint",
        "jwks_uri",
        "revocation_endpoint",
        "token_endpoint",
        "userinfo_endpoint",
    ] {
        assert!(endpoints.contains_key(endpoint), "{endpoint}");
    }
    for url in endpoints.values() {
        assert!(url.starts_with(&format!("{ISSUER}/")), "{url}");
    }
    let path = endpoints["jwks_uri"].strip_prefix(ISSUER).unwrap();
    let jwks = answer(plan.site.server.get(path)).await.json();
    let keys = jwks["keys"].as_array().unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
            assert_eq!(key.get(private), None, "{private}");
        }
        assert_eq!(key["use"], "sig");
        assert!(key["kid"].is_string() && key["alg"].is_string(), "{key}");
    }
    for (name, member) in [
        ("response_types_supported", "code"),
        ("response_modes_supported", plan.mode),
        ("subject_types_supported", "public"),
        ("scopes_supported", "openid"),
        ("claims_supported", "sub"),
        ("grant_types_supported", "authorization_code"),
        ("id_token_signing_alg_values_supported", "ES256"),
        (
            "token_endpoint_auth_methods_supported",
            "client_secret_basic",
        ),
    ] {
        let members = metadata[name].as_array().unwrap();
        assert!(members.contains(&json!(member)), "{name}: {members:?}");
    }
    assert_eq!(metadata["request_uri_parameter_supported"], false);
}
