//! The store: not there, without the keyspace, of another release, in another data centre.

use std::fs;

use scylla::client::session::Session;
use sha2::{Digest as _, Sha256};

use crate::cluster::{CLI, CONTACT_POINTS, Cluster, Gate, PROCESSES, SERVE, closed_port, found};
use crate::support::servers::{cql, server};

const CQL: &[&str] = &["FANFOLD_TEST_CQL"];

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_named_by_its_setting() {
    let cluster = Cluster::on(&[]).expect("it needs no server");
    for (program, args) in PROCESSES {
        cluster.run(program, args).await.check(69, &["127.0.0.1:", "scylla.contact_points", "[store_unavailable]"]);
    }
    cluster.run(CLI, &["migrate"]).await.check(69, &["scylla.contact_points"]);
    cluster.doctor().await.check(1, &["WRONG", "scylla.contact_points", "the port is the one for CQL clients"]);
}

#[tokio::test]
async fn waiting_for_a_store_that_does_not_come_ends() {
    let mut cluster = Cluster::on(&[]).expect("it needs no server");
    let nobody = closed_port();
    cluster.set(CONTACT_POINTS, &nobody);
    let (program, args) = SERVE;
    let told = cluster.run(program, &[args, &["--wait-for", "2s"]].concat()).await;
    told.check(69, &["waiting for the store", "wait_for_s=2", &nobody, "[store_unavailable]"]);
}

#[tokio::test]
async fn a_store_and_a_schema_that_come_later_are_waited_for() {
    let Some(mut cluster) = Cluster::on(CQL) else { return };
    let gate = Gate::to(server("FANFOLD_TEST_CQL").expect("it is there")).await;
    cluster.set(CONTACT_POINTS, &gate.address);
    let (program, args) = SERVE;
    let args = [args, &["--wait-for", "60s"]].concat();
    let mut node = cluster.start((program, &args));
    node.says(&["waiting for the store", "scylla.contact_points"]).await;
    gate.open();
    // It now waits for its schema, which the store has only from here on.
    cluster.migrate().await;
    // It has its store: now it looks for the others, which are not there.
    node.says(&["revisions are not available"]).await;
    node.stop().await;
}

#[tokio::test]
async fn a_keyspace_that_is_missing_is_named_and_who_makes_it() {
    let Some(cluster) = Cluster::on(CQL) else { return };
    let missing = format!("there is no keyspace {} (scylla.keyspace)", cluster.name);
    for (program, args) in PROCESSES {
        cluster.run(program, args).await.check(69, &[&missing, "`fanfold migrate`", "[schema_missing]"]);
    }
    cluster.doctor().await.check(1, &["WRONG", &missing, "`fanfold migrate`"]);
    let session = cql().await;
    let text = "WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}";
    session.query_unpaged(format!("CREATE KEYSPACE {} {text}", cluster.name), ()).await.expect("made");
    let empty = format!("the keyspace {} (scylla.keyspace) has no schema", cluster.name);
    found(&cluster.findings("store").await, &["WRONG", &empty, "`fanfold migrate`"]);
}

#[tokio::test]
async fn a_data_centre_that_is_missing_is_named_with_those_there_are() {
    let Some(mut cluster) = Cluster::on(CQL) else { return };
    cluster.set("FANFOLD_SCYLLA__DATACENTER", "dc9");
    let words = ["scylla.datacenter", "no data centre \"dc9\"", "it has datacenter1"];
    for (program, args) in PROCESSES {
        cluster.run(program, args).await.check(64, &words);
    }
    cluster.run(CLI, &["migrate"]).await.check(64, &words);
    found(&cluster.findings("store").await, &["WRONG", words[0], words[1], words[2], "leave it empty"]);
}

/// The texts of the numbered schema files, in order, and their names.
fn schema_files() -> Vec<(String, String)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cql");
    let entries = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "cql")).collect();
    files.sort();
    let name = |path: &std::path::Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), fs::read_to_string(path).expect("readable"))).collect()
}

async fn apply(session: &Session, keyspace: &str, text: &str) {
    let code: Vec<_> = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let replication = "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}";
    let code = code.join("\n").replace("{keyspace}", keyspace).replace("{replication}", replication);
    for statement in code.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        session.query_unpaged(statement, ()).await.expect(statement);
    }
}

