//! Slow and greedy clients against the real binary: they are cut, and others are served meanwhile.

#[path = "support/process.rs"]
mod process;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use process::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a client may take for its head, and for its body.
const TIMEOUT_MS: u64 = 1_000;
/// Bad clients of a kind at the same time.
const CLIENTS: usize = 100;

async fn start(dir: &tempfile::TempDir, more: &[(&str, &str)]) -> Service {
    let timeout = TIMEOUT_MS.to_string();
    let settings = [
        ("FANFOLD_HTTP__HEADER_READ_TIMEOUT_MS", timeout.as_str()),
        ("FANFOLD_HTTP__BODY_READ_TIMEOUT_MS", timeout.as_str()),
    ];
    let settings: Vec<_> = settings.into_iter().chain(more.iter().copied()).collect();
    Service::start(dir.path(), &settings).await
}

async fn connect(service: &Service) -> TcpStream {
    let address = service.url();
    TcpStream::connect(address.trim_start_matches("http://")).await.expect("connected")
}

/// What one bad client does until it is cut; what it was told.
async fn misbehave(mut stream: TcpStream, head: &str, drip: &'static [u8]) -> String {
    let _ = stream.write_all(head.as_bytes()).await;
    let (mut from, mut to) = stream.into_split();
    let dripping = tokio::spawn(async move {
        // A byte at a time, so that the connection is never idle.
        while to.write_all(drip).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut told = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(30), from.read_to_end(&mut told)).await;
    dripping.abort();
    assert!(cut.is_ok(), "never cut: {}", String::from_utf8_lossy(&told));
    String::from_utf8_lossy(&told).into_owned()
}

/// Polls as a good client until told to stop; how many polls, and the longest.
async fn good_client(url: String, stop: Arc<AtomicBool>) -> (u32, Duration) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = client.get(format!("{url}/v1/viewers/ben/revision")).send().await.expect("answered");
        assert_eq!(answer.status(), 200);
        longest = longest.max(begun.elapsed());
        count += 1;
        // Its pace: often, but not so that it is itself the load.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (count, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_cut_and_others_are_served() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = start(&dir, &[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let good = tokio::spawn(good_client(service.url(), Arc::clone(&stop)));

    let slow_head = "GET /v1/viewers/ben/inbox HTTP/1.1\r\nhost: x\r\n";
    let slow_body =
        "POST /v1/posts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n";
    let chunked =
        "POST /v1/posts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut bad = Vec::new();
    for _ in 0..CLIENTS {
        bad.push(tokio::spawn(misbehave(connect(&service).await, slow_head, b"x: y\r\n")));
        bad.push(tokio::spawn(misbehave(connect(&service).await, "", b"")));
        bad.push(tokio::spawn(misbehave(connect(&service).await, slow_body, b" ")));
        bad.push(tokio::spawn(misbehave(connect(&service).await, chunked, b"1\r\n \r\n")));
    }
    let begun = Instant::now();
    let mut timeouts = 0;
    for client in bad {
        let told = client.await.expect("cut in time");
        timeouts += usize::from(told.starts_with("HTTP/1.1 408"));
    }
    assert!(timeouts >= CLIENTS, "slow bodies are told why: {timeouts}");
    assert!(begun.elapsed() < Duration::from_millis(TIMEOUT_MS * 20), "{:?}", begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    let (polls, longest) = good.await.expect("served all the while");
    println!("{polls} polls beside {} slow clients, the longest {longest:?}", 4 * CLIENTS);
    assert!(polls > 10 && longest < Duration::from_secs(5), "{polls} polls, the longest {longest:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_heads_are_refused_and_idle_connections_make_room() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = start(&dir, &[("FANFOLD_HTTP__CONNECTIONS_MAX", "50")]).await;
    for head in [
        format!("GET /livez HTTP/1.1\r\nhost: x\r\ncookie: {}\r\n\r\n", "c".repeat(200_000)),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "p".repeat(200_000)),
        format!("GET /livez HTTP/1.1\r\n{}\r\n\r\n", "a: b\r\n".repeat(20_000)),
    ] {
        let told = misbehave(connect(&service).await, &head, b"").await;
        // It may hang up before it has read all, and then the answer may be lost on its way.
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{told}");
    }
    // As many idle connections as may be, and some more: those are cut after a while, and then there is room.
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(connect(&service).await);
    }
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = tokio::time::timeout(
        Duration::from_millis(TIMEOUT_MS * 20),
        client.get(format!("{}/livez", service.url())).send(),
    );
    assert_eq!(answer.await.expect("in time").expect("answered").status(), 200);
    drop(idle);
    service.stop().await;
}
