//! From the configuration to what adapters and use cases want to know.

use std::path::Path;
use std::time::Duration;

use crate::adapters::embedded::{RevisionLimits, StoreOptions};
use crate::adapters::rabbitmq::RabbitOptions;
use crate::adapters::redis::{RedisOptions, RedisServers};
use crate::adapters::scylla::{
    ClusterOptions, Consistency, Credentials, MigrateOptions, ScyllaOnly, ScyllaOptions, TlsOptions,
};
use crate::clock::Clock;
use crate::config::{self, Config, Mode, Tablets};
use crate::publish::PublishLimits;
use crate::reader::ReadLimits;
use crate::relay::RelayLimits;
use crate::tuning::Configured;

/// How long `fanfold migrate` waits for another process that is migrating.
const LEASE_WAIT: Duration = Duration::from_secs(180);

/// A node that sentinels name, whose host replaces this one: no credentials, no encryption, the first database.
const ANY_NODE: &str = "redis://localhost";

/// The embedded store.
pub fn store_options(config: &Config, clock: &Clock) -> StoreOptions {
    let store = &config.store;
    StoreOptions {
        cache_bytes: store.cache_bytes,
        memtable_bytes: store.memtable_bytes,
        journal_bytes_max: store.journal_bytes_max,
        commit_jobs_max: store.commit_jobs_max as usize,
        commit_bytes_max: usize::try_from(store.commit_bytes_max).unwrap_or(usize::MAX),
        commit_bulk_bytes_max: usize::try_from(store.commit_bulk_bytes_max).unwrap_or(usize::MAX),
        free_bytes_min: store.free_bytes_min,
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
        idempotency_ttl: Duration::from_secs(config.publish.idempotency_ttl_s),
        clock: clock.clone(),
    }
}

/// What a producer may send.
pub fn publish_limits(config: &Config) -> PublishLimits {
    let publish = &config.publish;
    PublishLimits {
        viewer_id_bytes_max: publish.viewer_id_bytes_max,
        data_bytes_max: publish.data_bytes_max,
        type_bytes_max: publish.type_bytes_max,
        thread_key_bytes_max: publish.thread_key_bytes_max,
        idempotency_key_bytes_max: publish.idempotency_key_bytes_max,
        lifetime_max: Duration::from_secs(publish.lifetime_s_max),
        chunk_size: config.fanout.chunk_size,
    }
}

/// What readers get.
pub fn read_limits(config: &Config) -> ReadLimits {
    ReadLimits {
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
        items_max: config.inbox.items_max,
        token_age_max: Duration::from_secs(config.revisions.token_age_s_max),
    }
}

/// How relays pace themselves.
pub fn relay_limits(config: &Config) -> RelayLimits {
    let relay = &config.relay;
    RelayLimits {
        tick: Duration::from_millis(relay.tick_ms),
        redrive_after: Duration::from_millis(relay.redrive_after_ms),
        redrive_after_max: Duration::from_millis(relay.redrive_after_ms_max),
        garbage_after: Duration::from_secs(relay.garbage_after_s),
        scan_max: relay.scan_max,
        queue_survives: config.service.mode == Mode::Cluster,
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
    }
}

/// The embedded revisions.
pub fn revision_limits(config: &Config) -> RevisionLimits {
    RevisionLimits {
        records_max: usize::try_from(config.revisions.records_max).unwrap_or(usize::MAX),
        waiters_max: config.revisions.waiters_max as usize,
    }
}

/// What a worker goes by where nothing is tuned.
pub fn configured(config: &Config) -> Configured {
    let (fanout, scylla) = (&config.fanout, &config.scylla);
    let rows = scylla.rows_in_flight_max;
    // In the order of `Knob::ALL`.
    Configured {
        values: [fanout.workers_small, fanout.workers_bulk, rows, config.rabbitmq.prefetch, scylla.batch_rows_max],
    }
}

