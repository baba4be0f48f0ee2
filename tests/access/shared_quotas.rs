//! Quotas across API nodes: two processes of one cluster, with a Redis of their own that is killed and comes back. Left out
//! unless FANFOLD_TEST_CQL, _AMQP and _REDIS name servers.

use std::time::Instant;

use fanfold::access::{KeyBook, KeyText, NewKey};
use fanfold::config::{AccessMode, Config};
use fanfold::domain::{Scope, Scopes};
use fanfold::service::{console, open_keys};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Service;
use crate::redis_server::RedisServer;
use crate::support::join_cluster;
use crate::support::servers::{Ground, server};
use crate::wait::{PATIENCE, until};
use crate::{bearer, defaults};

const BURST: f64 = 10.0;

/// Two API nodes whose keys publish one post a second, ten at once; viewers poll likewise.
struct Nodes {
    nodes: [Service; 2],
    redis: RedisServer,
    book: KeyBook,
    client: Client,
    operator: String,
    settings: Vec<(&'static str, String)>,
    // Dropped after the nodes that use them.
    _ground: Ground,
    _data: TempDir,
}

/// One answer: its status, its code if it is an error, and whether it told what is left.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
    retry_after: bool,
    told: bool,
}

fn has_servers() -> bool {
    ["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP", "FANFOLD_TEST_REDIS"].into_iter().all(|name| server(name).is_some())
}

/// What a process has to know to join the cluster of `config`.
fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let own = |text: &str| text.to_owned();
    vec![
        ("FANFOLD_SERVICE__MODE", own("cluster")),
        ("FANFOLD_SERVICE__WAIT_FOR_S", own("30")),
        ("FANFOLD_SCYLLA__CONTACT_POINTS", config.scylla.contact_points.join(",")),
        ("FANFOLD_SCYLLA__KEYSPACE", config.scylla.keyspace.clone()),
        ("FANFOLD_SCYLLA__REPLICATION_FACTOR", own("1")),
        ("FANFOLD_RABBITMQ__URL", own(config.rabbitmq.url.expose())),
        ("FANFOLD_RABBITMQ__PREFIX", config.rabbitmq.prefix.clone()),
        ("FANFOLD_REDIS__URLS", own(config.redis.urls[0].expose())),
        ("FANFOLD_REDIS__KEY_PREFIX", config.redis.key_prefix.clone()),
        ("FANFOLD_ACCESS__MODE", own("on")),
        ("FANFOLD_QUOTA__POSTS_PER_S", own("1")),
        ("FANFOLD_QUOTA__POSTS_BURST", own("10")),
        ("FANFOLD_QUOTA__POLLS_PER_S", own("1")),
        ("FANFOLD_QUOTA__POLLS_BURST", own("10")),
        // While Redis lives no answer may come too late, however busy the machine.
        ("FANFOLD_QUOTA__SHARED_TIMEOUT_MS", own("10000")),
        ("FANFOLD_QUOTA__SHARED_PAUSE_MS", own("50")),
    ]
}

