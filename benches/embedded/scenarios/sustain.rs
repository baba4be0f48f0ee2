//! What the service sustains in absolute terms: posts accepted and fanned out, over HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{Connection, Request};
use crate::context::Context;
use crate::findings::{Figure, Findings, POSTS_A_MINUTE};
use crate::load::drive;
use crate::measure::Result;
use crate::posts::{self, Audiences};
use crate::service::Service;

const IN_FLIGHT: usize = 64;
const POPULATION: usize = 20_000;
/// Requests made beforehand, then sent again and again: a post is new each time, since its id is.
const REQUESTS: usize = 2_000;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mut figures = Vec::new();
    for audience in [10, 150] {
        figures.extend(sustained(context, audience).await?);
    }
    Ok(figures.into())
}

async fn sustained(context: &Context, audience: usize) -> Result<[Figure; 3]> {
    context.say("sustain", format_args!("audience of {audience}"));
    let lasting = Duration::from_secs_f64(context.size(10.0, 1.0));
    let mut service = Service::start(context, &format!("sustain-{audience}")).await?;
    service.open_records(context.size(POPULATION, 500)).await?;
    let mut audiences = Audiences::new(POPULATION, audience, 0);
    let requests: Arc<Vec<_>> = Arc::new((0..REQUESTS).map(|_| posts::request(&audiences.draw())).collect());
    let (cpu, started) = (service.child.cpu_us().await?, Instant::now());
    let until = started + lasting;
    let posts = drive(service.child.addr(), IN_FLIGHT, move |number, connection| {
        publish_until(until, Arc::clone(&requests), number, connection)
    })
    .await?;
    let accepted = started.elapsed().as_secs_f64();
    service.until_written(posts * audience as u64).await?;
    // From the first post to the last row: what is still queued when the time is up has to be done too.
    let all = started.elapsed().as_secs_f64();
    let cpu = service.child.cpu_us().await? - cpu;
    service.child.stop().await?;
    let rate = posts as f64 / all;
    Ok([
        Figure::new("sustain", format!("audience of {audience}: accepted and fanned out"), rate * 60.0, POSTS_A_MINUTE),
        Figure::new("sustain", format!("audience of {audience}: CPU"), cpu / posts.max(1) as f64, "CPU us/post"),
        Figure::new("sustain", format!("audience of {audience}: fan-out behind the last 202"), all - accepted, "s"),
    ])
}

async fn publish_until(
    until: Instant,
    requests: Arc<Vec<Request>>,
    number: usize,
    mut connection: Connection,
) -> Result<u64> {
    let mut sent = 0;
    for at in number * 31.. {
        if Instant::now() >= until {
            break;
        }
        connection.send(&requests[at % requests.len()]).await?.expect(202)?;
        sent += 1;
    }
    Ok(sent)
}
