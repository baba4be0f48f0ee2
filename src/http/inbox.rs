//! `GET /v1/viewers/{v}/inbox`: pages, newest first.

use std::fmt::Write as _;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::dto::{CountBody, ItemBody, counts};
use super::json;
use super::openapi::{QUERY, READ, problems};
use super::params::{self, Held, encode_segment, weak_etag};
use super::poll::unchanged;
use super::problem::Answer;
use crate::domain::{Cursor, ViewerId};
use crate::error::{Error, Kind, Result};
use crate::reader::Poll;

/// A page of an inbox.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InboxPage)]
struct PageBody<'a> {
    #[schema(example = "ben")]
    viewer_id: &'a str,
    /// What to poll with: the state of the inbox at the first page of this walk. Null over archived items.
    #[schema(required = true, example = "AQ3qU0mWm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAA")]
    token: Option<&'a str>,
    /// Newest first.
    items: Vec<ItemBody<'a>>,
    /// Where to go on. Absent on the last page, and only there.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<&'a str>,
    /// This is the last page, and older items than are served were left out.
    truncated: bool,
    /// Items of the whole inbox neither seen nor archived.
    unseen_count: CountBody,
    /// Items of the whole inbox neither read nor archived.
    unread_count: CountBody,
}

problems!(
    InboxProblems: QUERY, READ,
    &["invalid_cursor", "invalid_limit", "invalid_token", "invalid_value", "invalid_viewer_id", "malformed_path",
      "quota_exceeded"],
);

/// Read an inbox
///
/// The first page of the default list is answered with 304 if the client's token is current; that reads no database.
/// Pages may be short: only an absent `next_cursor` is the end.
#[utoipa::path(
    get, path = "/v1/viewers/{viewer_id}/inbox", operation_id = "get_inbox", tag = "viewers",
    params(
        ("viewer_id" = String, Path, description = "The viewer, percent-encoded"),
        ("limit" = Option<u32>, Query, description = "Items on a page, 1 to 100; 20 without it"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("archived" = Option<bool>, Query, description = "The archived items instead of all others"),
        ("since" = Option<String>, Query, description = "The token the client holds"),
        ("If-None-Match" = Option<String>, Header, description = "The token as an entity tag, instead of `since`"),
    ),
    responses(
        (status = 200, description = "A page", body = PageBody, headers(
            ("ETag" = String, description = "The token, weak; on the first page of the default list"),
            ("Link" = String, description = "The next page, rel=\"next\""),
        )),
        (status = 304, description = "Unchanged", headers(("ETag" = String, description = "The token, weak"))),
        InboxProblems,
    ),
)]
pub(super) async fn get(State(app): State<App>, request: Request) -> Answer {
    let (head, _) = request.into_parts();
    let viewer = params::viewer(&head)?;
    let [limit, cursor, archived, since] = params::query(head.uri.query(), ["limit", "cursor", "archived", "since"])?;
    let held = Held::find(since.as_deref(), &head.headers)?;
    let walk = Walk::parse(&app, limit.as_deref(), cursor.as_deref(), archived.as_deref())?;
    let first_by_default = walk.cursor.is_none() && !walk.archived;
    if let Some(held) = held.filter(|_| first_by_default)
        && app.reader.poll(&viewer, Some(held.token)).await.is_ok_and(|poll| poll == Poll::Unchanged)
    {
        return Ok(unchanged(held));
    }
    let page = match walk.cursor {
        None => app.reader.first_page(&viewer, walk.archived, walk.limit).await?,
        Some(cursor) => app.reader.next_page(&viewer, cursor, walk.limit).await?,
    };
    let (token, next) = (page.token.map(|token| token.encode()), page.next.map(|next| next.encode()));
    let (unseen_count, unread_count) = counts(page.counts);
    let body = PageBody {
        viewer_id: viewer.as_str(),
        token: token.as_deref(),
        items: page.items.iter().map(ItemBody::from).collect(),
        next_cursor: next.as_deref(),
        truncated: page.truncated,
        unseen_count,
        unread_count,
    };
    let mut response = json::respond(StatusCode::OK, &body)?;
    if let Some(token) = token.filter(|_| first_by_default) {
        response.headers_mut().insert(header::ETAG, weak_etag(&token));
    }
    if let Some(next) = next {
        response.headers_mut().insert(header::LINK, walk.link(&viewer, &next));
    }
    Ok(response)
}

/// Which page of which list.
struct Walk {
    limit: u32,
    cursor: Option<Cursor>,
    archived: bool,
}

impl Walk {
    fn parse(app: &App, limit: Option<&str>, cursor: Option<&str>, archived: Option<&str>) -> Result<Self> {
        let inbox = &app.config.inbox;
        let limit = match limit {
            Some(text) => params::whole("invalid_limit", "limit", text, 1, inbox.page_max)?,
            None => inbox.page_default.min(inbox.page_max),
        };
        let cursor = cursor.map(|text| Cursor::parse("cursor", text)).transpose()?;
        let archived = params::flag("archived", archived)?;
        if let (Some(cursor), Some(archived)) = (cursor, archived)
            && cursor.archived != archived
        {
            let detail = "belongs to a walk over the other list";
            return Err(Error::new(Kind::Malformed, "invalid_cursor", detail).with_field("cursor"));
        }
        let archived = archived.or(cursor.map(|cursor| cursor.archived)).unwrap_or(false);
        Ok(Self { limit, cursor, archived })
    }

    fn link(&self, viewer: &ViewerId, next: &str) -> HeaderValue {
        let mut link = format!("</v1/viewers/{}/inbox?", encode_segment(viewer.as_str()));
        let archived = if self.archived { "archived=true&" } else { "" };
        // Writing to a string does not fail.
        let _ = write!(link, "{archived}limit={}&cursor={next}>; rel=\"next\"", self.limit);
        HeaderValue::try_from(link).expect("encoded text is visible ASCII")
    }
}
