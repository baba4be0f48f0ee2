//! Benchmarks of the cluster mode, each beside its raw ceiling in one run, on real servers. `dev/bench cluster` builds and
//! runs them.
//!
//! As in the embedded suite two arms alternate and the ratio is taken pair by pair. The servers take most of this machine,
//! so all of them are part of both arms: what is compared is what a client of theirs makes of them. What is measured runs
//! in a process of its own wherever its CPU time counts.

mod arms;
mod cluster;
mod deployment;
mod page_arm;
mod raw;
mod scenarios;
mod servers;
mod source;
mod workers;

// What the two suites share; each uses a part.
#[allow(dead_code)]
#[path = "../embedded/chart.rs"]
mod chart;
#[allow(dead_code)]
#[path = "../embedded/child.rs"]
mod child;
#[allow(dead_code)]
#[path = "../embedded/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../embedded/context.rs"]
mod context;
#[allow(dead_code)]
#[path = "../embedded/fairness_phases.rs"]
mod fairness_phases;
#[allow(dead_code)]
#[path = "../embedded/findings.rs"]
mod findings;
#[allow(dead_code)]
#[path = "../embedded/keys.rs"]
mod keys;
#[allow(dead_code)]
#[path = "../embedded/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "../embedded/measure.rs"]
mod measure;
#[allow(dead_code)]
#[path = "../embedded/page_json.rs"]
mod page_json;
#[allow(dead_code)]
#[path = "../embedded/posts.rs"]
mod posts;
#[allow(dead_code)]
#[path = "../embedded/report.rs"]
mod report;
#[allow(dead_code)]
#[path = "../embedded/serving.rs"]
mod serving;
#[allow(dead_code)]
#[path = "../embedded/suite.rs"]
mod suite;
#[allow(dead_code)]
#[path = "../embedded/svg.rs"]
mod svg;
#[allow(dead_code)]
#[path = "../embedded/wait.rs"]
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::cluster::{Bench, Cluster};
use crate::context::Context;
use crate::findings::Findings;
use crate::measure::Result;

/// The mode that is measured, for the reports.
const MODE: &str = "cluster";

/// Benchmarks of the cluster mode; see `dev/bench --help`.
#[derive(Debug, Parser)]
struct Arguments {
    /// Scenarios to run; all if none is named
    scenarios: Vec<String>,
    /// Small sizes: shows that it works, measures nothing
    #[arg(long)]
    quick: bool,
    /// End with status 1 if something is over its limit
    #[arg(long)]
    check: bool,
    /// Pairs of runs a comparison
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Rows written before anything is measured; 300,000, or 2,000 with --quick
    #[arg(long)]
    warmup: Option<usize>,
    /// Where the reports go
    #[arg(long, default_value = "target/bench-cluster")]
    out: PathBuf,
    /// The folder in which dev/stack keeps the servers' process ids
    #[arg(long, default_value = "target/stack")]
    stack: PathBuf,
    /// What cargo says to a benchmark; without it this is `cargo test`, which has nothing to do here
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    suite::process(arms::run, benchmark)
}

fn benchmark(arguments: Arguments) -> Result<ExitCode> {
    if !arguments.bench {
        eprintln!("bench: run it with dev/bench cluster");
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { quick, pairs, warmup, out, stack, .. } = arguments;
    let context = Context { quick, pairs: pairs.max(1), minutes: 0.0, out: std::path::absolute(out)? };
    suite::prepare(&context)?;
    let named = arguments.scenarios.iter().map(String::as_str);
    let names: Vec<&str> = if named.len() == 0 { scenarios::ALL.to_vec() } else { named.collect() };
    if let Some(stray) = names.iter().find(|name| !scenarios::ALL.contains(name)) {
        return Err(format!("there is no scenario {stray}; there are {}", scenarios::ALL.join(", ")).into());
    }
    let warmup = warmup.unwrap_or(context.size(300_000, 2_000));
    let (alone, all) = servers::processors(&stack)?;
    let theirs = if alone > 0.0 { format!(", {alone} of them the CQL server's alone") } else { String::new() };
    let findings = suite::block_on(run(&names, &context, warmup, stack))?;
    let use_of_it = format!(" for all{theirs}, warmed up by {} rows", report::number(warmup as f64));
    suite::deliver(&findings, &context, &suite::machine(all, &use_of_it), arguments.check)
}

/// Everything in a keyspace and under prefixes of this run; they are removed whatever comes of it.
async fn run(names: &[&str], context: &Context, warmup: usize, stack: PathBuf) -> Result<Findings> {
    let cluster = Cluster::create().await?;
    let bench = Bench { context: context.clone(), cluster, stack };
    let found = run_all(names, &bench, warmup).await;
    let removed = bench.cluster.remove().await;
    let findings = found?;
    removed?;
    Ok(findings)
}

async fn run_all(names: &[&str], bench: &Bench, warmup: usize) -> Result<Findings> {
    workers::warm_up(bench, warmup).await?;
    let mut findings = Findings::default();
    for name in names {
        let found = scenarios::run(name, bench).await.map_err(|error| format!("{name}: {error}"))?;
        findings.add(found);
    }
    Ok(findings)
}
