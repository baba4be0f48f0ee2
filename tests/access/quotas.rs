//! Quotas: what is refused was not half done, and says when to come again; others are not concerned.

use std::time::Instant;

use fanfold::domain::Scope;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::Reply;
use crate::wait::eventually;
use crate::{Guarded, bearer};

fn post(viewers: usize) -> Value {
    let viewers: Vec<String> = (0..viewers).map(|n| format!("v{n}")).collect();
    json!({"type": "t", "data": {"title": "Dawn"}, "audience": {"viewers": viewers}})
}

async fn publish(guarded: &Guarded, key: &str, body: Value) -> Reply {
    guarded.service.ask("POST", "/v1/posts").header("authorization", key).json(body).send().await
}

fn is_refused(reply: &Reply, field: &str) {
    assert_eq!((reply.status, reply.json()["code"].as_str()), (429, Some("quota_exceeded")), "{reply:?}");
    assert_eq!(reply.json()["field"], field);
    assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{reply:?}");
    assert_eq!(reply.json()["retry_after"].to_string(), reply.header("retry-after"), "{reply:?}");
}

#[tokio::test]
async fn a_key_publishes_its_quota_and_another_is_not_concerned() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.posts_per_s, config.quota.posts_burst) = (1, 3);
    })
    .await;
    let noisy = bearer(&guarded.key("noisy", &[Scope::Publish, Scope::Read, Scope::Viewers]).await);
    let quiet = bearer(&guarded.key("quiet", &[Scope::Publish]).await);
    let replies = futures::future::join_all((0..20).map(|_| publish(&guarded, &noisy, post(1)))).await;
    let accepted: Vec<_> = replies.iter().filter(|reply| reply.status == 202).collect();
    // The burst, and one for each second that the machine took.
    assert!((3..=8).contains(&accepted.len()), "{} accepted", accepted.len());
    for reply in &replies {
        assert_eq!(reply.header("ratelimit-policy"), "\"posts\";q=3;w=3", "{reply:?}");
        assert!(reply.header("ratelimit").starts_with("\"posts\";r="), "{reply:?}");
    }
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 202).collect();
    refused.iter().for_each(|reply| is_refused(reply, "quota.posts_per_s"));
    assert_eq!(publish(&guarded, &quiet, post(1)).await.status, 202);

    // What was refused is nowhere: the inbox has what was accepted.
    for reply in &accepted {
        let path = format!("/v1/posts/{}?wait=30", reply.json()["post_id"].as_str().expect("an id"));
        let status = guarded.service.ask("GET", &path).header("authorization", &noisy).send().await;
        assert_eq!(status.json()["fanout"]["status"], "done");
    }
    let inbox = guarded.service.ask("GET", "/v1/viewers/v0/inbox").header("authorization", &noisy).send().await;
    let items = inbox.json()["items"].as_array().expect("items").len();
    assert!((accepted.len()..=accepted.len() + 1).contains(&items), "{items}, one of them the quiet one's");
}

#[tokio::test]
async fn a_refused_post_leaves_its_idempotency_key_free() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.rows_per_s, config.quota.rows_burst) = (50, 50);
    })
    .await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish]).await);
    assert_eq!(publish(&guarded, &key, post(100)).await.status, 202, "larger than the burst, and possible");
    let ask = |viewers: usize| {
        let ask = guarded.service.ask("POST", "/v1/posts").header("authorization", &key);
        ask.header("idempotency-key", "\"k1\"").json(post(viewers)).send()
    };
    is_refused(&ask(1).await, "quota.rows_per_s");
    // Once it is paid off, another request may have the key: the refused one has not claimed it.
    eventually("the first post is paid off", async || {
        let reply = ask(2).await;
        if reply.status != 202 {
            is_refused(&reply, "quota.rows_per_s");
        }
        reply.status == 202
    })
    .await;
}

#[tokio::test]
async fn in_a_batch_each_post_is_refused_on_its_own() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.posts_per_s, config.quota.posts_burst) = (1, 2);
    })
    .await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish]).await);
    let body = json!({"posts": vec![post(1); 10]});
    let ask = guarded.service.ask("POST", "/v1/posts/batch").header("authorization", &key);
    let reply = ask.json(body).send().await;
    assert_eq!((reply.status, reply.header("retry-after")), (200, ""), "the posts have times of their own: {reply:?}");
    let results = reply.json();
    let statuses: Vec<u64> = results["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|r| r["status"].as_u64().expect("a status"))
        .collect();
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert!((2..=4).contains(&accepted) && statuses.iter().all(|status| [202, 429].contains(status)), "{statuses:?}");
    for refused in results["results"].as_array().expect("results").iter().filter(|result| result["status"] == 429) {
        assert!(refused["problem"]["retry_after"].as_u64() >= Some(1), "{refused}");
    }
}

