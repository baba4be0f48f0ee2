//! Fan-out: take a task, write the rows of its chunk, bump the revisions, record it as done, acknowledge. In this order:
//! killed anywhere, the task comes again and does no harm.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join;
use metrics::{counter, histogram};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, debug, error, info_span, warn};

use crate::adapters::{Queue, Revisions, Store};
use crate::clock::Clock;
use crate::domain::{Change, ChunkState, Done, Lane, Post, Task};
use crate::error::{Error, Kind, Result};
use crate::faults::{self, Planted};
use crate::ports::{Delivery, Queue as _, Revisions as _, RowsWritten, Store as _};
use crate::tuning::{Board, LaneLimits};

/// How long a worker pauses after a failure, so that a broken dependency is not hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Parts that are kept for small tasks beyond the limit of those in hand.
const SPARE: u32 = 2 * Task::WHOLE;
/// A small task has this many parts at most: fewer than 120 viewers.
const SMALL_MAX: u32 = Task::WHOLE / 5;

/// Rows are written until this long after their life is over, lest a clock that runs ahead for a moment skips rows of a
/// post that lives. Readers hide them meanwhile.
const OVERDUE: Duration = Duration::from_secs(24 * 3600);

/// What fan-out needs.
#[derive(Clone, Debug)]
pub struct Fanout {
    /// The truth, read on behalf of fan-out.
    pub store: Store,
    /// Where tasks come from.
    pub queue: Queue,
    /// What to bump.
    pub revisions: Revisions,
    /// What time it is.
    pub clock: Clock,
    /// How long rows live.
    pub inbox_ttl: Duration,
    /// Failures after which a task that cannot succeed is parked.
    pub attempts_max: u32,
    /// Where it is told what is in hand.
    pub board: Board,
}

/// What became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rows and bumps are there.
    Done,
    /// They were there already.
    AlreadyDone,
    /// The rows are there; the revisions cannot be bumped now. The relay drives the rest.
    RowsOnly,
    /// There is no such post (yet). The relay drives it if it comes.
    NoPost,
    /// The chunk is set aside: a person takes it up again, or an edit.
    Parked,
}

impl Fanout {
    /// Works through a lane until `stop`, with as many tasks in hand as `limits` says; finishes what it has in hand.
    pub async fn work(&self, lane: Lane, mut limits: watch::Receiver<LaneLimits>, stop: CancellationToken) {
        let (mut in_hand, places) = (JoinSet::new(), Places::default());
        loop {
            let tasks = limits.borrow_and_update().tasks;
            let (room, counter) = places.room(lane, tasks);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = in_hand.join_next() => {}
                // The sender lives as long as the process; without one the last limits hold.
                Ok(()) = limits.changed() => {}
                next = self.queue.next_within(lane, room), if room > 0 => match next {
                    Ok(Some(delivery)) => {
                        let (this, mut place) = (self.clone(), Place::take(counter, self.parts(&delivery.task)));
                        in_hand.spawn(async move { this.handle(delivery, &mut place).await });
                    }
                    Ok(None) => break,
                    Err(error) => {
                        error!(%error, lane = lane.name(), "cannot take a fan-out task");
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                },
            }
        }
        while in_hand.join_next().await.is_some() {}
    }

    /// As how much a task counts among those in hand. In a cluster it waits for servers most of the time: small ones share a
    /// place, or a few of them would keep all places of a worker that has next to nothing to do. Embedded it waits for a
    /// commit that all of them share, and a place is one task's.
    fn parts(&self, task: &Task) -> u32 {
        if self.queue.is_remote() { task.parts() } else { Task::WHOLE }
    }

