//! The one layer around every handler: request ids, panics, problems, headers, metrics. One, because each layer costs
//! every poll.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures::FutureExt;
use hyper::body::Incoming;
use metrics::{Histogram, histogram};
use tower::Service as _;
use tracing::{Instrument, Span, debug_span, info_span};

use super::App;
use super::access;
use super::cors::Cors;
use super::poll;
use super::problem::{Failure, Problem, ProblemBody};
use super::routes::{METHODS, Route, method_index};
use crate::access::Caller;
use crate::access::audit::Place;
use crate::domain::{Holder, TraceId};
use crate::error::{Error, Kind};
use crate::trace;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_POLL_INTERVAL: HeaderName = HeaderName::from_static("x-poll-interval");
const NO_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");
const VARY: HeaderValue = HeaderValue::from_static("Authorization, Origin");
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
pub(super) const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// An answer is data: a browser that shows one as a page shall run nothing, load nothing and frame nothing.
const NOTHING_ACTIVE: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
/// Browsers that were here once come back by TLS alone, for a year. Of this host and no other: what else the domain
/// serves is not ours to say.
const TLS_ALONE: HeaderValue = HeaderValue::from_static("max-age=31536000");
/// Paths hold viewers' ids, and a query may hold a token.
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
/// The longest request id that is taken over.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What log lines and answers call a request.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The client's own, if it is sane, or a fresh one.
    pub(super) fn take(headers: &HeaderMap) -> Self {
        let sane = |value: &&HeaderValue| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        if let Some(value) = headers.get(X_REQUEST_ID).filter(sane) {
            return Self(value.clone());
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let random: u64 = rand::random();
        let digits: [u8; 16] = std::array::from_fn(|at| HEX[(random >> (4 * at)) as usize & 15]);
        Self(HeaderValue::from_bytes(&digits).expect("hexadecimal digits are visible ASCII"))
    }

    /// The id of a request that the front has given one to.
    pub(super) fn of(head: &Parts) -> Self {
        head.extensions.get().cloned().unwrap_or_else(|| Self::take(&head.headers))
    }

    /// The id as text.
    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// The router, and what is around it.
#[derive(Debug)]
pub(super) struct Front {
    pub app: App,
    pub router: Router,
    pub cors: Option<Cors>,
    /// Whether connections are encrypted by this process.
    pub tls: bool,
}

impl Front {
    /// Answers one request, whatever happens.
    pub(super) async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let started = Instant::now();
        let _in_flight = self.app.pacer().enter();
        let route = Route::of(request.uri().path());
        let method = method_index(request.method());
        let request_id = RequestId::take(request.headers());
        let inbox = if route.resyncs() { inbox_path(request.uri().path()) } else { None };
        let trace = trace_of(request.headers());
        let span = span(route, &request, &request_id, trace);
        let origin = self.cors.as_ref().and_then(|cors| cors.allowed(request.headers()));
        let work = guarded(self.dispatch(route, request, &request_id, peer));
        let mut response = match trace {
            Some(_) => trace::within(trace, work).instrument(span).await,
            None => work.instrument(span).await,
        };
        if let Some(Failure(error)) = response.extensions_mut().remove::<Failure>() {
            self.tell(&mut response, &error, &request_id, inbox);
        }
        self.dress(&mut response, route, request_id);
        if let Some(cors) = &self.cors {
            cors.dress(&mut response, origin);
        }
        durations(route, method, response.status()).record(started.elapsed());
        response
    }

    async fn dispatch(
        &self,
        route: Route,
        mut request: Request<Incoming>,
        request_id: &RequestId,
        peer: SocketAddr,
    ) -> Response<Body> {
        if let Some(response) = self.cors.as_ref().and_then(|cors| cors.preflight(&request)) {
            return response;
        }
        let mut publisher = None;
        // Before anything of the request is looked at but its head.
        match access::admit(&self.app, route, &request, peer, request_id.as_str()).await {
            Err(refused) => return refused,
            Ok(None) => {}
            Ok(Some(caller)) => {
                // A poll needs no caller beyond this point, and is too frequent for an extension.
                if route != Route::Poll {
                    publisher = route.publishes().then(|| caller.clone());
                    request.extensions_mut().insert(caller);
                }
            }
        }
        let post = access::named_post(route, request.uri().path());
        let place = Place { route: route.template(), post, peer, request_id: request_id.as_str() };
        let mut response = if route == Route::Poll && request.method() == Method::GET {
            // The router would come to the same handler, by way of a table, a clone of itself and a box.
            let (head, _) = request.into_parts();
            poll::answer(&self.app, &head).await.unwrap_or_else(IntoResponse::into_response)
        } else {
            if route == Route::Batch {
                request.extensions_mut().insert(request_id.clone());
            }
            // Boxed for the same reason as the waiting in [`poll`].
            let Ok(response) = Box::pin(self.router.clone().call(request.map(Body::new))).await;
            response
        };
        access::tell_refused(&self.app, &response, publisher.as_ref(), &place);
        if let Some(Caller::Producer { key, .. }) = publisher {
            access::tell_allowances(&self.app, Holder::Key(key), response.headers_mut());
        }
        response
    }

    /// Gives an error its body and the headers that go with its kind.
    fn tell(&self, response: &mut Response<Body>, error: &Error, request_id: &RequestId, inbox: Option<HeaderValue>) {
        ProblemBody::timed(error, request_id.as_str(), self.app.pacer()).fill(response);
        let headers = response.headers_mut();
        if let Some(challenge) = access::challenge(error) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(inbox) = inbox.filter(|_| error.kind() == Kind::Resync) {
            headers.insert(header::LOCATION, inbox);
        }
    }

    fn dress(&self, response: &mut Response<Body>, route: Route, request_id: RequestId) {
        let has_body = response.status() != StatusCode::NOT_MODIFIED;
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, request_id.0);
        if self.tls {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, TLS_ALONE);
        }
        if route.paced() {
            headers.insert(X_POLL_INTERVAL, self.app.pacer().interval());
        }
        if route.private() {
            headers.insert(header::CACHE_CONTROL, NO_CACHE);
            headers.insert(header::VARY, VARY);
        }
        if route.secret() {
            headers.insert(header::CACHE_CONTROL, NO_STORE);
        }
        if has_body {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
            headers.insert(header::CONTENT_SECURITY_POLICY, NOTHING_ACTIVE);
            headers.insert(header::REFERRER_POLICY, NO_REFERRER);
        }
    }
}