#[tokio::test]
async fn edits_and_retracts_cost_the_rows_of_their_audience() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.rows_per_s, config.quota.rows_burst) = (1, 150);
    })
    .await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish]).await);
    let id = publish(&guarded, &key, post(100)).await.json()["post_id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/posts/{id}");
    let edit = guarded.service.ask("PATCH", &path).header("authorization", &key).header("if-match", "*");
    assert_eq!(edit.json(json!({"type": "t2"})).send().await.status, 202, "while anything is left");
    let retract = guarded.service.ask("DELETE", &path).header("authorization", &key).send().await;
    is_refused(&retract, "quota.rows_per_s");
}

/// A burst of 100 bytes of data, and of the rest as much as one likes.
async fn with_a_quota_of_bytes() -> Guarded {
    Guarded::start_with(|config| {
        (config.quota.bytes_per_s, config.quota.bytes_burst) = (1, 100);
    })
    .await
}

/// Of more than 900 bytes of debt, at one a second, not all is paid off however slow the machine is.
fn is_refused_for_long(reply: &Reply) {
    is_refused(reply, "quota.bytes_per_s");
    assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 600), "{reply:?}");
}

#[tokio::test]
async fn a_post_costs_the_bytes_of_its_data() {
    let guarded = with_a_quota_of_bytes().await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish]).await);
    let quiet = bearer(&guarded.key("quiet", &[Scope::Publish]).await);
    let mut heavy = post(1);
    heavy["data"]["text"] = json!("x".repeat(1_000));
    assert_eq!(publish(&guarded, &key, heavy).await.status, 202, "larger than the burst, and possible");
    is_refused_for_long(&publish(&guarded, &key, post(1)).await);
    assert_eq!(publish(&guarded, &quiet, post(1)).await.status, 202, "another key has its own");
}

#[tokio::test]
async fn an_edit_costs_the_bytes_of_the_data_that_it_brings() {
    let guarded = with_a_quota_of_bytes().await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish, Scope::Read]).await);
    let id = publish(&guarded, &key, post(1)).await.json()["post_id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/posts/{id}");
    let edit = |body: Value| {
        let edit = guarded.service.ask("PATCH", &path).header("authorization", &key).header("if-match", "*");
        edit.json(body).send()
    };
    let heavy = json!({"data": {"text": "x".repeat(1_000)}});
    assert_eq!(edit(heavy).await.status, 202, "larger than what is left, and possible");
    is_refused_for_long(&edit(json!({"data": {"title": "Dusk"}})).await);
    is_refused_for_long(&edit(json!({"type": "t2"})).await);
    let status = guarded.service.ask("GET", &path).header("authorization", &key).send().await;
    assert_eq!(status.json()["version"], 2, "what was refused was not made: {status:?}");
}

#[tokio::test]
async fn of_many_edits_at_once_as_many_are_made_as_rows_are_left() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.rows_per_s, config.quota.rows_burst) = (1, 250);
    })
    .await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish, Scope::Read]).await);
    let id = publish(&guarded, &key, post(200)).await.json()["post_id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/posts/{id}");
    let edit = |of: &str| {
        let edit = guarded.service.ask("PATCH", &path).header("authorization", &key).header("if-match", of);
        edit.json(json!({"data": {"title": "Dusk"}})).send()
    };
    let stale = edit("\"7\"").await;
    assert_eq!(stale.status, 412, "{stale:?}");
    let replies = futures::future::join_all((0..10).map(|_| edit("*"))).await;
    let (made, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 202);
    assert_eq!(made.len(), 1, "what was not made cost nothing, and what was is 150 rows of debt: {replies:?}");
    refused.iter().for_each(|reply| is_refused(reply, "quota.rows_per_s"));
    assert_eq!(made[0].json()["version"], 2);
}

#[tokio::test]
async fn a_retract_costs_its_rows_once() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.rows_per_s, config.quota.rows_burst) = (1, 250);
    })
    .await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish]).await);
    let id = publish(&guarded, &key, post(100)).await.json()["post_id"].as_str().expect("an id").to_owned();
    for _ in 0..10 {
        let path = format!("/v1/posts/{id}");
        let retract = guarded.service.ask("DELETE", &path).header("authorization", &key).send().await;
        assert_eq!(retract.status, 202, "again and again: {retract:?}");
    }
    assert_eq!(publish(&guarded, &key, post(1)).await.status, 202, "50 rows are left");
}

