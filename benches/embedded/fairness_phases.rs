//! How long a producer's small posts take while others pour: what a round does, and what all rounds together say. The
//! same in both suites.
//!
//! A post to one viewer is published every so often, whether or not the one before is there yet, and its viewer waits with
//! a long poll: the time runs from sending the post to the answer of the poll. Four times in turn:
//!
//! - with nothing else to do;
//! - while a flood goes to another service on the same machine, as a control: what sharing processors, disk and servers
//!   costs by itself, and no lanes could avoid;
//! - beside the same flood of another producer;
//! - beside the same flood of its own producer, which it then stands behind.
//!
//! Both services are there all the time, so that what an idle one costs is part of every phase.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::{Connection, Request, get, with_key};
use crate::findings::Figure;
use crate::keys::Keys;
use crate::load;
use crate::measure::{Limit, Result, Spread, percentile};
use crate::posts::{self, Audiences};

/// Between two small posts: seldom enough that they do not wait for each other, and that a cluster takes their producer for
/// one who posts little (`rabbitmq.fair_queues`: up to 25 tasks a second).
const EVERY: Duration = Duration::from_millis(50);
/// Longest wait for one of them, as the poll says it.
const PATIENCE_S: u32 = 60;
/// Connections that pour: more posts at a time than workers of a lane take from it, or nothing would pile up, for posts
/// and chunks share their commits.
const POURING: usize = 64;
/// Viewers of a usual post of the flood: one chunk, as the small ones are.
const AUDIENCE: usize = 500;
/// So many usual posts for each of many chunks.
const USUAL_PER_GIANT: usize = 40;

/// What the small posts of a phase met with, in its name.
const PHASES: [&str; 4] =
    ["alone", "control, beside a flood of another service", "beside another's flood", "behind a flood of its own"];
/// The one in which nothing else happens.
const ALONE: usize = 0;
/// The one in which only the machine is shared.
const CONTROL: usize = 1;
/// The one that the lanes are for.
const BESIDE: usize = 2;

/// A service with access control, as the phases use it.
pub trait Feed {
    /// Where posts and polls go.
    fn addr(&self) -> SocketAddr;

    /// What opens it.
    fn keys(&self) -> &Keys;

    /// Rows that its fan-out has written so far, those that were written twice included.
    async fn written(&mut self) -> Result<u64>;

    /// Waits until so many are written.
    async fn until_written(&mut self, rows: u64) -> Result<()>;

    /// Waits until nothing of what was published is left to be done.
    async fn until_drained(&mut self) -> Result<()>;
}

/// How much a round does.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Small posts while nothing else happens. Beside a flood as many are sent as it takes.
    pub alone: usize,
    /// Everybody who can be in an audience of the flood. Each has a record in both services.
    pub population: usize,
    /// Posts of one chunk in the flood. For every forty of them there is one to half of the population.
    pub usual: usize,
}

/// What came of a phase.
#[derive(Debug)]
pub struct Phase {
    /// Milliseconds from the post to its viewer's news, of each small post that was sent while the phase lasted.
    visible_ms: Vec<f64>,
    /// Milliseconds from the post to its 202.
    accepted_ms: Vec<f64>,
    /// Milliseconds of the flood for each of its chunks; zero without one.
    chunk_ms: f64,
}

/// What came of the phases of a round, in their order.
pub type Round = [Phase; PHASES.len()];

/// Runs the phases, in services that have nothing left to do.
pub async fn round<F: Feed>(number: usize, sizes: Sizes, measured: &mut F, other: &mut F) -> Result<Round> {
    let flood = Flood::new(sizes, number as u64);
    // Viewers of their own in each round and phase: what comes twice for one of them is no news for another.
    let sender = |key: &str, phase: &str| Small::new(&*measured, key, format!("{phase}-{number}"));
    let keys = measured.keys();
    let [alone, control, beside] = ["alone", "control", "beside"].map(|phase| sender(&keys.small, phase));
    let behind = sender(&keys.flood, "behind");
    let alone = Phase::of(&alone.send(sizes.alone, Arc::default()).await?, 0.0);
    let control = flood.beside(other, control).await?;
    let beside = flood.beside(measured, beside).await?;
    let behind = flood.beside(measured, behind).await?;
    Ok([alone, control, beside, behind])
}

