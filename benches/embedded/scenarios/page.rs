//! The first page of an inbox that has changed, against a raw scan, cached bodies and JSON.

use serde_json::Value;

use crate::child::Child;
use crate::client::{Connection, get};
use crate::context::Context;
use crate::findings::{Comparison, Findings};
use crate::load::{measured, repeat};
use crate::measure::{Limit, Measure, Pair, Result};
use crate::posts;
use crate::service::Service;

/// Rows of each inbox.
pub const ROWS: usize = 200;
/// Items on a page.
pub const PAGE: usize = 20;
/// Inboxes that are read in turn.
pub const VIEWERS: usize = 50;

const CONNECTIONS: usize = 16;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mut service = Service::start(context, "page").await?;
    let viewers: Vec<String> = (0..VIEWERS).map(posts::viewer).collect();
    service.send_all((0..ROWS).map(|_| posts::request(&viewers)).collect(), 8, 202).await?;
    service.until_written((ROWS * VIEWERS) as u64).await?;
    let folder = context.fresh_folder("page-raw")?;
    let path = folder.path().to_str().ok_or("the folder's name is not UTF-8")?;
    let mut raw = Child::start(&["raw-page", path], &context.log("page-raw")?).await?;
    check_same(&service.child, &raw).await?;

    let requests: Vec<_> =
        viewers.iter().map(|viewer| get(&format!("/v1/viewers/{viewer}/inbox?limit={PAGE}"))).collect();
    let each = context.size(2_000, 50);
    let load = |each| repeat(requests.clone(), each, 200);
    for child in [&mut service.child, &mut raw] {
        measured(child, CONNECTIONS, load(each / 4)).await?;
    }
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("page", number);
        let ours = measured(&mut service.child, CONNECTIONS, load(each)).await?;
        let other = measured(&mut raw, CONNECTIONS, load(each)).await?;
        pairs.push(Pair { ours, other });
    }
    service.child.stop().await?;
    raw.stop().await?;
    Ok(Comparison {
        scenario: "page",
        what: "a changed first page of 20 out of 200 over HTTP, against a raw scan, cached bodies and JSON",
        op: "page",
        other: "raw scan",
        measure: Measure::Cpu,
        limit: Some(Limit::AtMost(2.0)),
        pairs,
    }
    .into())
}

/// Both arms must answer the same, but for ids, times and tokens: a ceiling that does something else is none.
async fn check_same(service: &Child, raw: &Child) -> Result<()> {
    let path = format!("/v1/viewers/{}/inbox?limit={PAGE}", posts::viewer(0));
    let mut shapes = Vec::new();
    for child in [service, raw] {
        let mut connection = Connection::open(child.addr()).await?;
        let page: Value = serde_json::from_slice(connection.send(&get(&path)).await?.expect(200)?.body)?;
        shapes.push(shape(page));
    }
    if shapes[0] == shapes[1] {
        return Ok(());
    }
    Err(format!("the arms answer differently:\n{}\n{}", shapes[0], shapes[1]).into())
}

/// A page with what differs by nature taken out.
fn shape(mut page: Value) -> Value {
    for name in ["token", "next_cursor"] {
        page[name] = page[name].is_string().into();
    }
    for item in page["items"].as_array_mut().into_iter().flatten() {
        for name in ["post_id", "published_at"] {
            item[name] = item[name].as_str().map(str::len).into();
        }
    }
    page
}
