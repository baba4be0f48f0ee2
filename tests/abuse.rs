//! Slow and greedy clients against the real binary: they are cut, and others are served meanwhile. With
//! `FANFOLD_TEST_MODE=cluster` it is an API node.

#[path = "support/process.rs"]
mod process;
mod support;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use process::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// How long a client may take for its head, for its body, and to go on reading its answer.
const TIMEOUT_MS: u64 = 1_000;
/// Bad clients of a kind at the same time.
const CLIENTS: usize = 100;
/// What each has to say that sends a body and does not end it.
const ENDLESS_BYTES: usize = 1 << 20;
/// How many of those there is room for.
const ENDLESS_HELD: usize = 8;
/// Those that do not read: fewer, since each has the kernel keep some MB of answers.
const DEAF: usize = 20;

/// What is abused, and what of a cluster stands behind it.
struct Abused {
    service: Service,
    _cluster: Option<support::Service>,
}

impl Deref for Abused {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

async fn start(dir: &tempfile::TempDir, more: &[(&str, &str)]) -> Abused {
    let cluster = if support::is_cluster() { Some(support::Service::start().await) } else { None };
    let joined = cluster.as_ref().map(|cluster| support::settings(cluster.config())).unwrap_or_default();
    let timeout = TIMEOUT_MS.to_string();
    let settings = [
        ("FANFOLD_HTTP__HEADER_READ_TIMEOUT_MS", timeout.as_str()),
        ("FANFOLD_HTTP__BODY_READ_TIMEOUT_MS", timeout.as_str()),
        ("FANFOLD_HTTP__ANSWER_WRITE_TIMEOUT_MS", timeout.as_str()),
    ];
    let joined = joined.iter().map(|(name, value)| (*name, value.as_str()));
    let settings: Vec<_> = settings.into_iter().chain(joined).chain(more.iter().copied()).collect();
    Abused { service: Service::start(dir.path(), &settings).await, _cluster: cluster }
}

async fn connect(service: &Service) -> TcpStream {
    connect_by(service, TcpSocket::new_v4().expect("a socket")).await
}

async fn connect_by(service: &Service, socket: TcpSocket) -> TcpStream {
    let address = service.url().trim_start_matches("http://").parse().expect("an address");
    socket.connect(address).await.expect("connected")
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
    let cut = tokio::time::timeout(Duration::from_secs(60), from.read_to_end(&mut told)).await;
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

/// Asks and asks and reads nothing until it is cut; how long that took.
async fn ask_only(mut stream: TcpStream) -> Duration {
    let begun = Instant::now();
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20);
    // As long as it is connected it can only wait to send: the service takes no further requests while answers wait.
    let asking = async { while stream.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_millis(TIMEOUT_MS * 20), asking).await.expect("cut");
    begun.elapsed()
}

/// Asks once and is answered; the connection, which may be kept.
async fn is_answered(mut stream: TcpStream) -> TcpStream {
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut status = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut status)).await;
    read.expect("in time").expect("answered");
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

/// Stops the good client: it was served all the while.
async fn was_served(good: JoinHandle<(u32, Duration)>, stop: &AtomicBool, beside: &str) {
    stop.store(true, Ordering::Relaxed);
    let (polls, longest) = good.await.expect("served all the while");
    println!("{polls} polls beside {beside}, the longest {longest:?}");
    assert!(polls > 10 && longest < Duration::from_secs(5), "{polls} polls, the longest {longest:?}");
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
    was_served(good, &stop, &format!("{} slow clients", 4 * CLIENTS)).await;
    service.service.stop().await;
}

