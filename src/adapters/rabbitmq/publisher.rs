//! Publishing: one connection, kept up in the background, with confirms and a window of messages in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::depths::{Broker, Depths};
use super::topology::{self, cannot, queue_name, within};
use super::{Pauses, RabbitOptions, codec, fair};
use crate::domain::{Lane, ProducerId, Task};
use crate::error::{Error, Result};
use crate::ports::Room;

/// Between looks whether the connection still stands.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// The publishing half of the queue.
#[derive(Debug)]
pub struct Publisher {
    options: Arc<RabbitOptions>,
    window: Arc<Semaphore>,
    /// Outlives connections: who floods does so over the next one too.
    offers: fair::Offers,
    current: watch::Sender<Current>,
}

/// The connection in use, or why there is none.
#[derive(Clone, Debug)]
struct Current(Result<Arc<Session>, Arc<str>>);

#[derive(Debug)]
struct Session {
    connection: Connection,
    publishing: Channel,
    /// For questions: a refused one closes its channel.
    asking: Channel,
    depths: Depths,
    options: Arc<RabbitOptions>,
    broken: CancellationToken,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Refused,
}

impl Publisher {
    pub fn new(options: Arc<RabbitOptions>) -> Self {
        let current = watch::Sender::new(Current(Err("the broker was not reached yet".into())));
        let window = Arc::new(Semaphore::new(options.window));
        Self { options, window, offers: fair::Offers::default(), current }
    }

    /// How the broker is reached.
    pub fn options(&self) -> &RabbitOptions {
        &self.options
    }

    /// Keeps a connection up for ever.
    pub async fn keep(&self) {
        let mut pauses = Pauses::new();
        loop {
            match Session::open(&self.options).await {
                Ok(session) => {
                    pauses = Pauses::new();
                    let session = Arc::new(session);
                    self.current.send_replace(Current(Ok(Arc::clone(&session))));
                    session.until_broken().await;
                    tracing::warn!("the publishing connection is broken");
                    self.current.send_replace(Current(Err("the connection was lost".into())));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot publish");
                    self.current.send_replace(Current(Err(error.to_string().into())));
                }
            }
            pauses.wait().await;
        }
    }

    /// Waits for a connection; after `patience` an error that says why there is none.
    pub async fn ready(&self, patience: Duration) -> Result<()> {
        let mut current = self.current.subscribe();
        let ready = current.wait_for(|current| current.0.is_ok());
        // The sender is in `self`: waiting for it ends by success or by the timeout.
        if tokio::time::timeout(patience, ready).await.is_ok() { Ok(()) } else { self.session().map(|_| ()) }
    }

    fn session(&self) -> Result<Arc<Session>> {
        self.current.borrow().0.clone().map_err(|reason| cannot(reason.to_string()))
    }

    /// Publishes from the front as many as their lanes have room for, and answers how many the broker has confirmed
    /// before the first that it has not.
    pub async fn publish(&self, producer: &ProducerId, tasks: Vec<Task>) -> Result<usize> {
        let session = self.session()?;
        let mut places = [Vec::new().into_iter(), Vec::new().into_iter()];
        for lane in Lane::ALL {
            let offered: Vec<&Task> = tasks.iter().filter(|task| task.lane == lane).collect();
            if offered.is_empty() {
                continue;
            }
            let little = self.is_little(lane, producer, &offered);
            let queues = fair::queues(producer, self.options.fair_queues, little);
            let share = fair::share(self.options.tasks_max, self.options.fair_queues);
            let reserved = Depths::reserve(&session, lane, &queues, share, offered.len()).await?;
            places[lane as usize] = reserved.into_iter();
        }
        let queue = |task: &Task| Some(queue_name(&self.options, task.lane, places[task.lane as usize].next()?));
        let queues: Vec<ShortString> = tasks.iter().map_while(queue).collect();
        session.run(self.publish_all(&session, &tasks, queues)).await
    }

    /// Whether `offered` may go to the quiet queue too. What comes again never: the relay has as much as there is of it, and
    /// offers it bit by bit.
    fn is_little(&self, lane: Lane, producer: &ProducerId, offered: &[&Task]) -> bool {
        let rows = fair::weight(offered.iter().map(|task| task.chunk.viewers.len()));
        offered.iter().all(|task| task.attempt == 0) && self.offers.count(lane, producer, rows, Instant::now())
    }

