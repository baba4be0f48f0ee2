//! What a process of a cluster tells of itself, and how workers take up what operators have tuned.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::adapters::{Queue, Store};
use crate::clock::Clock;
#[cfg(doc)]
use crate::domain::Task;
use crate::domain::{Knob, Lane, Time, Tuning, WorkerReport};
use crate::error::Result;
use crate::ports::Control as _;

/// The role of a fan-out worker.
pub const FANOUT: &str = "fanout";
/// The role of a relay.
pub const RELAY: &str = "relay";
/// The role of an API node.
pub const API: &str = "api";

/// Between looks at the tuning: a change is taken up within a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between reports.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Tasks that a report names.
const TASKS_TOLD: usize = 8;

/// What this process has in hand, for its reports.
#[derive(Clone, Debug)]
pub struct Board(Arc<BoardInner>);

#[derive(Debug)]
struct BoardInner {
    id: u128,
    role: &'static str,
    started_at: Time,
    rows: AtomicU64,
    tuning: AtomicU32,
    tasks: Mutex<Vec<String>>,
}

impl Board {
    /// An empty one for a process that starts now.
    pub fn new(role: &'static str, clock: &Clock) -> Self {
        Self(Arc::new(BoardInner {
            id: rand::random(),
            role,
            started_at: clock.now(),
            rows: AtomicU64::new(0),
            tuning: AtomicU32::new(0),
            tasks: Mutex::default(),
        }))
    }

    /// Who this process is: the owner of its leases.
    pub fn id(&self) -> u128 {
        self.0.id
    }

    /// A task was taken.
    pub fn take(&self, task: String) {
        self.tasks().push(task);
    }

    /// A task is finished with, and has written so many rows.
    pub fn finish(&self, task: &str, rows: u64) {
        let mut tasks = self.tasks();
        if let Some(place) = tasks.iter().position(|known| known == task) {
            tasks.remove(place);
        }
        self.0.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// How much is in hand.
    pub fn in_hand(&self) -> usize {
        self.tasks().len()
    }

    /// Replaces all that is in hand.
    pub fn show(&self, tasks: Vec<String>) {
        *self.tasks() = tasks;
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<String>> {
        // Whole strings come and go: no panic leaves it half changed.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, now: Time, rows_per_s: u32) -> WorkerReport {
        let tasks = self.tasks();
        WorkerReport {
            id: self.0.id,
            role: self.0.role.to_owned(),
            name: process_name(),
            started_at: self.0.started_at,
            at: now,
            tuning: self.0.tuning.load(Ordering::Relaxed),
            in_hand: u32::try_from(tasks.len()).unwrap_or(u32::MAX),
            tasks: tasks.iter().take(TASKS_TOLD).cloned().collect(),
            rows: self.0.rows.load(Ordering::Relaxed),
            rows_per_s,
        }
    }

    /// Tells the store about this process until told to stop.
    pub async fn tell(self, store: Store, clock: Clock, stop: CancellationToken) {
        let (mut rows, mut at) = (0, Instant::now());
        loop {
            let written = self.0.rows.load(Ordering::Relaxed);
            let rate = (written - rows) as f64 / at.elapsed().as_secs_f64().max(0.001);
            (rows, at) = (written, Instant::now());
            if let Err(error) = store.report(&self.report(clock.now(), rate as u32)).await {
                debug!(%error, "nobody hears what this process does");
            }
            if stop.run_until_cancelled(tokio::time::sleep(TELL_EVERY)).await.is_none() {
                return;
            }
        }
    }
}

/// `host:pid`.
fn process_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}

/// How a lane is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Whole tasks in hand at the same time, or as much in small ones ([`Task::parts`]); none while paused.
    pub tasks: u32,
}

/// A worker's own configuration: what holds where nothing is tuned.
#[derive(Clone, Copy, Debug)]
pub struct Configured {
    /// In the order of [`Knob::ALL`].
    pub values: [u32; Knob::ALL.len()],
}

