//! The bad days of a cluster, each as its operator meets it: what the real binaries say of it, in `fanfold doctor` and at
//! their start, how they end, and that no password is in what they say.
//!
//! Not here: a wrong password of the store, for the Cassandra of dev/stack asks nobody who they are and takes any.

#[path = "../support/command.rs"]
mod command;
#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/samples.rs"]
mod samples;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wait.rs"]
mod wait;

mod cluster;
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
