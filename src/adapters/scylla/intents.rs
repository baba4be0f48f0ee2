//! Intents: what a mark is about to write, noted before it is written. Found by the minute, as pending entries are.
//!
//! A redo log: no mark is written before its intent is at quorum, and no intent is cleared before all of its marks are and
//! their bump has come. So whatever becomes of the writer, or of a replica that missed a write, there is no mark that
//! shows later without a bump.

use std::time::Instant;

use futures::future::try_join_all;
use uuid::Uuid;

use super::marks::{MarkCells, Marking};
use super::minutes::minute_of;
use super::posts::LATE;
use super::scan::{SHARDS, Table};
use super::{ScyllaStore, corrupt, id_of, ttl_until};
use crate::domain::{PostId, ViewerId};
use crate::error::{Error, Result};
use crate::ports::Intent;

/// Minutes that are looked into at the same time.
const MINUTES_AT_ONCE: usize = 16;
/// Tries to write an intent while its minute is young.
const ATTEMPTS: u32 = 3;
/// In the id of an intent: it lies in the table of releases before the fourth schema.
const OLD: u64 = 1 << 63;

/// Where an intent lies: shard, minute, id.
type Bucket = (i16, i32, i64);

/// Where an intent lies follows from its id: `minute << 32 | random`.
fn bucket(intent: u64) -> Result<Bucket> {
    let id = intent & !OLD;
    let minute = i32::try_from(id >> 32).ok();
    let (minute, mark_id) = minute.zip(i64::try_from(id).ok()).ok_or_else(|| Error::internal("no id of an intent"))?;
    // Less than SHARDS, which is small.
    Ok(((id % u64::from(SHARDS)) as i16, minute, mark_id))
}

impl ScyllaStore {
    /// Notes what is about to be written. The minute must be young when the intent is there: a relay that has left it
    /// behind would find the intent a day later.
    pub(super) async fn write_intent(&self, marking: &Marking<'_>) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            let (begun, began_at) = (Instant::now(), self.now());
            // The store's minute: relays look by its clock, whatever ours says.
            let minute = u64::try_from(minute_of(self.store_time().await?)).unwrap_or(0);
            let intent = minute << 32 | u64::from(rand::random::<u32>());
            let (shard, minute, mark_id) = bucket(intent)?;
            let ttl = ttl_until(began_at.after(self.shared.options.inbox_ttl), began_at).unwrap_or(1);
            let values = (shard, minute, marking.viewer.as_str(), mark_id, marking.value, &marking.cells, ttl);
            self.write(&self.statements().write_intent, values).await?;
            if begun.elapsed() <= LATE && self.now().since(began_at) <= LATE {
                return Ok(intent);
            }
            self.remove_intent(marking.viewer, intent).await?;
        }
        Err(Error::unavailable("store_unavailable", "the store takes too long to note a mark"))
    }

    pub(super) async fn remove_intent(&self, viewer: &ViewerId, intent: u64) -> Result<()> {
        let (shard, minute, mark_id) = bucket(intent)?;
        let statements = self.statements();
        let clear = if intent & OLD == 0 { &statements.clear_intent } else { &statements.clear_old_intent };
        self.write(clear, (shard, minute, viewer.as_str(), mark_id)).await
    }

    /// Those of this release first.
    pub(super) async fn read_intents(&self, shard: u32, limit: u32) -> Result<Vec<Intent>> {
        let mut intents = self.scan_intents(Table::Intents, shard, limit).await?;
        let left = limit.saturating_sub(u32::try_from(intents.len()).unwrap_or(u32::MAX));
        if left > 0 {
            intents.extend(self.scan_intents(Table::OldIntents, shard, left).await?);
        }
        Ok(intents)
    }

    async fn scan_intents(&self, table: Table, shard: u32, limit: u32) -> Result<Vec<Intent>> {
        let now = self.store_time().await?;
        let to_visit = {
            let mut scan = self.shared.scans.of(table, shard)?;
            scan.begin_round(now, self.full_scan(self.shared.options.inbox_ttl));
            scan.to_visit(i32::MIN, now)
        };
        let mut intents = Vec::new();
        for minutes in to_visit.chunks(MINUTES_AT_ONCE) {
            let reads: Vec<_> = minutes.iter().map(|minute| self.intents_of(table, shard, *minute, limit)).collect();
            for (minute, found) in minutes.iter().zip(try_join_all(reads).await?) {
                self.shared.scans.of(table, shard)?.visited(*minute, found.is_empty(), now);
                intents.extend(found.into_iter().filter_map(|found| readable(table, found)));
            }
            if intents.len() >= limit as usize {
                return Ok(intents);
            }
        }
        self.save_scan(table, shard).await;
        Ok(intents)
    }

    async fn intents_of(&self, table: Table, shard: u32, minute: i32, limit: u32) -> Result<Vec<(String, i64)>> {
        let statements = self.statements();
        let read = if matches!(table, Table::Intents) { &statements.intents } else { &statements.old_intents };
        // There are few shards.
        self.select(read, (shard as i16, minute, i32::try_from(limit).unwrap_or(i32::MAX))).await
    }

    /// Writes the marks of an intent once more, at quorum and with their timestamps: what is there already stays as it is.
    pub(super) async fn finish_marks(&self, intent: &Intent) -> Result<Option<Vec<PostId>>> {
        if intent.id & OLD != 0 {
            return self.old_marks(intent).await;
        }
        type Cells = (Option<i64>, Option<Vec<MarkCells>>);
        let (shard, minute, mark_id) = bucket(intent.id)?;
        let key = (shard, minute, intent.viewer.as_str(), mark_id);
        let Some(found) = self.select::<Cells>(&self.statements().intent, key).await?.pop() else { return Ok(None) };
        let (Some(value), Some(cells)) = found else { return Err(corrupt("an intent")) };
        let marking = Marking { viewer: &intent.viewer, value, cells };
        self.write_cells(&marking).await?;
        Ok(Some(marking.cells.iter().map(|(post, ..)| id_of(*post)).collect()))
    }

    /// An older release has written its marks with the intent, and tells no more than their posts.
    async fn old_marks(&self, intent: &Intent) -> Result<Option<Vec<PostId>>> {
        let (shard, minute, mark_id) = bucket(intent.id)?;
        let key = (shard, minute, intent.viewer.as_str(), mark_id);
        let found = self.select::<(Option<Vec<Uuid>>,)>(&self.statements().old_intent, key).await?.pop();
        Ok(found.map(|(posts,)| posts.unwrap_or_default().into_iter().map(id_of).collect()))
    }
}

/// What cannot be read stays, and its minute with it; the others are not to wait for it.
fn readable(table: Table, (viewer, id): (String, i64)) -> Option<Intent> {
    let old = if matches!(table, Table::OldIntents) { OLD } else { 0 };
    let intent = ViewerId::parse("viewer_id", &viewer).ok().zip(u64::try_from(id).ok());
    if intent.is_none() {
        tracing::error!(id, "an intent in the store cannot be read");
    }
    intent.map(|(viewer, id)| Intent { id: id | old, viewer })
}
