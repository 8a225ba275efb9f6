//! The program itself: nodes and commands as processes of their own.
//!
//! An [`Installation`] is one machine: a folder and the settings for whatever runs there. Nodes
//! listen on loopback, on ports that were free. A process that is dropped is killed.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Display,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    ops::Range,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use countersign::clock::{Clock as _, SystemClock, Timestamp};
use countersign_verifier::{Expectation, KeySet, jws::Compact};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use super::client;

/// The issuer of every production installation.
pub(crate) const ISSUER: &str = "https://issuer.example";

/// The proxy in front of every production installation; nobody is there.
pub(crate) const PROXY: &str = "192.0.2.1";

/// The resource of every client that [`Installation::client`] makes.
pub(crate) const AUDIENCE: &str = "https://api.example";

/// By when something must have come. It is there lest a test hangs; no promise of ours is that long.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// How often it is looked whether this machine stands still, and how late a look may come.
const BEAT: Duration = Duration::from_millis(10);
const LATE: Duration = Duration::from_millis(60);

/// How often a process is started anew when somebody else took its port.
const ATTEMPTS: u32 = 5;

static CLOCK: LazyLock<SystemClock> = LazyLock::new(SystemClock::new);

/// The time of this machine.
pub(crate) fn now() -> Timestamp {
    CLOCK.now()
}

/// For how long this machine has stood still since the first call, as virtual ones do now and then.
fn stood_still() -> Duration {
    /// When it was last seen to go on, and for how long it had stood still by then; in microseconds.
    static SEEN: LazyLock<&[AtomicU64; 2]> = LazyLock::new(|| {
        let seen: &[AtomicU64; 2] = Box::leak(Box::new([micros().into(), 0.into()]));
        thread::spawn(move || {
            loop {
                thread::sleep(BEAT);
                let now = micros();
                let late = lateness(seen[0].swap(now, Ordering::SeqCst), now);
                seen[1].fetch_add(late, Ordering::SeqCst);
            }
        });
        seen
    });
    fn micros() -> u64 {
        CLOCK.monotonic().as_micros().try_into().unwrap()
    }
    fn lateness(last: u64, now: u64) -> u64 {
        let span = Duration::from_micros(now.saturating_sub(last));
        let late = if span > LATE { span } else { Duration::ZERO };
        late.as_micros().try_into().unwrap()
    }
    let before = SEEN[1].load(Ordering::SeqCst);
    // Whoever looks may have been woken before the one that counts.
    Duration::from_micros(before + lateness(SEEN[0].load(Ordering::SeqCst), micros()))
}

/// Measures how long something takes. While the machine stands still, no time passes.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch {
    begun: Duration,
    stood_still: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            stood_still: stood_still(),
            begun: CLOCK.monotonic(),
        }
    }

    pub(crate) fn elapsed(self) -> Duration {
        let elapsed = CLOCK.monotonic().saturating_sub(self.begun);
        elapsed.saturating_sub(stood_still().saturating_sub(self.stood_still))
    }
}

/// Lets real time pass, for load and for looking again.
pub(crate) async fn pause(span: Duration) {
    CLOCK.sleep(span).await;
}

/// Waits for a moment of this machine's time.
pub(crate) async fn reach(moment: Timestamp) {
    pause(moment.since(now())).await;
}

/// Looks again and again until there is something; fails the test when that takes too long.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Stopwatch::start();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited too long for {what}");
        pause(Duration::from_millis(20)).await;
    }
}

/// A folder and the settings of whatever runs in it.
pub(crate) struct Installation {
    folder: TempDir,
    /// What runs here, with its first arguments.
    program: Vec<OsString>,
    environment: BTreeMap<String, String>,
    /// Tells the output files of processes apart.
    started: AtomicU32,
}

impl Installation {
    /// An empty folder and no settings but free ports, as at a first start.
    pub(crate) fn development() -> Self {
        let empty = Self {
            folder: tempfile::tempdir().unwrap(),
            program: vec![env!("CARGO_BIN_EXE_countersign").into()],
            environment: BTreeMap::new(),
            started: AtomicU32::new(0),
        };
        empty
            .with("public.listen", free_address())
            .with("admin.listen", free_address())
    }

