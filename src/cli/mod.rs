//! The command line: reads arguments, calls a use case, shows what came of it.
//!
//! Commands work with the database itself, so that they do the same whether the service is running
//! or not. Nothing is decided here. To add a command: a variant in the file of its family with its
//! arguments, and a call of the use case in `admin`; the text for people beside the document for
//! `--json`, which is the admin interface's own.

mod clients;
mod completions;
mod doctor;
mod events;
mod failure;
mod families;
mod health;
mod init;
mod keys;
mod output;
mod resources;
mod revocation;
mod timeline;
mod token;
mod users;

use std::{collections::HashMap, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::runtime::Builder;

use self::failure::Failure;
use crate::{
    app::{self, Context},
    config::{Config, Sources},
    domain::{
        change::Cause,
        id::{ClientId, EventId, FamilyId, Kid, MasterKeyId, SecretId, UserId},
    },
    store::{Access, Schema},
    telemetry,
};

/// A token service: short-lived access tokens, rotating keys, and a JWKS to verify them with.
#[derive(Debug, Parser)]
#[command(
    version,
    disable_help_subcommand = true,
    after_help = "Without a command it serves. Exit status: 0, 1 for a failure, 2 for wrong usage."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service until it gets SIGTERM or SIGINT (the default)
    Serve,
    /// Prepare for production: a settings file and a master key
    Init(init::Init),
    /// Bring the database's schema up to date
    Migrate,
    /// Check everything that the service depends on
    Doctor,
    /// Ask the running service whether it is ready
    Health(health::Health),
    /// Signing keys and master keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Clients and their secrets
    #[command(subcommand)]
    Clients(Box<clients::Command>),
    /// Users and their passwords
    #[command(subcommand)]
    Users(users::Command),
    /// Sessions of users at clients: families of refresh tokens
    #[command(subcommand)]
    Families(families::Command),
    /// Protected resources: what tokens are for
    #[command(subcommand)]
    Resources(resources::Command),
    /// Access tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Show what was changed, by whom and why
    Events(events::Events),
    /// Revoke one access token, or end a session, or all of a user or at a client, with their tokens
    Revoke(revocation::Revoke),
    /// Tell the service that its database was restored or has lost commits; ends every session
    Restored(revocation::Restored),
    /// Print a script that completes these commands in a shell
    Completions(completions::Completions),
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Settings file; it goes before the defaults, and the environment before it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Give a setting its value, before all else; repeatable
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

/// Why a change is made.
#[derive(Debug, Args)]
struct Reason {
    /// Why; kept in the audit trail
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Cli {
    /// Does what the arguments say, on threads of its own.
    ///
    /// Not `async`, so that all there is to do is compiled here, once, and not with whatever awaits it.
    pub fn run(self) -> ExitCode {
        let runtime = match Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                output::remark(&format!(
                    "the operating system gives no threads to run on: {error}"
                ));
                return ExitCode::FAILURE;
            }
        };
        let Err(failure) = runtime.block_on(self.try_run()) else {
            return ExitCode::SUCCESS;
        };
        match failure {
            Failure::Told => ExitCode::FAILURE,
            Failure::Usage(sentence) => {
                output::remark(&sentence);
                ExitCode::from(2)
            }
            failure => {
                output::remark(&telemetry::chain(&failure));
                ExitCode::FAILURE
            }
        }
    }

    async fn try_run(self) -> Result<(), Failure> {
        self.global.check_settings()?;
        let command = self.command.unwrap_or(Command::Serve);
        Box::pin(command.run(&self.global)).await
    }
}

