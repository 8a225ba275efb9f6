//! Settings: where they come from, and what may be in them.
//!
//! `config/default.toml` is the documentation and the defaults in one. To add a setting: a line
//! with a comment there, a field here, and its check in `Config::check` if not every value of its
//! type will do.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Environment as Variables, File, FileFormat, Source as _, ValueKind};
use ipnet::IpNet;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::{
    domain::{key::KeyUse, node::Environment},
    identity::password,
    keys::{
        lifecycle::{LONGEST_FAMILY_LIFE, Policy},
        master::{self, MasterKeySource},
    },
    outbound,
};

/// Every setting with its default and its meaning.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// What is wrong with the settings; each is one sentence that names the setting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read, or is no TOML.
    #[error("the settings cannot be read; correct the file of --config: {}", without_excerpt(.0))]
    Unreadable(Box<config::ConfigError>),
    /// A setting that does not exist.
    #[error(
        "there is no setting {key} (from {origin}); the settings are listed in config/default.toml"
    )]
    Unknown {
        /// The setting.
        key: String,
        /// Where it came from.
        origin: String,
    },
    /// A value of another type than the setting's.
    #[error("setting {key}: {problem}")]
    WrongType {
        /// The setting.
        key: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// A value that cannot be used.
    #[error("setting {key} {problem}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// What is wrong, and what to write instead.
        problem: String,
    },
}

/// Where settings come from, besides the defaults.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: std::collections::HashMap<String, String>,
    /// `--set KEY=VALUE`.
    pub overrides: Vec<(String, String)>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// JSON in production, text in development.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The settings as written; see `config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    issuer: String,
    #[serde(deserialize_with = "environment")]
    environment: Environment,
    public: Public,
    admin: Listener,
    database: Database,
    keys: Keys,
    tokens: Tokens,
    passwords: Passwords,
    sessions: Sessions,
    pages: Pages,
    sync: Sync,
    outbound: Outbound,
    events: Events,
    limits: Limits,
    telemetry: Telemetry,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Events {
    retention_seconds: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Public {
    listen: SocketAddr,
    #[serde(deserialize_with = "networks")]
    trusted_proxies: Vec<IpNet>,
    tls: Tls,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Outbound {
    #[serde(deserialize_with = "networks")]
    allowed_networks: Vec<IpNet>,
    ca_certificates: PathBuf,
    timeout_seconds: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    listen: SocketAddr,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    url: SecretString,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    directory: PathBuf,
    jwks_max_age_seconds: u32,
    clock_skew_seconds: u32,
    rotation_period_seconds: u32,
    rs256_id_tokens: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "settings carry their unit")]
struct Tokens {
    access_token_ttl_seconds: u32,
    refresh_token_lifetime_seconds: u32,
    refresh_token_idle_seconds: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Passwords {
    minimum_length: u32,
    concurrent_hashes: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sessions {
    idle_seconds: u32,
    lifetime_seconds: u32,
}

/// What the pages for users look like.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// What they are headed with.
    pub name: String,
    /// Where the logo is; the service's own when empty.
    pub logo: String,
    /// The colour of buttons and links; the service's own when empty.
    pub colour: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sync {
    poll_interval_ms: u32,
    heartbeat_seconds: u32,
    offline_issuance_limit_seconds: u32,
}

/// Limits on requests and on stopping.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The largest body, in bytes; 0 is no limit.
    pub request_body_bytes: usize,
    /// How long a request may take to arrive, in seconds; 0 is for ever.
    pub request_timeout_seconds: u32,
    /// The largest request head, in bytes; 0 is no limit.
    pub request_header_bytes: usize,
    /// How many connections the public listener has at most; 0 is no limit.
    pub connections: usize,
    /// How many of them one address has at most; 0 is no limit.
    pub connections_per_address: usize,
    /// How long a connection may be idle between requests, in seconds; 0 is for ever.
    pub keep_alive_seconds: u32,
    /// How many failed authentications of one client one address has a minute; 0 is no limit.
    pub failures_per_minute: u32,
    /// How many failed authentications one address has a minute; 0 is no limit.
    pub failures_per_address_per_minute: u32,
    /// How many wrong passwords for one user one place has a minute; 0 is no limit.
    pub password_failures_per_minute: u32,
    /// How many wrong passwords one address has a minute; 0 is no limit.
    pub password_failures_per_address_per_minute: u32,
    /// How many requests one authenticated client has a minute; 0 is no limit.
    pub requests_per_minute_per_client: u32,
    /// How long requests may take to finish on stopping, in seconds; 0 is for ever.
    pub shutdown_timeout_seconds: u32,
}

/// What is told of the inside.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Which log lines are written.
    pub log_filter: String,
    /// How they look.
    pub log_format: LogFormat,
    /// The base URL of the collector that takes traces; empty for none.
    pub otlp_endpoint: String,
    /// The share of requests that are traced, from 0 to 1.
    pub otlp_sample_ratio: f64,
}

/// Where the certificate of the public listener is.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain, the listener's own certificate first, in PEM.
    pub certificate: PathBuf,
    /// The private key of the first certificate, in PEM.
    pub key: PathBuf,
}

