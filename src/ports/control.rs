//! Control: what the processes of one service agree on besides the truth itself: who does what, and how fast.

use std::future::Future;
use std::time::Duration;

use crate::domain::{Tuning, WorkerReport};
use crate::error::Result;

/// Leases, the fan-out's tuning, and what processes tell of themselves. Losing any of it loses no post.
pub trait Control {
    /// Takes the lease `name`, or renews it; `false` if somebody else holds it. It ends after `ttl` unless renewed, by
    /// the store's clock: count from before the call. Two holders at once are rare, and must do no harm.
    fn lease(&self, name: &str, owner: u128, ttl: Duration) -> impl Future<Output = Result<bool>> + Send;

    /// Gives a lease back, if `owner` holds it.
    fn release(&self, name: &str, owner: u128) -> impl Future<Output = Result<()>> + Send;

    /// How the fan-out is tuned now; the default before the first change.
    fn tuning(&self) -> impl Future<Output = Result<Tuning>> + Send;

    /// Replaces the tuning if it is still at version `tuning.version - 1`.
    fn set_tuning(&self, tuning: &Tuning) -> impl Future<Output = Result<bool>> + Send;

    /// Tells what this process does. Forgotten after some seconds.
    fn report(&self, report: &WorkerReport) -> impl Future<Output = Result<()>> + Send;

    /// What the processes told lately.
    fn reports(&self) -> impl Future<Output = Result<Vec<WorkerReport>>> + Send;
}
