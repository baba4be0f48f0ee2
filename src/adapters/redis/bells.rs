//! Wake-ups: who waits for which viewer's record, over one connection's subscriptions.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue as _, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{Notify, watch};

use super::script::Keys;
use crate::error::{Error, Result};

/// Channels joined and left in one round.
const SUBSCRIBE_MAX: usize = 500;

/// The bells of one connection. They end with it, and that rings all of them.
#[derive(Debug)]
pub struct Bells {
    keys: Keys,
    waiters_max: usize,
    table: Mutex<Table>,
    /// Some viewer's subscription is not what its waiters need.
    work: Notify,
    /// The connection was lost.
    pub disconnected: Notify,
}

#[derive(Debug, Default)]
struct Table {
    bells: HashMap<Arc<str>, Bell>,
    /// Whose subscription may have to change.
    dirty: VecDeque<Arc<str>>,
    waiters: usize,
    ended: bool,
}

#[derive(Debug)]
struct Bell {
    state: watch::Sender<State>,
    waiters: usize,
    /// The server was told to subscribe, and not since to unsubscribe.
    told: bool,
}

impl Bell {
    fn new() -> Self {
        Self { state: watch::Sender::new(State { subscribed: false }), waiters: 0, told: false }
    }
}

/// What a waiter sees; sent anew at each ring.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The server has confirmed the subscription: no ring from now on is missed.
    subscribed: bool,
}

impl Bells {
    /// Bells for at most `waiters_max` waiters.
    pub fn new(keys: Keys, waiters_max: usize) -> Self {
        Self { keys, waiters_max, table: Mutex::default(), work: Notify::new(), disconnected: Notify::new() }
    }

    /// How many wait.
    pub fn waiters(&self) -> usize {
        self.table().waiters
    }

    /// Takes a place among the waiters of a viewer.
    pub fn enlist(self: &Arc<Self>, viewer: &str) -> Result<Waiter> {
        let mut table = self.table();
        if table.waiters >= self.waiters_max {
            let detail = format!("revisions.waiters_max = {} requests wait already", self.waiters_max);
            return Err(Error::unavailable("too_many_waiters", detail));
        }
        let viewer: Arc<str> = viewer.into();
        if table.ended {
            // A state whose sender is gone: the waiter finds at once that there is nothing to wait for.
            let (_, state) = watch::channel(State { subscribed: false });
            return Ok(Waiter { bells: Arc::clone(self), viewer, state, counted: false });
        }
        table.waiters += 1;
        let bell = table.bells.entry(Arc::clone(&viewer)).or_insert_with(Bell::new);
        bell.waiters += 1;
        let (state, told) = (bell.state.subscribe(), bell.told);
        if !told {
            table.dirty.push_back(Arc::clone(&viewer));
            self.work.notify_one();
        }
        Ok(Waiter { bells: Arc::clone(self), viewer, state, counted: true })
    }

    /// What the server pushes: rings a bell, or tells that the connection is lost.
    pub fn hear(&self, push: PushInfo) {
        match (push.kind, push.data.as_slice()) {
            (PushKind::Message, [channel, ..]) => self.ring(channel),
            (PushKind::Disconnection, _) => self.disconnected.notify_one(),
            _ => {}
        }
    }

    fn ring(&self, channel: &Value) {
        let Ok(channel) = String::from_redis_value_ref(channel) else { return };
        let Some(viewer) = self.keys.viewer_of(&channel) else { return };
        if let Some(bell) = self.table().bells.get(viewer) {
            bell.state.send_modify(|_| {});
        }
    }

    /// Keeps the subscriptions what the waiters need, until the connection fails.
    pub async fn attend(&self, mut connection: MultiplexedConnection) -> RedisResult<Infallible> {
        loop {
            let (join, leave) = self.changes();
            if join.is_empty() && leave.is_empty() {
                self.work.notified().await;
                continue;
            }
            let channels = |viewers: &[Arc<str>]| -> Vec<_> { viewers.iter().map(|v| self.keys.channel(v)).collect() };
            if !leave.is_empty() {
                connection.unsubscribe(channels(&leave)).await?;
                self.forget_idle(&leave);
            }
            if !join.is_empty() {
                connection.subscribe(channels(&join)).await?;
                self.subscribed(&join);
            }
        }
    }

    /// Which channels to join and which to leave. One to be left counts as left from here on, so that a waiter who
    /// comes while the server is told waits for a new subscription.
    fn changes(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let mut table = self.table();
        let (mut join, mut leave) = (Vec::new(), Vec::new());
        while join.len() + leave.len() < SUBSCRIBE_MAX
            && let Some(viewer) = table.dirty.pop_front()
        {
            let Some(bell) = table.bells.get_mut(&viewer) else { continue };
            if bell.waiters > 0 && !bell.told {
                bell.told = true;
                join.push(viewer);
            } else if bell.waiters == 0 && bell.told {
                bell.told = false;
                bell.state.send_replace(State { subscribed: false });
                leave.push(viewer);
            } else if bell.waiters == 0 {
                table.bells.remove(&viewer);
            }
        }
        (join, leave)
    }

    fn subscribed(&self, viewers: &[Arc<str>]) {
        let mut table = self.table();
        for viewer in viewers {
            let Some(bell) = table.bells.get(viewer) else { continue };
            bell.state.send_replace(State { subscribed: true });
            if bell.waiters == 0 {
                table.dirty.push_back(Arc::clone(viewer));
            }
        }
    }

    fn forget_idle(&self, viewers: &[Arc<str>]) {
        let mut table = self.table();
        for viewer in viewers {
            if table.bells.get(viewer).is_some_and(|bell| bell.waiters == 0) {
                table.bells.remove(viewer);
            }
        }
    }

    /// Nothing rings any more: lets everybody go.
    pub fn end(&self) {
        let mut table = self.table();
        table.ended = true;
        table.bells.clear();
        table.dirty.clear();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code under the lock can leave the table half changed, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the waiters of one viewer; given up when dropped.
#[derive(Debug)]
pub struct Waiter {
    bells: Arc<Bells>,
    viewer: Arc<str>,
    state: watch::Receiver<State>,
    counted: bool,
}

/// Why a waiter stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The bell rang, or may have.
    Rung,
    /// The deadline has passed.
    TimeUp,
    /// The bells have ended.
    Ended,
}

impl Waiter {
    /// Waits until no ring is missed any more: the look that follows and a wait after it leave no gap.
    pub async fn listening(&mut self, deadline: Instant) -> Woken {
        let subscribed = self.state.wait_for(|state| state.subscribed);
        match tokio::time::timeout_at(deadline.into(), subscribed).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Woken::Ended,
            Err(_) => return Woken::TimeUp,
        }
        self.state.mark_unchanged();
        Woken::Rung
    }

    /// Waits for a ring since [`Waiter::listening`].
    pub async fn rung(&mut self, deadline: Instant) -> Woken {
        match tokio::time::timeout_at(deadline.into(), self.state.changed()).await {
            Ok(Ok(())) => Woken::Rung,
            Ok(Err(_)) => Woken::Ended,
            Err(_) => Woken::TimeUp,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut table = self.bells.table();
        table.waiters -= 1;
        let Some(bell) = table.bells.get_mut(&self.viewer) else { return };
        bell.waiters -= 1;
        if bell.waiters == 0 {
            table.dirty.push_back(Arc::clone(&self.viewer));
            self.bells.work.notify_one();
        }
    }
}
