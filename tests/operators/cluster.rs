//! The cluster: its processes, what they log, and the commands of an operator.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use fanfold::config::{self, Overrides};
use fanfold::service::console;
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::command::{self, CLI, Told};
use crate::support::servers::{Ground, server};
use crate::support::{join_cluster, settings};
use crate::wait::eventually;

/// The processes, with their arguments.
pub const API: (&str, &[&str]) = (CLI, &["serve", "--listen", "127.0.0.1:0"]);
pub const FANOUT: (&str, &[&str]) = (command::FANOUT, &["--listen", "127.0.0.1:0"]);
pub const RELAY: (&str, &[&str]) = (command::RELAY, &["--listen", "127.0.0.1:0"]);
/// Who operates it.
pub const OPERATOR: &str = "olga";

/// A cluster that nobody else uses. Its processes are ended before it: they are made from it, and dropped first.
pub struct Cluster {
    settings: Vec<(&'static str, String)>,
    /// Its keyspace.
    pub keyspace: String,
    /// Where files of a test may be.
    pub folder: TempDir,
    client: Client,
    _ground: Ground,
}

impl Cluster {
    /// With the schema in place; `None`, said on standard error, where there are no servers.
    pub async fn new() -> Option<Self> {
        for name in ["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP", "FANFOLD_TEST_REDIS"] {
            server(name)?;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config::load(&Overrides::default(), []).expect("the defaults");
        let ground = join_cluster(&mut config, folder.path());
        console::migrate(&config).await.expect("migrated");
        let own = [
            ("FANFOLD_LOG__FORMAT", "json"),
            ("FANFOLD_LOG__FILTER", "info,fanfold=debug,lapin=off"),
            ("USER", OPERATOR),
        ];
        let mut settings = settings(&config);
        settings.extend(own.map(|(name, value)| (name, value.to_owned())));
        let client = Client::builder().no_proxy().build().expect("a client");
        Some(Self { settings, keyspace: config.scylla.keyspace, folder, client, _ground: ground })
    }

    /// With a setting that differs.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.settings.push((name, value.to_owned()));
    }

    /// Turns access control on; who is started from now on is asked with a key of these scopes.
    pub async fn guard(&mut self, scopes: &str) {
        self.set("FANFOLD_ACCESS__MODE", "on");
        let key = self.say(&format!("keys create --local --name {OPERATOR} --scope {scopes}")).await;
        let bearer: HeaderValue = format!("Bearer {}", key.trim()).parse().expect("a header");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        self.client = Client::builder().no_proxy().default_headers(headers).build().expect("a client");
    }

    fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Starts a process, and waits until it is ready.
    pub async fn start(&self, (program, args): (&str, &[&str])) -> Process {
        let mut command = command::command(program, args, self.settings());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let kept = Arc::clone(&log);
        // Read to its end, or the process would wait for a reader.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().expect("not poisoned").push(line);
            }
        });
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        loop {
            let line = lines.next_line().await.expect("readable");
            let line = line.unwrap_or_else(|| panic!("it ended before it was ready: {log:?}"));
            if let Some((_, address)) = line.split_once("http://") {
                let url = format!("http://{}", address.split('/').next().unwrap_or_default());
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                let process = Process { _child: child, log, url, client: self.client.clone() };
                eventually(&format!("{program} is ready"), async || process.get("/readyz").await.0 == 200).await;
                return process;
            }
        }
    }

    /// Runs `fanfold` with the words of `line`.
    pub async fn run(&self, line: &str) -> Told {
        let words: Vec<&str> = line.split_whitespace().collect();
        command::run(CLI, &words, self.settings()).await
    }

    /// The same, with an end in order; what it says.
    pub async fn say(&self, line: &str) -> String {
        let told = self.run(line).await;
        assert_eq!(told.code, Some(0), "{line}: {told:?}");
        told.out
    }

    /// The same, read as JSON.
    pub async fn json(&self, line: &str) -> Value {
        let said = self.say(&format!("{line} --output json")).await;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{line}: {error}: {said}"))
    }

    /// It is refused as a command that cannot work, with each of `words`.
    pub async fn refuses(&self, line: &str, words: &[&str]) {
        let told = self.run(line).await;
        assert_eq!((told.code, told.out.as_str()), (Some(64), ""), "{line}: {told:?}");
        for word in words {
            assert!(told.err.contains(word), "{line}: {word:?} is not in {told:?}");
        }
    }

    /// `fanfold fanout status`.
    pub async fn status(&self) -> Value {
        self.json("fanout status").await
    }

    /// The fan-out workers of the status, which are two.
    pub async fn workers(&self) -> [Value; 2] {
        fanout_workers(&self.status().await).try_into().expect("two workers")
    }

    /// Waits until both fan-out workers tell of themselves.
    pub async fn until_both_work(&self) {
        eventually("two workers tell of themselves", async || fanout_workers(&self.status().await).len() == 2).await;
    }
}

