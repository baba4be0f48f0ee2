//! A look at Redis, for `fanfold doctor`.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;

use super::connection::{candidates, plain};
use super::{RedisOptions, RedisServers};
use crate::adapters::finding::{Finding, Severity};
use crate::ports::FenceEntry;

const PART: &str = "revisions";
/// The first release with RESP3, which pushes and replies share a connection by.
const MAJOR_MIN: u32 = 6;

/// Looks at every server; what fails is a finding, not an error. `newest` is the newest entry of the fence registry.
pub async fn inspect(options: &RedisOptions, newest: Option<&FenceEntry>) -> Vec<Finding> {
    let servers = match candidates(options).await {
        Ok(servers) => servers,
        Err(error) => {
            let advice = match options.servers {
                RedisServers::Nodes(_) => "check redis.urls",
                RedisServers::Sentinel { .. } => "check redis.urls (the sentinels) and redis.sentinel_master",
            };
            return vec![Finding::wrong(PART, error.to_string(), advice)];
        }
    };
    let (mut findings, mut masters) = (Vec::new(), 0);
    for server in servers {
        let address = server.addr().to_string();
        match plain(options, server).await {
            Ok(mut connection) => masters += u32::from(look(&address, &mut connection, newest, &mut findings).await),
            Err(error) => {
                let advice = if error.to_string().contains("uth") {
                    "check user and password in the URL"
                } else {
                    "start it, or check the address in redis.urls"
                };
                findings.push(Finding::warning(PART, format!("{address}: {error}"), advice));
            }
        }
    }
    match masters {
        0 => findings.push(Finding::wrong(PART, "no master can be reached", "polls answer 503 until there is one")),
        1 => {}
        n => findings.push(Finding::wrong(
            PART,
            format!("{n} masters are configured"),
            "redis.urls is for one master and its replicas; the registry of fences arbitrates, but repair it",
        )),
    }
    findings
}

/// Looks at one server; whether it is a master.
async fn look(
    address: &str,
    connection: &mut MultiplexedConnection,
    newest: Option<&FenceEntry>,
    findings: &mut Vec<Finding>,
) -> bool {
    let info: String = match redis::cmd("INFO").query_async(connection).await {
        Ok(info) => info,
        Err(error) => {
            findings.push(Finding::wrong(PART, format!("{address}: {error}"), "the user may not run INFO: allow it"));
            return false;
        }
    };
    let info: HashMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| info.get(name).copied().unwrap_or_default();
    if field("role") != "master" {
        findings.push(Finding::fine(PART, format!("{address} is a replica (link {})", field("master_link_status"))));
        return false;
    }
    let version = field("redis_version");
    findings.push(Finding::fine(PART, format!("{address} is the master (Redis {version})")));
    if version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(MAJOR_MIN) < MAJOR_MIN {
        findings.push(Finding::wrong(PART, format!("{address}: Redis {version} is too old"), "use Redis 6 or later"));
    }
    findings.push(eviction(address, field("maxmemory_policy"), field("maxmemory")));
    if field("aof_enabled") == "0" && field("rdb_last_bgsave_status").is_empty() {
        findings.push(Finding::warning(
            PART,
            format!("{address} writes nothing to disk"),
            "a restart is a resync then",
        ));
    }
    if let Some(newest) = newest.filter(|newest| newest.replid != field("master_replid")) {
        let what = format!("{address}: its replication id is not that of the newest fence ({})", newest.fence.seq);
        findings.push(Finding::warning(
            PART,
            what,
            "the next process that uses it registers it; every client resyncs once",
        ));
    }
    true
}

/// Records may go at any time, but a policy that evicts nothing when memory is short fails the writes, and one that
/// evicts whatever has no time to live cannot evict records, which all have one.
fn eviction(address: &str, policy: &str, maxmemory: &str) -> Finding {
    let severity = match (policy, maxmemory) {
        (_, "0" | "") => Severity::Fine,
        (policy, _) if policy.starts_with("volatile-") || policy.starts_with("allkeys-") => Severity::Fine,
        _ => Severity::Warning,
    };
    let what = format!("{address}: maxmemory {maxmemory}, policy {policy}");
    match severity {
        Severity::Fine => Finding::fine(PART, what),
        _ => Finding::warning(
            PART,
            what,
            "when memory is short, bumps will fail and fan-out waits: use volatile-lru, evicted records only cost a resync",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_drops_writes_is_told() {
        assert_eq!(eviction("r", "noeviction", "0").severity, Severity::Fine);
        assert_eq!(eviction("r", "volatile-lru", "1000").severity, Severity::Fine);
        assert_eq!(eviction("r", "noeviction", "1000").severity, Severity::Warning);
    }
}
