//! A producer that knows exactly what was accepted, and what may have been.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

use crate::{ARCHIVE, viewer_names};

/// What fills a large post, in bytes.
const FILLER_BYTES: usize = 48 << 10;
/// Large posts and edits between two kills: in all some megabytes, enough for several tables.
const LARGE_STEPS: usize = 6;

/// A post that was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub audience: Vec<String>,
    pub version: u64,
    pub number: u64,
    pub retracted: bool,
    /// A change whose answer was lost: it may or may not be there.
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    Edit(u64),
    Retract,
}

/// What a viewer must find.
#[derive(Clone, Debug)]
pub struct Expected {
    pub id: String,
    pub version: u64,
    pub number: u64,
    pub retracted: bool,
}

pub struct Producer {
    name: usize,
    rng: StdRng,
    /// Its posts are few and large, and for one viewer.
    large: bool,
    /// Accepted posts by id.
    pub posts: HashMap<String, Accepted>,
    /// A publish whose answer was lost: sent again with its key until there is one.
    unanswered: Option<(String, Value)>,
    numbers: u64,
}

type Lost = reqwest::Error;

impl Producer {
    pub fn new(name: usize, seed: u64) -> Self {
        let (rng, posts) = (StdRng::seed_from_u64(seed), HashMap::new());
        Self { name, rng, large: false, posts, unanswered: None, numbers: 0 }
    }

    pub fn of_large_posts(name: usize, seed: u64) -> Self {
        Self { large: true, ..Self::new(name, seed) }
    }

    /// Publishes, edits and retracts until the service goes away, or enough is done.
    pub async fn work(&mut self, url: &str) {
        let client = crate::client();
        let mut steps = if self.large { LARGE_STEPS } else { usize::MAX };
        while steps > 0 && self.step(&client, url).await.is_ok() {
            steps -= 1;
        }
    }

    /// Settles what is in doubt and waits until every fan-out is done.
    pub async fn finish(&mut self, url: &str) {
        let client = crate::client();
        if self.unanswered.is_some() {
            self.publish(&client, url).await.expect("the service runs");
        }
        let ids: Vec<String> = self.posts.keys().cloned().collect();
        for id in ids {
            self.resolve(&client, url, &id).await.expect("the service runs");
            let post: Value = client
                .get(format!("{url}/v1/posts/{id}?wait=30"))
                .send()
                .await
                .expect("the service runs")
                .json()
                .await
                .expect("json");
            let (total, audience) = (&post["fanout"]["total"], self.posts[&id].audience.len());
            assert_eq!(post["fanout"]["status"], "done", "{post}");
            assert_eq!((total, &post["fanout"]["written"]), (&json!(audience), &json!(audience)), "{post}");
        }
    }

    /// The accepted posts that are for `viewer`.
    pub fn posts_for(&self, viewer: &str) -> impl Iterator<Item = Expected> {
        let mine = move |post: &&Accepted| post.audience.iter().any(|name| name == viewer);
        let posts = self.posts.iter().filter(move |(_, post)| mine(post)).map(|(id, post)| Expected {
            id: id.clone(),
            version: post.version,
            number: post.number,
            retracted: post.retracted,
        });
        posts.collect::<Vec<_>>().into_iter()
    }

    async fn step(&mut self, client: &reqwest::Client, url: &str) -> Result<(), Lost> {
        if self.unanswered.is_some() {
            return self.publish(client, url).await;
        }
        let live: Vec<String> = self.posts.iter().filter(|(_, p)| !p.retracted).map(|(id, _)| id.clone()).collect();
        let chosen = live.choose(&mut self.rng).cloned();
        match (chosen, self.rng.random_range(0..10)) {
            (Some(id), 0..4) => {
                self.resolve(client, url, &id).await?;
                if self.posts[&id].retracted { Ok(()) } else { self.edit(client, url, &id).await }
            }
            (Some(id), 4) => self.retract(client, url, &id).await,
            _ => {
                self.numbers += 1;
                let audience = if self.large { vec![ARCHIVE.to_owned()] } else { self.audience() };
                let body = json!({
                    "type": "test.post",
                    "data": self.data(self.numbers),
                    "audience": { "viewers": audience },
                });
                self.unanswered = Some((format!("producer-{}-{}", self.name, self.numbers), body));
                self.publish(client, url).await
            }
        }
    }

