//! The broker: it refuses us, has queues of another kind, or messages of a newer release.

use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::Value;

use crate::broker_user::BrokerUser;
use crate::cluster::{CLI, Cluster, FANOUT, PROCESSES, RABBITMQ_URL, SERVE, found};
use crate::support::servers::server;
use crate::wait::eventually;

const BOTH: &[&str] = &["FANFOLD_TEST_CQL", "FANFOLD_TEST_AMQP"];
const PASSWORD: &str = "not-the-password-at-all";

async fn channel() -> (Connection, Channel) {
    let url = server("FANFOLD_TEST_AMQP").expect("it is there");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

/// `url` with other credentials and another virtual host.
fn changed(url: &str, credentials: &str, vhost: &str) -> String {
    let (host, _) = url.rsplit_once('@').expect("credentials").1.split_once('/').expect("a virtual host");
    format!("amqp://{credentials}@{host}/{vhost}")
}

#[tokio::test]
async fn a_broker_that_refuses_us_is_told_from_one_that_is_away() {
    let Some(mut cluster) = Cluster::on(BOTH) else { return };
    let url = server("FANFOLD_TEST_AMQP").expect("it is there");
    cluster.migrate().await;
    let password = changed(&url, &format!("guest:{PASSWORD}"), "%2f");
    let nobody = changed(&url, &format!("nobody:{PASSWORD}"), "%2f");
    for (url, words) in [
        (password, ["refuses the user \"guest\"", "rabbitmq.url"]),
        (nobody, ["refuses the user \"nobody\"", "rabbitmq.url"]),
        (changed(&url, "guest:guest", "nowhere"), ["no virtual host \"nowhere\"", "rabbitmq.url"]),
        ("amqp://guest:guest@127.0.0.1:1/%2f".to_owned(), ["127.0.0.1:1 (rabbitmq.url)", "cannot be reached"]),
    ] {
        cluster.set(RABBITMQ_URL, url);
        let findings = cluster.findings("queue").await;
        found(&findings, &["WRONG", words[0], words[1], "rabbitmq.url"]);
        let told = cluster.doctor().await;
        told.check(1, &words);
        assert!(!told.out.contains(PASSWORD));
        for mut process in PROCESSES.map(|process| cluster.start(process)) {
            process.says(&["starting without RabbitMQ", words[0], words[1]]).await;
            let said = process.stop().await;
            assert!(!said.contains(PASSWORD) && !said.contains("lapin"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_user_without_rights_is_named_with_what_it_may_not_declare() {
    let Some(mut cluster) = Cluster::on(&["FANFOLD_TEST_AMQP"]) else { return };
    let name = cluster.name.clone();
    let Some(user) = BrokerUser::new(&name, PASSWORD, "^nothing$").await else { return };
    let url = server("FANFOLD_TEST_AMQP").expect("it is there");
    cluster.set(RABBITMQ_URL, changed(&url, &format!("{name}:{PASSWORD}"), "%2f"));
    let without = cluster.findings("queue").await;
    // What the advice asks for is enough.
    user.may(&format!("^({name}\\..*|amq\\.default)$")).await;
    let with = cluster.findings("queue").await;
    let queue = format!("{name}.parked");
    found(&without, &["WRONG", &name, "may not declare", &queue, "set_permissions"]);
    assert!(with.iter().all(|finding| finding.starts_with("ok")), "{with:#?}");
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named_and_can_be_deleted() {
    let Some(cluster) = Cluster::on(BOTH) else { return };
    cluster.migrate().await;
    let (_connection, channel) = channel().await;
    let queue = format!("{}.parked", cluster.name);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(5));
    let declared = channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments);
    declared.await.expect("declared");
    let words = [&queue, "exists with other arguments", "x-max-length", "rabbitmq.prefix"];
    cluster.doctor().await.check(1, &[words[0], words[1], words[2], words[3], "rabbitmqctl delete_queue"]);
    let mut node = cluster.start(SERVE);
    node.says(&[&["starting without RabbitMQ"][..], &words[..]].concat()).await;
    node.stop().await;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("deleted");
    found(&cluster.findings("queue").await, &["ok", "as this release needs them"]);
}

/// The messages in a queue.
async fn depth(queue: &str) -> u32 {
    let (_connection, channel) = channel().await;
    let passive = QueueDeclareOptions::durable().passive();
    let asked = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
    asked.expect("it exists").message_count()
}

async fn set_aside(cluster: &Cluster) {
    let queue = format!("{}.parked", cluster.name);
    eventually("a message is set aside", async || depth(&queue).await == 1).await;
}

#[tokio::test]
async fn a_message_of_a_newer_release_is_set_aside_and_can_be_put_back_or_given_up() {
    let Some(cluster) = Cluster::on(BOTH) else { return };
    cluster.migrate().await;
    let worker = (FANOUT, PROCESSES[1].1);
    let first = cluster.start(worker);
    // The worker declares the queues; whoever publishes needs only the name.
    let (small, parked) = (format!("{}.small", cluster.name), format!("{}.parked", cluster.name));
    found(&cluster.findings("queue").await, &["ok", "as this release needs them"]);
    let (_connection, channel) = channel().await;
    let newest = [u8::MAX, 1, 2, 3];
    let options = BasicPublishOptions::default();
    let message = channel.basic_publish("".into(), small.as_str().into(), options, &newest, BasicProperties::default());
    message.await.expect("published");
    set_aside(&cluster).await;
    first.stop().await;
    let reason = "the message has form 255 of a newer release";
    cluster.run(CLI, &["parked", "list"]).await.check(0, &["message", reason]);
    let told = cluster.run(CLI, &["parked", "list", "--output", "json"]).await;
    let listed: Value = serde_json::from_str(&told.out).expect("JSON");
    assert!(listed["messages"][0].as_str().expect("a reason").starts_with(reason), "{listed}");
    found(&cluster.findings("queue").await, &["warning", "messages that are set aside: 1", "`fanfold parked list`"]);

    cluster.run(CLI, &["parked", "redrive", "--messages"]).await.check(0, &["1 message put back"]);
    assert_eq!((depth(&small).await, depth(&parked).await), (1, 0), "for a worker of the newer release");
    // It was an older one again.
    let second = cluster.start(worker);
    set_aside(&cluster).await;
    second.stop().await;
    cluster.run(CLI, &["parked", "list"]).await.check(0, &[reason]);
    cluster.run(CLI, &["parked", "discard", "--messages"]).await.check(0, &["1 message removed"]);
    cluster.run(CLI, &["parked", "list"]).await.check(0, &["nothing is parked"]);
}
