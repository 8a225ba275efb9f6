//! The service in this process: production mode, free ports, a database and keys of its own.
//!
//! Tests speak HTTP to it. What operators do beside it goes through store handles of the test's
//! own, as from another process.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};

use countersign::{
    admin::{
        client::{ClientAdmin, ClientMetadata},
        key::KeyAdmin,
        operator::Authority,
        resource::{ResourceAdmin, ResourceMetadata},
    },
    app::App,
    clock::{AgreedClock, Clock, ManualClock, SystemClock},
    config::{Config, Sources},
    domain::{
        change::Cause,
        id::{ClientId, SecretId},
    },
    entropy::Entropy,
    identity::factor::SecondFactors,
    store::Access,
    throttle::Throttle,
};
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Handle,
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use super::{
    client,
    database::{Database, Engine, open},
    process::PROXY,
    soon,
};

/// The issuer, unless a test sets another.
pub(crate) const ISSUER: &str = "https://issuer.example";
/// A resource with the scopes `read` and `write`.
pub(crate) const API: &str = "https://api.example";
/// A resource with the scope `files:read`.
pub(crate) const FILES: &str = "https://files.example/v1";
/// The media type of forms.
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// What a server is started with.
pub(crate) struct Setup {
    engine: Engine,
    url: Option<String>,
    clock: Arc<dyn Clock>,
    settings: Vec<(String, String)>,
    clients: Vec<(&'static str, ClientMetadata)>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let setup = Self {
            engine: Engine::Sqlite,
            url: None,
            clock: Arc::new(SystemClock::new()),
            settings: Vec::new(),
            clients: Vec::new(),
        };
        setup
            .set("environment", "production")
            .set("issuer", ISSUER)
            .set("public.trusted_proxies", PROXY)
            .set("public.listen", "127.0.0.1:0")
            .set("admin.listen", "127.0.0.1:0")
            // A failed authentication waits for one look at the database.
            .set("sync.poll_interval_ms", "10")
    }

    pub(crate) fn on(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Uses the database of this URL.
    pub(crate) fn at(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    pub(crate) fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Knows one more client from its start: where time stands still, it hears of no other.
    pub(crate) fn client(mut self, id: &'static str, metadata: ClientMetadata) -> Self {
        self.clients.push((id, metadata));
        self
    }

    /// Starts a server that knows the resources [`API`] and [`FILES`] and the client `app`.
    pub(crate) async fn start(self) -> TestServer {
        let folder = tempfile::tempdir().unwrap();
        let (database, url) = if let Some(url) = self.url {
            (None, url)
        } else {
            let database = Database::create(self.engine).await;
            let url = database.url().to_owned();
            (Some(database), url)
        };
        let keys = folder.path().join("keys").display().to_string();
        let mut overrides = vec![
            ("database.url".to_owned(), url.clone()),
            ("keys.directory".to_owned(), keys),
        ];
        overrides.extend(self.settings);
        let config = Config::load(&Sources {
            overrides,
            ..Sources::default()
        })
        .unwrap();
        let entropy = Entropy::new();
        let clock = AgreedClock::new(Arc::clone(&self.clock));
        config.master_keys.add(&entropy, clock.now()).unwrap();
        let issuer = config.issuer(config.public_listen);
        let store = open(&url, Access::Command).await.unwrap();
        let resources = ResourceAdmin {
            store: Arc::clone(&store),
            clock: clock.clone(),
            entropy: entropy.clone(),
            issuer: issuer.clone(),
        };
        for (resource, scopes) in [(API, &["read", "write"][..]), (FILES, &["files:read"])] {
            let metadata = ResourceMetadata {
                resource: resource.to_owned(),
                name: "A resource".to_owned(),
                scopes: scopes.iter().map(ToString::to_string).collect(),
                ..ResourceMetadata::default()
            };
            let created = resources.create(&metadata, false, &Cause::system()).await;
            created.unwrap();
        }
        let clients = ClientAdmin {
            store,
            clock,
            entropy,
            issuer: issuer.clone(),
            rs256_id_tokens: config.rs256_id_tokens,
            token_retention: config.policy.retention(),
            authority: Authority::Everything,
        };
        let app = register(&clients, Some("app"), &metadata()).await;
        let mut others = HashMap::new();
        for (id, metadata) in &self.clients {
            let client = register(&clients, Some(id), metadata).await;
            others.insert(*id, client);
        }

        let node = Node::start(config.clone(), Arc::clone(&self.clock)).await;
        TestServer {
            public: node.public,
            admin: node.admin,
            issuer,
            app,
            others,
            clients,
            config,
            clock: self.clock,
            node,
            _database: database,
            _folder: folder,
        }
    }
}

/// One running node. Stops when dropped, and waits for that.
pub(crate) struct Node {
    public: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    async fn start(config: Config, clock: Arc<dyn Clock>) -> Self {
        let (announce, announced) = oneshot::channel();
        let stop = CancellationToken::new();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || serve(config, clock, announce, stop)
        });
        let [public, admin] = soon(announced).await.unwrap();
        Self {
            public,
            admin,
            stop,
            thread: Some(thread),
        }
    }

    /// A request to its public listener.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        client()
            .build()
            .unwrap()
            .request(method, format!("http://{}{path}", self.public))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the server failed"
        );
    }
}

