//! A look at the cluster, for `fanfold doctor`.

use std::collections::BTreeMap;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::cluster::metadata::Strategy;

use super::options::{ClusterOptions, EVERYWHERE, ScyllaOptions};
use super::session::{USER, connect, corrupt, store_error};
use super::store_clock::Skew;
use super::{ScyllaStore, migrate};
use crate::adapters::finding::Finding;
use crate::domain::Time;
use crate::error::{Error, Result};

const PART: &str = "store";
/// Clocks that differ by more make edits of one post win and lose in the wrong order for so long.
const SKEW_MAX: Duration = Duration::from_secs(2);

/// Looks at everything that can be looked at; what fails is a finding, not an error.
pub async fn inspect(options: &ScyllaOptions) -> Vec<Finding> {
    let cluster = &options.cluster;
    let session = match connect(cluster, 1, options.read_timeout).await {
        Ok(session) => session,
        Err(error) => return vec![Finding::wrong(PART, error.to_string(), advice(&error))],
    };
    let mut findings = vec![nodes(&session)];
    findings.extend(copies(&session, cluster));
    findings.push(match clock(&session, options).await {
        Ok(finding) => finding,
        Err(error) => Finding::warning(PART, format!("its clock cannot be read: {error}"), ""),
    });
    match migrate::check(&session, &cluster.keyspace).await {
        Ok(version) => findings.push(schema(&cluster.keyspace, version)),
        Err(error) => {
            findings.push(Finding::wrong(PART, error.to_string(), advice(&error)));
            return findings;
        }
    }
    findings.push(match ScyllaStore::connect(options.clone()).await {
        Ok(_) => Finding::fine(PART, "every statement can be prepared"),
        Err(error) => {
            Finding::wrong(PART, error.to_string(), "compare the keyspace with cql/, or run `fanfold migrate`")
        }
    });
    findings
}

fn schema(keyspace: &str, version: i32) -> Finding {
    let known = migrate::known_version();
    if version > known {
        let what = format!("the schema of {keyspace} is at {version}, this release knows up to {known}");
        return Finding::warning(PART, what, "fine during an upgrade; start the newer release everywhere");
    }
    Finding::fine(PART, format!("the schema of {keyspace} is what this release needs ({known})"))
}

fn advice(error: &Error) -> &'static str {
    match error.code() {
        "schema_missing" | "schema_older" => return "run `fanfold migrate` before the processes start",
        "invalid_datacenter" => return "correct scylla.datacenter, or leave it empty where there is only one",
        "tls_unusable" | "tls_not_built" => return "correct scylla.tls and scylla.tls_ca_file",
        _ => {}
    }
    let told = error.to_string();
    if error.field() == Some(USER) {
        "set scylla.user and scylla.password (FANFOLD_SCYLLA__PASSWORD) to those of a user of the cluster"
    } else if told.contains("tls") || told.contains("certificate") {
        "check scylla.tls and scylla.tls_ca_file"
    } else {
        "check scylla.contact_points, and that the port is the one for CQL clients"
    }
}

fn nodes(session: &Session) -> Finding {
    let state = session.get_cluster_state();
    let nodes = state.get_nodes_info();
    let connected = nodes.iter().filter(|node| node.is_connected()).count();
    let what = format!("{connected} of {} nodes are connected", nodes.len());
    if connected < nodes.len() {
        return Finding::warning(PART, what, "see what is wrong with the others");
    }
    Finding::fine(PART, what)
}

/// How the keyspace is kept, by its own word: the configuration was only asked when it was made.
fn copies(session: &Session, cluster: &ClusterOptions) -> Vec<Finding> {
    let (state, name) = (session.get_cluster_state(), &cluster.keyspace);
    // That it is missing is told with its schema.
    let Some(keyspace) = state.get_keyspace(name) else { return Vec::new() };
    let mut findings = Vec::new();
    if !keyspace.durable_writes {
        let what = format!("the keyspace {name} has durable_writes = false: what was accepted is lost with the power");
        let advice = format!("ALTER KEYSPACE {name} WITH durable_writes = true, and flush every node");
        findings.push(Finding::wrong(PART, what, advice));
    }
    let there: BTreeMap<String, u32> = match &keyspace.strategy {
        Strategy::NetworkTopologyStrategy { datacenter_repfactors } => {
            let count = |(name, copies): (&String, &usize)| (name.clone(), u32::try_from(*copies).unwrap_or(u32::MAX));
            datacenter_repfactors.iter().map(count).collect()
        }
        other => {
            let what = format!("the keyspace {name} is replicated by {other:?}, which knows no data centres");
            findings.push(Finding::warning(PART, what, alter(cluster)));
            return findings;
        }
    };
    let mut nodes = BTreeMap::<&str, u32>::new();
    for node in state.get_nodes_info() {
        *nodes.entry(node.datacenter.as_deref().unwrap_or_default()).or_default() += 1;
    }
    findings.extend(judge_copies(&there, &nodes, cluster));
    findings
}

