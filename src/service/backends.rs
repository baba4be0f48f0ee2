//! Opening the adapters: all of one mode, never a mixture.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::options;
use crate::adapters::embedded::{EmbeddedQueue, EmbeddedRevisions, EmbeddedStore, Folder};
use crate::adapters::rabbitmq::{self, RabbitQueue};
use crate::adapters::redis::{self, RedisRevisions};
use crate::adapters::scylla::ScyllaStore;
use crate::adapters::{Queue, Revisions, Store};
use crate::clock::Clock;
use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};
use crate::ports::Store as _;

/// Between attempts to reach the store at the start.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// How long a start without `--wait-for` waits for RabbitMQ and Redis before it goes on without them.
const BRIEFLY: Duration = Duration::from_secs(3);

/// The adapters in use.
#[derive(Clone, Debug)]
pub struct Backends {
    /// The truth.
    pub store: Store,
    /// Fan-out tasks.
    pub queue: Queue,
    /// Revisions.
    pub revisions: Revisions,
}

impl Backends {
    /// Opens those of the configured mode.
    pub async fn open(config: &Config, clock: &Clock) -> Result<Self> {
        match config.service.mode {
            Mode::Embedded => Self::embedded(config, clock).await,
            Mode::Cluster => Self::cluster(config, clock).await,
        }
    }

    /// The folder is locked, the store recovered, a new fence registered.
    async fn embedded(config: &Config, clock: &Clock) -> Result<Self> {
        let folder = Folder::open(&config.store.data)?;
        let store = Store::Embedded(EmbeddedStore::open(folder, options::store_options(config, clock))?);
        let fence = store.register_fence(rand::random(), "embedded", None).await?;
        let revisions = Revisions::Embedded(EmbeddedRevisions::new(fence, options::revision_limits(config)));
        let queue = Queue::Embedded(EmbeddedQueue::new(config.fanout.queue_tasks_max as usize));
        Ok(Self { store, queue, revisions })
    }

    /// The store must be there. RabbitMQ and Redis only make it fast: without them the process starts all the same, and
    /// goes on trying.
    async fn cluster(config: &Config, clock: &Clock) -> Result<Self> {
        let (rabbit_options, redis_options) = (options::rabbitmq(config), options::redis(config, clock));
        rabbitmq::check(&rabbit_options)?;
        redis::check(&redis_options)?;
        let patience = Duration::from_secs(u64::from(config.service.wait_for_s));
        let deadline = Instant::now() + patience;
        let store = Store::Scylla(connect(config, clock, deadline).await?);
        let queue = RabbitQueue::start(rabbit_options);
        let revisions = RedisRevisions::start(redis_options, store.clone());
        let left = deadline.saturating_duration_since(Instant::now()).max(BRIEFLY);
        let (queue_ready, revisions_ready) = futures::future::join(queue.ready(left), revisions.ready(left)).await;
        if let Err(error) = queue_ready {
            warn!(%error, "starting without RabbitMQ: posts are accepted, and fanned out when it can be used");
        }
        if let Err(error) = revisions_ready {
            warn!(%error, "starting without Redis: polls answer 503 until it can be used");
        }
        Ok(Self { store, queue: Queue::Rabbit(queue), revisions: Revisions::Redis(revisions) })
    }
}

/// The store alone, for commands that need nothing else.
pub async fn open_store(config: &Config, clock: &Clock) -> Result<Store> {
    match config.service.mode {
        Mode::Embedded => {
            let folder = Folder::open(&config.store.data)?;
            Ok(Store::Embedded(EmbeddedStore::open(folder, options::store_options(config, clock))?))
        }
        Mode::Cluster => {
            let patience = Duration::from_secs(u64::from(config.service.wait_for_s));
            connect(config, clock, Instant::now() + patience).await.map(Store::Scylla)
        }
    }
}

/// Connects to the store, again and again until `deadline` if it is away or its schema not there yet.
async fn connect(config: &Config, clock: &Clock, deadline: Instant) -> Result<ScyllaStore> {
    let mut told = false;
    loop {
        let error = match ScyllaStore::connect(options::scylla(config, clock)).await {
            Ok(store) => return Ok(store),
            Err(error) => error,
        };
        if !may_pass(&error) || Instant::now() + TRY_EVERY > deadline {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            info!(%error, wait_for_s = config.service.wait_for_s, "waiting for the store");
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

fn may_pass(error: &Error) -> bool {
    error.kind() == Kind::Unavailable || matches!(error.code(), "schema_missing" | "schema_older")
}
