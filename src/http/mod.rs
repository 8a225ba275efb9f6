//! HTTP: everything that knows actix-web.
//!
//! Owns the route table, the reading of requests and the writing of answers. Decides nothing: each
//! handler hands over to a use case of [`Services`] and renders what comes back. Never sees the
//! store.
//!
//! To add a route: a handler in `public`, its line in `public_routes`, and a file of its own
//! under `tests/it/http`.

mod address;
mod body;
mod cors;
mod error;
mod log;
mod metrics;
mod public;

use std::{future::Future, io, net::TcpListener, pin::Pin, sync::Arc, time::Duration};

use actix_web::{
    App, Handler, HttpResponse, HttpServer, Responder,
    dev::{Server, ServerHandle},
    http::{Method, header},
    middleware::from_fn,
    web::{self, Data, ServiceConfig},
};
use bytes::Bytes;

pub use self::address::TrustedProxies;
use crate::{
    clock::AgreedClock,
    entropy::Entropy,
    oauth::{metadata, token::TokenEndpoint},
    registry::Snapshots,
};

/// What handlers use; built once by `app`.
pub struct Services {
    /// Exchanges credentials for tokens.
    pub token: TokenEndpoint,
    /// What this node knows.
    pub snapshots: Arc<Snapshots>,
    /// The time.
    pub clock: AgreedClock,
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
    let proxies = services.trusted_proxies.clone();
    let public = start(listeners.public, &services, proxies, public_routes)?;
    let nobody = TrustedProxies::default();
    let admin = start(listeners.admin, &services, nobody, admin_routes)?;
    let handles = [public.handle(), admin.handle()];
    let running = Box::pin(async move { tokio::try_join!(public, admin).map(|_| ()) });
    Ok(Servers { running, handles })
}

fn start(
    listener: TcpListener,
    services: &Data<Services>,
    proxies: TrustedProxies,
    routes: fn(&mut ServiceConfig, &Services),
) -> io::Result<Server> {
    let for_workers = services.clone();
    let proxies = Data::new(proxies);
    let server = HttpServer::new(move || {
        let services = for_workers.clone();
        App::new()
            .app_data(services.clone())
            .app_data(proxies.clone())
            .configure(|config| routes(config, &services))
            .default_service(web::to(|| async { HttpResponse::NotFound().finish() }))
            .wrap(from_fn(body::unread_ends_the_connection))
            .wrap(from_fn(log::requests))
    })
    .client_request_timeout(services.request_timeout.unwrap_or(Duration::ZERO))
    .shutdown_timeout(services.shutdown_timeout.as_secs())
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
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
    post(config, &below(metadata::TOKEN_PATH), public::token);
    health_routes(config);
}

/// What operators and probes see.
fn admin_routes(config: &mut ServiceConfig, _: &Services) {
    health_routes(config);
    get(config, "/metrics", metrics::metrics);
}

fn health_routes(config: &mut ServiceConfig) {
    get(config, "/health/live", public::live);
    get(config, "/health/ready", public::ready);
}

/// A resource that is read, by pages of any origin, too.
fn get<F, Args>(config: &mut ServiceConfig, path: &str, handler: F)
where
    F: Handler<Args> + Clone,
    F::Output: Responder + 'static,
    Args: actix_web::FromRequest + 'static,
{
    let resource = web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .route(web::method(Method::OPTIONS).to(cors::preflight_of_anyone));
    config.service(resource.default_service(web::to(async || not_allowed("GET, HEAD, OPTIONS"))));
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
        .route(web::method(Method::OPTIONS).to(cors::preflight_of_the_registered));
    config.service(resource.default_service(web::to(async || not_allowed("POST, OPTIONS"))));
}

fn not_allowed(allow: &'static str) -> HttpResponse {
    HttpResponse::MethodNotAllowed()
        .insert_header((header::ALLOW, allow))
        .finish()
}