    /// Production on this database, without a master key.
    pub(crate) fn without_master_key(database_url: &str) -> Self {
        Self::development()
            .with("environment", "production")
            .with("issuer", ISSUER)
            .with("public.trusted_proxies", PROXY)
            .with("database.url", database_url)
    }

    /// Production on this database, with a master key of its own.
    pub(crate) async fn production(database_url: &str) -> Self {
        let installation = Self::without_master_key(database_url);
        installation.run(&["keys", "add-master"]).await.done();
        installation
    }

    /// Another machine with the same settings and copies of the same master keys.
    pub(crate) fn twin(&self) -> Self {
        let twin = Self {
            environment: self.environment.clone(),
            ..Self::development()
        };
        for key in self.master_key_files() {
            twin.receive(&key);
        }
        twin
    }

    /// Runs a test of this binary in place of the program.
    pub(crate) fn running_test(mut self, name: &str) -> Self {
        self.program = vec![std::env::current_exe().unwrap().into()];
        let arguments = ["--exact", name, "--ignored", "--nocapture"];
        self.program.extend(arguments.map(OsString::from));
        self
    }

    /// Runs a script of the shell, for which the program is on the path, to its end.
    pub(crate) async fn run_script(&self, script: &str) -> Outcome {
        let shell = ["bash", "-euo", "pipefail", "-c", script].map(OsString::from);
        self.spawn_program(&shell, &[], &[]).outcome().await
    }

    /// Gives a setting its value.
    pub(crate) fn with(self, key: &str, value: impl Display) -> Self {
        let variable = format!("COUNTERSIGN__{}", key.to_uppercase().replace('.', "__"));
        self.with_variable(&variable, value)
    }

    /// Gives an environment variable its value.
    pub(crate) fn with_variable(mut self, variable: &str, value: impl Display) -> Self {
        self.environment
            .insert(variable.to_owned(), value.to_string());
        self
    }

