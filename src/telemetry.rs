//! What operators see: log lines on standard error, metrics in the Prometheus text format.
//!
//! Metric names follow Prometheus: base units, `_total` on counters. No label ever holds a viewer, a post or anything else
//! without a small bound.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};
use crate::error::{Error, Result};

/// Upper bounds of the histograms' buckets, in seconds: from a poll answered out of memory to a giant post's fan-out.
const SECONDS_BUCKETS: [f64; 16] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// How often [`upkeep`] runs. Histograms keep every sample until then (or until a scrape), so it bounds their memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The target of the audit log.
const AUDIT: &str = "audit";
/// What lets it through.
const AUDIT_DIRECTIVE: &str = "audit=info";

/// What the targets of the broker's driver begin with. At the level trace it writes down its password: in the URL that it
/// connects to (`amq_protocol_tcp`), in the frames that it sends or drops and in its commands (`lapin`). The drivers of
/// the store and of Redis show theirs at no level.
const TELLTALES: [&str; 2] = ["amq_protocol", "lapin"];

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts logging for the whole process. Fails on a filter that cannot be read, and when called twice.
pub fn init_logging(config: &Log) -> Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&config.filter)?).with_writer(io::stderr);
    // Where nobody reads standard error any more, to say so there would end in a panic at every line.
    let builder = builder.log_internal_errors(false);
    let started = match config.format {
        LogFormat::Json => discreet(builder.json().flatten_event(true).with_span_list(false).finish()).try_init(),
        // Colours are on unless NO_COLOR is set; the subscriber looks at it itself. A pipe or a file wants none either.
        LogFormat::Text if !io::stderr().is_terminal() => discreet(builder.with_ansi(false).finish()).try_init(),
        LogFormat::Text => discreet(builder.finish()).try_init(),
    };
    started.map_err(|error| Error::internal("cannot start logging").with_source(error))
}

fn filter(text: &str) -> Result<EnvFilter> {
    with_audit(text).map_err(|error| {
        let detail = format!("must be directives such as \"info,fanfold=debug\", is {text:?}");
        Error::invalid("invalid_config", "log.filter", detail).with_source(error)
    })
}

/// The filter that was asked for, and the audit log: who wants fewer lines does not mean to lose the record of who did
/// what, unless they say so by its name.
fn with_audit(text: &str) -> Result<EnvFilter, ParseError> {
    let asked = EnvFilter::builder().parse(text)?;
    let is_named = text.split(',').any(|directive| directive.split(['=', '[']).next() == Some(AUDIT));
    Ok(if is_named { asked } else { asked.add_directive(AUDIT_DIRECTIVE.parse()?) })
}

/// A subscriber that is never told what may show a password. Not a directive of the filter: a longer target or the name of
/// a span would go before it.
fn discreet(subscriber: impl Subscriber + Send + Sync) -> impl Subscriber + Send + Sync + 'static {
    subscriber.with(filter_fn(may_be_told))
}

fn may_be_told(metadata: &Metadata<'_>) -> bool {
    *metadata.level() != Level::TRACE || !TELLTALES.iter().any(|target| metadata.target().starts_with(target))
}

/// Installs the metrics recorder for the whole process, once; later calls give the same handle. Spawns nothing: the
/// caller runs [`upkeep`].
pub fn install_metrics() -> PrometheusHandle {
    METRICS.get_or_init(install_recorder).clone()
}

fn install_recorder() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        // Fails only on an empty list of buckets.
        .expect("there are buckets")
        .build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is installed; this one stays empty");
    }
    describe();
    gauge!("fanfold_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    refresh_process_metrics();
    handle
}

/// Keeps the metrics' memory bounded and the process metrics fresh; runs until it is dropped.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
        refresh_process_metrics();
    }
}

