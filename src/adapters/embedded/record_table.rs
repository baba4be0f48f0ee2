//! A bounded table of packed revision records: one allocation and about forty bytes of index a viewer.
//!
//! Beyond its bound, records that were not used since the clock hand last came by go first (CLOCK, Corbató 1968).

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::domain::{Record, ViewerId};

/// A slot is `used u8 | viewer length u8 | viewer | record`.
type Slot = Box<[u8]>;

const VIEWER_AT: usize = 2;

/// Records by viewer.
#[derive(Debug)]
pub struct RecordTable {
    /// Positions in `slots`.
    index: HashTable<u32>,
    hasher: RandomState,
    slots: Vec<Slot>,
    records_max: usize,
    hand: usize,
    /// Where a record is changed before it goes back into its slot; kept, so that a bump allocates only to grow.
    scratch: Vec<u8>,
}

impl RecordTable {
    /// An empty table for `records_max` records; callers hash viewers with `hasher` too.
    pub fn new(records_max: usize, hasher: RandomState) -> Self {
        let records_max = records_max.min(u32::MAX as usize);
        Self { index: HashTable::new(), hasher, slots: Vec::new(), records_max, hand: 0, scratch: Vec::new() }
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// A record, which counts as used.
    pub fn get(&mut self, hash: u64, viewer: &ViewerId) -> Option<Record<&[u8]>> {
        let at = self.find(hash, viewer)?;
        let slot = &mut self.slots[at];
        slot[0] = 1;
        Record::from_bytes(record_of(slot))
    }

    /// A copy of a record, which counts as used.
    pub fn get_owned(&mut self, hash: u64, viewer: &ViewerId) -> Option<Record> {
        let at = self.find(hash, viewer)?;
        self.slots[at][0] = 1;
        Record::from_bytes(record_of(&self.slots[at]).to_vec())
    }

    /// Changes a record. Being bumped does not count as used: only a reader keeps a record alive.
    pub fn update<T>(&mut self, hash: u64, viewer: &ViewerId, change: impl FnOnce(&mut Record) -> T) -> Option<T> {
        let at = self.find(hash, viewer)?;
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        bytes.extend_from_slice(record_of(&self.slots[at]));
        let mut record = Record::from_bytes(bytes)?;
        let result = change(&mut record);
        let bytes = record.into_bytes();
        let slot = &mut self.slots[at];
        let record_at = VIEWER_AT + usize::from(slot[1]);
        if slot.len() - record_at == bytes.len() {
            slot[record_at..].copy_from_slice(&bytes);
        } else {
            *slot = make_slot(slot[0], viewer, &bytes);
        }
        self.scratch = bytes;
        Some(result)
    }

    /// Adds a record for a viewer that has none, and answers whose record had to go for it.
    pub fn insert(&mut self, hash: u64, viewer: &ViewerId, record: Record) -> Option<ViewerId> {
        let evicted = if self.slots.len() >= self.records_max { self.evict() } else { None };
        let at = u32::try_from(self.slots.len()).expect("records_max is at most u32::MAX");
        self.slots.push(make_slot(1, viewer, &record.into_bytes()));
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, at, |at| hasher.hash_one(viewer_of(&slots[*at as usize])));
        evicted
    }

    /// Removes a viewer's record.
    pub fn remove(&mut self, hash: u64, viewer: &ViewerId) {
        if let Some(at) = self.find(hash, viewer) {
            self.remove_at(at);
        }
    }

    fn find(&self, hash: u64, viewer: &ViewerId) -> Option<usize> {
        let same = |at: &u32| viewer_of(&self.slots[*at as usize]) == viewer.as_str();
        self.index.find(hash, same).map(|at| *at as usize)
    }

