//! What fails again and again, or kills who takes it: how the use cases deal with it, on the embedded store, and with the
//! queue in RabbitMQ where FANFOLD_TEST_AMQP names one.

use std::time::Duration;

use fanfold::adapters::embedded::{EmbeddedQueue, EmbeddedRevisions, RevisionLimits};
use fanfold::adapters::rabbitmq::{RabbitOptions, RabbitQueue};
use fanfold::adapters::{Queue, Revisions, Store};
use fanfold::domain::{Done, Fence, Lane, Post, PostState, ProducerId, Task, ViewerId};
use fanfold::fanout::{Fanout, Outcome};
use fanfold::parked::{ParkedTasks, discard};
use fanfold::ports::{Delivery, Queue as _, Revisions as _, Store as _};
use fanfold::relay::{Relay, RelayLimits, RelayParts};
use fanfold::tuning::{Board, FANOUT};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};

use crate::cluster_queue::{Left, channel, options, start};
use crate::embedded::OpenStore;
use crate::wait::eventually;
use crate::{START, next_version, post_at, viewer};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A store with a post of one chunk, and what works on it.
struct Stage {
    store: Store,
    post: Post,
    viewers: Vec<ViewerId>,
    revisions: Revisions,
    opened: OpenStore,
}

impl Stage {
    async fn new() -> Self {
        let opened = OpenStore::new().await;
        let (store, viewers) = (Store::Embedded(opened.store.clone()), vec![viewer("a"), viewer("b")]);
        let post = post_at(START, 2);
        let chunk = fanfold::domain::Chunk { no: 0, viewers: viewers.as_slice().into() };
        store.create_post(&post, &[chunk]).await.expect("created");
        let limits = RevisionLimits { records_max: 10, waiters_max: 10 };
        let revisions = Revisions::Embedded(EmbeddedRevisions::new(Fence { seq: 1, nonce: 7 }, limits));
        Self { store, post, viewers, revisions, opened }
    }

    fn fanout(&self, queue: Queue) -> Fanout {
        let (store, revisions, clock) = (self.store.clone(), self.revisions.clone(), self.opened.clock.clone());
        let board = Board::new(FANOUT, &clock);
        Fanout { store, queue, revisions, clock, inbox_ttl: 30 * DAY, attempts_max: 10, board }
    }

    fn task(&self, attempt: u32) -> Task {
        let chunk = fanfold::domain::Chunk { no: 0, viewers: self.viewers.as_slice().into() };
        Task { post_id: self.post.id, version: self.post.version, chunk, lane: Lane::Small, attempt, trace: None }
    }

    async fn process(&self, attempt: u32) -> Outcome {
        let queue = Queue::Embedded(EmbeddedQueue::new(10));
        self.fanout(queue).process(&self.task(attempt)).await.expect("processed")
    }

    /// The life of the revisions counts from now on.
    async fn begin(&self) {
        self.store.register_fence(7, "test", None).await.expect("registered");
    }

    async fn park(&self) {
        self.store.park_chunk(self.post.id, 0, Some("a test")).await.expect("parked");
    }

    async fn is_parked(&self) -> bool {
        !self.store.parked(self.post.id).await.expect("read").is_empty()
    }

    /// The version of the row that a viewer has.
    async fn row(&self, viewer: usize) -> Option<u32> {
        let rows = self.store.rows(&self.viewers[viewer], &[self.post.id]).await.expect("read");
        rows[0].as_ref().map(|row| row.version)
    }

    async fn is_done(&self) -> bool {
        let done = self.store.chunk_states(self.post.id, 0..1).await.expect("read")[0].done;
        done.is_some_and(|done| done.version >= self.post.version)
    }

    /// Makes the next version of the post.
    async fn change(&mut self, state: PostState) {
        let next = Post { state, ..next_version(&self.post) };
        self.store.change_post(self.post.version, &next).await.expect("changed");
        self.post = next;
    }
}

#[tokio::test]
async fn what_nobody_has_can_be_given_up() {
    let stage = Stage::new().await;
    stage.park().await;
    discard(&stage.store, stage.post.id, 0).await.expect("given up");
    assert!(stage.is_done().await && !stage.is_parked().await);
}

