//! Building, running and stopping the service.
//!
//! The only place where parts are put together: use cases get their store, clock and randomness
//! here, handlers get the use cases. Runs the tasks behind (`sync`, `tasks`).

mod background;
mod development;
mod sync;
mod tasks;
mod tls;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use secrecy::ExposeSecret as _;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{background::BackgroundThreads, tls::Certificate};
pub use self::{
    sync::SyncError,
    tls::{TlsError, check_certificate},
};
use crate::{
    account::Accounts,
    admin::{
        AdminError,
        client::ClientAdmin,
        event::EventAdmin,
        family::FamilyAdmin,
        key::KeyAdmin,
        operator::{Authority, OperatorGate},
        resource::ResourceAdmin,
        revocation::RevocationAdmin,
        user::UserAdmin,
    },
    clock::{AgreedClock, Clock, SystemClock},
    config::Config,
    domain::{id::ClientId, node::Environment},
    entropy::Entropy,
    http::{
        self, AdminServices, Brand, ConnectionLimits, Listeners, Servers, Services, TrustedProxies,
    },
    identity::{
        factor::{MOST_WRONG_CODES_PER_HOUR, SecondFactors, passkey::relying_party},
        password::{NewPasswordError, Passwords},
        session::Sessions,
        sign_in::{self, SignIn},
    },
    metrics::Metrics,
    oauth::{
        access_token::Minter,
        authorization::endpoint::AuthorizationEndpoint,
        challenge::ChallengeEndpoint,
        client_auth::{Authenticator, KeySets},
        introspection::Introspection,
        limits::Limits,
        live_token::LiveTokens,
        logout::{endpoint::LogoutEndpoint, notices::LogoutNotifier},
        metadata,
        refresh_tokens::RefreshTokens,
        revocation::Revocation,
        rotation_queue::{RotationQueue, RotationWorker},
        seals::Seals,
        session::{SessionTokens, hosts::ProtectedHosts, pages::SessionPages},
        token::TokenEndpoint,
        userinfo::UserInfo,
    },
    outbound::{Outbound, OutboundError, Resolver, SystemResolver},
    store::{self, Access, OpenError, Schema, Snapshot, Store, StoreError},
    telemetry,
    throttle::Throttle,
};

/// How many connections may wait to be accepted. The standard library has room for 128, which is
/// soon full where many clients connect anew at once.
const BACKLOG: i32 = 1024;

/// How long taking leave of the database may take.
const LEAVE: Duration = Duration::from_secs(5);

