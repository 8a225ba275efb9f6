//! `countersign init`: what production needs before its first start. Running it again changes
//! nothing that is there.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{Failure, Global, missing_database, output};
use crate::{
    app::Context,
    clock::{Clock as _, SystemClock},
    config::{Config, ConfigError},
    domain::node::Environment,
    entropy::Entropy,
    keys::master::MasterKeySource,
    store::Access,
};

/// Stands for an issuer that is still to be set.
const NO_ISSUER: &str = "https://unset.invalid";

/// Where the proxy is that ends TLS, until somebody writes another place into the file.
const PROXY: [&str; 2] = ["127.0.0.1", "::1"];

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The https URL under which clients will reach the service
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The settings file to write unless it exists; else that of --config, else countersign.toml
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Init {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let file = self
            .file
            .clone()
            .or_else(|| global.config.clone())
            .unwrap_or_else(|| "countersign.toml".into());
        let exists = file.try_exists().map_err(|error| unusable(&file, &error))?;
        let (config, issuer_problem) = self.settings(global, exists.then_some(&file))?;
        if exists {
            output::line(&format!("{} exists and is left as it is.", file.display()))?;
        } else {
            let text = self.text(&config);
            create(&file, &text).map_err(|error| unusable(&file, &error))?;
            output::line(&format!("{} is written.", file.display()))?;
        }
        output::line(&ensure_master_key(&config).await?)?;
        output::line("")?;
        output::line("Next:")?;
        for (index, step) in steps(&config, &file, issuer_problem.as_deref())
            .iter()
            .enumerate()
        {
            output::line(&format!("  {}. {step}", index + 1))?;
        }
        Ok(())
    }

    /// The settings that the file holds or will hold, and what is still wrong with the issuer.
    fn settings(
        &self,
        global: &Global,
        file: Option<&PathBuf>,
    ) -> Result<(Config, Option<String>), Failure> {
        let mut sources = global.sources();
        sources.file = file.cloned();
        if file.is_none() {
            let issuer = self.issuer.clone().unwrap_or_default();
            let written = [
                ("environment", "production".to_owned()),
                ("issuer", issuer),
                ("public.trusted_proxies", PROXY.join(",")),
            ];
            let written = written.map(|(key, value)| (key.to_owned(), value));
            // First, so that the command line's own settings go before them.
            sources.overrides.splice(0..0, written);
        }
        match Config::load(&sources) {
            Err(problem @ ConfigError::Invalid { key: "issuer", .. }) if self.issuer.is_none() => {
                let unset = ("issuer".to_owned(), NO_ISSUER.to_owned());
                sources.overrides.push(unset);
                Ok((Config::load(&sources)?, Some(problem.to_string())))
            }
            loaded => Ok((loaded?, None)),
        }
    }

    fn text(&self, config: &Config) -> String {
        // A JSON string is a TOML string.
        let issuer = json!(self.issuer.as_deref().unwrap_or_default());
        let directory = match &config.master_keys {
            MasterKeySource::Folder { path, .. } => json!(path.to_string_lossy()),
            MasterKeySource::Variable(_) => json!("keys"),
        };
        format!(
            r#"# Settings of Countersign in production. What is not here has its default; config/default.toml
# lists every setting with its meaning. The environment goes before this file: COUNTERSIGN__ and
# the setting's path joined by __, such as COUNTERSIGN__PUBLIC__LISTEN.

environment = "production"

# The https URL under which clients reach the service, without a slash at the end. It stands in
# every token: choose it for good.
issuer = {issuer}

[public]
# Where clients and services connect.
listen = "{public}"
# TLS ends at the proxy in front, which forwards to here: its addresses and networks. They are
# believed when they tell in X-Forwarded-For for whom they ask.
trusted_proxies = {proxies}
# Without a proxy: trusted_proxies = [], and the files of a certificate chain and its key, in PEM.
#tls.certificate = "/etc/countersign/tls/fullchain.pem"
#tls.key = "/etc/countersign/tls/key.pem"

[admin]
# Where operators and probes connect; keep it from the public.
listen = "{admin}"

[database]
# One node: sqlite:// and a file. Any number of nodes: postgres://<user>:<password>@<host>/<name>,
# version 14 or later. DATABASE_URL in the environment goes before this line and keeps the password
# out of the file.
url = "sqlite://data/countersign.db"

[keys]
# Where master keys are. Without them the database is worthless: back them up, apart from it.
directory = {directory}

[events]
# How long the audit trail is kept, in seconds; 0 keeps it for ever.
#retention_seconds = 31536000

[telemetry]
# Where traces go: a collector that takes OTLP over HTTP. Without, no traces are made.
#otlp_endpoint = "http://127.0.0.1:4318"
"#,
            public = config.public_listen,
            proxies = json!(PROXY),
            admin = config.admin_listen,
        )
    }
}

/// Sees to it that there is a master key; tells what there is.
///
/// None is made beside a database that needs another one: that one is lost or elsewhere, and must
/// be found.
async fn ensure_master_key(config: &Config) -> Result<String, Failure> {
    let source = &config.master_keys;
    if let Some(id) = source.load()?.ids().next() {
        return Ok(format!("Master key {id} is in {source} already."));
    }
    if missing_database(config).is_none() {
        let context = Context::open(config.clone(), Access::Command).await?;
        let needed = context.keys().master_keys().await;
        context.close().await;
        if let Some(needed) = needed?.first() {
            return Err(Failure::Message(format!(
                "the database needs master key {0}, which is not in {source}; restore master-{0}.key there",
                needed.id
            )));
        }
    }
    let (_, path) = source.add(&Entropy::new(), SystemClock::new().now())?;
    Ok(format!("{} is made.", path.display()))
}

fn steps(config: &Config, file: &Path, issuer_problem: Option<&str>) -> Vec<String> {
    let issuer = config.issuer(config.public_listen);
    let file = file.display();
    let again = format!("countersign --config {file}");
    let mut steps = Vec::new();
    if let Some(problem) = issuer_problem {
        steps.push(format!("Set issuer in {file}: {problem}."));
    }
    if config.environment == Environment::Development {
        steps.push(format!(
            "Set environment = \"production\" in {file}: it says development."
        ));
    }
    steps.push(format!(
        "Back up the master keys in {} apart from the database, and give them to every node.",
        config.master_keys
    ));
    let issuer = if issuer_problem.is_some() {
        "the issuer"
    } else {
        &issuer
    };
    if config.tls.is_none() {
        let proxies: Vec<_> = config.trusted_proxies.iter().map(show_network).collect();
        steps.push(format!(
            "Let a proxy at {} (setting public.trusted_proxies) end TLS for {issuer} and forward to {}.",
            proxies.join(" or "),
            config.public_listen
        ));
    }
    steps.push(format!("Check all that:        {again} doctor"));
    steps.push(format!(
        "Register an operator:  {again} clients create --operator --name ops --scope \"clients:read clients:write keys:read keys:rotate\""
    ));
    steps.push(format!("Start the service:     {again} serve"));
    steps
}

/// A network of one address as that address.
fn show_network(network: &ipnet::IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// Writes a new file that its owner only can read: a password may be put into it.
fn create(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Message(format!(
        "{} cannot be written (flag --file): {error}",
        path.display()
    ))
}
