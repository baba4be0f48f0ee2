//! `fanfold watch`: polls as an app would, and shows what that costs and brings.
//!
//! The loop is the one every client should have: a page once, then only "has it changed?", then only what changed.
//! After 410 the copy is replaced, never merged.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{Answer, Client, Connect, viewer_path};
use super::fault::{Fault, Result};
use super::out;
use super::wire::{Changes, Count, Item, Page};

/// The pause after an answer that does not say how long, and after a failure.
const PAUSE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  fanfold watch ben                         as often as the service asks
  fanfold watch ben --wait 25               long polls: changes show at once
  fanfold watch ben --interval 1 --count 10 --output json";

/// Poll an inbox as an app would: one line a poll, 304 or what has changed
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// Whose inbox
    viewer: String,
    /// Seconds from one poll to the next [default: as the service asks]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: Option<u64>,
    /// Long polls: let the service hold its answer back for up to so many seconds, or as long as it does
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=60))]
    wait: u64,
    /// End after so many polls
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    connect: Connect,
}

/// What one poll brought.
enum Outcome {
    Unchanged,
    Changed(Box<Changes>),
    /// A whole page; why the copy was replaced.
    Page(Box<Page>, &'static str),
}

struct Watch {
    client: Client,
    args: Args,
    token: Option<String>,
    asked_interval: Option<Duration>,
    polls: u64,
    unchanged: u64,
}

/// Polls until told to stop.
pub async fn run(args: Args) -> Result<()> {
    let client = args.connect.client()?;
    let mut watch = Watch { client, args, token: None, asked_interval: None, polls: 0, unchanged: 0 };
    let first = watch.page("first").await?;
    watch.print(200, &first)?;
    let ended = tokio::select! {
        ended = watch.poll_on() => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    ended.and_then(|()| watch.summary())
}

impl Watch {
    async fn poll_on(&mut self) -> Result<()> {
        let mut next = Instant::now() + self.pause();
        while self.args.count.is_none_or(|count| self.polls < count) {
            sleep_until(next).await;
            let begun = Instant::now();
            match self.poll().await {
                Ok((status, outcome)) => {
                    self.print(status, &outcome)?;
                    next = begun + self.pause();
                }
                Err(fault) => {
                    // An app goes on when the service or the network is away for a while, and not sooner than told.
                    let Some(after) = fault.retry_after(self.pause().max(PAUSE)) else { return Err(fault) };
                    out::note(format_args!("{fault}\ntrying again in {:.0} s", after.as_secs_f64().ceil()));
                    next = Instant::now() + after;
                }
            }
        }
        Ok(())
    }

    /// From the start of one poll to the start of the next: a long poll that took longer is followed at once.
    fn pause(&self) -> Duration {
        self.args.interval.map(Duration::from_secs).or(self.asked_interval).unwrap_or(PAUSE)
    }

    /// One poll, and what it leads to.
    async fn poll(&mut self) -> Result<(u16, Outcome)> {
        self.polls += 1;
        let Some(token) = self.token.clone() else {
            return Ok((200, self.page("no token").await?));
        };
        let call = self.client.get(&viewer_path(&self.args.viewer, "revision")?).query("since", &token);
        let call = if self.args.wait > 0 { call.wait(self.args.wait) } else { call };
        let answer = self.client.send(call).await?;
        self.heed(&answer);
        if answer.is_unchanged() {
            self.unchanged += 1;
            return Ok((304, Outcome::Unchanged));
        }
        let call = self.client.get(&viewer_path(&self.args.viewer, "changes")?).query("since", &token);
        let answer = match self.client.send(call).await {
            Err(Fault::Problem(problem)) if problem.status == 410 => {
                sleep(problem.retry_after.unwrap_or_default()).await;
                return Ok((200, self.page("resync").await?));
            }
            answer => answer?,
        };
        if answer.is_unchanged() {
            return Ok((200, Outcome::Unchanged));
        }
        let changes: Changes = answer.json()?;
        self.token.clone_from(&changes.token);
        Ok((200, Outcome::Changed(Box::new(changes))))
    }

    async fn page(&mut self, why: &'static str) -> Result<Outcome> {
        let answer = self.client.send(self.client.get(&viewer_path(&self.args.viewer, "inbox")?)).await?;
        self.heed(&answer);
        let page: Page = answer.json()?;
        self.token.clone_from(&page.token);
        Ok(Outcome::Page(Box::new(page), why))
    }

    fn heed(&mut self, answer: &Answer) {
        self.asked_interval = answer.poll_interval().or(self.asked_interval);
    }

    fn print(&self, status: u16, outcome: &Outcome) -> Result<()> {
        let at = now();
        if self.args.connect.json() {
            let counts = |unseen: Option<Count>, unread: Option<Count>| json!({"unseen": unseen, "unread": unread});
            return out::json_line(&match outcome {
                Outcome::Unchanged => json!({"at": at, "status": status, "event": "unchanged"}),
                Outcome::Page(page, why) => json!({"at": at, "status": status, "event": "page", "why": why,
                    "items": page.items, "counts": counts(page.unseen_count, page.unread_count)}),
                Outcome::Changed(changes) => json!({"at": at, "status": status, "event": "changes",
                    "upserted": changes.upserted.iter().map(|item| &item.post_id).collect::<Vec<_>>(),
                    "removed": changes.removed, "counts": counts(changes.unseen_count, changes.unread_count)}),
            });
        }
        let told = match outcome {
            Outcome::Unchanged => "unchanged".to_owned(),
            Outcome::Page(page, why) => {
                format!(
                    "page ({why}): {}{}",
                    out::count(page.items.len() as u64, "item"),
                    told(page.unseen_count, page.unread_count)
                )
            }
            Outcome::Changed(changes) => {
                format!("{}{}", changed(changes), told(changes.unseen_count, changes.unread_count))
            }
        };
        out::line(format_args!("{}  {status}  {told}", at.get(11..19).unwrap_or(&at)))
    }

    fn summary(&self) -> Result<()> {
        let share = if self.polls == 0 { 0.0 } else { self.unchanged as f64 / self.polls as f64 };
        if self.args.connect.json() {
            let (polls, unchanged) = (self.polls, self.unchanged);
            return out::json_line(
                &json!({"event": "end", "polls": polls, "unchanged": unchanged, "share_304": share}),
            );
        }
        out::note(format_args!("{}, {:.1} % of them 304", out::count(self.polls, "poll"), share * 100.0));
        Ok(())
    }
}

fn now() -> String {
    let at = time::OffsetDateTime::now_utc();
    let at = at.replace_microsecond(0).unwrap_or(at);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

fn told(unseen: Option<Count>, unread: Option<Count>) -> String {
    match (unseen, unread) {
        (Some(unseen), Some(unread)) => format!("; {unseen} unseen, {unread} unread"),
        _ => String::new(),
    }
}

fn changed(changes: &Changes) -> String {
    let about = |item: &Item| {
        let (kind, summary) = (out::clip(&item.kind, 24), out::clip(&item.summary(), 40));
        let actor = item.actor.as_ref().map(|actor| format!(" by {}", out::clip(&actor.id, 20))).unwrap_or_default();
        let summary = if summary.is_empty() { summary } else { format!(" \"{summary}\"") };
        format!("{kind}{actor}{summary} ({})", item.marks())
    };
    let mut parts: Vec<String> = changes.upserted.iter().map(about).collect();
    parts.extend(changes.removed.iter().map(|post| format!("gone {}", out::clip(post, 36))));
    if parts.is_empty() { "nothing visible".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_is_told_in_a_line() {
        let changes: Changes = serde_json::from_value(json!({"from": "T", "token": "U", "removed": ["p2"],
            "upserted": [{"post_id": "p1", "type": "t", "actor": {"id": "ana"}, "data": {"title": "Dawn"}}]}))
        .expect("a delta");
        assert_eq!(changed(&changes), "t by ana \"Dawn\" (new), gone p2");
        let (three, many) = (Count { value: 3, capped: false }, Count { value: 99, capped: true });
        assert_eq!(told(Some(three), Some(many)), "; 3 unseen, 99+ unread");
        assert_eq!(told(None, None), "");
    }
}
