//! Bodies: how large one may be on each route, and how many bytes of them there may be at the same time.

mod support;
#[path = "support/wait.rs"]
mod wait;

use serde_json::json;
use support::{Reply, Service};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use wait::eventually;

/// Routes that take a body, and how many bytes it may have; batches apart.
const ROUTES: [(&str, usize); 6] = [
    ("/v1/viewers/ben/inbox/marks", 1_024 + 1_000 * 302),
    ("/v1/revisions/query", 1_024 + 1_000 * 1_288),
    ("/v1/keys", 16_384),
    ("/v1/keys/3f6c0a9d5e21b784/rotate", 16_384),
    ("/v1/viewer-tokens", 16_384),
    ("/v1/posts", 2_097_152),
];

async fn send(service: &Service, path: &str, body: String) -> Reply {
    service.ask("POST", path).header("content-type", "application/json").body(body).send().await
}

/// Of so many bytes, most of them blanks.
async fn dry_run(service: &Service, bytes: usize) -> Reply {
    let post = json!({"type": "t", "audience": {"viewers": ["ben"]}}).to_string();
    send(service, "/v1/posts?dry_run=true", format!("{post:<bytes$}")).await
}

/// Bytes of bodies in memory.
async fn held(service: &Service) -> f64 {
    service.get("/metrics").await.metric("fanfold_bodies_bytes").expect("a gauge")
}

/// The longest way to write a text in JSON.
fn escaped(text: &str) -> String {
    text.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect()
}

async fn takes_as_much(service: &Service, path: &str, limit: usize) {
    let reply = send(service, path, " ".repeat(limit)).await;
    assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("malformed_json")), "{path}: {reply:?}");
    let reply = send(service, path, " ".repeat(limit + 1)).await;
    let problem = reply.json();
    assert_eq!((reply.status, &problem["code"]), (413, &json!("body_too_large")), "{path}: {reply:?}");
    assert_eq!((&problem["limit"], &problem["value"]), (&json!(limit), &json!(limit + 1)), "{path}: {reply:?}");
}

#[tokio::test]
async fn routes_that_need_little_take_little() {
    let service = Service::start().await;
    for (path, limit) in ROUTES {
        takes_as_much(&service, path, limit).await;
    }
    let service = Service::start_with(|config| config.http.request_body_bytes_max = 2_048).await;
    for (path, _) in ROUTES {
        takes_as_much(&service, path, 2_048).await;
    }
}

#[tokio::test]
async fn the_largest_lists_fit_in_whatever_way_they_are_written() {
    let service = Service::start().await;
    let ids = (0..1_000).map(|n| escaped(&format!("urn:uuid:019ab0c4-6f80-7a3c-8f5e-{n:012x}")));
    let ids = ids.map(|id| format!("        \"{id}\"")).collect::<Vec<_>>().join(",\r\n");
    let marks = format!("{{\r\n    \"mark\": \"read\",\r\n    \"post_ids\": [\r\n{ids}\r\n    ]\r\n}}\r\n");
    let reply = send(&service, "/v1/viewers/ben/inbox/marks", marks).await;
    assert_eq!(reply.status, 200, "{reply:?}");

    service.publish("first", &["ben"]).await;
    let token = escaped(&service.token("ben").await);
    let viewers = (0..1_000).map(|n| {
        let (id, viewer) = (escaped("viewer_id"), escaped(&format!("{n:0>128}")));
        format!("        {{\r\n            \"{id}\": \"{viewer}\",\r\n            \"token\": \"{token}\"\r\n        }}")
    });
    let viewers = viewers.collect::<Vec<_>>().join(",\r\n");
    let query = format!("{{\r\n    \"viewers\": [\r\n{viewers}\r\n    ]\r\n}}\r\n");
    let reply = send(&service, "/v1/revisions/query", query).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["results"].as_array().map(Vec::len), Some(1_000));
}

#[tokio::test]
async fn a_body_for_which_there_is_no_room_is_told_to_come_again() {
    let service = Service::start_with(|config| {
        config.http.request_body_bytes_max = 49_152;
        config.http.batch_body_bytes_max = 49_152;
        config.http.bodies_bytes_max = 65_536;
    })
    .await;
    for _ in 0..10 {
        assert_eq!(dry_run(&service, 40_000).await.status, 200, "what was answered has given back its room");
    }
    for framing in ["content-length: 40000", "transfer-encoding: chunked"] {
        let mut slow = TcpStream::connect(service.running.addr).await.expect("connects");
        let head = format!("POST /v1/posts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{framing}\r\n\r\n");
        let chunk = if framing.ends_with("chunked") { "9c40\r\n" } else { "" };
        for part in [head.as_bytes(), chunk.as_bytes(), &[b' '; 39_999]] {
            slow.write_all(part).await.expect("taken");
        }
        eventually("most of it is there", async || held(&service).await >= 39_999.0).await;
        let refused = dry_run(&service, 40_000).await;
        let problem = refused.json();
        assert_eq!((refused.status, &problem["code"]), (503, &json!("overloaded")), "{refused:?}");
        assert!(problem["retry_after"].as_u64() >= Some(1), "{refused:?}");
        assert_eq!(refused.header("retry-after"), problem["retry_after"].to_string());
        assert_eq!(dry_run(&service, 4_000).await.status, 200, "for this one there is room");
        drop(slow);
        eventually("its room is given back", async || held(&service).await == 0.0).await;
        assert_eq!(dry_run(&service, 40_000).await.status, 200, "for this one as well, now");
    }
    let metrics = service.get("/metrics").await;
    let counted = metrics.metric("fanfold_bodies_refused_total");
    assert!(counted.is_some_and(|count| count > 0.0), "{}", metrics.text);
}
