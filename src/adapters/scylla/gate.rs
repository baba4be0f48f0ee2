//! A bound that can be moved while it is in use.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lock;
use crate::error::{Error, Result};

/// So many may be inside at the same time.
#[derive(Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    limit: AtomicUsize,
    resizing: Mutex<()>,
}

impl Gate {
    /// A gate with `limit` places, one at least.
    pub fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        Self { places: Arc::new(Semaphore::new(limit)), limit: AtomicUsize::new(limit), resizing: Mutex::default() }
    }

    /// Waits for `places`; for all there are, if there are not that many.
    pub async fn enter(&self, places: usize) -> Result<OwnedSemaphorePermit> {
        let places = places.clamp(1, self.limit.load(Ordering::Relaxed));
        let entering = Arc::clone(&self.places).acquire_many_owned(u32::try_from(places).unwrap_or(u32::MAX));
        entering.await.map_err(|_| Error::unavailable("store_unavailable", "the store is closed"))
    }

    /// Moves the bound. Places in use that are beyond it go as they become free.
    pub fn resize(&self, limit: usize) {
        let limit = limit.max(1);
        let _one_at_a_time = lock(&self.resizing);
        let before = self.limit.swap(limit, Ordering::Relaxed);
        if limit >= before {
            self.places.add_permits(limit - before);
            return;
        }
        let left = before - limit - self.places.forget_permits(before - limit);
        if left > 0 {
            let places = Arc::clone(&self.places);
            tokio::spawn(async move {
                if let Ok(permits) = places.acquire_many_owned(u32::try_from(left).unwrap_or(u32::MAX)).await {
                    permits.forget();
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bound_moves_while_places_are_taken() {
        let gate = Gate::new(4);
        let (first, second) = (gate.enter(2).await.expect("open"), gate.enter(2).await.expect("open"));
        gate.resize(1);
        drop(first);
        tokio::task::yield_now().await;
        assert_eq!(gate.places.available_permits(), 0, "three places are to go, two were free");
        drop(second);
        let alone = gate.enter(9).await.expect("no more than there are");
        assert_eq!(alone.num_permits(), 1);
        gate.resize(3);
        assert_eq!(gate.enter(2).await.expect("open").num_permits(), 2);
    }
}
