//! The queue in memory: one bounded channel a lane. What it loses with the process, the relay brings back at start.

use crate::domain::{Lane, Task};
use crate::error::Result;
use crate::ports::{Delivery, Queue};

/// Two bounded channels.
#[derive(Clone, Debug)]
pub struct EmbeddedQueue {
    small: Channel,
    bulk: Channel,
}

#[derive(Clone, Debug)]
struct Channel {
    tasks: async_channel::Sender<Task>,
    waiting: async_channel::Receiver<Task>,
}

impl Channel {
    fn new(tasks_max: usize) -> Self {
        let (tasks, waiting) = async_channel::bounded(tasks_max);
        Self { tasks, waiting }
    }
}

impl EmbeddedQueue {
    /// A queue that holds `tasks_max` tasks in each lane.
    pub fn new(tasks_max: usize) -> Self {
        Self { small: Channel::new(tasks_max), bulk: Channel::new(tasks_max) }
    }

    fn lane(&self, lane: Lane) -> &Channel {
        match lane {
            Lane::Small => &self.small,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl Queue for EmbeddedQueue {
    async fn publish(&self, tasks: Vec<Task>) -> Result<usize> {
        let mut taken = 0;
        for task in tasks {
            if self.lane(task.lane).tasks.try_send(task).is_err() {
                break;
            }
            taken += 1;
        }
        Ok(taken)
    }

    async fn next(&self, lane: Lane) -> Result<Option<Delivery>> {
        let waiting = &self.lane(lane).waiting;
        // A closed channel still hands out what it holds; closing means to stop, not to drain.
        if waiting.is_closed() {
            return Ok(None);
        }
        Ok(waiting.recv().await.ok().map(|task| Delivery { task, tag: 0 }))
    }

    async fn ack(&self, _: Delivery) -> Result<()> {
        Ok(())
    }

    async fn release(&self, _: Delivery) -> Result<()> {
        Ok(())
    }

    async fn depth(&self, lane: Lane) -> Result<u64> {
        Ok(self.lane(lane).waiting.len() as u64)
    }

    async fn room(&self, lane: Lane) -> Result<u64> {
        let channel = self.lane(lane);
        let capacity = channel.tasks.capacity().unwrap_or(0);
        Ok(capacity.saturating_sub(channel.tasks.len()) as u64)
    }

    async fn close(&self) {
        self.small.tasks.close();
        self.bulk.tasks.close();
    }
}
