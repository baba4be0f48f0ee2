//! The real servers that `FANFOLD_TEST_*` names, and a ground of a test's own on them.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::Write as _;

/// The address of a real server, or `None`, said on standard error, if the test that needs it is to be left out. Not said
/// with `eprintln!`, which is kept from the reader as long as a test passes.
pub fn server(variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok().filter(|address| !address.is_empty());
    if address.is_none() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(std::io::stderr(), "left out: {test}: {variable} is not set (dev/stack starts the servers)");
    }
    address
}

/// A keyspace and the prefix of queues, by one name. Both go with it: the servers of the tests have no room for as many as
/// there are tests.
pub struct Ground {
    /// Of the keyspace, and what the queues' names begin with.
    pub name: String,
}

impl Drop for Ground {
    fn drop(&mut self) {
        let name = self.name.clone();
        // A thread of its own, for the test's runtime may be the one that drops it.
        let cleared = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                drop_keyspace(&name).await;
                delete_queues(&name).await;
            });
        });
        if cleared.join().is_err() && !std::thread::panicking() {
            panic!("what a test has made on the servers could not be removed");
        }
    }
}

/// A session with the store of the tests.
pub async fn cql() -> scylla::client::session::Session {
    let points = std::env::var("FANFOLD_TEST_CQL").expect("the store of the tests");
    let builder = scylla::client::session_builder::SessionBuilder::new().known_nodes(points.split(','));
    builder.build().await.expect("connected")
}

async fn drop_keyspace(name: &str) {
    if std::env::var("FANFOLD_TEST_CQL").is_ok_and(|points| !points.is_empty()) {
        cql().await.query_unpaged(format!("DROP KEYSPACE IF EXISTS {name}"), ()).await.expect("dropped");
    }
}

async fn delete_queues(prefix: &str) {
    let (Ok(management), Ok(amqp)) =
        (std::env::var("FANFOLD_TEST_AMQP_MANAGEMENT"), std::env::var("FANFOLD_TEST_AMQP"))
    else {
        return;
    };
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let list = format!("{management}/api/queues/%2f?disable_stats=true&enable_queue_totals=true");
    let listed = client.get(list).basic_auth("guest", Some("guest")).send().await.expect("the broker answers");
    let queues: serde_json::Value = listed.json().await.expect("a list");
    let names = queues.as_array().expect("a list").iter().filter_map(|queue| queue["name"].as_str());
    let mine: Vec<_> = names.filter(|name| name.starts_with(&format!("{prefix}."))).collect();
    if mine.is_empty() {
        return;
    }
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&amqp, properties).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    for name in mine {
        channel.queue_delete(name.into(), lapin::options::QueueDeleteOptions::default()).await.expect("deleted");
    }
}
