//! The revisions in Redis under the suite, and what is their own. Needs FANFOLD_TEST_REDIS.

use std::pin::pin;
use std::time::{Duration, Instant};

use fanfold::adapters::Store;
use fanfold::adapters::redis::{RedisOptions, RedisRevisions, RedisServers};
use fanfold::clock::Clock;
use fanfold::domain::revision::MARK_BIT;
use fanfold::domain::{Change, Fence, PostId, Record, Time, ViewerId};
use fanfold::error::Kind;
use fanfold::ports::{Revisions as _, Store as _};
use futures::future::{Either, select};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use crate::embedded::OpenStore;
use crate::redis_server::RedisServer;
use crate::viewer;
use crate::wait::{eventually, eventually_some};

const PATIENCE: Duration = Duration::from_secs(10);

pub fn options(urls: &[String]) -> RedisOptions {
    RedisOptions {
        servers: RedisServers::Nodes(urls.to_vec()),
        key_prefix: format!("fanfold-test-{:016x}", rand::random::<u64>()),
        connect_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_millis(500),
        in_flight_max: 512,
        record_ttl: Duration::from_secs(1_000),
        check_every: Duration::from_millis(200),
        confirm_max: Duration::from_secs(3),
        waiters_max: 100,
        tls_ca_file: None,
        clock: Clock::system(),
    }
}

pub async fn start(options: RedisOptions, registry: &OpenStore) -> RedisRevisions {
    let revisions = RedisRevisions::start(options, Store::Embedded(registry.store.clone()));
    revisions.ready(PATIENCE).await.expect("redis is there");
    revisions
}

pub async fn open() -> Option<(RedisRevisions, OpenStore)> {
    let url = crate::server("FANFOLD_TEST_REDIS")?;
    let registry = OpenStore::new().await;
    Some((start(options(&[url]), &registry).await, registry))
}

crate::revisions_suite!(revisions_suite, super::open());

/// A server of the test's own, or `None` where real servers are to be left out.
pub async fn own_server() -> Option<RedisServer> {
    crate::server("FANFOLD_TEST_REDIS")?;
    Some(RedisServer::start().await)
}

/// Waits until the revisions answer under a fence that is not `before`.
async fn new_fence(revisions: &RedisRevisions, before: Fence) -> Fence {
    eventually_some(&format!("another fence than {before:?}"), async || {
        revisions.fence().await.ok().filter(|fence| *fence != before)
    })
    .await
}

fn post(random: &mut StdRng) -> PostId {
    // Few enough that posts come again, so that entries are replaced as well as pushed out.
    PostId::new(Time::from_millis(random.random_range(0..24)), [7; 10])
}

async fn one_step(
    revisions: &RedisRevisions,
    redis: &mut MultiplexedConnection,
    (viewer, key): (&ViewerId, &str),
    model: &mut Record,
    random: &mut StdRng,
) {
    if random.random_bool(0.7) {
        let change = Change { post_id: post(random), version: random.random_range(1..4) };
        revisions.bump(std::slice::from_ref(viewer), change).await.expect("bumped");
        model.bump(change);
    } else {
        let most = if random.random_bool(0.1) { 20 } else { 4 };
        let posts: Vec<_> = (0..random.random_range(0..most)).map(|_| post(random)).collect();
        let bump = revisions.bump_marks(viewer, &posts).await.expect("marked");
        assert_eq!(bump.before.map(|revision| revision.counter), Some(model.counter()));
        let bytes: Vec<u8> = redis.get(key).await.expect("read");
        let newest = Record::from_bytes(bytes).expect("a record").entries().last().map_or(0, |entry| entry.stamp);
        model.bump_marks(&posts, newest & !MARK_BIT);
        assert_eq!(bump.after.map(|revision| revision.counter), Some(model.counter()));
    }
    let bytes: Vec<u8> = redis.get(key).await.expect("read");
    assert_eq!(Record::from_bytes(bytes).as_ref(), Some(&*model));
}

