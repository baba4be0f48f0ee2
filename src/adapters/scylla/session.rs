//! One connection pool for all, a bound on what is under way, and the few ways in which requests are made.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use scylla::client::PoolSize;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError,
    NewSessionError, RequestAttemptError,
};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::response::query_result::QueryResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::batch::BatchValues;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::Batch;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};
use scylla::value::{CqlValue, Row};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::options::{self, ClusterOptions, Credentials, ScyllaOptions};
use crate::adapters::tls;
use crate::error::{Error, Kind, Result};

/// Tries of a write that may be repeated: its timestamp stays the same, so the second does what the first did.
const WRITE_ATTEMPTS: u32 = 3;
/// The pause before the second try; doubled before the third.
const WRITE_PAUSE: Duration = Duration::from_millis(50);

/// The field of an error that says that the store does not let us in.
pub const USER: &str = "scylla.user";

/// The longest pause after rivals stopped each other for the first time, milliseconds; it doubles up to five times.
const RIVALS_PAUSE_MS: u64 = 20;

/// How requests are made, by whom they serve.
#[derive(Clone, Debug)]
pub struct Profiles {
    /// For clients that wait.
    pub reads: ExecutionProfileHandle,
    /// Fan-out and other writes.
    pub writes: ExecutionProfileHandle,
    /// Conditional writes.
    pub lwt: ExecutionProfileHandle,
}

impl Profiles {
    /// Three profiles that differ in how long a request may take.
    pub fn new(options: &ScyllaOptions) -> Self {
        let profile = |timeout, consistency| profile(&options.cluster, timeout, consistency).into_handle();
        let (reads, writes) = match options.cluster.consistency {
            options::Consistency::LocalQuorum => (Consistency::LocalQuorum, Consistency::LocalQuorum),
            options::Consistency::Quorum => (Consistency::Quorum, Consistency::Quorum),
            options::Consistency::EachQuorum => (Consistency::LocalQuorum, Consistency::EachQuorum),
        };
        Self {
            reads: profile(options.read_timeout, reads),
            writes: profile(options.write_timeout, writes),
            // The commit of what was agreed on must be readable as any other write.
            lwt: profile(options.lwt_timeout, writes),
        }
    }
}

fn profile(cluster: &ClusterOptions, timeout: Duration, consistency: Consistency) -> ExecutionProfile {
    let mut policy = DefaultPolicy::builder().token_aware(true).permit_dc_failover(false);
    if let Some(datacenter) = &cluster.datacenter {
        policy = policy.prefer_datacenter(datacenter.clone());
    }
    ExecutionProfile::builder()
        .consistency(consistency)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .load_balancing_policy(policy.build())
        .request_timeout(Some(timeout))
        .build()
}

/// A session whose pool has `connections` a shard; requests take `timeout` unless a statement says otherwise.
pub async fn connect(cluster: &ClusterOptions, connections: usize, timeout: Duration) -> Result<Session> {
    cluster.check()?;
    let connections = NonZeroUsize::new(connections).unwrap_or(NonZeroUsize::MIN);
    let mut builder = SessionBuilder::new()
        .known_nodes(&cluster.contact_points)
        .connection_timeout(cluster.connect_timeout)
        .pool_size(PoolSize::PerShard(connections))
        .keyspaces_to_fetch([&cluster.keyspace])
        .default_execution_profile_handle(profile(cluster, timeout, Consistency::LocalQuorum).into_handle());
    if let Some(datacenter) = &cluster.datacenter {
        builder = builder.prefer_datacenter(datacenter.clone());
    }
    if let Some(credentials) = &cluster.credentials {
        builder = builder.user(&credentials.user, &credentials.password);
    }
    if let Some(tls) = &cluster.tls {
        tls::available()?;
        #[cfg(feature = "tls")]
        {
            let context = scylla::client::session::TlsContext::Rustls023(tls::client_config(tls.ca_file.as_deref())?);
            builder = builder.tls_context(Some(context));
        }
        #[cfg(not(feature = "tls"))]
        let _ = tls;
    }
    let session = match tokio::time::timeout(cluster.connect_timeout, builder.build()).await {
        Ok(session) => session.map_err(|error| no_session(cluster, error))?,
        Err(_) => {
            let (points, limit) = (cluster.contact_points.join(", "), cluster.connect_timeout);
            let detail = format!("the store at {points} (scylla.contact_points) did not answer within {limit:?}");
            return Err(Error::unavailable("store_unavailable", detail));
        }
    };
    check_datacenter(cluster, &session)?;
    Ok(session)
}

