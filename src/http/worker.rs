//! What a worker process serves: is it alive, is it ready, what does it do. Nothing of the API.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::front::RequestId;
use super::problem::ProblemBody;
use super::{access, ops};
use crate::access::audit::Place;
use crate::access::{Access, Caller, Need, decide};
use crate::domain::Scope;
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
    /// Asks who wants to see the metrics, where it is on. Alive and ready is no secret.
    pub access: Access,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, probe: Probe, stop: CancellationToken) -> Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probe);
    let served = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
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

async fn metrics(
    State(probe): State<Probe>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    let mut known = None;
    if let Err(error) = admit(&probe.access, &headers, &mut known).await {
        return refusal(&probe.access, &error, known.as_ref(), &headers, peer);
    }
    ops::refresh(&probe.backends).await;
    let headers = [(header::CONTENT_TYPE, ops::METRICS_TYPE)];
    (headers, probe.metrics.render()).into_response()
}

/// The same rule as that of an API node's `/metrics`. `known` becomes whoever it turned out to be.
async fn admit(access: &Access, headers: &HeaderMap, known: &mut Option<Caller>) -> Result<()> {
    let caller = known.insert(access.identify(access::authorization(headers)?).await?);
    decide(caller, Need::Key(Scope::Metrics), None)
}

fn refusal(access: &Access, error: &Error, by: Option<&Caller>, headers: &HeaderMap, peer: SocketAddr) -> Response {
    let request_id = RequestId::take(headers);
    if let Some(refusals) = access.refusals().filter(|_| access::is_refusal(error)) {
        refusals.tell(error, by, &Place { route: "/metrics", post: None, peer, request_id: request_id.as_str() });
    }
    let body = ProblemBody::new(error, request_id.as_str());
    let mut response = Response::default();
    *response.status_mut() = StatusCode::from_u16(body.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    body.fill(&mut response);
    if let Some(challenge) = access::challenge(error) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}
