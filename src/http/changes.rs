//! `GET /v1/viewers/{v}/changes`: what has changed since a token.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::dto::{CountBody, Id, ItemBody, counts};
use super::json;
use super::openapi::{QUERY, READ, problems};
use super::params::{self, Held};
use super::poll::unchanged;
use super::problem::Answer;
use crate::error::Error;

/// What has changed since `from`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Changes)]
struct ChangesBody<'a> {
    #[schema(example = "ben")]
    viewer_id: &'a str,
    /// The token that the client holds.
    from: &'a str,
    /// The token that it holds once it has taken this in.
    token: &'a str,
    /// Items that are new or changed; replace the ones of the same id.
    upserted: Vec<ItemBody<'a>>,
    /// Posts that are gone.
    #[schema(value_type = Vec<String>)]
    removed: Vec<Id>,
    /// Items of the whole inbox neither seen nor archived.
    unseen_count: CountBody,
    /// Items of the whole inbox neither read nor archived.
    unread_count: CountBody,
}

problems!(
    ChangesProblems: QUERY, READ,
    &["invalid_token", "invalid_viewer_id", "malformed_path", "missing_parameter", "quota_exceeded", "resync_required"],
);

/// Read what has changed
///
/// Either exactly what changed since the token, or `410`: then read the inbox afresh and replace the copy.
#[utoipa::path(
    get, path = "/v1/viewers/{viewer_id}/changes", operation_id = "get_changes", tag = "viewers",
    params(
        ("viewer_id" = String, Path, description = "The viewer, percent-encoded"),
        ("since" = Option<String>, Query, description = "The token the client holds; or If-None-Match"),
        ("If-None-Match" = Option<String>, Header, description = "The token as an entity tag, instead of `since`"),
    ),
    responses(
        (status = 200, description = "What has changed", body = ChangesBody),
        (status = 304, description = "Nothing has", headers(("ETag" = String, description = "The token, weak"))),
        ChangesProblems,
    ),
)]
pub(super) async fn get(State(app): State<App>, request: Request) -> Answer {
    let (head, _) = request.into_parts();
    let viewer = params::viewer(&head)?;
    let [since] = params::query(head.uri.query(), ["since"])?;
    let Some(held) = Held::find(since.as_deref(), &head.headers)? else {
        let detail = "must be given, here or as If-None-Match: the token that the client holds";
        return Err(Error::invalid("missing_parameter", "since", detail).into());
    };
    let Some(delta) = app.reader.changes(&viewer, held.token).await? else { return Ok(unchanged(held)) };
    let (unseen_count, unread_count) = counts(delta.counts);
    let body = ChangesBody {
        viewer_id: viewer.as_str(),
        from: &held.token.encode(),
        token: &delta.token.encode(),
        upserted: delta.upserted.iter().map(ItemBody::from).collect(),
        removed: delta.removed.into_iter().map(Id).collect(),
        unseen_count,
        unread_count,
    };
    Ok(json::respond(StatusCode::OK, &body)?)
}
