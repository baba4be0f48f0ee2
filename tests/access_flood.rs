//! A flood of different wrong keys against the real binary: they cost neither its memory nor anybody else's access.

#[path = "support/command.rs"]
mod command;
#[path = "support/process.rs"]
mod process;
#[path = "support/wait.rs"]
mod wait;

use std::ops::Range;

use command::{CLI, NO_SETTINGS, std_command};
use futures::future::join_all;
use process::Service;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Wrong keys that the service remembers, at most.
const REMEMBERED: u64 = 1_000;
/// Wrong keys before its memory is looked at. What it remembers is full many times over by then, and what grows at the
/// beginning only (buffers of connections, the allocator's own) has grown.
const FIRST: u64 = 20 * REMEMBERED;
/// The fewest that come then.
const LEAST: u64 = 100_000;
/// As many come. A million, where the code is optimized; without, that takes minutes and shows no more.
const ATTEMPTS: u64 = if cfg!(debug_assertions) { LEAST } else { 1_000_000 };

/// What moka allocates for an id that it keeps, at the least: the id behind its counts (24), the entry (24), its age
/// and state (64), its places in the two orders (40 + 2 * 24), and in the table a bucket (16) with a pointer to it (8).
const ENTRY_BYTES: u64 = 24 + 24 + 64 + 40 + 2 * 24 + 16 + 8;
/// By how much memory may grow: 11.2 MB, half of the 22.4 MB that the fewest attempts would add if all were remembered.
/// As many as are take 0.2 MB, and those were there before; the rest is for what else the service does meanwhile.
const GROWN_MAX: u64 = LEAST * ENTRY_BYTES / 2;

/// On which wrong keys come at the same time: more than there are places to look one up.
const CONNECTIONS: u64 = 20;
/// Requests that are sent before the first of their answers is read. Each number of attempts is a multiple of this
/// times the connections.
const BATCH: u64 = 50;

const POLL: &str = "/v1/viewers/ben/revision";
const READS: &str = "fanfold_store_reads_total{path=\"access\"}";
const REFUSED: &str = "fanfold_access_refused_total{code=\"key_invalid\"}";

/// A service with access control, and the right key of somebody.
struct Guarded {
    service: Service,
    key: String,
    client: reqwest::Client,
    _data: TempDir,
}

/// A connection for wrong keys.
struct Wire(BufReader<TcpStream>);

impl Guarded {
    /// One that remembers so many wrong keys, at most.
    async fn start(remembered: u64) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let args = ["keys", "create", "--name", "shop", "--scope", "viewers,metrics", "--local", "--data"];
        let made = std_command(CLI, args, NO_SETTINGS).arg(data.path()).output().expect("the binary runs");
        assert!(made.status.success(), "{made:?}");
        let key = String::from_utf8(made.stdout).expect("UTF-8").trim().to_owned();
        let remembered = remembered.to_string();
        let settings =
            [("FANFOLD_ACCESS__MODE", "on"), ("FANFOLD_ACCESS__UNKNOWN_KEYS_CACHED_MAX", remembered.as_str())];
        let service = Service::start(data.path(), &settings).await;
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { service, key, client, _data: data }
    }

    /// What is under `path`, for who has the right key.
    async fn get(&self, path: &str) -> String {
        let ask = self.client.get(format!("{}{path}", self.service.url())).bearer_auth(&self.key);
        let answer = ask.send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "a right key goes on working");
        answer.text().await.expect("a body")
    }

    /// One of its counters.
    async fn counter(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").await;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
    }

    /// Its memory without the files in it: the code of a debug build alone is larger than what is looked for.
    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.service.pid())).expect("readable");
        let told = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("what is resident");
        let kib: u64 = told.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// By how many bytes its memory grows with so many wrong keys, after the first ones.
    async fn grown_by(&self, attempts: u64) -> u64 {
        // The same ones from the first to the last look: what they take is no part of it.
        let mut wires = Vec::new();
        for _ in 0..CONNECTIONS {
            wires.push(Wire::to(&self.service).await);
        }
        self.flood(&mut wires, 0..FIRST).await;
        let before = self.resident_bytes();
        self.flood(&mut wires, FIRST..FIRST + attempts).await;
        let grown = self.resident_bytes().saturating_sub(before);
        println!("{before} bytes after {FIRST} wrong keys, {grown} more after {attempts} more of them");
        grown
    }

    /// Sends each of these wrong keys once, over all connections at the same time.
    async fn flood(&self, wires: &mut [Wire], keys: Range<u64>) {
        let share = (keys.end - keys.start) / CONNECTIONS;
        let starts = keys.step_by(share as usize);
        join_all(wires.iter_mut().zip(starts).map(|(wire, from)| self.knock(wire, from..from + share))).await;
    }

    /// Sends them over one connection, and now and then the right key beside them.
    async fn knock(&self, wire: &mut Wire, keys: Range<u64>) {
        for (round, from) in keys.step_by(BATCH as usize).enumerate() {
            wire.is_refused(from..from + BATCH).await;
            if round % 10 == 0 {
                self.get(POLL).await;
            }
        }
    }
}

