//! Marks: one item at a time, or many.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::dto::{CountBody, Id, ItemBody, counts};
use super::json::{self, BESIDE_LISTS_BYTES, Input, Json, escaped};
use super::openapi::{BODY, QUERY, WRITE, problems};
use super::params;
use super::problem::Answer;
use crate::config::Config;
use crate::domain::{PostId, Token};
use crate::error::{Error, Result};
use crate::marks::Target;

/// The longest way to write a post's id: after `urn:uuid:`.
const POST_ID_BYTES: u64 = 45;
/// Quotes, comma, line break and indent of an id in a list.
const BESIDE_ID_BYTES: u64 = 32;

/// A mark was set or cleared.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Marked)]
struct MarkedBody<'a> {
    /// The token that the client sent; null if more than this mark lies between it and `token`.
    #[schema(required = true)]
    from: Option<&'a str>,
    /// The token after the mark, which needs no fetch; null: poll on with the one you have.
    #[schema(required = true)]
    token: Option<&'a str>,
    /// The item as it is now.
    #[schema(required = true)]
    item: Option<ItemBody<'a>>,
    /// Items of the whole inbox neither seen nor archived.
    unseen_count: CountBody,
    /// Items of the whole inbox neither read nor archived.
    unread_count: CountBody,
}

problems!(
    MarkProblems: QUERY, WRITE,
    &["invalid_mark", "invalid_post_id", "invalid_token", "invalid_viewer_id", "item_not_found", "malformed_path",
      "quota_exceeded"],
);

/// Set a mark
///
/// Reading implies seeing. A mark that is set keeps its time.
#[utoipa::path(
    put, path = "/v1/viewers/{viewer_id}/inbox/{post_id}/{mark}", operation_id = "set_mark", tag = "viewers",
    params(
        ("viewer_id" = String, Path, description = "The viewer, percent-encoded"),
        ("post_id" = String, Path, format = "uuid", description = "The item"),
        ("mark" = String, Path, description = "`seen`, `read` or `archived`"),
        ("since" = Option<String>, Query, description = "The token the client holds, to get the next one with the answer"),
    ),
    responses((status = 200, description = "It is set", body = MarkedBody), MarkProblems),
)]
pub(super) async fn put(State(app): State<App>, request: Request) -> Answer {
    mark_one(&app, &request.into_parts().0, true).await
}

/// Clear a mark
///
/// Clearing `seen` clears `read` too.
#[utoipa::path(
    delete, path = "/v1/viewers/{viewer_id}/inbox/{post_id}/{mark}", operation_id = "clear_mark", tag = "viewers",
    params(
        ("viewer_id" = String, Path, description = "The viewer, percent-encoded"),
        ("post_id" = String, Path, format = "uuid", description = "The item"),
        ("mark" = String, Path, description = "`seen`, `read` or `archived`"),
        ("since" = Option<String>, Query, description = "The token the client holds, to get the next one with the answer"),
    ),
    responses((status = 200, description = "It is cleared", body = MarkedBody), MarkProblems),
)]
pub(super) async fn delete(State(app): State<App>, request: Request) -> Answer {
    mark_one(&app, &request.into_parts().0, false).await
}

async fn mark_one(app: &App, head: &Parts, value: bool) -> Answer {
    let viewer = params::viewer(head)?;
    let (post_id, mark) = params::post_and_mark(head)?;
    let since = since(head)?;
    let outcome = app.marker.mark(viewer, post_id, mark, value, since).await?;
    let (from, token) = encoded(outcome.moved);
    let (unseen_count, unread_count) = counts(outcome.counts);
    let item = outcome.items.first().map(ItemBody::from);
    let body = MarkedBody { from: from.as_deref(), token: token.as_deref(), item, unseen_count, unread_count };
    Ok(json::respond(StatusCode::OK, &body)?)
}

fn since(head: &Parts) -> Result<Option<Token>> {
    let [since] = params::query(head.uri.query(), ["since"])?;
    since.map(|text| Token::parse("since", &text)).transpose()
}

fn encoded(moved: Option<(Token, Token)>) -> (Option<String>, Option<String>) {
    moved.map(|(from, token)| (from.encode(), token.encode())).unzip()
}

