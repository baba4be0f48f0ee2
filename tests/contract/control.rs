//! What any place to agree on must do.

use std::time::Duration;

use fanfold::domain::{Knob, Time, Tuning, WorkerReport};
use fanfold::ports::Control;

use crate::wait::eventually;

/// Makes a test of each function below; `$open` gives `Some` of an object with a field `store`, or `None`.
#[macro_export]
macro_rules! control_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            #[tokio::test]
            async fn what_is_tuned_replaces_the_version_before_it() {
                let Some(opened) = $open.await else { return };
                $crate::control::what_is_tuned_replaces_the_version_before_it(&opened.store).await;
            }

            #[tokio::test]
            async fn workers_are_shown_as_they_last_told() {
                let Some(opened) = $open.await else { return };
                $crate::control::workers_are_shown_as_they_last_told(&opened.store).await;
            }
        }
    };
}

pub async fn what_is_tuned_replaces_the_version_before_it(store: &impl Control) {
    let before = store.tuning().await.expect("read");
    let change = |version, prefetch| Tuning {
        version,
        paused: true,
        by: "ana".into(),
        at: Time::from_millis(5),
        ..Tuning::default().with(Knob::Prefetch, Some(prefetch))
    };
    let first = change(before.version + 1, 7);
    assert!(store.set_tuning(&first).await.expect("set"));
    assert!(!store.set_tuning(&change(before.version + 1, 8)).await.expect("refused"), "somebody else was first");
    assert_eq!(store.tuning().await.expect("read"), first);
    let second = Tuning { paused: false, ..change(before.version + 2, 9).with(Knob::Prefetch, None) };
    assert!(store.set_tuning(&second).await.expect("set"));
    assert_eq!(store.tuning().await.expect("read"), second);
}

pub async fn workers_are_shown_as_they_last_told(store: &impl Control) {
    let id = rand::random();
    let report = |in_hand| WorkerReport {
        id,
        role: "fanout".into(),
        name: "host:1".into(),
        started_at: Time::from_millis(1),
        at: Time::from_millis(2),
        tuning: 3,
        in_hand,
        tasks: vec!["p/0".into()],
        rows: 5,
        rows_per_s: 6,
    };
    store.report(&report(1)).await.expect("told");
    store.report(&report(2)).await.expect("told");
    let mut mine = store.reports().await.expect("read");
    mine.retain(|known| known.id == id);
    assert_eq!(mine, [report(2)]);
}

/// Only where there is more than one process.
pub async fn a_lease_has_one_holder(store: &impl Control) {
    let (name, ttl) = (format!("test-{:x}", rand::random::<u64>()), Duration::from_secs(30));
    let (ana, ben) = (rand::random(), rand::random());
    assert!(store.lease(&name, ana, ttl).await.expect("asked"));
    assert!(store.lease(&name, ana, ttl).await.expect("renewed"));
    assert!(!store.lease(&name, ben, ttl).await.expect("asked"));
    store.release(&name, ben).await.expect("not his: nothing happens");
    assert!(!store.lease(&name, ben, ttl).await.expect("asked"));
    store.release(&name, ana).await.expect("given back");
    assert!(store.lease(&name, ben, Duration::from_secs(1)).await.expect("asked"));
    // It ends by itself, by the store's clock: asked for until it does.
    eventually("the lease ends", async || store.lease(&name, ana, ttl).await.expect("asked")).await;
}