impl Command {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Serve => Box::pin(serve(global)).await,
            Self::Init(init) => init.run(global).await,
            Self::Migrate => migrate(global).await,
            Self::Doctor => doctor::run(global).await,
            Self::Health(health) => health.run(global).await,
            Self::Keys(keys::Command::AddMaster) => {
                keys::add_master(&global.load()?.master_keys, global.json)
            }
            Self::Keys(command) => {
                let run = async |context: &Context| command.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Clients(command) => {
                let run = async |context: &Context| command.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Users(command) => {
                let run = async |context: &Context| command.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Families(command) => {
                let run = async |context: &Context| command.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Resources(command) => {
                let run = async |context: &Context| command.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Token(token::Command::Verify(verify)) => {
                let run = async |context: &Context| verify.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Events(events) => {
                let run = async |context: &Context| events.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Revoke(revoke) => {
                let run = async |context: &Context| revoke.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Restored(restored) => {
                let run = async |context: &Context| restored.run(context, global.json).await;
                global.with_context(run).await
            }
            Self::Completions(completions) => completions.run(),
        }
    }
}

async fn serve(global: &Global) -> Result<(), Failure> {
    let config = global.load()?;
    let traces = telemetry::init(&config)?;
    let served = app::serve(config, Schema::default()).await;
    traces.end().await;
    Ok(served?)
}

async fn migrate(global: &Global) -> Result<(), Failure> {
    let context = Context::open(global.load()?, Access::Migrate).await?;
    context.close().await;
    let version = Schema::default().version();
    if global.json {
        return Ok(output::json(&json!({ "schema_version": version }))?);
    }
    Ok(output::line(&format!(
        "The schema of the database is up to date (version {version})."
    ))?)
}

impl Global {
    /// Refuses `--set` on both sides of a command: clap would keep those of one side only.
    fn check_settings(&self) -> Result<(), Failure> {
        let options = std::env::args_os().take_while(|argument| argument != "--");
        let is_setting = |option: &OsString| {
            let option = option.as_encoded_bytes();
            option == b"--set" || option.starts_with(b"--set=")
        };
        if options.filter(is_setting).count() > self.settings.len() {
            return Err(Failure::Usage(
                "give every --set after the command, or every one before it".to_owned(),
            ));
        }
        Ok(())
    }

    /// Where the settings come from.
    fn sources(&self) -> Sources {
        let variables = std::env::vars_os();
        // A variable that is no Unicode is none of ours.
        let unicode = variables.filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Sources {
            file: self.config.clone(),
            environment: unicode.collect::<HashMap<_, _>>(),
            overrides: self.settings.clone(),
        }
    }

    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.sources())?)
    }

    /// Does `work` on the opened database, and closes it whatever comes of that.
    async fn with_context(
        &self,
        work: impl AsyncFnOnce(&Context) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let context = Context::open(self.load()?, Access::Command).await?;
        let result = work(&context).await;
        context.close().await;
        result
    }
}

impl Reason {
    /// Who causes a change, and why.
    fn cause(self) -> Cause {
        let user = ["USER", "LOGNAME"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
        Cause {
            actor: format!("cli:{}", user.as_deref().unwrap_or("unknown")),
            reason: self.reason,
            ..Cause::default()
        }
    }
}

/// The file of an `SQLite` database that is still to be made, as opening it would do.
fn missing_database(config: &Config) -> Option<PathBuf> {
    database_file(config).filter(|path| !path.exists())
}

/// The file of an `SQLite` database.
fn database_file(config: &Config) -> Option<PathBuf> {
    let path = config
        .database_url
        .expose_secret()
        .strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path).split('?').next()?;
    Some(PathBuf::from(
        &*percent_decode_str(path).decode_utf8_lossy(),
    ))
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write KEY=VALUE, such as public.listen=127.0.0.1:9000")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn client_id(text: &str) -> Result<ClientId, &'static str> {
    ClientId::parse(text)
        .map_err(|_| "a client id has 1 to 64 characters out of A-Z a-z 0-9 . _ ~ -")
}

fn user_id(text: &str) -> Result<UserId, &'static str> {
    UserId::parse(text).map_err(|_| "the id of a user is a UUID; users list shows them")
}

fn secret_id(text: &str) -> Result<SecretId, &'static str> {
    SecretId::parse(text).map_err(|_| "the id of a secret is a UUID; clients show lists them")
}

fn family_id(text: &str) -> Result<FamilyId, &'static str> {
    FamilyId::parse(text).map_err(|_| "the id of a session is a UUID; families list shows it")
}

fn kid(text: &str) -> Result<Kid, &'static str> {
    Kid::parse(text).map_err(|_| "a kid has 43 characters; keys list shows them")
}

fn event_id(text: &str) -> Result<EventId, &'static str> {
    EventId::parse(text).map_err(|_| "the id of an event is a UUID; events lists them")
}

fn master_key_id(text: &str) -> Result<MasterKeyId, &'static str> {
    MasterKeyId::parse(text)
        .map_err(|_| "the id of a master key is a UUID; keys masters lists them")
}