/// The most memory that a process has had, in bytes.
fn peak_bytes(service: &Service) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("readable");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1_024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_end_take_no_more_memory_than_they_may() {
    let dir = tempfile::tempdir().expect("a folder");
    let (each, all) = (ENDLESS_BYTES.to_string(), (ENDLESS_HELD * ENDLESS_BYTES).to_string());
    let limits = [
        ("FANFOLD_HTTP__REQUEST_BODY_BYTES_MAX", each.as_str()),
        ("FANFOLD_HTTP__BATCH_BODY_BYTES_MAX", each.as_str()),
        ("FANFOLD_HTTP__BODIES_BYTES_MAX", all.as_str()),
        // All of them have sent all that they send before the first is cut.
        ("FANFOLD_HTTP__BODY_READ_TIMEOUT_MS", "20000"),
    ];
    let service = start(&dir, &limits).await;
    let stop = Arc::new(AtomicBool::new(false));
    let good = tokio::spawn(good_client(service.url(), Arc::clone(&stop)));
    let head = "POST /v1/posts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ";
    let endless = Arc::new(format!("{head}{ENDLESS_BYTES}\r\n\r\n{}", " ".repeat(ENDLESS_BYTES - 1)));
    let before = peak_bytes(&service);
    let mut bad = Vec::new();
    for _ in 0..CLIENTS {
        let (stream, endless) = (connect(&service).await, Arc::clone(&endless));
        bad.push(tokio::spawn(async move { misbehave(stream, &endless, b"").await }));
    }
    let (mut refused, mut held) = (0, 0);
    for client in bad {
        let told = client.await.expect("cut in time");
        if told.starts_with("HTTP/1.1 503") {
            assert!(told.contains("\"overloaded\"") && told.contains("retry-after: "), "{told}");
            refused += 1;
        } else {
            assert!(told.starts_with("HTTP/1.1 408"), "{told}");
            held += 1;
        }
    }
    assert!((1..=ENDLESS_HELD).contains(&held), "{held} were held, {refused} refused");
    let grown = peak_bytes(&service).saturating_sub(before);
    println!("{held} bodies were held, {refused} refused; memory grew by {grown} bytes");
    assert!(grown < CLIENTS * ENDLESS_BYTES / 2, "{grown} bytes");
    was_served(good, &stop, &format!("{CLIENTS} bodies that do not end")).await;
    service.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_are_cut_and_others_are_served() {
    let dir = tempfile::tempdir().expect("a folder");
    // No other limit can be what cuts them.
    let patient = [("FANFOLD_HTTP__HEADER_READ_TIMEOUT_MS", "600000"), ("FANFOLD_HTTP__IDLE_TIMEOUT_S", "3600")];
    let service = start(&dir, &patient).await;
    let stop = Arc::new(AtomicBool::new(false));
    let good = tokio::spawn(good_client(service.url(), Arc::clone(&stop)));
    let mut bad = Vec::new();
    for _ in 0..DEAF {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Little room on this side: what the service has to say stays with it.
        socket.set_recv_buffer_size(4_096).expect("set");
        socket.set_send_buffer_size(4_096).expect("set");
        bad.push(tokio::spawn(ask_only(connect_by(&service, socket).await)));
    }
    for client in bad {
        let lasted = client.await.expect("cut in time");
        assert!(lasted >= Duration::from_millis(TIMEOUT_MS), "cut before its time: {lasted:?}");
    }
    was_served(good, &stop, &format!("{DEAF} clients that do not read")).await;
    service.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_of_one_address_keep_nobody_else_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let limits = [("FANFOLD_HTTP__CONNECTIONS_MAX", "50"), ("FANFOLD_HTTP__CONNECTIONS_PER_ADDRESS_MAX", "40")];
    let service = start(&dir, &limits).await;
    let stop = Arc::new(AtomicBool::new(false));
    let good = tokio::spawn(good_client(service.url(), Arc::clone(&stop)));
    let elsewhere = async || {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("bound");
        connect_by(&service, socket).await
    };
    // Half of them have asked for something and may be idle for long.
    let mut kept = Vec::new();
    for _ in 0..30 {
        kept.push(is_answered(elsewhere().await).await);
    }
    // The others say nothing: for ten there is a place until they are cut, the rest are closed at once.
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(tokio::spawn(misbehave(elsewhere().await, "", b"")));
    }
    // Who comes only now gets in beside them.
    is_answered(connect(&service).await).await;
    for client in silent {
        assert_eq!(client.await.expect("cut in time"), "");
    }
    was_served(good, &stop, "60 idle connections of another address").await;
    drop(kept);
    service.service.stop().await;
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
    service.service.stop().await;
}