/// An error that may pass, also where the store refuses us: a new one makes its first user some seconds after it has
/// begun to answer.
fn no_session(cluster: &ClusterOptions, error: NewSessionError) -> Error {
    use ConnectionSetupRequestErrorKind as Setup;
    let unavailable = |detail: String| Error::unavailable("store_unavailable", detail);
    match setup_error(&error) {
        // What the driver advises here is for those who call it.
        Some(Setup::MissingAuthentication) => unavailable(not_let_in(cluster)).with_field(USER),
        Some(Setup::DbError(DbError::AuthenticationError, _)) => {
            unavailable(not_let_in(cluster)).with_field(USER).with_source(error)
        }
        _ => {
            let points = cluster.contact_points.join(", ");
            unavailable(format!("the store cannot be reached at {points} (scylla.contact_points)")).with_source(error)
        }
    }
}

fn not_let_in(cluster: &ClusterOptions) -> String {
    let points = cluster.contact_points.join(", ");
    let password = "scylla.password (FANFOLD_SCYLLA__PASSWORD)";
    match &cluster.credentials {
        Some(Credentials { user, password: given }) if !given.is_empty() => {
            format!("the store at {points} refuses the user {user:?} or its password; correct it or {password}")
        }
        _ => format!("the store at {points} demands a user and a password; set it and {password}"),
    }
}

/// Why the last node asked did not start a session with us, if it was reached. The errors around it do not name it as
/// their source.
fn setup_error(error: &NewSessionError) -> Option<&ConnectionSetupRequestErrorKind> {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error: ConnectionError::ConnectionSetupRequestError(error),
    })) = error
    else {
        return None;
    };
    Some(error.get_error())
}

/// An error unless the data centre to stay in exists: requests would find no node to go to.
fn check_datacenter(cluster: &ClusterOptions, session: &Session) -> Result<()> {
    let Some(wanted) = &cluster.datacenter else { return Ok(()) };
    let state = session.get_cluster_state();
    let known: BTreeSet<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    if known.contains(wanted.as_str()) {
        return Ok(());
    }
    let known: Vec<_> = known.into_iter().collect();
    let detail = format!("the cluster has no data centre {wanted:?}, it has {}", known.join(", "));
    Err(Error::invalid("invalid_datacenter", "scylla.datacenter", detail))
}

/// What became of a conditional write.
#[derive(Debug)]
pub enum Conditional {
    /// The condition held; it is written.
    Applied,
    /// The condition did not hold, now or because an earlier try of ours was applied.
    Refused,
    /// No answer: it may have been applied, or may still be.
    Unknown(Error),
}

/// A session and the bound on what is under way in it.
#[derive(Debug)]
pub struct Requests {
    session: Session,
    in_flight: Semaphore,
}

impl Requests {
    /// At most `in_flight_max` requests at a time.
    pub fn new(session: Session, in_flight_max: usize) -> Self {
        Self { session, in_flight: Semaphore::new(in_flight_max.clamp(1, Semaphore::MAX_PERMITS)) }
    }

