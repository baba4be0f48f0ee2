//! `PATCH` and `DELETE /v1/posts/{id}`: edit a post, take it back.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::App;
use super::access;
use super::bodies::Share;
use super::data;
use super::dto::{Id, Stamp, parse_time};
use super::json::{self, Input, Json, nullable};
use super::merge::Patch;
use super::openapi::{BODY, QUERY, WRITE, problems};
use super::params::{self, IfMatch};
use super::posts::{etag, state};
use super::problem::Answer;
use crate::access::audit::{self, PostEvent};
use crate::access::{Caller, Cost};
use crate::domain::{Post, PostId, PostState, ProducerId};
use crate::error::{Error, Kind, Result};
use crate::publish::{Edit, stale, uninterrupted};

/// A JSON merge patch (RFC 7396): what is absent stays, what is null goes, objects are merged.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PostPatch)]
pub(super) struct PatchInput {
    /// The new type; null is refused, since a post must have one.
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, example = "story.edited")]
    kind: Option<Option<String>>,
    /// Merged into the payload; null empties it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Object>, example = json!({"title": "Dusk"}))]
    data: Option<Option<Box<RawValue>>>,
    /// Until when the post is served; null takes the end away.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Option<String>>,
}

impl Input for PatchInput {
    const PATCH: bool = true;
}

/// A post that was changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Changed)]
struct ChangedBody {
    #[schema(value_type = String, format = "uuid", example = "019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b")]
    post_id: Id,
    /// The version it has now.
    #[schema(example = 2)]
    version: u32,
    /// `live`, `retracted` or `expired`.
    #[schema(example = "live")]
    state: &'static str,
    #[schema(value_type = String, format = DateTime)]
    published_at: Stamp,
}

fn changed(app: &App, post: &Post) -> Answer {
    let body = ChangedBody {
        post_id: Id(post.id),
        version: post.version,
        state: state(post, app.clock.now()),
        published_at: Stamp(post.id.time()),
    };
    let mut response = json::respond(StatusCode::ACCEPTED, &body)?;
    response.headers_mut().insert(header::ETAG, etag(post));
    Ok(response)
}

problems!(
    EditProblems: BODY, QUERY, WRITE,
    &["data_too_deep", "data_too_large", "expiry_in_past", "expiry_too_far", "invalid_if_match", "invalid_post_id",
      "invalid_time", "malformed_path", "post_not_found", "post_retracted", "precondition_required",
      "quota_exceeded", "too_many_versions", "version_mismatch"],
);

/// Edit a post
///
/// The edit reaches every inbox that has the post; marks stay as they are.
#[utoipa::path(
    patch, path = "/v1/posts/{post_id}", operation_id = "edit_post", tag = "posts",
    params(
        ("post_id" = String, Path, format = "uuid", description = "The post"),
        ("If-Match" = String, Header, description = "The ETag of the version that is edited, or *"),
    ),
    request_body(content(
        (PatchInput = "application/merge-patch+json"),
        (PatchInput = "application/json"),
    )),
    responses(
        (status = 202, description = "Accepted", body = ChangedBody,
            headers(("ETag" = String, description = "The new version"))),
        EditProblems,
    ),
)]
pub(super) async fn edit(State(app): State<App>, Json { head, body }: Json<PatchInput>) -> Answer {
    let id = params::post(&head)?;
    let [] = params::query(head.uri.query(), [])?;
    let Some(demanded) = IfMatch::find(&head.headers)? else {
        let detail = "an edit must say which version it is of, or * for any";
        return Err(Error::new(Kind::Precondition, "precondition_required", detail).with_field("If-Match").into());
    };
    let fixed = Edit {
        kind: body.kind.map(|kind| kind.ok_or_else(untyped)).transpose()?,
        data: None,
        expires_at: body.expires_at.map(|at| at.map(|at| parse_time("expires_at", &at)).transpose()).transpose()?,
    };
    let caller = access::caller(&app, &head)?;
    let producer = caller.producer()?;
    let patch = body.data.map(|data| data.map(Patch::check).transpose()).transpose()?;
    let (of, bytes) = (demanded.version(), patch.iter().flatten().map(Patch::bytes).sum());
    let (made, share) = (app.clone(), Share::of(&head));
    let post = uninterrupted(async move {
        let _held = share;
        let paid = pay(&made, &caller, &producer, id, of, bytes).await?;
        let post = match patch {
            None => made.publisher.edit(&producer, id, of, fixed).await?,
            Some(patch) => merge_edit(&made, &producer, id, demanded, fixed, patch.as_ref()).await?,
        };
        account(&made, &caller, PostEvent::Edited, &post, paid).await;
        Ok(post)
    });
    changed(&app, &post.await?)
}

