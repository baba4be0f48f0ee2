//! A device of a viewer: a copy of the inbox kept by the protocol, and the marks that were accepted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::load::{Answer, World};

pub const MARKS: [&str; 3] = ["seen", "read", "archived"];

/// An item as far as it is compared: a device knows that an item was marked, not always when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub version: u64,
    pub number: u64,
    pub marks: [bool; 3],
}

impl Item {
    fn read(item: &Value) -> (String, Self) {
        let marks = MARKS.map(|mark| !item[format!("{mark}_at")].is_null());
        let (version, number) = (&item["version"], &item["data"]["number"]);
        let id = item["post_id"].as_str().unwrap_or_default().to_owned();
        (id, Self { version: version.as_u64().unwrap_or(0), number: number.as_u64().unwrap_or(0), marks })
    }
}

/// Items by post, and the counts that came with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    pub items: BTreeMap<String, Item>,
    pub counts: Value,
}

impl Copy {
    /// Without what is archived: a fetch does not bring it, a delta does.
    pub fn listed(&self) -> Self {
        let mut listed = self.clone();
        listed.items.retain(|_, item| !item.marks[2]);
        listed
    }
}

/// A mark that was sent and is not settled.
#[derive(Clone, Debug)]
struct Order {
    mark: usize,
    value: bool,
    ids: Vec<String>,
    how: How,
    since: Option<String>,
    /// It was sent before: what that did is not known.
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Single,
    Many,
    Through,
}

pub struct Device {
    pub viewer: String,
    /// The one that asks seldom, and marks nothing.
    pub second: bool,
    rng: StdRng,
    node: usize,
    pub token: Option<String>,
    pub copy: Copy,
    /// What the accepted marks come to; `None` where that is open.
    pub marks: HashMap<(String, usize), Option<bool>>,
    /// Posts that are marked no more: a try that was given up may still arrive.
    retired: HashSet<String>,
    pub marked: usize,
    open: Option<Order>,
}

impl Device {
    pub fn new(viewer: String, second: bool, seed: u64) -> Self {
        Self {
            viewer,
            second,
            rng: StdRng::seed_from_u64(seed),
            node: usize::from(second),
            token: None,
            copy: Copy::default(),
            marks: HashMap::new(),
            retired: HashSet::new(),
            marked: 0,
            open: None,
        }
    }

    /// Polls, fetches and marks until the load ends; then settles a mark that is open.
    pub async fn work(mut self, world: &World, settle: Duration) -> Self {
        while !world.is_over() {
            if !(self.second && world.is_quiet()) {
                if self.step(world).await.is_none() {
                    self.node += 1;
                } else if self.rng.random_bool(0.2) {
                    self.node = usize::from(self.second);
                }
            }
            let pause = if self.second { 600..1_500 } else { 100..400 };
            let pause = Duration::from_millis(self.rng.random_range(pause));
            world.pause(pause).await;
        }
        let deadline = Instant::now() + settle;
        while self.open.is_some() {
            if self.send_order(world).await.is_none() {
                self.node += 1;
                // What a client waits before it tries again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if Instant::now() > deadline {
                world.problem(format!("{} could not settle {:?}", self.viewer, self.open));
                break;
            }
        }
        self
    }

    async fn step(&mut self, world: &World) -> Option<()> {
        if self.open.is_some() {
            self.send_order(world).await?;
        }
        if self.rng.random_bool(0.04) {
            self.resync(world).await?;
        } else {
            self.sync(world).await?;
        }
        if !self.second && self.rng.random_bool(0.4) {
            self.open = self.choose();
            self.send_order(world).await?;
        }
        Some(())
    }

