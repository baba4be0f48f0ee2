//! `fanfold fence`: the lives of the revision store.

use super::{Cluster, ago};
use crate::cli::fault::{Fault, Result};
use crate::cli::out;
use crate::domain::Time;
use crate::service::console::Console;

const EXAMPLES: &str = "\
Examples:
  fanfold fence list
  fanfold fence renew        after a backup of the store or of Redis was restored";

/// Entries shown.
const LIST_MAX: u32 = 20;

/// Show or renew the fence: the life of Redis that tokens belong to
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The newest entries of the registry
    #[command(before_help = "Examples:\n  fanfold fence list")]
    List(Cluster),
    /// Begin a new life: every client reads its inbox afresh, once
    #[command(before_help = "Examples:\n  fanfold fence renew")]
    Renew(Cluster),
}

/// Runs `fanfold fence`.
pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::List(cluster) => {
            let now = crate::clock::Clock::system().now();
            for entry in console(&cluster).await?.fences(LIST_MAX).await? {
                let age = if entry.at == Time::ZERO { "?".to_owned() } else { ago(now, entry.at) };
                out::line(format_args!("{:>6}  {}  {age} ago", entry.fence.seq, entry.replid))?;
            }
            Ok(())
        }
        Command::Renew(cluster) => {
            let fence = console(&cluster).await?.renew_fence().await?;
            out::line(format_args!("fence {} is in force within a second; every client resyncs once", fence.seq))
        }
    }
}

async fn console(cluster: &Cluster) -> Result<Console> {
    Console::connect(&cluster.load()?).await.map_err(Fault::Service)
}
