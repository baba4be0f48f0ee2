//! Gives disk space back where no compaction comes by.
//!
//! The storage engine rewrites a segment (a file of a table) only to merge it with another that overlaps it. What comes
//! in the order of its keys overlaps nothing: such segments are moved down the levels as they are, and neither the filter
//! in `sweep.rs` nor what drops the traces of removed entries ever sees them. So from time to time
//! - segments of which every key has outlived its life are dropped whole, unread, where keys begin with a time;
//! - in other tables the first entry of each segment is removed if its life is over: what removes it overlaps the
//!   segment, so the next compactions rewrite it.
//!
//! Both may be cut off anywhere: a segment is dropped by one new list of segments, and the rest is done again.

use std::time::Duration;

use fjall::{AbstractTree as _, Keyspace, Slice};
use tokio_util::sync::CancellationToken;

use super::EmbeddedStore;
use super::committer::{Durability, store_error};
use super::store::Shared;
use super::sweep::{Life, count_swept};
use super::tables::{Tables, lives};
use crate::domain::{PostId, Time};
use crate::error::Result;
use crate::faults;

/// From the start to the first sweep: a service that is restarted every hour must sweep as well, and a clock that is
/// wrong at boot gets the time to be set.
const FIRST_AFTER: Duration = Duration::from_secs(300);

/// Entries that are removed by one job of the committer: others wait meanwhile.
const REMOVED_AT_ONCE: usize = 64;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Segments that were dropped whole.
    pub segments: u64,
    /// Their size on disk.
    pub bytes: u64,
    /// Segments that the next compactions rewrite because their first entry was removed.
    pub loosened: u64,
}

/// A file of a table.
struct Segment {
    min: Slice,
    max: Slice,
    entries: u64,
    bytes: u64,
}

/// A table whose keys begin with a time.
struct Ordered<'a> {
    name: &'static str,
    table: &'a Keyspace,
    /// Whatever has a key before this one may go.
    end: Slice,
    /// A key among those that are written now, but never one of them.
    now: Slice,
}

/// What was dropped of one table.
struct Dropped {
    segments: u64,
    bytes: u64,
    /// A key to be removed from the table, see [`drop_segments`].
    touch: Option<(Keyspace, Slice)>,
}

impl EmbeddedStore {
    /// Sweeps every `every`, the first time some minutes after the start, until told to stop.
    pub async fn keep_sweeping(self, every: Duration, stop: CancellationToken) {
        let mut wait = every.min(FIRST_AFTER);
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = every;
            // What is cut off here is done again after the next start.
            let Some(swept) = stop.run_until_cancelled(self.sweep()).await else { return };
            match swept {
                Ok(swept) if swept == Swept::default() => {}
                Ok(Swept { segments, bytes, loosened }) => {
                    tracing::info!(segments, bytes, loosened, "swept what has outlived its life from the store");
                }
                Err(error) => tracing::error!(%error, "the store cannot be swept now"),
            }
        }
    }

    /// Gives back the space of what has outlived its life and what no compaction comes by, and of the traces of pending
    /// entries that are gone. Looks at the segments, not at what is in them, and reads one entry of some; takes no more
    /// of the committer's time than a few writes.
    ///
    /// # Errors
    ///
    /// Those of the disk. What is left is swept the next time.
    pub async fn sweep(&self) -> Result<Swept> {
        let newest_pending = self.commit(Durability::Buffered, |_, group| Ok(group.newest_pending())).await?;
        let dropped = self.scan(move |shared| drop_outlived(shared, newest_pending)).await?;
        let mut swept = Swept::default();
        let mut touched = Vec::new();
        for one in dropped {
            swept.segments += one.segments;
            swept.bytes += one.bytes;
            touched.extend(one.touch);
        }
        if swept.segments > 0 {
            self.let_files_go(touched).await?;
        }
        for life in lives(self.options()) {
            swept.loosened += self.loosen(life).await?;
        }
        Ok(swept)
    }

    /// The size of each table on disk, by its name; what is in memory and in journals only does not count.
    pub fn table_bytes(&self) -> [(&'static str, u64); 8] {
        self.tables().named().map(|(name, table)| (name, table.disk_space()))
    }

    /// The engine keeps the last lists of segments, and with them the files, until it writes out some table. The fences
    /// are the smallest one.
    async fn let_files_go(&self, touched: Vec<(Keyspace, Slice)>) -> Result<()> {
        self.commit(Durability::Buffered, move |tables, group| {
            for (table, key) in touched {
                group.remove(&table, key);
            }
            // Fences count from 1.
            group.remove(&tables.fences, 0_u32.to_be_bytes());
            Ok(())
        })
        .await?;
        self.scan(|shared| shared.tables.fences.rotate_memtable().map(|_| ()).map_err(store_error)).await
    }

    /// Removes the first entry of each segment of a table that is not in the order of time, if its life is over.
    async fn loosen(&self, life: Life) -> Result<u64> {
        let Some(table) = unordered(self.tables(), life.table).cloned() else { return Ok(0) };
        let oldest = life.oldest(&self.options().clock);
        let looked_at = table.clone();
        let keys = self.scan(move |_| first_outlived(&looked_at, life, oldest)).await?;
        let mut loosened = 0;
        for keys in keys.chunks(REMOVED_AT_ONCE) {
            let (table, keys) = (table.clone(), keys.to_vec());
            loosened += self
                .commit(Durability::Buffered, move |_, group| {
                    let mut removed = 0;
                    for key in keys {
                        // Once more, since it may have been written anew.
                        if let Some(value) = group.get(&table, &key)?
                            && life.is_over(oldest, &key, || Ok(value))?
                        {
                            group.remove(&table, key);
                            removed += 1;
                        }
                    }
                    Ok(removed)
                })
                .await?;
        }
        Ok(loosened)
    }
}

