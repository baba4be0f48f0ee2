//! `/v1/posts`: publish a post and look at it.

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::App;
use super::access;
use super::bodies::Share;
use super::data::{self, Fingerprint};
use super::dto::{ActorBody, Id, RawJson, Stamp, parse_time};
use super::json::{self, Input, Json};
use super::openapi::{BODY, QUERY, READ, WRITE, problems};
use super::params::{self, Wait};
use super::problem::Answer;
use super::routes::Route;
use crate::access::audit::{self, PostEvent};
use crate::access::{Caller, Cost};
use crate::domain::{Audience, Post, PostState, ProducerId, Time};
use crate::error::{Error, Result};
use crate::publish::{Attempt, Draft, Expiry, Idempotency, Progress, uninterrupted};

/// A post to be published.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PostInput)]
pub(super) struct PostInput {
    /// What kind of notification it is; for the client to interpret. 1 to 128 bytes.
    #[serde(rename = "type")]
    #[schema(example = "story.posted")]
    pub kind: String,
    pub actor: Option<ActorInput>,
    /// The payload: passed through as it is. At most 64 KiB of JSON text; `{}` without it.
    #[schema(value_type = Option<Object>, example = json!({"title": "Dawn"}))]
    pub data: Option<Box<RawValue>>,
    pub audience: AudienceInput,
    /// Groups posts on the client. 1 to 256 bytes.
    #[schema(example = "s1")]
    pub thread_key: Option<String>,
    /// How long the post is served, from its publish. Not with `expires_at`.
    #[schema(minimum = 1, example = 86400)]
    pub ttl_seconds: Option<u64>,
    /// Until when the post is served. Not with `ttl_seconds`.
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
}

impl Input for PostInput {}

/// Who did what the post tells.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ActorInput)]
pub(super) struct ActorInput {
    /// Whatever the producer calls them. 1 to 128 bytes.
    #[schema(example = "ana")]
    pub id: String,
}

/// Whom the post is for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AudienceInput)]
pub(super) struct AudienceInput {
    /// Viewer ids; repeats are dropped and reported. 1 to 10,000.
    #[schema(example = json!(["ben", "cleo"]))]
    pub viewers: Vec<String>,
}

impl PostInput {
    /// Checks what can be checked without the store's help.
    pub(super) fn draft(self, app: &App, producer: ProducerId, key: Option<String>) -> Result<Draft> {
        let expiry = match (self.ttl_seconds, self.expires_at.as_deref()) {
            (Some(_), Some(_)) => {
                let detail = "must not be given together with expires_at";
                return Err(Error::invalid("ambiguous_expiry", "ttl_seconds", detail));
            }
            (Some(seconds), None) => Expiry::After(Duration::from_secs(seconds)),
            (None, Some(text)) => Expiry::At(parse_time("expires_at", text)?),
            (None, None) => Expiry::Never,
        };
        let data = data::check(self.data)?;
        let actor = self.actor.map(|actor| actor.id);
        let viewers = &self.audience.viewers;
        let audience = Audience::parse("audience.viewers", viewers, app.config.publish.audience_max)?;
        app.publisher.check_viewers("audience.viewers", viewers)?;
        let idempotency = key.map(|key| {
            let at = if let Expiry::At(at) = expiry { Some(i128::from(at.micros())) } else { None };
            let fingerprint = Fingerprint::new()
                .text(Some(&self.kind))
                .text(actor.as_deref())
                .json(&data)
                .text(self.thread_key.as_deref())
                .number(self.ttl_seconds.map(i128::from))
                .number(at)
                .texts(viewers.iter().map(String::as_str))
                .finish();
            Idempotency { key, fingerprint }
        });
        Ok(Draft { producer, kind: self.kind, actor, data, thread_key: self.thread_key, audience, expiry, idempotency })
    }
}

/// A post that was accepted, or would be.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Published)]
pub(super) struct PublishedBody {
    /// Null after a dry run.
    #[schema(required = true, value_type = Option<String>, format = "uuid", example = "019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b")]
    post_id: Option<Id>,
    #[schema(example = 1)]
    version: u32,
    #[schema(example = "live")]
    state: &'static str,
    /// Null after a dry run.
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    published_at: Option<Stamp>,
    audience: AudienceBody,
}

