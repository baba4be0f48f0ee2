//! Quotas: how much a producer's key may publish, and how often a viewer may poll.
//!
//! In a cluster they are counted in Redis, for all API nodes. While that cannot be asked each node goes by its share: what
//! was left when Redis last answered, divided by the number of nodes, and the rate divided likewise. So what all nodes let
//! in too much at such a switch is at most the burst once: those that knew nothing of a holder take it for full. At the
//! switch back it is once more at most the burst, for Redis has refilled meanwhile what the nodes have given away.

use std::time::Duration;

use metrics::counter;

use super::share::Share;
use crate::adapters::embedded::{EmbeddedQuotas, QuotaLimits};
use crate::adapters::{self, Revisions, Store};
use crate::config;
use crate::domain::quota::ALLOWANCES;
use crate::domain::{Charge, Charged, Holder, KeyId, Rate, Take, Terms, ViewerId};
use crate::error::{Error, Kind, Result};
use crate::ports::Quotas as _;

/// What a client is told of one allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Which one.
    pub name: &'static str,
    /// The rate.
    pub rate: Rate,
    /// Whole units left.
    pub left: u64,
    /// Until it is full again.
    pub full_in: Duration,
}

/// The allowances of a producer's key, by name.
const NAMES: [&str; ALLOWANCES] = ["posts", "rows", "bytes"];
/// That of a viewer, in the same form.
const POLL_NAMES: [&str; ALLOWANCES] = ["polls", "", ""];
/// The place of posts among them.
const POSTS: usize = 0;
/// That of rows.
const ROWS: usize = 1;
/// The field of a refusal, by the same order.
const SETTINGS: [&str; ALLOWANCES] = ["quota.posts_per_s", "quota.rows_per_s", "quota.bytes_per_s"];
/// The field of a refused poll.
const POLLS: &str = "quota.polls_per_s";

/// What a post costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Inbox rows.
    pub rows: u64,
    /// Bytes of the body's data.
    pub bytes: u64,
}

/// What a post has paid, and where: it can be given back there.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    key: KeyId,
    cost: Cost,
    /// Among how many nodes the quotas were shared, if this node's share was charged.
    share: Option<u32>,
}

/// Everybody's allowances.
#[derive(Debug)]
pub struct Quotas {
    rates: [Option<Rate>; ALLOWANCES],
    poll_rate: Option<Rate>,
    /// The count that decides while it answers.
    counted: adapters::Quotas,
    /// The same as that in one process; in a cluster what it said last, and the count of this node's share.
    here: EmbeddedQuotas,
    share: Share,
}

impl Quotas {
    /// What the configuration asks for, counted beside `revisions`: in this process, or for all processes.
    pub fn new(quota: &config::Quota, keys_max: u32, revisions: &Revisions) -> Self {
        let rates = [
            Rate::new(quota.posts_per_s, quota.posts_burst),
            Rate::new(quota.rows_per_s, quota.rows_burst),
            Rate::new(quota.bytes_per_s, quota.bytes_burst),
        ];
        let poll_rate = Rate::new(quota.polls_per_s, quota.polls_burst);
        let here =
            EmbeddedQuotas::new(QuotaLimits { keys_max: u64::from(keys_max), viewers_max: quota.viewers_tracked_max });
        Self {
            rates,
            poll_rate,
            counted: revisions.quotas(here.clone(), Duration::from_millis(quota.shared_timeout_ms)),
            here,
            share: Share::new(Duration::from_millis(quota.shared_pause_ms)),
        }
    }

    /// Whether keys have any quota at all.
    pub fn limits_keys(&self) -> bool {
        self.rates.iter().any(Option::is_some)
    }

    /// Whether rows have one.
    pub fn limits_rows(&self) -> bool {
        self.rates[ROWS].is_some()
    }

    /// Whether polls have any.
    pub fn limits_polls(&self) -> bool {
        self.poll_rate.is_some()
    }