#[tokio::test]
async fn scripts_and_records_agree_to_the_byte() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let options = options(&[server.url()]);
    let prefix = options.key_prefix.clone();
    let revisions = start(options, &registry).await;
    let mut redis = server.connection().await;
    let mut random = StdRng::seed_from_u64(41);
    let high = u64::from(u32::MAX);
    for start in [0, high - 40, (1 << 53) - 30, (1 << 53) + high - 20, (9_000 << 32) - 17] {
        let ben = viewer("ben");
        let key = format!("{prefix}:r:{ben}");
        let mut bytes = Record::new(random.next_u64()).into_bytes();
        bytes[8..16].copy_from_slice(&start.to_be_bytes());
        bytes[16..24].copy_from_slice(&start.to_be_bytes());
        let _: () = redis.set(&key, &bytes).await.expect("set");
        let mut model = Record::from_bytes(bytes).expect("a record");
        for _ in 0..150 {
            one_step(&revisions, &mut redis, (&ben, &key), &mut model, &mut random).await;
        }
        assert!(model.counter() > start + 100);
    }
}

#[tokio::test]
async fn what_is_no_record_equals_nothing() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let options = options(&[server.url()]);
    let ben = viewer("ben");
    let key = format!("{}:r:{ben}", options.key_prefix);
    let revisions = start(options, &registry).await;
    let mut redis = server.connection().await;
    let _: () = redis.set(&key, vec![1_u8; 25]).await.expect("set");
    let change = Change { post_id: PostId::from_bytes([1; 16]), version: 1 };
    revisions.bump(std::slice::from_ref(&ben), change).await.expect("left alone");
    assert_eq!(revisions.bump_marks(&ben, &[change.post_id]).await.expect("left alone").before, None);
    assert!(revisions.record(&ben).await.expect("read").is_none());
    revisions.open(&ben).await.expect("made again");
    assert!(revisions.record(&ben).await.expect("read").is_some());
}

#[tokio::test]
async fn a_bump_of_few_does_not_wait_for_those_of_many() {
    let Some((revisions, _registry)) = open().await else { return };
    let many: Vec<ViewerId> = (0..20_000).map(|n| viewer(&format!("viewer-{n}"))).collect();
    let few = [viewer("ben")];
    let change = Change { post_id: PostId::from_bytes([1; 16]), version: 1 };
    let (large, small) = (pin!(revisions.bump(&many, change)), pin!(revisions.bump(&few, change)));
    // The first is looked at first: all of its two hundred calls stand in line before the second has its one.
    let Either::Right((small, large)) = select(large, small).await else { panic!("the small one came last") };
    assert_eq!(small.expect("bumped"), large.await.expect("bumped"), "under one fence");
}

#[tokio::test]
async fn records_expire_unless_they_are_read() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let options = options(&[server.url()]);
    let ben = viewer("ben");
    let key = format!("{}:r:{ben}", options.key_prefix);
    let revisions = start(options, &registry).await;
    let mut redis = server.connection().await;
    revisions.open(&ben).await.expect("opened");
    let _: () = redis.expire(&key, 100).await.expect("set");
    let change = Change { post_id: PostId::from_bytes([1; 16]), version: 1 };
    revisions.bump(std::slice::from_ref(&ben), change).await.expect("bumped");
    revisions.bump_marks(&ben, &[change.post_id]).await.expect("bumped");
    let ttl: i64 = redis.ttl(&key).await.expect("read");
    assert!((1..=100).contains(&ttl), "a bump leaves the expiry alone, it is {ttl}");
    revisions.open(&ben).await.expect("opened");
    let ttl: i64 = redis.ttl(&key).await.expect("read");
    assert!(ttl > 900, "a reader keeps it alive, it has {ttl} s");
}