/// Quotas that refill so slowly that what is taken shows, and a key.
async fn slowly_refilled() -> (Guarded, String) {
    let guarded = Guarded::start_with(|config| {
        (config.quota.posts_per_s, config.quota.posts_burst) = (1, 100);
        (config.quota.rows_per_s, config.quota.rows_burst) = (1, 10_000);
        (config.quota.bytes_per_s, config.quota.bytes_burst) = (1, 1_000_000);
        // While Redis lives no answer may come too late, however busy the machine.
        config.quota.shared_timeout_ms = 10_000;
    })
    .await;
    let key = bearer(&guarded.key("shop", &[Scope::Publish]).await);
    (guarded, key)
}

/// A thousand rows, fifty thousand bytes.
fn large() -> Value {
    let mut body = post(1_000);
    body["data"]["text"] = json!("x".repeat(50_000));
    body
}

async fn publish_as(guarded: &Guarded, key: &str, name: &str, body: Value) -> Reply {
    let ask = guarded.service.ask("POST", "/v1/posts").header("authorization", key);
    ask.header("idempotency-key", name).json(body).send().await
}

/// What an answer says is left of posts, rows and bytes.
fn left(reply: &Reply) -> [u64; 3] {
    ["posts", "rows", "bytes"].map(|name| {
        let start = format!("\"{name}\";r=");
        let rest = reply.header("ratelimit").split(start.as_str()).nth(1).and_then(|rest| rest.split(';').next());
        rest.and_then(|rest| rest.parse().ok()).unwrap_or_else(|| panic!("{name}: {reply:?}"))
    })
}

/// Of one refilled a second, at most so much more is left after a while.
fn refilled(began: Instant) -> u64 {
    began.elapsed().as_secs() + 2
}

#[tokio::test]
async fn a_repeat_costs_no_rows_and_no_bytes_again() {
    let (guarded, key) = slowly_refilled().await;
    let began = Instant::now();
    let first = publish_as(&guarded, &key, "\"k1\"", large()).await;
    assert_eq!(first.status, 202, "{first:?}");
    let paid = left(&first);
    assert!(paid[1] <= 9_000 + refilled(began) && paid[2] <= 950_000 + refilled(began), "{paid:?}: a fresh post pays");
    // More of them than rows, and one after the other.
    for _ in 0..20 {
        let again = publish_as(&guarded, &key, "\"k1\"", large()).await;
        assert_eq!((again.status, &again.text), (202, &first.text), "the same answer: {again:?}");
        let now = left(&again);
        assert!(now[1] >= 9_000 && now[2] >= 949_000, "{now:?}");
    }
    let spun = publish_as(&guarded, &key, "\"k1\"", large()).await;
    let before = left(&spun);
    assert!(before[0] <= 100 - 22 + refilled(began), "{before:?}: whoever spins is held back by the posts");
    let other = left(&publish(&guarded, &key, large()).await);
    assert!(other[1] <= before[1] - 1_000 + refilled(began), "{other:?} after {before:?}: the next fresh one pays");
    assert!(other[2] <= before[2] - 50_000 + refilled(began), "{other:?} after {before:?}");
}

#[tokio::test]
async fn what_is_refused_for_what_it_says_costs_no_rows_and_no_bytes() {
    let (guarded, key) = slowly_refilled().await;
    let began = Instant::now();
    assert_eq!(publish_as(&guarded, &key, "\"k1\"", large()).await.status, 202);
    let (mut late, mut other, mut odd) = (large(), large(), large());
    late["expires_at"] = json!("2001-01-01T00:00:00Z");
    other["type"] = json!("u");
    odd["type"] = json!("");
    for _ in 0..5 {
        for (name, body, code) in [
            ("\"k1\"", &other, "idempotency_key_reused"),
            ("\"k2\"", &late, "expiry_in_past"),
            ("\"k3\"", &odd, "invalid_value"),
        ] {
            let reply = publish_as(&guarded, &key, name, body.clone()).await;
            assert_eq!((reply.status, reply.json()["code"].as_str()), (422, Some(code)), "{reply:?}");
            let now = left(&reply);
            assert!(now[1] >= 9_000 && now[2] >= 949_000, "{code}: {now:?}");
        }
        let unnamed = publish(&guarded, &key, late.clone()).await;
        assert_eq!(unnamed.json()["code"], "expiry_in_past");
        assert!(left(&unnamed)[1] >= 9_000, "{unnamed:?}");
    }

    // In a batch each for itself: of these the last alone has new rows.
    let before = left(&publish(&guarded, &key, late.clone()).await);
    let mut repeat = large();
    (repeat["idempotency_key"], other["idempotency_key"]) = (json!("k1"), json!("k1"));
    let ask = guarded.service.ask("POST", "/v1/posts/batch").header("authorization", &key);
    let reply = ask.json(json!({"posts": [late, other, repeat, post(500)]})).send().await;
    let results = reply.json()["results"].as_array().expect("results").clone();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64()).collect();
    assert_eq!(statuses, [422_u64, 422, 202, 202].map(Some), "{reply:?}");
    let after = left(&reply);
    assert!(after[1] >= 8_500 && after[1] <= before[1] - 500 + refilled(began), "{after:?} after {before:?}");
}

