//! Signing in by way of a browser, step by step, as a browser without scripts does it.

mod account;
mod authorize;
mod backchannel;
mod chromium;
mod hosts;
mod keyboard;
mod logout;
mod pages;
mod passkey;
mod second_factor;
mod session_tokens;
mod sessions;
mod signing_out;
mod single_page;

use std::collections::BTreeMap;

use countersign::{
    admin::client::ClientMetadata,
    domain::id::{FamilyId, UserId},
};
use reqwest::{Client, Method, RequestBuilder, header::SET_COOKIE, redirect::Policy};
use url::Url;

use crate::support::{
    client,
    database::Engine,
    server::{Answer, Setup, TestServer, answer, metadata},
    sign_in::{PASSWORD, claims, hash_of, update_user},
};

/// The S256 transformation of the verifier that codes are exchanged with (RFC 7636 Appendix B).
pub(super) const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
pub(super) const CALLBACK: &str = "https://app.example/cb?tenant=1";
pub(super) const STATE: &str = "a b&c=d%é";

/// A request of the client `notes` that is in order.
pub(super) const REQUEST: [(&str, &str); 6] = [
    ("client_id", "notes"),
    ("redirect_uri", CALLBACK),
    ("response_type", "code"),
    ("state", STATE),
    ("code_challenge", CHALLENGE),
    ("code_challenge_method", "S256"),
];

/// A server with clients for browsers, and a user with a password.
pub(super) struct Site {
    pub(super) server: TestServer,
    pub(super) ada: UserId,
}

/// A client whose users come by way of their browsers.
pub(super) fn of_browsers() -> ClientMetadata {
    ClientMetadata {
        client_name: "Field <b>Notes".to_owned(),
        token_endpoint_auth_method: Some("none".to_owned()),
        redirect_uris: vec![CALLBACK.to_owned(), "http://127.0.0.1/cb".to_owned()],
        ..metadata()
    }
}

impl Site {
    pub(super) async fn on(engine: Engine) -> Self {
        Self::of(Setup::new().on(engine)).await
    }

    pub(super) async fn start() -> Self {
        Self::on(Engine::Sqlite).await
    }

    pub(super) async fn of(setup: Setup) -> Self {
        let own = ClientMetadata {
            first_party: true,
            ..of_browsers()
        };
        let setup = setup.client("notes", of_browsers()).client("own", own);
        let server = setup.start().await;
        let ada = server.user("ada").await;
        let site = Self { server, ada };
        site.set_password(ada, PASSWORD).await;
        site
    }

    pub(super) async fn set_password(&self, user: UserId, password: &str) {
        let hash = hash_of(password);
        let now = self.server.clients.clock.now();
        update_user(self.server.store(), user, now, |user| {
            user.password_hash = Some(hash);
        })
        .await;
    }

    pub(super) fn browser(&self) -> Browser<'_> {
        // A clock that is moved on ends connections that nothing goes over.
        let http = client().redirect(Policy::none()).pool_max_idle_per_host(0);
        Browser {
            site: self,
            http: http.build().unwrap(),
            cookies: BTreeMap::new(),
        }
    }

    /// One more browser with the cookies of another: what somebody has who has read them.
    fn browser_of(&self, other: &Browser<'_>) -> Browser<'_> {
        Browser {
            cookies: other.cookies.clone(),
            ..self.browser()
        }
    }

    /// What a code is exchanged for.
    pub(super) async fn exchanged(&self, code: &str) -> Answer {
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", "notes"),
            ("code", code),
            ("code_verifier", crate::support::sign_in::VERIFIER),
            ("redirect_uri", CALLBACK),
        ];
        answer(self.server.token_request().form(&form)).await
    }
}

/// A browser, with its cookies.
pub(super) struct Browser<'a> {
    site: &'a Site,
    http: Client,
    pub(super) cookies: BTreeMap<String, String>,
}

