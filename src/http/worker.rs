//! What a worker process serves: is it alive, is it ready, what does it do. Nothing of the API.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service as _;
use tracing::{debug, info, warn};

use super::accept::accept_all;
use super::front::{NO_STORE, NOSNIFF, RequestId};
use super::head_timer::{HeadTimer, Patience, Taken};
use super::problem::ProblemBody;
use super::{access, ops, server};
use crate::access::audit::Place;
use crate::access::{Access, Caller, Need, decide};
use crate::config::Config;
use crate::domain::{Lane, Scope};
use crate::error::{Error, Result};
use crate::ports::{Queue as _, Revisions as _};
use crate::service::Backends;

/// How long an answer to `/readyz` is good for. Anybody may ask, and to find out takes questions to the servers.
const READY_FOR: Duration = Duration::from_secs(1);

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

#[derive(Clone, Debug)]
struct Page {
    probe: Arc<Probe>,
    /// Held during a look: one is enough for all who ask.
    looked: Arc<Mutex<Option<Look>>>,
}

/// What a look has found.
#[derive(Debug)]
struct Look {
    at: Instant,
    missing: Vec<&'static str>,
}

/// Serves until `stop`, bounded as the API is: so many connections, and so long for the head of a request.
pub async fn serve(listener: TcpListener, probe: Probe, config: Config, stop: CancellationToken) -> Result<()> {
    let page = Page { probe: Arc::new(probe), looked: Arc::default() };
    let router = Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(page);
    let patience = Patience::of(&config.http);
    let mut builder = server::builder(&config.http, patience);
    // A connection a question: with few places, those who keep theirs by asking now and then would keep out the probes.
    builder.keep_alive(false);
    // Those that are open when it ends are cut: nothing here is worth waiting for.
    let mut connections = JoinSet::new();
    let admit = |permit, stream, peer| Some(converse(builder.clone(), patience, router.clone(), stream, peer, permit));
    accept_all(&listener, &mut connections, config.worker.connections_max, &stop, admit).await;
    Ok(())
}

async fn converse(
    mut builder: http1::Builder,
    patience: Patience,
    router: Router,
    stream: TcpStream,
    peer: SocketAddr,
    _place: OwnedSemaphorePermit,
) {
    let (timer, stream) = HeadTimer::watch(Taken::new(stream, patience.answer), patience);
    builder.timer(timer);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let Ok(mut response) = router.call(request).await;
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
            response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
            Ok::<_, Infallible>(response)
        }
    });
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, %peer, "a connection ended early");
    }
}

/// Ready once the store takes writes, and the queue and the revisions can be used. What is missing is named; why is for
/// the log, for it tells of servers and their users.
async fn readyz(State(page): State<Page>) -> Response {
    let mut looked = page.looked.lock().await;
    let before = match &*looked {
        Some(look) if look.at.elapsed() < READY_FOR => return ready(&look.missing),
        Some(look) => look.missing.clone(),
        None => Vec::new(),
    };
    let faults = page.probe.faults().await;
    let missing: Vec<_> = faults.iter().map(|(part, _)| *part).collect();
    if missing != before {
        for (part, error) in &faults {
            warn!(part, %error, "not ready");
        }
        if faults.is_empty() {
            info!("ready again");
        }
    }
    let answer = ready(&missing);
    *looked = Some(Look { at: Instant::now(), missing });
    answer
}

fn ready(missing: &[&str]) -> Response {
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
}

impl Probe {
    /// What cannot be used now.
    async fn faults(&self) -> Vec<(&'static str, Error)> {
        let Backends { store, queue, revisions } = &self.backends;
        let depth = if self.needs_queue { queue.depth(Lane::Small).await.err() } else { None };
        let each = [("store", store.check().err()), ("revisions", revisions.fence().await.err()), ("queue", depth)];
        each.into_iter().filter_map(|(part, error)| Some((part, error?))).collect()
    }
}

async fn metrics(State(page): State<Page>, ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap) -> Response {
    let (probe, mut known) = (&page.probe, None);
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
