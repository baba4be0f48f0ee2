//! The real binary, killed with -9 at random moments under a load, again and again: nothing accepted is lost, nothing
//! arrives twice, every fan-out is finished, and no client is left with a copy that a poll calls current.

#[path = "../support/process.rs"]
mod process;
mod producer;
mod viewer;

use std::sync::LazyLock;
use std::time::Duration;

use process::Service;
use producer::Producer;
use rand::{RngExt as _, SeedableRng as _};
use viewer::Viewer;

const KILLS: usize = 24;
const VIEWERS: usize = 12;
const PRODUCERS: usize = 4;

/// Small chunks, so that a post has several; a relay that loses no time.
const SETTINGS: [(&str, &str); 3] =
    [("FANFOLD_RELAY__REDRIVE_AFTER_MS", "200"), ("FANFOLD_RELAY__TICK_MS", "50"), ("FANFOLD_FANOUT__CHUNK_SIZE", "3")];

/// The names of all viewers.
fn viewer_names() -> Vec<String> {
    (0..VIEWERS).map(|n| format!("viewer-{n}")).collect()
}

/// The one client of all. A process lives too short to make one each: that reads the system's authorities.
fn client() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    CLIENT.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_it_loses_nothing_and_repeats_nothing() {
    let seed: u64 = std::env::var("FANFOLD_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("FANFOLD_TEST_SEED={seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut producers: Vec<Producer> = (0..PRODUCERS).map(|n| Producer::new(n, rng.random())).collect();
    let mut viewers: Vec<Viewer> = viewer_names().into_iter().map(|name| Viewer::new(name, rng.random())).collect();

    client();
    for _ in 0..KILLS {
        let service = Service::start(dir.path(), &SETTINGS).await;
        let url = service.url();
        let moment = Duration::from_millis(rng.random_range(5..350));
        let kill = async {
            tokio::time::sleep(moment).await;
            service.kill();
        };
        let producing = futures::future::join_all(producers.iter_mut().map(|producer| producer.work(&url)));
        let viewing = futures::future::join_all(viewers.iter_mut().map(|viewer| viewer.work(&url)));
        tokio::join!(kill, producing, viewing);
    }

    let service = Service::start(dir.path(), &SETTINGS).await;
    let url = service.url();
    for producer in &mut producers {
        producer.finish(&url).await;
    }
    let accepted: usize = producers.iter().map(|producer| producer.posts.len()).sum();
    let marked: usize = viewers.iter().map(Viewer::marks).sum();
    println!("{KILLS} kills, {accepted} posts accepted, {marked} marks accepted");
    assert!(accepted > KILLS, "the load was too light to show anything");
    for viewer in &mut viewers {
        let expected = producers.iter().flat_map(|producer| producer.posts_for(&viewer.name));
        viewer.check(&url, expected.collect()).await;
    }
    service.stop().await;
}
