//! How long a producer's small posts take while another one pours, in a service whose lanes producers share.
//!
//! A post to one viewer is published every so often, whether or not the one before is there yet, and its viewer waits with
//! a long poll: the time runs from sending the post to the answer of the poll. Three times in turn: with nothing else to
//! do, beside the flood of another producer, and beside a flood of the same one, which it then stands behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::{Connection, Request, get, with_key};
use crate::context::Context;
use crate::findings::{Figure, Findings};
use crate::load;
use crate::measure::{Limit, Result, Spread, percentile};
use crate::posts::{self, Audiences};
use crate::service::Service;

/// Between two small posts: seldom enough that they do not wait for each other.
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
/// Beside another's flood half of the small posts may wait for so many chunks of it: for the one that goes before in their
/// lane, and for four group commits with two in each (`store.commit_bulk_bytes_max`), and one to spare. Without turns it
/// would be hundreds. The p99 has no limit: that is for the processors to say, which the load shares.
const DELAY_MAX: f64 = 10.0;

/// What came of a phase.
#[derive(Debug)]
struct Phase {
    /// Milliseconds from the post to its viewer's news, of each small post that was sent while the phase lasted.
    visible_ms: Vec<f64>,
    /// Milliseconds from the post to its 202.
    accepted_ms: Vec<f64>,
    /// Milliseconds of the flood for each of its chunks.
    chunk_ms: f64,
}

/// What the small posts of a phase met with, in its name.
const PHASES: [&str; 3] = ["alone", "beside another's flood", "behind a flood of its own"];
/// The one that the lanes are for.
const BESIDE: usize = 1;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mut rounds = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("fairness", number);
        rounds.push(round(context, number as u64).await?);
    }
    let figure =
        |at: usize, what: &str, value, unit| Figure::new("fairness", format!("{}: {what}", PHASES[at]), value, unit);
    // Of all rounds together: a single one has too few posts for a p99.
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
    for at in 1..PHASES.len() {
        let chunk_ms = Spread::of(rounds.iter().map(|phases| phases[at].chunk_ms)).median;
        let (p99, alone) = (visible(at, 0.99), visible(0, 0.99));
        figures.push(figure(at, "a chunk of the flood", chunk_ms, "ms"));
        figures.push(figure(at, "p99 to that alone", p99 / alone.max(1e-9), "x"));
        let delay = |share| (visible(at, share) - visible(0, share)) / chunk_ms.max(1e-9);
        let half = figure(at, "delay at p50", delay(0.5), "chunks");
        figures.push(if at == BESIDE { half.with_limit(Limit::AtMost(DELAY_MAX)) } else { half });
        figures.push(figure(at, "delay at p99", delay(0.99), "chunks"));
    }
    Ok(figures.into())
}

/// The three phases, in a fresh service.
async fn round(context: &Context, seed: u64) -> Result<[Phase; 3]> {
    let (mut service, keys) = Service::start_guarded(context, "fairness", &["small", "flood"]).await?;
    let [small, flood] = &keys[..] else { return Err("two producers have two keys".into()) };
    let population = context.size(20_000, 2_000);
    service.open_records(population).await?;
    let pour = Flood::new(context, population, seed, flood);
    let alone = calm(&service, small, context.size(100, 20)).await?;
    let beside = pour.beside(&mut service, small, "beside").await?;
    let behind = pour.beside(&mut service, flood, "behind").await?;
    service.child.stop().await?;
    Ok([alone, beside, behind])
}

async fn calm(service: &Service, key: &str, posts: usize) -> Result<Phase> {
    let over = Arc::new(AtomicBool::new(false));
    let small = Small::new(service, key, "alone").send(posts, Arc::clone(&over)).await?;
    Ok(small.phase(0.0))
}

/// What is poured.
struct Flood {
    requests: Vec<Request>,
    rows: u64,
    chunks: u64,
}

