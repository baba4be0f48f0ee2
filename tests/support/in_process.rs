//! The service without HTTP: real adapters and real use cases, every fan-out task run by hand. The adapters are the embedded
//! ones; with `FANFOLD_TEST_MODE=cluster` they are those of a cluster, on the servers that `FANFOLD_TEST_*` names. A program
//! with this module has the modules `support` and `wait` beside it.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "samples.rs"]
pub mod samples;

use std::path::Path as FilePath;
use std::time::Duration;

use fanfold::adapters::embedded::{EmbeddedQueue, EmbeddedRevisions, RevisionLimits};
use fanfold::adapters::rabbitmq::RabbitQueue;
use fanfold::adapters::redis::{RedisOptions, RedisRevisions};
use fanfold::adapters::scylla::{ScyllaOptions, ScyllaStore};
use fanfold::adapters::{Queue, Revisions, Store};
use fanfold::clock::Clock;
use fanfold::config::{self, Config, Overrides};
use fanfold::domain::{Audience, Chunk, Lane, PostId, ProducerId, Task, Time, ViewerId};
use fanfold::error::Result;
use fanfold::fanout::Fanout;
use fanfold::handover::Handover;
use fanfold::marks::Marker;
use fanfold::ports::{Path, Queue as _, Store as _};
use fanfold::publish::{Draft, Expiry, PublishLimits, Publisher};
use fanfold::reader::{ReadLimits, Reader};
use fanfold::relay::{Pass, Relay, RelayLimits, RelayParts};
use fanfold::service::{Backends, console, options};
use fanfold::tuning::{Board, FANOUT};
use fanfold::withdrawals::Withdrawals;
use futures::future::try_join_all;
use samples::open_store;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::servers::Ground;
use crate::support::{is_cluster, join_cluster};
use crate::wait::PATIENCE;

/// How long rows live here.
pub const INBOX_TTL: Duration = Duration::from_secs(1_000);
/// The newest rows that are served here.
pub const ITEMS_MAX: usize = 6;
/// On a cluster rows stay so much longer than they are shown: its clock goes on where that of a test stands still.
const KEPT_LONGER: Duration = Duration::from_secs(3_600);

/// A relay that drives what it meets at once.
pub const RELAY_LIMITS: RelayLimits = RelayLimits {
    tick: Duration::ZERO,
    redrive_after: Duration::ZERO,
    redrive_after_max: Duration::ZERO,
    garbage_after: Duration::from_secs(1_000_000),
    scan_max: 1_000,
    queue_survives: false,
    inbox_ttl: INBOX_TTL,
};

/// Where a service keeps what it has: a folder; on a cluster a keyspace, queues and records of its own. It goes when dropped.
pub struct Home {
    dir: TempDir,
    cluster: Option<Cluster>,
}

struct Cluster {
    config: Config,
    _ground: Ground,
}

impl Home {
    /// In the mode of the tests.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// The same, where a cluster is to be configured otherwise.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        if !is_cluster() {
            return Self::embedded();
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut config = config::load(&Overrides::default(), []).expect("the defaults");
        let ground = join_cluster(&mut config, dir.path());
        // A single queue a lane: what comes out of it before the last task is all that was there.
        config.rabbitmq.fair_queues = 1;
        // However busy the machine is: no test here is about servers that are slow.
        (config.scylla.connect_timeout_ms, config.rabbitmq.timeout_ms) = (30_000, 30_000);
        change(&mut config);
        console::migrate(&config).await.expect("migrated");
        Self { dir, cluster: Some(Cluster { config, _ground: ground }) }
    }

    /// A folder, whatever mode the tests run in: for what concerns the embedded adapters alone.
    pub fn embedded() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder"), cluster: None }
    }

    async fn open(&self, clock: &Clock) -> Backends {
        match &self.cluster {
            None => open_folder(self.dir.path(), clock).await,
            Some(cluster) => connect(&cluster.config, clock).await,
        }
    }
}

async fn open_folder(dir: &FilePath, clock: &Clock) -> Backends {
    let store = Store::Embedded(open_store(dir, clock, INBOX_TTL));
    let fence = store.register_fence(rand::random(), "test", None).await.expect("registered");
    let records = EmbeddedRevisions::new(fence, RevisionLimits { records_max: 1_000, waiters_max: 10 });
    Backends { store, queue: Queue::Embedded(EmbeddedQueue::new(8)), revisions: Revisions::Embedded(records) }
}