    /// The session itself.
    pub fn session(&self) -> &Session {
        &self.session
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>> {
        self.in_flight.acquire().await.map_err(|_| Error::unavailable("store_unavailable", "the store is closed"))
    }

    /// All rows of a SELECT, page by page. The statement itself has to bound them.
    pub async fn select<R>(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Vec<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        let (mut found, mut state) = (Vec::new(), PagingState::start());
        loop {
            let (page, next) = {
                let _permit = self.permit().await?;
                self.session.execute_single_page(statement, &values, state).await.map_err(store_error)?
            };
            let page = page.into_rows_result().map_err(corrupt)?;
            found.reserve(page.rows_num());
            for row in page.rows::<R>().map_err(corrupt)? {
                found.push(row.map_err(corrupt)?);
            }
            match next {
                PagingStateResponse::HasMorePages { state: next } => state = next,
                PagingStateResponse::NoMorePages => return Ok(found),
            }
        }
    }

    /// A write that may be repeated; an unknown outcome is repeated here, with the same timestamp.
    pub async fn write(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<()> {
        self.repeat(|| self.session.execute_unpaged(statement, &values)).await
    }

    /// A batch of writes that may be repeated.
    pub async fn batch(&self, batch: &Batch, values: impl BatchValues) -> Result<()> {
        self.repeat(|| self.session.batch(batch, &values)).await
    }

    async fn repeat<F>(&self, request: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<QueryResult, ExecutionError>>,
    {
        let mut pause = WRITE_PAUSE;
        for _ in 1..WRITE_ATTEMPTS {
            let outcome = {
                let _permit = self.permit().await?;
                request().await
            };
            match outcome {
                Ok(_) => return Ok(()),
                Err(error) if is_transient(&error) => tokio::time::sleep(pause).await,
                Err(error) => return Err(store_error(error)),
            }
            pause *= 2;
        }
        let _permit = self.permit().await?;
        request().await.map(|_| ()).map_err(store_error)
    }

    /// A conditional write. ScyllaDB always answers with the old row, Cassandra only when it refuses: the first column
    /// is all that both have in common.
    pub async fn conditional(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Conditional> {
        let outcome = {
            let _permit = self.permit().await?;
            self.session.execute_unpaged(statement, values).await
        };
        judge(outcome)
    }
}

/// What the answer to a conditional write says.
pub fn judge(outcome: Result<QueryResult, ExecutionError>) -> Result<Conditional> {
    match outcome {
        Ok(result) => applied(result).map(|yes| if yes { Conditional::Applied } else { Conditional::Refused }),
        Err(error) if is_transient(&error) => Ok(Conditional::Unknown(store_error(error))),
        Err(error) => Err(store_error(error)),
    }
}

/// A random pause before try number `attempt`: rivals that stopped each other must not meet again at once.
pub async fn pause_before(attempt: u32) {
    let longest = RIVALS_PAUSE_MS << attempt.min(5);
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..=longest))).await;
}

/// Whether a conditional write was applied.
fn applied(result: QueryResult) -> Result<bool> {
    let rows = result.into_rows_result().map_err(corrupt)?;
    let row = rows.first_row::<Row>().map_err(corrupt)?;
    match row.columns.first() {
        Some(Some(CqlValue::Boolean(applied))) => Ok(*applied),
        _ => Err(Error::new(Kind::Corrupt, "store_corrupt", "a conditional write was answered in an unknown form")),
    }
}

/// Whether the same request may fare better later. Anything but a refusal that will come again.
fn is_transient(error: &ExecutionError) -> bool {
    use RequestAttemptError as Attempt;
    let refused = |error: &DbError| {
        matches!(
            error,
            DbError::SyntaxError
                | DbError::Invalid
                | DbError::AlreadyExists { .. }
                | DbError::AuthenticationError
                | DbError::Unauthorized
                | DbError::ConfigError
                | DbError::ProtocolError
        )
    };
    match error {
        ExecutionError::BadQuery(_) | ExecutionError::PrepareError(_) => false,
        ExecutionError::LastAttemptError(Attempt::DbError(error, _)) => !refused(error),
        ExecutionError::LastAttemptError(Attempt::SerializationError(_) | Attempt::CqlRequestSerialization(_)) => false,
        _ => true,
    }
}

/// An error of the driver as the service's own: what will not pass by itself is a bug or a broken schema.
pub fn store_error(error: ExecutionError) -> Error {
    if is_transient(&error) {
        return Error::unavailable("store_unavailable", "the store cannot be used now").with_source(error);
    }
    Error::internal("the store refuses a request").with_source(error)
}

/// An answer that cannot be read.
pub fn corrupt(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Corrupt, "store_corrupt", "an answer of the store cannot be read").with_source(error)
}
