//! The faults, one by one: processes killed and stopped, the broker and the store broken. Those of Redis are next door.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::late;
use crate::load::viewer_names;
use crate::processes::{Process, Role};
use crate::producer::{Post, body};
use crate::proxy::{Answer, Line, Proxy};
use crate::redis_faults;
use crate::stack::{Entry, RedisServer, empty_queues, waiting_tasks};
use crate::stage::{Env, Faulted, Needs, Scenario, Stage};
use crate::{Outcome, until};

/// How long a stopped worker stands still at least: past the lease of a relay, and past all that it waits for itself.
const PAST_LEASE: f64 = 13.0;
/// How often the worker that is to stop gives the broker a sign of life, in seconds. After two or three times as long
/// it is given up.
const HEARTBEAT_S: u32 = 2;
/// How long the other worker may take to do what the stopped one had. Less than twice the heartbeat of a process that
/// sets none, 10 s, so that it is ours that counts.
const DONE_BY_OTHERS: Duration = Duration::from_secs(15);
/// How long the relay waits meanwhile before it brings anything: longer than that, whatever it had waited before.
const PATIENT_MS: &str = "30000";
/// Shards of the relay's work, as in src/adapters/scylla/scan.rs.
const SHARDS: usize = 8;
/// How long another relay may take to have a stopped one's shards. README.md says 15 s; the machine may be slow.
const TAKEN_OVER: Duration = Duration::from_secs(20);
/// How long it may take until the answer to a write is lost, under a load that writes all the time.
const REPLY_LOST: Duration = Duration::from_secs(10);
/// Where the numbers begin of posts that a scenario publishes for everybody.
const OWN_POSTS: u64 = 920_000_000;

macro_rules! scenario {
    ($name:literal, $what:literal, $needs:ident, $run:expr) => {
        Scenario { name: $name, what: $what, needs: Needs::$needs, run: |stage| $run(stage).boxed_local() }
    };
}

macro_rules! killed {
    ($name:literal, $what:literal, $role:ident, $place:literal) => {
        Scenario {
            name: $name,
            what: $what,
            needs: Needs::Nothing,
            run: |stage| {
                let arms = &[concat!($place, "=kill@3"), concat!($place, "=kill@7"), concat!($place, "=kill@12")];
                killed(stage, Role::$role, arms).boxed_local()
            },
        }
    };
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        killed!("api-claimed", "API killed -9 between key and pending", Api, "publish.claimed"),
        killed!("api-pending", "API killed -9 between pending and commit", Api, "store.pending"),
        killed!("api-committed", "API killed -9 between commit and publish", Api, "publish.committed"),
        killed!("api-changed", "API killed -9 between an edit's commit and its answer", Api, "store.changed"),
        killed!("api-intent", "API killed -9 between a mark's intent and its row", Api, "store.intent"),
        scenario!("api-bulk-mark", "API killed -9 between the batches of a bulk mark", Nothing, api_bulk_mark),
        killed!("api-mark", "API killed -9 between a mark's row and its bump", Api, "mark.written"),
        scenario!("api-stopped", "API stopped before a commit, and continued", Nothing, api_stopped),
        scenario!("api-late", "API stopped for over a minute before a commit, and continued", Nothing, late::api_late),
        scenario!("editor-lost", "an editor loses against one that is killed -9", Nothing, editor_lost),
        scenario!("worker-mid-chunk", "worker killed -9 in the middle of a chunk's rows", Nothing, worker_mid_chunk),
        killed!("worker-rows", "worker killed -9 between rows and bump", Fanout, "fanout.rows"),
        killed!("worker-bumped", "worker killed -9 between bump and done", Fanout, "fanout.bumped"),
        killed!("worker-done", "worker killed -9 between done and ack", Fanout, "fanout.done"),
        scenario!("worker-stopped", "worker stopped until its tasks are done, and continued", Nothing, worker_stopped),
        scenario!("relay-stopped", "relay stopped until another has its shards, and continued", Nothing, relay_stopped),
        scenario!("rabbit-killed", "RabbitMQ killed -9", Stack, rabbit_killed),
        scenario!("rabbit-purged", "RabbitMQ's queues purged", Nothing, rabbit_purged),
        scenario!("rabbit-deleted", "RabbitMQ's queues deleted", Nothing, rabbit_deleted),
        scenario!("rabbit-wiped", "RabbitMQ killed -9 and its disk wiped", Stack, rabbit_wiped),
    ];
    all.extend(redis_faults::all());
    all.extend([
        scenario!("cql-stopped", "the store stopped for 20 s", Stack, cql_stopped),
        scenario!("cql-reply-lost", "writes applied whose replies are lost", Nothing, cql_reply_lost),
        scenario!("cql-node-killed", "one of three nodes killed -9 under quorum", ThreeNodes, cql_node_killed),
    ]);
    all
}

