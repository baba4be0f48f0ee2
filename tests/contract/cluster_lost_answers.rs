//! Writes whose answers are lost on their way back, where `FANFOLD_TEST_CQL` names a store: what was done is done once, and
//! whoever asked for it is told what became of it.

use fanfold::adapters::scylla::ScyllaStore;
use fanfold::domain::{Chunk, Post, PostId, PostState, ProducerId};
use fanfold::ports::{Changed, KeyClaim, KeyHolder, Store as _};

use crate::cluster_store::{OpenStore, pending_of};
use crate::proxy::{Answer, Proxy};
use crate::wait::eventually;
use crate::{START, next_version, post_at, viewer};

/// A process whose line loses an answer, and another one on the same keyspace, whose line does not.
struct Lossy {
    store: ScyllaStore,
    proxy: Proxy,
    other: OpenStore,
}

impl Lossy {
    async fn new() -> Option<Self> {
        let other = OpenStore::new().await?;
        let (store, proxy) = other.by_proxy().await;
        Some(Self { store, proxy, other })
    }

    /// A post that is committed.
    async fn post(&self) -> Post {
        let post = post_at(START, 1);
        let chunk = Chunk { no: 0, viewers: [viewer("ben")].into() };
        self.other.store.create_post(&post, &[chunk]).await.expect("created");
        post
    }

    /// The answer to the only conditional write that this process has made was lost: whatever it knows of what became of
    /// it, it has read.
    async fn has_lost_its_answer(&self) {
        let is_lost = async || self.proxy.came_and_lost(Answer::Conditional).1 == 1;
        eventually("an answer is lost", is_lost).await;
        assert_eq!(self.proxy.came_and_lost(Answer::Conditional), (1, 1), "it is not made again");
    }
}

fn claim(key: &str) -> KeyClaim {
    let (producer, post_id) = (ProducerId::local(), PostId::new(START, rand::random()));
    KeyClaim { producer, key: key.to_owned(), fingerprint: [7; 32], post_id, chunk_size: 500 }
}

fn holder(claim: &KeyClaim) -> KeyHolder {
    KeyHolder { fingerprint: claim.fingerprint, post_id: claim.post_id, chunk_size: claim.chunk_size }
}

/// A key that no other test uses.
fn key() -> String {
    format!("lost-{:016x}", rand::random::<u64>())
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_the_claimers() {
    let Some(lossy) = Lossy::new().await else { return };
    let key = key();
    let (mine, theirs) = (claim(&key), claim(&key));
    lossy.proxy.lose_next(Answer::Conditional);
    assert_eq!(lossy.store.claim_key(&mine).await.expect("settled"), holder(&mine));
    lossy.has_lost_its_answer().await;
    assert_eq!(lossy.other.store.claim_key(&theirs).await.expect("answered"), holder(&mine));
}

#[tokio::test]
async fn a_claim_that_came_second_is_told_whose_the_key_is_though_its_answer_is_lost() {
    let Some(lossy) = Lossy::new().await else { return };
    let key = key();
    let (mine, theirs) = (claim(&key), claim(&key));
    assert_eq!(lossy.other.store.claim_key(&theirs).await.expect("answered"), holder(&theirs));
    lossy.proxy.lose_next(Answer::Conditional);
    assert_eq!(lossy.store.claim_key(&mine).await.expect("settled"), holder(&theirs));
    lossy.has_lost_its_answer().await;
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_made_with_all_that_goes_with_it() {
    let Some(lossy) = Lossy::new().await else { return };
    let post = lossy.post().await;
    let retracted = Post { state: PostState::Retracted, ..next_version(&post) };
    lossy.proxy.lose_next(Answer::Conditional);
    assert_eq!(lossy.store.change_post(1, &retracted).await.expect("settled"), Changed::Applied);
    lossy.has_lost_its_answer().await;
    let other = &lossy.other.store;
    assert_eq!(other.post(post.id).await.expect("read").as_ref(), Some(&retracted));
    let hidden = other.withdrawals().await.expect("read");
    assert!(hidden.iter().any(|withdrawal| (withdrawal.post_id, withdrawal.version) == (post.id, 2)), "{hidden:?}");
    let rival = Post { data: "{}".into(), ..next_version(&post) };
    assert_eq!(other.change_post(1, &rival).await.expect("answered"), Changed::Stale(Box::new(retracted)));
}

#[tokio::test]
async fn a_change_that_came_second_is_told_of_the_first_though_its_answer_is_lost() {
    let Some(lossy) = Lossy::new().await else { return };
    let post = lossy.post().await;
    let first = Post { data: r#"{"title":"Dusk"}"#.into(), ..next_version(&post) };
    assert_eq!(lossy.other.store.change_post(1, &first).await.expect("answered"), Changed::Applied);
    let second = Post { data: r#"{"title":"Noon"}"#.into(), ..next_version(&post) };
    lossy.proxy.lose_next(Answer::Conditional);
    let told = lossy.store.change_post(1, &second).await.expect("settled");
    assert_eq!(told, Changed::Stale(Box::new(first.clone())));
    lossy.has_lost_its_answer().await;
    assert_eq!(lossy.other.store.post(post.id).await.expect("read"), Some(first));
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_made_again_and_does_what_it_did() {
    let Some(lossy) = Lossy::new().await else { return };
    let (post, ben) = (post_at(START, 1), viewer("ben"));
    let chunk = Chunk { no: 0, viewers: [ben].into() };
    lossy.proxy.lose_next(Answer::Write);
    lossy.store.create_post(&post, std::slice::from_ref(&chunk)).await.expect("written in the end");
    let (came, lost) = lossy.proxy.came_and_lost(Answer::Write);
    assert!(lost == 1 && came > 3, "entry, chunk and post, and one of them again: {came} answers, {lost} lost");
    let other = &lossy.other.store;
    assert_eq!(other.post(post.id).await.expect("read").as_ref(), Some(&post));
    assert_eq!(other.chunk(post.id, 0).await.expect("read").as_ref(), Some(&chunk));
    assert_eq!(pending_of(other, post.id).await.len(), 1, "with the timestamp of the first try");
}