    /// Charges `key` with a post, or refuses it without having charged anything.
    pub async fn charge(&self, key: KeyId, cost: Cost) -> Result<Option<Receipt>> {
        if !self.limits_keys() {
            return Ok(None);
        }
        let share = self.take(&self.of_key(key, [1, cost.rows, cost.bytes], Terms::IfLeft), SETTINGS).await?;
        Ok(Some(Receipt { key, cost, share }))
    }

    /// Gives back the rows and bytes of a post that was charged and then refused, or that repeats another. The post itself
    /// stays charged, so that whoever spins on a retry is held back: without a limit of posts nothing else would do that, and
    /// nothing is given back. Nor where the count cannot be asked: what was charged refills by itself. It goes back to whoever
    /// was charged: the count of all knows nothing of a share's.
    pub async fn give_back(&self, receipt: Receipt) {
        let Receipt { key, cost, share } = receipt;
        if self.rates[POSTS].is_none() || self.rates[ROWS..].iter().all(Option::is_none) {
            return;
        }
        let charge = self.of_key(key, [0, cost.rows, cost.bytes], Terms::Back);
        if let Some(nodes) = share {
            self.here.charge_share(&charge, nodes);
        } else if self.share.is_shared() {
            match self.counted.charge(&charge).await {
                Ok(charged) => {
                    if let adapters::Quotas::Redis(_) = self.counted {
                        // Raised first, for it only follows what is less.
                        self.here.charge_share(&charge, 1);
                        self.here.follow(&charge, charged.left);
                    }
                }
                Err(error) => self.share.failed(&error),
            }
        }
    }

    /// Adds to what `key` has cost, after it was let in.
    pub async fn add_rows(&self, key: KeyId, rows: u64) {
        if !self.limits_rows() {
            return;
        }
        self.ask(&self.of_key(key, [0, rows, 0], Terms::Anyway)).await;
    }

    /// What is left to `holder`, as far as this node knows: in a cluster the least that it was told, refilled since; nothing
    /// of whom it has not charged. Empty where nothing is limited.
    pub fn left(&self, holder: Holder<'_>) -> Vec<Allowance> {
        let (names, rates) = match holder {
            Holder::Key(_) => (NAMES, self.rates),
            Holder::Viewer(_) => (POLL_NAMES, [self.poll_rate, None, None]),
        };
        if rates.iter().all(Option::is_none) {
            return Vec::new();
        }
        let known = self.here.left(holder, rates);
        let left = match (&self.counted, known) {
            (_, Some(left)) => left,
            (adapters::Quotas::Embedded(_), None) => [f64::INFINITY; ALLOWANCES],
            (adapters::Quotas::Redis(_), None) => return Vec::new(),
        };
        let nodes = if self.share.is_shared() { 1 } else { self.share.nodes() };
        let each = names.into_iter().zip(rates).zip(left);
        each.filter_map(|((name, rate), left)| {
            let rate = rate?;
            let left = left.min(rate.burst as f64);
            // Below zero it is zero: a cast saturates.
            Some(Allowance { name, rate, left: (left / f64::from(nodes)) as u64, full_in: rate.full_in(left) })
        })
        .collect()
    }

    /// Counts a poll of a viewer's, or what else they ask for by a token of their own.
    pub async fn poll(&self, viewer: &ViewerId) -> Result<()> {
        let Some(rate) = self.poll_rate else { return Ok(()) };
        let takes = [Some(Take { rate, cost: 1 }), None, None];
        self.take(&Charge { holder: Holder::Viewer(viewer), takes, terms: Terms::IfLeft }, [POLLS; ALLOWANCES]).await?;
        Ok(())
    }

    /// Counts the nodes among which quotas are shared when they have to be; runs until it is dropped.
    pub async fn count_nodes(&self, store: &Store) {
        match self.counted {
            adapters::Quotas::Redis(_) if self.limits_keys() || self.limits_polls() => {
                self.share.count_nodes(store).await;
            }
            _ => std::future::pending().await,
        }
    }

