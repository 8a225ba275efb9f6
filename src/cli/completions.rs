//! `countersign completions`: what a shell needs to complete the other commands.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use super::{Cli, Failure, output};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    #[arg(value_enum)]
    shell: Flavour,
}

/// The shells that are tested.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Flavour {
    Bash,
    Fish,
    Zsh,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let shell = match self.shell {
            Flavour::Bash => Shell::Bash,
            Flavour::Fish => Shell::Fish,
            Flavour::Zsh => Shell::Zsh,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "countersign", &mut script);
        Ok(output::script(&String::from_utf8_lossy(&script))?)
    }
}
