//! `fanfold replay`: everybody of a graph posts once to all friends, then every inbox is checked against the graph.
//!
//! It uses nothing but the HTTP API and looks only at the posts that it made, so it works against any Fanfold, also one
//! with other posts in it.

mod check;
mod graph;
mod metrics;
mod plan;
mod polls;
mod report;
mod send;
mod visible;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::client::{Answer, Call, Client, Connect, viewer_path};
use super::fault::{EXIT_TRY_AGAIN, Fault, Result};
use super::out::{self, Progress};
use super::pages::Pages;
use super::{duration, wire};
use graph::Graph;
use plan::{AUDIENCE_MAX, Plan};
use report::Report;

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  fanfold replay                            1,000 made-up people
  fanfold replay --people 5000 --seed 7
  fanfold replay --graph facebook_combined.txt.gz
  fanfold replay --graph edges.txt --concurrency 256 --output json > report.json";

const AFTER: &str = "\
Viewers are named person-<id>. Exit code 1 if an inbox lacks a post, has one twice, or has one that was not for it.
Items that the service no longer serves, because an inbox holds more than its limit, cannot be verified: they are
counted apart, and if there are no others the exit code is 1 as well.";

/// Replay a social graph through a running service, and check every inbox
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = AFTER)]
pub struct Args {
    /// Edge list: two ids a line, # comments, plain or gzip
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Without a file: how many people to make up, their numbers of friends following Zipf's law
    #[arg(long, value_name = "N", default_value_t = 1_000, conflicts_with = "graph")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    people: u32,
    /// Without a file: what the made-up graph depends on
    #[arg(long, value_name = "S", default_value_t = 1, conflicts_with = "graph")]
    seed: u64,
    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// How many posts to follow until they are visible, for the latency
    #[arg(long, value_name = "N", default_value_t = 200)]
    sample: u32,
    /// How often every viewer polls when nothing changes
    #[arg(long, value_name = "N", default_value_t = 3)]
    poll_rounds: u32,
    /// Patience: with the fan-out after the last post, and with a request that is refused again and again
    #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    connect: Connect,
}

/// What all phases share.
struct Replay {
    client: Client,
    plan: Plan,
    width: usize,
    sample: usize,
    patience: Duration,
    /// Shared, so that one refusal tells all of them how much a page may hold.
    pages: Pages,
    retries: AtomicU64,
    /// Ends whatever still looks out for posts to become visible.
    end_of_sampling: CancellationToken,
}

/// Runs the replay; the exit code tells whether every inbox is as it must be.
pub async fn run(args: Args) -> Result<ExitCode> {
    let begun = Instant::now();
    let client = args.connect.client()?;
    // Not tried again: a service that is not there at all should be told at once.
    client.send(client.get("/livez")).await?;
    let graph = match &args.graph {
        Some(file) => Graph::read(file)?,
        None => Graph::zipf(args.people, args.seed)?,
    };
    let plan = Plan::new(&graph, AUDIENCE_MAX);
    if plan.posts.is_empty() {
        return Err(Fault::Usage("--graph: nobody has a friend, there is nothing to post".to_owned()));
    }
    let mut replay = Replay {
        client,
        plan,
        width: usize::from(args.concurrency),
        sample: args.sample as usize,
        patience: args.timeout,
        pages: Pages::default(),
        retries: AtomicU64::new(0),
        end_of_sampling: CancellationToken::new(),
    };
    replay.fit_audiences(&graph).await?;
    drop(graph);
    let Plan { run, names, posts, rows, .. } = &replay.plan;
    out::note(format_args!("run {run}: {} people, {} posts, {rows} rows", names.len(), posts.len()));
    let replay = Arc::new(replay);
    let report = replay.phases(&args, begun).await?;
    if args.connect.json() {
        out::json(&report)?
    } else {
        out::raw(report.table().as_bytes())?
    }
    Ok(match () {
        () if !report.ok() => ExitCode::FAILURE,
        () if report.unfinished_posts > 0 => ExitCode::from(EXIT_TRY_AGAIN),
        () => ExitCode::SUCCESS,
    })
}

impl Replay {
    async fn phases(self: &Arc<Self>, args: &Args, begun: Instant) -> Result<Report> {
        let started = Instant::now();
        let sent = self.send_all().await?;
        let posting = started.elapsed();
        let spread = self.wait_for_fanout(&sent.ids).await?;
        let fanning_out = started.elapsed();
        let visible = self.end_sampling(sent.visible).await?;
        let (tally, tokens) = self.check_inboxes(&sent.ids).await?;
        let polls = self.poll_unchanged(tokens, args.poll_rounds as usize).await?;
        Ok(Report::new(report::Measured {
            url: args.connect.place.url.clone(),
            run: self.plan.run.clone(),
            people: self.plan.names.len(),
            posts: sent.ids.len(),
            rows: self.plan.rows,
            posting,
            fanning_out,
            spread,
            visible,
            tally,
            polls,
            retries: self.retries.load(Ordering::Relaxed),
            wall: begun.elapsed(),
        }))
    }

    /// Sends a request as often as it takes: a busy service is given the time it asks for, a broken connection is tried
    /// again. Posts carry a key, so that none of this makes two of one.
    async fn ask(&self, call: Call) -> Result<Answer> {
        let give_up = Instant::now() + self.patience;
        let mut pause = PAUSE_FIRST;
        loop {
            let fault = match self.client.send(call.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            match fault.retry_after(pause) {
                Some(after) if Instant::now() + after < give_up => sleep(after).await,
                _ => return Err(fault),
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A page of an inbox, as long as the service gives them.
    async fn page(&self, viewer: &str, cursor: Option<&str>) -> Result<wire::IdPage> {
        let call = self.client.get(&viewer_path(viewer, "inbox")?).maybe("cursor", cursor);
        self.pages.read(&call, u32::MAX, |call| self.ask(call)).await
    }

    /// Runs `job` for every index below `total`, `width` at a time, with progress; the results are in order. The first
    /// fault ends it.
    async fn each<T, F, Fut>(self: &Arc<Self>, what: &'static str, total: usize, job: F) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: Fn(Arc<Self>, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T>> + Send,
    {
        let progress = Arc::new(Progress::new(what, total as u64));
        let (job, next) = (Arc::new(job), Arc::new(AtomicUsize::new(0)));
        let mut workers = JoinSet::new();
        for _ in 0..self.width.min(total) {
            let (replay, job, next, progress) = (self.clone(), job.clone(), next.clone(), progress.clone());
            workers.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= total {
                        return Ok(done);
                    }
                    done.push((index, job(replay.clone(), index).await?));
                    progress.step();
                }
            });
        }
        let mut all = Vec::with_capacity(total);
        while let Some(worker) = workers.join_next().await {
            let worker: Result<Vec<(usize, T)>> =
                worker.map_err(|e| Fault::Local(format!("a task ended early: {e}")))?;
            all.extend(worker?);
        }
        progress.finish();
        all.sort_unstable_by_key(|(index, _)| *index);
        Ok(all.into_iter().map(|(_, result)| result).collect())
    }
}
