//! What any [`Revisions`] must do.

use std::time::{Duration, Instant};

use fanfold::domain::revision::RING_MAX;
use fanfold::domain::{Change, PostId, Revision, ViewerId};
use fanfold::ports::{MarkBump, Revisions};

use crate::{START, post_at, viewer};

/// Runs the whole suite against revisions that `$open` gives, together with what they need to live; leaves it out if
/// that gives `None`.
#[macro_export]
macro_rules! revisions_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            $crate::revisions_suite!(@each $open,
                a_missing_record_equals_nothing,
                a_record_is_opened_once,
                every_change_moves_it_and_a_duplicate_does_not,
                the_ring_tells_what_changed,
                marks_always_move_it_and_say_from_where,
                many_marks_leave_a_gap,
                bumps_at_once_all_count,
                a_waiter_wakes_at_the_bump,
                a_waiter_gives_up_at_its_deadline,
                many_are_asked_in_order,
            );
        }
    };
    (@each $open:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some((revisions, _needed)) = $open.await {
                    $crate::revisions::$name(&revisions).await;
                }
            }
        )*
    };
}

fn change(version: u32) -> Change {
    Change { post_id: post_at(START, 1).id, version }
}

async fn bump(revisions: &impl Revisions, viewer: &ViewerId, change: Change) -> u32 {
    revisions.bump(std::slice::from_ref(viewer), change).await.expect("bumped")
}

async fn counter(revisions: &impl Revisions, viewer: &ViewerId) -> Option<u64> {
    revisions.current(viewer).await.expect("read").map(|revision| revision.counter)
}

pub async fn a_missing_record_equals_nothing(revisions: &impl Revisions) {
    let ben = viewer("ben");
    assert_eq!(revisions.current(&ben).await.expect("read"), None);
    assert!(revisions.record(&ben).await.expect("read").is_none());
    let fence = revisions.fence().await.expect("read");
    assert_eq!(bump(revisions, &ben, change(1)).await, fence.seq, "a bump tells its fence all the same");
    let opened = revisions.open(&ben).await.expect("opened");
    assert_eq!(opened.nonce, fence.nonce);
}

pub async fn a_record_is_opened_once(revisions: &impl Revisions) {
    let (ben, cleo) = (viewer("ben"), viewer("cleo"));
    let first = revisions.open(&ben).await.expect("opened");
    assert_eq!(revisions.open(&ben).await.expect("opened"), first);
    assert_eq!(revisions.current(&ben).await.expect("read"), Some(first));
    assert_ne!(revisions.open(&cleo).await.expect("opened").epoch, first.epoch, "epochs are random");
}

pub async fn every_change_moves_it_and_a_duplicate_does_not(revisions: &impl Revisions) {
    let ben = viewer("ben");
    let start = revisions.open(&ben).await.expect("opened").counter;
    let (one, other) = (change(1), change(1));
    for (change, moved) in [(one, 1), (one, 1), (other, 2), (one, 2), (Change { version: 2, ..one }, 3)] {
        bump(revisions, &ben, change).await;
        assert_eq!(counter(revisions, &ben).await, Some(start + moved));
    }
}

pub async fn the_ring_tells_what_changed(revisions: &impl Revisions) {
    let ben = viewer("ben");
    let start = revisions.open(&ben).await.expect("opened");
    let changes: Vec<Change> = (0..RING_MAX as u64 + 2).map(|_| change(1)).collect();
    for change in &changes {
        bump(revisions, &ben, *change).await;
    }
    let (nonce, record) = revisions.record(&ben).await.expect("read").expect("there");
    assert_eq!(record.revision(nonce), Revision { counter: start.counter + changes.len() as u64, ..start });
    let reach = record.changed_since(start.counter + 2).expect("in reach");
    assert_eq!(reach, changes[2..].iter().map(|change| change.post_id).collect::<Vec<_>>());
    assert!(record.changed_since(start.counter + 1).is_err(), "fallen out");
}