/// What all rounds together say: a single one has too few posts for a p99. `delay` is where small posts have to stay beside
/// another's flood at p99, in chunks of it, if anywhere.
pub fn figures(rounds: &[Round], delay: Option<Limit>) -> Vec<Figure> {
    let figure =
        |at: usize, what: &str, value, unit| Figure::new("fairness", format!("{}: {what}", PHASES[at]), value, unit);
    let times = |of: fn(&Phase) -> &Vec<f64>, at: usize, share| {
        let all: Vec<f64> = rounds.iter().flat_map(|phases| of(&phases[at])).copied().collect();
        percentile(&all, share)
    };
    let visible = |at, share| times(|phase| &phase.visible_ms, at, share);
    let mut figures = Vec::new();
    for at in 0..PHASES.len() {
        figures.push(figure(at, "publish to visible, p50", visible(at, 0.5), "ms"));
        figures.push(figure(at, "publish to visible, p99", visible(at, 0.99), "ms"));
        figures.push(figure(at, "publish to 202, p99", times(|phase| &phase.accepted_ms, at, 0.99), "ms"));
        let posts = rounds.iter().map(|phases| phases[at].visible_ms.len()).sum::<usize>();
        figures.push(figure(at, "small posts", posts as f64, "posts"));
    }
    for at in CONTROL..PHASES.len() {
        let chunk_ms = Spread::of(rounds.iter().map(|phases| phases[at].chunk_ms)).median;
        let beyond = |than, share| (visible(at, share) - visible(than, share)) / chunk_ms.max(1e-9);
        figures.push(figure(at, "a chunk of the flood", chunk_ms, "ms"));
        figures.push(figure(at, "p99 to that alone", visible(at, 0.99) / visible(ALONE, 0.99).max(1e-9), "x"));
        figures.push(figure(at, "delay at p50", beyond(ALONE, 0.5), "chunks"));
        let late = figure(at, "delay at p99", beyond(ALONE, 0.99), "chunks");
        figures.push(match delay {
            Some(limit) if at == BESIDE => late.with_limit(limit),
            _ => late,
        });
        if at == BESIDE {
            figures.push(figure(at, "delay at p50 beyond the control", beyond(CONTROL, 0.5), "chunks"));
            figures.push(figure(at, "delay at p99 beyond the control", beyond(CONTROL, 0.99), "chunks"));
        }
    }
    figures
}

/// What is poured: posts of one chunk, and among them some of many.
pub struct Flood {
    requests: Vec<Request>,
    rows: u64,
    chunks: u64,
}

impl Flood {
    /// The same seed makes the same flood.
    pub fn new(sizes: Sizes, seed: u64) -> Self {
        let giant = sizes.population / 2;
        let mut usuals = Audiences::new(sizes.population, AUDIENCE, seed);
        let mut giants = Audiences::new(sizes.population, giant, seed);
        let mut flood = Self { requests: Vec::new(), rows: 0, chunks: 0 };
        for number in 0..sizes.usual {
            flood.add(&mut usuals, AUDIENCE);
            if number.is_multiple_of(USUAL_PER_GIANT) {
                flood.add(&mut giants, giant);
            }
        }
        flood
    }

    fn add(&mut self, audiences: &mut Audiences, size: usize) {
        self.requests.push(posts::request(&audiences.draw()));
        self.rows += size as u64;
        self.chunks += size.div_ceil(AUDIENCE) as u64;
    }

