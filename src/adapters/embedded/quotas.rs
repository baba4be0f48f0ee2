//! Quotas counted in this process. Holders whose allowances have filled up are forgotten: they are as if never seen.

use std::hash::Hash;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::ops::compute::Op;

use crate::domain::quota::ALLOWANCES;
use crate::domain::{Charge, Charged, Holder, KeyId, Rate, Refused, Take, Terms, ViewerId};
use crate::error::Result;
use crate::ports::Quotas;

/// Beyond the time at which all is full again: nothing is lost by a timer that goes off early.
const KEPT_LONGER: Duration = Duration::from_secs(1);
/// The longest that anybody is known: a debt may take longer to pay off than there is time.
const KEPT_MAX: Duration = Duration::from_secs(10_000_000_000);

/// How many holders are known; past it the least recently seen starts afresh.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLimits {
    /// Keys.
    pub keys_max: u64,
    /// Viewers.
    pub viewers_max: u64,
}

/// What is left to one holder.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// Beyond any burst while it has never been charged: the first look cuts it.
    left: [f64; ALLOWANCES],
    at: Instant,
    /// From then until all is full, debts included.
    full_in: Duration,
}

/// Keeps an account until all of it is full again: from then on it says nothing that its absence does not.
#[derive(Clone, Copy, Debug)]
struct UntilFull;

impl<K> Expiry<K, Account> for UntilFull {
    fn expire_after_create(&self, _: &K, account: &Account, _: Instant) -> Option<Duration> {
        Some(account.full_in.saturating_add(KEPT_LONGER).min(KEPT_MAX))
    }

    fn expire_after_update(&self, key: &K, account: &Account, now: Instant, _: Option<Duration>) -> Option<Duration> {
        self.expire_after_create(key, account, now)
    }
}

type Accounts<K> = moka::sync::Cache<K, Account>;

/// Everybody's allowances. Clones share them.
#[derive(Clone, Debug)]
pub struct EmbeddedQuotas {
    keys: Accounts<KeyId>,
    viewers: Accounts<ViewerId>,
}

impl Account {
    fn full() -> Self {
        Self { left: [f64::INFINITY; ALLOWANCES], at: Instant::now(), full_in: Duration::ZERO }
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

    /// To be called when something was taken.
    fn changed(mut self, rates: [Option<Rate>; ALLOWANCES]) -> Self {
        let each = self.left.iter().zip(rates).filter_map(|(left, rate)| Some(rate?.full_in(*left)));
        self.full_in = each.max().unwrap_or_default();
        self
    }

    /// Charges it as [`EmbeddedQuotas::charge_share`]. What is refused changes nothing.
    fn charge(&mut self, charge: &Charge<'_>, nodes: u32) -> Charged {
        self.refill(rates(charge));
        let nodes = f64::from(nodes.max(1));
        let missing = |at: usize| {
            let rate = charge.takes[at]?.rate;
            let wait = rate.wait(self.left[at], nodes.min(rate.burst as f64))?;
            Some(Refused { at, wait })
        };
        let refused = (0..ALLOWANCES).find_map(missing).filter(|_| charge.terms == Terms::IfLeft);
        if refused.is_none() {
            for (left, take) in self.left.iter_mut().zip(charge.takes) {
                let Some(Take { rate, cost }) = take else { continue };
                let units = cost as f64 * nodes;
                *left =
                    if charge.terms == Terms::Back { (*left + units).min(rate.burst as f64) } else { *left - units };
            }
        }
        Charged { refused, left: self.left }
    }
}

impl EmbeddedQuotas {
    /// Everybody's are full.
    pub fn new(limits: QuotaLimits) -> Self {
        Self { keys: accounts(limits.keys_max), viewers: accounts(limits.viewers_max) }
    }

    /// As [`Quotas::charge`], by one of `nodes` processes that each count for themselves: every unit counts as many times,
    /// so that all of them together keep to the rate and the burst. Where there are more processes than a burst has units
    /// each still lets one in at once, and is in debt then: the rate holds, the burst is as many as there are processes.
    pub fn charge_share(&self, charge: &Charge<'_>, nodes: u32) -> Charged {
        let mut charged = None;
        self.update(charge.holder, |mut account| {
            let answer = charged.insert(account.charge(charge, nodes));
            answer.refused.is_none().then(|| account.changed(rates(charge)))
        });
        charged.expect("an account is looked at whether it is known or not")
    }

    /// Takes over what another count has answered to a charge, where that is less: of two answers at once the later one
    /// may come first, and what this count has let in while the other was away counts on.
    pub fn follow(&self, charge: &Charge<'_>, left: [f64; ALLOWANCES]) {
        self.update(charge.holder, |mut account| {
            account.refill(rates(charge));
            for (known, left) in account.left.iter_mut().zip(left) {
                *known = known.min(left);
            }
            Some(account.changed(rates(charge)))
        });
    }

    /// What is left to a holder now; `None` if it has not been charged lately.
    pub fn left(&self, holder: Holder<'_>, rates: [Option<Rate>; ALLOWANCES]) -> Option<[f64; ALLOWANCES]> {
        let mut account = match holder {
            Holder::Key(id) => self.keys.get(&id),
            Holder::Viewer(viewer) => self.viewers.get(viewer),
        }?;
        account.refill(rates);
        Some(account.left)
    }