impl Wire {
    async fn to(service: &Service) -> Self {
        let url = service.url();
        Self(BufReader::new(TcpStream::connect(url.trim_start_matches("http://")).await.expect("connected")))
    }

    /// Polls with each of these wrong keys.
    async fn is_refused(&mut self, keys: Range<u64>) {
        let secret = "ab".repeat(32);
        let head = format!("GET {POLL} HTTP/1.1\r\nhost: x\r\nauthorization");
        let poll = |id: u64| format!("{head}: Bearer ffk_{id:016x}_{secret}\r\n\r\n");
        let requests: String = keys.clone().map(poll).collect();
        self.0.write_all(requests.as_bytes()).await.expect("sent");
        for _ in keys {
            let (status, told) = self.answer().await;
            assert!(status == 401 && told.contains("key_invalid"), "{status} {told}");
        }
    }

    /// The status and the body of the next answer.
    async fn answer(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.0.read_line(&mut head).await.expect("readable");
            assert!(read > 0, "hung up after {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0_u8; length.parse().expect("a number")];
        self.0.read_exact(&mut body).await.expect("a body");
        (status, String::from_utf8(body).expect("UTF-8"))
    }
}

#[tokio::test]
async fn different_wrong_keys_take_no_memory_and_keep_nobody_out() {
    let guarded = Guarded::start(REMEMBERED).await;
    let grown = guarded.grown_by(ATTEMPTS).await;
    assert!(grown < GROWN_MAX, "{grown} bytes for {ATTEMPTS} wrong keys, may be {GROWN_MAX}");
    let sent = FIRST + ATTEMPTS;
    assert_eq!(guarded.counter(REFUSED).await, sent, "each was refused");
    assert!(guarded.counter(READS).await >= sent, "each was looked up once");

    let mut wire = Wire::to(&guarded.service).await;
    wire.is_refused(sent..sent + 1).await;
    // A full cache must have taken it for good: as many others follow as make it decide, and fewer than it has room for.
    for from in (sent + 1..sent + 1 + REMEMBERED * 3 / 4).step_by(BATCH as usize) {
        wire.is_refused(from..from + BATCH).await;
    }
    let known = guarded.counter(READS).await;
    for _ in 0..1_000 {
        wire.is_refused(sent..sent + 1).await;
    }
    let reads = guarded.counter(READS).await - known;
    // The right key, which asks for the counter, is read again every few seconds.
    assert!(reads <= 1, "one that is known to be wrong costs no read: {reads} for a thousand times");
    drop(wire);
    guarded.service.stop().await;
}

/// What the test above rests on: if wrong keys were all remembered, memory would grow by more than it allows.
#[tokio::test]
async fn wrong_keys_that_are_all_remembered_take_more_than_is_allowed() {
    let guarded = Guarded::start(10 * (FIRST + LEAST)).await;
    let grown = guarded.grown_by(LEAST).await;
    assert!(grown > GROWN_MAX, "{grown} bytes for {LEAST} wrong keys, and {GROWN_MAX} would be let pass");
    guarded.service.stop().await;
}