#[tokio::test]
async fn a_task_that_comes_again_of_what_was_given_up_bumps() {
    let stage = Stage::new().await;
    stage.begin().await;
    let before = stage.revisions.open(&stage.viewers[0]).await.expect("opened");
    stage.park().await;
    discard(&stage.store, stage.post.id, 0).await.expect("given up");
    assert_eq!(stage.process(1).await, Outcome::AlreadyDone);
    let after = stage.revisions.current(&stage.viewers[0]).await.expect("read");
    assert!(
        after.is_some_and(|after| after != before),
        "who had it before may have died between its rows and their bump"
    );
    assert_eq!(stage.row(0).await, None, "it writes none itself");
}

#[tokio::test]
async fn a_retract_is_not_given_up() {
    let mut stage = Stage::new().await;
    stage.change(PostState::Retracted).await;
    stage.park().await;
    let error = discard(&stage.store, stage.post.id, 0).await.expect_err("it would be back");
    assert_eq!(error.code(), "post_retracted");
    assert!(stage.is_parked().await && !stage.is_done().await, "nothing was changed");
}

#[tokio::test]
async fn what_a_viewer_has_is_not_given_up_whatever_its_version() {
    let mut stage = Stage::new().await;
    // A worker died in the middle of the rows: nothing in the chunk's state tells of the one that is there.
    stage.store.write_rows(&stage.post, &stage.viewers[1..]).await.expect("written");
    for _ in 0..2 {
        stage.park().await;
        let error = discard(&stage.store, stage.post.id, 0).await.expect_err("it was never bumped, or is outdated");
        assert!(error.detail().contains("some of its viewers have the post"), "{error}");
        assert!(stage.is_parked().await && !stage.is_done().await, "nothing was changed");
        stage.change(PostState::Live).await;
    }
}

#[tokio::test]
async fn late_copies_leave_a_parked_chunk_alone() {
    let stage = Stage::new().await;
    stage.begin().await;
    stage.park().await;
    assert_eq!(stage.process(1).await, Outcome::Parked);
    assert_eq!((stage.row(0).await, stage.is_done().await), (None, false));
    stage.store.park_chunk(stage.post.id, 0, None).await.expect("taken up");
    assert_eq!(stage.process(1).await, Outcome::Done);
}

#[tokio::test]
async fn rows_that_are_there_are_not_written_again() {
    let mut stage = Stage::new().await;
    stage.begin().await;
    // As if they were: so that it shows whether they are written.
    stage.store.chunk_rows_done(stage.post.id, 0, 1).await.expect("recorded");
    assert_eq!((stage.process(1).await, stage.row(0).await), (Outcome::Done, None), "only the bumps were missing");
    stage.change(PostState::Live).await;
    assert_eq!((stage.process(1).await, stage.row(0).await), (Outcome::Done, Some(2)), "those of another version");
}

fn relay(stage: &Stage, queue: &Queue) -> Relay {
    let limits = RelayLimits {
        tick: Duration::ZERO,
        redrive_after: Duration::ZERO,
        redrive_after_max: Duration::ZERO,
        garbage_after: DAY,
        scan_max: 100,
        queue_survives: false,
        inbox_ttl: 30 * DAY,
    };
    let (store, revisions, clock) = (stage.store.clone(), stage.revisions.clone(), stage.opened.clock.clone());
    Relay::new(RelayParts { store, queue: queue.clone(), revisions, withdrawals: None, clock, limits }, 0)
}

#[tokio::test]
async fn posts_are_driven_before_the_first_fence() {
    let stage = Stage::new().await;
    let queue = Queue::Embedded(EmbeddedQueue::new(10));
    assert_eq!(stage.store.newest_fence().await.expect("read"), None);
    assert_eq!(relay(&stage, &queue).pass().await.expect("passed").driven, 1);
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 1);
}

#[tokio::test]
async fn the_next_start_of_the_embedded_service_tries_a_parked_chunk_once() {
    let stage = Stage::new().await;
    stage.park().await;
    stage.begin().await;
    let queue = Queue::Embedded(EmbeddedQueue::new(10));
    let mut relay = relay(&stage, &queue);
    assert_eq!(relay.pass().await.expect("passed").driven, 1);
    assert_eq!(relay.pass().await.expect("passed").driven, 0);
    let Delivery { task, .. } = queue.next(Lane::Small).await.expect("asked").expect("open");
    assert_eq!(stage.fanout(queue).process(&task).await.expect("processed"), Outcome::Done);
}

