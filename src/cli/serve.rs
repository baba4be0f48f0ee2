//! `fanfold serve`: the service itself, in this process.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::duration;
use super::fault::{Fault, Result};
use crate::config::{Config, LogFormat, Mode, Overrides};

const EXAMPLES: &str = "\
Examples:
  fanfold                                   the same as `fanfold serve`
  fanfold serve --listen 127.0.0.1:0        any free port; the banner says which
  fanfold serve --data /var/lib/fanfold --log-format json
  fanfold serve --mode cluster --wait-for 60s   an API node on ScyllaDB, RabbitMQ and Redis
  fanfold config default > fanfold.toml && fanfold serve --config fanfold.toml";

const AFTER: &str = "\
Flags beat FANFOLD_* variables, those beat the file, the file beats the defaults. `fanfold config default` prints all
settings, `fanfold config check` tells what is wrong with yours.";

/// Start the service: store, fan-out and HTTP API in one process
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = AFTER)]
pub struct Args {
    /// Address to listen on; port 0 takes any free one [env: FANFOLD_LISTEN]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Folder for the data; it survives restarts [env: FANFOLD_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Configuration file to read [env: FANFOLD_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the truth lives: in this process, or in ScyllaDB, RabbitMQ and Redis [env: FANFOLD_MODE]
    #[arg(long, value_name = "MODE")]
    mode: Option<ModeArg>,
    /// How long to wait for servers that cannot be reached yet, such as 60s
    #[arg(long, value_name = "TIME", value_parser = duration::parse_seconds)]
    wait_for: Option<u32>,
    /// Allow an address that other machines can reach, although nobody has to show a key
    #[arg(long)]
    insecure_listen_beyond_loopback: bool,
    /// What to log: a level, or target=level pairs [env: FANFOLD_LOG]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormatArg>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormatArg {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum ModeArg {
    Embedded,
    Cluster,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Embedded => Self::Embedded,
            ModeArg::Cluster => Self::Cluster,
        }
    }
}

impl From<LogFormatArg> for LogFormat {
    fn from(format: LogFormatArg) -> Self {
        match format {
            LogFormatArg::Text => Self::Text,
            LogFormatArg::Json => Self::Json,
        }
    }
}

/// Loads the configuration and serves until told to stop.
pub fn run(args: Args) -> Result<()> {
    let config = load(&Overrides {
        file: args.config,
        listen: args.listen,
        data: args.data,
        insecure_listen_beyond_loopback: args.insecure_listen_beyond_loopback,
        mode: args.mode.map(Into::into),
        wait_for_s: args.wait_for,
        worker_listen: None,
        log_filter: args.log,
        log_format: args.log_format.map(Into::into),
    })?;
    crate::telemetry::init_logging(&config.log)?;
    Ok(super::block_on(crate::service::run(config))??)
}

/// The configuration as `serve` finds it.
pub fn load(overrides: &Overrides) -> Result<Config> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        // Names that are not Unicode are nobody's settings; a setting with such a value must not be passed over.
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if name.starts_with("FANFOLD_") => return Err(Fault::Usage(format!("{name}: is not UTF-8"))),
            Err(_) => {}
        }
    }
    Ok(crate::config::load(overrides, environment)?)
}
