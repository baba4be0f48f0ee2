//! The store in a real cluster under the suite, where `FANFOLD_TEST_CQL` names one: `host:port`, several separated by
//! commas. `dev/stack up cassandra` starts one. `FANFOLD_TEST_CQL_REPLICATION` is how many copies of a row there are: 1,
//! unless it says otherwise.

use std::pin::pin;
use std::time::Duration;

use fanfold::adapters::scylla::{
    ClusterOptions, Consistency, MigrateOptions, MigrationReport, ScyllaOnly, ScyllaOptions, ScyllaStore, migrate,
};
use fanfold::clock::Clock;
use fanfold::domain::{Audience, Chunk, Done, Mark, Post, PostId, PostState, Time, ViewerId, Withdrawal};
use fanfold::ports::{Intent, MarkOrder, Path, Pending, Settled, Store as _};
use tokio::sync::OnceCell;

use crate::cluster_marks::run_until;
use crate::proxy::Proxy;
use crate::{START, next_version, post_at, viewer};

const SERVER: &str = "FANFOLD_TEST_CQL";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// When an answer that has not come counts as lost, where answers get lost.
const LOST_AFTER: Duration = Duration::from_secs(8);

/// Where the server is.
fn server() -> Option<Vec<String>> {
    Some(crate::server(SERVER)?.split(',').map(str::to_owned).collect())
}

fn cluster(contact_points: Vec<String>, keyspace: &str) -> ClusterOptions {
    ClusterOptions {
        contact_points,
        keyspace: keyspace.to_owned(),
        datacenter: None,
        replication_factor: std::env::var("FANFOLD_TEST_CQL_REPLICATION").map_or(1, |n| n.parse().expect("a number")),
        replication: String::new(),
        consistency: Consistency::default(),
        credentials: None,
        tls: None,
        connect_timeout: Duration::from_secs(20),
    }
}

fn migration(cluster: ClusterOptions) -> MigrateOptions {
    MigrateOptions {
        cluster,
        scylla: ScyllaOnly::default(),
        lease_wait: Duration::from_secs(60),
        clock: Clock::manual(START),
    }
}

fn fresh_keyspace() -> String {
    format!("fanfold_test_{:08x}", rand::random::<u32>())
}

/// A keyspace that nobody else uses yet, with its schema.
async fn migrated_keyspace(points: &[String]) -> String {
    let name = fresh_keyspace();
    migrate(&migration(cluster(points.to_vec(), &name))).await.expect("migrated");
    name
}

/// The keyspace of this run, migrated once.
async fn keyspace(points: &[String]) -> &'static str {
    static KEYSPACE: OnceCell<String> = OnceCell::const_new();
    KEYSPACE.get_or_init(|| migrated_keyspace(points)).await
}

fn options(points: &[String], keyspace: &str, clock: &Clock) -> ScyllaOptions {
    ScyllaOptions {
        cluster: cluster(points.to_vec(), keyspace),
        connections_per_shard: 2,
        in_flight_max: 128,
        read_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(10),
        lwt_timeout: Duration::from_secs(20),
        batch_rows_max: 16,
        rows_in_flight_max: 1_000,
        request_concurrency: 32,
        inbox_ttl: 30 * DAY,
        idempotency_ttl: DAY,
        clock: clock.clone(),
        store_clock: Some(clock.clone()),
    }
}

async fn connect(points: &[String], keyspace: &str, clock: &Clock) -> ScyllaStore {
    ScyllaStore::connect(options(points, keyspace, clock)).await.expect("connected")
}

/// A connection of its own to a keyspace, with the clock it goes by.
pub struct OpenStore {
    pub store: ScyllaStore,
    pub clock: Clock,
    pub points: Vec<String>,
    pub keyspace: String,
}

impl OpenStore {
    /// On the keyspace of the run.
    pub async fn new() -> Option<Self> {
        let points = server()?;
        let keyspace = keyspace(&points).await.to_owned();
        Some(Self::on(points, keyspace).await)
    }

    /// On a keyspace that no other test uses: for what concerns all that is in it.
    pub async fn alone() -> Option<Self> {
        let points = server()?;
        let keyspace = migrated_keyspace(&points).await;
        Some(Self::on(points, keyspace).await)
    }

