//! The wiring, visible from top to bottom: configuration, adapters, use cases, tasks, shutdown.
//!
//! Three kinds of process: the service of embedded mode, which does everything; an API node of cluster mode, which is the
//! same less fan-out and relay; and the workers, which do those ([`worker`]).

mod backends;
pub mod console;
mod descriptors;
mod guard;
pub mod options;
pub mod worker;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::{Access, KeyBook};
use crate::adapters::{Queue, Store};
use crate::clock::Clock;
use crate::config::{AccessMode, Config, Mode};
use crate::domain::Lane;
use crate::error::{Error, Kind, Result};
use crate::fanout::Fanout;
use crate::handover::Handover;
use crate::http;
use crate::marks::Marker;
use crate::ports::{Path, Queue as _, Store as _};
use crate::publish::Publisher;
use crate::reader::Reader;
use crate::relay::{Relay, RelayParts};
use crate::telemetry;
use crate::tuning::{API, Board, FANOUT, Tuner};
use crate::withdrawals::Withdrawals;

pub use backends::Backends;

/// Pending changes that are counted at the end: to look at so many takes milliseconds.
const LEFT_COUNTED: u32 = 10_000;
/// How long that may take, since the time to stop may be up by then.
const LEFT_LOOK: Duration = Duration::from_millis(500);

/// Runs the service until SIGTERM or SIGINT, then shuts it down in order.
pub async fn run(mut config: Config) -> Result<()> {
    config.http.connections_max = descriptors::connections(&config)?;
    let mut running = Running::start(&config, Clock::system()).await?;
    announce(&banner(&config, running.addr));
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
    handover: Handover,
    tasks: Tasks,
}

#[derive(Debug)]
struct Tasks {
    /// Stops accepting and lets open requests finish.
    http: CancellationToken,
    /// Stops taking fan-out tasks.
    fanout: CancellationToken,
    /// Stops the relay and upkeep.
    background: CancellationToken,
    server: JoinSet<Result<()>>,
    workers: JoinSet<()>,
    others: JoinSet<()>,
    /// What the workers have in hand.
    board: Option<Board>,
    grace: Duration,
}

impl Running {
    /// Starts everything. Listens last: whoever gets a connection gets answers.
    pub async fn start(config: &Config, clock: Clock) -> Result<Self> {
        // Before anything that measures.
        let metrics = telemetry::install_metrics();
        let backends = Backends::open(config, &clock).await?;
        let listener = listen(config.http.listen, "http.listen").await?;
        let addr = listener.local_addr().map_err(|e| Error::internal("no local address").with_source(e))?;
        let Backends { store, queue, revisions } = backends.clone();

        let cluster = config.service.mode == Mode::Cluster;
        let system = store.for_path(Path::System);
        let withdrawals =
            if cluster { Withdrawals::shared(&system).await? } else { Withdrawals::load(&system).await? };
        let handover = Handover::new(queue);
        let publisher = Publisher {
            store: store.for_path(Path::Publish),
            handover: handover.clone(),
            withdrawals: withdrawals.clone(),
            clock: clock.clone(),
            limits: options::publish_limits(config),
        };
        let reader = Reader::new(
            store.for_path(Path::Page),
            store.for_path(Path::Changes),
            revisions.clone(),
            withdrawals.clone(),
            clock.clone(),
            options::read_limits(config),
            config.inbox.body_cache_bytes_max,
        );
        let marker = Marker {
            store: store.for_path(Path::Mark),
            revisions: revisions.clone(),
            reader: reader.clone(),
            clock: clock.clone(),
        };
        let (access, watch) = Access::open(&config.access, &config.quota, &store, &revisions, &clock)?;
        access.warn_of_gaps(&config.quota).await?;
        let tls = http::Tls::open(&config.tls)?;
        let app = http::App::new(http::Parts {
            status: Publisher { store: store.for_path(Path::Status), ..publisher.clone() },
            publisher,
            reader,
            marker,
            access: access.clone(),
            backends: backends.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            config: config.clone(),
        });

        let mut tasks = Tasks::new(Duration::from_secs(u64::from(config.http.shutdown_grace_s)));
        match system {
            Store::Embedded(store) => {
                tasks.spawn_workers(&backends, &clock, config);
                let parts = relay_parts(&backends, Some(withdrawals), &clock, config);
                tasks.others.spawn(Relay::new(parts, 0).run(tasks.background.clone()));
                let every = Duration::from_secs(config.store.sweep_every_s);
                tasks.others.spawn(store.keep_sweeping(every, tasks.background.clone()));
            }
            system @ Store::Scylla(_) => {
                tasks.others.spawn(withdrawals.follow(tasks.background.clone()));
                tasks.others.spawn(Board::new(API, &clock).tell(system, clock.clone(), tasks.background.clone()));
            }
        }
        tasks.spawn_upkeep(metrics);
        let background = tasks.background.clone();
        tasks.others.spawn(async move {
            tokio::select! { () = background.cancelled() => {}, () = access.run(watch) => {} }
        });
        tasks.server.spawn(http::serve(listener, tls, app, config.http.clone(), tasks.http.clone()));
        Ok(Self { addr, backends, handover, tasks })
    }

