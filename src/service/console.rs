//! What operators do with a running cluster. It talks to the backends, not to a process: it works whatever is up.

use std::time::Duration;

use futures::future::try_join_all;

use crate::adapters::finding::Finding;
use crate::adapters::rabbitmq::{self, RabbitQueue};
use crate::adapters::redis;
use crate::adapters::scylla::{self, MigrationReport, ScyllaStore, Skew};
use crate::adapters::{Queue, Store};
use crate::clock::Clock;
use crate::config::{Config, Mode};
use crate::domain::{Fence, Knob, Lane, ParkedChunk, Post, PostId, Time, Tuning, WorkerReport};
use crate::error::{Error, Kind, Result};
use crate::parked;
use crate::ports::{Control as _, FenceEntry, Pending, Queue as _, Store as _};
use crate::service::{guard, options};
use crate::tuning::{API, FANOUT, RELAY};

/// How long to wait for the broker.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pending entries looked at together for the lag, and how many of a shard at most.
const LAG_PAGE: u32 = 50;
const LAG_MAX: usize = 5_000;
/// Tries to change the tuning while others change it.
const ATTEMPTS: u32 = 5;
/// A process whose clock differs from the store's by more is told of; what it last said is up to ten seconds old.
const SKEW_MAX: Duration = Duration::from_secs(60);
/// Messages looked at.
const MESSAGES_MAX: u32 = 100;

/// Brings the schema up to what this release needs.
pub async fn migrate(config: &Config) -> Result<MigrationReport> {
    scylla::migrate(&options::migration(config, &Clock::system())).await
}

/// Looks at each backend, at who works, and at who may do what.
pub async fn inspect(config: &Config) -> Vec<Finding> {
    let clock = Clock::system();
    let scylla_options = options::scylla(config, &clock);
    let (redis_options, rabbit_options) = (options::redis(config, &clock), options::rabbitmq(config));
    let (mut findings, queue) =
        futures::future::join(scylla::inspect(&scylla_options), rabbitmq::inspect(&rabbit_options)).await;
    let scylla = ScyllaStore::connect(scylla_options).await.ok();
    let now = match &scylla {
        Some(scylla) => scylla.store_time().await.ok(),
        None => None,
    };
    let store = scylla.map(Store::Scylla);
    let newest = match &store {
        Some(store) => store.fences(1).await.ok().and_then(|fences| fences.into_iter().next()),
        None => None,
    };
    findings.extend(queue);
    findings.extend(redis::inspect(&redis_options, newest.as_ref()).await);
    if let Some(store) = &store {
        findings.extend(workers(store.reports().await, now));
    }
    findings.extend(guard::inspect(config, store.as_ref(), &clock).await);
    findings
}

fn workers(reports: Result<Vec<WorkerReport>>, now: Option<Time>) -> Vec<Finding> {
    const PART: &str = "workers";
    let reports = match reports {
        Ok(reports) => reports,
        Err(error) => return vec![Finding::wrong(PART, error.to_string(), "see the store")],
    };
    let look = |role: &str, what: &str, without: &str| {
        let count = reports.iter().filter(|report| report.role == role).count();
        match count {
            0 => Finding::warning(PART, format!("no {what} is running"), without.to_owned()),
            count => Finding::fine(PART, format!("{count} x {what}")),
        }
    };
    let mut findings = vec![
        look(API, "API node", "start one (fanfold serve): nobody can publish or read"),
        look(FANOUT, "fanfold-fanout", "start one: posts are accepted, but reach nobody"),
        look(RELAY, "fanfold-relay", "start one: what fails once is never tried again without it"),
    ];
    findings.extend(now.into_iter().flat_map(|now| reports.iter().filter_map(move |report| clock_of(report, now))));
    findings
}

/// What it last told of itself carries the time by its own clock.
fn clock_of(report: &WorkerReport, now: Time) -> Option<Finding> {
    let Skew { by, ahead } = Skew::between(report.at, now, report.at);
    (by > SKEW_MAX).then(|| {
        let (name, role, word) = (&report.name, &report.role, if ahead { "ahead of" } else { "behind" });
        let what = format!("the clock of {name} ({role}) is {by:.0?} {word} the store's");
        Finding::warning("workers", what, "run NTP there and on the store's nodes: clocks order the edits of one post")
    })
}

