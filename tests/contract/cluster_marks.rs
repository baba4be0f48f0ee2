//! Marks and their intents in a real cluster, where `FANFOLD_TEST_CQL` names one: whoever sets marks ends, or sleeps, at
//! any point of it, and somebody else finishes.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use fanfold::adapters::embedded::{EmbeddedRevisions, RevisionLimits};
use fanfold::adapters::scylla::ScyllaStore;
use fanfold::adapters::{Revisions, Store};
use fanfold::domain::{Mark, Post, PostId, ViewerId};
use fanfold::intents::Intents;
use fanfold::ports::{Intent, MarkOrder, Revisions as _, Store as _};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio::sync::Notify;

use crate::cluster_store::{OpenStore, intents_of};
use crate::wait::eventually;
use crate::{START, post_at, viewer};

const MINUTE_MICROS: i64 = 60_000_000;

struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Lets a future run until `halt` holds, which is looked at before each of its steps; it then stays where it is, a step later
/// than what `halt` has seen at most. What it comes to, if it ends before.
pub async fn run_until<F: Future>(mut future: Pin<&mut F>, mut halt: impl AsyncFnMut() -> bool) -> Option<F::Output> {
    let woken = Arc::new(Woken(Notify::new()));
    let waker = Waker::from(Arc::clone(&woken));
    while !halt().await {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending => woken.0.notified().await,
        }
    }
    None
}

/// Rows of a viewer, without marks.
async fn rows_for(store: &ScyllaStore, viewer: &ViewerId, count: usize) -> Vec<PostId> {
    let posts: Vec<Post> = (0..count).map(|_| post_at(START, 1)).collect();
    for post in &posts {
        store.create_post(post, &[]).await.expect("created");
        store.write_rows(post, std::slice::from_ref(viewer)).await.expect("written");
    }
    posts.iter().map(|post| post.id).collect()
}

/// How many of these are archived.
async fn archived(store: &ScyllaStore, viewer: &ViewerId, ids: &[PostId]) -> usize {
    let rows = store.rows(viewer, ids).await.expect("read");
    rows.iter().flatten().filter(|row| row.marks.has(Mark::Archived)).count()
}

fn archive<'a>(viewer: &'a ViewerId, post_ids: &'a [PostId], value: bool) -> MarkOrder<'a> {
    MarkOrder { viewer, post_ids, mark: Mark::Archived, value, now: START }
}

/// The only intent of a viewer is finished; all posts are archived then, and are those to bump for.
async fn finish(store: &ScyllaStore, viewer: &ViewerId, ids: &[PostId]) {
    let intents = intents_of(store, viewer).await;
    assert_eq!(intents.len(), 1, "{intents:?}");
    let to_bump = store.finish_intent(&intents[0]).await.expect("finished").expect("still there");
    assert_eq!(to_bump, ids);
    assert_eq!(archived(store, viewer, ids).await, ids.len());
}

#[tokio::test]
async fn a_bulk_mark_whose_writer_ends_between_its_batches_is_finished() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let ben = viewer("ben");
    let ids = rows_for(&opened.store, &ben, 200).await;
    {
        let order = archive(&ben, &ids, true);
        let marking = pin!(opened.store.mark(&order));
        let ended = run_until(marking, async || archived(&other, &ben, &ids).await > 0).await;
        assert!(ended.is_none(), "there is more than one batch");
    }
    let some = archived(&other, &ben, &ids).await;
    assert!((1..200).contains(&some), "{some}");
    finish(&other, &ben, &ids).await;
}

/// The clock jumps whenever the writer waits, as if it were stopped again and again: each minute is over by the time the
/// intent is in it.
#[tokio::test]
async fn nothing_is_marked_by_an_intent_that_came_too_late() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let ben = viewer("ben");
    let ids = rows_for(&opened.store, &ben, 1).await;
    let order = archive(&ben, &ids, true);
    let jump = async || {
        opened.clock.set(opened.clock.now().after(Duration::from_secs(61)));
        false
    };
    let ended = run_until(pin!(opened.store.mark(&order)), jump).await.expect("nothing halts it");
    assert_eq!(ended.expect_err("refused").code(), "store_unavailable");
    assert_eq!(archived(&other, &ben, &ids).await, 0);
    opened.clock.set(START);
    assert_eq!(intents_of(&other, &ben).await, [], "none is left for tomorrow");
    let marked = opened.store.mark(&order).await.expect("marked");
    assert_eq!(marked.changed, ids);
}

#[tokio::test]
async fn finishing_late_undoes_no_later_mark() {
    let Some(opened) = OpenStore::new().await else { return };
    let ben = viewer("ben");
    let ids = rows_for(&opened.store, &ben, 3).await;
    let first = opened.store.mark(&archive(&ben, &ids, true)).await.expect("marked").intent.expect("noted");
    opened.store.mark(&archive(&ben, &ids[..1], false)).await.expect("taken back");
    opened.store.finish_intent(&Intent { id: first, viewer: ben.clone() }).await.expect("finished");
    assert_eq!(archived(&opened.store, &ben, &ids[..1]).await, 0);
    assert_eq!(archived(&opened.store, &ben, &ids[1..]).await, 2);
}

