//! Publishing: one connection, kept up in the background, with confirms and a window of messages in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::topology::{self, cannot, queue_name, within};
use super::{Pauses, RabbitOptions, codec};
use crate::domain::{Lane, Task};
use crate::error::{Error, Result};

/// How long a lane's room is taken as last told, less what was published since.
const ROOM_AGE: Duration = Duration::from_millis(500);
/// A lane that was full is asked again after this.
const ROOM_AGE_FULL: Duration = Duration::from_millis(1);
/// Between looks whether the connection still stands.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// The publishing half of the queue.
#[derive(Debug)]
pub struct Publisher {
    options: Arc<RabbitOptions>,
    window: Arc<Semaphore>,
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
    rooms: [Mutex<Room>; 2],
    broken: CancellationToken,
}

/// What is known of a lane's room.
#[derive(Debug)]
struct Room {
    left: u64,
    asked: Option<Instant>,
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
        Self { window: Arc::new(Semaphore::new(options.window)), options, current }
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
    pub async fn publish(&self, mut tasks: Vec<Task>) -> Result<usize> {
        let session = self.session()?;
        let mut granted = [0; 2];
        for lane in Lane::ALL {
            let wanted = tasks.iter().filter(|task| task.lane == lane).count() as u64;
            granted[lane as usize] = session.run(session.reserve(&self.options, lane, wanted)).await?;
        }
        let fits = |task: &Task| {
            let left = &mut granted[task.lane as usize];
            let fits = *left > 0;
            *left = left.saturating_sub(1);
            fits
        };
        tasks.truncate(tasks.iter().take_while(fit(fits)).count());
        session.run(self.publish_all(&session, &tasks)).await
    }

    async fn publish_all(&self, session: &Session, tasks: &[Task]) -> Result<usize> {
        let mut confirms = FuturesOrdered::new();
        let mut fates = Fates::default();
        for task in tasks {
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
            confirms.push_back(self.send(session, task, permit).await?);
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
        permit: OwnedSemaphorePermit,
    ) -> Result<impl Future<Output = Result<Fate>> + use<>> {
        let limit = self.options.timeout;
        let queue = queue_name(&self.options, task.lane);
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
        session.run(session.ask(&self.options, lane)).await
    }

    /// Messages a lane still takes.
    pub async fn room(&self, lane: Lane) -> Result<u64> {
        Ok((self.options.tasks_max as u64).saturating_sub(self.depth(lane).await?))
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

/// `take_while` hands out references to what it iterates over, which are references already.
fn fit<'a>(mut fits: impl FnMut(&Task) -> bool) -> impl FnMut(&&'a Task) -> bool {
    move |task| fits(task)
}

impl Session {
    async fn open(options: &RabbitOptions) -> Result<Self> {
        let connection = topology::connect(options, "publish").await?;
        let asking = within(options.timeout, "open a channel", connection.create_channel()).await?;
        topology::declare(&asking, options).await?;
        let publishing = within(options.timeout, "open a channel", connection.create_channel()).await?;
        let confirms = publishing.confirm_select(ConfirmSelectOptions::default());
        within(options.timeout, "confirm messages", confirms).await?;
        let unknown = || Mutex::new(Room { left: 0, asked: None });
        Ok(Self { connection, publishing, asking, rooms: [unknown(), unknown()], broken: CancellationToken::new() })
    }

    /// Up to `wanted` places in a lane. What the broker told lately is trusted, so that not every publish asks; if
    /// others publish too, the queue's own limit refuses what is beyond it.
    async fn reserve(&self, options: &RabbitOptions, lane: Lane, wanted: u64) -> Result<u64> {
        if wanted == 0 {
            return Ok(0);
        }
        let mut room = self.rooms[lane as usize].lock().await;
        let age_max = if room.left < wanted { ROOM_AGE_FULL } else { ROOM_AGE };
        if room.asked.is_none_or(|asked| asked.elapsed() > age_max) {
            room.asked = Some(Instant::now());
            room.left = (options.tasks_max as u64).saturating_sub(self.ask(options, lane).await?);
        }
        let granted = room.left.min(wanted);
        room.left -= granted;
        Ok(granted)
    }

    async fn ask(&self, options: &RabbitOptions, lane: Lane) -> Result<u64> {
        topology::depth(&self.asking, options, queue_name(options, lane)).await
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