/// A connection to what a cluster agrees on.
#[derive(Debug)]
pub struct Console {
    store: Store,
    queue: Queue,
    clock: Clock,
}

/// How the fan-out is going.
#[derive(Clone, Debug)]
pub struct FanoutStatus {
    /// How it is tuned.
    pub tuning: Tuning,
    /// Tasks waiting in each lane, in the order of [`Lane::ALL`]; `None` if the broker cannot be asked.
    pub depths: [Option<u64>; 2],
    /// Messages that the broker has set aside.
    pub set_aside: Option<u64>,
    /// Age of the oldest post that is not fanned out completely.
    pub lag: Duration,
    /// Who works, and on what.
    pub workers: Vec<WorkerReport>,
    /// How many API nodes there are.
    pub api_nodes: usize,
    /// When this was looked at.
    pub at: Time,
}

impl Console {
    /// Connects to the configured cluster.
    pub async fn connect(config: &Config) -> Result<Self> {
        if config.service.mode == Mode::Embedded {
            let detail = "this is for cluster mode (service.mode, FANFOLD_MODE or --mode); the embedded service has \
                          nothing to agree on with others";
            return Err(Error::invalid("not_a_cluster", "service.mode", detail));
        }
        let clock = Clock::system();
        let store = Store::Scylla(ScyllaStore::connect(options::scylla(config, &clock)).await?);
        let queue = RabbitQueue::start(options::rabbitmq(config));
        Ok(Self { store, queue: Queue::Rabbit(queue), clock })
    }

    /// Waits for the broker, for what cannot do without.
    async fn queue(&self) -> Result<&Queue> {
        if let Queue::Rabbit(queue) = &self.queue {
            queue.ready(PATIENCE).await?;
        }
        Ok(&self.queue)
    }

    /// How the fan-out is going.
    pub async fn status(&self) -> Result<FanoutStatus> {
        let (mut depths, mut set_aside) = ([None; 2], None);
        if let Ok(queue) = self.queue().await {
            for lane in Lane::ALL {
                depths[lane as usize] = queue.depth(lane).await.ok();
            }
            set_aside = queue.parked().await.ok().flatten();
        }
        let oldest = try_join_all((0..self.store.shards()).map(|shard| self.oldest_of(shard))).await?;
        let oldest = oldest.into_iter().flatten().min();
        let (at, mut workers) = (self.clock.now(), self.store.reports().await?);
        let processes = workers.len();
        workers.retain(|process| process.role != API);
        let api_nodes = processes - workers.len();
        workers.sort_by(|a, b| (&a.role, &a.name).cmp(&(&b.role, &b.name)));
        let lag = oldest.map_or(Duration::ZERO, |oldest| at.since(oldest));
        Ok(FanoutStatus { tuning: self.store.tuning().await?, depths, set_aside, lag, workers, api_nodes, at })
    }

