//! The cost of a row at an audience of 10,000, against an audience of 500.

use crate::context::Context;
use crate::engine::Engine;
use crate::findings::{Comparison, Findings};
use crate::measure::{Limit, Measure, Pair, Result, Sample, in_process};
use crate::posts::{Audiences, draft};

const GIANT: usize = 10_000;
const USUAL: usize = 500;
const POPULATION: usize = 20_000;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let rows = context.size(500_000, 20_000);
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("giant", number);
        let ours = arm(context, rows, GIANT, number as u64).await?;
        let other = arm(context, rows, USUAL, number as u64).await?;
        pairs.push(Pair { ours, other });
    }
    Ok(Comparison {
        scenario: "giant",
        what: "a row of a post to 10,000 viewers, publish and fan-out, against a row of a post to 500",
        op: "row",
        other: "audience 500",
        measure: Measure::Cpu,
        limit: Some(Limit::AtMost(1.2)),
        pairs,
    }
    .into())
}

async fn arm(context: &Context, rows: usize, audience: usize, seed: u64) -> Result<Sample> {
    let folder = context.fresh_folder("giant")?;
    let engine = Engine::open(folder.path()).await?;
    engine.open_records(POPULATION).await?;
    let mut audiences = Audiences::new(POPULATION, audience, seed);
    let drafts = (0..rows / audience).map(|_| draft(&audiences.draw())).collect::<Result<Vec<_>>>()?;
    in_process(async {
        let workers = engine.start_workers();
        let posts = engine.publish(drafts, 16).await?;
        workers.drain().await?;
        Ok(posts * audience as u64)
    })
    .await
}
