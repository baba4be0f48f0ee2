//! The embedded adapters under the suites.

use std::path::Path;
use std::time::Duration;

use fanfold::adapters::embedded::{
    EmbeddedQueue, EmbeddedQuotas, EmbeddedRevisions, EmbeddedStore, QuotaLimits, RevisionLimits,
};
use fanfold::clock::Clock;
use fanfold::domain::{Fence, Time};
use tempfile::TempDir;

use crate::START;
use crate::samples::open_store;

/// A store in a folder of its own, with the clock it goes by.
pub struct OpenStore {
    pub store: EmbeddedStore,
    pub clock: Clock,
    dir: TempDir,
}

impl OpenStore {
    pub async fn new() -> Self {
        Self::at(START).await
    }

    /// A new one, whose clock stands at `now`.
    pub async fn at(now: Time) -> Self {
        Self::open(tempfile::tempdir().expect("a temporary folder"), now).await
    }

    /// The one in `dir`.
    pub async fn open(dir: TempDir, now: Time) -> Self {
        let clock = Clock::manual(now);
        Self { store: open(&dir, &clock), clock, dir }
    }

    /// Closes the store and leaves its folder.
    #[cfg(feature = "faults")]
    pub fn close(self) -> TempDir {
        self.dir
    }

    /// The data folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Closes the store and opens it again, as a restart does.
    pub async fn reopen(self) -> Self {
        let Self { store, clock, dir } = self;
        drop(store);
        Self { store: open(&dir, &clock), clock, dir }
    }
}

fn open(dir: &TempDir, clock: &Clock) -> EmbeddedStore {
    open_store(dir.path(), clock, Duration::from_secs(30 * 24 * 3600))
}

pub async fn queue(tasks_max: usize) -> Option<((), EmbeddedQueue)> {
    Some(((), EmbeddedQueue::new(tasks_max)))
}

pub async fn revisions(records_max: usize) -> Option<(EmbeddedRevisions, ())> {
    let fence = Fence { seq: 1, nonce: rand::random() };
    Some((EmbeddedRevisions::new(fence, RevisionLimits { records_max, waiters_max: 100 }), ()))
}

pub async fn quotas() -> Option<(EmbeddedQuotas, ())> {
    Some((EmbeddedQuotas::new(QuotaLimits { keys_max: 1_000, viewers_max: 1_000 }), ()))
}

crate::store_suite!(store, async { Some(super::OpenStore::new().await) });
crate::keys_suite!(keys, async { Some(super::OpenStore::new().await) });
crate::queue_suite!(queue_suite, super::queue);
crate::revisions_suite!(revisions_suite, super::revisions(1_000));
crate::quotas_suite!(quotas_suite, super::quotas());

#[tokio::test]
async fn what_was_written_survives_a_restart() {
    use fanfold::domain::{Audience, Done};
    use fanfold::ports::Store as _;

    let opened = OpenStore::new().await;
    let audience = Audience::parse("viewers", &["a", "b", "c"], 10).expect("valid");
    let post = crate::post_at(START, 3);
    opened.store.create_post(&post, &audience.chunks(2)).await.expect("created");
    opened.store.write_rows(&post, audience.viewers()).await.expect("written");
    opened.store.chunk_done(post.id, 0, Done { version: 1, fence: 1 }, true).await.expect("recorded");
    let first = opened.store.register_fence(7, "x", None).await.expect("registered");
    let opened = opened.reopen().await;
    assert_eq!(opened.store.post(post.id).await.expect("read"), Some(post.clone()));
    let window = opened.store.window(&audience.viewers()[2], 10).await.expect("read");
    assert_eq!(window.rows.iter().map(|row| row.post_id).collect::<Vec<_>>(), [post.id]);
    assert!(opened.store.chunk_states(post.id, 0..2).await.expect("read")[0].is_done(1, 1));
    let pending = opened.store.pending(0, None, 10).await.expect("read").entries;
    assert_eq!(pending.iter().map(|entry| entry.post_id).collect::<Vec<_>>(), [post.id]);
    assert_eq!(opened.store.newest_fence().await.expect("read"), Some((first, "x".into())));
}

#[tokio::test]
async fn a_clock_set_back_over_a_restart_keeps_pending_entries_in_order() {
    use fanfold::ports::Store as _;

    let opened = OpenStore::new().await;
    let early = crate::post_at(START, 1);
    let chunk = |n: &str| fanfold::domain::Audience::parse("viewers", &[n], 10).expect("valid").chunks(2);
    opened.store.create_post(&early, &chunk("a")).await.expect("created");
    let opened = opened.reopen().await;
    opened.clock.set(START.before(Duration::from_secs(3600)));
    let late = crate::post_at(START, 1);
    opened.store.create_post(&late, &chunk("b")).await.expect("created");
    let pending = opened.store.pending(0, None, 10).await.expect("read").entries;
    assert_eq!(pending.iter().map(|entry| entry.post_id).collect::<Vec<_>>(), [early.id, late.id]);
}
