//! `fanfold fanout`: paused, resumed and tuned for every worker, and shown to whoever asks.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cluster::{API, Cluster, FANOUT, OPERATOR, Process, RELAY, fanout_workers, sum, waiting};
use crate::wait::{eventually, eventually_some};

const POSTS: usize = 20;
/// How soon every worker goes by a change, in milliseconds.
const PROMISED_MS: i64 = 1_000;
/// How much later a machine may let a worker know, on whose two cores all servers and tests run.
const HELD_UP_MS: i64 = 5_000;
/// What can be set, to what, and the most that is taken.
const KNOBS: [(&str, u32, u32); 5] = [
    ("tasks-small", 3, 256),
    ("tasks-bulk", 2, 256),
    ("rows-in-flight", 500, 100_000),
    ("prefetch", 7, 1_000),
    ("batch-rows", 4, 100),
];

/// Waits until both workers tell that they go by a change. Not how soon: they tell once a second, and this asks now and
/// then.
pub async fn taken_up(cluster: &Cluster, version: &Value) {
    let by_it = async || cluster.workers().await.iter().all(|worker| worker["tuning"] == *version);
    eventually(&format!("both workers go by change {version}"), by_it).await;
}

/// When each worker told what is shown.
fn told_at(workers: &[Value]) -> Vec<i64> {
    workers.iter().map(|worker| worker["at_ms"].as_i64().expect("a time")).collect()
}

/// When a line was logged, in milliseconds since 1970.
fn logged_ms(line: &Value) -> i64 {
    let text = line["timestamp"].as_str().expect("a time");
    let nanos = OffsetDateTime::parse(text, &Rfc3339).expect("as in RFC 3339").unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).expect("in this era")
}

/// How long after a change a worker went by it, in milliseconds: from the instant that the store keeps with the change
/// to the one at which the worker logged that it has it, or a later one. Both are by this machine's clock, and however
/// long the test takes to look does not count. The change is signed before it is written, so its write does.
async fn delay_ms(worker: &Process, change: &Value) -> i64 {
    let version = change["version"].as_u64().expect("a number");
    let has_it = |line: &Value| line["message"] == "the fan-out is tuned" && line["version"].as_u64() >= Some(version);
    let line = eventually_some("a worker logs what it goes by", async || worker.logged(has_it)).await;
    logged_ms(&line) - change["at_ms"].as_i64().expect("a time")
}

