//! `fanfold replay` through the processes of a cluster: everybody of a small graph posts, and every inbox is right.

use std::fmt::Write as _;

use serde_json::json;

use crate::cluster::{API, Cluster, FANOUT, RELAY, fanout_workers};
use crate::wait::eventually;

const PEOPLE: usize = 60;
/// Everybody's friends are so many places away in the ring, either way.
const STEPS: [usize; 3] = [1, 7, 20];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_replayed_through_two_workers_and_a_relay_lacks_nothing_and_has_nothing_twice() {
    let Some(cluster) = Cluster::new().await else { return };
    let api = cluster.start(API).await;
    let _workers = [cluster.start(FANOUT).await, cluster.start(FANOUT).await, cluster.start(RELAY).await];
    cluster.until_both_work().await;
    let mut edges = String::from("# a ring with chords\n");
    for (person, step) in (0..PEOPLE).flat_map(|person| STEPS.map(|step| (person, step))) {
        let _ = writeln!(edges, "{person} {}", (person + step) % PEOPLE);
    }
    let graph = cluster.folder.path().join("edges.txt");
    std::fs::write(&graph, edges).expect("written");

    let rows = PEOPLE * STEPS.len() * 2;
    let line = format!("replay --url {} --graph {} --concurrency 16 --sample 20", api.url, graph.display());
    let report = cluster.json(&line).await;
    for (field, value) in [
        ("people", PEOPLE),
        ("posts", PEOPLE),
        ("rows_expected", rows),
        ("rows_found", rows),
        ("rows_missing", 0),
        ("rows_duplicate", 0),
        ("rows_misdelivered", 0),
        ("rows_beyond_window", 0),
        ("unfinished_posts", 0),
        ("store_reads_by_unchanged_polls", 0),
    ] {
        assert_eq!(report[field], json!(value), "{field} in {report}");
    }
    assert_eq!(report["share_304"], json!(1.0), "{report}");
    eventually("the relay has settled all, and the workers tell of their rows", async || {
        let status = cluster.status().await;
        let written: u64 = fanout_workers(&status).iter().filter_map(|worker| worker["rows"].as_u64()).sum();
        status["lag_seconds"] == json!(0.0) && written >= rows as u64
    })
    .await;
}