    async fn on(points: Vec<String>, keyspace: String) -> Self {
        let clock = Clock::manual(START);
        let store = connect(&points, &keyspace, &clock).await;
        Self { store, clock, points, keyspace }
    }

    /// A second process on the same keyspace, with a clock of its own.
    pub async fn other(&self) -> (ScyllaStore, Clock) {
        let clock = Clock::manual(START);
        (connect(&self.points, &self.keyspace, &clock).await, clock)
    }

    /// A second process whose line can lose answers, and what is in the line: the driver takes the contact point's port for
    /// that of every node. For a write's answer it waits some seconds, longer than any write takes.
    pub async fn by_proxy(&self) -> (ScyllaStore, Proxy) {
        let proxy = Proxy::start_before_store(self.points[0].clone()).await.expect("a proxy");
        let options = options(&[proxy.address()], &self.keyspace, &self.clock);
        let (write_timeout, lwt_timeout) = (LOST_AFTER, LOST_AFTER);
        let options = ScyllaOptions { write_timeout, lwt_timeout, ..options };
        (ScyllaStore::connect(options).await.expect("connected"), proxy)
    }
}

crate::store_suite!(store, super::OpenStore::new());
crate::control_suite!(control, super::OpenStore::new());

/// What is pending of a post, all shards looked through.
pub async fn pending_of(store: &ScyllaStore, id: PostId) -> Vec<Pending> {
    let mut found = Vec::new();
    for shard in 0..store.shards() {
        found.extend(store.pending(shard, None, 10_000).await.expect("read").entries);
    }
    found.retain(|entry| entry.post_id == id);
    found
}

/// The intents of a viewer.
pub async fn intents_of(store: &ScyllaStore, viewer: &ViewerId) -> Vec<Intent> {
    let mut found = Vec::new();
    for shard in 0..store.shards() {
        found.extend(store.intents(shard, 10_000).await.expect("read"));
    }
    found.retain(|intent| intent.viewer == *viewer);
    found
}

#[tokio::test]
async fn a_lease_has_one_holder() {
    let Some(opened) = OpenStore::new().await else { return };
    crate::control::a_lease_has_one_holder(&opened.store).await;
}

#[tokio::test]
async fn an_intent_is_there_until_it_is_cleared() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let (ben, post) = (viewer("ben"), post_at(START, 1));
    let chunks = [Chunk { no: 0, viewers: [ben.clone()].into() }];
    opened.store.create_post(&post, &chunks).await.expect("created");
    opened.store.write_rows(&post, std::slice::from_ref(&ben)).await.expect("written");
    let order = MarkOrder { viewer: &ben, post_ids: &[post.id], mark: Mark::Seen, value: true, now: START };
    let id = opened.store.mark(&order).await.expect("marked").intent.expect("a bump may be lost");
    assert_eq!(intents_of(&other, &ben).await, [Intent { id, viewer: ben.clone() }]);
    opened.store.clear_intent(&ben, id).await.expect("cleared");
    assert_eq!(intents_of(&other, &ben).await, []);
    assert_eq!(other.finish_intent(&Intent { id, viewer: ben }).await.expect("read"), None, "nothing is left to do");
}

#[tokio::test]
async fn a_version_can_be_announced_again() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let post = post_at(START, 1);
    opened.store.create_post(&post, &[Chunk { no: 0, viewers: [viewer("a")].into() }]).await.expect("created");
    let retracted = Post { state: PostState::Retracted, ..next_version(&post) };
    opened.store.change_post(1, &retracted).await.expect("changed");
    let settled: Vec<_> = pending_of(&other, post.id).await.into_iter().map(Settled::Done).collect();
    other.settle(&settled).await.expect("settled");
    opened.store.announce(&retracted).await.expect("announced");
    assert_eq!(pending_of(&other, post.id).await.len(), 1);
    let hidden = other.withdrawals().await.expect("read");
    assert!(hidden.iter().any(|withdrawal| withdrawal.post_id == post.id));
}
crate::keys_suite!(keys, super::OpenStore::new());

