//! API nodes of one cluster whose clocks are an hour apart. Leases go by the store's clock, and so do not know of it
//! (tests/contract/control.rs); timestamps of marks and entries of a slow clock are in tests/contract/cluster_store.rs.

use std::time::Duration;

use fanfold::clock::Clock;
use serde_json::json;

use crate::support::{Reply, Service};

const HOUR: Duration = Duration::from_secs(3600);

async fn edit(node: &Service, id: &str) -> Reply {
    let ask = node.ask("PATCH", &format!("/v1/posts/{id}")).header("if-match", "*");
    ask.json(json!({"data": {"title": "Edited"}})).send().await
}

async fn retract(node: &Service, id: &str) {
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