/// Why the service does not start, or a command does not run; each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database cannot be used.
    #[error("setting database.url: {0}")]
    Store(#[source] OpenError),
    /// Somebody else has the port, or the address is not this machine's.
    #[error(
        "setting {key}: cannot listen on {address}: {source}; end what listens there, or choose another address"
    )]
    Listen {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The certificate of the public listener cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Keys could not be prepared, or demo clients.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// No password can be hashed.
    #[error("passwords cannot be hashed: {0}")]
    Passwords(#[from] NewPasswordError),
    /// The first snapshots could not be taken.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The database failed after it had been opened.
    #[error("setting database.url: {0}")]
    Read(#[from] StoreError),
    /// Production was pointed at a database of the development start.
    #[error(
        "setting database.url: the database holds demo rows ({0}) whose secrets lie in data/development.json; \
         production needs a database of its own, or delete them with countersign clients delete, \
         resources delete and users delete"
    )]
    DemoRows(String),
    /// Development was pointed at a database that production has served.
    #[error(
        "setting database.url: the database belongs to production; development would add clients whose \
         secrets lie in data/development.json, and needs a database of its own"
    )]
    OfProduction,
    /// Development found a client of its own name that somebody else has made.
    #[error(
        "setting database.url: the database holds a client {0} that is not the demo client; use another database"
    )]
    NotDemo(ClientId),
    /// Development found a user of its own name that somebody else has made.
    #[error(
        "setting database.url: the database holds a user {0} that is not the demo user; use another database"
    )]
    NotDemoUser(&'static str),
    /// Nothing can be fetched from others.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// A part of the service ended by itself.
    #[error("a background task ended by itself")]
    TaskEnded,
    /// The file with the secrets of the demo clients and the demo user cannot be used.
    #[error("cannot use {path}: {source}")]
    DevelopmentFile {
        /// The file.
        path: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// There are no threads.
    #[error("threads cannot be started")]
    Threads(#[source] io::Error),
    /// The servers stopped by themselves.
    #[error("serving failed")]
    Serve(#[source] io::Error),
}

/// What every command works with: settings, time, randomness and the database.
pub struct Context {
    /// The settings.
    pub config: Config,
    /// The time all nodes agree on.
    pub clock: AgreedClock,
    /// Randomness.
    pub entropy: Entropy,
    /// The database.
    pub store: Arc<dyn Store>,
    /// This issuer's identifier.
    pub issuer: String,
    /// What is counted and measured.
    pub metrics: Metrics,
    /// Hashes passwords.
    pub passwords: Passwords,
    /// Where that is done, and RSA keys are generated.
    background: BackgroundThreads,
}

impl Context {
    /// Opens the database that the settings name.
    pub async fn open(config: Config, access: Access) -> Result<Self, StartError> {
        let issuer = config.issuer(config.public_listen);
        let clock = Arc::new(SystemClock::new());
        Self::with_clock(config, issuer, access, Schema::default(), clock).await
    }

    async fn with_clock(
        config: Config,
        issuer: String,
        access: Access,
        schema: Schema,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let entropy = Entropy::new();
        let clock = AgreedClock::new(clock);
        let policy = &config.policy;
        let metrics = Metrics::new(clock.now(), policy.period, policy.offline_limit);
        let url = config.database_url.expose_secret();
        let store = store::open(url, access, schema, &entropy, clock.now())
            .await
            .map_err(StartError::Store)?;
        let store = store::watched(store, metrics.clone());
        sync::observe_clock(&*store, &clock, config.policy.clock_skew).await?;
        let background = BackgroundThreads::new().map_err(StartError::Threads)?;
        let passwords = Passwords::new(
            config.passwords,
            issuer.clone(),
            background.handle.clone(),
            clock.clone(),
            entropy.clone(),
            metrics.clone(),
        );
        Ok(Self {
            config,
            clock,
            entropy,
            store,
            issuer,
            metrics,
            passwords,
            background,
        })
    }

    /// The use cases about clients.
    pub fn clients(&self) -> ClientAdmin {
        ClientAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            issuer: self.issuer.clone(),
            rs256_id_tokens: self.config.rs256_id_tokens,
            token_retention: self.config.policy.retention(),
            authority: Authority::Everything,
        }
    }

    /// The use cases about resources.
    pub fn resources(&self) -> ResourceAdmin {
        ResourceAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            issuer: self.issuer.clone(),
        }
    }

    /// The use cases about users.
    pub fn users(&self) -> UserAdmin {
        UserAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            passwords: self.passwords.clone(),
            token_retention: self.config.policy.retention(),
        }
    }

    /// The use cases about revocations.
    pub fn revocations(&self) -> RevocationAdmin {
        RevocationAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            policy: self.config.policy,
        }
    }

    /// The use cases about families.
    pub fn families(&self) -> FamilyAdmin {
        FamilyAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            policy: self.config.policy,
        }
    }

    /// The use cases about events.
    pub fn events(&self) -> EventAdmin {
        EventAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            poll: self.config.policy.poll,
            stopping: CancellationToken::new(),
        }
    }

    /// The use cases about keys.
    pub fn keys(&self) -> KeyAdmin {
        KeyAdmin {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            masters: self.config.master_keys.clone(),
            policy: self.config.policy,
            rs256_id_tokens: self.config.rs256_id_tokens,
            background: self.background.handle.clone(),
        }
    }

    /// The use case of signing in with a password.
    pub async fn sign_in(&self) -> Result<SignIn, StartError> {
        let limits = &self.config.limits;
        let of_address = limits.password_failures_per_address_per_minute;
        let sign_in = SignIn::new(
            Arc::clone(&self.store),
            self.clock.clone(),
            self.passwords.clone(),
            sign_in::Limits::per_minute(limits.password_failures_per_minute, of_address),
            self.metrics.clone(),
        );
        Ok(sign_in.await?)
    }

    /// The use case of second factors.
    pub fn second_factors(&self) -> SecondFactors {
        let config = &self.config;
        SecondFactors {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            masters: config.master_keys.clone(),
            failures: Throttle::per_minute(config.limits.password_failures_per_minute),
            wrong_codes: Throttle::per_hour(MOST_WRONG_CODES_PER_HOUR),
            service: config.pages.name.clone(),
            webauthn: relying_party(&self.issuer, &config.pages.name),
        }
    }

    /// What the development start has made, of which production wants nothing: each row in words. Of
    /// the users there may be more than the one that is told.
    pub async fn demo_rows(&self) -> Result<Vec<String>, StoreError> {
        // As nodes read it: a row that cannot be read keeps none from starting.
        let Snapshot {
            clients, resources, ..
        } = self.store.snapshot().await?;
        let clients = clients.iter().filter(|client| client.demo);
        let clients = clients.map(|client| format!("client {}", client.client_id));
        let resources = resources.iter().filter(|resource| resource.demo);
        let resources = resources.map(|resource| format!("resource {}", resource.id));
        let user = self.store.demo_user().await?;
        let user = user.map(|id| format!("user {id}"));
        Ok(clients.chain(resources).chain(user).collect())
    }

    /// Ends the connections to the database.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

