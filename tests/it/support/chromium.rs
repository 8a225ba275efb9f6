//! A browser that tests drive: Debian's Chromium, without a window.
//!
//! It has a profile of its own and knows no host but those that a test names. All of them are reached
//! by https: what ends TLS for them is here, so that whatever a test serves may stay without. What
//! browsers allow secure sites alone (`__Host-` cookies, passkeys) works as it does for users.
//!
//! [`Chromium::shows`] looks at a page as people meet it, on small and large screens, light and dark,
//! and keeps what it saw in `target/screenshots`.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fantoccini::{
    Client, ClientBuilder, Locator,
    elements::Element,
    wd::{WebDriverCompatibleCommand, WindowHandle},
};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::Method;
use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::copy_bidirectional, net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use url::{ParseError, Url};

use super::{process::until, soon};

/// The widths at which pages are looked at: a phone's and a desk's, in CSS pixels.
const WIDTHS: [u32; 2] = [360, 1280];

/// How often `chromedriver` is started anew when it finds no port.
const ATTEMPTS: u32 = 5;

/// What is wrong with a page for those who use it, in words; nothing if nothing is.
const FAULTS: &str = include_str!("page_faults.js");

/// A running browser. It ends when this is dropped, also by a test that fails.
pub(crate) struct Chromium {
    client: Client,
    session: String,
    driver: Driver,
    hosts: Hosts,
    _front: JoinSet<()>,
    _profile: TempDir,
}

/// Where the hosts are that the browser knows.
type Hosts = Arc<Mutex<HashMap<String, SocketAddr>>>;

/// `chromedriver`, at a port of its own.
struct Driver {
    process: Child,
    port: u16,
}

impl Driver {
    /// One that has found a port: another program may take the one that it has looked at.
    fn start() -> Self {
        let started = (0..ATTEMPTS).find_map(|_| Self::try_start());
        started.expect("chromedriver at a free port")
    }

