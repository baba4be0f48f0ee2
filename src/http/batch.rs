//! `POST /v1/posts/batch`: many posts in one request, each with an answer of its own.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::App;
use super::access;
use super::front::RequestId;
use super::json::{self, Input, Json};
use super::openapi::{BODY, QUERY, problems};
use super::params;
use super::posts::{self, ActorInput, AudienceInput, PostInput, PublishedBody};
use super::problem::{Answer, ProblemBody};
use crate::access::Caller;
use crate::error::{Error, Result};

/// Posts to be published.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchInput)]
pub(super) struct BatchInput {
    /// 1 to 1,000. Each stands or falls for itself.
    #[schema(value_type = Vec<BatchPostInput>)]
    posts: Vec<Box<RawValue>>,
}

impl Input for BatchInput {
    const BATCH: bool = true;
}

/// A post in a batch: as for a single one, and its idempotency key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchPostInput)]
pub(super) struct BatchPostInput {
    /// What the header `Idempotency-Key` is to a single post.
    idempotency_key: Option<String>,
    /// What kind of notification it is; for the client to interpret. 1 to 128 bytes.
    #[serde(rename = "type")]
    #[schema(example = "story.posted")]
    kind: String,
    actor: Option<ActorInput>,
    /// The payload: passed through as it is. At most 64 KiB of JSON text; `{}` without it.
    #[schema(value_type = Option<Object>, example = json!({"title": "Dawn"}))]
    data: Option<Box<RawValue>>,
    audience: AudienceInput,
    /// Groups posts on the client. 1 to 256 bytes.
    thread_key: Option<String>,
    /// How long the post is served, from its publish. Not with `expires_at`.
    #[schema(minimum = 1)]
    ttl_seconds: Option<u64>,
    /// Until when the post is served. Not with `ttl_seconds`.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

/// One answer for each post, in the order of the posts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchResults)]
struct BatchBody {
    results: Vec<ResultBody>,
}

/// What became of one post: either `post` or `problem` is there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchResult)]
struct ResultBody {
    /// What the post alone would have been answered with.
    #[schema(example = 202)]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = PublishedBody)]
    post: Option<PublishedBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ProblemBody)]
    problem: Option<ProblemBody>,
}

problems!(BatchProblems: BODY, QUERY, &["batch_too_large", "empty_batch", "invalid_idempotency_key"]);

/// Publish many posts
///
/// The posts are written at the same time, so that they share the disk's flushes. One that is refused does not keep
/// the others back.
#[utoipa::path(
    post, path = "/v1/posts/batch", operation_id = "publish_batch", tag = "posts",
    request_body = BatchInput,
    responses(
        (status = 200, description = "A status for each post", body = BatchBody),
        BatchProblems,
    ),
)]
pub(super) async fn publish(State(app): State<App>, Json { head, body }: Json<BatchInput>) -> Answer {
    let [] = params::query(head.uri.query(), [])?;
    if head.headers.contains_key("idempotency-key") {
        // Taken no notice of, it would promise that a retry publishes nothing twice.
        let detail = "must not come with a batch: each of its posts has an idempotency_key of its own";
        return Err(Error::invalid("invalid_idempotency_key", "Idempotency-Key", detail).into());
    }
    let limits = &app.config.publish;
    if body.posts.is_empty() {
        return Err(Error::invalid("empty_batch", "posts", "must have at least one post").into());
    }
    let (limit, value) = (u64::from(limits.batch_max), body.posts.len() as u64);
    if value > limit {
        let detail = format!("must have at most {limit} posts, has {value}");
        return Err(Error::limit("batch_too_large", "posts", detail, limit, value).into());
    }
    let (request_id, caller) = (RequestId::of(&head), access::caller(&app, &head)?);
    let (app, caller, head, request_id) = (&app, &caller, &head, request_id.as_str());
    let work = body.posts.into_iter().enumerate().map(|(at, raw)| async move {
        match publish_one(app, caller, head, &raw).await {
            Ok(post) => ResultBody { status: StatusCode::ACCEPTED.as_u16(), post: Some(post), problem: None },
            Err(error) => {
                // With its own time to come again: the answer is a 200 and has no Retry-After.
                let problem = ProblemBody::timed(&placed(error, at), request_id, app.pacer());
                ResultBody { status: problem.status(), post: None, problem: Some(problem) }
            }
        }
    });
    let results = futures::stream::iter(work).buffered(limits.batch_concurrency as usize).collect().await;
    Ok(json::respond(StatusCode::OK, &BatchBody { results })?)
}

fn placed(error: Error, at: usize) -> Error {
    error.inside(&format!("posts[{at}]"))
}

async fn publish_one(app: &App, caller: &Caller, head: &Parts, raw: &RawValue) -> Result<PublishedBody> {
    let input: BatchPostInput = json::parse(raw.get().as_bytes())?;
    let BatchPostInput { idempotency_key, kind, actor, data, audience, thread_key, ttl_seconds, expires_at } = input;
    let post = PostInput { kind, actor, data, audience, thread_key, ttl_seconds, expires_at };
    let draft = post.draft(app, caller.producer()?, idempotency_key)?;
    Ok(posts::accept(app, caller, head, draft).await?.1)
}
