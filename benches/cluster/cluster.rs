//! The cluster of a run: the servers that the environment names, a keyspace and prefixes that nobody else uses.

use std::path::PathBuf;

use fanfold::adapters::rabbitmq::queue_names;
use fanfold::config::{Config, Mode, Overrides};
use fanfold::service::console;
use lapin::options::QueueDeleteOptions;
use scylla::client::PoolSize;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

use crate::context::{self, Context};
use crate::measure::Result;

/// Connections to each store node, for both arms: Cassandra counts as one shard, and one connection is not enough for it.
const CONNECTIONS: u32 = 3;
/// Appended to the name where nothing consumes and the queue has to take everything.
pub const UNREAD: &str = "_unread";

/// What every scenario is given.
#[derive(Debug)]
pub struct Bench {
    /// Sizes, pairs, places for files.
    pub context: Context,
    /// Where everything is.
    pub cluster: Cluster,
    /// Where the servers' process ids are.
    pub stack: PathBuf,
}

/// A keyspace, and prefixes of the same name.
#[derive(Debug)]
pub struct Cluster {
    /// The name.
    pub name: String,
    /// The configuration of everything in it.
    pub config: Config,
}

/// Where a server is.
fn server(variable: &str) -> Result<String> {
    std::env::var(variable).map_err(|_| format!("{variable} is not set: dev/bench cluster, or dev/stack up").into())
}

/// The configuration as shipped, but for what the environment sets, on the servers it names.
pub fn config(name: &str) -> Result<Config> {
    let any = "127.0.0.1:0".parse()?;
    let overrides = Overrides {
        listen: Some(any),
        worker_listen: Some(any),
        mode: Some(Mode::Cluster),
        wait_for_s: Some(30),
        ..Overrides::default()
    };
    let mut config = fanfold::config::load(&overrides, context::settings())?;
    config.scylla.contact_points = server("FANFOLD_TEST_CQL")?.split(',').map(str::to_owned).collect();
    name.trim_end_matches(UNREAD).clone_into(&mut config.scylla.keyspace);
    config.scylla.replication_factor = 1;
    if std::env::var_os("FANFOLD_SCYLLA__CONNECTIONS_PER_SHARD").is_none() {
        config.scylla.connections_per_shard = CONNECTIONS;
    }
    config.rabbitmq.url = server("FANFOLD_TEST_AMQP")?.as_str().into();
    name.clone_into(&mut config.rabbitmq.prefix);
    config.redis.urls = vec![server("FANFOLD_TEST_REDIS")?.as_str().into()];
    name.trim_end_matches(UNREAD).clone_into(&mut config.redis.key_prefix);
    if name.ends_with(UNREAD) {
        config.fanout.queue_tasks_max = 1_000_000;
    }
    Ok(config)
}

impl Cluster {
    /// That of this run; fresh.
    pub async fn create() -> Result<Self> {
        let cluster = Self::named(&format!("fanfold_bench_{}", std::process::id()))?;
        cluster.migrate().await?;
        Ok(cluster)
    }

    /// One more of this run, of which nothing is there before [`Cluster::migrate`]. With a cluster goes whatever begins
    /// with its name, so none of a run has a name that begins with another's.
    pub fn another(what: &str) -> Result<Self> {
        Self::named(&format!("fanfold_bench_{what}_{}", std::process::id()))
    }

    /// The one of that name, whether or not anything of it is there.
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), config: config(name)? })
    }

    /// Makes its keyspace.
    pub async fn migrate(&self) -> Result<()> {
        console::migrate(&self.config).await?;
        Ok(())
    }

    /// Rows in a batch of its fan-out.
    pub fn batch_rows(&self) -> usize {
        self.config.scylla.batch_rows_max as usize
    }

    /// The raw driver, with as many connections as the service has.
    pub async fn session(&self) -> Result<Session> {
        let connections = usize::try_from(self.config.scylla.connections_per_shard)?.try_into()?;
        let builder = SessionBuilder::new().known_nodes(&self.config.scylla.contact_points);
        Ok(builder.pool_size(PoolSize::PerShard(connections)).build().await?)
    }

    /// The raw broker.
    pub async fn broker(&self) -> Result<lapin::Connection> {
        Ok(lapin::Connection::connect(self.config.rabbitmq.url.expose(), lapin::ConnectionProperties::default())
            .await?)
    }

    /// The raw revisions' server.
    pub async fn redis(&self) -> Result<redis::aio::MultiplexedConnection> {
        let url = self.config.redis.urls.first().ok_or("no redis is configured")?;
        Ok(redis::Client::open(url.expose())?.get_multiplexed_async_connection().await?)
    }

    /// Takes everything of it away, however little is there.
    pub async fn remove(&self) -> Result<()> {
        let broker = self.broker().await?;
        let channel = broker.create_channel().await?;
        for prefix in [self.name.clone(), format!("{}{UNREAD}", self.name)] {
            let queues = queue_names(&prefix, self.config.rabbitmq.fair_queues as usize);
            for queue in queues.into_iter().chain([format!("{prefix}.raw")]) {
                // A queue that was never declared is gone already.
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
            }
        }
        let mut redis = self.redis().await?;
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{}*", self.name)).arg("COUNT").arg(1_000);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut redis).await?;
            if !keys.is_empty() {
                let _: u64 = redis::cmd("UNLINK").arg(keys).query_async(&mut redis).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        self.session().await?.query_unpaged(format!("DROP KEYSPACE IF EXISTS {}", self.name), ()).await?;
        Ok(())
    }
}
