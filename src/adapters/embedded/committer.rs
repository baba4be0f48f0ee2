//! One thread that writes. It groups whatever waits, commits the group as one batch, syncs, and only then answers.
//!
//! The store's journal is one mutex with the sync under it, so concurrent committers would only queue there; grouping
//! turns their number into throughput. Running jobs one after the other on one thread also makes every
//! read-modify-write atomic without locks: a job reads through the writes of its own group.
//!
//! Whoever shares a group waits for all of it. So that a post, a mark or the row of a small audience does not wait for
//! every chunk that is fanned out at the moment, jobs are taken by size: all that are small, and of the others as many as
//! fit a budget, but at least one. And after a group with large ones those small ones that wait by then have a group of
//! their own, which is written in a fraction of the time.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, PersistMode, Slice};
use tokio::sync::{mpsc, oneshot};

use crate::domain::Time;
use crate::error::{Error, Kind, Result};

/// How long a look at the free space stays good.
const FREE_SPACE_LOOK: Duration = Duration::from_secs(1);

/// Whether a job's answer waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Synced before the answer; refused when the disk is nearly full.
    Synced,
    /// Synced, and taken even when the disk is nearly full: a few bytes without which nothing can be served.
    Vital,
    /// Handed to the operating system: survives a killed process, not a power cut. For what can be done again.
    Buffered,
}

/// How much a job writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Little: it goes into the next group.
    Small,
    /// Rows or ids of many viewers, or a large body, so many bytes: it goes into a group that has room for it.
    Bulk(usize),
}

impl Size {
    /// Up to so many bytes are as quick to write as a mark: rows of some fifty viewers.
    const SMALL_BYTES_MAX: usize = 2 << 10;

    /// That of a job which writes so many bytes.
    pub fn of(bytes: usize) -> Self {
        if bytes <= Self::SMALL_BYTES_MAX { Self::Small } else { Self::Bulk(bytes) }
    }
}

/// Bounds of one group, and the least free space under which nothing new is taken.
#[derive(Clone, Debug)]
pub struct CommitLimits {
    /// Jobs in a group, and jobs waiting.
    pub jobs_max: usize,
    /// Bytes of keys and values in a group.
    pub bytes_max: usize,
    /// Bytes of bulk jobs in a group, beyond the first of them.
    pub bulk_bytes_max: usize,
    /// Free bytes under which synced jobs are refused.
    pub free_bytes_min: u64,
    /// Where to look for free space.
    pub folder: PathBuf,
}

/// What a job sees and writes: the store, and over it the uncommitted writes of its group.
pub struct Group {
    writes: Vec<Write>,
    /// Where in `writes` the newest value of a key is, for keys that jobs also read.
    tracked: HashMap<(u64, Slice), usize>,
    bytes: usize,
    last_pending: Time,
}

struct Write {
    keyspace: Keyspace,
    key: Slice,
    value: Option<Slice>,
}

