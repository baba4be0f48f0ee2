//! What a lane of this process has at hand and nobody has in hand yet: a line for each of the lane's queues. Lines take
//! turns by the work in their tasks, a whole task's worth each (deficit round robin: Shreedhar and Varghese 1995, with what
//! a turn was overdrawn taken off the next). So the first of one of `n` lines is handed out after less than two whole tasks'
//! worth of each other, one on average, however many are at hand; and who has many small ones is not slower than who has few
//! large ones, up to the size from which a task is whole.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::Task;
use crate::ports::Delivery;

/// The parts that a line may hand out in a turn.
const TURN: i64 = Task::WHOLE as i64;

/// The lines, which take turns.
#[derive(Debug)]
pub struct Basket {
    lines: Mutex<Lines>,
    arrived: Notify,
}

#[derive(Debug)]
struct Lines {
    lines: Vec<Line>,
    /// Whose turn it is.
    turn: usize,
    /// Whose turn it is when there is room for small ones only.
    passing: usize,
}

#[derive(Debug, Default)]
struct Line {
    tasks: VecDeque<Delivery>,
    /// The parts it may still hand out in its turn; fewer than none when its last one was more than was left.
    left: i64,
}

impl Lines {
    /// The next one of at most so many parts. A line that is handed out of before its turn has had that much of it. Lines
    /// pass by turns of a task each: what passes is small.
    fn pop(&mut self, parts: u32) -> Option<Delivery> {
        if parts >= Task::WHOLE {
            return self.pop_in_turn();
        }
        let count = self.lines.len();
        let fits = |line: &Line| line.tasks.front().is_some_and(|delivery| delivery.task.parts() <= parts);
        let at = (0..count).map(|step| (self.passing + step) % count).find(|at| fits(&self.lines[*at]))?;
        self.passing = (at + 1) % count;
        self.lines[at].take()
    }

    fn pop_in_turn(&mut self) -> Option<Delivery> {
        // Once around, and then the line whose turn was over at the beginning.
        for _ in 0..=self.lines.len() {
            if let Some(delivery) = self.lines.get_mut(self.turn)?.pop() {
                return Some(delivery);
            }
            self.turn = (self.turn + 1) % self.lines.len();
            let next = self.lines.get_mut(self.turn)?;
            next.left = next.left.min(0) + TURN;
        }
        None
    }
}

impl Line {
    /// The next one of this turn. Who has nothing saves nothing, and owes nothing.
    fn pop(&mut self) -> Option<Delivery> {
        if self.left <= 0 {
            return None;
        }
        let delivery = self.take();
        if delivery.is_none() {
            self.left = 0;
        }
        delivery
    }

    fn take(&mut self) -> Option<Delivery> {
        let delivery = self.tasks.pop_front()?;
        // Less than a turn is owed: whoever has tasks when nobody else has is not passed over.
        self.left = (self.left - i64::from(delivery.task.parts())).max(1 - TURN);
        Some(delivery)
    }
}

impl Basket {
    /// With so many lines. They are as long as the broker's prefetch lets them be.
    pub fn new(lines: usize) -> Self {
        // As after a turn of the last line: the first one's comes next.
        let turn = lines.saturating_sub(1);
        let lines = (0..lines).map(|_| Line::default()).collect();
        Self { lines: Mutex::new(Lines { lines, turn, passing: 0 }), arrived: Notify::new() }
    }

    /// Adds to a line.
    pub fn put(&self, line: usize, delivery: Delivery) {
        if let Some(line) = self.lines().lines.get_mut(line) {
            line.tasks.push_back(delivery);
        }
        self.arrived.notify_one();
    }

    /// The next one of at most so many parts; waits for it. Dropped while it waits, it takes none.
    pub async fn next_within(&self, parts: u32) -> Delivery {
        loop {
            // It waits before it looks: what comes after the look wakes it.
            let mut arrived = pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if let Some(delivery) = self.try_next(parts) {
                return delivery;
            }
            arrived.await;
        }
    }

