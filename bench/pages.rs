//! What a page costs the service.
//!
//! `cargo bench -p countersign-bench --bench pages` runs the service on a database of its own, asks for each page over
//! one connection on loopback, prints the median beside its limit, and fails when one is over it. The time is that
//! of the whole request, the way there and back included. No page here hashes a password or writes anything. The
//! account is that of somebody who uses it: signed in to several apps in several browsers, with a past.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot be set up has nothing to say"
)]
#![expect(
    clippy::print_stdout,
    reason = "its figures are what a benchmark is for"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, mpsc::Sender},
    thread,
    time::{Duration, Instant},
};

use countersign::{
    admin::{client::ClientMetadata, resource::ResourceMetadata, user::UserMetadata},
    app::App,
    clock::{Clock as _, SystemClock},
    config::{Config, Sources},
    domain::{
        change::Cause,
        id::{ClientId, UserId},
    },
    entropy::Entropy,
    identity::{factor::SecondFactors, password::Password},
};
use ring::hmac;
use tokio_util::sync::CancellationToken;

/// How long a page may take, in milliseconds.
const LIMIT: f64 = 2.0;

/// How often each is asked for.
const REQUESTS: usize = 400;

/// In how many other browsers the user is signed in.
const OTHER_BROWSERS: usize = 7;

/// The apps that it uses in each of them, and in its own.
const APPS: [&str; 4] = ["notes", "board", "desk", "music"];

const PASSWORD: &str = "nine brown owls read maps";
const REQUEST: &str = "/oauth2/authorize?response_type=code&state=s\
    &redirect_uri=https%3A%2F%2Fapp.example%2Fcallback\
    &code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256&client_id=";
const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/131.0.0.0 Safari/537.36";
const EXCHANGE: &str = "grant_type=authorization_code&redirect_uri=https%3A%2F%2Fapp.example%2Fcallback\
    &code_verifier=dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A service that runs: where it is, its user, and what enrols second factors beside it.
struct Service {
    address: SocketAddr,
    user: UserId,
    factors: SecondFactors,
}

/// Starts the service with a user and some clients; runs it until `stop`.
async fn serve(folder: &Folder, announce: Sender<Service>, stop: CancellationToken) {
    let setting = |key: &str, value: String| (key.to_owned(), value);
    let at = |name: &str| folder.0.join(name).display().to_string();
    let config = Config::load(&Sources {
        overrides: vec![
            setting("environment", "production".to_owned()),
            setting("issuer", "https://issuer.example".to_owned()),
            setting("public.trusted_proxies", "192.0.2.1".to_owned()),
            setting("public.listen", "127.0.0.1:0".to_owned()),
            setting("admin.listen", "127.0.0.1:0".to_owned()),
            setting("database.url", format!("sqlite://{}", at("bench.db"))),
            setting("keys.directory", at("keys")),
        ],
        ..Sources::default()
    })
    .unwrap();
    let clock = SystemClock::new();
    config
        .master_keys
        .add(&Entropy::new(), clock.now())
        .unwrap();
    let app = App::build(config, Arc::new(clock)).await.unwrap();
    let (context, cause) = (app.context(), Cause::system());
    let resource = ResourceMetadata {
        resource: "https://api.example".to_owned(),
        name: "Notes".to_owned(),
        scopes: vec!["read".to_owned(), "write".to_owned()],
        ..ResourceMetadata::default()
    };
    let created = context.resources().create(&resource, false, &cause).await;
    created.unwrap();
    let apps = APPS.map(|id| (id, false));
    for (id, first_party) in [("own", true), ("other", false)].into_iter().chain(apps) {
        let client = ClientMetadata {
            client_name: format!("Field {id}"),
            token_endpoint_auth_method: Some("none".to_owned()),
            redirect_uris: vec!["https://app.example/callback".to_owned()],
            scope: "read write openid offline_access".to_owned(),
            resources: vec![resource.resource.clone()],
            default_resource: Some(resource.resource.clone()),
            first_party,
            ..ClientMetadata::default()
        };
        let id = Some(ClientId::parse(id).unwrap());
        let created = context.clients().create(id, &client, false, &cause).await;
        created.unwrap();
    }
    let user = UserMetadata {
        username: "ada".to_owned(),
        ..UserMetadata::default()
    };
    let password = Some(Password::read(PASSWORD).unwrap());
    let created = context.users().create(&user, password, false, &cause).await;
    let service = Service {
        address: app.public_address().unwrap(),
        user: created.unwrap().id,
        factors: context.second_factors(),
    };
    announce.send(service).expect("somebody waits");
    app.run(stop).await.unwrap();
}