    /// Turns the hand until it meets a record that was not used since it last came by; every one it passes loses its
    /// second chance, so one round is enough.
    fn evict(&mut self) -> Option<ViewerId> {
        for _ in 0..=self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            let slot = self.slots.get_mut(self.hand)?;
            if slot[0] == 0 {
                let viewer = ViewerId::parse("viewer_id", viewer_of(slot)).ok();
                self.remove_at(self.hand);
                return viewer;
            }
            slot[0] = 0;
        }
        None
    }

    fn remove_at(&mut self, at: usize) {
        let last = self.slots.len() - 1;
        self.forget_index(at);
        if at != last {
            self.forget_index(last);
        }
        self.slots.swap_remove(at);
        if at != last {
            let hash = self.hasher.hash_one(viewer_of(&self.slots[at]));
            let (slots, hasher) = (&self.slots, &self.hasher);
            let position = u32::try_from(at).expect("positions are below records_max");
            self.index.insert_unique(hash, position, |at| hasher.hash_one(viewer_of(&slots[*at as usize])));
        }
    }

    fn forget_index(&mut self, at: usize) {
        let hash = self.hasher.hash_one(viewer_of(&self.slots[at]));
        if let Ok(entry) = self.index.find_entry(hash, |position| *position as usize == at) {
            entry.remove();
        }
    }
}

fn make_slot(used: u8, viewer: &ViewerId, record: &[u8]) -> Slot {
    let viewer = viewer.as_str().as_bytes();
    let mut slot = Vec::with_capacity(VIEWER_AT + viewer.len() + record.len());
    slot.push(used);
    slot.push(u8::try_from(viewer.len()).expect("viewer ids have at most 128 bytes"));
    slot.extend_from_slice(viewer);
    slot.extend_from_slice(record);
    slot.into_boxed_slice()
}

fn viewer_of(slot: &Slot) -> &str {
    let end = VIEWER_AT + usize::from(slot[1]);
    std::str::from_utf8(&slot[VIEWER_AT..end]).expect("a slot is made from a viewer id, which is UTF-8")
}

fn record_of(slot: &Slot) -> &[u8] {
    &slot[VIEWER_AT + usize::from(slot[1])..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Change, PostId};

    fn viewer(n: usize) -> ViewerId {
        ViewerId::parse("v", &format!("v{n}")).expect("valid")
    }

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let hasher = RandomState::default();
        let mut table = RecordTable::new(10, hasher.clone());
        let hash = |v: &ViewerId| hasher.hash_one(v.as_str());
        let mut gone = Vec::new();
        for n in 0..100 {
            let v = viewer(n);
            gone.extend(table.insert(hash(&v), &v, Record::new(n as u64)));
            assert!(table.get(hash(&viewer(0)), &viewer(0)).is_some(), "v0 is used all the time");
        }
        assert_eq!((table.len(), gone.len()), (10, 90));
        for n in 0..100 {
            let v = viewer(n);
            let found = table.get(hash(&v), &v).map(|record| record.epoch());
            assert_eq!(found.is_none(), gone.contains(&v), "{v}");
            assert!(found.is_none_or(|epoch| epoch == n as u64));
        }
    }

    #[test]
    fn records_grow_in_place_and_can_be_removed() {
        let hasher = RandomState::default();
        let mut table = RecordTable::new(10, hasher.clone());
        let hash = |v: &ViewerId| hasher.hash_one(v.as_str());
        for n in 0..3 {
            assert_eq!(table.insert(hash(&viewer(n)), &viewer(n), Record::new(n as u64)), None);
        }
        for n in 1..=20 {
            let change = Change { post_id: PostId::from_bytes([n; 16]), version: 1 };
            assert_eq!(table.update(hash(&viewer(1)), &viewer(1), |r| r.bump(change)), Some(true));
            assert_eq!(table.update(hash(&viewer(1)), &viewer(1), |r| r.bump(change)), Some(false));
        }
        assert_eq!(table.get_owned(hash(&viewer(1)), &viewer(1)).map(|r| r.counter()), Some(20));
        table.remove(hash(&viewer(0)), &viewer(0));
        assert!(table.get(hash(&viewer(0)), &viewer(0)).is_none());
        assert_eq!(table.get(hash(&viewer(2)), &viewer(2)).map(|r| r.epoch()), Some(2), "moved into the hole");
    }
}