    /// Half of all viewers, and always the first.
    fn audience(&mut self) -> Vec<String> {
        let mut audience = viewer_names();
        let first = audience[0].clone();
        audience.retain(|_| self.rng.random_bool(0.5));
        audience.push(first);
        audience.dedup();
        audience
    }

    fn data(&mut self, number: u64) -> Value {
        let mut data = json!({ "number": number });
        if self.large {
            // Random, since what is stored may be compressed.
            let parts = (0..FILLER_BYTES / 16).map(|_| format!("{:016x}", self.rng.random::<u64>()));
            data["filler"] = json!(parts.collect::<String>());
        }
        data
    }

    async fn publish(&mut self, client: &reqwest::Client, url: &str) -> Result<(), Lost> {
        let (key, body) = self.unanswered.clone().expect("only called with something to publish");
        let request = client.post(format!("{url}/v1/posts")).header("Idempotency-Key", format!("\"{key}\""));
        let response = request.json(&body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        assert_eq!(status, 202, "{answer}");
        self.unanswered = None;
        let mut audience: Vec<String> = serde_json::from_value(body["audience"]["viewers"].clone()).expect("names");
        audience.sort();
        audience.dedup();
        let number = body["data"]["number"].as_u64().expect("a number");
        let post = Accepted { audience, version: 1, number, retracted: false, doubt: None };
        let before = self.posts.insert(answer["post_id"].as_str().expect("an id").to_owned(), post);
        assert!(before.is_none(), "two keys gave one post");
        Ok(())
    }

    async fn edit(&mut self, client: &reqwest::Client, url: &str, id: &str) -> Result<(), Lost> {
        self.numbers += 1;
        let number = self.numbers;
        let data = self.data(number);
        let post = self.posts.get_mut(id).expect("accepted");
        post.doubt = Some(Doubt::Edit(number));
        let response = client
            .patch(format!("{url}/v1/posts/{id}"))
            .header("If-Match", format!("\"{}\"", post.version))
            .json(&json!({ "data": data }))
            .send()
            .await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        assert_eq!(status, 202, "{answer}");
        (post.version, post.number, post.doubt) = (post.version + 1, number, None);
        assert_eq!(answer["version"], post.version);
        Ok(())
    }

    async fn retract(&mut self, client: &reqwest::Client, url: &str, id: &str) -> Result<(), Lost> {
        self.resolve(client, url, id).await?;
        let post = self.posts.get_mut(id).expect("accepted");
        if post.retracted {
            return Ok(());
        }
        post.doubt = Some(Doubt::Retract);
        let response = client.delete(format!("{url}/v1/posts/{id}")).send().await?;
        assert_eq!(response.status(), 202);
        (post.version, post.retracted, post.doubt) = (post.version + 1, true, None);
        Ok(())
    }

    /// A change whose answer was lost is there or it is not; nothing else may have happened.
    async fn resolve(&mut self, client: &reqwest::Client, url: &str, id: &str) -> Result<(), Lost> {
        let response = client.get(format!("{url}/v1/posts/{id}")).send().await?;
        assert_eq!(response.status(), 200, "post {id} was accepted and is gone");
        let found: Value = response.json().await?;
        let post = self.posts.get_mut(id).expect("accepted");
        if let Some(doubt) = post.doubt.take()
            && found["version"] == post.version + 1
        {
            post.version += 1;
            match doubt {
                Doubt::Edit(number) => post.number = number,
                Doubt::Retract => post.retracted = true,
            }
        }
        assert_eq!(found["version"], post.version, "{found}");
        assert_eq!(found["data"]["number"], post.number, "{found}");
        assert_eq!(found["state"], if post.retracted { "retracted" } else { "live" }, "{found}");
        Ok(())
    }
}
