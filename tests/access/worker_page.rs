//! The page of a worker: it is for whoever can connect, so it bears with whoever does, and tells them nothing.

use std::net::SocketAddr;
use std::time::Duration;

use fanfold::access::Access;
use fanfold::adapters::Queue;
use fanfold::adapters::rabbitmq::{RabbitOptions, RabbitQueue};
use fanfold::clock::Clock;
use fanfold::config::Config;
use fanfold::http::worker::{Probe, serve};
use fanfold::service::Backends;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::defaults;

struct Page {
    address: SocketAddr,
    _served: JoinSet<()>,
    _data: tempfile::TempDir,
}

/// Over what an embedded service has, with a broker that is not there.
async fn page(change: impl FnOnce(&mut Config)) -> Page {
    let data = tempfile::tempdir().expect("a folder");
    let mut config = defaults();
    config.store.data = data.path().to_owned();
    change(&mut config);
    let clock = Clock::system();
    let mut backends = Backends::open(&config, &clock).await.expect("opened");
    backends.queue = Queue::Rabbit(RabbitQueue::start(RabbitOptions {
        // Nothing listens on this port.
        url: "amqp://shop:hunter2@127.0.0.1:1/%2f".to_owned(),
        tls_ca_file: None,
        prefix: "none".to_owned(),
        tasks_max: 8,
        fair_queues: 2,
        prefetch: 1,
        window: 1,
        deliveries_max: 1,
        timeout: Duration::from_secs(1),
    }));
    let Backends { store, revisions, .. } = &backends;
    let access = Access::for_keys(&config.access, &config.quota, store, revisions, &clock).expect("off");
    let metrics = fanfold::telemetry::install_metrics();
    let probe = Probe { backends: backends.clone(), metrics, needs_queue: true, access };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut served = JoinSet::new();
    served.spawn(async move {
        serve(listener, probe, config, CancellationToken::new()).await.expect("an end in order");
    });
    Page { address, _served: served, _data: data }
}

impl Page {
    async fn get(&self, path: &str) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        client.get(format!("http://{}{path}", self.address)).send().await.expect("answered")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_cut_and_makes_room() {
    let page = page(|config| {
        config.http.header_read_timeout_ms = 1_000;
        config.worker.connections_max = 2;
    })
    .await;
    let mut silent = Vec::new();
    for head in ["", "GET /livez HTTP/1.1\r\nhost: x\r\n", "", ""] {
        let mut stream = TcpStream::connect(page.address).await.expect("connected");
        stream.write_all(head.as_bytes()).await.expect("sent");
        silent.push(stream);
    }
    let alive = page.get("/livez").await;
    assert_eq!(
        (alive.status().as_u16(), &alive.headers()["x-content-type-options"]),
        (200, &"nosniff".parse().expect("a value"))
    );
    for mut stream in silent {
        let cut = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut Vec::new())).await;
        assert!(cut.is_ok(), "never cut");
    }
    for path in ["/v1/posts", "/"] {
        assert_eq!(page.get(path).await.status(), 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_for_one_question_and_makes_room() {
    let page = page(|config| config.worker.connections_max = 1).await;
    let ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut kept = TcpStream::connect(page.address).await.expect("connected");
    kept.write_all(ask).await.expect("sent");
    let mut answer = String::new();
    // Sooner than an idle connection would be cut.
    let closed = tokio::time::timeout(Duration::from_secs(30), kept.read_to_string(&mut answer)).await;
    closed.expect("closed").expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
    let _ = kept.write_all(ask).await;
    assert_eq!(kept.read(&mut [0; 64]).await.unwrap_or(0), 0, "a second question is not answered");
    // It is still open on this side, and the only place is free.
    assert_eq!(page.get("/livez").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_named_and_no_more() {
    let page = page(|_| {}).await;
    for answer in futures::future::join_all((0..20).map(|_| page.get("/readyz"))).await {
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.text().await.expect("text"), "queue\n", "no address, no user");
    }
    let metrics = page.get("/metrics").await;
    assert_eq!(
        (metrics.status(), metrics.headers().contains_key("x-content-type-options")),
        (reqwest::StatusCode::OK, true)
    );
}
