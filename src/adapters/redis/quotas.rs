//! Quotas counted in Redis for all API nodes: one script call a charge, over the connection that polls use.

use std::time::Duration;

use super::{RedisRevisions, cannot};
use crate::domain::quota::ALLOWANCES;
use crate::domain::{Charge, Charged, Refused};
use crate::error::{Error, Result};
use crate::ports::Quotas;

/// Quotas in the Redis that has the revisions. They end with its connection and come back with the next; no fence guards
/// them: a master that was deposed lets in too much until it is found out, within `redis.fence_confirm_ms_max`.
#[derive(Clone, Debug)]
pub struct RedisQuotas {
    revisions: RedisRevisions,
    timeout: Duration,
}

impl RedisQuotas {
    /// Over the connection of `revisions`; a charge takes `timeout` at most.
    pub(super) fn new(revisions: RedisRevisions, timeout: Duration) -> Self {
        Self { revisions, timeout }
    }
}

impl Quotas for RedisQuotas {
    async fn charge(&self, charge: &Charge<'_>) -> Result<Charged> {
        let life = self.revisions.life()?;
        life.still_in_force()?;
        let inner = &self.revisions.inner;
        let call = life.answer(inner.scripts.quota(life.connection(), &inner.keys, charge));
        let answer = tokio::time::timeout(self.timeout, call).await;
        let bytes = answer.map_err(|_| cannot("redis did not answer a charge within quota.shared_timeout_ms"))??;
        decode(charge, &bytes).ok_or_else(|| Error::internal("the script gave no answer to a charge"))
    }
}

/// Which allowance has nothing left, counted from one, and what is left of each.
fn decode(charge: &Charge<'_>, bytes: &[u8]) -> Option<Charged> {
    let (refused, rest) = bytes.split_first()?;
    let (numbers, []) = rest.as_chunks::<8>() else { return None };
    let numbers: &[[u8; 8]; ALLOWANCES] = numbers.try_into().ok()?;
    let left = numbers.map(f64::from_be_bytes);
    let refused = match usize::from(*refused).checked_sub(1) {
        None => None,
        Some(at) => {
            let rate = (*charge.takes.get(at)?)?.rate;
            Some(Refused { at, wait: rate.wait(left[at], 1.0).unwrap_or_default() })
        }
    };
    Some(Charged { refused, left })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Holder, KeyId, Rate, Take, Terms};

    #[test]
    fn what_is_no_answer_is_not_taken_for_one() {
        let take = Take { rate: Rate { per_s: 2, burst: 9 }, cost: 1 };
        let holder = Holder::Key(KeyId::from_bytes([1; 8]));
        let charge = Charge { holder, takes: [None, Some(take), None], terms: Terms::IfLeft };
        let answer = |refused: u8, left: f64| [&[refused][..], &[left.to_be_bytes(); 3].concat()].concat();
        let charged = decode(&charge, &answer(2, -3.0)).expect("an answer");
        assert_eq!(charged.refused, Some(Refused { at: 1, wait: Duration::from_secs(2) }));
        assert_eq!(decode(&charge, &answer(0, 4.0)), Some(Charged { refused: None, left: [4.0; 3] }));
        for bad in [vec![], vec![0; 24], vec![0; 26], answer(1, 0.0), answer(4, 0.0)] {
            assert_eq!(decode(&charge, &bad), None, "{bad:?}");
        }
    }
}