/// Whom it is for, in numbers.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Audience)]
pub(super) struct AudienceBody {
    /// Distinct viewers.
    #[schema(example = 2)]
    size: u32,
    /// Repeats that were dropped.
    #[schema(example = 0)]
    duplicates: u32,
}

impl PublishedBody {
    fn new(audience: &Audience, post: Option<&Post>) -> Self {
        Self {
            post_id: post.map(|post| Id(post.id)),
            version: 1,
            state: "live",
            published_at: post.map(|post| Stamp(post.id.time())),
            audience: AudienceBody { size: audience.size(), duplicates: audience.duplicates() },
        }
    }
}

/// Publishes a draft and says so. It is charged before anything is done, so that a refusal has done nothing, and given back
/// what it paid if it fails or is a repeat. All of that is one task: whoever hangs up and tries again pays once. It holds what
/// `head` has of the memory for bodies until it ends.
pub(super) async fn accept(app: &App, caller: &Caller, head: &Parts, draft: Draft) -> Result<(Post, PublishedBody)> {
    app.publisher.check(&draft)?;
    let audience = draft.audience.clone();
    let (made, by, share) = (app.clone(), caller.clone(), Share::of(head));
    let published = uninterrupted(async move {
        let _held = share;
        let cost = Cost { rows: draft.audience.size().into(), bytes: draft.data.len() as u64 };
        let receipt = made.access.charge(&by, cost).await?;
        let Attempt { post, first } = made.publisher.attempt(&draft).await;
        if let Ok(post) = &post {
            let event = if first { PostEvent::Published } else { PostEvent::Repeated };
            audit::post(event, &by, post.id, post.version);
        }
        if !first {
            made.access.give_back(receipt).await;
        }
        post
    });
    let post = published.await?;
    let body = PublishedBody::new(&audience, Some(&post));
    Ok((post, body))
}

problems!(
    PublishProblems: BODY, QUERY, WRITE,
    &["ambiguous_expiry", "audience_too_large", "data_too_deep", "data_too_large", "empty_audience", "expiry_in_past",
      "expiry_too_far", "idempotency_key_reused", "invalid_idempotency_key", "invalid_time", "invalid_viewer_id",
      "quota_exceeded"],
);

/// Publish a post
///
/// `202` means that the post and its audience are on disk; the fan-out follows. With an `Idempotency-Key` a retry
/// completes the same post and gets the same answer, also while the first try still runs.
#[utoipa::path(
    post, path = "/v1/posts", operation_id = "publish", tag = "posts",
    params(
        ("dry_run" = Option<bool>, Query, description = "Check only: nothing is stored"),
        ("Idempotency-Key" = Option<String>, Header, description = "A quoted string, or bare text; kept for 24 hours"),
    ),
    request_body(content = PostInput, example = json!({
        "type": "story.posted", "actor": {"id": "ana"}, "data": {"title": "Dawn"},
        "audience": {"viewers": ["ben", "cleo"]}, "thread_key": "s1", "ttl_seconds": 86400,
    })),
    responses(
        (status = 200, description = "A dry run: it would be accepted", body = PublishedBody),
        (status = 202, description = "Accepted", body = PublishedBody,
            headers(("Location" = String, description = "The post"))),
        PublishProblems,
    ),
)]
pub(super) async fn publish(State(app): State<App>, Json { head, body }: Json<PostInput>) -> Answer {
    let [dry_run] = params::query(head.uri.query(), ["dry_run"])?;
    let dry_run = params::flag("dry_run", dry_run.as_deref())?.unwrap_or(false);
    let caller = access::caller(&app, &head)?;
    let draft = body.draft(&app, caller.producer()?, params::idempotency_key(&head.headers)?)?;
    if dry_run {
        app.publisher.dry_run(&draft)?;
        return Ok(json::respond(StatusCode::OK, &PublishedBody::new(&draft.audience, None))?);
    }
    let (post, body) = accept(&app, &caller, &head, draft).await?;
    let mut response = json::respond(StatusCode::ACCEPTED, &body)?;
    response.headers_mut().insert(header::LOCATION, location(&post));
    Ok(response)
}

/// The path of a post.
pub(super) fn location(post: &Post) -> HeaderValue {
    HeaderValue::try_from(format!("/v1/posts/{}", post.id)).expect("an id is visible ASCII")
}

/// The strong entity tag of a post: its version.
pub(super) fn etag(post: &Post) -> HeaderValue {
    HeaderValue::try_from(format!("\"{}\"", post.version)).expect("a number is visible ASCII")
}

