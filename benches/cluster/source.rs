//! Tasks as publishing makes them: the posts are in the store, the tasks not in the broker yet.

use fanfold::adapters::embedded::EmbeddedQueue;
use fanfold::adapters::{Queue, Revisions, Store};
use fanfold::clock::Clock;
use fanfold::domain::{Lane, Task, ViewerId};
use fanfold::handover::Handover;
use fanfold::ports::{Path, Queue as _, Revisions as _};
use fanfold::publish::{Draft, Publisher};
use fanfold::service::{Backends, options};
use fanfold::withdrawals::Withdrawals;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::task::JoinSet;

use crate::cluster::Bench;
use crate::measure::Result;
use crate::posts::{self, Audiences, draft};

/// Viewers of a post.
pub const AUDIENCE: usize = 500;

/// Publishes to a queue of its own, from which tasks are taken.
#[derive(Debug)]
pub struct Source {
    publisher: Publisher,
    held: Queue,
    audiences: Audiences,
    /// The cluster's own queue.
    pub queue: Queue,
}

/// Everybody who can be in an audience.
pub fn population(bench: &Bench) -> usize {
    bench.context.size(20_000, 1_000)
}

/// A publisher as the service has it, on `queue`.
pub async fn publisher(bench: &Bench, store: &Store, queue: Queue) -> Result<Publisher> {
    Ok(Publisher {
        store: store.for_path(Path::Publish),
        handover: Handover::new(queue),
        withdrawals: Withdrawals::shared(&store.for_path(Path::System)).await?,
        clock: Clock::system(),
        limits: options::publish_limits(&bench.cluster.config),
    })
}

/// Publishes `drafts` with `in_flight` at a time.
pub async fn publish(publisher: &Publisher, drafts: Vec<Draft>, in_flight: usize) -> Result<u64> {
    let mut shares: Vec<Vec<Draft>> = (0..in_flight).map(|_| Vec::new()).collect();
    for (at, draft) in drafts.into_iter().enumerate() {
        shares[at % in_flight].push(draft);
    }
    let mut publishers = JoinSet::new();
    for share in shares {
        let publisher = publisher.clone();
        publishers.spawn(async move {
            let count = share.len() as u64;
            for draft in share {
                publisher.publish(draft).await?;
            }
            Ok::<_, fanfold::error::Error>(count)
        });
    }
    let mut published = 0;
    while let Some(done) = publishers.join_next().await {
        published += done??;
    }
    Ok(published)
}

impl Source {
    /// Makes records for everybody as well, as if each had read: a bump of a viewer who never reads costs next to
    /// nothing, and that would flatter us.
    pub async fn open(bench: &Bench, seed: u64) -> Result<Self> {
        let Backends { store, queue, revisions } = Backends::open(&bench.cluster.config, &Clock::system()).await?;
        let population = population(bench);
        open_records(&revisions, population).await?;
        let held = Queue::Embedded(EmbeddedQueue::new(1_000_000));
        let publisher = publisher(bench, &store, held.clone()).await?;
        Ok(Self { publisher, held, audiences: Audiences::new(population, AUDIENCE, seed), queue })
    }

    /// The tasks of so many posts.
    pub async fn tasks(&mut self, posts: usize) -> Result<Vec<Task>> {
        let drafts = (0..posts).map(|_| draft(&self.audiences.draw())).collect::<Result<Vec<_>>>()?;
        self.take(drafts).await
    }

    /// The tasks of so many posts, each to all of `viewers`.
    pub async fn tasks_for(&mut self, viewers: &[String], posts: usize) -> Result<Vec<Task>> {
        let drafts = (0..posts).map(|_| draft(viewers)).collect::<Result<Vec<_>>>()?;
        self.take(drafts).await
    }

    async fn take(&self, drafts: Vec<Draft>) -> Result<Vec<Task>> {
        let mut tasks = Vec::with_capacity(drafts.len());
        publish(&self.publisher, drafts, 32).await?;
        for lane in Lane::ALL {
            while self.held.depth(lane).await? > 0 {
                let delivery = self.held.next(lane).await?.ok_or("the queue is closed")?;
                tasks.push(delivery.task.clone());
                self.held.ack(delivery).await?;
            }
        }
        Ok(tasks)
    }
}

/// Makes records for the first `viewers`, as if each had read.
pub async fn open_records(revisions: &Revisions, viewers: usize) -> Result<()> {
    let ids = (0..viewers).map(|n| ViewerId::parse("viewer", &posts::viewer(n))).collect::<Result<Vec<_>, _>>()?;
    let opened = futures::stream::iter(ids).map(async |viewer| revisions.open(&viewer).await);
    Ok(opened.buffer_unordered(64).try_for_each(async |_| Ok(())).await?)
}

/// Rows that tasks stand for.
pub fn rows_of(tasks: &[Task]) -> u64 {
    tasks.iter().map(|task| task.chunk.viewers.len() as u64).sum()
}
