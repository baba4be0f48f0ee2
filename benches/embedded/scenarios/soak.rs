//! Does memory stay flat? The mix at a bounded rate for minutes, resident memory sampled all the while.
//!
//! Two things would make it grow although nothing leaks, so both are taken away. The data grows while nothing of it is
//! old enough to go: here the clock is moved with every post, by what keeps as many rows alive as there are to be, and
//! two such lives pass before the measuring begins. And buffers fill: here they are small, and the mix runs for a while
//! before it is measured. What grows then has no business to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use crate::actors::{Actor, Habit, Mix};
use crate::chart_soak;
use crate::client::Connection;
use crate::context::{self, Context};
use crate::findings::{Figure, Findings};
use crate::load::drive;
use crate::measure::{Limit, Line, Result, Spread, mean};
use crate::posts::{self, Audiences};
use crate::service::Service;

const CONNECTIONS: usize = 16;
/// Actions a second of all clients together.
const RATE: f64 = 800.0;
/// Actions of a client between two of its edits, retracts or marks.
const CHORE_EVERY: u64 = 200;
/// How many times all rows are replaced before the load begins.
const LIVES: f64 = 2.2;
/// Posts between two moves of the clock while the inboxes fill.
const AT_A_TIME: usize = 400;
/// How long the mix runs before it is measured, as a part of the time that it is measured for.
const WARM_UP: f64 = 0.4;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const FORWARD_EVERY: Duration = Duration::from_millis(100);
/// Flat is less than this, MiB a minute over the second half, …
const SLOPE_MAX: f64 = 0.5;
/// … and no more than this at the end, beside the start.
const GROWTH_MAX: f64 = 1.05;
/// Samples of a minute, the first and the last, that are put beside each other for that.
const MINUTE: usize = 12;
/// Samples that make a point of the line.
const HALF_MINUTE: usize = 6;

/// Small buffers, full when the measuring begins; and tokens that the moved clock does not end.
const SETTINGS: [(&str, &str); 4] = [
    ("FANFOLD_STORE__MEMTABLE_BYTES", "2097152"),
    ("FANFOLD_STORE__CACHE_BYTES", "8388608"),
    ("FANFOLD_INBOX__BODY_CACHE_BYTES_MAX", "4194304"),
    ("FANFOLD_REVISIONS__TOKEN_AGE_S_MAX", "2592000"),
];

/// Resident memory at a time.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Since the measuring began; before it, less than zero.
    pub seconds: f64,
    /// Resident MiB.
    pub mib: f64,
}

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let (viewers, rows): (usize, usize) = (context.size(200_000, 5_000), context.size(2_000_000, 50_000));
    // As many look as leave nine looks in ten without news; see `Mix::modelled`.
    let mix = Mix { population: viewers, active: viewers * 227 / 10_000, ..Mix::modelled() };
    let mut service = Service::start_moved(context, "soak", &SETTINGS).await?;
    let life = Duration::from_secs(context::config(&context.out)?.inbox.ttl_s);
    let a_post = life.mul_f64(mix.audience as f64 / rows as f64);
    context.say("soak", format_args!("{viewers} viewers open their inboxes"));
    service.open_records(viewers).await?;
    let written = fill(context, &mut service, mix, (rows as f64 * LIVES) as usize, a_post).await?;

    let lasting = context.minutes * 60.0;
    let (warm_up, started) = (lasting * WARM_UP, Instant::now());
    let until = started + Duration::from_secs_f64(warm_up + lasting);
    let posts = Arc::new(AtomicU64::new(0));
    let cast = Actor::cast(mix, Habit::Check, CONNECTIONS, written);
    let actors: Arc<Vec<Mutex<Actor>>> = Arc::new(cast.into_iter().map(Mutex::new).collect());
    let counted = Arc::clone(&posts);
    let load = tokio::spawn(drive(service.child.addr(), CONNECTIONS, move |number, connection| {
        act_until(until, Arc::clone(&actors), Arc::clone(&counted), number, connection)
    }));
    let (mut samples, mut disk, mut passed) = (Vec::new(), Vec::new(), 0);
    let mut ticks = tokio::time::interval(FORWARD_EVERY);
    let mut next_sample = started;
    while !load.is_finished() {
        ticks.tick().await;
        let published = posts.load(Ordering::Relaxed);
        service.child.forward(a_post.mul_f64((published - passed) as f64)).await?;
        passed = published;
        if Instant::now() >= next_sample {
            next_sample += SAMPLE_EVERY;
            let seconds = started.elapsed().as_secs_f64() - warm_up;
            let sample = Memory { seconds, mib: service.child.resident_mib()?.0 };
            disk.push(service.disk_mib()?);
            context.say(
                "soak",
                format_args!(
                    "{seconds:4.0} s  {:.1} MiB resident, {:.0} MiB on disk",
                    sample.mib,
                    disk[disk.len() - 1]
                ),
            );
            samples.push(sample);
        }
    }
    let actions = load.await??;
    let seconds = started.elapsed().as_secs_f64();
    service.child.stop().await?;
    std::fs::write(context.out.join("soak.svg"), chart_soak::draw(&samples))?;
    let measured = samples.iter().position(|sample| sample.seconds >= 0.0).unwrap_or(0);
    let mut figures = vec![
        Figure::new("soak", format!("rows alive, for {viewers} viewers"), rows as f64, "rows"),
        Figure::new("soak", "actions a second", actions as f64 / seconds, "1/s"),
        Figure::new("soak", "posts a second", passed as f64 / seconds, "1/s"),
        Figure::new("soak", "on disk in the first minute", spread(first_minute(&disk[measured..])).median, "MiB"),
        Figure::new("soak", "on disk in the last minute", spread(last_minute(&disk)).median, "MiB"),
    ];
    figures.extend(judge(&samples[measured..]));
    Ok(figures.into())
}