/// Where a post is in its life.
pub(super) fn state(post: &Post, now: Time) -> &'static str {
    match post.state {
        PostState::Retracted => "retracted",
        PostState::Live if post.is_expired(now) => "expired",
        PostState::Live => "live",
    }
}

/// A post as its producer sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Post)]
struct PostBody<'a> {
    #[schema(value_type = String, format = "uuid", example = "019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b")]
    post_id: Id,
    /// 1 at first, one more with every edit and the retract.
    #[schema(example = 1)]
    version: u32,
    /// `live`, `retracted` or `expired`.
    #[schema(example = "live")]
    state: &'static str,
    #[serde(rename = "type")]
    #[schema(example = "story.posted")]
    kind: &'a str,
    #[schema(required = true)]
    actor: Option<ActorBody<'a>>,
    #[schema(value_type = Object, example = json!({"title": "Dawn"}))]
    data: RawJson<'a>,
    #[schema(required = true)]
    thread_key: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    published_at: Stamp,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Stamp>,
    fanout: FanoutBody,
}

/// How far the fan-out has come, in inbox rows.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Fanout)]
struct FanoutBody {
    /// `running` or `done`.
    #[schema(example = "done")]
    status: &'static str,
    #[schema(example = 2)]
    total: u32,
    #[schema(example = 2)]
    written: u32,
    /// Not written because their life was over.
    #[schema(example = 0)]
    skipped: u32,
    /// Set aside after too many failures.
    #[schema(example = 0)]
    failed: u32,
}

impl From<Progress> for FanoutBody {
    fn from(progress: Progress) -> Self {
        let Progress { done, total, written, skipped, failed } = progress;
        Self { status: if done { "done" } else { "running" }, total, written, skipped, failed }
    }
}

problems!(StatusProblems: QUERY, READ, &["invalid_post_id", "invalid_wait", "malformed_path", "post_not_found"]);

/// Look at a post and its fan-out
///
/// With `wait` the answer comes when the fan-out is done, or when the time is up; at once where too many wait already.
#[utoipa::path(
    get, path = "/v1/posts/{post_id}", operation_id = "get_post", tag = "posts",
    params(
        ("post_id" = String, Path, format = "uuid", description = "The post"),
        ("wait" = Option<u32>, Query, description = "Seconds to wait for the fan-out, 0 to 60"),
        ("Prefer" = Option<String>, Header, description = "`wait=S`, the same as a preference"),
    ),
    responses(
        (status = 200, description = "The post", body = PostBody,
            headers(("ETag" = String, description = "The version, strong: for If-Match"))),
        StatusProblems,
    ),
)]
pub(super) async fn get(State(app): State<App>, request: Request) -> Answer {
    let (head, _) = request.into_parts();
    let id = params::post(&head)?;
    let [wait] = params::query(head.uri.query(), ["wait"])?;
    let wait = Wait::find(wait.as_deref(), &head.headers, app.config.http.wait_s_max)?;
    let producer = access::caller(&app, &head)?.producer()?;
    let mut found = app.status.status(&producer, id).await?;
    // When too many wait already, it is as if the time was up: the same as with polls.
    if !found.1.done
        && !wait.time.is_zero()
        && let Some(_waiting) = app.pacer().wait_for_fanout(app.config.revisions.waiters_max)
    {
        let done = app.status.status_when_done(&producer, id, Instant::now() + wait.time);
        // At shutdown whoever waits is answered with what there is.
        if let Some(result) = app.stopping().run_until_cancelled(done).await {
            found = result?;
        }
        access::still_admits(&app, Route::Post, &head).await?;
    }
    let (post, progress) = found;
    let body = PostBody {
        post_id: Id(post.id),
        version: post.version,
        state: state(&post, app.clock.now()),
        kind: &post.kind,
        actor: post.actor.as_deref().map(|id| ActorBody { id }),
        data: RawJson(&post.data),
        thread_key: post.thread_key.as_deref(),
        published_at: Stamp(post.id.time()),
        expires_at: post.expires_at.map(Stamp),
        fanout: progress.into(),
    };
    let mut response = json::respond(StatusCode::OK, &body)?;
    response.headers_mut().insert(header::ETAG, etag(&post));
    response.headers_mut().extend(wait.applied());
    Ok(response)
}
