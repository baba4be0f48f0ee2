//! The revision record: the state of one viewer's inbox in at most 408 bytes, compared for equality only.
//!
//! Layout, all big-endian: `epoch u64 | counter u64 | floor u64`, then up to [`RING_MAX`] entries of
//! `counter u32 (low half) | post id 16 bytes | stamp u32`, oldest first, at most one entry a post. The stamp is the
//! post's version, or [`MARK_BIT`] with the low bits of a mark's id.

use super::ids::PostId;

/// How many changed posts a record remembers: as far as a delta reaches.
pub const RING_MAX: usize = 16;
/// Set in an entry's stamp when a mark caused it.
pub const MARK_BIT: u32 = 1 << 31;

const HEAD: usize = 24;
const ENTRY: usize = 24;

/// The present life of the revision store. A new one after any restart, so that no token from before matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Its number in the registry, counting up.
    pub seq: u32,
    /// What tokens carry: numbers come again after a restore, a random nonce does not.
    pub nonce: u64,
}

/// The state of one inbox: equal revisions mean that nothing the viewer could see has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    /// The nonce of the fence it was read under.
    pub nonce: u64,
    /// Drawn when the record was created.
    pub epoch: u64,
    /// One more with every visible change.
    pub counter: u64,
}

/// A visible change to one post in one inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which post.
    pub post_id: PostId,
    /// The version whose row was written.
    pub version: u32,
}

/// Why no delta can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDelta {
    /// The change lies further back than the ring reaches.
    TooOld,
    /// The record has never been at that counter.
    Unknown,
}

/// A record, over bytes that the caller owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<B = Vec<u8>>(B);

/// One entry of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The counter after the change.
    pub counter: u64,
    /// Which post changed.
    pub post_id: PostId,
    /// Its version, or [`MARK_BIT`] and a mark's id.
    pub stamp: u32,
}

impl Record<Vec<u8>> {
    /// A record that has seen no change; `epoch` must be random.
    pub fn new(epoch: u64) -> Self {
        let mut bytes = vec![0; HEAD];
        bytes[..8].copy_from_slice(&epoch.to_be_bytes());
        Self(bytes)
    }

    /// Records a fan-out change. `false` if the ring has this very entry: a duplicate, nothing moved.
    pub fn bump(&mut self, change: Change) -> bool {
        let duplicate = self.entries().any(|e| e.post_id == change.post_id && e.stamp == change.version);
        if !duplicate {
            self.push(change.post_id, change.version);
        }
        !duplicate
    }

    /// Records marks on `posts` (never a duplicate): one entry each or, beyond what the ring holds, one gap that no
    /// delta crosses.
    pub fn bump_marks(&mut self, posts: &[PostId], mark_id: u32) {
        if posts.len() > RING_MAX {
            let counter = self.counter() + 1;
            self.set(8, counter);
            self.set(16, counter);
            self.0.truncate(HEAD);
        } else {
            for post_id in posts {
                self.push(*post_id, MARK_BIT | mark_id);
            }
        }
    }

    fn push(&mut self, post_id: PostId, stamp: u32) {
        let counter = self.counter() + 1;
        self.set(8, counter);
        let known = self.entries().position(|e| e.post_id == post_id);
        if let Some(at) = known {
            let start = HEAD + at * ENTRY;
            self.0.drain(start..start + ENTRY);
        } else if self.len() == RING_MAX {
            let fallen = self.entries().next().map_or(0, |e| e.counter);
            self.set(16, fallen);
            self.0.drain(HEAD..HEAD + ENTRY);
        }
        self.0.reserve_exact(ENTRY);
        self.0.extend_from_slice(&(counter as u32).to_be_bytes());
        self.0.extend_from_slice(post_id.as_bytes());
        self.0.extend_from_slice(&stamp.to_be_bytes());
    }

