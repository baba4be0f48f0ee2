//! The sections for cluster mode.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// A text that is never shown: a password, or a URL that may hold one.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(secret)" })
    }
}

/// What this process is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Service {
    pub mode: Mode,
    pub wait_for_s: u32,
}

/// Where the truth lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// In this process.
    Embedded,
    /// In ScyllaDB, RabbitMQ and Redis.
    Cluster,
}

/// The store of cluster mode.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Scylla {
    pub contact_points: Vec<String>,
    pub keyspace: String,
    pub datacenter: String,
    pub replication_factor: u32,
    pub replication: String,
    pub consistency: Consistency,
    pub user: String,
    pub password: Secret,
    pub tls: bool,
    pub tls_ca_file: PathBuf,
    pub tablets: Tablets,
    pub incremental_compaction: bool,
    pub connections_per_shard: u32,
    pub requests_in_flight_max: u32,
    pub request_concurrency: u32,
    pub rows_in_flight_max: u32,
    pub batch_rows_max: u32,
    pub connect_timeout_ms: u64,
    pub read_timeout_ms: u64,
    pub write_timeout_ms: u64,
    pub lwt_timeout_ms: u64,
}

/// How many copies must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// A quorum of this data centre.
    LocalQuorum,
    /// A quorum of all copies.
    Quorum,
    /// A quorum of each data centre, for writes; reads take a local one.
    EachQuorum,
}

/// Whether a new keyspace uses tablets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tablets {
    /// As the cluster likes.
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// The queue of cluster mode.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Rabbitmq {
    pub url: Secret,
    pub tls_ca_file: PathBuf,
    pub prefix: String,
    pub fair_queues: u32,
    pub prefetch: u32,
    pub confirms_in_flight_max: u32,
    pub deliveries_max: u32,
    pub timeout_ms: u64,
}

/// The revisions of cluster mode.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Redis {
    pub urls: Vec<Secret>,
    pub sentinel_master: String,
    pub node_url: Secret,
    pub tls_ca_file: PathBuf,
    pub key_prefix: String,
    pub connect_timeout_ms: u64,
    pub response_timeout_ms: u64,
    pub commands_in_flight_max: u32,
    pub record_ttl_s: u64,
    pub fence_check_ms: u64,
    pub fence_confirm_ms_max: u64,
}

/// A worker process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Worker {
    pub listen: SocketAddr,
    pub threads: u32,
    pub connections_max: u32,
}
