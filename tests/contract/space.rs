//! The embedded store gives back the disk space of what has outlived its life.
//!
//! Generations of posts, each written when the last one is over, in the order of their keys: the very pattern that the
//! storage engine never rewrites.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use fanfold::adapters::embedded::Swept;
use fanfold::domain::{Audience, Done, Post, Time, ViewerId};
use fanfold::ports::{KeyClaim, Settled, Store as _};
use futures::future::join_all;

use crate::START;
use crate::embedded::OpenStore;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// From one generation to the next: more than posts live (30 days and a week).
const APART: u32 = 40;
const GENERATIONS: u32 = 12;
/// Posts of a generation, of 4 KiB each: twice what the tables in memory hold.
const POSTS: usize = 500;
const VIEWERS: usize = 40;
const KEYS: usize = 2_000;

/// What a generation wrote.
struct Generation {
    posts: Vec<Post>,
    viewers: Vec<ViewerId>,
}

fn begins(number: u32) -> Time {
    START.after(DAY * APART * number)
}

/// Everything a fan-out writes: posts, chunks, pending entries, rows, progress. All but the last post are settled.
async fn write(opened: &OpenStore, number: u32) -> Generation {
    opened.clock.set(begins(number));
    let (store, noise) = (&opened.store, || (0..256).map(|_| format!("{:016x}", rand::random::<u64>())).collect());
    let names: Vec<_> = (0..VIEWERS).map(|n| format!("{number:04}-{n:055}")).collect();
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
        let key = format!("order-{number:04}-{n:06}");
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
    let store = &opened.store;
    for post in &generation.posts {
        assert_eq!(store.post(post.id).await.expect("read").as_ref(), Some(post));
        assert_eq!(store.chunk(post.id, 0).await.expect("read").map(|chunk| chunk.viewers.len()), Some(VIEWERS));
        assert!(store.chunk_states(post.id, 0..1).await.expect("read")[0].is_done(1, 1));
    }
    for viewer in &generation.viewers {
        assert_eq!(store.window(viewer, POSTS as u32).await.expect("read").rows.len(), POSTS);
    }
    let pending = store.pending(0, None, 10).await.expect("read").entries;
    let pending: Vec<_> = pending.into_iter().map(|entry| entry.post_id).collect();
    assert_eq!(pending, [generation.posts[POSTS - 1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_of_old_posts_do_not_fill_the_disk() {
    let opened = OpenStore::new().await;
    for number in 0..GENERATIONS {
        let generation = write(&opened, number).await;
        let swept = if std::env::var("NOSWEEP").is_ok() { Swept::default() } else { opened.store.sweep().await.expect("swept") };
        tokio::time::sleep(Duration::from_millis(500)).await;
        println!("{number} {swept:?} {:?} {}", opened.store.table_bytes(), files(opened.path()));
        check(&opened, &generation).await;
    }
    let opened = opened.reopen().await;
    println!("{:?} {}", sizes(&opened), files(opened.path()));
}

/// The size of the files of all tables.
fn files(folder: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let about = entry.metadata().expect("known");
        if about.is_dir() {
            sum += files(&entry.path());
        } else if folder.ends_with("tables") {
            sum += about.len();
        }
    }
    sum
}
