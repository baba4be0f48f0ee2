//! Resident memory of the service with many viewers and rows, all through the real publish and fan-out.

use crate::context::Context;
use crate::findings::{Figure, Findings};
use crate::load::{drive, once};
use crate::measure::Result;
use crate::posts::{self, Audiences};
use crate::service::Service;

const AUDIENCE: usize = 500;
const CONNECTIONS: usize = 16;
/// Posts made at a time: their requests are the benchmark's memory, not the service's, but they need not be large.
const AT_A_TIME: usize = 400;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    let viewers: usize = context.size(200_000, 5_000);
    let rows: usize = context.size(2_000_000, 50_000);
    let mut service = Service::start(context, "memory").await?;
    let idle = service.child.resident_mib()?.0;
    context.say("memory", format_args!("{viewers} viewers open their inboxes"));
    service.open_records(viewers).await?;
    let mut audiences = Audiences::new(viewers, AUDIENCE, 0);
    let mut written = 0;
    while written < rows {
        let posts = AT_A_TIME.min((rows - written).div_ceil(AUDIENCE));
        let requests = (0..posts).map(|_| posts::request(&audiences.draw())).collect();
        drive(service.child.addr(), CONNECTIONS, once(requests, CONNECTIONS, 202)).await?;
        written += posts * AUDIENCE;
        service.until_written(written as u64).await?;
        context.say("memory", format_args!("{written} rows of {rows}"));
    }
    let (now, most) = service.child.resident_mib()?;
    service.child.stop().await?;
    let held = format!("resident with {viewers} viewers and {written} rows");
    let figures = vec![
        Figure::new("memory", "resident when idle and empty", idle, "MiB"),
        Figure::new("memory", held, now, "MiB"),
        Figure::new("memory", "the most it was on the way there", most, "MiB"),
    ];
    Ok(figures.into())
}
