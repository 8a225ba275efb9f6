//! Signing out in a browser, of apps that have tokens of their own: at the account page, and by way of
//! an app.

use countersign::admin::client::ClientMetadata;
use reqwest::Method;
use serde_json::json;
use url::Url;

use super::{CALLBACK, CHALLENGE, Site};
use crate::support::{
    chromium::Chromium,
    server::{Answer, ISSUER, Setup, answer, metadata},
    sign_in::{PASSWORD, VERIFIER},
    site::Site as Elsewhere,
};

/// Where the app has its users sent after they have signed out.
const AFTER: &str = "https://app.example/bye";

/// The service, and an app with a secret.
struct Desk {
    site: Site,
    app: Elsewhere,
}

/// What the app has got for a code.
struct Tokens(Answer);

impl Tokens {
    fn of_kind(&self, kind: &str) -> String {
        let token = &self.0.json()[kind];
        token
            .as_str()
            .unwrap_or_else(|| panic!("{:?}", self.0))
            .to_owned()
    }
}

impl Desk {
    async fn start() -> Self {
        let desk = ClientMetadata {
            client_name: "Desk".to_owned(),
            scope: "read openid".to_owned(),
            first_party: true,
            redirect_uris: vec![CALLBACK.to_owned()],
            post_logout_redirect_uris: vec![AFTER.to_owned()],
            ..metadata()
        };
        let site = Site::of(Setup::new().client("desk", desk)).await;
        let app = Elsewhere::plain();
        app.page("<!doctype html><html lang=en><title>App</title><h1>The app</h1>");
        Self { site, app }
    }

    /// A request that the app makes itself.
    async fn asks(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        let desk = self.site.server.other("desk");
        let request = self.site.server.request(Method::POST, path);
        let request = request.basic_auth(&desk.id, Some(&desk.secret));
        answer(request.form(form)).await
    }

    /// A browser in which Ada has signed in to the app, and what the app has got.
    async fn signed_in(&self) -> (Chromium, Tokens) {
        let hosts = [
            ("issuer.example", self.site.server.public),
            ("app.example", self.app.address()),
        ];
        let browser = Chromium::start(&hosts).await;
        browser.open(&request("")).await;
        browser.sign_in("ada", PASSWORD).await;
        let back = browser.arrives(CALLBACK).await;
        let code = back.query_pairs().find(|(name, _)| name == "code");
        let form = [
            ("grant_type", "authorization_code"),
            ("code", &*code.unwrap().1),
            ("code_verifier", VERIFIER),
            ("redirect_uri", CALLBACK),
        ];
        let tokens = Tokens(self.asks("/oauth2/token", &form).await);
        assert!(self.are_good(&tokens).await);
        (browser, tokens)
    }

    /// Whether introspection calls both tokens good; those that are not are refreshed no more, either.
    async fn are_good(&self, tokens: &Tokens) -> bool {
        let mut active = Vec::new();
        for kind in ["access_token", "refresh_token"] {
            let form = [("token", &*tokens.of_kind(kind))];
            let told = self.asks("/oauth2/introspect", &form).await;
            active.push(told.json()["active"].as_bool().unwrap());
        }
        assert_eq!(active[0], active[1]);
        if !active[0] {
            let refresh_token = tokens.of_kind("refresh_token");
            let form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", &refresh_token),
            ];
            let refused = self.asks("/oauth2/token", &form).await;
            assert_eq!(
                (refused.status, refused.json()["error"].as_str()),
                (400, Some("invalid_grant"))
            );
        }
        active[0]
    }
}

