//! What every page has in common.

use reqwest::Method;

use super::{Site, heading};
use crate::support::{server::Answer, sign_in::PASSWORD};

/// Framing, sniffing, leaking by referrer, caching, scripts: none of them.
pub(super) fn is_guarded(page: &Answer) {
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}: {page:?}");
    }
    let policy = page.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(page.body.starts_with("<!doctype html>\n<html lang=\"en\">"));
    for script in ["<script>", "onclick", "onload", "javascript:", "style=\""] {
        assert!(!page.body.contains(script), "{script}: {page:?}");
    }
}

#[tokio::test]
async fn every_page_is_guarded() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let page = browser.ask(&[]).await;
    is_guarded(&page);
    is_guarded(&browser.sign_in(&page, "ada", "wrong").await);
    let consent = browser.sign_in(&page, "ada", PASSWORD).await;
    is_guarded(&consent);
    is_guarded(&browser.ask(&[("client_id", "nobody")]).await);
    is_guarded(&browser.post("/consent", &[("flow", "x")]).await);
    browser.decide(&consent, "allow").await;
    let posted = browser.ask(&[("response_mode", "form_post")]).await;
    is_guarded(&posted);
    let policy = posted.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'self'"), "{policy}");
}

#[tokio::test]
async fn what_pages_need_is_served() {
    let site = Site::start().await;
    let mut browser = site.browser();
    for (path, media_type) in [
        ("/assets/style.css", "text/css; charset=utf-8"),
        ("/assets/form_post.js", "text/javascript; charset=utf-8"),
    ] {
        let request = browser.request(Method::GET, path);
        let asset = browser.send(request).await;
        assert_eq!(asset.status, 200);
        assert_eq!(asset.header("content-type"), Some(media_type));
        assert_eq!(asset.header("x-content-type-options"), Some("nosniff"));
    }
    let page = browser.ask(&[]).await;
    assert!(page.body.contains("href=\"/assets/style.css\""), "{page:?}");
    assert_eq!(heading(&page), "Sign in");
}
