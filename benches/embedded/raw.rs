//! The ceiling of the write side: the storage engine alone, given the very bytes that our arm has just written.
//!
//! They are read back out of our arm's data folder, so the two cannot drift apart when the store's layout changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fanfold::config::Config;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Slice};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::context;
use crate::measure::Result;

/// Keys and values that are written together, each with the number of its keyspace.
pub type Group = Vec<(usize, Slice, Slice)>;

/// The storage engine with some of the service's keyspaces and all of its options.
pub struct RawStore {
    database: Database,
    keyspaces: Vec<Keyspace>,
}

impl RawStore {
    /// Opens or makes a database at `folder`.
    pub fn open(folder: &Path, names: &[&str]) -> Result<Self> {
        let Config { store, .. } = context::config(folder)?;
        let database = Database::builder(folder)
            .cache_size(store.cache_bytes)
            .max_journaling_size(store.journal_bytes_max)
            .manual_journal_persist(true)
            .open()?;
        let create =
            || KeyspaceCreateOptions::default().max_memtable_size(store.memtable_bytes).manual_journal_persist(true);
        let keyspaces = names.iter().map(|name| database.keyspace(name, create)).collect::<Result<_, _>>()?;
        Ok(Self { database, keyspaces })
    }

    /// The keyspace with that number.
    pub fn keyspace(&self, number: usize) -> &Keyspace {
        &self.keyspaces[number]
    }

    /// Commits groups as one synced batch.
    pub fn commit<'a>(&self, groups: impl IntoIterator<Item = &'a Group>, rows: usize) -> Result<()> {
        let mut batch =
            OwnedWriteBatch::with_capacity(self.database.clone(), rows).durability(Some(PersistMode::SyncData));
        for (number, key, value) in groups.into_iter().flatten() {
            batch.insert(&self.keyspaces[*number], key.clone(), value.clone());
        }
        Ok(batch.commit()?)
    }
}

/// Reads back what an engine wrote to `folder` in the keyspaces `names`, grouped by the post that `post_of` finds in a
/// key (given the keyspace's number), in the order of what it finds: ids sort by time, so that the raw arm can write in
/// the same order, which a tree in memory is not indifferent to.
pub fn read_back(folder: &Path, names: &[&str], post_of: fn(usize, &[u8]) -> Option<&[u8]>) -> Result<Vec<Group>> {
    let raw = RawStore::open(&folder.join("store"), names)?;
    let mut groups: BTreeMap<Vec<u8>, Group> = BTreeMap::new();
    for (number, keyspace) in raw.keyspaces.iter().enumerate() {
        for entry in keyspace.iter() {
            let (key, value) = entry.into_inner()?;
            let post = post_of(number, &key).ok_or("a key in the store that holds no post")?.to_vec();
            groups.entry(post).or_default().push((number, key, value));
        }
    }
    Ok(groups.into_values().collect())
}

/// One committer for many writers: takes a waiting request and up to `most - 1` more, writes them as one synced batch,
/// answers them all. The same idea as the store's own committer and nothing else.
pub async fn group_commits(raw: Arc<RawStore>, groups: Vec<Group>, in_flight: usize, most: usize) -> Result<u64> {
    type Request = (Group, oneshot::Sender<()>);
    let (requests, mut waiting) = mpsc::channel::<Request>(in_flight);
    let committer = std::thread::spawn(move || -> Result<()> {
        while let Some(first) = waiting.blocking_recv() {
            let mut taken = vec![first];
            while taken.len() < most
                && let Ok(next) = waiting.try_recv()
            {
                taken.push(next);
            }
            let rows = taken.iter().map(|(group, _)| group.len()).sum();
            raw.commit(taken.iter().map(|(group, _)| group), rows)?;
            for (_, answer) in taken {
                let _ = answer.send(());
            }
        }
        Ok(())
    });
    let mut shares: Vec<Vec<Group>> = (0..in_flight).map(|_| Vec::new()).collect();
    for (at, group) in groups.into_iter().enumerate() {
        shares[at % in_flight].push(group);
    }
    let mut writers: JoinSet<Result<u64>> = JoinSet::new();
    for share in shares {
        let requests = requests.clone();
        writers.spawn(async move {
            let count = share.len() as u64;
            for group in share {
                let (answer, done) = oneshot::channel();
                requests.send((group, answer)).await?;
                done.await?;
            }
            Ok(count)
        });
    }
    drop(requests);
    let mut written = 0;
    while let Some(done) = writers.join_next().await {
        written += done??;
    }
    committer.join().map_err(|_| "the raw committer panicked")??;
    Ok(written)
}
