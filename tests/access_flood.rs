//! A flood of different wrong keys: they cost neither memory nor anybody else's access. A program of its own, since it
//! looks at its own memory.

mod support;

use fanfold::access::credential::KeySecret;
use fanfold::access::{KeyBook, KeyText, NewKey};
use fanfold::clock::Clock;
use fanfold::config::{self, Overrides};
use fanfold::domain::{KeyId, Scope};
use fanfold::ports::Path;
use support::Service;

/// A million, where the code is optimized; without, that takes minutes and shows no more.
const ATTEMPTS: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("readable");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}

fn wrong(n: u64, secret: KeySecret) -> KeyText {
    KeyText { id: KeyId::from_bytes(n.to_be_bytes()), secret }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_wrong_keys_take_no_memory_and_keep_nobody_out() {
    let service = Service::start().await;
    let mut config = config::load(&Overrides::default(), []).expect("the defaults").access;
    config.unknown_keys_cached_max = 10_000;
    let book = KeyBook::new(&service.running.backends.store, &config, Clock::system());
    let scopes = [Scope::Publish].into_iter().collect();
    let order = NewKey { name: "shop".into(), producer: None, scopes, ttl: None };
    let (key, secret) = (book.create(&order).await.expect("made").text, KeySecret::random());
    let before = resident_bytes();
    let flood = |range: std::ops::Range<u64>| {
        let book = book.clone();
        tokio::spawn(async move {
            for n in range {
                let error = book.verify(&wrong(n, secret)).await.expect_err("there is no such key");
                assert_eq!(error.code(), "key_invalid");
                if n % 10_000 == 0 {
                    book.verify(&key).await.expect("a right key goes on working");
                }
            }
        })
    };
    let halves = [flood(0..ATTEMPTS / 2), flood(ATTEMPTS / 2..ATTEMPTS)];
    for half in halves {
        half.await.expect("no panic");
    }
    let grown = resident_bytes().saturating_sub(before);
    // As many as are remembered take about 2 MB; the rest is for what else the process does meanwhile.
    assert!(grown < 24 << 20, "{grown} bytes for {ATTEMPTS} wrong keys");

    let reads = || service.running.backends.store.reads(Path::Access);
    assert!(reads() >= ATTEMPTS, "each was looked up once");
    book.verify(&wrong(ATTEMPTS, secret)).await.expect_err("unknown");
    let known = reads();
    for _ in 0..1_000 {
        book.verify(&wrong(ATTEMPTS, secret)).await.expect_err("known to be wrong");
    }
    println!(
        "{grown} bytes more after {ATTEMPTS} wrong keys; {} reads for one of them a thousand times",
        reads() - known
    );
    assert_eq!(reads(), known, "one that is known to be wrong costs no read");
}
