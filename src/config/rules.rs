//! What each key may be: one table, from which come the checks, the messages and the list of known keys.

use std::net::SocketAddr;

use toml::Value;

use crate::error::{Error, Result};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_S: u64 = 86_400;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// A whole number, both bounds included.
    Whole { min: u64, max: u64 },
    /// `true` or `false`.
    Flag,
    /// An IP address and a port.
    Address,
    /// Text that is not empty.
    Text,
    /// Text that may be empty.
    AnyText,
    /// Text that may be empty and is never shown.
    Secret,
    /// A list of texts, none of them empty; in the environment separated by commas.
    Texts,
    /// The same, never shown.
    Secrets,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// Every key and its rule, in the order of `config.default.toml`. The tests hold the two, and the struct, together.
pub(super) const RULES: &[(&str, Rule)] = &[
    ("service.mode", Rule::Word(&["embedded", "cluster"])),
    ("service.wait_for_s", whole(0, 3_600)),
    ("http.listen", Rule::Address),
    ("http.insecure_listen_beyond_loopback", Rule::Flag),
    ("http.connections_max", whole(1, 1_000_000)),
    ("http.connections_per_address_max", whole(0, 1_000_000)),
    ("http.header_read_timeout_ms", whole(100, 10 * MINUTE_MS)),
    ("http.idle_timeout_s", whole(1, DAY_S)),
    ("http.body_read_timeout_ms", whole(100, HOUR_MS)),
    ("http.answer_write_timeout_ms", whole(100, HOUR_MS)),
    // hyper panics below 8 KiB.
    ("http.headers_bytes_max", whole(8 * KIB, MIB)),
    ("http.request_body_bytes_max", whole(KIB, GIB)),
    ("http.batch_body_bytes_max", whole(KIB, GIB)),
    ("http.bodies_bytes_max", whole(KIB, TIB)),
    ("http.wait_s_max", whole(0, 300)),
    ("http.shutdown_grace_s", whole(0, 600)),
    ("publish.audience_max", whole(1, 1_000_000)),
    ("publish.viewer_id_bytes_max", whole(1, 128)),
    ("publish.data_bytes_max", whole(2, 16 * MIB)),
    ("publish.type_bytes_max", whole(1, KIB)),
    ("publish.thread_key_bytes_max", whole(1, KIB)),
    ("publish.batch_max", whole(1, 10_000)),
    ("publish.batch_concurrency", whole(1, 1_024)),
    // Ten years, well below the twenty that a CQL time to live may have.
    ("publish.lifetime_s_max", whole(1, 3_650 * DAY_S)),
    ("publish.idempotency_key_bytes_max", whole(1, KIB)),
    ("publish.idempotency_ttl_s", whole(1, 30 * DAY_S)),
    ("inbox.ttl_s", whole(1, 3_650 * DAY_S)),
    ("inbox.items_max", whole(1, 10_000)),
    ("inbox.page_default", whole(1, 1_000)),
    ("inbox.page_max", whole(1, 1_000)),
    ("inbox.marks_max", whole(1, 10_000)),
    ("inbox.body_cache_bytes_max", whole(0, TIB)),
    ("revisions.records_max", whole(1, 1_000_000_000)),
    ("revisions.token_age_s_max", whole(1, 30 * DAY_S)),
    ("revisions.query_max", whole(1, 10_000)),
    ("revisions.waiters_max", whole(1, 1_000_000)),
    ("poll.interval_s", whole(1, 3_600)),
    ("poll.interval_s_max", whole(1, 3_600)),
    ("poll.requests_in_flight_high", whole(1, 1_000_000)),
    ("fanout.chunk_size", whole(1, 10_000)),
    ("fanout.workers_small", whole(1, 256)),
    ("fanout.workers_bulk", whole(1, 256)),
    ("fanout.queue_tasks_max", whole(1, 1_000_000)),
    ("fanout.attempts_max", whole(1, 1_000)),
    ("relay.tick_ms", whole(10, MINUTE_MS)),
    ("relay.redrive_after_ms", whole(10, HOUR_MS)),
    ("relay.redrive_after_ms_max", whole(10, 24 * HOUR_MS)),
    ("relay.garbage_after_s", whole(2, 365 * DAY_S)),
    ("relay.scan_max", whole(1, 1_000_000)),
    ("store.data", Rule::Text),
    ("store.cache_bytes", whole(MIB, TIB)),
    ("store.memtable_bytes", whole(MIB, 4 * GIB)),
    // fjall panics below 64 MiB.
    ("store.journal_bytes_max", whole(64 * MIB, 64 * GIB)),
    ("store.free_bytes_min", whole(0, TIB)),
    ("store.commit_jobs_max", whole(1, 65_536)),
    ("store.commit_bytes_max", whole(64 * KIB, GIB)),
    ("store.commit_bulk_bytes_max", whole(KIB, GIB)),
    ("store.sweep_every_s", whole(1, 86_400)),
    ("scylla.contact_points", Rule::Texts),
    ("scylla.keyspace", Rule::Text),
    ("scylla.datacenter", Rule::AnyText),
    ("scylla.replication_factor", whole(1, 100)),
    ("scylla.replication", Rule::AnyText),
    ("scylla.consistency", Rule::Word(&["local_quorum", "quorum", "each_quorum"])),
    ("scylla.user", Rule::AnyText),
    ("scylla.password", Rule::Secret),
    ("scylla.tls", Rule::Flag),
    ("scylla.tls_ca_file", Rule::AnyText),
    ("scylla.tablets", Rule::Word(&["default", "on", "off"])),
    ("scylla.incremental_compaction", Rule::Flag),
    ("scylla.connections_per_shard", whole(1, 64)),
    ("scylla.requests_in_flight_max", whole(1, 65_536)),
    ("scylla.request_concurrency", whole(1, 4_096)),
    ("scylla.rows_in_flight_max", whole(1, 100_000)),
    ("scylla.batch_rows_max", whole(1, 100)),
    ("scylla.connect_timeout_ms", whole(100, 10 * MINUTE_MS)),
    ("scylla.read_timeout_ms", whole(10, 10 * MINUTE_MS)),
    ("scylla.write_timeout_ms", whole(10, 10 * MINUTE_MS)),
    ("scylla.lwt_timeout_ms", whole(10, 10 * MINUTE_MS)),
    ("rabbitmq.url", Rule::Secret),
    ("rabbitmq.tls_ca_file", Rule::AnyText),
    ("rabbitmq.prefix", Rule::Text),
    ("rabbitmq.fair_queues", whole(1, 64)),
    ("rabbitmq.prefetch", whole(1, 1_000)),
    ("rabbitmq.confirms_in_flight_max", whole(1, 65_535)),
    ("rabbitmq.deliveries_max", whole(1, 1_000)),
    ("rabbitmq.timeout_ms", whole(10, 10 * MINUTE_MS)),
    ("redis.urls", Rule::Secrets),
    ("redis.sentinel_master", Rule::AnyText),
    ("redis.node_url", Rule::Secret),
    ("redis.tls_ca_file", Rule::AnyText),
    ("redis.key_prefix", Rule::Text),
    ("redis.connect_timeout_ms", whole(10, 10 * MINUTE_MS)),
    ("redis.response_timeout_ms", whole(10, 10 * MINUTE_MS)),
    ("redis.commands_in_flight_max", whole(1, 65_536)),
    ("redis.record_ttl_s", whole(60, 365 * DAY_S)),
    ("redis.fence_check_ms", whole(50, MINUTE_MS)),
    ("redis.fence_confirm_ms_max", whole(100, 10 * MINUTE_MS)),
    ("worker.listen", Rule::Address),
    ("worker.threads", whole(1, 64)),
    ("worker.connections_max", whole(1, 1_000_000)),
    ("log.format", Rule::Word(&["text", "json"])),
    ("log.filter", Rule::Text),
    ("access.mode", Rule::Word(&["off", "on"])),
    ("access.keys_max", whole(1, 100_000)),
    ("access.key_ttl_s_max", whole(1, 3_650 * DAY_S)),
    // What is promised: a revoked key is refused within five seconds.
    ("access.key_age_ms_max", whole(100, 5_000)),
    ("access.unknown_keys_cached_max", whole(1, 100_000_000)),
    ("access.use_noted_every_s", whole(1, DAY_S)),
    ("access.ended_keys_kept_s", whole(1, 3_650 * DAY_S)),
    ("access.rotation_overlap_s_max", whole(0, 365 * DAY_S)),
    ("access.jwks", Rule::Secret),
    ("access.jwks_file", Rule::AnyText),
    ("access.jwks_reload_ms", whole(10, HOUR_MS)),
    ("access.audience", Rule::AnyText),
    ("access.leeway_s", whole(0, 300)),
    ("access.credential_bytes_max", whole(512, 64 * KIB)),
    ("access.tokens_cached_max", whole(0, 100_000_000)),
    ("access.token_ttl_s_max", whole(1, 365 * DAY_S)),
    ("access.refusals_logged_per_s_max", whole(0, 1_000_000)),
    ("quota.posts_per_s", whole(0, 1_000_000)),
    ("quota.posts_burst", whole(1, 1_000_000_000)),
    ("quota.rows_per_s", whole(0, 1_000_000_000)),
    ("quota.rows_burst", whole(1, 1_000_000_000_000)),
    ("quota.bytes_per_s", whole(0, TIB)),
    ("quota.bytes_burst", whole(1, TIB)),
    ("quota.polls_per_s", whole(0, 1_000_000)),
    ("quota.polls_burst", whole(1, 1_000_000)),
    ("quota.viewers_tracked_max", whole(1, 1_000_000_000)),
    ("quota.shared_timeout_ms", whole(1, MINUTE_MS)),
    ("quota.shared_pause_ms", whole(10, MINUTE_MS)),
    ("cors.origins", Rule::AnyText),
    ("cors.max_age_s", whole(0, DAY_S)),
    ("tls.certificate_file", Rule::AnyText),
    ("tls.key_file", Rule::AnyText),
    ("tls.reload_ms", whole(10, HOUR_MS)),
    ("tls.handshake_timeout_ms", whole(100, 10 * MINUTE_MS)),
];

