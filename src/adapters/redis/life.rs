//! A connection and its fence as one object, dropped together: a reply is never read under another one's fence.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::Notify;

use super::bells::Bells;
use super::connection::{Found, identity};
use super::{RedisOptions, cannot};
use crate::adapters::Store;
use crate::domain::{Fence, Revision};
use crate::error::{Error, Kind, Result};
use crate::ports::Store as _;

/// After a suspicion the check comes at once, but not more often than this.
const DOUBT_PAUSE: Duration = Duration::from_millis(20);

/// A connection to the master in force.
#[derive(Debug)]
pub struct Life {
    /// Under which its records are.
    pub fence: Fence,
    /// Its waiters.
    pub bells: Arc<Bells>,
    /// The id of the master's replication history.
    pub replid: String,
    /// The master's address, for the log.
    pub address: String,
    connection: MultiplexedConnection,
    confirm_max: Duration,
    answer_max: Duration,
    began: Instant,
    /// When the last check that confirmed it was begun, in microseconds after `began`.
    confirmed_us: AtomicU64,
    ended: AtomicBool,
    doubt: Notify,
}

/// What a check found.
enum Check {
    /// This is the master, and its fence the newest.
    Confirmed,
    /// Nobody could be asked.
    Unknown(String),
    /// This is over.
    Over(String),
}

impl Life {
    /// What was found, under `fence`; not confirmed yet.
    pub fn new(found: Found, fence: Fence, options: &RedisOptions) -> Self {
        let Found { connection, bells, replid, address } = found;
        Self {
            fence,
            bells,
            replid,
            address,
            connection,
            confirm_max: options.confirm_max,
            answer_max: options.response_timeout * 2,
            began: Instant::now(),
            confirmed_us: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            doubt: Notify::new(),
        }
    }

    /// The connection, for one call.
    pub fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    /// An error if what was read may be out of date: the fence was not confirmed lately, or is over.
    pub fn still_in_force(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Err(cannot("the connection to redis was dropped meanwhile"));
        }
        let confirmed = self.began + Duration::from_micros(self.confirmed_us.load(Ordering::Acquire));
        if confirmed.elapsed() > self.confirm_max {
            return Err(cannot("the fence of the revisions could not be confirmed lately"));
        }
        Ok(())
    }

    /// The revision in a record's first bytes; `None` if there are none.
    pub fn revision(&self, head: &[u8]) -> Option<Revision> {
        let (epoch, rest) = head.split_first_chunk()?;
        let counter = rest.first_chunk()?;
        let (epoch, counter) = (u64::from_be_bytes(*epoch), u64::from_be_bytes(*counter));
        Some(Revision { nonce: self.fence.nonce, epoch, counter })
    }

    /// The answer to a call. A server that hangs costs its callers a bounded time, however many wait for their turn.
    pub async fn answer<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T> {
        if self.ended.load(Ordering::Acquire) {
            return Err(cannot("the connection to redis was dropped"));
        }
        match tokio::time::timeout(self.answer_max, call).await {
            Ok(answer) => answer.map_err(|error| self.failed(error)),
            Err(_) => Err(cannot("redis did not answer in time")),
        }
    }

    /// What a failed call becomes. One that says something about the connection brings the next check forward.
    fn failed(&self, error: RedisError) -> Error {
        let read_only = error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::ReadOnly);
        if read_only || error.is_io_error() {
            self.doubt.notify_one();
        }
        cannot("redis did not carry the command out").with_source(error)
    }

    /// Serves its waiters and checks it until it is over, and says why it is.
    pub async fn watch(&self, options: &RedisOptions, store: &Store) -> String {
        tokio::select! {
            () = self.bells.disconnected.notified() => "the connection was lost".into(),
            reason = self.check_often(options.check_every, store) => reason,
            failed = self.bells.attend(self.connection()) => {
                let Err::<Infallible, _>(error) = failed;
                format!("cannot subscribe: {error}")
            }
        }
    }

    async fn check_often(&self, every: Duration, store: &Store) -> String {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.doubt.notified() => tokio::time::sleep(DOUBT_PAUSE).await,
            }
            if let Err(error) = self.check(store).await {
                return error.detail().to_owned();
            }
        }
    }

    /// Asks the server for its role and the registry for its newest entry, and answers whether both confirm this life.
    /// An error if it is over.
    pub async fn check(&self, store: &Store) -> Result<bool> {
        let asked = self.began.elapsed();
        let reason = match self.ask(store).await {
            Check::Confirmed => {
                let asked = u64::try_from(asked.as_micros()).unwrap_or(u64::MAX);
                self.confirmed_us.store(asked, Ordering::Release);
                return Ok(true);
            }
            Check::Over(reason) => return Err(cannot(reason)),
            Check::Unknown(reason) => reason,
        };
        tracing::warn!(reason, "the fence of the revisions cannot be confirmed");
        Ok(false)
    }

    async fn ask(&self, store: &Store) -> Check {
        let mut connection = self.connection();
        let newest = tokio::time::timeout(self.confirm_max, store.newest_fence());
        let (identity, newest) = tokio::join!(identity(&mut connection), newest);
        match identity {
            // A server that hangs is left when it has been silent for too long: another may have been promoted.
            Err(error) if error.is_timeout() && self.still_in_force().is_ok() => {
                return Check::Unknown(error.to_string());
            }
            Err(error) => return Check::Over(error.to_string()),
            Ok(identity) if !identity.master => return Check::Over("the server has become a replica".into()),
            Ok(identity) if identity.replid != self.replid => {
                return Check::Over(format!("the server has begun a new life ({})", identity.replid));
            }
            Ok(_) => {}
        }
        match newest {
            Ok(Ok(Some((fence, _)))) if fence == self.fence => Check::Confirmed,
            Ok(Ok(_)) => Check::Over("the registry has a newer fence".into()),
            Ok(Err(error)) if error.kind() == Kind::Unavailable => Check::Unknown(error.to_string()),
            Ok(Err(error)) => Check::Unknown(format!("the registry cannot be read: {error}")),
            Err(_) => Check::Unknown("the registry did not answer in time".into()),
        }
    }

    /// Nothing is answered under it from here on, and whoever waits on it wakes.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.bells.end();
    }
}