/// Says what each metric means. The service's own are in the order of the data's flow.
fn describe() {
    describe_histogram!(
        "fanfold_http_request_duration_seconds",
        Unit::Seconds,
        "From a request's head to its answer being ready, long polls included"
    );
    describe_counter!("fanfold_fanout_rows_total", Unit::Count, "Inbox rows handled by fan-out, by result");
    describe_histogram!(
        "fanfold_publish_to_visible_seconds",
        Unit::Seconds,
        "From a post's commit to its rows and bumps being done, by chunk"
    );
    describe_gauge!(
        "fanfold_fanout_lag_seconds",
        Unit::Seconds,
        "Age of the oldest post whose fan-out is not complete, as the relay of each shard last saw it"
    );
    describe_gauge!("fanfold_queue_parked_messages", Unit::Count, "Messages that the broker has set aside");
    describe_gauge!("fanfold_store_up", Unit::Count, "1 while the store can be used, else 0");
    describe_gauge!(
        "fanfold_revisions_up",
        Unit::Count,
        "1 while there is a confirmed fence, else 0: polls answer 503"
    );
    describe_gauge!("fanfold_waiters", Unit::Count, "Long polls that wait for a change; at most revisions.waiters_max");
    describe_gauge!(
        "fanfold_clock_skew_seconds",
        Unit::Seconds,
        "How far this machine's clock is ahead of the store's, as last asked; in a cluster"
    );
    describe_counter!("fanfold_relay_intents_total", Unit::Count, "Lost bumps of marks that the relay has made up for");
    describe_counter!("fanfold_relay_intents_failed_total", Unit::Count, "Tries to make up for one that failed");
    describe_gauge!("fanfold_queue_tasks", Unit::Count, "Fan-out tasks waiting, by lane");
    describe_counter!("fanfold_revision_polls_total", Unit::Count, "Polls answered, by result");
    describe_counter!(
        "fanfold_store_reads_total",
        Unit::Count,
        "Store reads, by the path that caused them; unchanged polls cause none"
    );
    describe_gauge!(
        "fanfold_store_table_bytes",
        Unit::Bytes,
        "Size of the embedded store's tables on disk, by table; journals and what is in memory apart"
    );
    describe_counter!(
        "fanfold_store_swept_total",
        Unit::Count,
        "Entries of the embedded store that had outlived their life and are gone from the disk, by table"
    );
    describe_counter!("fanfold_posts_total", Unit::Count, "Posts published, edited and retracted, by operation");
    describe_counter!(
        "fanfold_queue_overflow_total",
        Unit::Count,
        "Tasks that found their lane full, or gave way in it, and were left to the relay, by lane"
    );
    describe_counter!(
        "fanfold_queue_refusals_total",
        Unit::Count,
        "Tasks that the queue's server has not taken, or not confirmed in time, and that were left to the relay, by lane"
    );
    describe_counter!("fanfold_relay_driven_total", Unit::Count, "Tasks that the relay published again");
    describe_counter!("fanfold_fanout_failures_total", Unit::Count, "Fan-out tasks that failed and will come again");
    describe_counter!("fanfold_fanout_parked_total", Unit::Count, "Fan-out tasks set aside after too many failures");
    describe_counter!(
        "fanfold_relay_parked_total",
        Unit::Count,
        "Chunks that relays parked: no worker has survived them"
    );
    describe_counter!("fanfold_resyncs_total", Unit::Count, "Clients told to read their inbox afresh, by reason");
    describe_counter!(
        "fanfold_access_refused_total",
        Unit::Count,
        "Requests refused for what they showed or for whose post they asked, by code"
    );
    describe_counter!(
        "fanfold_connections_refused_total",
        Unit::Count,
        "Connections closed because their address had as many as it may"
    );
    describe_gauge!(
        "fanfold_bodies_bytes",
        Unit::Bytes,
        "Bodies of requests in memory, at most http.bodies_bytes_max; what they were parsed into apart"
    );
    describe_counter!(
        "fanfold_bodies_refused_total",
        Unit::Count,
        "Requests refused because the bodies of others filled http.bodies_bytes_max"
    );
    describe_counter!(
        "fanfold_jwks_reloads_total",
        Unit::Count,
        "Times that access.jwks_file was read again, by result"
    );
    describe_counter!("fanfold_tls_reloads_total", Unit::Count, "Times that the certificate was read again, by result");
    describe_counter!("fanfold_quota_refused_total", Unit::Count, "Posts and polls beyond a quota, by quota");
    describe_gauge!(
        "fanfold_quota_shared",
        Unit::Count,
        "1 while quotas are counted for all API nodes, 0 while this one goes by its share; in a cluster that has quotas"
    );
    describe_gauge!("fanfold_quota_nodes", Unit::Count, "API nodes that share the quotas");
    describe_gauge!("fanfold_build_info", Unit::Count, "Always 1; the label says which version runs");
    describe_gauge!("process_resident_memory_bytes", Unit::Bytes, "Resident memory");
    describe_counter!("process_cpu_seconds_total", Unit::Seconds, "User and system CPU time, in whole seconds");
    describe_gauge!("process_open_fds", Unit::Count, "Open file descriptors");
}