/// Its intent is noted, its rows are not, and its clock was five seconds ahead: what others have marked since is newer.
#[tokio::test]
async fn an_intent_of_a_node_that_is_ahead_undoes_no_later_mark() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let ben = viewer("ben");
    let ids = rows_for(&opened.store, &ben, 2).await;
    {
        let order = MarkOrder { now: START.after(Duration::from_secs(5)), ..archive(&ben, &ids, true) };
        let marking = pin!(opened.store.mark(&order));
        let ended = run_until(marking, async || !intents_of(&other, &ben).await.is_empty()).await;
        assert!(ended.is_none(), "the intent comes before the rows");
    }
    assert_eq!(archived(&other, &ben, &ids).await, 0);
    let left = intents_of(&other, &ben).await;
    for value in [true, false] {
        other.mark(&archive(&ben, &ids[..1], value)).await.expect("marked");
    }
    other.finish_intent(&left[0]).await.expect("finished");
    assert_eq!(archived(&other, &ben, &ids[..1]).await, 0, "it was taken back since");
    assert_eq!(archived(&other, &ben, &ids[1..]).await, 1, "and of this one nobody has said otherwise");
}

async fn session(points: &[String]) -> Session {
    SessionBuilder::new().known_nodes(points).build().await.expect("connected")
}

/// The minute all tests are in, and the id of an intent of shard 5 in it.
fn place(n: i64) -> (i32, i64) {
    let minute = START.micros() / MINUTE_MICROS;
    (i32::try_from(minute).expect("a minute"), minute << 32 | (n * 8 + 5))
}

#[tokio::test]
async fn an_intent_of_an_older_release_is_bumped_for_and_cleared() {
    let Some(opened) = OpenStore::new().await else { return };
    let (ben, id) = (viewer("ben"), PostId::new(START, rand::random()));
    let (minute, mark_id) = place(1);
    let text = format!(
        "INSERT INTO {}.intents (shard, minute, viewer_id, mark_id, post_ids) VALUES (5, ?, ?, ?, ?) USING TIMESTAMP 1",
        opened.keyspace
    );
    let posts = vec![uuid::Uuid::from_bytes(*id.as_bytes())];
    session(&opened.points).await.query_unpaged(text, (minute, ben.as_str(), mark_id, posts)).await.expect("written");
    let found = intents_of(&opened.store, &ben).await;
    assert_eq!(found.len(), 1);
    assert_eq!(opened.store.finish_intent(&found[0]).await.expect("read"), Some(vec![id]));
    opened.store.clear_intent(&ben, found[0].id).await.expect("cleared");
    assert_eq!(intents_of(&opened.store, &ben).await, []);
}

/// Two that can never be driven, met before one that can, in the same minute and shard. Of that one no mark is there yet.
#[tokio::test]
async fn an_intent_that_keeps_failing_keeps_none_back() {
    let Some(OpenStore { store, points, keyspace, .. }) = OpenStore::alone().await else { return };
    let ben = viewer("ben");
    let id = rows_for(&store, &ben, 1).await[0];
    let post = uuid::Uuid::from_bytes(*id.as_bytes());
    let session = session(&points).await;
    // A name that no viewer has, a timestamp that no store takes.
    for (n, viewer, at) in [(1, ".", 1), (2, "a", i64::MIN), (3, ben.as_str(), 1)] {
        let (minute, mark_id) = place(n);
        let text = format!(
            "INSERT INTO {keyspace}.mark_intents (shard, minute, viewer_id, mark_id, value, marks) \
             VALUES (5, ?, ?, ?, 1, ?) USING TIMESTAMP 1"
        );
        let marks = vec![(post, at, 4_i8)];
        session.query_unpaged(text, (minute, viewer, mark_id, marks)).await.expect("written");
    }
    let fence = store.register_fence(1, "a life", None).await.expect("registered");
    let revisions = EmbeddedRevisions::new(fence, RevisionLimits { records_max: 100, waiters_max: 100 });
    let before = revisions.open(&ben).await.expect("opened");
    let mut relay = Intents::new(Store::Scylla(store.clone()), Revisions::Embedded(revisions.clone()), 5);
    let mut driven = 0;
    eventually("the third is driven", async || {
        driven += relay.pass().await.expect("what fails ends no pass");
        driven > 0
    })
    .await;
    assert_eq!(archived(&store, &ben, &[id]).await, 1);
    assert_ne!(revisions.current(&ben).await.expect("read"), Some(before));
    let left: Vec<_> = store.intents(5, 100).await.expect("read").into_iter().map(|intent| intent.viewer).collect();
    assert_eq!(left, [ViewerId::parse("viewer", "a").expect("valid")]);
    session.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await.expect("dropped");
}