/// Settings that have been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Development or production.
    pub environment: Environment,
    /// The issuer, where one is set.
    issuer: Option<String>,
    /// The public listener.
    pub public_listen: SocketAddr,
    /// The proxies in front of the public listener.
    pub trusted_proxies: Vec<IpNet>,
    /// The certificate of the public listener, unless TLS ends in front of it.
    pub tls: Option<TlsFiles>,
    /// The admin listener.
    pub admin_listen: SocketAddr,
    /// The database.
    pub database_url: SecretString,
    /// Where master keys are.
    pub master_keys: MasterKeySource,
    /// What the life cycle of keys depends on.
    pub policy: Policy,
    /// Whether there are keys for RS256, for ID Tokens of clients that want them so.
    pub rs256_id_tokens: bool,
    /// Life of access tokens.
    pub access_token_ttl_seconds: u32,
    /// How long a sign-in lasts at most, however often it is refreshed.
    pub refresh_token_lifetime: Duration,
    /// How long a sign-in lasts without being refreshed.
    pub refresh_token_idle: Duration,
    /// How passwords are hashed.
    pub passwords: password::Settings,
    /// How long a session of a browser may go unused.
    pub session_idle: Duration,
    /// How long it lasts in any case.
    pub session_lifetime: Duration,
    /// What the pages for users look like.
    pub pages: Pages,
    /// How long the audit trail is kept; none is for ever.
    pub keep_events: Option<Duration>,
    /// How often to report life.
    pub heartbeat: Duration,
    /// Requests to others.
    pub outbound: outbound::Settings,
    /// Limits on requests.
    pub limits: Limits,
    /// Logs.
    pub telemetry: Telemetry,
}

