//! The use cases without HTTP, in this process: what the in-process scenarios measure.

use std::path::Path;
use std::time::Duration;

use fanfold::adapters::embedded::{EmbeddedRevisions, RevisionLimits};
use fanfold::adapters::{Queue, Revisions};
use fanfold::clock::Clock;
use fanfold::domain::{Lane, ViewerId};
use fanfold::fanout::Fanout;
use fanfold::handover::Handover;
use fanfold::ports::{Path as ReadPath, Queue as _, Revisions as _};
use fanfold::publish::{Draft, PublishLimits, Publisher};
use fanfold::service::Backends;
use fanfold::tuning::{Board, FANOUT, LaneLimits};
use fanfold::withdrawals::Withdrawals;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context;
use crate::measure::Result;
use crate::posts;

/// How often to look whether the queue is empty.
const LOOK: Duration = Duration::from_millis(1);

/// A publisher and fan-out workers over the embedded adapters, configured as shipped.
#[derive(Debug)]
pub struct Engine {
    publisher: Publisher,
    fanout: Fanout,
    workers: [(Lane, u32); 2],
}

/// Workers that run.
#[derive(Debug)]
pub struct Workers {
    queue: Queue,
    tasks: JoinSet<()>,
}

impl Engine {
    /// In an empty folder, with a queue that takes all that is published: nothing is to wait for the relay, which does
    /// not run here.
    pub async fn open(folder: &Path) -> Result<Self> {
        let mut config = context::config(folder)?;
        config.fanout.queue_tasks_max = 1_000_000;
        let clock = Clock::system();
        let Backends { store, queue, revisions } = Backends::open(&config, &clock).await?;
        let limits = PublishLimits {
            viewer_id_bytes_max: 128,
            data_bytes_max: config.publish.data_bytes_max,
            type_bytes_max: config.publish.type_bytes_max,
            thread_key_bytes_max: config.publish.thread_key_bytes_max,
            idempotency_key_bytes_max: config.publish.idempotency_key_bytes_max,
            lifetime_max: Duration::from_secs(config.publish.lifetime_s_max),
            chunk_size: config.fanout.chunk_size,
        };
        let publisher = Publisher {
            store: store.for_path(ReadPath::Publish),
            handover: Handover::new(queue.clone()),
            withdrawals: Withdrawals::load(&store).await?,
            clock: clock.clone(),
            limits,
        };
        let fanout = Fanout {
            store: store.for_path(ReadPath::Fanout),
            queue,
            revisions,
            clock,
            inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
            attempts_max: config.fanout.attempts_max,
            board: Board::new(FANOUT, &Clock::system()),
        };
        let workers = [(Lane::Small, config.fanout.workers_small), (Lane::Bulk, config.fanout.workers_bulk)];
        Ok(Self { publisher, fanout, workers })
    }

    /// Makes records for the first `viewers`, as if each had read: a bump of a viewer who never reads costs nothing,
    /// and that would flatter us.
    pub async fn open_records(&self, viewers: usize) -> Result<()> {
        open_records(&self.fanout.revisions, viewers).await
    }

    /// Publishes `drafts` with `in_flight` at a time.
    pub async fn publish(&self, drafts: Vec<Draft>, in_flight: usize) -> Result<u64> {
        let mut publishers = JoinSet::new();
        let mut shares: Vec<Vec<Draft>> = (0..in_flight).map(|_| Vec::new()).collect();
        for (at, draft) in drafts.into_iter().enumerate() {
            shares[at % in_flight].push(draft);
        }
        for share in shares {
            let publisher = self.publisher.clone();
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

    /// Starts as many fan-out workers as the service has.
    pub fn start_workers(&self) -> Workers {
        let mut tasks = JoinSet::new();
        for (lane, count) in self.workers {
            let (fanout, limits) = (self.fanout.clone(), watch::Sender::new(LaneLimits { tasks: count }));
            let stop = CancellationToken::new();
            tasks.spawn(async move { fanout.work(lane, limits.subscribe(), stop).await });
        }
        Workers { queue: self.fanout.queue.clone(), tasks }
    }
}

impl Workers {
    /// Lets them work off what is queued, to the end of the last task.
    pub async fn drain(self) -> Result<()> {
        for lane in Lane::ALL {
            while self.queue.depth(lane).await? > 0 {
                tokio::time::sleep(LOOK).await;
            }
        }
        self.queue.close().await;
        self.tasks.join_all().await;
        Ok(())
    }
}

/// Makes records for the first `viewers`.
pub async fn open_records(revisions: &Revisions, viewers: usize) -> Result<()> {
    for number in 0..viewers {
        revisions.open(&ViewerId::parse("viewer", &posts::viewer(number))?).await?;
    }
    Ok(())
}

/// Revisions alone, with room for `records_max`.
pub fn revisions(records_max: usize) -> Revisions {
    let fence = fanfold::domain::Fence { seq: 1, nonce: 1 };
    Revisions::Embedded(EmbeddedRevisions::new(fence, RevisionLimits { records_max, waiters_max: 1 }))
}
