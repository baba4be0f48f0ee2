//! What operators change in the fan-out while it runs.

use super::Time;

/// How the fan-out works, for all workers. What is `None` is as each worker's own configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Counts the changes; 0 before the first.
    pub version: u32,
    /// No worker takes a task.
    pub paused: bool,
    /// Values that override a worker's configuration, in the order of [`Knob::ALL`].
    pub values: [Option<u32>; Knob::ALL.len()],
    /// Who made the last change.
    pub by: String,
    /// When.
    pub at: Time,
}

/// A number that can be changed while workers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    /// Chunks of small posts that a worker process has in hand.
    TasksSmall,
    /// Chunks of other posts that a worker process has in hand.
    TasksBulk,
    /// Rows that a worker process has under way to the store.
    RowsInFlight,
    /// Tasks of one producer that a lane of a worker process has at hand, in hand included.
    Prefetch,
    /// Rows of one replica set in a batch.
    BatchRows,
}

impl Knob {
    /// Every one.
    pub const ALL: [Knob; 5] = [Knob::TasksSmall, Knob::TasksBulk, Knob::RowsInFlight, Knob::Prefetch, Knob::BatchRows];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TasksSmall => "tasks-small",
            Self::TasksBulk => "tasks-bulk",
            Self::RowsInFlight => "rows-in-flight",
            Self::Prefetch => "prefetch",
            Self::BatchRows => "batch-rows",
        }
    }

    /// The largest value; the smallest is 1.
    pub fn max(self) -> u32 {
        match self {
            Self::TasksSmall | Self::TasksBulk => 256,
            Self::RowsInFlight => 100_000,
            Self::Prefetch => 1_000,
            Self::BatchRows => 100,
        }
    }
}

impl Tuning {
    /// What overrides `knob`, if anything.
    pub fn of(&self, knob: Knob) -> Option<u32> {
        self.values[knob as usize]
    }

    /// The same with another value for `knob`.
    pub fn with(mut self, knob: Knob, value: Option<u32>) -> Self {
        self.values[knob as usize] = value;
        self
    }
}

/// What a process of a cluster tells of itself, every second or so.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerReport {
    /// Drawn at its start.
    pub id: u128,
    /// `fanout`, `relay` or `api`.
    pub role: String,
    /// `host:pid`.
    pub name: String,
    /// When it started.
    pub started_at: Time,
    /// When it told this.
    pub at: Time,
    /// The [`Tuning::version`] it goes by.
    pub tuning: u32,
    /// Tasks in hand (a relay: shards it holds; an API node: none).
    pub in_hand: u32,
    /// Which, the oldest first: `post/chunk` (a relay: shards), cut to a few.
    pub tasks: Vec<String>,
    /// Rows of the tasks it has finished since its start (others: none).
    pub rows: u64,
    /// Rows a second, over the last seconds.
    pub rows_per_s: u32,
}

/// A chunk that was set aside after too many failures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedChunk {
    /// Whose.
    pub post_id: super::PostId,
    /// Which.
    pub no: u32,
    /// What the last failure was; empty where the store does not keep it.
    pub reason: String,
}
