//! The truth in ScyllaDB, or in Apache Cassandra: the same protocol, the same statements.
//!
//! What makes it right is not the order in which requests arrive but the timestamps they carry: an older version of a row
//! loses to a newer one, whoever is late. Conditional writes (LWT) decide only what two may want at the same time.

mod chunks;
mod control;
mod fences;
mod gate;
mod inbox;
mod inspect;
mod intents;
mod keys;
mod marks;
mod migrate;
mod minutes;
mod options;
mod pending;
mod posts;
mod producer_keys;
mod scan;
mod session;
mod statements;
mod store_clock;
mod withdrawals;

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use scylla::deserialize::row::DeserializeRow;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::MaybeUnset;
use uuid::Uuid;

pub use inspect::inspect;
pub use migrate::{MigrateOptions, MigrationReport, ScyllaOnly, migrate};
pub use options::{ClusterOptions, Consistency, Credentials, ScyllaOptions, TlsOptions};
pub use store_clock::Skew;

use self::gate::{Gate, RowGates};
use self::options::OUTLIVES_ROWS;
use self::scan::{SHARDS, Scans};
use self::session::{Profiles, Requests};
use self::statements::Statements;
use self::store_clock::StoreClock;
use crate::adapters::reads::Reads;
use crate::domain::*;
use crate::error::{Error, Kind, Result};
use crate::ports::{
    Changed, FenceEntry, Intent, KeyClaim, KeyHolder, MarkOrder, Marked, Path, Pending, PendingPage, RowsWritten,
    Settled, Store, Window,
};

/// The longest time to live CQL takes: 20 years, in seconds.
const TTL_S_MAX: u64 = 630_720_000;

/// Values in an `IN`: ScyllaDB takes no more by default.
const IN_MAX: usize = 100;
/// Viewers of chunks that a process commits at the same time, of posts to more than a few: eight chunks of the default size,
/// which keep a store busy. What is beyond would stand in the store's line, before all that is small.
const CHUNK_VIEWERS_MAX: usize = 4_000;
/// How far the last stamp of an entry may be ahead of the store's clock: one that is more so came from a wrong answer.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// A handle to the store, for reads on behalf of one [`Path`].
#[derive(Clone)]
pub struct ScyllaStore {
    shared: Arc<Shared>,
    path: Path,
}

struct Shared {
    requests: Requests,
    statements: Statements,
    store_clock: StoreClock,
    reads: Arc<Reads>,
    options: ScyllaOptions,
    /// The last timestamp drawn here.
    stamp: AtomicI64,
    /// The last one of a pending entry.
    entry_stamp: AtomicI64,
    scans: Scans,
    /// Rows of fan-out under way.
    rows: RowGates,
    /// For the viewers of chunks that are being committed, of posts to more than a few.
    chunks: Gate,
    /// Rows of one replica set in a batch, as tuned.
    batch_rows: AtomicUsize,
    withdrawals: Mutex<withdrawals::Seen>,
}

impl std::fmt::Debug for ScyllaStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScyllaStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ScyllaStore {
    /// Connects to a keyspace that has been migrated.
    pub async fn connect(options: ScyllaOptions) -> Result<Self> {
        let session = session::connect(&options.cluster, options.connections_per_shard, options.write_timeout).await?;
        migrate::check(&session, &options.cluster.keyspace).await?;
        let profiles = Profiles::new(&options);
        let keyspace = &options.cluster.keyspace;
        let statements = Statements::prepare(&session, &profiles, keyspace, Knob::BatchRows.max() as usize).await?;
        let requests = Requests::new(session, options.in_flight_max);
        let store_clock = StoreClock::new(&options);
        let now = store_clock.now(&requests, &statements).await?;
        let scans = Scans::load(&requests, &statements, now).await?;
        let shared = Shared {
            requests,
            statements,
            store_clock,
            reads: Arc::new(Reads::default()),
            withdrawals: Mutex::new(withdrawals::Seen::from(&scans)),
            scans,
            rows: RowGates::new(options.rows_in_flight_max),
            chunks: Gate::new(CHUNK_VIEWERS_MAX),
            batch_rows: AtomicUsize::new(options.batch_rows_max),
            stamp: AtomicI64::new(0),
            entry_stamp: AtomicI64::new(0),
            options,
        };
        Ok(Self { shared: Arc::new(shared), path: Path::System })
    }

    /// The same store, its reads counted for `path`.
    pub fn for_path(&self, path: Path) -> Self {
        Self { shared: Arc::clone(&self.shared), path }
    }

