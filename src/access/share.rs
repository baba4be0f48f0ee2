//! When the count of quotas cannot be asked: for how long nobody asks, and which share of the quotas is this node's.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::gauge;
use tracing::{debug, info, warn};

use crate::adapters::Store;
use crate::error::Error;
use crate::ports::{Control as _, Path};
use crate::tuning::API;

/// Between looks at how many API nodes there are. The store shows one that has died for some seconds more.
const COUNT_EVERY: Duration = Duration::from_secs(3);

/// What is known of the count that all nodes share, and of the nodes.
#[derive(Debug)]
pub(super) struct Share {
    pause: Duration,
    began: Instant,
    /// When the count may be asked again, in microseconds after `began`; 0 while it answers.
    resume_us: AtomicU64,
    nodes: AtomicU32,
}

impl Share {
    /// After a failure nobody asks for `pause`.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, began: Instant::now(), resume_us: AtomicU64::new(0), nodes: AtomicU32::new(1) }
    }

    /// Whether to ask the count. After a failure one call tries when the pause is over, and the others do not wait for it:
    /// however long a server hangs, no more than that one hangs with it.
    pub(super) fn may_ask(&self) -> bool {
        let resume = self.resume_us.load(Ordering::Acquire);
        if resume == 0 {
            return true;
        }
        let now = self.now_us();
        now >= resume
            && self
                .resume_us
                .compare_exchange(resume, self.after_pause(now), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }

    /// The count has answered.
    pub(super) fn works(&self) {
        if self.resume_us.load(Ordering::Acquire) != 0 && self.resume_us.swap(0, Ordering::AcqRel) != 0 {
            gauge!("fanfold_quota_shared").set(1.0);
            info!("quotas are counted for all nodes again");
        }
    }

    /// The count has not answered.
    pub(super) fn failed(&self, error: &Error) {
        let resume = self.after_pause(self.now_us());
        if self.resume_us.swap(resume, Ordering::AcqRel) == 0 {
            gauge!("fanfold_quota_shared").set(0.0);
            warn!(%error, nodes = self.nodes(), "quotas cannot be counted for all nodes; this one goes by its share");
        }
    }

    /// Whether the last answer was one.
    pub(super) fn is_shared(&self) -> bool {
        self.resume_us.load(Ordering::Acquire) == 0
    }

    /// How many nodes share the quotas: at least this one.
    pub(super) fn nodes(&self) -> u32 {
        self.nodes.load(Ordering::Relaxed).max(1)
    }

    /// Counts the nodes for ever, by what they tell of themselves. While the store cannot be asked the last number holds.
    pub(super) async fn count_nodes(&self, store: &Store) {
        let store = store.for_path(Path::System);
        gauge!("fanfold_quota_shared").set(f64::from(u8::from(self.is_shared())));
        loop {
            match store.reports().await {
                Ok(reports) => {
                    let nodes = reports.iter().filter(|report| report.role == API).count();
                    self.nodes.store(u32::try_from(nodes).unwrap_or(u32::MAX), Ordering::Relaxed);
                    gauge!("fanfold_quota_nodes").set(f64::from(self.nodes()));
                }
                Err(error) => debug!(%error, nodes = self.nodes(), "the API nodes cannot be counted"),
            }
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }

    /// Counted from 1: 0 says that the count answers.
    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn after_pause(&self, now: u64) -> u64 {
        now.saturating_add(u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_one_asks_when_the_pause_is_over() {
        let error = Error::unavailable("revisions_unavailable", "away");
        let long = Share::new(Duration::from_secs(3_600));
        assert!(long.may_ask() && long.may_ask() && long.is_shared());
        long.failed(&error);
        assert!(!long.may_ask() && !long.is_shared());
        long.works();
        assert!(long.may_ask() && long.is_shared());

        let none = Share::new(Duration::ZERO);
        none.failed(&error);
        assert!(none.may_ask(), "the pause is over");
        assert!(!none.is_shared(), "until it answers");
    }

    #[test]
    fn only_one_tries() {
        let share = Share::new(Duration::from_secs(3_600));
        share.failed(&Error::unavailable("revisions_unavailable", "away"));
        // As if the pause was over.
        share.resume_us.store(1, Ordering::Release);
        let tried = (0..10).filter(|_| share.may_ask()).count();
        assert_eq!(tried, 1);
    }

    #[test]
    fn a_node_that_knows_of_none_is_one() {
        let share = Share::new(Duration::ZERO);
        assert_eq!(share.nodes(), 1);
        share.nodes.store(0, Ordering::Relaxed);
        assert_eq!(share.nodes(), 1);
    }
}
