//! The countersign program.

use std::process::ExitCode;

use clap::Parser as _;
use countersign::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