    /// Those at no cost are there all the same: the count has one account for all of them.
    fn of_key(&self, key: KeyId, costs: [u64; ALLOWANCES], terms: Terms) -> Charge<'static> {
        let takes = std::array::from_fn(|at| Some(Take { rate: self.rates[at]?, cost: costs[at] }));
        Charge { holder: Holder::Key(key), takes, terms }
    }

    /// Among how many nodes the quotas are shared, if this node's share was charged; an error if nothing was.
    async fn take(&self, charge: &Charge<'_>, settings: [&'static str; ALLOWANCES]) -> Result<Option<u32>> {
        let (charged, share) = self.ask(charge).await;
        let Some(refused) = charged.refused else { return Ok(share) };
        let take = charge.takes[refused.at].ok_or_else(|| Error::internal("a quota that is not set has refused"))?;
        Err(exceeded(settings[refused.at], take.rate, refused.wait))
    }

    async fn ask(&self, charge: &Charge<'_>) -> (Charged, Option<u32>) {
        if self.share.may_ask() {
            match self.counted.charge(charge).await {
                Ok(charged) => {
                    self.share.works();
                    if let adapters::Quotas::Redis(_) = self.counted {
                        self.here.follow(charge, charged.left);
                    }
                    return (charged, None);
                }
                Err(error) => self.share.failed(&error),
            }
        }
        let nodes = self.share.nodes();
        (self.here.charge_share(charge, nodes), Some(nodes))
    }
}