impl Config {
    /// Reads and checks the settings.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let merged = merge(sources).map_err(|error| ConfigError::Unreadable(Box::new(error)))?;
        Self::read(merged, sources)
    }

    /// Reads and checks the text of a settings file, without any environment.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let merged = config::Config::builder()
            .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
            .add_source(File::from_str(text, FileFormat::Toml))
            .build()
            .and_then(|config| config.collect())
            .map_err(|error| ConfigError::Unreadable(Box::new(error)))?;
        Self::read(merged, &Sources::default())
    }

    fn read(
        merged: config::Map<String, config::Value>,
        sources: &Sources,
    ) -> Result<Self, ConfigError> {
        refuse_unknown(&merged)?;
        let value = plain(config::Value::new(None, merged));
        let written =
            serde_path_to_error::deserialize(value).map_err(|error| ConfigError::WrongType {
                key: error.path().to_string(),
                problem: error.inner().to_string(),
            })?;
        Self::check(written, sources)
    }

    /// The issuer when the public listener is bound to `public`.
    pub fn issuer(&self, public: SocketAddr) -> String {
        self.issuer
            .clone()
            .unwrap_or_else(|| format!("http://{public}"))
    }

    fn check(written: Written, sources: &Sources) -> Result<Self, ConfigError> {
        let environment = written.environment;
        let issuer = check_issuer(&written.issuer, environment)?;
        if environment == Environment::Development {
            loopback("public.listen", written.public.listen)?;
            loopback("admin.listen", written.admin.listen)?;
        }
        check_proxies(&written.public.trusted_proxies)?;
        let tls = check_tls(&written.public, environment)?;
        let keys = &written.keys;
        between(
            "keys.jwks_max_age_seconds",
            keys.jwks_max_age_seconds,
            1,
            86_400,
        )?;
        between("keys.clock_skew_seconds", keys.clock_skew_seconds, 0, 300)?;
        check_tokens(&written.tokens)?;
        let passwords = check_passwords(&written.passwords)?;
        check_sessions(&written.sessions)?;
        check_pages(&written.pages)?;
        between(
            "sync.poll_interval_ms",
            written.sync.poll_interval_ms,
            10,
            10_000,
        )?;
        between(
            "sync.heartbeat_seconds",
            written.sync.heartbeat_seconds,
            1,
            60,
        )?;
        between(
            "sync.offline_issuance_limit_seconds",
            written.sync.offline_issuance_limit_seconds,
            1,
            86_400,
        )?;
        between(
            "outbound.timeout_seconds",
            written.outbound.timeout_seconds,
            1,
            60,
        )?;
        check_limits(&written.limits)?;
        check_telemetry(&written.telemetry)?;
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let policy = Policy {
            poll: Duration::from_millis(u64::from(written.sync.poll_interval_ms)),
            jwks_max_age: seconds(keys.jwks_max_age_seconds),
            clock_skew: seconds(keys.clock_skew_seconds),
            period: seconds(keys.rotation_period_seconds),
            offline_limit: seconds(written.sync.offline_issuance_limit_seconds),
        };
        check_period(&policy)?;
        let master_keys = match sources.environment.get(master::VARIABLE) {
            Some(text) => MasterKeySource::Variable(text.clone().into()),
            None => MasterKeySource::Folder {
                group_may_read: keys.directory != Path::new("keys"),
                path: keys.directory.clone(),
            },
        };
        Ok(Self {
            environment,
            issuer,
            public_listen: written.public.listen,
            trusted_proxies: written.public.trusted_proxies,
            tls,
            admin_listen: written.admin.listen,
            database_url: written.database.url,
            master_keys,
            policy,
            rs256_id_tokens: keys.rs256_id_tokens,
            access_token_ttl_seconds: written.tokens.access_token_ttl_seconds,
            refresh_token_lifetime: seconds(written.tokens.refresh_token_lifetime_seconds),
            refresh_token_idle: seconds(written.tokens.refresh_token_idle_seconds),
            passwords,
            session_idle: seconds(written.sessions.idle_seconds),
            session_lifetime: seconds(written.sessions.lifetime_seconds),
            pages: written.pages,
            keep_events: match written.events.retention_seconds {
                0 => None,
                span => Some(seconds(span)),
            },
            heartbeat: seconds(written.sync.heartbeat_seconds),
            outbound: outbound::Settings {
                allowed_networks: written.outbound.allowed_networks,
                ca_certificates: Some(written.outbound.ca_certificates)
                    .filter(|path| !path.as_os_str().is_empty()),
                timeout: seconds(written.outbound.timeout_seconds),
            },
            limits: written.limits,
            telemetry: written.telemetry,
        })
    }
}