#[tokio::test]
async fn a_viewers_token_is_bounded_wherever_it_goes() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.polls_per_s, config.quota.polls_burst) = (1, 5);
    })
    .await;
    let backend = bearer(&guarded.key("app", &[Scope::Viewers]).await);
    let post = "019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b";
    for (viewer, method, rest, body) in [
        ("ana", "GET", "inbox", Value::Null),
        ("ben", "GET", "changes?since=x", Value::Null),
        ("cleo", "PUT", &format!("inbox/{post}/read"), Value::Null),
        ("dan", "POST", "inbox/marks", json!({"mark": "read", "value": true, "post_ids": [post]})),
    ] {
        let ask = async |authorization: &str| {
            let ask = guarded.service.ask(method, &format!("/v1/viewers/{viewer}/{rest}"));
            ask.header("authorization", authorization).json(body.clone()).send().await
        };
        let own = format!("Bearer {}", guarded.ring.token(viewer));
        let mut refused = 0;
        for _ in 0..50 {
            let reply = ask(&own).await;
            if reply.status == 429 {
                is_refused(&reply, "quota.polls_per_s");
                refused += 1;
            }
        }
        assert!(refused > 20, "{method} {rest}: {refused} of 50");
        assert_ne!(ask(&backend).await.status, 429, "{method} {rest}: a backend's reads are its own affair");
    }
}

#[tokio::test]
async fn a_viewer_who_spins_is_slowed_down() {
    let guarded = Guarded::start_with(|config| {
        (config.quota.polls_per_s, config.quota.polls_burst) = (1, 5);
    })
    .await;
    let poll = async |viewer: &str| {
        let token = format!("Bearer {}", guarded.ring.token(viewer));
        let path = format!("/v1/viewers/{viewer}/revision");
        guarded.service.ask("GET", &path).header("authorization", &token).send().await
    };
    let mut refused = 0;
    for _ in 0..50 {
        let reply = poll("ben").await;
        if reply.status != 200 {
            is_refused(&reply, "quota.polls_per_s");
            assert!(!reply.header("x-poll-interval").is_empty());
            assert_eq!(reply.header("ratelimit-policy"), "\"polls\";q=5;w=5", "{reply:?}");
            assert!(reply.header("ratelimit").starts_with("\"polls\";r=0;t="), "{reply:?}");
            refused += 1;
        }
    }
    assert!(refused > 20, "{refused} of 50");
    assert_eq!(poll("cleo").await.status, 200, "another viewer is not concerned");
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let guarded = Guarded::start_with(|config| config.http.connections_per_address_max = 5).await;
    let address = guarded.service.running.addr;
    let mut idle = Vec::new();
    for _ in 0..5 {
        idle.push(TcpStream::connect(address).await.expect("connected"));
    }
    let mut beyond = TcpStream::connect(address).await.expect("the kernel accepts");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(std::time::Duration::from_secs(10), beyond.read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && rest.is_empty(), "closed at once");
    drop(idle);
    eventually("places are given back", async || reqwest_get(address).await).await;
    let key = bearer(&guarded.key("scraper", &[Scope::Metrics]).await);
    let metrics = guarded.service.ask("GET", "/metrics").header("authorization", &key).send().await;
    let counted = metrics.metric("fanfold_connections_refused_total");
    assert!(counted.is_some_and(|count| count > 0.0), "{}", metrics.text);
}

async fn reqwest_get(address: std::net::SocketAddr) -> bool {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    client.get(format!("http://{address}/livez")).send().await.is_ok_and(|answer| answer.status() == 200)
}
