//! `fanfold fanout`: how the fan-out is going, and how it is tuned while it runs.

use serde_json::{Value, json};

use super::{Cluster, ago, operator, span};
use crate::cli::fault::{Fault, Result};
use crate::cli::out::{self, Format};
use crate::domain::{Knob, Lane, Tuning};
use crate::service::console::{Console, FanoutStatus, knob_value};

const EXAMPLES: &str = "\
Examples:
  fanfold fanout status
  fanfold fanout pause                            no worker takes a task; posts are accepted all the same
  fanfold fanout resume
  fanfold fanout set tasks-bulk=8 prefetch=64     for every worker, within a second
  fanfold fanout set prefetch=default             as each worker's configuration says";

const STATUS_EXAMPLES: &str = "\
Examples:
  fanfold fanout status
  fanfold fanout status --output json";

const AFTER: &str = "\
Add workers when a lane's depth keeps growing although they are busy; if they are not, the store or Redis is what they
wait for, and more of them would only wait as well.";

const PAUSE_EXAMPLES: &str = "\
Examples:
  fanfold fanout pause";

const RESUME_EXAMPLES: &str = "\
Examples:
  fanfold fanout resume";

const SET_EXAMPLES: &str = "\
Examples:
  fanfold fanout set tasks-small=32
  fanfold fanout set tasks-bulk=8 rows-in-flight=8000 prefetch=64 batch-rows=20
  fanfold fanout set prefetch=default";

const SET_AFTER: &str = "\
tasks-small, tasks-bulk   whole chunks of a lane that a worker has in hand, or up to 25 small ones for each [1..256]
rows-in-flight            rows that a worker has under way to the store, a sixteenth beside small posts [1..100000]
prefetch                  tasks of one producer that a lane of a worker has at hand [1..1000]
batch-rows                rows of one replica set in a batch [1..100]";

/// Show and tune the fan-out while it runs
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lanes, depth, lag, and what each worker has in hand
    #[command(before_help = STATUS_EXAMPLES, after_help = AFTER)]
    Status(Common),
    /// Let no worker take a task
    #[command(before_help = PAUSE_EXAMPLES)]
    Pause(Common),
    /// Let workers take tasks again
    #[command(before_help = RESUME_EXAMPLES)]
    Resume(Common),
    /// Change numbers for every worker
    #[command(before_help = SET_EXAMPLES, after_help = SET_AFTER)]
    Set {
        /// `name=number`, or `name=default`
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = parse)]
        values: Vec<(Knob, Option<u32>)>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    cluster: Cluster,
    /// How to print the result
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

fn parse(text: &str) -> Result<(Knob, Option<u32>), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as prefetch=64")?;
    let names = || Knob::ALL.map(Knob::name).join(", ");
    let knob = Knob::ALL.into_iter().find(|knob| knob.name() == name);
    let knob = knob.ok_or_else(|| format!("{name} is not one of {}", names()))?;
    if value == "default" {
        return Ok((knob, None));
    }
    let number = value.parse().map_err(|_| format!("{value} is neither a number nor \"default\""))?;
    knob_value(knob, number).map(|value| (knob, Some(value))).map_err(|error| error.to_string())
}

/// Runs `fanfold fanout`.
pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Status(common) => status(&common).await,
        Command::Pause(common) => tune(&common, |tuning| Tuning { paused: true, ..tuning }).await,
        Command::Resume(common) => tune(&common, |tuning| Tuning { paused: false, ..tuning }).await,
        Command::Set { values, common } => {
            let change =
                |tuning| values.iter().fold(tuning, |tuning: Tuning, (knob, value)| tuning.with(*knob, *value));
            tune(&common, change).await
        }
    }
}

async fn console(common: &Common) -> Result<Console> {
    Console::connect(&common.cluster.load()?).await.map_err(Fault::Service)
}

async fn tune(common: &Common, change: impl Fn(Tuning) -> Tuning) -> Result<()> {
    let tuning = console(common).await?.tune(&operator(), change).await?;
    if common.output == Format::Json {
        return out::json(&tuning_document(&tuning));
    }
    out::line(sentence(&tuning))
}

