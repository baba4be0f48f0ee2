//! Old data goes while the storage engine compacts: keys carry the post's time, so no scan looks for them.
//!
//! Reads check the time themselves; this only gives the space back, some time later. What no compaction comes by is the
//! matter of `space.rs`.

use std::sync::Arc;
use std::time::Duration;

use fjall::Slice;
use fjall::compaction::filter::{CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict};
use metrics::counter;

use super::keys;
use crate::clock::Clock;
use crate::domain::{PostId, Time};

/// Where the post's id stands in an entry.
#[derive(Clone, Copy, Debug)]
pub enum IdAt {
    /// In an inbox key.
    InboxKey,
    /// At the start of the key.
    KeyStart,
    /// In an idempotency key's value.
    HolderValue,
}

/// How long the entries of a table stay, from their post's creation on.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// The table's name.
    pub table: &'static str,
    /// Where the post's id stands.
    pub id_at: IdAt,
    /// How long.
    pub ttl: Duration,
}

impl Life {
    /// Entries of older posts have outlived it.
    pub fn oldest(&self, clock: &Clock) -> Time {
        clock.now().before(self.ttl)
    }

    /// Whether the post of an entry is older than `oldest`. What cannot be read stays.
    pub fn is_over<E>(&self, oldest: Time, key: &[u8], value: impl FnOnce() -> Result<Slice, E>) -> Result<bool, E> {
        let id: Option<PostId> = match self.id_at {
            IdAt::InboxKey => keys::split_inbox(key).map(|(id, _)| id),
            IdAt::KeyStart => keys::leading_post_id(key),
            IdAt::HolderValue => super::codec::decode_holder(&value()?).ok().map(|holder| holder.post_id),
        };
        Ok(id.is_some_and(|id| id.time() < oldest))
    }
}

/// Counts entries that are gone for good because they have outlived their life.
pub fn count_swept(table: &'static str, entries: u64) {
    counter!("fanfold_store_swept_total", "table" => table).increment(entries);
}

/// Drops entries that have outlived their life.
pub struct Sweep {
    /// That of the table's entries.
    pub life: Life,
    /// What time it is.
    pub clock: Clock,
}

impl Sweep {
    /// As the storage engine wants it.
    pub fn factory(self) -> Arc<dyn Factory> {
        Arc::new(self)
    }
}

// The engine asks for unwind safety; the clock is one atomic integer.
impl std::panic::RefUnwindSafe for Sweep {}

impl Factory for Sweep {
    fn name(&self) -> &str {
        "post_age"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Filter { life: self.life, oldest: self.life.oldest(&self.clock), dropped: 0 })
    }
}

struct Filter {
    life: Life,
    oldest: Time,
    dropped: u64,
}

impl CompactionFilter for Filter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let over = self.life.is_over(self.oldest, item.key(), || item.value())?;
        self.dropped += u64::from(over);
        Ok(if over { Verdict::Remove } else { Verdict::Keep })
    }

    fn finish(self: Box<Self>) {
        count_swept(self.life.table, self.dropped);
    }
}