/// Runs the service until it is told to stop. On a thread of its own, so that [`Node`] can wait for
/// its end wherever it is dropped.
fn serve(
    config: Config,
    clock: Arc<dyn Clock>,
    announce: oneshot::Sender<[SocketAddr; 2]>,
    stop: CancellationToken,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let app = App::build(config, clock).await.unwrap();
        let addresses = [app.public_address().unwrap(), app.admin_address().unwrap()];
        announce.send(addresses).unwrap();
        app.run(stop).await.unwrap();
    });
}

/// A client as a test needs it: all resources, all their scopes, [`API`] by default.
pub(crate) fn metadata() -> ClientMetadata {
    ClientMetadata {
        client_name: "A client".to_owned(),
        scope: "read write files:read".to_owned(),
        resources: vec![API.to_owned(), FILES.to_owned()],
        default_resource: Some(API.to_owned()),
        ..ClientMetadata::default()
    }
}

/// A registered client with the secret that only it knows; empty for a public one.
pub(crate) struct Registered {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) secret_id: Option<SecretId>,
}

async fn register(
    clients: &ClientAdmin,
    id: Option<&str>,
    metadata: &ClientMetadata,
) -> Registered {
    let id = id.map(|id| ClientId::parse(id).unwrap());
    let created = clients.create(id, metadata, false, &Cause::system()).await;
    let (client, secret) = created.unwrap();
    Registered {
        id: client.client_id.to_string(),
        secret: secret.map_or(String::new(), |secret| secret.expose().to_owned()),
        secret_id: client.secrets.first().map(|secret| secret.id),
    }
}

