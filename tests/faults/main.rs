//! Real processes and real servers under a load, and what befalls them: nothing accepted is lost or undone, nothing
//! comes twice, no "unchanged" stays wrong, and a minute after healing all is done.
//!
//! `dev/faults` runs all of it; `cargo test --features faults --test faults` a short part, where `FANFOLD_TEST_*` names
//! servers.

mod bystander;
mod checker;
mod late;
mod load;
mod processes;
mod producer;
#[path = "../support/proxy.rs"]
mod proxy;
mod redis_faults;
mod scenarios;
mod stack;
mod stage;
mod table;
mod viewer;
#[path = "../support/wait.rs"]
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use checker::Verdict;
use scenarios::{PLANTED, SHORT};
use stack::Servers;
use stage::{Needs, Scenario, Stage};
use table::Row;
use wait::until;

/// What went, or why it could not.
pub type Outcome<T> = Result<T, String>;

/// What to run.
struct Args {
    names: Vec<String>,
    times: usize,
    seed: Option<u64>,
    keep: bool,
    planted: bool,
    list: bool,
}

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut args = Self { names: Vec::new(), times: 1, seed: None, keep: false, planted: false, list: false };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut number = || -> Outcome<u64> {
                let value = words.next().ok_or(format!("{word} needs a number"))?;
                value.parse().map_err(|_| format!("{word} {value}: not a number"))
            };
            match word.as_str() {
                "--times" => args.times = usize::try_from(number()?).unwrap_or(1).max(1),
                "--seed" => args.seed = Some(number()?),
                "--keep" => args.keep = true,
                "--planted" => args.planted = true,
                "--list" => args.list = true,
                _ if word.starts_with('-') => return Err(format!("unknown option {word}")),
                _ => args.names.push(word),
            }
        }
        Ok(args)
    }
}

