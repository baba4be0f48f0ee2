//! The store: the only holder of the truth.

use std::future::Future;
use std::ops::Range;

use crate::domain::{
    Chunk, ChunkState, Done, Fence, Mark, ParkedChunk, Post, PostId, ProducerId, Row, Time, ViewerId, Withdrawal,
};
use crate::error::Result;

/// On whose behalf the store is read: the label of `fanfold_store_reads_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Accepting posts, edits and retracts.
    Publish,
    /// `GET /v1/posts/{id}`.
    Status,
    /// Revision polls. Stays at zero: that is the point of the service.
    Poll,
    /// Inbox pages.
    Page,
    /// Deltas.
    Changes,
    /// Marks.
    Mark,
    /// Fan-out workers.
    Fanout,
    /// The relay.
    Relay,
    /// Start-up, the fence registry.
    System,
    /// Producers' keys that no cache has.
    Access,
}

impl Path {
    /// Every path.
    pub const ALL: [Path; 10] = [
        Path::Publish,
        Path::Status,
        Path::Poll,
        Path::Page,
        Path::Changes,
        Path::Mark,
        Path::Fanout,
        Path::Relay,
        Path::System,
        Path::Access,
    ];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Status => "status",
            Self::Poll => "poll",
            Self::Page => "page",
            Self::Changes => "changes",
            Self::Mark => "mark",
            Self::Fanout => "fanout",
            Self::Relay => "relay",
            Self::System => "system",
            Self::Access => "access",
        }
    }
}

/// A producer's claim on an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyClaim {
    /// Whose key.
    pub producer: ProducerId,
    /// The key.
    pub key: String,
    /// SHA-256 of the request that claims it.
    pub fingerprint: [u8; 32],
    /// The post it shall stand for, if nobody was first.
    pub post_id: PostId,
    /// How that post's audience is cut.
    pub chunk_size: u32,
}

/// What a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    /// SHA-256 of the request that claimed it first.
    pub fingerprint: [u8; 32],
    /// The post it stands for.
    pub post_id: PostId,
    /// How that post's audience is cut.
    pub chunk_size: u32,
}

/// What became of a change to a post.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is committed.
    Applied,
    /// The post is at another version, which is this.
    Stale(Box<Post>),
    /// There is no such post.
    Missing,
}

/// What became of the rows of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowsWritten {
    /// They are durable and readable.
    Written,
    /// The post has moved on, to this, whose rows are to be written. Rows of the version asked for may be there until then.
    Stale(Box<Post>),
}

/// A viewer's newest rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Newest post first, without gaps.
    pub rows: Vec<Row>,
    /// There are older rows than these.
    pub truncated: bool,
}

/// Marks to set or clear.
#[derive(Clone, Debug)]
pub struct MarkOrder<'a> {
    /// Whose inbox.
    pub viewer: &'a ViewerId,
    /// On which items.
    pub post_ids: &'a [PostId],
    /// Which mark.
    pub mark: Mark,
    /// Set or clear.
    pub value: bool,
    /// The time of the mark.
    pub now: Time,
}

/// What became of an order of marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The rows as they are now; rows that do not exist are left out.
    pub rows: Vec<Row>,
    /// The posts whose marks the order changed, in the same order as asked.
    pub changed: Vec<PostId>,
    /// What to clear after the bump, where a bump could otherwise be lost; `None` in a store that dies with its
    /// revisions.
    pub intent: Option<u64>,
}

/// A post the relay must look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pending {
    /// When it was written; orders the scan.
    pub since: Time,
    /// Which post.
    pub post_id: PostId,
    /// From which version on.
    pub version: u32,
}

/// A page of the relay's scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingPage {
    /// Oldest first.
    pub entries: Vec<Pending>,
    /// Where to go on; `None` at the end.
    pub next: Option<Pending>,
}

/// Marks that may not all be written, and whose bump may not have come yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Its name, as in [`Marked::intent`].
    pub id: u64,
    /// Whose inbox.
    pub viewer: ViewerId,
}

/// An entry of the fence registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceEntry {
    /// Number and nonce.
    pub fence: Fence,
    /// Whose life it is.
    pub replid: String,
    /// When it was registered.
    pub at: Time,
}

/// How the relay settles a pending entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Every chunk is done: the entry goes.
    Done(Pending),
    /// This version was never committed and no retry can come any more: the entry goes, and the chunks too if it was
    /// the first version. A later one belongs to an editor that lost, and the chunks to a post that lives.
    Garbage(Pending),
}

/// The truth: posts, chunks, inbox rows, marks, keys, the fence registry.
///
/// Every write is durable when it returns `Ok`, unless its doc says otherwise. After an `Err` the outcome is unknown;
/// every write may be repeated.
pub trait Store {
    /// Claims an idempotency key, or tells who holds it. The first claim wins for as long as keys live.
    fn claim_key(&self, claim: &KeyClaim) -> impl Future<Output = Result<KeyHolder>> + Send;

    /// Who holds a key, without claiming it.
    fn key_holder(&self, producer: &ProducerId, key: &str) -> impl Future<Output = Result<Option<KeyHolder>>> + Send;

