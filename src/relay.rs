//! The relay: looks at every pending post until all its chunks are done, and drives again what is not.
//!
//! It makes the queue a mere accelerator: whatever a queue, a worker or a whole process loses, the store still has the
//! pending entry, and only the relay removes one. Bumps of marks that were lost are driven here too ([`crate::intents`]).
//!
//! One [`Relay`] looks after one shard of the entries; which process runs which is for [`crate::leases`] to say.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::adapters::{Queue, Revisions, Store};
use crate::clock::Clock;
use crate::domain::{ChunkState, Fence, Lane, Post, PostId, ProducerId, Task, Time, Withdrawal};
use crate::error::Result;
use crate::faults::{self, Planted};
use crate::intents::Intents;
use crate::ports::{Pending, Queue as _, Room, Settled, Store as _};
use crate::withdrawals::Withdrawals;

/// Entries looked at with one read of the fence.
const PAGE: u32 = 256;
/// The pause between passes while a lane is full.
const BUSY_TICK: Duration = Duration::from_millis(50);
/// Posts whose attempts are remembered; the others wait for their turn.
const DRIVES_MAX: usize = 1_000_000;
/// A lane where more tasks than these wait for a producer's turn has work for a while: what waits is not driven again.
const DEEP_LANE: u64 = 1_000;
/// But no longer than this: the tasks in the lane may be other ones.
const DEEP_LANE_PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause between attempts where only bumps are missing: what is in their way is Redis, and being away it has
/// not tried anybody's patience. Once it is back the clients must not wait for what doubled meanwhile.
const BUMPS_PAUSE_MAX: Duration = Duration::from_secs(20);
/// A lane where no more tasks than these wait for a producer's turn is nearly empty: what was driven is not there any more.
const IDLE_LANE: u64 = 100;
/// What is not done is driven again after this where its lane is nearly empty, however far the doubling has gone: the task
/// is lost, or failed for want of a server, which may be back.
const IDLE_LANE_PAUSE: Duration = Duration::from_secs(20);
/// How long after the end of a post's rows its fan-out is given up. A clock that is wrong by less does no harm.
const OVERDUE: Duration = Duration::from_secs(24 * 3600);
/// Before anybody has reached the revisions: fences count from 1.
const NO_FENCE: Fence = Fence { seq: 0, nonce: 0 };

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
    /// The queue outlives this process: what is pending at the start may be in it.
    pub queue_survives: bool,
    /// How long rows live.
    pub inbox_ttl: Duration,
}

/// The relay and what it remembers between passes.
#[derive(Debug)]
pub struct Relay {
    store: Store,
    queue: Queue,
    /// Those of the readers in this process; where readers are elsewhere, they look into the store.
    withdrawals: Option<Withdrawals>,
    clock: Clock,
    limits: RelayLimits,
    shard: u32,
    intents: Intents,
    /// How each lane stands for a producer, as asked in this pass.
    rooms: HashMap<(Lane, ProducerId), Room>,
    /// The queue could not be used in this pass.
    queue_away: bool,
    /// Nothing of what was queued before this process is left, so the first round does not wait.
    first_round: bool,
    /// Where the next pass goes on; `None` to begin a new round.
    cursor: Option<Pending>,
    drives: HashMap<(PostId, u32), Drive>,
    /// How many rounds were finished.
    round: u64,
    /// The fence of the last look: what was tried under another is tried afresh.
    fence: u32,
    /// The oldest entry of this round whose post waits for its fan-out.
    oldest: Option<Time>,
    /// Withdrawals from before this round, less those whose post it has met. What is left of them at its end is complete.
    candidates: HashMap<PostId, Withdrawal>,
}

/// When an entry is driven next. By the monotonic clock: the wall clock may jump, and entries carry its times for good.
#[derive(Clone, Copy, Debug)]
struct Drive {
    attempts: u32,
    due: Instant,
    /// When it was driven last.
    driven: Option<Instant>,
    met: Instant,
    /// The last round that has met the entry. One that it did not meet was settled, here or by another relay.
    round: u64,
}