fn check_tokens(tokens: &Tokens) -> Result<(), ConfigError> {
    between(
        "tokens.access_token_ttl_seconds",
        tokens.access_token_ttl_seconds,
        1,
        3600,
    )?;
    // A MAC key is kept for as long as the longest family lives.
    let longest = u32::try_from(LONGEST_FAMILY_LIFE.as_secs()).unwrap_or(u32::MAX);
    let lifetime = tokens.refresh_token_lifetime_seconds;
    between(
        "tokens.refresh_token_lifetime_seconds",
        lifetime,
        60,
        longest,
    )?;
    let idle = tokens.refresh_token_idle_seconds;
    between("tokens.refresh_token_idle_seconds", idle, 60, longest)?;
    if idle > lifetime {
        return Err(invalid(
            "tokens.refresh_token_idle_seconds",
            &format!(
                "must be at most tokens.refresh_token_lifetime_seconds, which is {lifetime}, and is {idle}"
            ),
        ));
    }
    Ok(())
}

fn check_period(policy: &Policy) -> Result<(), ConfigError> {
    let leads = KeyUse::ALL
        .iter()
        .map(|key_use| policy.spans(*key_use).lead);
    let lead = leads.max().unwrap_or_default();
    let shortest = lead * 2;
    if policy.period < shortest {
        return Err(invalid(
            "keys.rotation_period_seconds",
            &format!(
                "must be at least {} with these other settings: a key is published for {:.2} s before it signs",
                shortest.as_secs() + 1,
                lead.as_secs_f64()
            ),
        ));
    }
    Ok(())
}

/// What the parser says, without the line it shows: there may be a password in that.
fn without_excerpt(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let lines = text.lines().filter(|line| !line.contains(" |"));
    lines.collect::<Vec<_>>().join(": ")
}

fn environment<'de, D: Deserializer<'de>>(value: D) -> Result<Environment, D::Error> {
    let name = String::deserialize(value)?;
    name.parse()
        .map_err(|_| D::Error::unknown_variant(&name, &["development", "production"]))
}

/// Reads a list of networks and addresses, or a text in which commas separate them, as in the
/// environment.
fn networks<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "must be a list of addresses and networks, such as [\"10.0.0.0/8\", \"::1\"]"
    )]
    enum List {
        Items(Vec<String>),
        Text(String),
    }
    let items = match List::deserialize(value)? {
        List::Items(items) => items,
        List::Text(text) if text.is_empty() => Vec::new(),
        List::Text(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
    };
    let network = |item: &String| {
        let address = item.parse::<IpAddr>().map(|ip| ip.to_canonical().into());
        address.or_else(|_| item.parse()).map_err(|_| {
            D::Error::custom(format!(
                "{item:?} is neither an address nor a network such as 10.0.0.0/8"
            ))
        })
    };
    items.iter().map(network).collect()
}

fn merge(sources: &Sources) -> Result<config::Map<String, config::Value>, config::ConfigError> {
    let mut builder =
        config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    if let Some(file) = &sources.file {
        builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
    }
    if let Some(url) = sources
        .environment
        .get("DATABASE_URL")
        .filter(|url| !url.is_empty())
    {
        let url = config::Config::builder()
            .set_override("database.url", url.as_str())?
            .build()?;
        builder = builder.add_source(url);
    }
    let environment = Variables::with_prefix("COUNTERSIGN")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .source(Some(sources.environment.clone()));
    builder = builder.add_source(environment);
    let overrides = sources.overrides.iter().map(|(key, value)| {
        // Through the same parser as the environment, so that both mean the same.
        (
            format!("COUNTERSIGN__{}", key.replace('.', "__")),
            value.clone(),
        )
    });
    let overrides = Variables::with_prefix("COUNTERSIGN")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .source(Some(overrides.collect()));
    builder.add_source(overrides).build()?.collect()
}

/// The settings by their whole paths, with where each came from.
fn paths(
    table: &config::Map<String, config::Value>,
    prefix: &str,
    into: &mut Vec<(String, String)>,
) {
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        match &value.kind {
            ValueKind::Table(inner) => paths(inner, &format!("{path}."), into),
            _ => into.push((
                path,
                match value.origin() {
                    None => "DATABASE_URL",
                    Some("the environment") => "the environment or --set",
                    Some(file) => file,
                }
                .to_owned(),
            )),
        }
    }
}

