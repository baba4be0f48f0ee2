//! The worker processes of cluster mode: fan-out and relay. Any number of each; they find their work by themselves.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Backends, Tasks, announce, descriptors, finish, finish_fanout, listen, relay_parts, terminated};
use crate::access::Access;
use crate::clock::Clock;
use crate::config::{AccessMode, Config, Mode};
use crate::error::{Error, Result};
use crate::http::worker::{self as page, Probe};
use crate::leases::Leases;
use crate::parked::ParkedTasks;
use crate::ports::{Path, Queue as _};
use crate::telemetry;
use crate::tuning::{Board, RELAY};

/// What a worker process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes tasks, writes rows, bumps revisions.
    Fanout,
    /// Drives again what is not done.
    Relay,
}

impl Role {
    /// The process's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanfold-fanout",
            Self::Relay => "fanfold-relay",
        }
    }
}

/// What a worker process works on.
pub fn runtime(config: &Config) -> Result<Runtime> {
    let threads = config.worker.threads as usize;
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(|e| Error::internal("cannot start the runtime").with_source(e))
}

/// Runs a worker until SIGTERM or SIGINT, then shuts it down in order.
pub async fn run(role: Role, mut config: Config) -> Result<()> {
    // A worker without a cluster would have nobody to work for.
    config.service.mode = Mode::Cluster;
    descriptors::raise_for_worker();
    let mut worker = Worker::start(role, &config, Clock::system()).await?;
    let (name, version) = (role.name(), env!("CARGO_PKG_VERSION"));
    announce(&format!("{name} {version} ready, metrics on http://{}/metrics\n", worker.addr));
    tokio::select! {
        () = terminated() => {
            info!("stopping");
            worker.shutdown().await;
            Ok(())
        }
        error = worker.stopped() => {
            worker.shutdown().await;
            Err(error)
        }
    }
}

/// A worker at work.
#[derive(Debug)]
pub struct Worker {
    /// Where it serves health and metrics.
    pub addr: SocketAddr,
    /// The adapters in use.
    pub backends: Backends,
    role: Role,
    tasks: Tasks,
    told: JoinSet<()>,
    telling: CancellationToken,
}

impl Worker {
    /// Starts everything.
    pub async fn start(role: Role, config: &Config, clock: Clock) -> Result<Self> {
        // Before anything that measures.
        let metrics = telemetry::install_metrics();
        let backends = Backends::open(config, &clock).await?;
        let listener = listen(config.worker.listen, "worker.listen").await?;
        let addr = listener.local_addr().map_err(|e| Error::internal("no local address").with_source(e))?;
        let access = guard(config, &backends, &clock)?;
        let mut tasks = Tasks::new(Duration::from_secs(u64::from(config.http.shutdown_grace_s)));
        let board = match role {
            Role::Fanout => tasks.spawn_workers(&backends, &clock, config),
            Role::Relay => tasks.spawn_relays(&backends, &clock, config),
        };
        let needs_queue = role == Role::Fanout;
        let probe = Probe { backends: backends.clone(), metrics: metrics.clone(), needs_queue, access };
        tasks.server.spawn(page::serve(listener, probe, config.clone(), tasks.http.clone()));
        tasks.spawn_upkeep(metrics);
        let (mut told, telling) = (JoinSet::new(), CancellationToken::new());
        told.spawn(board.tell(backends.store.for_path(Path::System), clock, telling.clone()));
        Ok(Self { addr, backends, role, tasks, told, telling })
    }

    /// Returns when a part that must run has ended by itself.
    pub async fn stopped(&mut self) -> Error {
        let part = tokio::select! {
            Some(_) = self.tasks.server.join_next() => "the page with metrics",
            Some(_) = self.tasks.workers.join_next() => "the fan-out of a lane",
            Some(_) = self.tasks.others.join_next() => "the relay, the tuning or the upkeep of metrics",
        };
        Error::internal(format!("{part} has ended by itself"))
    }

    /// Takes nothing more and finishes what is in hand. What is not finished when `http.shutdown_grace_s` is over, all parts
    /// together, is cut, and comes again elsewhere.
    pub async fn shutdown(self) {
        let Self { mut tasks, mut told, telling, backends, role, .. } = self;
        let deadline = tasks.deadline();
        tasks.fanout.cancel();
        backends.queue.close().await;
        finish_fanout(&mut tasks.workers, tasks.board.as_ref(), deadline).await;
        // What is finished and not acknowledged would be done once more.
        let _ = timeout_at(deadline, backends.queue.flush()).await;
        tasks.background.cancel();
        if !finish(&mut tasks.others, deadline).await {
            warn!("leases could not be given back in time; they end by themselves");
        }
        tasks.http.cancel();
        tasks.server.shutdown().await;
        telling.cancel();
        told.shutdown().await;
        info!(role = role.name(), "stopped; what was not finished is done elsewhere");
    }
}

/// Who may see a worker's metrics: on loopback whoever can connect, beyond it only who shows a key, if there are keys.
fn guard(config: &Config, backends: &Backends, clock: &Clock) -> Result<Access> {
    let mut access = config.access.clone();
    if config.worker.listen.ip().to_canonical().is_loopback() {
        access.mode = AccessMode::Off;
    }
    Access::for_keys(&access, &config.quota, &backends.store, &backends.revisions, clock)
}

impl Tasks {
    /// Relays for as many shards as are this process's share, and the reader of what the queue has set aside.
    fn spawn_relays(&mut self, backends: &Backends, clock: &Clock, config: &Config) -> Board {
        let board = Board::new(RELAY, clock);
        let store = backends.store.for_path(Path::System);
        let parts = relay_parts(backends, None, clock, config);
        let leases = Leases::new(store.clone(), parts, board.clone());
        self.others.spawn(leases.run(self.background.clone()));
        let parked = ParkedTasks::new(store, backends.queue.clone());
        self.others.spawn(parked.run(self.background.clone()));
        board
    }
}
