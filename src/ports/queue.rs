//! The queue: carries fan-out tasks to workers. Losing it loses nothing, the relay drives again.

use std::future::Future;

use crate::domain::{Lane, Task};
use crate::error::Result;

/// A task in a worker's hands. Dropped without [`Queue::ack`] or [`Queue::release`], it is left to the relay.
#[derive(Debug)]
pub struct Delivery {
    /// The task.
    pub task: Task,
    /// What the adapter needs to acknowledge it.
    pub tag: u64,
}

/// Two lanes of tasks, bounded, at least once while the queue lives.
pub trait Queue {
    /// Offers tasks; answers how many were taken, from the front. The rest found their lane full and are the relay's.
    fn publish(&self, tasks: Vec<Task>) -> impl Future<Output = Result<usize>> + Send;

    /// The next task of a lane; waits for one. `None` once the queue is closed.
    fn next(&self, lane: Lane) -> impl Future<Output = Result<Option<Delivery>>> + Send;

    /// The task is finished with, for good.
    fn ack(&self, delivery: Delivery) -> impl Future<Output = Result<()>> + Send;

    /// The task could not be done now.
    fn release(&self, delivery: Delivery) -> impl Future<Output = Result<()>> + Send;

    /// Tasks waiting in a lane.
    fn depth(&self, lane: Lane) -> impl Future<Output = Result<u64>> + Send;

    /// How many tasks a lane still takes.
    fn room(&self, lane: Lane) -> impl Future<Output = Result<u64>> + Send;

    /// Hands out nothing more; whoever waits in [`Queue::next`] gets `None`.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
