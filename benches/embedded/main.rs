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
mod findings;
mod load;
mod measure;
mod page_json;
mod posts;
mod raw;
mod report;
mod scenarios;
mod service;
mod serving;
mod svg;

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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, arm)) if first == "arm" => block_on(arms::run(arm)).map(|()| ExitCode::SUCCESS),
        _ => benchmark(Arguments::parse()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench: {error}");
        ExitCode::FAILURE
    })
}

/// On a runtime like the service's own.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn benchmark(arguments: Arguments) -> Result<ExitCode> {
    if !arguments.bench {
        eprintln!("bench: run it with dev/bench");
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { quick, pairs, minutes, out, .. } = arguments;
    let context = Context { quick, pairs: pairs.max(1), minutes, out: std::path::absolute(out)? };
    std::fs::create_dir_all(&context.out)?;
    // What an interrupted run has left. The folder may be missing.
    let _ = std::fs::remove_dir_all(context.out.join("tmp"));
    let named = arguments.scenarios.iter().map(String::as_str);
    let names: Vec<&str> = if named.len() == 0 { scenarios::CANONICAL.to_vec() } else { named.collect() };
    let findings = block_on(run(&names, &context))?;
    write_reports(&findings, &context)?;
    println!("{}", report::text(&findings));
    if quick {
        eprintln!("\nsmall sizes: these numbers show that it works, and nothing else");
    }
    eprintln!("\nreport.json, report.md and report.svg are in {}", context.out.display());
    let over = !findings.all_hold();
    if over {
        eprintln!("over the limit: {}", over_limit(&findings).join(", "));
    }
    Ok(if over && arguments.check { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn run(names: &[&str], context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    for name in names {
        let found = scenarios::run(name, context).await.map_err(|error| format!("{name}: {error}"))?;
        findings.add(found);
    }
    Ok(findings)
}

fn over_limit(findings: &Findings) -> Vec<&'static str> {
    let compared = findings.comparisons.iter().filter(|c| c.holds() == Some(false)).map(|c| c.scenario);
    compared.chain(findings.figures.iter().filter(|f| f.holds() == Some(false)).map(|f| f.scenario)).collect()
}

fn write_reports(findings: &Findings, context: &Context) -> Result<()> {
    let machine = machine();
    let json = serde_json::to_string_pretty(&report::json(findings, &machine, context.quick))?;
    std::fs::write(context.out.join("report.json"), json + "\n")?;
    std::fs::write(context.out.join("report.md"), report::markdown(findings, &machine))?;
    std::fs::write(context.out.join("report.svg"), chart::draw(findings, &machine))?;
    Ok(())
}

/// The processor, how many of it this process may use, and the settings that are not as shipped.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let settings = context::settings().into_iter().map(|(name, value)| format!(", {name}={value}"));
    let model = model.map_or("processor", |(_, model)| model.trim());
    format!("{cores} x {model}{}", settings.collect::<String>())
}
