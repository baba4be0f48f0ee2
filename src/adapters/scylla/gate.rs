//! How many rows of fan-out may be under way: bounds that can be moved while they are in use.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::lock;
use crate::domain::Task;
use crate::error::{Error, Result};

/// The part of the rows under way that posts to few have beside all others, and the part that is left to large posts while
/// there are small ones. A store that is busy answers in the order in which it was asked, so what a small post waits for, at
/// each of its requests, are the rows that are under way.
const FEW_SHARE: usize = 16;
/// How long after a post to few there may be another.
const FEW_LAST: Duration = Duration::from_secs(1);

/// The ways for rows: one for posts to more than a few ([`is_few`]), one for smaller ones, which wait for each other and not
/// behind thousands of rows of large posts.
#[derive(Debug)]
pub struct RowGates {
    many: Gate,
    few: Gate,
    /// What rows of large posts pass before their own gate while there are small ones.
    beside_few: Gate,
    /// When the last post to few came by.
    few_at: Mutex<Option<Instant>>,
}

/// Leave for some rows to be under way, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct UnderWay {
    _own: OwnedSemaphorePermit,
    _beside_few: Option<OwnedSemaphorePermit>,
}

/// Whether a post to so many viewers is one to few. Not the size of a chunk counts: the last one of a large post may have
/// few, and is no small post.
pub fn is_few(audience: u32) -> bool {
    audience as usize <= Task::VIEWERS_A_PART
}

impl RowGates {
    /// For `limit` rows of large posts.
    pub fn new(limit: usize) -> Self {
        Self {
            many: Gate::new(limit),
            few: Gate::new(limit / FEW_SHARE),
            beside_few: Gate::new(limit / FEW_SHARE),
            few_at: Mutex::default(),
        }
    }

    /// Moves all bounds.
    pub fn resize(&self, limit: usize) {
        self.many.resize(limit);
        self.few.resize(limit / FEW_SHARE);
        self.beside_few.resize(limit / FEW_SHARE);
    }

    /// Waits until `rows` of a post to `audience` may be under way.
    pub async fn enter(&self, audience: u32, rows: usize) -> Result<UnderWay> {
        self.enter_at(Instant::now(), audience, rows).await
    }

    async fn enter_at(&self, now: Instant, audience: u32, rows: usize) -> Result<UnderWay> {
        if is_few(audience) {
            *lock(&self.few_at) = Some(now);
            return Ok(UnderWay { _own: self.few.enter(rows).await?, _beside_few: None });
        }
        let few = lock(&self.few_at).is_some_and(|at| now.saturating_duration_since(at) < FEW_LAST);
        // The narrow one first: who waits there keeps no place elsewhere.
        let beside_few = if few { Some(self.beside_few.enter(rows).await?) } else { None };
        Ok(UnderWay { _own: self.many.enter(rows).await?, _beside_few: beside_few })
    }
}

/// So many may be inside at the same time.
#[derive(Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    limit: AtomicUsize,
    resizing: Mutex<()>,
    resized: Notify,
}

impl Gate {
    /// A gate with `limit` places, one at least.
    pub fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        Self {
            places: Arc::new(Semaphore::new(limit)),
            limit: AtomicUsize::new(limit),
            resizing: Mutex::default(),
            resized: Notify::new(),
        }
    }

    /// Waits for `places`; for all there are, if there are not that many.
    pub async fn enter(&self, places: usize) -> Result<OwnedSemaphorePermit> {
        loop {
            // From before the bound is read: whoever waits for more places than there are waits for ever.
            let mut resized = pin!(self.resized.notified());
            resized.as_mut().enable();
            let places = places.clamp(1, self.limit.load(Ordering::Relaxed));
            let entering = Arc::clone(&self.places).acquire_many_owned(u32::try_from(places).unwrap_or(u32::MAX));
            tokio::select! {
                biased;
                entered = entering => {
                    return entered.map_err(|_| Error::unavailable("store_unavailable", "the store is closed"));
                }
                () = resized => {}
            }
        }
    }

    /// The same, but no longer than `patience`.
    pub async fn enter_within(&self, patience: Duration, places: usize) -> Result<OwnedSemaphorePermit> {
        let entered = tokio::time::timeout(patience, self.enter(places)).await;
        entered.map_err(|_| Error::unavailable("store_unavailable", "the store is too slow for what is before this"))?
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
        self.resized.notify_waiters();
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
    use futures::FutureExt as _;

    use super::*;

    const MANY: u32 = 500;

    /// Whether ten rows of a large post may be under way at once.
    fn may(gates: &RowGates, now: Instant) -> Option<UnderWay> {
        gates.enter_at(now, MANY, 10).now_or_never().map(|entered| entered.expect("open"))
    }

    #[tokio::test]
    async fn large_posts_leave_room_while_there_are_small_ones() {
        let gates = RowGates::new(320);
        let now = Instant::now();
        let all: Vec<_> = (0..32).map(|_| may(&gates, now).expect("nobody else is there")).collect();
        assert!(may(&gates, now).is_none(), "320 are under way");
        let small = gates.enter_at(now, 1, 1).now_or_never();
        assert!(small.is_some(), "a small one does not wait for them");
        drop(all);
        let some: Vec<_> = (0..2).map(|_| may(&gates, now).expect("a sixteenth")).collect();
        assert!(may(&gates, now + FEW_LAST / 2).is_none(), "there may be more small ones");
        let later = now + FEW_LAST;
        let rest: Vec<_> = (0..30).map(|_| may(&gates, later).expect("there are none any more")).collect();
        assert!(may(&gates, later).is_none(), "320 are under way, whatever they passed");
        drop((some, rest));
        gates.resize(8);
        assert!(may(&gates, later).is_some(), "more than there are is all there are");
    }

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
