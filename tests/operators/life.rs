//! `fanfold doctor` on a cluster that is well, and `fanfold fence`.

use serde_json::Value;

use crate::cluster::{API, Cluster, FANOUT, Process, RELAY};
use crate::wait::eventually;

/// The number and the life of each entry, the newest first.
async fn fences(cluster: &Cluster) -> Vec<(u64, String)> {
    let said = cluster.say("fence list").await;
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let seq = words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{said}"));
        assert!(line.ends_with(" ago"), "{said}");
        (seq, words.next().unwrap_or_default().to_owned())
    };
    said.lines().map(entry).collect()
}

async fn token(api: &Process) -> String {
    let (status, page) = api.get("/v1/viewers/ben/inbox").await;
    assert_eq!(status, 200, "{page}");
    page["token"].as_str().expect("a token").to_owned()
}

async fn poll(api: &Process, token: &str) -> (u16, Value) {
    api.get(&format!("/v1/viewers/ben/revision?since={token}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_well_passes_the_doctor_and_its_fence_is_renewed() {
    let Some(cluster) = Cluster::new().await else { return };
    let api = cluster.start(API).await;
    let workers = [cluster.start(FANOUT).await, cluster.start(FANOUT).await, cluster.start(RELAY).await];
    cluster.until_both_work().await;

    let findings = cluster.json("doctor").await;
    let findings = findings.as_array().expect("a list");
    for finding in findings {
        // All that is not well here: the servers of the tests are one node, which keeps one copy.
        let single = finding["part"] == "store"
            && finding["what"].as_str().is_some_and(|what| what.contains("has copies of each row: 1 in"));
        assert_eq!(finding["severity"], if single { "warning" } else { "ok" }, "{finding}");
    }
    for (part, what) in [
        ("store", "the schema of"),
        ("queue", "are as this release needs them"),
        ("revisions", "takes writes"),
        ("workers", "1 x API node"),
        ("workers", "2 x fanfold-fanout"),
        ("workers", "1 x fanfold-relay"),
        ("access", "it is off, and nothing listens beyond loopback"),
    ] {
        let is =
            |finding: &&Value| finding["part"] == part && finding["what"].as_str().is_some_and(|w| w.contains(what));
        assert!(findings.iter().any(|finding| is(&finding)), "{part}: {what} is not in {findings:#?}");
    }
    assert!(!cluster.say("doctor").await.contains("WRONG"));
    for process in [&api, &workers[0], &workers[2]] {
        cluster.say(&format!("health --url {}", process.url)).await;
    }

    let post = api.publish(&["ben"], None).await;
    eventually("the post is fanned out", async || api.fanout(&post).await["status"] == "done").await;
    let (known, before) = (token(&api).await, fences(&cluster).await);
    assert_eq!(poll(&api, &known).await.0, 304, "nothing has changed");
    let said = cluster.say("fence renew").await;
    let after = fences(&cluster).await;
    assert_eq!(&after[1..], &before[..], "one more entry");
    assert_eq!((after[0].0, &after[0].1), (before[0].0 + 1, &before[0].1), "a new fence for the same life");
    assert!(said.starts_with(&format!("fence {} is in force", after[0].0)), "{said}");

    eventually("the token says unchanged no more", async || poll(&api, &known).await.0 == 200).await;
    let fresh = token(&api).await;
    assert_ne!(fresh, known);
    assert_eq!(poll(&api, &fresh).await.0, 304, "once is enough");
    assert_eq!(poll(&api, &known).await.0, 200, "and the old one stays so");
    assert_eq!(api.items("ben").await, 1);
}
