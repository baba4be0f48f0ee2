//! Old data goes while the storage engine compacts: keys carry the post's time, so no scan looks for them.
//!
//! Reads check the time themselves; this only gives the space back, some time later.

use std::sync::Arc;
use std::time::Duration;

use fjall::compaction::filter::{CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict};

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

/// Drops entries of posts older than `ttl`.
pub struct Sweep {
    /// Where the post's id stands.
    pub id_at: IdAt,
    /// From the post's creation on.
    pub ttl: Duration,
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
        Box::new(Filter { id_at: self.id_at, older_than: self.clock.now().before(self.ttl) })
    }
}

struct Filter {
    id_at: IdAt,
    older_than: Time,
}

impl CompactionFilter for Filter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let id: Option<PostId> = match self.id_at {
            IdAt::InboxKey => keys::split_inbox(item.key()).map(|(id, _)| id),
            IdAt::KeyStart => keys::leading_post_id(item.key()),
            IdAt::HolderValue => super::codec::decode_holder(&item.value()?).ok().map(|holder| holder.post_id),
        };
        Ok(if id.is_some_and(|id| id.time() < self.older_than) { Verdict::Remove } else { Verdict::Keep })
    }
}
