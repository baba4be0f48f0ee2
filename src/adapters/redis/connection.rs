//! Finding the master, and asking a server who it is.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};
use redis::{ProtocolVersion, RedisError, RedisResult};

use super::bells::Bells;
use super::{RedisOptions, RedisServers, cannot};
use crate::adapters::tls;
use crate::error::{Error, Result};

/// The settings that hold URLs.
const URLS: &str = "redis.urls";
const NODE_URL: &str = "redis.node_url";

/// Who a server says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// It takes writes.
    pub master: bool,
    /// The id of its replication history: another one after a restart or a promotion.
    pub replid: String,
    /// Whom it follows, `host:port`; empty for a master.
    pub follows: String,
}

/// A connection to a master.
pub struct Found {
    /// Commands and pushes.
    pub connection: MultiplexedConnection,
    /// What the pushes ring.
    pub bells: Arc<Bells>,
    /// Who the master is.
    pub replid: String,
    /// Its address, for the log.
    pub address: String,
}

/// Connects to the first master among the servers; preferably to the one whose history is `preferred`.
pub async fn find_master(
    options: &RedisOptions,
    bells: impl Fn() -> Arc<Bells>,
    preferred: Option<&str>,
) -> Result<Found> {
    let mut found = None;
    let mut reasons = Vec::new();
    for server in candidates(options).await? {
        let address = server.addr().to_string();
        match try_server(options, server, bells()).await {
            Ok(master) if preferred.is_none_or(|replid| master.replid == replid) => return Ok(master),
            Ok(master) => found = found.or(Some(master)),
            Err(reason) => reasons.push(format!("{address}: {reason}")),
        }
    }
    found.ok_or_else(|| cannot(format!("no master of redis.urls can be used ({})", reasons.join("; "))))
}

async fn try_server(options: &RedisOptions, server: ConnectionInfo, bells: Arc<Bells>) -> Result<Found, String> {
    let address = server.addr().to_string();
    let mut connection = connect(options, server, &bells).await.map_err(|error| reason(&error))?;
    let identity = identity(&mut connection).await.map_err(|error| reason(&error))?;
    if !identity.master {
        return Err(format!("is a replica of {}", identity.follows));
    }
    Ok(Found { connection, bells, replid: identity.replid, address })
}

/// One connection for commands and pushes (RESP3): a message cannot come from another server than the replies do.
async fn connect(
    options: &RedisOptions,
    server: ConnectionInfo,
    bells: &Arc<Bells>,
) -> RedisResult<MultiplexedConnection> {
    let settings = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let bells = Arc::clone(bells);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(options.connect_timeout))
        .set_response_timeout(Some(options.response_timeout))
        .set_pipeline_buffer_size(options.in_flight_max)
        .set_concurrency_limit(options.in_flight_max)
        .set_push_sender(move |push| {
            bells.hear(push);
            Ok::<(), redis::aio::SendError>(())
        });
    client(options, server.set_redis_settings(settings))?.get_multiplexed_async_connection_with_config(&config).await
}

/// A client, encrypting where the URL asks for it.
fn client(options: &RedisOptions, server: ConnectionInfo) -> RedisResult<Client> {
    #[cfg(feature = "tls")]
    if let (ConnectionAddr::TcpTls { .. }, Some(file)) = (server.addr(), &options.tls_ca_file) {
        let root_cert = std::fs::read(file).map_err(|error| {
            let detail = format!("{}: {error}", file.display());
            RedisError::from((redis::ErrorKind::InvalidClientConfig, "redis.tls_ca_file cannot be read", detail))
        })?;
        return Client::build_with_tls(server, redis::TlsCertificates { client_tls: None, root_cert: Some(root_cert) });
    }
    #[cfg(not(feature = "tls"))]
    let _ = options;
    Client::open(server)
}

/// Asks a server for its role and history.
pub async fn identity(connection: &mut MultiplexedConnection) -> RedisResult<Identity> {
    let info: String = redis::cmd("INFO").arg("replication").query_async(connection).await?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let follows = field("master_host").zip(field("master_port")).map(|(host, port)| format!("{host}:{port}"));
    match (field("role"), field("master_replid")) {
        (Some(role), Some(replid)) => {
            let follows = follows.unwrap_or_default();
            Ok(Identity { master: role == "master", replid: replid.to_owned(), follows })
        }
        _ => Err(RedisError::from((redis::ErrorKind::UnexpectedReturnType, "INFO replication tells no role"))),
    }
}

/// Whether a server does not take who we are.
pub fn refuses_user(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

/// An error in words that say what to change. Never the URL: it may hold a password.
pub fn reason(error: &RedisError) -> String {
    match error.code() {
        Some("NOAUTH") => "asks for a password, and its URL in redis.urls has none".to_owned(),
        _ if refuses_user(error) => "refuses the user and password of its URL in redis.urls".to_owned(),
        _ => error.to_string(),
    }
}

/// Where a master may be.
pub async fn candidates(options: &RedisOptions) -> Result<Vec<ConnectionInfo>> {
    match &options.servers {
        RedisServers::Nodes(urls) => urls.iter().map(|url| parse(URLS, url)).collect(),
        RedisServers::Sentinel { sentinels, master, node } => {
            let mut reasons = Vec::new();
            for url in sentinels {
                match ask_sentinel(options, parse(URLS, url)?, master).await {
                    Ok(Some((host, port))) => {
                        let node = parse(NODE_URL, node)?;
                        let addr = moved(node.addr(), host, port);
                        return Ok(vec![node.set_addr(addr)]);
                    }
                    Ok(None) => reasons.push(format!("knows no master named {master}")),
                    Err(error) => reasons.push(reason(&error)),
                }
            }
            Err(cannot(format!("no sentinel of redis.urls names the master ({})", reasons.join("; "))))
        }
    }
}

/// The same way of connecting, to another host.
fn moved(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr.clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

async fn ask_sentinel(
    options: &RedisOptions,
    sentinel: ConnectionInfo,
    master: &str,
) -> RedisResult<Option<(String, u16)>> {
    let mut connection = plain(options, sentinel).await?;
    redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master).query_async(&mut connection).await
}

/// A connection for a few questions.
pub async fn plain(options: &RedisOptions, server: ConnectionInfo) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(options.connect_timeout))
        .set_response_timeout(Some(options.response_timeout));
    client(options, server)?.get_multiplexed_async_connection_with_config(&config).await
}

/// An error if a URL cannot be used, before anything is asked of it.
pub fn check(options: &RedisOptions) -> Result<()> {
    match &options.servers {
        RedisServers::Nodes(urls) => urls.iter().try_for_each(|url| parse(URLS, url).map(|_| ())),
        RedisServers::Sentinel { sentinels, node, .. } => {
            sentinels.iter().try_for_each(|url| parse(URLS, url).map(|_| ()))?;
            parse(NODE_URL, node).map(|_| ())
        }
    }
}

/// What a setting of this name holds.
fn parse(setting: &str, url: &str) -> Result<ConnectionInfo> {
    if url.starts_with("rediss:") {
        tls::available()?;
    }
    // The text may hold a password: it stays out of the error.
    url.into_connection_info().map_err(|error| {
        Error::invalid("invalid_redis_url", setting, "must look like redis://[user:password@]host:port/[db]")
            .with_source(error)
    })
}
