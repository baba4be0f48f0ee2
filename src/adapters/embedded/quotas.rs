//! Quotas counted in this process. Holders that have not been seen for a while have filled up, and are forgotten.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::quota::ALLOWANCES;
use crate::domain::{Charge, Charged, Holder, KeyId, Rate, Refused, ViewerId};
use crate::error::Result;
use crate::ports::Quotas;

/// How many holders are known, and for how long after they were last seen.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLimits {
    /// Keys.
    pub keys_max: u64,
    /// How long a key is known: longer than it takes to fill up, for debts take longer.
    pub keys_idle: Duration,
    /// Viewers; past it the least recently seen starts afresh.
    pub viewers_max: u64,
    /// How long a viewer is known.
    pub viewers_idle: Duration,
}

/// What is left to one holder.
#[derive(Debug)]
struct Account {
    /// Beyond any burst while it has never been charged: the first look cuts it. Whole numbers come and go under the lock,
    /// so a panic elsewhere does not spoil it.
    left: [f64; ALLOWANCES],
    at: Instant,
}

type Accounts<K> = moka::sync::Cache<K, Arc<Mutex<Account>>>;

/// Everybody's allowances. Clones share them.
#[derive(Clone, Debug)]
pub struct EmbeddedQuotas {
    keys: Accounts<KeyId>,
    viewers: Accounts<ViewerId>,
}

impl Account {
    fn full() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { left: [f64::INFINITY; ALLOWANCES], at: Instant::now() }))
    }

    fn refill(&mut self, rates: [Option<Rate>; ALLOWANCES]) {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.at);
        for (left, rate) in self.left.iter_mut().zip(rates) {
            if let Some(rate) = rate {
                *left = rate.refilled(*left, since);
            }
        }
        self.at = now;
    }
}

impl EmbeddedQuotas {
    /// Everybody's are full.
    pub fn new(limits: QuotaLimits) -> Self {
        Self {
            keys: accounts(limits.keys_max, limits.keys_idle),
            viewers: accounts(limits.viewers_max, limits.viewers_idle),
        }
    }

    /// As [`Quotas::charge`], by one of `nodes` processes that each count for themselves: every unit counts as many times,
    /// so that all of them together keep to the rate and the burst. Where there are more processes than a burst has units
    /// each still lets one in at once, and is in debt then: the rate holds, the burst is as many as there are processes.
    pub fn charge_share(&self, charge: &Charge<'_>, nodes: u32) -> Charged {
        let account = self.account(charge.holder);
        let mut account = account.lock().unwrap_or_else(PoisonError::into_inner);
        account.refill(rates(charge));
        let nodes = f64::from(nodes.max(1));
        let missing = |at: usize| {
            let rate = charge.takes[at]?.rate;
            let wait = rate.wait(account.left[at], nodes.min(rate.burst as f64))?;
            Some(Refused { at, wait })
        };
        let refused = if charge.anyway { None } else { (0..ALLOWANCES).find_map(missing) };
        if refused.is_none() {
            for (left, take) in account.left.iter_mut().zip(charge.takes) {
                *left -= take.map_or(0.0, |take| take.cost as f64 * nodes);
            }
        }
        Charged { refused, left: account.left }
    }

    /// Takes over what another count has answered to a charge, where that is less: of two answers at once the later one
    /// may come first, and what this count has let in while the other was away counts on.
    pub fn follow(&self, charge: &Charge<'_>, left: [f64; ALLOWANCES]) {
        let account = self.account(charge.holder);
        let mut account = account.lock().unwrap_or_else(PoisonError::into_inner);
        account.refill(rates(charge));
        for (known, left) in account.left.iter_mut().zip(left) {
            *known = known.min(left);
        }
    }

    /// What is left to a holder now; `None` if it has not been charged lately.
    pub fn left(&self, holder: Holder<'_>, rates: [Option<Rate>; ALLOWANCES]) -> Option<[f64; ALLOWANCES]> {
        let account = match holder {
            Holder::Key(id) => self.keys.get(&id),
            Holder::Viewer(viewer) => self.viewers.get(viewer),
        }?;
        let mut account = account.lock().unwrap_or_else(PoisonError::into_inner);
        account.refill(rates);
        Some(account.left)
    }

    fn account(&self, holder: Holder<'_>) -> Arc<Mutex<Account>> {
        match holder {
            Holder::Key(id) => self.keys.get_with(id, Account::full),
            Holder::Viewer(viewer) => match self.viewers.get(viewer) {
                Some(account) => account,
                None => self.viewers.get_with(viewer.clone(), Account::full),
            },
        }
    }
}

fn rates(charge: &Charge<'_>) -> [Option<Rate>; ALLOWANCES] {
    charge.takes.map(|take| take.map(|take| take.rate))
}

fn accounts<K: Eq + Hash + Send + Sync + 'static>(max: u64, idle: Duration) -> Accounts<K> {
    moka::sync::Cache::builder().max_capacity(max).time_to_idle(idle).build()
}

impl Quotas for EmbeddedQuotas {
    async fn charge(&self, charge: &Charge<'_>) -> Result<Charged> {
        Ok(self.charge_share(charge, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Take;

    fn quotas() -> EmbeddedQuotas {
        let hour = Duration::from_secs(3_600);
        EmbeddedQuotas::new(QuotaLimits { keys_max: 10, keys_idle: hour, viewers_max: 10, viewers_idle: hour })
    }

    fn one(key: u8, burst: u64) -> Charge<'static> {
        let take = Take { rate: Rate { per_s: 1, burst }, cost: 1 };
        Charge { holder: Holder::Key(KeyId::from_bytes([key; 8])), takes: [Some(take), None, None], anyway: false }
    }

    fn let_in(quotas: &EmbeddedQuotas, charge: &Charge<'_>, nodes: u32) -> usize {
        (0..).take_while(|_| quotas.charge_share(charge, nodes).refused.is_none()).count()
    }

    #[test]
    fn each_of_several_lets_in_its_share() {
        let quotas = quotas();
        for (key, nodes, share) in [(1, 1, 100), (2, 2, 50), (3, 3, 33), (4, 0, 100)] {
            let count = let_in(&quotas, &one(key, 100), nodes);
            // What refills meanwhile is little, and less than one for all but a machine that stands still.
            assert!((share..share + 10).contains(&count), "{count} by one of {nodes}");
        }
    }

    #[test]
    fn a_share_of_less_than_one_is_let_in_and_paid_off_by_all_of_it() {
        let quotas = quotas();
        assert_eq!(let_in(&quotas, &one(1, 2), 1_000), 1);
        let refused = quotas.charge_share(&one(1, 2), 1_000).refused.expect("in debt");
        assert!(refused.wait > Duration::from_secs(900), "{refused:?}: one in a thousand seconds");
    }

    #[test]
    fn what_another_count_says_is_taken_over() {
        let quotas = quotas();
        let (charge, rates) = (one(1, 100), [Rate::new(1, 100), None, None]);
        assert_eq!(quotas.left(charge.holder, rates), None, "never charged");
        for left in [10.0, 50.0] {
            quotas.follow(&charge, [left, f64::INFINITY, f64::INFINITY]);
        }
        let count = let_in(&quotas, &charge, 2);
        assert!((5..15).contains(&count), "{count}: half of the lesser answer");
        assert!(quotas.left(charge.holder, rates).expect("charged")[0] < 10.0);
    }
}
