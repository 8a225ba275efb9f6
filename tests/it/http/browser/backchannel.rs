//! Clients are told that their users have been signed out (`OpenID` Connect Back-Channel Logout 1.0).

use std::{collections::BTreeSet, time::Duration};

use countersign::{
    admin::client::{ClientAdmin, ClientMetadata},
    clock::{ManualClock, Timestamp},
    domain::{
        change::{Cause, Change, EventType},
        event::{Event, EventQuery},
        family::EndReason,
        id::ClientId,
    },
};
use countersign_verifier::{KeySet, base64url, jws::Compact};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    super::openid::{header, verified_with_rs256},
    Browser, CALLBACK, Site, heading, returned,
};
use crate::support::{
    database::{Database, Engine},
    openmetrics,
    server::{ISSUER, Setup, answer, metadata},
    sign_in::{PASSWORD, SignedIn, VERIFIER, claims},
    site::Site as Receiver,
    soon,
};

on_both_engines! {
    oidcc_backchannel_rp_initiated_logout,
    a_client_that_is_down_is_told_when_it_comes_back,
    the_end_of_all_sessions_of_a_user_is_told_of_each,
    a_client_that_says_nothing_holds_up_nobody_else,
    a_client_that_a_node_does_not_know_is_told,
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

const AFTER: &str = "https://app.example/bye";

/// How often something is looked for before the clock is moved on.
const PATIENCE: u32 = 40;

/// A site whose clients `desk` and `strict` want to be told; `strict` of which sign-in. `new` does not
/// yet.
struct Told {
    site: Site,
    clock: ManualClock,
    desk: Receiver,
    strict: Receiver,
    _folder: TempDir,
}

fn wants_to_be_told(name: &str, receiver: &Receiver) -> ClientMetadata {
    ClientMetadata {
        client_name: name.to_owned(),
        scope: "read openid offline_access".to_owned(),
        redirect_uris: vec![CALLBACK.to_owned()],
        post_logout_redirect_uris: vec![AFTER.to_owned()],
        backchannel_logout_uri: Some(receiver.url("/told?a=b")),
        token_endpoint_auth_method: Some("none".to_owned()),
        ..metadata()
    }
}

impl Told {
    async fn on(engine: Engine) -> Self {
        Self::of(Setup::new().on(engine), "ES256").await
    }

    /// The same of other settings, where `desk` wants its tokens signed with this algorithm.
    async fn of(setup: Setup, alg: &str) -> Self {
        let clock = ManualClock::new(NOW);
        let (desk, strict) = (Receiver::secure(), Receiver::secure());
        let folder = TempDir::new().unwrap();
        let roots = folder.path().join("roots.pem");
        let certificates = format!("{}{}", desk.certificate, strict.certificate);
        std::fs::write(&roots, certificates).unwrap();
        let of_strict = ClientMetadata {
            backchannel_logout_session_required: true,
            ..wants_to_be_told("Strict", &strict)
        };
        let of_desk = ClientMetadata {
            id_token_signed_response_alg: Some(alg.to_owned()),
            ..wants_to_be_told("Desk", &desk)
        };
        let unaware = ClientMetadata {
            backchannel_logout_uri: None,
            ..wants_to_be_told("New", &desk)
        };
        let setup = setup
            .clock(clock.clone())
            .set("outbound.allowed_networks", "127.0.0.1/32")
            .set("outbound.timeout_seconds", "20")
            .set("outbound.ca_certificates", roots.to_str().unwrap())
            .client("desk", of_desk)
            .client("strict", of_strict)
            .client("new", unaware);
        for receiver in [&desk, &strict] {
            receiver.fail(200);
        }
        Self {
            site: Site::of(setup).await,
            clock,
            desk,
            strict,
            _folder: folder,
        }
    }

    /// Lets time go by until something is so.
    async fn until(&self, mut is_so: impl AsyncFnMut() -> bool) {
        soon(async {
            for seconds in 1.. {
                for _ in 0..PATIENCE {
                    if is_so().await {
                        return;
                    }
                    // Gives the server a turn.
                    answer(self.site.server.get("/health/live")).await;
                }
                // Where the clock was moved on while a notice was taken on, it is told when that is over.
                let is_lost = seconds % 30 == 0;
                let span = if is_lost { 6 * 60 } else { 1 };
                self.clock.advance(Duration::from_secs(span));
            }
        })
        .await;
    }

    /// How often clients were told with this outcome.
    async fn count(&self, outcome: &str) -> f64 {
        let (_, metrics) = openmetrics::scrape(self.site.server.admin).await;
        let name = format!("countersign_logout_notices_total{{outcome=\"{outcome}\"}}");
        metrics.value(&name)
    }

    /// Waits until clients were told so often with this outcome.
    async fn reaches(&self, outcome: &str, count: f64) {
        self.until(async || self.count(outcome).await >= count)
            .await;
        assert!((self.count(outcome).await - count).abs() < 0.5, "{outcome}");
    }

    /// Lets so much time go by that whatever is left to be told is told; nothing is, but what was.
    async fn nothing_more_is_told(&self) {
        let before = (self.desk.bodies(), self.strict.bodies());
        for _ in 0..5 {
            self.clock.advance(Duration::from_secs(3));
            for _ in 0..PATIENCE {
                answer(self.site.server.get("/health/live")).await;
            }
        }
        assert_eq!((self.desk.bodies(), self.strict.bodies()), before);
    }

    async fn events(&self, kind: EventType) -> Vec<Event> {
        let query = EventQuery {
            kinds: vec![kind],
            limit: 9,
            ..EventQuery::default()
        };
        self.site.server.store().events(&query).await.unwrap()
    }
}

/// The logout tokens that a client has got, each verified.
async fn told(site: &Site, receiver: &Receiver) -> Vec<Value> {
    let bodies = String::from_utf8(receiver.bodies()).unwrap();
    let jwks = site.server.jwks().await;
    let keys = KeySet::parse(jwks.as_bytes()).unwrap();
    let tokens = bodies.split("logout_token=").skip(1);
    tokens
        .map(|token| {
            let token = Compact::parse(token).unwrap();
            assert_eq!(token.header().typ(), Some("logout+jwt"));
            let key = keys.find(token.header().kid().unwrap()).unwrap();
            serde_json::from_slice(token.verify(key).unwrap()).unwrap()
        })
        .collect()
}

impl Browser<'_> {
    /// Signs Ada in at a client; its tokens, and its ID Token.
    async fn at(&mut self, client_id: &str, scope: &str) -> (SignedIn, String) {
        let mut answer = self
            .ask(&[("client_id", client_id), ("scope", scope)])
            .await;
        if answer.status == 200 && heading(&answer) == "Sign in" {
            answer = self.sign_in(&answer, "ada", PASSWORD).await;
        }
        if answer.status == 200 {
            answer = self.decide(&answer, "allow").await;
        }
        let code = returned(&answer)["code"].clone();
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", client_id),
            ("code", &code),
            ("code_verifier", VERIFIER),
            ("redirect_uri", CALLBACK),
        ];
        let request = self.site.server.token_request().form(&form);
        let tokens = crate::support::server::answer(request).await;
        assert_eq!(tokens.status, 200, "{tokens:?}");
        let id_token = tokens.json()["id_token"].as_str().unwrap().to_owned();
        (SignedIn::of(&tokens), id_token)
    }

    async fn signs_out(&mut self, hint: &str) {
        let path = format!("/oauth2/logout?id_token_hint={hint}");
        let answer = self.send(self.request(Method::GET, &path)).await;
        assert_eq!(heading(&answer), "You are signed out", "{answer:?}");
    }
}

