//! The store on disk: an LSM tree with one committer.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;

use fjall::{Database, Keyspace, Readable as _, Slice};

use super::Folder;
use super::codec::*;
use super::committer::{Committer, Durability, Group, Size, store_error};
use super::control::Agreed;
use super::keys::{self, InboxPart};
use super::memtables::Memtables;
use super::tables::{StoreOptions, Tables, newest_pending, open_database, open_tables};
use crate::adapters::reads::Reads;
use crate::domain::*;
use crate::error::{Error, Result};
use crate::ports::{
    Changed, FenceEntry, Intent, KeyClaim, KeyHolder, MarkOrder, Marked, Path, Pending, PendingPage, RowsWritten,
    Settled, Store, Window,
};

/// A handle to the store, for reads on behalf of one [`Path`].
#[derive(Clone)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    path: Path,
}

pub(super) struct Shared {
    database: Database,
    _memtables: Memtables,
    pub(super) tables: Tables,
    /// `None` only while the last handle is being dropped.
    committer: Option<Committer>,
    thread: Option<JoinHandle<()>>,
    reads: Arc<Reads>,
    pub(super) options: StoreOptions,
    /// The time of the oldest pending entry that the relay's last round met, in microseconds.
    pending_head: AtomicI64,
    agreed: Agreed,
    /// Let go last, when nothing writes any more.
    _folder: Folder,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.committer = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the committer thread panicked");
        }
    }
}

impl EmbeddedStore {
    /// Opens the store in `folder`, recovering what a killed process left.
    pub fn open(folder: Folder, options: StoreOptions) -> Result<Self> {
        let database = open_database(&folder, &options)?;
        let tables = open_tables(&database, &options)?;
        let (limits, memtables) = (options.commit_limits(&folder), Memtables::look_after(&tables)?);
        let (committer, thread) = Committer::start(database.clone(), limits, newest_pending(&tables)?)?;
        let shared = Shared {
            database,
            _memtables: memtables,
            tables,
            committer: Some(committer),
            thread: Some(thread),
            reads: Arc::new(Reads::default()),
            options,
            pending_head: AtomicI64::new(0),
            agreed: Agreed::default(),
            _folder: folder,
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

    /// An error if the store takes no writes any more.
    pub fn check(&self) -> Result<()> {
        if self.committer()?.has_failed() {
            return Err(Error::unavailable("store_failed", "a commit failed; the store needs a restart"));
        }
        Ok(())
    }

    pub(super) fn agreed(&self) -> &Agreed {
        &self.shared.agreed
    }

    fn committer(&self) -> Result<&Committer> {
        let gone = || Error::unavailable("store_failed", "the store is closed");
        self.shared.committer.as_ref().ok_or_else(gone)
    }

    pub(super) fn options(&self) -> &StoreOptions {
        &self.shared.options
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.shared.tables
    }

    pub(super) async fn commit<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl FnOnce(&Tables, &mut Group) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.commit_sized(durability, Size::Small, job).await
    }

    async fn commit_sized<T: Send + 'static>(
        &self,
        durability: Durability,
        size: Size,
        job: impl FnOnce(&Tables, &mut Group) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let tables = self.shared.tables.clone();
        self.committer()?.submit(durability, size, move |group| job(&tables, group)).await
    }

    pub(super) fn get(&self, table: &Keyspace, key: &[u8]) -> Result<Option<Slice>> {
        self.shared.reads.count(self.path);
        table.get(key).map_err(store_error)
    }

    /// Runs a scan off the async workers: it may touch many blocks on disk.
    pub(super) async fn scan<T: Send + 'static>(
        &self,
        scan: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.reads.count(self.path);
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || scan(&shared))
            .await
            .map_err(|e| Error::internal("a scan of the store was cut off").with_source(e))?
    }

    async fn update_chunk_state(
        &self,
        id: PostId,
        no: u32,
        update: impl FnOnce(&mut ChunkState) + Send + 'static,
    ) -> Result<()> {
        self.commit(Durability::Buffered, move |tables, group| {
            let key = keys::chunk(id, no);
            let known = group.get(&tables.progress, &key)?;
            let before = known.as_deref().map(decode_chunk_state).transpose()?.unwrap_or_default();
            let mut state = before;
            update(&mut state);
            if state != before {
                group.put(&tables.progress, key, encode_chunk_state(state));
            }
            Ok(())
        })
        .await
    }
}

/// Writes the entry that makes the relay look at `post`.
fn put_pending(tables: &Tables, group: &mut Group, post: &Post, now: Time) {
    let entry = Pending { since: group.pending_time(now), post_id: post.id, version: post.version };
    group.put_unread(&tables.pending, keys::pending(&entry), Slice::empty());
}

