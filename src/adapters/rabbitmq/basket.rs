//! What a lane of this process has at hand and nobody has in hand yet: a line for each of the lane's queues. The first of
//! one of `n` lines is handed out after at most `n - 1` others, however many are at hand in those.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::ports::Delivery;

/// The lines, which take turns.
#[derive(Debug)]
pub struct Basket {
    lines: Mutex<Lines>,
    arrived: Notify,
}

#[derive(Debug)]
struct Lines {
    lines: Vec<VecDeque<Delivery>>,
    /// Whose turn it is.
    turn: usize,
}

impl Lines {
    fn pop(&mut self) -> Option<Delivery> {
        let count = self.lines.len();
        let at = (0..count).map(|step| (self.turn + step) % count).find(|at| !self.lines[*at].is_empty())?;
        self.turn = (at + 1) % count;
        self.lines[at].pop_front()
    }
}

impl Basket {
    /// With so many lines. They are as long as the broker's prefetch lets them be.
    pub fn new(lines: usize) -> Self {
        let lines = (0..lines).map(|_| VecDeque::new()).collect();
        Self { lines: Mutex::new(Lines { lines, turn: 0 }), arrived: Notify::new() }
    }

    /// Adds to a line.
    pub fn put(&self, line: usize, delivery: Delivery) {
        if let Some(line) = self.lines().lines.get_mut(line) {
            line.push_back(delivery);
        }
        self.arrived.notify_one();
    }

    /// The next one; waits for it. Dropped while it waits, it takes none.
    pub async fn next(&self) -> Delivery {
        loop {
            // It waits before it looks: what comes after the look wakes it.
            let mut arrived = pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if let Some(delivery) = self.try_next() {
                return delivery;
            }
            arrived.await;
        }
    }

    /// The next one, if there is one now.
    pub fn try_next(&self) -> Option<Delivery> {
        self.lines().pop()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines().lines.iter().map(VecDeque::len).sum()
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.lines().lines.iter_mut().for_each(VecDeque::clear);
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing in the critical sections panics.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;

    use super::*;
    use crate::domain::{Chunk, Lane, PostId, Task};

    fn delivery(tag: u64) -> Delivery {
        let chunk = Chunk { no: 0, viewers: Arc::from([]) };
        let post_id = PostId::from_bytes([0; 16]);
        Delivery { task: Task { post_id, version: 1, chunk, lane: Lane::Small, attempt: 0, trace: None }, tag }
    }

    #[test]
    fn lines_take_turns() {
        let basket = Basket::new(3);
        for (line, tag) in [(0, 1), (0, 2), (0, 3), (2, 4), (2, 5), (1, 6)] {
            basket.put(line, delivery(tag));
        }
        let order: Vec<u64> = std::iter::from_fn(|| basket.try_next()).map(|delivery| delivery.tag).collect();
        assert_eq!(order, [1, 6, 4, 2, 5, 3]);
        basket.put(1, delivery(7));
        basket.clear();
        assert!(basket.try_next().is_none());
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_nothing_and_wakes_the_next() {
        let basket = Basket::new(2);
        let mut first = Box::pin(basket.next());
        let mut second = Box::pin(basket.next());
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        basket.put(0, delivery(1));
        drop(first);
        assert_eq!(second.await.tag, 1, "the wake-up of the first is passed on");
    }
}