/// The fan-out workers that a status shows.
pub fn fanout_workers(status: &Value) -> Vec<Value> {
    let workers = status["workers"].as_array().expect("a list").iter();
    workers.filter(|worker| worker["role"] == "fanout").cloned().collect()
}

/// The tasks that wait in a lane, as a status shows; `None` where the broker could not be asked.
pub fn waiting(status: &Value, lane: &str) -> Option<u64> {
    let mut lanes = status["lanes"].as_array().expect("a list").iter();
    lanes.find(|known| known["lane"] == lane).expect("a lane")["tasks"].as_u64()
}

/// A number of all workers together.
pub fn sum(workers: &[Value], field: &str) -> u64 {
    workers.iter().map(|worker| worker[field].as_u64().expect("a number")).sum()
}

/// A process that runs; it is killed when dropped.
pub struct Process {
    _child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    /// Where it can be asked.
    pub url: String,
    client: Client,
}

impl Process {
    /// `GET path`: status and body, which is null if it is no JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let sent = self.client.get(format!("{}{path}", self.url)).send().await;
        let answer = sent.expect("an answer");
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.expect("a body")).unwrap_or_default())
    }

    /// What it serves under `/metrics`.
    pub async fn metrics(&self) -> String {
        let answer = self.client.get(format!("{}/metrics", self.url)).send().await.expect("an answer");
        let (status, page) = (answer.status().as_u16(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{page}");
        page
    }

    /// Publishes to `viewers`, as part of the trace of a `traceparent` if there is one; the post's id.
    pub async fn publish(&self, viewers: &[&str], parent: Option<&str>) -> String {
        let body = json!({"type": "t", "data": {}, "audience": {"viewers": viewers}}).to_string();
        let mut ask = self.client.post(format!("{}/v1/posts", self.url)).header("content-type", "application/json");
        if let Some(parent) = parent {
            ask = ask.header("traceparent", parent);
        }
        let answer = ask.body(body).send().await.expect("an answer");
        let (status, text) = (answer.status().as_u16(), answer.text().await.expect("a body"));
        assert_eq!(status, 202, "{text}");
        let body: Value = serde_json::from_str(&text).expect("JSON");
        body["post_id"].as_str().expect("an id").to_owned()
    }

    /// How far the fan-out of a post has come.
    pub async fn fanout(&self, post: &str) -> Value {
        self.get(&format!("/v1/posts/{post}")).await.1["fanout"].clone()
    }

    /// How many items a viewer has.
    pub async fn items(&self, viewer: &str) -> usize {
        let (status, page) = self.get(&format!("/v1/viewers/{viewer}/inbox")).await;
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().expect("items").len()
    }

    /// The first line it has logged for which `is` holds.
    pub fn logged(&self, is: impl Fn(&Value) -> bool) -> Option<Value> {
        self.log.lock().expect("not poisoned").iter().find(|line| is(line)).cloned()
    }
}