/// The clock is the process's own. The store's is right, whatever becomes of that one: it stays where both began, so that
/// nothing is over there.
async fn connect(config: &Config, clock: &Clock) -> Backends {
    let scylla = ScyllaOptions {
        inbox_ttl: INBOX_TTL + KEPT_LONGER,
        store_clock: Some(Clock::manual(clock.now())),
        ..options::scylla(config, clock)
    };
    let store = Store::Scylla(ScyllaStore::connect(scylla).await.expect("connected"));
    let queue = RabbitQueue::start(options::rabbitmq(config));
    let redis = RedisOptions { response_timeout: PATIENCE, confirm_max: PATIENCE, ..options::redis(config, clock) };
    let revisions = RedisRevisions::start(redis, store.clone());
    queue.ready(PATIENCE).await.expect("the broker is there");
    revisions.ready(PATIENCE).await.expect("redis is there");
    Backends { store, queue: Queue::Rabbit(queue), revisions: Revisions::Redis(revisions) }
}

/// A relay for each shard.
pub struct Relays(Vec<Relay>);

impl Relays {
    /// All of them look at the next entries of their shards; what they did together.
    pub async fn pass(&mut self) -> Result<Pass> {
        let mut all = Pass { round_done: true, ..Pass::default() };
        for pass in try_join_all(self.0.iter_mut().map(|relay| relay.pass())).await? {
            all.looked += pass.looked;
            all.settled += pass.settled;
            all.driven += pass.driven;
            all.lane_full |= pass.lane_full;
            all.round_done &= pass.round_done;
        }
        Ok(all)
    }
}

/// Adapters and use cases over a home.
pub struct Service {
    pub store: Store,
    pub queue: Queue,
    pub revisions: Revisions,
    pub publisher: Publisher,
    pub reader: Reader,
    pub marker: Marker,
    pub fanout: Fanout,
    pub relay: Relays,
    /// How it is configured, on a cluster.
    cluster: Option<Config>,
}

impl Service {
    pub async fn start(home: &Home, clock: &Clock) -> Self {
        let Backends { store, queue, revisions } = home.open(clock).await;
        let cluster = home.cluster.as_ref().map(|cluster| cluster.config.clone());
        let withdrawals =
            if cluster.is_some() { Withdrawals::shared(&store).await } else { Withdrawals::load(&store).await };
        let withdrawals = withdrawals.expect("loaded");
        let limits = PublishLimits {
            viewer_id_bytes_max: 128,
            data_bytes_max: 1_000,
            type_bytes_max: 100,
            thread_key_bytes_max: 100,
            idempotency_key_bytes_max: 100,
            lifetime_max: Duration::from_secs(100_000),
            chunk_size: 2,
        };
        let read =
            ReadLimits { inbox_ttl: INBOX_TTL, items_max: ITEMS_MAX as u32, token_age_max: Duration::from_secs(500) };
        let (pages, deltas) = (store.for_path(Path::Page), store.for_path(Path::Changes));
        let reader = Reader::new(pages, deltas, revisions.clone(), withdrawals.clone(), clock.clone(), read, 1 << 20);
        let parts = RelayParts {
            store: store.for_path(Path::Relay),
            queue: queue.clone(),
            revisions: revisions.clone(),
            // On a cluster relays are processes of their own.
            withdrawals: cluster.is_none().then(|| withdrawals.clone()),
            clock: clock.clone(),
            limits: RelayLimits { queue_survives: cluster.is_some(), ..RELAY_LIMITS },
        };
        Self {
            publisher: Publisher {
                store: store.clone(),
                handover: Handover::new(queue.clone()),
                withdrawals,
                clock: clock.clone(),
                limits,
            },
            marker: Marker {
                store: store.for_path(Path::Mark),
                revisions: revisions.clone(),
                reader: reader.clone(),
                clock: clock.clone(),
            },
            fanout: Fanout {
                store: store.for_path(Path::Fanout),
                queue: queue.clone(),
                revisions: revisions.clone(),
                clock: clock.clone(),
                inbox_ttl: INBOX_TTL,
                attempts_max: 3,
                board: Board::new(FANOUT, clock),
            },
            relay: Relays((0..store.shards()).map(|shard| Relay::new(parts.clone(), shard)).collect()),
            reader,
            revisions,
            store,
            queue,
            cluster,
        }
    }

