//! Edges that random histories seldom reach: a clock that jumps, an inbox that is too long, items that come back.

#[path = "support/in_process.rs"]
mod in_process;

use std::time::Duration;

use fanfold::adapters::Revisions;
use fanfold::clock::Clock;
use fanfold::domain::{Mark, PostId, ProducerId, Time};
use fanfold::marks::Target;
use fanfold::ports::{Path, Store as _};
use fanfold::reader::Poll;
use fanfold::relay::{Relay, RelayLimits, RelayParts};
use in_process::{ITEMS_MAX, RELAY_LIMITS, Stage};

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
        revisions: Revisions::Embedded(stage.service.revisions.clone()),
        withdrawals: None,
        clock: stage.clock.clone(),
        limits: RelayLimits { redrive_after: hour, redrive_after_max: hour, ..RELAY_LIMITS },
    };
    Relay::new(parts, 0)
}

#[tokio::test]
async fn what_gave_way_to_another_producer_is_driven_again() {
    let stage = Stage::new(Clock::manual(NOW)).await;
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
    let mut stage = Stage::new(Clock::manual(NOW)).await;
    let shop = ProducerId::parse("producer", "shop").expect("valid");
    let small = stage.publish_as(shop.clone()).await;
    assert_eq!(stage.service.drain().await.len(), 1, "and it is lost");
    for _ in 0..8 {
        stage.publish().await;
    }
    let pass = stage.service.relay.pass().await.expect("passed");
    assert!(pass.driven == 1 && pass.lane_full, "{pass:?}");
    assert_eq!(stage.service.drain().await[1].post_id, small);
}
