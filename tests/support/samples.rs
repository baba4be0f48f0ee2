//! What several suites begin with: a small embedded store, and a post.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::Path;
use std::time::Duration;

use fanfold::adapters::embedded::{EmbeddedStore, Folder, StoreOptions};
use fanfold::clock::Clock;
use fanfold::domain::{Post, PostId, PostState, ProducerId, Time};

/// The store in `dir`, within small bounds, where rows live for `inbox_ttl`.
pub fn open_store(dir: &Path, clock: &Clock, inbox_ttl: Duration) -> EmbeddedStore {
    let options = StoreOptions {
        cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
        journal_bytes_max: 64 << 20,
        commit_jobs_max: 64,
        commit_bytes_max: 1 << 20,
        commit_bulk_bytes_max: 64 << 10,
        free_bytes_min: 0,
        inbox_ttl,
        idempotency_ttl: Duration::from_secs(24 * 3600),
        clock: clock.clone(),
    };
    EmbeddedStore::open(Folder::open(dir).expect("the folder is free"), options).expect("the store opens")
}

/// A fresh post for `audience_size` viewers, published `at`.
pub fn post_at(at: Time, audience_size: u32) -> Post {
    Post {
        id: PostId::new(at, rand::random()),
        producer: ProducerId::local(),
        kind: "story.posted".into(),
        actor: Some("ana".into()),
        data: r#"{"title":"Dawn"}"#.into(),
        thread_key: Some("s1".into()),
        version: 1,
        state: PostState::Live,
        ts: at.micros(),
        expires_at: None,
        audience_size,
        chunk_size: 2,
    }
}
