//! A viewer with a copy kept by the protocol, and marks it has set.

use std::collections::{BTreeMap, HashMap};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use reqwest::{Client, Error as Lost};
use serde_json::{Value, json};

use crate::producer::Expected;

const MARKS: [&str; 3] = ["seen", "read", "archived"];

pub struct Viewer {
    pub name: String,
    rng: StdRng,
    token: Option<String>,
    /// The copy: items by post id, archived ones included as far as they are known.
    copy: BTreeMap<String, Value>,
    counts: Value,
    /// Marks that were accepted, and those in doubt: `None`.
    marks: HashMap<(String, &'static str), Option<bool>>,
}

impl Viewer {
    pub fn new(name: String, seed: u64) -> Self {
        let (copy, marks) = (BTreeMap::new(), HashMap::new());
        Self { name, rng: StdRng::seed_from_u64(seed), token: None, copy, counts: Value::Null, marks }
    }

    /// How many marks were accepted.
    pub fn marks(&self) -> usize {
        self.marks.values().flatten().count()
    }

    /// Polls, brings the copy up to date and sets marks until the service goes away.
    pub async fn work(&mut self, url: &str) {
        let client = crate::client();
        while self.step(&client, url).await.is_ok() {}
    }

    async fn step(&mut self, client: &Client, url: &str) -> Result<(), Lost> {
        self.sync(client, url).await?;
        let ids: Vec<&String> = self.copy.keys().collect();
        let Some(id) = ids.choose(&mut self.rng).map(|id| (*id).clone()) else { return Ok(()) };
        let mark = *MARKS.choose(&mut self.rng).expect("not empty");
        let value = self.rng.random_bool(0.7);
        self.mark(client, url, &id, mark, value).await
    }

    async fn mark(
        &mut self,
        client: &Client,
        url: &str,
        id: &str,
        mark: &'static str,
        value: bool,
    ) -> Result<(), Lost> {
        let path = format!("{url}/v1/viewers/{}/inbox/{id}/{mark}", self.name);
        let request = if value { client.put(path) } else { client.delete(path) };
        let since = self.token.clone().unwrap_or_default();
        let before = self.record(id, mark, value, None);
        let response = request.query(&[("since", since)]).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if status == 404 {
            // Retracted meanwhile: nothing was marked.
            self.marks.extend(before);
            return Ok(());
        }
        assert_eq!(status, 200, "{answer}");
        self.record(id, mark, value, Some(value));
        if let Some(next) = answer["token"].as_str() {
            assert_eq!(answer["from"].as_str(), self.token.as_deref());
            self.token = Some(next.to_owned());
            self.copy.insert(id.to_owned(), answer["item"].clone());
            self.counts = json!([answer["unseen_count"], answer["unread_count"]]);
        }
        Ok(())
    }

    /// Notes the marks that an order changes, `known` or in doubt; answers what was noted before.
    fn record(
        &mut self,
        id: &str,
        mark: &'static str,
        value: bool,
        known: Option<bool>,
    ) -> Vec<((String, &'static str), Option<bool>)> {
        let mut touched = vec![mark];
        match (mark, value) {
            ("read", true) => touched.push("seen"),
            ("seen", false) => touched.push("read"),
            _ => {}
        }
        let mut before = Vec::new();
        for mark in touched {
            let key = (id.to_owned(), mark);
            before.push((key.clone(), self.marks.get(&key).copied().unwrap_or(Some(false))));
            self.marks.insert(key, known);
        }
        before
    }

    /// The client loop of the README.
    async fn sync(&mut self, client: &Client, url: &str) -> Result<(), Lost> {
        let base = format!("{url}/v1/viewers/{}", self.name);
        let Some(token) = self.token.clone() else { return self.resync(client, &base).await };
        let response = client.get(format!("{base}/revision")).query(&[("since", &token)]).send().await?;
        if response.status() == 304 {
            return Ok(());
        }
        let response = client.get(format!("{base}/changes")).query(&[("since", &token)]).send().await?;
        match response.status().as_u16() {
            304 => Ok(()),
            200 => {
                let delta: Value = response.json().await?;
                for item in delta["upserted"].as_array().expect("a list") {
                    self.copy.insert(item["post_id"].as_str().expect("an id").to_owned(), item.clone());
                }
                for id in delta["removed"].as_array().expect("a list") {
                    self.copy.remove(id.as_str().expect("an id"));
                }
                self.token = delta["token"].as_str().map(str::to_owned);
                self.counts = json!([delta["unseen_count"], delta["unread_count"]]);
                Ok(())
            }
            410 => self.resync(client, &base).await,
            other => panic!("changes answered {other}"),
        }
    }

    async fn resync(&mut self, client: &Client, base: &str) -> Result<(), Lost> {
        let (token, items, counts) = walk(client, base, false).await?;
        (self.token, self.counts) = (token, counts);
        self.copy = items.into_iter().collect();
        Ok(())
    }

    /// After the storm: the inbox holds exactly what was accepted, with its marks, and the copy is as good as new.
    pub async fn check(&mut self, url: &str, expected: Vec<Expected>) {
        let client = crate::client();
        let base = format!("{url}/v1/viewers/{}", self.name);
        self.sync(&client, url).await.expect("the service runs");
        let (_, listed, counts) = walk(&client, &base, false).await.expect("the service runs");
        let (_, archived, _) = walk(&client, &base, true).await.expect("the service runs");
        let copy: Vec<(String, Value)> = self
            .copy
            .iter()
            .filter(|(_, item)| item["archived_at"].is_null())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let mut fresh = listed.clone();
        fresh.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(copy, fresh, "the copy of {} is not what the inbox shows", self.name);
        assert_eq!(self.counts, counts, "counts of {}", self.name);
        let mut found = HashMap::new();
        for (id, item) in listed.into_iter().chain(archived) {
            assert!(found.insert(id.clone(), item).is_none(), "{id} is there twice");
        }
        let live: Vec<&Expected> = expected.iter().filter(|post| !post.retracted).collect();
        for post in &live {
            let item = found.get(&post.id).unwrap_or_else(|| panic!("{} lacks {post:?}", self.name));
            assert_eq!((&item["version"], &item["data"]["number"]), (&json!(post.version), &json!(post.number)));
            for mark in MARKS {
                let known = self.marks.get(&(post.id.clone(), mark)).copied().unwrap_or(Some(false));
                let set = !item[format!("{mark}_at")].is_null();
                assert!(known.is_none_or(|known| known == set), "{}: {mark} of {item} is not {known:?}", self.name);
            }
        }
        assert_eq!(found.len(), live.len(), "{} has something it should not have", self.name);
    }
}

type Walked = (Option<String>, Vec<(String, Value)>, Value);

/// A walk over all pages, in order.
async fn walk(client: &Client, base: &str, archived: bool) -> Result<Walked, Lost> {
    let (mut items, mut token, mut cursor) = (Vec::new(), None, None::<String>);
    loop {
        let mut request = client.get(format!("{base}/inbox")).query(&[("limit", "50")]);
        if archived {
            request = request.query(&[("archived", "true")]);
        }
        if let Some(cursor) = &cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let response = request.send().await?;
        assert_eq!(response.status(), 200);
        let page: Value = response.json().await?;
        for item in page["items"].as_array().expect("a list") {
            items.push((item["post_id"].as_str().expect("an id").to_owned(), item.clone()));
        }
        token = token.or_else(|| page["token"].as_str().map(str::to_owned));
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return Ok((token, items, json!([page["unseen_count"], page["unread_count"]])));
        }
    }
}
