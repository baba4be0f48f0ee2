//! The client commands against a running service: what they print and exit with, and what `replay` finds and overlooks.
//!
//! With `FANFOLD_TEST_MODE=cluster` the service is an API node with a fan-out worker and a relay beside it, each a
//! process, on the servers that `FANFOLD_TEST_*` names: the same tests, the other mode.

#[path = "support/command.rs"]
mod command;
#[path = "support/process.rs"]
mod process;
mod support;
#[path = "support/wait.rs"]
mod wait;

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;
use command::{CLI, FANOUT, NO_SETTINGS, RELAY, command};
use fanfold::config::{self, Overrides};
use fanfold::service::console;
use process::Service;
use serde_json::{Value, json};
use support::servers::Ground;
use support::{is_cluster, join_cluster};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// A post that nobody has published.
const UNKNOWN: &str = "019a0b1c-8d2e-7f30-9a41-5b6c7d8e9f00";

/// A command line against the service at `url`.
fn fanfold(url: &str, line: &str) -> Command {
    command(CLI, line.split_whitespace().chain(["--url", url]), NO_SETTINGS)
}

async fn run(url: &str, line: &str) -> Output {
    fanfold(url, line).output().await.expect("the binary runs")
}

/// What it printed for people; it must succeed.
async fn text(url: &str, line: &str) -> String {
    let output = run(url, line).await;
    assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What it printed for programs; it must succeed.
async fn document(url: &str, line: &str) -> Value {
    let printed = text(url, &format!("{line} --output json")).await;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{line}: {error}: {printed}"))
}

/// Publishes to everybody in `viewers` and waits for the fan-out; the post's id.
async fn publish(url: &str, title: &str, viewers: &str) -> String {
    let line = format!(r#"post --to {viewers} --type t --data {{"title":"{title}"}} --wait"#);
    document(url, &line).await["post_id"].as_str().expect("an id").to_owned()
}

/// A service, and a folder for its data and for files.
struct Stage {
    service: Service,
    folder: TempDir,
    // Beside an API node; an embedded service has none.
    _workers: Vec<Child>,
    // Dropped after the processes that use it.
    _ground: Option<Ground>,
}

impl Stage {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (ground, shared) = own_cluster(folder.path()).await;
        let shared = shared.iter().map(|(name, value)| (*name, value.as_str()));
        let settings: Vec<(&str, &str)> = shared.chain(settings.iter().copied()).collect();
        let service = Service::start(&folder.path().join("data"), &settings).await;
        let mut workers = Vec::new();
        for program in [FANOUT, RELAY].into_iter().filter(|_| ground.is_some()) {
            workers.push(worker(program, &settings).await);
        }
        Self { service, folder, _workers: workers, _ground: ground }
    }

    fn url(&self) -> String {
        self.service.url()
    }

    /// Writes an edge list; its path.
    fn graph(&self, name: &str, content: &[u8]) -> String {
        let file = self.folder.path().join(name);
        std::fs::write(&file, content).expect("written");
        file.to_str().expect("UTF-8").to_owned()
    }

    /// One person with so many friends, who have no other.
    fn star(&self, friends: u32) -> String {
        let edges: String = (1..=friends).map(|friend| format!("0 {friend}\n")).collect();
        self.graph("star.txt", edges.as_bytes())
    }
}

/// A cluster that nobody else uses, its schema in place, and what makes a process part of it. Nothing where the tests
/// run in embedded mode.
async fn own_cluster(folder: &Path) -> (Option<Ground>, Vec<(&'static str, String)>) {
    if !is_cluster() {
        return (None, Vec::new());
    }
    let mut config = config::load(&Overrides::default(), []).expect("the defaults");
    let ground = join_cluster(&mut config, folder);
    console::migrate(&config).await.expect("migrated");
    let mut settings = support::settings(&config);
    // The workers log as much as the service.
    settings.push(("FANFOLD_LOG", "warn".to_owned()));
    (Some(ground), settings)
}

/// A worker, once it is ready: one that cannot start fails the test at once. It is killed when dropped.
async fn worker(program: &str, settings: &[(&str, &str)]) -> Child {
    let mut command = command(program, ["--listen", "127.0.0.1:0"], settings.iter().copied());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
    // All that it prints is this line: nobody need read on.
    let said = BufReader::new(child.stdout.take().expect("piped")).lines().next_line().await.expect("readable");
    assert!(said.as_ref().is_some_and(|line| line.contains(" ready, ")), "{program} is not ready: {said:?}");
    child
}

/// Every row was found, once and where it belongs, and polls cost the store nothing.
fn assert_clean(report: &Value) {
    assert!(report["rows_expected"].as_u64().is_some_and(|rows| rows > 0), "{report}");
    assert_eq!(report["rows_found"], report["rows_expected"], "{report}");
    for none in ["rows_missing", "rows_duplicate", "rows_misdelivered", "rows_beyond_window", "rows_parked"] {
        assert_eq!(report[none], 0, "{none}: {report}");
    }
    assert_eq!((&report["unfinished_posts"], &report["store_reads_by_unchanged_polls"]), (&json!(0), &json!(0)));
    assert_eq!((&report["share_304"], &report["first_pages_share_304"]), (&json!(1.0), &json!(1.0)), "{report}");
}

#[tokio::test]
async fn a_replay_finds_every_row_also_beside_other_posts() {
    let stage = Stage::start(&[]).await;
    let first = document(&stage.url(), "replay --people 50 --timeout 2m").await;
    assert_clean(&first);
    assert_eq!(first["publish_to_visible_ms"]["samples"], first["posts"], "every post was followed");
    publish(&stage.url(), "other", "person-0,person-1").await;
    let second = document(&stage.url(), "replay --people 50 --timeout 2m").await;
    assert_clean(&second);
    assert_eq!(first["rows_expected"], second["rows_expected"], "the same graph");
    assert_ne!(first["run"], second["run"]);
}

#[tokio::test]
async fn a_replay_reads_edge_lists_plain_and_packed() {
    let stage = Stage::start(&[]).await;
    let edges = b"# three friends\n1 2\n2 3\n3 1\n1 2\n";
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(edges).expect("to memory");
    let packed = packed.finish().expect("to memory");
    for file in [stage.graph("edges.txt", edges), stage.graph("edges.txt.gz", &packed)] {
        let report = document(&stage.url(), &format!("replay --graph {file} --timeout 2m")).await;
        assert_clean(&report);
        assert_eq!((&report["people"], &report["posts"]), (&json!(3), &json!(3)), "{file}");
        assert_eq!((&report["rows_expected"], &report["polls"]), (&json!(6), &json!(9)), "{file}");
    }
}

#[tokio::test]
async fn commands_keep_to_the_limits_of_the_service() {
    let stage = Stage::start(&[
        ("FANFOLD_INBOX__PAGE_MAX", "3"),
        ("FANFOLD_INBOX__PAGE_DEFAULT", "2"),
        ("FANFOLD_HTTP__WAIT_S_MAX", "0"),
        ("FANFOLD_PUBLISH__AUDIENCE_MAX", "4"),
    ])
    .await;
    let report = document(&stage.url(), &format!("replay --graph {} --timeout 2m", stage.star(9))).await;
    assert_clean(&report);
    // Nine friends are three posts here, and each of them makes one.
    assert_eq!((&report["posts"], &report["rows_expected"]), (&json!(3 + 9), &json!(2 * 9)));
    for (line, count, more) in [("--all", 9, false), ("--limit 5", 5, true), ("--limit 2", 2, true)] {
        let inbox = document(&stage.url(), &format!("inbox person-0 {line}")).await;
        assert_eq!(inbox["items"].as_array().map(Vec::len), Some(count), "{line}");
        assert_eq!(inbox["next_cursor"].is_string(), more, "{line}");
    }
    let post = publish(&stage.url(), "Dawn", "ben").await;
    assert_eq!(document(&stage.url(), &format!("status {post} --wait")).await["fanout"]["status"], "done");
}

#[tokio::test]
async fn rows_beyond_the_inbox_limit_are_not_verified() {
    let stage = Stage::start(&[
        ("FANFOLD_INBOX__ITEMS_MAX", "2"),
        ("FANFOLD_INBOX__PAGE_MAX", "2"),
        ("FANFOLD_INBOX__PAGE_DEFAULT", "2"),
    ])
    .await;
    // Followers would look out in vain for what other posts have pushed out.
    let line = format!("replay --graph {} --sample 0 --timeout 2m", stage.star(5));
    let report = document(&stage.url(), &line).await;
    let rows = ["rows_expected", "rows_found", "rows_missing", "rows_beyond_window"].map(|name| &report[name]);
    assert_eq!(rows, [&json!(10), &json!(7), &json!(0), &json!(3)]);
    let table = text(&stage.url(), &line).await;
    assert!(table.ends_with("ok; 3 rows not verified (beyond the inbox limit)\n"), "{table}");

    // Others post so much that nothing of the run is served any more.
    let crowded = meddler(stage.url(), |uri, body| {
        if let Some(items) = inbox_items(uri, body) {
            *items = vec![json!({"post_id": "ffffffff-ffff-7fff-bfff-ffffffffffff"})];
            body["truncated"] = json!(true);
        }
    })
    .await;
    let (code, report) = checked(&crowded, &stage.star(5)).await;
    let rows = ["rows_found", "rows_missing", "rows_beyond_window"].map(|name| &report[name]);
    assert_eq!((code, rows), (Some(1), [&json!(0), &json!(0), &json!(10)]), "nothing was shown");
}

#[tokio::test]
async fn a_row_that_an_inbox_lacks_fails_the_run() {
    let stage = Stage::start(&[]).await;
    let (lost, told) = (AtomicBool::new(false), AtomicBool::new(false));
    let lossy = meddler(stage.url(), move |uri, body| {
        if let Some(items) = inbox_items(uri, body)
            && !lost.swap(true, Ordering::Relaxed)
        {
            items.remove(0);
        }
        // Where a row is lost because its chunk was parked, the fan-out calls itself done.
        if uri.path().starts_with("/v1/posts/")
            && body["fanout"]["status"] == "done"
            && !told.swap(true, Ordering::Relaxed)
        {
            let written = body["fanout"]["written"].as_u64().expect("a number");
            body["fanout"]["written"] = json!(written - 1);
            body["fanout"]["failed"] = json!(1);
        }
    })
    .await;
    let (code, report) = checked(&lossy, &stage.star(4)).await;
    let rows = ["rows_expected", "rows_found", "rows_missing", "rows_parked"].map(|name| &report[name]);
    assert_eq!((code, rows), (Some(1), [&json!(8), &json!(7), &json!(1), &json!(1)]));
}

#[tokio::test]
async fn a_row_that_an_inbox_has_twice_fails_the_run() {
    let stage = Stage::start(&[]).await;
    let twice = AtomicBool::new(false);
    let stammering = meddler(stage.url(), move |uri, body| {
        if let Some(items) = inbox_items(uri, body)
            && !twice.swap(true, Ordering::Relaxed)
        {
            items.push(items[0].clone());
        }
    })
    .await;
    let (code, report) = checked(&stammering, &stage.star(4)).await;
    let rows = ["rows_found", "rows_missing", "rows_duplicate"].map(|name| &report[name]);
    assert_eq!((code, rows), (Some(1), [&json!(8), &json!(0), &json!(1)]));
}

#[tokio::test]
async fn a_post_is_followed_marked_and_taken_back() {
    let stage = Stage::start(&[]).await;
    let url = stage.url();
    let dawn = publish(&url, "Dawn", "ben,cleo").await;
    let status = document(&url, &format!("status {dawn} --wait")).await;
    let fanout = json!({"status": "done", "total": 2, "written": 2, "skipped": 0, "failed": 0});
    assert_eq!((&status["state"], &status["fanout"]), (&json!("live"), &fanout));
    let told = text(&url, &format!("status {dawn} --wait")).await;
    assert_eq!(told, format!("{dawn}  live  done: 2 of 2 viewers have it\n"));

    let (none, one) = (json!({"value": 0, "capped": false}), json!({"value": 1, "capped": false}));
    let marked = document(&url, &format!("mark ben {dawn} read")).await;
    assert!(marked["item"]["read_at"].is_string(), "{marked}");
    assert_eq!((&marked["unseen_count"], &marked["unread_count"]), (&none, &none));
    let told = text(&url, &format!("mark ben {dawn} read --clear")).await;
    assert_eq!(told, format!("{dawn}  no longer read; 0 unseen, 1 unread\n"));

    let dusk = publish(&url, "Dusk", "ben").await;
    let marked = document(&url, "mark ben --all read").await;
    let ids = marked["post_ids"].as_array().expect("a list");
    assert!(ids.len() == 2 && ids.contains(&json!(dawn)) && ids.contains(&json!(dusk)), "{marked}");
    assert_eq!(marked["unread_count"], none);
    assert_eq!(text(&url, "mark ben --all read").await, "0 items marked read; 0 unseen, 0 unread\n");

    let inbox = document(&url, "inbox ben").await;
    let titles: Vec<_> = inbox["items"].as_array().expect("a list").iter().map(|item| &item["data"]["title"]).collect();
    assert_eq!(titles, [&json!("Dusk"), &json!("Dawn")]);
    assert!(inbox["token"].is_string() && inbox["next_cursor"].is_null(), "{inbox}");
    assert_eq!(document(&url, "inbox cleo").await["unseen_count"], one, "a mark is its viewer's alone");

    assert_eq!(text(&url, &format!("retract {dawn}")).await, format!("{dawn}  retracted\n"));
    assert_eq!(document(&url, &format!("retract {dawn}")).await["state"], "retracted", "once is enough");
    assert_eq!(text(&url, "inbox cleo").await, "0 shown; 0 unseen, 0 unread\n");
    assert_eq!(document(&url, &format!("status {dawn} --wait")).await["state"], "retracted");
    assert_eq!(run(&url, &format!("mark ben {dawn} seen")).await.status.code(), Some(64));
}

#[tokio::test]
async fn watch_shows_what_changes_and_what_does_not() {
    let stage = Stage::start(&[]).await;
    let url = stage.url();
    let line = "watch ben --interval 1 --wait 60 --count 2 --output json";
    let mut watch = fanfold(&url, line).stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut next = async || -> Value {
        let line = lines.next_line().await.expect("readable").expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let page = next().await;
    assert_eq!((&page["event"], &page["why"], &page["items"]), (&json!("page"), &json!("first"), &json!([])));
    let dawn = publish(&url, "Dawn", "ben").await;
    let came = next().await;
    assert_eq!((&came["event"], &came["status"]), (&json!("changes"), &json!(200)), "{came}");
    assert_eq!((&came["upserted"], &came["removed"]), (&json!([dawn]), &json!([])));
    assert_eq!(came["counts"]["unread"]["value"], 1);
    text(&url, &format!("retract {dawn}")).await;
    let went = next().await;
    assert_eq!((&went["upserted"], &went["removed"]), (&json!([]), &json!([dawn])), "{went}");
    let end = next().await;
    assert_eq!((&end["event"], &end["polls"], &end["unchanged"]), (&json!("end"), &json!(2), &json!(0)));
    assert!(watch.wait().await.expect("waited").success());

    let quiet = text(&url, "watch cleo --interval 1 --count 1 --output json").await;
    let told: Vec<Value> = quiet.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&told[1]["event"], &told[1]["status"]), (&json!("unchanged"), &json!(304)));
    assert_eq!((told.len(), &told[2]["share_304"]), (3, &json!(1.0)));
}

#[tokio::test]
async fn exit_codes_tell_a_script_what_to_do() {
    let stage = Stage::start(&[]).await;
    let url = stage.url();
    let lines = [format!("status {UNKNOWN}"), format!("retract {UNKNOWN}"), format!("mark ben {UNKNOWN} read")];
    for line in &lines {
        let output = run(&url, line).await;
        assert_eq!(output.status.code(), Some(64), "{line}: {output:?}");
        assert!(output.stdout.is_empty(), "{line}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("_not_found"), "{line}: {output:?}");
    }
    stage.service.stop().await;
    for line in lines.iter().map(String::as_str).chain(["mark ben --all read", "inbox ben", "replay --people 2"]) {
        let output = run(&url, line).await;
        assert_eq!(output.status.code(), Some(69), "{line}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect"), "{line}: {output:?}");
    }

    // A service that answers everything with the status that stands first in the path.
    let refusing = serve(Router::new().fallback(|uri: Uri| async move {
        let status = uri.path().split('/').nth(1).and_then(|status| status.parse::<u16>().ok());
        status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::IM_A_TEAPOT)
    }))
    .await;
    for (status, code) in [(401, 77), (403, 77), (404, 64), (410, 75), (422, 64), (429, 75), (500, 69), (503, 69)] {
        for line in ["inbox ben", "mark ben --all read", "replay --people 2"] {
            let output = run(&format!("{refusing}/{status}"), line).await;
            assert_eq!(output.status.code(), Some(code), "{status}, {line}: {output:?}");
        }
    }
}