async fn oidcc_backchannel_rp_initiated_logout(engine: Engine) {
    let it = Told::on(engine).await;
    let mut browser = it.site.browser();
    let (desk, hint) = browser.at("desk", "openid read").await;
    let (strict, of_strict) = browser.at("strict", "openid read").await;
    let (_, _) = browser.at("strict", "openid read offline_access").await;
    let asked = [
        ("id_token_hint", hint.as_str()),
        ("post_logout_redirect_uri", AFTER),
        ("state", "s-1"),
    ];
    let answer = browser.log_out(&asked).await;
    let to = format!("{AFTER}?state=s-1");
    assert_eq!(
        (answer.status, answer.header("location")),
        (303, Some(to.as_str()))
    );
    let silent = [
        ("client_id", "desk"),
        ("scope", "openid read"),
        ("prompt", "none"),
    ];
    let refused = returned(&browser.ask(&silent).await);
    assert_eq!(refused["error"], "login_required");
    it.reaches("delivered", 2.0).await;
    let mut ids = BTreeSet::new();
    for (client, receiver, tokens, id_token) in [
        ("desk", &it.desk, &desk, &hint),
        ("strict", &it.strict, &strict, &of_strict),
    ] {
        // One parameter and no other.
        let body = String::from_utf8(receiver.bodies()).unwrap();
        let parameters: Vec<&str> = body.split('&').collect();
        assert_eq!(parameters.len(), 1, "{body}");
        assert!(body.starts_with("logout_token="), "{body}");
        let told = told(&it.site, receiver).await;
        let [token] = &told[..] else {
            panic!("{told:?}")
        };
        let of_access_token = claims(&tokens.access_token);
        let of_id_token = claims(id_token);
        assert_eq!(token["iss"], ISSUER);
        assert_eq!(token["aud"], client);
        for name in ["iss", "aud", "sub", "sid"] {
            assert_eq!(token[name], of_id_token[name], "{name}");
        }
        assert_eq!(token["sub"], it.site.ada.to_string());
        assert_eq!(token["sub"], of_access_token["sub"]);
        assert_eq!(token["sid"], of_access_token["sid"]);
        let event = json!({ "http://schemas.openid.net/event/backchannel-logout": {} });
        assert_eq!(token["events"], event);
        assert_eq!(token["nonce"], Value::Null);
        let (iat, exp) = (
            token["iat"].as_i64().unwrap(),
            token["exp"].as_i64().unwrap(),
        );
        assert!(iat >= NOW.seconds() && exp - iat <= 120, "{token}");
        assert!(ids.insert(token["jti"].as_str().unwrap().to_owned()));
    }
    // What was to outlast the session was not told, nor is anything told twice.
    it.nothing_more_is_told().await;
}

