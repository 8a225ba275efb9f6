//! What a page costs the service.
//!
//! `cargo bench -p countersign-bench --bench pages` runs the service on a database of its own, asks for each page over
//! one connection on loopback, prints the median beside its limit, and fails when one is over it. The time is that
//! of the whole request, the way there and back included. No page here hashes a password or writes anything.

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
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use countersign::{
    admin::{client::ClientMetadata, resource::ResourceMetadata, user::UserMetadata},
    app::App,
    clock::{Clock as _, SystemClock},
    config::{Config, Sources},
    domain::{change::Cause, id::ClientId},
    entropy::Entropy,
    identity::password::Password,
};
use tokio_util::sync::CancellationToken;

/// How long a page may take, in milliseconds.
const LIMIT: f64 = 2.0;

/// How often each is asked for.
const REQUESTS: usize = 400;

const PASSWORD: &str = "nine brown owls read maps";
const REQUEST: &str = "/oauth2/authorize?response_type=code&state=s\
    &redirect_uri=https%3A%2F%2Fapp.example%2Fcallback\
    &code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256&client_id=";

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts the service with a user and two clients; runs it until `stop`.
async fn serve(folder: &Folder, announce: impl FnOnce(SocketAddr), stop: CancellationToken) {
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
    for (id, first_party) in [("own", true), ("other", false)] {
        let client = ClientMetadata {
            client_name: "Field Notes".to_owned(),
            token_endpoint_auth_method: Some("none".to_owned()),
            redirect_uris: vec!["https://app.example/callback".to_owned()],
            scope: "read write".to_owned(),
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
    created.unwrap();
    announce(app.public_address().unwrap());
    app.run(stop).await.unwrap();
}

/// A browser with one connection.
struct Browser {
    reader: BufReader<TcpStream>,
    cookies: Vec<(String, String)>,
}

struct Page {
    status: u16,
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
            "{head}host: issuer.example\r\ncookie: {}\r\n\r\n{body}",
            cookies.join("; ")
        );
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        loop {
            line.clear();
            self.reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
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
            body: String::from_utf8(body).unwrap(),
        }
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

fn main() -> ExitCode {
    let folder = std::env::temp_dir().join(format!("countersign-pages-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let folder = Folder(folder);
    let stop = CancellationToken::new();
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (folder, stopping) = (&folder, stop.clone());
        let serving = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let announce = |address| sender.send(address).expect("somebody waits");
            runtime.block_on(serve(folder, announce, stopping));
        });
        let address = receiver.recv().unwrap();
        let figures = measure(address);
        stop.cancel();
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

fn measure(address: SocketAddr) -> Vec<(&'static str, f64)> {
    let mut browser = Browser::at(address);
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
    let page = browser.get(&own);
    let form = format!(
        "flow={}&username=ada&password={}",
        flow(&page),
        PASSWORD.replace(' ', "+")
    );
    assert_eq!(browser.post("/signin", &form).status, 303);
    figures.push((
        "consent page",
        browser.measure(&other, 200, "value=\"allow\""),
    ));
    figures
}