/// Has workers die with the task in hand until the broker sets it aside; the attempts that they saw.
async fn die(options: &RabbitOptions, watching: &RabbitQueue) -> Vec<u32> {
    let mut attempts = Vec::new();
    eventually("the task is set aside", async || {
        let worker = start(options).await;
        // There may be none for it: the last one may have been the last.
        if let Ok(taken) = tokio::time::timeout(Duration::from_secs(1), worker.next(Lane::Small)).await {
            attempts.push(taken.expect("asked").expect("open").task.attempt);
        }
        drop(worker);
        watching.parked().await.expect("asked") == 1
    })
    .await;
    attempts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_no_worker_survives_is_tried_once_more_and_then_parked() {
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = RabbitOptions { deliveries_max: 1, ..options(&url) };
    let _left = Left(options.clone());
    let (stage, queue) = (Stage::new().await, start(&options).await);
    queue.publish(&ProducerId::local(), vec![stage.task(0)]).await.expect("published");
    let mut parked = ParkedTasks::new(stage.store.clone(), Queue::Rabbit(queue.clone()));

    let attempts = die(&options, &queue).await;
    assert_eq!(attempts[0], 0);
    assert!(
        attempts.len() > 1 && attempts[1..].iter().all(|attempt| *attempt > 0),
        "{attempts:?}: a worker looks first"
    );
    assert_eq!(parked.look().await.expect("looked"), 1);
    assert!(!stage.is_parked().await, "it may have stood beside another that they died of");
    eventually("it is back in its lane", async || queue.depth(Lane::Small).await.expect("asked") == 1).await;

    let attempts = die(&options, &queue).await;
    assert!(attempts.len() > 1 && attempts.iter().all(|attempt| *attempt > 0), "{attempts:?}");
    assert_eq!(parked.look().await.expect("looked"), 1);
    assert!(stage.is_parked().await);
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 0);
    eventually("it is taken over", async || queue.parked().await.expect("asked") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_found_behind_messages_that_nobody_reads_and_not_parked_if_done() {
    const UNREADABLE: u64 = 101;
    let Some(url) = crate::server("FANFOLD_TEST_AMQP") else { return };
    let options = options(&url);
    let _left = Left(options.clone());
    let (stage, queue) = (Stage::new().await, start(&options).await);
    let (_connection, channel) = channel(&url).await;
    let publish = async |bytes: &[u8], headers: FieldTable| {
        let (to, properties) = (format!("{}.parked", options.prefix), BasicProperties::default().with_headers(headers));
        let sent = channel.basic_publish("".into(), to.into(), BasicPublishOptions::default(), bytes, properties);
        sent.await.expect("published");
    };
    for _ in 0..UNREADABLE {
        publish(&[99, 1, 2, 3], FieldTable::default()).await;
    }
    // As the broker sets one aside that has had its last chance.
    let mut headers = FieldTable::default();
    headers.insert("x-first-death-reason".into(), AMQPValue::LongString("delivery_limit".into()));
    headers.insert("x-first-death-queue".into(), AMQPValue::LongString(format!("{}.small", options.prefix).into()));
    headers.insert("fanfold-last-chance".into(), AMQPValue::Boolean(true));
    let mut task = vec![1, 0];
    task.extend(stage.post.id.as_bytes());
    for number in [1_u32, 0, 0, 0] {
        task.extend(number.to_be_bytes());
    }
    let mut parked = ParkedTasks::new(stage.store.clone(), Queue::Rabbit(queue.clone()));
    let messages = async || queue.parked().await.expect("asked");
    publish(&task, headers.clone()).await;
    eventually("all are there", async || messages().await == UNREADABLE + 1).await;
    assert_eq!(parked.look().await.expect("looked"), 1);
    assert!(stage.is_parked().await);
    eventually("the others stay", async || messages().await == UNREADABLE).await;
    assert_eq!(parked.look().await.expect("looked"), 0);

    stage.store.park_chunk(stage.post.id, 0, None).await.expect("taken up");
    let fence = stage.store.register_fence(7, "test", None).await.expect("registered");
    let done = Done { version: 1, fence: fence.seq };
    stage.store.chunk_done(stage.post.id, 0, done, true).await.expect("recorded");
    publish(&task, headers).await;
    eventually("a copy is there", async || messages().await == UNREADABLE + 1).await;
    assert_eq!(parked.look().await.expect("looked"), 1);
    assert!(!stage.is_parked().await, "it was done by another copy");
}
