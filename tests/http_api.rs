//! The HTTP interface from end to end: what `API.md` promises when all goes well.

mod support;
#[path = "support/wait.rs"]
mod wait;

use std::time::{Duration, Instant};

use fanfold::clock::Clock;
use fanfold::domain::{Lane, Time};
use fanfold::ports::Queue as _;
use serde_json::{Value, json};
use support::Service;
use wait::eventually;

fn dawn() -> Value {
    json!({
        "type": "story.posted", "actor": {"id": "ana"}, "data": {"title": "Dawn", "n": 1.50},
        "audience": {"viewers": ["ben", "cleo", "ben"]}, "thread_key": "s1", "ttl_seconds": 86400,
    })
}

#[tokio::test]
async fn a_post_goes_from_its_producer_to_its_viewers() {
    let service = Service::start().await;
    let reply = service.post("/v1/posts", dawn()).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let posted = reply.json();
    let id = posted["post_id"].as_str().expect("an id").to_owned();
    assert_eq!(reply.header("location"), format!("/v1/posts/{id}"));
    assert_eq!(posted["audience"], json!({"size": 2, "duplicates": 1}));
    assert_eq!((&posted["version"], &posted["state"]), (&json!(1), &json!("live")));

    let reply = service.get(&format!("/v1/posts/{id}?wait=30")).await;
    assert_eq!((reply.status, reply.header("etag")), (200, "\"1\""));
    let post = reply.json();
    assert_eq!(post["fanout"], json!({"status": "done", "total": 2, "written": 2, "skipped": 0, "failed": 0}));
    assert_eq!((&post["actor"], &post["thread_key"]), (&json!({"id": "ana"}), &json!("s1")));
    assert_eq!(post["published_at"], posted["published_at"]);

    let reply = service.get("/v1/viewers/ben/inbox").await;
    let page = reply.json();
    let token = page["token"].as_str().expect("a token").to_owned();
    assert_eq!(reply.header("etag"), format!("W/\"{token}\""));
    assert_eq!(page["unseen_count"], json!({"value": 1, "capped": false}));
    assert_eq!((&page["truncated"], page.get("next_cursor")), (&json!(false), None));
    let item = &page["items"][0];
    assert_eq!((&item["post_id"], &item["type"]), (&json!(id), &json!("story.posted")));
    assert_eq!(item["seen_at"], Value::Null);
    assert!(reply.text.contains(r#""data":{"n":1.5,"title":"Dawn"}"#), "as it was sent: {reply:?}");
    for name in ["published_at", "expires_at"] {
        let at = item[name].as_str().expect("a time");
        assert!(at.len() == 24 && at.ends_with('Z') && at.as_bytes()[19] == b'.', "{at}");
    }
    assert_eq!(service.get(&format!("/v1/viewers/ben/revision?since={token}")).await.status, 304);
    assert_eq!(service.get("/v1/viewers/dora/inbox").await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let service = Service::start().await;
    let reply = service.post("/v1/posts?dry_run=true", dawn()).await;
    assert_eq!((reply.status, &reply.json()["post_id"]), (200, &Value::Null));
    assert_eq!(reply.json()["audience"], json!({"size": 2, "duplicates": 1}));
    assert_eq!(service.get("/v1/viewers/ben/inbox").await.json()["items"], json!([]));
    assert_eq!(service.post("/v1/posts?dry_run=false", dawn()).await.status, 202);
}

#[tokio::test]
async fn a_retry_with_the_same_key_gets_the_same_answer() {
    let service = Service::start().await;
    let send =
        |key: &'static str, body| service.ask("POST", "/v1/posts").header("idempotency-key", key).json(body).send();
    let first = send("\"k 1\"", dawn()).await;
    let mut respelled = dawn();
    respelled["actor"] = json!({"id": "ana"});
    let (second, bare) = (send("\"k 1\"", respelled).await, send("k 1", dawn()).await);
    assert_eq!((first.status, &first.text), (202, &second.text));
    assert_eq!(first.text, bare.text);
    let mut other = dawn();
    other["data"]["title"] = json!("Dusk");
    let reply = send("k 1", other).await;
    assert_eq!((reply.status, &reply.json()["code"]), (422, &json!("idempotency_key_reused")));
    service.fanned_out(first.json()["post_id"].as_str().expect("an id")).await;
    assert_eq!(service.get("/v1/viewers/ben/inbox").await.titles("items"), ["Dawn"]);
}

#[tokio::test]
async fn a_retry_of_what_was_read_meanwhile_changes_nothing() {
    // One worker takes a producer's tasks in their order. (In a cluster there is none, and the retry's may come later.)
    let service = Service::start_with(|config| config.fanout.workers_small = 1).await;
    let send = || service.ask("POST", "/v1/posts").header("idempotency-key", "k1").json(dawn()).send();
    // So that there is a record, which remembers the post; the mark then takes the post's place in it.
    service.token("ben").await;
    let first = send().await.json();
    let id = first["post_id"].as_str().expect("an id");
    service.fanned_out(id).await;
    assert_eq!(service.ask("PUT", &format!("/v1/viewers/ben/inbox/{id}/read")).send().await.status, 200);
    let token = service.token("ben").await;
    assert_eq!(send().await.json(), first);
    let queue = &service.running.backends.queue;
    let is_empty = async || queue.depth(Lane::Small).await.expect("asked") == 0;
    eventually("the task of the retry is taken", is_empty).await;
    service.publish("Dusk", &["cleo"]).await;
    for path in ["revision", "changes"] {
        let reply = service.get(&format!("/v1/viewers/ben/{path}?since={token}")).await;
        assert_eq!((reply.status, reply.text.as_str()), (304, ""), "{path}: nothing has changed");
    }
    assert!(service.get("/v1/viewers/ben/inbox").await.json()["items"][0]["read_at"].is_string());
}

#[tokio::test]
async fn the_posts_of_a_batch_stand_for_themselves() {
    let service = Service::start().await;
    let mut keyed = dawn();
    keyed["idempotency_key"] = json!("b1");
    let bad = json!({"type": "t", "audience": {"viewers": ["ben", ""]}});
    let unknown = json!({"type": "t", "audience": {"viewers": ["ben"]}, "prio": 1});
    let reply = service.post("/v1/posts/batch", json!({"posts": [keyed, bad, unknown, keyed]})).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let results = &reply.json()["results"];
    let statuses: Vec<_> = results.as_array().expect("results").iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [202, 422, 422, 202]);
    assert_eq!(results[0]["post"], results[3]["post"], "the same key, the same post");
    assert_eq!(results[1]["problem"]["field"], "posts[1].audience.viewers[1]");
    assert_eq!(results[1]["problem"]["request_id"], reply.header("x-request-id"));
    assert_eq!(
        (&results[2]["problem"]["code"], &results[2]["problem"]["field"]),
        (&json!("unknown_field"), &json!("posts[2].prio"))
    );
    assert_eq!(results[1].get("post"), None);
}

#[tokio::test]
async fn edits_merge_and_insist_on_their_version() {
    let service = Service::start().await;
    let id = service.post("/v1/posts", dawn()).await.json()["post_id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/posts/{id}");
    let edit = |tag: &'static str, body: Value| {
        let ask = service.ask("PATCH", &path).header("content-type", "application/merge-patch+json");
        ask.header("if-match", tag).body(body.to_string()).send()
    };
    assert_eq!(service.ask("PATCH", &path).json(json!({})).send().await.status, 428);
    let reply = edit("\"1\"", json!({"data": {"n": null, "by": {"a": 1, "b": null}}, "type": "story.edited"})).await;
    assert_eq!((reply.status, reply.header("etag")), (202, "\"2\""), "{reply:?}");
    let reply = edit("\"1\"", json!({"data": {"x": 1}})).await;
    assert_eq!((reply.status, &reply.json()["code"]), (412, &json!("version_mismatch")));
    assert_eq!(edit("*", json!({"data": {"by": {"c": 2}}, "expires_at": null})).await.json()["version"], 3);
    service.fanned_out(&id).await;
    let item = &service.get("/v1/viewers/cleo/inbox").await.json()["items"][0];
    assert_eq!(item["data"], json!({"title": "Dawn", "by": {"a": 1, "c": 2}}));
    assert_eq!(
        (&item["type"], &item["version"], &item["expires_at"]),
        (&json!("story.edited"), &json!(3), &Value::Null)
    );
    assert_eq!(edit("*", json!({"data": null})).await.status, 202);
    assert_eq!(service.get(&path).await.json()["data"], json!({}));

    // Edits at the same time, none of which may be lost.
    let all = (0..8).map(|n| edit("*", json!({"data": {format!("k{n}"): n}})));
    assert!(futures::future::join_all(all).await.iter().all(|reply| reply.status == 202));
    assert_eq!(service.get(&path).await.json()["data"].as_object().expect("an object").len(), 8);
}

#[tokio::test]
async fn a_retract_is_invisible_from_its_answer_on() {
    let service = Service::start().await;
    let id = service.publish("Dawn", &["ben"]).await;
    let token = service.token("ben").await;
    let path = format!("/v1/posts/{id}");
    assert_eq!(service.ask("DELETE", &path).header("if-match", "\"7\"").send().await.status, 412);
    let reply = service.ask("DELETE", &path).send().await;
    assert_eq!((reply.status, &reply.json()["state"]), (202, &json!("retracted")));
    assert_eq!(service.get("/v1/viewers/ben/inbox").await.json()["items"], json!([]));
    assert_eq!(service.ask("DELETE", &path).send().await.json()["version"], 2, "once is enough");
    service.fanned_out(&id).await;
    let changes = service.get(&format!("/v1/viewers/ben/changes?since={token}")).await.json();
    assert_eq!((&changes["removed"], &changes["upserted"]), (&json!([id]), &json!([])));
    let reply = service.ask("PATCH", &path).header("if-match", "*").json(json!({"type": "x"})).send().await;
    assert_eq!((reply.status, &reply.json()["code"]), (409, &json!("post_retracted")));
}

#[tokio::test]
async fn pages_walk_to_the_end_with_one_token() {
    let service = Service::start_with(|config| config.inbox.items_max = 5).await;
    for n in 0..6 {
        service.publish(&n.to_string(), &["ben"]).await;
    }
    let first = service.get("/v1/viewers/ben/inbox?limit=2").await;
    let (token, mut titles) = (first.json()["token"].clone(), first.titles("items"));
    let mut next = first;
    service.publish("late", &["ben"]).await;
    while let Some(cursor) = next.json()["next_cursor"].as_str().map(str::to_owned) {
        assert_eq!(next.json()["truncated"], false);
        let link = format!("</v1/viewers/ben/inbox?limit=2&cursor={cursor}>; rel=\"next\"");
        assert_eq!(next.header("link"), link);
        next = service.get(&format!("/v1/viewers/ben/inbox?limit=2&cursor={cursor}")).await;
        assert_eq!((&next.json()["token"], next.header("etag")), (&token, ""));
        titles.extend(next.titles("items"));
    }
    assert_eq!(titles, ["5", "4", "3", "2"], "the newest pushed one out");
    assert_eq!((&next.json()["truncated"], next.header("link")), (&json!(true), ""));

    let id = service.get("/v1/viewers/ben/inbox").await.json()["items"][0]["post_id"].clone();
    let path = format!("/v1/viewers/ben/inbox/{}/archived", id.as_str().expect("an id"));
    assert_eq!(service.ask("PUT", &path).send().await.status, 200);
    let archived = service.get("/v1/viewers/ben/inbox?archived=true").await;
    assert_eq!((archived.titles("items"), &archived.json()["token"]), (vec!["late".to_owned()], &Value::Null));
    assert!(!service.get("/v1/viewers/ben/inbox").await.titles("items").contains(&"late".to_owned()));
}

#[tokio::test]
async fn what_has_not_changed_reads_no_store() {
    let service = Service::start().await;
    service.publish("Dawn", &["ben"]).await;
    let token = service.token("ben").await;
    let tag = format!("W/\"{token}\"");
    let before = service.store_reads();
    for path in ["revision", "inbox", "changes"] {
        let path = format!("/v1/viewers/ben/{path}");
        let by_since = service.get(&format!("{path}?since={token}")).await;
        let by_tag = service.ask("GET", &path).header("if-none-match", &format!("\"other\", {tag}")).send().await;
        for reply in [by_since, by_tag] {
            assert_eq!((reply.status, reply.text.as_str(), reply.header("etag")), (304, "", tag.as_str()), "{path}");
            assert_eq!(reply.header("cache-control"), "private, no-cache");
            assert_eq!(reply.header("vary"), "Authorization, Origin");
            let interval: u32 = reply.header("x-poll-interval").parse().expect("seconds");
            assert!((13..=17).contains(&interval), "{interval}");
        }
    }
    assert_eq!(service.get("/v1/viewers/ben/revision").await.json(), json!({"viewer_id": "ben", "changed": true}));
    let query = json!({"viewers": [{"viewer_id": "ben", "token": token}, {"viewer_id": "cleo"}]});
    let reply = service.post("/v1/revisions/query", query).await;
    let results = json!([{"viewer_id": "ben", "changed": false}, {"viewer_id": "cleo", "changed": true}]);
    assert_eq!(reply.json()["results"], results);
    assert_eq!(service.store_reads(), before);
    assert_eq!(service.get(&format!("/v1/viewers/ben/inbox?archived=true&since={token}")).await.status, 200);
}

#[tokio::test]
async fn a_long_poll_ends_with_the_change() {
    let service = Service::start().await;
    service.publish("Dawn", &["ben"]).await;
    let token = service.token("ben").await;
    let path = format!("/v1/viewers/ben/revision?since={token}");
    let revisions = service.running.backends.revisions.clone();
    let waiting = async { service.get(&format!("{path}&wait=60")).await };
    let publishing = async {
        eventually("a poll waits", async || revisions.waiters() > 0).await;
        service.publish("Dusk", &["ben"]).await;
    };
    let (reply, ()) = tokio::join!(waiting, publishing);
    assert_eq!((reply.status, &reply.json()["changed"]), (200, &json!(true)));

    let token = service.token("ben").await;
    let reply = service.get(&format!("/v1/viewers/ben/revision?since={token}&wait=1")).await;
    assert_eq!(reply.status, 304, "the time is up");
    let path = format!("/v1/viewers/ben/revision?since={token}");
    let reply = service.ask("GET", &path).header("prefer", "wait=1").send().await;
    assert_eq!((reply.status, reply.header("preference-applied")), (304, "wait=1"));
    let asked = Instant::now();
    assert_eq!(service.get("/v1/viewers/ben/revision?wait=60").await.status, 200, "the first request never waits");
    assert!(asked.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn more_waiters_than_may_are_answered_at_once() {
    let service = Service::start_with(|config| config.revisions.waiters_max = 1).await;
    let token = service.token("ben").await;
    let path = format!("/v1/viewers/ben/revision?since={token}&wait=60");
    let revisions = service.running.backends.revisions.clone();
    let first = service.get(&path);
    let second = async {
        eventually("a poll waits", async || revisions.waiters() > 0).await;
        let reply = service.get(&path).await;
        service.publish("Dawn", &["ben"]).await;
        reply.status
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status, second), (200, 304));
}

#[tokio::test]
async fn more_who_wait_for_a_fan_out_than_may_are_answered_at_once() {
    let mut service = Service::start_with(|config| config.revisions.waiters_max = 1).await;
    // So that the fan-out is never done: embedded there is nothing to stop but the queue, on a cluster there are workers.
    service.stop_workers().await;
    if !support::is_cluster() {
        service.running.backends.queue.close().await;
    }
    let posted = service.post("/v1/posts", dawn()).await.json();
    let path = format!("/v1/posts/{}?wait=60", posted["post_id"].as_str().expect("an id"));
    let asked = Instant::now();
    let reply = tokio::select! {
        reply = service.get(&path) => reply,
        reply = service.get(&path) => reply,
    };
    assert_eq!((reply.status, &reply.json()["fanout"]["status"]), (200, &json!("running")));
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn shutdown_answers_whoever_waits() {
    let service = Service::start().await;
    let token = service.token("ben").await;
    let url = format!("http://{}/v1/viewers/ben/revision?since={token}&wait=60", service.running.addr);
    let waiting = tokio::spawn(async move { reqwest::get(url).await.expect("an answer").status().as_u16() });
    let revisions = service.running.backends.revisions.clone();
    eventually("a poll waits", async || revisions.waiters() > 0).await;
    let asked = Instant::now();
    service.stop().await;
    assert_eq!(waiting.await.expect("no panic"), 304);
    assert!(asked.elapsed() < Duration::from_secs(15), "idle connections do not hold it up: {:?}", asked.elapsed());
}

#[tokio::test]
async fn one_mark_answers_with_the_next_token() {
    let service = Service::start().await;
    let id = service.publish("Dawn", &["ben"]).await;
    let token = service.token("ben").await;
    let path = |mark: &str| format!("/v1/viewers/ben/inbox/{id}/{mark}?since={token}");
    let reply = service.ask("PUT", &path("read")).send().await.json();
    assert_eq!(reply["from"], json!(token));
    let next = reply["token"].as_str().expect("the next token").to_owned();
    assert!(reply["item"]["read_at"].is_string() && reply["item"]["seen_at"].is_string());
    assert_eq!((&reply["unread_count"]["value"], &reply["unseen_count"]["value"]), (&json!(0), &json!(0)));
    assert_eq!(service.get(&format!("/v1/viewers/ben/revision?since={next}")).await.status, 304);
    let reply = service.ask("DELETE", &path("seen")).send().await.json();
    assert_eq!((&reply["from"], &reply["token"]), (&Value::Null, &Value::Null), "the token was an old one");
    assert_eq!(reply["item"]["read_at"], Value::Null);
    let changes = service.get(&format!("/v1/viewers/ben/changes?since={token}")).await;
    assert_eq!((changes.titles("upserted"), &changes.json()["from"]), (vec!["Dawn".to_owned()], &json!(token)));
}

#[tokio::test]
async fn many_marks_by_id_and_through_a_token() {
    let service = Service::start().await;
    let (a, b) = (service.publish("a", &["ben"]).await, service.publish("b", &["ben"]).await);
    let stranger = service.publish("c", &["cleo"]).await;
    let marks = "/v1/viewers/ben/inbox/marks";
    let reply = service.post(marks, json!({"mark": "seen", "post_ids": [a, stranger]})).await.json();
    assert_eq!((&reply["post_ids"], &reply["unseen_count"]["value"]), (&json!([a]), &json!(1)));
    let token = service.token("ben").await;
    let late = service.publish("late", &["ben"]).await;
    let reply = service.post(marks, json!({"mark": "read", "through": token})).await.json();
    assert_eq!(reply["post_ids"].as_array().expect("ids").len(), 2, "{reply}");
    assert_eq!(reply["unread_count"]["value"], 1, "what came later stays unread");
    let items = service.get("/v1/viewers/ben/inbox").await.json()["items"].clone();
    assert_eq!((&items[0]["post_id"], &items[0]["read_at"]), (&json!(late), &Value::Null));
    let token = service.token("ben").await;
    let path = format!("{marks}?since={token}");
    let reply = service.post(&path, json!({"mark": "read", "value": false, "post_ids": [b]})).await.json();
    assert_eq!((&reply["from"], &reply["unread_count"]["value"]), (&json!(token), &json!(2)));
}

#[tokio::test]
async fn a_token_from_before_a_restart_asks_for_a_fresh_read_unless_redis_has_gone_on() {
    let service = Service::start().await;
    service.publish("Dawn", &["b/n"]).await;
    let token = service.token("b%2Fn").await;
    let service = Service::start_on(service.stop().await, Clock::system(), |_| {}).await;
    let poll = service.get(&format!("/v1/viewers/b%2Fn/revision?since={token}")).await;
    if support::is_cluster() {
        assert_eq!(poll.status, 304, "the revisions have outlived the API node");
        return;
    }
    assert_eq!(poll.status, 200);
    assert_eq!(service.get("/v1/viewers/b%2Fn/inbox").await.titles("items"), ["Dawn"]);
    let reply = service.get(&format!("/v1/viewers/b%2Fn/changes?since={token}")).await;
    let problem = reply.json();
    assert_eq!((reply.status, &problem["code"]), (410, &json!("resync_required")));
    assert_eq!(problem["reason"], "fence");
    assert_eq!(reply.header("location"), "/v1/viewers/b%2Fn/inbox");
    assert!(reply.header("retry-after").parse::<u32>().is_ok_and(|seconds| (1..=6).contains(&seconds)), "{reply:?}");
}

#[tokio::test]
async fn expired_posts_are_not_served() {
    let start = Time::from_millis(1_800_000_000_000);
    let clock = Clock::manual(start);
    let service = Service::start_on(tempfile::tempdir().expect("a folder"), clock.clone(), |_| {}).await;
    let body = json!({"type": "t", "audience": {"viewers": ["ben"]}, "expires_at": "2027-01-15T08:00:01+00:00"});
    let id = service.post("/v1/posts", body).await.json()["post_id"].as_str().expect("an id").to_owned();
    service.fanned_out(&id).await;
    let page = service.get("/v1/viewers/ben/inbox").await.json();
    assert_eq!(page["items"][0]["expires_at"], "2027-01-15T08:00:01.000Z");
    let token = page["token"].as_str().expect("a token");
    let poll = format!("/v1/viewers/ben/revision?since={token}");
    assert_eq!(service.get(&poll).await.status, 304);
    clock.set(start.after(Duration::from_secs(1)));
    assert_eq!(service.get(&poll).await.status, 200, "it needs no bump");
    assert_eq!(service.get("/v1/viewers/ben/inbox").await.json()["items"], json!([]));
    assert_eq!(service.get(&format!("/v1/posts/{id}")).await.json()["state"], "expired");
}

#[tokio::test]
async fn operators_see_health_metrics_and_the_specification() {
    let service = Service::start().await;
    assert_eq!(service.get("/livez").await.json()["status"], "live");
    assert_eq!(service.get("/readyz").await.json()["status"], "ready");
    service.token("ben").await;
    service.get("/v1/viewers/ben/revision").await;
    let metrics = service.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        "fanfold_store_reads_total{path=\"poll\"} 0",
        "fanfold_queue_tasks{lane=\"small\"} ",
        "fanfold_revision_polls_total{result=\"changed\"} ",
        "fanfold_http_request_duration_seconds_count{route=\"/v1/viewers/{viewer_id}/revision\",method=\"GET\",status=\"2xx\"} ",
        "fanfold_build_info",
    ] {
        assert!(metrics.text.contains(line), "{line} is not in\n{}", metrics.text);
    }
    let spec = service.get("/openapi.json").await.json();
    let served = serde_json::to_value(fanfold::http::document()).expect("serializable");
    assert_eq!(spec, served);
    // Whatever the specification has is served, under these methods and no other.
    for (path, item) in spec["paths"].as_object().expect("paths") {
        let path = path.replace("{viewer_id}", "ben").replace("{post_id}", "x").replace("{mark}", "x");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let reply = service.ask(method, &path).send().await;
            let known = item.get(method.to_lowercase()).is_some();
            assert_eq!(reply.status != 405, known, "{method} {path}: {reply:?}");
            assert!(known || !reply.header("allow").is_empty(), "{method} {path}");
            assert!(!reply.text.contains("problem:route_not_found"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_answer_can_be_traced() {
    let service = Service::start().await;
    let reply = service.ask("GET", "/v1/viewers/../x").header("x-request-id", "my-id").send().await;
    assert_eq!((reply.header("x-request-id"), &reply.json()["request_id"]), ("my-id", &json!("my-id")));
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.json()["type"], "urn:fanfold:problem:route_not_found");
    let fresh = service.get("/livez").await;
    assert_eq!(fresh.header("x-request-id").len(), 16);
}
