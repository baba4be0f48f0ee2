//! The queue in memory: in each lane a line for every producer that has tasks there. What it loses with the process, the
//! relay brings back at start.
//!
//! The lines take turns, a task each (Nagle, RFC 970, 1985; "On Packet Switches with Infinite Storage", 1987). Where items
//! differ in size one would count what each line has had (Shreedhar and Varghese, deficit round robin, 1996); a task is a
//! chunk, and a chunk is bounded, so turns by the task are fair enough. A full lane takes a task of a producer with a
//! shorter line all the same: the newest task of the longest line gives way (McKenney, stochastic fairness queueing, 1990).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::{Lane, PostId, ProducerId, Task};
use crate::error::Result;
use crate::ports::{Delivery, Queue, Room};

/// Producers that are looked at for a small task, when there is no room for a whole one.
const LOOKED_AT_MAX: usize = 100;

/// Two bounded lanes.
#[derive(Clone, Debug)]
pub struct EmbeddedQueue(Arc<Lanes>);

#[derive(Debug)]
struct Lanes {
    small: Waiting,
    bulk: Waiting,
    closed: CancellationToken,
}

/// A lane, and whoever waits for it.
#[derive(Debug)]
struct Waiting {
    lines: Mutex<Lines>,
    arrived: Notify,
}

/// What waits in a lane. Producers without a task have no line.
#[derive(Debug)]
struct Lines {
    tasks_max: usize,
    tasks: usize,
    lines: HashMap<ProducerId, VecDeque<Task>>,
    /// Whose turn it is, the next one first: everybody who has a line, once.
    turns: VecDeque<ProducerId>,
    /// The same producers by the length of their lines.
    lengths: BTreeSet<(usize, ProducerId)>,
    /// Posts (and versions) of tasks that gave way, for the relay. No more than a lane holds: who is forgotten here, the
    /// relay drives when it would have anyway.
    displaced: HashSet<(PostId, u32)>,
}

impl Lines {
    fn new(tasks_max: usize) -> Self {
        Self {
            tasks_max,
            tasks: 0,
            lines: HashMap::new(),
            turns: VecDeque::new(),
            lengths: BTreeSet::new(),
            displaced: HashSet::new(),
        }
    }

    /// Takes a task, unless the lane is full and nobody has to give way to this producer.
    fn push(&mut self, producer: &ProducerId, task: Task) -> bool {
        if self.tasks >= self.tasks_max && !self.make_way(producer) {
            return false;
        }
        let line = self.lines.entry(producer.clone()).or_default();
        line.push_back(task);
        let length = line.len();
        if length == 1 {
            self.turns.push_back(producer.clone());
        }
        self.resized(producer, length - 1, length);
        true
    }

    /// The next task of at most so many parts, of the producer whose turn it is among those who have one to offer.
    fn pop(&mut self, parts: u32) -> Option<Task> {
        let fits = |producer: &ProducerId| {
            let first = self.lines.get(producer).and_then(VecDeque::front);
            first.is_some_and(|task| task.parts() <= parts)
        };
        let at = self.turns.iter().take(LOOKED_AT_MAX).position(fits)?;
        let producer = self.turns.remove(at)?;
        let line = self.lines.get_mut(&producer)?;
        let task = line.pop_front();
        let length = line.len();
        self.resized(&producer, length + 1, length);
        if length == 0 {
            self.lines.remove(&producer);
        } else {
            self.turns.push_back(producer);
        }
        task
    }

    /// Drops the newest task of the longest line, if that is longer by two: by one, the two would only change places.
    fn make_way(&mut self, producer: &ProducerId) -> bool {
        let Some((longest, owner)) = self.lengths.last().cloned() else { return false };
        if longest < self.length(producer) + 2 {
            return false;
        }
        let Some(task) = self.lines.get_mut(&owner).and_then(VecDeque::pop_back) else { return false };
        self.resized(&owner, longest, longest - 1);
        if self.displaced.len() < self.tasks_max {
            self.displaced.insert((task.post_id, task.version));
        }
        metrics::counter!("fanfold_queue_overflow_total", "lane" => task.lane.name()).increment(1);
        true
    }

