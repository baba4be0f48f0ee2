//! Bad input over HTTP: each with its own code, the field, the limit and the value; never a 5xx, and nothing is lost.

mod support;

use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::Time;
use serde_json::{Value, json};
use support::{Reply, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One bad request, and what it must be answered with.
struct Case {
    ask: (&'static str, String),
    headers: Vec<(&'static str, String)>,
    body: Option<String>,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
    limit: Option<(u64, u64)>,
}

fn case(method: &'static str, path: impl Into<String>, status: u16, code: &'static str) -> Case {
    let ask = (method, path.into());
    Case { ask, headers: Vec::new(), body: None, status, code, field: None, limit: None }
}

impl Case {
    fn json(mut self, body: impl ToString) -> Self {
        self.headers.push(("content-type", "application/json".to_owned()));
        self.body = Some(body.to_string());
        self
    }

    fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn field(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    fn limit(mut self, limit: u64, value: u64) -> Self {
        self.limit = Some((limit, value));
        self
    }

    async fn check(&self, service: &Service) {
        let (method, path) = &self.ask;
        let mut ask = service.ask(method, path);
        for (name, value) in &self.headers {
            ask = ask.header(name, value);
        }
        if let Some(body) = &self.body {
            ask = ask.body(body.clone());
        }
        let reply = ask.send().await;
        let shown: String = self.body.iter().flat_map(|body| body.chars().take(120)).collect();
        self.judge(&reply, &format!("{method} {} {shown}", &path[..path.len().min(120)]));
    }

    fn judge(&self, reply: &Reply, shown: &str) {
        assert_eq!(reply.header("content-type"), "application/problem+json", "{shown}: {reply:?}");
        let problem = reply.json();
        assert_eq!((reply.status, problem["code"].as_str()), (self.status, Some(self.code)), "{shown}: {reply:?}");
        assert_eq!(problem["field"].as_str(), self.field, "{shown}: {reply:?}");
        let limit = problem["limit"].as_u64().zip(problem["value"].as_u64());
        assert_eq!(limit, self.limit, "{shown}: {reply:?}");
        assert_eq!(problem["status"], self.status, "{shown}");
        assert_eq!(problem["request_id"], reply.header("x-request-id"), "{shown}");
        for name in ["type", "title", "detail"] {
            assert!(problem[name].as_str().is_some_and(|text| !text.is_empty()), "{shown}: {name}");
        }
    }
}

/// A good post with one change.
fn post(change: impl FnOnce(&mut Value)) -> Value {
    let mut post = json!({"type": "t", "actor": {"id": "a"}, "data": {}, "audience": {"viewers": ["ben"]}});
    change(&mut post);
    post
}

fn bad_posts() -> Vec<Case> {
    let bad = |status, code, body: Value| case("POST", "/v1/posts", status, code).json(body);
    let invalid = |code, change: &dyn Fn(&mut Value)| bad(422, code, post(change));
    let many = |n: usize| (0..n).map(|n| format!("v{n}")).collect::<Vec<_>>();
    let deep = format!(
        "{{\"type\":\"t\",\"audience\":{{\"viewers\":[\"b\"]}},\"data\":{{\"a\":{}{}}}}}",
        "[".repeat(9_000),
        "]".repeat(9_000)
    );
    let text = |text: &str| case("POST", "/v1/posts", 400, "malformed_json").json(text);
    vec![
        text("{\"type\": oops}"),
        text(""),
        text(r#"{"type":"t","audience":{"viewers":["b"]}}{}"#),
        text("\u{0}"),
        text(r#"{"type":"\ud800","audience":{"viewers":["b"]}}"#),
        text(r#"{"type":"t","audience":{"viewers":["b"]},"data":{"a":"\ud800"}}"#).field("data"),
        case("POST", "/v1/posts", 422, "data_too_deep").json(deep).field("data").limit(64, 65),
        bad(422, "invalid_value", json!([])).field("body"),
        bad(422, "missing_field", json!({"type": "t"})).field("audience"),
        bad(422, "missing_field", json!({"audience": {"viewers": ["b"]}})).field("type"),
        bad(422, "missing_field", json!({"type": "t", "audience": {}})).field("audience.viewers"),
        case("POST", "/v1/posts", 422, "duplicate_field").json(r#"{"type":"a","type":"b"}"#).field("type"),
        invalid("unknown_field", &|p| p["colour"] = json!(1)).field("colour"),
        invalid("unknown_field", &|p| p["actor"]["name"] = json!("A")).field("actor.name"),
        invalid("unknown_field", &|p| p["idempotency_key"] = json!("k")).field("idempotency_key"),
        invalid("unsupported_field", &|p| p["audience"] = json!({"topic": "x"})).field("audience.topic"),
        invalid("unsupported_field", &|p| p["audience"] = json!({"audience_id": "x"})).field("audience.audience_id"),
        invalid("unsupported_field", &|p| p["publish_at"] = json!("2030-01-01T00:00:00Z")).field("publish_at"),
        invalid("unsupported_field", &|p| p["collapse_key"] = json!("k")).field("collapse_key"),
        invalid("unsupported_field", &|p| p["priority"] = json!(1)).field("priority"),
        invalid("invalid_value", &|p| p["type"] = json!(1)).field("type"),
        invalid("invalid_value", &|p| p["type"] = json!("")).field("type").limit(128, 0),
        invalid("invalid_value", &|p| p["type"] = json!("x".repeat(129))).field("type").limit(128, 129),
        invalid("invalid_value", &|p| p["type"] = json!("a\nb")).field("type"),
        invalid("invalid_value", &|p| p["actor"]["id"] = json!("")).field("actor.id").limit(128, 0),
        invalid("invalid_value", &|p| p["thread_key"] = json!("x".repeat(257))).field("thread_key").limit(256, 257),
        invalid("invalid_value", &|p| p["data"] = json!([])).field("data"),
        invalid("invalid_value", &|p| p["data"] = json!("text")).field("data"),
        invalid("data_too_large", &|p| p["data"] = json!({"a": "x".repeat(65_536)}))
            .field("data")
            .limit(65_536, 65_544),
        invalid("empty_audience", &|p| p["audience"]["viewers"] = json!([])).field("audience.viewers"),
        invalid("audience_too_large", &|p| p["audience"]["viewers"] = json!(many(10_001)))
            .field("audience.viewers")
            .limit(10_000, 10_001),
        invalid("invalid_viewer_id", &|p| p["audience"]["viewers"] = json!(["a", ""]))
            .field("audience.viewers[1]")
            .limit(128, 0),
        invalid("invalid_viewer_id", &|p| p["audience"]["viewers"] = json!(["x".repeat(129)]))
            .field("audience.viewers[0]")
            .limit(128, 129),
        invalid("invalid_viewer_id", &|p| p["audience"]["viewers"] = json!(["a\u{7}b"])).field("audience.viewers[0]"),
        invalid("invalid_viewer_id", &|p| p["audience"]["viewers"] = json!([".."])).field("audience.viewers[0]"),
        invalid("invalid_value", &|p| p["ttl_seconds"] = json!(-1)).field("ttl_seconds"),
        invalid("invalid_value", &|p| p["ttl_seconds"] = json!(1.5)).field("ttl_seconds"),
        invalid("expiry_in_past", &|p| p["ttl_seconds"] = json!(0)).field("ttl_seconds").limit(1, 0),
        invalid("expiry_too_far", &|p| p["ttl_seconds"] = json!(31_622_401))
            .field("ttl_seconds")
            .limit(31_622_400, 31_622_401),
        invalid("expiry_too_far", &|p| p["ttl_seconds"] = json!(u64::MAX))
            .field("ttl_seconds")
            .limit(31_622_400, u64::MAX),
        invalid("expiry_in_past", &|p| p["expires_at"] = json!("2020-01-01T00:00:00Z")).field("expires_at"),
        invalid("invalid_time", &|p| p["expires_at"] = json!("tomorrow")).field("expires_at"),
        invalid("ambiguous_expiry", &|p| {
            p["ttl_seconds"] = json!(1);
            p["expires_at"] = json!("2030-01-01T00:00:00Z");
        })
        .field("ttl_seconds"),
        bad(422, "invalid_idempotency_key", post(|_| {})).header("idempotency-key", "\"\"").field("Idempotency-Key"),
        bad(422, "invalid_idempotency_key", post(|_| {})).header("idempotency-key", "\"a").field("Idempotency-Key"),
        bad(422, "invalid_idempotency_key", post(|_| {}))
            .header("idempotency-key", "x".repeat(256))
            .field("Idempotency-Key"),
        case("POST", "/v1/posts?dry_run=yes", 422, "invalid_value").json(post(|_| {})).field("dry_run"),
        case("POST", "/v1/posts?dryrun=true", 422, "unknown_parameter").json(post(|_| {})).field("dryrun"),
        case("POST", "/v1/posts", 415, "unsupported_media_type").field("Content-Type"),
        case("POST", "/v1/posts", 415, "unsupported_media_type")
            .header("content-type", "text/plain")
            .field("Content-Type"),
        case("POST", "/v1/posts", 413, "body_too_large")
            .json("x".repeat(2_097_153))
            .field("body")
            .limit(2_097_152, 2_097_153),
        case("POST", "/v1/posts/batch", 422, "empty_batch").json(json!({"posts": []})).field("posts"),
        case("POST", "/v1/posts/batch", 422, "batch_too_large")
            .json(json!({"posts": vec![0; 1_001]}))
            .field("posts")
            .limit(1_000, 1_001),
        case("POST", "/v1/posts/batch", 422, "unknown_field").json(json!({"posts": [], "x": 1})).field("x"),
        case("POST", "/v1/posts/batch", 422, "invalid_idempotency_key")
            .header("idempotency-key", "k")
            .json(json!({"posts": [post(|_| {})]}))
            .field("Idempotency-Key"),
    ]
}

fn bad_edits(id: &str) -> Vec<Case> {
    let path = || format!("/v1/posts/{id}");
    let edit = |status, code, body: Value| case("PATCH", path(), status, code).header("if-match", "*").json(body);
    let unknown = "/v1/posts/019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b";
    vec![
        case("PATCH", path(), 428, "precondition_required").json(json!({"type": "x"})).field("If-Match"),
        case("PATCH", path(), 412, "version_mismatch")
            .header("if-match", "\"9\"")
            .json(json!({"type": "x"}))
            .field("If-Match"),
        case("PATCH", path(), 412, "version_mismatch")
            .header("if-match", "\"9\"")
            .json(json!({"data": {}}))
            .field("If-Match"),
        case("PATCH", path(), 412, "version_mismatch").header("if-match", "W/\"1\"").json(json!({})).field("If-Match"),
        case("PATCH", path(), 400, "invalid_if_match").header("if-match", "1").json(json!({})).field("If-Match"),
        case("PATCH", path(), 415, "unsupported_media_type").header("if-match", "*").field("Content-Type"),
        edit(422, "unknown_field", json!({"actor": null})).field("actor"),
        edit(422, "invalid_value", json!({"type": null})).field("type"),
        edit(422, "invalid_value", json!({"data": [1]})).field("data"),
        edit(422, "invalid_time", json!({"expires_at": "x"})).field("expires_at"),
        edit(422, "expiry_in_past", json!({"expires_at": "2020-01-01T00:00:00Z"})).field("expires_at"),
        edit(422, "data_too_large", json!({"data": {"a": "x".repeat(65_536)}})).field("data").limit(65_536, 65_560),
        case("PATCH", unknown, 404, "post_not_found").header("if-match", "*").json(json!({"data": {}})),
        case("DELETE", unknown, 404, "post_not_found"),
        case("DELETE", path(), 412, "version_mismatch").header("if-match", "\"2\"").field("If-Match"),
        case("GET", unknown, 404, "post_not_found"),
        case("GET", "/v1/posts/7", 422, "invalid_post_id").field("post_id"),
        case("GET", "/v1/posts/7d444840-9dc0-11d1-b245-5ffdce74fad2", 422, "invalid_post_id").field("post_id"),
        case("GET", format!("{}?wait=61", path()), 422, "invalid_wait").field("wait").limit(60, 61),
        case("GET", format!("{}?wait=soon", path()), 422, "invalid_wait").field("wait"),
        case("GET", "/v1/posts/%ff", 400, "malformed_path"),
    ]
}

fn bad_reads(cursor: &str, token: &str) -> Vec<Case> {
    let get = |path: String, status, code| case("GET", format!("/v1/viewers/{path}"), status, code);
    let long = "x".repeat(129);
    vec![
        get(format!("{long}/revision"), 422, "invalid_viewer_id").field("viewer_id").limit(128, 129),
        get("%00/revision".into(), 422, "invalid_viewer_id").field("viewer_id"),
        get("%ff/inbox".into(), 400, "malformed_path"),
        get("a%0Ab/inbox".into(), 422, "invalid_viewer_id").field("viewer_id"),
        get("ben/revision?since=x".into(), 400, "invalid_token").field("since"),
        get(format!("ben/revision?since={cursor}"), 400, "invalid_token").field("since"),
        get("ben/revision?wait=61".into(), 422, "invalid_wait").field("wait").limit(60, 61),
        get(format!("ben/revision?since={token}&since={token}"), 422, "repeated_parameter").field("since"),
        get("ben/revision?sinse=x".into(), 422, "unknown_parameter").field("sinse"),
        get("ben/revision?since=%ff".into(), 400, "malformed_query"),
        get("ben/inbox?limit=0".into(), 422, "invalid_limit").field("limit").limit(1, 0),
        get("ben/inbox?limit=101".into(), 422, "invalid_limit").field("limit").limit(100, 101),
        get("ben/inbox?limit=-1".into(), 422, "invalid_limit").field("limit"),
        get("ben/inbox?limit=".into(), 422, "invalid_limit").field("limit"),
        get("ben/inbox?cursor=x".into(), 400, "invalid_cursor").field("cursor"),
        get(format!("ben/inbox?cursor={token}"), 400, "invalid_cursor").field("cursor"),
        get(format!("ben/inbox?cursor={cursor}&archived=true"), 400, "invalid_cursor").field("cursor"),
        get("ben/inbox?archived=1".into(), 422, "invalid_value").field("archived"),
        get("ben/changes".into(), 422, "missing_parameter").field("since"),
        get("ben/changes?since=x".into(), 400, "invalid_token").field("since"),
        case("POST", "/v1/revisions/query", 422, "empty_query").json(json!({"viewers": []})).field("viewers"),
        case("POST", "/v1/revisions/query", 422, "query_too_large")
            .json(json!({"viewers": vec![json!({"viewer_id": "a"}); 1_001]}))
            .field("viewers")
            .limit(1_000, 1_001),
        case("POST", "/v1/revisions/query", 400, "invalid_token")
            .json(json!({"viewers": [{"viewer_id": "a", "token": "x"}]}))
            .field("viewers[0].token"),
        case("POST", "/v1/revisions/query", 422, "invalid_viewer_id")
            .json(json!({"viewers": [{"viewer_id": "a"}, {"viewer_id": ""}]}))
            .field("viewers[1].viewer_id")
            .limit(128, 0),
        case("GET", "/nowhere", 404, "route_not_found"),
        case("GET", "/v1/viewers//revision/", 404, "route_not_found"),
        case("POST", "/v1/viewers/ben/inbox", 405, "method_not_allowed"),
        case("BREW", "/v1/posts", 405, "method_not_allowed"),
        case("GET", "/metrics?x=1", 422, "unknown_parameter").field("x"),
    ]
}

fn bad_marks(id: &str) -> Vec<Case> {
    let one = |path: String, status, code| case("PUT", format!("/v1/viewers/ben/inbox/{path}"), status, code);
    let many = |status, code, body: Value| case("POST", "/v1/viewers/ben/inbox/marks", status, code).json(body);
    vec![
        one("x/read".into(), 422, "invalid_post_id").field("post_id"),
        one(format!("{id}/starred"), 422, "invalid_mark").field("mark"),
        one(format!("{id}/read?since=x"), 400, "invalid_token").field("since"),
        one("019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b/read".into(), 404, "item_not_found"),
        case("PUT", format!("/v1/viewers/cleo/inbox/{id}/read"), 404, "item_not_found"),
        many(422, "ambiguous_marks", json!({"mark": "read"})).field("post_ids"),
        many(422, "ambiguous_marks", json!({"mark": "read", "post_ids": [id], "through": "x"})).field("post_ids"),
        many(422, "invalid_mark", json!({"mark": "liked", "post_ids": [id]})).field("mark"),
        many(422, "empty_marks", json!({"mark": "read", "post_ids": []})).field("post_ids"),
        many(422, "invalid_post_id", json!({"mark": "read", "post_ids": [id, "x"]})).field("post_ids[1]"),
        many(422, "too_many_marks", json!({"mark": "read", "post_ids": vec![id; 1_001]}))
            .field("post_ids")
            .limit(1_000, 1_001),
        many(400, "invalid_token", json!({"mark": "read", "through": "x"})).field("through"),
        many(422, "invalid_value", json!({"mark": "read", "value": "yes", "post_ids": [id]})).field("value"),
    ]
}

#[tokio::test]
async fn bad_input_is_told_what_is_wrong_and_harms_nothing() {
    let service = Service::start().await;
    let id = service.publish("first", &["ben"]).await;
    service.publish("second", &["ben"]).await;
    let page = service.get("/v1/viewers/ben/inbox?limit=1").await.json();
    let (token, cursor) = (page["token"].as_str().expect("a token"), page["next_cursor"].as_str().expect("a cursor"));
    for case in [bad_posts(), bad_edits(&id), bad_reads(cursor, token), bad_marks(&id)].into_iter().flatten() {
        case.check(&service).await;
    }
    assert_eq!(
        service.get(&format!("/v1/viewers/ben/revision?since={token}")).await.status,
        304,
        "nothing has changed"
    );
    assert_eq!(service.get("/v1/viewers/ben/inbox").await.titles("items"), ["second", "first"]);
    service.publish("third", &["ben"]).await;
    assert_eq!(service.get("/v1/viewers/ben/inbox").await.titles("items")[0], "third");
    let metrics = service.get("/metrics").await.text;
    assert!(metrics.contains("status=\"4xx\"") && !metrics.contains("status=\"5xx\""), "{metrics}");
}

#[tokio::test]
async fn expiries_and_viewers_are_told_with_their_value_and_place() {
    let (data, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(Time::from_millis(1_800_000_000_000)));
    let service = Service::start_on(data, clock, |config| config.publish.viewer_id_bytes_max = 4).await;
    let id = service.publish("first", &["ben"]).await;
    let path = format!("/v1/posts/{id}");
    let edit = |code, at: &str| case("PATCH", &path, 422, code).header("if-match", "*").json(json!({"expires_at": at}));
    let send = |code, body: Value| case("POST", "/v1/posts", 422, code).json(body);
    let until = |at: &str| post(|p| p["expires_at"] = json!(at));
    let (past, far) = ("2020-01-01T00:00:00Z", "9999-12-31T23:59:59Z");
    for case in [
        send("expiry_too_far", until(far)).field("expires_at").limit(31_622_400, 251_602_300_799),
        edit("expiry_too_far", far).field("expires_at").limit(31_622_400, 251_602_300_799),
        send("expiry_in_past", until(past)).field("expires_at"),
        edit("expiry_in_past", past).field("expires_at"),
        send("invalid_viewer_id", post(|p| p["audience"]["viewers"] = json!(["ben", "ben", "cleo", "dora!"])))
            .field("audience.viewers[3]")
            .limit(4, 5),
    ] {
        case.check(&service).await;
    }
    let detail = service.post("/v1/posts", until(past)).await.json()["detail"].to_string();
    assert!(detail.contains(past) && detail.contains("2027-01-15T08:00:00Z"), "what it is, and what is now: {detail}");
}

/// What comes on a connection, until there is `end` in it.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut bytes)).await;
        let read = read.expect("in time").expect("readable");
        assert_ne!(read, 0, "closed after {text:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    text
}

#[tokio::test]
async fn whoever_sends_ten_times_too_much_before_reading_is_told_so() {
    let service = Service::start().await;
    let size: usize = 10 * 2_097_152;
    let announced = format!("content-length: {size}");
    let chunk = format!("{size:x}\r\n");
    for (framing, before, after) in
        [(announced.as_str(), "", ""), ("transfer-encoding: chunked", chunk.as_str(), "\r\n0\r\n\r\n")]
    {
        let mut stream = TcpStream::connect(service.running.addr).await.expect("connects");
        let head = format!("POST /v1/posts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{framing}\r\n\r\n");
        for part in [head.as_bytes(), before.as_bytes(), &vec![b' '; size], after.as_bytes()] {
            stream.write_all(part).await.expect("taken");
        }
        let answer = read_until(&mut stream, "\"limit\":2097152").await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"body_too_large\""), "{answer}");
        // Nothing of the body is left in the way of what comes next.
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("taken");
        read_until(&mut stream, "HTTP/1.1 200 ").await;
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let service = Service::start_with(|config| config.http.body_read_timeout_ms = 100).await;
    let mut stream = TcpStream::connect(service.running.addr).await.expect("connects");
    let head = "POST /v1/posts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered and closed");
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"body_timeout\""), "{answer}");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let service = Service::start_with(|config| config.http.header_read_timeout_ms = 100).await;
    let mut stream = TcpStream::connect(service.running.addr).await.expect("connects");
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.expect("sent");
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    closed.expect("in time").expect("closed");
    assert_eq!(service.get("/livez").await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let service = Service::start_with(|config| config.http.connections_max = 1).await;
    let ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = TcpStream::connect(service.running.addr).await.expect("connects");
    first.write_all(ask).await.expect("sent");
    assert_ne!(first.read(&mut [0; 1024]).await.expect("answered"), 0);
    let mut second = TcpStream::connect(service.running.addr).await.expect("waits in the kernel");
    second.write_all(ask).await.expect("sent");
    assert!(second.try_read(&mut [0; 1024]).is_err(), "not answered yet");
    drop(first);
    assert_ne!(second.read(&mut [0; 1024]).await.expect("answered"), 0);
}