#[tokio::test]
async fn oidcc_backchannel_logout_discovery_endpoint_verification() {
    let site = Site::start().await;
    let metadata = answer(site.server.get("/.well-known/openid-configuration")).await;
    let metadata = metadata.json();
    assert_eq!(metadata["issuer"], ISSUER);
    for name in [
        "backchannel_logout_supported",
        "backchannel_logout_session_supported",
    ] {
        assert_eq!(metadata[name], true, "{name}");
    }
    let endpoint = metadata["end_session_endpoint"].as_str().unwrap();
    assert!(endpoint.starts_with("https://"), "{endpoint}");
}

/// It does not answer, answers otherwise, sends elsewhere, says nothing more, and is back at last. Who
/// signs out waits for none of that.
async fn a_client_that_is_down_is_told_when_it_comes_back(engine: Engine) {
    let it = Told::on(engine).await;
    let elsewhere = Receiver::secure();
    let mut browser = it.site.browser();
    let (_, hint) = browser.at("desk", "openid read").await;
    it.desk.stall_after("HTTP/1.1 200");
    browser.signs_out(&hint).await;
    it.until(async || !it.desk.bodies().is_empty()).await;
    it.clock.advance(Duration::from_secs(20));
    it.reaches("failed", 1.0).await;
    it.desk.fail(503);
    it.clock.advance(Duration::from_secs(10));
    it.reaches("failed", 2.0).await;
    it.desk.answer_raw(format!(
        "HTTP/1.1 307 No\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        elsewhere.url("/")
    ));
    it.clock.advance(Duration::from_mins(1));
    it.reaches("failed", 3.0).await;
    assert_eq!(elsewhere.connections(), 0);
    // Longer and longer.
    let connections = it.desk.connections();
    it.nothing_more_is_told().await;
    assert_eq!(it.desk.connections(), connections);
    it.desk.fail(204);
    it.clock.advance(Duration::from_mins(5));
    it.reaches("delivered", 1.0).await;
    let told = told(&it.site, &it.desk).await;
    let ids: BTreeSet<&str> = told.iter().map(|it| it["jti"].as_str().unwrap()).collect();
    assert_eq!((told.len(), ids.len()), (4, 4));
    let sids: BTreeSet<&str> = told.iter().map(|it| it["sid"].as_str().unwrap()).collect();
    assert_eq!(sids.len(), 1);
    it.nothing_more_is_told().await;
}