    fn set(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl<B: AsRef<[u8]>> Record<B> {
    /// Takes bytes that [`Record::into_bytes`] gave; `None` if they cannot be a record.
    pub fn from_bytes(bytes: B) -> Option<Self> {
        let len = bytes.as_ref().len();
        let fits = len >= HEAD && (len - HEAD).is_multiple_of(ENTRY) && len <= HEAD + RING_MAX * ENTRY;
        fits.then_some(Self(bytes))
    }

    /// Drawn when the record was created.
    pub fn epoch(&self) -> u64 {
        self.u64_at(0)
    }

    /// One more with every change.
    pub fn counter(&self) -> u64 {
        self.u64_at(8)
    }

    /// The highest counter that fell out of the ring: a delta can go back that far.
    pub fn floor(&self) -> u64 {
        self.u64_at(16)
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let newest = self.counter();
        self.0.as_ref()[HEAD..].as_chunks::<ENTRY>().0.iter().map(move |bytes| {
            let low = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let mut id = [0; 16];
            id.copy_from_slice(&bytes[4..20]);
            Entry {
                counter: newest - u64::from((newest as u32).wrapping_sub(low)),
                post_id: PostId::from_bytes(id),
                stamp: u32::from_be_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]),
            }
        })
    }

    /// The posts that changed after `since`, oldest change first.
    pub fn changed_since(&self, since: u64) -> Result<Vec<PostId>, NoDelta> {
        if since > self.counter() {
            return Err(NoDelta::Unknown);
        }
        if since < self.floor() {
            return Err(NoDelta::TooOld);
        }
        Ok(self.entries().filter(|e| e.counter > since).map(|e| e.post_id).collect())
    }

    /// Its revision under the fence with `nonce`.
    pub fn revision(&self, nonce: u64) -> Revision {
        Revision { nonce, epoch: self.epoch(), counter: self.counter() }
    }

    fn len(&self) -> usize {
        (self.0.as_ref().len() - HEAD) / ENTRY
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0.as_ref()[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Time;

    fn post(n: u8) -> PostId {
        PostId::new(Time::from_millis(i64::from(n)), [n; 10])
    }

    #[test]
    fn duplicates_do_not_move_it() {
        let mut record = Record::new(7);
        assert!(record.bump(Change { post_id: post(1), version: 1 }));
        assert!(!record.bump(Change { post_id: post(1), version: 1 }));
        assert!(record.bump(Change { post_id: post(1), version: 2 }));
        assert_eq!((record.counter(), record.floor(), record.len()), (2, 0, 1));
        assert_eq!(record.changed_since(0), Ok(vec![post(1)]));
        assert_eq!(record.changed_since(2), Ok(vec![]));
        assert_eq!(record.changed_since(3), Err(NoDelta::Unknown));
    }

    #[test]
    fn the_floor_follows_what_falls_out() {
        let mut record = Record::new(7);
        for n in 1..=18 {
            record.bump(Change { post_id: post(n), version: 1 });
        }
        assert_eq!((record.counter(), record.floor(), record.len()), (18, 2, RING_MAX));
        assert_eq!(record.changed_since(1), Err(NoDelta::TooOld));
        assert_eq!(record.changed_since(2).expect("in reach").len(), 16);
        assert_eq!(record.into_bytes().len(), 408);
    }

    #[test]
    fn marks_always_count_and_many_leave_a_gap() {
        let mut record = Record::new(7);
        record.bump_marks(&[post(1)], 0);
        record.bump_marks(&[post(1)], 0);
        assert_eq!(record.counter(), 2);
        let many: Vec<_> = (1..=17).map(post).collect();
        record.bump_marks(&many, 0);
        assert_eq!((record.counter(), record.floor()), (3, 3));
        assert_eq!(record.changed_since(2), Err(NoDelta::TooOld));
        assert_eq!(record.changed_since(3), Ok(vec![]));
    }

    #[test]
    fn counters_beyond_32_bits_survive_the_short_entries() {
        let mut record = Record::new(7);
        record.set(8, u64::from(u32::MAX) - 1);
        for n in 1..=4 {
            record.bump(Change { post_id: post(n), version: 1 });
        }
        let counters: Vec<_> = record.entries().map(|e| e.counter).collect();
        let first = u64::from(u32::MAX);
        assert_eq!(counters, [first, first + 1, first + 2, first + 3]);
    }
}
