//! For operators: is it alive, is it ready, what does it do, what can it do.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use metrics::{counter, gauge};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::App;
use super::json;
use super::openapi::{QUERY, problems};
use super::params;
use super::problem::Answer;
use crate::domain::Lane;
use crate::error::Error;
use crate::ports::{Path, Queue as _, Revisions as _};
use crate::service::Backends;
use crate::telemetry;

/// How the service is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthBody {
    /// `live` or `ready`.
    #[schema(example = "ready")]
    status: &'static str,
    /// What cannot be used now though the rest works: `revisions` (polls answer 503, pages come without a token).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    degraded: Vec<&'static str>,
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
    Ok(json::respond(StatusCode::OK, &HealthBody { status: "live", degraded: Vec::new() })?)
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
    // Without revisions pages still work; a load balancer that took every node out would make it worse.
    let degraded = app.backends.revisions.fence().await.err().map(|_| "revisions");
    Ok(json::respond(StatusCode::OK, &HealthBody { status: "ready", degraded: degraded.into_iter().collect() })?)
}

problems!(MetricsProblems: QUERY, &[]);

/// Metrics, in the text format of Prometheus
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"), MetricsProblems),
)]
pub(super) async fn metrics(State(app): State<App>, request: Request) -> Answer {
    let [] = params::query(request.uri().query(), [])?;
    refresh(&app.backends).await;
    gauge!("fanfold_bodies_bytes").set(app.bodies().held() as f64);
    let mut response = Response::new(Body::from(app.metrics.render()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
    Ok(response)
}

/// The text format of Prometheus.
pub(super) const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Brings the metrics that are kept elsewhere up to date. What cannot be asked keeps its last value: metrics are needed
/// most when something is down.
pub(super) async fn refresh(backends: &Backends) {
    for path in Path::ALL {
        counter!("fanfold_store_reads_total", "path" => path.name()).absolute(backends.store.reads(path));
    }
    for (table, bytes) in backends.store.table_bytes() {
        gauge!("fanfold_store_table_bytes", "table" => table).set(bytes as f64);
    }
    refresh_queue(backends).await;
    gauge!("fanfold_store_up").set(f64::from(u8::from(backends.store.check().is_ok())));
    gauge!("fanfold_revisions_up").set(f64::from(u8::from(backends.revisions.fence().await.is_ok())));
    gauge!("fanfold_waiters").set(backends.revisions.waiters() as f64);
    telemetry::refresh_process_metrics();
}

/// How often a broker is asked for its depths, however often the metrics are: each lane is several questions to it.
const ASK_BROKER_EVERY: Duration = Duration::from_secs(1);

async fn refresh_queue(Backends { queue, .. }: &Backends) {
    // Of the process, as the metrics are.
    static ASKED: Mutex<Option<Instant>> = Mutex::const_new(None);
    let mut asked = ASKED.lock().await;
    if queue.is_remote() && asked.is_some_and(|asked| asked.elapsed() < ASK_BROKER_EVERY) {
        return;
    }
    for lane in Lane::ALL {
        if let Ok(depth) = queue.depth(lane).await {
            gauge!("fanfold_queue_tasks", "lane" => lane.name()).set(depth as f64);
        }
    }
    if let Ok(Some(parked)) = queue.parked().await {
        gauge!("fanfold_queue_parked_messages").set(parked as f64);
    }
    *asked = Some(Instant::now());
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