#[tokio::test]
async fn migrating_is_idempotent_and_safe_at_the_same_time() {
    let Some(points) = server() else { return };
    let cluster = cluster(points, &fresh_keyspace());
    let options = migration(cluster.clone());
    let reports = futures::future::join_all((0..4).map(|_| migrate(&options))).await;
    let reports: Vec<MigrationReport> = reports.into_iter().map(|report| report.expect("migrated")).collect();
    assert_eq!(reports.iter().filter(|report| !report.applied.is_empty()).count(), 1, "{reports:?}");
    assert!(reports.iter().all(|report| report.version == 5));
    let again = migrate(&options).await.expect("migrated again");
    assert_eq!(again, MigrationReport { applied: Vec::new(), version: 5 });
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_a_missing_one_is_named() {
    let Some(points) = server() else { return };
    let name = migrated_keyspace(&points).await;
    let options = migration(cluster(points.clone(), &name));
    let session = scylla::client::session_builder::SessionBuilder::new().known_nodes(&points).build().await;
    let session = session.expect("connected");
    let newer = format!(
        "INSERT INTO {name}.schema_migrations (scope, number, name, checksum, applied_at) \
         VALUES ('schema', 99, '099_later.cql', 'x', 0)"
    );
    session.query_unpaged(newer, ()).await.expect("written");
    assert_eq!(migrate(&options).await.expect_err("newer").code(), "schema_newer");
    connect(&points, &name, &Clock::manual(START)).await.check().expect("an older release goes on working");

    let options = self::options(&points, &fresh_keyspace(), &Clock::manual(START));
    assert_eq!(ScyllaStore::connect(options).await.expect_err("no schema").code(), "schema_missing");
}

#[tokio::test]
async fn a_mark_wins_over_an_earlier_one_by_a_fast_clock() {
    let Some(opened) = OpenStore::new().await else { return };
    let (ben, post) = (viewer("ben"), post_at(START, 1));
    let chunks = [Chunk { no: 0, viewers: [ben.clone()].into() }];
    opened.store.create_post(&post, &chunks).await.expect("created");
    opened.store.write_rows(&post, std::slice::from_ref(&ben)).await.expect("written");
    let ids = [post.id];
    let order = |value, now| MarkOrder { viewer: &ben, post_ids: &ids, mark: Mark::Archived, value, now };
    opened.store.mark(&order(true, START.after(DAY))).await.expect("marked");
    let cleared = opened.store.mark(&order(false, START)).await.expect("cleared");
    assert_eq!(cleared.changed, ids);
    let row = opened.store.rows(&ben, &ids).await.expect("read")[0].expect("there");
    assert!(!row.marks.has(Mark::Archived));
    opened.store.clear_intent(&ben, cleared.intent.expect("a bump may be lost")).await.expect("cleared");
}

#[tokio::test]
async fn a_thousand_marks_and_ids_are_one_order() {
    let Some(opened) = OpenStore::new().await else { return };
    let ben = viewer("ben");
    let posts: Vec<Post> = (0..300).map(|_| post_at(START, 1)).collect();
    let chunk = |viewer: &ViewerId| Chunk { no: 0, viewers: [viewer.clone()].into() };
    for post in &posts {
        opened.store.create_post(post, &[chunk(&ben)]).await.expect("created");
        opened.store.write_rows(post, std::slice::from_ref(&ben)).await.expect("written");
    }
    let mut ids: Vec<PostId> = posts.iter().map(|post| post.id).collect();
    ids.extend((0..700).map(|_| PostId::new(START, rand::random())));
    let order = MarkOrder { viewer: &ben, post_ids: &ids, mark: Mark::Read, value: true, now: START };
    let marked = opened.store.mark(&order).await.expect("marked");
    assert_eq!((marked.changed.len(), marked.rows.len()), (300, 300));
    let rows = opened.store.rows(&ben, &ids).await.expect("read");
    assert!(rows[..300].iter().flatten().all(|row| row.marks.has(Mark::Read)));
    assert_eq!((rows.len(), rows.iter().flatten().count()), (1_000, 300));
    assert_eq!(opened.store.window(&ben, 1_000).await.expect("read").rows.len(), 300);
}

#[tokio::test]
async fn rows_of_a_large_chunk_are_all_there_and_replays_lose_to_later_versions() {
    let Some(opened) = OpenStore::new().await else { return };
    let names: Vec<String> = (0..500).map(|n| format!("v{n}-{}", rand::random::<u64>())).collect();
    let audience = Audience::parse("viewers", &names, 1_000).expect("valid");
    let post = Post { chunk_size: 500, ..post_at(START, 500) };
    opened.store.create_post(&post, &audience.chunks(500)).await.expect("created");
    let edited = Post { expires_at: Some(START.after(DAY)), ..next_version(&post) };
    opened.store.change_post(1, &edited).await.expect("changed");
    opened.store.write_rows(&edited, audience.viewers()).await.expect("written");
    let cleared = Post { expires_at: None, ..next_version(&edited) };
    opened.store.change_post(2, &cleared).await.expect("changed");
    opened.store.write_rows(&cleared, audience.viewers()).await.expect("written");
    for viewer in audience.viewers() {
        let window = opened.store.window(viewer, 2).await.expect("read");
        let seen: Vec<_> = window.rows.iter().map(|row| (row.post_id, row.version, row.expires_at)).collect();
        assert_eq!(seen, [(post.id, 3, None)], "an expiry that was taken back is gone");
    }
    let found = opened.store.chunk(post.id, 0).await.expect("read").expect("there");
    assert_eq!(*found.viewers, *audience.viewers());
}

#[tokio::test]
async fn what_a_lost_edit_leaves_behind_takes_no_chunks_with_it() {
    let Some(opened) = OpenStore::new().await else { return };
    let (ben, post) = (viewer("ben"), post_at(START, 1));
    let chunks = [Chunk { no: 0, viewers: [ben].into() }];
    opened.store.create_post(&post, &chunks).await.expect("created");
    let loser = Pending { since: START, post_id: post.id, version: 2 };
    opened.store.settle(&[Settled::Garbage(loser)]).await.expect("settled");
    assert!(opened.store.chunk(post.id, 0).await.expect("read").is_some());
    // Swept for real, and then tried again with the same key: the chunk is back, and can be done.
    let entry = pending_of(&opened.store, post.id).await.into_iter().next().expect("pending");
    opened.store.settle(&[Settled::Garbage(entry)]).await.expect("settled");
    assert_eq!(opened.store.chunk(post.id, 0).await.expect("read"), None);
    opened.store.create_post(&post, &chunks).await.expect("created again");
    assert!(opened.store.chunk(post.id, 0).await.expect("read").is_some());
    let done = Done { version: 1, fence: 1 };
    opened.store.chunk_done(post.id, 0, done, true).await.expect("recorded");
    assert!(opened.store.chunk_states(post.id, 0..1).await.expect("read")[0].is_done(1, 1));
}

#[tokio::test]
async fn another_process_sees_withdrawals_until_they_are_settled() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let post = post_at(START, 1);
    let chunks = [Chunk { no: 0, viewers: [viewer("ben")].into() }];
    opened.store.create_post(&post, &chunks).await.expect("created");
    other.withdrawals().await.expect("read");
    let retracted = Post { state: PostState::Retracted, ..next_version(&post) };
    opened.store.change_post(1, &retracted).await.expect("changed");
    let mine = |found: Vec<Withdrawal>| found.into_iter().filter(|w| w.post_id == post.id).count();
    assert_eq!(mine(other.withdrawals().await.expect("read")), 1);
    let entries = pending_of(&other, post.id).await;
    assert_eq!(entries.len(), 2);
    let settled: Vec<_> = entries.into_iter().map(Settled::Done).collect();
    other.settle(&settled).await.expect("settled");
    assert_eq!(mine(opened.store.withdrawals().await.expect("read")), 0);
}

