//! The queue in RabbitMQ under the suite, and what is its own. Needs FANFOLD_TEST_AMQP.

use std::time::Duration;

use fanfold::adapters::Queue;
use fanfold::adapters::rabbitmq::{RabbitOptions, RabbitQueue, queue_names};
use fanfold::domain::{Chunk, Lane, Post, ProducerId, Task};
use fanfold::handover::Handover;
use fanfold::ports::{Delivery, Queue as _};
use futures::FutureExt as _;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::proxy::{Line, Proxy};
use crate::queue::AT_HAND;
use crate::wait::{eventually, until};
use crate::{START, post_at, viewer};

const PATIENCE: Duration = Duration::from_secs(20);

/// A task for nobody, in the form that is written today: form, lane, post, version, chunk 7, attempt, no viewers.
const TASK_7: [u8; 34] =
    [1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];

pub fn options(url: &str) -> RabbitOptions {
    RabbitOptions {
        url: url.into(),
        tls_ca_file: None,
        prefix: format!("fanfold-test-{:016x}", rand::random::<u64>()),
        tasks_max: 4,
        fair_queues: 2,
        prefetch: AT_HAND as u16,
        window: 512,
        deliveries_max: 20,
        timeout: Duration::from_secs(10),
    }
}

pub async fn start(options: &RabbitOptions) -> RabbitQueue {
    let queue = RabbitQueue::start(options.clone());
    queue.ready(PATIENCE).await.expect("the broker is there");
    queue
}

/// Eight queues a lane, of which a producer has two.
async fn open(places: usize) -> Option<(Left, RabbitQueue)> {
    let url = crate::server("FANFOLD_TEST_AMQP")?;
    let options = RabbitOptions { fair_queues: 8, tasks_max: places * 4, ..options(&url) };
    let left = Left(options.clone());
    Some((left, start(&options).await))
}

/// Deletes a test's queues when dropped: a broker has no room for as many as there are runs.
pub struct Left(pub RabbitOptions);

impl Drop for Left {
    fn drop(&mut self) {
        let RabbitOptions { url, prefix, fair_queues, .. } = self.0.clone();
        // A thread of its own, for the test's runtime may be the one that drops it.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (_connection, channel) = channel(&url).await;
                for name in queue_names(&prefix, fair_queues) {
                    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("deleted");
                }
            });
        });
        if deleted.join().is_err() && !std::thread::panicking() {
            panic!("the queues of a test could not be deleted");
        }
    }
}

crate::queue_suite!(queue_suite, super::open);

fn local() -> ProducerId {
    ProducerId::local()
}

fn task(no: u32) -> Task {
    let chunk = Chunk { no, viewers: [viewer("a")].into() };
    Task { post_id: post_at(START, 1).id, version: 1, chunk, lane: Lane::Small, attempt: 0, trace: None }
}

/// One that is as much work as any.
fn whole(no: u32) -> Task {
    let viewers = (0..500).map(|n| viewer(&format!("v{n}"))).collect();
    Task { chunk: Chunk { no, viewers }, ..task(no) }
}

/// A channel of the test's own.
pub async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

/// Waits until there are so many messages where `count` looks.
async fn messages(expected: u64, count: impl AsyncFn() -> u64) {
    let mut seen = None;
    let came = until("all messages are there, and no more", PATIENCE, async || {
        seen = Some(count().await);
        seen == Some(expected)
    })
    .await;
    assert!(came.is_ok(), "{came:?}, expected {expected}, last seen {seen:?}");
}

#[tokio::test]
async fn a_message_of_a_newer_form_is_parked_and_the_rest_goes_on() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let queue = start(&options).await;
    let (_connection, channel) = channel(&url).await;
    for message in [&[99_u8, 1, 2, 3][..], b"", b"\x01broken"] {
        let name = format!("{}.small", options.prefix);
        let publish = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), name.into(), publish, message, BasicProperties::default())
            .await
            .expect("published");
    }
    messages(3, async || queue.depth(Lane::Small).await.expect("asked")).await;
    queue.publish(&local(), vec![task(1)]).await.expect("published");
    let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
    assert_eq!(delivery.task.chunk.no, 1);
    queue.ack(delivery).await.expect("acknowledged");
    messages(3, async || queue.parked().await.expect("asked")).await;
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 0, "not looped");
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_and_the_rest_does_not() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let queue = start(&options).await;
    queue.publish(&local(), (0..4).map(task).collect()).await.expect("published");
    for _ in 0..4 {
        let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
        match delivery.task.chunk.no {
            0 | 2 => queue.ack(delivery).await.expect("acknowledged"),
            1 => queue.release(delivery).await.expect("released"),
            _ => drop(delivery),
        }
    }
    queue.flush().await;
    drop(queue);
    let queue = start(&options).await;
    let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
    assert_eq!(delivery.task.chunk.no, 3);
    queue.ack(delivery).await.expect("acknowledged");
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 0);
}

