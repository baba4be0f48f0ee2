//! Consuming: one connection a lane, opened when somebody first asks for a task, and opened again when it breaks. All of
//! the lane's queues deliver over its one channel.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream, SelectAll};
use lapin::message::Delivery as Message;
use lapin::options::BasicRejectOptions;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::basket::Basket;
use super::fair::QUIET;
use super::topology::{self, cannot, queue_name, within};
use super::{Pauses, RabbitOptions, codec};
use crate::domain::{Lane, Task};
use crate::error::Result;
use crate::ports::Delivery;

/// Acknowledgements wait so long for others to go with.
const ACK_PAUSE: Duration = Duration::from_millis(2);
/// A [`Delivery::tag`] is the number of the connection, then the broker's tag in so many bits: a tag of a connection
/// that is gone must not acknowledge what a later one delivered under the same number.
const TAG_BITS: u32 = 40;
/// What names of subscriptions begin with. Each has one of its own: a quorum queue takes a second one of the same name
/// for the first come back, returns what that had in hand, and takes its acknowledgements for other messages.
const CONSUMER_TAG: &str = "fanfold";
/// The most that one queue is asked to have at hand for two of them together to have what was configured.
const PREFETCH_MAX: u16 = 1_000;
/// The most that is at hand of a lane, however many queues it has.
const AT_HAND_MAX: usize = 4_000;
/// Between looks whether a connection that nothing is asked of still stands.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// A lane's consuming half.
#[derive(Debug)]
pub struct Consumer {
    lane: Lane,
    options: Arc<RabbitOptions>,
    waiting: Basket,
    started: AtomicBool,
    connections: AtomicU64,
    current: Mutex<Option<Arc<Session>>>,
    /// How many tasks of one producer are at hand; 0 while paused.
    prefetch: watch::Sender<u16>,
    /// Nothing more is handed out.
    closed: CancellationToken,
}

#[derive(Debug)]
struct Session {
    number: u64,
    channel: Channel,
    acks: Mutex<Acks>,
    finished: Notify,
    /// Counts how often the broker was told what is finished.
    told: watch::Sender<u64>,
}

impl Consumer {
    pub fn new(lane: Lane, options: Arc<RabbitOptions>) -> Self {
        Self {
            lane,
            prefetch: watch::Sender::new(options.prefetch.clamp(1, PREFETCH_MAX)),
            waiting: Basket::new(options.fair_queues),
            options,
            started: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            current: Mutex::new(None),
            closed: CancellationToken::new(),
        }
    }

    /// How many tasks are at hand that nobody has in hand yet.
    pub fn at_hand(&self) -> usize {
        self.waiting.len()
    }

