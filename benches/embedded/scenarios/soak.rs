//! Does memory stay flat? The mix at a bounded rate for minutes, resident memory sampled all the while.
//!
//! What the service may fill (tables in memory, caches) is made small, so that it is full after a minute or two and what
//! grows from then on is growth. As shipped it would take most of an hour to fill, and a leak would hide behind that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use crate::actors::{Actor, Habit, Mix};
use crate::chart_soak;
use crate::client::Connection;
use crate::context::Context;
use crate::findings::{Figure, Findings};
use crate::load::drive;
use crate::measure::Result;
use crate::scenarios::mix::prefill;
use crate::service::Service;

const CONNECTIONS: usize = 16;
/// Actions a second of all clients together.
const RATE: f64 = 2_000.0;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

const SMALL: [(&str, &str); 3] = [
    ("FANFOLD_STORE__MEMTABLE_BYTES", "2097152"),
    ("FANFOLD_STORE__CACHE_BYTES", "8388608"),
    ("FANFOLD_INBOX__BODY_CACHE_BYTES_MAX", "4194304"),
];

/// Resident memory at a time.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Since the load began.
    pub seconds: f64,
    /// Resident MiB.
    pub mib: f64,
}

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mix = Mix::modelled();
    let mut service = Service::start_with(context, "soak", &SMALL).await?;
    let rows = prefill(&service, mix, 20).await?;
    service.until_written(rows).await?;
    let lasting = Duration::from_secs_f64(context.minutes * 60.0);
    let started = Instant::now();
    let actors: Arc<Vec<Mutex<Actor>>> =
        Arc::new(Actor::cast(mix, Habit::Check, CONNECTIONS, rows).into_iter().map(Mutex::new).collect());
    let load = tokio::spawn(drive(service.child.addr(), CONNECTIONS, move |number, connection| {
        act_until(started + lasting, Arc::clone(&actors), number, connection)
    }));
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    while !load.is_finished() {
        ticks.tick().await;
        let sample = Memory { seconds: started.elapsed().as_secs_f64(), mib: service.child.resident_mib()?.0 };
        context.say("soak", format_args!("{:4.0} s  {:.1} MiB", sample.seconds, sample.mib));
        samples.push(sample);
    }
    let actions = load.await??;
    service.child.stop().await?;
    std::fs::write(context.out.join("soak.svg"), chart_soak::draw(&samples))?;
    Ok(figures(&samples, actions, started.elapsed()).into())
}

/// What one client does, at its share of the rate.
async fn act_until(
    until: Instant,
    actors: Arc<Vec<Mutex<Actor>>>,
    number: usize,
    mut connection: Connection,
) -> Result<u64> {
    let mut actor = actors[number].lock().await;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(CONNECTIONS as f64 / RATE));
    // A late action is not made up for: the rate is bounded.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut actions = 0;
    while Instant::now() < until {
        ticks.tick().await;
        actions += actor.act(&mut connection, 1).await?;
    }
    Ok(actions)
}

fn figures(samples: &[Memory], actions: u64, lasting: Duration) -> Vec<Figure> {
    let at = |part: usize| samples.get(((samples.len().max(1) - 1) * part) / 2).map_or(0.0, |sample| sample.mib);
    let second_half = &samples[samples.len() / 2..];
    vec![
        Figure::new("soak", "actions a second", actions as f64 / lasting.as_secs_f64(), "1/s"),
        Figure::new("soak", "resident at the start", at(0), "MiB"),
        Figure::new("soak", "resident half-way", at(1), "MiB"),
        Figure::new("soak", "resident at the end", at(2), "MiB"),
        Figure::new("soak", "slope over the second half", slope_a_minute(second_half), "MiB/min"),
    ]
}

/// The least-squares slope.
fn slope_a_minute(samples: &[Memory]) -> f64 {
    let count = samples.len().max(1) as f64;
    let mean_t = samples.iter().map(|s| s.seconds).sum::<f64>() / count;
    let mean_m = samples.iter().map(|s| s.mib).sum::<f64>() / count;
    let covariance: f64 = samples.iter().map(|s| (s.seconds - mean_t) * (s.mib - mean_m)).sum();
    let variance: f64 = samples.iter().map(|s| (s.seconds - mean_t).powi(2)).sum();
    if variance > 0.0 { covariance / variance * 60.0 } else { 0.0 }
}