    fn try_start() -> Option<Self> {
        // It ends with whoever started it, and so does the browser.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "chromedriver", "--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver: scripts/test installs it");
        let output = BufReader::new(process.stdout.take().unwrap());
        let port = output.lines().find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').parse().unwrap())
        });
        // Dropped without one, it is waited for: it has ended.
        let driver = Self {
            process,
            port: port.unwrap_or_default(),
        };
        port.is_some().then_some(driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Chromium {
    /// A browser that finds these hosts at these addresses, which speak plain HTTP.
    pub(crate) async fn start(hosts: &[(&str, SocketAddr)]) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let hosts = hosts.iter().map(|(host, at)| ((*host).to_owned(), *at));
        let hosts: Hosts = Arc::new(Mutex::new(hosts.collect()));
        let mut front = JoinSet::new();
        let port = end_tls(&mut front, Arc::clone(&hosts)).await;
        let driver = Driver::start();
        let arguments = [
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--ignore-certificate-errors".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
            format!(
                "--host-resolver-rules=MAP *:443 127.0.0.1:{port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
            ),
        ];
        let capabilities = json!({
            "browserName": "chrome-headless-shell",
            "goog:chromeOptions": {
                "binary": "/usr/bin/chromium-headless-shell",
                "args": arguments,
                // Passkeys in spite of certificates that nobody has issued; no offers to keep passwords.
                "prefs": {
                    "webauthn.allow_with_broken_certs": true,
                    "credentials_enable_service": false,
                },
            },
            "timeouts": { "script": 30_000, "pageLoad": 30_000 },
        });
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        let url = format!("http://127.0.0.1:{}", driver.port);
        let client = soon(builder.connect(&url)).await.unwrap();
        Self {
            session: client.session_id().await.unwrap().unwrap(),
            client,
            driver,
            hosts,
            _front: front,
            _profile: profile,
        }
    }

    /// Lets it find one more host.
    pub(crate) fn knows(&self, host: &str, at: SocketAddr) {
        self.hosts.lock().unwrap().insert(host.to_owned(), at);
    }

    pub(crate) async fn open(&self, url: &str) {
        soon(self.client.goto(url)).await.unwrap();
    }

    /// Where it is.
    pub(crate) async fn url(&self) -> Url {
        self.client.current_url().await.unwrap()
    }

    /// Waits until it is at an address that begins like this; the address.
    pub(crate) async fn arrives(&self, start: &str) -> Url {
        until(start, async || {
            let url = self.client.current_url().await.ok()?;
            url.as_str().starts_with(start).then_some(url)
        })
        .await
    }

    /// Waits for a page with this heading.
    pub(crate) async fn reads(&self, heading: &str) {
        until(heading, async || {
            let found = self.client.find(Locator::Css("h1")).await.ok()?;
            (found.text().await.ok()? == heading).then_some(())
        })
        .await;
    }

    /// Waits for an element.
    pub(crate) async fn find(&self, css: &str) -> Element {
        until(css, async || self.client.find(Locator::Css(css)).await.ok()).await
    }

    /// The text of an element.
    pub(crate) async fn text(&self, css: &str) -> String {
        self.find(css).await.text().await.unwrap()
    }

    /// Waits until an element has this text.
    pub(crate) async fn says(&self, css: &str, text: &str) {
        until(&format!("{css}: {text}"), async || {
            let found = self.client.find(Locator::Css(css)).await.ok()?;
            (found.text().await.ok()? == text).then_some(())
        })
        .await;
    }

    /// Fills in a field, in place of what is in it.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses the button, or follows the link, that says this.
    pub(crate) async fn press(&self, words: &str) {
        let path =
            format!("//*[self::button or self::a or self::summary][normalize-space()='{words}']");
        let found = until(words, async || {
            self.client.find(Locator::XPath(&path)).await.ok()
        });
        found.await.click().await.unwrap();
    }

    /// Fills in the page on which users sign in.
    pub(crate) async fn sign_in(&self, username: &str, password: &str) {
        self.reads("Sign in").await;
        self.fill("#username", username).await;
        self.fill("#password", password).await;
        self.press("Sign in").await;
    }

    /// The address of what a frame shows; that of an error page where the browser has refused to.
    pub(crate) async fn framed(&self, css: &str) -> String {
        self.find(css).await.enter_frame().await.unwrap();
        let url = self.run("return document.URL", Value::Null).await;
        self.client.enter_parent_frame().await.unwrap();
        url.as_str().unwrap().to_owned()
    }

    /// Runs the body of an asynchronous function in the page; `arguments` are its `args`. What it
    /// throws fails the test.
    pub(crate) async fn run(&self, body: &str, arguments: Value) -> Value {
        let script = format!(
            "const [args, done] = arguments; \
             (async () => {{ {body} }})().then( \
               (value) => done({{ value: value ?? null }}), \
               (error) => done({{ error: `${{error}}\\n${{error?.stack}}` }}))"
        );
        let ran = self.client.execute_async(&script, vec![arguments]);
        let mut answer = soon(ran).await.unwrap();
        assert_eq!(answer["error"], Value::Null, "{body}");
        answer["value"].take()
    }

    /// A window of its own, in the same profile, which is looked at from now on; what names the one
    /// before.
    pub(crate) async fn new_tab(&self) -> WindowHandle {
        let before = self.window().await;
        let tab = self.client.new_window(true).await.unwrap();
        self.client.switch_to_window(tab.handle).await.unwrap();
        before
    }

    /// The window that is looked at.
    pub(crate) async fn window(&self) -> WindowHandle {
        self.client.window().await.unwrap()
    }

    /// All windows.
    pub(crate) async fn windows(&self) -> Vec<WindowHandle> {
        self.client.windows().await.unwrap()
    }

    /// Looks at another window.
    pub(crate) async fn switch_to(&self, window: &WindowHandle) {
        let switched = self.client.switch_to_window(window.clone());
        switched.await.unwrap();
    }

    /// A command of the Chrome `DevTools` Protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.command("goog/cdp/execute", body).await
    }

    /// Puts an authenticator into the browser that keeps passkeys and knows its user; what it is named
    /// by (Web Authentication §11).
    pub(crate) async fn authenticator(&self) -> String {
        let options = json!({
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": true,
            "hasUserVerification": true,
            "isUserConsenting": true,
            "isUserVerified": true,
        });
        let added = self.command("webauthn/authenticator", options).await;
        added.as_str().unwrap().to_owned()
    }

    /// Takes all passkeys out of an authenticator; what [`Self::give_passkeys`] puts back.
    pub(crate) async fn take_passkeys(&self, authenticator: &str) -> Value {
        let which = json!({ "authenticatorId": authenticator });
        let mut kept = self
            .devtools("WebAuthn.getCredentials", which.clone())
            .await;
        self.devtools("WebAuthn.clearCredentials", which).await;
        kept["credentials"].take()
    }

    /// Puts passkeys into an authenticator.
    pub(crate) async fn give_passkeys(&self, authenticator: &str, passkeys: &Value) {
        for passkey in passkeys.as_array().unwrap() {
            let added = json!({ "authenticatorId": authenticator, "credential": passkey });
            self.devtools("WebAuthn.addCredential", added).await;
        }
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        let command = Extension {
            path: path.to_owned(),
            body,
        };
        soon(self.client.issue_cmd(command)).await.unwrap()
    }

    /// Sets the size of what is seen, in CSS pixels.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", size)
            .await;
    }

    /// Asks pages for `light` or `dark`.
    pub(crate) async fn prefer(&self, scheme: &str) {
        let features = json!({
            "features": [{ "name": "prefers-color-scheme", "value": scheme }],
        });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Looks at the page at each width, light and dark: whether it fits, can be read, and has a name
    /// for all that is used on it. What it looks like is kept as
    /// `target/screenshots/<page>-<width>-<scheme>.png`.
    pub(crate) async fn shows(&self, page: &str) {
        self.look(page, &WIDTHS, true).await;
    }

    /// The same of a page that is known from another test but for its colours: at one width, and nothing
    /// is kept.
    pub(crate) async fn shows_coloured(&self, page: &str) {
        self.look(page, &WIDTHS[..1], false).await;
    }

    async fn look(&self, page: &str, widths: &[u32], is_kept: bool) {
        for &width in widths {
            let mut grounds = Vec::new();
            self.resize(width, 800).await;
            for scheme in ["light", "dark"] {
                self.prefer(scheme).await;
                let seen = self.run(FAULTS, Value::Null).await;
                let place = format!("{page} at {width} px, {scheme}");
                assert_eq!(seen["faults"], json!([]), "{place}");
                grounds.push(seen["ground"].clone());
                if is_kept {
                    let height = seen["height"].as_u64().unwrap().clamp(800, 4000);
                    let picture = self.picture(width, height).await;
                    let file = screenshots().join(format!("{page}-{width}-{scheme}.png"));
                    fs::write(file, picture).unwrap();
                }
            }
            assert_ne!(grounds[0], grounds[1], "{page} is not dark");
        }
        self.prefer("").await;
        self.resize(1280, 800).await;
    }

    /// What the page looks like, so far down, also where that is out of sight.
    async fn picture(&self, width: u32, height: u64) -> Vec<u8> {
        let parameters = json!({
            "optimizeForSpeed": true,
            "captureBeyondViewport": true,
            "clip": { "x": 0, "y": 0, "width": width, "height": height, "scale": 1 },
        });
        let taken = self.devtools("Page.captureScreenshot", parameters).await;
        STANDARD.decode(taken["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver ends the browser, and only then answers.
        let ended = TcpStream::connect(("127.0.0.1", self.driver.port)).and_then(|mut driver| {
            driver.set_read_timeout(Some(Duration::from_secs(10)))?;
            let path = format!("/session/{}", self.session);
            write!(
                driver,
                "DELETE {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            )?;
            driver.read(&mut [0; 64])
        });
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the browser did not end: {ended:?}"
        );
    }
}

/// Where pictures of pages are kept.
fn screenshots() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let folder = target.join("screenshots");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Ends TLS for all hosts at the port returned, and hands on what is said to whichever is meant.
async fn end_tls(tasks: &mut JoinSet<()>, hosts: Hosts) -> u16 {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = made.signing_key.serialize_der();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![made.cert.der().clone()],
            PrivateKeyDer::Pkcs8(key.into()),
        )
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (tls, hosts) = (tls.clone(), Arc::clone(&hosts));
            connections.spawn(async move {
                let Ok(mut outside) = tls.accept(socket).await else {
                    return;
                };
                let host = outside.get_ref().1.server_name();
                let at = host.and_then(|host| hosts.lock().unwrap().get(host).copied());
                let Some(at) = at else { return };
                if let Ok(mut inside) = tokio::net::TcpStream::connect(at).await {
                    // Either side may end it.
                    let _ = copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
    port
}

/// A command of `chromedriver` that `WebDriver` does not have.
#[derive(Debug)]
struct Extension {
    path: String,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}
