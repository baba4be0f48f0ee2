//! How Redis is set up, where that decides what becomes of writes when memory is short: a finding of `fanfold doctor`,
//! and what each process warns of once in each life.

use std::collections::VecDeque;

use super::life::Life;
use crate::adapters::finding::{Finding, Severity};

/// What findings on Redis are filed under.
pub const PART: &str = "revisions";
/// Lives that are remembered. They end with a restart or a promotion, so this is a long time.
const LIVES_MAX: usize = 64;

/// The lives whose settings this process has looked at, by replication id.
#[derive(Debug, Default)]
pub struct Looked(VecDeque<String>);

impl Looked {
    /// Looks at the settings of a life that is new to this process, and warns of what is wrong with them.
    ///
    /// By INFO, as it was asked who it is, and not by CONFIG GET: managed servers rename or forbid that.
    pub async fn at(&mut self, life: &Life) {
        if self.knows(&life.replid) {
            return;
        }
        let mut ask = redis::cmd("INFO");
        let info: String = match life.answer(ask.arg("memory").query_async(&mut life.connection())).await {
            Ok(info) => info,
            // The next connection to this life looks again.
            Err(error) => return tracing::debug!(%error, "the settings of redis cannot be looked at"),
        };
        self.remember(&life.replid);
        tell(eviction(&life.address, field(&info, "maxmemory_policy"), field(&info, "maxmemory")));
    }

    fn knows(&self, replid: &str) -> bool {
        self.0.iter().any(|known| known == replid)
    }

    fn remember(&mut self, replid: &str) {
        if self.0.len() == LIVES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(replid.to_owned());
    }
}

fn tell(finding: Finding) {
    let Finding { severity, what, advice, .. } = finding;
    if severity == Severity::Fine {
        tracing::debug!(what, "redis is set up as it should be");
    } else {
        tracing::warn!(what, advice, "redis is not set up as it should be");
    }
}

/// What INFO says of a name; empty if nothing.
fn field<'i>(info: &'i str, name: &str) -> &'i str {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default()
}

/// Records may go at any time: an evicted one costs its viewer a resync. So a policy is good if it evicts those who
/// poll least, and bad if it evicts nobody, for then writes fail when memory is short.
pub fn eviction(address: &str, policy: &str, maxmemory: &str) -> Finding {
    let what = format!("{address}: maxmemory {maxmemory}, maxmemory-policy {policy}");
    let advice = match (policy, maxmemory) {
        ("", _) | (_, "0" | "") => return Finding::fine(PART, what),
        ("allkeys-random" | "volatile-random", _) => {
            "when memory is short, viewers who poll now resync as often as those who left: use volatile-lru"
        }
        (policy, _) if policy.starts_with("volatile-") || policy.starts_with("allkeys-") => {
            return Finding::fine(PART, what);
        }
        _ => {
            "when memory is short, bumps fail and news come late: use volatile-lru, evicted records only cost a resync"
        }
    };
    Finding::warning(PART, what, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_drops_writes_is_told() {
        let severity = |policy, maxmemory| eviction("r", policy, maxmemory).severity;
        for policy in ["noeviction", "allkeys-random", "volatile-lru"] {
            assert_eq!(severity(policy, "0"), Severity::Fine, "there is no bound");
        }
        for policy in ["volatile-lru", "volatile-lfu", "volatile-ttl", "allkeys-lru", "allkeys-lfu"] {
            assert_eq!(severity(policy, "1000"), Severity::Fine, "{policy}");
        }
        for policy in ["noeviction", "allkeys-random", "volatile-random"] {
            assert_eq!(severity(policy, "1000"), Severity::Warning, "{policy}");
        }
    }

    #[test]
    fn names_that_begin_alike_are_told_apart() {
        let info = "# Memory\r\nmaxmemory_human:1.00K\r\nmaxmemory_policy:noeviction\r\nmaxmemory:1024\r\n";
        assert_eq!((field(info, "maxmemory"), field(info, "maxmemory_policy")), ("1024", "noeviction"));
        let none = eviction("r", "", "1000");
        assert_eq!(none.severity, Severity::Fine, "what is not told is not wrong");
        let none = eviction("r", field("", "maxmemory_policy"), field("", "maxmemory"));
        assert_eq!(none.severity, Severity::Fine, "what is not told is not wrong");
    }

    #[test]
    fn lives_are_remembered_within_a_bound() {
        let mut looked = Looked::default();
        for n in 0..=LIVES_MAX {
            looked.remember(&n.to_string());
        }
        assert_eq!(looked.0.len(), LIVES_MAX);
        assert!(!looked.knows("0") && looked.knows("1") && looked.knows(&LIVES_MAX.to_string()));
    }
}
