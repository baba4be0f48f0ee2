//! `fanfold migrate`: the schema of the cluster.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Cluster;
use super::duration;
use crate::cli::fault::{Fault, Result};
use crate::cli::out::{self, Format};
use crate::error::Kind;
use crate::service::console;

const EXAMPLES: &str = "\
Examples:
  fanfold migrate --config fanfold.toml
  FANFOLD_SCYLLA__CONTACT_POINTS=10.0.0.1:9042,10.0.0.2:9042 fanfold migrate --wait-for 60s";

const AFTER: &str = "\
Makes the keyspace where it is missing and applies the numbered files that were not applied. Safe to run again, and from
several nodes at once; but on an Apache Cassandra of several nodes let the very first one be run by one node alone, for
the tables that make it safe have to be made first. Migrate before the first process of a new release starts; the release
before goes on working.";

/// Bring the schema of the cluster up to what this release needs
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = AFTER)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// How long to wait for a store that cannot be reached yet
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "0s")]
    wait_for: Duration,
    /// How to print the result
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// Runs `fanfold migrate`.
pub async fn run(args: Args) -> Result<()> {
    let config = args.cluster.load()?;
    let deadline = Instant::now() + args.wait_for;
    let report = loop {
        match console::migrate(&config).await {
            Ok(report) => break report,
            Err(error) if error.kind() == Kind::Unavailable && Instant::now() < deadline => {
                out::note(format_args!("waiting: {error}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(Fault::Service(error)),
        }
    };
    if args.output == Format::Json {
        return out::json(&json!({ "applied": report.applied, "version": report.version }));
    }
    for file in &report.applied {
        out::line(format_args!("applied {file}"))?;
    }
    let nothing = if report.applied.is_empty() { ", nothing to do" } else { "" };
    out::line(format_args!("the schema of {} is at {}{nothing}", config.scylla.keyspace, report.version))
}