    /// The counters of reads.
    pub fn reads(&self) -> Arc<Reads> {
        Arc::clone(&self.shared.reads)
    }

    /// Changes how rows are written, from the next batch on.
    pub fn tune(&self, rows_in_flight: u32, batch_rows: u32) {
        self.shared.rows.resize(rows_in_flight as usize);
        self.shared.batch_rows.store(batch_rows as usize, Ordering::Relaxed);
    }

    /// An error if no node can be reached.
    pub fn check(&self) -> Result<()> {
        let state = self.shared.requests.session().get_cluster_state();
        if state.get_nodes_info().iter().any(|node| node.is_connected()) {
            return Ok(());
        }
        Err(Error::unavailable("store_unavailable", "no node of the store is connected"))
    }

    fn statements(&self) -> &Statements {
        &self.shared.statements
    }

    fn now(&self) -> Time {
        self.shared.options.clock.now()
    }

    /// What time it is by the store's clock: for what processes have to agree on.
    pub async fn store_time(&self) -> Result<Time> {
        self.shared.store_clock.now(&self.shared.requests, &self.shared.statements).await
    }

    /// Now, but later than any stamp drawn before in this process.
    fn stamp(&self) -> Time {
        later(&self.shared.stamp, self.now(), Duration::MAX)
    }

    /// The same for a pending entry, by the store's clock: it lies in the minute in which all others look for it, whatever
    /// the clock of this machine says. What one wrong answer of the store's has drawn binds nobody: the next entries would
    /// lie in minutes in which nobody looks yet, until those have come.
    async fn entry_stamp(&self) -> Result<Time> {
        Ok(later(&self.shared.entry_stamp, self.store_time().await?, AHEAD_MAX))
    }

    async fn select<R>(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Vec<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        self.shared.reads.count(self.path);
        self.shared.requests.select(statement, values).await
    }

