//! Fan-out workers, each in a process of its own, and what they do with tasks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fanfold::domain::{ProducerId, Task};
use fanfold::ports::Queue as _;

use crate::child::Child;
use crate::client::{Connection, get};
use crate::cluster::Bench;
use crate::measure::{Result, Sample};
use crate::posts::Audiences;
use crate::raw::{Form, RawRows};
use crate::source::{Source, population, rows_of};
use crate::wait::until;

/// How often to look whether all rows are written: seldom enough that looking costs nothing.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for them. Nothing is driven again here: what fails ends the run.
const CATCH_UP: Duration = Duration::from_secs(180);
/// Posts between two looks while warming up.
const WARM_UP_POSTS: usize = 20;
/// Viewers of a small post of the warm-up.
const FEW: usize = 10;
/// Small posts between two looks.
const FEW_POSTS: usize = 100;

/// The series of rows that a worker has written, those that were written twice included.
pub const WRITTEN: &str = "fanfold_fanout_rows_total{result=\"written\"}";

/// Some workers.
#[derive(Debug)]
pub struct Workers {
    children: Vec<Child>,
}

impl Workers {
    /// Starts so many.
    pub async fn start(bench: &Bench, name: &str, count: usize) -> Result<Self> {
        let mut children = Vec::with_capacity(count);
        for number in 0..count {
            let log = bench.context.log(&format!("{name}-worker-{number}"))?;
            children.push(Child::start(&["worker", &bench.cluster.name], &log).await?);
        }
        Ok(Self { children })
    }

    /// Hands `tasks` to the broker and waits until all rows are written, bumped, noted as done, and their tasks
    /// acknowledged. The CPU time is that of the workers.
    pub async fn fan_out(&mut self, source: &Source, tasks: Vec<Task>) -> Result<Sample> {
        let (rows, count) = (rows_of(&tasks), tasks.len());
        let pages: Vec<SocketAddr> = self.children.iter().map(Child::addr).collect();
        let target = written(&pages).await? + rows;
        let (cpu, started) = (self.ask("cpu").await?, Instant::now());
        let taken = source.queue.publish(&ProducerId::local(), tasks).await?;
        if taken != count {
            return Err(format!("the broker took {taken} of {count} tasks").into());
        }
        let late = || format!("{rows} rows are not written after {CATCH_UP:?}; see the workers' logs");
        until(LOOK, CATCH_UP, async || Ok((written(&pages).await? < target).then(late))).await?;
        // Answered when the broker has been told of all that is finished.
        let cpu_us = self.ask("flush").await? - cpu;
        Ok(Sample { ops: rows, cpu_us, wall_s: started.elapsed().as_secs_f64() })
    }

    /// Asks each; the sum of what they answer, their CPU time.
    async fn ask(&mut self, question: &str) -> Result<f64> {
        let mut cpu_us = 0.0;
        for child in &mut self.children {
            cpu_us += child.ask(question).await?.parse::<f64>()?;
        }
        Ok(cpu_us)
    }

    /// Ends them in order.
    pub async fn stop(self) -> Result<()> {
        for child in self.children {
            child.stop().await?;
        }
        Ok(())
    }
}

/// A series of the `/metrics` at an address; zero where it is not there. On a connection of its own: a worker's page closes
/// each after one answer.
pub async fn metric(addr: SocketAddr, series: &str) -> Result<u64> {
    let mut connection = Connection::open(addr).await?;
    let answer = connection.send(&get("/metrics")).await?.expect(200)?;
    let found = answer.text().lines().find_map(|line| line.strip_prefix(series)?.trim_start().parse().ok());
    Ok(found.unwrap_or(0))
}

async fn written(pages: &[SocketAddr]) -> Result<u64> {
    let mut rows = 0;
    for page in pages {
        rows += metric(*page, WRITTEN).await?;
    }
    Ok(rows)
}

/// Writes so many rows by turns as the arms will, before anything is measured: Cassandra compiles as it goes. One in ten of
/// them in small posts, for what is asked and noted of each chunk: of usual posts so many rows have six hundred, and nothing
/// is compiled in full that ran so seldom.
pub async fn warm_up(bench: &Bench, rows: usize) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    bench.context.say("warm-up", format_args!("{rows} rows"));
    let raw = RawRows::prepare(&bench.cluster).await?;
    let mut source = Source::open(bench, 0).await?;
    let mut workers = Workers::start(bench, "warm-up", 1).await?;
    let mut done = 0;
    let mut few = Audiences::new(population(bench), FEW, 0);
    while done < rows as u64 / 10 {
        let tasks = source.tasks_for(&few.draw(), FEW_POSTS).await?;
        done += workers.fan_out(&source, tasks).await?.ops;
    }
    while done < rows as u64 {
        let tasks = source.tasks(WARM_UP_POSTS.min(rows.div_ceil(1_000)).max(1)).await?;
        let form = Form { rows: 10, in_flight: 128 };
        done += raw.write(&tasks, form).await? + workers.fan_out(&source, tasks).await?.ops;
    }
    workers.stop().await
}
