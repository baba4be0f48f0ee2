//! The arms that run in processes of their own: workers and API nodes as shipped, and the least that could answer the same.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fanfold::clock::Clock;
use fanfold::config::Config;
use fanfold::service::Running;
use fanfold::service::worker::{self as service, Role, Worker};
use fanfold::telemetry;
use redis::aio::MultiplexedConnection;
use tokio::runtime::Handle;

use crate::cluster::{Cluster, config};
use crate::measure::Result;
use crate::page_arm;
use crate::serving::{announce, answer_questions, serve};

/// Runs the arm that the arguments name: `NAME CLUSTER [MORE]`.
pub async fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["worker", cluster] => worker(cluster, Role::Fanout).await,
        ["relay", cluster] => worker(cluster, Role::Relay).await,
        ["api", cluster] => api(cluster).await,
        ["bare-redis", cluster, key] => serve(bare_redis(cluster, key).await?).await,
        ["raw-page", cluster] => serve(page_arm::router(&Cluster::named(cluster)?).await?).await,
        _ => Err(format!("no arm {words:?}").into()),
    }
}

/// A worker, wired, configured and logging as `fanfold-fanout` or `fanfold-relay` has it. Asked to `flush`, it answers when
/// the broker has been told of all that is finished.
async fn worker(cluster: &str, role: Role) -> Result<()> {
    let config = config(cluster)?;
    telemetry::init_logging(&config.log)?;
    // The runtime that this runs on only waits.
    tokio::task::spawn_blocking(move || service::runtime(&config)?.block_on(work(config.clone(), role))).await?
}

async fn work(config: Config, role: Role) -> Result<()> {
    let worker = Worker::start(role, &config, Clock::system()).await?;
    announce(&worker.addr.to_string())?;
    let (queue, runtime) = (worker.backends.queue.clone(), Handle::current());
    answer_questions(move |line| {
        if line == "flush" {
            runtime.block_on(queue.flush());
        }
    })
    .await?;
    worker.shutdown().await;
    Ok(())
}

/// An API node as `fanfold serve` has it.
async fn api(cluster: &str) -> Result<()> {
    let config = config(cluster)?;
    telemetry::init_logging(&config.log)?;
    let running = Running::start(&config, Clock::system()).await?;
    announce(&running.addr.to_string())?;
    answer_questions(|_| {}).await?;
    Ok(running.shutdown().await?)
}

struct Bare {
    redis: MultiplexedConnection,
    key: String,
    head: Vec<u8>,
}

/// One read over one connection that all requests share, 304 and a constant if it is what it was: what an unchanged poll
/// costs when nothing else is looked at.
async fn bare_redis(cluster: &str, key: &str) -> Result<Router> {
    let mut redis = Cluster::named(cluster)?.redis().await?;
    let head = head(&mut redis, key).await?;
    if head.len() != 16 {
        return Err(format!("there is no record under {key}").into());
    }
    let state = Arc::new(Bare { redis, key: key.to_owned(), head });
    Ok(Router::new().route("/v1/viewers/{viewer_id}/revision", get(poll)).with_state(state))
}

async fn head(redis: &mut MultiplexedConnection, key: &str) -> redis::RedisResult<Vec<u8>> {
    redis::cmd("GETRANGE").arg(key).arg(0).arg(15).query_async(redis).await
}

async fn poll(State(bare): State<Arc<Bare>>) -> Response {
    const ETAG: &str = "W/\"AQ3qU0mWm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAA\"";
    match head(&mut bare.redis.clone(), &bare.key).await {
        Ok(head) if head == bare.head => (StatusCode::NOT_MODIFIED, [(header::ETAG, ETAG)]).into_response(),
        Ok(_) => StatusCode::OK.into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
