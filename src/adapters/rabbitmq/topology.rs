//! The queues and how to reach them. Declared on every connection: whatever an operator deletes is there again.

use std::time::Duration;

use futures::future::try_join_all;
use lapin::options::QueueDeclareOptions;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};

use super::RabbitOptions;
use crate::adapters::tls;
use crate::domain::Lane;
use crate::error::{Error, Result};

/// Seconds without a sign of life after which a connection counts as broken, unless the URL sets it.
const HEARTBEAT_S: u16 = 10;
/// Messages the parked queue keeps; beyond it the oldest go. The relay still knows of every one. A queue that refused
/// instead would leave what it refuses in the lanes, until they were full of it.
const PARKED_MAX: i64 = 10_000;
/// The broker's number for a wrong password, and for what a user may not do.
const ACCESS_REFUSED: u16 = 403;
/// For a queue that exists with other arguments.
const PRECONDITION_FAILED: u16 = 406;
/// For a virtual host that does not exist, or that is not for this user.
const NOT_ALLOWED: u16 = 530;

/// One of a lane's queues. The first, the quiet one, has the name that the only one had before there were several.
pub fn queue_name(options: &RabbitOptions, lane: Lane, number: usize) -> ShortString {
    name(&options.prefix, lane, number).into()
}

fn name(prefix: &str, lane: Lane, number: usize) -> String {
    let first = format!("{prefix}.{}", lane.name());
    if number == 0 { first } else { format!("{first}.{number}") }
}

/// The queue of the messages that no worker could read or survive.
pub fn parked_name(options: &RabbitOptions) -> ShortString {
    format!("{}.parked", options.prefix).into()
}

/// The names of all queues under a prefix, with so many a lane: for whoever looks after the broker.
pub fn queue_names(prefix: &str, fair_queues: usize) -> Vec<String> {
    let of_lane = |lane| (0..fair_queues).map(move |number| name(prefix, lane, number));
    Lane::ALL.into_iter().flat_map(of_lane).chain([format!("{prefix}.parked")]).collect()
}

/// An error if the URL cannot be used, before anything is asked of it.
pub fn check(options: &RabbitOptions) -> Result<()> {
    parse(options).map(|_| ())
}

fn parse(options: &RabbitOptions) -> Result<AMQPUri> {
    options.url.parse().map_err(|reason: String| {
        // The URL may hold a password: it stays out of the error.
        Error::invalid("invalid_amqp_url", "rabbitmq.url", "must look like amqp://user:password@host:port/vhost")
            .with_source(reason)
    })
}

/// A new connection, named for the broker's list.
pub async fn connect(options: &RabbitOptions, purpose: &str) -> Result<Connection> {
    let mut uri = parse(options)?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    let broker = Broker::of(&uri);
    let name = format!("{} {purpose}", options.prefix);
    // No automatic recovery: acknowledgements must never reach another connection than their delivery came by.
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    if uri.scheme == AMQPScheme::AMQPS {
        tls::available()?;
    }
    let mut trust = OwnedTLSConfig::default();
    if let Some(file) = &options.tls_ca_file {
        trust.cert_chain = Some(tls::authorities(file)?);
    }
    let runtime = lapin::runtime::default_runtime();
    let runtime = runtime.map_err(|error| Error::internal("lapin finds no runtime").with_source(error))?;
    let connecting = Connection::connect_uri_with_config(uri, properties, trust, runtime);
    match tokio::time::timeout(options.timeout, connecting).await {
        Ok(connected) => connected.map_err(|error| broker.no_connection(error)),
        Err(_) => {
            let (address, limit) = (&broker.address, options.timeout);
            Err(cannot(format!("the broker at {address} (rabbitmq.url) did not answer within {limit:?}")))
        }
    }
}

/// What errors tell of the broker: all of its URL but the password.
struct Broker {
    address: String,
    user: String,
    vhost: String,
}

impl Broker {
    fn of(uri: &AMQPUri) -> Self {
        let AMQPUri { authority, vhost, .. } = uri;
        let address = format!("{}:{}", authority.host, authority.port);
        Self { address, user: authority.userinfo.username.clone(), vhost: vhost.clone() }
    }