    /// The client loop of the README.
    pub async fn sync(&mut self, world: &World) -> Option<()> {
        if self.token.is_none() {
            return self.resync(world).await;
        }
        if self.poll(world, self.node).await? {
            return Some(());
        }
        let answer = self.ask(world, self.node, "changes").await?;
        match answer.status {
            304 => {}
            200 => {
                for item in answer.body["upserted"].as_array().into_iter().flatten() {
                    let (id, item) = Item::read(item);
                    self.copy.items.insert(id, item);
                }
                for id in answer.body["removed"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    self.copy.items.remove(id);
                }
                self.token = answer.body["token"].as_str().map(str::to_owned);
                self.copy.counts = counts(&answer.body);
            }
            410 => return self.resync(world).await,
            _ => world.problem(format!("changes of {}: {answer:?}", self.viewer)),
        }
        Some(())
    }

    async fn ask(&self, world: &World, node: usize, what: &str) -> Option<Answer> {
        let request = world.request("GET", node, &format!("/v1/viewers/{}/{what}", self.viewer));
        let since = self.token.clone().unwrap_or_default();
        world.send(request.query(&[("since", since)])).await
    }

    /// Whether a node says that nothing has changed.
    pub async fn poll(&self, world: &World, node: usize) -> Option<bool> {
        if self.token.is_none() {
            return Some(false);
        }
        let answer = self.ask(world, node, "revision").await?;
        match answer.status {
            304 => Some(true),
            200 => Some(false),
            _ => {
                world.problem(format!("poll of {}: {answer:?}", self.viewer));
                Some(false)
            }
        }
    }

    async fn resync(&mut self, world: &World) -> Option<()> {
        let walk = walk(world, self.node, &self.viewer, false).await?;
        (self.token, self.copy) = (walk.token, walk.copy);
        Some(())
    }

    fn choose(&mut self) -> Option<Order> {
        let ids: Vec<String> = self.copy.items.keys().filter(|id| !self.retired.contains(*id)).cloned().collect();
        if ids.is_empty() {
            return None;
        }
        // Often the same few: marks upon marks.
        let newest = &ids[ids.len().saturating_sub(12)..];
        let (since, again) = (self.token.clone(), false);
        let mark = self.rng.random_range(0..MARKS.len());
        let value = self.rng.random_bool(0.7);
        Some(match self.rng.random_range(0..10) {
            0 | 1 => {
                let ids = newest.iter().filter(|_| self.rng.random_bool(0.4)).cloned().collect();
                Order { mark, value, ids, how: How::Many, since, again }
            }
            // What a "through" marks its answer says; without one anything of the copy may be marked.
            2 if since.is_some() => Order {
                mark: 1,
                value: true,
                ids: self.copy.items.keys().cloned().collect(),
                how: How::Through,
                since,
                again,
            },
            _ => {
                let ids = vec![newest[self.rng.random_range(0..newest.len())].clone()];
                Order { mark, value, ids, how: How::Single, since, again }
            }
        })
    }

    /// Marks an item as read, at home; whether that was accepted. What was sent and is open the next try sends again.
    pub async fn mark_read(&mut self, world: &World, post: &str) -> bool {
        let (mark, ids, since) = (1, vec![post.to_owned()], self.token.clone());
        if self.open.is_none() {
            self.open = Some(Order { mark, value: true, ids, how: How::Single, since, again: false });
        }
        self.send_order(world).await.is_some() && self.marks.get(&(post.to_owned(), mark)) == Some(&Some(true))
    }

    async fn send_order(&mut self, world: &World) -> Option<()> {
        let Some(order) = self.open.clone().filter(|order| !order.ids.is_empty()) else {
            self.open = None;
            return Some(());
        };
        let base = format!("/v1/viewers/{}/inbox", self.viewer);
        let (mark, value) = (MARKS[order.mark], order.value);
        let request = match order.how {
            How::Single => {
                let method = if value { "PUT" } else { "DELETE" };
                world.request(method, self.node, &format!("{base}/{}/{mark}", order.ids[0]))
            }
            How::Many => {
                let body = json!({ "mark": mark, "value": value, "post_ids": order.ids });
                world.request("POST", self.node, &format!("{base}/marks")).json(&body)
            }
            How::Through => {
                let body = json!({ "mark": mark, "value": value, "through": order.since });
                world.request("POST", self.node, &format!("{base}/marks")).json(&body)
            }
        };
        let request = if let Some(token) = &self.token { request.query(&[("since", token)]) } else { request };
        let Some(answer) = world.send(request).await else {
            // What this try did, or will do, is open: these are left alone from here on.
            for id in &order.ids {
                self.retired.insert(id.clone());
                self.note(id, order.mark, value, None);
            }
            if let Some(open) = &mut self.open {
                open.again = true;
            }
            return None;
        };
        self.open = None;
        self.answered(world, &order, &answer);
        Some(())
    }

