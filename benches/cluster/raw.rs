//! The ceiling of fan-out: the raw driver writing the same rows into the same table, as fast as it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fanfold::domain::{PostId, Task, Time};
use scylla::client::session::Session;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::MaybeUnset;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::cluster::{Bench, Cluster};
use crate::measure::{Result, Sample, in_process};
use crate::source::Source;
use crate::workers::Workers;

/// Thirty days, as shipped.
pub const TTL_S: i32 = 30 * 24 * 3600;
/// The largest batch of those that are tried for the best.
const BATCH_MAX: usize = 20;
/// Forms that come from the heats into the finals.
const FINALISTS: usize = 3;
/// How often each form runs in the heats, and again in the finals.
const RUNS: usize = 2;

/// How rows are written.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Rows in an unlogged batch; one is a plain statement.
    pub rows: usize,
    /// Requests in flight.
    pub in_flight: usize,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rows {
            1 => write!(f, "singles, {} in flight", self.in_flight),
            rows => write!(f, "unlogged batches of {rows}, {} in flight", self.in_flight),
        }
    }
}

/// A session and the statement.
pub struct RawRows {
    session: Arc<Session>,
    row: PreparedStatement,
    batches: Arc<Vec<Batch>>,
}

type RowValues<'a> = (&'a str, Uuid, i32, MaybeUnset<bool>, MaybeUnset<i64>, i64, i32);

/// A request's worth of rows: a post and its viewers.
type Piece = (Uuid, i64, Vec<String>);

impl RawRows {
    /// On the inbox of `cluster`, with batches as large as those of its fan-out too.
    pub async fn prepare(cluster: &Cluster) -> Result<Self> {
        let (session, keyspace) = (cluster.session().await?, &cluster.name);
        let text = format!(
            "INSERT INTO {keyspace}.inbox (viewer_id, post_id, version, deleted, expires_at) VALUES (?, ?, ?, ?, ?) \
             USING TIMESTAMP ? AND TTL ?"
        );
        let mut row = session.prepare(text).await?;
        row.set_is_idempotent(true);
        let batch = |rows: usize| {
            let mut batch = Batch::new(BatchType::Unlogged);
            (0..rows).for_each(|_| batch.append_statement(row.clone()));
            batch.set_is_idempotent(true);
            batch
        };
        let batches = Arc::new((0..=BATCH_MAX.max(cluster.batch_rows())).map(batch).collect());
        Ok(Self { session: Arc::new(session), row, batches })
    }

    /// Writes the rows of `tasks`, as those of posts of its own.
    pub async fn write(&self, tasks: &[Task], form: Form) -> Result<u64> {
        let pieces = Arc::new(pieces(tasks, form.rows));
        let next = Arc::new(AtomicUsize::new(0));
        let mut writers = JoinSet::new();
        for _ in 0..form.in_flight {
            let (pieces, next) = (Arc::clone(&pieces), Arc::clone(&next));
            let (session, row, batches) = (Arc::clone(&self.session), self.row.clone(), Arc::clone(&self.batches));
            writers.spawn(async move {
                let mut rows = 0;
                while let Some((id, ts, viewers)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let values: Vec<RowValues<'_>> = viewers
                        .iter()
                        .map(|viewer| (viewer.as_str(), *id, 1, MaybeUnset::Unset, MaybeUnset::Unset, *ts, TTL_S))
                        .collect();
                    match values.as_slice() {
                        [one] => session.execute_unpaged(&row, one).await.map(|_| ())?,
                        many => session.batch(&batches[many.len()], many).await.map(|_| ())?,
                    }
                    rows += values.len() as u64;
                }
                Ok::<u64, scylla::errors::ExecutionError>(rows)
            });
        }
        let mut rows = 0;
        while let Some(done) = writers.join_next().await {
            rows += done??;
        }
        Ok(rows)
    }

    /// The same with what it cost this process.
    pub async fn measured(&self, tasks: &[Task], form: Form) -> Result<Sample> {
        in_process(self.write(tasks, form)).await
    }

    /// The fastest form here and now: the three that are so in heats run two thirds as far as a pair's arm, by turns, and
    /// the one that is so over all of that wins. A heat alone is too short to say it. `workers` write as many rows in
    /// between: the server compiles as it goes, and would learn the one arm's ways alone.
    pub async fn best(&self, bench: &Bench, source: &mut Source, workers: &mut Workers) -> Result<(Form, f64)> {
        let context = &bench.context;
        let (heat, last) = (context.size(24, 1), context.size(120, 1));
        let of_size = |rows| context.size(&[32, 128, 384][..], &[64]).iter().map(move |n| Form { rows, in_flight: *n });
        let all = context.size(&[1, 5, 10, BATCH_MAX][..], &[1, 10]).iter().copied().flat_map(of_size);
        let mut heats: Vec<_> = all.map(|form| (form, 0.0_f64)).collect();
        for _ in 0..RUNS {
            for (form, rate) in &mut heats {
                *rate = rate.max(self.rate(source, workers, heat, *form).await?);
            }
        }
        heats.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut finals: Vec<_> = heats.iter().take(FINALISTS).map(|(form, _)| (*form, 0.0)).collect();
        for _ in 0..RUNS {
            for (form, rate) in &mut finals {
                *rate += self.rate(source, workers, last, *form).await? / RUNS as f64;
            }
        }
        let best = finals.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).ok_or("no form was tried")?;
        context.say("fanout", format_args!("the raw driver is fastest with {}", best.0));
        Ok(best)
    }

    /// Rows a second in that form, of so many tasks, which fan-out then carries out as well.
    pub async fn rate(&self, source: &mut Source, workers: &mut Workers, tasks: usize, form: Form) -> Result<f64> {
        let tasks = source.tasks(tasks).await?;
        let rate = self.measured(&tasks, form).await?.per_second();
        workers.fan_out(source, tasks).await?;
        Ok(rate)
    }
}

fn pieces(tasks: &[Task], rows: usize) -> Vec<Piece> {
    let now = fanfold::clock::Clock::system().now();
    let of_task = |task: &Task| {
        let id = PostId::new(now, rand::random());
        let viewers: Vec<String> = task.chunk.viewers.iter().map(|viewer| viewer.as_str().to_owned()).collect();
        let piece = |part: &[String]| (uuid_of(id), Time::micros(now), part.to_vec());
        viewers.chunks(rows).map(piece).collect::<Vec<_>>()
    };
    tasks.iter().flat_map(of_task).collect()
}

/// An id as the driver has it.
pub fn uuid_of(id: PostId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}
