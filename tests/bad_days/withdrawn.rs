//! A retract at one API node is invisible on all others within a second of its 202, before any row says so: no worker runs
//! here, so nothing but the withdrawal itself hides the post.

use std::time::{Duration, Instant};

use fanfold::clock::Clock;
use serde_json::json;

use crate::skew::{HOUR, retract};
use crate::support::Service;
use crate::support::servers::cql;
use crate::wait::eventually;

/// What is promised.
const WITHIN: Duration = Duration::from_secs(1);
/// Between pages.
const PAUSE: Duration = Duration::from_millis(10);

async fn shows(node: &Service, title: &str) -> bool {
    let page = node.get("/v1/viewers/ben/inbox").await;
    assert_eq!(page.status, 200, "{page:?}");
    page.titles("items").iter().any(|shown| shown == title)
}

/// The first page that begins when the second is over does not have it; and what one page did not have, no later one has.
async fn vanishes_in_time(reader: &Service, answered: Instant, title: &str, case: &str) {
    let mut gone = None;
    loop {
        let begun = answered.elapsed();
        let shown = shows(reader, title).await;
        assert!(!shown || gone.is_none(), "{case}: {title} is back after {begun:?}, it was gone after {gone:?}");
        assert!(!shown || begun < WITHIN, "{case}: {title} is shown {begun:?} after its retract was accepted");
        if !shown {
            gone = gone.or(Some(begun));
        }
        if begun >= WITHIN {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retract_is_invisible_within_a_second_on_every_node_whatever_the_clocks_say() {
    let Some(mut service) = Service::on_cluster(|_| {}).await else { return };
    let titles: Vec<String> = (0..12).map(|n| format!("Retracted {n}")).collect();
    let mut posts = Vec::new();
    for title in &titles {
        posts.push((title, service.publish(title, &["ben"]).await));
    }
    service.stop_workers().await;
    let now = Clock::system().now();
    let second = service.beside(Clock::system()).await;
    let fast = service.beside(Clock::manual(now.after(HOUR))).await;
    let slow = service.beside(Clock::manual(now.before(HOUR))).await;
    let cases = [
        ("clocks that agree", &service, [&second, &second]),
        ("a reader that is ahead or behind", &service, [&fast, &slow]),
        ("a retractor that is ahead", &fast, [&second, &slow]),
        ("a retractor that is behind", &slow, [&second, &fast]),
    ];
    let mut posts = posts.into_iter();
    for (case, retractor, readers) in cases {
        for (title, id) in posts.by_ref().take(3) {
            for reader in readers {
                assert!(shows(reader, title).await, "{case}: {title} is there before");
            }
            retract(retractor, &id).await;
            let answered = Instant::now();
            assert!(!shows(retractor, title).await, "{case}: where it was retracted it is gone at once");
            let [one, other] = readers.map(|reader| vanishes_in_time(reader, answered, title, case));
            tokio::join!(one, other);
        }
    }
}

/// An edit brings the expiry forward, the next takes that back. Who still knows of the first one only must not go by it:
/// its reader would be told that the post is gone, and nothing bumps when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_edit_that_is_still_known_hides_nothing_of_a_newer_one() {
    let Some(mut service) = Service::on_cluster(|_| {}).await else { return };
    let kept = service.publish("Kept", &["ben"]).await;
    let markers = [service.publish("First look", &["ben"]).await, service.publish("Second look", &["ben"]).await];
    let soon = Clock::system().now().after(HOUR).to_string();
    for expires_at in [json!(soon), json!(null)] {
        let ask = service.ask("PATCH", &format!("/v1/posts/{kept}")).header("if-match", "*");
        let reply = ask.json(json!({"expires_at": expires_at})).send().await;
        assert_eq!(reply.status, 202, "{reply:?}");
    }
    let (session, table) = (cql().await, format!("{}.retracts", service.config().scylla.keyspace));
    eventually("both edits are settled", async || {
        let known = session.query_unpaged(format!("SELECT post_id FROM {table}"), ()).await.expect("read");
        known.into_rows_result().expect("rows").rows_num() == 0
    })
    .await;
    service.stop_workers().await;
    let reader = service.beside(Clock::system()).await;
    assert!(shows(&reader, "Kept").await);

    // The first edit's withdrawal, as its editor wrote it, its expiry over by now.
    let minute = Clock::system().now().micros() / 60_000_000;
    let withdrawn =
        format!("INSERT INTO {table} (minute, post_id, version, hidden_from) VALUES ({minute}, {kept}, 2, 1)");
    session.query_unpaged(withdrawn, ()).await.expect("written");
    // When what is retracted after it is gone, and then the next, the reader has looked at all that was there before.
    for (id, title) in markers.iter().zip(["First look", "Second look"]) {
        retract(&service, id).await;
        vanishes_in_time(&reader, Instant::now(), title, "a later withdrawal").await;
    }
    assert!(shows(&reader, "Kept").await, "its row is of the third version");
}