    /// Publishes to each of `queues` the task that stands at its place.
    async fn publish_all(&self, session: &Session, tasks: &[Task], queues: Vec<ShortString>) -> Result<usize> {
        let mut confirms = FuturesOrdered::new();
        let mut fates = Fates::default();
        for (task, queue) in tasks.iter().zip(queues) {
            // Whoever waits for a place in the window must not hold one: two would wait for each other.
            let permit = loop {
                if let Ok(permit) = Arc::clone(&self.window).try_acquire_owned() {
                    break permit;
                }
                match confirms.next().await {
                    Some(fate) => fates.add(fate?),
                    None => break self.place().await?,
                }
            };
            confirms.push_back(self.send(session, task, queue, permit).await?);
        }
        while let Some(fate) = confirms.next().await {
            fates.add(fate?);
        }
        Ok(fates.taken)
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.window).acquire_owned();
        match tokio::time::timeout(self.options.timeout, place).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(cannot("too many messages wait for the broker's confirmation")),
        }
    }

    /// Sends one message; what it gives tells its fate.
    async fn send(
        &self,
        session: &Session,
        task: &Task,
        queue: ShortString,
        permit: OwnedSemaphorePermit,
    ) -> Result<impl Future<Output = Result<Fate>> + use<>> {
        let limit = self.options.timeout;
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let bytes = codec::encode(task);
        let persistent = BasicProperties::default().with_delivery_mode(2).with_headers(codec::headers(task));
        let sending = session.publishing.basic_publish("".into(), queue, mandatory, &bytes, persistent);
        let confirm = within(limit, "take a message", sending).await?;
        Ok(async move {
            let confirmed = within(limit, "confirm a message", confirm).await;
            drop(permit);
            match confirmed? {
                Confirmation::Ack(None) => Ok(Fate::Taken),
                Confirmation::Nack(_) => Ok(Fate::Refused),
                // The queue is gone: a new session declares it again.
                Confirmation::Ack(Some(_)) => Err(cannot("the lane's queue does not exist")),
                Confirmation::NotRequested => Err(Error::internal("the channel lost its confirm mode")),
            }
        })
    }

    /// Messages ready in a lane.
    pub async fn depth(&self, lane: Lane) -> Result<u64> {
        let session = self.session()?;
        let depths = session.run(topology::lane_depths(&session.asking, &self.options, lane)).await?;
        Ok(depths.iter().sum())
    }

    /// How a producer's queues of a lane stand, as far as is known here.
    pub async fn room(&self, lane: Lane, producer: &ProducerId) -> Result<Room> {
        let session = self.session()?;
        session.run(session.room(&self.options, lane, producer)).await
    }

    /// Messages parked.
    pub async fn parked(&self) -> Result<u64> {
        let session = self.session()?;
        let queue = topology::parked_name(&self.options);
        session.run(topology::depth(&session.asking, &self.options, queue)).await
    }
}

/// The count of taken messages from the front.
#[derive(Default)]
struct Fates {
    taken: usize,
    refused: bool,
}

impl Fates {
    fn add(&mut self, fate: Fate) {
        self.refused |= fate == Fate::Refused;
        self.taken += usize::from(!self.refused);
    }
}

impl Broker for Session {
    async fn depth(&self, lane: Lane, number: usize) -> Result<u64> {
        self.run(topology::depth(&self.asking, &self.options, queue_name(&self.options, lane, number))).await
    }

    fn depths(&self) -> &Depths {
        &self.depths
    }
}

impl Session {
    async fn open(options: &Arc<RabbitOptions>) -> Result<Self> {
        let connection = topology::connect(options, "publish").await?;
        let asking = within(options.timeout, "open a channel", connection.create_channel()).await?;
        topology::declare(&asking, options).await?;
        let publishing = within(options.timeout, "open a channel", connection.create_channel()).await?;
        let confirms = publishing.confirm_select(ConfirmSelectOptions::default());
        within(options.timeout, "confirm messages", confirms).await?;
        let (depths, options) = (Depths::new(options.fair_queues), Arc::clone(options));
        Ok(Self { connection, publishing, asking, depths, options, broken: CancellationToken::new() })
    }

    /// How a producer's own queues of a lane stand.
    async fn room(&self, options: &RabbitOptions, lane: Lane, producer: &ProducerId) -> Result<Room> {
        let share = fair::share(options.tasks_max, options.fair_queues);
        let own = fair::queues(producer, options.fair_queues, false);
        let waiting = Depths::waiting(self, lane, &own, share.saturating_sub(1)).await?;
        let left = waiting.iter().map(|waiting| share.saturating_sub(*waiting)).sum();
        Ok(Room { left, waiting: waiting.iter().sum() })
    }

    /// The result of a call. If it fails the connection is given up, and with it every other call: not each of them
    /// has to find out for itself by its timeout. A broker that is out of memory or disk is not given up, it would only
    /// block the next connection too; calls fail at once until it takes messages again.
    async fn run<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if self.connection.status().blocked() {
            return Err(cannot("the broker takes no messages now: it is short of memory or disk"));
        }
        tokio::select! {
            biased;
            () = self.broken.cancelled() => Err(cannot("the connection to the broker was lost")),
            result = call => result.inspect_err(|_| {
                if !self.connection.status().blocked() {
                    self.broken.cancel();
                }
            }),
        }
    }

    async fn until_broken(&self) {
        let stands = || {
            let channels = [&self.publishing, &self.asking];
            self.connection.status().connected() && channels.iter().all(|channel| channel.status().connected())
        };
        while stands() {
            if tokio::time::timeout(CHECK_EVERY, self.broken.cancelled()).await.is_ok() {
                return;
            }
        }
    }
}