/// A browser with one connection.
struct Browser {
    reader: BufReader<TcpStream>,
    cookies: Vec<(String, String)>,
}

struct Page {
    status: u16,
    /// Where it sends the browser; empty if nowhere.
    location: String,
    body: String,
}

impl Browser {
    fn at(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
            cookies: Vec::new(),
        }
    }

    fn get(&mut self, path: &str) -> Page {
        self.send(&format!("GET {path} HTTP/1.1\r\n"), "")
    }

    fn post(&mut self, path: &str, form: &str) -> Page {
        let head = format!(
            "POST {path} HTTP/1.1\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {}\r\n",
            form.len()
        );
        self.send(&head, form)
    }

    fn send(&mut self, head: &str, body: &str) -> Page {
        let cookies: Vec<String> = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let request = format!(
            "{head}host: issuer.example\r\nuser-agent: {AGENT}\r\ncookie: {}\r\n\r\n{body}",
            cookies.join("; ")
        );
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let (mut length, mut location) = (0, String::new());
        loop {
            line.clear();
            self.reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "location" => value.clone_into(&mut location),
                "set-cookie" => {
                    let (name, value) = value.split(';').next().unwrap().split_once('=').unwrap();
                    self.cookies.retain(|(known, _)| known != name);
                    self.cookies.push((name.to_owned(), value.to_owned()));
                }
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).unwrap();
        Page {
            status,
            location,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Signs the user in.
    fn sign_in(&mut self) {
        let page = self.get("/account");
        let password = PASSWORD.replace(' ', "+");
        let form = format!("flow={}&username=ada&password={password}", flow(&page));
        assert_eq!(self.post("/signin", &form).status, 303);
    }

    /// Signs the user in to an app, which gets its tokens; asks for consent the first time.
    fn use_app(&mut self, app: &str, scope: &str) {
        let mut page = self.get(&format!("{REQUEST}{app}&scope={scope}"));
        if page.status == 200 {
            let form = format!("flow={}&decision=allow", flow(&page));
            page = self.post("/consent", &form);
        }
        let (_, code) = page.location.split_once("code=").expect("a code");
        let code = code.split('&').next().unwrap();
        let form = format!("{EXCHANGE}&client_id={app}&code={code}");
        assert_eq!(self.post("/oauth2/token", &form).status, 200);
    }

    /// Signs out by the first button of the account page.
    fn sign_out(&mut self) {
        let page = self.get("/account");
        let (_, form) = page.body.split_once("name=\"form\" value=\"").unwrap();
        let form = format!("form={}", form.split('"').next().unwrap());
        assert_eq!(self.post("/account/forms", &form).status, 303);
    }

    /// Asks for a page that is known from `mark` again and again; how long half of the requests took, in
    /// milliseconds.
    fn measure(&mut self, path: &str, status: u16, mark: &str) -> f64 {
        let mut took = Vec::new();
        for _ in 0..REQUESTS {
            let begun = Instant::now();
            let page = self.get(path);
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
            assert!(
                page.status == status && page.body.contains(mark),
                "{path}: {} {}",
                page.status,
                page.body
            );
        }
        took.sort_by(f64::total_cmp);
        took.get(REQUESTS / 2).copied().unwrap_or(f64::NAN)
    }
}

/// The hidden field of a page that its forms go on with.
fn flow(page: &Page) -> &str {
    let (_, rest) = page.body.split_once("name=\"flow\" value=\"").unwrap();
    rest.split('"').next().unwrap()
}

/// Has the user enrol an app that makes one-time passwords.
fn enrol(service: &Service) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let begun = service.factors.begin("ada").unwrap();
    // As the app makes its code (RFC 6238).
    let step = u64::try_from(SystemClock::new().now().seconds()).unwrap() / 30;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, begun.secret.expose());
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let from = usize::from(tag.as_ref().last().unwrap() & 15);
    let bytes: [u8; 4] = tag
        .as_ref()
        .get(from..from + 4)
        .unwrap()
        .try_into()
        .unwrap();
    let code = (u32::from_be_bytes(bytes) & 0x7fff_ffff) % 1_000_000;
    let reading = service.factors.store.user(service.user);
    let user = runtime.block_on(reading).unwrap().expect("the user");
    let (secret, code, cause) = (begun.secret.expose(), format!("{code:06}"), Cause::system());
    let enrolled = service.factors.enrol(&user, (secret, &code), true, &cause);
    runtime.block_on(enrolled).unwrap();
    let made = service.factors.make_codes(&user, false, &cause);
    runtime.block_on(made).unwrap();
}

