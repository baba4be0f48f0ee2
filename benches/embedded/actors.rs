//! Clients of the mix: they look at inboxes and publish, in the proportions of the service this is modelled on.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::client::{Connection, Request, delete, get, patch, post};
use crate::measure::Result;
use crate::posts::{self, Audiences};

/// The proportions.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Everybody who can be in an audience.
    pub population: usize,
    /// Those who look, each as often as the others.
    pub active: usize,
    /// Viewers of a post.
    pub audience: usize,
    /// The share of actions that publish.
    pub publishing: f64,
}

impl Mix {
    /// Nine looks in ten find nothing new: between two looks of one viewer there are `active` looks and so
    /// `active * 3/97` posts, each of which is for that viewer with a chance of 150 in 20,000, and
    /// `1 - exp(-450 * 3/97 * 150/20000)` is 0.1.
    pub fn modelled() -> Self {
        Self { population: 20_000, active: 450, audience: 150, publishing: 0.03 }
    }
}

/// How a client looks at its inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// It polls, and fetches what changed when something did.
    Check,
    /// It fetches the first page.
    AlwaysFetch,
}

impl Habit {
    /// In messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "polling first",
            Self::AlwaysFetch => "always fetching",
        }
    }
}

/// What came of looking.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    looks: u64,
    unchanged: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.looks += other.looks;
        self.unchanged += other.unchanged;
    }

    /// The share of looks that found nothing new.
    pub fn unchanged_share(&self) -> f64 {
        self.unchanged as f64 / self.looks.max(1) as f64
    }
}

/// One connection's worth of clients.
#[derive(Debug)]
pub struct Actor {
    mix: Mix,
    habit: Habit,
    random: StdRng,
    audiences: Audiences,
    viewers: Vec<Viewer>,
    tally: Tally,
    /// Posts that it published.
    pub posts: u64,
    /// Rows of all posts that it published, and its share of those that were there before.
    pub rows_expected: u64,
}

#[derive(Debug)]
struct Viewer {
    page: Request,
    path: String,
    /// With the token that it holds; `None` until it has read its inbox.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    poll: Request,
    changes: Request,
}

impl Viewer {
    fn new(number: usize) -> Self {
        let path = format!("/v1/viewers/{}", posts::viewer(number));
        Self { page: get(&format!("{path}/inbox?limit=20")), path, held: None }
    }

    fn hold(&mut self, token: &str) {
        let poll = get(&format!("{}/revision?since={token}", self.path));
        let changes = get(&format!("{}/changes?since={token}", self.path));
        self.held = Some(Held { poll, changes });
    }
}

impl Actor {
    /// All actors, the active viewers dealt out among them. `rows` are there already.
    pub fn cast(mix: Mix, habit: Habit, count: usize, rows: u64) -> Vec<Self> {
        let one = |number: usize| Self {
            mix,
            habit,
            random: StdRng::seed_from_u64(number as u64),
            audiences: Audiences::new(mix.population, mix.audience, 1_000 + number as u64),
            viewers: (number..mix.active).step_by(count).map(Viewer::new).collect(),
            tally: Tally::default(),
            posts: 0,
            rows_expected: if number == 0 { rows } else { 0 },
        };
        (0..count).map(one).collect()
    }

    /// What came of looking since it was asked last.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Does `actions` things, one after the other.
    pub async fn act(&mut self, connection: &mut Connection, actions: u64) -> Result<u64> {
        for _ in 0..actions {
            if self.random.random_bool(self.mix.publishing) {
                self.publish(connection).await?;
            } else {
                let at = self.random.random_range(0..self.viewers.len());
                let unchanged = look(&mut self.viewers[at], self.habit, connection).await?;
                self.tally.looks += 1;
                self.tally.unchanged += u64::from(unchanged);
            }
        }
        Ok(actions)
    }

    /// One of the rarer things: a post that is edited, one that is retracted, everything that one viewer has read.
    pub async fn chore(&mut self, connection: &mut Connection) -> Result<()> {
        match self.random.random_range(0..3) {
            0 => {
                let path = format!("/v1/posts/{}", self.publish(connection).await?);
                connection.send(&patch(&path, r#"{"data":{"title":"Dusk over the harbour"}}"#)).await?.expect(202)?;
            }
            1 => {
                let path = format!("/v1/posts/{}", self.publish(connection).await?);
                connection.send(&delete(&path)).await?.expect(202)?;
            }
            _ => {
                let viewer = &self.viewers[self.random.random_range(0..self.viewers.len())];
                let token = connection.send(&viewer.page).await?.expect(200)?.field("token")?.to_owned();
                let marks = format!(r#"{{"mark":"read","through":"{token}"}}"#);
                connection.send(&post(&format!("{}/inbox/marks", viewer.path), &marks)).await?.expect(200)?;
            }
        }
        Ok(())
    }

    /// Publishes a post and answers its id.
    async fn publish(&mut self, connection: &mut Connection) -> Result<String> {
        let request = posts::request(&self.audiences.draw());
        let id = connection.send(&request).await?.expect(202)?.field("post_id")?.to_owned();
        self.posts += 1;
        self.rows_expected += self.mix.audience as u64;
        Ok(id)
    }
}

/// Looks at an inbox; whether nothing was new, as far as the client was told.
async fn look(viewer: &mut Viewer, habit: Habit, connection: &mut Connection) -> Result<bool> {
    if habit == Habit::AlwaysFetch {
        connection.send(&viewer.page).await?.expect(200)?;
        return Ok(false);
    }
    if let Some(held) = &viewer.held {
        let poll = connection.send(&held.poll).await?;
        if poll.status == 304 {
            return Ok(true);
        }
        poll.expect(200)?;
        let changes = connection.send(&held.changes).await?;
        match changes.status {
            304 => return Ok(true),
            410 => {}
            _ => {
                let token = changes.expect(200)?.field("token")?.to_owned();
                viewer.hold(&token);
                return Ok(false);
            }
        }
    }
    let token = connection.send(&viewer.page).await?.expect(200)?.field("token")?.to_owned();
    viewer.hold(&token);
    Ok(false)
}