fn main() -> ExitCode {
    let driven = std::env::var_os("FANFOLD_TEST_FAULTS").is_some();
    let args = if driven { Args::parse(std::env::args().skip(1)) } else { short() };
    let args = match args {
        Ok(args) => args,
        Err(told) => {
            eprintln!("faults: {told}");
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.expect("a runtime").block_on(run(args, driven)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(told) => {
            eprintln!("faults: {told}");
            ExitCode::FAILURE
        }
    }
}

/// What a test run asks for, whatever it filters by.
fn short() -> Outcome<Args> {
    let list = std::env::args().any(|word| word == "--list");
    let names = SHORT.iter().map(|name| (*name).to_owned()).collect();
    Ok(Args { names, times: 1, seed: None, keep: false, planted: false, list })
}

/// Runs what was asked for; whether all of it was as it should be.
async fn run(args: Args, driven: bool) -> Outcome<bool> {
    let all = scenarios::all();
    if args.list {
        list(&all, driven);
        return Ok(true);
    }
    if let Some(unknown) = args.names.iter().find(|name| !all.iter().any(|s| s.name == **name)) {
        return Err(format!("there is no fault {unknown}; --list tells which there are"));
    }
    let Some(servers) = Servers::from_env() else {
        println!("faults: left out: FANFOLD_TEST_CQL, _AMQP and _REDIS are not set (dev/stack starts the servers)");
        return Ok(true);
    };
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let folder = target.parent().map_or(target.clone(), |parent| parent.join("faults"));
    let seed = args.seed.unwrap_or_else(rand::random);
    if args.planted {
        return planted(&all, &args, &servers, &folder, seed).await;
    }
    let mut rows = Vec::new();
    for scenario in all.iter().filter(|s| args.names.is_empty() || args.names.iter().any(|name| name == s.name)) {
        if let Some(why) = left_out(scenario, &servers) {
            println!("{}: left out: {why}", scenario.name);
            continue;
        }
        let mut row = Row { fault: scenario.name.into(), ..Row::default() };
        for n in 0..args.times {
            let folder = folder.join(format!("{}-{n}", scenario.name));
            let begun = Instant::now();
            match Stage::run(scenario, &servers, &folder, None, seed.wrapping_add(n as u64), args.keep).await {
                Ok(report) => row.reports.push(report),
                Err(error) => row.errors.push(error),
            }
            tell(&row, begun.elapsed());
        }
        rows.push(row);
    }
    println!("\n{}", table::text(&rows));
    table::save(&rows, &folder)?;
    println!("all of it, with what was found and where the logs are: {}", folder.join("faults.json").display());
    Ok(rows.iter().all(Row::is_clean))
}

fn list(all: &[Scenario], driven: bool) {
    if !driven {
        // As a test program answers.
        return println!("short: test\n\n1 test, 0 benchmarks");
    }
    for scenario in all {
        let needs = match scenario.needs {
            Needs::ThreeNodes => " (with dev/stack up --nodes 3)",
            Needs::Stack | Needs::Nothing => "",
        };
        println!("{:<22} {}{needs}", scenario.name, scenario.what);
    }
    println!("\nplanted defects, each under the fault that has to show it:");
    for (defect, name) in PLANTED {
        println!("{defect:<22} {name}");
    }
}

fn left_out(scenario: &Scenario, servers: &Servers) -> Option<&'static str> {
    match scenario.needs {
        Needs::Stack if servers.stack.is_none() => Some("it kills servers of dev/stack, run it by dev/faults"),
        Needs::ThreeNodes if !servers.three_nodes() => Some("it needs dev/stack up --nodes 3"),
        _ => None,
    }
}

/// What the last run of a fault found, as soon as it is known.
fn tell(row: &Row, took: Duration) {
    let Some(report) = row.reports.last().filter(|_| row.errors.is_empty()) else {
        return println!("{}: could not run: {}", row.fault, row.errors.last().map_or("", String::as_str));
    };
    let verdict = &report.verdict;
    let state = if verdict.is_clean() { "ok" } else { "NOT OK" };
    let drained = verdict.drained.map_or("never".into(), |drained| format!("{:.1} s", drained.as_secs_f64()));
    println!(
        "{}: {state}, {:?}, {} unanswered, drained {drained}, {:.0} s in all, seed {}",
        row.fault,
        report.accepted,
        report.unanswered,
        took.as_secs_f64(),
        report.seed
    );
    show(verdict, 5);
}

/// The first of everything that was found.
fn show(verdict: &Verdict, first: usize) {
    let found =
        [("lost", &verdict.lost), ("double", &verdict.double), ("lie", &verdict.lies), ("other", &verdict.wrong)];
    for (what, list) in found {
        for line in list.iter().take(first) {
            println!("  {what}: {line}");
        }
        if list.len() > first {
            println!("  {what}: … {} in all", list.len());
        }
    }
}

/// Plants each defect, and tells whether the checker has noticed.
async fn planted(
    all: &[Scenario],
    args: &Args,
    servers: &Servers,
    folder: &std::path::Path,
    seed: u64,
) -> Outcome<bool> {
    let mut unnoticed = Vec::new();
    for (defect, name) in PLANTED {
        let scenario = all.iter().find(|s| s.name == name).ok_or(format!("there is no fault {name}"))?;
        if !args.names.is_empty() && !args.names.iter().any(|named| named == name) {
            continue;
        }
        let folder = folder.join(format!("planted-{defect}"));
        let outcome = Stage::run(scenario, servers, &folder, Some(defect), seed, args.keep).await;
        let found = outcome.as_ref().map_or(0, |r| {
            let verdict = &r.verdict;
            // Slow is not found: what never drains may be so for any reason.
            verdict.lost.len() + verdict.double.len() + verdict.lies.len()
        });
        if found == 0 {
            unnoticed.push(defect);
        }
        let told = match &outcome {
            Ok(report) => {
                let verdict = &report.verdict;
                let drained = if verdict.drained.is_some() { "drained" } else { "never drained" };
                let (lost, double, lies) = (verdict.lost.len(), verdict.double.len(), verdict.lies.len());
                format!("lost {lost}, double {double}, lies {lies}, {drained}")
            }
            Err(error) => format!("could not run: {error}"),
        };
        println!("{defect:<22} under {name:<22} {}: {told}", if found > 0 { "caught" } else { "NOT NOTICED" });
        if let Ok(report) = &outcome {
            show(&report.verdict, 2);
        }
    }
    Ok(unnoticed.is_empty())
}