/// A running server. Stops when dropped, and waits for that.
pub(crate) struct TestServer {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) issuer: String,
    /// The client that every server knows from its start: [`metadata`], Basic authentication.
    pub(crate) app: Registered,
    others: HashMap<&'static str, Registered>,
    /// What operators do, as from another process.
    pub(crate) clients: ClientAdmin,
    config: Config,
    clock: Arc<dyn Clock>,
    node: Node,
    _database: Option<Database>,
    _folder: TempDir,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Setup::new().start().await
    }

    /// What enrols second factors beside the server.
    pub(crate) fn factors(&self) -> SecondFactors {
        SecondFactors {
            store: Arc::clone(&self.clients.store),
            clock: self.clients.clock.clone(),
            entropy: Entropy::new(),
            masters: self.config.master_keys.clone(),
            failures: Throttle::per_minute(0),
            wrong_codes: Throttle::per_hour(0),
            service: "Countersign".to_owned(),
            webauthn: None,
        }
    }

    /// A client of [`Setup::client`].
    pub(crate) fn other(&self, id: &str) -> &Registered {
        &self.others[id]
    }

    /// Registers a client while the server runs.
    pub(crate) async fn register(&self, metadata: &ClientMetadata) -> Registered {
        register(&self.clients, None, metadata).await
    }

    /// Changes a client while the server runs.
    pub(crate) async fn update(&self, client: &Registered, patch: Value) {
        let id = ClientId::parse(&client.id).unwrap();
        let cause = Cause::system();
        let updated = self.clients.update(&id, &patch, None, &cause).await;
        updated.unwrap();
    }

    /// Returns when the server knows what the database held before this call.
    pub(crate) async fn renewed(&self) {
        // It looks once more before it refuses.
        let wrong = self.token_request().basic_auth("app", Some("wrong"));
        assert_eq!(answer(wrong.form(&GRANT)).await.status, 401);
    }

    /// Lets exactly so much time pass, and returns when the server has seen its database since.
    ///
    /// A look at the database that is under way when the time leaps has taken too long, and the
    /// next one comes a second later: so the last seconds pass little by little.
    pub(crate) async fn pass(&self, clock: &ManualClock, span: Duration) {
        let end = clock.now().plus(span);
        clock.advance(span.saturating_sub(Duration::from_secs(3)));
        self.ready(|| {
            let left = end.since(clock.now());
            clock.advance(left.min(Duration::from_millis(1)));
        })
        .await;
        // Another look is due now, and nothing keeps it from its end.
        clock.advance(end.since(clock.now()));
        self.ready(|| {}).await;
    }

    async fn ready(&self, meanwhile: impl Fn()) {
        soon(async {
            while answer(self.get("/health/ready")).await.status != 200 {
                meanwhile();
            }
        })
        .await;
    }

    /// One more node with the same settings, on the same database; not on `SQLite`.
    pub(crate) async fn beside(&self) -> Node {
        self.beside_with(|_| {}).await
    }

    /// The same with some settings changed.
    pub(crate) async fn beside_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        let mut config = self.config.clone();
        change(&mut config);
        Node::start(config, Arc::clone(&self.clock)).await
    }

    /// What operators do with keys, as from another process.
    pub(crate) fn keys(&self) -> KeyAdmin {
        KeyAdmin {
            store: Arc::clone(&self.clients.store),
            clock: self.clients.clock.clone(),
            entropy: Entropy::new(),
            masters: self.config.master_keys.clone(),
            policy: self.config.policy,
            rs256_id_tokens: self.config.rs256_id_tokens,
            background: Handle::current(),
        }
    }

    /// A request to the public listener.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.node.request(method, path)
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// A request to the token endpoint, as yet without client and body.
    pub(crate) fn token_request(&self) -> RequestBuilder {
        self.request(Method::POST, "/oauth2/token")
    }

    /// A request to the token endpoint by the client `app`.
    pub(crate) fn by_app(&self) -> RequestBuilder {
        self.token_request()
            .basic_auth(&self.app.id, Some(&self.app.secret))
    }

    /// A request to the token endpoint by the client `app`, with this body as it stands.
    pub(crate) fn by_app_with(&self, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.by_app().header(CONTENT_TYPE, FORM).body(body)
    }

    /// Gets `app` a token for its default resource.
    pub(crate) async fn token(&self) -> Answer {
        answer(self.by_app().form(&GRANT)).await
    }

    /// Gets another client with Basic authentication a token for its default resource.
    pub(crate) async fn token_for(&self, client: &Registered) -> Answer {
        let request = self.token_request();
        let request = request.basic_auth(&client.id, Some(&client.secret));
        answer(request.form(&GRANT)).await
    }

    /// The published keys.
    pub(crate) async fn jwks(&self) -> String {
        answer(self.get("/.well-known/jwks.json")).await.body
    }

    /// A connection to the public listener.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.public).await.unwrap()
    }

    /// Waits until the server has ended by itself; whether that was a failure.
    pub(crate) async fn has_failed(&mut self) -> bool {
        let thread = self.node.thread.take().unwrap();
        let ended = tokio::task::spawn_blocking(|| thread.join());
        soon(ended).await.unwrap().is_err()
    }

    /// Tells the server to stop, without waiting for it.
    pub(crate) fn begin_to_stop(&self) {
        self.node.stop.cancel();
    }
}

/// The form of the shortest token request.
pub(crate) const GRANT: [(&str, &str); 1] = [("grant_type", "client_credentials")];

/// Sends text as it is; returns everything that comes back until the connection ends.
pub(crate) async fn send_raw(address: SocketAddr, request: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(request.as_bytes()).await.unwrap();
    read_to_end(&mut connection).await
}

/// Everything that comes until the other side ends the connection.
pub(crate) async fn read_to_end(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends a connection, too.
    let _ = soon(connection.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).unwrap()
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// Sends a request and reads the whole answer.
pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let response = soon(request.send()).await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: soon(response.text()).await.unwrap(),
    }
}

impl Answer {
    /// The value of a header that is there at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} is there twice");
        value
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The access token of a successful answer.
    pub(crate) fn access_token(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["access_token"].as_str().unwrap().to_owned()
    }
}
