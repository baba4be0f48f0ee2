//! Quotas: how much a producer's key may publish, and how often a viewer may poll. Counted by each process for itself.
//!
//! A bucket may go into debt: a request is let in while anything is left, and is then charged with all that it costs. So a
//! post that is larger than the burst is possible, what is let in is never half done, and what follows waits the longer.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;

use crate::config;
use crate::domain::{KeyId, ViewerId};
use crate::error::{Error, Kind, Result};

/// A rate, and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So much in a second.
    pub per_s: u64,
    /// So much at once, after a pause.
    pub burst: u64,
}

impl Rate {
    /// A rate of the configuration; `None` where it is 0, which stands for no limit.
    fn new(per_s: u64, burst: u64) -> Option<Self> {
        (per_s > 0).then_some(Self { per_s, burst: burst.max(1) })
    }
}

/// One allowance that refills.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// What is left; below zero while something larger is being paid off.
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst as f64, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.rate.per_s as f64).min(self.rate.burst as f64);
        self.at = now;
    }

    /// How long until something is left again; `None` if something is.
    fn wait(&self) -> Option<Duration> {
        let missing = 1.0 - self.left;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / self.rate.per_s as f64))
    }
}

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
const NAMES: [&str; 3] = ["posts", "rows", "bytes"];
/// The place of rows among them.
const ROWS: usize = 1;
/// The field of a refusal, by the same order.
const SETTINGS: [&str; 3] = ["quota.posts_per_s", "quota.rows_per_s", "quota.bytes_per_s"];

/// What a post costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Inbox rows.
    pub rows: u64,
    /// Bytes of the body's data.
    pub bytes: u64,
}

type Buckets = Arc<Mutex<[Option<Bucket>; 3]>>;

/// Everybody's allowances. Those that have not been used for a while are full again, and forgotten.
#[derive(Debug)]
pub struct Quotas {
    rates: [Option<Rate>; 3],
    keys: moka::sync::Cache<KeyId, Buckets>,
    poll_rate: Option<Rate>,
    viewers: moka::sync::Cache<ViewerId, Arc<Mutex<Bucket>>>,
}

impl Quotas {
    /// What the configuration asks for.
    pub fn new(quota: &config::Quota, keys_max: u32) -> Self {
        let rates = [
            Rate::new(quota.posts_per_s, quota.posts_burst),
            Rate::new(quota.rows_per_s, quota.rows_burst),
            Rate::new(quota.bytes_per_s, quota.bytes_burst),
        ];
        let poll_rate = Rate::new(quota.polls_per_s, quota.polls_burst);
        let fill = |rate: Rate| Duration::from_secs(rate.burst / rate.per_s + 1);
        let longest = rates.iter().flatten().copied().map(fill).max().unwrap_or_default();
        Self {
            rates,
            // Debts are paid off in more than the time it takes to fill up, so they are kept longer.
            keys: idle_cache(u64::from(keys_max), longest.saturating_mul(4).max(Duration::from_secs(60))),
            poll_rate,
            viewers: idle_cache(quota.viewers_tracked_max, poll_rate.map_or(Duration::from_secs(1), fill)),
        }
    }

    /// Whether keys have any quota at all.
    pub fn limits_keys(&self) -> bool {
        self.rates.iter().any(Option::is_some)
    }

    /// Charges `key` with a post, or refuses it without having charged anything.
    pub fn charge(&self, key: KeyId, cost: Cost) -> Result<()> {
        if !self.limits_keys() {
            return Ok(());
        }
        let now = Instant::now();
        let buckets = self.buckets(key, now);
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (bucket, setting) in buckets.iter_mut().zip(SETTINGS) {
            let Some(bucket) = bucket else { continue };
            bucket.refill(now);
            if let Some(wait) = bucket.wait() {
                return Err(exceeded(setting, bucket.rate, wait));
            }
        }
        for (bucket, cost) in buckets.iter_mut().zip([1, cost.rows, cost.bytes]) {
            if let Some(bucket) = bucket {
                bucket.left -= cost as f64;
            }
        }
        Ok(())
    }

    /// Adds to what `key` has cost, after it was let in.
    pub fn add_rows(&self, key: KeyId, rows: u64) {
        if self.rates[ROWS].is_none() {
            return;
        }
        let buckets = self.buckets(key, Instant::now());
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = &mut buckets[ROWS] {
            bucket.left -= rows as f64;
        }
    }

    /// What is left to `key`.
    pub fn left(&self, key: KeyId) -> Vec<Allowance> {
        let now = Instant::now();
        let buckets = self.buckets(key, now);
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let each = buckets.iter_mut().zip(NAMES).filter_map(|(bucket, name)| Some((bucket.as_mut()?, name)));
        each.map(|(bucket, name)| {
            bucket.refill(now);
            let missing = bucket.rate.burst as f64 - bucket.left;
            let full_in = Duration::from_secs_f64(missing.max(0.0) / bucket.rate.per_s as f64);
            // Below zero it is zero: a cast saturates.
            Allowance { name, rate: bucket.rate, left: bucket.left as u64, full_in }
        })
        .collect()
    }