#[tokio::test]
async fn a_closed_queue_returns_what_it_has_not_handed_out() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let queue = start(&options).await;
    queue.publish(&local(), (0..4).map(task).collect()).await.expect("published");
    let in_hand = queue.next(Lane::Small).await.expect("asked").expect("open");
    messages(0, async || queue.depth(Lane::Small).await.expect("asked")).await;
    queue.close().await;
    assert!(queue.next(Lane::Small).await.expect("asked").is_none());
    messages(3, async || queue.depth(Lane::Small).await.expect("asked")).await;
    queue.ack(in_hand).await.expect("what is in hand can still be finished");
}

#[tokio::test]
async fn a_paused_lane_gives_back_what_is_not_in_hand_and_takes_it_up_again() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let queue = start(&options).await;
    queue.publish(&local(), (0..4).map(task).collect()).await.expect("published");
    let in_hand = queue.next(Lane::Small).await.expect("asked").expect("open");
    queue.set_prefetch(0);
    messages(3, async || queue.depth(Lane::Small).await.expect("asked")).await;
    // Whichever it was: what is returned or redelivered may change places.
    let expected = (0..4).filter(|no| *no != in_hand.task.chunk.no).collect();
    queue.ack(in_hand).await.expect("what is in hand can still be finished");
    queue.set_prefetch(2);
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 3 {
        let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
        assert!(seen.insert(delivery.task.chunk.no), "delivered twice");
        queue.ack(delivery).await.expect("acknowledged");
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn what_is_set_aside_can_be_taken_over_or_left() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let queue = start(&options).await;
    let (_connection, channel) = channel(&url).await;
    let publish = async |bytes: &[u8]| {
        let name = format!("{}.parked", options.prefix);
        let properties = BasicProperties::default();
        channel
            .basic_publish("".into(), name.into(), BasicPublishOptions::default(), bytes, properties)
            .await
            .expect("published");
    };
    publish(&[99, 1, 2, 3]).await;
    publish(&TASK_7).await;
    messages(2, async || queue.parked().await.expect("asked")).await;
    let set_aside = queue.set_aside(10).await.expect("in hand");
    let readable: Vec<bool> = set_aside.messages.iter().map(|message| message.task.is_some()).collect();
    assert_eq!(readable, [false, true]);
    assert!(set_aside.messages[0].reason.contains("form 99"), "{}", set_aside.messages[0].reason);
    set_aside.remove(&readable).await.expect("sorted");
    messages(1, async || queue.parked().await.expect("asked")).await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let (_connection, channel) = channel(&url).await;
    let name = format!("{}.bulk", options.prefix);
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(name.as_str().into(), durable, FieldTable::default()).await.expect("declared");
    let queue = RabbitQueue::start(options);
    let error = queue.ready(Duration::from_secs(2)).await.expect_err("the queue is of another kind");
    assert!(error.detail().contains(&name) && error.detail().contains("other arguments"), "{error}");
    assert!(queue.publish(&local(), vec![task(0)]).await.is_err(), "refused at once");
}

