//! Fan-out by a worker, from the broker to the acknowledgement, against the raw driver's best into the same table.

use crate::cluster::Bench;
use crate::findings::{Comparison, Figure, Findings};
use crate::measure::{Limit, Measure, Pair, Result, Sample, Spread};
use crate::raw::{Form, RawRows};
use crate::servers::{Usage, usage};
use crate::source::Source;
use crate::workers::Workers;

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let context = &bench.context;
    let raw = RawRows::prepare(&bench.cluster).await?;
    let mut source = Source::open(bench, 1).await?;
    let mut workers = Workers::start(bench, "fanout", 1).await?;
    let (form, rate) = raw.best(bench, &mut source, &mut workers).await?;
    let as_ours = Form { rows: bench.cluster.batch_rows(), in_flight: form.in_flight };
    let rate_as_ours = raw.rate(&mut source, &mut workers, context.size(120, 1), as_ours).await?;
    let mut pairs = Vec::new();
    let mut usages = [Vec::new(), Vec::new()];
    for number in 0..context.pairs {
        context.say_pair("fanout", number);
        let tasks = source.tasks(context.size(360, 4)).await?;
        // What one arm leaves behind, tables to be written out and merged, the next one pays for: they take turns at it.
        let measured = if number % 2 == 0 {
            let ours = usage(&bench.stack, workers.fan_out(&source, tasks.clone())).await?;
            (ours, usage(&bench.stack, raw.measured(&tasks, form)).await?)
        } else {
            let other = usage(&bench.stack, raw.measured(&tasks, form)).await?;
            (usage(&bench.stack, workers.fan_out(&source, tasks)).await?, other)
        };
        let (ours, other) = (measured.0.1, measured.1.1);
        usages[0].push(measured.0);
        usages[1].push(measured.1);
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
        Figure::new("fanout", format!("the raw driver when tried with {as_ours}"), rate_as_ours, "rows/s"),
    ];
    let mut findings = Findings::from(comparison);
    findings.add(figures.into());
    findings.add(costs("fan-out", &usages[0]).into());
    findings.add(costs("the raw driver", &usages[1]).into());
    Ok(findings)
}

/// What a row cost each server, and all of the machine, while `who` wrote: the median of all runs.
fn costs(who: &str, runs: &[(Usage, Sample)]) -> Vec<Figure> {
    let per_row = |cores: f64, run: &Sample| cores * run.wall_s * 1e6 / run.ops.max(1) as f64;
    let figure = |name: &str, of: &dyn Fn(&Usage) -> f64| {
        let cost = Spread::of(runs.iter().map(|(usage, run)| per_row(of(usage), run))).median;
        Figure::new("fanout", format!("{who}: {name}"), cost, "CPU µs/row")
    };
    let servers = runs.first().map_or(&[][..], |(usage, _)| &usage.servers).iter().enumerate();
    let mut figures: Vec<Figure> = servers
        .map(|(at, (name, _))| figure(name, &|usage| usage.servers.get(at).map_or(0.0, |(_, cores)| *cores)))
        .collect();
    figures.push(figure("all of the machine", &|usage| usage.machine));
    figures
}