    fn buckets(&self, key: KeyId, now: Instant) -> Buckets {
        let full = || Arc::new(Mutex::new(self.rates.map(|rate| rate.map(|rate| Bucket::full(rate, now)))));
        self.keys.get_with(key, full)
    }

    /// Counts a poll of a viewer's.
    pub fn poll(&self, viewer: &ViewerId) -> Result<()> {
        let Some(rate) = self.poll_rate else { return Ok(()) };
        let now = Instant::now();
        let bucket = match self.viewers.get(viewer) {
            Some(bucket) => bucket,
            None => self.viewers.get_with(viewer.clone(), || Arc::new(Mutex::new(Bucket::full(rate, now)))),
        };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.refill(now);
        match bucket.wait() {
            Some(wait) => Err(exceeded("quota.polls_per_s", rate, wait)),
            None => {
                bucket.left -= 1.0;
                Ok(())
            }
        }
    }
}

fn idle_cache<K: Eq + Hash + Send + Sync + 'static, V: Clone + Send + Sync + 'static>(
    max: u64,
    idle: Duration,
) -> moka::sync::Cache<K, V> {
    moka::sync::Cache::builder().max_capacity(max).time_to_idle(idle).build()
}

fn exceeded(setting: &'static str, rate: Rate, wait: Duration) -> Error {
    counter!("fanfold_quota_refused_total", "quota" => setting).increment(1);
    let detail = format!("more than {} a second (and {} at once); nothing was done", rate.per_s, rate.burst);
    Error::new(Kind::Limited, "quota_exceeded", detail).with_field(setting).with_retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(change: impl FnOnce(&mut config::Quota)) -> Quotas {
        let mut quota = config::load(&config::Overrides::default(), []).expect("the defaults").quota;
        change(&mut quota);
        Quotas::new(&quota, 10)
    }

    fn key(n: u8) -> KeyId {
        KeyId::from_bytes([n; 8])
    }

    const SMALL: Cost = Cost { rows: 1, bytes: 10 };

    #[test]
    fn a_burst_and_then_a_rate() {
        let quotas = quotas(|quota| (quota.posts_per_s, quota.posts_burst) = (1, 3));
        for _ in 0..3 {
            quotas.charge(key(1), SMALL).expect("within the burst");
        }
        let error = quotas.charge(key(1), SMALL).expect_err("beyond it");
        assert_eq!((error.code(), error.field()), ("quota_exceeded", Some("quota.posts_per_s")));
        let wait = error.retry_after().expect("a time");
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(500), "{wait:?}");
        quotas.charge(key(2), SMALL).expect("another key has its own");
        let left = quotas.left(key(1));
        assert_eq!((left.len(), left[0].name, left[0].left), (1, "posts", 0));
    }

    #[test]
    fn what_is_refused_is_not_charged_and_what_is_large_goes_into_debt() {
        let quotas = quotas(|quota| {
            (quota.posts_per_s, quota.posts_burst) = (1, 100);
            (quota.rows_per_s, quota.rows_burst) = (10, 100);
        });
        quotas.charge(key(1), Cost { rows: 1_000, bytes: 0 }).expect("larger than the burst, and possible");
        for _ in 0..5 {
            let error = quotas.charge(key(1), SMALL).expect_err("it has to be paid off");
            assert_eq!(error.field(), Some("quota.rows_per_s"));
            assert!(error.retry_after() > Some(Duration::from_secs(80)), "{error:?}");
        }
        assert_eq!(quotas.left(key(1))[0].left, 99, "one post, and not six");
    }

    #[test]
    fn nothing_is_limited_where_a_quota_is_zero() {
        let quotas = quotas(|_| {});
        assert!(!quotas.limits_keys());
        let ben = ViewerId::parse("v", "ben").expect("valid");
        for _ in 0..10_000 {
            quotas.charge(key(1), Cost { rows: u64::MAX, bytes: u64::MAX }).expect("no limit");
            quotas.poll(&ben).expect("no limit");
        }
    }

    #[test]
    fn a_viewer_polls_at_a_rate() {
        let quotas = quotas(|quota| (quota.polls_per_s, quota.polls_burst) = (1, 2));
        let viewer = |name| ViewerId::parse("v", name).expect("valid");
        let polls = |name| (0..5).filter(|_| quotas.poll(&viewer(name)).is_ok()).count();
        assert_eq!((polls("ben"), polls("cleo")), (2, 2));
    }
}