/// The promise, as a test can hold it on any machine: half of all changes are taken up within the second, and none much
/// later. Workers that look every two seconds break the first, and one that misses looks breaks the other.
async fn in_time(workers: &[Process; 2], changes: &[Value]) {
    let mut delays = Vec::new();
    for worker in workers {
        for change in changes {
            delays.push(delay_ms(worker, change).await);
        }
    }
    delays.sort_unstable();
    let (first, half, last) = (delays[0], delays[delays.len() / 2], delays[delays.len() - 1]);
    assert!(first >= 0, "nobody goes by a change that is not there yet: {delays:?}");
    assert!(half <= PROMISED_MS && last <= HELD_UP_MS, "taken up too late: {delays:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fanout_is_paused_resumed_and_tuned_for_every_worker() {
    let Some(cluster) = Cluster::new().await else { return };
    assert!(cluster.say("fanout status").await.contains("nobody works"));
    let api = cluster.start(API).await;
    let workers = [cluster.start(FANOUT).await, cluster.start(FANOUT).await];
    cluster.until_both_work().await;
    pause_and_resume(&cluster, &api).await;
    set(&cluster, &workers).await;
    refuse(&cluster).await;
    show(&cluster).await;
}

async fn pause_and_resume(cluster: &Cluster, api: &Process) {
    let paused = cluster.json("fanout pause").await;
    assert_eq!((&paused["version"], &paused["paused"]), (&json!(1), &json!(true)));
    taken_up(cluster, &paused["version"]).await;

    let mut posts = Vec::new();
    for number in 0..POSTS {
        posts.push(api.publish(&[&format!("viewer-{number}")], None).await);
    }
    // Each worker has looked for tasks since, more than once: they have told of themselves twice.
    let mut status = cluster.status().await;
    for _ in 0..2 {
        let before = told_at(&fanout_workers(&status));
        eventually("both workers tell again", async || {
            status = cluster.status().await;
            let now = told_at(&fanout_workers(&status));
            now.len() == 2 && now.iter().zip(&before).all(|(now, before)| now > before)
        })
        .await;
    }
    let workers = fanout_workers(&status);
    assert_eq!(waiting(&status, "small"), Some(POSTS as u64), "all wait in the queue, none at a worker: {status}");
    assert_eq!((sum(&workers, "in_hand"), sum(&workers, "rows")), (0, 0), "{status}");
    assert!(status["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.0), "{status}");
    for (number, post) in posts.iter().enumerate() {
        assert_eq!(api.fanout(post).await["status"], "running");
        assert_eq!(api.items(&format!("viewer-{number}")).await, 0);
    }
    let table = cluster.say("fanout status").await;
    assert!(table.contains("fan-out   paused, as configured"), "{table}");

    let said = cluster.say("fanout resume").await;
    assert_eq!(said.trim(), "running, as configured");
    for (number, post) in posts.iter().enumerate() {
        eventually("a post is fanned out", async || api.fanout(post).await["status"] == "done").await;
        assert_eq!(api.items(&format!("viewer-{number}")).await, 1);
    }
    eventually("the queue is drained, and the workers tell of it", async || {
        let status = cluster.status().await;
        waiting(&status, "small") == Some(0) && sum(&fanout_workers(&status), "rows") == POSTS as u64
    })
    .await;
}

async fn set(cluster: &Cluster, workers: &[Process; 2]) {
    let mut version = cluster.status().await["tuning"]["version"].as_u64().expect("a number");
    let mut values = json!({});
    for (name, _, _) in KNOBS {
        values[name] = Value::Null;
    }
    let mut changes = Vec::new();
    for (name, value, most) in KNOBS {
        changes.push(cluster.json(&format!("fanout set {name}={most}")).await);
        let began = fanfold::clock::Clock::system().now().millis();
        let tuning = cluster.json(&format!("fanout set {name}={value}")).await;
        values[name] = json!(value);
        version += 2;
        assert_eq!((&tuning["version"], &tuning["values"]), (&json!(version), &values), "{tuning}");
        assert!(tuning["by"].as_str().is_some_and(|by| by.starts_with(&format!("{OPERATOR}@"))), "{tuning}");
        assert!(tuning["at_ms"].as_i64().is_some_and(|at| at >= began), "{tuning}");
        taken_up(cluster, &tuning["version"]).await;
        assert_eq!(cluster.status().await["tuning"], tuning, "who and when is there for all to see");
        changes.push(tuning);
    }
    in_time(workers, &changes).await;
    let line = KNOBS.map(|(name, _, _)| format!("{name}=default")).join(" ");
    assert_eq!(cluster.say(&format!("fanout set {line}")).await.trim(), "running, as configured");
    taken_up(cluster, &json!(version + 1)).await;
}

async fn refuse(cluster: &Cluster) {
    let before = cluster.status().await["tuning"].clone();
    for (name, _, most) in KNOBS {
        for beyond in [0, most + 1] {
            let bounds = format!("{name}: must be 1 to {most}, is {beyond}");
            cluster.refuses(&format!("fanout set {name}={beyond}"), &[&bounds]).await;
        }
    }
    cluster.refuses("fanout set tasks-small=5 prefetch=0", &["prefetch: must be 1 to 1000, is 0"]).await;
    cluster.refuses("fanout set speed=5", &["speed is not one of", "rows-in-flight"]).await;
    cluster.refuses("fanout set", &["NAME=VALUE"]).await;
    assert_eq!(cluster.status().await["tuning"], before, "what is refused changes nothing");
}

async fn show(cluster: &Cluster) {
    cluster.say("fanout set tasks-small=9 prefetch=33").await;
    let _relay = cluster.start(RELAY).await;
    let mut table = String::new();
    eventually("everybody is shown, and nothing waits", async || {
        table = cluster.say("fanout status").await;
        let workers = |role: &str| table.lines().filter(|line| line.starts_with(role)).count();
        (workers("fanout "), workers("relay ")) == (2, 1) && table.contains("lag       0.0 s")
    })
    .await;
    for part in [
        "fan-out   running, tasks-small=9 prefetch=33\n",
        &format!(", by {OPERATOR}@"),
        "lane      small   0 tasks waiting\n",
        "lane      bulk    0 tasks waiting\n",
        "api       1 nodes\n",
    ] {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
    for worker in cluster.workers().await {
        let name = worker["name"].as_str().expect("host:pid");
        assert!(table.contains(&name[..name.len().min(20)]), "{name} is not in\n{table}");
    }
}