fn refuse_unknown(merged: &config::Map<String, config::Value>) -> Result<(), ConfigError> {
    let defaults = File::from_str(DEFAULTS, FileFormat::Toml).collect();
    let defaults = defaults.map_err(|error| ConfigError::Unreadable(Box::new(error)))?;
    let (mut known, mut given) = (Vec::new(), Vec::new());
    paths(&defaults, "", &mut known);
    paths(merged, "", &mut given);
    let known: BTreeSet<String> = known.into_iter().map(|(key, _)| key).collect();
    match given.into_iter().find(|(key, _)| !known.contains(key)) {
        Some((key, origin)) => Err(ConfigError::Unknown { key, origin }),
        None => Ok(()),
    }
}

/// The same value in a form that converts between no types: `true` is no number.
fn plain(value: config::Value) -> Value {
    match value.kind {
        ValueKind::Nil => Value::Null,
        ValueKind::Boolean(boolean) => boolean.into(),
        ValueKind::I64(number) => number.into(),
        ValueKind::U64(number) => number.into(),
        ValueKind::I128(number) => number.to_string().into(),
        ValueKind::U128(number) => number.to_string().into(),
        ValueKind::Float(number) => number.into(),
        ValueKind::String(text) => text.into(),
        ValueKind::Table(table) => table
            .into_iter()
            .map(|(name, value)| (name, plain(value)))
            .collect(),
        ValueKind::Array(items) => items.into_iter().map(plain).collect(),
    }
}

fn check_issuer(issuer: &str, environment: Environment) -> Result<Option<String>, ConfigError> {
    if issuer.is_empty() {
        return match environment {
            Environment::Development => Ok(None),
            Environment::Production => Err(invalid(
                "issuer",
                "is missing; production needs the https URL under which clients reach the service",
            )),
        };
    }
    let url = url::Url::parse(issuer).map_err(|_| {
        invalid(
            "issuer",
            "is no URL; write one like https://auth.example.com",
        )
    })?;
    if environment == Environment::Production && url.scheme() != "https" {
        return Err(invalid("issuer", "must begin with https:// in production"));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(invalid("issuer", "must be an http or https URL"));
    }
    let credentials = !url.username().is_empty() || url.password().is_some();
    if url.query().is_some() || url.fragment().is_some() || credentials {
        return Err(invalid(
            "issuer",
            "must have no query, fragment or credentials (RFC 8414 §2)",
        ));
    }
    if issuer.ends_with('/') {
        return Err(invalid("issuer", "must not end with a slash"));
    }
    // Compared as text by every verifier: the text must be the URL's only spelling.
    if url.as_str().trim_end_matches('/') != issuer {
        return Err(invalid(
            "issuer",
            &format!("must be written as {}", url.as_str().trim_end_matches('/')),
        ));
    }
    Ok(Some(issuer.to_owned()))
}

fn check_passwords(written: &Passwords) -> Result<password::Settings, ConfigError> {
    between(
        "passwords.minimum_length",
        written.minimum_length,
        password::LEAST_MINIMUM_LENGTH,
        // NIST SP 800-63B-4 §3.1.1.2: "at least 64 characters" must be permitted.
        64,
    )?;
    between(
        "passwords.concurrent_hashes",
        written.concurrent_hashes,
        0,
        256,
    )?;
    let whole = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Ok(password::Settings {
        minimum_length: whole(written.minimum_length),
        concurrent_hashes: whole(written.concurrent_hashes),
    })
}

