//! The account page: signing in for it, and what its forms do.

use reqwest::Method;

use super::{Browser, Site, flow, heading};
use crate::support::{database::Engine, server::Answer, sign_in::PASSWORD};

on_both_engines! {
    a_user_signs_in_for_its_own_account,
}

impl Browser<'_> {
    async fn account(&mut self) -> Answer {
        let request = self.request(Method::GET, "/account");
        self.send(request).await
    }
}

async fn a_user_signs_in_for_its_own_account(engine: Engine) {
    let site = Site::on(engine).await;
    let mut browser = site.browser();
    let page = browser.account().await;
    assert_eq!((page.status, heading(&page)), (200, "Sign in"));
    assert!(page.body.contains("to your account"), "{page:?}");
    assert!(!page.body.contains("Cancel"), "{page:?}");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("form-action 'self'"), "{policy}");
    let wrong = browser.sign_in(&page, "ada", "wrong").await;
    assert_eq!((wrong.status, heading(&wrong)), (400, "Sign in"));
    let answer = browser.sign_in(&wrong, "ada", PASSWORD).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(answer.header("location"), Some("/account"));
    let page = browser.account().await;
    assert_eq!((page.status, heading(&page)), (200, "Your account"));
    assert!(page.body.contains("<strong>ada</strong>"), "{page:?}");
    // Apps find the same session, and the account that of apps.
    assert_eq!(
        heading(&browser.ask(&[]).await),
        "Allow Field &#60;b&#62;Notes to use your account?"
    );
}

#[tokio::test]
async fn whoever_signs_in_for_the_account_gets_another_cookie() {
    let site = Site::start().await;
    let mut browser = site.browser();
    // A cookie that somebody has planted is good for nothing, before and after.
    let planted = "cs_bs_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let name = "__Host-countersign".to_owned();
    browser.cookies.insert(name.clone(), planted.to_owned());
    let page = browser.account().await;
    assert_eq!(heading(&page), "Sign in");
    browser.sign_in(&page, "ada", PASSWORD).await;
    assert_ne!(browser.cookies[&name], planted);
    let mut thief = site.browser();
    thief.cookies.insert(name, planted.to_owned());
    assert_eq!(heading(&thief.account().await), "Sign in");
}

#[tokio::test]
async fn a_page_that_was_sealed_with_an_invented_key_is_too_old() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let page = browser.account().await;
    let mut bytes = countersign_verifier::base64url::decode(&flow(&page)).unwrap();
    bytes[4] ^= 0x40;
    let invented = countersign_verifier::base64url::encode(&bytes);
    let form = [
        ("flow", invented.as_str()),
        ("username", "ada"),
        ("password", PASSWORD),
    ];
    let refused = browser.post("/signin", &form).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.body.contains("too old"), "{refused:?}");
}
