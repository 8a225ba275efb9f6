//! What is told of the inside: logs to standard error, as text for people or JSON for programs, and
//! traces to a collector.
//!
//! Field names are dotted or plain words with the unit in the name (`duration_ms`). Nothing secret
//! has a `Debug` that shows it, so that nothing secret can be logged.

mod trace;

use std::{error::Error, io::IsTerminal as _};

use tracing_subscriber::{
    EnvFilter, Layer as _, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

pub use self::trace::{Traces, trace_id};
use crate::{
    config::{Config, ConfigError, LogFormat},
    domain::node::Environment,
};

/// Starts logs and traces for this process; later calls change nothing.
pub fn init(config: &Config) -> Result<Traces, ConfigError> {
    let filter =
        EnvFilter::try_new(&config.telemetry.log_filter).map_err(|_| ConfigError::Invalid {
            key: "telemetry.log_filter",
            problem: "is neither a level nor a list of levels by module".to_owned(),
        })?;
    let json = match config.telemetry.log_format {
        LogFormat::Auto => config.environment == Environment::Production,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let traces = Traces::of(config)?;
    let registry = tracing_subscriber::registry().with(traces.layer());
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only where a subscriber is set already, as by another test of the same process.
    let _ = if json {
        let lines = lines.json().flatten_event(true);
        registry.with(lines.with_filter(filter)).try_init()
    } else {
        let lines = lines.with_target(false);
        registry.with(lines.with_filter(filter)).try_init()
    };
    Ok(traces)
}

/// An error and what caused it, in one line, each cause once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
