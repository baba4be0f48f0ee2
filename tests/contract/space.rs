//! The embedded store gives back the disk space of what has outlived its life.
//!
//! Generations of posts, each written when the last one is over, in the order of their keys: the very pattern that the
//! storage engine never rewrites.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use fanfold::domain::{Audience, Done, Post, Time, ViewerId};
use fanfold::ports::{KeyClaim, Settled, Store as _};
use futures::future::join_all;

use crate::START;
use crate::embedded::OpenStore;
use crate::wait::eventually;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// From one generation to the next: more than posts live (30 days and a week).
const APART: u32 = 40;
const GENERATIONS: u32 = 7;
/// Posts of a generation, of 4 KiB each: more than a table in memory holds.
const POSTS: usize = 300;
const VIEWERS: usize = 32;
const KEYS: usize = 2_000;
/// What an idempotency key takes on disk, at the very least.
const KEY_BYTES_MIN: u64 = 40;
/// What the posts of a generation take, at most; its audiences take less.
const DATA: u64 = POSTS as u64 * 5 * 1024;

/// What a generation wrote.
struct Generation {
    posts: Vec<Post>,
    viewers: Vec<ViewerId>,
}

fn begins(number: u32) -> Time {
    START.after(DAY * APART * number)
}

/// Everything a fan-out writes: posts, chunks, pending entries, rows, progress. All but the last post are settled.
async fn write(opened: &OpenStore, begins: Time) -> Generation {
    opened.clock.set(begins);
    let number = begins.millis();
    let (store, noise) = (&opened.store, || (0..256).map(|_| format!("{:016x}", rand::random::<u64>())).collect());
    let names: Vec<_> = (0..VIEWERS).map(|n| format!("{number:016}-{n:0100}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let audience = Audience::parse("viewers", &names, VIEWERS as u32).expect("valid");
    let chunks = audience.chunks(VIEWERS as u32);
    let posts: Vec<Post> = (0..POSTS)
        .map(|n| {
            let data: String = noise();
            let at = opened.clock.now().after(Duration::from_millis(n as u64));
            Post { data: data.into(), chunk_size: VIEWERS as u32, ..crate::post_at(at, VIEWERS as u32) }
        })
        .collect();
    for some in posts.chunks(32) {
        join_all(some.iter().map(async |post| {
            store.create_post(post, &chunks).await.expect("created");
            store.write_rows(post, audience.viewers()).await.expect("written");
            store.chunk_done(post.id, 0, Done { version: 1, fence: 1 }, true).await.expect("recorded");
        }))
        .await;
    }
    join_all((0..KEYS).map(async |n| {
        let key = format!("order-{number:016}-{n:06}");
        let claim = KeyClaim { producer: posts[0].producer.clone(), key, ..claim_of(&posts[0]) };
        store.claim_key(&claim).await.expect("claimed")
    }))
    .await;
    let pending = store.pending(0, None, u32::MAX).await.expect("read").entries;
    let done: Vec<_> = pending.into_iter().filter(|entry| entry.post_id != posts[POSTS - 1].id).collect();
    store.settle(&done.into_iter().map(Settled::Done).collect::<Vec<_>>()).await.expect("settled");
    Generation { posts, viewers: audience.viewers().to_vec() }
}

fn claim_of(post: &Post) -> KeyClaim {
    KeyClaim {
        producer: post.producer.clone(),
        key: String::new(),
        fingerprint: [7; 32],
        post_id: post.id,
        chunk_size: 2,
    }
}

fn sizes(opened: &OpenStore) -> HashMap<&'static str, u64> {
    opened.store.table_bytes().into_iter().collect()
}

/// All there was is there.
async fn check(opened: &OpenStore, generation: &Generation) {
    check_data(opened, generation).await;
    check_pending(opened, generation).await;
}

async fn check_data(opened: &OpenStore, generation: &Generation) {
    let store = &opened.store;
    for post in &generation.posts {
        assert_eq!(store.post(post.id).await.expect("read").as_ref(), Some(post));
        assert_eq!(store.chunk(post.id, 0).await.expect("read").map(|chunk| chunk.viewers.len()), Some(VIEWERS));
        assert!(store.chunk_states(post.id, 0..1).await.expect("read")[0].is_done(1, 1));
    }
    for viewer in &generation.viewers {
        assert_eq!(store.window(viewer, POSTS as u32).await.expect("read").rows.len(), POSTS);
    }
}

async fn check_pending(opened: &OpenStore, generation: &Generation) {
    let pending = opened.store.pending(0, None, 10).await.expect("read").entries;
    let pending: Vec<_> = pending.into_iter().map(|entry| entry.post_id).collect();
    assert_eq!(pending, [generation.posts[POSTS - 1].id]);
}

/// The size of the files of all tables.
fn files(folder: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sum += files(&path);
        } else if folder.ends_with("tables") {
            // The engine may have just removed it.
            sum += std::fs::metadata(path).map_or(0, |about| about.len());
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_of_old_posts_do_not_fill_the_disk() {
    let opened = OpenStore::new().await;
    let mut written = 0;
    let mut last = None;
    for number in 0..GENERATIONS {
        let before = sizes(&opened)["posts"];
        last = Some(write(&opened, begins(number)).await);
        eventually("posts are written out", async || sizes(&opened)["posts"] > before).await;
        written += sizes(&opened)["posts"] - before;
        let swept = opened.store.sweep().await.expect("swept");
        assert_eq!(swept.segments == 0, number == 0, "{swept:?}");
        // What lives, and what reached into it from the last one.
        assert!(sizes(&opened)["posts"] < 3 * DATA, "{number}: {:?}", sizes(&opened));
        assert!(sizes(&opened)["chunks"] < 3 * DATA, "{number}: {:?}", sizes(&opened));
    }
    assert!(written > 3 * DATA, "too little was written to show anything: {written} bytes");
    let last = last.expect("some");
    check(&opened, &last).await;
    // Ordered keys are rewritten by four segments that reach across them.
    let keys_of_all = u64::from(GENERATIONS) * KEYS as u64 * KEY_BYTES_MIN;
    eventually("keys are rewritten", async || sizes(&opened)["keys"] < keys_of_all).await;
    opened.store.sweep().await.expect("swept");
    eventually("the files are gone", async || files(opened.path()) < 8 * DATA).await;
    let opened = opened.reopen().await;
    check(&opened, &last).await;
}

/// Killed after each of the tables in turn, and in between with some of them swept: what lives is there.
#[cfg(feature = "faults")]
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_is_killed_loses_nothing_that_lives() {
    use crate::command::{CLI, command};

    let now = fanfold::clock::Clock::system().now();
    let opened = OpenStore::at(now.before(DAY * APART)).await;
    write(&opened, opened.clock.now()).await;
    eventually("posts are written out", async || sizes(&opened)["posts"] > 0 && sizes(&opened)["chunks"] > 0).await;
    let living = write(&opened, now).await;
    let dir = opened.close();
    for _ in 0..2 {
        let args = ["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data"];
        let settings = [("FANFOLD_STORE__SWEEP_EVERY_S", "1"), ("FANFOLD_TEST_FAULT", "space.dropped=kill@1")];
        let mut serve = command(CLI, args, settings);
        let ended = serve.arg(dir.path()).stdout(std::process::Stdio::null()).status();
        let ended = tokio::time::timeout(crate::wait::PATIENCE, ended).await.expect("it sweeps").expect("it ran");
        assert!(!ended.success());
    }
    let opened = OpenStore::open(dir, now).await;
    check_data(&opened, &living).await;
    opened.store.sweep().await.expect("swept");
    assert!(sizes(&opened)["posts"] + sizes(&opened)["chunks"] < 6 * DATA);
    check_data(&opened, &living).await;
}
