//! Benchmarks of the embedded mode, each beside its raw ceiling in one run. `dev/bench` builds and runs them.
//!
//! Two arms alternate, A B A B …, and the ratio is taken pair by pair: on a machine that is busy with other things both
//! halves of a pair suffer alike, and the median forgets the rest. CPU time is what counts where the limit is about
//! cost, since it varies far less than time on the wall.

mod actors;
mod arm_page;
mod arms;
mod chart;
mod chart_soak;
mod child;
mod client;
mod context;
mod engine;
mod fairness_phases;
mod findings;
mod keys;
mod load;
mod measure;
mod page_json;
mod posts;
mod raw;
mod report;
mod scenarios;
mod service;
mod serving;
mod suite;
mod svg;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::context::Context;
use crate::findings::Findings;
use crate::measure::Result;

/// The mode that is measured, for the reports.
const MODE: &str = "embedded";

/// Benchmarks of the embedded mode; see `dev/bench --help`.
#[derive(Debug, Parser)]
struct Arguments {
    /// Scenarios to run; all but the soak if none is named
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
    /// How long the soak goes on
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Where the reports go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// What cargo says to a benchmark; without it this is `cargo test`, which has nothing to do here
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    suite::process(arms::run, benchmark)
}

fn benchmark(arguments: Arguments) -> Result<ExitCode> {
    if !arguments.bench {
        eprintln!("bench: run it with dev/bench");
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { quick, pairs, minutes, out, .. } = arguments;
    let context = Context { quick, pairs: pairs.max(1), minutes, out: std::path::absolute(out)? };
    suite::prepare(&context)?;
    let named = arguments.scenarios.iter().map(String::as_str);
    let names: Vec<&str> = if named.len() == 0 { scenarios::CANONICAL.to_vec() } else { named.collect() };
    let findings = suite::block_on(run(&names, &context))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    suite::deliver(&findings, &context, &suite::machine(processors, ""), arguments.check)
}

async fn run(names: &[&str], context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    for name in names {
        let found = scenarios::run(name, context).await.map_err(|error| format!("{name}: {error}"))?;
        findings.add(found);
    }
    Ok(findings)
}
