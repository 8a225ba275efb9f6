//! What tests need around them.

pub(crate) mod authenticator;
pub(crate) mod chromium;
pub(crate) mod database;
pub(crate) mod jwt;
pub(crate) mod latency;
pub(crate) mod nginx;
pub(crate) mod openmetrics;
pub(crate) mod oracle;
pub(crate) mod people;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod server;
pub(crate) mod sign_in;
pub(crate) mod site;
pub(crate) mod totp;

use countersign::outbound;
use reqwest::ClientBuilder;

/// An HTTP client as tests use it.
pub(crate) fn client() -> ClientBuilder {
    ClientBuilder::new()
        .no_proxy()
        .tls_backend_preconfigured(outbound::tls([]).unwrap())
}

/// Waits for what must come soon; fails the test rather than let it hang.
pub(crate) async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(process::DEADLINE, awaited)
        .await
        .expect("this should have come long ago")
}
