//! What to watch: every figure of README.md's table is in the metrics of the processes that the table names, and of no
//! others. Counters of what goes wrong are there once it has gone wrong, and not before.

use crate::cluster::{API, Cluster, FANOUT, Process, RELAY, fanout_workers};
use crate::figures::{self, DRIVEN, FROM_THE_FIRST_ON, Of, PARKED, REFUSALS, UNSURVIVED, document, has};
use crate::parked::{change, set_aside};
use crate::wait::eventually;

/// Where no broker is.
const NOBODY: &str = "amqp://guest:guest@127.0.0.1:1/%2f";
/// What a worker cannot read.
const UNKNOWN_STATE: i8 = 9;

/// One process of each kind.
struct Crew {
    api: Process,
    fanout: Process,
    relay: Process,
}

impl Crew {
    fn each(&self) -> [(Of, &Process); 3] {
        [(Of::Api, &self.api), (Of::Fanout, &self.fanout), (Of::Relay, &self.relay)]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_figure_of_the_table_is_served_by_the_processes_that_it_names() {
    let Some(mut cluster) = Cluster::new().await else { return };
    // What is lost is brought again soon, and one failure is too often.
    cluster.set("FANFOLD_RELAY__REDRIVE_AFTER_MS", "100");
    cluster.set("FANFOLD_FANOUT__ATTEMPTS_MAX", "1");
    // Quotas are of those who show a key.
    cluster.set("FANFOLD_QUOTA__POSTS_PER_S", "1000");
    cluster.guard("publish,read,viewers,metrics").await;
    let (api, relay) = (cluster.start(API).await, cluster.start(RELAY).await);
    let post = drive(&api, &relay).await;
    let crew = Crew { api, relay, fanout: cluster.start(FANOUT).await };
    serve(&crew.api, &post).await;
    compare(&crew).await;
    park(&cluster, &crew).await;
    let lonely = refuse(&mut cluster).await;

    let pages = [crew.relay.metrics().await, crew.fanout.metrics().await, lonely.metrics().await];
    for (name, what) in FROM_THE_FIRST_ON {
        assert!(pages.iter().any(|page| has(page, name)), "{name}: nothing here has made {what}");
    }
}

/// Waits until a process has a figure.
async fn comes(process: &Process, of: Of, name: &str) {
    let what = format!("{name} is in the metrics of {of:?}");
    eventually(&what, async || has(&process.metrics().await, name)).await;
}

/// A counter comes with what it counts. One that is there before that needs no place among those.
async fn comes_with(process: &Process, of: Of, name: &str, event: impl Future<Output = ()>) {
    assert!(!has(&process.metrics().await, name), "{name} of {of:?} is there before it counts: it is no exception");
    event.await;
    comes(process, of, name).await;
}

/// A post that no worker takes is driven again. Answers which.
async fn drive(api: &Process, relay: &Process) -> String {
    // The relay has looked at all there is, and found nothing to drive.
    comes(relay, Of::Relay, "fanfold_fanout_lag_seconds").await;
    let mut post = String::new();
    let publish = async { post = api.publish(&["ben"], None).await };
    comes_with(relay, Of::Relay, DRIVEN, publish).await;
    post
}

/// The post reaches its viewer, who polls and reads.
async fn serve(api: &Process, post: &str) {
    eventually("the post is fanned out", async || api.fanout(post).await["status"] == "done").await;
    assert_eq!(api.get("/v1/viewers/ben/revision").await.0, 200);
    assert_eq!(api.items("ben").await, 1);
}

/// Each process against the table. What goes wrong has its turn elsewhere.
async fn compare(crew: &Crew) {
    let table = figures::table();
    for (of, process) in crew.each() {
        let (own, others): (Vec<_>, Vec<_>) = table.iter().partition(|figure| [Of::Every, of].contains(&figure.of));
        for figure in own.iter().filter(|figure| !figures::counts_what_goes_wrong(&figure.name)) {
            comes(process, of, &figure.name).await;
        }
        let page = process.metrics().await;
        let strange: Vec<_> = others.iter().filter(|figure| has(&page, &figure.name)).collect();
        assert!(strange.is_empty(), "{of:?} has {strange:?}, which the table does not say");
    }
    let page = crew.api.metrics().await;
    assert!(!has(&page, REFUSALS), "nothing was refused: {page}");
}

/// A post that cannot be read is parked at the first failure, and by the relay where no worker survives it.
async fn park(cluster: &Cluster, crew: &Crew) {
    cluster.say("fanout pause").await;
    eventually("the worker pauses", async || {
        let workers = fanout_workers(&cluster.status().await);
        !workers.is_empty() && workers.iter().all(|worker| worker["tuning"] == 1)
    })
    .await;
    let post = crew.api.publish(&["ben"], None).await;
    change(cluster, &post, UNKNOWN_STATE).await;
    let resume = async { drop(cluster.say("fanout resume").await) };
    comes_with(&crew.fanout, Of::Fanout, PARKED, resume).await;
    comes_with(&crew.relay, Of::Relay, UNSURVIVED, set_aside(cluster, &post)).await;
}

/// An API node that has no broker accepts posts, and counts what it leaves to the relay.
async fn refuse(cluster: &mut Cluster) -> Process {
    cluster.set("FANFOLD_RABBITMQ__URL", NOBODY);
    // It starts without a broker, and need not wait for one.
    cluster.set("FANFOLD_SERVICE__WAIT_FOR_S", "0");
    let lonely = cluster.start(API).await;
    let publish = async { drop(lonely.publish(&["ben"], None).await) };
    comes_with(&lonely, Of::Api, REFUSALS, publish).await;
    lonely
}

#[test]
fn what_the_documents_call_a_metric_is_one() {
    let ours = document("src/telemetry.rs");
    for name in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "BENCHMARKS.md"] {
        let text = document(name);
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        let strange: Vec<_> = words.filter(|word| word.starts_with("fanfold_") && !is_one(&ours, word)).collect();
        assert!(strange.is_empty(), "{name} names {strange:?}");
    }
    let strange: Vec<_> = figures::table().into_iter().filter(|figure| !is_one(&ours, &figure.name)).collect();
    assert!(strange.is_empty(), "the table has {strange:?}");
}

/// Whether the service describes a metric of this name.
fn is_one(ours: &str, name: &str) -> bool {
    ours.contains(&format!("\"{name}\""))
}
