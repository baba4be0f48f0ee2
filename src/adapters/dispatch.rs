//! One closed enum a port, matched by hand: no generics through the application, no boxed futures.

use std::time::Instant;

use super::embedded::{EmbeddedQueue, EmbeddedRevisions, EmbeddedStore};
use super::rabbitmq::RabbitQueue;
use super::redis::RedisRevisions;
use super::scylla::ScyllaStore;
use crate::domain::*;
use crate::error::Result;
use crate::ports::{self, Delivery, KeyClaim, KeyHolder, MarkBump, MarkOrder, Marked, Path};
use crate::ports::{Changed, Pending, PendingPage, RowsWritten, Settled, Window};

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

    /// An error if the store cannot take writes.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Embedded(inner) => inner.check(),
            Self::Scylla(inner) => inner.check(),
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
        post(id: PostId) -> Result<Option<Post>>;
        posts(ids: &[PostId]) -> Result<Vec<Option<Post>>>;
        chunk(id: PostId, no: u32) -> Result<Option<Chunk>>;
        chunk_states(id: PostId, numbers: std::ops::Range<u32>) -> Result<Vec<ChunkState>>;
        write_rows(post: &Post, viewers: &[ViewerId]) -> Result<RowsWritten>;
        chunk_done(id: PostId, no: u32, done: Done, rows: bool) -> Result<()>;
        chunk_rows_done(id: PostId, no: u32, version: u32) -> Result<()>;
        park_chunk(id: PostId, no: u32, parked: bool) -> Result<()>;
        window(viewer: &ViewerId, limit: u32) -> Result<Window>;
        rows(viewer: &ViewerId, ids: &[PostId]) -> Result<Vec<Option<Row>>>;
        mark(order: &MarkOrder<'_>) -> Result<Marked>;
        clear_intent(viewer: &ViewerId, intent: u64) -> Result<()>;
        pending(from: Option<Pending>, limit: u32) -> Result<PendingPage>;
        settle(settled: &[Settled]) -> Result<()>;
        withdrawals() -> Result<Vec<Withdrawal>>;
        register_fence(nonce: u64, replid: &str) -> Result<Fence>;
        newest_fence() -> Result<Option<(Fence, String)>>;
    }
}

impl ports::Queue for Queue {
    forward! {
        [Embedded Rabbit]
        publish(tasks: Vec<Task>) -> Result<usize>;
        next(lane: Lane) -> Result<Option<Delivery>>;
        ack(delivery: Delivery) -> Result<()>;
        release(delivery: Delivery) -> Result<()>;
        depth(lane: Lane) -> Result<u64>;
        room(lane: Lane) -> Result<u64>;
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