/// What a change was charged with before it was made.
#[derive(Clone, Copy)]
struct Paid {
    rows: u32,
    /// There was nothing left to change: the post was retracted before.
    over: bool,
}

/// Charges a change of a post with its rows before it is made, or refuses it: of many at once each would otherwise find
/// something left. What cannot be done as the post stands costs none; why it cannot is told by whoever tries.
async fn pay(
    app: &App,
    caller: &Caller,
    producer: &ProducerId,
    id: PostId,
    expected: Option<u32>,
    bytes: u64,
) -> Result<Paid> {
    let mut paid = Paid { rows: 0, over: false };
    if app.access.limits_rows(caller)
        && let Ok(post) = app.publisher.owned_post(producer, id).await
    {
        paid.over = post.state == PostState::Retracted;
        let possible = !paid.over && expected.is_none_or(|expected| expected == post.version);
        paid.rows = if possible { post.audience_size } else { 0 };
    }
    app.access.charge(caller, Cost { rows: paid.rows.into(), bytes }).await?;
    Ok(paid)
}

/// What follows a change that was made. It goes with the change, on one task: whoever hangs up escapes neither.
async fn account(app: &App, caller: &Caller, event: PostEvent, post: &Post, paid: Paid) {
    audit::post(event, caller, post.id, post.version);
    // Another change may have come between and made this one possible.
    let due = if paid.over { 0 } else { post.audience_size.saturating_sub(paid.rows) };
    app.access.charge_rows(caller, due).await;
}

fn untyped() -> Error {
    Error::invalid("invalid_value", "type", "must not be null")
}

/// An edit whose `data` depends on the data there is: read, merge, and insist on the version that was read.
async fn merge_edit(
    app: &App,
    producer: &ProducerId,
    id: PostId,
    demanded: IfMatch,
    fixed: Edit,
    patch: Option<&Patch>,
) -> Result<Post> {
    loop {
        let (post, _) = app.publisher.status(producer, id).await?;
        let expected = demanded.version().unwrap_or(post.version);
        if expected != post.version {
            // Never merge into a version that was not asked for: by the time of the write it may have become that one.
            return Err(stale(&post, expected));
        }
        let merged = match patch {
            None => data::EMPTY.to_owned(),
            Some(patch) => patch.apply(&post.data)?,
        };
        let edit = Edit { data: Some(merged), ..fixed.clone() };
        match app.publisher.edit(producer, id, Some(expected), edit).await {
            // Somebody else's edit came between; whoever wants any version wants this one on top of it.
            Err(error) if demanded == IfMatch::Any && error.code() == "version_mismatch" => {}
            result => return result,
        }
    }
}

problems!(
    RetractProblems: QUERY, WRITE,
    &["invalid_if_match", "invalid_post_id", "malformed_path", "post_not_found", "quota_exceeded",
      "too_many_versions", "version_mismatch"],
);

/// Retract a post
///
/// From the answer on no reader sees it, though its fan-out may still run. Retracting again changes nothing.
#[utoipa::path(
    delete, path = "/v1/posts/{post_id}", operation_id = "retract_post", tag = "posts",
    params(
        ("post_id" = String, Path, format = "uuid", description = "The post"),
        ("If-Match" = Option<String>, Header, description = "Only if the post is at this version"),
    ),
    responses(
        (status = 202, description = "Accepted", body = ChangedBody,
            headers(("ETag" = String, description = "The new version"))),
        RetractProblems,
    ),
)]
pub(super) async fn retract(State(app): State<App>, request: Request) -> Answer {
    let (head, _) = request.into_parts();
    let id = params::post(&head)?;
    let [] = params::query(head.uri.query(), [])?;
    let expected = IfMatch::find(&head.headers)?.and_then(IfMatch::version);
    let caller = access::caller(&app, &head)?;
    let (producer, made) = (caller.producer()?, app.clone());
    let post = uninterrupted(async move {
        let paid = pay(&made, &caller, &producer, id, expected, 0).await?;
        let post = made.publisher.retract(&producer, id, expected).await?;
        account(&made, &caller, PostEvent::Retracted, &post, paid).await;
        Ok(post)
    });
    changed(&app, &post.await?)
}