/// Whether an entry is to be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Due,
    /// If its lane is nearly empty.
    DueIfIdle,
    NotDue,
}

impl Drive {
    fn turn(&self, now: Instant) -> Turn {
        let waited = self.driven.is_some_and(|driven| driven + IDLE_LANE_PAUSE <= now);
        if self.due <= now {
            Turn::Due
        } else if waited {
            Turn::DueIfIdle
        } else {
            Turn::NotDue
        }
    }
}

/// What a relay works with.
#[derive(Clone, Debug)]
pub struct RelayParts {
    /// The truth, read on behalf of the relay.
    pub store: Store,
    /// Where tasks go.
    pub queue: Queue,
    /// Where the bumps of marks go.
    pub revisions: Revisions,
    /// Those of the readers in this process; `None` where they are elsewhere.
    pub withdrawals: Option<Withdrawals>,
    /// What time it is.
    pub clock: Clock,
    /// How it paces itself.
    pub limits: RelayLimits,
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
    /// A relay for a shard. Where the queue did not survive, its first round drives everything it finds.
    pub fn new(parts: RelayParts, shard: u32) -> Self {
        let RelayParts { store, queue, revisions, withdrawals, clock, limits } = parts;
        let candidates = withdrawals.as_ref().map(candidates).unwrap_or_default();
        Self {
            intents: Intents::new(store.clone(), revisions, shard),
            store,
            queue,
            withdrawals,
            clock,
            limits,
            shard,
            rooms: HashMap::new(),
            queue_away: false,
            first_round: !limits.queue_survives,
            cursor: None,
            drives: HashMap::new(),
            round: 0,
            fence: 0,
            oldest: None,
            candidates,
        }
    }

