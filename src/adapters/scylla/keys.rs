//! Idempotency keys: the first claim wins, by conditional writes.

use scylla::DeserializeRow;
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::session::{Conditional, pause_before};
use super::{ScyllaStore, corrupt, id_of, int, ttl_until, uint, uuid_of};
use crate::domain::{PostId, ProducerId};
use crate::error::{Error, Kind, Result};
use crate::ports::{KeyClaim, KeyHolder};

/// Tries of a claim. Each ends with a serial read, so a second is needed only where rivals stopped each other, an answer
/// was lost, or a key went just now.
const ATTEMPTS: u32 = 8;

#[derive(DeserializeRow)]
struct HolderCells {
    post_id: Option<Uuid>,
    fingerprint: Option<Vec<u8>>,
    chunk_size: Option<i32>,
}

impl HolderCells {
    fn decode(self) -> Result<KeyHolder> {
        let broken = || corrupt("an idempotency key");
        Ok(KeyHolder {
            post_id: id_of(self.post_id.ok_or_else(broken)?),
            fingerprint: self.fingerprint.and_then(|bytes| bytes.try_into().ok()).ok_or_else(broken)?,
            chunk_size: uint(self.chunk_size.ok_or_else(broken)?, "an idempotency key")?,
        })
    }
}

impl ScyllaStore {
    /// The holder's post carries the time of the claim: that, not the server's clock, decides whether the key still
    /// counts.
    fn is_alive(&self, holder: &KeyHolder) -> bool {
        holder.post_id.time() > self.now().before(self.shared.options.idempotency_ttl)
    }

    pub(super) async fn claim(&self, claim: &KeyClaim) -> Result<KeyHolder> {
        let mine = KeyHolder { fingerprint: claim.fingerprint, post_id: claim.post_id, chunk_size: claim.chunk_size };
        let (mut outlived, mut unknown) = (None, None);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                pause_before(attempt).await;
            }
            match self.try_claim(claim, outlived).await? {
                Conditional::Applied => return Ok(mine),
                Conditional::Refused => {}
                Conditional::Unknown(error) => unknown = Some(error),
            }
            // Whose it is now. Ours, if an earlier try was applied: nobody else has this post's id.
            match self.read_holder(&self.statements().key_settled, &claim.producer, &claim.key).await {
                Ok(Some(holder)) if holder.post_id == mine.post_id || self.is_alive(&holder) => return Ok(holder),
                Ok(holder) => outlived = holder.map(|holder| holder.post_id),
                Err(error) if error.kind() == Kind::Unavailable => unknown = Some(error),
                Err(error) => return Err(error),
            }
        }
        let detail = "the idempotency key could not be claimed";
        Err(unknown.unwrap_or_else(|| Error::unavailable("store_unavailable", detail)))
    }

    async fn try_claim(&self, claim: &KeyClaim, outlived: Option<PostId>) -> Result<Conditional> {
        let end = claim.post_id.time().after(self.shared.options.idempotency_ttl);
        let ttl = ttl_until(end, self.now()).unwrap_or(1);
        let (producer, key) = (claim.producer.as_str(), claim.key.as_str());
        let (id, fingerprint, size) = (uuid_of(claim.post_id), &claim.fingerprint[..], int(claim.chunk_size)?);
        let (requests, statements) = (&self.shared.requests, self.statements());
        match outlived {
            None => {
                let values = (producer, key, id, fingerprint, size, ttl);
                requests.conditional(&statements.claim_key, values).await
            }
            Some(old) => {
                let values = (ttl, id, fingerprint, size, producer, key, uuid_of(old));
                requests.conditional(&statements.take_key, values).await
            }
        }
    }

    pub(super) async fn holder(&self, producer: &ProducerId, key: &str) -> Result<Option<KeyHolder>> {
        let holder = self.read_holder(&self.statements().key, producer, key).await?;
        Ok(holder.filter(|holder| self.is_alive(holder)))
    }

    async fn read_holder(
        &self,
        statement: &PreparedStatement,
        producer: &ProducerId,
        key: &str,
    ) -> Result<Option<KeyHolder>> {
        let cells = self.select::<HolderCells>(statement, (producer.as_str(), key)).await?;
        cells.into_iter().next().map(HolderCells::decode).transpose()
    }
}
