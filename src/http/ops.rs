//! For operators: is it alive, is it ready, what does it do, what can it do.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use metrics::{counter, gauge};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::json;
use super::openapi::{QUERY, problems};
use super::params;
use super::problem::Answer;
use crate::domain::Lane;
use crate::error::{Error, Result};
use crate::ports::{Path, Queue as _, Revisions as _};
use crate::telemetry;

/// How the service is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthBody {
    /// `live` or `ready`.
    #[schema(example = "ready")]
    status: &'static str,
}

problems!(LiveProblems: QUERY, &[]);

/// Is the process alive?
///
/// Asks no dependency: a broken one is no reason to restart this process.
#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = "operations",
    responses((status = 200, description = "It is", body = HealthBody), LiveProblems),
)]
pub(super) async fn livez(request: Request) -> Answer {
    let [] = params::query(request.uri().query(), [])?;
    Ok(json::respond(StatusCode::OK, &HealthBody { status: "live" })?)
}

problems!(ReadyProblems: QUERY, &["not_ready"]);

/// Can it serve?
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "operations",
    responses((status = 200, description = "It can", body = HealthBody), ReadyProblems),
)]
pub(super) async fn readyz(State(app): State<App>, request: Request) -> Answer {
    let [] = params::query(request.uri().query(), [])?;
    let not_ready = |what: &str, error: Error| {
        Error::unavailable("not_ready", format!("{what}: {}", error.detail())).with_source(error)
    };
    app.backends.store.check().map_err(|error| not_ready("store", error))?;
    app.backends.revisions.fence().await.map_err(|error| not_ready("revisions", error))?;
    Ok(json::respond(StatusCode::OK, &HealthBody { status: "ready" })?)
}

problems!(MetricsProblems: QUERY, &[]);

/// Metrics, in the text format of Prometheus
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"), MetricsProblems),
)]
pub(super) async fn metrics(State(app): State<App>, request: Request) -> Answer {
    let [] = params::query(request.uri().query(), [])?;
    refresh(&app).await?;
    let mut response = Response::new(Body::from(app.metrics.render()));
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// Brings the metrics that are kept elsewhere up to date.
async fn refresh(app: &App) -> Result<()> {
    for path in Path::ALL {
        counter!("fanfold_store_reads_total", "path" => path.name()).absolute(app.backends.store.reads(path));
    }
    for lane in Lane::ALL {
        let depth = app.backends.queue.depth(lane).await?;
        gauge!("fanfold_queue_tasks", "lane" => lane.name()).set(depth as f64);
    }
    telemetry::refresh_process_metrics();
    Ok(())
}

problems!(OpenapiProblems: QUERY, &[]);

/// This document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "operations",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), OpenapiProblems),
)]
pub(super) async fn openapi(State(app): State<App>, request: Request) -> Answer {
    let [] = params::query(request.uri().query(), [])?;
    let mut response = Response::new(Body::from(app.0.openapi.clone()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
