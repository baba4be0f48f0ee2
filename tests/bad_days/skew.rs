//! Processes of one cluster whose clocks are an hour apart. Leases go by the store's clock, and so do not know of it
//! (tests/contract/control.rs); timestamps of marks and entries of a slow clock are in tests/contract/cluster_store.rs, how
//! soon a retract is invisible in withdrawn.rs.

use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::{Chunk, Post, ViewerId};
use fanfold::ports::Store as _;
use fanfold::service::console;
use fanfold::service::worker::Role;
use serde_json::json;

use crate::pending;
use crate::samples::post_at;
use crate::support::{Reply, Service};
use crate::wait::eventually;

pub const HOUR: Duration = Duration::from_secs(3600);

async fn edit(node: &Service, id: &str) -> Reply {
    let ask = node.ask("PATCH", &format!("/v1/posts/{id}")).header("if-match", "*");
    ask.json(json!({"data": {"title": "Edited"}})).send().await
}

pub async fn retract(node: &Service, id: &str) {
    let reply = node.ask("DELETE", &format!("/v1/posts/{id}")).send().await;
    assert_eq!((reply.status, reply.json()["state"].as_str()), (202, Some("retracted")), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_retracted_stays_so_whatever_the_clocks_say() {
    let Some(service) = Service::on_cluster(|_| {}).await else { return };
    let now = Clock::system().now();
    let slow = service.beside(Clock::manual(now.before(HOUR))).await;
    let fast = service.beside(Clock::manual(now.after(HOUR))).await;
    for (case, editor, retractor) in [("edited ahead", &fast, &slow), ("retracted ahead", &slow, &fast)] {
        let first = service.publish("Retracted, then edited", &["ben"]).await;
        retract(retractor, &first).await;
        let reply = edit(editor, &first).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (409, Some("post_retracted")), "{case}: {reply:?}");

        let second = service.publish("Edited, then retracted", &["ben"]).await;
        let reply = edit(editor, &second).await;
        assert_eq!(reply.status, 202, "{case}: {reply:?}");
        retract(retractor, &second).await;

        let third = service.publish("Both at once", &["ben"]).await;
        let (edited, ()) = tokio::join!(edit(editor, &third), retract(retractor, &third));
        assert!([202, 409].contains(&edited.status), "{case}: {edited:?}");

        for id in [first, second, third] {
            service.fanned_out(&id).await;
            for node in [&service, &slow, &fast] {
                let post = node.get(&format!("/v1/posts/{id}")).await;
                assert_eq!(post.json()["state"], "retracted", "{case}");
            }
        }
        for node in [&service, &slow, &fast] {
            let page = node.get("/v1/viewers/ben/inbox").await;
            assert_eq!((page.status, page.titles("items").len()), (200, 0), "{case}: {page:?}");
            assert_eq!(page.json()["unseen_count"]["value"], 0, "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_two_edits_wins_whatever_the_clocks_say() {
    let Some(service) = Service::on_cluster(|_| {}).await else { return };
    let now = Clock::system().now();
    let slow = service.beside(Clock::manual(now.before(HOUR))).await;
    let fast = service.beside(Clock::manual(now.after(HOUR))).await;
    let id = service.publish("Dawn", &["ben"]).await;
    for (node, title) in [(&fast, "by the fast one"), (&slow, "by the slow one"), (&fast, "by the fast one again")] {
        let ask = node.ask("PATCH", &format!("/v1/posts/{id}")).header("if-match", "*");
        let reply = ask.json(json!({"data": {"title": title}})).send().await;
        assert_eq!(reply.status, 202, "{reply:?}");
        service.fanned_out(&id).await;
        for reader in [&service, &slow, &fast] {
            assert_eq!(reader.get("/v1/viewers/ben/inbox").await.titles("items"), [title]);
        }
    }
}

/// A post that was accepted, and whose task was lost: only a relay brings it to its viewer.
pub async fn without_its_task(service: &Service, clock: &Clock) -> Post {
    let post = post_at(clock.now(), 1);
    let viewers = [ViewerId::parse("viewer", "ben").expect("valid")].into();
    service.running.backends.store.create_post(&post, &[Chunk { no: 0, viewers }]).await.expect("created");
    post
}

/// Such posts are driven, one after the other, each when no shard has anything left: what was looked at and found empty is
/// looked at again.
async fn drives(service: &Service, case: &str) {
    for n in 0..3 {
        let post = without_its_task(service, &Clock::system()).await;
        let store = &service.running.backends.store;
        let is_settled = async || pending(store).await.iter().flatten().all(|entry| entry.post_id != post.id);
        eventually(&format!("{case}: post {n} is driven and settled"), is_settled).await;
        service.fanned_out(&post.id.to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_clock_is_off_drives_what_the_others_write_and_so_does_the_next_one() {
    let Some(mut service) = Service::on_cluster(|config| config.relay.redrive_after_ms = 100).await else { return };
    service.stop_workers().await;
    let now = Clock::system().now();
    let fanout = service.worker(Role::Fanout, Clock::system()).await;
    for (case, clock) in [("ahead", now.after(HOUR)), ("behind", now.before(HOUR))] {
        let relay = service.worker(Role::Relay, Clock::manual(clock)).await;
        drives(&service, case).await;
        let told = console::inspect(service.config()).await;
        let warned = |part: &str| told.iter().any(|f| f.part == "workers" && f.what.contains(part));
        assert!(warned("(relay) is") && warned(case), "doctor says whose clock is wrong: {told:?}");
        relay.shutdown().await;
    }
    // Who comes next begins where those have come to; and so do an API node that is ahead, and what it leaves behind.
    let fast = service.beside(Clock::manual(now.after(HOUR))).await;
    let relay = service.worker(Role::Relay, Clock::system()).await;
    drives(&service, "afterwards").await;
    drives(&fast, "written by a node that is ahead").await;
    relay.shutdown().await;
    fanout.shutdown().await;
}
