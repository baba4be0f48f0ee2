//! What any [`Store`] must do.

use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::*;
use fanfold::ports::*;

use crate::{START, next_version, post_at, viewer};

/// Runs the whole suite against stores that `$open` gives: a future of something with `store` and `clock`, or of `None`
/// where the server it needs is not there (and it has said so).
#[macro_export]
macro_rules! store_suite {
    ($module:ident, $open:expr) => {
        mod $module {
            $crate::store_suite!(@each $open,
                a_post_is_created_once_and_later_versions_stay,
                a_change_needs_the_version_it_was_made_for,
                of_changes_at_once_exactly_one_is_applied,
                chunks_keep_their_viewers,
                chunk_states_never_go_back,
                rows_of_an_older_version_are_refused,
                rewriting_a_row_leaves_its_marks,
                a_window_is_newest_first_and_bounded,
                inboxes_do_not_mix,
                marks_touch_only_rows_that_exist,
                marks_at_once_all_count,
                pending_entries_are_paged_oldest_first_until_settled,
                the_first_claim_of_a_key_wins_until_it_expires,
                withdrawals_are_pending_changes,
                fences_count_up,
            );
        }
    };
    (@each $open:expr, $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(opened) = $open.await else { return };
                $crate::store::$name(&opened.store, &opened.clock).await;
            }
        )*
    };
}

async fn create(store: &impl Store, post: &Post, viewers: &[ViewerId]) {
    let chunks: Vec<_> =
        viewers.chunks(2).zip(0..).map(|(viewers, no)| Chunk { no, viewers: viewers.into() }).collect();
    store.create_post(post, &chunks).await.expect("created");
}

async fn deliver(store: &impl Store, post: &Post, viewers: &[ViewerId]) {
    create(store, post, viewers).await;
    assert_eq!(store.write_rows(post, viewers).await.expect("written"), RowsWritten::Written);
}

async fn ids(store: &impl Store, viewer: &ViewerId, limit: u32) -> Vec<PostId> {
    store.window(viewer, limit).await.expect("read").rows.iter().map(|row| row.post_id).collect()
}

