//! The unchanged poll of an API node, against a bare handler that does one multiplexed read of the same record.

use std::net::SocketAddr;

use crate::child::Child;
use crate::client::{Connection, get};
use crate::cluster::Bench;
use crate::findings::{Comparison, Figure, Findings};
use crate::load::{measured, repeat};
use crate::measure::{Limit, Measure, Pair, Result};
use crate::posts;
use crate::workers::metric;

const CONNECTIONS: usize = 16;
/// Whatever is read on behalf of a viewer.
const READS: [&str; 4] = [
    "fanfold_store_reads_total{path=\"poll\"}",
    "fanfold_store_reads_total{path=\"page\"}",
    "fanfold_store_reads_total{path=\"changes\"}",
    "fanfold_store_reads_total{path=\"access\"}",
];
const POLLS: &str = "fanfold_revision_polls_total{result=\"unchanged\"}";

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let (context, cluster) = (&bench.context, &bench.cluster);
    let mut api = Child::start(&["api", &cluster.name], &context.log("poll-api")?).await?;
    let viewer = posts::viewer(0);
    let mut side = Connection::open(api.addr()).await?;
    let page = side.send(&get(&format!("/v1/viewers/{viewer}/inbox?limit=1"))).await?.expect(200)?;
    let before = reads(api.addr()).await?;
    let poll = get(&format!("/v1/viewers/{viewer}/revision?since={}", page.field("token")?));
    let key = format!("{}:r:{viewer}", cluster.config.redis.key_prefix);
    let arm = ["bare-redis", cluster.name.as_str(), key.as_str()];
    let mut bare = Child::start(&arm, &context.log("bare-redis")?).await?;

    let each = context.size(8_000, 100);
    let load = |each| repeat(vec![poll.clone()], each, 304);
    for child in [&mut api, &mut bare] {
        measured(child, CONNECTIONS, load(each / 4)).await?;
    }
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("poll", number);
        let ours = measured(&mut api, CONNECTIONS, load(each)).await?;
        let other = measured(&mut bare, CONNECTIONS, load(each)).await?;
        pairs.push(Pair { ours, other });
    }
    let (after, polls) = (reads(api.addr()).await?, metric(api.addr(), POLLS).await?);
    if before == 0 {
        return Err("the page that came before the polls was not counted as a read".into());
    }
    let expected = pairs.iter().map(|pair| pair.ours.ops).sum::<u64>();
    if polls < expected {
        return Err(format!("{polls} unchanged polls were counted, {expected} were answered").into());
    }
    api.stop().await?;
    bare.stop().await?;
    let mut findings: Findings = Comparison {
        scenario: "poll",
        what: "an unchanged poll of an API node over HTTP, against a bare axum handler that reads the same record's head \
               over one multiplexed connection",
        op: "poll",
        other: "bare axum+Redis",
        measure: Measure::Cpu,
        limit: Some(Limit::AtMost(1.2)),
        pairs,
    }
    .into();
    let what = format!("CQL reads by {} polls", crate::report::number(polls as f64));
    findings
        .add(vec![Figure::new("poll", what, (after - before) as f64, "reads").with_limit(Limit::AtMost(0.0))].into());
    Ok(findings)
}

async fn reads(api: SocketAddr) -> Result<u64> {
    let mut sum = 0;
    for series in READS {
        sum += metric(api, series).await?;
    }
    Ok(sum)
}