/// The broker by way of a proxy: the URL, and the proxy.
async fn by_proxy(url: &str) -> (String, Proxy) {
    let (before, after) = url.rsplit_once('@').expect("credentials");
    let (broker, path) = after.split_once('/').unwrap_or((after, ""));
    let proxy = Proxy::start(broker.to_owned()).await.expect("a proxy");
    (format!("{before}@{}/{path}", proxy.address()), proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_publishes_does_not_wait_for_a_broker_that_does_not_answer() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let (by_proxy, proxy) = by_proxy(&url).await;
    let options = RabbitOptions { timeout: Duration::from_secs(600), ..options(&by_proxy) };
    let _left = Left(RabbitOptions { url, ..options.clone() });
    let handover = Handover::new(Queue::Rabbit(start(&options).await));
    proxy.set(Line::Deaf);
    let post = |viewers| Post { chunk_size: viewers, ..post_at(START, viewers) };
    let chunk = || vec![Chunk { no: 0, viewers: [viewer("ben")].into() }];
    for large in [post(100_000), post(99_000), post(1), post(1), post(1), post(1), post(1)] {
        let handed_over = handover.enqueue(&large, chunk(), 0).now_or_never();
        handed_over.expect("the broker is waited for");
    }
    assert_eq!(handover.on_their_way(), 7, "who is done with them has heard from the broker");
    let too_many = post(1);
    let mut too_many = std::pin::pin!(handover.enqueue(&too_many, chunk(), 0));
    assert!(too_many.as_mut().now_or_never().is_none(), "with 200,000 viewers on their way the next one waits");
    assert_eq!(handover.on_their_way(), 8, "and is told of");
    // Once the connection is lost nothing is on its way any more: a service that stops need not wait.
    proxy.set(Line::Cut);
    let all_ended = futures::future::join(too_many, handover.finish());
    tokio::time::timeout(PATIENCE, all_ended).await.expect("it ends with the connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_comes_back_by_itself() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let (by_proxy, proxy) = by_proxy(&url).await;
    let options = options(&by_proxy);
    let _left = Left(RabbitOptions { url: url.clone(), ..options.clone() });
    let queue = start(&options).await;
    queue.publish(&local(), vec![task(0)]).await.expect("published");
    let in_hand = queue.next(Lane::Small).await.expect("asked").expect("open");
    assert_eq!(in_hand.task.chunk.no, 0);

    let mut waiting = std::pin::pin!(queue.next(Lane::Small));
    assert!(waiting.as_mut().now_or_never().is_none(), "there is no other task");
    proxy.set(Line::Cut);
    eventually("the cut is noticed by who publishes", async || queue.publish(&local(), vec![task(1)]).await.is_err())
        .await;
    // Until the consumer has seen it, an acknowledgement is taken, and goes nowhere: what it would go by is cut.
    let lost = || Delivery { task: in_hand.task.clone(), tag: in_hand.tag };
    eventually("the cut is noticed by who acknowledges", async || queue.ack(lost()).await.is_err()).await;

    proxy.set(Line::Through);
    let again = tokio::time::timeout(PATIENCE, waiting).await.expect("resumed");
    let mut delivery = again.expect("asked").expect("open");
    eventually("a task can be published again", async || queue.publish(&local(), vec![task(2)]).await.is_ok()).await;
    let mut seen = std::collections::HashSet::new();
    loop {
        // Task 1 may have been taken although its publisher heard nothing.
        seen.insert(delivery.task.chunk.no);
        queue.ack(delivery).await.expect("acknowledged");
        if seen.contains(&0) && seen.contains(&2) {
            break;
        }
        let next = tokio::time::timeout(PATIENCE, queue.next(Lane::Small)).await;
        delivery = next.expect("what was in hand comes again, and what is new comes").expect("asked").expect("open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishers_share_the_window() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = RabbitOptions { tasks_max: 10_000, fair_queues: 8, window: 8, prefetch: 100, ..options(&url) };
    let _left = Left(options.clone());
    let queue = start(&options).await;
    let producers: Vec<ProducerId> =
        (0..20).map(|n| ProducerId::parse("producer", &format!("p{n}")).expect("valid")).collect();
    let publishing = (0..).zip(&producers).map(|(n, producer)| {
        let tasks: Vec<Task> = (n * 50..n * 50 + 50).map(task).collect();
        queue.publish(producer, tasks)
    });
    let taken = futures::future::try_join_all(publishing).await.expect("published");
    assert_eq!(taken.iter().sum::<usize>(), 1_000);
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 1_000 {
        let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
        assert!(seen.insert(delivery.task.chunk.no), "delivered twice");
        queue.ack(delivery).await.expect("acknowledged");
    }
    // Acknowledged each, whatever queue it came from: with one too many the channel would be gone and tasks come again.
    queue.flush().await;
    drop(queue);
    let queue = start(&options).await;
    let room = async |producer| queue.room(Lane::Small, producer).await.expect("asked").waiting;
    assert_eq!(futures::future::join_all(producers.iter().map(room)).await, [0; 20]);
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_under_its_consumer_is_consumed_again() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = RabbitOptions { tasks_max: 400, ..options(&url) };
    let _left = Left(options.clone());
    let queue = start(&options).await;
    let take_four = async || {
        let mut seen = std::collections::HashSet::new();
        while seen.len() < 4 {
            let delivery = tokio::time::timeout(PATIENCE, queue.next(Lane::Small)).await.expect("all are handed out");
            let delivery = delivery.expect("asked").expect("open");
            seen.insert(delivery.task.chunk.no);
            // Its connection may go while it is in hand; then it comes again.
            let _ = queue.ack(delivery).await;
        }
    };
    queue.publish(&local(), (0..4).map(task).collect()).await.expect("published");
    take_four().await;
    let (_connection, channel) = channel(&url).await;
    let second = format!("{}.small.1", options.prefix);
    channel.queue_delete(second.into(), QueueDeleteOptions::default()).await.expect("deleted");
    // Two in each queue. What is offered before the queue is there again may be taken in part, and comes as well.
    let four = || (0..4).map(task).collect();
    eventually("all four are taken", async || queue.publish(&local(), four()).await.is_ok_and(|taken| taken == 4))
        .await;
    take_four().await;
}

/// The worst of days: workers have at hand all they may of seven floods' queues when somebody comes with a single task, to a
/// process that has seen nothing of the floods.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_posts_little_passes_floods_that_fill_all_queues_but_the_quiet_one() {
    const QUEUES: usize = 8;
    const ONE: u32 = 1_000;
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = RabbitOptions { tasks_max: 4_000, fair_queues: QUEUES, ..options(&url) };
    let _left = Left(options.clone());
    let queue = start(&options).await;
    // As many as it takes for their pairs to be all of the seven; a hundred tasks at once are not little.
    for flood in 0..20 {
        let producer = ProducerId::parse("producer", &format!("flood-{flood}")).expect("valid");
        let tasks = (0..100).map(whole).collect();
        assert_eq!(queue.publish(&producer, tasks).await.expect("published"), 100);
    }
    messages(2_000, async || queue.depth(Lane::Small).await.expect("asked")).await;
    let (_connection, channel) = channel(&url).await;
    let names = queue_names(&options.prefix, QUEUES);
    let mut depths = Vec::new();
    for name in &names[..QUEUES] {
        let passive = QueueDeclareOptions::durable().passive();
        let asked = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await;
        depths.push(asked.expect("it exists").message_count());
    }
    assert!(depths[0] == 0 && depths[1..].iter().all(|depth| *depth > 100), "{depths:?}");

    let mut in_hand = vec![queue.next(Lane::Small).await.expect("asked").expect("open")];
    // Half the prefetch of each queue, less the one in hand.
    let at_hand = (QUEUES - 1) * AT_HAND / 2 - 1;
    messages(at_hand as u64, async || queue.at_hand(Lane::Small) as u64).await;
    let other = start(&options).await;
    assert_eq!(other.publish(&local(), vec![task(ONE)]).await.expect("published"), 1);
    messages(at_hand as u64 + 1, async || queue.at_hand(Lane::Small) as u64).await;
    for _ in 0..QUEUES {
        in_hand.push(queue.next(Lane::Small).await.expect("asked").expect("open"));
    }
    let passed = in_hand[1..].iter().any(|delivery| delivery.task.chunk.no == ONE);
    assert!(passed, "one task of each other queue at most comes before it");
}

#[tokio::test]
async fn the_queue_of_a_release_with_one_a_lane_is_the_first_of_several() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = RabbitOptions { fair_queues: 8, ..options(&url) };
    let _left = Left(options.clone());
    let (_connection, channel) = channel(&url).await;
    let text = |value: &str| AMQPValue::LongString(value.into());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(4));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(20));
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(&format!("{}.parked", options.prefix)));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    let name = format!("{}.small", options.prefix);
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(name.as_str().into(), durable, arguments).await.expect("declared");
    let sent = channel.basic_publish(
        "".into(),
        name.into(),
        BasicPublishOptions::default(),
        &TASK_7,
        BasicProperties::default(),
    );
    sent.await.expect("published");
    let queue = start(&options).await;
    let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
    assert_eq!(delivery.task.chunk.no, 7);
    queue.ack(delivery).await.expect("acknowledged");
}
