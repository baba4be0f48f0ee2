//! One closed enum a port, matched by hand: no generics through the application, no boxed futures.

use std::time::{Duration, Instant};

use super::embedded::{EmbeddedQueue, EmbeddedQuotas, EmbeddedRevisions, EmbeddedStore};
use super::rabbitmq::{RabbitQueue, SetAside};
use super::redis::{RedisQuotas, RedisRevisions};
use super::scylla::ScyllaStore;
use crate::domain::*;
use crate::error::Result;
use crate::ports::{self, Delivery, KeyClaim, KeyHolder, MarkBump, MarkOrder, Marked, Path};
use crate::ports::{Changed, FenceEntry, Intent, Pending, PendingPage, Room, RowsWritten, Settled, Window};

/// The store in use.
#[derive(Clone, Debug)]
pub enum Store {
    /// On this machine's disk.
    Embedded(EmbeddedStore),
    /// In a ScyllaDB (or Cassandra) cluster.
    Scylla(ScyllaStore),
}

/// The queue in use.
#[derive(Clone, Debug)]
pub enum Queue {
    /// In this process.
    Embedded(EmbeddedQueue),
    /// In RabbitMQ.
    Rabbit(RabbitQueue),
}

/// The revisions in use.
#[derive(Clone, Debug)]
pub enum Revisions {
    /// In this process.
    Embedded(EmbeddedRevisions),
    /// In Redis.
    Redis(RedisRevisions),
}

/// The count of quotas in use.
#[derive(Clone, Debug)]
pub enum Quotas {
    /// In this process.
    Embedded(EmbeddedQuotas),
    /// In Redis, for all processes.
    Redis(RedisQuotas),
}

impl Store {
    /// The same store, its reads counted for `path`.
    pub fn for_path(&self, path: Path) -> Self {
        match self {
            Self::Embedded(inner) => Self::Embedded(inner.for_path(path)),
            Self::Scylla(inner) => Self::Scylla(inner.for_path(path)),
        }
    }

    /// How many reads `path` has caused in this process.
    pub fn reads(&self, path: Path) -> u64 {
        match self {
            Self::Embedded(inner) => inner.reads().of(path),
            Self::Scylla(inner) => inner.reads().of(path),
        }
    }

    /// Changes how rows are written: rows under way at the same time, and rows of one replica set in a batch. The
    /// embedded store groups by itself.
    pub fn tune(&self, rows_in_flight: u32, batch_rows: u32) {
        match self {
            Self::Embedded(_) => {}
            Self::Scylla(inner) => inner.tune(rows_in_flight, batch_rows),
        }
    }

    /// The size of each table on this machine's disk, by name; none where the disk is somebody else's.
    pub fn table_bytes(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Embedded(inner) => inner.table_bytes().to_vec(),
            Self::Scylla(_) => Vec::new(),
        }
    }

    /// An error if the store cannot take writes.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Embedded(inner) => inner.check(),
            Self::Scylla(inner) => inner.check(),
        }
    }
}

impl Queue {
    /// Whether to ask it is to ask a server.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Rabbit(_))
    }

    /// Takes up to `limit` of the messages that the queue has set aside in hand. The embedded queue sets nothing aside.
    pub async fn set_aside(&self, limit: u32) -> Result<Option<SetAside>> {
        match self {
            Self::Embedded(_) => Ok(None),
            Self::Rabbit(inner) => inner.set_aside(limit).await.map(Some),
        }
    }

    /// The same of those that hold a task, wherever they stand among the others.
    pub async fn tasks_set_aside(&self, limit: u32) -> Result<Option<SetAside>> {
        match self {
            Self::Embedded(_) => Ok(None),
            Self::Rabbit(inner) => inner.tasks_set_aside(limit).await.map(Some),
        }
    }

    /// How many messages the queue has set aside; `None` where it sets nothing aside.
    pub async fn parked(&self) -> Result<Option<u64>> {
        match self {
            Self::Embedded(_) => Ok(None),
            Self::Rabbit(inner) => inner.parked().await.map(Some),
        }
    }

    /// Waits until what is finished is known outside this process.
    pub async fn flush(&self) {
        match self {
            Self::Embedded(_) => {}
            Self::Rabbit(inner) => inner.flush().await,
        }
    }

    /// The posts, with their versions, whose tasks gave way to those of others since it was asked last: they are the
    /// relay's now. What RabbitMQ has taken gives way to none.
    pub fn take_displaced(&self) -> Vec<(PostId, u32)> {
        match self {
            Self::Embedded(inner) => inner.take_displaced(),
            Self::Rabbit(_) => Vec::new(),
        }
    }

    /// Changes how many tasks of one producer a lane of this process has at hand. The embedded queue holds them all.
    pub fn set_prefetch(&self, prefetch: u32) {
        match self {
            Self::Embedded(_) => {}
            Self::Rabbit(inner) => inner.set_prefetch(prefetch),
        }
    }
}

impl Revisions {
    /// How many requests wait for a change.
    pub fn waiters(&self) -> usize {
        match self {
            Self::Embedded(inner) => inner.waiters(),
            Self::Redis(inner) => inner.waiters(),
        }
    }

    /// The count of quotas that goes with them: in the same Redis, where a charge takes `timeout` at most; `here`, where
    /// there is one process.
    pub fn quotas(&self, here: EmbeddedQuotas, timeout: Duration) -> Quotas {
        match self {
            Self::Embedded(_) => Quotas::Embedded(here),
            Self::Redis(inner) => Quotas::Redis(inner.quotas(timeout)),
        }
    }
}

