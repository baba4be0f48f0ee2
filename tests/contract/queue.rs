//! What any [`Queue`] must do.

use std::collections::HashSet;

use fanfold::domain::{Chunk, Lane, Task};
use fanfold::ports::Queue;

use crate::{START, post_at, viewer};

/// Runs the whole suite against queues of four tasks a lane that `$open` gives; leaves it out if that gives `None`.
#[macro_export]
macro_rules! queue_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            $crate::queue_suite!(@each $open,
                tasks_arrive_whole_and_once,
                lanes_do_not_wait_for_each_other,
                a_full_lane_refuses_and_says_so,
                each_task_goes_to_one_of_many,
                a_closed_queue_lets_everybody_go,
            );
        }
    };
    (@each $open:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(queue) = $open.await {
                    $crate::queue::$name(&queue).await;
                }
            }
        )*
    };
}

fn task(no: u32, lane: Lane) -> Task {
    let chunk = Chunk { no, viewers: [viewer("a"), viewer("ü b")].into() };
    Task { post_id: post_at(START, 2).id, version: 3, chunk, lane, attempt: no, trace: None }
}

pub async fn tasks_arrive_whole_and_once(queue: &impl Queue) {
    let sent = [task(0, Lane::Small), task(1, Lane::Small)];
    assert_eq!(queue.publish(sent.to_vec()).await.expect("published"), 2);
    for expected in sent {
        let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
        assert_eq!(delivery.task, expected);
        queue.ack(delivery).await.expect("acknowledged");
    }
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 0);
}

pub async fn lanes_do_not_wait_for_each_other(queue: &impl Queue) {
    queue.publish(vec![task(0, Lane::Bulk), task(1, Lane::Bulk)]).await.expect("published");
    queue.publish(vec![task(2, Lane::Small)]).await.expect("published");
    let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
    assert_eq!(delivery.task.chunk.no, 2);
    queue.ack(delivery).await.expect("acknowledged");
    for no in 0..2 {
        let delivery = queue.next(Lane::Bulk).await.expect("asked").expect("open");
        assert_eq!(delivery.task.chunk.no, no);
        queue.release(delivery).await.expect("released");
    }
}

pub async fn a_full_lane_refuses_and_says_so(queue: &impl Queue) {
    assert_eq!(queue.room(Lane::Small).await.expect("asked"), 4);
    let taken = queue.publish((0..6).map(|no| task(no, Lane::Small)).collect()).await.expect("published");
    assert_eq!(taken, 4, "taken from the front");
    assert_eq!(queue.room(Lane::Small).await.expect("asked"), 0);
    assert_eq!(queue.depth(Lane::Small).await.expect("asked"), 4);
    assert_eq!(queue.room(Lane::Bulk).await.expect("asked"), 4, "the other lane has its own room");
    for no in 0..4 {
        let delivery = queue.next(Lane::Small).await.expect("asked").expect("open");
        assert_eq!(delivery.task.chunk.no, no);
        queue.ack(delivery).await.expect("acknowledged");
    }
    assert_eq!(queue.room(Lane::Small).await.expect("asked"), 4);
}

pub async fn each_task_goes_to_one_of_many(queue: &impl Queue) {
    let mut seen = HashSet::new();
    for round in 0..5 {
        queue.publish((0..4).map(|n| task(round * 4 + n, Lane::Small)).collect()).await.expect("published");
        let taken = futures::future::join_all((0..4).map(|_| queue.next(Lane::Small))).await;
        for delivery in taken {
            let delivery = delivery.expect("asked").expect("open");
            assert!(seen.insert(delivery.task.chunk.no), "delivered twice");
            queue.ack(delivery).await.expect("acknowledged");
        }
    }
    assert_eq!(seen.len(), 20);
}

pub async fn a_closed_queue_lets_everybody_go(queue: &impl Queue) {
    let waiting = async { queue.next(Lane::Small).await.expect("asked").is_none() };
    let (gone, ()) = tokio::join!(waiting, queue.close());
    assert!(gone);
    assert!(queue.next(Lane::Bulk).await.expect("asked").is_none());
}
