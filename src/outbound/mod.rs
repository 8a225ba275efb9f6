//! Requests to others: documents that clients say are somewhere, and what they are told, with care.
//!
//! Whoever registers a client chooses its URLs, and this machine may reach what they cannot (SSRF):
//! so only the world outside is asked, and networks that the operator names. Imports `clock`.

mod address;

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use ipnet::IpNet;
use reqwest::{
    Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap},
    redirect,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use url::{Host, Url};

use crate::clock::AgreedClock;

/// The longest document that is read, in bytes.
pub const LONGEST_DOCUMENT: usize = 64 * 1024;

/// What operators decide about requests to others.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Networks that may be asked although they are not of the world outside, and without TLS.
    pub allowed_networks: Vec<IpNet>,
    /// A PEM file of roots besides those of the web.
    pub ca_certificates: Option<PathBuf>,
    /// How long a document may take, from the first look at its name to its last byte.
    pub timeout: Duration,
}

/// Why nothing can be fetched at all; one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The file with roots cannot be read.
    #[error(
        "setting outbound.ca_certificates: cannot read certificates from {path}: {problem}; \
         name a PEM file of root certificates, or leave it empty"
    )]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// TLS cannot be set up.
    #[error("requests to others cannot be prepared: {0}")]
    Tls(#[from] rustls::Error),
    /// The HTTP client cannot be set up.
    #[error("requests to others cannot be prepared: {0}")]
    Client(#[from] reqwest::Error),
}

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL is none that is fetched: not https, or with credentials, or without a host.
    #[error("the URL is not fetched: it must begin with https:// and hold no credentials")]
    Url,
    /// The host is, or has, an address that is not of the world outside.
    #[error("the host has an address that is not fetched from")]
    Forbidden,
    /// No connection, no TLS, or no complete answer.
    #[error("no complete answer")]
    Unreachable(#[source] reqwest::Error),
    /// An answer other than 200; redirects are not followed.
    #[error("the answer has status {0}")]
    Status(StatusCode),
    /// Longer than [`LONGEST_DOCUMENT`].
    #[error("the document is too long")]
    TooLong,
    /// Not there in time.
    #[error("the document did not come in time")]
    TooSlow,
}

/// A fetched document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its bytes, at most [`LONGEST_DOCUMENT`].
    pub body: Vec<u8>,
    /// For how long its sender says that it may be kept (RFC 9111 §5.2.2).
    pub max_age: Option<Duration>,
}

/// Finds the addresses of a name.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// Every address of `host`.
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The operating system's resolver.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((host, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// Fetches documents.
///
/// # Security
/// URLs come from whoever registers clients, and answers from whoever they name. Names are looked up
/// anew for each connection, and the connection goes to an address that was looked at, so that a
/// name cannot change what it means in between. No proxy of the environment is used: it would look
/// up the name by itself.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Connects to the world outside and to allowed networks.
    wide: Client,
    /// Connects to allowed networks alone.
    narrow: Client,
    allowed: Arc<[IpNet]>,
    timeout: Duration,
    clock: AgreedClock,
}