async fn status(common: &Common) -> Result<()> {
    let status = console(common).await?.status().await?;
    if common.output == Format::Json {
        return out::json(&document(&status));
    }
    out::line(format_args!("fan-out   {}", sentence(&status.tuning)))?;
    if status.tuning.version > 0 {
        let Tuning { by, at, version, .. } = &status.tuning;
        out::line(format_args!("          change {version}, by {}, {} ago", out::clip(by, 60), ago(status.at, *at)))?;
    }
    out::line(format_args!("lag       {}: the oldest post that not everybody has yet", span(status.lag)))?;
    for lane in Lane::ALL {
        let depth = status.depths[lane as usize].map_or("unknown".to_owned(), |depth| depth.to_string());
        out::line(format_args!("lane      {:<6}  {depth} tasks waiting", lane.name()))?;
    }
    out::line(format_args!("api       {} nodes", status.api_nodes))?;
    if let Some(parked) = status.set_aside.filter(|parked| *parked > 0) {
        out::line(format_args!("parked    {parked} messages set aside: see `fanfold parked list`"))?;
    }
    out::line(format_args!(
        "\n{:<8} {:<28} {:>8} {:>9} {:>12}  {}",
        "worker", "where", "in hand", "rows/s", "rows", "tasks"
    ))?;
    for worker in &status.workers {
        let tasks = worker.tasks.iter().map(|task| out::clip(task, 40)).collect::<Vec<_>>().join(" ");
        let name = out::clip(&worker.name, 28);
        let (rate, rows) = (worker.rows_per_s, worker.rows);
        out::line(format_args!("{:<8} {name:<28} {:>8} {rate:>9} {rows:>12}  {tasks}", worker.role, worker.in_hand))?;
    }
    if status.workers.is_empty() {
        out::line("nobody works: start fanfold-fanout and fanfold-relay")?;
    }
    Ok(())
}

fn sentence(tuning: &Tuning) -> String {
    let values: Vec<String> = Knob::ALL
        .into_iter()
        .filter_map(|knob| tuning.of(knob).map(|value| format!("{}={value}", knob.name())))
        .collect();
    let state = if tuning.paused { "paused" } else { "running" };
    if values.is_empty() { format!("{state}, as configured") } else { format!("{state}, {}", values.join(" ")) }
}

fn tuning_document(tuning: &Tuning) -> Value {
    let values = Knob::ALL.map(|knob| (knob.name().to_owned(), json!(tuning.of(knob))));
    json!({
        "version": tuning.version,
        "paused": tuning.paused,
        "values": Value::Object(values.into_iter().collect()),
        "by": tuning.by,
        "at_ms": tuning.at.micros() / 1_000,
    })
}

fn document(status: &FanoutStatus) -> Value {
    let lanes = Lane::ALL.map(|lane| json!({ "lane": lane.name(), "tasks": status.depths[lane as usize] }));
    let workers: Vec<Value> = status
        .workers
        .iter()
        .map(|worker| {
            json!({
                "role": worker.role,
                "name": worker.name,
                "in_hand": worker.in_hand,
                "tasks": worker.tasks,
                "rows": worker.rows,
                "rows_per_s": worker.rows_per_s,
                "tuning": worker.tuning,
                "started_at_ms": worker.started_at.micros() / 1_000,
                "at_ms": worker.at.micros() / 1_000,
            })
        })
        .collect();
    json!({
        "tuning": tuning_document(&status.tuning),
        "lag_seconds": status.lag.as_secs_f64(),
        "lanes": lanes,
        "messages_set_aside": status.set_aside,
        "workers": workers,
        "api_nodes": status.api_nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_bounded() {
        assert_eq!(parse("prefetch=64"), Ok((Knob::Prefetch, Some(64))));
        assert_eq!(parse("batch-rows=default"), Ok((Knob::BatchRows, None)));
        for (bad, word) in [
            ("prefetch", "NAME=VALUE"),
            ("speed=1", "rows-in-flight"),
            ("prefetch=much", "neither"),
            ("prefetch=0", "1 to 1000"),
            ("prefetch=1001", "1 to 1000"),
        ] {
            let told = parse(bad).expect_err(bad);
            assert!(told.contains(word), "{told}");
        }
    }
}
