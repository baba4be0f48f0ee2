//! A task that kills whoever takes it: set aside in the end, while the others are served, and done when somebody says so.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::cluster::{CLI, PROCESSES};
use crate::stage::Stage;
use crate::wait::eventually;

/// Two deliveries end a task's first chance, two more its last.
const SETTINGS: &[(&str, &str)] = &[("FANFOLD_RABBITMQ__DELIVERIES_MAX", "1"), ("FANFOLD_FANOUT__CHUNK_SIZE", "2")];

/// Whoever takes a task of the bulk lane dies of it.
const DEADLY: &str = "fanout.bulk=kill@1";

async fn parked(stage: &Stage) -> usize {
    let told = stage.cluster.run(CLI, &["parked", "list", "--output", "json"]).await;
    let listed: Value = serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{error}: {told:?}"));
    listed["chunks"].as_array().expect("a list").len()
}

#[tokio::test]
async fn what_kills_every_worker_is_set_aside_while_others_are_served() {
    let Some(mut stage) = Stage::start(SETTINGS).await else { return };
    let _relay = stage.cluster.start(PROCESSES[2]);
    let poison = stage.publish(3).await;
    let deaths = Cell::new(0);
    let (mut worker, stage) = (stage.worker(Some(DEADLY)), stage);
    let supervise = async {
        loop {
            worker.outlived().await;
            deaths.set(deaths.get() + 1);
            worker = stage.cluster.start(PROCESSES[1]);
        }
    };
    let story = async {
        eventually("workers die of it", async || deaths.get() >= 2).await;
        stage.served(&stage.publish(1).await, 1).await;
        eventually("both chunks are set aside", async || parked(&stage).await == 2).await;
        assert!(deaths.get() >= 4, "each had its last chance");
        // Whatever the relay has published of them meanwhile harms nobody any more.
        eventually("no copy waits", async || stage.waiting("bulk").await == 0).await;
        stage.served(&stage.publish(1).await, 1).await;
        let before = deaths.get();
        for _ in 0..3 {
            stage.served(&stage.publish(1).await, 1).await;
        }
        assert_eq!(deaths.get(), before, "nobody dies of what is set aside");
    };
    tokio::select! { () = supervise => unreachable!("it never ends"), () = story => {} }
    worker.stop().await;
    let fanout = stage.fanout(&poison).await;
    assert_eq!(fanout, json!({"status": "done", "total": 3, "written": 0, "skipped": 0, "failed": 3}));

    let mut stage = stage;
    let _worker = stage.worker(None);
    stage.cluster.run(CLI, &["parked", "redrive", "--all"]).await.check(0, &["2 chunks taken up again"]);
    stage.served(&poison, 3).await;
    assert_eq!(parked(&stage).await, 0);
}
