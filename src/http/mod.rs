//! The HTTP interface: one file a resource, one layer around them, an accept loop.
//!
//! A handler parses, calls one use case and writes what it answers; errors are values with a code from [`codes`] until
//! the front turns them into problem documents. `/openapi.json` comes from the handlers' own types.

pub mod codes;

mod accept;
mod access;
mod batch;
mod bodies;
mod changes;
mod cors;
mod crowd;
mod data;
mod dto;
mod edit;
mod front;
mod head_timer;
mod inbox;
mod json;
mod keys;
mod marks;
mod merge;
mod openapi;
mod ops;
mod pacer;
mod params;
mod poll;
mod posts;
mod problem;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod viewer_tokens;
pub mod worker;

pub use server::serve;
pub use tls::Tls;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::bodies::Bodies;
use self::pacer::Pacer;
use self::problem::Answer;
use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::marks::Marker;
use crate::publish::Publisher;
use crate::reader::Reader;
use crate::service::Backends;

/// What the handlers work with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Takes posts, edits and retracts.
    pub publisher: Publisher,
    /// The same over a store whose reads are counted for status requests.
    pub status: Publisher,
    /// Serves polls, pages and deltas.
    pub reader: Reader,
    /// Sets and clears marks.
    pub marker: Marker,
    /// Who may do what.
    pub access: Access,
    /// For health checks and metrics.
    pub backends: Backends,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// What time it is.
    pub clock: Clock,
    /// Limits and intervals.
    pub config: Config,
}

/// The application behind the routes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

/// What an [`App`] shares.
#[derive(Debug)]
struct Inner {
    parts: Parts,
    pacer: Pacer,
    bodies: Bodies,
    /// Cancelled at shutdown: waiting requests are answered at once.
    stopping: CancellationToken,
    openapi: Bytes,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0.parts
    }
}

impl App {
    /// An application that is not served yet.
    pub fn new(parts: Parts) -> Self {
        let pacer = Pacer::new(&parts.config.poll);
        let bodies = Bodies::new(parts.config.http.bodies_bytes_max);
        // A document of plain strings, lists and maps always serializes.
        let openapi = serde_json::to_vec(&document()).unwrap_or_default().into();
        Self(Arc::new(Inner { parts, pacer, bodies, stopping: CancellationToken::new(), openapi }))
    }

    fn pacer(&self) -> &Pacer {
        &self.0.pacer
    }

    fn bodies(&self) -> &Bodies {
        &self.0.bodies
    }

    fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    fn router(&self) -> Router {
        let (router, _) = routed().split_for_parts();
        router.fallback(no_route).method_not_allowed_fallback(no_method).with_state(self.clone())
    }
}

/// Every route, with its part of the specification.
fn routed() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(posts::publish))
        .routes(routes!(batch::publish))
        .routes(routes!(posts::get, edit::edit, edit::retract))
        .routes(routes!(poll::get))
        .routes(routes!(poll::query))
        .routes(routes!(inbox::get))
        .routes(routes!(changes::get))
        .routes(routes!(marks::put, marks::delete))
        .routes(routes!(marks::post))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(viewer_tokens::issue))
        .routes(routes!(ops::livez))
        .routes(routes!(ops::readyz))
        .routes(routes!(ops::metrics))
        .routes(routes!(ops::openapi))
}

/// The specification of what is served, the same as in `/openapi.json`.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut api = routed().into_openapi();
    openapi::complete(&mut api);
    api
}

async fn no_route() -> Answer {
    Err(Error::new(Kind::NotFound, "route_not_found", "nothing is served under this path").into())
}

async fn no_method() -> Answer {
    Err(Error::new(Kind::Invalid, "method_not_allowed", "the path does not take this method; see Allow").into())
}