impl Flood {
    /// A million rows in posts of one chunk, and half as many in posts of many.
    fn new(context: &Context, population: usize, seed: u64, key: &str) -> Self {
        let giant = population / 2;
        let (mut usual, mut giants) =
            (Audiences::new(population, AUDIENCE, seed), Audiences::new(population, giant, seed));
        let (mut requests, mut rows, mut chunks) = (Vec::new(), 0, 0);
        for number in 0..context.size(2_000, 200) {
            let mut add = |audience: &mut Audiences, size: usize| {
                requests.push(with_key(&posts::request(&audience.draw()), key));
                rows += size as u64;
                chunks += size.div_ceil(AUDIENCE) as u64;
            };
            add(&mut usual, AUDIENCE);
            if number % USUAL_PER_GIANT == 0 {
                add(&mut giants, giant);
            }
        }
        Self { requests, rows, chunks }
    }

    /// Pours, and has small posts published with `key` until the last row of the flood is written.
    async fn beside(&self, service: &mut Service, key: &str, name: &str) -> Result<Phase> {
        let target = service.counters().await?.rows + self.rows;
        let over = Arc::new(AtomicBool::new(false));
        let small = tokio::spawn(Small::new(service, key, name).send(usize::MAX, Arc::clone(&over)));
        let started = Instant::now();
        let pouring = load::once(self.requests.clone(), POURING, 202);
        load::drive(service.child.addr(), POURING, pouring).await?;
        let written = service.until_written(target).await;
        let took = started.elapsed();
        over.store(true, Ordering::Relaxed);
        let small = small.await??;
        written?;
        // What the relay has brought twice is out of the way of the next phase.
        service.until_drained().await?;
        Ok(small.phase(took.as_secs_f64() * 1e3 / self.chunks as f64))
    }
}

/// The producer of small posts and their viewers, a viewer a post.
struct Small {
    addr: std::net::SocketAddr,
    publish: String,
    read: Box<dyn Fn(Request) -> Request + Send + Sync>,
    name: String,
}

/// From sending a post to its 202, and to its viewer's news.
type Times = (Duration, Duration);

struct Sent(Vec<Times>);

impl Sent {
    fn phase(self, chunk_ms: f64) -> Phase {
        let ms = |of: fn(&Times) -> Duration| self.0.iter().map(|times| of(times).as_secs_f64() * 1e3).collect();
        Phase { accepted_ms: ms(|times| times.0), visible_ms: ms(|times| times.1), chunk_ms }
    }
}

impl Small {
    fn new(service: &Service, key: &str, name: &str) -> Self {
        let (addr, publish, name) = (service.child.addr(), key.to_owned(), name.to_owned());
        Self { addr, publish, read: Box::new(service.asking()), name }
    }

    /// Publishes up to `posts` until it is over, and waits until all of them were seen. On a thread of its own, as all
    /// load.
    async fn send(self, posts: usize, over: Arc<AtomicBool>) -> Result<Sent> {
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(Arc::new(self).send_all(posts, over))
        };
        tokio::task::spawn_blocking(run).await?
    }

    async fn send_all(self: Arc<Self>, posts: usize, over: Arc<AtomicBool>) -> Result<Sent> {
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
        Ok(Sent(times))
    }

    /// `None` if it was over before the post was sent.
    async fn send_one(self: Arc<Self>, number: usize, over: Arc<AtomicBool>) -> Result<Option<Times>> {
        let viewer = format!("{}-{number}", self.name);
        let path = format!("/v1/viewers/{viewer}");
        let (mut polling, mut publishing) = (Connection::open(self.addr).await?, Connection::open(self.addr).await?);
        let page = (self.read)(get(&format!("{path}/inbox?limit=1")));
        let token = polling.send(&page).await?.expect(200)?.field("token")?.to_owned();
        let poll = (self.read)(get(&format!("{path}/revision?since={token}&wait={PATIENCE_S}")));
        let post = with_key(&posts::request(&[viewer]), &self.publish);
        if over.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let started = Instant::now();
        let accepted = async {
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
