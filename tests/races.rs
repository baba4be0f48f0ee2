//! Two things at once, many times over: what one of them must never miss of the other. With `FANFOLD_TEST_MODE=cluster` on a
//! cluster's adapters.

#[path = "support/in_process.rs"]
mod in_process;
mod support;
#[path = "support/wait.rs"]
mod wait;

use fanfold::clock::Clock;
use fanfold::domain::{Mark, ProducerId};
use fanfold::marks::Target;
use fanfold::reader::Poll;
use in_process::Stage;

/// How often. On a cluster a round takes dozens of answers of servers.
fn rounds() -> std::ops::Range<usize> {
    0..if support::is_cluster() { 100 } else { 400 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_read_beside_a_fan_out_is_never_older_than_its_token() {
    let stage = Stage::new(Clock::system()).await;
    let reader = &stage.service.reader;
    for _ in rounds() {
        let id = stage.publish().await;
        let fan_out = stage.fan_out().await;
        // Page after page until the fan-out is over: one of them straddles the bump.
        let mut pages = Vec::new();
        while !fan_out.is_finished() {
            let page = reader.first_page(&stage.ben, false, 6).await.expect("read");
            pages.push((page.token, page.items.iter().any(|item| item.post.id == id)));
        }
        fan_out.await.expect("done");
        for (token, has_it) in pages {
            if reader.poll(&stage.ben, token).await.expect("polled") == Poll::Unchanged {
                assert!(has_it, "unchanged, but the page lacks {id}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_read_beside_a_fan_out_loses_nothing() {
    let stage = Stage::new(Clock::system()).await;
    let reader = &stage.service.reader;
    let mut token = reader.first_page(&stage.ben, false, 6).await.expect("read").token.expect("given");
    for _ in rounds() {
        let id = stage.publish().await;
        let fan_out = stage.fan_out().await;
        let mut found = false;
        for fan_out in [None, Some(fan_out)] {
            if let Some(fan_out) = fan_out {
                fan_out.await.expect("done");
            }
            if let Some(delta) = reader.changes(&stage.ben, token).await.expect("a delta") {
                found |= delta.upserted.iter().any(|item| item.post.id == id);
                token = delta.token;
            }
        }
        assert!(found, "no delta brought {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marking_all_beside_a_fan_out_marks_nothing_unread() {
    let stage = Stage::new(Clock::system()).await;
    let (reader, marker) = (&stage.service.reader, &stage.service.marker);
    for _ in rounds() {
        let token = reader.first_page(&stage.ben, false, 6).await.expect("read").token.expect("given");
        let id = stage.publish().await;
        let fan_out = stage.fan_out().await;
        let through = Target::Through(token);
        let marked = marker.mark_many(stage.ben.clone(), through, Mark::Read, true, Some(token)).await.expect("marked");
        assert!(!marked.post_ids.contains(&id), "{id} came after the token");
        fan_out.await.expect("done");
        if let Some((_, next)) = marked.moved
            && reader.poll(&stage.ben, Some(next)).await.expect("polled") == Poll::Unchanged
        {
            panic!("the token of a mark skips {id}, which its client has not read");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retract_beside_its_own_fan_out_stays_hidden() {
    let stage = Stage::new(Clock::system()).await;
    let reader = &stage.service.reader;
    for _ in rounds() {
        let id = stage.publish().await;
        let fan_out = stage.fan_out().await;
        let shown = |page: &fanfold::reader::Page| page.items.iter().any(|item| item.post.id == id);
        stage.service.publisher.retract(&ProducerId::local(), id, None).await.expect("retracted");
        let page = reader.first_page(&stage.ben, false, 6).await.expect("read");
        assert!(!shown(&page), "{id} is shown after its retract");
        fan_out.await.expect("done");
        let page = reader.first_page(&stage.ben, false, 6).await.expect("read");
        assert!(!shown(&page), "{id} is shown again");
        stage.fan_out().await.await.expect("done");
    }
}
