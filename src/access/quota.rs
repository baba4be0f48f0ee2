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
use crate::domain::{Charge, Charged, Holder, KeyId, Rate, Take, ViewerId};
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
/// The place of rows among them.
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
    pub async fn charge(&self, key: KeyId, cost: Cost) -> Result<()> {
        if !self.limits_keys() {
            return Ok(());
        }
        let costs = [1, cost.rows, cost.bytes];
        let takes = std::array::from_fn(|at| Some(Take { rate: self.rates[at]?, cost: costs[at] }));
        self.take(&Charge { holder: Holder::Key(key), takes, anyway: false }, SETTINGS).await
    }

    /// Adds to what `key` has cost, after it was let in.
    pub async fn add_rows(&self, key: KeyId, rows: u64) {
        if !self.limits_rows() {
            return;
        }
        // At no cost the others are there all the same: the count has one account for all of them.
        let cost = |at| if at == ROWS { rows } else { 0 };
        let takes = std::array::from_fn(|at| Some(Take { rate: self.rates[at]?, cost: cost(at) }));
        self.ask(&Charge { holder: Holder::Key(key), takes, anyway: true }).await;
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
        self.take(&Charge { holder: Holder::Viewer(viewer), takes, anyway: false }, [POLLS; ALLOWANCES]).await
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

    async fn take(&self, charge: &Charge<'_>, settings: [&'static str; ALLOWANCES]) -> Result<()> {
        let Some(refused) = self.ask(charge).await.refused else { return Ok(()) };
        let take = charge.takes[refused.at].ok_or_else(|| Error::internal("a quota that is not set has refused"))?;
        Err(exceeded(settings[refused.at], take.rate, refused.wait))
    }

    async fn ask(&self, charge: &Charge<'_>) -> Charged {
        if self.share.may_ask() {
            match self.counted.charge(charge).await {
                Ok(charged) => {
                    self.share.works();
                    if let adapters::Quotas::Redis(_) = self.counted {
                        self.here.follow(charge, charged.left);
                    }
                    return charged;
                }
                Err(error) => self.share.failed(&error),
            }
        }
        self.here.charge_share(charge, self.share.nodes())
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

    #[tokio::test]
    async fn nothing_is_limited_where_a_quota_is_zero() {
        let quotas = quotas(|_| {});
        assert!(!quotas.limits_keys());
        let ben = ViewerId::parse("v", "ben").expect("valid");
        for _ in 0..10_000 {
            quotas.charge(key(1), Cost { rows: u64::MAX, bytes: u64::MAX }).await.expect("no limit");
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