    /// A file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of the master keys, oldest first.
    pub(crate) fn master_key_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path("keys")) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        // A process that was killed may have left one that it had not finished.
        files.retain(|file| file.extension().is_some_and(|extension| extension == "key"));
        files.sort();
        files
    }

    /// Takes over a copy of a master key's file; its mode comes along.
    pub(crate) fn receive(&self, key: &Path) {
        fs::create_dir_all(self.path("keys")).unwrap();
        let copy = self.path("keys").join(key.file_name().unwrap());
        fs::copy(key, copy).unwrap();
    }

    /// Starts the program.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Process {
        self.spawn_with(arguments, &[])
    }

    fn spawn_with(&self, arguments: &[&str], variables: &[(&str, String)]) -> Process {
        self.spawn_program(&self.program, arguments, variables)
    }

    fn spawn_program(
        &self,
        program: &[OsString],
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let output = self.path(&format!("{number}.stdout"));
        let errors = self.path(&format!("{number}.stderr"));
        let (program, first) = program.split_first().unwrap();
        let own = Path::new(env!("CARGO_BIN_EXE_countersign")).parent();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = own
            .into_iter()
            .map(PathBuf::from)
            .chain(std::env::split_paths(&path));
        let child = Command::new(program)
            .args(first)
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::join_paths(path).unwrap())
            .envs(&self.environment)
            .envs(variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        Process {
            child,
            output,
            errors,
        }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Outcome {
        self.spawn(arguments).outcome().await
    }

    /// Runs a command that has to succeed and prints a document.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["--json"]].concat()).await.json()
    }

    /// Starts a node on free ports and waits until it is ready.
    pub(crate) async fn start(&self) -> Node {
        for _ in 0..ATTEMPTS {
            if let Some(node) = self.try_start(free_address()).await {
                return node;
            }
        }
        panic!("every port was taken");
    }

    /// Starts a node with its public listener where it was before.
    pub(crate) async fn start_at(&self, public: SocketAddr) -> Node {
        self.try_start(public)
            .await
            .expect("the port has been taken by somebody else")
    }

    /// Starts a node and does not wait for it.
    pub(crate) fn launch(&self, public: SocketAddr) -> Node {
        let admin = free_address();
        // Before each start anew: since the last one somebody may have taken them.
        let listeners = [
            ("COUNTERSIGN__PUBLIC__LISTEN", public.to_string()),
            ("COUNTERSIGN__ADMIN__LISTEN", admin.to_string()),
        ];
        Node {
            process: self.spawn_with(&[], &listeners),
            public,
            admin,
            http: http(),
        }
    }

    /// A node that is ready; none if somebody else has one of its ports.
    async fn try_start(&self, public: SocketAddr) -> Option<Node> {
        let mut node = self.launch(public);
        let begun = Stopwatch::start();
        loop {
            if let Some(status) = node.process.status() {
                let errors = node.process.stderr();
                assert!(
                    errors.contains("cannot listen"),
                    "the node ended ({status}): {errors}"
                );
                return None;
            }
            let ready = node.http.get(node.url("/health/ready")).send().await;
            if ready.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return Some(node);
            }
            let errors = node.process.stderr();
            assert!(
                begun.elapsed() < DEADLINE,
                "the node does not get ready: {errors}"
            );
            pause(Duration::from_millis(10)).await;
        }
    }

    /// Registers [`AUDIENCE`], so that there can be clients.
    pub(crate) async fn register_resource(&self) {
        let arguments = ["--resource", AUDIENCE, "--name", "API", "--scope", "read"];
        self.run(&[&["resources", "create"], &arguments[..]].concat())
            .await
            .done();
    }

    /// Registers a public client of [`AUDIENCE`] that may take its users' credentials; its id.
    pub(crate) async fn first_party_client(&self, refresh_policy: &str) -> String {
        let arguments = [
            "--public",
            "--first-party",
            "--refresh-policy",
            refresh_policy,
        ];
        let created = self
            .json(&[&create_client("app")[..], &arguments].concat())
            .await;
        created["client_id"].as_str().unwrap().to_owned()
    }

    /// Registers a client of [`AUDIENCE`].
    pub(crate) async fn client(&self, name: &str) -> Credentials {
        let answer = self.json(&create_client(name)).await;
        Credentials::of(&answer)
    }
}

/// The arguments that register a client of [`AUDIENCE`].
pub(crate) fn create_client(name: &str) -> [&str; 10] {
    [
        "clients",
        "create",
        "--name",
        name,
        "--scope",
        "read",
        "--resource",
        AUDIENCE,
        "--default-resource",
        AUDIENCE,
    ]
}

/// An address that nobody listens at, and no other test is given. It is below the range that the system
/// takes ports from by itself.
pub(crate) fn free_address() -> SocketAddr {
    const PORTS: Range<u16> = 20_000..30_000;
    // Runs beside this one begin elsewhere.
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| (std::process::id() * 97).into());
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) as usize % PORTS.len();
        let port = PORTS.start + u16::try_from(next).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A client of its own connections.
pub(crate) fn http() -> Client {
    client().timeout(DEADLINE).build().unwrap()
}

/// A running process. Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGKILL: ends it in the middle of whatever it does. Returns how it ended; by then it may
    /// have ended by itself.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }

    /// SIGTERM: asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// SIGINT, as by Ctrl-C.
    pub(crate) fn interrupt(&self) {
        self.signal("INT");
    }

    /// SIGSTOP: halts it where it is, with all that it holds.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// SIGCONT: lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.id());
        let sent = Command::new("sh").arg("-c").arg(command).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the end of a process", async || self.status()).await
    }

    async fn outcome(mut self) -> Outcome {
        let status = self.ended().await;
        Outcome {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// What it has written to its standard output so far.
    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// What it has written to its standard error so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has ended already; a panic here would end every other test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Its output; fails the test if the command failed.
    pub(crate) fn done(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }

    /// The document it printed.
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.done()).unwrap()
    }

    /// The one sentence with which it failed. It failed with status 1, said nothing else, and
    /// neither panicked nor showed a password.
    pub(crate) fn refusal(self) -> String {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        let line = self.stderr.strip_suffix('\n').unwrap_or_default();
        let sentence = line.strip_prefix("countersign: ").unwrap_or_default();
        assert!(
            !sentence.is_empty() && !sentence.contains('\n') && self.stdout.is_empty(),
            "{self:?}"
        );
        for word in ["panicked", "RUST_BACKTRACE", PASSWORD] {
            assert!(!sentence.contains(word), "{self:?}");
        }
        sentence.to_owned()
    }
}

