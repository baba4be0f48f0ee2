//! What is set aside: chunks that failed too often, and messages that no worker could read or survive. Nothing of it is
//! lost: the post stays pending until somebody has decided.

use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::adapters::{Queue, Store};
use crate::domain::{Chunk, Done, Lane, ParkedChunk, Post, PostId, Task};
use crate::error::{Error, Result};
use crate::ports::{Pending, Queue as _, Store as _};

/// Between looks at what the queue has set aside.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Messages taken over in a look.
const LOOK_MAX: u32 = 100;
/// Pending entries read at a time.
const PAGE: u32 = 500;
/// Those whose chunks are asked for together.
const AT_ONCE: usize = 16;

/// Takes over what the queue has set aside: a task that no worker has survived becomes a parked chunk, so that nobody
/// drives it again before a person has looked.
#[derive(Debug)]
pub struct ParkedTasks {
    store: Store,
    queue: Queue,
    /// Messages that the last look has left.
    left: u64,
}

impl ParkedTasks {
    /// Between this queue and this store.
    pub fn new(store: Store, queue: Queue) -> Self {
        Self { store, queue, left: 0 }
    }

    /// Looks until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            if let Err(error) = self.look().await {
                warn!(%error, "what the queue has set aside cannot be looked at");
            }
        }
    }

    /// Parks the chunks of messages that no worker survives, and removes those. What merely could not be read by a worker
    /// of an older release goes too, for the relay drives it; what this release cannot read stays for one that can.
    pub async fn look(&mut self) -> Result<usize> {
        // Each look counts as a delivery: what was left is not taken in hand again and again.
        if self.queue.parked().await?.is_none_or(|parked| parked <= self.left) {
            return Ok(0);
        }
        let Some(set_aside) = self.queue.set_aside(LOOK_MAX).await? else { return Ok(0) };
        let mut taken = Vec::with_capacity(set_aside.messages.len());
        for message in &set_aside.messages {
            let parked = match &message.task {
                Some(task) if message.unsurvived => self.park(task, &message.reason).await?,
                Some(_) => true,
                None => false,
            };
            taken.push(parked);
        }
        set_aside.remove(&taken).await?;
        self.left = taken.iter().filter(|taken| !**taken).count() as u64;
        Ok(taken.iter().filter(|taken| **taken).count())
    }

    async fn park(&self, task: &Task, reason: &str) -> Result<bool> {
        let (post, chunk) = (task.post_id, task.chunk.no);
        error!(%post, chunk, reason, "a task is set aside: workers do not survive it");
        self.store.park_chunk(post, chunk, Some(reason)).await?;
        Ok(true)
    }
}

/// Every parked chunk whose post still waits for it, at most `limit`.
pub async fn list(store: &Store, limit: usize) -> Result<Vec<ParkedChunk>> {
    let mut parked = Vec::new();
    for shard in 0..store.shards() {
        let mut from: Option<Pending> = None;
        loop {
            let page = store.pending(shard, from, PAGE).await?;
            let mut found = stream::iter(page.entries).map(|entry| waiting(store, entry)).buffered(AT_ONCE);
            while let Some(chunks) = found.try_next().await? {
                for chunk in chunks {
                    if !parked.contains(&chunk) {
                        parked.push(chunk);
                    }
                }
                if parked.len() >= limit {
                    return Ok(parked);
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
    }
    Ok(parked)
}

/// The parked chunks for which an entry still waits.
async fn waiting(store: &Store, entry: Pending) -> Result<Vec<ParkedChunk>> {
    let mut waiting = Vec::new();
    for chunk in store.parked(entry.post_id).await? {
        let states = store.chunk_states(chunk.post_id, chunk.no..chunk.no + 1).await?;
        if !states.iter().any(|state| state.done.is_some_and(|done| done.version >= entry.version)) {
            waiting.push(chunk);
        }
    }
    Ok(waiting)
}

/// Takes a chunk up again: it is published at once, and driven like any other from then on.
pub async fn redrive(store: &Store, queue: &Queue, id: PostId, no: u32) -> Result<()> {
    let (post, chunk) = find(store, id, no).await?;
    store.park_chunk(id, no, None).await?;
    let lane = Lane::of(&post);
    let task = Task { post_id: id, version: post.version, chunk, lane, attempt: 1, trace: None };
    if let Err(error) = queue.publish(&post.producer, vec![task]).await {
        warn!(%error, post = %id, chunk = no, "the queue takes no task; the relay drives it");
    }
    Ok(())
}

/// Gives a chunk up: its viewers do not get the post. It counts as skipped, and the post as fanned out.
pub async fn discard(store: &Store, id: PostId, no: u32) -> Result<()> {
    let (post, _) = find(store, id, no).await?;
    let fence = store.newest_fence().await?.map_or(0, |(fence, _)| fence.seq);
    store.chunk_done(id, no, Done { version: post.version, fence }, false).await?;
    store.park_chunk(id, no, None).await
}

async fn find(store: &Store, id: PostId, no: u32) -> Result<(Post, Chunk)> {
    let post = store.post(id).await?;
    let post = post.ok_or_else(|| Error::not_found("post_not_found", format!("there is no post {id}")))?;
    let chunk = store.chunk(id, no).await?;
    let chunk = chunk.ok_or_else(|| Error::not_found("chunk_not_found", format!("post {id} has no chunk {no}")))?;
    Ok((post, chunk))
}
