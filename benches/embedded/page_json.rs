//! A page as JSON, the least that looks the same as the service's: what both raw arms answer.

use axum::http::{HeaderName, header};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::posts;

const TOKEN: &str = "AQ3qU0mWm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAA";
const CURSOR: &str = "AgIBm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAAAQ3qU0mWm4TqzS0XyqXb0kQAAAA";

/// A post as its items show it.
#[derive(Debug)]
pub struct Body {
    /// Its id.
    pub post_id: String,
    /// When it was published.
    pub published_at: String,
    /// What the producer gave.
    pub data: Box<RawValue>,
}

#[derive(Serialize)]
struct Page<'a> {
    viewer_id: &'a str,
    token: &'a str,
    items: Vec<Item<'a>>,
    next_cursor: &'a str,
    truncated: bool,
    unseen_count: Count,
    unread_count: Count,
}

#[derive(Clone, Copy, Serialize)]
struct Count {
    value: u32,
    capped: bool,
}

#[derive(Serialize)]
struct Actor<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct Item<'a> {
    post_id: &'a str,
    version: u32,
    #[serde(rename = "type")]
    kind: &'a str,
    actor: Actor<'a>,
    data: &'a RawValue,
    thread_key: Option<&'a str>,
    published_at: &'a str,
    expires_at: Option<&'a str>,
    seen_at: Option<&'a str>,
    read_at: Option<&'a str>,
    archived_at: Option<&'a str>,
}

/// The answer: headers and the page of what was `found`, with `count` rows in the inbox.
pub fn answer<'a>(
    viewer: &str,
    found: impl Iterator<Item = &'a Body>,
    count: u32,
) -> ([(HeaderName, &'static str); 5], Vec<u8>) {
    let counted = Count { value: count.min(99), capped: count > 99 };
    let page = Page {
        viewer_id: viewer,
        token: TOKEN,
        items: found.map(item).collect(),
        next_cursor: CURSOR,
        truncated: false,
        unseen_count: counted,
        unread_count: counted,
    };
    let json = serde_json::to_vec(&page).expect("a page is plain JSON");
    // What every answer of the service carries, as constants.
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::ETAG, "W/\"AQ3qU0mWm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAA\""),
        (header::CACHE_CONTROL, "private, no-cache"),
        (header::VARY, "Authorization, Origin"),
        (HeaderName::from_static("x-poll-interval"), "15"),
    ];
    (headers, json)
}

fn item(body: &Body) -> Item<'_> {
    let (kind, id, _) = posts::content();
    Item {
        post_id: &body.post_id,
        version: 1,
        kind,
        actor: Actor { id },
        data: &body.data,
        thread_key: None,
        published_at: &body.published_at,
        expires_at: None,
        seen_at: None,
        read_at: None,
        archived_at: None,
    }
}
