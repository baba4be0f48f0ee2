//! Tasks on their way to the queue, once what they stand for is committed. Where the queue is a server nobody waits for
//! its answer: slow, or gone, it makes no publish slow. What does not get there the relay brings.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, warn};

use crate::adapters::Queue;
use crate::domain::{Chunk, Lane, Post, ProducerId, Task};
use crate::ports::Queue as _;
use crate::trace;

/// Viewers of tasks that nobody waits for, of a process: some 25 MB where their ids are as long as may be, and as much again
/// for the messages. Beyond it whoever publishes waits for the queue, as long as it takes.
const ROWS_MAX: u32 = 200_000;
/// A task counts as so many viewers at least: a thousand are as many as the broker may leave unconfirmed, and more would
/// queue for that until their time is up.
const TASK_ROWS_MIN: u32 = 200;

/// Hands tasks over. Clones share what is on its way.
#[derive(Clone, Debug)]
pub struct Handover {
    queue: Queue,
    rows: Arc<Semaphore>,
    on_their_way: TaskTracker,
}

impl Handover {
    /// To `queue`.
    pub fn new(queue: Queue) -> Self {
        Self { queue, rows: Arc::new(Semaphore::new(ROWS_MAX as usize)), on_their_way: TaskTracker::new() }
    }

    /// Hands over a task for each of `chunks`, those of a post at its present version.
    pub async fn enqueue(&self, post: &Post, chunks: Vec<Chunk>, attempt: u32) {
        let lane = Lane::of(post);
        let task =
            |chunk| Task { post_id: post.id, version: post.version, chunk, lane, attempt, trace: trace::current() };
        let tasks: Vec<Task> = chunks.into_iter().map(task).collect();
        let rows = if self.queue.is_remote() { self.reserve(post, tasks.len()) } else { None };
        let handed_over = hand_over(self.queue.clone(), post.producer.clone(), lane, tasks);
        let handed_over = self.on_their_way.track_future(handed_over);
        let Some(rows) = rows else { return handed_over.await };
        let handed_over = async move {
            handed_over.await;
            drop(rows);
        };
        tokio::spawn(handed_over.in_current_span());
    }

    /// `None` when as much is on its way as may be.
    fn reserve(&self, post: &Post, tasks: usize) -> Option<OwnedSemaphorePermit> {
        let tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        let weight = post.audience_size.max(tasks.saturating_mul(TASK_ROWS_MIN));
        Arc::clone(&self.rows).try_acquire_many_owned(weight).ok()
    }

    /// Waits for those that are on their way, when no more will come.
    pub async fn finish(&self) {
        self.on_their_way.close();
        self.on_their_way.wait().await;
    }

    /// How many posts' tasks are on their way, those included that somebody waits for.
    pub fn on_their_way(&self) -> usize {
        self.on_their_way.len()
    }
}

async fn hand_over(queue: Queue, producer: ProducerId, lane: Lane, tasks: Vec<Task>) {
    let (Some(post), wanted) = (tasks.first().map(|task| task.post_id), tasks.len()) else { return };
    match queue.publish(&producer, tasks).await {
        Ok(taken) if taken == wanted => {}
        Ok(taken) => {
            let left = wanted - taken;
            metrics::counter!("fanfold_queue_overflow_total", "lane" => lane.name()).increment(left as u64);
            debug!(%post, left, "the lane is full; the relay drives the rest");
        }
        Err(error) => {
            metrics::counter!("fanfold_queue_refusals_total", "lane" => lane.name()).increment(wanted as u64);
            warn!(%error, %post, "the queue takes no task; the relay will drive them");
        }
    }
}
