//! Waiting for what others do: the one loop that looks, pauses and looks again.

use std::time::{Duration, Instant};

use crate::measure::Result;

/// Looks once every `period` until `look` has nothing to complain of. What it still complains of when `limit` is over
/// becomes the error.
pub async fn until(
    period: Duration,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<String>>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while let Some(complaint) = look().await? {
        if Instant::now() > deadline {
            return Err(complaint.into());
        }
        tokio::time::sleep(period).await;
    }
    Ok(())
}