/// The service, ready to run.
pub struct App {
    context: Context,
    services: Services,
    listeners: Listeners,
    certificate: Option<Arc<Certificate>>,
    sync: sync::Sync,
    notifier: Arc<LogoutNotifier>,
    banner: Option<String>,
}

impl App {
    /// Binds the listeners, opens the database and prepares keys. Nothing is answered before `run`.
    pub async fn build(config: Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        Self::build_with(config, Schema::default(), clock).await
    }

    async fn build_with(
        config: Config,
        schema: Schema,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let certificate = config.tls.clone().map(Certificate::load).transpose()?;
        let public = listen("public.listen", config.public_listen)?;
        let admin = listen("admin.listen", config.admin_listen)?;
        let address = public.local_addr().map_err(StartError::Serve)?;
        let issuer = config.issuer(address);
        let context = Context::with_clock(config, issuer, Access::Serve, schema, clock).await?;
        let is_development = context.config.environment == Environment::Development;
        if !is_development {
            // What is refused stays development's.
            refuse_demo_rows(&context).await?;
        }
        let stored = context.store.enter(context.config.environment).await?;
        if stored != context.config.environment {
            return Err(StartError::OfProduction);
        }
        if !is_development {
            // Development may have begun in between; from now on it cannot.
            refuse_demo_rows(&context).await?;
        }
        context.keys().bootstrap(is_development).await?;
        let banner = if is_development {
            Some(development::prepare(&context).await?)
        } else {
            None
        };
        let sync = sync::Sync::begin(&context).await?;
        let resolver: Arc<dyn Resolver> = Arc::new(SystemResolver);
        let outbound = Outbound::new(&context.config.outbound, &resolver, context.clock.clone())?;
        let sign_in = context.sign_in().await?;
        let notifier = Arc::new(notifier(&context, &sync, outbound.clone()));
        let services = services(&context, &sync, outbound, sign_in);
        let tls = certificate.as_ref().map(Certificate::server_config);
        let tls = tls
            .transpose()
            .map_err(|error| StartError::Serve(io::Error::other(error)))?;
        Ok(Self {
            context,
            services,
            listeners: Listeners { public, tls, admin },
            certificate,
            sync,
            notifier,
            banner,
        })
    }

    /// Where the public listener is bound.
    pub fn public_address(&self) -> io::Result<SocketAddr> {
        self.listeners.public.local_addr()
    }

