//! A producer that knows exactly what was accepted. What is not answered it sends again, as clients should: a publish
//! with its key, an edit with the version it expects, a retract as it is. So in the end nothing is in doubt but the few
//! posts that it publishes without a key and gives up.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::load::{Accepted, World, viewer_names};

/// A post that was accepted.
#[derive(Clone, Debug)]
pub struct Post {
    pub id: String,
    pub audience: Vec<String>,
    pub version: u64,
    pub number: u64,
    pub retracted: bool,
}

/// The body of a request that publishes a post of this number.
pub fn body(number: u64, audience: &[String]) -> Value {
    json!({ "type": "test.post", "data": { "number": number }, "audience": { "viewers": audience } })
}

/// A request that is sent until it is settled.
#[derive(Clone, Debug)]
enum Open {
    Publish { key: Option<String>, number: u64, audience: Vec<String> },
    Edit { at: usize, number: u64 },
    Retract { at: usize },
}

pub struct Producer {
    name: usize,
    rng: StdRng,
    pub posts: Vec<Post>,
    /// Published without a key and not answered: there or not.
    pub given_up: Vec<(u64, Vec<String>)>,
    pub accepted: Accepted,
    open: Option<Open>,
    numbers: u64,
    node: usize,
}

impl Producer {
    pub fn new(name: usize, seed: u64) -> Self {
        Self {
            name,
            rng: StdRng::seed_from_u64(seed),
            posts: Vec::new(),
            given_up: Vec::new(),
            accepted: Accepted::default(),
            open: None,
            // No two producers use the same number.
            numbers: name as u64 * 1_000_000,
            node: name,
        }
    }

    /// One that has nothing left to do.
    pub fn of(posts: Vec<Post>) -> Self {
        let accepted = Accepted { posts: posts.len(), ..Accepted::default() };
        Self { posts, accepted, ..Self::new(0, 0) }
    }

    /// Publishes, edits and retracts until the load ends; then settles what is open, for so long at most.
    pub async fn work(mut self, world: &World, settle: Duration) -> Self {
        while !world.is_over() {
            if self.open.is_none() {
                self.open = Some(self.choose(world.no_edits));
                self.node = self.rng.random_range(0..world.urls.len());
            }
            self.attempt(world).await;
            let pause = self.rng.random_range(20..80);
            world.pause(Duration::from_millis(pause)).await;
        }
        let deadline = Instant::now() + settle;
        while self.open.is_some() {
            self.attempt(world).await;
            if self.open.is_some() {
                // What a client waits before it tries again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if Instant::now() > deadline {
                world.problem(format!("producer {} could not settle {:?}", self.name, self.open));
                break;
            }
        }
        self
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn choose(&mut self, no_edits: bool) -> Open {
        let live: Vec<usize> = (0..self.posts.len()).filter(|at| !self.posts[*at].retracted).collect();
        let at = (!live.is_empty() && !no_edits).then(|| live[self.rng.random_range(0..live.len())]);
        match (at, self.rng.random_range(0..10)) {
            (Some(at), 0..3) => Open::Edit { at, number: self.next_number() },
            (Some(at), 3) => Open::Retract { at },
            _ => {
                let number = self.next_number();
                let mut audience = viewer_names();
                audience.retain(|_| self.rng.random_bool(0.5));
                audience.push("viewer-0".into());
                audience.sort();
                audience.dedup();
                let key = self.rng.random_bool(0.85).then(|| format!("key-{number}"));
                Open::Publish { key, number, audience }
            }
        }
    }

    async fn attempt(&mut self, world: &World) {
        let Some(open) = self.open.clone() else { return };
        let settled = match open {
            Open::Publish { key, number, audience } => self.publish(world, key, number, audience).await,
            Open::Edit { at, number } => self.edit(world, at, number).await,
            Open::Retract { at } => self.retract(world, at).await,
        };
        match settled {
            Some(()) => self.open = None,
            // Perhaps another node fares better.
            None => self.node += 1,
        }
    }

    async fn publish(&mut self, world: &World, key: Option<String>, number: u64, audience: Vec<String>) -> Option<()> {
        let body = body(number, &audience);
        let mut request = world.request("POST", self.node, "/v1/posts").json(&body);
        if let Some(key) = &key {
            request = request.header("Idempotency-Key", format!("\"{key}\""));
        }
        let Some(answer) = world.send(request).await else {
            if key.is_none() {
                self.given_up.push((number, audience));
                return Some(());
            }
            return None;
        };
        match (answer.status, answer.body["post_id"].as_str()) {
            (202, Some(id)) => {
                let post = Post { id: id.to_owned(), audience, version: 1, number, retracted: false };
                self.posts.push(post);
                self.accepted.posts += 1;
            }
            _ => world.problem(format!("publish of {number}: {answer:?}")),
        }
        Some(())
    }

    async fn edit(&mut self, world: &World, at: usize, number: u64) -> Option<()> {
        let Post { id, version, .. } = self.posts[at].clone();
        let request = world.request("PATCH", self.node, &format!("/v1/posts/{id}"));
        let request =
            request.header("If-Match", format!("\"{version}\"")).json(&json!({ "data": { "number": number } }));
        let answer = world.send(request).await?;
        match answer.status {
            202 => {}
            // Somebody was before us, and that can only be an earlier try of this very edit.
            412 => {
                let found = self.find(world, &id).await?;
                if found["version"] != version + 1 || found["data"]["number"] != number {
                    world.problem(format!("an edit of {id} from {version} to {number} was refused, but: {found}"));
                    return Some(());
                }
            }
            _ => {
                world.problem(format!("edit of {id}: {answer:?}"));
                return Some(());
            }
        }
        (self.posts[at].version, self.posts[at].number) = (version + 1, number);
        self.accepted.edits += 1;
        Some(())
    }

    async fn find(&self, world: &World, id: &str) -> Option<Value> {
        let answer = world.send(world.request("GET", self.node, &format!("/v1/posts/{id}"))).await?;
        Some(answer.body)
    }

    async fn retract(&mut self, world: &World, at: usize) -> Option<()> {
        let Post { id, version, .. } = self.posts[at].clone();
        let answer = world.send(world.request("DELETE", self.node, &format!("/v1/posts/{id}"))).await?;
        if answer.status != 202 {
            world.problem(format!("retract of {id}: {answer:?}"));
            return Some(());
        }
        (self.posts[at].version, self.posts[at].retracted) = (version + 1, true);
        self.accepted.retracts += 1;
        Some(())
    }
}
