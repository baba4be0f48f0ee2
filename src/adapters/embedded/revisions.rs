//! Revisions in bounded memory: sharded tables of packed records, and the waiters on them.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::record_table::RecordTable;
use crate::domain::{Change, Fence, PostId, Record, Revision, ViewerId};
use crate::error::{Error, Result};
use crate::ports::{MarkBump, Revisions};

/// Enough that threads seldom meet, few enough that the limits divide well.
const SHARDS: usize = 64;

/// Bounds of the revisions in memory.
#[derive(Clone, Copy, Debug)]
pub struct RevisionLimits {
    /// Records held; beyond it the ones not used lately go.
    pub records_max: usize,
    /// Waiters at a time.
    pub waiters_max: usize,
}

/// Revision records under one fence, for as long as the process lives.
#[derive(Clone, Debug)]
pub struct EmbeddedRevisions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fence: Fence,
    hasher: foldhash::fast::RandomState,
    shards: Vec<Mutex<Shard>>,
    waiters: AtomicUsize,
    waiters_max: usize,
}

#[derive(Debug)]
struct Shard {
    records: RecordTable,
    waiters: HashMap<ViewerId, Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    notify: Arc<Notify>,
    count: usize,
}

impl Shard {
    fn wake(&self, viewer: &ViewerId) {
        if !self.waiters.is_empty()
            && let Some(waiters) = self.waiters.get(viewer)
        {
            waiters.notify.notify_waiters();
        }
    }
}

impl EmbeddedRevisions {
    /// No records yet, under a fence that no token has seen.
    pub fn new(fence: Fence, limits: RevisionLimits) -> Self {
        let per_shard = limits.records_max.div_ceil(SHARDS).max(1);
        let hasher = foldhash::fast::RandomState::default();
        let records = || RecordTable::new(per_shard, hasher.clone());
        let shard = || Mutex::new(Shard { records: records(), waiters: HashMap::new() });
        Self(Arc::new(Inner {
            fence,
            hasher: hasher.clone(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            waiters: AtomicUsize::new(0),
            waiters_max: limits.waiters_max,
        }))
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.0.shards.iter().map(|shard| locked(shard).records.len()).sum()
    }

    /// How many requests wait for a change.
    pub fn waiters(&self) -> usize {
        self.0.waiters.load(Ordering::Relaxed)
    }

    /// Forgets a record, as an eviction would.
    pub fn evict(&self, viewer: &ViewerId) {
        let (mut shard, hash) = self.shard(viewer);
        shard.records.remove(hash, viewer);
        shard.wake(viewer);
    }

    fn shard(&self, viewer: &ViewerId) -> (MutexGuard<'_, Shard>, u64) {
        let hash = self.0.hasher.hash_one(viewer.as_str());
        // The table inside uses the top and the low bits: take some from the middle.
        (locked(&self.0.shards[(hash >> 32) as usize % SHARDS]), hash)
    }

    fn look(&self, viewer: &ViewerId) -> Option<Revision> {
        let (mut shard, hash) = self.shard(viewer);
        shard.records.get(hash, viewer).map(|record| record.revision(self.0.fence.nonce))
    }

    fn enlist(&self, viewer: &ViewerId) -> Result<Waiter<'_>> {
        if self.0.waiters.fetch_add(1, Ordering::Relaxed) >= self.0.waiters_max {
            self.0.waiters.fetch_sub(1, Ordering::Relaxed);
            let detail = format!("revisions.waiters_max = {} requests wait already", self.0.waiters_max);
            return Err(Error::unavailable("too_many_waiters", detail));
        }
        let (mut shard, _) = self.shard(viewer);
        let waiters = shard.waiters.entry(viewer.clone()).or_default();
        waiters.count += 1;
        Ok(Waiter { revisions: self, viewer: viewer.clone(), notify: Arc::clone(&waiters.notify) })
    }
}

fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // No code under these locks can leave a record half written, so a panic elsewhere does not spoil them.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place among the waiters of one viewer; given up when dropped.
struct Waiter<'a> {
    revisions: &'a EmbeddedRevisions,
    viewer: ViewerId,
    notify: Arc<Notify>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let (mut shard, _) = self.revisions.shard(&self.viewer);
        if let Some(waiters) = shard.waiters.get_mut(&self.viewer) {
            waiters.count -= 1;
            if waiters.count == 0 {
                shard.waiters.remove(&self.viewer);
            }
        }
        self.revisions.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Revisions for EmbeddedRevisions {
    async fn current(&self, viewer: &ViewerId) -> Result<Option<Revision>> {
        Ok(self.look(viewer))
    }

    async fn current_many(&self, viewers: &[ViewerId]) -> Result<Vec<Option<Revision>>> {
        Ok(viewers.iter().map(|viewer| self.look(viewer)).collect())
    }

    async fn open(&self, viewer: &ViewerId) -> Result<Revision> {
        let (mut shard, hash) = self.shard(viewer);
        if let Some(record) = shard.records.get(hash, viewer) {
            return Ok(record.revision(self.0.fence.nonce));
        }
        let record = Record::new(rand::random());
        let revision = record.revision(self.0.fence.nonce);
        if let Some(evicted) = shard.records.insert(hash, viewer, record) {
            shard.wake(&evicted);
        }
        Ok(revision)
    }

    async fn record(&self, viewer: &ViewerId) -> Result<Option<(u64, Record)>> {
        let (mut shard, hash) = self.shard(viewer);
        Ok(shard.records.get_owned(hash, viewer).map(|record| (self.0.fence.nonce, record)))
    }

    async fn bump(&self, viewers: &[ViewerId], change: Change) -> Result<u32> {
        for viewer in viewers {
            let (mut shard, hash) = self.shard(viewer);
            if shard.records.update(hash, viewer, |record| record.bump(change)) == Some(true) {
                shard.wake(viewer);
            }
        }
        Ok(self.0.fence.seq)
    }

    async fn bump_marks(&self, viewer: &ViewerId, posts: &[PostId]) -> Result<MarkBump> {
        let nonce = self.0.fence.nonce;
        let (mut shard, hash) = self.shard(viewer);
        let bumped = shard.records.update(hash, viewer, |record| {
            let before = record.revision(nonce);
            record.bump_marks(posts, rand::random::<u32>() >> 1);
            (before, record.revision(nonce))
        });
        shard.wake(viewer);
        let (before, after) = bumped.unzip();
        Ok(MarkBump { before, after, fence: self.0.fence.seq })
    }

    async fn changed(&self, viewer: &ViewerId, seen: Revision, deadline: Instant) -> Result<Option<Revision>> {
        let waiter = self.enlist(viewer)?;
        loop {
            // Armed before the look: a bump between the look and the wait is not missed.
            let notified = waiter.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let current = self.look(viewer);
            if current != Some(seen) {
                return Ok(current);
            }
            if tokio::time::timeout_at(deadline.into(), notified).await.is_err() {
                return Ok(self.look(viewer));
            }
        }
    }

    async fn fence(&self) -> Result<Fence> {
        Ok(self.0.fence)
    }
}
