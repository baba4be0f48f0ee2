//! Publishing to ten viewers with 64 in flight, against joining the raw writes with a confirmed publish.

use std::sync::Arc;

use fanfold::clock::Clock;
use fanfold::domain::{PostId, Time};
use fanfold::service::Backends;
use futures::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation};
use scylla::client::session::Session;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::MaybeUnset;

use crate::cluster::{Bench, UNREAD, config};
use crate::findings::{Comparison, Findings};
use crate::measure::{Limit, Measure, Pair, Result, in_process};
use crate::posts::{self, Audiences, draft};
use crate::raw::{TTL_S, uuid_of};
use crate::source;

const AUDIENCE: usize = 10;
const IN_FLIGHT: usize = 64;
/// What a task of ten viewers takes as a message: a head and nine bytes for each.
const MESSAGE: usize = 34 + 9 * AUDIENCE;

/// Runs it.
pub async fn run(bench: &Bench) -> Result<Findings> {
    let context = &bench.context;
    let unread = config(&format!("{}{UNREAD}", bench.cluster.name))?;
    let Backends { store, queue, .. } = Backends::open(&unread, &Clock::system()).await?;
    let publisher = source::publisher(bench, &store, queue).await?;
    let raw = Arc::new(Raw::open(bench).await?);
    let mut audiences = Audiences::new(source::population(bench), AUDIENCE, 4);
    let posts = context.size(8_000, 200);
    let mut pairs = Vec::new();
    // The first round is a warm-up.
    for number in 0..=context.pairs {
        if number > 0 {
            context.say_pair("publish", number - 1);
        }
        let lists: Vec<Vec<String>> = (0..posts).map(|_| audiences.draw()).collect();
        let drafts = lists.iter().map(|viewers| draft(viewers)).collect::<Result<Vec<_>>>()?;
        let ours = in_process(async {
            let published = source::publish(&publisher, drafts, IN_FLIGHT).await?;
            // What nobody who publishes waits for is work all the same.
            publisher.handover.finish().await;
            Ok(published)
        });
        let ours = ours.await?;
        let other = in_process(publish(&raw, lists)).await?;
        pairs.push(Pair { ours, other });
    }
    pairs.remove(0);
    Ok(Comparison {
        scenario: "publish",
        what: "posts to 10 viewers accepted, 64 in flight, in process, against joining the raw writes (pending, chunk, \
               post) with a confirmed publish",
        op: "post",
        other: "raw join",
        measure: Measure::Throughput,
        limit: Some(Limit::AtLeast(0.7)),
        pairs,
    }
    .into())
}

struct Raw {
    session: Session,
    pending: PreparedStatement,
    chunk: PreparedStatement,
    post: PreparedStatement,
    /// Held for the channel.
    _broker: lapin::Connection,
    channel: lapin::Channel,
    queue: String,
}

async fn publish(raw: &Arc<Raw>, lists: Vec<Vec<String>>) -> Result<u64> {
    let lists = Arc::new(lists);
    let publisher = |number: usize| {
        let (raw, lists) = (Arc::clone(raw), Arc::clone(&lists));
        tokio::spawn(async move {
            let mut count = 0;
            for viewers in lists.iter().skip(number).step_by(IN_FLIGHT) {
                raw.publish(viewers).await?;
                count += 1;
            }
            Ok::<u64, Box<dyn std::error::Error + Send + Sync>>(count)
        })
    };
    let mut published = 0;
    for done in join_all((0..IN_FLIGHT).map(publisher)).await {
        published += done??;
    }
    Ok(published)
}

impl Raw {
    async fn open(bench: &Bench) -> Result<Self> {
        let (session, keyspace) = (bench.cluster.session().await?, &bench.cluster.name);
        let mut pending = session
            .prepare(format!(
                "INSERT INTO {keyspace}.pending (shard, minute, since, post_id, version) VALUES (?, ?, ?, ?, ?) \
                 USING TIMESTAMP ? AND TTL ?"
            ))
            .await?;
        let mut chunk = session
            .prepare(format!(
                "UPDATE {keyspace}.chunks USING TIMESTAMP ? AND TTL ? SET viewers = ? WHERE post_id = ? AND chunk_no = ?"
            ))
            .await?;
        let mut post = session
            .prepare(format!(
                "INSERT INTO {keyspace}.posts (post_id, producer, kind, actor, data, thread_key, version, state, ts, \
                 expires_at, audience_size, chunk_size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
                 USING TIMESTAMP 1 AND TTL ?"
            ))
            .await?;
        for statement in [&mut pending, &mut chunk, &mut post] {
            statement.set_is_idempotent(true);
        }
        let broker = bench.cluster.broker().await?;
        let channel = broker.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let queue = format!("{keyspace}.raw");
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments).await?;
        Ok(Self { session, pending, chunk, post, _broker: broker, channel, queue })
    }

    async fn publish(&self, viewers: &[String]) -> Result<()> {
        let at: Time = Clock::system().now();
        let (id, micros) = (uuid_of(PostId::new(at, rand::random())), at.micros());
        let minute = i32::try_from(micros / 60_000_000)?;
        let (kind, actor, data) = posts::content();
        let shard = i16::from(id.as_bytes()[15] % 8);
        let audience = i32::try_from(viewers.len())?;
        let none = (MaybeUnset::<&str>::Unset, MaybeUnset::<i64>::Unset);
        let (pending, chunk) = ((shard, minute, micros, id, 1, micros, TTL_S), (micros, TTL_S, viewers, id, 0));
        let post = (id, "local", kind, actor, data, none.0, 1, 0_i8, micros, none.1, audience, 500, TTL_S);
        let (pending, chunk, post, confirmed) = tokio::join!(
            self.session.execute_unpaged(&self.pending, pending),
            self.session.execute_unpaged(&self.chunk, chunk),
            self.session.execute_unpaged(&self.post, post),
            self.send(),
        );
        pending?;
        chunk?;
        post?;
        confirmed
    }

    async fn send(&self) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let queue = self.queue.as_str().into();
        let sent = self.channel.basic_publish("".into(), queue, options, &[1; MESSAGE], persistent).await?;
        match sent.await? {
            Confirmation::Ack(None) => Ok(()),
            _ => Err("the broker did not take a message".into()),
        }
    }
}
