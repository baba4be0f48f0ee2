//! The trace of the request in hand, carried along so that tasks can take it with them through the queue.

use tracing::Instrument as _;

use crate::domain::TraceId;

tokio::task_local! {
    static CURRENT: Option<TraceId>;
}

/// The trace of the request in hand.
pub fn current() -> Option<TraceId> {
    CURRENT.try_with(|trace| *trace).ok().flatten()
}

/// Runs `work` as part of `trace`.
pub async fn within<T>(trace: Option<TraceId>, work: impl Future<Output = T>) -> T {
    CURRENT.scope(trace, work).await
}

/// `work` for another task, still part of the request in hand.
pub fn carry<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    within(current(), work.in_current_span())
}
