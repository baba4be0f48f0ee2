//! The servers under test: the store and the broker of `dev/stack`, and Redis servers of each run's own.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use fanfold::adapters::rabbitmq::queue_names;
use fanfold::adapters::scylla as adapter;
use fanfold::clock::Clock;
use fanfold::config::{self, Overrides};
use fanfold::service::options;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::{Outcome, until};

/// Where the ports of processes and Redis servers begin, and how many there are.
const PORTS: (u16, u16) = (20_000, 5_000);

/// Where the servers are.
#[derive(Clone, Debug)]
pub struct Servers {
    pub cql: Vec<String>,
    pub amqp: String,
    /// `dev/stack`, where servers that others use as well may be killed.
    pub stack: Option<PathBuf>,
}

impl Servers {
    /// From the environment; `None` if it names none.
    pub fn from_env() -> Option<Self> {
        let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let nodes = named("FANFOLD_TEST_CQL_NODES").or_else(|| named("FANFOLD_TEST_CQL"))?;
        let amqp = named("FANFOLD_TEST_AMQP")?;
        named("FANFOLD_TEST_REDIS")?;
        let stack = named("FANFOLD_TEST_STACK").map(PathBuf::from);
        Some(Self { cql: nodes.split(',').map(str::to_owned).collect(), amqp, stack })
    }

    /// Whether there are three nodes with three copies.
    pub fn three_nodes(&self) -> bool {
        self.cql.len() >= 3
    }

    /// Runs `dev/stack` with these words.
    pub async fn stack(&self, words: &[&str]) -> Outcome<String> {
        let program = self.stack.as_ref().ok_or("this fault is for dev/faults: it kills servers of dev/stack")?;
        let done = Command::new(program).args(words).stdin(Stdio::null()).output().await;
        let done = done.map_err(|error| format!("dev/stack: {error}"))?;
        let told = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        if done.status.success() { Ok(told) } else { Err(format!("dev/stack {words:?}: {told}")) }
    }

    /// The folder in which `dev/stack` keeps its servers.
    pub fn stack_folder(&self) -> Outcome<PathBuf> {
        let target = std::env::var("FANFOLD_TEST_TARGET").map_err(|_| "FANFOLD_TEST_TARGET is not set")?;
        Ok(Path::new(&target).join("stack"))
    }

    /// The process of a server of the stack.
    pub fn stack_pid(&self, service: &str) -> Outcome<u32> {
        let file = self.stack_folder()?.join(format!("{service}.pid"));
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        text.trim().parse().map_err(|_| format!("{} holds no pid", file.display()))
    }
}

/// A keyspace of a run's own, with a connection that looks into it.
pub struct Keyspace {
    pub name: String,
    session: Session,
}

/// A version of a post that a relay looks at until it is fanned out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub shard: i16,
    pub post: Uuid,
    pub version: i32,
}

/// What is left to do in a keyspace.
#[derive(Debug, Default)]
pub struct Left {
    pub pending: usize,
    pub intents: usize,
    /// The first few, for the report of a run that does not drain.
    pub examples: Vec<String>,
}

impl Left {
    pub fn is_nothing(&self) -> bool {
        self.pending + self.intents == 0
    }
}

impl Keyspace {
    /// Makes it, with the schema.
    pub async fn create(servers: &Servers) -> Outcome<Self> {
        let name = format!("fanfold_faults_{:08x}", rand::random::<u32>());
        let mut settings = vec![
            ("FANFOLD_SCYLLA__CONTACT_POINTS".to_owned(), servers.cql.join(",")),
            ("FANFOLD_SCYLLA__KEYSPACE".to_owned(), name.clone()),
            ("FANFOLD_SCYLLA__CONNECT_TIMEOUT_MS".to_owned(), "30000".to_owned()),
        ];
        let copies = if servers.three_nodes() { "3" } else { "1" };
        settings.push(("FANFOLD_SCYLLA__REPLICATION_FACTOR".to_owned(), copies.to_owned()));
        let config = config::load(&Overrides::default(), settings).map_err(|error| format!("{error}"))?;
        let migration = options::migration(&config, &Clock::system());
        adapter::migrate(&migration).await.map_err(|error| format!("the schema: {error}"))?;
        let session = SessionBuilder::new().known_nodes(&servers.cql).build().await;
        let session = session.map_err(|error| format!("the store: {error}"))?;
        Ok(Self { name, session })
    }

    pub async fn drop(&self) {
        let _ = self.session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {}", self.name), &[]).await;
    }

