//! Intents: marks that were ordered. Their rows may be there, or some of them, and the bump may not be. Whoever marks
//! clears its own; of what is left the relay writes the rows and bumps once more, in this order: a row that a replica
//! missed must not show later, after the bump. A bump too many costs a client one fetch, one too few lets "unchanged" lie.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use metrics::counter;
use tracing::{debug, warn};

use crate::adapters::{Revisions, Store};
use crate::domain::ViewerId;
use crate::error::{Error, Result};
use crate::faults::{self, Planted};
use crate::ports::{Intent, MarkBump, Revisions as _, Store as _};

/// Intents looked at in a pass.
const PASS_MAX: u32 = 500;
/// Between passes: whoever set the mark has most likely cleared it by then, and each look costs reads.
const EVERY: Duration = Duration::from_secs(2);

/// Failures after which a pass ends: what fails all of them, such as a store that is away, must not keep the relay.
const FAILURES_MAX: usize = 8;

/// How long one is remembered that no pass has met again.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// Clears an intent after its bump, if the bump counts: its fence must be the newest of the registry, read after the
/// bump. A bump of a deposed master is lost with it.
pub async fn clear(store: &Store, viewer: &ViewerId, intent: u64, bump: &MarkBump) -> Result<bool> {
    let newest = store.newest_fence().await?;
    let counts =
        newest.is_some_and(|(fence, _)| fence.seq == bump.fence) || faults::planted(Planted::IntentWithoutFence);
    if counts {
        store.clear_intent(viewer, intent).await?;
    }
    Ok(counts)
}

/// Drives the intents of one shard.
#[derive(Debug)]
pub struct Intents {
    store: Store,
    revisions: Revisions,
    shard: u32,
    last: Option<Instant>,
    /// Those that were met lately: when first, when last.
    met: HashMap<u64, Met>,
}

/// An intent that was met.
#[derive(Debug)]
struct Met {
    first: Instant,
    last: Instant,
    failures: u32,
}

impl Intents {
    /// Those of a shard.
    pub fn new(store: Store, revisions: Revisions, shard: u32) -> Self {
        Self { store, revisions, shard, last: None, met: HashMap::new() }
    }

    /// Drives the intents that were there in an earlier pass already; answers for how many.
    pub async fn pass(&mut self) -> Result<usize> {
        if self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return Ok(0);
        }
        self.last = Some(Instant::now());
        let found = self.store.intents(self.shard, PASS_MAX).await?;
        let (mut driven, mut failed) = (0, 0);
        for intent in self.due(found) {
            match self.drive(&intent).await {
                Ok(cleared) => driven += usize::from(cleared),
                Err(error) => {
                    failed += 1;
                    self.failed(&intent, &error);
                }
            }
            if failed == FAILURES_MAX {
                break;
            }
        }
        Ok(driven)
    }

    /// Those that were met before. What has failed comes last: it must not keep the others back.
    fn due(&mut self, found: Vec<Intent>) -> Vec<Intent> {
        let now = Instant::now();
        // Not every pass looks everywhere: what it has not met may still be there.
        self.met.retain(|_, met| met.last.elapsed() < FORGET_AFTER);
        let mut due = Vec::new();
        for intent in found {
            let met = self.met.entry(intent.id).or_insert(Met { first: now, last: now, failures: 0 });
            met.last = now;
            if met.first < now {
                due.push((met.failures, intent));
            }
        }
        due.sort_by_key(|(failures, _)| *failures);
        due.into_iter().map(|(_, intent)| intent).collect()
    }

    async fn drive(&mut self, intent: &Intent) -> Result<bool> {
        // Gone meanwhile: whoever cleared it has bumped.
        let Some(posts) = self.store.finish_intent(intent).await? else { return Ok(false) };
        let bump = self.revisions.bump_marks(&intent.viewer, &posts).await?;
        let cleared = clear(&self.store, &intent.viewer, intent.id, &bump).await?;
        if cleared {
            self.met.remove(&intent.id);
            counter!("fanfold_relay_intents_total").increment(1);
            debug!(intent = intent.id, shard = self.shard, "a lost bump of marks was made up for");
        }
        Ok(cleared)
    }

    fn failed(&mut self, intent: &Intent, error: &Error) {
        counter!("fanfold_relay_intents_failed_total").increment(1);
        if let Some(met) = self.met.get_mut(&intent.id) {
            met.failures = met.failures.saturating_add(1);
        }
        warn!(%error, intent = intent.id, shard = self.shard, "a lost bump of marks cannot be driven now");
    }
}
