//! Revisions in Redis: one packed record a viewer, under a fence that the store's registry confirms every second.
//!
//! There is one primary. Whoever connects asks who it is talking to before it uses the connection and every second
//! while it does; a connection and its fence live and die together (`life.rs`). Nothing reconnects underneath. Quotas are
//! counted over the same connection (`quotas.rs`). Settings that will have writes dropped are told (`settings.rs`).

mod bells;
mod connection;
mod fence;
mod inspect;
mod life;
mod quotas;
mod script;
mod settings;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::bells::{Bells, Woken};
pub use self::connection::check;
pub use self::inspect::inspect;
use self::life::Life;
pub use self::quotas::RedisQuotas;
use self::script::{BUMP_RECORDS, Keys, Scripts};
use self::settings::Looked;
use crate::adapters::Store;
use crate::clock::Clock;
use crate::domain::{Change, Fence, PostId, Record, Revision, Task, ViewerId};
use crate::error::{Error, Result};
use crate::ports::{MarkBump, Revisions, Store as _};

/// Records asked for in one MGET: Redis does nothing else meanwhile.
const READ_RECORDS: usize = 500;
/// Bump scripts of this process in flight, of whole chunks: enough to keep Redis busy. What is beyond would only make the
/// polls behind it wait, at 0.6 ms a script. Those of few viewers ([`Task::VIEWERS_A_PART`]), a tenth of a millisecond
/// each, are as many besides, or they would wait for every chunk that stands in line.
const BUMP_CALLS: usize = 6;
/// Between attempts to find a master: doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How to reach Redis, and how far to trust it.
#[derive(Clone)]
pub struct RedisOptions {
    /// Where to look for the master.
    pub servers: RedisServers,
    /// Authorities (PEM) that sign the servers' certificates, where URLs ask for TLS; `None`: the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// What keys and channels begin with.
    pub key_prefix: String,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a reply may take.
    pub response_timeout: Duration,
    /// Commands in flight; more wait their turn.
    pub in_flight_max: usize,
    /// How long an inbox that nobody reads keeps its record. Longer than tokens are valid, or they end early.
    pub record_ttl: Duration,
    /// Between checks of the role and of the registry.
    pub check_every: Duration,
    /// After so long without a successful check nothing is answered.
    pub confirm_max: Duration,
    /// Requests that may wait for a change at a time.
    pub waiters_max: usize,
    /// What time it is, for the registry.
    pub clock: Clock,
}

/// Where to look for the master. URLs are `redis://[user:password@]host:port/[db]`.
#[derive(Clone)]
pub enum RedisServers {
    /// Each of these is asked; the one that is a master is used.
    Nodes(Vec<String>),
    /// These say where the master is.
    Sentinel {
        /// The sentinels' URLs; the first that answers is believed.
        sentinels: Vec<String>,
        /// The master's name.
        master: String,
        /// The URL of any node, for credentials and database; its host is replaced.
        node: String,
    },
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // URLs may hold passwords.
        f.debug_struct("RedisOptions").field("key_prefix", &self.key_prefix).finish_non_exhaustive()
    }
}