/// The defects, and under which fault each has to show.
pub const PLANTED: [(&str, &str); 8] = [
    ("skip-bump", "worker-done"),
    ("ack-before-rows", "worker-mid-chunk"),
    ("no-fence", "redis-promoted"),
    ("done-without-fence", "redis-deposed-worker"),
    ("intent-without-fence", "redis-marks"),
    ("no-relay", "rabbit-purged"),
    ("rows-before-token", "redis-evicted"),
    ("loser-removes-pending", "editor-lost"),
];

/// What `cargo test` runs: every kind of server once, in little time.
pub const SHORT: [&str; 4] = ["api-pending", "worker-rows", "rabbit-purged", "redis-flushed"];

async fn killed(stage: &mut Stage, role: Role, arms: &[&str]) -> Outcome<Faulted> {
    stage.standard(role, arms, Env::new()).await?;
    let process = if role == Role::Api { &stage.apis[0] } else { &stage.workers[0] };
    process.killed_times(arms.len()).await?;
    process.ready(&stage.client).await?;
    Ok(Faulted { times: arms.len(), healed: Instant::now() })
}

async fn api_stopped(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Api, &["store.pending=stop@5"], Env::new()).await?;
    stage.apis[0].stopped().await?;
    stage.hold(8.0).await;
    stage.apis[0].signal(Signal::CONT)?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

/// More marks than a batch takes, on an inbox of the scenario's own: all of them are there in the end, and whoever held it
/// hears of them.
async fn api_bulk_mark(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Api, &["store.marks=kill@1"], Env::new()).await?;
    publish_many(stage, 100).await?;
    let base = "/v1/viewers/many-items";
    let (_, page) = get(stage, &format!("{base}/inbox?limit=100")).await?;
    let ids: Vec<_> = page["items"].as_array().into_iter().flatten().map(|item| item["post_id"].clone()).collect();
    let order = json!({ "mark": "read", "value": true, "post_ids": ids });
    let marks = format!("{}{base}/inbox/marks", stage.apis[0].url());
    if let Ok(answer) = stage.client.post(marks).json(&order).send().await {
        return Err(format!("the node was to be killed, but answered {answer:?}"));
    }
    stage.apis[0].killed_times(1).await?;
    stage.apis[0].ready(&stage.client).await?;
    until("all are marked", Duration::from_secs(30), async || {
        let page = get(stage, &format!("{base}/inbox?limit=1")).await;
        page.is_ok_and(|(_, page)| page["unread_count"]["value"] == 0)
    })
    .await?;
    let poll = format!("{base}/revision?since={}", page["token"].as_str().ok_or("no token")?);
    let told = async || get(stage, &poll).await.is_ok_and(|(status, _)| status == 200);
    until("whoever holds the inbox is told", Duration::from_secs(5), told).await?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

