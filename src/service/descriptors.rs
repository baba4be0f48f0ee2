//! The limit of open files: raised as far as it goes, and no more connections accepted than fit below it.
//!
//! Who runs out of descriptors can open no file either, and a storage engine that could not write out a table takes no
//! more writes until a restart. So connections, which clients open as they like, must never be what uses them up.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::{Config, Mode};
use crate::error::{Error, Kind, Result};

/// What an embedded service may have open beside connections. Its storage engine keeps 900 tables open. Beyond those, each
/// of up to 512 threads that read opens the table it looks into, and each of four merges at a time some thirty tables. What
/// is left is for journals, for files that are read again (certificates, tokens' keys), and for the process itself.
const RESERVE_EMBEDDED: u64 = 1_600;
/// The same for a process of a cluster: connections to the servers, most of them one to each shard of each store node.
const RESERVE_CLUSTER: u64 = 500;
/// A service with room for fewer connections than this had better not start: its clients would wait for one another.
const CONNECTIONS_LEAST: u64 = 64;
/// The most that macOS gives a process, although it says that there is no limit.
const OPEN_MAX: u64 = 10_240;

/// How many connections to accept: `http.connections_max`, or as many as fit, which is told.
pub(super) fn connections(config: &Config) -> Result<u32> {
    let reserve = match config.service.mode {
        Mode::Embedded => RESERVE_EMBEDDED,
        Mode::Cluster => RESERVE_CLUSTER,
    };
    let wanted = config.http.connections_max;
    let limit = raise(reserve + u64::from(wanted));
    let accepted = fit(limit, wanted, reserve)?;
    if accepted < wanted {
        warn!(
            limit,
            reserve,
            connections_max = wanted,
            accepted,
            "http.connections_max does not fit below the limit of open files, fewer connections are accepted; raise the \
             limit (ulimit -n, LimitNOFILE of systemd, --ulimit of docker) or lower the setting"
        );
    }
    Ok(accepted)
}

/// The same for a worker, whose page has few connections.
pub(super) fn raise_for_worker() {
    let limit = raise(RESERVE_CLUSTER);
    if limit < RESERVE_CLUSTER {
        warn!(
            limit,
            reserve = RESERVE_CLUSTER,
            "the limit of open files may be too low for connections to the servers"
        );
    }
}

/// Raises this process's limit as far as it goes, where there is no end to it to `wanted`; what it is then.
fn raise(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let Some(soft) = limit.current else { return u64::MAX };
    let hard = limit.maximum.unwrap_or(wanted);
    for target in [hard, hard.min(OPEN_MAX)] {
        if target <= soft {
            break;
        }
        match setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum: limit.maximum }) {
            Ok(()) => return target,
            Err(error) => debug!(%error, wanted = target, "the limit of open files cannot be raised"),
        }
    }
    soft
}

/// How many of the `wanted` connections fit below `limit` beside what else is open.
fn fit(limit: u64, wanted: u32, reserve: u64) -> Result<u32> {
    let room = limit.saturating_sub(reserve);
    let least = CONNECTIONS_LEAST.min(wanted.into());
    if room < least {
        let detail = format!(
            "this process may have {limit} files open and needs {} at least, {reserve} of them for itself and {least} for \
             connections; raise the limit (ulimit -n, LimitNOFILE of systemd, --ulimit of docker)",
            reserve + least
        );
        return Err(Error::new(Kind::Unavailable, "too_few_files", detail).with_field("http.connections_max"));
    }
    Ok(u32::try_from(room).unwrap_or(u32::MAX).min(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_what_the_process_does_not_need() {
        for (limit, wanted, fits) in [(20_000, 10_000, 10_000), (1_700, 10_000, 100), (1_601, 1, 1), (u64::MAX, 7, 7)] {
            assert_eq!(fit(limit, wanted, 1_600).expect("fits"), fits, "{wanted} below {limit}");
        }
        for (limit, wanted) in [(1_663, 10_000), (1_600, 1), (512, 10_000), (0, 10_000)] {
            let error = fit(limit, wanted, 1_600).expect_err("almost nothing fits");
            assert_eq!((error.code(), error.field()), ("too_few_files", Some("http.connections_max")));
            assert!(error.detail().contains(&limit.to_string()), "{error}");
        }
    }

    #[test]
    fn the_limit_is_raised_and_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        let now = raise(1);
        assert!(before.current.is_none_or(|soft| now >= soft));
        assert_eq!(raise(1), now, "as far as it goes");
    }
}
