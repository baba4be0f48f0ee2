//! `fanfold post` and `fanfold retract`: what a producer does.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::client::{Client, Connect, post_path};
use super::fault::{Fault, Result};
use super::wire::Accepted;
use super::{duration, out, status};

const EXAMPLES: &str = "\
Examples:
  fanfold post --to ben,cleo --type story.posted --actor ana --data '{\"title\":\"Dawn\"}'
  fanfold post --to-file friends.txt --type story.posted --data @story.json --ttl 1h --wait
  echo '{\"title\":\"Dawn\"}' | fanfold post --to ben --type story.posted --data -
  fanfold post --to ben --type story.posted --dry-run --output json";

const RETRACT_EXAMPLES: &str = "\
Examples:
  fanfold retract 019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00
  fanfold post --to ben --type hello --output json | jq -r .post_id | xargs fanfold retract";

/// Publish a post to its audience
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("audience").required(true).multiple(true).args(["to", "to_file"]))]
pub struct Args {
    /// Viewers, separated by commas; may be given more than once. For ids with commas use --to-file
    #[arg(long, value_name = "VIEWERS", value_delimiter = ',')]
    to: Vec<String>,
    /// File with one viewer id a line; - reads standard input
    #[arg(long, value_name = "FILE")]
    to_file: Option<String>,
    /// What kind of notification it is
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// Who did what the post tells
    #[arg(long, value_name = "ID")]
    actor: Option<String>,
    /// The payload, a JSON object; @FILE reads a file, - standard input
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// How long it is served, for example 90s, 1h or 30d
    #[arg(long, value_name = "SPAN", value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Groups posts on the client
    #[arg(long, value_name = "KEY")]
    thread: Option<String>,
    /// Makes a repeated command complete the same post [default: a random one]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Check everything, publish nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Wait until everybody has it
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Take a post back for good; it is invisible at once
#[derive(Debug, clap::Args)]
#[command(before_help = RETRACT_EXAMPLES)]
pub struct RetractArgs {
    /// The post's id
    post: String,
    #[command(flatten)]
    connect: Connect,
}

/// Publishes a post.
pub async fn run(args: Args) -> Result<()> {
    let body = body(&args)?;
    let client = args.connect.client()?;
    let key = args.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let call = client.call(Method::POST, "/v1/posts").json(Bytes::from(body));
    let call = if args.dry_run { call.query("dry_run", true) } else { call.idempotency_key(&key)? };
    let answer = client.send(call).await.inspect_err(|fault| {
        if !args.dry_run && fault.retry_after(Duration::ZERO).is_some() {
            out::note(format_args!("to try again without posting twice, add --idempotency-key '{key}'"));
        }
    })?;
    let (mut document, accepted): (Map<String, Value>, Accepted) = (answer.json()?, answer.json()?);
    let fanned_out = match &accepted.post_id {
        Some(post) if args.wait => Some(status::follow(&client, post).await?),
        _ => None,
    };
    if args.connect.json() {
        if let Some(mut fanned_out) = fanned_out {
            document.insert("fanout".to_owned(), fanned_out.document["fanout"].take());
        }
        return out::json(&document);
    }
    let audience = &accepted.audience;
    let viewers = out::count(audience.size, "viewer");
    let named_twice = if audience.duplicates > 0 { " (repeated ones dropped)" } else { "" };
    match (&accepted.post_id, &fanned_out) {
        (None, _) => out::line(format_args!("ok, would go to {viewers}{named_twice}")),
        (Some(post), None) => out::line(format_args!("{post}  to {viewers}{named_twice}")),
        (Some(post), Some(told)) => out::line(format_args!("{post}  {}", status::sentence(&told.status))),
    }
}

/// Takes a post back.
pub async fn retract(args: RetractArgs) -> Result<()> {
    let client: Client = args.connect.client()?;
    let answer = client.send(client.call(Method::DELETE, &post_path(&args.post)?)).await?;
    if args.connect.json() {
        let stated = || json!({"post_id": args.post, "state": "retracted"});
        return out::json(&if answer.is_empty() { stated() } else { answer.json::<Value>()? });
    }
    out::line(format_args!("{}  retracted", args.post))
}

/// The request body; what is not given is left to the service.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    /// As it was given: a parsed number would not keep all its digits.
    data: Box<RawValue>,
    audience: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
}

