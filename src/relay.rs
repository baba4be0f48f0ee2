//! The relay: looks at every pending post until all its chunks are done, and drives again what is not.
//!
//! It makes the queue a mere accelerator: whatever a queue, a worker or a whole process loses, the store still has the
//! pending entry, and only the relay removes one.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::adapters::{Queue, Store};
use crate::clock::Clock;
use crate::domain::{ChunkState, Fence, Lane, Post, PostId, Task, Withdrawal};
use crate::error::Result;
use crate::ports::{Pending, Queue as _, Settled, Store as _};
use crate::withdrawals::Withdrawals;

/// Entries looked at with one read of the fence.
const PAGE: u32 = 256;
/// The pause between passes while a lane is full.
const BUSY_TICK: Duration = Duration::from_millis(50);
/// Posts whose attempts are remembered; the others wait for their turn.
const DRIVES_MAX: usize = 1_000_000;
/// How long after the end of a post's rows its fan-out is given up. A clock that is wrong by less does no harm.
const OVERDUE: Duration = Duration::from_secs(24 * 3600);

/// How the relay paces itself.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Between passes.
    pub tick: Duration,
    /// How long after the relay first met an entry it is driven; doubles with each attempt.
    pub redrive_after: Duration,
    /// The longest that doubling goes.
    pub redrive_after_max: Duration,
    /// Age at which an entry without a post is swept. Longer than idempotency keys live.
    pub garbage_after: Duration,
    /// Entries a pass looks at.
    pub scan_max: u32,
    /// How long rows live.
    pub inbox_ttl: Duration,
}

/// The relay and what it remembers between passes.
#[derive(Debug)]
pub struct Relay {
    store: Store,
    queue: Queue,
    withdrawals: Withdrawals,
    clock: Clock,
    limits: RelayLimits,
    /// Nothing of what was queued before this process is left, so the first round does not wait.
    first_round: bool,
    /// Where the next pass goes on; `None` to begin a new round.
    cursor: Option<Pending>,
    drives: HashMap<(PostId, u32), Drive>,
    seen: HashSet<PostId>,
    /// Withdrawals from before this round. Those whose post the round does not meet are complete.
    candidates: Vec<Withdrawal>,
}

/// When an entry is driven next. By the monotonic clock: the wall clock may jump, and entries carry its times for good.
#[derive(Clone, Copy, Debug)]
struct Drive {
    attempts: u32,
    due: Instant,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Entries looked at.
    pub looked: usize,
    /// Entries that were complete, or garbage, and are gone.
    pub settled: usize,
    /// Tasks published again.
    pub driven: usize,
    /// A lane was full: there is more to drive.
    pub lane_full: bool,
    /// The pass reached the end of the entries.
    pub round_done: bool,
}

impl Relay {
    /// A relay whose first round drives everything it finds: what was queued before is gone.
    pub fn new(store: Store, queue: Queue, withdrawals: Withdrawals, clock: Clock, limits: RelayLimits) -> Self {
        let candidates = withdrawals.snapshot().iter().collect();
        Self {
            store,
            queue,
            withdrawals,
            clock,
            limits,
            first_round: true,
            cursor: None,
            drives: HashMap::new(),
            seen: HashSet::new(),
            candidates,
        }
    }

    /// Passes until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let pause = match self.pass().await {
                Ok(pass) => {
                    if pass.settled + pass.driven > 0 {
                        debug!(?pass, "relay");
                    }
                    if pass.lane_full || !pass.round_done { BUSY_TICK } else { self.limits.tick }
                }
                Err(error) => {
                    error!(%error, "the relay could not finish a pass");
                    self.limits.tick
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Looks at the next entries, at most `scan_max`.
    pub async fn pass(&mut self) -> Result<Pass> {
        let mut pass = Pass::default();
        while pass.looked < self.limits.scan_max as usize && !pass.round_done {
            let page = self.store.pending(self.cursor, PAGE.min(self.limits.scan_max)).await?;
            if self.cursor.is_none() {
                let oldest = page.entries.first().map(|entry| self.clock.now().since(entry.since));
                gauge!("fanfold_fanout_lag_seconds").set(oldest.unwrap_or_default().as_secs_f64());
            }
            pass.looked += page.entries.len();
            let looked = self.look(&page.entries, &mut pass).await;
            // Also after a failure: what comes behind a page that cannot be read must not wait for it for ever.
            self.cursor = page.next;
            pass.round_done = page.next.is_none();
            looked?;
        }
        if pass.round_done {
            self.finish_round();
        }
        Ok(pass)
    }

    async fn look(&mut self, entries: &[Pending], pass: &mut Pass) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut looked = Vec::with_capacity(entries.len());
        for entry in entries {
            self.seen.insert(entry.post_id);
            match self.read(entry).await {
                Ok((post, states)) => looked.push((*entry, post, states)),
                Err(error) => error!(%error, post = %entry.post_id, "a pending post cannot be read"),
            }
        }
        // After the states: a chunk done under a fence that has since been replaced is not done.
        let Some((fence, _)) = self.store.newest_fence().await? else { return Ok(()) };
        let mut settled = Vec::new();
        for (entry, post, states) in looked {
            match self.judge(&entry, post.as_ref(), &states, fence) {
                Verdict::Settle(verdict) => settled.push(verdict),
                Verdict::Leave => {}
                Verdict::Drive(post) => {
                    if let Err(error) = self.drive(&entry, post, &states, fence, pass).await {
                        error!(%error, post = %entry.post_id, "a pending post cannot be driven");
                    }
                }
            }
        }
        if !settled.is_empty() {
            self.store.settle(&settled).await?;
            for Settled::Done(entry) | Settled::Garbage(entry) in &settled {
                self.drives.remove(&(entry.post_id, entry.version));
            }
            pass.settled += settled.len();
        }
        Ok(())
    }

