//! One suite a port: what any adapter must do, run against every adapter there is.

mod cluster_lost_answers;
mod cluster_marks;
mod cluster_queue;
mod cluster_quotas;
mod cluster_revisions;
mod cluster_store;
#[cfg(feature = "faults")]
#[path = "../support/command.rs"]
mod command;
mod control;
mod embedded;
mod keys;
mod poison;
#[path = "../support/proxy.rs"]
mod proxy;
mod queue;
mod quotas;
#[path = "../support/redis_server.rs"]
mod redis_server;
mod revisions;
#[path = "../support/samples.rs"]
mod samples;
#[path = "../support/servers.rs"]
mod servers;
mod space;
mod store;
#[path = "../support/wait.rs"]
mod wait;

use std::sync::atomic::{AtomicU64, Ordering};

use fanfold::domain::{Post, Time, ViewerId};

use samples::post_at;
use servers::server;

/// An instant all tests start at: 2026-01-01T00:00:00Z.
pub const START: Time = Time::from_millis(1_767_225_600_000);

/// A viewer nobody else uses, so that suites can share a server.
pub fn viewer(name: &str) -> ViewerId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    ViewerId::parse("viewer", &format!("{name}-{}-{n}", rand::random::<u64>())).expect("a valid viewer id")
}

/// The next version of a post.
pub fn next_version(post: &Post) -> Post {
    Post { version: post.version + 1, ts: post.ts + 1, ..post.clone() }
}