    async fn handle(&self, delivery: Delivery, place: &mut Place) {
        let task = &delivery.task;
        let name = format!("{}/{}", task.post_id, task.chunk.no);
        self.board.take(name.clone());
        let early = faults::planted(Planted::AckBeforeRows);
        if early {
            let _ = self.queue.ack(Delivery { task: task.clone(), tag: delivery.tag }).await;
        }
        let outcome = survived(self.process(task).instrument(span(task))).await;
        let rows = if matches!(outcome, Ok(Outcome::Done)) { task.chunk.viewers.len() } else { 0 };
        self.board.finish(&name, rows as u64);
        let settled = match outcome {
            Ok(_) => {
                faults::at("fanout.done");
                if early { Ok(()) } else { self.queue.ack(delivery).await }
            }
            Err(error) => {
                self.failed(&delivery.task, &error).await;
                place.fill();
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                self.queue.release(delivery).await
            }
        };
        if let Err(error) = settled {
            warn!(%error, "a fan-out task could not be acknowledged; it will come again");
        }
    }

    /// Fans one chunk out, at the post's present version.
    pub async fn process(&self, task: &Task) -> Result<Outcome> {
        let Some(post) = self.store.post(task.post_id).await? else {
            return Ok(Outcome::NoPost);
        };
        let state = self.known(task, &post).await?;
        if state.parked {
            // A copy from before: workers may die of it. What takes the chunk up again publishes a task of its own.
            debug!(post = %post.id, chunk = task.chunk.no, "the chunk is parked");
            return Ok(Outcome::Parked);
        }
        if state.is_given_up(post.version) {
            // Whoever had the task before may have died between its rows and their bump.
            return self.bump_given_up(task, &post).await;
        }
        if self.is_done(&state, &post).await? {
            return Ok(Outcome::AlreadyDone);
        }
        faults::at(match task.lane {
            Lane::Small => "fanout.small",
            Lane::Bulk => "fanout.bulk",
        });
        if faults::planted(Planted::AckBeforeRows) {
            let done = Done { version: post.version, fence: self.revisions.fence().await?.seq };
            self.store.chunk_done(post.id, task.chunk.no, done, true).await?;
        }
        let (post, rows) =
            if state.has_rows(post.version) { (post, true) } else { self.write_rows(task, post).await? };
        faults::at("fanout.rows");
        let fence = match self.bump(task, &post).await {
            Ok(fence) => fence,
            Err(error) if error.kind() == Kind::Unavailable => {
                warn!(%error, post = %post.id, chunk = task.chunk.no, "rows written, revisions cannot be bumped now");
                if rows && !state.has_rows(post.version) {
                    self.store.chunk_rows_done(post.id, task.chunk.no, post.version).await?;
                }
                let given_up = self.state(task).await?.is_given_up(post.version);
                return if given_up { self.bump_given_up(task, &post).await } else { Ok(Outcome::RowsOnly) };
            }
            Err(error) => return Err(error),
        };
        faults::at("fanout.bumped");
        self.store.chunk_done(post.id, task.chunk.no, Done { version: post.version, fence }, rows).await?;
        self.observe(task, &post);
        Ok(Outcome::Done)
    }

    /// How far the chunk has come before this task. The first delivery of the present version hardly ever has anything
    /// before it, and is not worth a look: where it has, the same rows are written again, and at most clients are bumped
    /// to read an unchanged post.
    async fn known(&self, task: &Task, post: &Post) -> Result<ChunkState> {
        if task.attempt == 0 && post.version <= task.version {
            return Ok(ChunkState::default());
        }
        self.state(task).await
    }

    async fn state(&self, task: &Task) -> Result<ChunkState> {
        let no = task.chunk.no;
        let states = self.store.chunk_states(task.post_id, no..no + 1).await?;
        Ok(states.first().copied().unwrap_or_default())
    }

