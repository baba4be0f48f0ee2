//! A service on a port of its own with data of its own, and a client that shows raw answers.
//!
//! With `FANFOLD_TEST_MODE=cluster` it is an API node, a fan-out worker and a relay on the servers that `FANFOLD_TEST_*`
//! names, in a keyspace and under prefixes of their own: the same tests, the other mode.

#![allow(dead_code, reason = "every test binary uses a part")]

pub mod servers;

use std::path::PathBuf;

use fanfold::clock::Clock;
use fanfold::config::{self, Config, Mode, Overrides};
use fanfold::ports::Path;
use fanfold::service::worker::{Role, Worker};
use fanfold::service::{Running, console};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::servers::Ground;

/// A running service.
pub struct Service {
    /// What runs.
    pub running: Running,
    workers: Vec<Worker>,
    ground: Option<Ground>,
    config: Config,
    /// Where it keeps its data; gone when dropped.
    pub data: TempDir,
    client: reqwest::Client,
}

/// A request on its way.
#[must_use]
pub struct Ask(reqwest::RequestBuilder);

/// Whether the tests run on real servers.
pub fn is_cluster() -> bool {
    std::env::var("FANFOLD_TEST_MODE").is_ok_and(|mode| mode == "cluster")
}

/// Makes the configuration that of a cluster nobody else uses; the same folder finds the same cluster again.
pub fn join_cluster(config: &mut Config, folder: &std::path::Path) -> Ground {
    let server = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: dev/stack up"));
    let tail: String =
        folder.file_name().expect("a name").to_string_lossy().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("fanfold_{}_{}", std::process::id(), tail.to_lowercase());
    config.service.mode = Mode::Cluster;
    config.service.wait_for_s = 30;
    config.scylla.contact_points = server("FANFOLD_TEST_CQL").split(',').map(str::to_owned).collect();
    config.scylla.keyspace.clone_from(&name);
    config.scylla.replication_factor = 1;
    config.rabbitmq.url = server("FANFOLD_TEST_AMQP").as_str().into();
    config.rabbitmq.prefix.clone_from(&name);
    config.redis.urls = vec![server("FANFOLD_TEST_REDIS").as_str().into()];
    config.redis.key_prefix.clone_from(&name);
    config.worker.listen = ([127, 0, 0, 1], 0).into();
    Ground { name }
}