/// Revisions in Redis.
#[derive(Clone, Debug)]
pub struct RedisRevisions {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

#[derive(Debug)]
struct Inner {
    options: RedisOptions,
    keys: Keys,
    scripts: Scripts,
    store: Store,
    bumps: Semaphore,
    few_bumps: Semaphore,
    waiting: fence::Waiting,
    current: watch::Sender<Current>,
}

/// The connection in use, or why there is none.
#[derive(Clone, Debug)]
struct Current(Result<Arc<Life>, Arc<str>>);

impl RedisRevisions {
    /// Starts looking for the master, and goes on until the last clone is dropped. `store` has the fence registry.
    pub fn start(options: RedisOptions, store: Store) -> Self {
        let inner = Arc::new(Inner {
            keys: Keys::new(&options.key_prefix),
            scripts: Scripts::new(),
            bumps: Semaphore::new(BUMP_CALLS),
            few_bumps: Semaphore::new(BUMP_CALLS),
            waiting: fence::Waiting::default(),
            current: watch::Sender::new(Current(Err("redis was not reached yet".into()))),
            store,
            options,
        });
        let stop = CancellationToken::new();
        let (kept, stopped) = (Arc::clone(&inner), stop.clone());
        tokio::spawn(async move {
            tokio::select! { () = stopped.cancelled() => {}, () = kept.keep() => {} }
            kept.replace(Err("stopped".into()));
        });
        Self { inner, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Waits until there is a master under a confirmed fence; after `patience` an error that says why there is none.
    pub async fn ready(&self, patience: Duration) -> Result<()> {
        let mut current = self.inner.current.subscribe();
        let ready = current.wait_for(|current| current.0.is_ok());
        // The sender is in `self`: waiting for it ends by success or by the timeout.
        if tokio::time::timeout(patience, ready).await.is_ok() { Ok(()) } else { self.life().map(|_| ()) }
    }

    /// How many requests wait for a change.
    pub fn waiters(&self) -> usize {
        self.life().map_or(0, |life| life.bells.waiters())
    }

    /// Quotas in the same Redis, over the same connection; a charge takes `timeout` at most.
    pub fn quotas(&self, timeout: Duration) -> RedisQuotas {
        RedisQuotas::new(self.clone(), timeout)
    }

    fn life(&self) -> Result<Arc<Life>> {
        self.inner.current.borrow().0.clone().map_err(|reason| cannot(reason.to_string()))
    }
}

impl Inner {
    /// Finds the master, keeps it as long as it is one, and looks again.
    async fn keep(&self) {
        let (mut pause, mut looked) = (PAUSES.0, Looked::default());
        loop {
            match self.begin().await {
                Ok(life) => {
                    pause = PAUSES.0;
                    self.replace(Ok(Arc::clone(&life)));
                    let reason = self.watch(&life, &mut looked).await;
                    tracing::warn!(reason, fence = life.fence.seq, "the connection to redis is dropped");
                    self.replace(Err(reason.into()));
                }
                Err(error) => {
                    tracing::warn!(%error, "revisions are not available");
                    self.replace(Err(error.to_string().into()));
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Watches a life until it is over, and says why it is. It serves already: nobody waits for the look at its
    /// settings.
    async fn watch(&self, life: &Life, looked: &mut Looked) -> String {
        let mut over = pin!(life.watch(&self.options, &self.store));
        tokio::select! {
            reason = &mut over => return reason,
            () = looked.at(life) => {}
        }
        over.await
    }

    async fn begin(&self) -> Result<Arc<Life>> {
        let newest = self.store.newest_fence().await?.map(|(_, replid)| replid);
        let bells = || Arc::new(Bells::new(self.keys.clone(), self.options.waiters_max));
        let mut found = connection::find_master(&self.options, bells, newest.as_deref()).await?;
        let fence = fence::settle(&self.store, &self.options.clock, &found.replid, &self.waiting).await?;
        let loaded = self.scripts.load(&mut found.connection).await;
        loaded.map_err(|error| cannot("redis does not take the scripts").with_source(error))?;
        let life = Life::new(found, fence, &self.options);
        // Asked again: it may have become a replica while the fence was registered.
        if !life.check(&self.store).await? {
            return Err(cannot("the fence of the revisions could not be confirmed"));
        }
        tracing::info!(address = life.address, fence = fence.seq, "revisions are available");
        Ok(Arc::new(life))
    }

    fn replace(&self, current: Result<Arc<Life>, Arc<str>>) {
        let before = self.current.send_replace(Current(current));
        if let Ok(life) = before.0 {
            life.end();
        }
    }
}

/// What every call answers while Redis cannot be used. Clients are spread over a second and more.
fn cannot(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    let after = Duration::from_millis(rand::random_range(1000..3000));
    Error::unavailable("revisions_unavailable", detail).with_retry_after(after)
}

impl RedisRevisions {
    async fn look(&self, life: &Life, viewer: &ViewerId) -> Result<Option<Revision>> {
        let key = self.inner.keys.record(viewer.as_str());
        // Epoch and counter: a poll has no use for the ring.
        let mut get = redis::cmd("GETRANGE");
        let head: Vec<u8> = life.answer(get.arg(key).arg(0).arg(15).query_async(&mut life.connection())).await?;
        life.still_in_force()?;
        Ok(life.revision(&head))
    }

    async fn look_at_many(&self, life: &Life, viewers: &[ViewerId]) -> Result<Vec<Option<Revision>>> {
        let mut get = redis::cmd("MGET");
        for viewer in viewers {
            get.arg(self.inner.keys.record(viewer.as_str()));
        }
        let records: Vec<Option<Vec<u8>>> = life.answer(get.query_async(&mut life.connection())).await?;
        Ok(records.iter().map(|record| record.as_deref().and_then(|record| life.revision(record))).collect())
    }
}

impl Revisions for RedisRevisions {
    async fn current(&self, viewer: &ViewerId) -> Result<Option<Revision>> {
        self.look(&*self.life()?, viewer).await
    }

    async fn current_many(&self, viewers: &[ViewerId]) -> Result<Vec<Option<Revision>>> {
        let life = self.life()?;
        let parts = try_join_all(viewers.chunks(READ_RECORDS).map(|part| self.look_at_many(&life, part))).await?;
        life.still_in_force()?;
        Ok(parts.concat())
    }

    async fn open(&self, viewer: &ViewerId) -> Result<Revision> {
        let life = self.life()?;
        let (scripts, keys) = (&self.inner.scripts, &self.inner.keys);
        let ttl_s = self.inner.options.record_ttl.as_secs().max(1);
        let head = life.answer(scripts.open(life.connection(), keys, viewer.as_str(), rand::random(), ttl_s)).await?;
        life.still_in_force()?;
        life.revision(&head).ok_or_else(|| Error::internal("the script gave no head of a record"))
    }

    async fn record(&self, viewer: &ViewerId) -> Result<Option<(u64, Record)>> {
        let life = self.life()?;
        let mut get = redis::cmd("GET");
        let get = get.arg(self.inner.keys.record(viewer.as_str()));
        let bytes: Option<Vec<u8>> = life.answer(get.query_async(&mut life.connection())).await?;
        life.still_in_force()?;
        Ok(bytes.and_then(Record::from_bytes).map(|record| (life.fence.nonce, record)))
    }

    async fn bump(&self, viewers: &[ViewerId], change: Change) -> Result<u32> {
        // All of it under one connection. Whether its fence is still the newest is not for the bump to know: the
        // number it answers is compared with the newest before anything is taken for done.
        let life = self.life()?;
        let (scripts, keys) = (&self.inner.scripts, &self.inner.keys);
        let turns = if viewers.len() > Task::VIEWERS_A_PART { &self.inner.bumps } else { &self.inner.few_bumps };
        let calls = viewers.chunks(BUMP_RECORDS).map(async |part| {
            let _turn = turns.acquire().await.map_err(|_| Error::internal("nobody closes the semaphore"))?;
            let part = part.iter().map(ViewerId::as_str);
            life.answer(scripts.bump(life.connection(), keys, part, change)).await
        });
        try_join_all(calls).await?;
        Ok(life.fence.seq)
    }

    async fn bump_marks(&self, viewer: &ViewerId, posts: &[PostId]) -> Result<MarkBump> {
        let life = self.life()?;
        let (scripts, keys) = (&self.inner.scripts, &self.inner.keys);
        let stamp = crate::domain::revision::MARK_BIT | rand::random::<u32>();
        let heads = life.answer(scripts.mark(life.connection(), keys, viewer.as_str(), stamp, posts)).await?;
        let (before, after) = heads.unzip();
        let revision = |head: Option<Vec<u8>>| head.and_then(|head| life.revision(&head));
        Ok(MarkBump { before: revision(before), after: revision(after), fence: life.fence.seq })
    }

    async fn changed(&self, viewer: &ViewerId, seen: Revision, deadline: Instant) -> Result<Option<Revision>> {
        let life = self.life()?;
        let mut waiter = life.bells.enlist(viewer.as_str())?;
        loop {
            // Listened for before the look: a bump between the look and the wait is not missed.
            let listening = waiter.listening(deadline).await;
            let current = match listening {
                // Whatever life there is now says; if there is none, that is the answer.
                Woken::Ended => return self.current(viewer).await,
                Woken::Rung | Woken::TimeUp => self.look(&life, viewer).await?,
            };
            if current != Some(seen) || listening == Woken::TimeUp {
                return Ok(current);
            }
            if waiter.rung(deadline).await == Woken::TimeUp {
                return self.look(&life, viewer).await;
            }
        }
    }

    async fn fence(&self) -> Result<Fence> {
        Ok(self.life()?.fence)
    }
}