/// Reads what the kernel knows of this process into the metrics. What cannot be read keeps its last value: a scrape is
/// not worth failing over it.
pub fn refresh_process_metrics() {
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    // A counter of the recorder holds whole numbers. Over the minutes that rates are taken of, the fraction is no loss.
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    counter!("process_cpu_seconds_total").absolute(u64::try_from(cpu.tv_sec).unwrap_or(0));
    if let Some(count) = open_fds() {
        gauge!("process_open_fds").set(count as f64);
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_fds() -> Option<u64> {
    // Since Linux 6.2 the directory's size is the count. Listing it takes milliseconds with many connections.
    let size = std::fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 {
        return Some(size);
    }
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    // Not the one that the listing itself holds open.
    Some(listed.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_bad_filter_is_told_with_its_key() {
        for good in ["info", "warn,fanfold=debug", "off"] {
            filter(good).expect(good);
        }
        let error = filter("info,fanfold=loud").expect_err("no such level");
        assert_eq!((error.code(), error.field()), ("invalid_config", Some("log.filter")));
        assert!(error.detail().contains("fanfold=loud"), "{error}");
    }

    #[test]
    fn the_audit_log_is_in_every_filter_that_does_not_name_it() {
        for (own, effective) in [
            ("warn", "audit=info,warn"),
            ("off", "audit=info,off"),
            ("trace", "audit=info,trace"),
            ("", "audit=info"),
            ("info,audits=off", "audits=off,audit=info,info"),
            ("warn,audit=off", "audit=off,warn"),
            ("audit=warn,info", "audit=warn,info"),
            ("audit", "audit=trace"),
        ] {
            assert_eq!(filter(own).expect(own).to_string(), effective, "of {own:?}");
        }
        let lines = || {
            tracing::info!(target: "audit", "a key was made");
            tracing::info!("a start");
        };
        let told = written("warn", lines);
        assert!(told.contains("a key was made") && !told.contains("a start"), "{told}");
        assert_eq!(written("warn,audit=off", lines), "");
    }

    #[test]
    fn no_filter_lets_a_driver_show_its_password() {
        let lines = || {
            tracing::info_span!(target: "lapin::io_loop", "io_loop").in_scope(|| {
                tracing::trace!(target: "amq_protocol_tcp", "HUSH");
                tracing::trace!(target: "lapin::io_loop", "HUSH");
                tracing::trace!(target: "lapin::frames", "HUSH");
                tracing::trace!(target: "lapin::internal_rpc", "HUSH");
                tracing::debug!(target: "lapin::io_loop", "throttling");
            });
        };
        for own in ["trace", "off,lapin=trace", "lapin::io_loop=trace,amq_protocol_tcp=trace", "[io_loop]=trace"] {
            let told = written(own, lines);
            assert!(told.contains("throttling") && !told.contains("HUSH"), "{own}: {told}");
        }
    }

    /// What a process with this filter would write.
    fn written(own: &str, lines: impl FnOnce()) -> String {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let builder = tracing_subscriber::fmt().with_env_filter(filter(own).expect(own)).with_ansi(false);
        let subscriber = discreet(builder.with_writer(file.reopen().expect("the file")).finish());
        tracing::subscriber::with_default(subscriber, lines);
        std::fs::read_to_string(file.path()).expect("UTF-8")
    }

    /// The name after each `start` in the sources, white space between them apart.
    fn named(text: &str, start: &str) -> BTreeSet<String> {
        let after = text.split(start).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
        after.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect()
    }

    #[test]
    fn every_metric_says_what_it_means_and_none_is_described_that_is_not_there() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let (mut used, mut described) = (BTreeSet::new(), BTreeSet::new());
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                for kind in ["counter!(", "gauge!(", "histogram!("] {
                    described.append(&mut named(text, &format!("describe_{kind}")));
                    used.append(&mut named(&text.replace(&format!("describe_{kind}"), ""), kind));
                }
            }
        }
        assert!(used.len() > 20, "{used:?}");
        assert_eq!(used, described);
    }

    #[test]
    fn metrics_install_once_and_render() {
        let handle = install_metrics();
        metrics::histogram!("fanfold_publish_to_visible_seconds").record(0.003);
        let text = install_metrics().render();
        for line in [
            concat!("fanfold_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# TYPE process_cpu_seconds_total counter",
            "fanfold_publish_to_visible_seconds_bucket{le=\"0.005\"} 1",
            "fanfold_publish_to_visible_seconds_bucket{le=\"60\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        handle.run_upkeep();
        assert!(resident_bytes() > Some(0) && open_fds() > Some(2));
    }
}
