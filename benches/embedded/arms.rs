//! The arms that run in processes of their own: the service as shipped, and the least that could answer the same.
//!
//! What they answer on standard input is in [`crate::serving`]; `forward MICROSECONDS` moves a clock that can be moved.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use fanfold::clock::Clock;
use fanfold::service::Running;
use fanfold::telemetry;

use crate::measure::Result;
use crate::serving::{announce, answer_questions, serve};
use crate::{arm_page, context, scenarios};

/// Runs the arm that the arguments name: `NAME [FOLDER or NUMBER]`.
pub async fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["service", folder] => service(Path::new(folder), Clock::system()).await,
        ["service-moved", folder] => service(Path::new(folder), Clock::manual(Clock::system().now())).await,
        ["bare-304"] => serve(bare_304()).await,
        ["raw-page", folder] => serve(arm_page::router(Path::new(folder))?).await,
        ["record", viewers] => scenarios::record::arm(viewers.parse()?).await,
        _ => Err(format!("no arm {words:?}").into()),
    }
}

/// The service, wired, configured and logging as `fanfold serve` has it.
async fn service(folder: &Path, clock: Clock) -> Result<()> {
    let config = context::config(folder)?;
    telemetry::init_logging(&config.log)?;
    let running = Running::start(&config, clock.clone()).await?;
    announce(&running.addr.to_string())?;
    let forward = move |line: &str| {
        if let Some(by) = line.strip_prefix("forward ").and_then(|micros| micros.parse().ok()) {
            clock.set(clock.now().after(Duration::from_micros(by)));
        }
    };
    answer_questions(forward).await?;
    Ok(running.shutdown().await?)
}

/// 304 and a constant of a token's length: what an unchanged poll costs when nothing is looked at.
fn bare_304() -> Router {
    const ETAG: &str = "W/\"AQ3qU0mWm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAA\"";
    Router::new()
        .route("/v1/viewers/{viewer_id}/revision", get(async || (StatusCode::NOT_MODIFIED, [(header::ETAG, ETAG)])))
}