const fn whole(min: u64, max: u64) -> Rule {
    Rule::Whole { min, max }
}

/// The rule of a dotted key, if there is such a key.
pub(super) fn rule(key: &str) -> Option<Rule> {
    RULES.iter().find(|(known, _)| *known == key).map(|(_, rule)| *rule)
}

/// Every key, dotted.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|(key, _)| *key)
}

/// Every section, some more than once.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    keys().filter_map(|key| key.split_once('.')).map(|(section, _)| section)
}

impl Rule {
    /// Checks a value of `key`; the error says what was expected, what came, and the `origin` it came from.
    pub(super) fn check(self, key: &str, value: &Value, origin: &str) -> Result<()> {
        let fits = match (self, value) {
            (Rule::Whole { min, max }, Value::Integer(number)) => return in_range(key, *number, min, max, origin),
            (Rule::Flag, Value::Boolean(_)) => true,
            (Rule::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Rule::Text, Value::String(text)) => !text.is_empty(),
            (Rule::Word(words), Value::String(text)) => words.contains(&text.as_str()),
            (Rule::AnyText | Rule::Secret, Value::String(_)) => true,
            (Rule::Texts | Rule::Secrets, Value::Array(list)) => {
                !list.is_empty() && list.iter().all(|text| text.as_str().is_some_and(|text| !text.is_empty()))
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let detail = match self {
            Rule::Secret | Rule::Secrets => format!("must be {} ({origin})", self.expected()),
            _ => format!("must be {}, is {value} ({origin})", self.expected()),
        };
        Err(Error::invalid("invalid_config", key, detail))
    }

    /// A value from the environment, where all is text. What does not read as the rule wants stays text, for
    /// [`Rule::check`] to complain about.
    pub(super) fn read(self, text: String) -> Value {
        let typed = match self {
            Rule::Whole { .. } | Rule::Flag => text.parse().ok(),
            Rule::Texts | Rule::Secrets => {
                Some(Value::Array(text.split(',').map(|part| Value::String(part.trim().to_owned())).collect()))
            }
            Rule::Address | Rule::Text | Rule::AnyText | Rule::Secret | Rule::Word(_) => None,
        };
        typed.unwrap_or(Value::String(text))
    }

    /// The rule in words, to come after "must be".
    pub(super) fn expected(self) -> String {
        match self {
            Rule::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Rule::Flag => "true or false".to_owned(),
            Rule::Address => "an IP address and a port such as \"127.0.0.1:8470\"".to_owned(),
            Rule::Text => "text that is not empty".to_owned(),
            Rule::AnyText | Rule::Secret => "text".to_owned(),
            Rule::Texts | Rule::Secrets => "a list of texts that are not empty".to_owned(),
            Rule::Word(words) => format!("\"{}\"", words.join("\" or \"")),
        }
    }
}

/// Whether a key's value is a secret.
pub(super) fn is_secret(key: &str) -> bool {
    matches!(rule(key), Some(Rule::Secret | Rule::Secrets))
}

fn in_range(key: &str, number: i64, min: u64, max: u64, origin: &str) -> Result<()> {
    // The pair in the error cannot hold a negative number and says 0; the sentence shows what was written.
    let value = u64::try_from(number).ok();
    if value.is_some_and(|value| (min..=max).contains(&value)) {
        return Ok(());
    }
    let limit = if value.is_some_and(|value| value > max) { max } else { min };
    let detail = format!("must be {min} to {max}, is {number} ({origin})");
    Err(Error::limit("invalid_config", key, detail, limit, value.unwrap_or(0)))
}

/// The candidate that was most likely meant by `name`: by edit distance, or by that of the part after the last
/// `separator` alone, since people forget or mistake the section more often than the key.
pub(super) fn nearest<'a>(name: &str, separator: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    let tail = |name: &'_ str| name.rsplit(separator).next().unwrap_or_default().to_owned();
    let distance = |candidate: &str| {
        let whole = strsim::damerau_levenshtein(name, candidate);
        let last = strsim::damerau_levenshtein(&tail(name), &tail(candidate));
        whole.min(last + 1)
    };
    candidates.min_by_key(|candidate| distance(candidate)).unwrap_or_default()
}