impl Browser<'_> {
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.site.server.public);
        let cookies = self.cookies.iter();
        let cookies: Vec<String> = cookies
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let request = self.http.request(method, url);
        if cookies.is_empty() {
            request
        } else {
            request.header("cookie", cookies.join("; "))
        }
    }

    /// Sends a request and keeps the cookies of the answer. Whatever page it is, it is guarded.
    pub(super) async fn send(&mut self, request: RequestBuilder) -> Answer {
        let answer = answer(request).await;
        let media_type = answer.header("content-type").unwrap_or_default();
        if media_type.starts_with("text/html") {
            pages::is_guarded(&answer);
        }
        for cookie in answer.headers.get_all(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            let (pair, attributes) = cookie.split_once("; ").unwrap();
            let mut attributes: Vec<&str> = attributes.split("; ").collect();
            attributes.sort_unstable();
            let life = attributes.iter().find_map(|it| it.strip_prefix("Max-Age="));
            let life: Option<u64> = life.map(|seconds| seconds.parse().unwrap());
            attributes.retain(|attribute| !attribute.starts_with("Max-Age="));
            assert_eq!(attributes, ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"]);
            let (name, value) = pair.split_once('=').unwrap();
            assert!(name.starts_with("__Host-"), "{name}");
            if life == Some(0) {
                self.cookies.remove(name);
            } else {
                // The session outlasts the browser, and what tells browsers apart does not.
                assert_eq!(life.is_some(), name == "__Host-countersign", "{name}");
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        answer
    }

    /// Asks for a code, with some parameters replaced or added, or left out where they are empty.
    pub(super) async fn ask(&mut self, changes: &[(&str, &str)]) -> Answer {
        let kept = REQUEST
            .iter()
            .filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(kept.chain(changes));
        let path = format!("/oauth2/authorize?{}", query.finish());
        self.send(self.request(Method::GET, &path)).await
    }

    pub(super) async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Answer {
        let request = self.request(Method::POST, path).form(form);
        self.send(request.header("sec-fetch-site", "same-origin"))
            .await
    }

    /// Fills in the page on which users sign in.
    pub(super) async fn sign_in(
        &mut self,
        page: &Answer,
        username: &str,
        password: &str,
    ) -> Answer {
        let flow = flow(page);
        let form = [
            ("flow", flow.as_str()),
            ("username", username),
            ("password", password),
        ];
        self.post("/signin", &form).await
    }

    pub(super) async fn decide(&mut self, page: &Answer, decision: &str) -> Answer {
        let flow = flow(page);
        let form = [("flow", flow.as_str()), ("decision", decision)];
        self.post("/consent", &form).await
    }

    /// Signs Ada in and lets her allow what is asked for; the code.
    pub(super) async fn code(&mut self) -> String {
        let page = self.ask(&[]).await;
        let page = self.sign_in(&page, "ada", PASSWORD).await;
        let answer = self.decide(&page, "allow").await;
        returned(&answer)["code"].clone()
    }
}

/// The sealed request of a page.
pub(super) fn flow(page: &Answer) -> String {
    hidden(page, "flow")
}

/// A hidden value of a page.
pub(super) fn hidden(page: &Answer, name: &str) -> String {
    let start = format!("name=\"{name}\" value=\"");
    let (_, rest) = page
        .body
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {name}: {page:?}"));
    rest.split('"').next().unwrap().to_owned()
}

/// The heading of a page.
pub(super) fn heading(page: &Answer) -> &str {
    let (_, rest) = page.body.split_once("<h1>").unwrap();
    rest.split("</h1>").next().unwrap()
}

/// What a browser takes back to the client.
pub(super) fn returned(answer: &Answer) -> BTreeMap<String, String> {
    assert_eq!(answer.status, 303, "{answer:?}");
    let location = answer.header("location").unwrap();
    assert!(location.starts_with(CALLBACK), "{location}");
    let url = Url::parse(location).unwrap();
    url.query_pairs().into_owned().collect()
}

/// The family of an answer's tokens.
pub(super) fn family_of(answer: &Answer) -> FamilyId {
    let sid = &claims(&answer.access_token())["sid"];
    FamilyId::parse(sid.as_str().unwrap()).unwrap()
}
