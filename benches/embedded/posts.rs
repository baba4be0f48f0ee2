//! The posts that are published: the same content in every scenario, audiences drawn from a seed.

use fanfold::domain::{Audience, ProducerId};
use fanfold::publish::{Draft, Expiry};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::client::{self, Request};
use crate::measure::Result;

const KIND: &str = "story.posted";
const ACTOR: &str = "person-4711";
/// A hundred bytes: a title and a reference, as such services have it.
const DATA: &str =
    r#"{"title":"Dawn over the harbour","story_id":"s-8f5e0c1d2e3f","thumbnail":"/media/8f5e0c1d2e3f.webp"}"#;

/// The id of a viewer: eight bytes.
pub fn viewer(number: usize) -> String {
    format!("v{number:07}")
}

/// Draws audiences of one size out of a population.
#[derive(Debug)]
pub struct Audiences {
    random: StdRng,
    numbers: Vec<usize>,
    size: usize,
}

impl Audiences {
    /// The same seed draws the same audiences.
    pub fn new(population: usize, size: usize, seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), numbers: (0..population).collect(), size: size.min(population) }
    }

    /// Distinct viewers, in random order (the first steps of a Fisher-Yates shuffle).
    pub fn draw(&mut self) -> Vec<String> {
        for at in 0..self.size {
            let other = self.random.random_range(at..self.numbers.len());
            self.numbers.swap(at, other);
        }
        self.numbers[..self.size].iter().map(|number| viewer(*number)).collect()
    }
}

/// A post for `viewers`, as the HTTP layer hands it on.
pub fn draft(viewers: &[String]) -> Result<Draft> {
    Ok(Draft {
        producer: ProducerId::local(),
        kind: KIND.to_owned(),
        actor: Some(ACTOR.to_owned()),
        data: DATA.to_owned(),
        thread_key: None,
        audience: Audience::parse("viewers", viewers, 10_000)?,
        expiry: Expiry::Never,
        idempotency: None,
    })
}

/// The same post as a request.
pub fn request(viewers: &[String]) -> Request {
    // Viewer ids of this benchmark need no escapes.
    let list = format!("\"{}\"", viewers.join("\",\""));
    let body =
        format!(r#"{{"type":"{KIND}","actor":{{"id":"{ACTOR}"}},"data":{DATA},"audience":{{"viewers":[{list}]}}}}"#);
    client::post("/v1/posts", &body)
}

/// The parts of a post's body: type, actor, data.
pub fn content() -> (&'static str, &'static str, &'static str) {
    (KIND, ACTOR, DATA)
}