    /// Passes until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        if faults::planted(Planted::NoRelay) {
            return stop.cancelled().await;
        }
        loop {
            if let Err(error) = self.intents.pass().await {
                warn!(%error, shard = self.shard, "lost bumps of marks cannot be driven now");
            }
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
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                // Whoever has the shard next tells its lag.
                return self.tell_lag(None);
            }
        }
    }

    /// Looks at the next entries, at most `scan_max`.
    pub async fn pass(&mut self) -> Result<Pass> {
        let mut pass = Pass::default();
        self.rooms.clear();
        self.queue_away = false;
        self.take_back();
        while pass.looked < self.limits.scan_max as usize && !pass.round_done {
            let page = self.store.pending(self.shard, self.cursor, PAGE.min(self.limits.scan_max)).await?;
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
            self.meet(entry);
            match self.read(entry).await {
                Ok((post, states)) => looked.push((*entry, post, states)),
                Err(error) => error!(%error, post = %entry.post_id, "a pending post cannot be read"),
            }
        }
        // After the states: a chunk done under a fence that has since been replaced is not done. Before the first fence none
        // is done, and rows can be written all the same.
        let fence = self.store.newest_fence().await?.map_or(NO_FENCE, |(fence, _)| fence);
        self.begin_fence(fence);
        let mut settled = Vec::new();
        for (entry, post, states) in looked {
            match self.judge(&entry, post.as_ref(), &states, fence) {
                Verdict::Settle(verdict) => settled.push(verdict),
                Verdict::Leave => {}
                // What is complete is settled all the same.
                Verdict::Drive(..) if self.queue_away => {}
                Verdict::Drive(post, turn) => match self.drive(&entry, post, &states, (fence, turn), pass).await {
                    Ok(()) => {}
                    Err(error) if error.code() == "queue_unavailable" => {
                        self.queue_away = true;
                        warn!(%error, shard = self.shard, "pending posts cannot be driven before the queue is back");
                    }
                    Err(error) => error!(%error, post = %entry.post_id, "a pending post cannot be driven"),
                },
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

    /// Notes that an entry is there, as far as anybody wants to know: of all entries there may be any number.
    fn meet(&mut self, entry: &Pending) {
        self.candidates.remove(&entry.post_id);
        if let Some(drive) = self.drives.get_mut(&(entry.post_id, entry.version)) {
            drive.round = self.round;
        }
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
        let done = states.iter().all(|state| is_done(state, entry, fence));
        let overdue = post.id.time().after(self.limits.inbox_ttl).after(OVERDUE) <= now;
        if done || overdue {
            return Verdict::Settle(Settled::Done(*entry));
        }
        self.oldest = Some(self.oldest.map_or(entry.since, |oldest| oldest.min(entry.since)));
        let key = (entry.post_id, entry.version);
        if !self.drives.contains_key(&key) && self.drives.len() >= DRIVES_MAX {
            return Verdict::Leave;
        }
        let patience = if self.first_round { Duration::ZERO } else { self.limits.redrive_after };
        let round = self.round;
        let drive = self.drives.entry(key).or_insert_with(|| {
            let met = Instant::now();
            Drive { attempts: 0, due: met + patience, driven: None, met, round }
        });
        match drive.turn(Instant::now()) {
            Turn::NotDue => Verdict::Leave,
            turn => Verdict::Drive(post, turn),
        }
    }

    /// Publishes the chunks that are not done, as far as their lane has room.
    async fn drive(
        &mut self,
        entry: &Pending,
        post: &Post,
        states: &[ChunkState],
        (fence, turn): (Fence, Turn),
        pass: &mut Pass,
    ) -> Result<()> {
        let (key, lane) = ((entry.post_id, entry.version), Lane::of(post));
        let (now, round) = (Instant::now(), self.round);
        let unknown = Drive { attempts: 0, due: now, driven: None, met: now, round };
        let Drive { attempts, met, .. } = self.drives.get(&key).copied().unwrap_or(unknown);
        let room = self.room(lane, &post.producer).await?;
        if turn == Turn::DueIfIdle && room.waiting > IDLE_LANE {
            return Ok(());
        }
        if room.waiting > DEEP_LANE && self.limits.queue_survives && met.elapsed() < DEEP_LANE_PATIENCE {
            return Ok(());
        }
        let room = usize::try_from(room.left).unwrap_or(usize::MAX);
        // Where the process is the whole service, parked chunks get one more chance from each: a new release may know
        // what the old one did not. In a cluster people redrive them.
        let chance = attempts == 0 && !self.limits.queue_survives;
        let open = |state: &ChunkState| (chance || !state.parked) && !is_done(state, entry, fence);
        let numbers: Vec<u32> = (0..).zip(states).filter(|(_, state)| open(state)).map(|(no, _)| no).collect();
        let only_bumps = states.iter().filter(|state| open(state)).all(|state| state.has_rows(post.version));
        let mut tasks = Vec::new();
        for no in numbers.iter().take(room) {
            match self.store.chunk(post.id, *no).await? {
                Some(chunk) => {
                    // Workers leave a parked chunk alone, unless it looks like one that was never tried.
                    let attempt =
                        if states.get(*no as usize).is_some_and(|state| state.parked) { 0 } else { attempts + 1 };
                    tasks.push(Task { post_id: post.id, version: post.version, chunk, lane, attempt, trace: None });
                }
                None => error!(post = %post.id, chunk = no, "a committed post lacks a chunk"),
            }
        }
        let wanted = tasks.len();
        let taken = self.queue.publish(&post.producer, tasks).await?;
        self.took(lane, &post.producer, taken, wanted);
        counter!("fanfold_relay_driven_total").increment(taken as u64);
        pass.driven += taken;
        // A full lane is nobody's failure: the rest is tried again soon, and counts as no attempt.
        let cut_short = taken < wanted || numbers.len() > room;
        pass.lane_full |= cut_short;
        let longest = self.limits.redrive_after_max;
        let longest = if only_bumps { longest.min(BUMPS_PAUSE_MAX) } else { longest };
        let wait = self.limits.redrive_after.saturating_mul(1 << attempts.min(16)).min(longest);
        let (attempts, wait) = if cut_short { (attempts, self.limits.redrive_after) } else { (attempts + 1, wait) };
        let now = Instant::now();
        self.drives.insert(key, Drive { attempts, due: now + wait, driven: Some(now), met, round });
        Ok(())
    }

    /// Under a new fence everything is due soon, however often it was tried under the one before.
    fn begin_fence(&mut self, fence: Fence) {
        if self.fence == fence.seq {
            return;
        }
        self.fence = fence.seq;
        let soon = Instant::now() + self.limits.redrive_after;
        for drive in self.drives.values_mut() {
            drive.attempts = 0;
            drive.due = drive.due.min(soon);
        }
    }

    fn tell_lag(&self, oldest: Option<Time>) {
        let lag = oldest.map_or(Duration::ZERO, |oldest| self.clock.now().since(oldest));
        gauge!("fanfold_fanout_lag_seconds", "shard" => self.shard.to_string()).set(lag.as_secs_f64());
    }

    /// What was driven and had to give way in the queue is due again: it was no attempt.
    fn take_back(&mut self) {
        for displaced in self.queue.take_displaced() {
            if let Some(drive) = self.drives.get_mut(&displaced) {
                drive.attempts = drive.attempts.saturating_sub(1);
                drive.due = Instant::now();
            }
        }
    }

    /// How a lane stands for a producer: asked once a pass, then counted. A producer that fills its part keeps nobody
    /// else's posts from being driven.
    async fn room(&mut self, lane: Lane, producer: &ProducerId) -> Result<Room> {
        let key = (lane, producer.clone());
        if let Some(room) = self.rooms.get(&key) {
            return Ok(*room);
        }
        let room = self.queue.room(lane, producer).await?;
        self.rooms.insert(key, room);
        Ok(room)
    }

    fn took(&mut self, lane: Lane, producer: &ProducerId, taken: usize, wanted: usize) {
        let key = (lane, producer.clone());
        if taken < wanted {
            self.rooms.remove(&key);
        } else if let Some(room) = self.rooms.get_mut(&key) {
            room.left = room.left.saturating_sub(taken as u64);
        }
    }

    fn finish_round(&mut self) {
        self.first_round = false;
        let oldest = self.oldest.take();
        self.tell_lag(oldest);
        self.drives.retain(|_, drive| drive.round == self.round);
        self.round += 1;
        let Some(withdrawals) = &self.withdrawals else { return };
        for withdrawal in self.candidates.values() {
            withdrawals.settle(withdrawal.post_id, withdrawal.version);
        }
        if !self.candidates.is_empty() {
            info!(posts = self.candidates.len(), "withdrawals are complete");
        }
        self.candidates = candidates(withdrawals);
    }
}

/// Those of now: whatever the next round does not meet of them is complete.
fn candidates(withdrawals: &Withdrawals) -> HashMap<PostId, Withdrawal> {
    withdrawals.snapshot().iter().map(|withdrawal| (withdrawal.post_id, withdrawal)).collect()
}

/// Whether a chunk is done as far as an entry is concerned: at its version, under the newest fence.
fn is_done(state: &ChunkState, entry: &Pending, fence: Fence) -> bool {
    let anyhow = || state.done.is_some_and(|done| done.version >= entry.version);
    state.is_done(entry.version, fence.seq) || (faults::planted(Planted::DoneWithoutFence) && anyhow())
}

enum Verdict<'a> {
    Settle(Settled),
    Drive(&'a Post, Turn),
    Leave,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_waited_long_is_driven_where_the_lane_is_nearly_empty() {
        let now = Instant::now();
        let (hour, before) = (Duration::from_secs(3600), |pause| now.checked_sub(pause));
        let drive = |due, driven| Drive { attempts: 9, due, driven, met: now, round: 0 };
        assert_eq!(drive(now, None).turn(now), Turn::Due);
        assert_eq!(drive(now + hour, None).turn(now), Turn::NotDue, "it waits for its first turn");
        assert_eq!(drive(now + hour, Some(now)).turn(now), Turn::NotDue);
        assert_eq!(drive(now + hour, before(IDLE_LANE_PAUSE)).turn(now), Turn::DueIfIdle);
    }
}
