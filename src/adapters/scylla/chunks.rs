//! Chunks: their viewers, and how far each has come.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use scylla::DeserializeRow;

use super::{IN_MAX, ScyllaStore, corrupt, int, set, uint, uuid_of};
use crate::domain::{Chunk, ChunkState, Done, ParkedChunk, PostId, Time, ViewerId};
use crate::error::{Error, Result};

#[derive(DeserializeRow)]
struct StateCells {
    chunk_no: i32,
    done: Option<i64>,
    rows_done: Option<i64>,
    parked: Option<bool>,
}

impl StateCells {
    fn decode(&self) -> Result<ChunkState> {
        let unpack = |packed: Option<i64>| -> Result<Option<Done>> {
            packed
                .map(|packed| u64::try_from(packed).map(Done::unpack))
                .transpose()
                .map_err(|_| corrupt("a chunk's state"))
        };
        Ok(ChunkState {
            done: unpack(self.done)?,
            rows_version: unpack(self.rows_done)?.map(|done| done.version),
            parked: self.parked.unwrap_or(false),
        })
    }
}

/// As a number and a timestamp: both rise with the version first.
fn pack(done: Done) -> Result<i64> {
    i64::try_from(done.pack()).map_err(|e| Error::internal("a version is too large for the store").with_source(e))
}

impl ScyllaStore {
    pub(super) async fn write_chunk(&self, id: PostId, chunk: &Chunk, at: Time) -> Result<()> {
        let Some(ttl) = self.post_ttl(id) else { return Ok(()) };
        let viewers: Vec<&str> = chunk.viewers.iter().map(ViewerId::as_str).collect();
        let values = (at.micros(), ttl, viewers, uuid_of(id), int(chunk.no)?);
        self.write(&self.statements().write_chunk, values).await
    }

    pub(super) async fn read_chunk(&self, id: PostId, no: u32) -> Result<Option<Chunk>> {
        let found = self.select::<(Option<Vec<String>>,)>(&self.statements().chunk, (uuid_of(id), int(no)?)).await?;
        let Some((Some(viewers),)) = found.into_iter().next() else { return Ok(None) };
        let parse = |text: &String| ViewerId::parse("viewer_id", text).map_err(|_| corrupt("a chunk"));
        let viewers: Arc<[ViewerId]> = viewers.iter().map(parse).collect::<Result<_>>()?;
        Ok(Some(Chunk { no, viewers }))
    }

    pub(super) async fn read_chunk_states(&self, id: PostId, numbers: Range<u32>) -> Result<Vec<ChunkState>> {
        let mut states = vec![ChunkState::default(); numbers.len()];
        let values = (uuid_of(id), int(numbers.start)?, int(numbers.end)?);
        for cells in self.select::<StateCells>(&self.statements().chunk_states, values).await? {
            let place = uint(cells.chunk_no, "a chunk")?.checked_sub(numbers.start);
            if let Some(state) = place.and_then(|place| states.get_mut(place as usize)) {
                *state = cells.decode()?;
            }
        }
        Ok(states)
    }

    /// The timestamp is the value, so the furthest wins, whoever writes last.
    pub(super) async fn record_done(&self, id: PostId, no: u32, done: Option<Done>, rows: Option<Done>) -> Result<()> {
        let Some(ttl) = self.post_ttl(id) else { return Ok(()) };
        let Some(stamp) = done.or(rows).map(pack).transpose()? else { return Ok(()) };
        let (done, rows) = (done.map(|_| stamp), rows.map(|_| stamp));
        let values = (stamp, ttl, set(done), set(rows), uuid_of(id), int(no)?);
        self.write(&self.statements().write_done, values).await
    }

    /// The last one to say so wins, also over one whose clock is fast.
    pub(super) async fn record_parked(&self, id: PostId, no: u32, reason: Option<&str>) -> Result<()> {
        let Some(ttl) = self.post_ttl(id) else { return Ok(()) };
        let key = (uuid_of(id), int(no)?);
        let written = self.select::<(Option<i64>,)>(&self.statements().chunk_parked, key).await?;
        let written = written.first().and_then(|(at,)| *at).unwrap_or(0);
        if let Some(reason) = reason {
            self.write(&self.statements().write_reason, (key.0, key.1, reason, ttl)).await?;
        }
        let at = self.stamp().micros().max(written.saturating_add(1));
        self.write(&self.statements().write_parked, (at, ttl, reason.is_some(), key.0, key.1)).await
    }

    pub(super) async fn read_parked(&self, id: PostId) -> Result<Vec<ParkedChunk>> {
        let chunks = self.select::<(i32, Option<bool>)>(&self.statements().parked_chunks, (uuid_of(id),)).await?;
        let parked: Vec<i32> =
            chunks.into_iter().filter(|(_, parked)| *parked == Some(true)).map(|(no, _)| no).collect();
        if parked.is_empty() {
            return Ok(Vec::new());
        }
        let reasons = self.select::<(i32, Option<String>)>(&self.statements().parked_reasons, (uuid_of(id),)).await?;
        let mut reasons: HashMap<i32, Option<String>> = reasons.into_iter().collect();
        let decode = |no: i32| {
            let reason = reasons.remove(&no).flatten().unwrap_or_default();
            Ok(ParkedChunk { post_id: id, no: uint(no, "a chunk")?, reason })
        };
        parked.into_iter().map(decode).collect()
    }

    /// Removes the viewers of chunks that were written at `until` or before.
    pub(super) async fn sweep_chunks(&self, id: PostId, until: Time) -> Result<()> {
        let numbers = self.select::<(i32,)>(&self.statements().chunk_numbers, (uuid_of(id),)).await?;
        let numbers: Vec<i32> = numbers.into_iter().map(|(no,)| no).collect();
        let sweep = |numbers: &[i32]| {
            let values = (until.micros(), uuid_of(id), numbers.to_vec());
            async move { self.write(&self.statements().sweep_chunks, values).await }
        };
        self.concurrently(numbers.chunks(IN_MAX).map(sweep).collect()).await.map(|_| ())
    }
}