/// Where the cluster is.
pub fn cluster(config: &Config) -> ClusterOptions {
    let scylla = &config.scylla;
    let filled = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let credentials = filled(&scylla.user).map(|user| Credentials { user, password: scylla.password.expose().into() });
    ClusterOptions {
        contact_points: scylla.contact_points.clone(),
        keyspace: scylla.keyspace.clone(),
        datacenter: filled(&scylla.datacenter),
        replication_factor: scylla.replication_factor,
        replication: scylla.replication.clone(),
        consistency: match scylla.consistency {
            config::Consistency::LocalQuorum => Consistency::LocalQuorum,
            config::Consistency::Quorum => Consistency::Quorum,
            config::Consistency::EachQuorum => Consistency::EachQuorum,
        },
        credentials,
        tls: scylla.tls.then(|| TlsOptions { ca_file: file(&scylla.tls_ca_file) }),
        connect_timeout: ms(scylla.connect_timeout_ms),
    }
}

/// The store of cluster mode.
pub fn scylla(config: &Config, clock: &Clock) -> ScyllaOptions {
    let scylla = &config.scylla;
    ScyllaOptions {
        cluster: cluster(config),
        connections_per_shard: scylla.connections_per_shard as usize,
        in_flight_max: scylla.requests_in_flight_max as usize,
        read_timeout: ms(scylla.read_timeout_ms),
        write_timeout: ms(scylla.write_timeout_ms),
        lwt_timeout: ms(scylla.lwt_timeout_ms),
        batch_rows_max: scylla.batch_rows_max as usize,
        rows_in_flight_max: scylla.rows_in_flight_max as usize,
        request_concurrency: scylla.request_concurrency as usize,
        inbox_ttl: Duration::from_secs(config.inbox.ttl_s),
        idempotency_ttl: Duration::from_secs(config.publish.idempotency_ttl_s),
        clock: clock.clone(),
        store_clock: None,
    }
}

/// How to migrate the schema.
pub fn migration(config: &Config, clock: &Clock) -> MigrateOptions {
    let tablets = match config.scylla.tablets {
        Tablets::Default => None,
        Tablets::On => Some(true),
        Tablets::Off => Some(false),
    };
    MigrateOptions {
        cluster: cluster(config),
        scylla: ScyllaOnly { tablets, incremental_compaction: config.scylla.incremental_compaction },
        lease_wait: LEASE_WAIT,
        clock: clock.clone(),
    }
}

/// The queue of cluster mode.
pub fn rabbitmq(config: &Config) -> RabbitOptions {
    let rabbitmq = &config.rabbitmq;
    RabbitOptions {
        url: rabbitmq.url.expose().to_owned(),
        tls_ca_file: file(&rabbitmq.tls_ca_file),
        prefix: rabbitmq.prefix.clone(),
        tasks_max: config.fanout.queue_tasks_max as usize,
        fair_queues: rabbitmq.fair_queues as usize,
        prefetch: u16::try_from(rabbitmq.prefetch).unwrap_or(u16::MAX),
        window: rabbitmq.confirms_in_flight_max as usize,
        deliveries_max: rabbitmq.deliveries_max,
        timeout: ms(rabbitmq.timeout_ms),
    }
}

/// The revisions of cluster mode.
pub fn redis(config: &Config, clock: &Clock) -> RedisOptions {
    let redis = &config.redis;
    let urls = redis.urls.iter().map(|url| url.expose().to_owned()).collect();
    let servers = if redis.sentinel_master.is_empty() {
        RedisServers::Nodes(urls)
    } else {
        let node = if redis.node_url.is_empty() { ANY_NODE } else { redis.node_url.expose() };
        RedisServers::Sentinel { sentinels: urls, master: redis.sentinel_master.clone(), node: node.to_owned() }
    };
    RedisOptions {
        servers,
        tls_ca_file: file(&redis.tls_ca_file),
        key_prefix: redis.key_prefix.clone(),
        connect_timeout: ms(redis.connect_timeout_ms),
        response_timeout: ms(redis.response_timeout_ms),
        in_flight_max: redis.commands_in_flight_max as usize,
        record_ttl: Duration::from_secs(redis.record_ttl_s),
        check_every: ms(redis.fence_check_ms),
        confirm_max: ms(redis.fence_confirm_ms_max),
        waiters_max: config.revisions.waiters_max as usize,
        clock: clock.clone(),
    }
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn file(path: &Path) -> Option<std::path::PathBuf> {
    Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty())
}
