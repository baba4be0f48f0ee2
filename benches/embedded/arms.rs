//! The arms that run in processes of their own: the service as shipped, and the least that could answer the same.
//!
//! A serving arm prints its address, answers every line on standard input, and ends when standard input does: no arm
//! outlives the benchmark that started it. `forward MICROSECONDS` moves its clock, if that can be moved; any line is
//! answered with its CPU time in microseconds.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use fanfold::clock::Clock;
use fanfold::service::Running;
use fanfold::telemetry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::measure::{Result, process_cpu_us};
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
    answer_questions(clock).await?;
    Ok(running.shutdown().await?)
}

/// 304 and a constant of a token's length: what an unchanged poll costs when nothing is looked at.
fn bare_304() -> Router {
    const ETAG: &str = "W/\"AQ3qU0mWm4TqzS0XyqXb0kQAAAAAAAAABwAGQyJ7vQAA\"";
    Router::new()
        .route("/v1/viewers/{viewer_id}/revision", get(async || (StatusCode::NOT_MODIFIED, [(header::ETAG, ETAG)])))
}

async fn serve(router: Router) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(&listener.local_addr()?.to_string())?;
    let listener = listener.tap_io(|stream| {
        // The service sets it too; a connection without it still serves.
        let _ = stream.set_nodelay(true);
    });
    tokio::select! {
        served = axum::serve(listener, router).into_future() => Ok(served?),
        answered = answer_questions(Clock::system()) => answered,
    }
}

/// Prints a line for the benchmark that started this arm.
pub fn announce(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Answers until standard input ends; on a thread that costs nothing while nobody asks.
async fn answer_questions(clock: Clock) -> Result<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if let Some(by) = line.strip_prefix("forward ").and_then(|micros| micros.parse().ok()) {
                clock.set(clock.now().after(Duration::from_micros(by)));
            }
            if announce(&process_cpu_us().to_string()).is_err() {
                break;
            }
        }
        let _ = ended.send(());
    });
    Ok(end.await?)
}
