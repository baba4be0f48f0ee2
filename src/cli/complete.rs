//! `fanfold completions`: what a shell needs to complete the commands.

use clap_complete::Shell;

use super::fault::Result;
use super::out;

const EXAMPLES: &str = "\
Examples:
  fanfold completions bash > ~/.local/share/bash-completion/completions/fanfold
  fanfold completions zsh > ~/.zfunc/_fanfold
  fanfold completions fish > ~/.config/fish/completions/fanfold.fish";

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The shell to complete for
    shell: Shell,
}

/// Prints the script.
pub fn run(args: Args, mut command: clap::Command) -> Result<()> {
    // Written to memory first: the generator panics when its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "fanfold", &mut script);
    out::raw(&script)
}