impl Group {
    /// The value of a key, uncommitted writes included.
    pub fn get(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Slice>> {
        if let Some(at) = self.tracked.get(&(keyspace.id(), Slice::from(key))) {
            return Ok(self.writes[*at].value.clone());
        }
        keyspace.get(key).map_err(store_error)
    }

    /// Writes a value that other jobs may read through [`Group::get`].
    pub fn put(&mut self, keyspace: &Keyspace, key: impl Into<Slice>, value: impl Into<Slice>) {
        let key = key.into();
        self.tracked.insert((keyspace.id(), key.clone()), self.writes.len());
        self.put_unread(keyspace, key, value);
    }

    /// Writes a value that no job reads back: cheaper by a map entry.
    pub fn put_unread(&mut self, keyspace: &Keyspace, key: impl Into<Slice>, value: impl Into<Slice>) {
        self.push(keyspace, key.into(), Some(value.into()));
    }

    /// Removes a key.
    pub fn remove(&mut self, keyspace: &Keyspace, key: impl Into<Slice>) {
        let key = key.into();
        self.tracked.insert((keyspace.id(), key.clone()), self.writes.len());
        self.push(keyspace, key, None);
    }

    /// A time for a pending entry: `now`, but after every earlier one, whatever the clock does.
    pub fn pending_time(&mut self, now: Time) -> Time {
        self.last_pending = now.max(self.last_pending.after(Duration::from_micros(1)));
        self.last_pending
    }

    /// The newest of those times that was given. All pending entries that will ever be written come after it.
    pub fn newest_pending(&self) -> Time {
        self.last_pending
    }

    fn push(&mut self, keyspace: &Keyspace, key: Slice, value: Option<Slice>) {
        self.bytes += key.len() + value.as_ref().map_or(0, |v| v.len());
        self.writes.push(Write { keyspace: keyspace.clone(), key, value });
    }
}

/// A unit of work for the thread. It fails as a whole, and before its first write.
trait Job: Send {
    fn run(&mut self, group: &mut Group);
    fn refuse(&mut self, error: Error);
    fn durability(&self) -> Durability;
    fn size(&self) -> Size;
    fn finish(self: Box<Self>, failure: Option<&Failure>);
}

/// Why a commit failed, told to every job of the group.
struct Failure {
    full: bool,
    text: String,
}

struct Work<F, T> {
    run: Option<F>,
    durability: Durability,
    size: Size,
    result: Result<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> Job for Work<F, T>
where
    F: FnOnce(&mut Group) -> Result<T> + Send,
    T: Send,
{
    fn run(&mut self, group: &mut Group) {
        if let Some(run) = self.run.take() {
            self.result = run(group);
        }
    }

    fn refuse(&mut self, error: Error) {
        self.result = Err(error);
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    fn size(&self) -> Size {
        self.size
    }

    fn finish(self: Box<Self>, failure: Option<&Failure>) {
        let result = match failure {
            None => self.result,
            Some(failure) if failure.full => Err(storage_full(failure.text.clone())),
            Some(failure) => Err(Error::unavailable("store_failed", failure.text.clone())),
        };
        // Nobody left to tell: the caller was cancelled, the write stands.
        let _ = self.reply.send(result);
    }
}

/// The handle to the thread.
#[derive(Debug)]
pub struct Committer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    failed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Box<dyn Job> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Committer {
    /// Starts the thread; it ends when the handle is dropped, after all that was submitted. Pending entries are given
    /// times after `last_pending`.
    pub fn start(
        database: Database,
        limits: CommitLimits,
        last_pending: Time,
    ) -> Result<(Self, std::thread::JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(limits.jobs_max);
        let failed = Arc::new(AtomicBool::new(false));
        let thread_failed = Arc::clone(&failed);
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || {
                let (failed, waiting) = (thread_failed, Waiting::default());
                Thread { database, limits, queue, waiting, failed, free_space: None, last_pending }.run();
            })
            .map_err(|e| Error::internal("cannot start the committer thread").with_source(e))?;
        Ok((Self { jobs, failed }, thread))
    }

    /// Runs `run` on the thread and answers once its group is committed. Once submitted it is carried out even if the
    /// caller stops waiting.
    pub async fn submit<T: Send + 'static>(
        &self,
        durability: Durability,
        size: Size,
        run: impl FnOnce(&mut Group) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let result = Err(Error::internal("a job was answered before it ran"));
        let job = Box::new(Work { run: Some(run), durability, size, result, reply });
        let gone = || Error::unavailable("store_failed", "the store is closed");
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Whether a commit has failed, or the thread is gone: only a restart brings the store back.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.jobs.is_closed()
    }
}

/// Jobs that have been received and belong to no group yet, each kind in the order in which they came.
#[derive(Default)]
struct Waiting {
    small: VecDeque<Box<dyn Job>>,
    bulk: VecDeque<(usize, Box<dyn Job>)>,
    /// Whether the group before this one had bulk jobs, and this one has none if small jobs wait.
    after_bulk: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.bulk.is_empty()
    }