    fn no_connection(&self, error: lapin::Error) -> Error {
        let Self { address, user, vhost } = self;
        match reply_code(&error) {
            Some(ACCESS_REFUSED) => {
                refused(format!("the broker at {address} refuses the user {user:?} (rabbitmq.url)")).with_source(error)
            }
            Some(NOT_ALLOWED) => {
                let detail = format!(
                    "the broker at {address} has no virtual host {vhost:?} for the user {user:?} (rabbitmq.url)"
                );
                refused(detail).with_source(error)
            }
            _ => cannot(format!("the broker at {address} (rabbitmq.url) cannot be reached")).with_source(error),
        }
    }
}

/// Declares all queues. Quorum queues: what was confirmed survives the loss of a node.
pub async fn declare(channel: &Channel, options: &RabbitOptions) -> Result<()> {
    let mut parked = quorum(PARKED_MAX);
    parked.insert("x-overflow".into(), text("drop-head"));
    declare_one(channel, options, parked_name(options), parked).await?;
    for (lane, number) in Lane::ALL.into_iter().flat_map(|lane| (0..options.fair_queues).map(move |n| (lane, n))) {
        // The whole lane's, not its share: arguments cannot be changed, and the number of queues must be. Publishers keep
        // each queue to its share; this is for when many of them do so at once.
        let mut arguments = quorum(i64::try_from(options.tasks_max).unwrap_or(i64::MAX));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(i64::from(options.deliveries_max)));
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(parked_name(options).as_str()));
        // A message leaves its lane only when the parked queue has it.
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        declare_one(channel, options, queue_name(options, lane, number), arguments).await?;
    }
    Ok(())
}

fn quorum(length_max: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(length_max));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn declare_one(
    channel: &Channel,
    options: &RabbitOptions,
    queue: ShortString,
    arguments: FieldTable,
) -> Result<()> {
    let declared = channel.queue_declare(queue.clone(), QueueDeclareOptions::durable(), arguments);
    match tokio::time::timeout(options.timeout, declared).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if reply_code(&error) == Some(PRECONDITION_FAILED) => Err(Error::unavailable(
            "queue_mismatch",
            format!(
                "the queue {queue} exists with other arguments; delete it (nothing is lost, the relay publishes what \
                 is not done), or choose another rabbitmq.prefix"
            ),
        )
        .with_source(error)),
        Ok(Err(error)) if reply_code(&error) == Some(ACCESS_REFUSED) => {
            let user = parse(options)?.authority.userinfo.username;
            Err(refused(format!("the user {user:?} of rabbitmq.url may not declare the queue {queue}"))
                .with_source(error))
        }
        Ok(Err(error)) => Err(cannot(format!("cannot declare the queue {queue}")).with_source(error)),
        Err(_) => Err(cannot(format!("the broker did not declare the queue {queue} in time"))),
    }
}

/// The number by which the broker refuses.
fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Messages ready in a queue; those that consumers have in hand do not count.
pub async fn depth(channel: &Channel, options: &RabbitOptions, queue: ShortString) -> Result<u64> {
    let asked = channel.queue_declare(queue, QueueDeclareOptions::durable().passive(), FieldTable::default());
    Ok(u64::from(within(options.timeout, "tell a queue's depth", asked).await?.message_count()))
}

/// Messages ready in each of a lane's queues.
pub async fn lane_depths(channel: &Channel, options: &RabbitOptions, lane: Lane) -> Result<Vec<u64>> {
    // One after the other on the wire, but none waits for the answer to the one before.
    let ask = |number| depth(channel, options, queue_name(options, lane, number));
    try_join_all((0..options.fair_queues).map(ask)).await
}

/// `call`, but no longer than `limit`: calls hang while the broker is away or out of memory.
pub async fn within<T>(limit: Duration, what: &str, call: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(cannot(format!("the broker could not {what}")).with_source(error)),
        Err(_) => Err(cannot(format!("the broker did not {what} within {limit:?}"))),
    }
}

/// The broker is there, and does not take who we are.
fn refused(detail: String) -> Error {
    Error::unavailable("queue_refused", detail)
}

/// What every call answers while the broker cannot be used.
pub fn cannot(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::unavailable("queue_unavailable", detail)
}