    async fn rows<R>(&self, text: &str) -> Outcome<Vec<R>>
    where
        R: for<'f, 'm> ::scylla::deserialize::row::DeserializeRow<'f, 'm>,
    {
        let text = text.replace("{ks}", &self.name);
        let asked = tokio::time::timeout(Duration::from_secs(10), self.session.query_unpaged(text.as_str(), &[]));
        let found = asked.await.map_err(|_| "the store did not answer")?.map_err(|error| format!("{error}"))?;
        let found = found.into_rows_result().map_err(|error| format!("{error}"))?;
        found.rows::<R>().map_err(|error| format!("{error}"))?.map(|row| row.map_err(|e| format!("{e}"))).collect()
    }

    /// All entries that are there.
    async fn pending(&self) -> Outcome<Vec<Entry>> {
        let found = self.rows::<(i16, Uuid, i32)>("SELECT shard, post_id, version FROM {ks}.pending").await?;
        Ok(found.into_iter().map(|(shard, post, version)| Entry { shard, post, version }).collect())
    }

    /// Those that a relay has to settle. Entries whose post was never committed are not among them: they wait for their
    /// producer's retry.
    pub async fn unsettled(&self) -> Outcome<Vec<Entry>> {
        self.entries(true).await
    }

    /// Those whose version nobody has committed.
    pub async fn uncommitted(&self) -> Outcome<Vec<Entry>> {
        self.entries(false).await
    }