async fn record(session: &Session, keyspace: &str, number: i32, text: &str) {
    let insert = format!(
        "INSERT INTO {keyspace}.schema_migrations (scope, number, name, checksum, applied_at) \
         VALUES ('schema', ?, 'by a test', ?, 0)"
    );
    let checksum: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    session.query_unpaged(insert, (number, checksum)).await.expect("recorded");
}

#[tokio::test]
async fn an_older_schema_is_refused_until_it_is_migrated_and_a_newer_one_is_told() {
    let Some(cluster) = Cluster::on(CQL) else { return };
    let (session, keyspace, files) = (cql().await, &cluster.name, schema_files());
    let first = files.iter().position(|(name, _)| name.starts_with("001_")).expect("a first file");
    for (_, text) in &files[..=first] {
        apply(&session, keyspace, text).await;
    }
    record(&session, keyspace, 1, &files[first].1).await;
    let known = files.len() - first;
    let older = format!("the schema of {keyspace} is at 1, this release needs {known}");
    for (program, args) in PROCESSES {
        cluster.run(program, args).await.check(69, &[&older, "run its `fanfold migrate`", "[schema_older]"]);
    }
    found(&cluster.findings("store").await, &["WRONG", &older, "`fanfold migrate`"]);

    cluster.run(CLI, &["migrate"]).await.check(0, &["applied 002_", &format!("is at {known}")]);
    found(&cluster.findings("store").await, &["ok", "what this release needs"]);

    record(&session, keyspace, 99, "of a newer release").await;
    let newer = format!("the schema of {keyspace} is at 99, this release knows up to {known}");
    found(&cluster.findings("store").await, &["warning", &newer, "upgrade"]);
    let mut node = cluster.start(SERVE);
    node.says(&["the schema is newer than this release", "version=99", keyspace]).await;
    node.says(&["starting without RabbitMQ"]).await;
    node.stop().await;
    let told = cluster.run(CLI, &["migrate"]).await;
    told.check(69, &["is at 99", "a newer release has migrated it", "[schema_newer]"]);
}

#[tokio::test]
async fn a_keyspace_that_is_kept_otherwise_than_configured_is_told() {
    let Some(mut cluster) = Cluster::on(CQL) else { return };
    cluster.migrate().await;
    let fine = cluster.findings("store").await;
    found(&fine, &["warning", &format!("the keyspace {} has copies of each row: 1 in datacenter1 |", cluster.name)]);
    assert!(fine.iter().all(|finding| !finding.contains("the configuration says")), "{fine:#?}");

    cluster.set("FANFOLD_SCYLLA__REPLICATION_FACTOR", "3");
    let words =
        ["warning", "1 in datacenter1; the configuration says", "'replication_factor': 3", "then a full repair"];
    found(&cluster.findings("store").await, &words);
    cluster.set("FANFOLD_SCYLLA__REPLICATION", "datacenter1: 1");
    let fine = cluster.findings("store").await;
    assert!(fine.iter().all(|finding| !finding.contains("the configuration says")), "{fine:#?}");
    cluster.set("FANFOLD_SCYLLA__REPLICATION", "datacenter1");
    cluster.run(CLI, &["migrate"]).await.check(64, &["scylla.replication", "dc1: 3, dc2: 3", "[invalid_replication]"]);
    cluster.set("FANFOLD_SCYLLA__REPLICATION", "");

    let (session, name) = (cql().await, &cluster.name);
    session.query_unpaged(format!("ALTER KEYSPACE {name} WITH durable_writes = false"), ()).await.expect("altered");
    found(&cluster.findings("store").await, &["WRONG", "durable_writes = false", "WITH durable_writes = true"]);
}

#[tokio::test]
async fn a_keyspace_is_made_with_a_number_for_each_data_centre() {
    let Some(mut cluster) = Cluster::on(CQL) else { return };
    cluster.set("FANFOLD_SCYLLA__REPLICATION_FACTOR", "3");
    cluster.set("FANFOLD_SCYLLA__REPLICATION", "datacenter1: 1");
    cluster.migrate().await;
    found(&cluster.findings("store").await, &["has copies of each row: 1 in datacenter1 |"]);
}
