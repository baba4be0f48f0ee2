//! The command line of the worker processes: the same settings as the service, and a page of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use super::fault::{EXIT_USAGE, Fault, Result};
use super::serve::{self, LogFormatArg};
use super::{duration, out, secrets};
use crate::config::Overrides;
use crate::service::worker::{self, Role};

const AFTER: &str = "\
Examples:
  fanfold-fanout --config fanfold.toml
  fanfold-fanout --listen 127.0.0.1:0 --wait-for 60s
  fanfold-relay --listen 127.0.0.1:8472 --log-format json

Settings are those of `fanfold config default`: flags beat FANFOLD_* variables, those beat the file, the file beats the
defaults. Start as many as you like, anywhere: they find their work by themselves.";

/// A worker process of a Fanfold cluster
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER)]
struct Args {
    /// Configuration file to read [env: FANFOLD_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of /livez, /readyz and /metrics; port 0 takes any free one [env: FANFOLD_WORKER__LISTEN]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// How long to wait for servers that cannot be reached yet
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

/// Runs a worker process.
pub fn main(role: Role) -> ExitCode {
    if let Some(code) = secrets::refuse(role.name(), &[]) {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(told) => {
            let _ = told.print();
            return if told.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(role, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            out::note(format_args!("{}: {fault}", role.name()));
            ExitCode::from(fault.exit_code())
        }
    }
}

fn run(role: Role, args: Args) -> Result<(), Fault> {
    let config = serve::load(&Overrides {
        file: args.config,
        worker_listen: args.listen,
        insecure_listen_beyond_loopback: args.insecure_listen_beyond_loopback,
        wait_for_s: args.wait_for,
        log_filter: args.log,
        log_format: args.log_format.map(Into::into),
        ..Overrides::default()
    })?;
    crate::telemetry::init_logging(&config.log)?;
    Ok(worker::runtime(&config)?.block_on(worker::run(role, config))?)
}
