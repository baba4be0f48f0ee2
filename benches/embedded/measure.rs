//! What a run cost, and how two runs compare.

use std::error::Error;
use std::future::Future;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// A benchmark has nobody to tell faults apart for: any of them ends it.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What one run of one arm cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Operations done.
    pub ops: u64,
    /// CPU time of the arm's process, user and system, all threads.
    pub cpu_us: f64,
    /// From the first operation to the end of the last one.
    pub wall_s: f64,
}

impl Sample {
    /// CPU microseconds an operation.
    pub fn cpu_per_op(&self) -> f64 {
        self.cpu_us / self.ops.max(1) as f64
    }

    /// Operations a second.
    pub fn per_second(&self) -> f64 {
        self.ops as f64 / self.wall_s.max(1e-9)
    }
}

/// Our run and the run of what it is measured against, one right after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// Fanfold.
    pub ours: Sample,
    /// The raw arm.
    pub other: Sample,
}

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// CPU time an operation: less is better.
    Cpu,
    /// Operations a second: more is better.
    Throughput,
}

impl Measure {
    /// The measure of a run.
    pub fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Cpu => sample.cpu_per_op(),
            Self::Throughput => sample.per_second(),
        }
    }

    /// The ratio of a pair, ours to the other's.
    pub fn ratio(self, pair: &Pair) -> f64 {
        self.of(&pair.ours) / self.of(&pair.other).max(1e-9)
    }
}

/// Where a number has to stay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Not above this.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
}

impl Limit {
    /// Whether `value` stays where it has to.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    /// The bound itself.
    pub fn bound(self) -> f64 {
        let (Self::AtMost(bound) | Self::AtLeast(bound)) = self;
        bound
    }
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// Half lie below it.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these values; zeros if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first().copied(), sorted.last().copied()) else {
            return Self::default();
        };
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Self { median, min, max }
    }
}

/// The value that `share` of the values do not exceed; zero of nothing.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

/// The mean; zero of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The least-squares line through points.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// How steep it is.
    pub slope: f64,
    /// The standard deviation of what is left.
    pub scatter: f64,
}

impl Line {
    /// The line through `points`.
    pub fn through(points: &[(f64, f64)]) -> Self {
        let (xs, ys): (Vec<f64>, Vec<f64>) = points.iter().copied().unzip();
        let (mean_x, mean_y) = (mean(&xs), mean(&ys));
        let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let variance: f64 = xs.iter().map(|x| (x - mean_x).powi(2)).sum();
        let slope = if variance > 0.0 { covariance / variance } else { 0.0 };
        let left = points.iter().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2));
        Self { slope, scatter: mean(&left.collect::<Vec<_>>()).sqrt() }
    }
}

/// CPU time of this process so far, in microseconds: user and system, threads that have ended included.
pub fn process_cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Runs `work`, which answers how many operations it did, and takes the CPU time of this process.
pub async fn in_process(work: impl Future<Output = Result<u64>>) -> Result<Sample> {
    let (cpu, started) = (process_cpu_us(), Instant::now());
    let ops = work.await?;
    Ok(Sample { ops, cpu_us: process_cpu_us() - cpu, wall_s: started.elapsed().as_secs_f64() })
}

/// Resident memory of a process in MiB: now, and the most it ever was.
pub fn resident_mib(pid: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no memory in /proc/PID/status")?;
        Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
    };
    Ok((kib("VmRSS")? / 1024.0, kib("VmHWM")? / 1024.0))
}