/// The table if its keys do not begin with a time.
fn unordered<'a>(tables: &'a Tables, name: &str) -> Option<&'a Keyspace> {
    match name {
        "inbox" => Some(&tables.inbox),
        "keys" => Some(&tables.keys),
        _ => None,
    }
}

/// Every table whose keys begin with a time, and how far it may be swept.
fn ordered<'a>(shared: &'a Shared, newest_pending: Time) -> Result<Vec<Ordered<'a>>> {
    let tables = &shared.tables;
    let now = shared.options.clock.now();
    let mut all = Vec::new();
    for (name, table) in [("posts", &tables.posts), ("chunks", &tables.chunks), ("progress", &tables.progress)] {
        let Some(life) = lives(&shared.options).into_iter().find(|life| life.table == name) else { continue };
        let id = |at: Time| Slice::from(PostId::new(at, [0; 10]).as_bytes());
        all.push(Ordered { name, table, end: id(life.oldest(&shared.options.clock)), now: id(now) });
    }
    // Entries that the relay has settled leave their removal behind, and nothing else before the first that is left. If
    // none is left, whatever is written from now on comes after the newest that was known before we looked.
    let after_newest = (newest_pending.micros() + 1).to_be_bytes();
    let first = tables.pending.first_key_value().map(|entry| entry.key()).transpose().map_err(store_error)?;
    let after_newest = Slice::from(&after_newest[..]);
    let end = first.map_or_else(|| after_newest.clone(), |first| first.min(after_newest.clone()));
    all.push(Ordered { name: "pending", table: &tables.pending, end, now: after_newest });
    Ok(all)
}

fn drop_outlived(shared: &Shared, newest_pending: Time) -> Result<Vec<Dropped>> {
    ordered(shared, newest_pending)?.into_iter().map(drop_segments).collect()
}

/// Drops the segments whose keys all come before the end.
///
/// An older version of an entry that stays must not come to light under the newer one that goes: so the end moves back
/// before every segment that reaches across it. Newer versions that are in memory still, or are written out meanwhile, do
/// no harm.
///
/// The engine takes the newest entry in a table's segments for a sign of how far its journals are needed. If that one
/// goes, a journal might never be let go: then a removal of nothing is written to the table, which is newer.
fn drop_segments(Ordered { name, table, mut end, now }: Ordered<'_>) -> Result<Dropped> {
    let segments = segments(table);
    while let Some(across) = segments.iter().filter(|s| s.min < end && s.max >= end).map(|s| &s.min).min() {
        end = across.clone();
    }
    let mut dropped = Dropped { segments: 0, bytes: 0, touch: None };
    let mut entries = 0;
    for segment in segments.iter().filter(|segment| segment.max < end) {
        dropped.segments += 1;
        dropped.bytes += segment.bytes;
        entries += segment.entries;
    }
    if dropped.segments == 0 {
        return Ok(dropped);
    }
    let newest = table.tree.get_highest_persisted_seqno();
    table.tree.drop_range(..end).map_err(|error| store_error(error.into()))?;
    faults::at("space.dropped");
    if table.tree.get_highest_persisted_seqno() < newest {
        dropped.touch = Some((table.clone(), now));
    }
    count_swept(name, entries);
    tracing::debug!(table = name, segments = dropped.segments, bytes = dropped.bytes, entries, "dropped segments");
    Ok(dropped)
}

