//! The registry of the revision store's lives.

use scylla::statement::prepared::PreparedStatement;

use super::session::{Conditional, pause_before};
use super::{ScyllaStore, int, uint};
use crate::domain::{Fence, Time};
use crate::error::{Error, Kind, Result};
use crate::ports::FenceEntry;

/// There is one revision store.
const SCOPE: &str = "main";
/// Tries to be the next; every one that fails means that another process was.
const ATTEMPTS: u32 = 20;

impl ScyllaStore {
    pub(super) async fn add_fence(&self, nonce: u64, replid: &str, seen: Option<u32>) -> Result<Fence> {
        let (mut unknown, mut before) = (None, seen);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                pause_before(attempt).await;
            }
            let newest = match self.read_fence(&self.statements().newest_fence_settled).await {
                Ok(newest) => newest,
                Err(error) if error.kind() == Kind::Unavailable => {
                    unknown = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            // The nonce is random and ours: there already, if an earlier try was applied and its answer lost.
            if let Some(newest) = newest.as_ref().filter(|(newest, _)| newest.nonce == nonce) {
                return Ok(newest.0);
            }
            // Lost to another process that registered the same life: that is all that was wanted.
            let first = *before.get_or_insert(newest.as_ref().map_or(0, |(newest, _)| newest.seq));
            if let Some((newest, _)) = newest.as_ref().filter(|(newest, known)| newest.seq > first && known == replid) {
                return Ok(*newest);
            }
            let next = newest.map_or(0, |(newest, _)| newest.seq).checked_add(1);
            let seq = next.ok_or_else(|| Error::internal("the fence registry is used up"))?;
            let values = (SCOPE, int(seq)?, nonce.cast_signed(), replid, self.now().micros());
            match self.shared.requests.conditional(&self.statements().register_fence, values).await? {
                Conditional::Applied => return Ok(Fence { seq, nonce }),
                Conditional::Refused => {}
                Conditional::Unknown(error) => unknown = Some(error),
            }
        }
        Err(unknown.unwrap_or_else(|| Error::unavailable("store_unavailable", "the fence could not be registered")))
    }

    pub(super) async fn read_newest_fence(&self) -> Result<Option<(Fence, String)>> {
        self.read_fence(&self.statements().newest_fence).await
    }

    pub(super) async fn read_fences(&self, limit: u32) -> Result<Vec<FenceEntry>> {
        type Cells = (i32, i64, String, Option<i64>);
        let found = self.select::<Cells>(&self.statements().fences, (SCOPE, int(limit)?)).await?;
        let decode = |(seq, nonce, replid, at): Cells| {
            let fence = Fence { seq: uint(seq, "a fence")?, nonce: nonce.cast_unsigned() };
            Ok(FenceEntry { fence, replid, at: Time::from_micros(at.unwrap_or(0)) })
        };
        found.into_iter().map(decode).collect()
    }

    async fn read_fence(&self, statement: &PreparedStatement) -> Result<Option<(Fence, String)>> {
        let rows = self.select::<(i32, i64, String)>(statement, (SCOPE,)).await?;
        let decode = |(seq, nonce, replid): &(i32, i64, String)| {
            Ok((Fence { seq: uint(*seq, "a fence")?, nonce: nonce.cast_unsigned() }, replid.clone()))
        };
        rows.first().map(decode).transpose()
    }
}