    /// Returns when a part that must run has ended by itself, which it does only when something is badly wrong.
    pub async fn stopped(&mut self) -> Error {
        let part = tokio::select! {
            Some(_) = self.tasks.server.join_next() => "the HTTP server",
            Some(_) = self.tasks.workers.join_next() => "the fan-out of a lane",
            Some(_) = self.tasks.others.join_next() => "the relay, the sweep or the upkeep of metrics",
        };
        Error::internal(format!("{part} has ended by itself"))
    }

    /// Takes nothing more and finishes what is in hand. What is not finished when `http.shutdown_grace_s` is over, all parts
    /// together, is cut. Tells what is left for the next start.
    pub async fn shutdown(self) -> Result<()> {
        let Self { backends, handover, mut tasks, .. } = self;
        let deadline = tasks.deadline();
        tasks.http.cancel();
        // Beside the requests, not after them: what they still publish is kept, and the next start fans it out.
        tasks.fanout.cancel();
        backends.queue.close().await;
        let fanout = finish_fanout(&mut tasks.workers, tasks.board.as_ref(), deadline);
        let (_, tasks_cut) = tokio::join!(finish(&mut tasks.server, deadline), fanout);
        tasks.background.cancel();
        if timeout_at(deadline, handover.finish()).await.is_err() {
            warn!(posts = handover.on_their_way(), "tasks have not come to the queue in time; the relay brings them");
        }
        if !finish(&mut tasks.others, deadline).await {
            warn!("the relay or the upkeep was cut: the time to stop was up");
        }
        if let Queue::Embedded(_) = backends.queue {
            tell_left(&backends, tasks_cut).await?;
        } else {
            info!("stopped");
        }
        Ok(())
    }
}

/// Waits for all of a part; what has not ended by the deadline is aborted. Whether all had.
async fn finish<T: 'static>(part: &mut JoinSet<T>, deadline: Instant) -> bool {
    let all = async {
        while let Some(ended) = part.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a part of the service ended badly");
            }
        }
    };
    let in_time = timeout_at(deadline, all).await.is_ok();
    // Waits for the aborted ones: they end wherever they wait next, and let go of the store.
    part.shutdown().await;
    in_time
}

/// The same for the fan-out: how many tasks were cut.
async fn finish_fanout(workers: &mut JoinSet<()>, board: Option<&Board>, deadline: Instant) -> usize {
    if finish(workers, deadline).await {
        return 0;
    }
    let tasks_cut = board.map_or(0, Board::in_hand);
    if tasks_cut > 0 {
        warn!(tasks_cut, "fan-out tasks were still in hand when the time to stop was up; they are done again");
    }
    tasks_cut
}

/// What the next start goes on with: tasks that were in the queue or cut, and changes (posts, edits, retracts) that the relay
/// has not seen complete. All tasks belong to one of those, and the last second's may be complete already.
async fn tell_left(backends: &Backends, tasks_cut: usize) -> Result<()> {
    let mut tasks_queued = 0;
    for lane in Lane::ALL {
        tasks_queued += backends.queue.depth(lane).await?;
    }
    let store = backends.store.for_path(Path::System);
    let changes_pending = match timeout(LEFT_LOOK, store.pending(0, None, LEFT_COUNTED)).await {
        Ok(Ok(page)) if page.next.is_some() => format!("more than {LEFT_COUNTED}"),
        Ok(Ok(page)) => page.entries.len().to_string(),
        Ok(Err(_)) | Err(_) => "not known".to_owned(),
    };
    info!(%changes_pending, tasks_queued, tasks_cut, "stopped; the next start looks at what is pending and goes on");
    Ok(())
}

