//! The scenarios, one file each.

pub mod fairness;
pub mod fanout;
pub mod page;
pub mod poll;
pub mod publish;
pub mod scale;

use crate::cluster::Bench;
use crate::findings::Findings;
use crate::measure::Result;

/// All of them, in the order in which they run.
pub const ALL: [&str; 6] = ["fanout", "poll", "publish", "page", "scale", "fairness"];

/// Runs the scenario of that name.
pub async fn run(name: &str, bench: &Bench) -> Result<Findings> {
    match name {
        "fanout" => fanout::run(bench).await,
        "poll" => poll::run(bench).await,
        "publish" => publish::run(bench).await,
        "page" => page::run(bench).await,
        "scale" => scale::run(bench).await,
        "fairness" => fairness::run(bench).await,
        _ => Err(format!("there is no scenario {name}; there are {}", ALL.join(", ")).into()),
    }
}
