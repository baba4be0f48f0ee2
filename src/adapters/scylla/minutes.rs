//! Which minutes a scan has to look into.
//!
//! Entries lie in buckets of a minute. Nobody writes into a minute that is long over, so a bucket that was found empty
//! then stays empty, and one look at it is enough: a scan visits the minutes of which it does not know this yet, and
//! those that still held something. What is over goes by the store's clock, in which all processes agree.

use std::collections::BTreeSet;

use crate::domain::Time;

const MICROS: i64 = 60_000_000;

/// How far clocks may differ: a minute is over only when this many have passed since, and a scan begins as many before
/// the minute it was told to begin at.
pub const CLOCK_SKEW: i32 = 10;

/// The minute of an instant, counted from 1970.
pub fn minute_of(at: Time) -> i32 {
    let minutes = at.micros().div_euclid(MICROS);
    i32::try_from(minutes).unwrap_or(if minutes < 0 { i32::MIN } else { i32::MAX })
}

/// What a process knows of a table's buckets.
#[derive(Debug)]
pub struct Minutes {
    /// Of every minute up to here it is known whether it still holds something.
    known_through: i32,
    /// Those that do.
    lingering: BTreeSet<i32>,
}

impl Minutes {
    /// Nothing is known but that there is nothing before `low`, give or take the clocks.
    pub fn from_low_water(low: i32) -> Self {
        Self { known_through: low.saturating_sub(CLOCK_SKEW + 1), lingering: BTreeSet::new() }
    }

    /// The minutes to look into, oldest first, from `from` on, to so many `ahead` of the present: 1, for the next begins
    /// soon, or [`CLOCK_SKEW`], for what fast clocks have written.
    pub fn to_visit(&self, from: i32, now: Time, ahead: i32) -> Vec<i32> {
        let unknown = self.known_through.saturating_add(1).max(from);
        let known = self.lingering.range(from.min(unknown)..unknown).copied();
        known.chain(unknown..=minute_of(now).saturating_add(ahead)).collect()
    }

    /// Whether something was left in a minute that is over.
    pub fn lingers(&self, minute: i32) -> bool {
        self.lingering.contains(&minute)
    }

    /// What was found in a minute that was looked into as a whole.
    pub fn visited(&mut self, minute: i32, is_empty: bool, now: Time) {
        if minute >= minute_of(now).saturating_sub(CLOCK_SKEW) {
            return;
        }
        if is_empty {
            self.lingering.remove(&minute);
        } else {
            self.lingering.insert(minute);
        }
        if minute == self.known_through.saturating_add(1) {
            self.known_through = minute;
        }
    }

    /// The first minute that may hold something.
    pub fn low_water(&self) -> i32 {
        self.lingering.first().copied().unwrap_or(self.known_through.saturating_add(1))
    }

    /// Looks into everything from `minute` on again: what a clock that was far off wrote is found then.
    pub fn begin_anew(&mut self, minute: i32) {
        self.known_through = self.known_through.min(minute.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i32) -> Time {
        Time::from_micros(i64::from(minute) * MICROS + 1)
    }

    #[test]
    fn a_minute_that_is_over_and_empty_is_not_looked_into_again() {
        let mut minutes = Minutes::from_low_water(100);
        assert_eq!(minutes.low_water(), 90, "less the clocks");
        assert_eq!(minutes.to_visit(0, at(100), 1), (90..=101).collect::<Vec<_>>());
        let now = at(103);
        for minute in 90..=104 {
            minutes.visited(minute, minute != 91, now);
        }
        assert_eq!(minutes.low_water(), 91);
        let expected: Vec<_> = [91].into_iter().chain(93..=104).collect();
        assert_eq!(minutes.to_visit(0, now, 1), expected, "93 is not over yet, 91 held something");
        minutes.visited(91, true, now);
        assert_eq!(minutes.low_water(), 93);
        assert_eq!(minutes.to_visit(100, now, 1), (100..=104).collect::<Vec<_>>());
        minutes.begin_anew(50);
        assert_eq!(minutes.to_visit(0, now, 1).first(), Some(&50));
    }

    #[test]
    fn a_scan_that_begins_in_the_middle_leaves_no_gap_behind() {
        let mut minutes = Minutes::from_low_water(100);
        minutes.visited(95, true, at(200));
        assert_eq!(minutes.low_water(), 90, "90 to 94 are still unknown");
    }
}
