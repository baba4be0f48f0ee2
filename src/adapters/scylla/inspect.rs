//! A look at the cluster, for `fanfold doctor`.

use std::time::Duration;

use scylla::client::session::Session;

use super::options::ScyllaOptions;
use super::session::{connect, corrupt, store_error};
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
    let mut findings = vec![nodes(&session, cluster.replication_factor)];
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
    if told.contains("uthentic") {
        "set scylla.user and FANFOLD_SCYLLA__PASSWORD to a user of the cluster"
    } else if told.contains("tls") || told.contains("certificate") {
        "check scylla.tls and scylla.tls_ca_file"
    } else {
        "check scylla.contact_points, and that the port is the one for CQL clients"
    }
}

fn nodes(session: &Session, replication_factor: u32) -> Finding {
    let state = session.get_cluster_state();
    let nodes = state.get_nodes_info();
    let connected = nodes.iter().filter(|node| node.is_connected()).count();
    let what = format!("{connected} of {} nodes are connected", nodes.len());
    if connected < nodes.len() {
        return Finding::warning(PART, what, "see what is wrong with the others");
    }
    if (nodes.len() as u32) < replication_factor {
        let advice = format!("scylla.replication_factor is {replication_factor}: a quorum may not be reached");
        return Finding::warning(PART, what, advice);
    }
    if replication_factor < 3 {
        let what = format!("{what}, {replication_factor} copies of each row");
        return Finding::warning(PART, what, "with fewer than three copies no node may fail; fine for trying out");
    }
    Finding::fine(PART, what)
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