fn body(args: &Args) -> Result<String> {
    let data = payload(args.data.as_deref().unwrap_or("{}"))?;
    let viewers = viewers(args)?;
    if args.ttl.is_some_and(|ttl| ttl.subsec_nanos() != 0) {
        return Err(Fault::Usage("--ttl: must be whole seconds".to_owned()));
    }
    let body = Body {
        kind: &args.kind,
        data,
        audience: json!({"viewers": viewers}),
        actor: args.actor.as_ref().map(|actor| json!({"id": actor})),
        thread_key: args.thread.as_deref(),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
    };
    serde_json::to_string(&body).map_err(|e| Fault::Local(format!("cannot write JSON: {e}")))
}

fn viewers(args: &Args) -> Result<Vec<String>> {
    let mut viewers: Vec<String> = args.to.iter().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect();
    if let Some(file) = &args.to_file {
        if file == "-" && args.data.as_deref() == Some("-") {
            return Err(Fault::Usage("--to-file and --data cannot both read standard input".to_owned()));
        }
        let text = read("--to-file", file)?;
        viewers.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if viewers.is_empty() {
        return Err(Fault::Usage("--to: names nobody".to_owned()));
    }
    Ok(viewers)
}

fn payload(argument: &str) -> Result<Box<RawValue>> {
    let text = match argument.strip_prefix('@') {
        Some(file) => read("--data", file)?,
        None if argument == "-" => read("--data", "-")?,
        None => argument.to_owned(),
    };
    RawValue::from_string(text).map_err(|e| Fault::Usage(format!("--data: is not JSON: {e}")))
}

/// A whole text file, or standard input for `-`.
fn read(flag: &str, file: &str) -> Result<String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| text),
        _ => std::fs::read_to_string(Path::new(file)),
    };
    read.map_err(|e| Fault::Usage(format!("{flag}: cannot read {file}: {e}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::parse_from(["post"].iter().chain(line)).args
    }

    fn parsed(line: &[&str]) -> Value {
        serde_json::from_str(&body(&args(line)).expect("a body")).expect("JSON")
    }

    #[test]
    fn the_body_has_what_was_given_and_nothing_else() {
        let bare = parsed(&["--to", "ben", "--type", "t"]);
        assert_eq!(bare, json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}}));
        let line = ["--to", "ben,cleo", "--to", "dan", "--type", "t", "--actor", "ana", "--ttl", "1h", "--thread", "s"];
        let full = parsed(&[&line[..], &["--data", r#"{"n":1}"#]].concat());
        let expected = json!({"type": "t", "data": {"n": 1}, "audience": {"viewers": ["ben", "cleo", "dan"]},
            "actor": {"id": "ana"}, "thread_key": "s", "ttl_seconds": 3600});
        assert_eq!(full, expected);
    }

    #[test]
    fn data_is_sent_as_it_was_given() {
        let data = r#"{"z": 123456789012345678901234, "a": 0.10000000000000000001, "e": 1.50}"#;
        let given = format!(" {data}\n");
        let body = body(&args(&["--to", "ben", "--type", "t", "--data", given.as_str()])).expect("a body");
        assert!(body.contains(&format!(r#""data":{data},"#)), "{body}");
    }

    #[test]
    fn what_cannot_be_sent_is_a_usage_error() {
        let base = ["--to", "ben", "--type", "t"];
        for more in [["--data", "{"], ["--data", "@/nonexistent"], ["--ttl", "1ms"], ["--to-file", "/nonexistent"]] {
            let fault = body(&args(&[&base[..], &more[..]].concat())).expect_err(more[1]);
            assert_eq!(fault.exit_code(), 64, "{fault}");
        }
        assert!(body(&args(&["--to", " , ", "--type", "t"])).is_err());
    }
}
