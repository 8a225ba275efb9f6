//! The countersign program.

use std::process::ExitCode;

use clap::Parser as _;
use countersign::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => Cli::cannot_run(&error),
    }
}
