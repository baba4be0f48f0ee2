//! What is set aside: chunks that failed too often, and messages that no worker could read or survive. Nothing of it is
//! lost: the post stays pending until somebody has decided.

use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use metrics::counter;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::adapters::{Queue, Store};
use crate::domain::{Chunk, Done, Lane, ParkedChunk, Post, PostId, PostState, Task};
use crate::error::{Error, Kind, Result};
use crate::ports::{Pending, Queue as _, Store as _};

/// Between looks at what the queue has set aside.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Messages taken over in a look.
const LOOK_MAX: u32 = 100;
/// Pending entries read at a time.
const PAGE: u32 = 500;
/// Those whose chunks are asked for together.
const AT_ONCE: usize = 16;
/// Rows looked at at the same time, before a chunk is given up.
const ROWS_AT_ONCE: usize = 32;

/// Takes over what the queue has set aside: a task that no worker has survived gets one more chance, and when it has had
/// that it becomes a parked chunk, so that nobody drives it again before a person has looked.
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

    /// Takes over the messages that hold a task; how many. Of those that no worker survives each is tried once more, for it
    /// may have stood beside another that they died of; the second time its chunk is parked. What merely could not be read
    /// by a worker of an older release goes, for the relay drives it; what this release cannot read stays for one that can.
    pub async fn look(&mut self) -> Result<usize> {
        let Some(waiting) = self.queue.parked().await? else { return Ok(0) };
        // Each look counts as a delivery: what was left is not taken in hand again and again.
        self.left = self.left.min(waiting);
        if waiting == self.left {
            return Ok(0);
        }
        let Some(set_aside) = self.queue.tasks_set_aside(LOOK_MAX).await? else { return Ok(0) };
        for message in &set_aside.messages {
            if let Some(task) = &message.task
                && message.unsurvived
            {
                if set_aside.try_again(message).await? {
                    warn!(post = %task.post_id, chunk = task.chunk.no, "no worker has survived a task; it is tried once more");
                } else {
                    self.park(task, &message.reason).await?;
                }
            }
        }
        self.left = set_aside.passed_over;
        let taken = vec![true; set_aside.messages.len()];
        set_aside.remove(&taken).await?;
        Ok(taken.len())
    }

    async fn park(&self, task: &Task, reason: &str) -> Result<()> {
        let (post, chunk) = (task.post_id, task.chunk.no);
        let states = self.store.chunk_states(post, chunk..chunk + 1).await?;
        let fence = self.store.newest_fence().await?.map_or(0, |(fence, _)| fence.seq);
        if states.iter().any(|state| state.is_done(task.version, fence)) {
            // A copy was done meanwhile, or by hand.
            return Ok(());
        }
        error!(%post, chunk, reason, "a task is set aside: workers do not survive it");
        counter!("fanfold_relay_parked_total").increment(1);
        self.store.park_chunk(post, chunk, Some(reason)).await
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
///
/// Only what no viewer has yet can be given up. A row that is there, of whatever version, still waits for something: for
/// its bump, or for the version that hides or changes it, which readers respect for as long as the post is pending only.
/// Given up, it would be back as it was, and whoever has a copy would never hear of it. A worker that was stopped may write
/// one while it is given up: it is looked for again, and the chunk left parked for a redrive, which bumps.
pub async fn discard(store: &Store, id: PostId, no: u32) -> Result<()> {
    let (post, chunk) = find(store, id, no).await?;
    if post.state == PostState::Retracted {
        let detail = format!(
            "post {id} is retracted, and only for as long as it is pending is it hidden from the viewers of chunk {no}: \
             redrive the chunk"
        );
        return Err(Error::new(Kind::Conflict, "post_retracted", detail));
    }
    refuse_rows(store, id, &chunk).await?;
    store.chunk_done(id, no, Done::given_up(post.version), false).await?;
    refuse_rows(store, id, &chunk).await?;
    store.park_chunk(id, no, None).await
}

async fn refuse_rows(store: &Store, id: PostId, chunk: &Chunk) -> Result<()> {
    if has_rows(store, id, chunk).await? {
        let detail =
            "some of its viewers have the post already, and would never hear of its changes: redrive the chunk";
        return Err(Error::invalid("invalid_value", &format!("{id}/{}", chunk.no), detail));
    }
    Ok(())
}

/// Whether any viewer of a chunk has a row of the post. The state of the chunk does not tell: a worker may have died of it
/// in the middle of its rows.
async fn has_rows(store: &Store, id: PostId, chunk: &Chunk) -> Result<bool> {
    let looks = stream::iter(chunk.viewers.iter()).map(|viewer| async move { store.rows(viewer, &[id]).await });
    looks.buffer_unordered(ROWS_AT_ONCE).try_any(|rows| async move { rows.iter().any(Option::is_some) }).await
}

async fn find(store: &Store, id: PostId, no: u32) -> Result<(Post, Chunk)> {
    let post = store.post(id).await?;
    let post = post.ok_or_else(|| Error::not_found("post_not_found", format!("there is no post {id}")))?;
    let chunk = store.chunk(id, no).await?;
    let chunk = chunk.ok_or_else(|| Error::not_found("chunk_not_found", format!("post {id} has no chunk {no}")))?;
    Ok((post, chunk))
}
