//! The ceiling of a changed page: the raw SELECTs it needs, and the same JSON.
//!
//! The whole window is read, since the counts on the page are of all of it, then twenty posts, side by side. What it leaves
//! out is what makes it a service: revisions, withdrawals, marks, life spans, checks of the request, metrics, log spans.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fanfold::domain::PostId;
use futures::future::try_join_all;
use scylla::client::session::Session;
use scylla::response::PagingState;
use scylla::statement::prepared::PreparedStatement;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::measure::Result;
use crate::page_json::{self, Body};
use crate::scenarios::page::PAGE;

/// Rows that a page looks at: inbox.items_max and those just beyond, and one more to see whether there are others.
const WINDOW: i32 = 1_065;
/// More than any window, so that a window is one answer.
const PAGE_ROWS: i32 = 10_001;

type RowCells = (Uuid, Option<i32>, Option<bool>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
type PostCells = (Option<String>, Option<String>, Option<String>, Option<i32>, Option<i8>, Option<i64>);

struct RawPages {
    session: Session,
    window: PreparedStatement,
    post: PreparedStatement,
}

/// Answers as an inbox does.
pub async fn router(cluster: &Cluster) -> Result<Router> {
    let (session, keyspace) = (cluster.session().await?, &cluster.config.scylla.keyspace);
    let window = format!(
        "SELECT post_id, version, deleted, expires_at, seen_at, read_at, archived_at FROM {keyspace}.inbox \
         WHERE viewer_id = ? LIMIT ?"
    );
    let post = format!("SELECT kind, actor, data, version, state, expires_at FROM {keyspace}.posts WHERE post_id = ?");
    let mut statements = [session.prepare(window).await?, session.prepare(post).await?];
    for statement in &mut statements {
        statement.set_is_idempotent(true);
        statement.set_use_cached_result_metadata(true);
        statement.set_page_size(PAGE_ROWS);
    }
    let [window, post] = statements;
    let state = Arc::new(RawPages { session, window, post });
    Ok(Router::new().route("/v1/viewers/{viewer_id}/inbox", get(page)).with_state(state))
}

async fn page(State(pages): State<Arc<RawPages>>, Segment(viewer): Segment<String>) -> Response {
    match pages.read(&viewer).await {
        Ok((bodies, count)) => page_json::answer(&viewer, bodies.iter(), count).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

impl RawPages {
    async fn read(&self, viewer: &str) -> Result<(Vec<Body>, u32)> {
        let values = (viewer, WINDOW);
        let (found, _) = self.session.execute_single_page(&self.window, values, PagingState::start()).await?;
        let rows = found.into_rows_result()?;
        let (mut count, mut first) = (0, Vec::with_capacity(PAGE));
        for row in rows.rows::<RowCells>()? {
            let (id, _, deleted, _, seen_at, ..) = row?;
            count += u32::from(deleted != Some(true) && seen_at.is_none());
            if first.len() < PAGE {
                first.push(id);
            }
        }
        Ok((try_join_all(first.into_iter().map(|id| self.body(id))).await?, count))
    }

    async fn body(&self, id: Uuid) -> Result<Body> {
        let (found, _) = self.session.execute_single_page(&self.post, (id,), PagingState::start()).await?;
        let (_, _, data, ..) = found.into_rows_result()?.single_row::<PostCells>()?;
        let id = PostId::from_bytes(id.into_bytes());
        let data = RawValue::from_string(data.ok_or("a post without data")?)?;
        Ok(Body { post_id: id.to_string(), published_at: rfc3339(id)?, data })
    }
}

fn rfc3339(id: PostId) -> Result<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(id.time().micros()) * 1_000)?;
    Ok(at.format(&Rfc3339)?)
}
