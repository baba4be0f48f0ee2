//! The queue in RabbitMQ: some quorum queues for each lane, and one for what no worker could read or survive.
//!
//! A producer has two of a lane's queues, and the queues take turns (`fair.rs`): a flood delays those whose queues are the
//! same two, and of the others only a few. Who posts little has a third one, where no flood is: the first task there waits
//! for less than two of each other queue. A task that was taken gives way to none; a producer whose queues are full is
//! refused, and the others are not.
//!
//! Whatever the broker loses the relay publishes again, so nothing here waits for a broken broker: calls fail within
//! their timeout, and connections come back by themselves with growing pauses.

mod acks;
mod basket;
mod codec;
mod consumer;
mod depths;
mod fair;
mod inspect;
mod parked;
mod publisher;
mod topology;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::inspect::inspect;
pub use self::parked::{SetAside, SetAsideMessage};
pub use self::topology::{check, queue_names};

use self::consumer::Consumer;
use self::publisher::Publisher;
use crate::domain::{Lane, ProducerId, Task};
use crate::error::Result;
use crate::ports::{Delivery, Queue, Room};

/// Between attempts to connect: doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How to reach RabbitMQ, and the bounds.
#[derive(Clone)]
pub struct RabbitOptions {
    /// `amqp://user:password@host:port/vhost`.
    pub url: String,
    /// Authorities (PEM) that sign the broker's certificate, where the URL asks for TLS; `None`: the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// What the queues' names begin with.
    pub prefix: String,
    /// Messages a lane holds. An argument of the queues: to change it they have to be deleted first.
    pub tasks_max: usize,
    /// Queues of a lane, at least one. The same in all processes.
    pub fair_queues: usize,
    /// Messages of one producer that a lane of this process has in hand or at hand, in the two queues that are its own.
    pub prefetch: u16,
    /// Published messages that wait for their confirmation.
    pub window: usize,
    /// Deliveries after which a message that was never acknowledged is set aside: workers seem to die of it.
    pub deliveries_max: u32,
    /// How long the broker may take for anything.
    pub timeout: Duration,
}

impl std::fmt::Debug for RabbitOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RabbitOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A queue in RabbitMQ.
#[derive(Clone, Debug)]
pub struct RabbitQueue {
    publisher: Arc<Publisher>,
    small: Arc<Consumer>,
    bulk: Arc<Consumer>,
    stop: CancellationToken,
    _stop: Arc<DropGuard>,
}

impl RabbitQueue {
    /// Starts connecting, and keeps connected until the last clone is dropped.
    pub fn start(options: RabbitOptions) -> Self {
        let options = Arc::new(options);
        let publisher = Arc::new(Publisher::new(Arc::clone(&options)));
        let stop = CancellationToken::new();
        let (kept, stopped) = (Arc::clone(&publisher), stop.clone());
        tokio::spawn(async move {
            tokio::select! { () = stopped.cancelled() => {}, () = kept.keep() => {} }
        });
        let consumer = |lane| Arc::new(Consumer::new(lane, Arc::clone(&options)));
        Self {
            publisher,
            small: consumer(Lane::Small),
            bulk: consumer(Lane::Bulk),
            _stop: Arc::new(stop.clone().drop_guard()),
            stop,
        }
    }

    /// Waits until tasks can be published; after `patience` an error that says why they cannot.
    pub async fn ready(&self, patience: Duration) -> Result<()> {
        self.publisher.ready(patience).await
    }

    /// Changes how many tasks of one producer a lane of this process has at hand; 0 pauses it.
    pub fn set_prefetch(&self, prefetch: u32) {
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        self.small.set_prefetch(prefetch);
        self.bulk.set_prefetch(prefetch);
    }

    /// How many tasks of a lane have been delivered to this process and wait here for a worker.
    pub fn at_hand(&self, lane: Lane) -> usize {
        self.consumer(lane).at_hand()
    }

    /// Takes up to `limit` of the messages that were set aside in hand.
    pub async fn set_aside(&self, limit: u32) -> Result<SetAside> {
        SetAside::take(self.publisher.options(), limit, false).await
    }

    /// Takes up to `limit` of those in hand that hold a task, wherever they stand among the others.
    pub async fn tasks_set_aside(&self, limit: u32) -> Result<SetAside> {
        SetAside::take(self.publisher.options(), limit, true).await
    }

    /// Waits until the broker has been told what is finished; for a moment at most.
    pub async fn flush(&self) {
        self.small.flush().await;
        self.bulk.flush().await;
    }

    /// Messages set aside because no worker could read or survive them.
    pub async fn parked(&self) -> Result<u64> {
        self.publisher.parked().await
    }

    fn consumer(&self, lane: Lane) -> &Arc<Consumer> {
        match lane {
            Lane::Small => &self.small,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl Queue for RabbitQueue {
    async fn publish(&self, producer: &ProducerId, tasks: Vec<Task>) -> Result<usize> {
        self.publisher.publish(producer, tasks).await
    }

    async fn next_within(&self, lane: Lane, parts: u32) -> Result<Option<Delivery>> {
        Ok(self.consumer(lane).next_within(parts, &self.stop).await)
    }

    async fn ack(&self, delivery: Delivery) -> Result<()> {
        self.consumer(delivery.task.lane).ack(&delivery)
    }

    /// The broker forgets the task and the relay drives it when it is due: back in the queue it would come again at
    /// once, and count as a delivery of a message that workers die of.
    async fn release(&self, delivery: Delivery) -> Result<()> {
        self.consumer(delivery.task.lane).ack(&delivery)
    }

    async fn depth(&self, lane: Lane) -> Result<u64> {
        self.publisher.depth(lane).await
    }

    async fn room(&self, lane: Lane, producer: &ProducerId) -> Result<Room> {
        self.publisher.room(lane, producer).await
    }

    async fn close(&self) {
        self.small.close();
        self.bulk.close();
    }
}

/// Growing pauses between attempts, jittered so that processes do not come back all at once.
#[derive(Debug)]
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(PAUSES.0)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0.mul_f64(rand::random_range(0.5..1.0))).await;
        self.0 = (self.0 * 2).min(PAUSES.1);
    }
}