impl Store for EmbeddedStore {
    async fn claim_key(&self, claim: &KeyClaim) -> Result<KeyHolder> {
        let alive_after = self.shared.options.clock.now().before(self.shared.options.idempotency_ttl);
        let key = keys::idempotency(&claim.producer, &claim.key);
        let mine = KeyHolder { fingerprint: claim.fingerprint, post_id: claim.post_id, chunk_size: claim.chunk_size };
        self.commit(Durability::Synced, move |tables, group| {
            if let Some(bytes) = group.get(&tables.keys, &key)? {
                let holder = decode_holder(&bytes)?;
                if holder.post_id.time() > alive_after {
                    return Ok(holder);
                }
            }
            group.put(&tables.keys, key, encode_holder(&mine));
            Ok(mine)
        })
        .await
    }

    async fn key_holder(&self, producer: &ProducerId, key: &str) -> Result<Option<KeyHolder>> {
        let alive_after = self.shared.options.clock.now().before(self.shared.options.idempotency_ttl);
        let bytes = self.get(&self.shared.tables.keys, &keys::idempotency(producer, key))?;
        let holder = bytes.as_deref().map(decode_holder).transpose()?;
        Ok(holder.filter(|holder| holder.post_id.time() > alive_after))
    }

    async fn create_post(&self, post: &Post, chunks: &[Chunk]) -> Result<()> {
        let (post, bytes, now) = (post.clone(), encode_post(post), self.shared.options.clock.now());
        let chunks: Vec<_> = chunks.iter().map(|c| (keys::chunk(post.id, c.no), encode_viewers(&c.viewers))).collect();
        let size = Size::of(bytes.len() + chunks.iter().map(|(_, viewers)| viewers.len()).sum::<usize>());
        self.commit_sized(Durability::Synced, size, move |tables, group| {
            if group.get(&tables.posts, post.id.as_bytes())?.is_some() {
                return Ok(());
            }
            put_pending(tables, group, &post, now);
            for (key, viewers) in chunks {
                group.put_unread(&tables.chunks, key, viewers);
            }
            group.put(&tables.posts, *post.id.as_bytes(), bytes);
            Ok(())
        })
        .await
    }

    async fn change_post(&self, expected: u32, post: &Post) -> Result<Changed> {
        let (post, bytes, now) = (post.clone(), encode_post(post), self.shared.options.clock.now());
        self.commit(Durability::Synced, move |tables, group| {
            let Some(known) = group.get(&tables.posts, post.id.as_bytes())? else {
                return Ok(Changed::Missing);
            };
            if post_version(&known)? != expected {
                return Ok(Changed::Stale(Box::new(decode_post(post.id, &known)?)));
            }
            put_pending(tables, group, &post, now);
            group.put(&tables.posts, *post.id.as_bytes(), bytes);
            Ok(Changed::Applied)
        })
        .await
    }

    async fn announce(&self, _: &Post) -> Result<()> {
        // The pending entry and the version were one commit.
        Ok(())
    }

    async fn post(&self, id: PostId) -> Result<Option<Post>> {
        let bytes = self.get(&self.shared.tables.posts, id.as_bytes())?;
        bytes.map(|bytes| decode_post(id, &bytes)).transpose()
    }

    async fn posts(&self, ids: &[PostId]) -> Result<Vec<Option<Post>>> {
        let read = |id: &PostId| {
            let Some(bytes) = self.get(&self.shared.tables.posts, id.as_bytes())? else { return Ok(None) };
            // One post that cannot be read must not take a whole page with it.
            let unreadable = |error: &Error| tracing::error!(%error, post = %id, "a post cannot be read");
            Ok(decode_post(*id, &bytes).inspect_err(unreadable).ok())
        };
        ids.iter().map(read).collect()
    }

    async fn chunk(&self, id: PostId, no: u32) -> Result<Option<Chunk>> {
        let bytes = self.get(&self.shared.tables.chunks, &keys::chunk(id, no))?;
        bytes.map(|bytes| decode_chunk(no, &bytes)).transpose()
    }

    async fn chunk_states(&self, id: PostId, numbers: Range<u32>) -> Result<Vec<ChunkState>> {
        let read = |no| {
            let bytes = self.get(&self.shared.tables.progress, &keys::chunk(id, no))?;
            Ok(bytes.as_deref().map(decode_chunk_state).transpose()?.unwrap_or_default())
        };
        numbers.map(read).collect()
    }