/// Posts to a viewer of their own, fanned out.
async fn publish_many(stage: &Stage, posts: u64) -> Outcome<()> {
    let mut ids = Vec::new();
    for number in 0..posts {
        let body = body(910_000_000 + number, &["many-items".to_owned()]);
        let sent = stage.client.post(format!("{}/v1/posts", stage.apis[1].url())).json(&body).send().await;
        let post = sent.map_err(|error| format!("publish: {error}"))?.json::<Value>().await;
        let post = post.map_err(|error| format!("publish: {error}"))?;
        ids.push(post["post_id"].as_str().ok_or("no post id")?.to_owned());
    }
    for id in ids {
        let path = format!("/v1/posts/{id}");
        let done = async || get(stage, &path).await.is_ok_and(|(_, post)| post["fanout"]["status"] == "done");
        until("a post of many is fanned out", Duration::from_secs(60), done).await?;
    }
    Ok(())
}

/// What the second API node answers: its status, and its body if it has one.
async fn get(stage: &Stage, path: &str) -> Outcome<(u16, Value)> {
    let answer = stage.client.get(format!("{}{path}", stage.apis[1].url())).send().await;
    let answer = answer.map_err(|error| format!("{path}: {error}"))?;
    Ok((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
}

/// The broker gives up the stopped worker, and the other one does its tasks while it still stands still. The relay
/// would bring them too, so it waits for longer than that.
async fn worker_stopped(stage: &mut Stage) -> Outcome<Faulted> {
    stage.redis.push(RedisServer::start().await?);
    let redis = [stage.redis[0].url()];
    for role in [Role::Api, Role::Api, Role::Relay] {
        stage.start(role, &redis, vec![("FANFOLD_RELAY__REDRIVE_AFTER_MS", PATIENT_MS.into())], &[])?;
    }
    let lively = vec![("FANFOLD_RABBITMQ__URL", with_heartbeat(&stage.servers.amqp))];
    stage.start(Role::Fanout, &redis, lively, &["fanout.rows=stop@8"])?;
    stage.start(Role::Fanout, &redis, Env::new(), &[])?;
    stage.begin().await?;
    stage.workers[0].stopped().await?;
    let since = Instant::now();
    // Of their tasks the stopped one gets its part, as long as the broker takes it for one that lives.
    publish_own(stage, 20).await?;
    let waiting = stage.keyspace.unsettled().await?;
    if waiting.is_empty() {
        return Err("nothing waits for the stopped worker, not even what it had in hand".into());
    }
    let settled = async || stage.keyspace.count_unsettled(&waiting).await == Ok(0);
    until("what the stopped worker had is done by the other one", DONE_BY_OTHERS, settled).await?;
    stage.hold((PAST_LEASE - since.elapsed().as_secs_f64()).max(0.0)).await;
    go_on(&stage.workers[0])?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

/// The worker has its hands full of posts that nobody edits or retracts whenever it is killed: what it leaves unwritten
/// nothing else brings by chance.
async fn worker_mid_chunk(stage: &mut Stage) -> Outcome<Faulted> {
    const ARMS: [&str; 3] = ["store.row_batch=kill@3", "store.rows=kill@7", "store.row_batch=kill@12"];
    stage.redis.push(RedisServer::start().await?);
    let redis = [stage.redis[0].url()];
    for role in [Role::Api, Role::Api, Role::Relay] {
        stage.start(role, &redis, Env::new(), &[])?;
    }
    stage.begin().await?;
    publish_own(stage, 20).await?;
    stage.start(Role::Fanout, &redis, Env::new(), &ARMS)?;
    stage.workers[0].killed_times(ARMS.len()).await?;
    stage.start(Role::Fanout, &redis, Env::new(), &[])?;
    stage.ready().await?;
    Ok(Faulted { times: ARMS.len(), healed: Instant::now() })
}

/// The broker's address for a process that gives a sign of life as often as that.
fn with_heartbeat(amqp: &str) -> String {
    let mark = if amqp.contains('?') { '&' } else { '?' };
    format!("{amqp}{mark}heartbeat={HEARTBEAT_S}")
}

/// Continues a process that must have stood still until now.
pub fn go_on(process: &Process) -> Outcome<()> {
    if !process.is_stopped() {
        return Err(format!("{} has not stood still for as long as it was to", process.name));
    }
    process.signal(Signal::CONT)
}

/// Publishes so many posts for everybody, all at once.
pub async fn publish_own(stage: &mut Stage, count: u64) -> Outcome<()> {
    let (audience, numbers) = (viewer_names(), OWN_POSTS..OWN_POSTS + count);
    let body = json!({ "posts": numbers.clone().map(|number| body(number, &audience)).collect::<Vec<_>>() });
    let sent = stage.client.post(format!("{}/v1/posts/batch", stage.apis[1].url())).json(&body).send().await;
    let answer = sent.map_err(|error| format!("publish: {error}"))?.json::<Value>().await;
    let answer = answer.map_err(|error| format!("publish: {error}"))?;
    for (at, number) in numbers.enumerate() {
        let id = answer["results"][at]["post"]["post_id"].as_str().ok_or_else(|| format!("publish: {answer}"))?;
        stage.posts.push(Post { id: id.to_owned(), audience: audience.clone(), version: 1, number, retracted: false });
    }
    Ok(())
}

/// Two relays, so that there is somebody to take over; tasks are lost, so that there is something to relay. Only the
/// other relay can bring those of the stopped one's shards, and settle their posts, while it stands still.
async fn relay_stopped(stage: &mut Stage) -> Outcome<Faulted> {
    stage.redis.push(RedisServer::start().await?);
    let redis = [stage.redis[0].url()];
    let prefetch = ("FANFOLD_RABBITMQ__PREFETCH", "1".to_owned());
    let soon = ("FANFOLD_RELAY__REDRIVE_AFTER_MS", "3000".to_owned());
    for role in [Role::Api, Role::Api, Role::Fanout, Role::Fanout, Role::Relay, Role::Relay] {
        stage.start(role, &redis, vec![prefetch.clone(), soon.clone()], &[])?;
    }
    stage.begin().await?;
    stage.work(2.0).await?;
    let before = halved(stage).await?;
    stage.relays[0].signal(Signal::STOP)?;
    lose_own(stage).await?;
    let unsettled = stage.keyspace.unsettled().await?;
    let heir = first_heir(stage, &before).await?;
    // What the workers had at hand is long done, and the heir has driven nothing yet: what is not done was lost.
    let orphaned = |entry: &Entry| before.get(&entry.shard).is_some_and(|owner| *owner != heir);
    let lost = stage.keyspace.undone(unsettled.into_iter().filter(orphaned).collect()).await?;
    if lost.is_empty() {
        return Err("no task was lost in the shards of the stopped relay".into());
    }
    let settled = async || stage.keyspace.count_unsettled(&lost).await == Ok(0);
    until("the other relay brings what was lost in the stopped one's shards", Duration::from_secs(40), settled).await?;
    let has_all = async || {
        let leases = stage.keyspace.leases().await.unwrap_or_default();
        leases.len() == SHARDS && leases.values().all(|owner| *owner == heir)
    };
    until("the other relay has all shards", TAKEN_OVER, has_all).await?;
    lose_tasks(stage).await?;
    go_on(&stage.relays[0])?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

/// Who has which shard, once each of two relays has its half: from then on none changes hands by itself.
async fn halved(stage: &Stage) -> Outcome<BTreeMap<i16, Uuid>> {
    let mut leases = BTreeMap::new();
    until("each relay has half of the shards", Duration::from_secs(40), async || {
        leases = stage.keyspace.leases().await.unwrap_or_default();
        let first = leases.values().next();
        leases.len() == SHARDS && leases.values().filter(|owner| Some(*owner) == first).count() == SHARDS / 2
    })
    .await?;
    Ok(leases)
}

/// Who has a shard that was another's, as soon as somebody has.
async fn first_heir(stage: &Stage, before: &BTreeMap<i16, Uuid>) -> Outcome<Uuid> {
    let mut heir = None;
    until("the other relay takes over", TAKEN_OVER, async || {
        let leases = stage.keyspace.leases().await.unwrap_or_default();
        heir = leases.into_iter().find(|(shard, owner)| before.get(shard) != Some(owner)).map(|(_, owner)| owner);
        heir.is_some()
    })
    .await?;
    heir.ok_or_else(|| "nobody took over".to_owned())
}

/// Publishes posts while no worker takes tasks, and removes these, all but the few that the workers have at hand.
async fn lose_own(stage: &mut Stage) -> Outcome<()> {
    signal_workers(stage, Signal::STOP)?;
    // Four tasks each, of which two workers have 54 at hand.
    publish_own(stage, 60).await?;
    lose_waiting(stage, 150, Duration::from_secs(30)).await?;
    signal_workers(stage, Signal::CONT)
}

/// Removes all tasks from the queues, once so many wait there.
pub async fn lose_waiting(stage: &Stage, least: u32, patience: Duration) -> Outcome<()> {
    let piled_up = async || waiting_tasks(&stage.servers, &stage.prefix).await.is_ok_and(|waiting| waiting >= least);
    until("tasks pile up", patience, piled_up).await?;
    empty_queues(&stage.servers, &stage.prefix, false).await
}

/// Lets tasks pile up, and removes them.
async fn lose_tasks(stage: &Stage) -> Outcome<()> {
    signal_workers(stage, Signal::STOP)?;
    stage.hold(1.5).await;
    let purged = empty_queues(&stage.servers, &stage.prefix, false).await;
    signal_workers(stage, Signal::CONT)?;
    purged
}

fn signal_workers(stage: &Stage, signal: Signal) -> Outcome<()> {
    stage.workers.iter().try_for_each(|worker| worker.signal(signal))
}

async fn rabbit_purged(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], vec![("FANFOLD_RABBITMQ__PREFETCH", "1".into())]).await?;
    for _ in 0..3 {
        stage.work(0.5).await?;
        lose_tasks(stage).await?;
    }
    Ok(Faulted { times: 3, healed: Instant::now() })
}

async fn rabbit_deleted(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], vec![("FANFOLD_RABBITMQ__PREFETCH", "1".into())]).await?;
    for _ in 0..2 {
        stage.work(1.5).await?;
        empty_queues(&stage.servers, &stage.prefix, true).await?;
    }
    Ok(Faulted { times: 2, healed: Instant::now() })
}