    /// Pours with the key of the flood, waits until the last row is written, and answers how long that took.
    pub async fn pour(&self, flooded: &mut impl Feed) -> Result<Duration> {
        let requests = self.requests.iter().map(|request| with_key(request, &flooded.keys().flood)).collect();
        let target = flooded.written().await? + self.rows;
        let started = Instant::now();
        load::drive(flooded.addr(), POURING, load::once(requests, POURING, 202)).await?;
        flooded.until_written(target).await?;
        Ok(started.elapsed())
    }

    /// Pours, and has small posts sent as long as that takes.
    async fn beside(&self, flooded: &mut impl Feed, small: Small) -> Result<Phase> {
        let over = Arc::new(AtomicBool::new(false));
        let small = tokio::spawn(small.send(usize::MAX, Arc::clone(&over)));
        let poured = self.pour(flooded).await;
        // Whatever came of it, or they would be sent for ever.
        over.store(true, Ordering::Relaxed);
        let small = small.await?;
        let (took, times) = (poured?, small?);
        // What was brought twice is out of the way of the next phase.
        flooded.until_drained().await?;
        Ok(Phase::of(&times, took.as_secs_f64() * 1e3 / self.chunks as f64))
    }
}

/// From sending a post to its 202, and to its viewer's news.
type Times = (Duration, Duration);

impl Phase {
    fn of(times: &[Times], chunk_ms: f64) -> Self {
        let ms = |of: fn(&Times) -> Duration| times.iter().map(|times| of(times).as_secs_f64() * 1e3).collect();
        Self { accepted_ms: ms(|times| times.0), visible_ms: ms(|times| times.1), chunk_ms }
    }
}

/// The producer of small posts and their viewers, a viewer a post.
struct Small {
    addr: SocketAddr,
    /// With which it publishes.
    key: String,
    /// With which its viewers read.
    all_seeing: String,
    /// What the viewers' names begin with.
    name: String,
}

impl Small {
    fn new(feed: &impl Feed, key: &str, name: String) -> Self {
        Self { addr: feed.addr(), key: key.to_owned(), all_seeing: feed.keys().all_seeing.clone(), name }
    }

    /// Publishes up to `posts` until it is over, and waits until all of them were seen. On a thread of its own, as all
    /// load.
    async fn send(self, posts: usize, over: Arc<AtomicBool>) -> Result<Vec<Times>> {
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(Arc::new(self).send_all(posts, over))
        };
        tokio::task::spawn_blocking(run).await?
    }

    async fn send_all(self: Arc<Self>, posts: usize, over: Arc<AtomicBool>) -> Result<Vec<Times>> {
        let mut due = tokio::time::interval(EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = JoinSet::new();
        for number in 0..posts {
            due.tick().await;
            if over.load(Ordering::Relaxed) {
                break;
            }
            waiting.spawn(Arc::clone(&self).send_one(number, Arc::clone(&over)));
        }
        let mut times = Vec::new();
        while let Some(seen) = waiting.join_next().await {
            times.extend(seen??);
        }
        Ok(times)
    }

    /// `None` if it was over before the post was sent.
    async fn send_one(self: Arc<Self>, number: usize, over: Arc<AtomicBool>) -> Result<Option<Times>> {
        let viewer = format!("{}-{number}", self.name);
        let path = format!("/v1/viewers/{viewer}");
        let (mut polling, mut publishing) = (Connection::open(self.addr).await?, Connection::open(self.addr).await?);
        let page = with_key(&get(&format!("{path}/inbox?limit=1")), &self.all_seeing);
        let token = polling.send(&page).await?.expect(200)?.field("token")?.to_owned();
        let poll = with_key(&get(&format!("{path}/revision?since={token}&wait={PATIENCE_S}")), &self.all_seeing);
        let post = with_key(&posts::request(&[viewer]), &self.key);
        if over.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let started = Instant::now();
        // Its connection goes with the answer: behind a flood many wait for their news.
        let accepted = async move {
            publishing.send(&post).await?.expect(202)?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(started.elapsed())
        };
        let seen = async {
            polling.send(&poll).await?.expect(200)?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(started.elapsed())
        };
        tokio::try_join!(accepted, seen).map(Some)
    }
}
