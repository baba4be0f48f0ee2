//! The real binary at the edges of its life: what keeps it from starting, what it says, and how it stops.

#[path = "support/command.rs"]
mod command;
#[path = "operators/figures.rs"]
mod figures;
#[path = "support/process.rs"]
mod process;
#[path = "support/wait.rs"]
mod wait;

use std::path::Path;
use std::process::Output;

use command::{CLI, NO_SETTINGS, command, std_command};
use process::Service;
use serde_json::{Value, json};

fn serve(data: &Path, args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = std_command(CLI, ["serve", "--log", "warn", "--data"], settings.iter().copied());
    command.arg(data).args(args).output().expect("the binary runs")
}

/// It ended with `code`, printed nothing to stdout, and said each of `words` on stderr without a panic.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(!stderr.contains("panicked"), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing in: {stderr}");
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("bound").to_string();
    refused(&serve(folder().path(), &["--listen", &addr], &[]), 69, &["http.listen", &addr, "in use"]);
}

#[test]
fn an_address_beyond_loopback_needs_the_flag() {
    let output = serve(folder().path(), &["--listen", "0.0.0.0:0"], &[]);
    refused(&output, 64, &["0.0.0.0:0", "--insecure-listen-beyond-loopback"]);
}

#[test]
fn a_folder_of_a_newer_release_is_left_alone() {
    let dir = folder();
    std::fs::write(dir.path().join("FORMAT"), "99\n").expect("written");
    refused(&serve(dir.path(), &["--listen", "127.0.0.1:0"], &[]), 69, &["store.data", "format 99", "newer release"]);
    assert!(!dir.path().join("store").exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = folder();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "").expect("written");
    refused(&serve(&file, &["--listen", "127.0.0.1:0"], &[]), 69, &["store.data", "a-file", "cannot be created"]);
}

#[test]
fn an_unknown_setting_names_the_nearest_one() {
    let dir = folder();
    let file = dir.path().join("my.toml");
    std::fs::write(&file, "[fanout]\nchunk_sise = 5\n").expect("written");
    let output = serve(dir.path(), &["--config", file.to_str().expect("a path")], &[]);
    refused(&output, 64, &["fanout.chunk_sise", "fanout.chunk_size"]);
    let output = serve(dir.path(), &[], &[("FANFOLD_FANOUT__CHUNK_SISE", "5")]);
    refused(&output, 64, &["FANFOLD_FANOUT__CHUNK_SISE", "FANFOLD_FANOUT__CHUNK_SIZE"]);
    let output = serve(dir.path(), &[], &[("FANFOLD_FANOUT__CHUNK_SIZE", "0")]);
    refused(&output, 64, &["fanout.chunk_size", "1"]);
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_its_holder_named() {
    let dir = folder();
    let service = Service::start(dir.path(), &[]).await;
    let output = serve(dir.path(), &["--listen", "127.0.0.1:0"], &[]);
    refused(&output, 69, &["store.data", "in use by another process", &service.pid().to_string()]);
    service.stop().await;
}

async fn publish(client: &reqwest::Client, service: &Service, posts: &[Value]) -> Vec<Value> {
    let body = json!({ "posts": posts });
    let answer = client.post(format!("{}/v1/posts/batch", service.url())).json(&body).send().await.expect("answered");
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.expect("json");
    answer["results"].as_array().expect("a list").clone()
}

async fn get(client: &reqwest::Client, service: &Service, path: &str) -> (u16, Value) {
    let answer = client.get(format!("{}{path}", service.url())).send().await.expect("answered");
    (answer.status().as_u16(), answer.json().await.expect("json"))
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_refuses_writes_and_serves_reads() {
    let dir = folder();
    let client = reqwest::Client::new();
    let post = json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}});
    let service = Service::start(dir.path(), &[]).await;
    let id = publish(&client, &service, std::slice::from_ref(&post)).await[0]["post"]["post_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    assert_eq!(get(&client, &service, &format!("/v1/posts/{id}?wait=30")).await.1["fanout"]["status"], "done");
    service.stop().await;

    let more_than_is_free = [("FANFOLD_STORE__FREE_BYTES_MIN", "1099511627776")];
    let service = Service::start(dir.path(), &more_than_is_free).await;
    let refused = publish(&client, &service, &[post]).await;
    assert_eq!((&refused[0]["status"], &refused[0]["problem"]["code"]), (&json!(507), &json!("storage_full")));
    let (status, inbox) = get(&client, &service, "/v1/viewers/ben/inbox").await;
    assert_eq!((status, inbox["items"].as_array().map(Vec::len)), (200, Some(1)));
    service.stop().await;
}