pub async fn marks_always_move_it_and_say_from_where(revisions: &impl Revisions) {
    let ben = viewer("ben");
    let nothing = revisions.bump_marks(&ben, &[change(1).post_id]).await.expect("bumped");
    assert_eq!(nothing.before, None, "there was no record");
    let before = revisions.open(&ben).await.expect("opened");
    let post = change(1).post_id;
    let MarkBump { before: from, after, fence } = revisions.bump_marks(&ben, &[post]).await.expect("bumped");
    assert_eq!((from, fence), (Some(before), revisions.fence().await.expect("read").seq));
    let again = revisions.bump_marks(&ben, &[post]).await.expect("bumped");
    assert_eq!(again.before, after);
    assert_ne!(again.after, after);
    assert_eq!(revisions.current(&ben).await.expect("read"), again.after);
    let (_, record) = revisions.record(&ben).await.expect("read").expect("there");
    assert_eq!(record.changed_since(before.counter), Ok(vec![post]));
}

pub async fn many_marks_leave_a_gap(revisions: &impl Revisions) {
    let ben = viewer("ben");
    let start = revisions.open(&ben).await.expect("opened");
    let posts: Vec<PostId> = (0..RING_MAX).map(|_| change(1).post_id).collect();
    let all = revisions.bump_marks(&ben, &posts).await.expect("bumped").after.expect("there");
    let (_, record) = revisions.record(&ben).await.expect("read").expect("there");
    assert_eq!(record.changed_since(start.counter).map(|posts| posts.len()), Ok(RING_MAX));
    let more: Vec<PostId> = (0..=RING_MAX).map(|_| change(1).post_id).collect();
    let gap = revisions.bump_marks(&ben, &more).await.expect("bumped").after.expect("there");
    let (_, record) = revisions.record(&ben).await.expect("read").expect("there");
    assert!(record.changed_since(all.counter).is_err());
    assert_eq!(record.changed_since(gap.counter), Ok(vec![]));
}

pub async fn bumps_at_once_all_count(revisions: &impl Revisions) {
    let viewers: Vec<ViewerId> = (0..100).map(|_| viewer("v")).collect();
    let mut start = Vec::new();
    for viewer in &viewers {
        start.push(revisions.open(viewer).await.expect("opened").counter);
    }
    let changes: Vec<Change> = (0..20).map(|_| change(1)).collect();
    futures::future::join_all(changes.iter().map(|change| revisions.bump(&viewers, *change))).await;
    for (viewer, start) in viewers.iter().zip(start) {
        assert_eq!(counter(revisions, viewer).await, Some(start + 20));
    }
}

pub async fn a_waiter_wakes_at_the_bump(revisions: &impl Revisions) {
    let ben = viewer("ben");
    let far = || Instant::now() + Duration::from_secs(60);
    let mut seen = revisions.open(&ben).await.expect("opened");
    for _ in 0..50 {
        let (woken, _) = tokio::join!(revisions.changed(&ben, seen, far()), bump(revisions, &ben, change(1)));
        let woken = woken.expect("waited").expect("there");
        assert_eq!(woken.counter, seen.counter + 1);
        seen = woken;
    }
    let post = [change(1).post_id];
    let (woken, _) = tokio::join!(revisions.changed(&ben, seen, far()), revisions.bump_marks(&ben, &post));
    assert_ne!(woken.expect("waited"), Some(seen));
    let stale = revisions.changed(&ben, seen, far()).await.expect("asked");
    assert_ne!(stale, Some(seen), "what has changed already is not waited for");
}

pub async fn a_waiter_gives_up_at_its_deadline(revisions: &impl Revisions) {
    let ben = viewer("ben");
    let seen = revisions.open(&ben).await.expect("opened");
    bump(revisions, &viewer("cleo"), change(1)).await;
    let deadline = Instant::now() + Duration::from_millis(30);
    assert_eq!(revisions.changed(&ben, seen, deadline).await.expect("waited"), Some(seen));
    assert!(Instant::now() >= deadline);
}

pub async fn many_are_asked_in_order(revisions: &impl Revisions) {
    let viewers = [viewer("a"), viewer("b"), viewer("c")];
    let (a, c) =
        (revisions.open(&viewers[0]).await.expect("opened"), revisions.open(&viewers[2]).await.expect("opened"));
    assert_eq!(revisions.current_many(&viewers).await.expect("read"), [Some(a), None, Some(c)]);
}
