//! `fanfold status`: how far a post is spread.

use serde_json::Value;

use super::client::{Client, Connect, post_path};
use super::fault::{Fault, Result};
use super::out::{self, Progress};
use super::wire::PostStatus;

const EXAMPLES: &str = "\
Examples:
  fanfold status 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00
  fanfold status 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00 --wait --output json";

/// Show how far a post is spread; on a terminal, until everybody has it
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The post's id
    post: String,
    /// Wait until everybody has it, also when nobody looks on
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connect: Connect,
}

/// A post's document as the service sent it, and the part of it that is looked at.
#[derive(Debug)]
pub struct Told {
    /// Everything.
    pub document: Value,
    /// What is looked at.
    pub status: PostStatus,
}

/// Shows the progress of a post.
pub async fn run(args: Args) -> Result<()> {
    let client = args.connect.client()?;
    let told = if args.wait || out::on_terminal() {
        follow(&client, &args.post).await?
    } else {
        ask(&client, &args.post, 0).await?
    };
    if args.connect.json() {
        return out::json(&told.document);
    }
    out::line(format_args!("{}  {}  {}", args.post, out::clip(&told.status.state, 20), sentence(&told.status)))
}

/// Waits until a post is spread, with a bar on a terminal and a line every few seconds elsewhere.
pub async fn follow(client: &Client, post: &str) -> Result<Told> {
    // The service answers at once when it is done, so only the bar needs a short wait.
    let wait = if out::on_terminal() { 1 } else { 5 };
    let mut told = ask(client, post, 0).await?;
    if told.status.fanout.is_done() {
        return Ok(told);
    }
    let progress = Progress::new("viewers", told.status.fanout.total);
    while !told.status.fanout.is_done() {
        progress.at(told.status.fanout.settled(), told.status.fanout.total);
        if !out::on_terminal() {
            out::note(sentence(&told.status));
        }
        told = patiently(client, post, wait).await?;
    }
    progress.at(told.status.fanout.settled(), told.status.fanout.total);
    progress.finish();
    Ok(told)
}

/// Asks again, and does as it is told when the service is busy: who waits for a post has time.
async fn patiently(client: &Client, post: &str, wait: u64) -> Result<Told> {
    let asked = tokio::time::Instant::now();
    let told = loop {
        match ask(client, post, wait).await {
            Err(Fault::Problem(problem)) if matches!(problem.status, 429 | 503) && problem.retry_after.is_some() => {
                tokio::time::sleep(problem.retry_after.unwrap_or_default()).await;
            }
            told => break told?,
        }
    };
    if !told.status.fanout.is_done() {
        // A service that does not hold the answer back must not be asked in a tight loop.
        tokio::time::sleep_until(asked + std::time::Duration::from_millis(500)).await;
    }
    Ok(told)
}

async fn ask(client: &Client, post: &str, wait: u64) -> Result<Told> {
    let call = client.get(&post_path(post)?);
    let answer = client.send(if wait > 0 { call.wait(wait) } else { call }).await?;
    Ok(Told { document: answer.json()?, status: answer.json()? })
}

/// The progress in words.
pub fn sentence(status: &PostStatus) -> String {
    let fanout = &status.fanout;
    let mut text = format!(
        "{}: {} of {} have it",
        out::clip(&fanout.status, 20),
        fanout.written,
        out::count(fanout.total, "viewer")
    );
    if fanout.skipped > 0 {
        text.push_str(&format!(", {} skipped", fanout.skipped));
    }
    if fanout.failed > 0 {
        text.push_str(&format!(", {} failed", fanout.failed));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_words() {
        let status = |text: &str| serde_json::from_str::<PostStatus>(text).expect("a status");
        let done = r#"{"state":"live","fanout":{"status":"done","total":2,"written":2,"skipped":0,"failed":0}}"#;
        assert_eq!(sentence(&status(done)), "done: 2 of 2 viewers have it");
        let stuck = r#"{"fanout":{"status":"running","total":3,"written":1,"failed":1}}"#;
        assert_eq!(sentence(&status(stuck)), "running: 1 of 3 viewers have it, 1 failed");
    }
}
