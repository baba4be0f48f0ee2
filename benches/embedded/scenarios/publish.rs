//! Publishing to ten viewers with 64 in flight, against raw group commits of the same bytes.

use std::sync::Arc;

use crate::context::Context;
use crate::engine::Engine;
use crate::findings::{Comparison, Figure, Findings};
use crate::load::{measured, once};
use crate::measure::{Limit, Measure, Pair, Result, Sample, in_process};
use crate::posts::{self, Audiences, draft};
use crate::raw::{Group, RawStore, group_commits, read_back};
use crate::service::Service;

const AUDIENCE: usize = 10;
const IN_FLIGHT: usize = 64;
const POPULATION: usize = 20_000;
/// What a publish writes. The keys of the first hold the post's id behind a time, those of the others begin with it.
const WRITTEN: [&str; 3] = ["pending", "chunks", "posts"];

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let posts = context.size(20_000, 500);
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("publish", number);
        let (ours, groups) = ours(context, posts, number as u64).await?;
        let other = raw(context, groups).await?;
        pairs.push(Pair { ours, other });
    }
    let mut findings: Findings = Comparison {
        scenario: "publish",
        what: "posts to 10 viewers, 64 in flight, in process, against raw group commits of up to 64 of the same bytes",
        op: "post",
        other: "raw fjall",
        measure: Measure::Throughput,
        limit: Some(Limit::AtLeast(0.5)),
        pairs,
    }
    .into();
    findings.add(over_http(context, posts).await?);
    Ok(findings)
}

async fn ours(context: &Context, posts: usize, seed: u64) -> Result<(Sample, Vec<Group>)> {
    let folder = context.fresh_folder("publish-ours")?;
    let engine = Engine::open(folder.path()).await?;
    let mut audiences = Audiences::new(POPULATION, AUDIENCE, seed);
    let drafts = (0..posts).map(|_| draft(&audiences.draw())).collect::<Result<Vec<_>>>()?;
    let sample = in_process(engine.publish(drafts, IN_FLIGHT)).await?;
    drop(engine);
    let groups = read_back(folder.path(), &WRITTEN, post_of)?;
    if groups.len() != posts || groups.iter().any(|group| group.len() != WRITTEN.len()) {
        return Err(format!("{posts} posts were published, the store holds {}", groups.len()).into());
    }
    Ok((sample, groups))
}

fn post_of(keyspace: usize, key: &[u8]) -> Option<&[u8]> {
    if keyspace == 0 { key.get(8..24) } else { key.get(..16) }
}

async fn raw(context: &Context, groups: Vec<Group>) -> Result<Sample> {
    let folder = context.fresh_folder("publish-raw")?;
    let raw = Arc::new(RawStore::open(&folder.path().join("store"), &WRITTEN)?);
    in_process(group_commits(Arc::clone(&raw), groups, IN_FLIGHT, IN_FLIGHT)).await
}

/// The same through the front door, with parsing, checks and the fan-out beside it.
async fn over_http(context: &Context, posts: usize) -> Result<Findings> {
    context.say("publish", "over HTTP");
    let mut service = Service::start(context, "publish-http").await?;
    let mut audiences = Audiences::new(POPULATION, AUDIENCE, 0);
    let requests = (0..posts).map(|_| posts::request(&audiences.draw())).collect();
    let sample = measured(&mut service.child, IN_FLIGHT, once(requests, IN_FLIGHT, 202)).await?;
    service.until_written((posts * AUDIENCE) as u64).await?;
    service.child.stop().await?;
    let figures = vec![
        Figure::new("publish", "over HTTP, fan-out running beside it", sample.per_second(), "posts/s"),
        Figure::new("publish", "over HTTP, fan-out running beside it", sample.cpu_per_op(), "CPU µs/post"),
    ];
    Ok(figures.into())
}