/// Runs a replay that nothing but its check reads inboxes for; its exit code and its report.
async fn checked(url: &str, graph: &str) -> (Option<i32>, Value) {
    let line = format!("replay --graph {graph} --sample 0 --poll-rounds 0 --timeout 2m --output json");
    let output = run(url, &line).await;
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report)
}

/// The items of a page that has some.
fn inbox_items<'a>(uri: &Uri, body: &'a mut Value) -> Option<&'a mut Vec<Value>> {
    let items = body.get_mut("items")?.as_array_mut()?;
    (uri.path().ends_with("/inbox") && !items.is_empty()).then_some(items)
}

/// A service on a free port; its URL.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// Stands before the service at `to` and changes what it answers; its own URL.
async fn meddler(to: String, meddle: impl Fn(&Uri, &mut Value) + Send + Sync + 'static) -> String {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let shared = Arc::new((client, to, meddle));
    serve(Router::new().fallback(move |request: Request| {
        let shared = shared.clone();
        async move {
            let (client, to, meddle) = &*shared;
            pass_on(client, to, meddle, request).await
        }
    }))
    .await
}

async fn pass_on(
    client: &reqwest::Client,
    to: &str,
    meddle: &(impl Fn(&Uri, &mut Value) + Sync),
    request: Request,
) -> Response {
    let (mut head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    head.headers.remove(header::HOST);
    let call = client.request(head.method, format!("{to}{}", head.uri)).headers(head.headers).body(body);
    let answer = call.send().await.expect("an answer");
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    let bytes = answer.bytes().await.expect("a body");
    let bytes = match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut document) => {
            meddle(&head.uri, &mut document);
            Bytes::from(document.to_string())
        }
        // Metrics, and answers that have no body.
        Err(_) => bytes,
    };
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