/// Marks on many items: exactly one of `post_ids` and `through`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MarksInput)]
pub(super) struct MarksInput {
    /// `seen`, `read` or `archived`.
    #[schema(example = "read")]
    mark: String,
    /// Set or clear.
    #[serde(default = "yes")]
    #[schema(default = true)]
    value: bool,
    /// These items, as far as the inbox has them. 1 to 1,000.
    post_ids: Option<Vec<String>>,
    /// All items that whoever holds this token can have seen; what came later stays as it is.
    through: Option<String>,
}

fn yes() -> bool {
    true
}

impl Input for MarksInput {
    fn bytes_needed(config: &Config) -> u64 {
        BESIDE_LISTS_BYTES + u64::from(config.inbox.marks_max) * (escaped(POST_ID_BYTES) + BESIDE_ID_BYTES)
    }
}

/// Marks were set or cleared.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MarkedMany)]
struct MarkedManyBody<'a> {
    /// The token that the client sent; null if more than these marks lies between it and `token`.
    #[schema(required = true)]
    from: Option<&'a str>,
    /// The token after the marks, which needs no fetch; null: poll on with the one you have.
    #[schema(required = true)]
    token: Option<&'a str>,
    /// The items that have the mark now, or have it no longer.
    #[schema(value_type = Vec<String>)]
    post_ids: Vec<Id>,
    /// Items of the whole inbox neither seen nor archived.
    unseen_count: CountBody,
    /// Items of the whole inbox neither read nor archived.
    unread_count: CountBody,
}

problems!(
    MarksProblems: BODY, QUERY, WRITE,
    &["ambiguous_marks", "empty_marks", "invalid_mark", "invalid_post_id", "invalid_token", "invalid_viewer_id",
      "malformed_path", "quota_exceeded", "resync_required", "too_many_marks"],
);

/// Set or clear a mark on many items
#[utoipa::path(
    post, path = "/v1/viewers/{viewer_id}/inbox/marks", operation_id = "mark_many", tag = "viewers",
    params(
        ("viewer_id" = String, Path, description = "The viewer, percent-encoded"),
        ("since" = Option<String>, Query, description = "The token the client holds, to get the next one with the answer"),
    ),
    request_body = MarksInput,
    responses((status = 200, description = "Done", body = MarkedManyBody), MarksProblems),
)]
pub(super) async fn post(State(app): State<App>, Json { head, body }: Json<MarksInput>) -> Answer {
    let viewer = params::viewer(&head)?;
    let since = since(&head)?;
    let mark = params::mark("mark", &body.mark)?;
    let target = match (body.post_ids, body.through) {
        (Some(ids), None) => Target::Posts(ids_of(&ids, app.config.inbox.marks_max)?),
        (None, Some(text)) => Target::Through(Token::parse("through", &text)?),
        _ => {
            let detail = "exactly one of post_ids and through must be given";
            return Err(Error::invalid("ambiguous_marks", "post_ids", detail).into());
        }
    };
    let outcome = app.marker.mark_many(viewer, target, mark, body.value, since).await?;
    let (from, token) = encoded(outcome.moved);
    let (unseen_count, unread_count) = counts(outcome.counts);
    let body = MarkedManyBody {
        from: from.as_deref(),
        token: token.as_deref(),
        post_ids: outcome.post_ids.into_iter().map(Id).collect(),
        unseen_count,
        unread_count,
    };
    Ok(json::respond(StatusCode::OK, &body)?)
}

fn ids_of(texts: &[String], ids_max: u32) -> Result<Vec<PostId>> {
    let (limit, value) = (u64::from(ids_max), texts.len() as u64);
    if texts.is_empty() {
        return Err(Error::invalid("empty_marks", "post_ids", "must name at least one post"));
    }
    if value > limit {
        let detail = format!("must name at most {limit} posts, names {value}");
        return Err(Error::limit("too_many_marks", "post_ids", detail, limit, value));
    }
    texts.iter().enumerate().map(|(at, text)| params::post_id(&format!("post_ids[{at}]"), text)).collect()
}