    /// The next task of at most so many parts; `None` once closed. The first call makes this process a consumer.
    pub async fn next_within(self: &Arc<Self>, parts: u32, stop: &CancellationToken) -> Option<Delivery> {
        if !self.started.swap(true, Ordering::AcqRel) {
            let (consumer, stop) = (Arc::clone(self), stop.clone());
            tokio::spawn(async move {
                tokio::select! { () = stop.cancelled() => {}, () = consumer.keep() => {} }
            });
        }
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.closed.cancelled() => return None,
                delivery = self.waiting.next_within(parts) => delivery,
            };
            // What an earlier connection delivered will come again by this one.
            if self.session_of(&delivery).is_some() {
                return Some(delivery);
            }
        }
    }

    /// Marks a task as finished; the broker hears of it a little later.
    pub fn ack(&self, delivery: &Delivery) -> Result<()> {
        let Some(session) = self.session_of(delivery) else {
            return Err(cannot("the connection that delivered the task is gone"));
        };
        session.acks().finish(delivery.tag & ((1 << TAG_BITS) - 1));
        session.finished.notify_one();
        Ok(())
    }

    /// Changes how many tasks of one producer are at hand, in hand included. 0 gives back what is not in hand yet.
    pub fn set_prefetch(&self, prefetch: u16) {
        self.prefetch.send_if_modified(|known| std::mem::replace(known, prefetch.min(PREFETCH_MAX)) != prefetch);
    }

    /// Hands out nothing more. What was not handed out goes back to the queue; what is in hand can be acknowledged.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Waits until the broker has been told what is finished, or cannot be told any more.
    pub async fn flush(&self) {
        let session = self.current().clone();
        let Some(session) = session else { return };
        let mut told = session.told.subscribe();
        let all_told = told.wait_for(|_| session.acks().all_told());
        let _ = tokio::time::timeout(self.options.timeout, all_told).await;
    }

    fn session_of(&self, delivery: &Delivery) -> Option<Arc<Session>> {
        let current = self.current().clone();
        current.filter(|session| session.number == delivery.tag >> TAG_BITS)
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        // Only ever replaced as a whole, so a panic elsewhere does not spoil it.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep(&self) {
        let mut pauses = Pauses::new();
        loop {
            match self.consume(&mut pauses).await {
                Ok(never) => match never {},
                Err(error) => tracing::warn!(%error, lane = self.lane.name(), "cannot take tasks from the broker"),
            }
            *self.current() = None;
            self.waiting.clear();
            pauses.wait().await;
        }
    }

    async fn consume(&self, pauses: &mut Pauses) -> Result<Infallible> {
        let limit = self.options.timeout;
        let connection = topology::connect(&self.options, self.lane.name()).await?;
        let channel = within(limit, "open a channel", connection.create_channel()).await?;
        topology::declare(&channel, &self.options).await?;
        *pauses = Pauses::new();
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            number,
            channel,
            acks: Mutex::default(),
            finished: Notify::new(),
            told: watch::Sender::new(0),
        });
        *self.current() = Some(Arc::clone(&session));
        tokio::select! {
            error = self.hand_out(&session, &connection) => error,
            error = session.acknowledge() => error,
        }
    }

    /// Hands out what comes until closed; then only keeps the connection for what is in hand.
    async fn hand_out(&self, session: &Session, connection: &Connection) -> Result<Infallible> {
        let mut prefetch = self.prefetch.subscribe();
        while !self.closed.is_cancelled() {
            let at_hand = *prefetch.borrow_and_update();
            if at_hand == 0 {
                // Nobody asks for tasks now. A connection that breaks meanwhile is found out when somebody does.
                tokio::select! {
                    () = self.closed.cancelled() => {}
                    _ = prefetch.changed() => {}
                    () = broken(connection) => return Err(cannot("the connection is broken")),
                }
                continue;
            }
            let mut subscriptions = self.subscribe(session, at_hand).await?;
            loop {
                let arrival = tokio::select! {
                    biased;
                    () = self.closed.cancelled() => break,
                    _ = prefetch.changed() => break,
                    arrival = subscriptions.arrivals.next() => arrival,
                };
                let Some(Arrival { queue, message: Some(message) }) = arrival else {
                    return Err(cannot("the broker has ended the delivery of tasks"));
                };
                self.take(session, queue, message).await?;
            }
            self.give_back(session, subscriptions).await?;
        }
        broken(connection).await;
        Err(cannot("the connection is broken"))
    }

    /// Has tasks of every queue delivered. A producer has two of its own, so each has half of what is to be at hand of one.
    /// Each by itself: what is at hand of a flood keeps nothing of another queue from being at hand too, and in its turn.
    async fn subscribe(&self, session: &Session, at_hand: u16) -> Result<Subscriptions> {
        let (limit, queues) = (self.options.timeout, self.options.fair_queues);
        let mut subscriptions = Subscriptions::default();
        for queue in 0..queues {
            // It holds for the subscriptions that follow.
            let qos = session.channel.basic_qos(at_hand_each(at_hand, queues, queue), BasicQosOptions::default());
            within(limit, "set the prefetch", qos).await?;
            let name = format!("{CONSUMER_TAG}-{:x}", rand::random::<u64>());
            let (from, options) = (queue_name(&self.options, self.lane, queue), BasicConsumeOptions::default());
            let consuming = session.channel.basic_consume(from, name.into(), options, FieldTable::default());
            subscriptions.add(queue, within(limit, "deliver tasks", consuming).await?);
        }
        Ok(subscriptions)
    }

    async fn take(&self, session: &Session, queue: usize, message: lapin::Result<Message>) -> Result<()> {
        let message = message.map_err(|error| cannot("the connection is broken").with_source(error))?;
        session.acks().meet(message.delivery_tag);
        match codec::decode(&message.data) {
            Ok(task) => {
                let headers = message.properties.headers().as_ref();
                // Somebody had it in hand or at hand before, and may have finished it, or died of it: a worker looks first.
                let known = message.redelivered || codec::is_last_chance(headers);
                let attempt = if known { task.attempt.max(1) } else { task.attempt };
                let task = Task { trace: codec::trace(headers), lane: self.lane, attempt, ..task };
                self.waiting.put(queue, Delivery { task, tag: session.number << TAG_BITS | message.delivery_tag });
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, lane = self.lane.name(), "a message is parked");
                session.park(message.delivery_tag).await
            }
        }
    }

    /// Returns what was not handed out, so that other workers need not wait until this process has ended.
    async fn give_back(&self, session: &Session, mut subscriptions: Subscriptions) -> Result<()> {
        let limit = self.options.timeout;
        for tag in &subscriptions.tags {
            let cancelling = session.channel.basic_cancel(tag.clone(), BasicCancelOptions::default());
            within(limit, "end the delivery", cancelling).await?;
        }
        // What was on its way comes before the end of its subscription.
        let mut open = subscriptions.tags.len();
        while open > 0 {
            match tokio::time::timeout(limit, subscriptions.arrivals.next()).await {
                Ok(Some(Arrival { message: Some(Ok(message)), .. })) => {
                    session.acks().meet(message.delivery_tag);
                    session.give_back(message.delivery_tag).await?;
                }
                Ok(Some(Arrival { message: None, .. })) => open -= 1,
                Ok(Some(Arrival { message: Some(Err(_)), .. }) | None) | Err(_) => break,
            }
        }
        while let Some(delivery) = self.waiting.try_next(Task::WHOLE) {
            if delivery.tag >> TAG_BITS == session.number {
                session.give_back(delivery.tag & ((1 << TAG_BITS) - 1)).await?;
            }
        }
        Ok(())
    }
}