impl Tasks {
    fn new(grace: Duration) -> Self {
        Self {
            http: CancellationToken::new(),
            fanout: CancellationToken::new(),
            background: CancellationToken::new(),
            server: JoinSet::new(),
            workers: JoinSet::new(),
            others: JoinSet::new(),
            board: None,
            grace,
        }
    }

    /// When all must have ended that begins to end now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.grace
    }

    /// Fan-out in this process: as many tasks at a time as configured, or tuned.
    fn spawn_workers(&mut self, backends: &Backends, clock: &Clock, config: &Config) -> Board {
        let board = Board::new(FANOUT, clock);
        self.board = Some(board.clone());
        let fanout = Fanout {
            store: backends.store.for_path(Path::Fanout),
            queue: backends.queue.clone(),
            revisions: backends.revisions.clone(),
            clock: clock.clone(),
            inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
            attempts_max: config.fanout.attempts_max,
            board: board.clone(),
        };
        let store = backends.store.for_path(Path::System);
        let tuner = Tuner::new(store, backends.queue.clone(), options::configured(config), board.clone());
        for lane in Lane::ALL {
            let (fanout, limits, stop) = (fanout.clone(), tuner.lane(lane), self.fanout.clone());
            self.workers.spawn(async move { fanout.work(lane, limits, stop).await });
        }
        self.others.spawn(tuner.run(self.background.clone()));
        board
    }

    fn spawn_upkeep(&mut self, metrics: PrometheusHandle) {
        let stop = self.background.clone();
        self.others.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = telemetry::upkeep(metrics) => {} }
        });
    }
}

fn relay_parts(backends: &Backends, withdrawals: Option<Withdrawals>, clock: &Clock, config: &Config) -> RelayParts {
    RelayParts {
        store: backends.store.for_path(Path::Relay),
        queue: backends.queue.clone(),
        revisions: backends.revisions.clone(),
        withdrawals,
        clock: clock.clone(),
        limits: options::relay_limits(config),
    }
}

/// Producers' keys in the store of a service that is stopped: how the first of them is made.
pub async fn open_keys(config: &Config) -> Result<KeyBook> {
    let clock = Clock::system();
    let store = backends::open_store(config, &clock).await?;
    Ok(KeyBook::new(&store, &config.access, clock))
}

async fn listen(addr: SocketAddr, field: &str) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        let code = if e.kind() == std::io::ErrorKind::AddrInUse { "address_in_use" } else { "cannot_listen" };
        let detail = format!("cannot listen on {addr}");
        Error::new(Kind::Unavailable, code, detail).with_field(field).with_source(e)
    })
}

/// Writes a word for whoever reads standard output. Nobody may (`fanfold | true`): no reason for a service to end.
fn announce(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What `fanfold` prints when it is ready: where everything is, and one line to copy.
fn banner(config: &Config, addr: SocketAddr) -> String {
    let scheme = if config.tls.is_on() { "https" } else { "http" };
    let (access, key) = match config.access.mode {
        AccessMode::Off => ("off (nobody has to show anything)", ""),
        AccessMode::On => ("on (producers show keys, viewers tokens)", "-H \"Authorization: Bearer $FANFOLD_KEY\" "),
    };
    let (mode, data) = match config.service.mode {
        Mode::Embedded => ("embedded (one process, no other server)", absolute(&config.store.data)),
        Mode::Cluster => {
            let (points, keyspace) = (config.scylla.contact_points.join(", "), &config.scylla.keyspace);
            ("cluster (an API node; fanfold-fanout and fanfold-relay do the rest)", format!("{keyspace} at {points}"))
        }
    };
    format!(
        "\n  fanfold {version}  ready\n\n  \
         API      {scheme}://{addr}\n  \
         Docs     {scheme}://{addr}/openapi.json\n  \
         Metrics  {scheme}://{addr}/metrics\n  \
         Mode     {mode}\n  \
         Access   {access}\n  \
         Data     {data}\n\n  \
         Try it:\n    \
         curl -s {key}{scheme}://{addr}/v1/posts -H 'content-type: application/json' \\\n      \
         -d '{{\"type\":\"story.posted\",\"actor\":{{\"id\":\"ana\"}},\"data\":{{\"title\":\"Dawn\"}},\
         \"audience\":{{\"viewers\":[\"ben\",\"cleo\"]}}}}'\n    \
         curl -s {key}{scheme}://{addr}/v1/viewers/ben/inbox\n\n",
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
