//! Edges that random histories seldom reach: a clock that jumps, an inbox that is too long, items that come back, a worker
//! that panics. With `FANFOLD_TEST_MODE=cluster` on a cluster's adapters, but for what these have not.

#[path = "support/in_process.rs"]
mod in_process;
mod support;
#[path = "support/wait.rs"]
mod wait;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::{Chunk, Lane, Mark, Post, PostId, ProducerId, Task, Time};
use fanfold::marks::Target;
use fanfold::parked;
use fanfold::ports::{Path, Queue as _, Store as _};
use fanfold::publish::Edit;
use fanfold::reader::Poll;
use fanfold::relay::{Relay, RelayLimits, RelayParts};
use fanfold::tuning::LaneLimits;
use futures::future::join;
use in_process::samples::post_at;
use in_process::{Home, ITEMS_MAX, RELAY_LIMITS, Stage};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wait::{PATIENCE, eventually};

const NOW: Time = Time::from_millis(1_767_225_600_000);
const SIXTY_DAYS: Duration = Duration::from_secs(60 * 24 * 3600);

/// Runs what is queued to its end.
async fn fan_out(stage: &Stage) {
    stage.fan_out().await.await.expect("done");
}

async fn inbox(stage: &Stage) -> Vec<PostId> {
    let page = stage.service.reader.first_page(&stage.ben, false, 100).await.expect("read");
    page.items.iter().map(|item| item.post.id).collect()
}

#[tokio::test]
async fn a_clock_that_ran_ahead_keeps_no_post_waiting() {
    let mut stage = Stage::new(Clock::manual(NOW)).await;
    stage.clock.set(NOW.after(SIXTY_DAYS));
    stage.publish().await;
    stage.clock.set(NOW);
    let late = stage.publish().await;
    assert_eq!(stage.service.drain().await.len(), 2, "and both tasks are lost");
    for _ in 0..2 {
        assert_eq!(stage.service.relay.pass().await.expect("passed").driven, 2);
        assert_eq!(stage.service.drain().await.len(), 2, "lost again");
    }
    stage.service.relay.pass().await.expect("passed");
    fan_out(&stage).await;
    assert!(inbox(&stage).await.contains(&late));
}

/// Its chunk was given up, and the edit is the first that its viewers get: between row and bump nobody has seen it.
#[tokio::test]
async fn marking_all_marks_no_item_whose_first_version_was_given_up() {
    let stage = Stage::new(Clock::manual(NOW)).await;
    let service = &stage.service;
    let token = service.reader.first_page(&stage.ben, false, 6).await.expect("read").token.expect("given");
    let id = stage.publish().await;
    service.drain().await;
    parked::discard(&service.store, id, 0).await.expect("given up");
    let edit = Edit { kind: Some("u".into()), ..Edit::default() };
    let edited = service.publisher.edit(&ProducerId::local(), id, None, edit).await.expect("edited");
    service.store.write_rows(&edited, std::slice::from_ref(&stage.ben)).await.expect("written");
    let through = Target::Through(token);
    let marked = service.marker.mark_many(stage.ben.clone(), through, Mark::Read, true, None).await.expect("marked");
    assert_eq!((marked.post_ids.len(), inbox(&stage).await), (0, vec![id]));
}

#[tokio::test]
async fn a_token_from_a_clock_that_ran_ahead_matches_nothing() {
    let stage = Stage::new(Clock::manual(NOW)).await;
    let id = stage.publish().await;
    fan_out(&stage).await;
    let reader = &stage.service.reader;
    stage.clock.set(NOW.after(SIXTY_DAYS));
    let page = reader.first_page(&stage.ben, false, 10).await.expect("read");
    assert!(page.items.is_empty(), "its life is over");
    assert_eq!(reader.poll(&stage.ben, page.token).await.expect("polled"), Poll::Unchanged);
    stage.clock.set(NOW);
    assert_eq!(reader.poll(&stage.ben, page.token).await.expect("polled"), Poll::Changed);
    let token = page.token.expect("given");
    assert_eq!(reader.changes(&stage.ben, token).await.expect_err("resync").detail(), "refresh");
    assert_eq!(inbox(&stage).await, [id]);
}

