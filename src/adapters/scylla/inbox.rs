//! Inbox rows: read by the page, written by the chunk.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use futures::join;
use scylla::DeserializeRow;
use scylla::value::MaybeUnset;
use uuid::Uuid;

use super::session::corrupt as unreadable;
use super::{IN_MAX, ScyllaStore, id_of, int, set, time_of, uint, uuid_of};
use crate::domain::{Marks, Post, PostId, PostState, Row, Time, ViewerId};
use crate::error::{Error, Result};
use crate::faults;
use crate::ports::{RowsWritten, Window};

#[derive(DeserializeRow)]
pub(super) struct RowCells {
    pub(super) post_id: Uuid,
    pub(super) version: Option<i32>,
    pub(super) deleted: Option<bool>,
    pub(super) expires_at: Option<i64>,
    pub(super) seen_at: Option<i64>,
    pub(super) read_at: Option<i64>,
    pub(super) archived_at: Option<i64>,
}

impl RowCells {
    /// The row; `None` where a mark has outlived it by a moment.
    pub(super) fn decode(&self) -> Result<Option<Row>> {
        let Some(version) = self.version else { return Ok(None) };
        Ok(Some(Row {
            post_id: id_of(self.post_id),
            version: uint(version, "an inbox row")?,
            deleted: self.deleted.unwrap_or(false),
            expires_at: time_of(self.expires_at),
            marks: Marks {
                seen_at: time_of(self.seen_at),
                read_at: time_of(self.read_at),
                archived_at: time_of(self.archived_at),
            },
        }))
    }
}

/// The values of one row: viewer, post, version, deleted, expires_at, timestamp, time to live.
type RowValues<'a> = (&'a str, Uuid, i32, MaybeUnset<bool>, MaybeUnset<i64>, i64, i32);

impl ScyllaStore {
    pub(super) async fn read_window(&self, viewer: &ViewerId, limit: u32) -> Result<Window> {
        let wanted = int(limit.saturating_add(1))?;
        let cells = self.select::<RowCells>(&self.statements().window, (viewer.as_str(), wanted)).await?;
        let truncated = cells.len() > limit as usize;
        let mut rows = Vec::with_capacity(cells.len());
        for cells in cells.iter().take(limit as usize) {
            rows.extend(cells.decode()?);
        }
        Ok(Window { rows, truncated })
    }

    pub(super) async fn read_rows(&self, viewer: &ViewerId, ids: &[PostId]) -> Result<Vec<Option<Row>>> {
        let read = |ids: &[PostId]| {
            let ids: Vec<Uuid> = ids.iter().copied().map(uuid_of).collect();
            async move { self.select::<RowCells>(&self.statements().rows, (viewer.as_str(), ids)).await }
        };
        let mut found = HashMap::with_capacity(ids.len());
        for cells in self.concurrently(ids.chunks(IN_MAX).map(read).collect()).await?.iter().flatten() {
            if let Some(row) = cells.decode()? {
                found.insert(row.post_id, row);
            }
        }
        Ok(ids.iter().map(|id| found.get(id).copied()).collect())
    }

    /// The version is read meanwhile, so that a late worker learns of the newer one. Whenever it changes, the newer
    /// version's rows carry the later timestamp and win, whichever are written last: nobody need wait for the answer.
    pub(super) async fn upsert_rows(&self, post: &Post, viewers: &[ViewerId]) -> Result<RowsWritten> {
        // Both to their end: a read that fails first must not leave writes on their way that nobody counts.
        let (written, version) = join!(self.write_all_rows(post, viewers), self.read_post_version(post.id));
        written?;
        if version? == Some(post.version) {
            return Ok(RowsWritten::Written);
        }
        match self.read_post(post.id).await? {
            Some(newer) if newer.version != post.version => Ok(RowsWritten::Stale(Box::new(newer))),
            // Back at the version asked for: the first read missed a commit that the second has seen.
            Some(_) => Ok(RowsWritten::Written),
            None => Err(Error::internal(format!("post {} has vanished under its fan-out", post.id))),
        }
    }

    async fn write_all_rows(&self, post: &Post, viewers: &[ViewerId]) -> Result<()> {
        let Some(ttl) = self.row_ttl(post.id) else { return Ok(()) };
        let (id, version) = (uuid_of(post.id), int(post.version)?);
        // A first version leaves unset what it does not have; a later one has to take back what it may have had.
        let deleted = set((post.state == PostState::Retracted).then_some(true));
        let none = (post.version > 1).then_some(0);
        let expires_at = set(post.expires_at.map(Time::micros).or(none));
        let values = |viewer: &usize| -> RowValues<'_> {
            (viewers[*viewer].as_str(), id, version, deleted, expires_at, post.ts, ttl)
        };
        let groups = self.group_by_replicas(viewers)?;
        let size = self.batch_rows();
        let batches = groups.iter().flat_map(|group| group.chunks(size));
        let writes =
            batches.map(|batch| self.write_batch(post.audience_size, batch.iter().map(values).collect())).collect();
        self.concurrently(writes).await.map(|_: Vec<()>| ())
    }

    /// Rows of one replica set in a batch.
    fn batch_rows(&self) -> usize {
        self.shared.batch_rows.load(Ordering::Relaxed).clamp(1, self.statements().row_batches.len())
    }

    /// A batch of a post to `audience`.
    async fn write_batch(&self, audience: u32, rows: Vec<RowValues<'_>>) -> Result<()> {
        let _under_way = self.shared.rows.enter(audience, rows.len()).await?;
        faults::at("store.row_batch");
        match rows.as_slice() {
            [] => {}
            [row] => self.write(&self.statements().write_row, row).await?,
            rows => self.shared.requests.batch(&self.statements().row_batches[rows.len() - 1], rows).await?,
        }
        faults::at("store.rows");
        Ok(())
    }

    /// The positions of viewers whose inboxes lie on the same replicas and shards: what a coordinator can write without
    /// asking others. Where the driver cannot tell, everyone is alone.
    fn group_by_replicas(&self, viewers: &[ViewerId]) -> Result<Vec<Vec<usize>>> {
        if self.batch_rows() == 1 {
            return Ok((0..viewers.len()).map(|n| vec![n]).collect());
        }
        let state = self.shared.requests.session().get_cluster_state();
        let keyspace = &self.shared.options.cluster.keyspace;
        let mut groups: HashMap<Vec<(Uuid, u32)>, Vec<usize>, foldhash::fast::RandomState> = HashMap::default();
        let mut alone = Vec::new();
        for (n, viewer) in viewers.iter().enumerate() {
            let token = state.compute_token(keyspace, "inbox", &(viewer.as_str(),));
            let replicas = token.map(|token| state.get_token_endpoints(keyspace, "inbox", token));
            match replicas {
                Ok(replicas) if !replicas.is_empty() => {
                    let mut on: Vec<_> = replicas.iter().map(|(node, shard)| (node.host_id, *shard)).collect();
                    on.sort_unstable();
                    groups.entry(on).or_default().push(n);
                }
                Ok(_) | Err(scylla::errors::ClusterStateTokenError::UnknownTable { .. }) => alone.push(vec![n]),
                Err(error) => return Err(unreadable(error)),
            }
        }
        alone.extend(groups.into_values());
        Ok(alone)
    }
}
