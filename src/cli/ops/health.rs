//! `fanfold health`: is a process ready? For images that have no other HTTP client.

use std::time::Duration;

use crate::cli::client::{Client, Place};
use crate::cli::fault::{Fault, Result};
use crate::cli::out;

/// How long a process may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  fanfold health                                 the API node on 127.0.0.1:8470
  fanfold health --url http://127.0.0.1:8471     a worker
  fanfold health --url https://feed.example.org --ca-file ca.pem";

/// Ask a process whether it is ready; exit code 69 if it is not
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// Runs `fanfold health`.
pub async fn run(args: Args) -> Result<()> {
    // Without a key: whoever asks for health need not be anybody.
    let client = Client::new(&args.place, None)?;
    match client.send(client.get("/readyz").within(PATIENCE)).await {
        Ok(answer) => out::line(out::clip(answer.text().lines().next().unwrap_or_default(), 200)),
        // Not ready in time is not ready.
        Err(Fault::Timeout(text)) => Err(Fault::Connect(text)),
        Err(fault) => Err(fault),
    }
}