/// The first keys of segments that have outlived their life and are still there.
fn first_outlived(table: &Keyspace, life: Life, oldest: Time) -> Result<Vec<Slice>> {
    let mut keys = Vec::new();
    for Segment { min, .. } in segments(table) {
        if let Some(value) = table.get(&min).map_err(store_error)?
            && life.is_over(oldest, &min, || Ok(value))?
        {
            keys.push(min);
        }
    }
    Ok(keys)
}

fn segments(table: &Keyspace) -> Vec<Segment> {
    let version = table.tree.current_version();
    let all = version.iter_tables().map(|file| {
        let about = &file.metadata;
        let (min, max) = (about.key_range.min().clone(), about.key_range.max().clone());
        Segment { min, max, entries: about.item_count, bytes: about.file_size }
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Folder, StoreOptions};
    use super::*;
    use crate::clock::Clock;
    use crate::domain::{Chunk, Post, PostState, ProducerId};
    use crate::ports::{KeyClaim, Settled, Store as _};

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const START: Time = Time::from_millis(1_767_225_600_000);

    struct Opened {
        store: EmbeddedStore,
        clock: Clock,
        _dir: tempfile::TempDir,
    }

    impl Opened {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let clock = Clock::manual(START);
            let options = StoreOptions {
                cache_bytes: 1 << 20,
                memtable_bytes: 64 << 20,
                journal_bytes_max: 64 << 20,
                commit_jobs_max: 64,
                commit_bytes_max: 1 << 20,
                commit_bulk_bytes_max: 64 << 10,
                free_bytes_min: 0,
                inbox_ttl: DAY * 30,
                idempotency_ttl: DAY,
                clock: clock.clone(),
            };
            let folder = Folder::open(dir.path()).expect("the folder is free");
            Self { store: EmbeddedStore::open(folder, options).expect("opened"), clock, _dir: dir }
        }

        /// A post of now, with a chunk and a pending entry.
        async fn publish(&self) -> Post {
            let post = Post {
                id: PostId::new(self.clock.now(), rand::random()),
                producer: ProducerId::local(),
                kind: "story.posted".into(),
                actor: None,
                data: "{}".into(),
                thread_key: None,
                version: 1,
                state: PostState::Live,
                ts: self.clock.now().micros(),
                expires_at: None,
                audience_size: 1,
                chunk_size: 1,
            };
            self.store.create_post(&post, &[Chunk { no: 0, viewers: [].into() }]).await.expect("created");
            post
        }

        async fn settle_all_but(&self, kept: &[&Post]) {
            let pending = self.store.pending(0, None, 100).await.expect("read").entries;
            let done = pending.into_iter().filter(|entry| kept.iter().all(|post| post.id != entry.post_id));
            self.store.settle(&done.map(Settled::Done).collect::<Vec<_>>()).await.expect("settled");
        }

        async fn pending(&self) -> Vec<PostId> {
            let pending = self.store.pending(0, None, 100).await.expect("read").entries;
            pending.into_iter().map(|entry| entry.post_id).collect()
        }

        /// Writes what is in memory out, a segment a table.
        fn write_out(&self) {
            for (_, table) in self.store.tables().named() {
                table.rotate_memtable_and_wait().expect("written out");
            }
        }

        async fn claim(&self, key: &str, post_id: PostId) {
            let (producer, fingerprint) = (ProducerId::local(), [7; 32]);
            let claim = KeyClaim { producer, key: key.to_owned(), fingerprint, post_id, chunk_size: 1 };
            self.store.claim_key(&claim).await.expect("claimed");
        }
    }

    #[tokio::test]
    async fn what_is_over_goes_and_what_lives_stays() {
        let opened = Opened::new();
        let old = opened.publish().await;
        opened.write_out();
        opened.clock.set(START.after(DAY * 30));
        let young = opened.publish().await;
        opened.settle_all_but(&[]).await;
        opened.write_out();
        opened.clock.set(START.after(DAY * 37));
        // To the millisecond as old as it may be; the traces of pending entries go, whatever their age.
        let Swept { segments, .. } = opened.store.sweep().await.expect("swept");
        assert!(opened.store.post(old.id).await.expect("read").is_some());
        assert_eq!(segments, 2, "the entries and their removals");
        opened.clock.set(START.after(DAY * 37 + Duration::from_millis(1)));
        let Swept { segments, .. } = opened.store.sweep().await.expect("swept");
        assert_eq!(segments, 2, "of posts and of chunks");
        assert_eq!(opened.store.post(old.id).await.expect("read"), None);
        assert_eq!(opened.store.chunk(old.id, 0).await.expect("read"), None);
        assert_eq!(opened.store.post(young.id).await.expect("read"), Some(young.clone()));
        assert!(opened.store.chunk(young.id, 0).await.expect("read").is_some());
        let folder = opened.store.tables().posts.path().join("tables");
        assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), 1, "the file is gone too");
        assert_eq!(opened.store.sweep().await.expect("swept"), Swept::default());
    }

    #[tokio::test]
    async fn a_clock_that_jumps_back_or_to_1970_sweeps_nothing() {
        let opened = Opened::new();
        let post = opened.publish().await;
        opened.write_out();
        for now in [START.before(DAY * 1_000), Time::ZERO, Time::ZERO.before(DAY)] {
            opened.clock.set(now);
            assert_eq!(opened.store.sweep().await.expect("swept"), Swept::default());
        }
        assert_eq!(opened.store.post(post.id).await.expect("read"), Some(post.clone()));
        assert_eq!(opened.pending().await, [post.id]);
    }

    #[tokio::test]
    async fn no_older_version_comes_to_light() {
        let opened = Opened::new();
        let old = opened.publish().await;
        opened.clock.set(START.after(DAY * 30));
        let young = opened.publish().await;
        opened.write_out();
        // Their segment reaches from one to the other; those of the retract and of the removal do not.
        let retracted = Post { version: 2, state: PostState::Retracted, ..old.clone() };
        opened.store.change_post(1, &retracted).await.expect("changed");
        opened.settle_all_but(&[&young]).await;
        opened.write_out();
        opened.clock.set(START.after(DAY * 40));
        assert_eq!(opened.store.sweep().await.expect("swept"), Swept::default());
        assert_eq!(opened.store.post(old.id).await.expect("read"), Some(retracted));
        assert_eq!(opened.pending().await, [young.id]);
        opened.clock.set(START.after(DAY * 70));
        opened.settle_all_but(&[]).await;
        opened.write_out();
        assert!(opened.store.sweep().await.expect("swept").segments > 0);
        assert_eq!(opened.store.post(old.id).await.expect("read"), None);
        assert_eq!(opened.pending().await, []);
    }

    #[tokio::test]
    async fn an_entry_that_is_not_settled_keeps_all_since() {
        let opened = Opened::new();
        let stuck = opened.publish().await;
        opened.write_out();
        opened.publish().await;
        opened.settle_all_but(&[&stuck]).await;
        opened.write_out();
        opened.clock.set(START.after(DAY * 20));
        opened.store.sweep().await.expect("swept");
        assert_eq!(opened.pending().await, [stuck.id]);
        assert!(opened.store.tables().pending.disk_space() > 0);
        opened.settle_all_but(&[]).await;
        opened.write_out();
        opened.store.sweep().await.expect("swept");
        assert_eq!(opened.store.tables().pending.disk_space(), 0);
    }

    #[tokio::test]
    async fn a_table_that_lost_its_newest_entry_lets_journals_go() {
        let opened = Opened::new();
        opened.publish().await;
        opened.write_out();
        let posts = opened.store.tables().posts.clone();
        let newest = posts.tree.get_highest_persisted_seqno().expect("written out");
        opened.clock.set(START.after(DAY * 40));
        opened.store.sweep().await.expect("swept");
        assert_eq!(posts.tree.get_highest_persisted_seqno(), None);
        // What is written out next, for the sake of a journal, is newer than what that journal has.
        posts.rotate_memtable_and_wait().expect("written out");
        assert!(posts.tree.get_highest_persisted_seqno() > Some(newest));
        assert_eq!(posts.len().expect("counted"), 0);
    }

    #[tokio::test]
    async fn segments_in_another_order_are_loosened_once() {
        let opened = Opened::new();
        let old = opened.publish().await;
        for key in ["a", "b"] {
            opened.claim(key, old.id).await;
        }
        opened.write_out();
        opened.clock.set(START.after(DAY * 4));
        let young = opened.publish().await;
        opened.claim("b", young.id).await;
        opened.claim("c", young.id).await;
        opened.write_out();
        assert_eq!(opened.store.sweep().await.expect("swept").loosened, 1);
        assert_eq!(opened.store.sweep().await.expect("swept").loosened, 0);
        let keys = opened.store.tables().keys.iter().map(|entry| entry.key().expect("read"));
        assert_eq!(keys.map(|key| key[key.len() - 1]).collect::<Vec<_>>(), *b"bc");
        let holder = opened.store.key_holder(&ProducerId::local(), "b").await.expect("read");
        assert_eq!(holder.map(|holder| holder.post_id), Some(young.id));
    }
}