fn main() -> ExitCode {
    let folder = std::env::temp_dir().join(format!("countersign-pages-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let folder = Folder(folder);
    let stop = CancellationToken::new();
    thread::scope(|scope| {
        let (announce, announced) = std::sync::mpsc::channel();
        let (folder, stopping) = (&folder, stop.clone());
        let serving = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(folder, announce, stopping));
        });
        // Also when something goes wrong here.
        let stops = stop.drop_guard();
        let service = announced.recv().unwrap();
        let figures = measure(&service);
        drop((service, stops));
        serving.join().unwrap();
        let mut is_within = true;
        for (name, median) in figures {
            let verdict = if median <= LIMIT { "within" } else { "OVER" };
            println!("{name}: {median:.2} ms, {verdict} the limit of {LIMIT:.2} ms");
            is_within &= median <= LIMIT;
        }
        if is_within {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    })
}

fn measure(service: &Service) -> Vec<(&'static str, f64)> {
    let mut browser = Browser::at(service.address);
    let (own, other) = (format!("{REQUEST}own"), format!("{REQUEST}other"));
    // The clients are known to the service with its next look at the database.
    while browser.get(&other).status != 200 {
        thread::sleep(Duration::from_millis(50));
    }
    let mut figures = vec![
        (
            "error page",
            browser.measure(&format!("{REQUEST}nobody"), 400, "client_id"),
        ),
        (
            "sign-in page",
            browser.measure(&own, 200, "name=\"password\""),
        ),
    ];
    // What the user has done elsewhere, and here; and some of it is over.
    for nth in 0..2 * OTHER_BROWSERS {
        let mut elsewhere = Browser::at(service.address);
        elsewhere.sign_in();
        for app in APPS {
            elsewhere.use_app(app, "read+write");
        }
        if nth % 2 == 0 {
            elsewhere.use_app("notes", "openid+read+offline_access");
        } else {
            elsewhere.sign_out();
        }
    }
    browser.sign_in();
    for app in APPS {
        browser.use_app(app, "read+write");
    }
    figures.push((
        "consent page",
        browser.measure(&other, 200, "value=\"allow\""),
    ));
    let page = browser.get("/account?show=all").body;
    let lines = page.matches("<li").count();
    assert!(lines > OTHER_BROWSERS * (APPS.len() + 1), "{page}");
    figures.push((
        "account page",
        browser.measure("/account", 200, "This browser"),
    ));
    enrol(service);
    let stronger = format!("{own}&acr_values=urn:countersign:acr:2");
    figures.push((
        "second-factor page",
        browser.measure(&stronger, 200, "one of your recovery codes"),
    ));
    figures
}