fn judge_copies(there: &BTreeMap<String, u32>, nodes: &BTreeMap<&str, u32>, cluster: &ClusterOptions) -> Vec<Finding> {
    let told: Vec<String> = there.iter().map(|(name, copies)| format!("{copies} in {name}")).collect();
    let what = format!("the keyspace {} has copies of each row: {}", cluster.keyspace, told.join(", "));
    let mut findings = Vec::new();
    let configured = cluster.copies().unwrap_or_default();
    let as_configured = match configured.get(EVERYWHERE) {
        Some(copies) => there.values().all(|there| there == copies),
        None => *there == configured,
    };
    if !as_configured {
        let detail = format!("{what}; the configuration says {}", cluster.replication());
        findings.push(Finding::warning(PART, detail, alter(cluster)));
    }
    let short = there.iter().find(|(name, copies)| nodes.get(name.as_str()).is_none_or(|nodes| nodes < copies));
    if let Some((name, copies)) = short {
        let nodes = nodes.get(name.as_str()).copied().unwrap_or(0);
        let what = format!("{name} has {nodes} nodes for {copies} copies of each row");
        findings.push(Finding::warning(PART, what, "add nodes, or lower the replication: a quorum may not be reached"));
    }
    if there.values().all(|copies| *copies >= 3) && findings.is_empty() && !there.is_empty() {
        findings.push(Finding::fine(PART, what));
    } else if there.values().any(|copies| *copies < 3) {
        let advice = "with fewer than three copies no node may fail; fine for trying out";
        findings.push(Finding::warning(PART, what, advice));
    }
    findings
}

fn alter(cluster: &ClusterOptions) -> String {
    let (name, replication) = (&cluster.keyspace, cluster.replication());
    format!(
        "ALTER KEYSPACE {name} WITH replication = {replication}, then a full repair; or correct scylla.replication_factor \
         or scylla.replication, which are only used when a keyspace is made"
    )
}

async fn clock(session: &Session, options: &ScyllaOptions) -> Result<Finding> {
    let before = options.clock.now();
    let answer =
        session.query_unpaged("SELECT toUnixTimestamp(now()) FROM system.local", ()).await.map_err(store_error)?;
    let rows = answer.into_rows_result().map_err(corrupt)?;
    let (there,) = rows.first_row::<(i64,)>().map_err(corrupt)?;
    let after = options.clock.now();
    let skew = Skew::between(before, Time::from_millis(there), after).by;
    if skew > SKEW_MAX {
        let what = format!("its clock and this machine's differ by {skew:.1?}");
        return Ok(Finding::warning(PART, what, "run NTP on both: clocks order the edits of one post"));
    }
    Ok(Finding::fine(PART, "its clock and this machine's agree"))
}

#[cfg(test)]
mod tests {
    use super::super::options::Consistency;
    use super::*;
    use crate::adapters::finding::Severity;

    #[test]
    fn what_a_keyspace_has_is_compared_with_what_is_configured_and_with_the_nodes() {
        let judge = |there: &[(&str, u32)], nodes: &[(&'static str, u32)], replication: &str| {
            let cluster = ClusterOptions {
                contact_points: Vec::new(),
                keyspace: "f".into(),
                datacenter: None,
                replication_factor: 3,
                replication: replication.into(),
                consistency: Consistency::default(),
                tls: None,
                credentials: None,
                connect_timeout: Duration::ZERO,
            };
            let there = there.iter().map(|(name, copies)| ((*name).to_owned(), *copies)).collect();
            let findings = judge_copies(&there, &nodes.iter().copied().collect(), &cluster);
            let told = |finding: &Finding| format!("{} | {}", finding.what, finding.advice);
            let fine = findings.iter().all(|finding| finding.severity == Severity::Fine);
            (fine, findings.iter().map(told).collect::<Vec<_>>().join("\n"))
        };
        let (fine, told) = judge(&[("dc1", 3)], &[("dc1", 3)], "");
        assert!(fine && told.contains("3 in dc1"), "{told}");
        assert!(judge(&[("dc1", 3), ("dc2", 3)], &[("dc1", 3), ("dc2", 3)], "dc1: 3, dc2: 3").0);
        let (fine, told) = judge(&[("dc1", 1)], &[("dc1", 3)], "");
        assert!(
            !fine && told.contains("1 in dc1; the configuration says") && told.contains("ALTER KEYSPACE f"),
            "{told}"
        );
        assert!(told.contains("fewer than three copies"), "{told}");
        let (fine, told) = judge(&[("dc1", 3)], &[("dc1", 2)], "");
        assert!(!fine && told.contains("2 nodes for 3 copies"), "{told}");
        let (fine, told) = judge(&[("dc1", 3)], &[("dc1", 3), ("dc2", 3)], "dc1: 3, dc2: 3");
        assert!(!fine && told.contains("'dc2': 3"), "{told}");
    }
}
