//! The audit log, of a service as a process of its own: what is done is in it, whoever hangs up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fanfold::access::KeyText;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::command::{CLI, command};
use crate::process::Service;
use crate::ring::SigningKey;
use crate::wait::{eventually, until};

/// What bodies have and no line may have.
const CANARY: &str = "BODY-CANARY";

/// A service that writes its log to a file.
struct Logged {
    service: Service,
    log: PathBuf,
    client: reqwest::Client,
}

/// A key that is made while the service is not there yet.
async fn key(dir: &Path, name: &str, scopes: &str) -> KeyText {
    let args = ["keys", "create", "--local", "--name", name, "--scope", scopes];
    let made = command(CLI, args, [("FANFOLD_DATA", "data")]).current_dir(dir).output().await;
    let made = made.expect("the binary runs");
    KeyText::parse(String::from_utf8_lossy(&made.stdout).trim()).unwrap_or_else(|| panic!("{made:?}"))
}

impl Logged {
    async fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        let log = dir.join("log");
        // Who asks for warnings has the audit log all the same.
        let own = [("FANFOLD_LOG", "warn"), ("NO_COLOR", "1")];
        let settings: Vec<_> = own.iter().chain(settings).copied().collect();
        let service = Service::start_logged(":", &log, &dir.join("data"), &settings).await;
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { service, log, client }
    }

    async fn ask(&self, key: &KeyText, method: &str, path: &str, body: Value) -> reqwest::Response {
        let method = method.parse().expect("a method");
        let ask = self.client.request(method, format!("{}{path}", self.service.url())).bearer_auth(key.reveal());
        let ask = if body.is_null() { ask } else { ask.json(&body) };
        ask.header("if-match", "*").send().await.expect("answered")
    }

    async fn json(&self, key: &KeyText, path: &str) -> Value {
        let answer = self.ask(key, "GET", path, Value::Null).await;
        serde_json::from_str(&answer.text().await.expect("text")).expect("JSON")
    }

    /// What a request is answered with, which must have that status.
    async fn done(&self, key: &KeyText, method: &str, path: &str, body: Value, status: u16) -> Value {
        let answer = self.ask(key, method, path, body).await;
        let (told, text) = (answer.status(), answer.text().await.expect("text"));
        assert_eq!(told, status, "{method} {path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Sends a request and hangs up without waiting for its answer.
    async fn hang_up(&self, key: &KeyText, method: &str, path: &str) {
        let mut stream = TcpStream::connect(self.service.url().trim_start_matches("http://")).await.expect("connected");
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", key.reveal());
        stream.write_all(head.as_bytes()).await.expect("sent");
    }

    fn lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).expect("UTF-8");
        log.lines().filter(|line| line.contains("audit: ")).map(str::to_owned).collect()
    }

    fn has(&self, parts: &[&str]) -> bool {
        self.lines().iter().any(|line| parts.iter().all(|part| line.contains(part)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_is_charged_and_audited_all_the_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let shop = key(dir.path(), "shop", "publish,read").await;
    let (admin, spare) = (key(dir.path(), "ops", "admin").await, key(dir.path(), "spare", "read").await);
    let quota = [("FANFOLD_QUOTA__ROWS_PER_S", "1"), ("FANFOLD_QUOTA__ROWS_BURST", "100000")];
    let settings: Vec<_> = quota.into_iter().chain([("FANFOLD_ACCESS__MODE", "on")]).collect();
    let service = Logged::start(dir.path(), &settings).await;
    let begun = std::time::Instant::now();
    let viewers: Vec<String> = (0..1_000).map(|n| format!("v{n}")).collect();
    let body = json!({"type": "t", "audience": {"viewers": viewers}});
    let posted = service.ask(&shop, "POST", "/v1/posts", body).await.text().await.expect("text");
    let posted: Value = serde_json::from_str(&posted).expect("JSON");
    let id = posted["post_id"].as_str().expect("an id").to_owned();

    let path = format!("/v1/posts/{id}");
    // Once more only where the first was not even read: a repeat beside it would pay as well.
    let retracted = async || service.json(&shop, &path).await["state"] == "retracted";
    eventually("a retract is done whose client has gone", async || {
        service.hang_up(&shop, "DELETE", &path).await;
        until("it is done", Duration::from_secs(4), retracted).await.is_ok()
    })
    .await;
    let line = ["event=\"post_retracted\"", &id, &shop.id.to_string()];
    eventually("and is in the audit log", async || service.has(&line)).await;
    let rows_left = async || {
        let told = service.ask(&shop, "GET", &path, Value::Null).await;
        let told = told.headers()["ratelimit"].to_str().expect("visible").to_owned();
        let left = told.split("r=").nth(1).and_then(|rest| rest.split(';').next()).expect("what is left");
        left.parse::<u64>().expect("a number")
    };
    let left = rows_left().await;
    assert!(left <= 98_001 + begun.elapsed().as_secs(), "the post and its retract are paid, {left} rows are left");
    // A repeat that began before the first was done, on a busy machine, has paid as well: no more than that.
    eventually("who has paid is in the audit log, and nobody has paid more than the post's rows", async || {
        let retracts = service.lines().iter().filter(|text| line.iter().all(|part| text.contains(part))).count();
        rows_left().await >= 99_000_u64.saturating_sub(1_000 * retracts as u64)
    })
    .await;

    let path = format!("/v1/keys/{}", spare.id);
    eventually("a key is revoked whose revoker has gone", async || {
        service.hang_up(&admin, "DELETE", &path).await;
        let keys = service.json(&admin, "/v1/keys").await;
        let mut keys = keys["keys"].as_array().expect("a list").iter();
        keys.any(|key| key["key_id"] == spare.id.to_string() && key["state"] == "revoked")
    })
    .await;
    let line = ["event=\"key_revoked\"", &spare.id.to_string(), &admin.id.to_string()];
    eventually("and that is in the audit log", async || service.has(&line)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_audited_as_published_once_however_often_it_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let shop = key(dir.path(), "shop", "publish").await;
    let service = Logged::start(dir.path(), &[("FANFOLD_ACCESS__MODE", "on")]).await;
    let publish = async |kind: &str| {
        let post = json!({"type": kind, "audience": {"viewers": ["ben"]}, "idempotency_key": "k1"});
        let mut told = service.done(&shop, "POST", "/v1/posts/batch", json!({"posts": [post]}), 200).await;
        told["results"][0].take()
    };
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(text(&publish("t").await["post"], "post_id").to_owned());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(publish("u").await["status"], 422, "the key of another request");
    let lines = service.lines();
    let count = |event: &str| lines.iter().filter(|line| line.contains(event) && line.contains(&ids[0])).count();
    let counts = ["event=\"post_published\"", "event=\"post_repeated\""].map(count);
    assert_eq!((lines.len(), counts), (3, [1, 2]), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_posts_of_others_is_audited() {
    let dir = tempfile::tempdir().expect("a folder");
    let shop = key(dir.path(), "shop", "publish,read").await;
    let other = key(dir.path(), "other", "publish,read").await;
    let service = Logged::start(dir.path(), &[("FANFOLD_ACCESS__MODE", "on")]).await;
    let body = json!({"type": "t", "audience": {"viewers": ["ben"]}});
    let posted = service.ask(&shop, "POST", "/v1/posts", body).await.text().await.expect("text");
    let posted: Value = serde_json::from_str(&posted).expect("JSON");
    let theirs = posted["post_id"].as_str().expect("an id").to_owned();
    let nobodys = "019ab0c4-6f80-7a3c-8f5e-0c1d2e3f4a5b";
    // The first digit written in another way is the same post.
    let written = format!("%30{}", &theirs[1..]);
    for (method, id, body) in [
        ("GET", theirs.as_str(), Value::Null),
        ("GET", &written, Value::Null),
        ("PATCH", &theirs, json!({"type": "mine"})),
        ("DELETE", &theirs, Value::Null),
        ("GET", nobodys, Value::Null),
    ] {
        let before = service.lines().len();
        let answer = service.ask(&other, method, &format!("/v1/posts/{id}"), body).await;
        assert_eq!(answer.status(), 404, "{method} {id}");
        let lines = service.lines();
        assert_eq!(lines.len(), before + 1, "{method} {id}: {lines:?}");
        let post = if id == nobodys { nobodys } else { &theirs };
        let by = format!("by=\"{}\"", other.id);
        for part in ["event=\"refused\"", "code=\"post_not_found\"", &format!("post={post}"), &by, "peer=127.0.0.1"] {
            assert!(lines[before].contains(part), "{part} is not in {}", lines[before]);
        }
        assert!(!lines[before].contains(&other.reveal_secret()));
    }
    let before = service.lines().len();
    assert_eq!(service.ask(&shop, "GET", &format!("/v1/posts/{theirs}"), Value::Null).await.status(), 200);
    assert_eq!(service.lines().len(), before, "one's own is no attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_until_their_key_is_revoked_is_audited_as_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let backend = key(dir.path(), "backend", "viewers").await;
    let (admin, scraper) = (key(dir.path(), "ops", "admin").await, key(dir.path(), "scraper", "metrics").await);
    let shop = key(dir.path(), "shop", "publish").await;
    let service = Logged::start(dir.path(), &[("FANFOLD_ACCESS__MODE", "on")]).await;
    let page = service.json(&backend, "/v1/viewers/ben/inbox").await;
    let path = format!("/v1/viewers/ben/revision?since={}&wait=60", page["token"].as_str().expect("a token"));
    let revoking = async {
        eventually("a poll waits", async || {
            let told = service.ask(&scraper, "GET", "/metrics", Value::Null).await.text().await.expect("text");
            told.lines().any(|line| line == "fanfold_waiters 1")
        })
        .await;
        let revoked = service.ask(&admin, "DELETE", &format!("/v1/keys/{}", backend.id), Value::Null).await;
        assert_eq!(revoked.status(), 200);
        let post = json!({"type": "t", "audience": {"viewers": ["ben"]}});
        assert_eq!(service.ask(&shop, "POST", "/v1/posts", post).await.status(), 202);
    };
    let (told, ()) = tokio::join!(service.ask(&backend, "GET", &path, Value::Null), revoking);
    assert_eq!(told.status(), 401);
    let told = told.headers()["x-request-id"].to_str().expect("visible").to_owned();
    let lines = service.lines();
    let refused: Vec<_> = lines.iter().filter(|line| line.contains("event=\"refused\"")).collect();
    assert_eq!(refused.len(), 1, "{lines:?}");
    for part in ["code=\"key_revoked\"", "route=\"/v1/viewers/{viewer_id}/revision\"", &told, "peer=127.0.0.1"] {
        assert!(refused[0].contains(part), "{part} is not in {}", refused[0]);
    }
}

/// A text of an answer.
fn text<'a>(told: &'a Value, name: &str) -> &'a str {
    told[name].as_str().unwrap_or_else(|| panic!("no {name} in {told}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_is_audited_by_its_key_and_neither_bodies_nor_secrets_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let (shop, app) = (key(dir.path(), "shop", "publish").await, key(dir.path(), "app", "tokens").await);
    let admin = key(dir.path(), "ops", "admin").await;
    let shared = SigningKey::generate("hs", Algorithm::HS256).jwk();
    let jwks = json!({"keys": [shared]}).to_string();
    let settings = [("FANFOLD_ACCESS__MODE", "on"), ("FANFOLD_ACCESS__JWKS", jwks.as_str())];
    let service = Logged::start(dir.path(), &settings).await;

    let post = json!({"type": "t", "data": {"title": CANARY}, "audience": {"viewers": ["ben"]}});
    let single = service.done(&shop, "POST", "/v1/posts", post.clone(), 202).await;
    let batch = service.done(&shop, "POST", "/v1/posts/batch", json!({"posts": [post, post]}), 200).await;
    let path = format!("/v1/posts/{}", text(&single, "post_id"));
    let edited = service.done(&shop, "PATCH", &path, json!({"data": {"more": CANARY}}), 202).await;
    let retracted = service.done(&shop, "DELETE", &path, Value::Null, 202).await;
    let order = json!({"viewer_id": "ben", "ttl_seconds": 60});
    let token = service.done(&app, "POST", "/v1/viewer-tokens", order, 201).await;
    let order = json!({"name": "till", "producer": "shop", "scopes": ["publish", "read"]});
    let made = service.done(&admin, "POST", "/v1/keys", order, 201).await;
    let path = format!("/v1/keys/{}/rotate", text(&made, "key_id"));
    let successor = service.done(&admin, "POST", &path, json!({"overlap_seconds": 60}), 201).await["key"].take();
    let path = format!("/v1/keys/{}", text(&successor, "key_id"));
    service.done(&admin, "DELETE", &path, Value::Null, 200).await;

    let of_post = |event: &str, told: &Value| {
        let (id, version) = (text(told, "post_id"), &told["version"]);
        format!("event=\"{event}\" key={} producer=\"shop\" post={id} version={version}", shop.id)
    };
    let of_key = |event: &str, told: &Value| {
        let (by, id) = (admin.id, text(told, "key_id"));
        let what = "name=\"till\" producer=\"shop\" scopes=\"publish,read\"";
        format!("event=\"{event}\" by=\"{by}\" key={id} {what}")
    };
    let expected = [
        of_post("post_published", &single),
        of_post("post_published", &batch["results"][0]["post"]),
        of_post("post_published", &batch["results"][1]["post"]),
        of_post("post_edited", &edited),
        of_post("post_retracted", &retracted),
        format!("event=\"token_issued\" by=\"{}\" viewer=\"ben\" ttl_s=60", app.id),
        of_key("key_created", &made),
        format!("{} successor={}", of_key("key_rotated", &made), text(&successor, "key_id")),
        of_key("key_revoked", &successor),
    ];
    let lines = service.lines();
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for line in expected {
        // To its end: there is nothing more in it.
        let end = format!("audit: {line}");
        assert!(lines.iter().any(|told| told.ends_with(&end)), "{line} is not in {lines:?}");
    }

    let issued = [&made, &successor].map(|told| KeyText::parse(text(told, "secret_key")).expect("a key"));
    let mut secrets: Vec<String> = [shop, app, admin].iter().chain(&issued).map(KeyText::reveal_secret).collect();
    secrets.push(text(&token, "viewer_token").rsplit('.').next().expect("a signature").to_owned());
    secrets.extend([text(&shared, "k").to_owned(), CANARY.to_owned()]);
    let log = std::fs::read_to_string(&service.log).expect("UTF-8");
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret} is in {log}");
    }
}
