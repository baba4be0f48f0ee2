//! Marks: read, decide, write. The row and the intent to bump go together.

use std::collections::HashMap;

use scylla::DeserializeRow;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::MaybeUnset;
use uuid::Uuid;

use super::inbox::RowCells;
use super::minutes::minute_of;
use super::scan::SHARDS;
use super::{IN_MAX, ScyllaStore, ttl_until, uuid_of};
use crate::domain::{Marks, PostId, Row, Time, ViewerId};
use crate::error::{Error, Result};
use crate::ports::{MarkOrder, Marked};

/// Marks in a batch: with the intent of a thousand posts still below the 50 KB at which Cassandra refuses a batch.
const BATCH_MARKS: usize = 64;

#[derive(DeserializeRow)]
struct MarkedCells {
    post_id: Uuid,
    version: Option<i32>,
    deleted: Option<bool>,
    expires_at: Option<i64>,
    seen_at: Option<i64>,
    read_at: Option<i64>,
    archived_at: Option<i64>,
    seen_ts: Option<i64>,
    read_ts: Option<i64>,
    archived_ts: Option<i64>,
}

impl MarkedCells {
    /// The row, and when one of its marks was last written.
    fn decode(&self) -> Result<Option<(Row, i64)>> {
        let written = [self.seen_ts, self.read_ts, self.archived_ts].into_iter().flatten().max().unwrap_or(0);
        let cells = RowCells {
            post_id: self.post_id,
            version: self.version,
            deleted: self.deleted,
            expires_at: self.expires_at,
            seen_at: self.seen_at,
            read_at: self.read_at,
            archived_at: self.archived_at,
        };
        Ok(cells.decode()?.map(|row| (row, written)))
    }
}

/// The values of the marks of one row: timestamp, time to live, seen, read, archived, viewer, post.
type MarkValues<'a> = (i64, i32, MaybeUnset<i64>, MaybeUnset<i64>, MaybeUnset<i64>, &'a str, Uuid);

/// What a mark changes; cleared is 0, never null, so that it keeps the time it was written at.
fn changed(before: Option<Time>, after: Option<Time>) -> MaybeUnset<i64> {
    if before == after { MaybeUnset::Unset } else { MaybeUnset::Set(after.map_or(0, Time::micros)) }
}

fn values<'a>(viewer: &'a ViewerId, id: PostId, at: i64, ttl: i32, before: Marks, after: Marks) -> MarkValues<'a> {
    (
        at,
        ttl,
        changed(before.seen_at, after.seen_at),
        changed(before.read_at, after.read_at),
        changed(before.archived_at, after.archived_at),
        viewer.as_str(),
        uuid_of(id),
    )
}

/// Where an intent lies follows from its id: `minute << 32 | random`.
fn intent_bucket(intent: u64) -> Result<(i16, i32, i64)> {
    let minute = i32::try_from(intent >> 32).ok();
    let (minute, id) = minute.zip(i64::try_from(intent).ok()).ok_or_else(|| Error::internal("no id of an intent"))?;
    // Less than SHARDS, which is small.
    Ok(((intent % u64::from(SHARDS)) as i16, minute, id))
}

impl ScyllaStore {
    pub(super) async fn write_mark(&self, order: &MarkOrder<'_>) -> Result<Marked> {
        let mut known = self.rows_to_mark(order.viewer, order.post_ids).await?;
        let mut marked = Marked { rows: Vec::with_capacity(known.len()), changed: Vec::new(), intent: None };
        let mut writes = Vec::new();
        for id in order.post_ids {
            let (Some((row, written)), Some(ttl)) = (known.get_mut(id), self.row_ttl(*id)) else { continue };
            let after = row.marks.with(order.mark, order.value, order.now);
            if after != row.marks {
                // Later than what was read, so that this mark wins over an earlier one by a fast clock.
                *written = order.now.micros().max(written.saturating_add(1));
                writes.push(values(order.viewer, *id, *written, ttl, row.marks, after));
                row.marks = after;
                marked.changed.push(*id);
            }
            marked.rows.push(*row);
        }
        if !writes.is_empty() {
            marked.intent = Some(self.write_with_intent(order.viewer, &marked.changed, &writes).await?);
        }
        Ok(marked)
    }

    /// The rows, each with the time its marks were last written.
    async fn rows_to_mark(&self, viewer: &ViewerId, ids: &[PostId]) -> Result<HashMap<PostId, (Row, i64)>> {
        let read = |ids: &[PostId]| {
            let ids: Vec<Uuid> = ids.iter().copied().map(uuid_of).collect();
            async move { self.select::<MarkedCells>(&self.statements().rows_to_mark, (viewer.as_str(), ids)).await }
        };
        let mut known = HashMap::with_capacity(ids.len());
        for cells in self.concurrently(ids.chunks(IN_MAX).map(read).collect()).await?.iter().flatten() {
            if let Some((row, written)) = cells.decode()? {
                known.insert(row.post_id, (row, written));
            }
        }
        Ok(known)
    }

    /// The first batch is logged and has the intent for all; the others come after it, when a crash loses no bump any
    /// more.
    async fn write_with_intent(&self, viewer: &ViewerId, changed: &[PostId], writes: &[MarkValues<'_>]) -> Result<u64> {
        let minute = u64::try_from(minute_of(self.now())).unwrap_or(0);
        let intent = minute << 32 | u64::from(rand::random::<u32>());
        let (shard, minute, mark_id) = intent_bucket(intent)?;
        let entries: Vec<Uuid> = changed.iter().copied().map(uuid_of).collect();
        let ttl = ttl_until(self.now().after(self.shared.options.inbox_ttl), self.now()).unwrap_or(1);
        let mut with = Some((shard, minute, viewer.as_str(), mark_id, entries, ttl));
        for writes in writes.chunks(BATCH_MARKS) {
            let intent = with.take();
            let mut batch = Batch::new(if intent.is_some() { BatchType::Logged } else { BatchType::Unlogged });
            batch.set_is_idempotent(true);
            batch.set_execution_profile_handle(Some(self.statements().batch_profile.clone()));
            let mut rows: Vec<&(dyn SerializeRow + Sync)> = Vec::with_capacity(writes.len() + 1);
            for write in writes {
                batch.append_statement(self.statements().write_marks.clone());
                rows.push(write);
            }
            if let Some(intent) = &intent {
                batch.append_statement(self.statements().write_intent.clone());
                rows.push(intent);
            }
            self.shared.requests.batch(&batch, rows).await?;
        }
        Ok(intent)
    }

    pub(super) async fn remove_intent(&self, viewer: &ViewerId, intent: u64) -> Result<()> {
        let (shard, minute, mark_id) = intent_bucket(intent)?;
        self.write(&self.statements().clear_intent, (shard, minute, viewer.as_str(), mark_id)).await
    }
}