impl Nodes {
    async fn start() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let redis = RedisServer::start().await;
        let mut config = defaults();
        let ground = join_cluster(&mut config, data.path());
        console::migrate(&config).await.expect("migrated");
        config.redis.urls = vec![redis.url().as_str().into()];
        config.access.mode = AccessMode::On;
        let settings = settings(&config);
        let texts: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let nodes = [Service::start(data.path(), &texts).await, Service::start(data.path(), &texts).await];
        let book = open_keys(&config).await.expect("the store");
        let client = Client::builder().no_proxy().build().expect("a client");
        let operator = bearer(&fresh(&book, "operator", &[Scope::Metrics]).await);
        Self { nodes, redis, book, client, operator, settings, _ground: ground, _data: data }
    }

    /// A key that has published nothing yet.
    async fn key(&self, producer: &str) -> String {
        bearer(&fresh(&self.book, producer, &[Scope::Publish, Scope::Viewers]).await)
    }

    async fn ask(&self, node: usize, method: &str, path: &str, key: &str, body: Option<Value>) -> Answer {
        let url = format!("{}{path}", self.nodes[node].url());
        let mut ask = self.client.request(method.parse().expect("a method"), url).header("authorization", key);
        if let Some(body) = body {
            ask = ask.header("content-type", "application/json").body(body.to_string());
        }
        let response = ask.send().await.expect("an answer");
        let headers = response.headers();
        let seconds = headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let (status, retry_after) = (response.status().as_u16(), seconds.is_some_and(|seconds| seconds >= 1));
        let told = headers.get("ratelimit").is_some_and(|value| value.as_bytes().starts_with(b"\"posts\";r="));
        let body = serde_json::from_str(&response.text().await.expect("a body")).unwrap_or_default();
        Answer { status, body, retry_after, told }
    }

    async fn publish(&self, node: usize, key: &str) -> Answer {
        let post = json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}});
        self.ask(node, "POST", "/v1/posts", key, Some(post)).await
    }

    /// Publishes `each` posts at each of `nodes`, all at once: how many were let in. All others were refused in order.
    async fn let_in(&self, nodes: &[usize], key: &str, each: usize) -> f64 {
        let all = nodes.iter().flat_map(|node| std::iter::repeat_n(*node, each));
        let answers = futures::future::join_all(all.map(|node| self.publish(node, key))).await;
        for answer in &answers {
            assert!(answer.told, "{answer:?}");
            if answer.status != 202 {
                assert_eq!((answer.status, answer.body["code"].as_str()), (429, Some("quota_exceeded")), "{answer:?}");
                assert_eq!(answer.body["field"], "quota.posts_per_s");
                assert!(answer.retry_after, "{answer:?}");
            }
        }
        answers.iter().filter(|answer| answer.status == 202).count() as f64
    }

    /// What an operator sees of the cluster.
    async fn status(&self) -> Value {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfold"));
        command.args(["fanout", "status", "--output", "json"]).env_remove("FANFOLD_CONFIG");
        let settings = self.settings.iter().map(|(name, value)| (name, value));
        let output = command.envs(settings).output().await.expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The value of a gauge of a node.
    async fn gauge(&self, node: usize, name: &str) -> Option<f64> {
        let url = format!("{}/metrics", self.nodes[node].url());
        let ask = self.client.get(url).header("authorization", &self.operator);
        let text = ask.send().await.expect("an answer").text().await.expect("a body");
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Waits until a gauge of both nodes has a value, asking something of them before each look.
    async fn until(&self, name: &str, value: f64, key: Option<&str>) {
        for node in [0, 1] {
            let mut found = None;
            let came = until(&format!("{name} of node {node} is {value}"), PATIENCE, async || {
                if let Some(key) = key {
                    self.publish(node, key).await;
                }
                found = self.gauge(node, name).await;
                found == Some(value)
            })
            .await;
            assert!(came.is_ok(), "{came:?}, it is {found:?}");
        }
    }
}

async fn fresh(book: &KeyBook, producer: &str, scopes: &[Scope]) -> KeyText {
    let scopes: Scopes = scopes.iter().copied().collect();
    let order = NewKey { name: producer.to_owned(), producer: None, scopes, ttl: None };
    book.create(&order).await.expect("made").text
}

/// `burst`, and what has been refilled since `began`.
fn at_most(burst: f64, per_s: f64, began: Instant) -> f64 {
    burst + began.elapsed().as_secs_f64() * per_s + 0.001
}

#[tokio::test]
async fn quotas_hold_across_nodes_and_each_has_its_share_without_redis() {
    if !has_servers() {
        return;
    }
    let mut nodes = Nodes::start().await;
    nodes.until("fanfold_quota_nodes", 2.0, None).await;
    nodes.until("fanfold_revisions_up", 1.0, None).await;
    let spare = nodes.key("spare").await;
    nodes.until("fanfold_quota_shared", 1.0, Some(&spare)).await;

    // The nodes are counted, and not taken for workers.
    let status = nodes.status().await;
    assert_eq!((&status["api_nodes"], &status["workers"]), (&json!(2), &json!([])), "{status}");

    // Together ten, not ten each; of polls as of posts.
    let (key, began) = (nodes.key("together").await, Instant::now());
    let count = nodes.let_in(&[0, 1], &key, 15).await;
    assert!(count >= BURST && count <= at_most(BURST, 1.0, began), "{count}");
    let polled = Instant::now();
    let polls = (0..30).map(|n| nodes.ask(n % 2, "GET", "/v1/viewers/cleo/revision", &key, None));
    let polls = futures::future::join_all(polls).await;
    let count = polls.iter().filter(|answer| answer.status == 200).count() as f64;
    assert!(count >= BURST && count <= at_most(BURST, 1.0, polled), "{count}");
    for refused in polls.iter().filter(|answer| answer.status != 200) {
        assert_eq!((refused.status, refused.body["field"].as_str()), (429, Some("quota.polls_per_s")), "{refused:?}");
    }

    // Without Redis five each, and a key that had nothing left has not got another burst.
    nodes.redis.kill();
    let lonely = nodes.key("lonely").await;
    for node in [0, 1] {
        let from = Instant::now();
        let count = nodes.let_in(&[node], &lonely, 15).await;
        assert!(count >= BURST / 2.0 && count <= at_most(BURST / 2.0, 0.5, from), "{count} at node {node}");
    }
    nodes.until("fanfold_quota_shared", 0.0, None).await;
    let more = nodes.let_in(&[0, 1], &key, 15).await;
    assert!(more + BURST <= at_most(BURST, 1.0, began), "{more} more");

    // And with Redis together again.
    nodes.redis.revive().await;
    nodes.until("fanfold_quota_shared", 1.0, Some(&spare)).await;
    let (key, began) = (nodes.key("again").await, Instant::now());
    let count = nodes.let_in(&[0, 1], &key, 15).await;
    assert!(count >= BURST && count <= at_most(BURST, 1.0, began), "{count}");
}
