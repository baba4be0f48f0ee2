//! The load: producers and viewers at work, and what they have in common.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::producer::Producer;
use crate::viewer::Device;

const PRODUCERS: usize = 3;
const VIEWERS: usize = 16;
/// How long a client waits for an answer before it asks again.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long after the load has ended its last requests may take to be settled.
const SETTLE: Duration = Duration::from_secs(60);

/// An answer that settles a request. Anything else (no answer, 5xx, 429) leaves it open.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

/// What all clients share.
pub struct World {
    pub urls: Vec<String>,
    pub client: reqwest::Client,
    stop: CancellationToken,
    /// Half of the devices stop asking while this is set, so that they hold what they held.
    quiet: AtomicBool,
    /// Nobody edits or retracts.
    pub no_edits: bool,
    /// Things that must not happen, as they are met.
    problems: Mutex<Vec<String>>,
    /// Requests that were answered.
    pub answered: AtomicUsize,
    /// Requests that got no answer that settled them.
    pub unanswered: AtomicUsize,
}

impl World {
    fn new(urls: Vec<String>, no_edits: bool) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_idle_timeout(Duration::from_secs(5));
        Self {
            urls,
            client: client.build().expect("a client"),
            stop: CancellationToken::new(),
            quiet: AtomicBool::new(false),
            no_edits,
            problems: Mutex::default(),
            answered: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
        }
    }

    pub fn request(&self, method: &str, node: usize, path: &str) -> RequestBuilder {
        let method: Method = method.parse().expect("a method");
        self.client.request(method, format!("{}{path}", self.urls[node % self.urls.len()]))
    }

    /// Sends a request; `None` if its outcome is open.
    pub async fn send(&self, request: RequestBuilder) -> Option<Answer> {
        let answer = async {
            let response = request.send().await.ok()?;
            let status = response.status().as_u16();
            if status >= 500 || status == 429 {
                let text = response.text().await.unwrap_or_default();
                if status == 500 {
                    self.problem(format!("500: {text}"));
                }
                return None;
            }
            let text = response.text().await.ok()?;
            let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).ok()? };
            Some(Answer { status, body })
        };
        let answer = answer.await;
        let count = if answer.is_some() { &self.answered } else { &self.unanswered };
        count.fetch_add(1, Ordering::Relaxed);
        answer
    }

    pub fn problem(&self, what: String) {
        let mut problems = self.problems.lock().expect("not poisoned");
        if problems.len() < 50 {
            problems.push(what);
        }
    }

    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().expect("not poisoned").clone()
    }

    pub fn is_over(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    /// A pause of the load; ends early with it.
    pub async fn pause(&self, time: Duration) {
        let _ = self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
    }
}

/// The names of all viewers.
pub fn viewer_names() -> Vec<String> {
    (0..VIEWERS).map(|n| format!("viewer-{n}")).collect()
}

/// The load while it runs.
pub struct Load {
    pub world: std::sync::Arc<World>,
    producers: Vec<tokio::task::JoinHandle<Producer>>,
    devices: Vec<tokio::task::JoinHandle<Device>>,
}

/// What is known when it has ended.
pub struct Known {
    pub world: std::sync::Arc<World>,
    pub producers: Vec<Producer>,
    pub devices: Vec<Device>,
}

impl Load {
    /// Begins. Every viewer has two devices: one that asks often and marks, one at another node that asks seldom.
    pub fn start(urls: Vec<String>, seed: u64, no_edits: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = std::sync::Arc::new(World::new(urls, no_edits));
        let producers = (0..PRODUCERS).map(|n| {
            let (world, producer) = (world.clone(), Producer::new(n, rng.random()));
            tokio::spawn(async move { producer.work(&world, SETTLE).await })
        });
        let producers: Vec<_> = producers.collect();
        let names = viewer_names().into_iter();
        let devices = names.flat_map(|name| [(name.clone(), false), (name, true)]).map(|(name, second)| {
            let (world, device) = (world.clone(), Device::new(name, second, rng.random()));
            tokio::spawn(async move { device.work(&world, SETTLE).await })
        });
        let devices: Vec<_> = devices.collect();
        Self { world, producers, devices }
    }

    /// From here on the second devices ask for nothing, or ask again.
    pub fn quiet(&self, yes: bool) {
        self.world.quiet.store(yes, Ordering::SeqCst);
    }

    /// Ends it at once, when nobody is to know what became of it.
    pub fn abort(self) {
        self.producers.iter().for_each(tokio::task::JoinHandle::abort);
        self.devices.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// Ends it: what is open is tried until it is settled, nothing new is begun.
    pub async fn end(self) -> Known {
        let begun = Instant::now();
        self.world.stop.cancel();
        let mut known = Known { world: self.world, producers: Vec::new(), devices: Vec::new() };
        for producer in self.producers {
            known.producers.push(producer.await.expect("a producer's task"));
        }
        for device in self.devices {
            known.devices.push(device.await.expect("a device's task"));
        }
        if begun.elapsed() > SETTLE {
            known.world.problem("requests of the load could not be settled in time".into());
        }
        known
    }
}

/// How many of each were accepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepted {
    pub posts: usize,
    pub edits: usize,
    pub retracts: usize,
    pub marks: usize,
}

impl Accepted {
    pub fn total(self) -> usize {
        self.posts + self.edits + self.retracts + self.marks
    }
}

impl Known {
    pub fn accepted(&self) -> Accepted {
        let mut accepted = Accepted::default();
        for producer in &self.producers {
            accepted.posts += producer.accepted.posts;
            accepted.edits += producer.accepted.edits;
            accepted.retracts += producer.accepted.retracts;
        }
        accepted.marks = self.devices.iter().map(|device| device.marked).sum();
        accepted
    }
}
