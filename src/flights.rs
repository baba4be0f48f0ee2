//! Reads that a herd asks for: so many at a time, and one for all who ask for the same while it waits for its turn.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::error::{Error, Result};

/// What a flight brings: the same for all who wait for it.
type Landing<T> = Option<Result<Arc<T>, Arc<str>>>;

/// Bounded, shared reads by key.
#[derive(Debug)]
pub struct Flights<K, T> {
    turns: Semaphore,
    patience: Duration,
    /// Those that have not begun: whoever joins one gets what is read after it has joined.
    waiting: Mutex<HashMap<K, watch::Receiver<Landing<T>>>>,
}

impl<K: Clone + Eq + Hash, T> Flights<K, T> {
    /// At most `turns` reads at a time, each waiting for its turn for at most `patience`.
    pub fn new(turns: usize, patience: Duration) -> Self {
        Self { turns: Semaphore::new(turns.max(1)), patience, waiting: Mutex::default() }
    }

    /// Reads by `read`, or shares what somebody else's reads who asked for the same and still waits for a turn.
    pub async fn join<F: Future<Output = Result<T>>>(&self, key: &K, read: impl FnOnce() -> F) -> Result<Arc<T>> {
        loop {
            let (own, mut landing) = self.seat(key);
            if let Some(own) = own {
                return self.fly(key, own, read()).await;
            }
            match landing.wait_for(Option::is_some).await.map(|landed| landed.clone()) {
                Ok(Some(Ok(value))) => return Ok(value),
                Ok(Some(Err(reason))) => return Err(busy(&reason)),
                // Whoever flew went away before it landed: somebody else has to.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// A seat in the flight that waits, or, where none does, one of one's own.
    #[allow(clippy::type_complexity, reason = "a sender and a receiver of the same")]
    fn seat(&self, key: &K) -> (Option<watch::Sender<Landing<T>>>, watch::Receiver<Landing<T>>) {
        let mut waiting = self.waiting();
        if let Some(landing) = waiting.get(key).filter(|landing| landing.has_changed().is_ok()) {
            return (None, landing.clone());
        }
        let (own, landing) = watch::channel(None);
        waiting.insert(key.clone(), landing.clone());
        (Some(own), landing)
    }

    /// `read` does nothing before it is awaited, which is after its turn has come.
    async fn fly(
        &self,
        key: &K,
        own: watch::Sender<Landing<T>>,
        read: impl Future<Output = Result<T>>,
    ) -> Result<Arc<T>> {
        let turn = tokio::time::timeout(self.patience, self.turns.acquire()).await;
        // From here on whoever asks needs a flight that begins later.
        self.waiting().remove(key);
        let Ok(Ok(_turn)) = turn else {
            own.send_replace(Some(Err("too many wait".into())));
            return Err(busy("too many wait"));
        };
        match read.await {
            Ok(value) => {
                let value = Arc::new(value);
                own.send_replace(Some(Ok(Arc::clone(&value))));
                Ok(value)
            }
            Err(error) => {
                own.send_replace(Some(Err(error.to_string().into())));
                Err(error)
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<K, watch::Receiver<Landing<T>>>> {
        // Entries come and go whole: no panic leaves it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn busy(reason: &str) -> Error {
    let after = Duration::from_millis(rand::random_range(1_000..3_000));
    Error::unavailable("store_unavailable", "the inbox cannot be read now")
        .with_retry_after(after)
        .with_source(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_for_the_same_share_a_read_that_begins_after_they_asked() {
        let flights: Flights<u32, u32> = Flights::new(1, Duration::from_secs(60));
        let (reads, go) = (AtomicU32::new(0), Notify::new());
        let read = || async {
            let number = reads.fetch_add(1, Ordering::SeqCst);
            if number == 0 {
                go.notified().await;
            }
            Ok(number)
        };
        let first = flights.join(&1, read);
        let rest = async {
            // The first is under way: it may have read before these asked.
            while reads.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            let herd = join_all((0..10).map(|_| flights.join(&1, read)));
            let release = async {
                tokio::task::yield_now().await;
                go.notify_one();
            };
            futures::future::join(herd, release).await.0
        };
        let (first, herd) = futures::future::join(first, rest).await;
        assert_eq!(*first.expect("read"), 0);
        assert!(herd.into_iter().all(|value| *value.expect("read") == 1), "one read for the ten");
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn who_waits_too_long_for_a_turn_is_sent_away() {
        let flights: Flights<u32, u32> = Flights::new(1, Duration::from_millis(20));
        let never = || std::future::pending();
        let (stuck, refused) = (flights.join(&1, never), flights.join(&2, async || Ok(2)));
        tokio::select! {
            biased;
            _ = stuck => unreachable!("it never lands"),
            refused = refused => {
                let error = refused.expect_err("no turn");
                assert_eq!(error.code(), "store_unavailable");
                assert!(error.retry_after().is_some());
            }
        }
    }
}