/// A lane's queues, delivering.
#[derive(Default)]
struct Subscriptions {
    tags: Vec<ShortString>,
    arrivals: SelectAll<BoxStream<'static, Arrival>>,
}

/// What one of the queues has delivered; no message when it will deliver no more. One that ends must not go unnoticed
/// among the others.
struct Arrival {
    queue: usize,
    message: Option<lapin::Result<Message>>,
}

impl Subscriptions {
    fn add(&mut self, queue: usize, messages: lapin::Consumer) {
        self.tags.push(messages.tag());
        let messages = messages.map(Some).chain(stream::iter([None]));
        self.arrivals.push(messages.map(move |message| Arrival { queue, message }).boxed());
    }
}

/// How many tasks a queue of a lane has at hand for two of them to have `at_hand`. The quiet one as much as the others in
/// small tasks: a few of those do not keep a worker busy that waits for its servers, and the others would stand in the broker.
fn at_hand_each(at_hand: u16, queues: usize, queue: usize) -> u16 {
    let bound = u16::try_from(AT_HAND_MAX / queues.max(1)).unwrap_or(u16::MAX);
    let each = match queues {
        // All of it by the only one that a producer has.
        0..=2 => at_hand,
        _ if queue == QUIET => at_hand.div_ceil(2).saturating_mul(Task::WHOLE as u16),
        _ => at_hand.div_ceil(2),
    };
    each.min(bound).max(1)
}

/// Waits until a connection is no more.
async fn broken(connection: &Connection) {
    while connection.status().connected() {
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

impl Session {
    fn acks(&self) -> MutexGuard<'_, Acks> {
        // Sets of numbers: no panic can leave them half changed.
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a message to its queue.
    async fn give_back(&self, tag: u64) -> Result<()> {
        let returned = self.channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false }).await;
        self.acks().forget(tag);
        returned.map_err(|error| cannot("a task could not be returned").with_source(error))
    }

    /// Has the broker move a message to the parked queue. It counts as in hand until then, so that no acknowledgement
    /// of later ones takes it along.
    async fn park(&self, tag: u64) -> Result<()> {
        let parked = self.channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await;
        self.acks().forget(tag);
        parked.map_err(|error| cannot("a message could not be parked").with_source(error))
    }

    /// Tells the broker what is finished, as many at once as can be.
    async fn acknowledge(&self) -> Result<Infallible> {
        loop {
            self.finished.notified().await;
            tokio::time::sleep(ACK_PAUSE).await;
            let (up_to, overtaken) = self.acks().take();
            let all = up_to.map(|tag| (tag, true)).into_iter().chain(overtaken.into_iter().map(|tag| (tag, false)));
            for (tag, multiple) in all {
                let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple }).await;
                acked.map_err(|error| cannot("a task could not be acknowledged").with_source(error))?;
            }
            self.acks().told();
            self.told.send_modify(|times| *times += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_queues_together_have_at_hand_what_is_configured() {
        let each = |at_hand: u16, queues: usize| at_hand_each(at_hand, queues, 1);
        assert_eq!([each(32, 8), each(32, 2), each(33, 3), each(1, 8)], [16, 32, 17, 1]);
        assert_eq!(at_hand_each(32, 1, QUIET), 32);
        assert_eq!([each(1_000, 8), each(1_000, 64)], [500, 62], "a lane has a bound of its own");
        let quiet = |at_hand: u16, queues: usize| at_hand_each(at_hand, queues, QUIET);
        assert_eq!([quiet(32, 8), quiet(1, 8), quiet(32, 2), quiet(1_000, 64)], [400, 25, 32, 62]);
    }
}
