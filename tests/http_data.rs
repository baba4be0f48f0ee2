//! The `data` of a post over HTTP: its text comes out as it went in, also after an edit, and tells requests apart.

mod support;

use serde_json::json;
use support::{Reply, Service};

async fn publish(service: &Service, key: &str, data: &str) -> Reply {
    let body = format!(r#"{{"type":"t","data":{data},"audience":{{"viewers":["ben"]}}}}"#);
    let ask = service.ask("POST", "/v1/posts").header("content-type", "application/json");
    ask.header("idempotency-key", key).body(body).send().await
}

async fn edit(service: &Service, path: &str, data: &str) -> Reply {
    let ask = service.ask("PATCH", path).header("content-type", "application/merge-patch+json");
    ask.header("if-match", "*").body(format!(r#"{{"data":{data}}}"#)).send().await
}

#[tokio::test]
async fn an_edit_leaves_alone_what_it_does_not_name() {
    let service = Service::start().await;
    let reply = publish(&service, "k", r#"{"z":{"id":123456789012345678901234,"n":[1.50]},"t":1,"a":"\u00e9"}"#).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let path = format!("/v1/posts/{}", reply.json()["post_id"].as_str().expect("an id"));
    let reply = edit(&service, &path, r#"{"t":2,"z":{"x":0.10000000000000000001}}"#).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let edited =
        r#""data":{"z":{"id":123456789012345678901234,"n":[1.50],"x":0.10000000000000000001},"t":2,"a":"\u00e9"}"#;
    let reply = service.get(&path).await;
    assert!(reply.text.contains(edited), "{reply:?}");
}

#[tokio::test]
async fn an_edit_that_nests_too_deep_is_told_so_as_a_post_is() {
    let service = Service::start().await;
    let path = format!("/v1/posts/{}", service.publish("Dawn", &["ben"]).await);
    for depth in [65, 127, 129, 10_000] {
        let deep = format!("{}null{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        for reply in [publish(&service, "k", &deep).await, edit(&service, &path, &deep).await] {
            assert_eq!((reply.status, &reply.json()["code"]), (422, &json!("data_too_deep")), "{depth}: {reply:?}");
        }
    }
    assert_eq!(service.get(&path).await.json()["version"], 1);
}

#[tokio::test]
async fn requests_that_differ_in_the_last_digit_are_not_the_same() {
    let service = Service::start().await;
    let first = publish(&service, "k", r#"{"id":123456789012345678901234,"t":1}"#).await;
    assert_eq!(first.status, 202, "{first:?}");
    let same = publish(&service, "k", r#"{ "t": 1, "id": 123456789012345678901234 }"#).await;
    assert_eq!((same.status, &same.json()["post_id"]), (202, &first.json()["post_id"]), "{same:?}");
    let other = publish(&service, "k", r#"{"id":123456789012345678901235,"t":1}"#).await;
    assert_eq!((other.status, &other.json()["code"]), (422, &json!("idempotency_key_reused")), "{other:?}");
}
