//! `fanfold parked POST/CHUNK`: what failed too often is shown, taken up again, or given up.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::json;

use crate::cluster::{API, Cluster, FANOUT, Process, RELAY};
use crate::support::servers::cql;
use crate::wait::eventually;

/// In chunks of two.
const AUDIENCE: [&str; 5] = ["ann", "ben", "cleo", "dora", "emil"];
const REASON: &str = "a post in the store cannot be read";

/// Makes a post one that no worker can read, or heals it.
pub async fn change(cluster: &Cluster, post: &str, state: i8) {
    let update = format!("UPDATE {}.posts SET state = {state} WHERE post_id = {post}", cluster.keyspace);
    cql().await.query_unpaged(update, ()).await.expect("changed");
}

/// Puts the only chunk of a post where the broker puts a task that no worker has survived, its last chance included.
pub async fn set_aside(cluster: &Cluster, post: &str) {
    let mut task = vec![1, 0];
    task.extend(uuid::Uuid::parse_str(post).expect("an id").into_bytes());
    for number in [1_u32, 0, 0, 0] {
        task.extend(number.to_be_bytes());
    }
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert("x-first-death-reason".into(), text("delivery_limit"));
    headers.insert("x-first-death-queue".into(), text(&format!("{}.small", cluster.keyspace)));
    headers.insert("fanfold-last-chance".into(), AMQPValue::Boolean(true));
    let url = std::env::var("FANFOLD_TEST_AMQP").expect("the broker of the tests");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("it confirms");
    let properties = BasicProperties::default().with_headers(headers);
    let (to, options) = (format!("{}.parked", cluster.keyspace), BasicPublishOptions::default());
    let sent = channel.basic_publish("".into(), to.into(), options, &task, properties).await.expect("published");
    sent.await.expect("confirmed");
}

/// How many of the audience have the post.
async fn reached(api: &Process) -> usize {
    let mut count = 0;
    for viewer in AUDIENCE {
        count += api.items(viewer).await;
    }
    count
}

async fn listed(cluster: &Cluster) -> usize {
    cluster.json("parked list").await["chunks"].as_array().expect("a list").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_chunk_is_shown_and_taken_up_again_or_given_up() {
    let Some(mut cluster) = Cluster::new().await else { return };
    cluster.set("FANFOLD_FANOUT__CHUNK_SIZE", "2");
    cluster.set("FANFOLD_FANOUT__ATTEMPTS_MAX", "1");
    let api = cluster.start(API).await;
    let _workers = [cluster.start(FANOUT).await, cluster.start(FANOUT).await];
    cluster.until_both_work().await;
    cluster.say("fanout pause").await;
    eventually("both workers pause", async || cluster.workers().await.iter().all(|worker| worker["tuning"] == 1)).await;
    let post = api.publish(&AUDIENCE, None).await;
    change(&cluster, &post, 9).await;
    cluster.say("fanout resume").await;
    eventually("every chunk has failed too often", async || listed(&cluster).await == 3).await;

    // Also while the post cannot be read: that is when somebody looks.
    let status = cluster.status().await;
    assert!(status["lag_seconds"].as_f64().is_some_and(|lag| lag > 0.0), "it waits: {status}");
    let mut chunks = cluster.json("parked list").await["chunks"].as_array().expect("a list").clone();
    chunks.sort_by_key(|chunk| chunk["chunk"].as_u64());
    for (number, chunk) in chunks.iter().enumerate() {
        assert_eq!((&chunk["post_id"], &chunk["chunk"]), (&json!(post), &json!(number)));
        assert!(chunk["reason"].as_str().is_some_and(|reason| reason.contains(REASON)), "{chunk}");
    }
    for (number, viewers) in [(0, "2 viewers"), (1, "2 viewers"), (2, "1 viewer\n")] {
        let said = cluster.say(&format!("parked show {post}/{number}")).await;
        assert!(said.contains(&format!("{post}/{number}  {viewers}")) && said.contains(REASON), "{said}");
    }
    let table = cluster.say("parked list").await;
    assert!(table.contains(&format!("{post}/2  {REASON}")), "{table}");

    change(&cluster, &post, 0).await;
    // Set aside is as far as it goes by itself.
    let fanout = json!({"status": "done", "total": 5, "written": 0, "skipped": 0, "failed": 5});
    assert_eq!((api.fanout(&post).await, reached(&api).await), (fanout, 0));
    assert_eq!(cluster.say(&format!("parked redrive {post}/0")).await.trim(), "1 chunk taken up again");
    eventually("its viewers have the post", async || reached(&api).await == 2).await;
    assert_eq!(cluster.say(&format!("parked discard {post}/1")).await.trim(), format!("{post}/1 is given up"));
    eventually("one chunk is left", async || listed(&cluster).await == 1).await;
    assert_eq!(cluster.say("parked redrive --all").await.trim(), "1 chunk taken up again");
    eventually("nothing waits", async || api.fanout(&post).await["status"] == "done").await;
    let fanout = json!({"status": "done", "total": 5, "written": 3, "skipped": 2, "failed": 0});
    assert_eq!((api.fanout(&post).await, reached(&api).await), (fanout, 3), "who was given up has no post");
    assert_eq!(cluster.say("parked list").await.trim(), "nothing is parked");

    for command in ["show", "redrive", "discard"] {
        cluster
            .refuses(&format!("parked {command} {post}/1"), &[&format!("chunk 1 of post {post} is not parked")])
            .await;
    }
    // What was given up counts as done, whatever has become of the records since: the relay bumps for who has the post once
    // more, settles it, and drives nothing else.
    cluster.say("fence renew").await;
    let _relay = cluster.start(RELAY).await;
    eventually("the post is settled", async || cluster.status().await["lag_seconds"] == json!(0.0)).await;
    assert_eq!(reached(&api).await, 3);
}
