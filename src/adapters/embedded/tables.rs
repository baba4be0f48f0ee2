//! The tables of the embedded store, and how they are opened.

use std::sync::Arc;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::Folder;
use super::committer::{CommitLimits, store_error};
use super::keys;
use super::sweep::{IdAt, Life, Sweep};
use crate::clock::Clock;
use crate::domain::Time;
use crate::error::{Error, Kind, Result};

/// Posts and chunks stay this much longer than the rows that point to them.
const OUTLIVES_ROWS: Duration = Duration::from_secs(7 * 24 * 3600);

/// By how much the clock may run ahead for a moment without anything being swept that should not.
const CLOCK_ERROR: Duration = Duration::from_secs(2 * 24 * 3600);

/// The part of `memtable_bytes` that tables of small rows get. They fill over hours, and until then they only grow.
const SMALL_TABLE: u64 = 4;

/// How to open the store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Block cache, bytes.
    pub cache_bytes: u64,
    /// Memtable of each keyspace, bytes.
    pub memtable_bytes: u64,
    /// All journals together, bytes.
    pub journal_bytes_max: u64,
    /// Jobs in a commit.
    pub commit_jobs_max: usize,
    /// Bytes in a commit.
    pub commit_bytes_max: usize,
    /// Bytes of large chunks in a commit, beyond the first.
    pub commit_bulk_bytes_max: usize,
    /// Free bytes under which nothing new is taken.
    pub free_bytes_min: u64,
    /// How long rows live.
    pub inbox_ttl: Duration,
    /// How long idempotency keys live.
    pub idempotency_ttl: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl StoreOptions {
    /// The bounds of a commit into a store in `folder`.
    pub fn commit_limits(&self, folder: &Folder) -> CommitLimits {
        CommitLimits {
            jobs_max: self.commit_jobs_max,
            bytes_max: self.commit_bytes_max,
            bulk_bytes_max: self.commit_bulk_bytes_max,
            free_bytes_min: self.free_bytes_min,
            folder: folder.path().to_owned(),
        }
    }
}

/// One keyspace for each kind of key.
#[derive(Clone)]
pub struct Tables {
    pub posts: Keyspace,
    pub chunks: Keyspace,
    pub progress: Keyspace,
    pub pending: Keyspace,
    pub inbox: Keyspace,
    pub keys: Keyspace,
    pub fences: Keyspace,
    pub producer_keys: Keyspace,
}

impl Tables {
    /// Every table by its name.
    pub fn named(&self) -> [(&'static str, &Keyspace); 8] {
        [
            ("posts", &self.posts),
            ("chunks", &self.chunks),
            ("progress", &self.progress),
            ("pending", &self.pending),
            ("inbox", &self.inbox),
            ("keys", &self.keys),
            ("fences", &self.fences),
            ("producer_keys", &self.producer_keys),
        ]
    }
}

/// How long the entries of those tables stay whose entries grow old.
pub fn lives(options: &StoreOptions) -> [Life; 5] {
    let (rows, posts) = (options.inbox_ttl + CLOCK_ERROR, options.inbox_ttl + OUTLIVES_ROWS);
    let keys = options.idempotency_ttl + CLOCK_ERROR;
    [
        Life { table: "posts", id_at: IdAt::KeyStart, ttl: posts },
        Life { table: "chunks", id_at: IdAt::KeyStart, ttl: posts },
        Life { table: "progress", id_at: IdAt::KeyStart, ttl: posts },
        Life { table: "inbox", id_at: IdAt::InboxKey, ttl: rows },
        Life { table: "keys", id_at: IdAt::HolderValue, ttl: keys },
    ]
}

/// Opens the storage engine, recovering what a killed process left.
pub fn open_database(folder: &Folder, options: &StoreOptions) -> Result<Database> {
    let (clock, lives) = (options.clock.clone(), lives(options));
    let sweeps = move |keyspace: &str| {
        let life = *lives.iter().find(|life| life.table == keyspace)?;
        Some(Sweep { life, clock: clock.clone() }.factory())
    };
    Database::builder(folder.store())
        .cache_size(options.cache_bytes)
        .max_journaling_size(options.journal_bytes_max)
        .manual_journal_persist(true)
        .with_compaction_filter_factories(Arc::new(sweeps))
        .open()
        .map_err(|error| match error {
            fjall::Error::InvalidVersion(_) => {
                let detail = "the data folder was written by a storage engine that this release does not know";
                Error::new(Kind::Conflict, "data_newer", detail)
            }
            error => Error::unavailable("data_unusable", "the store cannot be opened").with_source(error),
        })
        .map_err(|error| error.with_field("store.data"))
}

/// Opens the tables, making those that are missing.
pub fn open_tables(database: &Database, options: &StoreOptions) -> Result<Tables> {
    let open_with = |name: &str, memtable: u64| {
        let create = || KeyspaceCreateOptions::default().max_memtable_size(memtable).manual_journal_persist(true);
        database.keyspace(name, create).map_err(store_error)
    };
    let open = |name: &str| open_with(name, options.memtable_bytes);
    let open_small = |name: &str| open_with(name, options.memtable_bytes / SMALL_TABLE);
    Ok(Tables {
        posts: open("posts")?,
        chunks: open("chunks")?,
        progress: open_small("progress")?,
        pending: open_small("pending")?,
        inbox: open("inbox")?,
        keys: open_small("keys")?,
        fences: open_small("fences")?,
        producer_keys: open_small("producer_keys")?,
    })
}

/// The time of the newest pending entry: later ones must sort behind it even if the clock was set back meanwhile.
pub fn newest_pending(tables: &Tables) -> Result<Time> {
    let newest = tables.pending.last_key_value().map(|entry| entry.key()).transpose().map_err(store_error)?;
    Ok(newest.and_then(|key| keys::split_pending(&key)).map_or(Time::ZERO, |entry| entry.since))
}