    /// Since when the oldest post of a shard waits for its fan-out. What was never committed waits for nobody, and there may
    /// be much of it: it is kept for `relay.garbage_after_s`, in case its producer tries again.
    async fn oldest_of(&self, shard: u32) -> Result<Option<Time>> {
        let (mut from, mut looked) = (None, 0);
        while looked < LAG_MAX {
            let page = self.store.pending(shard, from, LAG_PAGE).await?;
            if let Some(entry) = self.first_waiting(&page.entries).await? {
                return Ok(Some(entry.since));
            }
            looked += page.entries.len();
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        Ok(None)
    }

    async fn first_waiting<'a>(&self, entries: &'a [Pending]) -> Result<Option<&'a Pending>> {
        let waits =
            |entry: &Pending, post: &Option<Post>| post.as_ref().is_some_and(|post| post.version >= entry.version);
        let ids: Vec<PostId> = entries.iter().map(|entry| entry.post_id).collect();
        match self.store.posts(&ids).await {
            Ok(posts) => {
                return Ok(entries.iter().zip(&posts).find(|(entry, post)| waits(entry, post)).map(|(e, _)| e));
            }
            Err(error) if error.kind() != Kind::Corrupt => return Err(error),
            // One that cannot be read spoils the answer for all, and that is when somebody asks how the fan-out is going.
            Err(_) => {}
        }
        for entry in entries {
            match self.store.post(entry.post_id).await {
                Ok(post) if !waits(entry, &post) => {}
                Err(error) if error.kind() != Kind::Corrupt => return Err(error),
                Ok(_) | Err(_) => return Ok(Some(entry)),
            }
        }
        Ok(None)
    }

    /// Changes the tuning on behalf of `by`; every worker takes it up within a second.
    pub async fn tune(&self, by: &str, change: impl Fn(Tuning) -> Tuning) -> Result<Tuning> {
        for _ in 0..ATTEMPTS {
            let known = self.store.tuning().await?;
            let version = known.version + 1;
            let next = Tuning { version, by: by.to_owned(), at: self.clock.now(), ..change(known) };
            if self.store.set_tuning(&next).await? {
                return Ok(next);
            }
        }
        Err(Error::new(Kind::Conflict, "tuning_contended", "others keep changing the tuning; look and try again"))
    }

    /// Parked chunks, at most `limit`.
    pub async fn parked(&self, limit: usize) -> Result<Vec<ParkedChunk>> {
        parked::list(&self.store, limit).await
    }

    /// Messages that the broker has set aside and nobody has taken over: why, one each.
    pub async fn messages(&self) -> Result<Vec<String>> {
        let set_aside = self.queue().await?.set_aside(MESSAGES_MAX).await?;
        Ok(set_aside.map(|all| all.messages.iter().map(|message| message.reason.clone()).collect()).unwrap_or_default())
    }

    /// Removes the messages that no release here can read; what they were about is pending all the same.
    pub async fn discard_messages(&self) -> Result<usize> {
        let Some(set_aside) = self.queue().await?.set_aside(MESSAGES_MAX).await? else { return Ok(0) };
        let unreadable: Vec<bool> = set_aside.messages.iter().map(|message| message.task.is_none()).collect();
        set_aside.remove(&unreadable).await?;
        Ok(unreadable.iter().filter(|gone| **gone).count())
    }

    /// Puts the messages that no release here can read back into their lanes, for workers of the release that wrote them;
    /// how many.
    pub async fn redrive_messages(&self) -> Result<usize> {
        match self.queue().await?.set_aside(MESSAGES_MAX).await? {
            Some(set_aside) => set_aside.put_back().await,
            None => Ok(0),
        }
    }

    /// A parked chunk with the number of its viewers.
    pub async fn show(&self, id: PostId, no: u32) -> Result<(ParkedChunk, usize)> {
        let parked = self.store.parked(id).await?.into_iter().find(|chunk| chunk.no == no);
        let not_parked = || Error::not_found("chunk_not_found", format!("chunk {no} of post {id} is not parked"));
        let parked = parked.ok_or_else(not_parked)?;
        let viewers = self.store.chunk(id, no).await?.map_or(0, |chunk| chunk.viewers.len());
        Ok((parked, viewers))
    }

    /// Takes a chunk up again.
    pub async fn redrive(&self, id: PostId, no: u32) -> Result<()> {
        self.show(id, no).await?;
        parked::redrive(&self.store, self.queue().await?, id, no).await
    }

    /// Gives a chunk up.
    pub async fn discard(&self, id: PostId, no: u32) -> Result<()> {
        self.show(id, no).await?;
        parked::discard(&self.store, id, no).await
    }

    /// The newest entries of the fence registry.
    pub async fn fences(&self, limit: u32) -> Result<Vec<FenceEntry>> {
        self.store.fences(limit).await
    }

    /// Registers a new fence for the life of Redis that is current: every client resyncs once. For who has restored a
    /// backup of the store or of Redis.
    pub async fn renew_fence(&self) -> Result<Fence> {
        let newest = self.store.newest_fence().await?;
        let none = || Error::new(Kind::Conflict, "fence_unknown", "no process has registered a fence yet: start one");
        let (_, replid) = newest.ok_or_else(none)?;
        self.store.register_fence(rand::random(), &replid, None).await
    }
}

/// A value for a knob, checked.
pub fn knob_value(knob: Knob, value: u32) -> Result<u32> {
    let max = knob.max();
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    let detail = format!("must be 1 to {max}, is {value}");
    Err(Error::limit("invalid_value", knob.name(), detail, u64::from(max), u64::from(value)))
}
