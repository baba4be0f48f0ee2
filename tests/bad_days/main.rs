//! The bad days of a cluster, each as its operator meets it: what the real binaries say of it, in `fanfold doctor` and at
//! their start, how they end, and that no password is in what they say.

#[path = "../support/broker_user.rs"]
mod broker_user;
#[path = "../support/command.rs"]
mod command;
#[path = "../support/cql_door.rs"]
mod cql_door;
#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/samples.rs"]
mod samples;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wait.rs"]
mod wait;

mod cluster;
mod credentials;
mod leftovers;
#[cfg(feature = "faults")]
mod poison;
mod queue;
mod revisions;
mod skew;
#[cfg(feature = "faults")]
mod stage;
mod store;
mod tls;
mod withdrawn;
#[cfg(feature = "faults")]
mod workers;

use fanfold::adapters::Store;
use fanfold::ports::{Pending, Store as _};

/// The pending entries of every shard, each with its own: all of them, since no test here leaves a thousand in one.
pub async fn pending(store: &Store) -> Vec<Vec<Pending>> {
    let mut shards = Vec::new();
    for shard in 0..store.shards() {
        shards.push(store.pending(shard, None, 1_000).await.expect("read").entries);
    }
    shards
}
