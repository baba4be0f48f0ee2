//! The overload valve: how long clients are told to wait before they poll or try again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::HeaderValue;

use crate::config::Poll;

/// Counts requests in flight and turns them into a polling interval.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Milliseconds between polls when all is calm.
    base_ms: u64,
    /// The most that clients are ever told.
    max_ms: u64,
    /// Requests in flight from which the interval grows.
    high: u64,
    in_flight: AtomicUsize,
    /// Requests that wait for a fan-out.
    fanouts: AtomicUsize,
    /// The header for each number of seconds, made once.
    values: Box<[HeaderValue]>,
}

/// One request in flight; over when dropped.
#[derive(Debug)]
pub(super) struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that waits for something to change, and is no load meanwhile.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A place among the requests that wait for a fan-out; given up when dropped.
#[derive(Debug)]
pub(super) struct FanoutWait<'a> {
    places: &'a AtomicUsize,
    _waiting: Waiting<'a>,
}

impl Drop for FanoutWait<'_> {
    fn drop(&mut self) {
        self.places.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pacer {
    /// Nothing in flight yet.
    pub(super) fn new(config: &Poll) -> Self {
        let max = config.interval_s_max.max(1);
        Self {
            base_ms: u64::from(config.interval_s) * 1_000,
            max_ms: u64::from(max) * 1_000,
            high: u64::from(config.requests_in_flight_high).max(1),
            in_flight: AtomicUsize::new(0),
            fanouts: AtomicUsize::new(0),
            values: (0..=max).map(HeaderValue::from).collect(),
        }
    }

    /// A request begins.
    pub(super) fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.in_flight)
    }

    /// A request that has begun waits.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        Waiting(&self.in_flight)
    }

    /// A request that has begun waits for a fan-out; `None` if `max` do so already. Each of them reads the store now and
    /// then, so they have a bound of their own, as large as that of the polls that wait.
    pub(super) fn wait_for_fanout(&self, max: u32) -> Option<FanoutWait<'_>> {
        // Counted before it is compared: two that come at once do not get the same last place.
        if self.fanouts.fetch_add(1, Ordering::Relaxed) >= max as usize {
            self.fanouts.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(FanoutWait { places: &self.fanouts, _waiting: self.wait() })
    }

    /// What `X-Poll-Interval` says now, in whole seconds.
    pub(super) fn interval(&self) -> HeaderValue {
        let seconds = self.seconds(rand::random::<u32>() % 201);
        self.values[usize::try_from(seconds).unwrap_or(usize::MAX).min(self.values.len() - 1)].clone()
    }

    /// In how many seconds a client whose copy or request is lost may come back: spread over a third of the interval, so
    /// that those who lost theirs together do not come together.
    pub(super) fn retry_after(&self, least: Option<Duration>) -> u64 {
        let spread = (self.centre_ms() / 3_000).max(2);
        let least = least.map_or(0, |least| least.as_secs().saturating_add(u64::from(least.subsec_nanos() > 0)));
        // A debt may take longer to pay off than there is time.
        least.saturating_add(1 + u64::from(rand::random::<u32>()) % spread)
    }

    /// The interval without jitter: from the usual at `high` requests in flight to the longest at twice as many.
    fn centre_ms(&self) -> u64 {
        let over = (self.in_flight.load(Ordering::Relaxed) as u64).saturating_sub(self.high).min(self.high);
        self.base_ms + self.max_ms.saturating_sub(self.base_ms) * over / self.high
    }

    /// `jitter` of 0..=200 stands for -10 % to +10 %. Mirrored at the longest interval, so that there too the clients
    /// are spread and none is told more.
    fn seconds(&self, jitter: u32) -> u64 {
        let jittered = self.centre_ms() * (900 + u64::from(jitter)) / 1_000;
        let over = jittered.saturating_sub(self.max_ms);
        ((jittered - 2 * over + 500) / 1_000).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_interval_grows_with_the_load_and_stays_in_bounds() {
        let config = Poll { interval_s: 10, interval_s_max: 100, requests_in_flight_high: 4 };
        let pacer = Pacer::new(&config);
        assert_eq!([0, 100, 200].map(|jitter| pacer.seconds(jitter)), [9, 10, 11]);
        let mut held: Vec<_> = (0..4).map(|_| pacer.enter()).collect();
        assert_eq!(pacer.seconds(100), 10, "at the mark all is still calm");
        held.extend((0..2).map(|_| pacer.enter()));
        assert_eq!(pacer.seconds(100), 55);
        let waiting = pacer.wait();
        assert!(pacer.seconds(100) < 55, "who waits is no load");
        drop(waiting);
        held.extend((0..100).map(|_| pacer.enter()));
        assert_eq!([0, 100, 200].map(|jitter| pacer.seconds(jitter)), [90, 100, 90]);
        drop(held);
        assert_eq!(pacer.seconds(100), 10);
        let least = Pacer::new(&Poll { interval_s: 1, interval_s_max: 1, requests_in_flight_high: 1 });
        assert_eq!([0, 200].map(|jitter| least.seconds(jitter)), [1, 1]);
        assert_eq!(least.interval(), "1");
    }

    #[test]
    fn so_many_wait_for_a_fan_out_and_give_their_places_back() {
        let pacer = Pacer::new(&Poll { interval_s: 10, interval_s_max: 100, requests_in_flight_high: 4 });
        let _held: Vec<_> = (0..6).map(|_| pacer.enter()).collect();
        let first = pacer.wait_for_fanout(2).expect("the first");
        let _second = pacer.wait_for_fanout(2).expect("the second");
        assert!(pacer.wait_for_fanout(2).is_none());
        assert_eq!(pacer.seconds(100), 10, "who waits is no load");
        drop(first);
        assert!(pacer.wait_for_fanout(2).is_some());
    }

    #[test]
    fn who_is_sent_away_together_does_not_come_back_together() {
        let pacer = Pacer::new(&Poll { interval_s: 10, interval_s_max: 100, requests_in_flight_high: 4 });
        let told: BTreeSet<u64> = (0..100).map(|_| pacer.retry_after(Some(Duration::from_secs(3)))).collect();
        assert!(told.len() > 1, "all at once, after {told:?}");
        assert!(told.iter().all(|seconds| (4..=6).contains(seconds)), "too early, or much too late: {told:?}");
    }

    #[test]
    fn however_long_it_takes_it_can_be_told() {
        let pacer = Pacer::new(&Poll { interval_s: 10, interval_s_max: 100, requests_in_flight_high: 4 });
        let after = |least| pacer.retry_after(least);
        assert!((1..=3).contains(&after(None)), "{}", after(None));
        assert!((4..=7).contains(&after(Some(Duration::from_millis(3_001)))));
        assert_eq!(after(Some(Duration::MAX)), u64::MAX);
    }
}
