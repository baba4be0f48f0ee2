//! `fanfold parked`: what failed too often, and what to do with it.

use serde_json::json;

use super::Cluster;
use crate::cli::fault::{Fault, Result};
use crate::cli::out::{self, Format};
use crate::domain::PostId;
use crate::service::console::Console;

const EXAMPLES: &str = "\
Examples:
  fanfold parked list
  fanfold parked show 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00/3
  fanfold parked redrive 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00/3
  fanfold parked redrive --all
  fanfold parked redrive --messages
  fanfold parked discard 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00/3     its viewers never get the post";

/// Chunks named by a command.
const LIST_MAX: usize = 1_000;

/// Chunks that failed too often, and messages that no worker could read
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Everything that is set aside
    #[command(before_help = "Examples:\n  fanfold parked list --output json")]
    List {
        #[command(flatten)]
        cluster: Cluster,
        /// How to print the result
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        output: Format,
    },
    /// Why a chunk is set aside, and how many viewers wait for it
    #[command(before_help = "Examples:\n  fanfold parked show 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00/3")]
    Show {
        /// POST/CHUNK
        #[arg(value_parser = parse)]
        chunk: (PostId, u32),
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Try again
    #[command(before_help = "Examples:\n  fanfold parked redrive --all")]
    Redrive {
        /// POST/CHUNK
        #[arg(value_parser = parse, required_unless_present_any = ["all", "messages"], conflicts_with = "all")]
        chunk: Option<(PostId, u32)>,
        /// Every parked chunk
        #[arg(long)]
        all: bool,
        /// The messages that this release cannot read: back into their lanes, once workers of the newer one run
        #[arg(long, conflicts_with_all = ["chunk", "all"])]
        messages: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Give up: the chunk's viewers do not get the post
    #[command(before_help = "Examples:\n  fanfold parked discard --messages")]
    Discard {
        /// POST/CHUNK
        #[arg(value_parser = parse, required_unless_present = "messages", conflicts_with = "messages")]
        chunk: Option<(PostId, u32)>,
        /// The messages that this release cannot read; their posts stay pending
        #[arg(long)]
        messages: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
}

fn parse(text: &str) -> Result<(PostId, u32), String> {
    let (post, chunk) = text.split_once('/').ok_or("write POST/CHUNK")?;
    let post = PostId::parse(post).ok_or_else(|| format!("{post} is not the id of a post"))?;
    Ok((post, chunk.parse().map_err(|_| format!("{chunk} is not the number of a chunk"))?))
}

/// Runs `fanfold parked`.
pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::List { cluster, output } => list(&console(&cluster).await?, output).await,
        Command::Show { chunk: (post, no), cluster } => {
            let (parked, viewers) = console(&cluster).await?.show(post, no).await?;
            out::line(format_args!("{post}/{no}  {}", out::count(viewers as u64, "viewer")))?;
            out::line(reason(&parked.reason))
        }
        Command::Redrive { messages: true, cluster, .. } => {
            let back = console(&cluster).await?.redrive_messages().await?;
            out::line(format_args!("{} put back", out::count(back as u64, "message")))
        }
        Command::Redrive { chunk, cluster, .. } => {
            let console = console(&cluster).await?;
            let chunks = match chunk {
                Some(chunk) => vec![chunk],
                None => console.parked(LIST_MAX).await?.iter().map(|chunk| (chunk.post_id, chunk.no)).collect(),
            };
            for (post, no) in &chunks {
                console.redrive(*post, *no).await?;
            }
            out::line(format_args!("{} taken up again", out::count(chunks.len() as u64, "chunk")))
        }
        Command::Discard { chunk: Some((post, no)), cluster, .. } => {
            console(&cluster).await?.discard(post, no).await?;
            out::line(format_args!("{post}/{no} is given up"))
        }
        Command::Discard { chunk: None, cluster, .. } => {
            let gone = console(&cluster).await?.discard_messages().await?;
            out::line(format_args!("{} removed", out::count(gone as u64, "message")))
        }
    }
}

async fn console(cluster: &Cluster) -> Result<Console> {
    Console::connect(&cluster.load()?).await.map_err(Fault::Service)
}

async fn list(console: &Console, output: Format) -> Result<()> {
    let chunks = console.parked(LIST_MAX).await?;
    let messages = console.messages().await?;
    if output == Format::Json {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| json!({ "post_id": chunk.post_id.to_string(), "chunk": chunk.no, "reason": chunk.reason }))
            .collect();
        return out::json(&json!({ "chunks": chunks, "messages": messages }));
    }
    for chunk in &chunks {
        out::line(format_args!("{}/{}  {}", chunk.post_id, chunk.no, reason(&chunk.reason)))?;
    }
    for message in &messages {
        out::line(format_args!("message  {}", out::clip(message, 100)))?;
    }
    if chunks.is_empty() && messages.is_empty() {
        out::line("nothing is parked")?;
    }
    Ok(())
}

fn reason(text: &str) -> String {
    if text.is_empty() { "for a reason that is in the log only".to_owned() } else { out::clip(text, 200).to_string() }
}
