//! Signing in without a pointer (WCAG 2.2 §2.1.1, §2.4.7): by Tab, Enter and what is typed.

use serde_json::{Value, json};

use super::{
    CALLBACK, Site,
    chromium::{app, browser_at, request},
};
use crate::support::{chromium::Chromium, sign_in::PASSWORD};

/// Tells what has the focus, and whether anybody can see that it has.
const FOCUS: &str = "
    const it = document.activeElement;
    const drawn = () => {
        const style = getComputedStyle(it);
        return [style.outlineStyle, style.outlineWidth, style.outlineColor, style.boxShadow,
            style.borderColor].join(' ');
    };
    const focused = drawn();
    it.blur();
    const otherwise = drawn();
    it.focus({ focusVisible: true, preventScroll: true });
    return {
        what: it.id || it.textContent.trim(),
        isVisible: it !== document.body && focused !== otherwise,
    };";

impl Chromium {
    /// Presses a key and lets it go; `text` is what it writes, if anything.
    async fn strikes(&self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
            });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.devtools("Input.dispatchKeyEvent", event).await;
        }
    }

    async fn tab(&self) {
        self.strikes("Tab", 9, "").await;
    }

    async fn enter(&self) {
        self.strikes("Enter", 13, "\r").await;
    }

    async fn writes(&self, text: &str) {
        let text = json!({ "text": text });
        self.devtools("Input.insertText", text).await;
    }

    /// Goes on until this has the focus, which can be seen wherever it is; past at most so much else.
    async fn tabs_to(&self, what: &str, past: usize) {
        let mut before = Vec::new();
        for _ in 0..=past {
            let focus = self.run(FOCUS, Value::Null).await;
            if focus["what"] == what {
                assert_eq!(focus["isVisible"], true, "{what}");
                return;
            }
            before.push(focus);
            self.tab().await;
        }
        panic!("{what} is not reached: {before:?}");
    }
}

#[tokio::test]
async fn a_user_signs_in_and_allows_an_app_by_keyboard_alone() {
    let (site, app) = (Site::start().await, app());
    let browser = browser_at(&site, &app).await;
    browser.open(&request(&[])).await;
    browser.reads("Sign in").await;
    // Nothing stands between the page and its first field, nor between that and the next.
    browser.tabs_to("username", 0).await;
    browser.writes("ada").await;
    browser.tab().await;
    browser.tabs_to("password", 0).await;
    browser.writes("wrong").await;
    browser.tab().await;
    browser.tabs_to("Sign in", 0).await;
    browser.enter().await;
    // What was wrong is where one goes on.
    browser
        .says("#problem", "The user name or the password is wrong.")
        .await;
    browser.tabs_to("password", 0).await;
    browser.writes(PASSWORD).await;
    // A field sends its form, too.
    browser.enter().await;
    browser
        .reads("Allow Field <b>Notes to use your account?")
        .await;
    browser.tabs_to("Allow", 3).await;
    browser.tab().await;
    browser.tabs_to("Do not allow", 0).await;
    browser.open(&request(&[])).await;
    browser.tabs_to("Allow", 3).await;
    browser.enter().await;
    let back = browser.arrives(CALLBACK).await;
    assert!(back.query_pairs().any(|(name, _)| name == "code"), "{back}");
}
