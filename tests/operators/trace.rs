//! The trace of a post, from the request to the log of the worker that fanned it out.

use serde_json::Value;

use crate::cluster::{API, Cluster, FANOUT, Process};
use crate::wait::eventually_some;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A line that one of `processes` has logged of a post, with a message.
async fn line(processes: &[Process], message: &str, post: &str) -> Value {
    let is = |line: &Value| line["message"] == message && line["post"] == post;
    eventually_some(&format!("{message:?} of {post} is logged"), async || processes.iter().find_map(|p| p.logged(is)))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_of_a_request_is_in_the_log_of_the_worker() {
    let Some(cluster) = Cluster::new().await else { return };
    let api = [cluster.start(API).await];
    let workers = [cluster.start(FANOUT).await, cluster.start(FANOUT).await];

    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let post = api[0].publish(&["ben"], Some(&parent)).await;
    let published = line(&api, "published", &post).await;
    assert_eq!(published["span"]["trace_id"], TRACE, "{published}");
    let fanned_out = line(&workers, "fanned out", &post).await;
    assert_eq!((&fanned_out["span"]["trace_id"], &fanned_out["span"]["post"]), (&TRACE.into(), &post.as_str().into()));

    // Who brings no trace gets the post's own: whatever drives it again later has the same.
    let post = api[0].publish(&["ben"], None).await;
    let fanned_out = line(&workers, "fanned out", &post).await;
    assert_eq!(fanned_out["span"]["trace_id"], post.replace('-', ""), "{fanned_out}");
}
