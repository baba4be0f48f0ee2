//! `fanfold config`: the defaults, and whether a configuration would be taken.

use std::path::PathBuf;

use super::fault::Result;
use super::{out, serve};
use crate::config::{DEFAULT_TOML, Overrides};

const EXAMPLES: &str = "\
Examples:
  fanfold config default > fanfold.toml     every setting, with its unit and reason
  fanfold config check --config fanfold.toml";

const DEFAULT_EXAMPLES: &str = "\
Examples:
  fanfold config default > fanfold.toml";

const CHECK_EXAMPLES: &str = "\
Examples:
  fanfold config check --config fanfold.toml
  FANFOLD_LISTEN=127.0.0.1:9000 fanfold config check";

/// Print the default configuration, or check one
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the defaults as a commented file
    #[command(before_help = DEFAULT_EXAMPLES)]
    Default,
    /// Load the file and the environment as `serve` would, and tell what is wrong
    #[command(before_help = CHECK_EXAMPLES)]
    Check {
        /// Configuration file to read [env: FANFOLD_CONFIG]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Runs `fanfold config`.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Default => out::raw(DEFAULT_TOML.as_bytes()),
        Command::Check { config } => {
            serve::load(&Overrides { file: config, ..Overrides::default() })?;
            out::line("ok")
        }
    }
}