/// The span of a request. Polls are too many for one, unless somebody debugs.
fn span(route: Route, request: &Request<Incoming>, request_id: &RequestId, trace: Option<TraceId>) -> Span {
    if route == Route::Poll {
        return debug_span!("poll", request_id = request_id.as_str(), trace_id = trace.map(tracing::field::display));
    }
    info_span!(
        "request",
        method = request.method().as_str(),
        route = route.template(),
        request_id = request_id.as_str(),
        trace_id = trace.map(tracing::field::display),
    )
}

/// The trace that a request is part of, if it says so.
fn trace_of(headers: &HeaderMap) -> Option<TraceId> {
    headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(TraceId::of_parent)
}

/// The inbox that a path under `/v1/viewers/{viewer_id}/` belongs to.
fn inbox_path(path: &str) -> Option<HeaderValue> {
    let end = path.match_indices('/').nth(3)?.0;
    HeaderValue::try_from(format!("{}/inbox", &path[..end])).ok()
}

/// Runs a handler; a panic in it is this request's own trouble and nobody else's.
fn guarded(work: impl Future<Output = Response<Body>>) -> impl Future<Output = Response<Body>> {
    let caught = AssertUnwindSafe(work).catch_unwind();
    caught.map(|result| result.unwrap_or_else(|panic| Problem(Error::panicked("a handler", &*panic)).into_response()))
}

const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
const SERIES: usize = Route::ALL.len() * METHODS.len() * CLASSES.len();

/// The histogram of a kind of request, looked up once.
fn durations(route: Route, method: usize, status: StatusCode) -> &'static Histogram {
    static HISTOGRAMS: [OnceLock<Histogram>; SERIES] = [const { OnceLock::new() }; SERIES];
    let class = usize::from(status.as_u16() / 100).saturating_sub(2).min(CLASSES.len() - 1);
    HISTOGRAMS[(route as usize * METHODS.len() + method) * CLASSES.len() + class].get_or_init(|| {
        histogram!(
            "fanfold_http_request_duration_seconds",
            "route" => route.template(), "method" => METHODS[method], "status" => CLASSES[class],
        )
    })
}

/// What hyper calls for every request of a connection.
pub(super) fn service(
    front: Arc<Front>,
    peer: SocketAddr,
) -> impl hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
{
    hyper::service::service_fn(move |request| {
        let front = Arc::clone(&front);
        async move { Ok(front.answer(request, peer).await) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))])
    }

    #[test]
    fn sane_request_ids_are_kept() {
        for sane in ["a", "019ab0c4-6f80", &"x".repeat(128)] {
            assert_eq!(RequestId::take(&headers("x-request-id", sane)).as_str(), sane);
        }
        for odd in ["", "a b", "ä", &"x".repeat(129)] {
            assert_eq!(RequestId::take(&headers("x-request-id", odd)).as_str().len(), 16);
        }
        let fresh = || RequestId::take(&HeaderMap::new());
        assert_ne!(fresh().as_str(), fresh().as_str());
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let response = guarded(async { panic!("out of cheese") }).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let Failure(error) = response.extensions().get().expect("an error");
        assert!(error.detail().contains("out of cheese"), "for the log");
    }

    #[test]
    fn a_resync_points_to_the_inbox() {
        let of = |path| inbox_path(path).map(|value| value.to_str().expect("ASCII").to_owned());
        assert_eq!(of("/v1/viewers/a%2Fb/changes").as_deref(), Some("/v1/viewers/a%2Fb/inbox"));
        assert_eq!(of("/v1/viewers/ben/inbox/marks").as_deref(), Some("/v1/viewers/ben/inbox"));
    }
}