fn check_sessions(sessions: &Sessions) -> Result<(), ConfigError> {
    let longest = u32::try_from(LONGEST_FAMILY_LIFE.as_secs()).unwrap_or(u32::MAX);
    let (idle, lifetime) = (sessions.idle_seconds, sessions.lifetime_seconds);
    between("sessions.lifetime_seconds", lifetime, 60, longest)?;
    between("sessions.idle_seconds", idle, 60, lifetime)
}

fn check_pages(pages: &Pages) -> Result<(), ConfigError> {
    let name = pages.name.trim();
    if name.is_empty() || name.chars().count() > 60 || name.chars().any(char::is_control) {
        return Err(invalid(
            "pages.name",
            "must be 1 to 60 characters without control characters",
        ));
    }
    let is_url = pages.logo.starts_with("https://") && url::Url::parse(&pages.logo).is_ok();
    if !pages.logo.is_empty() && !is_url {
        return Err(invalid(
            "pages.logo",
            "must be a URL that begins with https",
        ));
    }
    let digits = pages.colour.strip_prefix('#').unwrap_or_default();
    let is_colour = digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !pages.colour.is_empty() && !is_colour {
        return Err(invalid(
            "pages.colour",
            "must be # and six hexadecimal digits, such as #2f5bea",
        ));
    }
    Ok(())
}

fn check_limits(limits: &Limits) -> Result<(), ConfigError> {
    for (key, value, most) in [
        (
            "limits.request_body_bytes",
            limits.request_body_bytes,
            1_048_576,
        ),
        (
            "limits.request_header_bytes",
            limits.request_header_bytes,
            131_072,
        ),
    ] {
        if value != 0 && !(1024..=most).contains(&value) {
            return Err(invalid(
                key,
                &format!("must be between 1024 and {most}, or 0 for no limit"),
            ));
        }
    }
    Ok(())
}

fn check_tls(public: &Public, environment: Environment) -> Result<Option<TlsFiles>, ConfigError> {
    let Tls { certificate, key } = &public.tls;
    match (
        certificate.as_os_str().is_empty(),
        key.as_os_str().is_empty(),
    ) {
        (false, false) => Ok(Some(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        })),
        (false, true) => Err(invalid(
            "public.tls.key",
            "is missing; name the file of the key that belongs to public.tls.certificate",
        )),
        (true, false) => Err(invalid(
            "public.tls.certificate",
            "is missing; name the file of the certificate that belongs to public.tls.key",
        )),
        (true, true)
            if environment == Environment::Production && public.trusted_proxies.is_empty() =>
        {
            Err(invalid(
                "public.tls.certificate",
                "is missing; production needs TLS: name the files of a certificate and its key, or in public.trusted_proxies the proxy in front where TLS ends",
            ))
        }
        (true, true) => Ok(None),
    }
}

fn check_proxies(networks: &[IpNet]) -> Result<(), ConfigError> {
    match networks.iter().find(|network| network.prefix_len() == 0) {
        None => Ok(()),
        Some(all) => Err(invalid(
            "public.trusted_proxies",
            &format!(
                "must not hold {all}: then anybody could claim any address; name the proxies alone"
            ),
        )),
    }
}

fn check_telemetry(telemetry: &Telemetry) -> Result<(), ConfigError> {
    if !(0.0..=1.0).contains(&telemetry.otlp_sample_ratio) {
        return Err(invalid(
            "telemetry.otlp_sample_ratio",
            "must be between 0 and 1",
        ));
    }
    if telemetry.otlp_endpoint.is_empty() {
        return Ok(());
    }
    let usable = url::Url::parse(&telemetry.otlp_endpoint).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if usable {
        return Ok(());
    }
    Err(invalid(
        "telemetry.otlp_endpoint",
        "must be an http or https URL without query, fragment or credentials, such as \
         http://127.0.0.1:4318, or empty for no traces",
    ))
}

fn loopback(key: &'static str, address: SocketAddr) -> Result<(), ConfigError> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(invalid(
        key,
        &format!(
            "is {address}, which other machines can reach; development listens on loopback only: choose 127.0.0.1, or set environment = \"production\""
        ),
    ))
}

