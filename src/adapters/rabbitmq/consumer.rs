//! Consuming: one connection a lane, opened when somebody first asks for a task, and opened again when it breaks.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use lapin::options::BasicRejectOptions;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

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
/// The most that can be at hand.
const PREFETCH_MAX: u16 = 1_000;
/// Between looks whether a connection that nothing is asked of still stands.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// A lane's consuming half.
#[derive(Debug)]
pub struct Consumer {
    lane: Lane,
    options: Arc<RabbitOptions>,
    tasks: async_channel::Sender<Delivery>,
    waiting: async_channel::Receiver<Delivery>,
    started: AtomicBool,
    connections: AtomicU64,
    current: Mutex<Option<Arc<Session>>>,
    /// How many tasks are at hand; 0 while paused.
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

/// The broker's tags, between delivery and acknowledgement.
#[derive(Debug, Default)]
struct Acks {
    in_hand: BTreeSet<u64>,
    finished: BTreeSet<u64>,
}

impl Acks {
    /// What to acknowledge now: everything up to a tag at once, and singly what was overtaken by a slower one.
    fn take(&mut self) -> (Option<u64>, BTreeSet<u64>) {
        let slowest = self.in_hand.first().copied().unwrap_or(u64::MAX);
        let overtaken = self.finished.split_off(&slowest);
        (std::mem::take(&mut self.finished).last().copied(), overtaken)
    }
}

impl Consumer {
    pub fn new(lane: Lane, options: Arc<RabbitOptions>) -> Self {
        let (tasks, waiting) = async_channel::bounded(usize::from(PREFETCH_MAX));
        Self {
            lane,
            prefetch: watch::Sender::new(options.prefetch.clamp(1, PREFETCH_MAX)),
            options,
            tasks,
            waiting,
            started: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            current: Mutex::new(None),
            closed: CancellationToken::new(),
        }
    }

    /// The next task; `None` once closed. The first call makes this process a consumer.
    pub async fn next(self: &Arc<Self>, stop: &CancellationToken) -> Option<Delivery> {
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
                delivery = self.waiting.recv() => delivery.ok()?,
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
        let tag = delivery.tag & ((1 << TAG_BITS) - 1);
        let mut acks = session.acks();
        acks.in_hand.remove(&tag);
        acks.finished.insert(tag);
        session.finished.notify_one();
        Ok(())
    }

    /// Changes how many tasks are at hand, in hand included. 0 gives back what is not in hand yet.
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
        let all_told = told.wait_for(|_| session.acks().finished.is_empty());
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
            let mut messages = self.subscribe(session, at_hand).await?;
            loop {
                let message = tokio::select! {
                    biased;
                    () = self.closed.cancelled() => break,
                    _ = prefetch.changed() => break,
                    message = messages.next() => message,
                };
                let message = message.ok_or_else(|| cannot("the broker has ended the delivery of tasks"))?;
                self.take(session, message).await?;
            }
            self.give_back(session, messages).await?;
        }
        broken(connection).await;
        Err(cannot("the connection is broken"))
    }

    /// Has tasks delivered, so many at hand.
    async fn subscribe(&self, session: &Session, at_hand: u16) -> Result<lapin::Consumer> {
        let limit = self.options.timeout;
        let qos = session.channel.basic_qos(at_hand, BasicQosOptions::default());
        within(limit, "set the prefetch", qos).await?;
        let name = format!("{CONSUMER_TAG}-{:x}", rand::random::<u64>());
        let (queue, options) = (queue_name(&self.options, self.lane), BasicConsumeOptions::default());
        let consuming = session.channel.basic_consume(queue, name.into(), options, FieldTable::default());
        within(limit, "deliver tasks", consuming).await
    }

    async fn take(&self, session: &Session, message: lapin::Result<lapin::message::Delivery>) -> Result<()> {
        let message = message.map_err(|error| cannot("the connection is broken").with_source(error))?;
        session.acks().in_hand.insert(message.delivery_tag);
        match codec::decode(&message.data) {
            Ok(task) => {
                let trace = codec::trace(message.properties.headers().as_ref());
                self.hand(session, message.delivery_tag, Task { trace, ..task }).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, lane = self.lane.name(), "a message is parked");
                session.park(message.delivery_tag).await
            }
        }
    }

    async fn hand(&self, session: &Session, tag: u64, task: Task) {
        let task = Task { lane: self.lane, ..task };
        let delivery = Delivery { task, tag: session.number << TAG_BITS | tag };
        // Fails only if the channel is closed, and nobody closes it; there is room for all that may be in hand.
        let sent = tokio::select! {
            () = self.closed.cancelled() => return,
            sent = self.tasks.send(delivery) => sent,
        };
        debug_assert!(sent.is_ok(), "the receiver is in the same struct");
    }

    /// Returns what was not handed out, so that other workers need not wait until this process has ended.
    async fn give_back(&self, session: &Session, mut messages: lapin::Consumer) -> Result<()> {
        let cancelling = session.channel.basic_cancel(messages.tag(), BasicCancelOptions::default());
        within(self.options.timeout, "end the delivery", cancelling).await?;
        // What was on its way comes before the end of the stream.
        while let Ok(Some(Ok(message))) = tokio::time::timeout(self.options.timeout, messages.next()).await {
            session.give_back(message.delivery_tag).await?;
        }
        while let Ok(delivery) = self.waiting.try_recv() {
            if delivery.tag >> TAG_BITS == session.number {
                session.give_back(delivery.tag & ((1 << TAG_BITS) - 1)).await?;
            }
        }
        Ok(())
    }
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
        self.acks().in_hand.remove(&tag);
        returned.map_err(|error| cannot("a task could not be returned").with_source(error))
    }

    /// Has the broker move a message to the parked queue. It counts as in hand until then, so that no acknowledgement
    /// of later ones takes it along.
    async fn park(&self, tag: u64) -> Result<()> {
        let parked = self.channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await;
        self.acks().in_hand.remove(&tag);
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
            self.told.send_modify(|times| *times += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_go_together_up_to_the_slowest() {
        let mut acks = Acks { in_hand: [3, 7].into(), finished: [1, 2, 4, 5].into() };
        assert_eq!(acks.take(), (Some(2), [4, 5].into()));
        assert_eq!(acks.take(), (None, [].into()));
        acks.in_hand.remove(&3);
        acks.finished.extend([3, 6, 8]);
        assert_eq!(acks.take(), (Some(6), [8].into()));
        acks.in_hand.clear();
        acks.finished.insert(7);
        assert_eq!(acks.take(), (Some(7), [].into()));
    }
}