/// The store's clock was an hour ahead for one answer: what is written after the next one lies where everybody looks.
#[tokio::test]
async fn one_wrong_answer_of_the_stores_clock_decides_nothing_later() {
    let Some(opened) = OpenStore::new().await else { return };
    let (ahead, after) = (post_at(START, 1), post_at(START, 1));
    let chunks = [Chunk { no: 0, viewers: [viewer("ben")].into() }];
    opened.clock.set(START.after(Duration::from_secs(3_600)));
    opened.store.create_post(&ahead, &chunks).await.expect("created");
    opened.clock.set(START);
    for _ in 0..2 {
        opened.store.create_post(&after, &chunks).await.expect("created");
    }
    let (other, _) = opened.other().await;
    let entries = pending_of(&other, after.id).await;
    assert!(!entries.is_empty(), "the relay finds it");
    assert!(entries.iter().all(|entry| entry.since.since(START) < Duration::from_secs(1)), "{entries:?}");
}

#[tokio::test]
async fn an_entry_by_a_slow_clock_is_found_by_the_daily_scan() {
    let Some(points) = server() else { return };
    let name = migrated_keyspace(&points).await;
    let clock = Clock::manual(START);
    // The shorter rows live, the less there is to scan: a week and an hour.
    let options = ScyllaOptions { inbox_ttl: Duration::from_secs(3600), ..options(&points, &name, &clock) };
    let relay = ScyllaStore::connect(options).await.expect("connected").for_path(Path::Relay);
    let slow_clock = Clock::manual(START.before(Duration::from_secs(3600)));
    let slow = connect(&points, &name, &slow_clock).await;
    let post = post_at(START, 1);
    slow.create_post(&post, &[Chunk { no: 0, viewers: [viewer("a")].into() }]).await.expect("created");
    assert_eq!(pending_of(&relay, post.id).await, [], "before the low-water mark");
    clock.set(START.after(DAY));
    assert_eq!(pending_of(&relay, post.id).await.len(), 1);
    let restarted = connect(&points, &name, &clock).await;
    assert_eq!(pending_of(&restarted, post.id).await.len(), 1, "the low-water mark went back with it");
}