fn exceeded(setting: &'static str, rate: Rate, wait: Duration) -> Error {
    counter!("fanfold_quota_refused_total", "quota" => setting).increment(1);
    let detail = format!("more than {} a second (and {} at once); nothing was done", rate.per_s, rate.burst);
    Error::new(Kind::Limited, "quota_exceeded", detail).with_field(setting).with_retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::embedded::{EmbeddedRevisions, RevisionLimits};
    use crate::domain::Fence;

    fn quotas(change: impl FnOnce(&mut config::Quota)) -> Quotas {
        let mut quota = config::load(&config::Overrides::default(), []).expect("the defaults").quota;
        change(&mut quota);
        let limits = RevisionLimits { records_max: 1, waiters_max: 1 };
        let revisions = EmbeddedRevisions::new(Fence { seq: 1, nonce: 1 }, limits);
        Quotas::new(&quota, 10, &Revisions::Embedded(revisions))
    }

    fn key(n: u8) -> KeyId {
        KeyId::from_bytes([n; 8])
    }

    const SMALL: Cost = Cost { rows: 1, bytes: 10 };

    #[tokio::test]
    async fn a_burst_and_then_a_rate() {
        let quotas = quotas(|quota| (quota.posts_per_s, quota.posts_burst) = (1, 3));
        for _ in 0..3 {
            quotas.charge(key(1), SMALL).await.expect("within the burst");
        }
        let error = quotas.charge(key(1), SMALL).await.expect_err("beyond it");
        assert_eq!((error.code(), error.field()), ("quota_exceeded", Some("quota.posts_per_s")));
        let wait = error.retry_after().expect("a time");
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(500), "{wait:?}");
        quotas.charge(key(2), SMALL).await.expect("another key has its own");
        let left = quotas.left(Holder::Key(key(1)));
        assert_eq!((left.len(), left[0].name, left[0].left), (1, "posts", 0));
    }

    #[tokio::test]
    async fn what_is_refused_is_not_charged_and_what_is_large_goes_into_debt() {
        let quotas = quotas(|quota| {
            (quota.posts_per_s, quota.posts_burst) = (1, 100);
            (quota.rows_per_s, quota.rows_burst) = (10, 100);
        });
        quotas.charge(key(1), Cost { rows: 1_000, bytes: 0 }).await.expect("larger than the burst, and possible");
        for _ in 0..5 {
            let error = quotas.charge(key(1), SMALL).await.expect_err("it has to be paid off");
            assert_eq!(error.field(), Some("quota.rows_per_s"));
            assert!(error.retry_after() > Some(Duration::from_secs(80)), "{error:?}");
        }
        assert_eq!(quotas.left(Holder::Key(key(1)))[0].left, 99, "one post, and not six");
    }

    /// What is left to key 1: posts, rows, bytes.
    fn left(quotas: &Quotas) -> [u64; ALLOWANCES] {
        let left = quotas.left(Holder::Key(key(1)));
        assert_eq!(left.len(), ALLOWANCES);
        std::array::from_fn(|at| left[at].left)
    }

    fn three_quotas() -> Quotas {
        quotas(|quota| {
            quota.shared_pause_ms = 60_000;
            (quota.posts_per_s, quota.posts_burst) = (1, 100);
            (quota.rows_per_s, quota.rows_burst) = (1, 1_000);
            (quota.bytes_per_s, quota.bytes_burst) = (1, 1_000_000);
        })
    }

    const LARGE: Cost = Cost { rows: 5_000, bytes: 500_000 };

    #[tokio::test]
    async fn rows_and_bytes_are_given_back_and_the_post_is_not() {
        let quotas = three_quotas();
        let began = std::time::Instant::now();
        let receipt = quotas.charge(key(1), LARGE).await.expect("all is left").expect("a quota");
        quotas.charge(key(1), SMALL).await.expect_err("in debt");
        quotas.give_back(receipt).await;
        let now = left(&quotas);
        assert!(now[0] >= 99 && now[0] <= 99 + began.elapsed().as_secs(), "{now:?}: the post stays charged");
        assert_eq!(now[1..], [1_000, 1_000_000], "and nothing else, nor is there more than the burst");
        quotas.charge(key(1), SMALL).await.expect("no debt");
    }

    #[tokio::test]
    async fn what_a_share_has_charged_goes_back_to_it() {
        let quotas = three_quotas();
        let gone = Error::unavailable("revisions_unavailable", "away");
        quotas.share.failed(&gone);
        let receipt = quotas.charge(key(1), LARGE).await.expect("all is left").expect("a quota");
        assert_eq!(receipt.share, Some(1));
        // The count of all is back; it has not been charged with this.
        quotas.share.works();
        quotas.give_back(receipt).await;
        assert_eq!(left(&quotas)[1..], [1_000, 1_000_000]);
        // It is gone when something is to be given back that it has charged.
        let receipt = quotas.charge(key(1), LARGE).await.expect("all is left").expect("a quota");
        assert_eq!(receipt.share, None);
        quotas.share.failed(&gone);
        quotas.give_back(receipt).await;
        assert_eq!(left(&quotas)[1], 0, "it refills by itself");
    }

    #[tokio::test]
    async fn nothing_is_limited_where_a_quota_is_zero() {
        let quotas = quotas(|_| {});
        assert!(!quotas.limits_keys());
        let ben = ViewerId::parse("v", "ben").expect("valid");
        for _ in 0..10_000 {
            let receipt = quotas.charge(key(1), Cost { rows: u64::MAX, bytes: u64::MAX }).await.expect("no limit");
            assert!(receipt.is_none(), "nothing to be given back");
            quotas.poll(&ben).await.expect("no limit");
        }
    }

    #[tokio::test]
    async fn a_viewer_polls_at_a_rate() {
        let quotas = quotas(|quota| (quota.polls_per_s, quota.polls_burst) = (1, 2));
        let viewer = |name| ViewerId::parse("v", name).expect("valid");
        for name in ["ben", "cleo"] {
            let mut let_in = 0;
            for _ in 0..5 {
                let_in += u32::from(quotas.poll(&viewer(name)).await.is_ok());
            }
            assert_eq!(let_in, 2, "{name}");
            let left = quotas.left(Holder::Viewer(&viewer(name)));
            assert_eq!((left.len(), left[0].name, left[0].left, left[0].rate.burst), (1, "polls", 0, 2));
        }
    }
}
