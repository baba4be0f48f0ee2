//! The sections about who may do what, from where, and over which wire.

use serde::Deserialize;

use super::Secret;

/// Keys and tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Access {
    pub mode: AccessMode,
    pub keys_max: u32,
    pub key_ttl_s_max: u64,
    pub key_age_ms_max: u64,
    pub unknown_keys_cached_max: u64,
    pub use_noted_every_s: u64,
    pub ended_keys_kept_s: u64,
    pub rotation_overlap_s_max: u64,
    pub jwks: Secret,
    pub jwks_file: String,
    pub jwks_reload_ms: u64,
    pub audience: String,
    pub leeway_s: u32,
    pub credential_bytes_max: u32,
    pub tokens_cached_max: u64,
    pub token_ttl_s_max: u64,
    pub refusals_logged_per_s_max: u32,
}

/// Whether anybody has to show anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// Whoever can connect may do everything.
    Off,
    /// Producers show keys, viewers tokens.
    On,
}

/// How much a key may publish, and how often a viewer may poll.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Quota {
    pub posts_per_s: u64,
    pub posts_burst: u64,
    pub rows_per_s: u64,
    pub rows_burst: u64,
    pub bytes_per_s: u64,
    pub bytes_burst: u64,
    pub polls_per_s: u64,
    pub polls_burst: u64,
    pub viewers_tracked_max: u64,
    pub shared_timeout_ms: u64,
    pub shared_pause_ms: u64,
}

impl Quota {
    /// Whether anything is limited.
    pub fn is_set(&self) -> bool {
        [self.posts_per_s, self.rows_per_s, self.bytes_per_s, self.polls_per_s].iter().any(|rate| *rate > 0)
    }
}

/// Which web pages may call the API from a browser.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Cors {
    pub origins: String,
    pub max_age_s: u32,
}

impl Cors {
    /// The origins, one by one; a `*` among them stands for all.
    pub fn origins(&self) -> impl Iterator<Item = &str> {
        self.origins.split(',').map(str::trim).filter(|origin| !origin.is_empty())
    }
}

/// TLS of our own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Tls {
    pub certificate_file: String,
    pub key_file: String,
    pub reload_ms: u64,
    pub handshake_timeout_ms: u64,
}

impl Tls {
    /// Whether it is asked for.
    pub fn is_on(&self) -> bool {
        !self.certificate_file.is_empty()
    }
}