pub async fn a_post_is_created_once_and_later_versions_stay(store: &impl Store, _: &Clock) {
    let post = post_at(START, 1);
    assert_eq!(store.post(post.id).await.expect("read"), None);
    create(store, &post, &[viewer("a")]).await;
    assert_eq!(store.post(post.id).await.expect("read"), Some(post.clone()));
    let edited = Post { data: r#"{"title":"Noon"}"#.into(), ..next_version(&post) };
    assert_eq!(store.change_post(1, &edited).await.expect("changed"), Changed::Applied);
    create(store, &post, &[viewer("a")]).await;
    assert_eq!(store.post(post.id).await.expect("read"), Some(edited.clone()), "a late retry undoes nothing");
    let unknown = post_at(START, 1);
    let found = store.posts(&[unknown.id, post.id]).await.expect("read");
    assert_eq!(found, [None, Some(edited)], "in the order asked");
}

pub async fn a_change_needs_the_version_it_was_made_for(store: &impl Store, _: &Clock) {
    let post = post_at(START, 1);
    assert_eq!(store.change_post(1, &next_version(&post)).await.expect("asked"), Changed::Missing);
    create(store, &post, &[viewer("a")]).await;
    let second = next_version(&post);
    assert_eq!(store.change_post(1, &second).await.expect("asked"), Changed::Applied);
    let stale = store.change_post(1, &Post { kind: "other".into(), ..next_version(&post) }).await.expect("asked");
    assert_eq!(stale, Changed::Stale(Box::new(second.clone())));
    assert_eq!(store.post(post.id).await.expect("read"), Some(second));
}

pub async fn of_changes_at_once_exactly_one_is_applied(store: &impl Store, _: &Clock) {
    let post = post_at(START, 1);
    create(store, &post, &[viewer("a")]).await;
    let rivals: Vec<Post> = (0..8).map(|n| Post { kind: format!("rival-{n}").into(), ..next_version(&post) }).collect();
    let outcomes = futures::future::join_all(rivals.iter().map(|rival| store.change_post(1, rival))).await;
    let applied: Vec<_> =
        rivals.iter().zip(outcomes).filter(|(_, o)| matches!(o, Ok(Changed::Applied))).map(|(p, _)| p).collect();
    assert_eq!(applied.len(), 1);
    assert_eq!(store.post(post.id).await.expect("read").as_ref(), Some(applied[0]));
}

pub async fn chunks_keep_their_viewers(store: &impl Store, _: &Clock) {
    let viewers = [viewer("a"), viewer("ü"), viewer("c")];
    let post = post_at(START, 3);
    create(store, &post, &viewers).await;
    let first = store.chunk(post.id, 0).await.expect("read").expect("there");
    let second = store.chunk(post.id, 1).await.expect("read").expect("there");
    assert_eq!((first.no, &first.viewers[..]), (0, &viewers[..2]));
    assert_eq!((second.no, &second.viewers[..]), (1, &viewers[2..]));
    assert_eq!(store.chunk(post.id, 2).await.expect("read"), None);
}

pub async fn chunk_states_never_go_back(store: &impl Store, _: &Clock) {
    let post = post_at(START, 3);
    create(store, &post, &[viewer("a"), viewer("b"), viewer("c")]).await;
    assert_eq!(store.chunk_states(post.id, 0..2).await.expect("read"), [ChunkState::default(); 2]);
    let newest = Done { version: 2, fence: 3 };
    for done in [Done { version: 1, fence: 9 }, newest, Done { version: 2, fence: 1 }] {
        store.chunk_done(post.id, 1, done, true).await.expect("recorded");
    }
    store.chunk_rows_done(post.id, 0, 4).await.expect("recorded");
    store.chunk_rows_done(post.id, 0, 3).await.expect("recorded");
    store.park_chunk(post.id, 0, Some("it fails")).await.expect("recorded");
    let parked = store.parked(post.id).await.expect("read");
    assert_eq!(parked.iter().map(|chunk| (chunk.post_id, chunk.no)).collect::<Vec<_>>(), [(post.id, 0)]);
    let states = store.chunk_states(post.id, 0..2).await.expect("read");
    assert_eq!(states[0], ChunkState { done: None, rows_version: Some(4), parked: true });
    assert_eq!(states[1], ChunkState { done: Some(newest), rows_version: Some(2), parked: false });
    store.park_chunk(post.id, 0, None).await.expect("recorded");
    assert!(!store.chunk_states(post.id, 0..1).await.expect("read")[0].parked);
    assert_eq!(store.parked(post.id).await.expect("read"), []);
    store.chunk_done(post.id, 0, Done { version: 5, fence: 3 }, false).await.expect("recorded");
    let skipped = store.chunk_states(post.id, 0..1).await.expect("read")[0];
    assert_eq!((skipped.is_done(5, 3), skipped.has_rows(5)), (true, false));
}

pub async fn rows_of_an_older_version_are_refused(store: &impl Store, _: &Clock) {
    let (ben, post) = (viewer("ben"), post_at(START, 1));
    deliver(store, &post, std::slice::from_ref(&ben)).await;
    let retracted = Post { state: PostState::Retracted, ..next_version(&post) };
    assert_eq!(store.change_post(1, &retracted).await.expect("changed"), Changed::Applied);
    let late = store.write_rows(&post, std::slice::from_ref(&ben)).await.expect("asked");
    assert_eq!(late, RowsWritten::Stale(Box::new(retracted.clone())));
    assert_eq!(store.write_rows(&retracted, std::slice::from_ref(&ben)).await.expect("asked"), RowsWritten::Written);
    let row = store.window(&ben, 1).await.expect("read").rows[0];
    assert_eq!((row.version, row.deleted), (2, true));
}

pub async fn rewriting_a_row_leaves_its_marks(store: &impl Store, _: &Clock) {
    let (ben, post) = (viewer("ben"), post_at(START, 1));
    deliver(store, &post, std::slice::from_ref(&ben)).await;
    let now = START.after(Duration::from_secs(5));
    let order = MarkOrder { viewer: &ben, post_ids: &[post.id], mark: Mark::Read, value: true, now };
    let marked = store.mark(&order).await.expect("marked");
    assert_eq!(marked.changed, [post.id]);
    let expires_at = Some(START.after(Duration::from_secs(60)));
    let edited = Post { expires_at, ..next_version(&post) };
    assert_eq!(store.change_post(1, &edited).await.expect("changed"), Changed::Applied);
    for _ in 0..2 {
        assert_eq!(store.write_rows(&edited, std::slice::from_ref(&ben)).await.expect("asked"), RowsWritten::Written);
    }
    let marks = Marks { seen_at: Some(now), read_at: Some(now), archived_at: None };
    let expected = Row { post_id: post.id, version: 2, deleted: false, expires_at, marks };
    assert_eq!(store.window(&ben, 9).await.expect("read").rows, [expected]);
    assert_eq!(store.rows(&ben, &[post.id]).await.expect("read"), [Some(expected)]);
}

pub async fn a_window_is_newest_first_and_bounded(store: &impl Store, _: &Clock) {
    let ben = viewer("ben");
    assert_eq!(store.window(&ben, 3).await.expect("read"), Window::default());
    let mut posts: Vec<Post> = (0..5).map(|n| post_at(START.after(Duration::from_secs(n)), 1)).collect();
    for post in [3, 0, 4, 1, 2].map(|n: usize| posts[n].clone()) {
        deliver(store, &post, std::slice::from_ref(&ben)).await;
    }
    posts.reverse();
    let newest: Vec<_> = posts.iter().map(|post| post.id).collect();
    for limit in 1..=6 {
        let window = store.window(&ben, limit).await.expect("read");
        let expected = &newest[..newest.len().min(limit as usize)];
        assert_eq!(window.rows.iter().map(|row| row.post_id).collect::<Vec<_>>(), expected);
        assert_eq!(window.truncated, limit < 5, "limit {limit}");
    }
}

pub async fn inboxes_do_not_mix(store: &impl Store, _: &Clock) {
    let ben = viewer("ben");
    let longer = ViewerId::parse("viewer", &format!("{ben}x")).expect("valid");
    let accented = ViewerId::parse("viewer", &format!("{ben}é 🦀 %2f/?")).expect("valid");
    let mut expected = Vec::new();
    for viewer in [&ben, &longer, &accented] {
        let post = post_at(START, 1);
        deliver(store, &post, std::slice::from_ref(viewer)).await;
        expected.push(post.id);
    }
    let found = [ids(store, &ben, 9).await, ids(store, &longer, 9).await, ids(store, &accented, 9).await];
    assert_eq!(found, [[expected[0]], [expected[1]], [expected[2]]]);
    assert_eq!(store.rows(&ben, &expected).await.expect("read").iter().flatten().count(), 1);
}

pub async fn marks_touch_only_rows_that_exist(store: &impl Store, _: &Clock) {
    let (ben, post, absent) = (viewer("ben"), post_at(START, 1), post_at(START, 1));
    deliver(store, &post, std::slice::from_ref(&ben)).await;
    let ids = [absent.id, post.id];
    let order = |value, now| MarkOrder { viewer: &ben, post_ids: &ids, mark: Mark::Seen, value, now };
    let first = store.mark(&order(true, START)).await.expect("marked");
    assert_eq!((first.changed.as_slice(), first.rows.len()), ([post.id].as_slice(), 1));
    let again = store.mark(&order(true, START.after(Duration::from_secs(1)))).await.expect("marked");
    assert_eq!((again.changed.as_slice(), again.rows[0].marks.seen_at), ([].as_slice(), Some(START)));
    let cleared = store.mark(&order(false, START.after(Duration::from_secs(2)))).await.expect("marked");
    assert_eq!((cleared.changed.as_slice(), cleared.rows[0].marks), ([post.id].as_slice(), Marks::default()));
    assert_eq!(store.rows(&ben, &[absent.id]).await.expect("read"), [None], "a mark makes no row");
    if let Some(intent) = cleared.intent {
        store.clear_intent(&ben, intent).await.expect("cleared");
    }
}

pub async fn marks_at_once_all_count(store: &impl Store, _: &Clock) {
    let (ben, post) = (viewer("ben"), post_at(START, 1));
    deliver(store, &post, std::slice::from_ref(&ben)).await;
    let ids = [post.id];
    let orders = Mark::ALL.map(|mark| MarkOrder { viewer: &ben, post_ids: &ids, mark, value: true, now: START });
    for outcome in futures::future::join_all(orders.iter().map(|order| store.mark(order))).await {
        outcome.expect("marked");
    }
    let marks = store.rows(&ben, &ids).await.expect("read")[0].expect("there").marks;
    assert!(Mark::ALL.into_iter().all(|mark| marks.has(mark)), "{marks:?}");
}

/// The pending entries of `posts`, in the order the scan gives them.
async fn pending_of(store: &impl Store, posts: &[&Post], limit: u32) -> Vec<Pending> {
    let mut found = Vec::new();
    for shard in 0..store.shards() {
        let (before, mut from) = (found.len(), None);
        loop {
            let page = store.pending(shard, from, limit).await.expect("read");
            assert!(page.entries.len() <= limit as usize);
            found.extend(page.entries.into_iter().filter(|entry| posts.iter().any(|post| post.id == entry.post_id)));
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        assert!(found[before..].is_sorted_by_key(|entry| entry.since), "each shard is in order");
    }
    found.sort_unstable();
    found
}

pub async fn pending_entries_are_paged_oldest_first_until_settled(store: &impl Store, clock: &Clock) {
    let posts: Vec<Post> = (0..5).map(|_| post_at(START, 1)).collect();
    for (post, n) in posts.iter().zip(0..) {
        clock.set(START.after(Duration::from_secs(n)));
        create(store, post, &[viewer("a")]).await;
    }
    let edited = next_version(&posts[0]);
    assert_eq!(store.change_post(1, &edited).await.expect("changed"), Changed::Applied);
    let all: Vec<&Post> = posts.iter().collect();
    for limit in [1, 2, 100] {
        let found = pending_of(store, &all, limit).await;
        let keys: Vec<_> = found.iter().map(|entry| (entry.post_id, entry.version)).collect();
        let mut expected: Vec<_> = posts.iter().map(|post| (post.id, 1)).collect();
        expected.push((posts[0].id, 2));
        assert_eq!(keys, expected, "limit {limit}");
    }
    let found = pending_of(store, &all, 100).await;
    store.settle(&[Settled::Done(found[1]), Settled::Garbage(found[2])]).await.expect("settled");
    let left = pending_of(store, &all, 100).await;
    assert_eq!(left, [found[0], found[3], found[4], found[5]]);
    assert!(store.chunk(posts[1].id, 0).await.expect("read").is_some(), "done: the chunks stay");
    assert_eq!(store.chunk(posts[2].id, 0).await.expect("read"), None, "garbage: they go");
}

pub async fn the_first_claim_of_a_key_wins_until_it_expires(store: &impl Store, clock: &Clock) {
    let (shop, other) = (
        ProducerId::parse("producer", &format!("shop-{}", rand::random::<u64>())).expect("valid"),
        ProducerId::parse("producer", &format!("other-{}", rand::random::<u64>())).expect("valid"),
    );
    let claim = |producer: &ProducerId, at, byte| KeyClaim {
        producer: producer.clone(),
        key: "k/1".into(),
        fingerprint: [byte; 32],
        post_id: PostId::new(at, rand::random()),
        chunk_size: 500,
    };
    assert_eq!(store.key_holder(&shop, "k/1").await.expect("read"), None);
    let claims: Vec<_> = (0..4).map(|n| claim(&shop, START, n)).collect();
    let holders = futures::future::join_all(claims.iter().map(|claim| store.claim_key(claim))).await;
    let winner = *holders[0].as_ref().expect("claimed");
    assert!(holders.iter().all(|holder| *holder.as_ref().expect("claimed") == winner), "all learn of the same one");
    assert!(claims.iter().any(|claim| claim.post_id == winner.post_id && claim.fingerprint == winner.fingerprint));
    assert_eq!(store.key_holder(&shop, "k/1").await.expect("read"), Some(winner));
    let elsewhere = store.claim_key(&claim(&other, START, 9)).await.expect("claimed");
    assert_eq!(elsewhere.fingerprint, [9; 32], "keys belong to a producer");
    let later = START.after(Duration::from_secs(25 * 3600));
    clock.set(later);
    assert_eq!(store.key_holder(&shop, "k/1").await.expect("read"), None, "kept for a day");
    assert_eq!(store.claim_key(&claim(&shop, later, 8)).await.expect("claimed").fingerprint, [8; 32]);
}

pub async fn withdrawals_are_pending_changes(store: &impl Store, _: &Clock) {
    let posts: Vec<Post> = (0..4).map(|_| post_at(START, 1)).collect();
    for post in &posts {
        create(store, post, &[viewer("a")]).await;
    }
    let edited = next_version(&posts[3]);
    let retracted = Post { state: PostState::Retracted, ..next_version(&posts[1]) };
    let shortened = Post { expires_at: Some(START.after(Duration::from_secs(9))), ..next_version(&posts[2]) };
    for changed in [&retracted, &shortened, &edited] {
        assert_eq!(store.change_post(1, changed).await.expect("changed"), Changed::Applied);
    }
    let mine = |w: &Withdrawal| posts.iter().any(|post| post.id == w.post_id);
    let mut withdrawals: Vec<_> = store.withdrawals().await.expect("read").into_iter().filter(mine).collect();
    withdrawals.sort_by_key(|w| (w.hidden_from, w.version));
    withdrawals.dedup();
    let expected = [&retracted, &shortened, &edited].map(|post| post.withdrawal().expect("a change"));
    assert_eq!(withdrawals, expected);
}

pub async fn fences_count_up(store: &impl Store, _: &Clock) {
    let first = store.register_fence(rand::random(), "life-1", None).await.expect("registered");
    let second = store.register_fence(rand::random(), "life-2", None).await.expect("registered");
    assert!(second.seq > first.seq && second.nonce != first.nonce);
    assert!(store.newest_fence().await.expect("read").expect("there").0.seq >= second.seq);
}
