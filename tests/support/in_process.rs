//! The service without HTTP: real embedded adapters and real use cases, every fan-out task run by hand.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "samples.rs"]
mod samples;

use std::time::Duration;

use fanfold::adapters::embedded::*;
use fanfold::adapters::{Queue, Revisions, Store};
use fanfold::clock::Clock;
use fanfold::domain::{Audience, Lane, PostId, ProducerId, Task, ViewerId};
use fanfold::fanout::Fanout;
use fanfold::handover::Handover;
use fanfold::marks::Marker;
use fanfold::ports::{Path, Queue as _, Store as _};
use fanfold::publish::{Draft, Expiry, PublishLimits, Publisher};
use fanfold::reader::{ReadLimits, Reader};
use fanfold::relay::{Relay, RelayLimits, RelayParts};
use fanfold::tuning::{Board, FANOUT};
use fanfold::withdrawals::Withdrawals;
use samples::open_store;

/// How long rows live here.
pub const INBOX_TTL: Duration = Duration::from_secs(1_000);
/// The newest rows that are served here.
pub const ITEMS_MAX: usize = 6;

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

/// Adapters and use cases over one data folder.
pub struct Service {
    pub store: Store,
    pub queue: Queue,
    pub revisions: EmbeddedRevisions,
    pub publisher: Publisher,
    pub reader: Reader,
    pub marker: Marker,
    pub fanout: Fanout,
    pub relay: Relay,
}

impl Service {
    pub async fn start(dir: &std::path::Path, clock: &Clock) -> Self {
        let store = Store::Embedded(open_store(dir, clock, INBOX_TTL));
        let fence = store.register_fence(rand::random(), "test", None).await.expect("registered");
        let records = EmbeddedRevisions::new(fence, RevisionLimits { records_max: 1_000, waiters_max: 10 });
        let revisions = Revisions::Embedded(records.clone());
        let queue = Queue::Embedded(EmbeddedQueue::new(8));
        let withdrawals = Withdrawals::load(&store).await.expect("loaded");
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
            withdrawals: Some(withdrawals.clone()),
            clock: clock.clone(),
            limits: RELAY_LIMITS,
        };
        Self {
            publisher: Publisher {
                store: store.clone(),
                handover: Handover::new(queue.clone()),
                withdrawals: withdrawals.clone(),
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
                revisions,
                clock: clock.clone(),
                inbox_ttl: INBOX_TTL,
                attempts_max: 3,
                board: Board::new(FANOUT, clock),
            },
            relay: Relay::new(parts, 0),
            reader,
            revisions: records,
            store,
            queue,
        }
    }

    /// Everything the queue holds.
    pub async fn drain(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for lane in Lane::ALL {
            while self.queue.depth(lane).await.expect("asked") > 0 {
                let delivery = self.queue.next(lane).await.expect("asked").expect("open");
                tasks.push(delivery.task.clone());
                self.queue.ack(delivery).await.expect("acknowledged");
            }
        }
        tasks
    }
}

/// A service with one viewer, for tests that run one post at a time.
pub struct Stage {
    pub service: Service,
    pub clock: Clock,
    pub ben: ViewerId,
    _dir: tempfile::TempDir,
}

impl Stage {
    pub async fn new(clock: Clock) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let service = Service::start(dir.path(), &clock).await;
        Self { service, clock, ben: ViewerId::parse("viewer", "ben").expect("valid"), _dir: dir }
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
        self.service.publisher.publish(draft).await.expect("published").id
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
