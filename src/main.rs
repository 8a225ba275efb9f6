//! The countersign program.

use countersign::{app, config};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let config = config::Config::load(&config::Sources {
        environment: std::env::vars().collect(),
        ..config::Sources::default()
    })?;
    countersign::telemetry::init(&config)?;
    runtime.block_on(app::serve(config))?;
    Ok(())
}
