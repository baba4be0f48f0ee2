//! The unchanged poll, against a bare handler that answers 304 and a constant.

use crate::child::Child;
use crate::client::{Connection, get};
use crate::context::Context;
use crate::findings::{Comparison, Findings};
use crate::load::{measured, repeat};
use crate::measure::{Limit, Measure, Pair, Result};
use crate::posts;
use crate::service::Service;

const CONNECTIONS: usize = 16;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let mut service = Service::start(context, "poll").await?;
    let viewer = posts::viewer(0);
    service.send_all(vec![posts::request(std::slice::from_ref(&viewer))], 1, 202).await?;
    service.until_written(1).await?;
    let mut connection = Connection::open(service.child.addr()).await?;
    let page = connection.send(&get(&format!("/v1/viewers/{viewer}/inbox"))).await?.expect(200)?;
    let poll = get(&format!("/v1/viewers/{viewer}/revision?since={}", page.field("token")?));

    let mut bare = Child::start(&["bare-304"], &context.log("bare-304")?).await?;
    let each = context.size(8_000, 100);
    let load = |each| repeat(vec![poll.clone()], each, 304);
    for child in [&mut service.child, &mut bare] {
        measured(child, CONNECTIONS, load(each / 4)).await?;
    }
    let mut pairs = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("poll", number);
        let ours = measured(&mut service.child, CONNECTIONS, load(each)).await?;
        let other = measured(&mut bare, CONNECTIONS, load(each)).await?;
        pairs.push(Pair { ours, other });
    }
    service.child.stop().await?;
    bare.stop().await?;
    Ok(Comparison {
        scenario: "poll",
        what: "an unchanged poll over HTTP, against a bare axum handler that answers 304",
        op: "poll",
        other: "bare axum",
        measure: Measure::Cpu,
        limit: Some(Limit::AtMost(1.2)),
        pairs,
    }
    .into())
}