/// Publishes until `rows` have been written, and lets `a_post` pass for every post. Answers how many that are.
async fn fill(context: &Context, service: &mut Service, mix: Mix, rows: usize, a_post: Duration) -> Result<u64> {
    let mut audiences = Audiences::new(mix.population, mix.audience, 0);
    let mut written = 0;
    while written < rows {
        let requests = (0..AT_A_TIME).map(|_| posts::request(&audiences.draw())).collect();
        service.send_all(requests, CONNECTIONS, 202).await?;
        written += AT_A_TIME * mix.audience;
        service.until_written(written as u64).await?;
        service.child.forward(a_post * u32::try_from(AT_A_TIME)?).await?;
        context.say("soak", format_args!("{written} rows of {rows}"));
    }
    Ok(written as u64)
}

/// What one client does, at its share of the rate.
async fn act_until(
    until: Instant,
    actors: Arc<Vec<Mutex<Actor>>>,
    posts: Arc<AtomicU64>,
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
        let before = actor.posts;
        actions += actor.act(&mut connection, 1).await?;
        if actions % CHORE_EVERY == 0 {
            actor.chore(&mut connection).await?;
        }
        posts.fetch_add(actor.posts - before, Ordering::Relaxed);
    }
    Ok(actions)
}

/// The least of each half minute: a compaction takes tens of MiB for some seconds, on a busy machine for many, while what
/// leaks is there between them as well. The peaks are figures of their own.
fn judge(samples: &[Memory]) -> Vec<Figure> {
    let mib: Vec<f64> = samples.iter().map(|sample| sample.mib).collect();
    let (start, end) = (spread(first_minute(&mib)).min, spread(last_minute(&mib)).min);
    let half_minute = |samples: &[Memory]| {
        let minutes: Vec<f64> = samples.iter().map(|sample| sample.seconds / 60.0).collect();
        (mean(&minutes), Spread::of(samples.iter().map(|sample| sample.mib)).min)
    };
    let points: Vec<(f64, f64)> = samples.chunks_exact(HALF_MINUTE).map(half_minute).collect();
    let all = Line::through(&points);
    let second_half = Line::through(&points[points.len() / 2..]);
    let (before, after) = mib.split_at(mib.len() / 2);
    vec![
        Figure::new("soak", "resident in the first minute, at the least", start, "MiB"),
        Figure::new("soak", "resident in the last minute, at the least", end, "MiB"),
        Figure::new("soak", "the last minute beside the first", end / start.max(1.0), "x")
            .with_limit(Limit::AtMost(GROWTH_MAX)),
        Figure::new("soak", "the most in the first half, in a compaction", spread(before).max, "MiB"),
        Figure::new("soak", "the most in the second half, in a compaction", spread(after).max, "MiB"),
        Figure::new("soak", "slope over all of it", all.slope, "MiB/min"),
        Figure::new("soak", "slope over the second half", second_half.slope, "MiB/min")
            .with_limit(Limit::AtMost(SLOPE_MAX)),
        Figure::new("soak", "scatter around that slope", second_half.scatter, "MiB"),
    ]
}

fn spread(values: &[f64]) -> Spread {
    Spread::of(values.iter().copied())
}

fn first_minute(values: &[f64]) -> &[f64] {
    &values[..values.len().min(MINUTE)]
}

fn last_minute(values: &[f64]) -> &[f64] {
    &values[values.len().saturating_sub(MINUTE)..]
}
