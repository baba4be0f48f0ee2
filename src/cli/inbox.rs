//! `fanfold inbox`: what a viewer sees.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::client::{Client, Connect, viewer_path};
use super::fault::{Fault, Result};
use super::out;
use super::pages::Pages;
use super::wire::{Item, Page};

const EXAMPLES: &str = "\
Examples:
  fanfold inbox ben                         the newest 20
  fanfold inbox ben --limit 200
  fanfold inbox ben --all --output json
  fanfold inbox ben --archived";

/// Show an inbox, newest first
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// Whose inbox
    viewer: String,
    /// How many items to show
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Show every item
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Show the archived items instead
    #[arg(long)]
    archived: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Shows an inbox.
pub async fn run(args: Args) -> Result<()> {
    let client = args.connect.client()?;
    let limit = if args.all { u32::MAX } else { args.limit };
    let page = read(&client, &args.viewer, limit, args.archived).await?;
    if args.connect.json() {
        return out::json(&json!({
            "viewer_id": args.viewer, "token": page.token, "items": page.items, "next_cursor": page.next_cursor,
            "truncated": page.truncated, "unseen_count": page.unseen_count, "unread_count": page.unread_count,
        }));
    }
    out::raw(table(&page.items)?.as_bytes())?;
    out::line(counts(&page))
}

/// Walks the pages until there are `limit` items; the first page's token stands for all of them.
async fn read(client: &Client, viewer: &str, limit: u32, archived: bool) -> Result<Page> {
    let path = viewer_path(viewer, "inbox")?;
    let (pages, mut all) = (Pages::default(), None::<Page>);
    loop {
        let have = all.as_ref().map_or(0, |page| page.items.len());
        let left = limit.saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
        let cursor = all.as_ref().and_then(|page| page.next_cursor.as_deref());
        let call = client.get(&path).maybe("archived", archived.then_some(true)).maybe("cursor", cursor);
        let page: Page = pages.read(&call, left, |call| client.send(call)).await?;
        let all = match &mut all {
            None => all.insert(page),
            Some(all) => {
                all.items.extend(page.items);
                (all.next_cursor, all.truncated) = (page.next_cursor, page.truncated);
                all
            }
        };
        if all.next_cursor.is_none() || all.items.len() >= limit as usize {
            return Ok(all.clone());
        }
    }
}

fn table(items: &[Value]) -> Result<String> {
    let mut rows = vec![["TIME", "TYPE", "ACTOR", "MARK", "ABOUT", "POST"].map(str::to_owned).to_vec()];
    for item in items {
        let item: Item =
            serde_json::from_value(item.clone()).map_err(|e| Fault::Answer(format!("an item cannot be read: {e}")))?;
        rows.push(vec![
            instant(&item.published_at),
            out::clip(&item.kind, 24),
            out::clip(item.actor.as_ref().map_or("", |actor| &actor.id), 20),
            item.marks().to_owned(),
            out::clip(&item.summary(), 48),
            out::clip(&item.post_id, 36),
        ]);
    }
    Ok(if items.is_empty() { String::new() } else { out::columns(&rows) })
}

fn counts(page: &Page) -> String {
    let mut parts = vec![format!("{} shown", page.items.len())];
    if let (Some(unseen), Some(unread)) = (page.unseen_count, page.unread_count) {
        parts.push(format!("{unseen} unseen, {unread} unread"));
    }
    if page.next_cursor.is_some() {
        parts.push("more with --limit or --all".to_owned());
    } else if page.truncated {
        parts.push("older ones are no longer served".to_owned());
    }
    parts.join("; ")
}

/// An instant without its fraction, or the text as it came.
fn instant(text: &str) -> String {
    let short = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok().map(|at| at.to_offset(time::UtcOffset::UTC));
    parsed.and_then(|at| at.format(&short).ok()).unwrap_or_else(|| out::clip(text, 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_a_table() {
        let item = json!({"post_id": "p1", "version": 1, "type": "story.posted", "actor": {"id": "ana"},
            "data": {"title": "Da\u{1b}wn"}, "published_at": "2025-11-22T11:20:33.123+01:00", "seen_at": null});
        let text = table(&[item]).expect("a table");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "2025-11-22 10:20:33Z  story.posted  ana    new   Da\u{fffd}wn  p1");
        assert_eq!(table(&[]).expect("nothing"), "");
    }

    #[test]
    fn the_last_line_counts() {
        let page: Page = serde_json::from_value(json!({"items": [{}], "truncated": true,
            "unseen_count": {"value": 3, "capped": false}, "unread_count": {"value": 99, "capped": true}}))
        .expect("a page");
        assert_eq!(counts(&page), "1 shown; 3 unseen, 99+ unread; older ones are no longer served");
    }
}
