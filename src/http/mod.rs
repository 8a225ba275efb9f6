//! HTTP: everything that knows actix-web.
//!
//! Owns the route table, the reading of requests and the writing of answers. Decides nothing: each
//! handler hands over to a use case of [`Services`] and renders what comes back. Never sees the
//! store.
//!
//! To add a route: a handler in `public`, its line in `public_routes`, and a file of its own
//! under `tests/it/http`. Calls of the admin interface have their own table: see `admin`.

mod account;
mod address;
mod admin;
mod bearer;
mod body;
mod browser;
mod connection;
mod cookie;
mod cors;
mod error;
mod head;
mod hosts;
mod log;
mod logout;
mod metrics;
mod pages;
mod public;
mod session;
mod userinfo;

use std::{
    future::{Future, ready},
    io,
    net::TcpListener,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use actix_http::{HttpService, KeepAlive};
use actix_server::{Server, ServerHandle};
use actix_service::{IntoServiceFactory as _, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::{
    App, Handler, HttpRequest, HttpResponse, Resource, Responder,
    dev::AppConfig,
    http::{Method, header},
    middleware::{Condition, DefaultHeaders, from_fn},
    web::{self, Data, ServiceConfig},
};
use bytes::Bytes;
use rustls::ServerConfig;

use self::connection::{Connections, Door, Patience, Stream};
pub use self::{
    address::TrustedProxies, admin::AdminServices, connection::ConnectionLimits, pages::Brand,
};
use crate::{
    account::Accounts,
    clock::AgreedClock,
    domain::client::CALLBACK_PATH,
    entropy::Entropy,
    oauth::{
        authorization::endpoint::{AuthorizationEndpoint, Submitted},
        challenge::ChallengeEndpoint,
        introspection::Introspection,
        logout::endpoint::LogoutEndpoint,
        metadata,
        revocation::Revocation,
        session::{hosts::ProtectedHosts, pages::SessionPages},
        token::TokenEndpoint,
        userinfo::{USERINFO_PATH, UserInfo},
    },
    registry::Snapshots,
};

/// What handlers use; built once by `app`.
pub struct Services {
    /// Exchanges credentials for tokens.
    pub token: TokenEndpoint,
    /// Exchanges the credentials of users for codes.
    pub challenge: ChallengeEndpoint,
    /// Signs users in by way of their browsers.
    pub authorization: AuthorizationEndpoint,
    /// The accounts of users who are signed in.
    pub accounts: Accounts,
    /// Signs users out of their browsers.
    pub logout: LogoutEndpoint,
    /// Tells proxies who sends requests to their hosts.
    pub hosts: ProtectedHosts,
    /// Answers pages that use the session of their browser.
    pub session_pages: SessionPages,
    /// What pages carry of whoever runs the service.
    pub brand: Brand,
    /// Tells whether tokens are good.
    pub introspection: Introspection,
    /// Tells clients who has signed in.
    pub userinfo: UserInfo,
    /// Revokes tokens of their clients.
    pub revocation: Revocation,
    /// What operators do.
    pub admin: AdminServices,
    /// What this node knows.
    pub snapshots: Arc<Snapshots>,
    /// The time.
    pub clock: AgreedClock,
    /// The trace that a span belongs to, where there are traces.
    pub trace_id: fn(&tracing::Span) -> Option<String>,
    /// Draws request ids.
    pub entropy: Entropy,
    /// The authorization server metadata.
    pub metadata: Bytes,
    /// The path of the issuer's URL, without a slash at the end; mostly empty.
    pub issuer_path: String,
    /// How long the JWKS may be cached.
    pub jwks_max_age: Duration,
    /// The proxies in front of the public listener.
    pub trusted_proxies: TrustedProxies,
    /// How many connections the public listener has, and for how long.
    pub connections: ConnectionLimits,
    /// The largest request head taken, in bytes.
    pub head_limit: usize,
    /// The largest body taken, in bytes.
    pub body_limit: usize,
    /// How long a request may take to arrive; none is for ever.
    pub request_timeout: Option<Duration>,
    /// How long requests may take to finish on stopping.
    pub shutdown_timeout: Duration,
}

/// The two listeners, already bound.
pub struct Listeners {
    /// For clients and services.
    pub public: TcpListener,
    /// TLS for the public listener; none where it ends at a proxy in front.
    pub tls: Option<Arc<ServerConfig>>,
    /// For operators and probes.
    pub admin: TcpListener,
}

/// Running servers.
pub struct Servers {
    /// Ends when both have stopped.
    pub running: Pin<Box<dyn Future<Output = io::Result<()>> + Send>>,
    /// What [`stop`] needs.
    pub handles: [ServerHandle; 2],
}

/// Takes no more requests and finishes those that have begun, within the shutdown timeout.
pub async fn stop([public, admin]: [ServerHandle; 2]) {
    tokio::join!(public.stop(true), admin.stop(true));
}

/// Starts to serve on both listeners.
pub fn serve(listeners: Listeners, services: Services) -> io::Result<Servers> {
    let services = Data::new(services);
    let limits = services.connections;
    let public = Listener {
        name: "public",
        socket: listeners.public,
        tls: listeners.tls,
        proxies: services.trusted_proxies.clone(),
        limits,
        has_pages: true,
        routes: public_routes,
    };
    let admin = Listener {
        name: "admin",
        socket: listeners.admin,
        tls: None,
        proxies: TrustedProxies::default(),
        limits: ConnectionLimits {
            total: None,
            per_address: None,
            ..limits
        },
        has_pages: false,
        routes: admin_routes,
    };
    let (public, admin) = (public.start(&services)?, admin.start(&services)?);
    let handles = [public.handle(), admin.handle()];
    let running = Box::pin(async move { tokio::try_join!(public, admin).map(|_| ()) });
    Ok(Servers { running, handles })
}

/// One of the two listeners, and what makes it different from the other.
struct Listener {
    /// What the metrics call it.
    name: &'static str,
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    proxies: TrustedProxies,
    limits: ConnectionLimits,
    /// Whether people look at it.
    has_pages: bool,
    routes: fn(&mut ServiceConfig, &Services),
}

impl Listener {
    fn start(self, services: &Data<Services>) -> io::Result<Server> {
        let Self {
            limits,
            has_pages,
            routes,
            ..
        } = self;
        let timeout = services.request_timeout;
        let door = Door {
            connections: Connections::new(
                limits,
                self.proxies.clone(),
                services.token.minter.metrics.clone(),
                self.name,
            ),
            tls: self.tls,
            patience: Patience {
                clock: services.clock.clone(),
                handshake: timeout,
                unread: timeout,
                next_head: timeout.zip(limits.keep_alive).map(|(a, b)| a + b),
            },
        };
        let proxies = Data::new(self.proxies);
        let for_workers = services.clone();
        let builder = Server::build();
        let stopping = builder.graceful_shutdown_signal();
        let server = builder
            .shutdown_timeout(services.shutdown_timeout.as_secs())
            .disable_signals()
            .listen("http", self.socket, move || {
                let services = for_workers.clone();
                let app = App::new()
                    .app_data(services.clone())
                    .app_data(proxies.clone())
                    .configure(|config| routes(config, &services))
                    .default_service(web::to(|| async { HttpResponse::NotFound().finish() }))
                    .wrap(Condition::new(
                        has_pages,
                        from_fn(browser::nothing_is_a_page),
                    ))
                    .wrap(from_fn(body::unread_ends_the_connection))
                    .wrap(from_fn(head::within_limit))
                    .wrap(from_fn(log::requests))
                    .into_factory()
                    .map_err(|error: actix_web::Error| error.error_response());
                let (door, stopping) = (door.clone(), stopping.clone());
                fn_service(move |io| door.clone().admit(io))
                    .map_err(actix_http::error::DispatchError::Io)
                    .and_then(
                        HttpService::build()
                            .graceful_shutdown_signal(move || {
                                let stopping = stopping.clone();
                                async move { stopping.notified().await }
                            })
                            // Whoever has gone waits for nothing: what was not begun is left out.
                            .h1_allow_half_closed(false)
                            .keep_alive(limits.keep_alive.map_or(KeepAlive::Os, KeepAlive::Timeout))
                            .client_request_timeout(timeout.unwrap_or(Duration::ZERO))
                            .client_disconnect_timeout(Duration::from_secs(1))
                            .on_connect_ext(|io: &Stream, data| {
                                data.insert(io.activity());
                            })
                            .h1(map_config(app, |()| AppConfig::default())),
                    )
            })?;
        Ok(server.run())
    }
}

/// What clients and services see, below the path of the issuer.
fn public_routes(config: &mut ServiceConfig, services: &Services) {
    let base = &services.issuer_path;
    let below = |path: &str| format!("{base}{path}");
    get(config, &below(metadata::JWKS_PATH), public::jwks);
    for document in ["oauth-authorization-server", "openid-configuration"] {
        // RFC 8414 §3.1 puts the well-known part before the issuer's path.
        get(
            config,
            &format!("/.well-known/{document}{base}"),
            public::metadata,
        );
        if !base.is_empty() {
            // OpenID Connect Discovery §4 puts it behind.
            get(
                config,
                &below(&format!("/.well-known/{document}")),
                public::metadata,
            );
        }
    }
    config.service(
        Resource::new(below(metadata::AUTHORIZATION_PATH))
            .route(web::get().to(browser::authorize))
            .route(web::post().to(browser::as_reading)),
    );
    config.service(
        Resource::new(below(metadata::LOGOUT_PATH))
            .route(web::get().to(logout::logout))
            .route(web::post().to(browser::as_reading)),
    );
    let form = |page| {
        web::post().to(move |request, payload, services, origin| {
            browser::form(page, request, payload, services, origin)
        })
    };
    for (path, handler) in [
        ("/signin", form(Submitted::SignIn)),
        ("/signin/cancel", form(Submitted::Cancel)),
        ("/signin/factor", form(Submitted::Factor)),
        ("/signin/passkey", form(Submitted::Passkey)),
        ("/signin/enrol", form(Submitted::Enrol)),
        ("/signin/continue", form(Submitted::Continue)),
        ("/consent", form(Submitted::Consent)),
        (account::FORMS_PATH, web::post().to(account::form)),
        (logout::DECISION_PATH, web::post().to(logout::decide)),
    ] {
        let resource = Resource::new(below(path)).route(handler);
        config.service(resource.route(web::get().to(browser::of_address_bar)));
    }
    for (path, handler) in [
        ("/", web::get().to(browser::of_address_bar)),
        (account::PATH, web::get().to(account::page)),
        (pages::STYLE_PATH, web::get().to(browser::style)),
        (pages::PASSKEY_PATH, web::get().to(browser::passkey_script)),
        (
            pages::FORM_POST_PATH,
            web::get().to(browser::form_post_script),
        ),
    ] {
        config.service(Resource::new(below(path)).route(handler));
    }
    for (path, handler) in [
        ("/session/token", web::post().to(session::token)),
        ("/session/logout", web::post().to(session::logout)),
    ] {
        let preflight = web::method(Method::OPTIONS).to(cors::preflight_with_cookies);
        let resource = Resource::new(below(path)).route(handler).route(preflight);
        config.service(resource.default_service(web::to(async || not_allowed("POST, OPTIONS"))));
    }
    for (path, handler) in [
        // Some proxies ask with the method that they are asked with.
        ("/session/verify", web::to(hosts::verify)),
        (CALLBACK_PATH, web::get().to(hosts::callback)),
    ] {
        config.service(Resource::new(below(path)).route(handler));
    }
    get(
        config,
        &below("/assets/countersign.js"),
        browser::client_module,
    );
    post(config, &below(metadata::TOKEN_PATH), public::token);
    post(config, &below(metadata::CHALLENGE_PATH), public::challenge);
    post(
        config,
        &below(metadata::INTROSPECTION_PATH),
        public::introspect,
    );
    post(config, &below(metadata::REVOCATION_PATH), public::revoke);
    let userinfo = web::resource(below(USERINFO_PATH))
        .route(web::get().to(userinfo::userinfo))
        .route(web::post().to(userinfo::userinfo))
        .route(web::method(Method::OPTIONS).to(preflight("GET, POST")))
        .default_service(web::to(async || not_allowed("GET, POST, OPTIONS")));
    config.service(userinfo);
    get(config, LIVE, public::live);
    get(config, READY, public::ready);
}

/// What operators and probes see.
fn admin_routes(config: &mut ServiceConfig, _: &Services) {
    get_without_pages(config, LIVE, public::live);
    get_without_pages(config, READY, public::ready);
    get_without_pages(config, "/metrics", metrics::metrics);
    admin::routes(config);
}

const LIVE: &str = "/health/live";
const READY: &str = "/health/ready";

/// A resource that is read, by pages of any origin, too.
fn get<F, Args>(config: &mut ServiceConfig, path: &str, handler: F)
where
    F: Handler<Args> + Clone,
    F::Output: Responder + 'static,
    Args: actix_web::FromRequest + 'static,
{
    let resource = readable(path, handler)
        .route(web::method(Method::OPTIONS).to(cors::preflight_of_anyone))
        .default_service(web::to(async || not_allowed("GET, HEAD, OPTIONS")));
    let anyone = (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    config.service(resource.wrap(DefaultHeaders::new().add(anyone)));
}

/// A resource that is read, and by no page of another origin.
fn get_without_pages<F, Args>(config: &mut ServiceConfig, path: &str, handler: F)
where
    F: Handler<Args> + Clone,
    F::Output: Responder + 'static,
    Args: actix_web::FromRequest + 'static,
{
    let resource = readable(path, handler);
    config.service(resource.default_service(web::to(async || not_allowed("GET, HEAD"))));
}

fn readable<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args> + Clone,
    F::Output: Responder + 'static,
    Args: actix_web::FromRequest + 'static,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
}

/// A resource that takes forms, from pages of registered origins, too.
fn post<F, Args>(config: &mut ServiceConfig, path: &str, handler: F)
where
    F: Handler<Args>,
    F::Output: Responder + 'static,
    Args: actix_web::FromRequest + 'static,
{
    let resource = web::resource(path)
        .route(web::post().to(handler))
        .route(web::method(Method::OPTIONS).to(preflight("POST")));
    config.service(resource.default_service(web::to(async || not_allowed("POST, OPTIONS"))));
}

/// What a page asks before it sends such a request.
fn preflight(
    methods: &'static str,
) -> impl Handler<(HttpRequest, Data<Services>), Output = HttpResponse> {
    move |request: HttpRequest, services: Data<Services>| {
        ready(cors::preflight_of_the_registered(
            methods, &request, &services,
        ))
    }
}

fn not_allowed(allow: &'static str) -> HttpResponse {
    HttpResponse::MethodNotAllowed()
        .insert_header((header::ALLOW, allow))
        .finish()
}
