//! Fan-out, against raw batches of the same rows with the same durability.

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::context::Context;
use crate::engine::Engine;
use crate::findings::{Comparison, Findings};
use crate::measure::{Limit, Measure, Pair, Result, Sample, in_process};
use crate::posts::{Audiences, draft};
use crate::raw::{Group, RawStore, read_back};

const AUDIENCE: usize = 500;
const POPULATION: usize = 20_000;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let posts = context.size(1_000, 20);
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("fanout", number);
        let (ours, batches) = ours(context, posts, number as u64).await?;
        let other = raw(context, batches).await?;
        pairs.push(Pair { ours, other });
    }
    Ok(Comparison {
        scenario: "fanout",
        what: "rows fanned out, 500 viewers a post, against raw synced batches of 500 of the same rows",
        op: "row",
        other: "raw fjall",
        measure: Measure::Throughput,
        limit: Some(Limit::AtLeast(0.6)),
        pairs,
    }
    .into())
}

/// Fans out posts that were published before, and answers what was written, a batch for each post.
async fn ours(context: &Context, posts: usize, seed: u64) -> Result<(Sample, Vec<Group>)> {
    let folder = context.fresh_folder("fanout-ours")?;
    let engine = Engine::open(folder.path()).await?;
    engine.open_records(POPULATION).await?;
    let mut audiences = Audiences::new(POPULATION, AUDIENCE, seed);
    let drafts = (0..posts).map(|_| draft(&audiences.draw())).collect::<Result<Vec<_>>>()?;
    engine.publish(drafts, 64).await?;
    let rows = (posts * AUDIENCE) as u64;
    let sample = in_process(async {
        engine.start_workers().drain().await?;
        Ok(rows)
    })
    .await?;
    drop(engine);
    let mut batches = read_back(folder.path(), &["inbox"], post_of)?;
    let written: usize = batches.iter().map(Vec::len).sum();
    if (batches.len(), written) != (posts, posts * AUDIENCE) {
        return Err(format!("fan-out wrote {written} rows of {} posts", batches.len()).into());
    }
    let mut random = StdRng::seed_from_u64(seed);
    // Inverted ids sort the newest first, and a batch is sorted by viewer; fan-out writes neither way.
    batches.reverse();
    batches.iter_mut().for_each(|batch| batch.shuffle(&mut random));
    Ok((sample, batches))
}

/// An inbox key ends with the inverted post id and one byte for the part.
fn post_of(_: usize, key: &[u8]) -> Option<&[u8]> {
    key.get(key.len().checked_sub(17)?..key.len() - 1)
}

async fn raw(context: &Context, batches: Vec<Group>) -> Result<Sample> {
    let folder = context.fresh_folder("fanout-raw")?;
    let raw = RawStore::open(&folder.path().join("store"), &["inbox"])?;
    let write = move || -> Result<u64> {
        let mut rows = 0;
        for batch in &batches {
            raw.commit([batch], batch.len())?;
            rows += batch.len() as u64;
        }
        Ok(rows)
    };
    in_process(async { tokio::task::spawn_blocking(write).await? }).await
}