/// What a process has to know, in its environment, to join the cluster of `config`.
pub fn settings(config: &Config) -> Vec<(&'static str, String)> {
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
    ]
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Service {
    /// With the defaults.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With a configuration that differs.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        Self::start_on(data, Clock::system(), change).await
    }

    /// On data that may be there already.
    pub async fn start_on(data: TempDir, clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_as(is_cluster(), data, clock, change).await
    }

    /// The embedded service, whatever mode the tests run in: for what concerns its data folder.
    pub async fn embedded(data: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_as(false, data, Clock::system(), change).await
    }

    /// On a cluster of its own, whatever mode the tests run in; `None`, said on standard error, where there are no servers.
    pub async fn on_cluster(change: impl FnOnce(&mut Config)) -> Option<Self> {
        for name in ["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP", "FANFOLD_TEST_REDIS"] {
            servers::server(name)?;
        }
        Some(Self::start_as(true, tempfile::tempdir().expect("a folder"), Clock::system(), change).await)
    }

    /// Another API node of the same cluster, which goes by another clock.
    pub async fn beside(&self, clock: Clock) -> Self {
        let running = Running::start(&self.config, clock).await.expect("starts");
        let (data, client) = (tempfile::tempdir().expect("a folder"), self.client.clone());
        Self { running, workers: Vec::new(), ground: None, config: self.config.clone(), data, client }
    }

    /// Another worker of the same cluster, which goes by another clock.
    pub async fn worker(&self, role: Role, clock: Clock) -> Worker {
        Worker::start(role, &self.config, clock).await.expect("starts")
    }

    /// Stops the workers that came with it.
    pub async fn stop_workers(&mut self) {
        for worker in self.workers.drain(..) {
            worker.shutdown().await;
        }
    }

    /// How it is configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    async fn start_as(cluster: bool, data: TempDir, clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        let overrides = Overrides {
            listen: Some(([127, 0, 0, 1], 0).into()),
            data: Some(PathBuf::from(data.path())),
            ..Overrides::default()
        };
        let mut config = config::load(&overrides, []).expect("the defaults");
        let ground = cluster.then(|| join_cluster(&mut config, data.path()));
        change(&mut config);
        if cluster {
            console::migrate(&config).await.expect("migrated");
        }
        let running = Running::start(&config, clock.clone()).await.expect("starts");
        let mut workers = Vec::new();
        for role in [Role::Fanout, Role::Relay].into_iter().filter(|_| cluster) {
            workers.push(Worker::start(role, &config, clock.clone()).await.expect("starts"));
        }
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { running, workers, ground, config, data, client }
    }

    /// Stops it, and gives back its data.
    pub async fn stop(self) -> TempDir {
        self.running.shutdown().await.expect("an end in order");
        for worker in self.workers {
            worker.shutdown().await;
        }
        // Part of the data that is given back.
        std::mem::forget(self.ground);
        self.data
    }

    /// A request to `path`.
    pub fn ask(&self, method: &str, path: &str) -> Ask {
        let method = method.parse().expect("a method");
        Ask(self.client.request(method, format!("http://{}{path}", self.running.addr)))
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path).send().await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("POST", path).json(body).send().await
    }

    /// Publishes to `viewers` and waits for the fan-out; the post's id.
    pub async fn publish(&self, title: &str, viewers: &[&str]) -> String {
        let body = json!({"type": "t", "data": {"title": title}, "audience": {"viewers": viewers}});
        let reply = self.post("/v1/posts", body).await;
        assert_eq!(reply.status, 202, "{reply:?}");
        let id = reply.json()["post_id"].as_str().expect("an id").to_owned();
        self.fanned_out(&id).await;
        id
    }

    /// Waits until the fan-out of a post is done.
    pub async fn fanned_out(&self, id: &str) {
        let reply = self.get(&format!("/v1/posts/{id}?wait=30")).await;
        assert_eq!(reply.json()["fanout"]["status"], "done", "{reply:?}");
    }

    /// The token of a viewer's inbox as it is now.
    pub async fn token(&self, viewer: &str) -> String {
        let reply = self.get(&format!("/v1/viewers/{viewer}/inbox")).await;
        reply.json()["token"].as_str().expect("a token").to_owned()
    }

    /// Store reads so far, but for those that no request causes.
    pub fn store_reads(&self) -> u64 {
        let by_itself = [Path::Relay, Path::System, Path::Fanout];
        let paths = Path::ALL.into_iter().filter(|path| !by_itself.contains(path));
        paths.map(|path| self.running.backends.store.reads(path)).sum()
    }
}

impl Ask {
    /// With a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        Self(self.0.header(name, value))
    }

    /// With a JSON body.
    pub fn json(self, body: Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// With any body.
    pub fn body(self, body: String) -> Self {
        Self(self.0.body(body))
    }

    /// Sends it and reads the answer.
    pub async fn send(self) -> Reply {
        let response = self.0.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Reply { status, headers, text: response.text().await.expect("a body") }
    }
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header as text; empty without it.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// The value of a series, of a page of metrics.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// The titles of the posts in a list of items.
    pub fn titles(&self, list: &str) -> Vec<String> {
        let body = self.json();
        let items = body[list].as_array().unwrap_or_else(|| panic!("no {list}: {self:?}"));
        items.iter().map(|item| item["data"]["title"].as_str().unwrap_or_default().to_owned()).collect()
    }
}
