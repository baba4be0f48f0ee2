//! Two workers against one, and what bounds them: the CPU time of every server beside that of the workers.

use crate::cluster::Bench;
use crate::findings::{Comparison, Figure, Findings};
use crate::measure::{Measure, Pair, Result, Sample, Spread};
use crate::servers::{Usage, processors, usage};
use crate::source::Source;
use crate::workers::Workers;

/// A part is busy when it takes so much of what it can have.
const BUSY: f64 = 0.9;

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let context = &bench.context;
    let mut source = Source::open(bench, 3).await?;
    let (mut pairs, mut usages) = (Vec::new(), [Vec::new(), Vec::new()]);
    for number in 0..context.pairs {
        context.say_pair("scale", number);
        let other = fan_out(bench, &mut source, 1).await?;
        let ours = fan_out(bench, &mut source, 2).await?;
        pairs.push(Pair { ours: ours.1, other: other.1 });
        usages[0].push(other);
        usages[1].push(ours);
    }
    let mut findings: Findings = Comparison {
        scenario: "scale",
        what: "rows fanned out by two workers, against one, on the same servers and processors",
        op: "row",
        other: "one worker",
        measure: Measure::Throughput,
        limit: None,
        pairs,
    }
    .into();
    let processors = processors(&bench.stack)?;
    findings.add(figures("one worker", &usages[0], processors).into());
    findings.add(figures("two workers", &usages[1], processors).into());
    Ok(findings)
}

/// So many workers of their own, since an idle one would take its share of the tasks.
async fn fan_out(bench: &Bench, source: &mut Source, workers: usize) -> Result<(Usage, Sample)> {
    let mut workers = Workers::start(bench, "scale", workers).await?;
    let first = source.tasks(bench.context.size(20, 2)).await?;
    workers.fan_out(source, first).await?;
    let tasks = source.tasks(bench.context.size(120, 4)).await?;
    let measured = usage(&bench.stack, workers.fan_out(source, tasks)).await?;
    workers.stop().await?;
    Ok(measured)
}

/// Medians of cores in use, and what they say. `processors` are those of the store alone, and all.
fn figures(who: &str, runs: &[(Usage, Sample)], processors: (f64, f64)) -> Vec<Figure> {
    let median = |of: &dyn Fn(&(Usage, Sample)) -> f64| Spread::of(runs.iter().map(of)).median;
    let names = runs.first().map(|(usage, _)| usage.servers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    let mut parts: Vec<(String, f64)> = Vec::new();
    for (at, name) in names.unwrap_or_default().into_iter().enumerate() {
        parts.push((name, median(&|(usage, _)| usage.servers.get(at).map_or(0.0, |(_, cores)| *cores))));
    }
    parts.push(("fan-out".to_owned(), median(&|(_, run)| run.cpu_us / 1e6 / run.wall_s.max(1e-9))));
    let machine = median(&|(usage, _)| usage.machine);
    let (store, all) = processors;
    let uses = |name: &str| parts.iter().find(|(part, _)| part == name).map_or(0.0, |(_, cores)| *cores);
    let most = parts.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name);
    let bound = if machine >= BUSY * all {
        format!("bound by the processors, of which {most} takes most; all in all")
    } else if store > 0.0 && uses("the CQL server") >= BUSY * store {
        format!("bound by the CQL server, which has {store} of {all} processors to itself; all in all")
    } else if uses("Redis") >= BUSY {
        "bound by Redis, which has one core; all in all".to_owned()
    } else {
        "no processor is full, the workers wait for answers; all in all".to_owned()
    };
    let figure = |what: String, value| Figure::new("scale", format!("{who}: {what}"), value, "cores");
    let mut figures: Vec<Figure> = parts.into_iter().map(|(name, cores)| figure(name, cores)).collect();
    figures.push(figure(bound, machine));
    figures
}
