//! The fence registry as this process uses it: which life of Redis is the current one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::cannot;
use crate::adapters::Store;
use crate::domain::Fence;
use crate::error::Result;
use crate::ports::Store as _;

/// How long a registration counts.
const MEMORY: Duration = Duration::from_secs(3600);
/// The longest wait before the same life is registered again.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Attempts to register before another process is let go first.
const ATTEMPTS: u32 = 3;

/// What this process has registered lately. A process that is led to the wrong server would otherwise take turns with
/// all others in registering, and make every client resync each time.
#[derive(Debug, Default)]
pub struct Registrations(HashMap<String, Registered>);

#[derive(Debug)]
struct Registered {
    times: u32,
    last: Instant,
}

impl Registrations {
    /// The fence of the life `replid`: the newest in the registry if that is of this life, else a new one.
    pub async fn settle(&mut self, store: &Store, replid: &str) -> Result<Fence> {
        // After a registration the registry is read again: another process may have registered the same life at the
        // same time, and the newest entry is what counts.
        for _ in 0..ATTEMPTS {
            if let Some((fence, known)) = store.newest_fence().await?
                && known == replid
            {
                return Ok(fence);
            }
            let wait = self.wait(replid, Instant::now());
            if !wait.is_zero() {
                let detail =
                    format!("this life of redis ({replid}) was current before; waits {wait:.0?} to be it again");
                return Err(cannot(detail));
            }
            store.register_fence(rand::random(), replid).await?;
            self.note(replid, Instant::now());
        }
        Err(cannot("other processes keep registering other lives of redis"))
    }

    /// How long this life has to wait: 2^n seconds since its last registration, n being how often it was registered.
    fn wait(&mut self, replid: &str, now: Instant) -> Duration {
        self.0.retain(|_, known| now.duration_since(known.last) < MEMORY);
        let due = self.0.get(replid).map(|known| {
            let pause = Duration::from_secs(1 << known.times.min(16)).min(WAIT_MAX);
            known.last + pause
        });
        due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    fn note(&mut self, replid: &str, now: Instant) {
        let known = self.0.entry(replid.to_owned()).or_insert(Registered { times: 0, last: now });
        known.times += 1;
        known.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_comes_again_waits_longer_each_time() {
        let (mut registrations, start) = (Registrations::default(), Instant::now());
        assert_eq!(registrations.wait("a", start), Duration::ZERO);
        registrations.note("a", start);
        assert_eq!(registrations.wait("a", start), Duration::from_secs(2));
        assert_eq!(registrations.wait("b", start), Duration::ZERO);
        let later = start + Duration::from_secs(2);
        assert_eq!(registrations.wait("a", later), Duration::ZERO);
        registrations.note("a", later);
        assert_eq!(registrations.wait("a", later), Duration::from_secs(4));
        for _ in 0..20 {
            registrations.note("a", later);
        }
        assert_eq!(registrations.wait("a", later), WAIT_MAX);
        assert_eq!(registrations.wait("a", later + MEMORY), Duration::ZERO, "forgotten");
    }
}
