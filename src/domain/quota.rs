//! Quotas as numbers: rates, what is left of them, what is taken.
//!
//! An allowance may go into debt: who asks is let in while a unit is left, and is then charged with all that it costs. So
//! what is larger than a burst is possible, what is let in is never half done, and what follows waits the longer.

use std::time::Duration;

use super::{KeyId, ViewerId};

/// How many allowances a holder may have.
pub const ALLOWANCES: usize = 3;

/// A rate, and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So much in a second; never 0.
    pub per_s: u64,
    /// So much at once, after a pause; never 0.
    pub burst: u64,
}

impl Rate {
    /// A rate of the configuration; `None` where it is 0, which stands for no limit.
    pub fn new(per_s: u64, burst: u64) -> Option<Self> {
        (per_s > 0).then_some(Self { per_s, burst: burst.max(1) })
    }

    /// What is left after a time in which nothing was taken.
    pub fn refilled(self, left: f64, since: Duration) -> f64 {
        (left + since.as_secs_f64() * self.per_s as f64).min(self.burst as f64)
    }

    /// How long until `needed` are left; `None` if they are.
    pub fn wait(self, left: f64, needed: f64) -> Option<Duration> {
        let missing = needed - left;
        (missing > 0.0).then(|| seconds(missing / self.per_s as f64))
    }

    /// How long until it is full again.
    pub fn full_in(self, left: f64) -> Duration {
        self.wait(left, self.burst as f64).unwrap_or_default()
    }
}

/// A debt can be so large that its end is beyond any time there is.
fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX)
}

/// Whose allowances they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder<'a> {
    /// A producer's key: what it publishes.
    Key(KeyId),
    /// A viewer, whoever asks for them: their polls.
    Viewer(&'a ViewerId),
}

/// What is to be taken from one allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// The allowance.
    pub rate: Rate,
    /// How many units.
    pub cost: u64,
}

/// On which terms a charge is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// All of it, if a unit is left of each allowance; else nothing.
    IfLeft = 0,
    /// Whatever is left: for what turns out to cost more after it was let in.
    Anyway = 1,
    /// Put back, as far as it fits: for what was taken and came to nothing.
    Back = 2,
}

/// What is to be taken from all allowances of a holder, or put back.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'a> {
    /// Whose.
    pub holder: Holder<'a>,
    /// Each at its place, which never changes; `None` where there is no limit.
    pub takes: [Option<Take>; ALLOWANCES],
    /// How.
    pub terms: Terms,
}

/// What became of a charge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Charged {
    /// Why nothing was taken; `None` if all of it was.
    pub refused: Option<Refused>,
    /// What is left of each allowance, below zero while a debt is paid off. Where there is no limit it means nothing.
    pub left: [f64; ALLOWANCES],
}

/// The allowance of which nothing was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its place: the first of them.
    pub at: usize,
    /// How long until something is left, if nobody takes it before.
    pub wait: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_fills_up_to_its_burst_and_no_further() {
        let rate = Rate::new(2, 10).expect("a rate");
        assert_eq!(rate.refilled(0.0, Duration::from_secs(3)), 6.0);
        assert_eq!(rate.refilled(9.0, Duration::from_secs(3)), 10.0);
        assert_eq!(rate.refilled(f64::INFINITY, Duration::ZERO), 10.0, "never used");
        assert_eq!((rate.wait(1.0, 1.0), rate.wait(0.0, 1.0)), (None, Some(Duration::from_millis(500))));
        assert_eq!((rate.full_in(-10.0), rate.full_in(10.0)), (Duration::from_secs(10), Duration::ZERO));
    }

    #[test]
    fn nothing_a_second_is_no_limit_and_a_burst_is_at_least_one() {
        assert_eq!(Rate::new(0, 10), None);
        assert_eq!(Rate::new(1, 0), Some(Rate { per_s: 1, burst: 1 }));
        assert_eq!(Rate { per_s: 1, burst: 1 }.wait(-1e30, 1.0), Some(Duration::MAX), "too long to be told");
    }
}