    /// Where the admin listener is bound.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.listeners.admin.local_addr()
    }

    /// This issuer's identifier.
    pub fn issuer(&self) -> &str {
        &self.context.issuer
    }

    /// The use cases and the database behind this service.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What a development start tells its user.
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref()
    }

    /// Serves until `stop` is cancelled, then finishes what has begun.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StartError> {
        let mut tasks = JoinSet::new();
        let end_tasks = CancellationToken::new();
        let rotations = RotationWorker {
            queue: self.services.token.rotations.clone(),
            store: Arc::clone(&self.context.store),
            tokens: self.services.token.refresh_tokens.clone(),
            metrics: self.context.metrics.clone(),
        };
        tasks.spawn(rotations.run(end_tasks.clone()));
        let snapshots = Arc::clone(&self.services.snapshots);
        let clock = self.context.clock.clone();
        let stopping = self.services.admin.events.stopping.clone();
        let node = tasks::Node::new(&self.context)?;
        node.report().await?;
        tasks.spawn(self.sync.run(end_tasks.clone()));
        tasks.spawn(tasks::key_schedule(
            self.context.keys(),
            snapshots,
            end_tasks.clone(),
        ));
        tasks.spawn(tasks::sweeper(
            Arc::clone(&self.context.store),
            self.context.clock.clone(),
            self.context.metrics.clone(),
            self.context.config.keep_events,
            end_tasks.clone(),
        ));
        tasks.spawn(tasks::logout_notices(self.notifier, end_tasks.clone()));
        tasks.spawn(node.run(end_tasks.clone()));
        if let Some(certificate) = self.certificate {
            tasks.spawn(certificate.follow(
                clock.clone(),
                self.context.metrics.clone(),
                end_tasks.clone(),
            ));
        }
        let Servers { running, handles } =
            http::serve(self.listeners, self.services).map_err(StartError::Serve)?;
        tracing::info!(issuer = self.context.issuer, "serving");
        let mut running = std::pin::pin!(running);
        let result = tokio::select! {
            result = &mut running => result.map_err(StartError::Serve),
            () = stop.cancelled() => {
                tracing::info!("stopping");
                stopping.cancel();
                let (result, ()) = tokio::join!(running, http::stop(handles));
                result.map_err(StartError::Serve)
            }
            // None ends before it is told to, but by a panic: better no service than one that no
            // longer follows its database.
            _ = tasks.join_next() => {
                stopping.cancel();
                let (_, ()) = tokio::join!(running, http::stop(handles));
                Err(StartError::TaskEnded)
            }
        };
        // The tasks end last: requests under way may still need them. A database that does not
        // answer must not keep the process from ending.
        end_tasks.cancel();
        let ending = async {
            while tasks.join_next().await.is_some() {}
            self.context.close().await;
        };
        if within(&clock, LEAVE, ending).await.is_err() {
            tracing::warn!("the database did not answer while taking leave");
        }
        tracing::info!("stopped");
        result
    }
}

/// An answer did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the database did not answer in time")]
pub struct TimedOut;

/// Waits for an answer, but no longer than `limit`.
async fn within<T>(
    clock: &AgreedClock,
    limit: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    tokio::select! {
        answer = answer => Ok(answer),
        () = clock.sleep(limit) => Err(TimedOut),
    }
}

/// Runs the service until SIGTERM or SIGINT.
pub async fn serve(config: Config, schema: Schema) -> Result<(), StartError> {
    let app = App::build_with(config, schema, Arc::new(SystemClock::new())).await?;
    if let Some(banner) = app.banner() {
        // Nobody may be reading; the service is no worse for it.
        let _ = io::Write::write_all(&mut io::stdout(), banner.as_bytes());
    }
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(StartError::Serve)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        signalled.cancel();
    });
    app.run(stop).await
}

fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    bind(address).map_err(|source| StartError::Listen {
        key,
        address,
        source,
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn refuse_demo_rows(context: &Context) -> Result<(), StartError> {
    let rows = context.demo_rows().await?;
    if rows.is_empty() {
        return Ok(());
    }
    Err(StartError::DemoRows(rows.join(", ")))
}

/// A limit as it stands in the settings, where 0 is none.
fn limit<T: Default + PartialEq>(setting: T) -> Option<T> {
    (setting != T::default()).then_some(setting)
}

/// The same of a limit in seconds.
fn span_limit(seconds: u32) -> Option<Duration> {
    limit(seconds).map(|seconds| Duration::from_secs(u64::from(seconds)))
}

fn admin_services(context: &Context, tokens: LiveTokens) -> AdminServices {
    AdminServices {
        operators: OperatorGate { tokens },
        clients: context.clients(),
        events: context.events(),
        families: context.families(),
        keys: context.keys(),
        resources: context.resources(),
        revocations: context.revocations(),
        users: context.users(),
    }
}

/// What signs users in by way of their browsers.
fn authorization(
    context: &Context,
    sync: &sync::Sync,
    sign_in: Arc<SignIn>,
    factors: Arc<SecondFactors>,
) -> AuthorizationEndpoint {
    AuthorizationEndpoint {
        issuer: context.issuer.clone(),
        sign_in,
        factors,
        sessions: sessions(context),
        store: Arc::clone(&context.store),
        snapshots: sync.snapshots(),
        seals: seals(context, sync),
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
    }
}

/// Signs users in without a browser.
fn challenge(
    context: &Context,
    sync: &sync::Sync,
    authenticator: Arc<Authenticator>,
    (sign_in, factors): (Arc<SignIn>, Arc<SecondFactors>),
) -> ChallengeEndpoint {
    let limits = &context.config.limits;
    ChallengeEndpoint {
        authenticator,
        sign_in,
        factors,
        begun: Throttle::per_minute(limits.password_failures_per_address_per_minute),
        store: Arc::clone(&context.store),
        snapshots: sync.snapshots(),
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
    }
}

/// What clients are told of who has signed in.
fn user_info(context: &Context, tokens: LiveTokens) -> UserInfo {
    UserInfo {
        tokens,
        store: Arc::clone(&context.store),
    }
}

/// What users do at their own account.
fn accounts(
    context: &Context,
    sync: &sync::Sync,
    sign_in: Arc<SignIn>,
    factors: Arc<SecondFactors>,
) -> Accounts {
    Accounts {
        store: Arc::clone(&context.store),
        sessions: sessions(context),
        sign_in,
        factors,
        users: context.users(),
        families: context.families(),
        seals: seals(context, sync),
        snapshots: sync.snapshots(),
        clock: context.clock.clone(),
        token_retention: context.config.policy.retention(),
    }
}

/// What signs users out of their browsers.
fn logout(context: &Context, sync: &sync::Sync) -> LogoutEndpoint {
    LogoutEndpoint {
        issuer: context.issuer.clone(),
        sessions: sessions(context),
        snapshots: sync.snapshots(),
        seals: seals(context, sync),
        clock: context.clock.clone(),
    }
}

/// What tells clients that their users have been signed out.
fn notifier(context: &Context, sync: &sync::Sync, outbound: Outbound) -> LogoutNotifier {
    LogoutNotifier {
        issuer: context.issuer.clone(),
        store: Arc::clone(&context.store),
        snapshots: sync.snapshots(),
        outbound,
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
        metrics: context.metrics.clone(),
    }
}

/// Who has signed in where.
fn sessions(context: &Context) -> Sessions {
    let config = &context.config;
    Sessions {
        store: Arc::clone(&context.store),
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
        idle: config.session_idle,
        lifetime: config.session_lifetime,
        token_retention: config.policy.retention(),
    }
}

/// What mints tokens for sessions.
fn session_tokens(
    context: &Context,
    minter: &Minter,
    refresh_tokens: &RefreshTokens,
) -> SessionTokens {
    SessionTokens {
        minter: minter.clone(),
        refresh_tokens: refresh_tokens.clone(),
        idle: context.config.session_idle,
        store: Arc::clone(&context.store),
    }
}

/// What tells proxies who sends requests to their hosts.
fn hosts(
    context: &Context,
    sync: &sync::Sync,
    authenticator: &Arc<Authenticator>,
    tokens: &SessionTokens,
) -> ProtectedHosts {
    ProtectedHosts {
        issuer: context.issuer.clone(),
        authenticator: Arc::clone(authenticator),
        tokens: tokens.clone(),
        seals: seals(context, sync),
        entropy: context.entropy.clone(),
        lifetime: context.config.session_lifetime,
    }
}

/// What seals and opens what browsers keep.
fn seals(context: &Context, sync: &sync::Sync) -> Seals {
    Seals {
        snapshots: sync.snapshots(),
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
    }
}

/// The path of the issuer's URL, without a slash at the end.
fn path_of(issuer: &str) -> String {
    let path = url::Url::parse(issuer).map(|url| url.path().trim_end_matches('/').to_owned());
    path.unwrap_or_default()
}

/// How often clients may ask, and fail to authenticate.
fn client_limits(context: &Context) -> Limits {
    let limits = &context.config.limits;
    Limits {
        failures: Throttle::per_minute(limits.failures_per_minute),
        failures_of_address: Throttle::per_minute(limits.failures_per_address_per_minute),
        requests: Throttle::per_minute(limits.requests_per_minute_per_client),
        clock: context.clock.clone(),
    }
}

/// What makes and verifies refresh tokens.
fn refresh_tokens(context: &Context, sync: &sync::Sync) -> RefreshTokens {
    let config = &context.config;
    RefreshTokens {
        snapshots: sync.snapshots(),
        clock: context.clock.clone(),
        idle: config.refresh_token_idle,
        lifetime: config.refresh_token_lifetime,
        token_retention: config.policy.retention(),
    }
}

fn services(context: &Context, sync: &sync::Sync, outbound: Outbound, sign_in: SignIn) -> Services {
    let config = &context.config;
    let limits = &config.limits;
    let minter = Minter {
        issuer: context.issuer.clone(),
        default_ttl_seconds: config.access_token_ttl_seconds,
        offline_limit: config.policy.offline_limit,
        snapshots: sync.snapshots(),
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
        metrics: context.metrics.clone(),
    };
    let authenticator = Arc::new(Authenticator {
        issuer: context.issuer.clone(),
        key_sets: KeySets::new(outbound, context.clock.clone(), context.metrics.clone()),
        store: Arc::clone(&context.store),
        snapshots: sync.snapshots(),
        limits: client_limits(context),
        clock: context.clock.clone(),
    });
    let tokens = LiveTokens {
        issuer: context.issuer.clone(),
        offline_limit: config.policy.offline_limit,
        snapshots: sync.snapshots(),
        revocations: sync.revocations(),
        clock: context.clock.clone(),
    };
    let refresh_tokens = refresh_tokens(context, sync);
    let session_tokens = session_tokens(context, &minter, &refresh_tokens);
    let rotations = RotationQueue::default();
    let sign_in = Arc::new(sign_in);
    let factors = Arc::new(context.second_factors());
    let issuer_path = path_of(&context.issuer);
    Services {
        accounts: accounts(context, sync, Arc::clone(&sign_in), Arc::clone(&factors)),
        logout: logout(context, sync),
        authorization: authorization(context, sync, Arc::clone(&sign_in), Arc::clone(&factors)),
        hosts: hosts(context, sync, &authenticator, &session_tokens),
        session_pages: SessionPages {
            authenticator: Arc::clone(&authenticator),
            sessions: sessions(context),
            tokens: session_tokens,
        },
        brand: Brand::new(
            &config.pages.name,
            &config.pages.logo,
            &config.pages.colour,
            &issuer_path,
            context.issuer.starts_with("https://"),
        ),
        admin: admin_services(context, tokens.clone()),
        challenge: challenge(
            context,
            sync,
            Arc::clone(&authenticator),
            (sign_in, factors),
        ),
        introspection: Introspection {
            authenticator: Arc::clone(&authenticator),
            tokens: tokens.clone(),
            refresh_tokens: refresh_tokens.clone(),
            store: Arc::clone(&context.store),
        },
        userinfo: user_info(context, tokens.clone()),
        revocation: Revocation {
            authenticator: Arc::clone(&authenticator),
            tokens,
            refresh_tokens: refresh_tokens.clone(),
            rotations: rotations.clone(),
            store: Arc::clone(&context.store),
            policy: config.policy,
        },
        token: TokenEndpoint {
            authenticator,
            minter,
            refresh_tokens,
            rotations,
            store: Arc::clone(&context.store),
        },
        snapshots: sync.snapshots(),
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
        trace_id: telemetry::trace_id,
        metadata: Bytes::from(
            metadata::document(&context.issuer, config.rs256_id_tokens).to_string(),
        ),
        issuer_path,
        jwks_max_age: config.policy.jwks_max_age,
        connections: ConnectionLimits {
            total: limit(limits.connections),
            per_address: limit(limits.connections_per_address),
            keep_alive: span_limit(limits.keep_alive_seconds),
        },
        head_limit: limit(limits.request_header_bytes).unwrap_or(usize::MAX),
        trusted_proxies: TrustedProxies::new(config.trusted_proxies.clone()),
        body_limit: limit(limits.request_body_bytes).unwrap_or(usize::MAX),
        request_timeout: span_limit(limits.request_timeout_seconds),
        shutdown_timeout: span_limit(limits.shutdown_timeout_seconds).unwrap_or(Duration::MAX),
    }
}