    fn answered(&mut self, world: &World, order: &Order, answer: &Answer) {
        match (answer.status, order.how) {
            (200, _) => {}
            // Retracted meanwhile, or (through) the token is too old: nothing was marked by this try.
            (404, How::Single) | (410, How::Through) => return,
            _ => return world.problem(format!("{order:?} of {}: {answer:?}", self.viewer)),
        }
        let (mark, value) = (order.mark, order.value);
        let marked: Vec<String> = match order.how {
            How::Single => order.ids.clone(),
            _ => answer.body["post_ids"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Into::into)
                .collect(),
        };
        for id in &marked {
            // Of those left alone a late try may still undo this, unless that is a try of this very order.
            let open = self.retired.contains(id) && (!order.again || order.how == How::Through);
            self.note(id, mark, value, Some(value).filter(|_| !open));
        }
        self.marked += marked.len();
        let Some(token) = answer.body["token"].as_str() else { return };
        if answer.body["from"].as_str() != self.token.as_deref() {
            world.problem(format!("a mark answers a token from another one: {answer:?}"));
        }
        self.token = Some(token.to_owned());
        self.copy.counts = counts(&answer.body);
        if order.how == How::Single {
            let (id, item) = Item::read(&answer.body["item"]);
            self.copy.items.insert(id, item);
        } else {
            for id in &marked {
                if let Some(item) = self.copy.items.get_mut(id) {
                    for touched in touched(mark, value) {
                        item.marks[touched] = value;
                    }
                }
            }
        }
    }

    fn note(&mut self, id: &str, mark: usize, value: bool, known: Option<bool>) {
        for mark in touched(mark, value) {
            self.marks.insert((id.to_owned(), mark), known);
        }
    }
}

/// The marks that an order sets or clears: read implies seen.
fn touched(mark: usize, value: bool) -> Vec<usize> {
    match (mark, value) {
        (1, true) => vec![1, 0],
        (0, false) => vec![0, 1],
        _ => vec![mark],
    }
}

fn counts(body: &Value) -> Value {
    json!([body["unseen_count"], body["unread_count"]])
}

/// A whole inbox as a node shows it.
pub struct Walk {
    pub token: Option<String>,
    pub copy: Copy,
    /// Posts that came more than once.
    pub double: Vec<String>,
}

/// A walk over all pages; `None` if an answer fails.
pub async fn walk(world: &World, node: usize, viewer: &str, archived: bool) -> Option<Walk> {
    let mut walk = Walk { token: None, copy: Copy::default(), double: Vec::new() };
    let mut cursor = None::<String>;
    loop {
        let mut request = world.request("GET", node, &format!("/v1/viewers/{viewer}/inbox")).query(&[("limit", "50")]);
        if archived {
            request = request.query(&[("archived", "true")]);
        }
        if let Some(cursor) = &cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let answer = world.send(request).await?;
        if answer.status != 200 {
            world.problem(format!("inbox of {viewer}: {answer:?}"));
            return None;
        }
        for item in answer.body["items"].as_array().into_iter().flatten() {
            let (id, item) = Item::read(item);
            if walk.copy.items.insert(id.clone(), item).is_some() {
                walk.double.push(id);
            }
        }
        if cursor.is_none() {
            walk.token = answer.body["token"].as_str().map(str::to_owned);
            walk.copy.counts = counts(&answer.body);
        }
        cursor = answer.body["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return Some(walk);
        }
    }
}