    /// Commits a new post: its pending entry and chunks first, the post itself last. Repeating it is harmless, also
    /// after the post was edited or retracted: the later version stays.
    fn create_post(&self, post: &Post, chunks: &[Chunk]) -> impl Future<Output = Result<()>> + Send;

    /// Commits the next version of a post, if it is still at `expected`; its pending entry is written with it.
    fn change_post(&self, expected: u32, post: &Post) -> impl Future<Output = Result<Changed>> + Send;

    /// Sees to it that a committed version hides what it hides and is driven, though whoever committed it may have died
    /// before it said so.
    fn announce(&self, post: &Post) -> impl Future<Output = Result<()>> + Send;

    /// The present state of a post.
    fn post(&self, id: PostId) -> impl Future<Output = Result<Option<Post>>> + Send;

    /// The present states of several posts, in the same order.
    fn posts(&self, ids: &[PostId]) -> impl Future<Output = Result<Vec<Option<Post>>>> + Send;

    /// One chunk with its viewers.
    fn chunk(&self, id: PostId, no: u32) -> impl Future<Output = Result<Option<Chunk>>> + Send;

    /// How far the chunks with these numbers have come.
    fn chunk_states(&self, id: PostId, numbers: Range<u32>) -> impl Future<Output = Result<Vec<ChunkState>>> + Send;

    /// Writes the rows of `viewers` for `post`, and says if the post has moved on. A row never goes back to an older
    /// version, and marks are left as they are.
    fn write_rows(&self, post: &Post, viewers: &[ViewerId]) -> impl Future<Output = Result<RowsWritten>> + Send;

    /// Records that a chunk's bumps are done, and its rows too unless they were skipped. May be lost in a crash (the
    /// chunk is then done again); never goes back.
    fn chunk_done(&self, id: PostId, no: u32, done: Done, rows: bool) -> impl Future<Output = Result<()>> + Send;

    /// Records that a chunk's rows are there though its bumps are not. May be lost in a crash.
    fn chunk_rows_done(&self, id: PostId, no: u32, version: u32) -> impl Future<Output = Result<()>> + Send;

    /// Sets a chunk aside for a reason, or (`None`) takes it up again.
    fn park_chunk(&self, id: PostId, no: u32, reason: Option<&str>) -> impl Future<Output = Result<()>> + Send;

    /// The chunks of a post that are set aside.
    fn parked(&self, id: PostId) -> impl Future<Output = Result<Vec<ParkedChunk>>> + Send;

    /// The newest `limit` rows of an inbox, as of one instant.
    fn window(&self, viewer: &ViewerId, limit: u32) -> impl Future<Output = Result<Window>> + Send;

    /// Some rows of an inbox, in the order asked; `None` where there is none.
    fn rows(&self, viewer: &ViewerId, ids: &[PostId]) -> impl Future<Output = Result<Vec<Option<Row>>>> + Send;

    /// Sets or clears marks, with an intent where a lost bump is possible: it is there before any of them. After an `Err`
    /// they may all be set yet, by [`Store::finish_intent`].
    fn mark(&self, order: &MarkOrder<'_>) -> impl Future<Output = Result<Marked>> + Send;

    /// Clears an intent whose bump has come.
    fn clear_intent(&self, viewer: &ViewerId, intent: u64) -> impl Future<Output = Result<()>> + Send;

    /// Up to `limit` intents of a shard that were not cleared yet. One that cannot be read keeps none of the others back.
    fn intents(&self, shard: u32, limit: u32) -> impl Future<Output = Result<Vec<Intent>>> + Send;

    /// Writes all marks of an intent as they were ordered, however far whoever ordered them came; later ones stay. The
    /// posts to bump for; `None` if the intent is gone.
    fn finish_intent(&self, intent: &Intent) -> impl Future<Output = Result<Option<Vec<PostId>>>> + Send;

    /// Into how many shards the relay's work is cut.
    fn shards(&self) -> u32;

    /// Up to `limit` pending entries of a shard from `from` on (inclusive), oldest first. `None` begins a round: where
    /// that is, the store knows, so that no round walks over what was settled long ago.
    fn pending(
        &self,
        shard: u32,
        from: Option<Pending>,
        limit: u32,
    ) -> impl Future<Output = Result<PendingPage>> + Send;

    /// Settles pending entries. May be lost in a crash.
    fn settle(&self, settled: &[Settled]) -> impl Future<Output = Result<()>> + Send;

    /// Every withdrawal whose fan-out may not be complete.
    fn withdrawals(&self) -> impl Future<Output = Result<Vec<Withdrawal>>> + Send;

    /// Adds an entry to the fence registry: the next number, this nonce. `replid` tells whose life it is. With `seen`, the
    /// newest number that the caller has seen (0 for none), a later one of the same life that another process has
    /// registered meanwhile is the answer instead: a life has one entry, whoever notices it first.
    fn register_fence(&self, nonce: u64, replid: &str, seen: Option<u32>)
    -> impl Future<Output = Result<Fence>> + Send;

    /// The newest entry of the fence registry, with the `replid` it was registered for.
    fn newest_fence(&self) -> impl Future<Output = Result<Option<(Fence, String)>>> + Send;

    /// The newest `limit` entries of the fence registry, newest first.
    fn fences(&self, limit: u32) -> impl Future<Output = Result<Vec<FenceEntry>>> + Send;
}
