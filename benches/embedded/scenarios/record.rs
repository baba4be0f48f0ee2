//! What a revision record takes, all in: the growth of a process that holds many of them, divided by their number.

use std::time::Duration;

use fanfold::domain::{Change, PostId, Time, ViewerId};
use fanfold::ports::Revisions as _;

use crate::child;
use crate::context::Context;
use crate::engine;
use crate::findings::{Figure, Findings};
use crate::measure::{Limit, Result, resident_mib};
use crate::posts;
use crate::serving::announce;

/// More than the ring holds, so that every ring is full and has dropped something.
const POSTS: i64 = 20;
/// The allocator gives back what has been free for a second; that it does is measured by the soak.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(3);
/// Ids made at a time: the benchmark's own memory must not count.
const AT_A_TIME: usize = 500;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let viewers = context.size(200_000, 100_000);
    context.say("record", format_args!("{viewers} records with full rings"));
    let answer = child::run(&["record", &viewers.to_string()], &context.log("record")?).await?;
    let what = format!("a revision record, all in ({viewers} with full rings)");
    let figure = Figure::new("record", what, answer.parse()?, "bytes/viewer");
    Ok(vec![figure.with_limit(Limit::AtMost(500.0))].into())
}

/// The process that holds them: prints the bytes a record.
pub async fn arm(viewers: usize) -> Result<()> {
    let revisions = engine::revisions(viewers * 2);
    let before = resident_mib(std::process::id())?.0;
    engine::open_records(&revisions, viewers).await?;
    // Post by post, as a service gets them: records grow in turns, and what the allocator cannot reuse shows.
    for number in 0..POSTS {
        let change = Change { post_id: PostId::new(Time::from_millis(number), rand::random()), version: 1 };
        for first in (0..viewers).step_by(AT_A_TIME) {
            let ids = first..viewers.min(first + AT_A_TIME);
            let ids = ids.map(|id| ViewerId::parse("viewer", &posts::viewer(id))).collect::<Result<Vec<_>, _>>()?;
            revisions.bump(&ids, change).await?;
        }
    }
    tokio::time::sleep(GIVEN_BACK_AFTER).await;
    let grown = resident_mib(std::process::id())?.0 - before;
    announce(&(grown * 1024.0 * 1024.0 / viewers as f64).to_string())
}