#[tokio::test]
async fn flushed_records_come_again_with_another_epoch() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let revisions = start(options(&[server.url()]), &registry).await;
    let ben = viewer("ben");
    let before = revisions.open(&ben).await.expect("opened");
    let _: String = server.run("FLUSHALL").await;
    let _: String = server.run("SCRIPT FLUSH").await;
    assert_eq!(revisions.current(&ben).await.expect("read"), None);
    let change = Change { post_id: PostId::from_bytes([1; 16]), version: 1 };
    revisions.bump(std::slice::from_ref(&ben), change).await.expect("bumped, the script loaded again");
    let after = revisions.open(&ben).await.expect("opened");
    assert_eq!((after.nonce, after.counter), (before.nonce, before.counter));
    assert_ne!(after.epoch, before.epoch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_a_new_fence_and_wakes_who_waits() {
    let Some(mut server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let revisions = start(options(&[server.url()]), &registry).await;
    let ben = viewer("ben");
    let before = revisions.open(&ben).await.expect("opened");
    let fence = revisions.fence().await.expect("there");
    let waiting = tokio::spawn({
        let (revisions, ben) = (revisions.clone(), ben.clone());
        async move { revisions.changed(&ben, before, Instant::now() + Duration::from_secs(60)).await }
    });
    eventually("somebody waits", async || revisions.waiters() > 0).await;
    server.kill();
    let woken = tokio::time::timeout(PATIENCE, waiting).await.expect("woken").expect("no panic");
    let error = woken.expect_err("there is no redis");
    assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "revisions_unavailable"));
    assert!(error.retry_after().is_some());
    assert_eq!(revisions.current(&ben).await.expect_err("down").code(), "revisions_unavailable");

    server.revive().await;
    let after = new_fence(&revisions, fence).await;
    assert_eq!(after.seq, fence.seq + 1);
    let current = revisions.current(&ben).await.expect("read").expect("its data is there");
    assert_eq!((current.epoch, current.counter), (before.epoch, before.counter));
    assert_ne!(current, before, "but no token from before matches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_master_is_left_for_the_promoted_one() {
    let (Some(old), Some(new)) = (own_server().await, own_server().await) else { return };
    new.follow(&old).await;
    let registry = OpenStore::new().await;
    let revisions = start(options(&[new.url(), old.url()]), &registry).await;
    let ben = viewer("ben");
    let before = revisions.open(&ben).await.expect("opened");
    let fence = revisions.fence().await.expect("there");

    let _: String = new.run("REPLICAOF NO ONE").await;
    let _: String = old.run(&format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    new_fence(&revisions, fence).await;
    assert_ne!(revisions.current(&ben).await.expect("read"), Some(before));
    let change = Change { post_id: PostId::from_bytes([1; 16]), version: 1 };
    revisions.bump(std::slice::from_ref(&ben), change).await.expect("the promoted one takes writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_life_is_one_fence_and_a_newer_one_ends_it() {
    let (Some(server), Some(other)) = (own_server().await, own_server().await) else { return };
    let registry = OpenStore::new().await;
    let options_here = options(&[server.url()]);
    let first = start(options_here.clone(), &registry).await;
    let second = start(options_here.clone(), &registry).await;
    let fence = first.fence().await.expect("there");
    assert_eq!(second.fence().await.expect("there"), fence, "the same life");
    let ben = viewer("ben");
    assert_eq!(first.open(&ben).await.expect("opened"), second.open(&ben).await.expect("opened"));

    let elsewhere = start(options(&[other.url()]), &registry).await;
    assert_eq!(elsewhere.fence().await.expect("there").seq, fence.seq + 1);
    // Neither goes on under its fence; one of them may bring its life back under a newer one, and then both do.
    assert!(new_fence(&first, fence).await.seq > fence.seq + 1);
    assert!(new_fence(&second, fence).await.seq > fence.seq + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_answers_nothing_and_keeps_its_fence() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let options = RedisOptions { confirm_max: Duration::from_millis(600), ..options(&[server.url()]) };
    let revisions = start(options, &registry).await;
    let ben = viewer("ben");
    let before = revisions.open(&ben).await.expect("opened");
    server.signal("STOP");
    let asked = Instant::now();
    assert_eq!(revisions.current(&ben).await.expect_err("it hangs").code(), "revisions_unavailable");
    assert!(asked.elapsed() < Duration::from_secs(2));
    eventually("it is left", async || revisions.fence().await.is_err()).await;
    server.signal("CONT");
    revisions.ready(PATIENCE).await.expect("back");
    assert_eq!(revisions.current(&ben).await.expect("read"), Some(before), "the same life, so the same fence");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unconfirmed_fence_answers_nothing() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let options = RedisOptions { check_every: Duration::from_secs(3600), ..options(&[server.url()]) };
    let revisions = start(RedisOptions { confirm_max: Duration::from_millis(300), ..options }, &registry).await;
    let ben = viewer("ben");
    revisions.open(&ben).await.expect("opened");
    // Longer than a fence counts without being confirmed: the clock alone ends it, and no later than this.
    tokio::time::sleep(Duration::from_millis(400)).await;
    for error in [
        revisions.current(&ben).await.map(|_| ()).expect_err("unconfirmed"),
        revisions.open(&ben).await.map(|_| ()).expect_err("unconfirmed"),
        revisions.record(&ben).await.map(|_| ()).expect_err("unconfirmed"),
    ] {
        assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "revisions_unavailable"));
    }
    assert!(registry.store.newest_fence().await.expect("read").is_some());
}

/// Rounds of several waiters, some of them with next to no patience, and one bump, each at a moment of its own: it must
/// wake all that are patient.
async fn rounds(revisions: RedisRevisions, seed: u64) {
    let (mut random, viewer) = (StdRng::seed_from_u64(seed), viewer("v"));
    for _ in 0..60 {
        let seen = revisions.open(&viewer).await.expect("opened");
        let change = Change { post_id: PostId::from_bytes(random.random()), version: 1 };
        let mut after = || Duration::from_micros(random.random_range(0..4_000));
        let waits: Vec<_> = (0..4).map(|n| (after(), if n < 2 { PATIENCE } else { after() })).collect();
        let bump_at = after();
        let waiting = waits.into_iter().map(async |(start, patience)| {
            tokio::time::sleep(start).await;
            let began = Instant::now();
            revisions.changed(&viewer, seen, began + patience).await.expect("waited");
            assert!(patience < PATIENCE || began.elapsed() < PATIENCE / 2, "a wake-up was missed");
        });
        let bump = async {
            tokio::time::sleep(bump_at).await;
            revisions.bump(std::slice::from_ref(&viewer), change).await.expect("bumped");
        };
        tokio::join!(futures::future::join_all(waiting), bump);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_missed_while_waiters_come_and_go() {
    let Some(server) = own_server().await else { return };
    let registry = OpenStore::new().await;
    let revisions = start(options(&[server.url()]), &registry).await;
    let viewers = (0..8).map(|seed| tokio::spawn(rounds(revisions.clone(), seed)));
    for done in futures::future::join_all(viewers).await {
        done.expect("no wake-up missed");
    }
    eventually("no channel is left subscribed that nobody waits for", async || {
        server.run::<Vec<String>>("PUBSUB CHANNELS").await.is_empty()
    })
    .await;
    assert_eq!(revisions.waiters(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_tells_where_the_master_is() {
    let Some(server) = own_server().await else { return };
    let sentinel = RedisServer::sentinel(&server).await;
    let servers = |master: &str| RedisServers::Sentinel {
        sentinels: vec!["redis://127.0.0.1:1".into(), sentinel.url()],
        master: master.into(),
        node: "redis://any".into(),
    };
    let registry = OpenStore::new().await;
    let named = RedisOptions { servers: servers("main"), ..options(&[]) };
    let revisions = start(named, &registry).await;
    revisions.open(&viewer("ben")).await.expect("opened");

    let unknown = RedisOptions { servers: servers("other"), ..options(&[]) };
    let revisions = RedisRevisions::start(unknown, Store::Embedded(registry.store.clone()));
    let error = revisions.ready(Duration::from_millis(500)).await.expect_err("no such master");
    assert!(error.detail().contains("no master named other"), "{error}");
}
