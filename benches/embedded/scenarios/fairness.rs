//! How long a producer's small posts take while others pour, in a service whose lanes producers share. What a round does
//! is in [`crate::fairness_phases`].

use std::net::SocketAddr;

use crate::context::Context;
use crate::fairness_phases::{self, Feed, Round, Sizes};
use crate::findings::Findings;
use crate::keys::Keys;
use crate::measure::{Limit, Result};
use crate::service::Service;

/// Beside another's flood small posts may wait for so many chunks of it, all but one in a hundred: for the one that goes
/// before in their lane, and for four group commits with two in each (`store.commit_bulk_bytes_max`), and one to spare.
/// Without turns it would be hundreds.
const DELAY_MAX: f64 = 10.0;

/// Runs it.
pub async fn run(context: &Context) -> Result<Findings> {
    // A million rows in posts of one chunk, and half as many in posts of many.
    let sizes = Sizes {
        alone: context.size(100, 20),
        population: context.size(20_000, 2_000),
        usual: context.size(2_000, 200),
    };
    let mut rounds = Vec::new();
    for number in 0..context.pairs {
        context.say_pair("fairness", number);
        rounds.push(round(context, number, sizes).await?);
    }
    Ok(fairness_phases::figures(&rounds, Some(Limit::AtMost(DELAY_MAX))).into())
}

/// All phases, in fresh services.
async fn round(context: &Context, number: usize, sizes: Sizes) -> Result<Round> {
    let mut measured = Guarded::start(context, "fairness", sizes.population).await?;
    let mut other = Guarded::start(context, "fairness-other", sizes.population).await?;
    let round = fairness_phases::round(number, sizes, &mut measured, &mut other).await?;
    measured.service.child.stop().await?;
    other.service.child.stop().await?;
    Ok(round)
}

/// A service and the keys to it.
struct Guarded {
    service: Service,
    keys: Keys,
}

impl Guarded {
    /// Starts one over an empty folder, with records for so many viewers.
    async fn start(context: &Context, name: &str, viewers: usize) -> Result<Self> {
        let (service, keys) = Service::start_guarded(context, name).await?;
        service.open_records(viewers).await?;
        Ok(Self { service, keys })
    }
}

impl Feed for Guarded {
    fn addr(&self) -> SocketAddr {
        self.service.child.addr()
    }

    fn keys(&self) -> &Keys {
        &self.keys
    }

    async fn written(&mut self) -> Result<u64> {
        Ok(self.service.counters().await?.rows)
    }

    async fn until_written(&mut self, rows: u64) -> Result<()> {
        self.service.until_written(rows).await
    }

    async fn until_drained(&mut self) -> Result<()> {
        self.service.until_drained().await
    }
}