async fn rabbit_killed(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], Env::new()).await?;
    stage.work(2.0).await?;
    stage.servers.stack(&["kill", "rabbitmq"]).await?;
    stage.work(4.0).await?;
    stage.servers.stack(&["start", "rabbitmq"]).await?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

async fn rabbit_wiped(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], vec![("FANFOLD_RABBITMQ__PREFETCH", "1".into())]).await?;
    stage.work(2.0).await?;
    stage.servers.stack(&["kill", "rabbitmq"]).await?;
    let disk = stage.servers.stack_folder()?.join("rabbitmq/mnesia");
    std::fs::remove_dir_all(&disk).map_err(|error| format!("{}: {error}", disk.display()))?;
    stage.servers.stack(&["start", "rabbitmq"]).await?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

async fn cql_stopped(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], Env::new()).await?;
    stage.work(2.0).await?;
    let pid = stage.servers.stack_pid("cassandra")?;
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or("no pid of the store")?;
    let signal = |signal| rustix::process::kill_process(pid, signal).map_err(|error| format!("the store: {error}"));
    signal(Signal::STOP)?;
    stage.hold(20.0).await;
    signal(Signal::CONT)?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

/// The driver takes the contact point's port for that of every node, so it comes back to the proxy. Each time the answer to
/// a write must be among what is lost: the store says so once it has applied it.
async fn cql_reply_lost(stage: &mut Stage) -> Outcome<Faulted> {
    let first = stage.servers.cql.first().cloned().ok_or("no node of the store")?;
    let proxy = Proxy::start_before_store(first).await?;
    stage.cql = proxy.address();
    stage.standard(Role::Relay, &[], Env::new()).await?;
    for _ in 0..4 {
        stage.work(1.5).await?;
        let lost = || proxy.came_and_lost(Answer::Write).1;
        let before = lost();
        proxy.set(Line::Deaf);
        stage.hold(1.0).await;
        until("the answer to a write that was applied is lost", REPLY_LOST, async || lost() > before).await?;
        proxy.set(Line::Through);
    }
    let healed = Instant::now();
    // Until the last of the two clients of each process is back; the proxy must outlive the check.
    stage.proxies.push(proxy);
    Ok(Faulted { times: 4, healed })
}