#[tokio::test]
async fn a_write_that_fails_is_never_accepted_and_what_was_accepted_stays() {
    let dir = folder();
    let client = reqwest::Client::new();
    // No file may grow beyond 66 MiB. The journal will, with memtables this large; its write fails half way, as on a full
    // disk.
    let large_memtables = [("FANFOLD_STORE__MEMTABLE_BYTES", "200000000")];
    let service = Service::start_limited(dir.path(), 66 << 20, &large_memtables).await;
    // Random, since the journal compresses.
    let filler: String = (0..3_700).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    let post = json!({"type": "t", "data": {"filler": filler}, "audience": {"viewers": ["ben"]}});
    let (mut accepted, mut failed) = (Vec::new(), None);
    for _ in 0..40 {
        for result in publish(&client, &service, &vec![post.clone(); 60]).await {
            match result["status"].as_u64() {
                Some(202) => accepted.push(result["post"]["post_id"].as_str().expect("an id").to_owned()),
                _ => failed = Some(result["problem"].clone()),
            }
        }
        if failed.is_some() {
            break;
        }
    }
    let problem = failed.expect("the limit was reached");
    assert!(["storage_full", "store_failed"].contains(&problem["code"].as_str().expect("a code")), "{problem}");
    let (status, ready) = get(&client, &service, "/readyz").await;
    assert_eq!((status, &ready["code"]), (503, &json!("not_ready")));
    service.stop().await;

    let service = Service::start(dir.path(), &[]).await;
    for id in &accepted {
        let (status, post) = get(&client, &service, &format!("/v1/posts/{id}?wait=30")).await;
        assert_eq!((status, &post["fanout"]["status"]), (200, &json!("done")), "{id} was accepted");
    }
    service.stop().await;
}

/// Figures to watch that only a cluster has: of a broker, of the store's clock, of other API nodes.
const OF_A_CLUSTER: [&str; 4] =
    ["fanfold_queue_parked_messages", "fanfold_clock_skew_seconds", "fanfold_quota_shared", "fanfold_quota_nodes"];

async fn metrics(client: &reqwest::Client, service: &Service) -> String {
    let answer = client.get(format!("{}/metrics", service.url())).send().await.expect("answered");
    assert_eq!(answer.status(), 200);
    answer.text().await.expect("text")
}

#[tokio::test]
async fn the_figures_to_watch_are_there_but_for_those_of_a_cluster_and_of_what_went_wrong() {
    let (dir, client) = (folder(), reqwest::Client::new());
    // However slow the machine, nothing is driven again.
    let service = Service::start(dir.path(), &[("FANFOLD_RELAY__REDRIVE_AFTER_MS", "3600000")]).await;
    // But in its first round the relay drives all that it finds: that is to be over.
    let is_over = async || figures::has(&metrics(&client, &service).await, "fanfold_fanout_lag_seconds");
    wait::eventually("the relay has looked at all there is", is_over).await;
    let post = json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}});
    let id = publish(&client, &service, &[post]).await[0]["post"]["post_id"].as_str().expect("an id").to_owned();
    assert_eq!(get(&client, &service, &format!("/v1/posts/{id}?wait=30")).await.1["fanout"]["status"], "done");
    assert_eq!(get(&client, &service, "/v1/viewers/ben/revision").await.0, 200);

    let (page, table) = (metrics(&client, &service).await, figures::table());
    for name in OF_A_CLUSTER {
        assert!(table.iter().any(|figure| figure.name == name), "{name} is not in the table");
    }
    for figure in table {
        let name = figure.name.as_str();
        let left_out = OF_A_CLUSTER.contains(&name) || figures::counts_what_goes_wrong(name);
        assert_eq!(figures::has(&page, name), !left_out, "{name} in\n{page}");
    }
    service.stop().await;
}

/// A pipe whose reader has gone.
fn pipe_that_nobody_reads() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer
}

