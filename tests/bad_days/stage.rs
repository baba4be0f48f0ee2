//! A whole cluster with an API node to publish to, and workers that a fault awaits.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use reqwest::Client;
use serde_json::{Value, json};

use crate::cluster::{CLI, Cluster, FANOUT, PROCESSES, Running, closed_port};
use crate::support::servers::server;
use crate::wait::eventually;

const SERVERS: &[&str] = &["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP", "FANFOLD_TEST_REDIS"];
const FAULT: &str = "FANFOLD_TEST_FAULT";
/// Queues of a lane.
const QUEUES: usize = 2;

/// A cluster and its API node.
pub struct Stage {
    pub cluster: Cluster,
    url: String,
    client: Client,
    _api: Running,
}

impl Stage {
    /// With these settings, and nobody but an API node.
    pub async fn start(settings: &[(&str, &str)]) -> Option<Self> {
        let mut cluster = Cluster::on(SERVERS)?;
        cluster.set("FANFOLD_RABBITMQ__FAIR_QUEUES", QUEUES.to_string());
        for (name, value) in settings {
            cluster.set(name, *value);
        }
        cluster.migrate().await;
        let address = closed_port();
        let api = cluster.start((CLI, &["serve", "--mode", "cluster", "--listen", &address]));
        let (url, client) = (format!("http://{address}"), Client::builder().no_proxy().build().expect("a client"));
        let stage = Self { cluster, url, client, _api: api };
        eventually("the API node is ready", async || {
            let ready = stage.client.get(format!("{}/readyz", stage.url)).send().await;
            ready.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        Some(stage)
    }

    /// A worker that meets a fault, or none.
    pub fn worker(&mut self, fault: Option<&str>) -> Running {
        match fault {
            Some(fault) => self.cluster.set(FAULT, fault),
            None => self.cluster.unset(FAULT),
        }
        self.cluster.start((FANOUT, PROCESSES[1].1))
    }

    /// Publishes a post to so many viewers; its id.
    pub async fn publish(&self, viewers: usize) -> String {
        let viewers: Vec<String> = (0..viewers).map(|n| format!("viewer-{n}")).collect();
        let body = json!({"type": "t", "data": {}, "audience": {"viewers": viewers}});
        let answer = self.client.post(format!("{}/v1/posts", self.url)).json(&body).send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        answer["post_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// How far a post's fan-out has come.
    pub async fn fanout(&self, post: &str) -> Value {
        let answer = self.client.get(format!("{}/v1/posts/{post}", self.url)).send().await.expect("an answer");
        answer.json::<Value>().await.expect("JSON")["fanout"].take()
    }

    /// So many viewers of a post have got it.
    pub async fn written(&self, post: &str) -> u64 {
        self.fanout(post).await["written"].as_u64().expect("a number")
    }

    /// Waits until all viewers of a post have got it.
    pub async fn served(&self, post: &str, viewers: u64) {
        eventually("a post reaches its viewers", async || self.written(post).await == viewers).await;
    }

    /// The tasks of a lane that no worker has.
    pub async fn waiting(&self, lane: &str) -> u64 {
        let url = server("FANFOLD_TEST_AMQP").expect("it is there");
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("connected");
        let channel = connection.create_channel().await.expect("a channel");
        let mut waiting = 0;
        for number in 0..QUEUES {
            let end = if number == 0 { String::new() } else { format!(".{number}") };
            let queue = format!("{}.{lane}{end}", self.cluster.name);
            let passive = QueueDeclareOptions::durable().passive();
            let asked = channel.queue_declare(queue.into(), passive, FieldTable::default());
            waiting += u64::from(asked.await.expect("it exists").message_count());
        }
        waiting
    }
}