    fn resized(&mut self, producer: &ProducerId, from: usize, to: usize) {
        self.tasks = self.tasks + to - from;
        self.lengths.remove(&(from, producer.clone()));
        if to > 0 {
            self.lengths.insert((to, producer.clone()));
        }
    }

    fn length(&self, producer: &ProducerId) -> usize {
        self.lines.get(producer).map_or(0, VecDeque::len)
    }

    /// How many tasks [`Lines::push`] would take: as many as make this line as long as those that are cut down for it.
    fn room(&self, producer: &ProducerId) -> usize {
        let own = self.length(producer);
        let (mut shared, mut lines) = (own + self.tasks_max.saturating_sub(self.tasks), 1);
        for (length, _) in self.lengths.iter().rev().filter(|(_, other)| other != producer) {
            if *length <= shared / lines {
                break;
            }
            shared += length;
            lines += 1;
        }
        (shared / lines).saturating_sub(own)
    }
}

impl Waiting {
    fn new(tasks_max: usize) -> Self {
        Self { lines: Mutex::new(Lines::new(tasks_max)), arrived: Notify::new() }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing in the critical sections panics.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EmbeddedQueue {
    /// A queue that holds `tasks_max` tasks in each lane.
    pub fn new(tasks_max: usize) -> Self {
        let (small, bulk) = (Waiting::new(tasks_max), Waiting::new(tasks_max));
        Self(Arc::new(Lanes { small, bulk, closed: CancellationToken::new() }))
    }

    /// The posts, with their versions, whose tasks gave way to those of others since it was asked last.
    pub fn take_displaced(&self) -> Vec<(PostId, u32)> {
        Lane::ALL.into_iter().flat_map(|lane| std::mem::take(&mut self.lane(lane).lines().displaced)).collect()
    }

    fn lane(&self, lane: Lane) -> &Waiting {
        match lane {
            Lane::Small => &self.0.small,
            Lane::Bulk => &self.0.bulk,
        }
    }
}

impl Queue for EmbeddedQueue {
    async fn publish(&self, producer: &ProducerId, tasks: Vec<Task>) -> Result<usize> {
        let mut taken = 0;
        for task in tasks {
            let lane = self.lane(task.lane);
            if self.0.closed.is_cancelled() || !lane.lines().push(producer, task) {
                break;
            }
            lane.arrived.notify_one();
            taken += 1;
        }
        Ok(taken)
    }

    async fn next_within(&self, lane: Lane, parts: u32) -> Result<Option<Delivery>> {
        let lane = self.lane(lane);
        loop {
            // It waits before it looks: what comes after the look wakes it.
            let mut arrived = pin!(lane.arrived.notified());
            arrived.as_mut().enable();
            // A closed queue may still hold tasks; closing means to stop, not to drain.
            if self.0.closed.is_cancelled() {
                return Ok(None);
            }
            if let Some(task) = lane.lines().pop(parts) {
                return Ok(Some(Delivery { task, tag: 0 }));
            }
            tokio::select! { () = self.0.closed.cancelled() => {}, () = arrived => {} }
        }
    }

    async fn ack(&self, _: Delivery) -> Result<()> {
        Ok(())
    }

    async fn release(&self, _: Delivery) -> Result<()> {
        Ok(())
    }

    async fn depth(&self, lane: Lane) -> Result<u64> {
        Ok(self.lane(lane).lines().tasks as u64)
    }

    async fn room(&self, lane: Lane, producer: &ProducerId) -> Result<Room> {
        let lines = self.lane(lane).lines();
        Ok(Room { left: lines.room(producer) as u64, waiting: lines.length(producer) as u64 })
    }

    async fn close(&self) {
        self.0.closed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{Chunk, ViewerId};

    fn producer(name: &str) -> ProducerId {
        ProducerId::parse("producer", name).expect("valid")
    }

    fn task(no: u32) -> Task {
        let chunk = Chunk { no, viewers: Arc::from([]) };
        let post_id = PostId::from_bytes([no as u8; 16]);
        Task { post_id, version: 1, chunk, lane: Lane::Small, attempt: 0, trace: None }
    }

    /// Pushes until refused; answers how many were taken.
    fn fill(lines: &mut Lines, producer: &ProducerId, first: u32) -> usize {
        (first..first + 100).take_while(|no| lines.push(producer, task(*no))).count()
    }

    #[test]
    fn a_full_lane_is_shared_and_nobody_pushes_an_equal_out() {
        let (a, b, c) = (producer("a"), producer("b"), producer("c"));
        let mut lines = Lines::new(12);
        assert_eq!(lines.room(&a), 12);
        assert_eq!(fill(&mut lines, &a, 0), 12);
        assert_eq!((lines.room(&a), lines.room(&b)), (0, 6));
        assert_eq!(fill(&mut lines, &b, 100), 6);
        assert_eq!((lines.room(&a), lines.room(&b), lines.room(&c)), (0, 0, 4));
        assert_eq!(fill(&mut lines, &c, 200), 4);
        assert_eq!([&a, &b, &c].map(|producer| lines.room(producer)), [0; 3]);
        let gave_way = std::mem::take(&mut lines.displaced);
        assert!((6..12).all(|no| gave_way.contains(&(task(no).post_id, 1))), "the newest of the longest line");
        let order: Vec<u32> = std::iter::from_fn(|| lines.pop(Task::WHOLE)).map(|task| task.chunk.no).collect();
        assert_eq!(order, [0, 100, 200, 1, 101, 201, 2, 102, 202, 3, 103, 203]);
        assert!(lines.tasks == 0 && lines.lines.is_empty() && lines.lengths.is_empty(), "nothing is left of them");
    }

    #[test]
    fn small_tasks_pass_large_ones() {
        let large = |no| {
            let viewers = (0..500).map(|n| ViewerId::parse("v", &format!("v{n}")).expect("valid")).collect();
            Task { chunk: Chunk { no, viewers }, ..task(no) }
        };
        let (a, b) = (producer("a"), producer("b"));
        let mut lines = Lines::new(10);
        assert!([1, 2].iter().all(|no| lines.push(&a, large(*no))));
        assert!([10, 11].iter().all(|no| lines.push(&b, task(*no))));
        let next = |lines: &mut Lines, parts| lines.pop(parts).map(|task| task.chunk.no);
        assert_eq!(next(&mut lines, 1), Some(10), "past the one whose turn it is");
        assert_eq!(next(&mut lines, Task::WHOLE), Some(1), "whose turn it is still");
        assert_eq!(next(&mut lines, Task::WHOLE), Some(11));
        assert_eq!(next(&mut lines, 1), None, "there are large ones only");
        assert_eq!(next(&mut lines, Task::WHOLE), Some(2));
        assert!(lines.tasks == 0 && lines.lines.is_empty() && lines.turns.is_empty());
    }

    #[test]
    fn room_is_what_would_be_taken() {
        for lengths in [[5, 0, 0], [3, 2, 0], [1, 1, 1], [9, 4, 2], [10, 10, 1], [0, 0, 0], [7, 3, 3]] {
            let sum: usize = lengths.iter().sum();
            for tasks_max in [sum.max(1), sum + 1, sum + 5] {
                let names = ["a", "b", "c"].map(producer);
                let mut lines = Lines::new(tasks_max);
                for (name, length) in names.iter().zip(lengths) {
                    assert!((0..length as u32).all(|no| lines.push(name, task(no))));
                }
                let room = lines.room(&names[2]);
                assert_eq!(fill(&mut lines, &names[2], 100), room, "{lengths:?} of {tasks_max}");
            }
        }
    }

    #[test]
    fn what_gave_way_is_bounded() {
        let (a, b) = (producer("a"), producer("b"));
        let mut lines = Lines::new(4);
        for round in 0..20 {
            fill(&mut lines, &a, round * 4);
            fill(&mut lines, &b, 200);
            while lines.pop(Task::WHOLE).is_some() {}
        }
        assert_eq!(lines.displaced.len(), 4);
    }
}
