//! The polls: has anything changed? `GET …/revision` for one viewer, `POST /v1/revisions/query` for many.

use std::sync::OnceLock;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Response, StatusCode, header};
use metrics::{Counter, counter};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::json::{self, BESIDE_LISTS_BYTES, Input, Json, escaped};
use super::openapi::{BODY, QUERY, problems};
use super::params::{self, Held, Wait};
use super::problem::Answer;
use super::routes::Route;
use super::{App, access};
use crate::config::Config;
use crate::domain::ids::VIEWER_ID_BYTES_MAX;
use crate::domain::{Token, ViewerId};
use crate::error::{Error, Result};
use crate::reader::Poll;

/// A token, as [`Token::encode`] writes it.
const TOKEN_BYTES: u64 = 44;
/// Names, quotes, braces, commas, line breaks and indents of a viewer and a token in a list.
const BESIDE_VIEWER_BYTES: u64 = 256;

/// Counts a poll by what it found. The handles are looked up once: this is the most frequent request there is.
fn count(found: Option<Poll>) {
    static COUNTERS: OnceLock<[Counter; 3]> = OnceLock::new();
    let counters = COUNTERS.get_or_init(|| {
        ["unchanged", "changed", "error"].map(|result| counter!("fanfold_revision_polls_total", "result" => result))
    });
    let at = match found {
        Some(Poll::Unchanged) => 0,
        Some(Poll::Changed) => 1,
        None => 2,
    };
    counters[at].increment(1);
}

/// The answer when something has changed, or the client holds nothing yet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Revision)]
struct RevisionBody<'a> {
    #[schema(example = "ben")]
    viewer_id: &'a str,
    /// Always true: what has not changed is answered with 304.
    changed: bool,
}

problems!(
    PollProblems: QUERY, &["invalid_token", "invalid_viewer_id", "invalid_wait", "malformed_path", "quota_exceeded",
      "revisions_unavailable"],
);

/// Ask whether an inbox has changed
///
/// Costs no database read, so ask often: every `X-Poll-Interval` seconds. It hands out no token; fetch the inbox or the
/// changes to get the next one.
#[utoipa::path(
    get, path = "/v1/viewers/{viewer_id}/revision", operation_id = "poll", tag = "viewers",
    params(
        ("viewer_id" = String, Path, description = "The viewer, percent-encoded"),
        ("since" = Option<String>, Query, description = "The token the client holds; without it the answer is 200"),
        ("wait" = Option<u32>, Query, description = "Seconds to wait for a change, 0 to 60"),
        ("If-None-Match" = Option<String>, Header, description = "The token as an entity tag, instead of `since`"),
        ("Prefer" = Option<String>, Header, description = "`wait=S`, the same as a preference"),
    ),
    responses(
        (status = 200, description = "Changed: fetch", body = RevisionBody),
        (status = 304, description = "Unchanged", headers(("ETag" = String, description = "The token, weak"))),
        PollProblems,
    ),
)]
pub(super) async fn get(State(app): State<App>, request: Request) -> Answer {
    let (head, _) = request.into_parts();
    answer(&app, &head).await
}

/// Answers a poll. [`super::front`] comes here directly, past the router.
pub(super) async fn answer(app: &App, head: &Parts) -> Answer {
    let result = look(app, head).await;
    count(result.as_ref().ok().map(|(_, poll)| *poll));
    let (asked, poll) = result?;
    asked.respond(poll)
}

async fn look(app: &App, head: &Parts) -> Result<(Asked, Poll)> {
    let asked = Asked::parse(app, head)?;
    let poll = asked.look(app, head).await?;
    Ok((asked, poll))
}

struct Asked {
    viewer: ViewerId,
    held: Option<Held>,
    wait: Wait,
}

impl Asked {
    fn parse(app: &App, head: &Parts) -> Result<Self> {
        let viewer = params::viewer(head)?;
        let [since, wait] = params::query(head.uri.query(), ["since", "wait"])?;
        let held = Held::find(since.as_deref(), &head.headers)?;
        let wait = Wait::find(wait.as_deref(), &head.headers, app.config.http.wait_s_max)?;
        Ok(Self { viewer, held, wait })
    }

    async fn look(&self, app: &App, head: &Parts) -> Result<Poll> {
        let token = self.held.as_ref().map(|held| held.token);
        if self.wait.time.is_zero() || token.is_none() {
            return app.reader.poll(&self.viewer, token).await;
        }
        // Boxed, so that the polls that do not wait are not as large as those that do: each is moved about several times.
        Box::pin(self.wait(app, token, head)).await
    }