    async fn write(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<()> {
        self.shared.requests.write(statement, values).await
    }

    async fn concurrently<T>(&self, requests: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
        concurrently(self.shared.options.request_concurrency, requests).await
    }

    /// What is left of a row of this post, in whole seconds rounded up; `None` with less than one.
    fn row_ttl(&self, id: PostId) -> Option<i32> {
        ttl_until(id.time().after(self.shared.options.inbox_ttl), self.now())
    }

    /// What is left of the post itself and its chunks.
    fn post_ttl(&self, id: PostId) -> Option<i32> {
        ttl_until(id.time().after(self.shared.options.inbox_ttl + OUTLIVES_ROWS), self.now())
    }
}

/// `now`, but later than the last one drawn from `stamp`, unless that is ahead by more than `ahead_max`.
fn later(stamp: &AtomicI64, now: Time, ahead_max: Duration) -> Time {
    let next = |last: i64| {
        let binds = Time::from_micros(last).since(now) <= ahead_max;
        if binds { now.micros().max(last.saturating_add(1)) } else { now.micros() }
    };
    let last = stamp.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
    last.map_or(now, |last| Time::from_micros(next(last)))
}

/// The time to live of a cell that is to last until `end`: never 0, which would mean for ever, and rounded up, since a
/// row must not go before the readers say that it has.
fn ttl_until(end: Time, now: Time) -> Option<i32> {
    let left = end.since(now);
    if left < Duration::from_secs(1) {
        return None;
    }
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    i32::try_from(seconds.min(TTL_S_MAX)).ok()
}

/// Awaits all of them, `limit` at a time; their answers in their order, or the first error.
async fn concurrently<T>(limit: usize, requests: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    stream::iter(requests).buffered(limit.max(1)).try_collect().await
}

fn uuid_of(id: PostId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

fn id_of(uuid: Uuid) -> PostId {
    PostId::from_bytes(*uuid.as_bytes())
}

/// A count as CQL's signed integer. All counts of the domain fit; one that does not is a bug.
fn int(value: u32) -> Result<i32> {
    i32::try_from(value).map_err(|e| Error::internal("a number is too large for the store").with_source(e))
}

fn uint(value: i32, what: &'static str) -> Result<u32> {
    u32::try_from(value).map_err(|_| corrupt(what))
}

/// 0 and null both stand for no instant.
fn time_of(micros: Option<i64>) -> Option<Time> {
    micros.filter(|micros| *micros != 0).map(Time::from_micros)
}

/// What is not there is left unset: a null would be a tombstone.
fn set<T>(value: Option<T>) -> MaybeUnset<T> {
    value.map_or(MaybeUnset::Unset, MaybeUnset::Set)
}

fn corrupt(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, "store_corrupt", format!("{what} in the store cannot be read"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for ScyllaStore {
    async fn claim_key(&self, claim: &KeyClaim) -> Result<KeyHolder> {
        self.claim(claim).await
    }

    async fn key_holder(&self, producer: &ProducerId, key: &str) -> Result<Option<KeyHolder>> {
        self.holder(producer, key).await
    }

    async fn create_post(&self, post: &Post, chunks: &[Chunk]) -> Result<()> {
        self.create(post, chunks).await
    }

    async fn change_post(&self, expected: u32, post: &Post) -> Result<Changed> {
        self.change(expected, post).await
    }

    async fn announce(&self, post: &Post) -> Result<()> {
        self.announce_version(post).await
    }

    async fn post(&self, id: PostId) -> Result<Option<Post>> {
        self.read_post(id).await
    }

    async fn posts(&self, ids: &[PostId]) -> Result<Vec<Option<Post>>> {
        self.read_posts(ids).await
    }

    async fn chunk(&self, id: PostId, no: u32) -> Result<Option<Chunk>> {
        self.read_chunk(id, no).await
    }

    async fn chunk_states(&self, id: PostId, numbers: Range<u32>) -> Result<Vec<ChunkState>> {
        self.read_chunk_states(id, numbers).await
    }

    async fn write_rows(&self, post: &Post, viewers: &[ViewerId]) -> Result<RowsWritten> {
        self.upsert_rows(post, viewers).await
    }

    async fn chunk_done(&self, id: PostId, no: u32, done: Done, rows: bool) -> Result<()> {
        self.record_done(id, no, Some(done), rows.then_some(done)).await
    }

    async fn chunk_rows_done(&self, id: PostId, no: u32, version: u32) -> Result<()> {
        self.record_done(id, no, None, Some(Done { version, fence: 0 })).await
    }

    async fn park_chunk(&self, id: PostId, no: u32, reason: Option<&str>) -> Result<()> {
        self.record_parked(id, no, reason).await
    }

    async fn parked(&self, id: PostId) -> Result<Vec<ParkedChunk>> {
        self.read_parked(id).await
    }

    async fn window(&self, viewer: &ViewerId, limit: u32) -> Result<Window> {
        self.read_window(viewer, limit).await
    }

    async fn rows(&self, viewer: &ViewerId, ids: &[PostId]) -> Result<Vec<Option<Row>>> {
        self.read_rows(viewer, ids).await
    }

    async fn mark(&self, order: &MarkOrder<'_>) -> Result<Marked> {
        self.write_mark(order).await
    }

    async fn clear_intent(&self, viewer: &ViewerId, intent: u64) -> Result<()> {
        self.remove_intent(viewer, intent).await
    }

    async fn intents(&self, shard: u32, limit: u32) -> Result<Vec<Intent>> {
        self.read_intents(shard, limit).await
    }

    async fn finish_intent(&self, intent: &Intent) -> Result<Option<Vec<PostId>>> {
        self.finish_marks(intent).await
    }

    fn shards(&self) -> u32 {
        SHARDS
    }

    async fn pending(&self, shard: u32, from: Option<Pending>, limit: u32) -> Result<PendingPage> {
        self.pending_page(shard, from, limit).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<()> {
        self.settle_all(settled).await
    }

    async fn withdrawals(&self) -> Result<Vec<Withdrawal>> {
        self.read_withdrawals().await
    }

    async fn register_fence(&self, nonce: u64, replid: &str, seen: Option<u32>) -> Result<Fence> {
        self.add_fence(nonce, replid, seen).await
    }

    async fn newest_fence(&self) -> Result<Option<(Fence, String)>> {
        self.read_newest_fence().await
    }

    async fn fences(&self, limit: u32) -> Result<Vec<FenceEntry>> {
        self.read_fences(limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_to_live_is_zero() {
        let end = Time::from_millis(10_000);
        assert_eq!(ttl_until(end, Time::from_millis(9_001)), None);
        assert_eq!(ttl_until(end, Time::from_millis(9_000)), Some(1));
        assert_eq!(ttl_until(end, Time::from_millis(8_999)), Some(2), "rounded up");
        assert_eq!(ttl_until(end, Time::from_millis(11_000)), None);
        assert_eq!(ttl_until(Time::MAX, Time::ZERO), Some(630_720_000), "no more than CQL takes");
    }
}