    /// Bumps for rows of a chunk that was given up, as soon as revisions can be bumped: no relay drives such a chunk any
    /// more, so that the task is all there is of it.
    async fn bump_given_up(&self, task: &Task, post: &Post) -> Result<Outcome> {
        while let Err(error) = self.bump(task, post).await {
            if error.kind() != Kind::Unavailable {
                return Err(error);
            }
            warn!(%error, post = %post.id, chunk = task.chunk.no, "a chunk that was given up has rows, and its bump waits");
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
        Ok(Outcome::AlreadyDone)
    }

    /// Bumps the viewers of a chunk whose rows are written, and answers under which fence.
    ///
    /// The registry is read after the rows were written: with the fence the newest even then, they were there before
    /// anybody could get a token of a later one. Marks "through" a token rely on it. A bump of a life that is over is none.
    async fn bump(&self, task: &Task, post: &Post) -> Result<u32> {
        if faults::planted(Planted::SkipBump) {
            return Ok(self.revisions.fence().await?.seq);
        }
        let change = Change { post_id: post.id, version: post.version };
        let (bumped, newest) = join(self.revisions.bump(&task.chunk.viewers, change), self.store.newest_fence()).await;
        let (fence, newest) = (bumped?, newest?);
        let counts = newest.is_some_and(|(newest, _)| newest.seq == fence);
        if counts || faults::planted(Planted::DoneWithoutFence) {
            return Ok(fence);
        }
        Err(Error::unavailable("revisions_unavailable", "the revisions that were bumped are of a life that is over"))
    }

    async fn is_done(&self, state: &ChunkState, post: &Post) -> Result<bool> {
        if state.done.is_none_or(|done| done.version < post.version) {
            return Ok(false);
        }
        match self.revisions.fence().await {
            Ok(fence) => Ok(state.is_done(post.version, fence.seq)),
            // It may be done under a fence that is no more.
            Err(error) if error.kind() == Kind::Unavailable => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the rows of the newest version there is, and answers which that was, and whether they still had a life
    /// to live.
    async fn write_rows(&self, task: &Task, mut post: Post) -> Result<(Post, bool)> {
        let count = |result| {
            counter!("fanfold_fanout_rows_total", "result" => result).increment(task.chunk.viewers.len() as u64);
        };
        loop {
            if post.id.time().after(self.inbox_ttl).after(OVERDUE) <= self.clock.now() {
                count("skipped");
                return Ok((post, false));
            }
            match self.store.write_rows(&post, &task.chunk.viewers).await? {
                RowsWritten::Written => {
                    count("written");
                    return Ok((post, true));
                }
                RowsWritten::Stale(newer) => post = *newer,
            }
        }
    }

    async fn failed(&self, task: &Task, error: &Error) {
        let (post, chunk, attempt) = (task.post_id, task.chunk.no, task.attempt);
        warn!(%error, %post, chunk, attempt, "a fan-out task failed");
        counter!("fanfold_fanout_failures_total").increment(1);
        let hopeless = matches!(error.kind(), Kind::Corrupt | Kind::Internal);
        if hopeless && attempt + 1 >= self.attempts_max {
            error!(%error, %post, chunk, "a fan-out task failed too often and is parked");
            counter!("fanfold_fanout_parked_total").increment(1);
            if let Err(error) = self.store.park_chunk(post, chunk, Some(&error.to_string())).await {
                warn!(%error, %post, chunk, "the task could not be parked; it will come again");
            }
        }
    }

    fn observe(&self, task: &Task, post: &Post) {
        let viewers = task.chunk.viewers.len() as u64;
        debug!(post = %post.id, version = post.version, chunk = task.chunk.no, viewers, "fanned out");
        if post.version == 1 {
            let age = self.clock.now().since(post.id.time());
            histogram!("fanfold_publish_to_visible_seconds").record(age.as_secs_f64());
        }
    }
}

/// What the tasks in hand of a lane take up: of the places that it has, and of those beside them. Counted apart, or small
/// tasks would fill whatever place a large one leaves, and no large one would ever come again.
#[derive(Default)]
struct Places {
    limited: Arc<AtomicU32>,
    spare: Arc<AtomicU32>,
}

impl Places {
    /// As how many parts the next task of a lane may count with a limit of so many `tasks`, and where it counts. In the
    /// lane of small posts there is room beyond the limit for small tasks: they need not wait until a large one is
    /// finished.
    fn room(&self, lane: Lane, tasks: u32) -> (u32, &Arc<AtomicU32>) {
        let limit = tasks.saturating_mul(Task::WHOLE);
        if self.limited.load(Ordering::Relaxed) < limit {
            return (Task::WHOLE, &self.limited);
        }
        // A limit of zero is a pause.
        let spare = if lane == Lane::Small && limit > 0 { SPARE } else { 0 };
        (spare.saturating_sub(self.spare.load(Ordering::Relaxed)).min(SMALL_MAX), &self.spare)
    }
}

/// What a task takes up among those in hand, until it is finished with or was dropped.
struct Place(Arc<AtomicU32>, u32);

impl Place {
    fn take(all: &Arc<AtomicU32>, parts: u32) -> Self {
        all.fetch_add(parts, Ordering::Relaxed);
        Self(Arc::clone(all), parts)
    }

    /// Takes up a whole place from now on: small tasks that fail must not come by the hundred in every pause.
    fn fill(&mut self) {
        self.0.fetch_add(Task::WHOLE - self.1, Ordering::Relaxed);
        self.1 = Task::WHOLE;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// What `work` comes to. A panic is one more failure: the task is released, or parked when it has failed too often. What it
/// shares with others is in the store, on servers, or behind locks that a panic does not spoil.
async fn survived<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.unwrap_or_else(|panic| Err(Error::panicked("the fan-out", &*panic)))
}

/// What log lines of a task carry.
fn span(task: &Task) -> Span {
    info_span!("fanout", post = %task.post_id, chunk = task.chunk.no, attempt = task.attempt, trace_id = %task.trace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_was_filled_is_given_back_whole() {
        let parts = Arc::new(AtomicU32::new(0));
        let (small, mut failed) = (Place::take(&parts, 1), Place::take(&parts, 3));
        failed.fill();
        failed.fill();
        assert_eq!(parts.load(Ordering::Relaxed), 1 + Task::WHOLE);
        drop(failed);
        assert_eq!(parts.load(Ordering::Relaxed), 1);
        drop(small);
        assert_eq!(parts.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_tasks_find_room_where_large_ones_wait() {
        let places = Places::default();
        let room = |lane, tasks| places.room(lane, tasks).0;
        assert_eq!((room(Lane::Small, 0), room(Lane::Bulk, 0)), (0, 0), "paused");
        let limited = Place::take(places.room(Lane::Small, 2).1, 2 * Task::WHOLE - 1);
        assert_eq!((room(Lane::Small, 2), room(Lane::Bulk, 2)), (Task::WHOLE, Task::WHOLE));
        let last = Place::take(places.room(Lane::Small, 2).1, Task::WHOLE);
        assert_eq!((room(Lane::Small, 2), room(Lane::Bulk, 2)), (SMALL_MAX, 0));
        let small = Place::take(places.room(Lane::Small, 2).1, SPARE - 1);
        assert_eq!(room(Lane::Small, 2), 1);
        let mut failed = Place::take(places.room(Lane::Small, 2).1, 1);
        assert_eq!(room(Lane::Small, 2), 0);
        failed.fill();
        assert_eq!(room(Lane::Small, 2), 0, "they may come to more than there is");
        drop((small, failed, limited));
        assert_eq!((room(Lane::Small, 2), room(Lane::Small, 0)), (Task::WHOLE, 0));
        drop(last);
    }

    /// Small ones without end beside large ones: however many there are, a place that a large one leaves is given by turns.
    #[test]
    fn small_tasks_keep_no_large_one_out() {
        let (places, mut large, mut small) = (Places::default(), Vec::new(), Vec::new());
        for round in 0..100 {
            loop {
                let (room, counter) = places.room(Lane::Small, 4);
                match room {
                    0 => break,
                    Task::WHOLE => large.push(Place::take(counter, Task::WHOLE)),
                    _ => small.push(Place::take(counter, Task::WHOLE)),
                }
            }
            assert_eq!((large.len(), small.len()), (4, 2), "round {round}");
            // One of each ends.
            large.pop();
            small.pop();
        }
    }

    #[tokio::test]
    async fn what_a_panic_says_is_told() {
        let text =
            async |work: fn() -> Result<()>| survived(async { work() }).await.expect_err("it panics").to_string();
        assert!(text(|| panic!("in {}", "words")).await.ends_with("the fan-out panicked: in words"));
        assert!(text(|| panic!("plainly")).await.ends_with("the fan-out panicked: plainly"));
        assert_eq!(survived(async { Ok(7) }).await.expect("no panic"), 7);
    }
}
