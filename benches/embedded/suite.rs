//! What both suites do around their scenarios: become an arm or a benchmark, and tell what was found.

use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;

use crate::chart;
use crate::context::{self, Context};
use crate::findings::Findings;
use crate::measure::Result;
use crate::report;

/// The process as its arguments want it: `arm NAME …` is one side of a comparison, all else the benchmark.
pub fn process<A: Parser>(
    arm: impl AsyncFnOnce(&[String]) -> Result<()>,
    benchmark: impl FnOnce(A) -> Result<ExitCode>,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, words)) if first == "arm" => block_on(arm(words)).map(|()| ExitCode::SUCCESS),
        _ => benchmark(A::parse()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench: {error}");
        ExitCode::FAILURE
    })
}

/// On a runtime like the service's own.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// Makes the folder of the reports, without what an interrupted run has left there.
pub fn prepare(context: &Context) -> Result<()> {
    std::fs::create_dir_all(&context.out)?;
    // It may be missing.
    let _ = std::fs::remove_dir_all(context.out.join("tmp"));
    Ok(())
}

/// Writes the reports, prints the tables; with `check` the exit status says whether all limits were held.
pub fn deliver(findings: &Findings, context: &Context, machine: &str, check: bool) -> Result<ExitCode> {
    let json = serde_json::to_string_pretty(&report::json(findings, machine, context.quick))?;
    std::fs::write(context.out.join("report.json"), json + "\n")?;
    std::fs::write(context.out.join("report.md"), report::markdown(findings, machine))?;
    std::fs::write(context.out.join("report.svg"), chart::draw(findings, machine))?;
    println!("{}", report::text(findings));
    if context.quick {
        eprintln!("\nsmall sizes: these numbers show that it works, and nothing else");
    }
    eprintln!("\nreport.json, report.md and report.svg are in {}", context.out.display());
    let over = findings.over_limit();
    if !over.is_empty() {
        eprintln!("over the limit: {}", over.join(", "));
    }
    Ok(if check && !over.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a report says it ran on: the processors, what is to be said of their use, and the settings that are not as shipped.
pub fn machine(processors: impl Display, use_of_it: &str) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let settings = context::settings().into_iter().map(|(name, value)| format!(", {name}={value}"));
    let model = model.map_or("processor", |(_, model)| model.trim());
    format!("{processors} x {model}{use_of_it}{}", settings.collect::<String>())
}
