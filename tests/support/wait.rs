//! Waiting for what comes by itself: the one loop of the tests that looks, pauses and looks again.

#![allow(dead_code, reason = "each test program uses its part")]

use std::time::{Duration, Instant};

/// How long anything may take. Plenty, for a busy machine: a test that passes waits no longer than it has to.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// What each look gets, however late it begins: one that hangs must not hang the test, and the last one must not fail for
/// want of time only.
const LOOK: Duration = Duration::from_secs(5);

/// Waits until a condition holds; panics if it does not within [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    until(what, PATIENCE, condition).await.unwrap_or_else(|late| panic!("{late}"));
}

/// Waits until there is something, and gives it; panics if there is nothing within [`PATIENCE`].
pub async fn eventually_some<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    some_within(what, PATIENCE, look).await.unwrap_or_else(|late| panic!("{late}"))
}

/// Waits until a condition holds, for so long at most. For those who have more to say, or to do, if it does not: `Err`
/// tells what was awaited, and how long.
pub async fn until(what: &str, patience: Duration, mut condition: impl AsyncFnMut() -> bool) -> Result<(), String> {
    some_within(what, patience, async || condition().await.then_some(())).await
}

/// Looks once at least, also where there is no time left.
async fn some_within<T>(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T, String> {
    let began = Instant::now();
    loop {
        let left = patience.saturating_sub(began.elapsed());
        if let Ok(Some(found)) = tokio::time::timeout(left.max(LOOK), look()).await {
            return Ok(found);
        }
        let waited = began.elapsed();
        if waited >= patience {
            return Err(format!("not within {waited:.1?}: {what}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