impl Configured {
    /// What holds for `knob` under `tuning`.
    pub fn under(&self, tuning: &Tuning, knob: Knob) -> u32 {
        tuning.of(knob).unwrap_or(self.values[knob as usize]).clamp(1, knob.max())
    }
}

/// Brings what operators have tuned to the parts that go by it.
#[derive(Debug)]
pub struct Tuner {
    store: Store,
    queue: Queue,
    configured: Configured,
    board: Board,
    lanes: [watch::Sender<LaneLimits>; 2],
    current: Option<Tuning>,
}

impl Tuner {
    /// Everything as configured.
    pub fn new(store: Store, queue: Queue, configured: Configured, board: Board) -> Self {
        let lanes = Lane::ALL.map(|lane| watch::Sender::new(lane_limits(&configured, &Tuning::default(), lane)));
        Self { store, queue, configured, board, lanes, current: None }
    }

    /// How a lane is to be worked on, now and later.
    pub fn lane(&self, lane: Lane) -> watch::Receiver<LaneLimits> {
        self.lanes[lane as usize].subscribe()
    }

    /// Looks at the tuning until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut told = false;
        loop {
            match self.look().await {
                Ok(()) => told = false,
                Err(error) if !told => {
                    told = true;
                    warn!(%error, "the tuning cannot be read; the last one goes on");
                }
                Err(_) => {}
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Reads the tuning and applies what has changed.
    pub async fn look(&mut self) -> Result<()> {
        let tuning = self.store.tuning().await?;
        if self.current.as_ref() != Some(&tuning) {
            self.apply(&tuning);
            self.current = Some(tuning);
        }
        Ok(())
    }

    fn apply(&self, tuning: &Tuning) {
        if tuning.version > 0 {
            info!(version = tuning.version, by = tuning.by, paused = tuning.paused, "the fan-out is tuned");
        }
        let value = |knob| self.configured.under(tuning, knob);
        self.store.tune(value(Knob::RowsInFlight), value(Knob::BatchRows));
        // A paused worker holds nothing back: 0 gives what is at hand to others.
        self.queue.set_prefetch(if tuning.paused { 0 } else { value(Knob::Prefetch) });
        for lane in Lane::ALL {
            self.lanes[lane as usize].send_replace(lane_limits(&self.configured, tuning, lane));
        }
        self.board.0.tuning.store(tuning.version, Ordering::Relaxed);
    }
}

fn lane_limits(configured: &Configured, tuning: &Tuning, lane: Lane) -> LaneLimits {
    let knob = match lane {
        Lane::Small => Knob::TasksSmall,
        Lane::Bulk => Knob::TasksBulk,
    };
    LaneLimits { tasks: if tuning.paused { 0 } else { configured.under(tuning, knob) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuning_overrides_the_configuration_within_bounds() {
        let configured = Configured { values: [16, 4, 1_000, 32, 16] };
        let tuning = Tuning::default().with(Knob::TasksBulk, Some(9)).with(Knob::BatchRows, Some(1_000_000));
        let tasks = |tuning: &Tuning, lane| lane_limits(&configured, tuning, lane).tasks;
        assert_eq!((tasks(&tuning, Lane::Small), tasks(&tuning, Lane::Bulk)), (16, 9));
        assert_eq!(configured.under(&tuning, Knob::BatchRows), Knob::BatchRows.max());
        let paused = Tuning { paused: true, ..tuning };
        assert_eq!((tasks(&paused, Lane::Small), tasks(&paused, Lane::Bulk)), (0, 0));
    }

    #[test]
    fn a_board_shows_what_is_in_hand() {
        let board = Board::new(FANOUT, &Clock::manual(Time::from_millis(5)));
        (0..10).for_each(|n| board.take(format!("p/{n}")));
        board.finish("p/3", 500);
        board.finish("p/3", 0);
        let report = board.report(Time::from_millis(6), 7);
        assert_eq!((report.in_hand, report.rows, report.rows_per_s), (9, 500, 7));
        assert_eq!(report.tasks.len(), TASKS_TOLD);
        assert!(!report.tasks.contains(&"p/3".to_owned()));
    }
}