/// What the app sends browsers to, with `prompt` if it is not empty.
fn request(prompt: &str) -> String {
    let mut url = Url::parse(&format!("{ISSUER}/oauth2/authorize")).unwrap();
    url.query_pairs_mut().extend_pairs([
        ("client_id", "desk"),
        ("redirect_uri", CALLBACK),
        ("response_type", "code"),
        ("scope", "openid read"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
        ("prompt", prompt),
    ]);
    url.into()
}

/// Nobody is signed in in a browser: apps are told so, and the account page asks.
async fn is_out(browser: &Chromium) {
    browser.open(&request("none")).await;
    let back = browser.arrives(CALLBACK).await;
    assert!(back.as_str().contains("error=login_required"), "{back}");
    browser.open(&format!("{ISSUER}/account")).await;
    browser.reads("Sign in").await;
}

async fn is_in(browser: &Chromium) {
    browser.open(&format!("{ISSUER}/account")).await;
    browser.reads("Your account").await;
}

#[tokio::test]
async fn signing_out_everywhere_ends_another_browser_and_its_app_at_once() {
    let desk = Desk::start().await;
    let (here, own) = desk.signed_in().await;
    let (there, theirs) = desk.signed_in().await;
    is_in(&here).await;
    here.press("Sign out everywhere").await;
    here.reads("Sign in").await;
    assert!(!desk.are_good(&theirs).await);
    assert!(!desk.are_good(&own).await);
    is_out(&there).await;
    is_out(&here).await;
}

#[tokio::test]
async fn signing_out_of_one_browser_at_the_account_page_ends_its_app_and_no_other() {
    let desk = Desk::start().await;
    let (here, own) = desk.signed_in().await;
    let (there, theirs) = desk.signed_in().await;
    is_in(&here).await;
    here.press("Sign out").await;
    here.reads("Sign in").await;
    assert!(!desk.are_good(&own).await);
    assert!(desk.are_good(&theirs).await);
    is_out(&here).await;
    // And of the other one, from a third.
    let (third, _) = desk.signed_in().await;
    is_in(&third).await;
    let button = "document.querySelector('#places + .cards > li:last-child form').requestSubmit()";
    third.run(button, json!(null)).await;
    third
        .says(
            "#happenings + .cards li:first-child p",
            "You signed out of a browser.",
        )
        .await;
    assert!(!desk.are_good(&theirs).await);
    is_out(&there).await;
    is_in(&third).await;
}

/// `OpenID` Connect RP-Initiated Logout 1.0 §2.
#[tokio::test]
async fn an_app_signs_its_user_out_of_the_browser_that_it_is_in() {
    let desk = Desk::start().await;
    let (here, own) = desk.signed_in().await;
    let (there, theirs) = desk.signed_in().await;
    // By an ID Token of the user who is there: nothing is asked.
    let mut url = Url::parse(&format!("{ISSUER}/oauth2/logout")).unwrap();
    url.query_pairs_mut().extend_pairs([
        ("id_token_hint", &*own.of_kind("id_token")),
        ("post_logout_redirect_uri", AFTER),
        ("state", "s"),
    ]);
    here.open(url.as_str()).await;
    here.arrives(&format!("{AFTER}?state=s")).await;
    assert!(!desk.are_good(&own).await);
    is_out(&here).await;
    assert!(desk.are_good(&theirs).await);

    // By a form on a page of the app, along with which browsers send no cookies; without an ID Token,
    // so that the user is asked.
    let posted = "
        document.body.innerHTML = '<form method=post></form>';
        const form = document.querySelector('form');
        form.action = args.to;
        for (const [name, value] of Object.entries(args.of)) {
            const input = form.appendChild(document.createElement('input'));
            [input.name, input.value] = [name, value];
        }
        form.submit();";
    let parameters = json!({
        "to": format!("{ISSUER}/oauth2/logout"),
        "of": { "client_id": "desk", "post_logout_redirect_uri": AFTER },
    });
    for (answer, leads_to) in [
        ("Stay signed in", format!("{ISSUER}/account")),
        ("Sign out", AFTER.to_owned()),
    ] {
        assert!(desk.are_good(&theirs).await);
        there.open("https://app.example/").await;
        there.run(posted, parameters.clone()).await;
        there.reads("Sign out?").await;
        there.shows("sign-out-of-app").await;
        there.press(answer).await;
        there.arrives(&leads_to).await;
    }
    assert!(!desk.are_good(&theirs).await);
    is_out(&there).await;
}
