//! The wiring, visible from top to bottom: configuration, adapters, use cases, tasks, shutdown.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::adapters::embedded::{
    EmbeddedQueue, EmbeddedRevisions, EmbeddedStore, Folder, RevisionLimits, StoreOptions,
};
use crate::adapters::{Queue, Revisions, Store};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::Lane;
use crate::error::{Error, Kind, Result};
use crate::fanout::Fanout;
use crate::http;
use crate::marks::Marker;
use crate::ports::{Path, Queue as _, Store as _};
use crate::publish::{PublishLimits, Publisher};
use crate::reader::{ReadLimits, Reader};
use crate::relay::{Relay, RelayLimits};
use crate::telemetry;
use crate::withdrawals::Withdrawals;

/// Runs the service until SIGTERM or SIGINT, then shuts it down in order.
pub async fn run(config: Config) -> Result<()> {
    let mut running = Running::start(&config, Clock::system()).await?;
    print!("{}", banner(&config, running.addr));
    tokio::select! {
        () = terminated() => {
            info!("stopping");
            running.shutdown().await
        }
        // Half a service would answer as if all was well: end it, and let the supervisor start a whole one.
        error = running.stopped() => {
            running.shutdown().await?;
            Err(error)
        }
    }
}

/// A service that accepts requests.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The adapters in use, for looking inside.
    pub backends: Backends,
    tasks: Tasks,
}

/// The adapters in use.
#[derive(Clone, Debug)]
pub struct Backends {
    /// The truth.
    pub store: Store,
    /// Fan-out tasks.
    pub queue: Queue,
    /// Revisions.
    pub revisions: Revisions,
}

#[derive(Debug)]
struct Tasks {
    /// Stops accepting and lets open requests finish.
    http: CancellationToken,
    /// Stops the relay and upkeep.
    background: CancellationToken,
    server: JoinSet<Result<()>>,
    workers: JoinSet<()>,
    others: JoinSet<()>,
    grace: Duration,
}

impl Running {
    /// Starts everything. Listens last: whoever gets a connection gets answers.
    pub async fn start(config: &Config, clock: Clock) -> Result<Self> {
        let backends = Backends::open(config, &clock).await?;
        let listener = listen(config.http.listen).await?;
        let addr = listener.local_addr().map_err(|e| Error::internal("no local address").with_source(e))?;
        let Backends { store, queue, revisions } = backends.clone();

        let withdrawals = Withdrawals::load(&store.for_path(Path::System)).await?;
        let publisher = Publisher {
            store: store.for_path(Path::Publish),
            queue: queue.clone(),
            withdrawals: withdrawals.clone(),
            clock: clock.clone(),
            limits: publish_limits(config),
        };
        let reader = Reader::new(
            store.for_path(Path::Page),
            store.for_path(Path::Changes),
            revisions.clone(),
            withdrawals.clone(),
            clock.clone(),
            read_limits(config),
            config.inbox.body_cache_bytes_max,
        );
        let marker = Marker {
            store: store.for_path(Path::Mark),
            revisions: revisions.clone(),
            reader: reader.clone(),
            clock: clock.clone(),
        };
        let fanout = Fanout {
            store: store.for_path(Path::Fanout),
            queue: queue.clone(),
            revisions: revisions.clone(),
            clock: clock.clone(),
            inbox_ttl: read_limits(config).inbox_ttl,
            attempts_max: config.fanout.attempts_max,
        };
        let relay =
            Relay::new(store.for_path(Path::Relay), queue.clone(), withdrawals, clock.clone(), relay_limits(config));
        let metrics = telemetry::install_metrics();
        let app = http::App::new(http::Parts {
            status: Publisher { store: store.for_path(Path::Status), ..publisher.clone() },
            publisher,
            reader,
            marker,
            backends: backends.clone(),
            metrics: metrics.clone(),
            clock,
            config: config.clone(),
        });

        let mut tasks = Tasks::new(Duration::from_secs(u64::from(config.http.shutdown_grace_s)));
        tasks.spawn_workers(&fanout, config);
        tasks.others.spawn(relay.run(tasks.background.clone()));
        let background = tasks.background.clone();
        tasks.others.spawn(async move {
            tokio::select! { () = background.cancelled() => {}, () = telemetry::upkeep(metrics) => {} }
        });
        tasks.server.spawn(http::serve(listener, app, config.http.clone(), tasks.http.clone()));
        Ok(Self { addr, backends, tasks })
    }

    /// Returns when a part that must run has ended by itself, which it does only when something is badly wrong.
    pub async fn stopped(&mut self) -> Error {
        let part = tokio::select! {
            Some(_) = self.tasks.server.join_next() => "the HTTP server",
            Some(_) = self.tasks.workers.join_next() => "a fan-out worker",
            Some(_) = self.tasks.others.join_next() => "the relay or the upkeep of metrics",
        };
        Error::internal(format!("{part} has ended by itself"))
    }

    /// Stops accepting, finishes what is in hand within the configured bound, and tells what is left for the next start.
    pub async fn shutdown(self) -> Result<()> {
        let grace = self.tasks.grace;
        self.tasks.http.cancel();
        if tokio::time::timeout(grace, self.tasks.server.join_all()).await.is_err() {
            warn!(?grace, "requests were still open when the time to finish them was up");
        }
        self.backends.queue.close().await;
        if tokio::time::timeout(grace, self.tasks.workers.join_all()).await.is_err() {
            warn!(?grace, "fan-out tasks were still in hand when the time to finish them was up");
        }
        self.tasks.background.cancel();
        self.tasks.others.join_all().await;
        let mut left = 0;
        for lane in Lane::ALL {
            left += self.backends.queue.depth(lane).await?;
        }
        info!(tasks_left = left, "stopped; the next start goes on with what is left");
        Ok(())
    }
}

