//! Reads of a store that many wait for, so many at a time.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::error::{Error, Result};

/// So many reads at a time. Who waits for a turn while a read fails has its answer: in a store that hangs each read takes
/// its timeout, and one after the other they would take ever longer.
#[derive(Debug)]
pub struct Turns {
    places: Semaphore,
    /// What is said to those who waited while a read failed.
    detail: &'static str,
    /// When a read last failed, and why. Replaced as a whole: no panic leaves it half changed.
    failed: Mutex<Option<(Instant, String)>>,
}

impl Turns {
    /// `at_once` reads at a time; who waited while one failed is told `detail` and why.
    pub fn new(at_once: usize, detail: &'static str) -> Self {
        Self { places: Semaphore::new(at_once), detail, failed: Mutex::default() }
    }

    /// What `known` gives when the turn has come, or what `read` brings.
    pub async fn take<T, F: Future<Output = Result<T>>>(
        &self,
        known: impl Fn() -> Option<T>,
        read: impl FnOnce() -> F,
    ) -> Result<T> {
        let asked = Instant::now();
        let closed = |_| Error::internal("the turns of reads are closed");
        let _turn = self.places.acquire().await.map_err(closed)?;
        if let Some(known) = known() {
            return Ok(known);
        }
        self.failed_since(asked)?;
        let result = read().await;
        if let Err(error) = &result {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), error.to_string()));
        }
        result
    }

    fn failed_since(&self, asked: Instant) -> Result<()> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((at, reason)) if *at > asked => {
                Err(Error::unavailable("store_unavailable", self.detail).with_source(reason.clone()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::error::Kind;

    const DETAIL: &str = "nothing can be read now";
    const NOTHING: fn() -> Option<u32> = || None;

    #[tokio::test]
    async fn who_waits_while_a_read_fails_does_not_read_again() {
        let (turns, reads, hung) = (Turns::new(1, DETAIL), AtomicUsize::new(0), Notify::new());
        let read = || async {
            reads.fetch_add(1, Ordering::Relaxed);
            hung.notified().await;
            Err(Error::unavailable("store_unavailable", "no answer in time"))
        };
        let waiting = futures::future::join_all((0..100).map(|_| turns.take(NOTHING, read)));
        // Polled second: by then all of them wait.
        let (results, ()) = tokio::join!(waiting, async { hung.notify_one() });
        assert_eq!(reads.load(Ordering::Relaxed), 1, "a hundred timeouts, one after the other");
        let mut said = BTreeSet::new();
        for error in results.into_iter().map(|result| result.expect_err("unreadable")) {
            assert_eq!((error.code(), error.kind()), ("store_unavailable", Kind::Unavailable));
            said.insert(error.to_string());
        }
        // Whose read it was, and all the others.
        assert_eq!(Vec::from_iter(said), ["no answer in time", "nothing can be read now: no answer in time"]);
        // Who comes later asks for themselves.
        assert_eq!(turns.take(NOTHING, async || Ok(7)).await.expect("read"), 7);
    }

    #[tokio::test]
    async fn one_reads_for_all_who_wait() {
        let (turns, reads) = (Turns::new(1, DETAIL), AtomicUsize::new(0));
        let known = || (reads.load(Ordering::Relaxed) > 0).then_some(1);
        let read = || async {
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(1)
        };
        let results = futures::future::join_all((0..10).map(|_| turns.take(known, read))).await;
        assert!(results.into_iter().all(|result| result.is_ok_and(|found| found == 1)));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }
}
