//! What any [`Queue`] must do.

use std::collections::HashSet;

use fanfold::domain::{Chunk, Lane, ProducerId, Task};
use fanfold::ports::{Delivery, Queue, Room};

use crate::{START, post_at, viewer};

/// Runs the whole suite against queues that `$open` gives when told how many tasks of one producer an empty lane is to take;
/// leaves it out if that gives `None`. What it gives with them is dropped after them.
#[macro_export]
macro_rules! queue_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            $crate::queue_suite!(@each $open,
                tasks_arrive_whole_and_once,
                lanes_do_not_wait_for_each_other,
                a_full_lane_refuses_and_says_so,
                each_task_goes_to_one_of_many,
                producers_take_turns,
                a_full_lane_takes_the_tasks_of_others,
                a_closed_queue_lets_everybody_go,
            );
        }
    };
    (@each $open:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some((_left, queue)) = $open($crate::queue::places(stringify!($name))).await {
                    $crate::queue::$name(&queue).await;
                }
            }
        )*
    };
}

/// How many tasks of one producer an empty lane takes in a test.
pub fn places(test: &str) -> usize {
    if test == "producers_take_turns" { 1_000 } else { 4 }
}

/// Two producers that share neither of their two queues, where they have two of eight.
fn producers() -> (ProducerId, ProducerId) {
    let producer = |name| ProducerId::parse("producer", name).expect("valid");
    (producer("local"), producer("shop"))
}

fn task(no: u32, lane: Lane) -> Task {
    let chunk = Chunk { no, viewers: [viewer("a"), viewer("ü b")].into() };
    Task { post_id: post_at(START, 2).id, version: 3, chunk, lane, attempt: no, trace: None }
}

async fn next(queue: &impl Queue, lane: Lane) -> Delivery {
    queue.next(lane).await.expect("asked").expect("open")
}

/// Takes so many tasks and acknowledges them; answers which they were.
async fn take(queue: &impl Queue, lane: Lane, count: usize) -> HashSet<u32> {
    let mut numbers = HashSet::new();
    for _ in 0..count {
        let delivery = next(queue, lane).await;
        assert!(numbers.insert(delivery.task.chunk.no), "delivered twice");
        queue.ack(delivery).await.expect("acknowledged");
    }
    numbers
}

pub async fn tasks_arrive_whole_and_once(queue: &impl Queue) {
    let (producer, _) = producers();
    let mut sent = vec![task(0, Lane::Small), task(1, Lane::Small)];
    assert_eq!(queue.publish(&producer, sent.clone()).await.expect("published"), 2);
    for _ in 0..2 {
        let delivery = next(queue, Lane::Small).await;
        let at = sent.iter().position(|task| *task == delivery.task).expect("as it was sent, and once");
        sent.swap_remove(at);
        queue.ack(delivery).await.expect("acknowledged");
    }
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 0);
}

pub async fn lanes_do_not_wait_for_each_other(queue: &impl Queue) {
    let (producer, _) = producers();
    queue.publish(&producer, vec![task(0, Lane::Bulk), task(1, Lane::Bulk)]).await.expect("published");
    queue.publish(&producer, vec![task(2, Lane::Small)]).await.expect("published");
    assert_eq!(take(queue, Lane::Small, 1).await, [2].into());
    let mut numbers = HashSet::new();
    for _ in 0..2 {
        let delivery = next(queue, Lane::Bulk).await;
        numbers.insert(delivery.task.chunk.no);
        queue.release(delivery).await.expect("released");
    }
    assert_eq!(numbers, [0, 1].into());
}

pub async fn a_full_lane_refuses_and_says_so(queue: &impl Queue) {
    let (producer, _) = producers();
    let room = async |lane| queue.room(lane, &producer).await.expect("asked");
    assert_eq!(room(Lane::Small).await, Room { left: 4, waiting: 0 });
    let tasks = (0..6).map(|no| task(no, Lane::Small)).collect();
    assert_eq!(queue.publish(&producer, tasks).await.expect("published"), 4, "taken from the front");
    assert_eq!(room(Lane::Small).await, Room { left: 0, waiting: 4 });
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 4);
    assert_eq!(room(Lane::Bulk).await.left, 4, "the other lane has its own room");
    assert_eq!(take(queue, Lane::Small, 4).await, [0, 1, 2, 3].into());
    assert_eq!(room(Lane::Small).await, Room { left: 4, waiting: 0 });
}

pub async fn each_task_goes_to_one_of_many(queue: &impl Queue) {
    let (producer, _) = producers();
    let mut seen = HashSet::new();
    for round in 0..5 {
        let tasks = (0..4).map(|n| task(round * 4 + n, Lane::Small)).collect();
        queue.publish(&producer, tasks).await.expect("published");
        let taken = futures::future::join_all((0..4).map(|_| queue.next(Lane::Small))).await;
        for delivery in taken {
            let delivery = delivery.expect("asked").expect("open");
            assert!(seen.insert(delivery.task.chunk.no), "delivered twice");
            queue.ack(delivery).await.expect("acknowledged");
        }
    }
    assert_eq!(seen.len(), 20);
}

/// Nothing is acknowledged before the last task has come, so that no more than what is at hand can come before it.
pub async fn producers_take_turns(queue: &impl Queue) {
    let (many, one) = producers();
    for first in (0..1_000).step_by(100) {
        let tasks = (first..first + 100).map(|no| task(no, Lane::Small)).collect();
        assert_eq!(queue.publish(&many, tasks).await.expect("published"), 100);
    }
    assert_eq!(queue.publish(&one, vec![task(1_000, Lane::Small)]).await.expect("published"), 1);
    let mut in_hand = Vec::new();
    while in_hand.last().is_none_or(|delivery: &Delivery| delivery.task.chunk.no != 1_000) {
        assert!(in_hand.len() <= AT_HAND, "the one waits behind the many");
        in_hand.push(next(queue, Lane::Small).await);
    }
    for delivery in in_hand {
        queue.ack(delivery).await.expect("acknowledged");
    }
}

/// The most tasks of one producer that may be at hand in these tests.
pub const AT_HAND: usize = 8;

pub async fn a_full_lane_takes_the_tasks_of_others(queue: &impl Queue) {
    let (many, one) = producers();
    let tasks = (0..100).map(|no| task(no, Lane::Small)).collect();
    assert_eq!(queue.publish(&many, tasks).await.expect("published"), 4);
    assert!(queue.room(Lane::Small, &one).await.expect("asked").left > 0);
    assert_eq!(queue.publish(&one, vec![task(100, Lane::Small)]).await.expect("published"), 1);
    let waiting = queue.depth(Lane::Small).await.expect("asked") as usize;
    let taken = take(queue, Lane::Small, waiting).await;
    assert!(taken.contains(&100) && taken.contains(&0), "{taken:?}");
}

pub async fn a_closed_queue_lets_everybody_go(queue: &impl Queue) {
    let waiting = async { queue.next(Lane::Small).await.expect("asked").is_none() };
    let (gone, ()) = tokio::join!(waiting, queue.close());
    assert!(gone);
    assert!(queue.next(Lane::Bulk).await.expect("asked").is_none());
}