/// A secret to put where nothing may show it.
pub(crate) const PASSWORD: &str = "hunter2";

/// A running service. Killed when it is dropped.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    http: Client,
}

impl Node {
    /// Where something is on the public listener.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.public)
    }

    /// Where something is on the admin listener.
    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.http.get(self.url(path)).send().await.unwrap()
    }

    /// What the readiness probe says.
    pub(crate) async fn ready(&self) -> (StatusCode, Value) {
        let answer = self.get("/health/ready").await;
        (answer.status(), answer.json().await.unwrap())
    }

    /// The keys it publishes.
    pub(crate) async fn jwks(&self) -> KeySet {
        let answer = self.get("/.well-known/jwks.json").await;
        assert_eq!(answer.status(), StatusCode::OK);
        KeySet::parse(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Asks it for a token.
    pub(crate) async fn ask(&self, credentials: &Credentials) -> Response {
        let url = self.url("/oauth2/token");
        credentials.ask(&self.http, &url).await.unwrap()
    }

    /// A token from it.
    pub(crate) async fn token(&self, credentials: &Credentials) -> String {
        token_of(self.ask(credentials).await).await
    }

    /// Whether it says of a token of this client that it is active.
    pub(crate) async fn is_active(&self, credentials: &Credentials, token: &str) -> bool {
        let answer = self.post("/oauth2/introspect", credentials, token).await;
        let document: Value = answer.json().await.unwrap();
        document["active"].as_bool().unwrap()
    }

    /// Revokes a token of this client.
    pub(crate) async fn revoke(&self, credentials: &Credentials, token: &str) {
        self.post("/oauth2/revoke", credentials, token).await;
    }

    async fn post(&self, path: &str, credentials: &Credentials, token: &str) -> Response {
        let request = self.http.post(self.url(path));
        let answer = request
            .basic_auth(&credentials.id, Some(&credentials.secret))
            .form(&[("token", token)])
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        let status = self.process.kill();
        assert_eq!(
            status.signal(),
            Some(9),
            "the node had ended by itself ({status}): {}",
            self.process.stderr()
        );
    }

    /// SIGTERM; returns how it ended.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        self.process.terminate();
        self.process.ended().await
    }
}

/// The token of an answer that has to hold one.
pub(crate) async fn token_of(answer: Response) -> String {
    let status = answer.status();
    let document: Value = answer.json().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{document}");
    document["access_token"].as_str().unwrap().to_owned()
}

/// A client's id and secret.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Credentials {
    /// Those that a command has printed.
    pub(crate) fn of(document: &Value) -> Self {
        let member = |name: &str| document[name].as_str().unwrap().to_owned();
        Self {
            id: member("client_id"),
            secret: member("client_secret"),
        }
    }

    /// Asks for a token by client credentials.
    pub(crate) async fn ask(&self, http: &Client, url: &str) -> reqwest::Result<Response> {
        http.post(url)
            .basic_auth(&self.id, Some(&self.secret))
            .form(&[("grant_type", "client_credentials")])
            .send()
            .await
    }
}

/// The key that has signed a token.
pub(crate) fn kid_of(token: &str) -> String {
    let token = Compact::parse(token).unwrap();
    token.header().kid().unwrap().to_owned()
}

/// What a resource server expects that is [`AUDIENCE`].
pub(crate) fn expectation() -> Expectation {
    Expectation {
        issuer: ISSUER.to_owned(),
        audience: Some(AUDIENCE.to_owned()),
        leeway_seconds: 1,
    }
}

/// Whether a resource server with these keys takes a token now.
pub(crate) fn is_valid(token: &str, keys: &KeySet) -> bool {
    let now = u64::try_from(now().seconds()).unwrap();
    countersign_verifier::verify(token, keys, &expectation(), now).is_ok()
}
