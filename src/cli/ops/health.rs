//! `fanfold health`: is a process ready? For images that have no other HTTP client.

use std::time::Duration;

use crate::cli::fault::{Fault, Result};
use crate::cli::out;

const EXAMPLES: &str = "\
Examples:
  fanfold health                                 the API node on 127.0.0.1:8470
  fanfold health --url http://127.0.0.1:8471     a worker";

/// Ask a process whether it is ready; exit code 69 if it is not
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The process, API node or worker
    #[arg(long, env = "FANFOLD_URL", value_name = "URL", default_value = "http://127.0.0.1:8470")]
    url: String,
}

/// Runs `fanfold health`.
pub async fn run(args: Args) -> Result<()> {
    let url = format!("{}/readyz", args.url.trim_end_matches('/'));
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build();
    let client = client.map_err(|error| Fault::Local(error.to_string()))?;
    let answer = client.get(&url).send().await.map_err(|error| Fault::Connect(format!("{url}: {error}")))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let first = text.lines().next().unwrap_or_default().to_owned();
    if status.is_success() {
        return out::line(out::clip(&first, 200));
    }
    Err(Fault::Connect(format!("{url}: {status} {}", out::clip(&first, 200))))
}
