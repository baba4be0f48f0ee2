//! Configuration: parsed once, checked, then only read. `config.default.toml` is the manual and the defaults.

mod access;
mod cluster;
mod load;
mod rules;
#[cfg(test)]
mod tests;

pub use access::{Access, AccessMode, Cors, Quota, Tls};
pub use cluster::{Consistency, Mode, Rabbitmq, Redis, Scylla, Secret, Service, Tablets, Worker};
pub use load::{DEFAULT_TOML, Overrides, load};

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// Everything that can be set. Field names carry their unit; what each means stands in `config.default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Config {
    pub service: Service,
    pub http: Http,
    pub publish: Publish,
    pub inbox: Inbox,
    pub revisions: Revisions,
    pub poll: Poll,
    pub fanout: Fanout,
    pub relay: Relay,
    pub store: Store,
    pub scylla: Scylla,
    pub rabbitmq: Rabbitmq,
    pub redis: Redis,
    pub worker: Worker,
    pub log: Log,
    pub access: Access,
    pub quota: Quota,
    pub cors: Cors,
    pub tls: Tls,
}

/// The HTTP server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Http {
    pub listen: SocketAddr,
    pub insecure_listen_beyond_loopback: bool,
    pub connections_max: u32,
    pub connections_per_address_max: u32,
    pub header_read_timeout_ms: u64,
    pub idle_timeout_s: u32,
    pub body_read_timeout_ms: u64,
    pub answer_write_timeout_ms: u64,
    pub headers_bytes_max: u32,
    pub request_body_bytes_max: u64,
    pub batch_body_bytes_max: u64,
    pub bodies_bytes_max: u64,
    pub wait_s_max: u32,
    pub shutdown_grace_s: u32,
}

/// Accepting posts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Publish {
    pub audience_max: u32,
    pub viewer_id_bytes_max: u32,
    pub data_bytes_max: u32,
    pub type_bytes_max: u32,
    pub thread_key_bytes_max: u32,
    pub batch_max: u32,
    pub batch_concurrency: u32,
    pub lifetime_s_max: u64,
    pub idempotency_key_bytes_max: u32,
    pub idempotency_ttl_s: u64,
}

/// Inboxes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Inbox {
    pub ttl_s: u64,
    pub items_max: u32,
    pub page_default: u32,
    pub page_max: u32,
    pub marks_max: u32,
    pub body_cache_bytes_max: u64,
}

/// Revision records and tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Revisions {
    pub records_max: u64,
    pub token_age_s_max: u64,
    pub query_max: u32,
    pub waiters_max: u32,
}

/// How often clients are told to poll.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Poll {
    pub interval_s: u32,
    pub interval_s_max: u32,
    pub requests_in_flight_high: u32,
}

/// Fan-out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Fanout {
    pub chunk_size: u32,
    pub workers_small: u32,
    pub workers_bulk: u32,
    pub queue_tasks_max: u32,
    pub attempts_max: u32,
}

/// The relay.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Relay {
    pub tick_ms: u64,
    pub redrive_after_ms: u64,
    pub redrive_after_ms_max: u64,
    pub garbage_after_s: u64,
    pub scan_max: u32,
}

/// The embedded store.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Store {
    pub data: PathBuf,
    pub cache_bytes: u64,
    pub memtable_bytes: u64,
    pub journal_bytes_max: u64,
    pub free_bytes_min: u64,
    pub commit_jobs_max: u32,
    pub commit_bytes_max: u64,
    pub commit_bulk_bytes_max: u64,
    pub sweep_every_s: u64,
}

/// Logging, to standard error.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Log {
    pub format: LogFormat,
    pub filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
