//! `fanfold doctor`: what is wrong with the backends and with access control, and what to do.

use std::process::ExitCode;

use serde_json::json;

use super::Cluster;
use crate::adapters::finding::{Finding, Severity};
use crate::cli::fault::Result;
use crate::cli::out::{self, Format};
use crate::service::console;

const EXAMPLES: &str = "\
Examples:
  fanfold doctor --config fanfold.toml
  fanfold doctor --output json";

/// Check ScyllaDB, RabbitMQ, Redis, the workers and access control, and say what to do
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = "Exit code 1 if something does not work; warnings are for reading.")]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// How to print the result
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// Runs `fanfold doctor`.
pub async fn run(args: Args) -> Result<ExitCode> {
    let config = args.cluster.load()?;
    let findings = console::inspect(&config).await;
    let wrong = findings.iter().any(|finding| finding.severity == Severity::Wrong);
    if args.output == Format::Json {
        out::json(&findings.iter().map(document).collect::<Vec<_>>())?;
    } else {
        for finding in &findings {
            out::line(format_args!("{:<9}  {:<7}  {}", finding.part, word(finding.severity), finding.what))?;
            if !finding.advice.is_empty() {
                out::line(format_args!("{:20}-> {}", "", finding.advice))?;
            }
        }
    }
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn document(finding: &Finding) -> serde_json::Value {
    json!({
        "part": finding.part,
        "severity": word(finding.severity),
        "what": finding.what,
        "advice": finding.advice,
    })
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Warning => "warning",
        Severity::Wrong => "WRONG",
    }
}