    /// Looks at a holder's account while nobody else does; what comes back takes its place.
    fn update(&self, holder: Holder<'_>, look: impl FnOnce(Account) -> Option<Account>) {
        match holder {
            Holder::Key(id) => update(&self.keys, id, look),
            Holder::Viewer(viewer) => update(&self.viewers, viewer.clone(), look),
        }
    }
}

fn rates(charge: &Charge<'_>) -> [Option<Rate>; ALLOWANCES] {
    charge.takes.map(|take| take.map(|take| take.rate))
}

fn accounts<K: Eq + Hash + Send + Sync + 'static>(max: u64) -> Accounts<K> {
    moka::sync::Cache::builder().max_capacity(max).expire_after(UntilFull).build()
}

fn update<K: Eq + Hash + Send + Sync + 'static>(
    accounts: &Accounts<K>,
    key: K,
    look: impl FnOnce(Account) -> Option<Account>,
) {
    accounts.entry(key).and_compute_with(|known| {
        let account = known.map_or_else(Account::full, moka::Entry::into_value);
        look(account).map_or(Op::Nop, Op::Put)
    });
}

impl Quotas for EmbeddedQuotas {
    async fn charge(&self, charge: &Charge<'_>) -> Result<Charged> {
        Ok(self.charge_share(charge, 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quotas() -> EmbeddedQuotas {
        EmbeddedQuotas::new(QuotaLimits { keys_max: 10, viewers_max: 10 })
    }

    fn one(key: u8, burst: u64) -> Charge<'static> {
        let take = Take { rate: Rate { per_s: 1, burst }, cost: 1 };
        Charge {
            holder: Holder::Key(KeyId::from_bytes([key; 8])),
            takes: [Some(take), None, None],
            terms: Terms::IfLeft,
        }
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

    /// How long the account of key 1 is kept from now.
    fn kept(quotas: &EmbeddedQuotas) -> Option<Duration> {
        let id = KeyId::from_bytes([1; 8]);
        UntilFull.expire_after_update(&id, &quotas.keys.get(&id)?, Instant::now(), None)
    }

    #[test]
    fn a_debt_is_known_until_it_is_paid_off_and_all_is_full() {
        let quotas = quotas();
        let rows = |cost, terms| {
            let take = Take { rate: Rate { per_s: 50, burst: 1_000 }, cost };
            Charge { holder: Holder::Key(KeyId::from_bytes([1; 8])), takes: [None, Some(take), None], terms }
        };
        assert_eq!(quotas.charge_share(&rows(10_000, Terms::IfLeft), 1).refused, None);
        // 9,000 rows of debt, and 1,000 until it is full.
        assert_eq!(kept(&quotas), Some(Duration::from_secs(201)));
        assert!(quotas.charge_share(&rows(1, Terms::IfLeft), 1).refused.is_some());
        assert_eq!(kept(&quotas), Some(Duration::from_secs(201)), "what is refused changes nothing");
        quotas.charge_share(&rows(5_000, Terms::Anyway), 1);
        assert!(kept(&quotas).is_some_and(|kept| kept > Duration::from_secs(299)), "{:?}", kept(&quotas));
        quotas.charge_share(&rows(u64::MAX, Terms::Anyway), 1);
        assert_eq!(kept(&quotas), Some(KEPT_MAX), "longer than there is time");
    }

    #[test]
    fn who_is_full_again_is_forgotten_and_not_before() {
        let quotas = quotas();
        let rates = [Rate::new(1_000, 1), None, None];
        let take = Take { rate: Rate { per_s: 1_000, burst: 1 }, cost: 500 };
        let charge = Charge {
            holder: Holder::Key(KeyId::from_bytes([1; 8])),
            takes: [Some(take), None, None],
            terms: Terms::Anyway,
        };
        let begun = Instant::now();
        quotas.charge_share(&charge, 1);
        // What it owes, and the second beyond.
        while let Some(left) = quotas.left(charge.holder, rates) {
            let waited = begun.elapsed();
            assert!(left[0] <= 1.0 && waited < Duration::from_secs(60), "{left:?} after {waited:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
    }

    fn rows(burst: u64, cost: u64, terms: Terms) -> Charge<'static> {
        let take = Take { rate: Rate { per_s: 1, burst }, cost };
        Charge { holder: Holder::Key(KeyId::from_bytes([1; 8])), takes: [None, Some(take), None], terms }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_is_given_back_lifts_an_allowance_above_its_burst(
            burst in 1..1_000_u64,
            steps in prop::collection::vec((any::<bool>(), 0..2_000_u64, 0..5_u32), 1..40),
        ) {
            let quotas = quotas();
            for (back, cost, nodes) in steps {
                let terms = if back { Terms::Back } else { Terms::Anyway };
                let charged = quotas.charge_share(&rows(burst, cost, terms), nodes);
                prop_assert_eq!(charged.refused, None);
                prop_assert!(charged.left[1] <= burst as f64, "{} of {}", charged.left[1], burst);
            }
        }

        #[test]
        fn what_is_given_back_leaves_what_there_was(
            burst in 1..1_000_u64,
            before in 0..2_000_u64,
            cost in 0..1_000_000_u64,
            nodes in 0..5_u32,
        ) {
            let quotas = quotas();
            let began = Instant::now();
            let there_was = quotas.charge_share(&rows(burst, before, Terms::Anyway), 1).left[1];
            quotas.charge_share(&rows(burst, cost, Terms::Anyway), nodes);
            let left = quotas.charge_share(&rows(burst, cost, Terms::Back), nodes).left[1];
            let most = there_was + began.elapsed().as_secs_f64() + 0.001;
            prop_assert!(left >= there_was - 0.001 && left <= most, "{} after {}", left, there_was);
        }
    }
}