impl Tasks {
    fn new(grace: Duration) -> Self {
        Self {
            http: CancellationToken::new(),
            background: CancellationToken::new(),
            server: JoinSet::new(),
            workers: JoinSet::new(),
            others: JoinSet::new(),
            grace,
        }
    }

    fn spawn_workers(&mut self, fanout: &Fanout, config: &Config) {
        for (lane, workers) in [(Lane::Small, config.fanout.workers_small), (Lane::Bulk, config.fanout.workers_bulk)] {
            for _ in 0..workers {
                let fanout = fanout.clone();
                self.workers.spawn(async move { fanout.work(lane).await });
            }
        }
    }
}

impl Backends {
    /// Opens the embedded adapters: the folder is locked, the store recovered, a new fence registered.
    pub async fn open(config: &Config, clock: &Clock) -> Result<Self> {
        let folder = Folder::open(&config.store.data)?;
        let store = Store::Embedded(EmbeddedStore::open(folder, store_options(config, clock))?);
        let fence = store.register_fence(rand::random(), "embedded").await?;
        let limits = RevisionLimits {
            records_max: usize::try_from(config.revisions.records_max).unwrap_or(usize::MAX),
            waiters_max: config.revisions.waiters_max as usize,
        };
        let revisions = Revisions::Embedded(EmbeddedRevisions::new(fence, limits));
        let queue = Queue::Embedded(EmbeddedQueue::new(config.fanout.queue_tasks_max as usize));
        Ok(Self { store, queue, revisions })
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        let code = if e.kind() == std::io::ErrorKind::AddrInUse { "address_in_use" } else { "cannot_listen" };
        let detail = format!("cannot listen on {addr}");
        Error::new(Kind::Unavailable, code, detail).with_field("http.listen").with_source(e)
    })
}

fn store_options(config: &Config, clock: &Clock) -> StoreOptions {
    let store = &config.store;
    StoreOptions {
        cache_bytes: store.cache_bytes,
        memtable_bytes: store.memtable_bytes,
        journal_bytes_max: store.journal_bytes_max,
        commit_jobs_max: store.commit_jobs_max as usize,
        commit_bytes_max: usize::try_from(store.commit_bytes_max).unwrap_or(usize::MAX),
        free_bytes_min: store.free_bytes_min,
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
        idempotency_ttl: Duration::from_secs(config.publish.idempotency_ttl_s),
        clock: clock.clone(),
    }
}

fn publish_limits(config: &Config) -> PublishLimits {
    let publish = &config.publish;
    PublishLimits {
        viewer_id_bytes_max: publish.viewer_id_bytes_max,
        data_bytes_max: publish.data_bytes_max,
        type_bytes_max: publish.type_bytes_max,
        thread_key_bytes_max: publish.thread_key_bytes_max,
        idempotency_key_bytes_max: publish.idempotency_key_bytes_max,
        lifetime_max: Duration::from_secs(publish.lifetime_s_max),
        chunk_size: config.fanout.chunk_size,
    }
}

fn read_limits(config: &Config) -> ReadLimits {
    ReadLimits {
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
        items_max: config.inbox.items_max,
        token_age_max: Duration::from_secs(config.revisions.token_age_s_max),
    }
}

fn relay_limits(config: &Config) -> RelayLimits {
    let relay = &config.relay;
    RelayLimits {
        tick: Duration::from_millis(relay.tick_ms),
        redrive_after: Duration::from_millis(relay.redrive_after_ms),
        redrive_after_max: Duration::from_millis(relay.redrive_after_ms_max),
        garbage_after: Duration::from_secs(relay.garbage_after_s),
        scan_max: relay.scan_max,
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
    }
}

/// What `fanfold` prints when it is ready: where everything is, and one line to copy.
fn banner(config: &Config, addr: SocketAddr) -> String {
    let data = absolute(&config.store.data);
    format!(
        "\n  fanfold {version}  ready\n\n  \
         API      http://{addr}\n  \
         Docs     http://{addr}/openapi.json\n  \
         Metrics  http://{addr}/metrics\n  \
         Mode     embedded (one process, no other server)\n  \
         Data     {data}\n\n  \
         Try it:\n    \
         curl -s http://{addr}/v1/posts -H 'content-type: application/json' \\\n      \
         -d '{{\"type\":\"story.posted\",\"actor\":{{\"id\":\"ana\"}},\"data\":{{\"title\":\"Dawn\"}},\
         \"audience\":{{\"viewers\":[\"ben\",\"cleo\"]}}}}'\n    \
         curl -s http://{addr}/v1/viewers/ben/inbox\n\n",
        version = env!("CARGO_PKG_VERSION"),
    )
}

fn absolute(path: &FilePath) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            warn!(%error, "signals cannot be received; only kill -9 stops this process");
            return std::future::pending().await;
        }
    };
    tokio::select! { _ = signals.0.recv() => {}, _ = signals.1.recv() => {} }
}
