//! A look at Redis, for `fanfold doctor`.

use std::collections::HashMap;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, ServerErrorKind};

use super::connection::{candidates, plain, reason, refuses_user};
use super::settings::{PART, eviction};
use super::{RedisOptions, RedisServers};
use crate::adapters::finding::Finding;
use crate::ports::FenceEntry;

/// The first release with RESP3, which pushes and replies share a connection by.
const MAJOR_MIN: u32 = 6;
/// What a record's write is tried with: a key that goes by itself after a second, written by a script as records are.
const TRIAL: &str = "return redis.call('SET', KEYS[1], '', 'PX', 1000)";
/// Why a server refuses writes, by the code of the refusal, and what to do.
const REFUSALS: [(&str, &str); 3] = [
    ("OOM", "give it more maxmemory, or maxmemory-policy volatile-lru; until then news come late"),
    ("MISCONF", "its disk is full or broken, see its log; until then news come late"),
    ("NOREPLICAS", "min-replicas-to-write asks for more replicas than it has; until then news come late"),
];

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
    let mut look = Look { options, newest, findings: Vec::new(), masters: 0, follows: Vec::new() };
    for server in servers {
        let address = server.addr().to_string();
        match plain(options, server).await {
            Ok(connection) => look.server(&address, connection).await,
            Err(error) => look.unusable(&address, &error),
        }
    }
    look.conclude()
}

struct Look<'a> {
    options: &'a RedisOptions,
    newest: Option<&'a FenceEntry>,
    findings: Vec<Finding>,
    masters: u32,
    /// Whom the replicas follow.
    follows: Vec<String>,
}

impl Look<'_> {
    /// A server that does not answer may be one that is away for a while; one that refuses us will go on doing so.
    fn unusable(&mut self, address: &str, error: &RedisError) {
        let what = format!("{address}: {}", reason(error));
        let advice = advice(error);
        self.findings.push(if refuses_user(error) {
            Finding::wrong(PART, what, advice)
        } else {
            Finding::warning(PART, what, advice)
        });
    }

    async fn server(&mut self, address: &str, mut connection: MultiplexedConnection) {
        let info: String = match redis::cmd("INFO").query_async(&mut connection).await {
            Ok(info) => info,
            Err(error) => return self.unusable(address, &error),
        };
        let info: HashMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
        let field = |name: &str| info.get(name).copied().unwrap_or_default();
        if field("role") == "master" {
            self.masters += 1;
            self.master(address, field);
            self.write(address, &mut connection).await;
        } else {
            self.replica(address, field);
        }
    }

    fn replica<'i>(&mut self, address: &str, field: impl Fn(&str) -> &'i str) {
        let (follows, link) =
            (format!("{}:{}", field("master_host"), field("master_port")), field("master_link_status"));
        let what = format!("{address} is a replica of {follows} (link {link})");
        self.follows.push(follows);
        self.findings.push(if link == "up" {
            Finding::fine(PART, what)
        } else {
            Finding::warning(PART, what, "promoted like this it lacks bumps, which costs every client a resync")
        });
    }

    fn master<'i>(&mut self, address: &str, field: impl Fn(&str) -> &'i str) {
        let version = field("redis_version");
        let findings = &mut self.findings;
        findings.push(Finding::fine(PART, format!("{address} is the master (Redis {version})")));
        if version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(MAJOR_MIN) < MAJOR_MIN {
            let what = format!("{address}: Redis {version} is too old");
            findings.push(Finding::wrong(PART, what, "use Redis 6 or later"));
        }
        findings.push(eviction(address, field("maxmemory_policy"), field("maxmemory")));
        if let Some(newest) = self.newest.filter(|newest| newest.replid != field("master_replid")) {
            let what = format!("{address}: its replication id is not that of the newest fence ({})", newest.fence.seq);
            let advice = "the next process that uses it registers it; every client resyncs once";
            findings.push(Finding::warning(PART, what, advice));
        }
    }

    /// What forbids a write (memory, disk, replicas that are missing, permissions) shows when one is tried.
    async fn write(&mut self, address: &str, connection: &mut MultiplexedConnection) {
        let key = format!("{}:doctor", self.options.key_prefix);
        let tried = redis::cmd("EVAL").arg(TRIAL).arg(1).arg(key).exec_async(connection).await;
        self.findings.push(match tried {
            Ok(()) => Finding::fine(PART, format!("{address} takes writes")),
            Err(error) => Finding::wrong(PART, format!("{address} refuses writes: {}", reason(&error)), advice(&error)),
        });
    }

    fn conclude(mut self) -> Vec<Finding> {
        let finding = match (self.masters, self.follows.first()) {
            (1, _) => return self.findings,
            (0, Some(follows)) => Finding::wrong(
                PART,
                "redis.urls names replicas only, no master that can be used",
                format!("add {follows} to redis.urls, or promote a replica; polls answer 503 until there is a master"),
            ),
            (0, None) => {
                Finding::wrong(PART, "no master of redis.urls can be used", "polls answer 503 until there is one")
            }
            (n, _) => Finding::wrong(
                PART,
                format!("{n} masters are configured"),
                "redis.urls is for one master and its replicas; the registry of fences arbitrates, but repair it",
            ),
        };
        self.findings.push(finding);
        self.findings
    }
}

fn advice(error: &RedisError) -> &'static str {
    if refuses_user(error) {
        return "correct redis.urls: redis://user:password@host:port, without a user redis://:password@host:port";
    }
    if let Some(&(_, advice)) = REFUSALS.iter().find(|(code, _)| refuses(error, code)) {
        return advice;
    }
    match error.kind() {
        redis::ErrorKind::Server(ServerErrorKind::NoPerm) => "allow it to the user: see ACL SETUSER",
        redis::ErrorKind::RESP3NotSupported => "use Redis 6 or later",
        redis::ErrorKind::InvalidClientConfig => "correct redis.urls (rediss:// for TLS) and redis.tls_ca_file",
        _ if error.to_string().contains("certificate") => "correct redis.tls_ca_file, or the server's certificate",
        _ => "start it, or check the address in redis.urls",
    }
}

/// Redis 6 gives every error of a script the code ERR, and the refusal within its text.
fn refuses(error: &RedisError, code: &str) -> bool {
    error.code() == Some(code) || error.detail().is_some_and(|text| text.contains(&format!("-{code} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_write_is_refused_is_told_whatever_the_release() {
        let of = |kind: redis::ErrorKind, text: &str| advice(&RedisError::from((kind, "refused", text.to_owned())));
        let general = redis::ErrorKind::Server(ServerErrorKind::ResponseError);
        // As Redis 6 says it; from 7 on the code is the error's own, see tests/bad_days/revisions.rs.
        let script = "Error running script (call to f_0a9a): @user_script:1: @user_script: 1: ";
        let oom = of(general, &format!("{script}-OOM command not allowed when used memory > 'maxmemory'."));
        assert!(oom.contains("more maxmemory"), "{oom}");
        let few = of(general, &format!("{script}-NOREPLICAS Not enough good replicas to write."));
        assert!(few.contains("min-replicas-to-write"), "{few}");
        assert!(of(redis::ErrorKind::Io, "refused").contains("start it"));
    }
}