    fn push(&mut self, job: Box<dyn Job>) {
        match job.size() {
            Size::Small => self.small.push_back(job),
            Size::Bulk(bytes) => self.bulk.push_back((bytes, job)),
        }
    }

    /// Takes over what has come, as long as no more than `max` wait here; the others wait in the queue, and at its limit
    /// outside.
    fn receive(&mut self, queue: &mut mpsc::Receiver<Box<dyn Job>>, max: usize) {
        while self.small.len() + self.bulk.len() < max
            && let Ok(job) = queue.try_recv()
        {
            self.push(job);
        }
    }

    /// Begins a group, and answers how it takes bulk jobs. They are in every other one at least, so that small ones, however
    /// many, cannot keep them waiting.
    fn begin(&mut self, bulk_bytes_max: usize) -> Budget {
        let bulk = !self.after_bulk || self.small.is_empty();
        self.after_bulk = false;
        Budget { bytes_max: bulk.then_some(bulk_bytes_max), taken: 0 }
    }

    /// The next job of a group. The first bulk job comes first, so that the group has one.
    fn next(&mut self, budget: &mut Budget) -> Option<Box<dyn Job>> {
        let first = budget.taken == 0 || self.small.is_empty();
        if first && self.bulk.front().is_some_and(|(bytes, _)| budget.fits(*bytes)) {
            let (bytes, job) = self.bulk.pop_front()?;
            budget.taken += bytes.max(1);
            self.after_bulk = true;
            return Some(job);
        }
        self.small.pop_front()
    }
}

/// What a group may still take of bulk jobs.
struct Budget {
    /// None at all without.
    bytes_max: Option<usize>,
    taken: usize,
}

impl Budget {
    fn fits(&self, bytes: usize) -> bool {
        self.bytes_max.is_some_and(|max| self.taken == 0 || self.taken + bytes <= max)
    }
}

struct Thread {
    database: Database,
    limits: CommitLimits,
    queue: mpsc::Receiver<Box<dyn Job>>,
    waiting: Waiting,
    failed: Arc<AtomicBool>,
    free_space: Option<(Instant, u64)>,
    last_pending: Time,
}

impl Thread {
    fn run(mut self) {
        while self.wait() {
            let mut group =
                Group { writes: Vec::new(), tracked: HashMap::new(), bytes: 0, last_pending: self.last_pending };
            let mut jobs = Vec::new();
            self.waiting.receive(&mut self.queue, self.limits.jobs_max);
            let mut budget = self.waiting.begin(self.limits.bulk_bytes_max);
            while jobs.len() < self.limits.jobs_max && group.bytes < self.limits.bytes_max {
                let Some(mut job) = self.waiting.next(&mut budget) else { break };
                self.run_job(job.as_mut(), &mut group);
                jobs.push(job);
                self.waiting.receive(&mut self.queue, self.limits.jobs_max);
            }
            self.last_pending = group.last_pending;
            let synced = jobs.iter().any(|job| job.durability() != Durability::Buffered);
            let failure = self.commit(group, synced).err();
            for job in jobs {
                job.finish(failure.as_ref());
            }
        }
        // What was only buffered reaches the disk before the folder is let go.
        if let Err(error) = self.database.persist(PersistMode::SyncAll) {
            tracing::error!(%error, "the last sync of the store failed");
        }
    }

    /// Waits for work; false when there will be none any more.
    fn wait(&mut self) -> bool {
        if self.waiting.is_empty() {
            let Some(first) = self.queue.blocking_recv() else { return false };
            self.waiting.push(first);
        }
        true
    }

    fn run_job(&mut self, job: &mut dyn Job, group: &mut Group) {
        if job.durability() == Durability::Synced && self.free_bytes() < self.limits.free_bytes_min {
            let min = self.limits.free_bytes_min;
            let text = format!("less than store.free_bytes_min = {min} bytes are free in the data folder");
            return job.refuse(storage_full(text));
        }
        job.run(group);
    }

