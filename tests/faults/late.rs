//! API nodes that stand still between what they announce and its commit, for longer than an announcement is good for.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::load::viewer_names;
use crate::processes::Role;
use crate::producer::{Post, body};
use crate::scenarios::{go_on, lose_waiting, publish_own};
use crate::stack::RedisServer;
use crate::stage::{Env, Faulted, Stage};
use crate::{Outcome, until};

/// How long the nodes stand still at least, in seconds: longer than `LATE` in src/adapters/scylla/posts.rs.
const STILL_S: f64 = 61.0;
/// After so long the relay sweeps what nobody has committed, in seconds: while the nodes stand still, and not while a
/// machine is merely slow. Two days by default.
const SWEPT_AFTER_S: u32 = 30;
/// The tasks of two posts for everybody.
const TASKS: u32 = 8;
/// The number of the post that is about to be committed.
const NUMBER: u64 = 930_000_000;
/// How long clients wait for the nodes.
const PATIENCE: Duration = Duration::from_secs(150);

type Asked = JoinHandle<reqwest::Result<reqwest::Response>>;

/// One node is about to commit a post, the other one the retract of an earlier post, and the relay sweeps both entries.
/// When the nodes go on they accept, and must have announced both again: no worker runs and the tasks are lost, so that
/// only an entry brings them, and only the withdrawal hides what was retracted. The load comes after that: with it the
/// nodes would stop in some other post.
pub async fn api_late(stage: &mut Stage) -> Outcome<Faulted> {
    let redis = start(stage).await?;
    let first = publish_first(stage).await?;
    for worker in stage.workers.drain(..) {
        worker.end().await;
    }
    let (publishing, retracting) = (publish(stage), retract(stage, &first));
    for node in &stage.apis {
        node.stopped().await?;
    }
    let since = Instant::now();
    sweep(stage).await?;
    stage.hold((STILL_S - since.elapsed().as_secs_f64()).max(0.0)).await;
    stage.apis.iter().try_for_each(go_on)?;

    let published = accepted(publishing).await?;
    let id = published["post_id"].as_str().ok_or_else(|| format!("publish: {published}"))?.to_owned();
    stage.posts.push(Post { id, audience: viewer_names(), version: 1, number: NUMBER, retracted: false });
    accepted(retracting).await?;
    (stage.posts[0].version, stage.posts[0].retracted) = (2, true);
    let is_hidden = async || shows(stage, &first).await == Ok(false);
    until("the other node hides what was retracted", Duration::from_secs(5), is_hidden).await?;
    // Whoever has brought them: the nodes, unless the broker gave them up meanwhile, or the relay.
    lose_waiting(stage, TASKS, Duration::from_secs(40)).await?;

    for _ in 0..2 {
        stage.start(Role::Fanout, &redis, Env::new(), &[])?;
    }
    stage.begin().await?;
    Ok(Faulted { times: 2, healed: Instant::now() })
}

/// Two nodes, a worker and a relay that does not wait for two days. Where Redis is.
async fn start(stage: &mut Stage) -> Outcome<[String; 1]> {
    stage.redis.push(RedisServer::start().await?);
    let redis = [stage.redis[0].url()];
    stage.start(Role::Api, &redis, Env::new(), &["store.pending=stop@1"])?;
    stage.start(Role::Api, &redis, Env::new(), &["store.change_pending=stop@1"])?;
    stage.start(Role::Fanout, &redis, Env::new(), &[])?;
    let soon = vec![
        ("FANFOLD_RELAY__GARBAGE_AFTER_S", SWEPT_AFTER_S.to_string()),
        // Keys have to end before that; the relay has nothing to do with any.
        ("FANFOLD_PUBLISH__IDEMPOTENCY_TTL_S", (SWEPT_AFTER_S - 1).to_string()),
    ];
    stage.start(Role::Relay, &redis, soon, &[])?;
    stage.ready().await?;
    Ok(redis)
}

/// A post that everybody has, and of which nothing is left to do. The node that does not retract it has shown it and
/// knows its body: had it to read that later, it would find the post gone without any withdrawal.
async fn publish_first(stage: &mut Stage) -> Outcome<String> {
    publish_own(stage, 1).await?;
    let id = stage.posts[0].id.clone();
    let is_settled = async || stage.keyspace.left().await.is_ok_and(|left| left.is_nothing());
    until("the first post is settled", Duration::from_secs(30), is_settled).await?;
    let is_shown = async || shows(stage, &id).await == Ok(true);
    until("the first post is shown", Duration::from_secs(10), is_shown).await?;
    Ok(id)
}

/// Whether the first node shows a post to the first viewer.
async fn shows(stage: &Stage, post: &str) -> Outcome<bool> {
    let url = format!("{}/v1/viewers/{}/inbox", stage.apis[0].url(), viewer_names()[0]);
    let answer = stage.client.get(&url).send().await.map_err(|error| format!("{url}: {error}"))?;
    let page: Value = answer.json().await.map_err(|error| format!("{url}: {error}"))?;
    let items = page["items"].as_array().ok_or_else(|| format!("{url}: {page}"))?;
    Ok(items.iter().any(|item| item["post_id"] == post))
}

fn publish(stage: &Stage) -> Asked {
    let body = body(NUMBER, &viewer_names());
    let ask = stage.client.post(format!("{}/v1/posts", stage.apis[0].url()));
    tokio::spawn(ask.timeout(PATIENCE).json(&body).send())
}

fn retract(stage: &Stage, post: &str) -> Asked {
    let ask = stage.client.delete(format!("{}/v1/posts/{post}", stage.apis[1].url()));
    tokio::spawn(ask.timeout(PATIENCE).send())
}

/// Both entries are there when the nodes stop, and gone while they still stand.
async fn sweep(stage: &Stage) -> Outcome<()> {
    let announced = stage.keyspace.uncommitted().await?;
    if announced.len() != 2 {
        return Err(format!("a post and a retract were to be announced, and not {announced:?}"));
    }
    let is_swept = async || stage.keyspace.uncommitted().await.is_ok_and(|entries| entries.is_empty());
    until("the relay sweeps what was announced", Duration::from_secs(50), is_swept).await
}

/// What was asked of a node that stood still was accepted in the end.
async fn accepted(asked: Asked) -> Outcome<Value> {
    let answer = asked.await.map_err(|error| format!("{error}"))?;
    let answer = answer.map_err(|error| format!("a stopped node does not answer: {error}"))?;
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap_or_default());
    if status == 202 { Ok(body) } else { Err(format!("a stopped node answers {status}: {body}")) }
}