impl Outbound {
    /// Prepares requests; names are looked up by `resolver`.
    pub fn new(
        settings: &Settings,
        resolver: &Arc<dyn Resolver>,
        clock: AgreedClock,
    ) -> Result<Self, OutboundError> {
        let tls = tls_with_roots(settings)?;
        let allowed: Arc<[IpNet]> = settings.allowed_networks.clone().into();
        let client = |public| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .dns_resolver(Arc::new(Guard {
                    resolver: Arc::clone(resolver),
                    allowed: Arc::clone(&allowed),
                    public,
                }))
                .no_proxy()
                .redirect(redirect::Policy::none())
                .referer(false)
                // Of two addresses, one may be dead.
                .connect_timeout(settings.timeout / 2)
                // Each request looks up and judges the name anew.
                .pool_max_idle_per_host(0)
                .user_agent("countersign")
                .build()
        };
        Ok(Self {
            wide: client(true)?,
            narrow: client(false)?,
            allowed,
            timeout: settings.timeout,
            clock,
        })
    }

    /// Fetches a document.
    pub async fn fetch(&self, url: &Url) -> Result<Document, FetchError> {
        tokio::select! {
            document = self.fetch_in_any_time(url) => document,
            () = self.clock.sleep(self.timeout) => Err(FetchError::TooSlow),
        }
    }

    /// Posts a form; the status of the answer, of which nothing else is read. Redirects are not
    /// followed.
    pub async fn post(&self, url: &Url, form: &[(&str, &str)]) -> Result<u16, FetchError> {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let request = self
            .client_for(url)?
            .post(url.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        tokio::select! {
            response = request.send() => Ok(response.map_err(failed)?.status().as_u16()),
            () = self.clock.sleep(self.timeout) => Err(FetchError::TooSlow),
        }
    }

    /// What connects to a URL that may be asked.
    fn client_for(&self, url: &Url) -> Result<&Client, FetchError> {
        let public = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(FetchError::Url),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::Url);
        }
        // An address is connected to without asking the resolver.
        let literal = match url.host().ok_or(FetchError::Url)? {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
        };
        if literal.is_some_and(|address| !may_connect(address, public, &self.allowed)) {
            return Err(FetchError::Forbidden);
        }
        Ok(if public { &self.wide } else { &self.narrow })
    }

    async fn fetch_in_any_time(&self, url: &Url) -> Result<Document, FetchError> {
        let request = self.client_for(url)?.get(url.clone());
        let request = request.header(ACCEPT, "application/json");
        let response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let max_age = max_age(response.headers());
        let body = body(response).await?;
        Ok(Document { body, max_age })
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > LONGEST_DOCUMENT {
            return Err(FetchError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// RFC 9111 §5.2.2; what is not to be kept may be kept for no time.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter();
    let directives = values.filter_map(|value| value.to_str().ok());
    directives
        .flat_map(|value| value.split(','))
        .filter_map(|directive| {
            let directive = directive.trim().to_ascii_lowercase();
            if matches!(directive.as_str(), "no-store" | "no-cache") {
                return Some(Duration::ZERO);
            }
            let seconds = directive.strip_prefix("max-age=")?.parse().ok()?;
            Some(Duration::from_secs(seconds))
        })
        .min()
}

fn failed(error: reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if inner.is::<Forbidden>() {
            return FetchError::Forbidden;
        }
        cause = inner.source();
    }
    // Its URL may be nobody's business but the client's.
    FetchError::Unreachable(error.without_url())
}

fn may_connect(address: IpAddr, public: bool, allowed: &[IpNet]) -> bool {
    (public && address::is_public(address)) || address::is_among(address, allowed)
}

/// Answers an HTTP client with addresses that it may connect to.
struct Guard {
    resolver: Arc<dyn Resolver>,
    allowed: Arc<[IpNet]>,
    public: bool,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, allowed) = (Arc::clone(&self.resolver), Arc::clone(&self.allowed));
        let public = self.public;
        Box::pin(async move {
            let addresses = resolver.addresses(name.as_str()).await?;
            // One of them suffices: whoever answers so means to have it tried.
            if !addresses
                .iter()
                .all(|address| may_connect(*address, public, &allowed))
            {
                return Err(Forbidden.into());
            }
            let addresses = addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the name has an address that is not fetched from")]
struct Forbidden;

/// TLS as this service speaks it to others, with the roots that the operator names.
pub fn tls_with_roots(settings: &Settings) -> Result<ClientConfig, OutboundError> {
    let Some(path) = &settings.ca_certificates else {
        return Ok(tls([])?);
    };
    let unusable = |problem: String| OutboundError::Roots {
        path: path.clone(),
        problem,
    };
    let roots = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(error.to_string()))?;
    if roots.is_empty() {
        return Err(unusable("there is none in it".to_owned()));
    }
    tls(roots).map_err(|error| unusable(error.to_string()))
}

/// TLS as this service speaks it to others, with the roots of the web and `more` of them.
///
/// The provider is named here, so that nothing depends on one for the whole process.
pub fn tls(
    more: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for root in more {
        roots.add(root)?;
    }
    let provider = Arc::new(ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
