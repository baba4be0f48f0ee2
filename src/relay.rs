//! The relay: looks at every pending post until all its chunks are done, and drives again what is not.
//!
//! It makes the queue a mere accelerator: whatever a queue, a worker or a whole process loses, the store still has the
//! pending entry, and only the relay removes one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::adapters::{Queue, Store};
use crate::clock::Clock;
use crate::domain::{ChunkState, Fence, Lane, Post, PostId, Task, Time, Withdrawal};
use crate::error::Result;
use crate::ports::{Pending, Queue as _, Settled, Store as _};
use crate::withdrawals::Withdrawals;

/// Entries looked at with one read of the fence.
const PAGE: u32 = 256;
/// The pause between passes while a lane is full.
const BUSY_TICK: Duration = Duration::from_millis(50);
/// Posts whose attempts are remembered; the others wait for their turn.
const DRIVES_MAX: usize = 1_000_000;

/// How the relay paces itself.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Between passes.
    pub tick: Duration,
    /// Age at which an entry is driven again; doubles with each attempt.
    pub redrive_after: Duration,
    /// The longest that doubling goes.
    pub redrive_after_max: Duration,
    /// Age at which an entry without a post is swept. Longer than idempotency keys live.
    pub garbage_after: Duration,
    /// Entries a pass looks at.
    pub scan_max: u32,
}

/// The relay and what it remembers between passes.
#[derive(Debug)]
pub struct Relay {
    store: Store,
    queue: Queue,
    withdrawals: Withdrawals,
    clock: Clock,
    limits: RelayLimits,
    started: Time,
    /// Where the next pass goes on; `None` to begin a new round.
    cursor: Option<Pending>,
    drives: HashMap<(PostId, u32), Drive>,
    seen: HashSet<PostId>,
    /// Withdrawals from before this round. Those whose post the round does not meet are complete.
    candidates: Vec<Withdrawal>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Drive {
    attempts: u32,
    due: Time,
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
        let started = clock.now();
        let candidates = withdrawals.snapshot().iter().collect();
        Self {
            store,
            queue,
            withdrawals,
            clock,
            limits,
            started,
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
            self.look(&page.entries, &mut pass).await?;
            self.cursor = page.next;
            pass.round_done = page.next.is_none();
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
            let post = self.store.post(entry.post_id).await?;
            let states = match &post {
                Some(post) => self.store.chunk_states(post.id, 0..post.chunk_count()).await?,
                None => Vec::new(),
            };
            looked.push((*entry, post, states));
        }
        // After the states: a chunk done under a fence that has since been replaced is not done.
        let Some((fence, _)) = self.store.newest_fence().await? else { return Ok(()) };
        let mut settled = Vec::new();
        for (entry, post, states) in looked {
            self.seen.insert(entry.post_id);
            match self.judge(&entry, post.as_ref(), &states, fence) {
                Verdict::Settle(verdict) => settled.push(verdict),
                Verdict::Leave => {}
                Verdict::Drive(post) => self.drive(&entry, post, &states, fence, pass).await?,
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

    fn judge<'a>(&self, entry: &Pending, post: Option<&'a Post>, states: &[ChunkState], fence: Fence) -> Verdict<'a> {
        let now = self.clock.now();
        let Some(post) = post.filter(|post| post.version >= entry.version) else {
            let garbage = now.since(entry.since) >= self.limits.garbage_after;
            return if garbage { Verdict::Settle(Settled::Garbage(*entry)) } else { Verdict::Leave };
        };
        if states.iter().all(|state| state.is_done(entry.version, fence.seq)) {
            return Verdict::Settle(Settled::Done(*entry));
        }
        // What was queued before this process started is gone with the old one: no reason to wait.
        let first_due =
            if entry.since < self.started { entry.since } else { entry.since.after(self.limits.redrive_after) };
        let drive = self.drives.get(&(entry.post_id, entry.version));
        let has_place = drive.is_some() || self.drives.len() < DRIVES_MAX;
        let due = drive.map_or(first_due, |drive| drive.due);
        if due <= now && has_place { Verdict::Drive(post) } else { Verdict::Leave }
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
        let lane = Lane::of(post);
        if self.queue.room(lane).await? == 0 {
            pass.lane_full = true;
            return Ok(());
        }
        let drive = self.drives.get(&(entry.post_id, entry.version)).copied().unwrap_or_default();
        let mut tasks = Vec::new();
        for (no, state) in (0..).zip(states) {
            if state.parked || state.is_done(entry.version, fence.seq) {
                continue;
            }
            match self.store.chunk(post.id, no).await? {
                Some(chunk) => {
                    let attempt = drive.attempts + 1;
                    tasks.push(Task { post_id: post.id, version: post.version, chunk, lane, attempt });
                }
                None => error!(post = %post.id, chunk = no, "a committed post lacks a chunk"),
            }
        }
        let wanted = tasks.len();
        let taken = self.queue.publish(tasks).await?;
        counter!("fanfold_relay_driven_total").increment(taken as u64);
        pass.driven += taken;
        pass.lane_full |= taken < wanted;
        let wait = self.limits.redrive_after.saturating_mul(1 << drive.attempts.min(16));
        let due = self.clock.now().after(wait.min(self.limits.redrive_after_max));
        self.drives.insert((entry.post_id, entry.version), Drive { attempts: drive.attempts + 1, due });
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
    }
}

enum Verdict<'a> {
    Settle(Settled),
    Drive(&'a Post),
    Leave,
}