#[tokio::test]
async fn an_item_beyond_what_is_served_cannot_be_marked() {
    let stage = Stage::new(Clock::manual(NOW)).await;
    let mut ids = Vec::new();
    for n in 0..ITEMS_MAX as u64 + 2 {
        stage.clock.set(NOW.after(Duration::from_secs(n)));
        ids.push(stage.publish().await);
        fan_out(&stage).await;
    }
    let page = stage.service.reader.first_page(&stage.ben, false, 100).await.expect("read");
    assert_eq!((page.items.len(), page.truncated), (ITEMS_MAX, true));
    let marker = &stage.service.marker;
    let error = marker.mark(stage.ben.clone(), ids[0], Mark::Read, true, None).await.expect_err("beyond");
    assert_eq!(error.code(), "item_not_found");
    let all = Target::Posts(ids.clone());
    let outcome = marker.mark_many(stage.ben.clone(), all, Mark::Read, true, None).await.expect("marked");
    assert_eq!(outcome.post_ids, ids[2..]);
    let row = stage.service.store.rows(&stage.ben, &ids[..1]).await.expect("read")[0].expect("there");
    assert!(!row.marks.has(Mark::Read), "nothing was written");
}

#[tokio::test]
async fn a_delta_names_what_new_arrivals_pushed_out() {
    let stage = Stage::new(Clock::manual(NOW)).await;
    for n in 0..ITEMS_MAX as u64 {
        stage.clock.set(NOW.after(Duration::from_secs(n)));
        stage.publish().await;
        fan_out(&stage).await;
    }
    let before = inbox(&stage).await;
    let reader = &stage.service.reader;
    let token = reader.first_page(&stage.ben, false, 100).await.expect("read").token.expect("given");
    stage.clock.set(NOW.after(Duration::from_secs(100)));
    let newest = stage.publish().await;
    fan_out(&stage).await;
    let delta = reader.changes(&stage.ben, token).await.expect("a delta").expect("a change");
    assert_eq!(delta.upserted.iter().map(|item| item.post.id).collect::<Vec<_>>(), [newest]);
    assert_eq!(delta.removed, [before[ITEMS_MAX - 1]]);
}

#[tokio::test]
async fn items_that_come_back_from_the_archive_in_bulk_must_be_fetched() {
    let stage = Stage::new(Clock::manual(NOW)).await;
    let id = stage.publish().await;
    fan_out(&stage).await;
    let (reader, marker) = (&stage.service.reader, &stage.service.marker);
    marker.mark(stage.ben.clone(), id, Mark::Archived, true, None).await.expect("marked");
    let token = reader.first_page(&stage.ben, false, 10).await.expect("read").token;
    let outcome = marker.mark_many(stage.ben.clone(), Target::Posts(vec![id]), Mark::Archived, false, token).await;
    assert!(outcome.expect("marked").moved.is_none());
    assert_eq!(reader.poll(&stage.ben, token).await.expect("polled"), Poll::Changed);
    marker.mark(stage.ben.clone(), id, Mark::Archived, true, None).await.expect("marked");
    let token = reader.first_page(&stage.ben, false, 10).await.expect("read").token;
    let outcome = marker.mark(stage.ben.clone(), id, Mark::Archived, false, token).await.expect("marked");
    assert!(outcome.moved.is_some() && outcome.items[0].post.id == id, "one comes with its item");
}

/// A relay that would drive nothing for an hour, but for what it is told.
fn patient_relay(stage: &Stage) -> Relay {
    let hour = Duration::from_secs(3_600);
    let parts = RelayParts {
        store: stage.service.store.for_path(Path::Relay),
        queue: stage.service.queue.clone(),
        revisions: stage.service.revisions.clone(),
        withdrawals: None,
        clock: stage.clock.clone(),
        limits: RelayLimits { redrive_after: hour, redrive_after_max: hour, ..RELAY_LIMITS },
    };
    Relay::new(parts, 0)
}

