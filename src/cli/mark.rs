//! `fanfold mark`: what a viewer does to items.

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, Connect, post_id, viewer_path};
use super::fault::{Fault, Result};
use super::out;
use super::wire::{Count, Page};
use crate::domain::Mark;

/// How often a fresh page is fetched when the inbox outruns its token.
const ATTEMPTS: u32 = 5;

const EXAMPLES: &str = "\
Examples:
  fanfold mark ben 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00 read
  fanfold mark ben 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00 archived --clear
  fanfold mark ben --all read               all that is there now, nothing that comes later";

/// Set or clear a mark on an item, or set it on all
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, override_usage = "fanfold mark [OPTIONS] <VIEWER> <POST> <MARK>\n       fanfold mark \
    [OPTIONS] <VIEWER> --all <MARK>")]
pub struct Args {
    /// Whose inbox
    viewer: String,
    /// The post's id
    #[arg(required_unless_present = "all", requires = "mark")]
    post: Option<String>,
    /// The mark: seen, read or archived
    #[arg(value_parser = mark)]
    mark: Option<Mark>,
    /// Clear the mark instead
    #[arg(long)]
    clear: bool,
    /// Set this mark on every item that is in the inbox now
    #[arg(long, value_name = "MARK", value_parser = mark, conflicts_with_all = ["post", "mark", "clear"])]
    all: Option<Mark>,
    #[command(flatten)]
    connect: Connect,
}

fn mark(name: &str) -> Result<Mark, String> {
    Mark::from_name(name).ok_or_else(|| {
        let names = Mark::ALL.map(Mark::name).join(", ");
        format!("possible marks: {names}")
    })
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Counts {
    unseen_count: Option<Count>,
    unread_count: Option<Count>,
}

/// Sets or clears marks.
pub async fn run(args: Args) -> Result<()> {
    let client = args.connect.client()?;
    let (answer, done) = match (&args.post, args.mark, args.all) {
        (_, _, Some(mark)) => {
            let answer = all(&client, &args.viewer, mark).await?;
            let count = answer.get("post_ids").and_then(Value::as_array).map_or(0, Vec::len);
            (answer, format!("{} marked {}", out::count(count as u64, "item"), mark.name()))
        }
        (Some(post), Some(mark), None) => {
            let method = if args.clear { Method::DELETE } else { Method::PUT };
            let path = viewer_path(&args.viewer, &format!("inbox/{}/{}", post_id(post)?, mark.name()))?;
            let verb = if args.clear { "no longer" } else { "now" };
            (client.send(client.call(method, &path)).await?.json()?, format!("{post}  {verb} {}", mark.name()))
        }
        _ => return Err(Fault::Usage("name a post and a mark, or --all and a mark".to_owned())),
    };
    if args.connect.json() {
        return out::json(&answer);
    }
    let counts: Counts = serde_json::from_value(answer).unwrap_or_default();
    match (counts.unseen_count, counts.unread_count) {
        (Some(unseen), Some(unread)) => out::line(format_args!("{done}; {unseen} unseen, {unread} unread")),
        _ => out::line(done),
    }
}

/// Marks everything up to the token of a fresh page. When more has changed since than the service remembers (410), the
/// page is not fresh any more and another one is taken.
async fn all(client: &Client, viewer: &str, mark: Mark) -> Result<Value> {
    let mut attempt = 1;
    loop {
        let page: Page = client.send(client.get(&viewer_path(viewer, "inbox")?).query("limit", 1)).await?.json()?;
        let Some(token) = page.token else {
            return Err(Fault::Timeout("the service has no token for this inbox at the moment; try again".to_owned()));
        };
        let body = json!({"mark": mark.name(), "through": token}).to_string();
        let call = client.call(Method::POST, &viewer_path(viewer, "inbox/marks")?).json(Bytes::from(body));
        match client.send(call).await {
            Err(fault) if fault.is_resync() && attempt < ATTEMPTS => attempt += 1,
            answer => return answer?.json(),
        }
    }
}
