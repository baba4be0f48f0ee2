//! The fence registry as this process uses it: which life of Redis is the current one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cannot;
use crate::adapters::Store;
use crate::clock::Clock;
use crate::domain::{Fence, Time};
use crate::error::Result;
use crate::faults::{self, Planted};
use crate::ports::{FenceEntry, Store as _};

/// How long a registration counts.
const MEMORY: Duration = Duration::from_secs(3600);
/// The longest wait before the same life is registered again.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Entries of the registry that are looked at: more than can come in an hour of waiting in between.
const ENTRIES: u32 = 100;
/// Attempts to register before another process is let go first.
const ATTEMPTS: u32 = 3;

/// The fence of the life `replid`: the newest in the registry if that is of this life, else a new one.
///
/// A process that is led to the wrong server would otherwise take turns with all others in registering, and make every
/// client resync each time: a life that is in the registry already has to wait, longer each time.
pub async fn settle(store: &Store, clock: &Clock, replid: &str, waiting: &Waiting) -> Result<Fence> {
    // After a registration the registry is read again: another process may have registered another life at the same time,
    // and the newest entry is what counts.
    for _ in 0..ATTEMPTS {
        let entries = store.fences(ENTRIES).await?;
        let known = |newest: &&FenceEntry| newest.replid == replid || faults::planted(Planted::NoFence);
        if let Some(newest) = entries.first().filter(known) {
            return Ok(newest.fence);
        }
        let wait = wait(&entries, replid, clock.now(), |seq| waiting.since(seq));
        if !wait.is_zero() {
            let detail = format!("this life of redis ({replid}) was current before; waits {wait:.0?} to be it again");
            return Err(cannot(detail));
        }
        let seen = entries.first().map_or(0, |newest| newest.fence.seq);
        store.register_fence(rand::random(), replid, Some(seen)).await?;
    }
    Err(cannot("other processes keep registering other lives of redis"))
}

/// Since when a process waits, by its monotonic clock. The entry that it waits for tells another machine's time.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<Option<(u32, Instant)>>);

impl Waiting {
    /// How long ago this process met the entry `seq` first.
    fn since(&self, seq: u32) -> Duration {
        let mut met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seq, since) = met.filter(|(known, _)| *known == seq).unwrap_or((seq, Instant::now()));
        *met = Some((seq, since));
        since.elapsed()
    }
}

/// How long this life has to wait: 2^n seconds since its last registration, n being how often it was registered in the
/// last hour. Whatever the clocks say of when that was, no longer than so many seconds after `met` it here.
fn wait(entries: &[FenceEntry], replid: &str, now: Time, met: impl Fn(u32) -> Duration) -> Duration {
    let lately = |entry: &&FenceEntry| entry.replid == replid && now.since(entry.at) < MEMORY;
    let times = entries.iter().filter(lately).count();
    let Some(last) = entries.iter().find(lately) else { return Duration::ZERO };
    let pause = Duration::from_secs(1 << times.min(16)).min(WAIT_MAX);
    last.at.after(pause).since(now).min(pause.saturating_sub(met(last.fence.seq)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_comes_again_waits_longer_each_time() {
        let at = |s: i64| Time::from_millis(s * 1_000);
        let entry =
            |replid: &str, s| FenceEntry { fence: Fence { seq: 1, nonce: 1 }, replid: replid.into(), at: at(s) };
        let wait = |entries: &[FenceEntry], replid, now| wait(entries, replid, now, |_| Duration::ZERO);
        assert_eq!(wait(&[], "a", at(0)), Duration::ZERO);
        let once = [entry("b", 1), entry("a", 0)];
        assert_eq!(wait(&once, "a", at(0)), Duration::from_secs(2));
        assert_eq!(wait(&once, "c", at(0)), Duration::ZERO);
        assert_eq!(wait(&once, "a", at(2)), Duration::ZERO);
        let twice = [entry("b", 4), entry("a", 3), entry("a", 0)];
        assert_eq!(wait(&twice, "a", at(3)), Duration::from_secs(4));
        let often: Vec<_> = (0..20).map(|s| entry("a", 20 - s)).collect();
        assert_eq!(wait(&often, "a", at(20)), WAIT_MAX);
        assert_eq!(wait(&often, "a", at(20 + 3_600)), Duration::ZERO, "forgotten");
    }

    #[test]
    fn an_entry_by_a_clock_that_is_ahead_is_not_waited_for_longer() {
        let at = Time::from_millis(3_600_000);
        let entry = [FenceEntry { fence: Fence { seq: 7, nonce: 1 }, replid: "a".into(), at }];
        let left = |met: u64| wait(&entry, "a", Time::ZERO, |_| Duration::from_millis(met));
        assert_eq!(left(0), Duration::from_secs(2), "an hour ahead");
        assert_eq!(left(1_500), Duration::from_millis(500));
        assert_eq!(left(2_000), Duration::ZERO, "though the clock of this machine has not come there");

        let long_ago = Instant::now() - MEMORY;
        let waiting = Waiting(Mutex::new(Some((7, long_ago))));
        assert!(waiting.since(7) >= MEMORY);
        assert!(waiting.since(8) < MEMORY, "another entry, another wait");
        assert!(waiting.since(7) < MEMORY, "which begins anew");
    }
}
