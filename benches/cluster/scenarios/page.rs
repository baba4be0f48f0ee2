//! A changed page of an API node, nothing of it in the cache, against the raw SELECTs that it needs.

use fanfold::domain::Task;
use serde_json::Value;

use crate::child::Child;
use crate::client::{Connection, get};
use crate::cluster::Bench;
use crate::findings::{Comparison, Figure, Findings};
use crate::load::{measured, repeat};
use crate::measure::{Limit, Measure, Pair, Result};
use crate::posts;
use crate::source::Source;
use crate::workers::Workers;

/// Items on a page.
pub const PAGE: usize = 20;
/// Inboxes that are read in turn.
const VIEWERS: usize = 50;
const CONNECTIONS: usize = 16;

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let (context, name) = (&bench.context, bench.cluster.name.as_str());
    fill(bench).await?;
    let uncached = [("FANFOLD_INBOX__BODY_CACHE_BYTES_MAX", "0")];
    let mut api = Child::start_with(&["api", name], &context.log("page-api")?, &uncached).await?;
    let mut cached = Child::start(&["api", name], &context.log("page-api-cached")?).await?;
    let mut raw = Child::start(&["raw-page", name], &context.log("page-raw")?).await?;
    let path = |viewer: &String| format!("/v1/viewers/{viewer}/inbox?limit={PAGE}");
    let paths: Vec<String> = viewers().iter().map(path).collect();
    check_same(&api, &raw, &paths[0]).await?;

    let requests: Vec<_> = paths.iter().map(|path| get(path)).collect();
    let each = context.size(200, 5);
    let load = |each| repeat(requests.clone(), each, 200);
    for child in [&mut api, &mut raw, &mut cached] {
        measured(child, CONNECTIONS, load(each / 2)).await?;
    }
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("page", number);
        let ours = measured(&mut api, CONNECTIONS, load(each)).await?;
        let other = measured(&mut raw, CONNECTIONS, load(each)).await?;
        pairs.push(Pair { ours, other });
    }
    let shipped = measured(&mut cached, CONNECTIONS, load(each)).await?;
    for child in [api, cached, raw] {
        child.stop().await?;
    }
    let comparison = |what, measure, limit| Comparison {
        scenario: "page",
        what,
        op: "page",
        other: "raw SELECTs",
        measure,
        limit: Some(limit),
        pairs: pairs.clone(),
    };
    let cpu = "a changed first page of 20 out of 200 over HTTP, no body cached, against a bare axum handler with the raw \
               SELECTs and the same JSON: CPU";
    let wall = "the same pairs by time on the wall, 1.5 x being 0.667 of the pages a second";
    let mut findings = Findings::from(comparison(cpu, Measure::Cpu, Limit::AtMost(1.5)));
    findings.add(comparison(wall, Measure::Throughput, Limit::AtLeast(0.667)).into());
    findings
        .add(vec![Figure::new("page", "with the cache of bodies as shipped", shipped.per_second(), "pages/s")].into());
    Ok(findings)
}

fn viewers() -> Vec<String> {
    // Beyond everybody who gets the posts of other scenarios.
    (1_000_000..1_000_000 + VIEWERS).map(posts::viewer).collect()
}

/// Two hundred posts to each of the viewers.
async fn fill(bench: &Bench) -> Result<()> {
    let mut source = Source::open(bench, 2).await?;
    let mut workers = Workers::start(bench, "page", 1).await?;
    let tasks: Vec<Task> = source.tasks_for(&viewers(), bench.context.size(200, 30)).await?;
    workers.fan_out(&source, tasks).await?;
    workers.stop().await
}

/// Both arms must answer the same posts and counts: a ceiling that does something else is none.
async fn check_same(api: &Child, raw: &Child, path: &str) -> Result<()> {
    let mut shapes = Vec::new();
    for child in [api, raw] {
        let mut connection = Connection::open(child.addr()).await?;
        let page: Value = serde_json::from_slice(connection.send(&get(path)).await?.expect(200)?.body)?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        let ids: Vec<Value> = items.iter().map(|item| item["post_id"].clone()).collect();
        let names: Vec<String> =
            items.iter().flat_map(|item| item.as_object()).flat_map(|o| o.keys().cloned()).collect();
        shapes.push((ids, names, page["unread_count"].clone(), page["unseen_count"].clone()));
    }
    if shapes[0] == shapes[1] {
        return Ok(());
    }
    Err(format!("the arms answer differently:\n{:?}\n{:?}", shapes[0], shapes[1]).into())
}
