//! What a worker process serves: is it alive, is it ready, what does it do. Nothing of the API.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::ops;
use crate::error::{Error, Result};
use crate::ports::{Queue as _, Revisions as _};
use crate::service::Backends;

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The adapters in use.
    pub backends: Backends,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Without its queue it can do nothing.
    pub needs_queue: bool,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, probe: Probe, stop: CancellationToken) -> Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probe);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    served.map_err(|error| Error::internal("the page with metrics cannot be served").with_source(error))
}

/// Ready once the store takes writes, and the queue and the revisions can be used.
async fn readyz(State(probe): State<Probe>) -> Response {
    let Backends { store, queue, revisions } = &probe.backends;
    let mut missing = Vec::new();
    if let Err(error) = store.check() {
        missing.push(format!("store: {}", error.detail()));
    }
    if let Err(error) = revisions.fence().await {
        missing.push(format!("revisions: {}", error.detail()));
    }
    if probe.needs_queue
        && let Err(error) = queue.depth(crate::domain::Lane::Small).await
    {
        missing.push(format!("queue: {}", error.detail()));
    }
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
}

async fn metrics(State(probe): State<Probe>) -> Response {
    ops::refresh(&probe.backends).await;
    let headers = [(header::CONTENT_TYPE, ops::METRICS_TYPE)];
    (headers, probe.metrics.render()).into_response()
}
