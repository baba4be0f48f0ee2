//! What the service sustains in absolute terms: posts accepted and fanned out, over HTTP.
//!
//! It accepts far more than it fans out, and takes the rest later. That is no rate to live with, so the load holds back
//! while the fan-out is some way behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// Posts that the fan-out may be behind.
const BEHIND: u64 = 2_000;
/// How often to look how far it is.
const LOOK: Duration = Duration::from_millis(20);

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mut figures = Vec::new();
    for audience in [10, 150] {
        figures.extend(sustained(context, audience).await?);
    }
    Ok(figures.into())
}

async fn sustained(context: &Context, audience: usize) -> Result<Vec<Figure>> {
    context.say("sustain", format_args!("audience of {audience}"));
    let lasting = Duration::from_secs_f64(context.size(10.0, 1.0));
    let mut service = Service::start(context, &format!("sustain-{audience}")).await?;
    service.open_records(context.size(POPULATION, 500)).await?;
    let mut audiences = Audiences::new(POPULATION, audience, 0);
    let requests = (0..REQUESTS).map(|_| posts::request(&audiences.draw())).collect();
    let (cpu, started) = (service.child.cpu_us().await?, Instant::now());
    let load = Arc::new(Load { until: started + lasting, requests, ..Load::default() });
    let publishers = Arc::clone(&load);
    let publishing = tokio::spawn(drive(service.child.addr(), IN_FLIGHT, move |number, connection| {
        Arc::clone(&publishers).publish(number, connection)
    }));
    while !publishing.is_finished() {
        let done = service.counters().await?.rows / audience as u64;
        load.allowed.store(done + BEHIND, Ordering::Relaxed);
        tokio::time::sleep(LOOK).await;
    }
    let posts = publishing.await??;
    let accepted = started.elapsed();
    service.until_written(posts * audience as u64).await?;
    let driven = service.counters().await?.driven;
    if driven > 0 {
        service.until_done(&load.take_ids()).await?;
    }
    // From the first post to the last row: what is still queued when the time is up has to be done too.
    let all = started.elapsed();
    let cpu = service.child.cpu_us().await? - cpu;
    service.child.stop().await?;
    let per_second = posts as f64 / all.as_secs_f64();
    let figure =
        |what: &str, value, unit| Figure::new("sustain", format!("audience of {audience}: {what}"), value, unit);
    Ok(vec![
        figure("accepted and fanned out", per_second * 60.0, POSTS_A_MINUTE),
        figure("rows", per_second * audience as f64, "rows/s"),
        figure("CPU", cpu / posts.max(1) as f64, "CPU µs/post"),
        figure("fan-out behind the last 202", (all - accepted).as_secs_f64(), "s"),
        figure("tasks that the relay had to bring", driven as f64, "tasks"),
    ])
}

/// What the publishers share.
struct Load {
    until: Instant,
    requests: Vec<Request>,
    sent: AtomicU64,
    allowed: AtomicU64,
    ids: Mutex<Vec<String>>,
}

impl Default for Load {
    fn default() -> Self {
        let (sent, allowed) = (AtomicU64::new(0), AtomicU64::new(BEHIND));
        Self { until: Instant::now(), requests: Vec::new(), sent, allowed, ids: Mutex::default() }
    }
}

impl Load {
    /// What each connection does.
    async fn publish(self: Arc<Self>, number: usize, mut connection: Connection) -> Result<u64> {
        let mut mine = Vec::new();
        for at in number * 31.. {
            while self.sent.load(Ordering::Relaxed) >= self.allowed.load(Ordering::Relaxed)
                && Instant::now() < self.until
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if Instant::now() >= self.until {
                break;
            }
            self.sent.fetch_add(1, Ordering::Relaxed);
            let answer = connection.send(&self.requests[at % self.requests.len()]).await?.expect(202)?;
            mine.push(answer.field("post_id")?.to_owned());
        }
        let sent = mine.len() as u64;
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
        Ok(sent)
    }

    fn take_ids(&self) -> Vec<String> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
