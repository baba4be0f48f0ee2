//! The queue: carries fan-out tasks to workers. Losing it loses nothing, the relay drives again.

use std::future::Future;

use crate::domain::{Lane, ProducerId, Task};
use crate::error::Result;

/// A task in a worker's hands. Dropped without [`Queue::ack`] or [`Queue::release`], it is left to the relay.
#[derive(Debug)]
pub struct Delivery {
    /// The task.
    pub task: Task,
    /// What the adapter needs to acknowledge it.
    pub tag: u64,
}

/// How a lane stands for one producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many of its tasks the lane still takes, those that tasks of others would give way to included.
    pub left: u64,
    /// How many tasks wait where its own do.
    pub waiting: u64,
}

/// Two lanes of tasks, bounded, at least once while the queue lives.
///
/// In a lane producers take turns: however many tasks of one wait, another's is handed out after a few of them. And none
/// can keep the others out of a full lane by being the first to fill it. The tasks of one producer come in no promised
/// order. How far an adapter keeps this, its own documentation says.
pub trait Queue {
    /// Offers a producer's tasks; answers how many were taken, from the front. The rest found no room and are the relay's.
    /// So is, in time, what was taken and had to give way to tasks of others.
    fn publish(&self, producer: &ProducerId, tasks: Vec<Task>) -> impl Future<Output = Result<usize>> + Send;

    /// The next task of a lane; waits for one. `None` once the queue is closed. Dropped while it waits, it takes none.
    fn next(&self, lane: Lane) -> impl Future<Output = Result<Option<Delivery>>> + Send {
        self.next_within(lane, Task::WHOLE)
    }

    /// The same for who has no room for a whole task: the next one of at most so many parts ([`Task::parts`]), past those
    /// whose turn it is and who have a larger one to offer.
    fn next_within(&self, lane: Lane, parts: u32) -> impl Future<Output = Result<Option<Delivery>>> + Send;

    /// The task is finished with, for good.
    fn ack(&self, delivery: Delivery) -> impl Future<Output = Result<()>> + Send;

    /// The task could not be done now.
    fn release(&self, delivery: Delivery) -> impl Future<Output = Result<()>> + Send;

    /// Tasks waiting in a lane, of all producers.
    fn depth(&self, lane: Lane) -> impl Future<Output = Result<u64>> + Send;

    /// How a lane stands for a producer.
    fn room(&self, lane: Lane, producer: &ProducerId) -> impl Future<Output = Result<Room>> + Send;

    /// Hands out nothing more; whoever waits in [`Queue::next`] gets `None`.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
