//! What operators do with a running cluster, done with the command line alone: a cluster of the real binaries on the
//! real servers, an API node and two fan-out workers, and a relay where it is part of the story. Left out unless
//! FANFOLD_TEST_CQL, _AMQP and _REDIS name servers.

#[path = "../support/command.rs"]
mod command;
#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wait.rs"]
mod wait;

mod cluster;
mod figures;
mod life;
mod parked;
mod replay;
mod status;
mod trace;
mod tuning;
mod watch;
