//! Marks: read, decide, note, write. What is to be written is noted first (`intents.rs`).

use std::collections::HashMap;

use scylla::DeserializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::MaybeUnset;
use uuid::Uuid;

use super::inbox::RowCells;
use super::{IN_MAX, ScyllaStore, id_of, uuid_of};
use crate::domain::{Marks, PostId, Row, Time, ViewerId};
use crate::error::Result;
use crate::faults;
use crate::ports::{MarkOrder, Marked};

/// Marks in a batch: a tenth of the 50 KB at which a batch is refused.
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

/// One mark as it is to be written: the post, the timestamp, which cells.
pub(super) type MarkCells = (Uuid, i64, i8);

const SEEN: i8 = 1;
const READ: i8 = 2;
const ARCHIVED: i8 = 4;

/// Marks as they are to be written, whoever writes them in the end.
pub(super) struct Marking<'a> {
    pub(super) viewer: &'a ViewerId,
    /// What their cells get; cleared is 0, never null, so that it keeps the time it was written at.
    pub(super) value: i64,
    pub(super) cells: Vec<MarkCells>,
}

/// The values of the marks of one row: timestamp, time to live, seen, read, archived, viewer, post.
type MarkValues<'a> = (i64, i32, MaybeUnset<i64>, MaybeUnset<i64>, MaybeUnset<i64>, &'a str, Uuid);

impl Marking<'_> {
    fn values(&self, (post, at, cells): MarkCells, ttl: i32) -> MarkValues<'_> {
        let cell = |bit: i8| if cells & bit == 0 { MaybeUnset::Unset } else { MaybeUnset::Set(self.value) };
        (at, ttl, cell(SEEN), cell(READ), cell(ARCHIVED), self.viewer.as_str(), post)
    }
}

/// Which cells an order changes.
fn changed(before: Marks, after: Marks) -> i8 {
    let cell = |bit, before: Option<Time>, after: Option<Time>| if before == after { 0 } else { bit };
    cell(SEEN, before.seen_at, after.seen_at)
        | cell(READ, before.read_at, after.read_at)
        | cell(ARCHIVED, before.archived_at, after.archived_at)
}

impl ScyllaStore {
    pub(super) async fn write_mark(&self, order: &MarkOrder<'_>) -> Result<Marked> {
        let mut known = self.rows_to_mark(order.viewer, order.post_ids).await?;
        let mut marked = Marked { rows: Vec::with_capacity(known.len()), changed: Vec::new(), intent: None };
        let value = if order.value { order.now.micros() } else { 0 };
        let mut marking = Marking { viewer: order.viewer, value, cells: Vec::new() };
        // By the clock that all nodes have in common. By their own, an intent of a node that is ahead, whose rows were never
        // written, would undo what another has marked since, once a relay finishes it.
        let stamp = self.store_time().await?.micros();
        for id in order.post_ids {
            let Some((row, written)) = known.get_mut(id).filter(|_| self.row_ttl(*id).is_some()) else { continue };
            let after = row.marks.with(order.mark, order.value, order.now);
            if after != row.marks {
                // Later than what was read: the store's nodes do not agree to the microsecond either.
                *written = stamp.max(written.saturating_add(1));
                marking.cells.push((uuid_of(*id), *written, changed(row.marks, after)));
                row.marks = after;
                marked.changed.push(*id);
            }
            marked.rows.push(*row);
        }
        if !marking.cells.is_empty() {
            marked.intent = Some(self.write_intent(&marking).await?);
            faults::at("store.intent");
            self.write_cells(&marking).await?;
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

    /// The marks themselves, after their intent: whoever dies in between leaves the rest to a relay. A batch is rows of one
    /// partition, and so a single write.
    pub(super) async fn write_cells(&self, marking: &Marking<'_>) -> Result<()> {
        for (n, cells) in marking.cells.chunks(BATCH_MARKS).enumerate() {
            if n > 0 {
                faults::at("store.marks");
            }
            // A row that has outlived its time needs no marks any more.
            let left = cells.iter().filter_map(|cells| Some((*cells, self.row_ttl(id_of(cells.0))?)));
            let values: Vec<MarkValues<'_>> = left.map(|(cells, ttl)| marking.values(cells, ttl)).collect();
            match values.as_slice() {
                [] => {}
                [mark] => self.write(&self.statements().write_marks, mark).await?,
                marks => self.shared.requests.batch(&self.mark_batch(marks.len()), marks).await?,
            }
        }
        Ok(())
    }

    fn mark_batch(&self, marks: usize) -> Batch {
        let mut batch = Batch::new(BatchType::Unlogged);
        (0..marks).for_each(|_| batch.append_statement(self.statements().write_marks.clone()));
        batch.set_is_idempotent(true);
        batch.set_execution_profile_handle(Some(self.statements().batch_profile.clone()));
        batch
    }
}