    /// The next one of at most so many parts, if there is one now.
    pub fn try_next(&self, parts: u32) -> Option<Delivery> {
        self.lines().pop(parts)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines().lines.iter().map(|line| line.tasks.len()).sum()
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.lines().lines.iter_mut().for_each(|line| line.tasks.clear());
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing in the critical sections panics.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::domain::{Chunk, Lane, PostId, ViewerId};

    fn sized(tag: u64, viewers: usize) -> Delivery {
        let viewers = (0..viewers).map(|n| ViewerId::parse("v", &format!("v{n}")).expect("valid")).collect();
        let (chunk, post_id) = (Chunk { no: 0, viewers }, PostId::from_bytes([0; 16]));
        Delivery { task: Task { post_id, version: 1, chunk, lane: Lane::Small, attempt: 0, trace: None }, tag }
    }

    fn delivery(tag: u64) -> Delivery {
        sized(tag, 500)
    }

    fn order(basket: &Basket) -> Vec<u64> {
        std::iter::from_fn(|| basket.try_next(Task::WHOLE)).map(|delivery| delivery.tag).collect()
    }

    #[test]
    fn lines_take_turns() {
        let basket = Basket::new(3);
        for (line, tag) in [(0, 1), (0, 2), (0, 3), (2, 4), (2, 5), (1, 6)] {
            basket.put(line, delivery(tag));
        }
        assert_eq!(order(&basket), [1, 6, 4, 2, 5, 3]);
        basket.put(1, delivery(7));
        basket.clear();
        assert!(basket.try_next(Task::WHOLE).is_none());
    }

    #[test]
    fn a_turn_is_as_much_work_in_small_tasks_as_in_large_ones() {
        let basket = Basket::new(2);
        (0..100).for_each(|tag| basket.put(0, sized(tag, 1)));
        (100..104).for_each(|tag| basket.put(1, delivery(tag)));
        let order = order(&basket);
        let large: Vec<usize> = (100..104).filter_map(|tag| order.iter().position(|next| *next == tag)).collect();
        assert_eq!(large, [25, 51, 77, 103], "25 small ones between two large ones: {order:?}");
    }

    #[test]
    fn what_a_turn_was_overdrawn_comes_off_the_next() {
        let basket = Basket::new(2);
        // 24 and 25 parts are one turn of 49; what follows has one part.
        for (tag, viewers) in [(1, 480), (2, 500), (3, 20), (4, 20)] {
            basket.put(0, sized(tag, viewers));
        }
        (10..14).for_each(|tag| basket.put(1, delivery(tag)));
        assert_eq!(order(&basket), [1, 2, 10, 3, 11, 4, 12, 13]);
    }

    #[test]
    fn small_ones_pass_large_ones_and_pay_for_it() {
        let basket = Basket::new(2);
        [1, 2, 3].into_iter().for_each(|tag| basket.put(0, delivery(tag)));
        (10..70).for_each(|tag| basket.put(1, sized(tag, 20)));
        assert_eq!(basket.try_next(Task::WHOLE).map(|first| first.tag), Some(1));
        // There is room for small ones only: more than a turn's worth of them.
        let passing: Vec<u64> = (0..30).filter_map(|_| basket.try_next(1)).map(|delivery| delivery.tag).collect();
        assert_eq!(passing, (10..40).collect::<Vec<_>>());
        assert!(basket.try_next(0).is_none());
        // With room for all, the line that passed has had all but a part of its next turn.
        let order = order(&basket);
        let large = [2, 3].map(|large| order.iter().position(|tag| *tag == large));
        assert_eq!(large, [Some(1), Some(27)], "{order:?}");
        assert_eq!(order.len(), 32);
    }

    #[test]
    fn small_ones_pass_by_turns() {
        let basket = Basket::new(3);
        (0..3).for_each(|tag| basket.put(0, sized(tag, 100)));
        (10..13).for_each(|tag| basket.put(2, sized(tag, 1)));
        let passing: Vec<u64> = std::iter::from_fn(|| basket.try_next(5)).map(|delivery| delivery.tag).collect();
        assert_eq!(passing, [0, 10, 1, 11, 2, 12]);
    }

    #[test]
    fn who_has_passed_often_is_not_left_when_nobody_else_has_any() {
        let basket = Basket::new(3);
        (0..200).for_each(|tag| basket.put(2, sized(tag, 100)));
        (0..100).for_each(|_| assert!(basket.try_next(5).is_some()));
        assert_eq!(order(&basket).len(), 100);
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_nothing_and_wakes_the_next() {
        let basket = Basket::new(2);
        let mut first = Box::pin(basket.next_within(Task::WHOLE));
        let mut second = Box::pin(basket.next_within(Task::WHOLE));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        basket.put(0, delivery(1));
        drop(first);
        assert_eq!(second.await.tag, 1, "the wake-up of the first is passed on");
    }
}
