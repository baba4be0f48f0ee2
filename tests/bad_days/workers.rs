//! Workers that are told to stop with tasks in hand. No relay runs here: what comes again, the broker brings.

use rustix::process::Signal;

use crate::stage::Stage;
use crate::wait::{eventually, until};

/// Chunks of the post.
const CHUNKS: u64 = 20;

/// Stops a worker that has tasks in hand and more at hand, and gives it `grace_s` seconds; what it has said, and how many
/// chunks were done then.
async fn stopped_in_the_middle(grace_s: &str) -> Option<(Stage, String, String, u64)> {
    let settings = [
        ("FANFOLD_FANOUT__CHUNK_SIZE", "1"),
        ("FANFOLD_RABBITMQ__PREFETCH", "8"),
        ("FANFOLD_HTTP__SHUTDOWN_GRACE_S", grace_s),
    ];
    let mut stage = Stage::start(&settings).await?;
    let post = stage.publish(CHUNKS as usize).await;
    // It stands still with its third task, the others in hand somewhere before their end.
    let worker = stage.worker(Some("fanout.bulk=stop@3"));
    eventually("the worker has tasks in hand", async || worker.is_stopped()).await;
    worker.signal(Signal::TERM);
    worker.signal(Signal::CONT);
    let told = worker.ends().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.err.contains("stopped; what was not finished is done elsewhere"), "{told:?}");
    let done = stage.written(&post).await;
    Some((stage, post, told.err, done))
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_what_it_has_in_hand() {
    let Some((mut stage, post, said, done)) = stopped_in_the_middle("20").await else { return };
    assert!(!said.contains("still in hand"), "{said}");
    assert!((3..CHUNKS).contains(&done), "{done} chunks: those in hand, and not all");
    // Given back at once, and nothing of it that was done: so the broker has been told what was.
    let seen = std::cell::Cell::new(0);
    let rest = until("the rest waits", std::time::Duration::from_secs(20), async || {
        seen.set(stage.waiting("bulk").await);
        seen.get() == CHUNKS - done
    });
    assert!(rest.await.is_ok(), "{} wait, {done} done: {said}", seen.get());
    let _other = stage.worker(None);
    stage.served(&post, CHUNKS).await;
}

#[tokio::test]
async fn what_is_not_finished_in_time_comes_again_elsewhere() {
    let Some((mut stage, post, said, done)) = stopped_in_the_middle("0").await else { return };
    assert!(said.contains("fan-out tasks were still in hand when the time to stop was up"), "{said}");
    eventually("the rest waits", async || stage.waiting("bulk").await >= CHUNKS - done).await;
    let _other = stage.worker(None);
    stage.served(&post, CHUNKS).await;
}