    fn commit(&mut self, mut group: Group, synced: bool) -> Result<(), Failure> {
        // The tables in memory are skip lists: rows that come in their order are found a place for faster, since the
        // path to each is still in the processor's caches. Stable: of two writes to one key the later one wins.
        group.writes.sort_by(|a, b| a.keyspace.id().cmp(&b.keyspace.id()).then_with(|| a.key.cmp(&b.key)));
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), group.writes.len())
            .durability(Some(if synced { PersistMode::SyncData } else { PersistMode::Buffer }));
        for write in group.writes {
            match write.value {
                Some(value) => batch.insert(&write.keyspace, write.key, value),
                None => batch.remove(&write.keyspace, write.key),
            }
        }
        batch.commit().map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            tracing::error!(%error, "a commit failed; the store takes no more writes until the service is restarted");
            let full = matches!(&error, fjall::Error::Io(e) if is_full(e.kind()));
            Failure { full, text: format!("the store failed and needs a restart: {error}") }
        })
    }

    fn free_bytes(&mut self) -> u64 {
        if let Some((at, free)) = self.free_space
            && at.elapsed() < FREE_SPACE_LOOK
        {
            return free;
        }
        // A file system that does not tell is taken as roomy: the write itself will say.
        let free = rustix::fs::statvfs(&self.limits.folder).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        self.free_space = Some((Instant::now(), free));
        free
    }
}

fn is_full(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, FileTooLarge | QuotaExceeded | StorageFull)
}

fn storage_full(text: String) -> Error {
    Error::new(Kind::StorageFull, "storage_full", text)
}

/// An error of the storage engine as one of ours.
pub fn store_error(error: fjall::Error) -> Error {
    Error::unavailable("store_failed", "the store could not be read").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BULK: Size = Size::Bulk(60);

    fn push(waiting: &mut Waiting, sizes: &[Size]) {
        for size in sizes {
            let (run, result, reply) = (None::<fn(&mut Group) -> Result<()>>, Ok(()), oneshot::channel().0);
            waiting.push(Box::new(Work { run, durability: Durability::Synced, size: *size, result, reply }));
        }
    }

    fn group(waiting: &mut Waiting) -> Vec<Size> {
        let mut budget = waiting.begin(100);
        std::iter::from_fn(|| waiting.next(&mut budget)).map(|job| job.size()).collect()
    }

    #[test]
    fn small_jobs_go_alone_after_large_ones_and_keep_none_waiting() {
        let mut waiting = Waiting::default();
        push(&mut waiting, &[BULK, BULK, BULK, BULK, Size::Small]);
        assert_eq!(group(&mut waiting), [BULK, Size::Small], "nobody has waited for a large one yet");
        push(&mut waiting, &[Size::Small, Size::Small]);
        assert_eq!(group(&mut waiting), [Size::Small, Size::Small]);
        push(&mut waiting, &[Size::Small]);
        assert_eq!(group(&mut waiting), [BULK, Size::Small], "small ones may not come first for ever");
        assert_eq!(group(&mut waiting), [BULK], "there are no small ones");
        assert_eq!(group(&mut waiting), [BULK]);
        push(&mut waiting, &[Size::Small]);
        assert_eq!(group(&mut waiting), [Size::Small]);
        assert!(group(&mut waiting).is_empty() && waiting.is_empty());
    }

    #[test]
    fn large_jobs_share_a_group_as_far_as_its_budget_goes() {
        let mut waiting = Waiting::default();
        push(&mut waiting, &[Size::Bulk(50), Size::Bulk(50), Size::Bulk(1), Size::Bulk(500), Size::Bulk(0)]);
        assert_eq!(group(&mut waiting), [Size::Bulk(50), Size::Bulk(50)]);
        assert_eq!(group(&mut waiting), [Size::Bulk(1)]);
        assert_eq!(group(&mut waiting), [Size::Bulk(500)], "one that is larger than the budget goes all the same");
        assert_eq!(group(&mut waiting), [Size::Bulk(0)]);
    }
}