#[tokio::test]
async fn a_service_whose_words_nobody_reads_goes_on() {
    let dir = folder();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = free.local_addr().expect("bound").to_string();
    drop(free);
    let mut child = command(CLI, ["serve", "--log", "info", "--listen", &addr, "--data"], NO_SETTINGS)
        .arg(dir.path())
        .stdout(pipe_that_nobody_reads())
        .stderr(pipe_that_nobody_reads())
        .spawn()
        .expect("the binary starts");
    let client = reqwest::Client::new();
    let url = format!("http://{addr}/readyz");
    wait::eventually("it serves", async || client.get(&url).send().await.is_ok_and(|a| a.status() == 200)).await;
    // What it says at its end finds no reader either.
    let pid = rustix::process::Pid::from_raw(child.id().expect("running").cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    let status = tokio::time::timeout(wait::PATIENCE, child.wait()).await.expect("in time").expect("waited");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn connections_leave_the_store_its_descriptors() {
    let (dir, logs) = (folder(), folder());
    let log = logs.path().join("log");
    let service = Service::start_logged("ulimit -n 1700; ulimit -S -n 700", &log, dir.path(), &[]).await;
    let told = std::fs::read_to_string(&log).expect("a log");
    for word in ["http.connections_max", "limit=1700", "connections_max=10000", "accepted=100"] {
        assert!(told.contains(word), "{word:?} is missing in: {told}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.pid())).expect("its limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit of files");
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1700", "1700"], "soft and hard");
    let client = reqwest::Client::new();
    let post = json!({"type": "t", "data": {}, "audience": {"viewers": ["ben"]}});
    assert_eq!(publish(&client, &service, &[post]).await[0]["status"], 202);
    // More than it accepts, and none of them says a word: they wait, and what is connected is served.
    let addr = service.url().trim_start_matches("http://").to_owned();
    let idle: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(&addr).expect("connected")).collect();
    assert_eq!(get(&client, &service, "/v1/viewers/ben/inbox").await.0, 200);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", service.pid())).expect("its descriptors").count();
    assert!(descriptors < 300, "{descriptors} are open");
    drop(idle);
    service.stop().await;
}

#[test]
fn a_start_with_hardly_a_descriptor_for_connections_is_refused() {
    let dir = folder();
    let shell = ["-c", "ulimit -n 1000; exec \"$0\" \"$@\"", CLI, "serve", "--log", "warn"];
    let output = std_command("bash", shell, NO_SETTINGS)
        .args(["--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .output()
        .expect("the binary runs");
    refused(&output, 69, &["http.connections_max", "1000 files", "1664 at least", "ulimit"]);
    assert!(!dir.path().join("data").exists(), "nothing was begun");
}

#[tokio::test]
async fn a_stop_amid_a_fan_out_tells_what_is_left_and_the_next_start_finishes_it() {
    let (dir, logs) = (folder(), folder());
    let log = logs.path().join("log");
    // A task for each viewer, one at a time, and no time for any when it is told to stop.
    let settings = [
        ("FANFOLD_LOG", "info"),
        ("FANFOLD_FANOUT__CHUNK_SIZE", "1"),
        ("FANFOLD_FANOUT__WORKERS_BULK", "1"),
        ("FANFOLD_HTTP__SHUTDOWN_GRACE_S", "0"),
    ];
    let service = Service::start_logged(":", &log, dir.path(), &settings).await;
    let client = reqwest::Client::new();
    let viewers: Vec<String> = (0..1_000).map(|n| format!("viewer-{n}")).collect();
    let post = json!({"type": "t", "data": {}, "audience": {"viewers": viewers}});
    let id = publish(&client, &service, &[post]).await[0]["post"]["post_id"].as_str().expect("an id").to_owned();
    service.stop().await;

    let told = std::fs::read_to_string(&log).expect("a log");
    let line = told.lines().find(|line| line.contains("stopped;")).unwrap_or_else(|| panic!("not told: {told}"));
    let number = |name: &str| -> usize {
        let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("{name} is missing in: {line}"));
        rest.split(' ').next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("{name} is no number in: {line}"))
    };
    assert_eq!(number("changes_pending"), 1, "{line}");
    let (queued, cut) = (number("tasks_queued"), number("tasks_cut"));
    assert!(queued > 0 && cut <= 1 && queued + cut <= viewers.len(), "{line}");

    let service = Service::start(dir.path(), &[]).await;
    let (_, post) = get(&client, &service, &format!("/v1/posts/{id}?wait=60")).await;
    assert_eq!((&post["fanout"]["status"], &post["fanout"]["written"]), (&json!("done"), &json!(1_000)), "{post}");
    for viewer in &viewers {
        let (status, inbox) = get(&client, &service, &format!("/v1/viewers/{viewer}/inbox")).await;
        assert_eq!((status, inbox["items"].as_array().map(Vec::len)), (200, Some(1)), "{viewer}");
    }
    service.stop().await;
}
