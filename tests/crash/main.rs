//! The real binary, killed with -9 at random moments under a load, again and again: nothing accepted is lost, nothing
//! arrives twice, every fan-out is finished, and no client is left with a copy that a poll calls current.

#[path = "../support/process.rs"]
mod process;
mod producer;
mod viewer;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use process::Service;
use producer::Producer;
use rand::{RngExt as _, SeedableRng as _};
use viewer::Viewer;

/// Kills under load; before every third of these starts, one that is killed while it starts.
const KILLS: usize = 24;
const VIEWERS: usize = 12;
const PRODUCERS: usize = 4;
/// Whom the large posts are for. Nobody reads its inbox before the end.
const ARCHIVE: &str = "archive";
/// What viewers' names are filled up to: rows and chunks are mostly names, and these make them large.
const NAME_BYTES: usize = 100;

/// Small chunks, so that a post has several; a relay that loses no time; the smallest tables in memory, so that they are
/// written out and merged during the test.
const SETTINGS: [(&str, &str); 4] = [
    ("FANFOLD_RELAY__REDRIVE_AFTER_MS", "200"),
    ("FANFOLD_RELAY__TICK_MS", "50"),
    ("FANFOLD_FANOUT__CHUNK_SIZE", "3"),
    ("FANFOLD_STORE__MEMTABLE_BYTES", "1048576"),
];

/// The names of all viewers.
fn viewer_names() -> Vec<String> {
    let names = (0..VIEWERS).map(|n| format!("viewer-{n}-"));
    names.map(|name| format!("{name:x<NAME_BYTES$}")).collect()
}

/// The one client of all. A process lives too short to make one each: that reads the system's authorities.
fn client() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    CLIENT.clone()
}

/// The files of tables that the storage engine has written out.
fn written_out(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if folder.ends_with("tables") {
                files.push(path);
            }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_it_loses_nothing_and_repeats_nothing() {
    let seed: u64 = std::env::var("FANFOLD_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("FANFOLD_TEST_SEED={seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut producers: Vec<Producer> = (0..PRODUCERS).map(|n| Producer::new(n, rng.random())).collect();
    producers.push(Producer::of_large_posts(PRODUCERS, rng.random()));
    let mut viewers: Vec<Viewer> = viewer_names().into_iter().map(|name| Viewer::new(name, rng.random())).collect();

    client();
    let (mut kills_at_start, mut tables) = (0, BTreeSet::new());
    // A guess for the first, which finds no folder at all.
    let mut start_takes = Duration::from_millis(100);
    for round in 0..KILLS {
        if round % 3 == 0 {
            let moment = start_takes.mul_f64(rng.random_range(0.0..1.0));
            kills_at_start += usize::from(Service::kill_while_it_starts(dir.path(), &SETTINGS, moment).await);
        }
        let begun = Instant::now();
        let service = Service::start(dir.path(), &SETTINGS).await;
        start_takes = begun.elapsed();
        let url = service.url();
        let moment = Duration::from_millis(rng.random_range(5..310));
        let kill = async {
            tokio::time::sleep(moment).await;
            service.kill();
        };
        let producing = futures::future::join_all(producers.iter_mut().map(|producer| producer.work(&url)));
        let viewing = futures::future::join_all(viewers.iter_mut().map(|viewer| viewer.work(&url)));
        tokio::join!(kill, producing, viewing);
        service.gone().await;
        tables.extend(written_out(dir.path()));
    }

    let service = Service::start(dir.path(), &SETTINGS).await;
    let url = service.url();
    for producer in &mut producers {
        producer.finish(&url).await;
    }
    let accepted: usize = producers.iter().map(|producer| producer.posts.len()).sum();
    let marked: usize = viewers.iter().map(Viewer::marks).sum();
    println!(
        "{KILLS} kills under load, {kills_at_start} at a start, {accepted} posts accepted, {marked} marks accepted, \
         {} tables written out",
        tables.len()
    );
    assert!(accepted > KILLS, "the load was too light to show anything");
    assert!(kills_at_start > 0, "no start was cut off");
    assert!(tables.len() > 1, "the load was too light for tables to be written out: {tables:?}");
    viewers.push(Viewer::new(ARCHIVE.to_owned(), rng.random()));
    for viewer in &mut viewers {
        let expected = producers.iter().flat_map(|producer| producer.posts_for(&viewer.name));
        viewer.check(&url, expected.collect()).await;
    }
    service.stop().await;
}
