//! Two API nodes of one cluster, each a process, with a Redis of their own that can be killed. Where FANFOLD_TEST_CQL, _AMQP
//! and _REDIS name no servers there are none.

use fanfold::access::{KeyBook, KeyText, NewKey};
use fanfold::config::{AccessMode, Config};
use fanfold::domain::{Scope, Scopes};
use fanfold::service::{console, open_keys};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{CLI, command};
use crate::process::Service;
use crate::redis_server::RedisServer;
use crate::support::servers::{Ground, server};
use crate::support::{join_cluster, settings};
use crate::wait::{PATIENCE, until};
use crate::{bearer, defaults};

/// Two API nodes whose keys publish one post a second, ten at once; viewers poll likewise.
pub struct Nodes {
    nodes: [Service; 2],
    pub redis: RedisServer,
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
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub retry_after: bool,
    pub told: bool,
}

fn has_servers() -> bool {
    ["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP", "FANFOLD_TEST_REDIS"].into_iter().all(|name| server(name).is_some())
}

/// What makes a process one of these nodes.
fn node_settings(config: &Config) -> Vec<(&'static str, String)> {
    let own = [
        ("FANFOLD_ACCESS__MODE", "on"),
        ("FANFOLD_QUOTA__POSTS_PER_S", "1"),
        ("FANFOLD_QUOTA__POSTS_BURST", "10"),
        ("FANFOLD_QUOTA__POLLS_PER_S", "1"),
        ("FANFOLD_QUOTA__POLLS_BURST", "10"),
        // While Redis lives no answer may come too late, however busy the machine.
        ("FANFOLD_QUOTA__SHARED_TIMEOUT_MS", "10000"),
        ("FANFOLD_QUOTA__SHARED_PAUSE_MS", "50"),
    ];
    settings(config).into_iter().chain(own.map(|(name, value)| (name, value.to_owned()))).collect()
}

impl Nodes {
    /// `None`, said on standard error, where there are no servers.
    pub async fn start() -> Option<Self> {
        if !has_servers() {
            return None;
        }
        let data = tempfile::tempdir().expect("a folder");
        let redis = RedisServer::start().await;
        let mut config = defaults();
        let ground = join_cluster(&mut config, data.path());
        console::migrate(&config).await.expect("migrated");
        config.redis.urls = vec![redis.url().as_str().into()];
        config.access.mode = AccessMode::On;
        let settings = node_settings(&config);
        let texts: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let nodes = [Service::start(data.path(), &texts).await, Service::start(data.path(), &texts).await];
        let book = open_keys(&config).await.expect("the store");
        let client = Client::builder().no_proxy().build().expect("a client");
        let operator = bearer(&fresh(&book, "operator", &[Scope::Metrics]).await);
        Some(Self { nodes, redis, book, client, operator, settings, _ground: ground, _data: data })
    }

    /// A key that has published nothing yet.
    pub async fn key(&self, producer: &str) -> String {
        bearer(&self.key_with(producer, &[Scope::Publish, Scope::Viewers]).await)
    }

    /// A fresh key.
    pub async fn key_with(&self, producer: &str, scopes: &[Scope]) -> KeyText {
        fresh(&self.book, producer, scopes).await
    }

    /// Asks a node.
    pub async fn ask(&self, node: usize, method: &str, path: &str, key: &str, body: Option<Value>) -> Answer {
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

    /// Publishes a post to one viewer.
    pub async fn publish(&self, node: usize, key: &str) -> Answer {
        let post = json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}});
        self.ask(node, "POST", "/v1/posts", key, Some(post)).await
    }

    /// Publishes `each` posts at each of `nodes`, all at once: how many were let in. All others were refused in order.
    pub async fn let_in(&self, nodes: &[usize], key: &str, each: usize) -> f64 {
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
    pub async fn status(&self) -> Value {
        let settings = self.settings.iter().map(|(name, value)| (name, value));
        let mut command = command(CLI, ["fanout", "status", "--output", "json"], settings);
        let output = command.output().await.expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The value of a gauge of a node.
    pub async fn gauge(&self, node: usize, name: &str) -> Option<f64> {
        let url = format!("{}/metrics", self.nodes[node].url());
        let ask = self.client.get(url).header("authorization", &self.operator);
        let text = ask.send().await.expect("an answer").text().await.expect("a body");
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Waits until a gauge of both nodes has a value, asking something of them before each look.
    pub async fn until(&self, name: &str, value: f64, key: Option<&str>) {
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