    async fn read(&self, entry: &Pending) -> Result<(Option<Post>, Vec<ChunkState>)> {
        let Some(post) = self.store.post(entry.post_id).await? else { return Ok((None, Vec::new())) };
        let states = self.store.chunk_states(post.id, 0..post.chunk_count()).await?;
        Ok((Some(post), states))
    }

    fn judge<'a>(
        &mut self,
        entry: &Pending,
        post: Option<&'a Post>,
        states: &[ChunkState],
        fence: Fence,
    ) -> Verdict<'a> {
        let now = self.clock.now();
        let Some(post) = post.filter(|post| post.version >= entry.version) else {
            let garbage = now.since(entry.since) >= self.limits.garbage_after;
            return if garbage { Verdict::Settle(Settled::Garbage(*entry)) } else { Verdict::Leave };
        };
        let done = states.iter().all(|state| state.is_done(entry.version, fence.seq));
        let overdue = post.id.time().after(self.limits.inbox_ttl).after(OVERDUE) <= now;
        if done || overdue {
            return Verdict::Settle(Settled::Done(*entry));
        }
        let key = (entry.post_id, entry.version);
        if !self.drives.contains_key(&key) && self.drives.len() >= DRIVES_MAX {
            return Verdict::Leave;
        }
        let patience = if self.first_round { Duration::ZERO } else { self.limits.redrive_after };
        let drive = self.drives.entry(key).or_insert(Drive { attempts: 0, due: Instant::now() + patience });
        if drive.due <= Instant::now() { Verdict::Drive(post) } else { Verdict::Leave }
    }

    /// Publishes the chunks that are not done, as far as their lane has room.
    async fn drive(
        &mut self,
        entry: &Pending,
        post: &Post,
        states: &[ChunkState],
        fence: Fence,
        pass: &mut Pass,
    ) -> Result<()> {
        let (key, lane) = ((entry.post_id, entry.version), Lane::of(post));
        let attempts = self.drives.get(&key).map_or(0, |drive| drive.attempts);
        // Parked chunks get one more chance from each process: a new release may know what the old one did not.
        let open = |state: &ChunkState| (attempts == 0 || !state.parked) && !state.is_done(entry.version, fence.seq);
        let numbers: Vec<u32> = (0..).zip(states).filter(|(_, state)| open(state)).map(|(no, _)| no).collect();
        let room = usize::try_from(self.queue.room(lane).await?).unwrap_or(usize::MAX);
        let mut tasks = Vec::new();
        for no in numbers.iter().take(room) {
            match self.store.chunk(post.id, *no).await? {
                Some(chunk) => {
                    let attempt = attempts + 1;
                    tasks.push(Task { post_id: post.id, version: post.version, chunk, lane, attempt });
                }
                None => error!(post = %post.id, chunk = no, "a committed post lacks a chunk"),
            }
        }
        let wanted = tasks.len();
        let taken = self.queue.publish(tasks).await?;
        counter!("fanfold_relay_driven_total").increment(taken as u64);
        pass.driven += taken;
        // A full lane is nobody's failure: the rest is tried again soon, and counts as no attempt.
        let cut_short = taken < wanted || numbers.len() > room;
        pass.lane_full |= cut_short;
        let wait = self.limits.redrive_after.saturating_mul(1 << attempts.min(16)).min(self.limits.redrive_after_max);
        let (attempts, wait) = if cut_short { (attempts, self.limits.redrive_after) } else { (attempts + 1, wait) };
        self.drives.insert(key, Drive { attempts, due: Instant::now() + wait });
        Ok(())
    }

    fn finish_round(&mut self) {
        let complete: Vec<_> = self.candidates.iter().filter(|w| !self.seen.contains(&w.post_id)).copied().collect();
        for withdrawal in &complete {
            self.withdrawals.settle(withdrawal.post_id, withdrawal.version);
        }
        if !complete.is_empty() {
            info!(posts = complete.len(), "withdrawals are complete");
        }
        self.candidates = self.withdrawals.snapshot().iter().collect();
        self.seen.clear();
        self.first_round = false;
    }
}

enum Verdict<'a> {
    Settle(Settled),
    Drive(&'a Post),
    Leave,
}
