//! Quotas across API nodes, whose Redis is killed and comes back.

use std::time::Instant;

use serde_json::json;

use crate::nodes::Nodes;

/// Posts, or polls, that may come at once.
const BURST: f64 = 10.0;

/// `burst`, and what has been refilled since `began`.
fn at_most(burst: f64, per_s: f64, began: Instant) -> f64 {
    burst + began.elapsed().as_secs_f64() * per_s + 0.001
}

#[tokio::test]
async fn quotas_hold_across_nodes_and_each_has_its_share_without_redis() {
    let Some(mut nodes) = Nodes::start().await else { return };
    nodes.until("fanfold_quota_nodes", 2.0, None).await;
    nodes.until("fanfold_revisions_up", 1.0, None).await;
    let spare = nodes.key("spare").await;
    nodes.until("fanfold_quota_shared", 1.0, Some(&spare)).await;

    // The nodes are counted, and not taken for workers.
    let status = nodes.status().await;
    assert_eq!((&status["api_nodes"], &status["workers"]), (&json!(2), &json!([])), "{status}");

    // Together ten, not ten each; of polls as of posts.
    let (key, began) = (nodes.key("together").await, Instant::now());
    let count = nodes.let_in(&[0, 1], &key, 15).await;
    assert!(count >= BURST && count <= at_most(BURST, 1.0, began), "{count}");
    let polled = Instant::now();
    let polls = (0..30).map(|n| nodes.ask(n % 2, "GET", "/v1/viewers/cleo/revision", &key, None));
    let polls = futures::future::join_all(polls).await;
    let count = polls.iter().filter(|answer| answer.status == 200).count() as f64;
    assert!(count >= BURST && count <= at_most(BURST, 1.0, polled), "{count}");
    for refused in polls.iter().filter(|answer| answer.status != 200) {
        assert_eq!((refused.status, refused.body["field"].as_str()), (429, Some("quota.polls_per_s")), "{refused:?}");
    }

    // Without Redis five each, and a key that had nothing left has not got another burst.
    nodes.redis.kill();
    let lonely = nodes.key("lonely").await;
    for node in [0, 1] {
        let from = Instant::now();
        let count = nodes.let_in(&[node], &lonely, 15).await;
        assert!(count >= BURST / 2.0 && count <= at_most(BURST / 2.0, 0.5, from), "{count} at node {node}");
    }
    nodes.until("fanfold_quota_shared", 0.0, None).await;
    let more = nodes.let_in(&[0, 1], &key, 15).await;
    assert!(more + BURST <= at_most(BURST, 1.0, began), "{more} more");

    // And with Redis together again.
    nodes.redis.revive().await;
    nodes.until("fanfold_quota_shared", 1.0, Some(&spare)).await;
    let (key, began) = (nodes.key("again").await, Instant::now());
    let count = nodes.let_in(&[0, 1], &key, 15).await;
    assert!(count >= BURST && count <= at_most(BURST, 1.0, began), "{count}");
}
