//! `countersign doctor`: looks at everything that the service depends on, and goes on after a
//! finding.
//!
//! To add a check: a function that returns what is right or what is wrong, and its line in
//! [`examine`] or [`examine_database`].

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{Failure, Global, database_file, missing_database, output};
use crate::{
    admin::key::MasterKeyStatus,
    app::{self, Context, StartError},
    config::Config,
    domain::{key::KeyUse, node::Environment},
    keys::lifecycle::KeyState,
    store::{Access, OpenError, Schema},
    telemetry,
};

/// What is right, or what is wrong and what to do about it.
type Finding = Result<String, Failure>;

/// What has been found so far.
#[derive(Default)]
struct Report(Vec<(&'static str, Option<bool>, String)>);

pub(super) async fn run(global: &Global) -> Result<(), Failure> {
    let mut report = Report::default();
    match global.load() {
        Ok(config) => {
            report.add("settings", Ok(settings(&config)));
            report.add(
                "permissions",
                permissions(global.config.as_deref(), &config),
            );
            examine(config, &mut report).await;
        }
        Err(failure) => {
            report.add("settings", Err(failure));
            report.skip("everything else", "the settings are needed for that");
        }
    }
    report.print(global.json)
}

async fn examine(config: Config, report: &mut Report) {
    if let Some(files) = &config.tls {
        let usable =
            app::check_certificate(files).map_err(|error| Failure::message(error.to_string()));
        report.add("certificate", usable.map(|()| "can be used".to_owned()));
    }
    report.add("master keys", master_keys(&config));
    if let Some(path) = missing_database(&config) {
        let path = path.display();
        report.add(
            "database",
            Ok(format!("none yet at {path}; the first start makes it")),
        );
        return;
    }
    match Context::open(config, Access::Look).await {
        Ok(context) => {
            let version = Schema::default().version();
            report.add("database", Ok("answers".to_owned()));
            report.add("schema", Ok(format!("up to date (version {version})")));
            examine_database(&context, report).await;
            context.close().await;
        }
        Err(StartError::Store(OpenError::NoSchema)) => {
            report.add("database", Ok("answers".to_owned()));
            report.add(
                "schema",
                Ok("none yet; the first start makes it".to_owned()),
            );
        }
        Err(StartError::Store(
            error @ (OpenError::OlderSchema { .. }
            | OpenError::NewerSchema(_)
            | OpenError::Migration(_)),
        )) => {
            report.add("database", Ok("answers".to_owned()));
            report.add("schema", Err(Failure::Message(telemetry::chain(&error))));
            report.skip("clock, keys", "the schema is needed for that");
        }
        Err(error) => {
            report.add("database", Err(error.into()));
            report.skip("schema, clock, keys", "the database is needed for that");
        }
    }
}

async fn examine_database(context: &Context, report: &mut Report) {
    report.add("clock", clock(context));
    report.add("needed master keys", needed_master_keys(context).await);
    for key_use in context.keys().uses() {
        let name = match key_use {
            KeyUse::Signing => "key schedule",
            KeyUse::RefreshMac => "refresh-MAC keys",
            KeyUse::IdTokenRs256 => "RS256 keys",
        };
        report.add(name, key_schedule(context, key_use).await);
    }
    if context.config.environment == Environment::Production {
        report.add("demo rows", demo_rows(context).await);
    }
}

fn settings(config: &Config) -> String {
    let mode = match config.environment {
        Environment::Development => "development",
        Environment::Production => "production",
    };
    format!("{mode}, issuer {}", config.issuer(config.public_listen))
}

/// Whether others on this machine may read what is for the service only. Master keys are looked at
/// when they are read.
fn permissions(settings: Option<&Path>, config: &Config) -> Finding {
    let url = config.database_url.expose_secret();
    let password = url::Url::parse(url)
        .ok()
        .and_then(|url| url.password().map(str::to_owned));
    let holds_password = |path: &&Path| match (&password, fs::read_to_string(path)) {
        (Some(password), Ok(text)) => text.contains(password.as_str()),
        _ => false,
    };
    let settings = settings.filter(holds_password).map(Path::to_owned);
    for path in database_file(config).into_iter().chain(settings) {
        // A file that is not there yet is made so that its owner alone may read it.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.permissions().mode() & 0o007 != 0 {
            return Err(Failure::Message(format!(
                "{0} is open to everybody on this machine; run chmod 600 {0}",
                path.display()
            )));
        }
    }
    Ok("what is secret is closed to others".to_owned())
}

fn master_keys(config: &Config) -> Finding {
    let source = &config.master_keys;
    match (source.load()?.ids().count(), config.environment) {
        (0, Environment::Development) => {
            Ok(format!("none in {source} yet; the first start makes one"))
        }
        (0, Environment::Production) => Err(Failure::Message(format!(
            "there is none in {source}; restore it there, or for a new service run countersign init"
        ))),
        (count, _) => Ok(format!("{count} in {source}")),
    }
}

fn clock(context: &Context) -> Finding {
    let offset = context.clock.offset_ms();
    let skew = context.config.policy.clock_skew;
    if u128::from(offset.unsigned_abs()) > skew.as_millis() {
        return Err(Failure::Message(format!(
            "the database's clock is {offset} ms ahead of this machine's, more than setting keys.clock_skew_seconds ({}) allows for; set both by NTP",
            skew.as_secs()
        )));
    }
    Ok(format!(
        "the database's clock is {offset} ms ahead of this machine's"
    ))
}

async fn needed_master_keys(context: &Context) -> Finding {
    let masters = context.keys().master_keys().await?;
    let is_needed = |master: &&MasterKeyStatus| master.is_primary || master.seals > 0;
    let needed: Vec<&MasterKeyStatus> = masters.iter().filter(is_needed).collect();
    match needed.iter().find(|master| !master.is_here) {
        Some(missing) => Err(Failure::Message(format!(
            "the database needs master key {0}, which is not in {1}; restore master-{0}.key there",
            missing.id, context.config.master_keys
        ))),
        None => Ok(format!("{} needed, all here", needed.len())),
    }
}

async fn key_schedule(context: &Context, key_use: KeyUse) -> Finding {
    let now = context.clock.now();
    let keys = context.keys().states(key_use, now).await?;
    let moment = |wanted: KeyState| {
        keys.iter()
            .find(|(_, state, _)| *state == wanted)
            .map(|(kid, _, times)| (kid, times.activates_at))
    };
    if keys.is_empty() {
        return Ok("no keys yet; the next start makes them".to_owned());
    }
    match (moment(KeyState::Active), moment(KeyState::Next)) {
        (Some((active, _)), Some((next, takes_over))) => Ok(format!(
            "{active} signs, {next} takes over {}",
            output::relative(takes_over, now)
        )),
        (None, _) => Err(Failure::message(
            "no key signs; start the service: it makes one",
        )),
        (_, None) => Err(Failure::message(
            "no key is next; start the service: it makes one",
        )),
    }
}

async fn demo_rows(context: &Context) -> Finding {
    let rows = context.demo_rows().await.map_err(Failure::Database)?;
    if rows.is_empty() {
        return Ok("none".to_owned());
    }
    Err(Failure::Message(format!(
        "production does not start with {}; delete them, or give production a database of its own",
        rows.join(", ")
    )))
}

impl Report {
    fn add(&mut self, name: &'static str, finding: Finding) {
        let is_right = finding.is_ok();
        let detail = finding.unwrap_or_else(|failure| telemetry::chain(&failure));
        self.0.push((name, Some(is_right), detail));
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        self.0.push((name, None, format!("not checked: {why}")));
    }

    fn print(self, json: bool) -> Result<(), Failure> {
        let all_right = self.0.iter().all(|(_, right, _)| *right == Some(true));
        if json {
            let check = |(name, right, detail): &(&str, Option<bool>, String)| json!({ "name": name, "ok": right, "detail": detail });
            let checks: Vec<Value> = self.0.iter().map(check).collect();
            output::json(&json!({ "ok": all_right, "checks": checks }))?;
        } else {
            let row = |(name, right, detail): (&str, Option<bool>, String)| {
                let mark = match right {
                    Some(true) => output::RIGHT,
                    Some(false) => output::WRONG,
                    None => "-",
                };
                [mark.to_owned(), name.to_owned(), detail]
            };
            output::rows(&self.0.into_iter().map(row).collect::<Vec<_>>())?;
        }
        if all_right {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }
}