    /// Ends it, and with it what clients hold: embedded the records are gone, on a cluster a new life of Redis has begun.
    pub async fn end(self) {
        self.publisher.handover.finish().await;
        self.queue.flush().await;
        if self.cluster.is_some() {
            let (_, replid) = self.store.newest_fence().await.expect("read").expect("registered");
            self.store.register_fence(rand::random(), &replid, None).await.expect("registered");
        }
    }

    /// Everything the queue holds.
    pub async fn drain(&self) -> Vec<Task> {
        // What nobody has waited for is there then.
        self.publisher.handover.finish().await;
        if !self.queue.is_remote() {
            return [self.take_waiting(Lane::Small).await, self.take_waiting(Lane::Bulk).await].concat();
        }
        // Of what is on its way from a broker nobody can tell how much it is: but it comes before what is published now.
        let end = self.publish_ends().await;
        let mut tasks = Vec::new();
        for lane in Lane::ALL {
            loop {
                let task = self.take(lane).await;
                if task.post_id == end {
                    break;
                }
                tasks.push(task);
            }
        }
        tasks
    }

    /// As many tasks of a lane as wait there. On a cluster those of them that are at hand already do not count: for a lane
    /// of which nothing was taken yet.
    pub async fn take_waiting(&self, lane: Lane) -> Vec<Task> {
        let mut tasks = Vec::new();
        for _ in 0..self.queue.depth(lane).await.expect("asked") {
            tasks.push(self.take(lane).await);
        }
        tasks
    }

    /// The next task of a lane, which is then gone from it.
    async fn take(&self, lane: Lane) -> Task {
        let next = timeout(PATIENCE, self.queue.next(lane)).await.expect("there is one");
        let delivery = next.expect("asked").expect("open");
        let task = delivery.task.clone();
        self.queue.ack(delivery).await.expect("acknowledged");
        task
    }

    /// Publishes a task to each lane that is for nobody; the post it names.
    async fn publish_ends(&self) -> PostId {
        let post_id = PostId::new(Time::ZERO, rand::random());
        let chunk = Chunk { no: 0, viewers: Vec::<ViewerId>::new().into() };
        let end = |lane| Task { post_id, version: 1, chunk: chunk.clone(), lane, attempt: 0, trace: None };
        let taken = self.queue.publish(&ProducerId::local(), Lane::ALL.map(end).into()).await.expect("published");
        assert_eq!(taken, Lane::ALL.len());
        post_id
    }

    /// The record of a viewer goes, as by an eviction.
    pub async fn evict(&self, viewer: &ViewerId) {
        match &self.revisions {
            Revisions::Embedded(records) => records.evict(viewer),
            Revisions::Redis(_) => {
                let config = &self.cluster.as_ref().expect("configured").redis;
                let client = redis::Client::open(config.urls[0].expose()).expect("a URL");
                let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
                let mut delete = redis::cmd("DEL");
                delete.arg(format!("{}:r:{viewer}", config.key_prefix));
                let _: usize = delete.query_async(&mut connection).await.expect("removed");
            }
        }
    }
}

/// A service with one viewer, for tests that run one post at a time.
pub struct Stage {
    pub service: Service,
    pub clock: Clock,
    pub ben: ViewerId,
    _home: Home,
}

impl Stage {
    pub async fn new(clock: Clock) -> Self {
        Self::at(Home::new().await, clock).await
    }

    pub async fn at(home: Home, clock: Clock) -> Self {
        let service = Service::start(&home, &clock).await;
        Self { service, clock, ben: ViewerId::parse("viewer", "ben").expect("valid"), _home: home }
    }

    /// Publishes a post to the viewer; its task waits in the queue.
    pub async fn publish(&self) -> PostId {
        self.publish_as(ProducerId::local()).await
    }

    /// The same on behalf of a producer.
    pub async fn publish_as(&self, producer: ProducerId) -> PostId {
        let draft = Draft {
            producer,
            kind: "t".into(),
            actor: None,
            data: "{}".into(),
            thread_key: None,
            audience: Audience::parse("viewers", &["ben"], 1).expect("valid"),
            expiry: Expiry::Never,
            idempotency: None,
        };
        let publisher = &self.service.publisher;
        let id = publisher.publish(draft).await.expect("published").id;
        publisher.handover.finish().await;
        id
    }

    /// Runs what is queued, on another thread.
    pub async fn fan_out(&self) -> tokio::task::JoinHandle<()> {
        let (fanout, tasks) = (self.service.fanout.clone(), self.service.drain().await);
        tokio::spawn(async move {
            for task in tasks {
                fanout.process(&task).await.expect("processed");
            }
        })
    }
}
