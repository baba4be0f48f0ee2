//! A whole deployment: an API node with access control, a fan-out worker and a relay, each in a process of its own.

use std::net::SocketAddr;
use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::service::Backends;
use fanfold::service::console::Console;

use crate::child::Child;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::fairness_phases::Feed;
use crate::keys::Keys;
use crate::measure::Result;
use crate::source::open_records;
use crate::wait::until;
use crate::workers::{WRITTEN, metric};

/// How often to look whether all rows are written: seldom enough that looking costs nothing.
const LOOK: Duration = Duration::from_millis(20);
/// The same for whether nothing is left to be done, which is more to look at; nothing is measured meanwhile.
const LOOK_AROUND: Duration = Duration::from_millis(200);
/// Longest wait for either. The relay brings what found its lane full, in its own time.
const CATCH_UP: Duration = Duration::from_secs(180);

/// A cluster with its processes. They are killed when it is dropped.
#[derive(Debug)]
pub struct Deployment {
    api: Child,
    worker: Child,
    relay: Child,
    console: Console,
    keys: Keys,
}

impl Deployment {
    /// Starts one in `cluster`, which has a keyspace and no processes, with records for the first `viewers`. Log files
    /// begin with `name`.
    pub async fn start(context: &Context, name: &str, cluster: &Cluster, viewers: usize) -> Result<Self> {
        let keys = Keys::make(&cluster.config).await?;
        let backends = Backends::open(&cluster.config, &Clock::system()).await?;
        open_records(&backends.revisions, viewers).await?;
        let log = |process: &str| context.log(&format!("{name}-{process}"));
        let guarded = [("FANFOLD_ACCESS__MODE", "on")];
        Ok(Self {
            api: Child::start_with(&["api", &cluster.name], &log("api")?, &guarded).await?,
            worker: Child::start(&["worker", &cluster.name], &log("worker")?).await?,
            relay: Child::start(&["relay", &cluster.name], &log("relay")?).await?,
            console: Console::connect(&cluster.config).await?,
            keys,
        })
    }

    /// Ends all of it in order.
    pub async fn stop(self) -> Result<()> {
        for child in [self.api, self.worker, self.relay] {
            child.stop().await?;
        }
        Ok(())
    }
}

impl Feed for Deployment {
    fn addr(&self) -> SocketAddr {
        self.api.addr()
    }

    fn keys(&self) -> &Keys {
        &self.keys
    }

    async fn written(&mut self) -> Result<u64> {
        metric(self.worker.addr(), WRITTEN).await
    }

    async fn until_written(&mut self, rows: u64) -> Result<()> {
        until(LOOK, CATCH_UP, async || {
            let written = metric(self.worker.addr(), WRITTEN).await?;
            Ok((written < rows).then(|| format!("{written} of {rows} rows are written after {CATCH_UP:?}")))
        })
        .await
    }

    /// Until no task is queued and the relay has met every post complete: where tasks came twice, and their rows counted
    /// twice, some of the last ones may still be in the worker's hands.
    async fn until_drained(&mut self) -> Result<()> {
        until(LOOK_AROUND, CATCH_UP, async || {
            let status = self.console.status().await?;
            let (lag, depths) = (status.lag, status.depths);
            let drained = lag.is_zero() && depths.iter().all(|depth| *depth == Some(0));
            Ok((!drained).then(|| format!("{depths:?} tasks wait, the oldest post for {lag:?}, after {CATCH_UP:?}")))
        })
        .await
    }
}