    async fn entries(&self, committed: bool) -> Outcome<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.pending().await? {
            let found = format!("SELECT version FROM {{ks}}.posts WHERE post_id = {}", entry.post);
            let version = self.rows::<(Option<i32>,)>(&found).await?.first().and_then(|(version,)| *version);
            if version.is_some_and(|version| version >= entry.version) == committed {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// How many of these no relay has settled yet.
    pub async fn count_unsettled(&self, entries: &[Entry]) -> Outcome<usize> {
        let pending: HashSet<Entry> = self.pending().await?.into_iter().collect();
        Ok(entries.iter().filter(|entry| pending.contains(*entry)).count())
    }

    /// Those of which a chunk is not done at their version.
    pub async fn undone(&self, entries: Vec<Entry>) -> Outcome<Vec<Entry>> {
        let mut undone = Vec::new();
        for entry in entries {
            let found = format!("SELECT done FROM {{ks}}.chunks WHERE post_id = {}", entry.post);
            let chunks = self.rows::<(Option<i64>,)>(&found).await?;
            // The version is the upper half.
            let is_done = |done: Option<i64>| done.is_some_and(|done| (done >> 32) >= i64::from(entry.version));
            if !chunks.into_iter().all(|(done,)| is_done(done)) {
                undone.push(entry);
            }
        }
        Ok(undone)
    }

    /// Which relay has the lease of which shard.
    pub async fn leases(&self) -> Outcome<BTreeMap<i16, Uuid>> {
        let found = self.rows::<(String, Option<Uuid>)>("SELECT name, owner FROM {ks}.leases").await?;
        // Migrations have a lease of their own.
        let of_shard = |(name, owner): (String, Option<Uuid>)| {
            let shard: i16 = name.strip_prefix("relay-")?.parse().ok()?;
            Some((shard, owner?))
        };
        Ok(found.into_iter().filter_map(of_shard).collect())
    }

    /// What the relay still has to do.
    pub async fn left(&self) -> Outcome<Left> {
        let entries = self.unsettled().await?;
        let examples = entries.iter().map(|entry| format!("pending {} at {}", entry.post, entry.version)).collect();
        let mut left = Left { pending: entries.len(), intents: 0, examples };
        for (viewer, mark) in self.rows::<(String, i64)>("SELECT viewer_id, mark_id FROM {ks}.mark_intents").await? {
            left.intents += 1;
            left.examples.push(format!("intent {mark} of {viewer}"));
        }
        left.examples.truncate(5);
        Ok(left)
    }

    /// How many lives of Redis are in the registry.
    pub async fn fences(&self) -> Outcome<usize> {
        Ok(self.rows::<(i32,)>("SELECT seq FROM {ks}.fences WHERE scope = 'main'").await?.len())
    }

    /// How many entries of a post at a version or later are pending.
    pub async fn pending_of(&self, post: &str, version: i32) -> Outcome<usize> {
        let all = self.pending().await?;
        Ok(all.iter().filter(|entry| entry.post.to_string() == post && entry.version >= version).count())
    }
}

/// Queues of a lane, as in config.default.toml.
const FAIR_QUEUES: usize = 8;

/// Removes what is in the queues of a run, or the queues themselves.
pub async fn empty_queues(servers: &Servers, prefix: &str, delete: bool) -> Outcome<()> {
    let (connection, channel) = broker(servers).await?;
    for queue in queue_names(prefix, FAIR_QUEUES) {
        let done = if delete {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.map(|_| ())
        } else {
            channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.map(|_| ())
        };
        done.map_err(of_broker)?;
    }
    connection.close(0, "done".into()).await.map_err(of_broker)
}

/// How many tasks of a run wait in the broker, and are not at hand of a worker.
pub async fn waiting_tasks(servers: &Servers, prefix: &str) -> Outcome<u32> {
    let (connection, channel) = broker(servers).await?;
    let mut waiting = 0;
    for queue in queue_names(prefix, FAIR_QUEUES) {
        let passive = QueueDeclareOptions::durable().passive();
        let asked = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        waiting += asked.map_err(of_broker)?.message_count();
    }
    connection.close(0, "done".into()).await.map_err(of_broker)?;
    Ok(waiting)
}

async fn broker(servers: &Servers) -> Outcome<(lapin::Connection, lapin::Channel)> {
    let connecting = lapin::Connection::connect(&servers.amqp, lapin::ConnectionProperties::default());
    let connection = connecting.await.map_err(of_broker)?;
    let channel = connection.create_channel().await.map_err(of_broker)?;
    Ok((connection, channel))
}

fn of_broker(error: lapin::Error) -> String {
    format!("the broker: {error}")
}

/// A `redis-server` of a run's own, without a disk: killed, it comes back empty.
pub struct RedisServer {
    child: Child,
    pub port: u16,
    args: Vec<String>,
    dir: tempfile::TempDir,
}

impl RedisServer {
    /// A master.
    pub async fn start() -> Outcome<Self> {
        Self::start_with(Vec::new()).await
    }

    /// A replica that reaches its master by `port`, once it has all of it.
    pub async fn replica_of(port: u16) -> Outcome<Self> {
        let server = Self::start_with(vec!["--replicaof".into(), "127.0.0.1".into(), port.to_string()]).await?;
        until("a replica is linked to its master", Duration::from_secs(30), async || {
            let info: String = server.run("INFO replication").await.unwrap_or_default();
            info.contains("master_link_status:up")
        })
        .await?;
        Ok(server)
    }

    async fn start_with(args: Vec<String>) -> Outcome<Self> {
        let dir = tempfile::tempdir().map_err(|error| format!("a folder for Redis: {error}"))?;
        let port = free_port()?;
        let server = Self { child: spawn_redis(dir.path(), port, &args)?, port, args, dir };
        server.answers().await?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn answers(&self) -> Outcome<()> {
        until("redis-server answers", Duration::from_secs(10), async || self.run::<String>("PING").await.is_ok()).await
    }

    /// Kills it with -9.
    pub async fn kill(&mut self) -> Outcome<()> {
        self.child.kill().await.map_err(|error| format!("redis-server: {error}"))
    }

    /// Starts it again, empty.
    pub async fn revive(&mut self) -> Outcome<()> {
        self.child = spawn_redis(self.dir.path(), self.port, &self.args)?;
        self.answers().await
    }

    /// Runs a command, its words separated by spaces.
    pub async fn run<T: redis::FromRedisValue>(&self, command: &str) -> Outcome<T> {
        let mut words = command.split(' ');
        let mut call = redis::cmd(words.next().unwrap_or_default());
        words.for_each(|word| {
            call.arg(word);
        });
        let client = redis::Client::open(self.url()).map_err(|error| format!("redis: {error}"))?;
        let connected = client.get_multiplexed_async_connection().await;
        let mut connection = connected.map_err(|error| format!("redis: {error}"))?;
        call.query_async(&mut connection).await.map_err(|error| format!("redis {command}: {error}"))
    }
}

fn spawn_redis(dir: &Path, port: u16, args: &[String]) -> Outcome<Child> {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "no", "--save", ""])
        .args(["--repl-diskless-sync-delay", "0", "--repl-timeout", "60"])
        .args(args)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("redis-server: {error}"))
}

/// A port that nobody listens on, each once. Below those that the system gives to connections: a process that is killed
/// must find its own free when it comes back.
pub fn free_port() -> Outcome<u16> {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new(rand::random_range(0..PORTS.1)));
    for _ in 0..PORTS.1 {
        let port = PORTS.0 + next.fetch_add(1, Ordering::Relaxed) % PORTS.1;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("there is no free port".into())
}