    async fn write_rows(&self, post: &Post, viewers: &[ViewerId]) -> Result<RowsWritten> {
        let value = Slice::from(encode_row(post.version, post.state == PostState::Retracted, post.expires_at));
        let keys: Vec<Slice> = viewers.iter().map(|v| keys::inbox(v, post.id, InboxPart::Row).into()).collect();
        let (id, version) = (post.id, post.version);
        let bytes = keys.iter().map(|key| key.len() + value.len()).sum();
        // Posts change on the committer's thread only, so a version that is current here is current until the commit:
        // one read guards all rows of the chunk against going back.
        self.commit_sized(Durability::Synced, Size::of(bytes), move |tables, group| {
            let Some(known) = group.get(&tables.posts, id.as_bytes())? else {
                return Err(Error::internal(format!("post {id} has vanished under its fan-out")));
            };
            if post_version(&known)? != version {
                return Ok(RowsWritten::Stale(Box::new(decode_post(id, &known)?)));
            }
            for key in keys {
                group.put_unread(&tables.inbox, key, value.clone());
            }
            Ok(RowsWritten::Written)
        })
        .await
    }

    async fn chunk_done(&self, id: PostId, no: u32, done: Done, rows: bool) -> Result<()> {
        let rows_version = rows.then_some(done.version);
        self.update_chunk_state(id, no, move |state| {
            state.done = state.done.max(Some(done));
            state.rows_version = state.rows_version.max(rows_version);
        })
        .await
    }

    async fn chunk_rows_done(&self, id: PostId, no: u32, version: u32) -> Result<()> {
        self.update_chunk_state(id, no, move |state| state.rows_version = state.rows_version.max(Some(version))).await
    }

    async fn park_chunk(&self, id: PostId, no: u32, reason: Option<&str>) -> Result<()> {
        let parked = reason.is_some();
        self.update_chunk_state(id, no, move |state| state.parked = parked).await
    }

    /// The reasons are in the log only.
    async fn parked(&self, id: PostId) -> Result<Vec<ParkedChunk>> {
        let Some(post) = self.post(id).await? else { return Ok(Vec::new()) };
        let states = (0..).zip(self.chunk_states(id, 0..post.chunk_count()).await?);
        let parked = states.filter(|(_, state)| state.parked);
        Ok(parked.map(|(no, _)| ParkedChunk { post_id: id, no, reason: String::new() }).collect())
    }

    async fn window(&self, viewer: &ViewerId, limit: u32) -> Result<Window> {
        let prefix = keys::inbox_prefix(viewer);
        self.scan(move |shared| {
            let mut window = Window::default();
            for entry in shared.database.snapshot().prefix(&shared.tables.inbox, prefix) {
                let (key, value) = entry.into_inner().map_err(store_error)?;
                match keys::split_inbox(&key) {
                    Some((_, InboxPart::Row)) if window.rows.len() == limit as usize => {
                        window.truncated = true;
                        break;
                    }
                    Some((id, InboxPart::Row)) => window.rows.push(decode_row(id, &value)?),
                    Some((id, InboxPart::Marks)) => {
                        if let Some(row) = window.rows.last_mut().filter(|row| row.post_id == id) {
                            row.marks = decode_marks(&value)?;
                        }
                    }
                    None => return Err(Error::internal("an inbox key of unknown form")),
                }
            }
            Ok(window)
        })
        .await
    }

    async fn rows(&self, viewer: &ViewerId, ids: &[PostId]) -> Result<Vec<Option<Row>>> {
        let read = |id: &PostId| {
            let Some(row) = self.get(&self.shared.tables.inbox, &keys::inbox(viewer, *id, InboxPart::Row))? else {
                return Ok(None);
            };
            let mut row = decode_row(*id, &row)?;
            if let Some(marks) = self.get(&self.shared.tables.inbox, &keys::inbox(viewer, *id, InboxPart::Marks))? {
                row.marks = decode_marks(&marks)?;
            }
            Ok(Some(row))
        };
        ids.iter().map(read).collect()
    }

    async fn mark(&self, order: &MarkOrder<'_>) -> Result<Marked> {
        let (mark, value, now) = (order.mark, order.value, order.now);
        let key = |id: PostId, part| keys::inbox(order.viewer, id, part);
        let keys: Vec<_> =
            order.post_ids.iter().map(|id| (*id, key(*id, InboxPart::Row), key(*id, InboxPart::Marks))).collect();
        self.commit(Durability::Synced, move |tables, group| {
            let mut marked = Marked { rows: Vec::with_capacity(keys.len()), changed: Vec::new(), intent: None };
            let mut writes = Vec::new();
            for (id, row_key, marks_key) in keys {
                let Some(row) = group.get(&tables.inbox, &row_key)? else { continue };
                let mut row = decode_row(id, &row)?;
                if let Some(marks) = group.get(&tables.inbox, &marks_key)? {
                    row.marks = decode_marks(&marks)?;
                }
                let after = row.marks.with(mark, value, now);
                if after != row.marks {
                    row.marks = after;
                    writes.push((marks_key, encode_marks(&after)));
                    marked.changed.push(id);
                }
                marked.rows.push(row);
            }
            writes.into_iter().for_each(|(key, value)| group.put(&tables.inbox, key, value));
            Ok(marked)
        })
        .await
    }

