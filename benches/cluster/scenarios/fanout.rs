//! Fan-out by a worker, from the broker to the acknowledgement, against the raw driver's best into the same table.

use crate::cluster::Bench;
use crate::findings::{Comparison, Figure, Findings};
use crate::measure::{Limit, Measure, Pair, Result};
use crate::raw::RawRows;
use crate::source::Source;
use crate::workers::Workers;

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let context = &bench.context;
    let raw = RawRows::prepare(bench.cluster.session().await?, &bench.cluster.name).await?;
    let mut source = Source::open(bench, 1).await?;
    let mut workers = Workers::start(bench, "fanout", 1).await?;
    let tasks = source.tasks(context.size(20, 1)).await?;
    workers.fan_out(&source, tasks).await?;
    let (form, rate) = raw.best(bench, &mut source).await?;
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("fanout", number);
        let tasks = source.tasks(context.size(120, 4)).await?;
        let ours = workers.fan_out(&source, tasks.clone()).await?;
        let other = raw.measured(&tasks, form).await?;
        pairs.push(Pair { ours, other });
    }
    workers.stop().await?;
    let comparison = Comparison {
        scenario: "fanout",
        what: "rows fanned out by one worker, 500 viewers a post, from the task in the broker to its acknowledgement, \
               bumps included, against the raw driver's best into the same table",
        op: "row",
        other: "raw driver",
        measure: Measure::Throughput,
        limit: Some(Limit::AtLeast(0.8)),
        pairs,
    };
    let cpu = comparison.ours().cpu_per_op;
    let figures = vec![
        Figure::new("fanout", "the worker's own CPU; driver, broker, bumps included", cpu, "CPU µs/row")
            .with_limit(Limit::AtMost(8.0)),
        Figure::new("fanout", format!("the raw driver's best when tried: {form}"), rate, "rows/s"),
    ];
    let mut findings = Findings::from(comparison);
    findings.add(figures.into());
    Ok(findings)
}