/// Hands each method to whichever of the variants (first, in brackets) it is.
macro_rules! forward {
    ($variants:tt $($name:ident($($arg:ident: $type:ty),*) -> $output:ty;)*) => {
        $(async fn $name(&self, $($arg: $type),*) -> $output {
            forward!(@match $variants self, $name($($arg),*))
        })*
    };
    (@match [$($variant:ident)*] $self:ident, $name:ident $args:tt) => {
        match $self {
            $(Self::$variant(inner) => inner.$name $args.await,)*
        }
    };
}

impl ports::Store for Store {
    forward! {
        [Embedded Scylla]
        claim_key(claim: &KeyClaim) -> Result<KeyHolder>;
        key_holder(producer: &ProducerId, key: &str) -> Result<Option<KeyHolder>>;
        create_post(post: &Post, chunks: &[Chunk]) -> Result<()>;
        change_post(expected: u32, post: &Post) -> Result<Changed>;
        announce(post: &Post) -> Result<()>;
        post(id: PostId) -> Result<Option<Post>>;
        posts(ids: &[PostId]) -> Result<Vec<Option<Post>>>;
        chunk(id: PostId, no: u32) -> Result<Option<Chunk>>;
        chunk_states(id: PostId, numbers: std::ops::Range<u32>) -> Result<Vec<ChunkState>>;
        write_rows(post: &Post, viewers: &[ViewerId]) -> Result<RowsWritten>;
        chunk_done(id: PostId, no: u32, done: Done, rows: bool) -> Result<()>;
        chunk_rows_done(id: PostId, no: u32, version: u32) -> Result<()>;
        park_chunk(id: PostId, no: u32, reason: Option<&str>) -> Result<()>;
        parked(id: PostId) -> Result<Vec<ParkedChunk>>;
        window(viewer: &ViewerId, limit: u32) -> Result<Window>;
        rows(viewer: &ViewerId, ids: &[PostId]) -> Result<Vec<Option<Row>>>;
        mark(order: &MarkOrder<'_>) -> Result<Marked>;
        clear_intent(viewer: &ViewerId, intent: u64) -> Result<()>;
        intents(shard: u32, limit: u32) -> Result<Vec<Intent>>;
        finish_intent(intent: &Intent) -> Result<Option<Vec<PostId>>>;
        pending(shard: u32, from: Option<Pending>, limit: u32) -> Result<PendingPage>;
        settle(settled: &[Settled]) -> Result<()>;
        withdrawals() -> Result<Vec<Withdrawal>>;
        register_fence(nonce: u64, replid: &str, seen: Option<u32>) -> Result<Fence>;
        newest_fence() -> Result<Option<(Fence, String)>>;
        fences(limit: u32) -> Result<Vec<FenceEntry>>;
    }

    fn shards(&self) -> u32 {
        match self {
            Self::Embedded(inner) => inner.shards(),
            Self::Scylla(inner) => inner.shards(),
        }
    }
}

impl ports::Control for Store {
    forward! {
        [Embedded Scylla]
        lease(name: &str, owner: u128, ttl: Duration) -> Result<bool>;
        release(name: &str, owner: u128) -> Result<()>;
        tuning() -> Result<Tuning>;
        set_tuning(tuning: &Tuning) -> Result<bool>;
        report(report: &WorkerReport) -> Result<()>;
        reports() -> Result<Vec<WorkerReport>>;
    }
}

impl ports::Keys for Store {
    forward! {
        [Embedded Scylla]
        create_key(key: &ProducerKey) -> Result<()>;
        find_key(id: KeyId) -> Result<Option<ProducerKey>>;
        list_keys() -> Result<Vec<ProducerKey>>;
        end_key(id: KeyId, end: KeyEnd) -> Result<Option<ProducerKey>>;
        note_used(id: KeyId, at: Time) -> Result<()>;
        forget_key(id: KeyId) -> Result<()>;
    }
}

impl ports::Queue for Queue {
    forward! {
        [Embedded Rabbit]
        publish(producer: &ProducerId, tasks: Vec<Task>) -> Result<usize>;
        next_within(lane: Lane, parts: u32) -> Result<Option<Delivery>>;
        ack(delivery: Delivery) -> Result<()>;
        release(delivery: Delivery) -> Result<()>;
        depth(lane: Lane) -> Result<u64>;
        room(lane: Lane, producer: &ProducerId) -> Result<Room>;
        close() -> ();
    }
}

impl ports::Revisions for Revisions {
    forward! {
        [Embedded Redis]
        current(viewer: &ViewerId) -> Result<Option<Revision>>;
        current_many(viewers: &[ViewerId]) -> Result<Vec<Option<Revision>>>;
        open(viewer: &ViewerId) -> Result<Revision>;
        record(viewer: &ViewerId) -> Result<Option<(u64, Record)>>;
        bump(viewers: &[ViewerId], change: Change) -> Result<u32>;
        bump_marks(viewer: &ViewerId, posts: &[PostId]) -> Result<MarkBump>;
        changed(viewer: &ViewerId, seen: Revision, deadline: Instant) -> Result<Option<Revision>>;
        fence() -> Result<Fence>;
    }
}

impl ports::Quotas for Quotas {
    forward! {
        [Embedded Redis]
        charge(charge: &Charge<'_>) -> Result<Charged>;
    }
}
