//! `fanfold token`: a viewer's token, for trying out.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::Connect;
use super::fault::{Fault, Result};
use super::{duration, out};

const EXAMPLES: &str = "\
Examples:
  fanfold token --viewer ben --ttl 1h
  FANFOLD_KEY=\"$(fanfold token --viewer ben)\" fanfold inbox ben        as ben himself";

/// Print a token that opens one viewer's inbox for a while
///
/// Takes a key with the scope `tokens`, in FANFOLD_KEY or --key-file.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// Whose inbox
    #[arg(long)]
    viewer: String,
    /// How long it lasts [default: an hour]; it cannot be taken back
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    ttl: Option<Duration>,
    #[command(flatten)]
    connect: Connect,
}

/// Prints a token.
pub async fn run(args: Args) -> Result<()> {
    let client = args.connect.client()?;
    let body = json!({"viewer_id": args.viewer, "ttl_seconds": args.ttl.map(|ttl| ttl.as_secs())});
    let call = client.call(Method::POST, "/v1/viewer-tokens").json(Bytes::from(body.to_string()));
    let told: Value = client.send(call).await?.json()?;
    if args.connect.json() {
        return out::json(&told);
    }
    let token = told["viewer_token"].as_str();
    out::line(token.ok_or_else(|| Fault::Answer("the answer has no viewer_token".to_owned()))?)
}