    async fn clear_intent(&self, _: &ViewerId, _: u64) -> Result<()> {
        // Revisions die with this process, and with them every token: no bump can be lost alone.
        Ok(())
    }

    async fn intents(&self, _: u32, _: u32) -> Result<Vec<Intent>> {
        Ok(Vec::new())
    }

    async fn finish_intent(&self, _: &Intent) -> Result<Option<Vec<PostId>>> {
        Ok(None)
    }

    fn shards(&self) -> u32 {
        1
    }

    async fn pending(&self, _: u32, from: Option<Pending>, limit: u32) -> Result<PendingPage> {
        self.scan(move |shared| {
            // Entries are given rising times and only the relay removes them, so nothing is left before the oldest that
            // the last round met. From the very start the scan would step over every one that was ever removed.
            let head = || shared.pending_head.load(Ordering::Relaxed).to_be_bytes().to_vec();
            let start = from.map_or_else(head, |entry| keys::pending(&entry).to_vec());
            let mut page = PendingPage::default();
            for entry in shared.database.snapshot().range(&shared.tables.pending, start..) {
                let key = entry.key().map_err(store_error)?;
                let entry =
                    keys::split_pending(&key).ok_or_else(|| Error::internal("a pending key of unknown form"))?;
                if page.entries.len() == limit as usize {
                    page.next = Some(entry);
                    break;
                }
                page.entries.push(entry);
            }
            if let (None, Some(oldest)) = (from, page.entries.first()) {
                shared.pending_head.store(oldest.since.micros(), Ordering::Relaxed);
            }
            Ok(page)
        })
        .await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<()> {
        let settled = settled.to_vec();
        self.commit(Durability::Buffered, move |tables, group| {
            let mut chunks = Vec::new();
            for entry in &settled {
                if let Settled::Garbage(Pending { post_id, version: 1, .. }) = entry {
                    for chunk in tables.chunks.prefix(post_id.as_bytes()) {
                        chunks.push(chunk.key().map_err(store_error)?);
                    }
                }
            }
            for Settled::Done(entry) | Settled::Garbage(entry) in settled {
                group.remove(&tables.pending, keys::pending(&entry));
            }
            for chunk in chunks {
                group.remove(&tables.chunks, chunk);
            }
            Ok(())
        })
        .await
    }

    async fn withdrawals(&self) -> Result<Vec<Withdrawal>> {
        self.scan(|shared| {
            let mut withdrawals = Vec::new();
            for entry in shared.database.snapshot().iter(&shared.tables.pending) {
                let key = entry.key().map_err(store_error)?;
                let id = keys::split_pending(&key).map(|entry| entry.post_id);
                let id = id.ok_or_else(|| Error::internal("a pending key of unknown form"))?;
                let Some(bytes) = shared.tables.posts.get(id.as_bytes()).map_err(store_error)? else { continue };
                match decode_post(id, &bytes) {
                    Ok(post) => withdrawals.extend(post.withdrawal()),
                    // It cannot be served either; one bad post must not keep all others from being served.
                    Err(error) => tracing::error!(%error, post = %id, "a pending post cannot be read"),
                }
            }
            Ok(withdrawals)
        })
        .await
    }

    async fn register_fence(&self, nonce: u64, replid: &str, _no_other_process: Option<u32>) -> Result<Fence> {
        let replid = replid.to_owned();
        self.commit(Durability::Vital, move |tables, group| {
            let newest = tables.fences.last_key_value().map(|entry| entry.key()).transpose().map_err(store_error)?;
            let newest = newest.and_then(|key| key.first_chunk().copied()).map_or(0, u32::from_be_bytes);
            let seq = newest.checked_add(1).ok_or_else(|| Error::internal("the fence registry is used up"))?;
            let value = [&nonce.to_be_bytes(), replid.as_bytes()].concat();
            group.put_unread(&tables.fences, seq.to_be_bytes(), value);
            Ok(Fence { seq, nonce })
        })
        .await
    }

    async fn newest_fence(&self) -> Result<Option<(Fence, String)>> {
        Ok(self.fences(1).await?.into_iter().next().map(|entry| (entry.fence, entry.replid)))
    }

    async fn fences(&self, limit: u32) -> Result<Vec<FenceEntry>> {
        self.shared.reads.count(self.path);
        let newest_first = self.shared.tables.fences.iter().rev().take(limit as usize);
        newest_first.map(|entry| decode_fence(entry.into_inner().map_err(store_error)?)).collect()
    }
}