fn between(key: &'static str, value: u32, least: u32, most: u32) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(
        key,
        &format!("must be between {least} and {most}, and is {value}"),
    ))
}

fn invalid(key: &'static str, problem: &str) -> ConfigError {
    ConfigError::Invalid {
        key,
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::load(&Sources {
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Sources::default()
        })
    }

    #[test]
    fn the_defaults_are_a_development_setup() {
        let config = load(&[]).unwrap();
        assert_eq!(config.environment, Environment::Development);
        assert_eq!(config.issuer(config.public_listen), "http://127.0.0.1:8080");
        assert_eq!(
            config.policy.spans(KeyUse::Signing).lead,
            Duration::from_millis(615_250)
        );
    }

    #[test]
    fn the_environment_beats_database_url_and_overrides_beat_the_environment() {
        use secrecy::ExposeSecret as _;
        let own = ("COUNTERSIGN__DATABASE__URL", "sqlite://own.db");
        let common = ("DATABASE_URL", "sqlite://common.db");
        assert_eq!(
            load(&[common]).unwrap().database_url.expose_secret(),
            common.1
        );
        assert_eq!(
            load(&[common, own]).unwrap().database_url.expose_secret(),
            own.1
        );
        let config = Config::load(&Sources {
            environment: [(own.0.to_owned(), own.1.to_owned())].into(),
            overrides: vec![("database.url".to_owned(), "sqlite://flag.db".to_owned())],
            ..Sources::default()
        });
        assert_eq!(
            config.unwrap().database_url.expose_secret(),
            "sqlite://flag.db"
        );
    }

    #[test]
    fn a_url_with_a_password_never_shows() {
        let config = load(&[("DATABASE_URL", "postgres://me:hunter2@localhost/db")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn proxies_are_a_list_in_a_file_and_a_text_in_the_environment() {
        let expected: Vec<IpNet> = ["10.0.0.0/8", "192.0.2.7/32", "::1/128"]
            .map(|network| network.parse().unwrap())
            .to_vec();
        let file = r#"public.trusted_proxies = ["10.0.0.0/8", "192.0.2.7", "::1"]"#;
        assert_eq!(Config::parse(file).unwrap().trusted_proxies, expected);
        let variable = |text| load(&[("COUNTERSIGN__PUBLIC__TRUSTED_PROXIES", text)]);
        for text in [
            "10.0.0.0/8,192.0.2.7,::1",
            "10.0.0.0/8, ::ffff:192.0.2.7 ,::1",
        ] {
            assert_eq!(variable(text).unwrap().trusted_proxies, expected);
        }
        assert_eq!(variable("").unwrap().trusted_proxies, []);
        for bad in [
            "proxy",
            "10.0.0.0/33",
            "10.0.0.1,,::1",
            "1",
            "true",
            "0.0.0.0/0",
        ] {
            let sentence = variable(bad).unwrap_err().to_string();
            assert!(
                sentence.starts_with("setting public.trusted_proxies"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn nothing_of_the_inside_may_be_fetched_from_by_default() {
        let settings = load(&[]).unwrap().outbound;
        assert_eq!(settings.allowed_networks, []);
        assert_eq!(settings.ca_certificates, None);
    }

    #[test]
    fn an_issuer_has_exactly_one_spelling() {
        for bad in [
            "https://a.example/",
            "HTTPS://a.example",
            "https://A.example",
            "https://a.example:443",
            "ftp://a",
            "https://a/?b",
            "https://u:p@a",
            "nonsense",
            "https://a/#",
        ] {
            assert!(load(&[("COUNTERSIGN__ISSUER", bad)]).is_err(), "{bad}");
        }
        for good in [
            "https://a.example",
            "https://a.example/auth",
            "http://127.0.0.1:9000",
        ] {
            assert!(load(&[("COUNTERSIGN__ISSUER", good)]).is_ok(), "{good}");
        }
    }
}