/// What a process that was ahead has left behind: a mark beyond the present.
async fn has_come_to(points: &[String], keyspace: &str, at: Time) {
    let session = scylla::client::session_builder::SessionBuilder::new().known_nodes(points).build().await;
    let session = session.expect("connected");
    let minute = i32::try_from(at.micros() / 60_000_000).expect("it fits");
    for shard in 0..8 {
        let text = format!("UPDATE {keyspace}.relay SET low_minute = ?, full_at = ? WHERE scan = ? IF EXISTS");
        let values = (minute, at.micros(), format!("pending-{shard}"));
        session.query_unpaged(text, values).await.expect("written");
    }
}

#[tokio::test]
async fn only_relays_say_where_the_next_scan_begins_and_none_that_it_begins_beyond_the_present() {
    let Some(points) = server() else { return };
    let name = migrated_keyspace(&points).await;
    let hour = Duration::from_secs(3600);
    let on = |at: Time| {
        let clock = Clock::manual(at);
        let options = ScyllaOptions { inbox_ttl: hour, ..options(&points, &name, &clock) };
        async move { ScyllaStore::connect(options).await.expect("connected") }
    };
    let writer = on(START).await;
    let create = async |id: u32| {
        let post = post_at(START, id);
        writer.create_post(&post, &[Chunk { no: 0, viewers: [viewer("a")].into() }]).await.expect("created");
        post.id
    };
    // An API node, or a command, for which a look at what is pending is one look among others.
    let other = on(START.after(hour)).await;
    assert_eq!(pending_of(&other, PostId::new(START, rand::random())).await, []);
    let first = create(1).await;
    let relay = on(START).await.for_path(Path::Relay);
    assert_eq!(pending_of(&relay, first).await.len(), 1, "it begins where the relays have come to");

    has_come_to(&points, &name, START.after(hour)).await;
    let second = create(1).await;
    let next = on(START).await.for_path(Path::Relay);
    assert_eq!(pending_of(&next, second).await.len(), 1, "a mark beyond the present is by a clock that was ahead");
    assert_eq!(pending_of(&next, first).await.len(), 1);
    let settled: Vec<_> = pending_of(&next, first).await.into_iter().map(Settled::Done).collect();
    next.settle(&settled).await.expect("settled");
    let third = on(START).await.for_path(Path::Relay);
    assert_eq!(pending_of(&third, second).await.len(), 1, "and it was put right");
}