async fn cql_node_killed(stage: &mut Stage) -> Outcome<Faulted> {
    stage.standard(Role::Relay, &[], Env::new()).await?;
    stage.work(2.0).await?;
    stage.servers.stack(&["kill", "cassandra3"]).await?;
    stage.work(6.0).await?;
    stage.servers.stack(&["start", "cassandra3"]).await?;
    Ok(Faulted { times: 1, healed: Instant::now() })
}

/// Both are about to write version 2 and have told the relay so. One wins and is killed before anybody is told to fan
/// it out; the other loses, and must leave the winner's pending entry alone.
async fn editor_lost(stage: &mut Stage) -> Outcome<Faulted> {
    stage.no_edits = true;
    stage.redis.push(RedisServer::start().await?);
    let redis = [stage.redis[0].url()];
    stage.start(Role::Api, &redis, Env::new(), &["store.changed=kill@1"])?;
    stage.start(Role::Api, &redis, Env::new(), &["store.change_pending=stop@1"])?;
    for role in [Role::Fanout, Role::Fanout, Role::Relay] {
        stage.start(role, &redis, Env::new(), &[])?;
    }
    stage.begin().await?;
    let (winner, loser, audience) = (900_000_001, 900_000_002, viewer_names());
    let body = body(900_000_000, &audience);
    let published = stage.client.post(format!("{}/v1/posts", stage.apis[0].url())).json(&body).send().await;
    let published = published.map_err(|error| format!("publish: {error}"))?.json::<Value>().await;
    let published = published.map_err(|error| format!("publish: {error}"))?;
    let id = published["post_id"].as_str().ok_or("no post id")?.to_owned();
    until("the first version is settled", Duration::from_secs(30), async || {
        stage.keyspace.pending_of(&id, 1).await == Ok(0)
    })
    .await?;
    let edit = |node: usize, number: u64| {
        let request = stage.client.patch(format!("{}/v1/posts/{id}", stage.apis[node].url()));
        let request = request.header("If-Match", "\"1\"").timeout(Duration::from_secs(60));
        request.json(&json!({ "data": { "number": number } })).send()
    };
    let losing = tokio::spawn(edit(1, loser));
    stage.apis[1].stopped().await?;
    if let Ok(answer) = edit(0, winner).await {
        return Err(format!("the winner was to be killed, but answered {answer:?}"));
    }
    stage.apis[0].killed_times(1).await?;
    stage.apis[1].signal(Signal::CONT)?;
    let lost = losing.await.map_err(|error| format!("{error}"))?.map_err(|error| format!("the loser: {error}"))?;
    if lost.status() != 412 {
        return Err(format!("the loser was to be refused, but was answered {lost:?}"));
    }
    stage.apis[0].ready(&stage.client).await?;
    stage.posts.push(Post { id, audience, version: 2, number: winner, retracted: false });
    Ok(Faulted { times: 1, healed: Instant::now() })
}