async fn the_end_of_all_sessions_of_a_user_is_told_of_each(engine: Engine) {
    let it = Told::on(engine).await;
    let (mut here, mut there) = (it.site.browser(), it.site.browser());
    let (mut of_desk, mut of_strict) = (BTreeSet::new(), BTreeSet::new());
    for browser in [&mut here, &mut there] {
        for (client, sids) in [("desk", &mut of_desk), ("strict", &mut of_strict)] {
            let (tokens, _) = browser.at(client, "openid read").await;
            sids.insert(tokens.family.to_string());
        }
    }
    it.site
        .server
        .apply(Change::EndUserSessions {
            id: it.site.ada,
            tokens_die_at: NOW.plus(Duration::from_hours(1)),
        })
        .await;
    it.reaches("delivered", 4.0).await;
    for (receiver, sids) in [(&it.desk, of_desk), (&it.strict, of_strict)] {
        let tokens = told(&it.site, receiver).await;
        assert_eq!(tokens.len(), 2, "{tokens:?}");
        let told: BTreeSet<String> = tokens
            .iter()
            .map(|token| token["sid"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(told, sids);
    }
    it.nothing_more_is_told().await;
}

/// More than are told at once have waited for longer, at a client that says nothing.
async fn a_client_that_says_nothing_holds_up_nobody_else(engine: Engine) {
    const MANY: usize = 20;
    let it = Told::on(engine).await;
    let (mut here, mut there) = (it.site.browser(), it.site.browser());
    let mut hint = String::new();
    for _ in 0..MANY {
        (_, hint) = here.at("desk", "openid read").await;
    }
    let (_, of_strict) = there.at("strict", "openid read").await;
    it.desk.stall_after("");
    here.signs_out(&hint).await;
    it.until(async || it.desk.connections() == 4).await;
    there.signs_out(&of_strict).await;
    it.reaches("delivered", 1.0).await;
    assert_eq!(told(&it.site, &it.strict).await.len(), 1);
    // Desk has not had the time to fail.
    assert!(it.count("failed").await.abs() < 0.5);
    assert_eq!(it.desk.connections(), 4);
    // When it has, it is left alone with all there is.
    it.clock.advance(Duration::from_secs(20));
    it.until(async || it.count("failed").await > 3.5).await;
    for _ in 0..2 {
        it.clock.advance(Duration::from_secs(3));
        for _ in 0..PATIENCE {
            answer(it.site.server.get("/health/live")).await;
        }
    }
    assert_eq!(it.desk.connections(), 4);
    it.desk.fail(200);
    it.clock.advance(Duration::from_secs(10));
    it.reaches("delivered", 1.0 + 20.0).await;
    let sids: BTreeSet<String> = told(&it.site, &it.desk)
        .await
        .iter()
        .map(|token| token["sid"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(sids.len(), MANY);
}

/// A node may not have read yet that a client wants to be told, when it comes to telling it.
async fn a_client_that_a_node_does_not_know_is_told(engine: Engine) {
    let database = Database::create(engine).await;
    let it = Told::of(Setup::new().at(database.url()), "ES256").await;
    let uri = it.desk.url("/told");
    let set = async |uri: &str| {
        let sql =
            format!("update client set backchannel_logout_uri = {uri} where client_id = 'new'");
        database.execute(&sql).await;
    };
    let mut browser = it.site.browser();
    let (first, hint) = browser.at("new", "openid read").await;
    // Nobody is told of this change.
    set(&format!("'{uri}'")).await;
    browser.signs_out(&hint).await;
    it.reaches("delivered", 1.0).await;
    let told = told(&it.site, &it.desk).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["sid"], first.family.to_string());
    // Who does not want to hear of it by then does not, and that is no delivery.
    let (_, hint) = browser.at("new", "openid read").await;
    browser.signs_out(&hint).await;
    set("null").await;
    it.reaches("unwanted", 1.0).await;
    it.nothing_more_is_told().await;
    assert!((it.count("delivered").await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_client_that_refuses_is_not_told_again() {
    let it = Told::on(Engine::Sqlite).await;
    let mut browser = it.site.browser();
    let (desk, hint) = browser.at("desk", "openid read").await;
    it.desk.fail(400);
    browser.signs_out(&hint).await;
    it.reaches("refused", 1.0).await;
    it.until(async || !it.events(EventType::LogoutNoticeRefused).await.is_empty())
        .await;
    let events = it.events(EventType::LogoutNoticeRefused).await;
    assert_eq!(events[0].target, "desk");
    let after = events[0].after.as_ref().unwrap();
    assert_eq!(after["family"], desk.family.to_string());
    it.desk.fail(200);
    it.clock.advance(Duration::from_hours(2));
    it.nothing_more_is_told().await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_for_a_day_is_told_no_more() {
    let it = Told::on(Engine::Sqlite).await;
    let mut browser = it.site.browser();
    let (_, hint) = browser.at("desk", "openid read").await;
    it.desk.fail(500);
    browser.signs_out(&hint).await;
    it.reaches("failed", 1.0).await;
    // It may be this service that was down for a day: the client has a few more times.
    it.clock.advance(Duration::from_hours(24));
    for (failed, pause) in [(2.0, 60), (3.0, 5 * 60), (4.0, 15 * 60)] {
        it.reaches("failed", failed).await;
        assert!(it.count("dropped").await.abs() < 0.5, "{failed}");
        it.clock.advance(Duration::from_secs(pause));
    }
    it.reaches("dropped", 1.0).await;
    it.until(async || !it.events(EventType::LogoutNoticeDropped).await.is_empty())
        .await;
    let events = it.events(EventType::LogoutNoticeDropped).await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].target, "desk");
    it.desk.fail(200);
    it.clock.advance(Duration::from_hours(24));
    it.nothing_more_is_told().await;
}

/// What a client has registered is no way into the network of the service (server-side request forgery).
#[tokio::test]
async fn a_client_at_an_address_of_our_own_is_not_told() {
    let inside = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    inside.set_nonblocking(true).unwrap();
    let uri = format!("https://{}/told", inside.local_addr().unwrap());
    let client = ClientMetadata {
        backchannel_logout_uri: Some(uri),
        ..wants_to_be_told("Inside", &Receiver::secure())
    };
    let it = Told::of(Setup::new().client("inside", client), "ES256").await;
    let mut browser = it.site.browser();
    browser.at("inside", "openid read").await;
    let (_, hint) = browser.at("desk", "openid read").await;
    browser.signs_out(&hint).await;
    it.reaches("delivered", 1.0).await;
    it.reaches("failed", 1.0).await;
    let reached = inside.accept().map_err(|error| error.kind());
    assert!(
        matches!(reached, Err(std::io::ErrorKind::WouldBlock)),
        "{reached:?}"
    );
}

/// A client that signs its user out itself knows; what an operator or the user ends it does not.
#[tokio::test]
async fn a_client_is_not_told_what_it_has_done() {
    let it = Told::on(Engine::Sqlite).await;
    let mut browser = it.site.browser();
    let (own, _) = browser.at("desk", "openid read").await;
    let form = [("client_id", "desk"), ("token", own.refresh_token.as_str())];
    let request = it.site.server.request(Method::POST, "/oauth2/revoke");
    assert_eq!(answer(request.form(&form)).await.status, 200);
    it.nothing_more_is_told().await;
    assert_eq!(told(&it.site, &it.desk).await, [] as [Value; 0]);
    let (ended, _) = browser.at("desk", "openid read").await;
    it.site
        .server
        .apply(Change::EndFamily {
            family: ended.family,
            reason: EndReason::RevokedByOperator,
            tokens_die_at: NOW.plus(Duration::from_hours(1)),
        })
        .await;
    it.reaches("delivered", 1.0).await;
    let told = told(&it.site, &it.desk).await;
    assert_eq!(told[0]["sid"], ended.family.to_string());
    assert_eq!(told.len(), 1);
}

/// "Back-Channel Logout Tokens … are signed … as for ID Tokens" (§2.6): as their client wants those.
#[tokio::test]
async fn a_client_that_wants_rs256_is_told_so() {
    let setup = Setup::new().set("keys.rs256_id_tokens", "true");
    let it = Told::of(setup, "RS256").await;
    let mut browser = it.site.browser();
    let (desk, hint) = browser.at("desk", "openid read").await;
    browser.at("strict", "openid read").await;
    browser.signs_out(&hint).await;
    it.reaches("delivered", 2.0).await;
    let body = String::from_utf8(it.desk.bodies()).unwrap();
    let token = body.strip_prefix("logout_token=").unwrap();
    let jwks = serde_json::from_str(&it.site.server.jwks().await).unwrap();
    let told = verified_with_rs256(token, &jwks).unwrap();
    assert_eq!(told["sid"], claims(&desk.access_token)["sid"]);
    assert_eq!(header(token)["typ"], "logout+jwt");
    // The other client as ever.
    assert_eq!(self::told(&it.site, &it.strict).await.len(), 1);
}

/// It is told with no other algorithm, and as soon as it can be told.
#[tokio::test]
async fn a_client_that_wants_what_was_switched_off_is_told_when_it_is_there() {
    let it = Told::on(Engine::Sqlite).await;
    let mut browser = it.site.browser();
    let (_, hint) = browser.at("desk", "openid read").await;
    let clients = ClientAdmin {
        rs256_id_tokens: true,
        ..it.site.server.clients.clone()
    };
    let wants = async |alg: &str| {
        let id = ClientId::parse("desk").unwrap();
        let patch = json!({ "id_token_signed_response_alg": alg });
        let updated = clients.update(&id, &patch, None, &Cause::system()).await;
        updated.unwrap();
        // What the server has heard of it is seen by what it answers to whoever asks for a code.
        let status = if alg == "RS256" { 303 } else { 200 };
        it.until(async || {
            let asked = [("client_id", "desk"), ("scope", "openid")];
            it.site.browser().ask(&asked).await.status == status
        })
        .await;
    };
    wants("RS256").await;
    browser.signs_out(&hint).await;
    it.reaches("failed", 1.0).await;
    assert_eq!(it.desk.connections(), 0);
    wants("ES256").await;
    it.clock.advance(Duration::from_mins(1));
    it.reaches("delivered", 1.0).await;
    assert_eq!(told(&it.site, &it.desk).await.len(), 1);
}

/// The header of a logout token says that it is one, so that nobody takes it for anything else here.
#[tokio::test]
async fn a_logout_token_is_no_other_token() {
    let it = Told::on(Engine::Sqlite).await;
    let mut browser = it.site.browser();
    let (_, hint) = browser.at("desk", "openid read").await;
    browser.signs_out(&hint).await;
    it.reaches("delivered", 1.0).await;
    let body = String::from_utf8(it.desk.bodies()).unwrap();
    let token = body.strip_prefix("logout_token=").unwrap();
    let head = base64url::decode(token.split('.').next().unwrap()).unwrap();
    let head: Value = serde_json::from_slice(&head).unwrap();
    assert_eq!(head["typ"], "logout+jwt");
    assert_eq!(head["alg"], "ES256");
    browser.at("desk", "openid read").await;
    let path = format!("/oauth2/logout?id_token_hint={token}");
    let refused = browser.send(browser.request(Method::GET, &path)).await;
    assert_eq!(refused.header("countersign-reason"), Some("id_token_hint"));
}