/// In the embedded queue, in every mode: what RabbitMQ has taken gives way to none.
#[tokio::test]
async fn what_gave_way_to_another_producer_is_driven_again() {
    let stage = Stage::at(Home::embedded(), Clock::manual(NOW)).await;
    let mut relay = patient_relay(&stage);
    // What is met in the first round is driven at once.
    relay.pass().await.expect("passed");
    let mut flood = Vec::new();
    for _ in 0..8 {
        flood.push(stage.publish().await);
    }
    assert_eq!(relay.pass().await.expect("passed").driven, 0, "the lane is full of them");
    let small = stage.publish_as(ProducerId::parse("producer", "shop").expect("valid")).await;
    let held: Vec<PostId> = stage.service.drain().await.iter().map(|task| task.post_id).collect();
    assert_eq!(
        held,
        [vec![flood[0], small], flood[1..7].to_vec()].concat(),
        "the other one's turn, and the newest gone"
    );
    assert_eq!(relay.pass().await.expect("passed").driven, 1);
    let again: Vec<PostId> = stage.service.drain().await.iter().map(|task| task.post_id).collect();
    assert_eq!(again, flood[7..]);
    assert_eq!(relay.pass().await.expect("passed").driven, 0, "once");
}

#[tokio::test]
async fn a_full_line_of_one_producer_keeps_no_other_from_being_driven() {
    // Eight places in a lane, as embedded: on a cluster in two queues of four each, beside the one that all have in common.
    let home = Home::with(|config| (config.rabbitmq.fair_queues, config.fanout.queue_tasks_max) = (8, 8 * 4));
    let mut stage = Stage::at(home.await, Clock::manual(NOW)).await;
    // As if its task had been lost.
    let small = Post { producer: ProducerId::parse("producer", "shop").expect("valid"), ..post_at(NOW, 1) };
    let chunk = Chunk { no: 0, viewers: [stage.ben.clone()].into() };
    stage.service.store.create_post(&small, &[chunk]).await.expect("created");
    for _ in 0..8 + 4 {
        stage.publish().await;
    }
    let pass = stage.service.relay.pass().await.expect("passed");
    assert!(pass.driven == 1 && pass.lane_full, "{pass:?}");
    let held: Vec<PostId> = stage.service.take_waiting(Lane::Small).await.iter().map(|task| task.post_id).collect();
    let place = held.iter().position(|id| *id == small.id);
    assert!(place.is_some(), "{held:?}");
    // On a cluster turns are as long as a whole task, and these are small.
    assert!(support::is_cluster() || place == Some(1), "its turn is the second: {held:?}");
}

/// Panics when a worker of this thread counts the rows it has written: in the middle of its task.
#[derive(Default)]
struct Panicking {
    /// Tasks that have failed.
    failures: AtomicU32,
}

impl Recorder for Panicking {
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        assert!(key.name() != "fanfold_fanout_rows_total", "as planted");
        if key.name() == "fanfold_fanout_failures_total" {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }

    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
}

/// Has a worker, on this thread, take the one task that waits and finish with it.
async fn work(stage: &Stage, done: &str, is_done: impl AsyncFnMut() -> bool) {
    let (fanout, stop) = (&stage.service.fanout, CancellationToken::new());
    let (_tuner, limits) = watch::channel(LaneLimits { tasks: 1 });
    let watched = async {
        eventually(done, is_done).await;
        // What it still has in hand, it finishes.
        stop.cancel();
    };
    let ended = timeout(PATIENCE, join(fanout.work(Lane::Small, limits, stop.clone()), watched)).await;
    ended.expect("it comes to an end");
}

#[tokio::test]
async fn a_task_that_panics_fails_and_is_parked_in_the_end() {
    let stage = Stage::new(Clock::manual(NOW)).await;
    let (store, queue, fanout) = (&stage.service.store, &stage.service.queue, &stage.service.fanout);
    let id = stage.publish().await;
    let task = stage.service.drain().await.remove(0);
    let panicking = Panicking::default();
    let planted = metrics::set_default_local_recorder(&panicking);
    for attempt in 0..fanout.attempts_max {
        assert!(store.parked(id).await.expect("read").is_empty(), "before attempt {attempt}");
        // As the relay drives it again.
        let again = Task { attempt, ..task.clone() };
        assert_eq!(queue.publish(&ProducerId::local(), vec![again]).await.expect("asked"), 1);
        work(&stage, "it fails", async || panicking.failures.load(Ordering::Relaxed) > attempt).await;
        assert_eq!(fanout.board.in_hand(), 0, "after attempt {attempt}");
    }
    drop(planted);
    let parked = store.parked(id).await.expect("read");
    assert_eq!(parked.iter().map(|chunk| chunk.no).collect::<Vec<_>>(), [task.chunk.no]);
    let next = stage.publish().await;
    work(&stage, "the next one is served", async || inbox(&stage).await.contains(&next)).await;
}
