//! What the servers take of the machine, from /proc: their CPU time beside that of the workers says what bounds a run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::measure::Result;
use crate::wait::until;

/// How often to look whether the servers are idle, and over which time they are.
const LOOK: Duration = Duration::from_millis(500);
/// What they use of the machine at most when they are.
const IDLE_CORES: f64 = 0.15;
/// Longest wait for it.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// CPU seconds so far.
#[derive(Clone, Debug)]
struct Snapshot {
    at: Instant,
    /// By server, those of several nodes together.
    servers: Vec<(String, f64)>,
    /// Everything on this machine, whoever's it is.
    machine: f64,
}

/// Cores in use between two snapshots.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Seconds between them.
    pub wall_s: f64,
    /// By server.
    pub servers: Vec<(String, f64)>,
    /// Everything.
    pub machine: f64,
}

/// The processors that the CQL server has to itself, none unless the other servers run elsewhere, and all that the servers
/// may run on.
pub fn processors(stack: &Path) -> Result<(f64, f64)> {
    let (store, others) = (allowed(stack, "cassandra")?, allowed(stack, "redis")?);
    let shared = store.iter().any(|number| others.contains(number));
    let alone = if shared { 0 } else { store.len() };
    let all = others.iter().filter(|number| !store.contains(*number)).count() + store.len();
    Ok((alone as f64, all as f64))
}

/// The numbers of the processors that a server may run on.
fn allowed(stack: &Path, server: &str) -> Result<Vec<usize>> {
    let pid = fs::read_to_string(stack.join(server).with_extension("pid"))?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).ok_or("an odd /proc/PID/status")?;
    // Hexadecimal digits in groups, the lowest processors last.
    let digits = mask.chars().rev().filter_map(|digit| digit.to_digit(16)).enumerate();
    let numbers =
        |(place, digit): (usize, u32)| (0..4).filter(move |bit| digit >> bit & 1 == 1).map(move |bit| place * 4 + bit);
    Ok(digits.flat_map(numbers).collect())
}

/// A run, with what the servers use meanwhile. It begins when they have done what the one before has left to them: tables
/// to be merged, code to be compiled. `stack` is where dev/stack keeps process ids.
pub async fn usage<T>(stack: &Path, run: impl Future<Output = Result<T>>) -> Result<(Usage, T)> {
    until_idle(stack).await?;
    let before = Snapshot::take(stack)?;
    let done = run.await?;
    Ok((before.until_now(stack)?, done))
}

/// Waits until all servers together use next to nothing.
async fn until_idle(stack: &Path) -> Result<()> {
    let mut before = Snapshot::take(stack)?;
    until(LOOK, IDLE_AFTER, async || {
        let usage = before.until_now(stack)?;
        before = Snapshot::take(stack)?;
        let cores: f64 = usage.servers.iter().map(|(_, cores)| cores).sum();
        // What the first look sees is no time at all.
        let idle = usage.wall_s >= LOOK.as_secs_f64() && cores < IDLE_CORES;
        Ok((!idle).then(|| format!("the servers still use {cores:.2} cores after {IDLE_AFTER:?}")))
    })
    .await
}

impl Snapshot {
    /// Now.
    fn take(stack: &Path) -> Result<Self> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let mut servers: Vec<(String, f64)> = Vec::new();
        for (file, name) in [("redis", "Redis"), ("rabbitmq", "RabbitMQ")]
            .into_iter()
            .chain(["cassandra", "cassandra2", "cassandra3"].map(|file| (file, "the CQL server")))
        {
            let Ok(pid) = fs::read_to_string(stack.join(format!("{file}.pid"))) else { continue };
            let seconds = process_ticks(pid.trim())? / ticks;
            match servers.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += seconds,
                None => servers.push((name.to_owned(), seconds)),
            }
        }
        Ok(Self { at: Instant::now(), servers, machine: machine_ticks()? / ticks })
    }

    /// Cores in use from `self` until now.
    fn until_now(&self, stack: &Path) -> Result<Usage> {
        let now = Self::take(stack)?;
        let wall_s = (now.at - self.at).as_secs_f64().max(1e-3);
        let server = |((name, after), (_, before)): (&(String, f64), &(String, f64))| {
            (name.clone(), (after - before).max(0.0) / wall_s)
        };
        let servers = now.servers.iter().zip(&self.servers).map(server).collect();
        Ok(Usage { wall_s, servers, machine: (now.machine - self.machine).max(0.0) / wall_s })
    }
}

/// User and system time of a process. The name in the second field may hold spaces and brackets.
fn process_ticks(pid: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').ok_or("an odd /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |at: usize| -> Result<f64> { Ok(fields.get(at).ok_or("a short /proc/PID/stat")?.parse()?) };
    Ok(field(11)? + field(12)?)
}

/// Time of all processors that was not idle and not waiting for disks.
fn machine_ticks() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().ok_or("an empty /proc/stat")?;
    let fields = line.split_ascii_whitespace().skip(1).map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?;
    // user nice system idle iowait irq softirq steal; guests are in user already.
    Ok(fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum())
}