    async fn wait(&self, app: &App, token: Option<Token>, head: &Parts) -> Result<Poll> {
        let _waiting = app.pacer().wait();
        let changed = app.reader.poll_until(&self.viewer, token, Instant::now() + self.wait.time);
        let poll = match app.stopping().run_until_cancelled(changed).await {
            Some(Err(error)) if error.code() != "too_many_waiters" => return Err(error),
            Some(Ok(poll)) => poll,
            // Who has not waited needs no second look.
            Some(Err(_)) => return app.reader.poll(&self.viewer, token).await,
            // At shutdown it is as if the time was up.
            None => app.reader.poll(&self.viewer, token).await?,
        };
        access::still_admits(app, Route::Poll, head).await?;
        Ok(poll)
    }

    fn respond(self, poll: Poll) -> Answer {
        let mut response = match (poll, self.held) {
            (Poll::Unchanged, Some(held)) => unchanged(held),
            _ => {
                let body = RevisionBody { viewer_id: self.viewer.as_str(), changed: true };
                json::respond(StatusCode::OK, &body)?
            }
        };
        if let Some((name, value)) = self.wait.applied() {
            response.headers_mut().insert(name, value);
        }
        Ok(response)
    }
}

/// 304, with the tag that the client holds.
pub(super) fn unchanged(held: Held) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    // Room for all that an answer carries, so that the map never grows.
    response.headers_mut().reserve(8);
    response.headers_mut().insert(header::ETAG, held.etag);
    response
}

/// Viewers to ask about.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RevisionQuery)]
pub(super) struct QueryInput {
    /// 1 to 1,000.
    viewers: Vec<QueryViewer>,
}

impl Input for QueryInput {
    fn bytes_needed(config: &Config) -> u64 {
        // Not publish.viewer_id_bytes_max: inboxes from before it was lowered are still asked about.
        let viewer = escaped(VIEWER_ID_BYTES_MAX as u64 + TOKEN_BYTES) + BESIDE_VIEWER_BYTES;
        BESIDE_LISTS_BYTES + u64::from(config.revisions.query_max) * viewer
    }
}

/// One viewer to ask about.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RevisionQueryViewer)]
struct QueryViewer {
    #[schema(example = "ben")]
    viewer_id: String,
    /// What is held for this viewer; without it the answer is changed.
    token: Option<String>,
}

/// One answer for each viewer, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RevisionResults)]
struct ResultsBody<'a> {
    results: Vec<ResultBody<'a>>,
}

/// Whether one inbox has changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RevisionResult)]
struct ResultBody<'a> {
    #[schema(example = "ben")]
    viewer_id: &'a str,
    changed: bool,
}

problems!(
    QueryProblems: BODY, QUERY,
    &["empty_query", "invalid_token", "invalid_viewer_id", "query_too_large", "revisions_unavailable"],
);

/// Ask for many viewers at once
///
/// For a backend that polls on behalf of its clients.
#[utoipa::path(
    post, path = "/v1/revisions/query", operation_id = "poll_many", tag = "viewers",
    request_body = QueryInput,
    responses(
        (status = 200, description = "Whether each has changed", body = ResultsBody),
        QueryProblems,
    ),
)]
pub(super) async fn query(State(app): State<App>, Json { head, body }: Json<QueryInput>) -> Answer {
    let [] = params::query(head.uri.query(), [])?;
    let (limit, value) = (u64::from(app.config.revisions.query_max), body.viewers.len() as u64);
    if body.viewers.is_empty() {
        return Err(Error::invalid("empty_query", "viewers", "must name at least one viewer").into());
    }
    if value > limit {
        let detail = format!("must name at most {limit} viewers, names {value}");
        return Err(Error::limit("query_too_large", "viewers", detail, limit, value).into());
    }
    let asked = body.viewers.iter().enumerate().map(|(at, viewer)| viewer.parse(at)).collect::<Result<Vec<_>>>()?;
    let polls = app.reader.poll_many(&asked).await?;
    let results = asked.iter().zip(polls).map(|((viewer, _), poll)| {
        count(Some(poll));
        ResultBody { viewer_id: viewer.as_str(), changed: poll == Poll::Changed }
    });
    Ok(json::respond(StatusCode::OK, &ResultsBody { results: results.collect() })?)
}

impl QueryViewer {
    fn parse(&self, at: usize) -> Result<(ViewerId, Option<Token>)> {
        let place = |error: Error| error.inside(&format!("viewers[{at}]"));
        let viewer = ViewerId::parse("viewer_id", &self.viewer_id).map_err(place)?;
        let token = self.token.as_deref().map(|text| Token::parse("token", text)).transpose().map_err(place)?;
        Ok((viewer, token))
    }
}
