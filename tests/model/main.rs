//! Random histories against a simple model: whatever happens in whatever order, equal tokens mean nothing changed,
//! deltas and pages are exact, marks skip nothing, counts agree with rows. With `FANFOLD_TEST_MODE=cluster` on a cluster's
//! adapters, and fewer of them: an operation takes some milliseconds there.

mod client;
#[path = "../support/in_process.rs"]
mod in_process;
mod model;
mod ops;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wait.rs"]
mod wait;
mod world;

use std::cell::Cell;

use fanfold::clock::Clock;
use fanfold::domain::Lane;
use fanfold::ports::Queue as _;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use in_process::Stage;
use ops::Op;
use world::World;

/// How many histories there are, and how often one that fails is made simpler.
struct Cases {
    histories: u32,
    shrinks: u32,
}

impl Cases {
    fn new(embedded: u32, on_cluster: u32) -> Self {
        if support::is_cluster() {
            Self { histories: on_cluster, shrinks: 50 }
        } else {
            Self { histories: embedded, shrinks: 2_000 }
        }
    }
}

fn check(cases: Cases, ops: impl Strategy<Value = Vec<Op>>) {
    let Cases { histories: cases, shrinks: max_shrink_iters } = cases;
    let config = Config { cases, max_shrink_iters, failure_persistence: None, ..Config::default() };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let place = Cell::new(None);
    let outcome = TestRunner::new(config).run(&ops, |ops| {
        runtime.block_on(async {
            let mut world = World::new(place.take()).await;
            let outcome = world.live_through(&ops).await;
            place.set(world.leave());
            outcome
        })
    });
    // What it holds goes while there is a runtime.
    runtime.block_on(async { drop(place.take()) });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn any_history_keeps_the_promises() {
    check(Cases::new(96, 16), prop::collection::vec(ops::any_op(), 1..80));
}

#[test]
fn histories_of_changes_to_few_posts_keep_the_promises() {
    check(Cases::new(64, 12), prop::collection::vec(ops::busy_op(), 20..120));
}

/// What no history has: a client that goes away while its post is being committed.
#[tokio::test]
async fn a_publish_that_nobody_waits_for_any_more_is_queued_all_the_same() {
    let stage = Stage::new(Clock::system()).await;
    let mut publishing = Box::pin(stage.publish());
    assert!(futures::poll!(publishing.as_mut()).is_pending());
    drop(publishing);
    let queued = async || stage.service.queue.depth(Lane::Small).await.expect("asked") == 1;
    wait::eventually("its task is queued", queued).await;
}