#[tokio::test]
async fn a_migration_that_has_lost_its_lease_changes_nothing_more() {
    let Some(points) = server() else { return };
    let name = fresh_keyspace();
    let options = migration(cluster(points.clone(), &name));
    let session = scylla::client::session_builder::SessionBuilder::new().known_nodes(&points).build().await;
    let session = session.expect("connected");
    let rows = async |text: String| session.query_unpaged(text, ()).await.ok()?.into_rows_result().ok();
    let leases = format!("{name}.leases");

    // The migration goes on only while it is polled: in slices shorter than one change of the schema, until the lease is
    // there. It stands still while the lease is taken from it.
    let mut migrating = std::pin::pin!(migrate(&options));
    let held = format!("SELECT owner FROM {leases} WHERE name = 'migrate'");
    while rows(held.clone()).await.is_none_or(|found| found.rows_num() == 0) {
        let slice = tokio::time::timeout(Duration::from_millis(5), &mut migrating).await;
        assert!(slice.is_err(), "it ended without a lease: {slice:?}");
    }
    let steal = format!("UPDATE {leases} USING TTL 600 SET owner = uuid() WHERE name = 'migrate' IF EXISTS");
    session.query_unpaged(steal, ()).await.expect("taken over");

    assert_eq!(migrating.await.expect_err("taken over").code(), "schema_locked");
    let recorded = format!("SELECT number FROM {name}.schema_migrations WHERE scope = 'schema'");
    let recorded = rows(recorded).await.expect("read");
    assert_eq!(recorded.rows_num(), 0, "it stopped in the midst of the first file");
    let free = format!("DELETE FROM {leases} WHERE name = 'migrate' IF EXISTS");
    session.query_unpaged(free, ()).await.expect("gone");
    let again = migrate(&options).await.expect("migrated");
    assert_eq!(again.applied.len(), 5, "and begins with it again: {again:?}");
}

#[tokio::test]
async fn a_life_that_many_processes_find_at_once_has_one_entry() {
    let Some(OpenStore { store, .. }) = OpenStore::alone().await else { return };
    let before = store.register_fence(1, "before", None).await.expect("registered");
    let found = (0..8).map(|n| store.register_fence(100 + n, "after", Some(before.seq)));
    let fences = futures::future::try_join_all(found).await.expect("registered");
    assert!(fences.iter().all(|fence| *fence == fences[0] && fence.seq == before.seq + 1), "{fences:?}");
    let late = store.register_fence(200, "after", Some(before.seq)).await.expect("known");
    assert_eq!(late, fences[0], "who looked before it was there, and comes when it is");
    let renewed = store.register_fence(201, "after", None).await.expect("registered");
    assert_eq!((renewed.seq, renewed.nonce), (late.seq + 1, 201), "who wants a new one gets it");
    assert_eq!(store.fences(10).await.expect("read").len(), 3);
}

/// Whoever publishes stood still between what it announced and its commit, for so long that this was swept.
#[tokio::test]
async fn a_post_that_was_swept_before_its_commit_is_announced_again() {
    let Some(opened) = OpenStore::new().await else { return };
    let (other, _) = opened.other().await;
    let post = post_at(START, 1);
    let chunks = [Chunk { no: 0, viewers: [viewer("ben")].into() }];
    let mut creating = pin!(opened.store.create_post(&post, &chunks));
    let ended = run_until(creating.as_mut(), async || !pending_of(&other, post.id).await.is_empty()).await;
    assert!(ended.is_none(), "it is not committed yet");
    let swept = pending_of(&other, post.id).await;
    other.settle(&[Settled::Garbage(swept[0])]).await.expect("swept");
    opened.clock.set(START.after(Duration::from_secs(61)));
    creating.await.expect("created");
    let announced = pending_of(&other, post.id).await;
    assert!(announced.len() == 1 && announced[0].since > swept[0].since, "{announced:?}");
    assert_eq!(other.chunk(post.id, 0).await.expect("read").as_ref(), Some(&chunks[0]));
}
