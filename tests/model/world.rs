//! The service without HTTP beside the model: every operation happens in both, and every answer is compared.
//!
//! A keyspace takes seconds to make, and so does a process to connect. So on a cluster one history begins where the last one
//! ended, with viewers and posts of its own; what is left there of one that failed is none of its business.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use fanfold::clock::Clock;
use fanfold::domain::*;
use fanfold::error::Kind;
use fanfold::fanout::Outcome;
use fanfold::marks::{MarkOutcome, Target};
use fanfold::ports::{Path, Revisions as _, Store as _};
use fanfold::publish::{Draft, Edit, Expiry, Idempotency};
use fanfold::reader::{Page, Poll};
use proptest::test_runner::TestCaseError;

use crate::client::{Client, Walk, known};
use crate::in_process::{Home, Service};
use crate::model::Model;
use crate::ops::Op;
use crate::support::is_cluster;

const VIEWERS: [&str; 4] = ["ana", "ben", "cleo", "dora"];
const CLIENTS: usize = 6;

/// Where histories happen.
pub struct Place {
    service: Service,
    clock: Clock,
    home: Home,
}

impl Place {
    async fn new() -> Self {
        let (home, clock) = (Home::new().await, Clock::manual(Time::from_millis(1_767_225_600_000)));
        Self { service: Service::start(&home, &clock).await, clock, home }
    }
}

pub struct World {
    service: Option<Service>,
    clock: Clock,
    /// The number of this history, which no other has.
    number: u32,
    model: Model,
    posts: Vec<PostId>,
    drafts: HashMap<PostId, Draft>,
    waiting: Vec<Task>,
    ran: Vec<Task>,
    /// At which version, and under which fence, each chunk was done last.
    done: HashMap<(PostId, u32), (u32, u32)>,
    clients: Vec<Client>,
    home: Home,
}

type Check = Result<(), TestCaseError>;

fn name(number: u32, n: usize) -> String {
    format!("{}-{number:08x}", VIEWERS[n % VIEWERS.len()])
}

fn viewer(number: u32, n: usize) -> ViewerId {
    ViewerId::parse("viewer", &name(number, n)).expect("valid")
}

impl World {
    /// In the place of the last history, if that has left one.
    pub async fn new(place: Option<Place>) -> Self {
        let Place { service, clock, home } = match place {
            Some(place) => place,
            None => Place::new().await,
        };
        let number = rand::random();
        let clients = (0..CLIENTS).map(|n| Client::new(viewer(number, n))).collect();
        Self {
            service: Some(service),
            clock,
            number,
            model: Model::default(),
            posts: Vec::new(),
            drafts: HashMap::new(),
            waiting: Vec::new(),
            ran: Vec::new(),
            done: HashMap::new(),
            clients,
            home,
        }
    }

    /// The place for the next history.
    pub fn leave(self) -> Option<Place> {
        if !is_cluster() {
            return None;
        }
        let Self { service, clock, home, .. } = self;
        Some(Place { service: service?, clock, home })
    }

    /// All of a history, and that its end is as it should be.
    pub async fn live_through(&mut self, ops: &[Op]) -> Check {
        for op in ops {
            self.apply(op).await?;
        }
        self.settle().await
    }

    fn service(&mut self) -> &mut Service {
        self.service.as_mut().expect("the service is only away inside a restart")
    }

    fn pick_post(&self, n: u8) -> Option<PostId> {
        (!self.posts.is_empty()).then(|| self.posts[n as usize % self.posts.len()])
    }

    async fn apply(&mut self, op: &Op) -> Check {
        match *op {
            Op::Publish { audience, ttl_s } => self.publish(audience, ttl_s).await,
            Op::Edit { post, expiry } => self.edit(post, expiry).await?,
            Op::Retract { post } => self.retract(post).await,
            Op::Retry { post } => self.retry(post).await?,
            Op::Run { task } if !self.waiting.is_empty() => {
                let task = self.waiting.remove(task as usize % self.waiting.len());
                self.run(task).await;
            }
            Op::Replay { task, driven } if !self.ran.is_empty() => {
                let mut task = self.ran.remove(task as usize % self.ran.len());
                task.attempt += u32::from(driven);
                self.run(task).await;
            }
            Op::Lose { task } if !self.waiting.is_empty() => {
                self.waiting.remove(task as usize % self.waiting.len());
            }
            Op::Run { .. } | Op::Replay { .. } | Op::Lose { .. } => {}
            Op::Relay => self.relay().await,
            Op::Advance { seconds } => {
                self.clock.set(self.clock.now().after(Duration::from_secs(u64::from(seconds))));
            }
            Op::Sync { client } => self.sync(client as usize % CLIENTS).await?,
            Op::Walk { client, limit } => self.walk(client as usize % CLIENTS, u32::from(limit)).await?,
            Op::MarkOne { client, item, mark, value } => {
                self.mark_one(client as usize % CLIENTS, item, mark, value).await?;
            }
            Op::MarkMany { client, items, mark, value } => {
                self.mark_many(client as usize % CLIENTS, items, mark, value).await?;
            }
            Op::MarkThrough { client, mark } => self.mark_through(client as usize % CLIENTS, mark).await?,
            Op::Evict { viewer: n } => {
                let viewer = viewer(self.number, n as usize);
                self.service().evict(&viewer).await;
            }
            Op::Restart => self.restart().await,
        }
        // On a cluster a look into the queue takes as long as all the rest.
        if op.publishes() || !is_cluster() {
            self.drain().await;
        }
        for client in 0..CLIENTS {
            self.poll(client).await?;
        }
        Ok(())
    }

    /// Takes up what is queued.
    async fn drain(&mut self) {
        let tasks = self.service().drain().await;
        self.waiting.extend(tasks.into_iter().filter(|task| self.model.posts.contains_key(&task.post_id)));
    }

    /// Runs everything to its end and checks that all clients converge.
    async fn settle(&mut self) -> Check {
        // Entries written within one tick of the clock are ordered by stepping ahead of it: let it catch up.
        self.clock.set(self.clock.now().after(Duration::from_secs(1)));
        for _ in 0..3 {
            self.relay().await;
            self.drain().await;
            while let Some(task) = self.waiting.pop() {
                self.run(task).await;
            }
        }
        self.relay().await;
        for shard in 0..self.service().store.shards() {
            let mut left = self.service().store.pending(shard, None, 1_000).await.expect("read").entries;
            left.retain(|entry| self.model.posts.contains_key(&entry.post_id));
            if !left.is_empty() {
                return Err(TestCaseError::fail(format!("still pending: {left:?}")));
            }
        }
        for client in 0..CLIENTS {
            self.sync(client).await?;
            let now = self.clock.now();
            self.clients[client].check_exact(&self.model, now)?;
        }
        Ok(())
    }

    async fn publish(&mut self, audience: u8, ttl_s: Option<u16>) {
        let names: Vec<String> = (0..4).filter(|n| audience >> n & 1 == 1).map(|n| name(self.number, n)).collect();
        let audience = Audience::parse("viewers", &names, 10).expect("valid");
        let draft = Draft {
            producer: ProducerId::local(),
            kind: "story.posted".into(),
            actor: None,
            data: "{}".into(),
            thread_key: None,
            audience: audience.clone(),
            expiry: ttl_s.map_or(Expiry::Never, |s| Expiry::After(Duration::from_secs(u64::from(s)))),
            idempotency: Some(Idempotency {
                key: format!("k{}-{:08x}", self.posts.len(), self.number),
                fingerprint: [0; 32],
            }),
        };
        let post = self.service().publisher.publish(draft.clone()).await.expect("published");
        self.posts.push(post.id);
        self.drafts.insert(post.id, draft);
        self.model.audiences.insert(post.id, audience.viewers().to_vec());
        self.model.posts.insert(post.id, post);
    }

    async fn edit(&mut self, post: u8, expiry: Option<Option<u16>>) -> Check {
        let Some(id) = self.pick_post(post) else { return Ok(()) };
        let now = self.clock.now();
        let expires_at = expiry.map(|at| at.map(|s| now.after(Duration::from_secs(u64::from(s)))));
        let edit = Edit { data: Some(format!(r#"{{"at":{}}}"#, now.micros())), expires_at, ..Edit::default() };
        let known = self.model.posts[&id].clone();
        match self.service().publisher.edit(&ProducerId::local(), id, Some(known.version), edit).await {
            Ok(edited) => {
                if edited.version != known.version + 1 || edited.ts <= known.ts {
                    return Err(TestCaseError::fail(format!("{known:?} was edited to {edited:?}")));
                }
                self.model.posts.insert(id, edited);
            }
            Err(error) if error.code() == "post_retracted" && known.state == PostState::Retracted => {}
            Err(error) => return Err(TestCaseError::fail(format!("an edit failed: {error}"))),
        }
        Ok(())
    }

    async fn retract(&mut self, post: u8) {
        let Some(id) = self.pick_post(post) else { return };
        let retracted = self.service().publisher.retract(&ProducerId::local(), id, None).await.expect("retracted");
        self.model.posts.insert(id, retracted);
    }

    /// The same post, as it was at first, whatever has become of it since.
    async fn retry(&mut self, post: u8) -> Check {
        let Some(id) = self.pick_post(post) else { return Ok(()) };
        let draft = self.drafts[&id].clone();
        match self.service().publisher.publish(draft).await {
            Ok(again) if (again.id, again.version) == (id, 1) => Ok(()),
            other => Err(TestCaseError::fail(format!("a retry of {id} is answered {other:?}"))),
        }
    }

    async fn run(&mut self, task: Task) {
        let (chunk, version) = ((task.post_id, task.chunk.no), self.model.posts[&task.post_id].version);
        let known = self.remembering(&task, version).await;
        let fence = self.service().revisions.fence().await.expect("in force").seq;
        let outcome = self.service().fanout.process(&task).await.expect("processed");
        // Only the first task of a version is not worth a look: if that comes twice, it is worked on twice.
        let looks = task.attempt > 0 || version > task.version;
        let was_done = self.done.insert(chunk, (version, fence)) == Some((version, fence));
        let expected = if looks && was_done { Outcome::AlreadyDone } else { Outcome::Done };
        assert_eq!(outcome, expected, "{task:?} at version {version}");
        let changed = self.model.deliver(task.post_id, &task.chunk.viewers);
        assert!(outcome == Outcome::Done || changed.is_empty(), "{outcome:?} left rows to write");
        assert!(changed.iter().all(|viewer| !known.contains(viewer)), "bumped before the rows were there");
        // What is worked on again bumps again where the record does not know the change: it was made since (under a new
        // fence, after an eviction), a mark has taken the change's place, or later changes have pushed it out. Such
        // clients read an unchanged post again. Nothing else moves.
        if outcome == Outcome::Done {
            let moved = |viewer: &ViewerId| task.chunk.viewers.contains(viewer) && !known.contains(viewer);
            for client in self.clients.iter_mut().filter(|client| moved(&client.viewer)) {
                client.touch(task.post_id);
            }
        }
        self.ran.push(task);
    }

    /// The viewers of a chunk whose records remember the change to `version` of its post.
    async fn remembering(&mut self, task: &Task, version: u32) -> Vec<ViewerId> {
        let mut viewers = Vec::new();
        for viewer in task.chunk.viewers.iter() {
            let record = self.service().revisions.record(viewer).await.expect("asked");
            let Some((_, record)) = record else { continue };
            if record.entries().any(|entry| entry.post_id == task.post_id && entry.stamp == version) {
                viewers.push(viewer.clone());
            }
        }
        viewers
    }

    async fn relay(&mut self) {
        self.service().relay.pass().await.expect("passed");
    }

    async fn restart(&mut self) {
        if let Some(service) = self.service.take() {
            service.end().await;
        }
        self.waiting.clear();
        self.service = Some(Service::start(&self.home, &self.clock).await);
    }

    /// A poll reads no store, and "unchanged" is true.
    async fn poll(&mut self, n: usize) -> Check {
        let (viewer, token, now) = (self.clients[n].viewer.clone(), self.clients[n].token, self.clock.now());
        // Who watches Redis asks the store now and then, by itself.
        let by_polls = |path: Path| path != Path::System || !is_cluster();
        let reads =
            |service: &Service| Path::ALL.map(|path| if by_polls(path) { service.store.reads(path) } else { 0 });
        let before = reads(self.service());
        let poll = self.service().reader.poll(&viewer, token).await.expect("polled");
        if reads(self.service()) != before {
            return Err(TestCaseError::fail("a poll has read the store"));
        }
        match poll {
            Poll::Unchanged => self.clients[n].check_current(&self.model, now),
            Poll::Changed => Ok(()),
        }
    }

    async fn sync(&mut self, n: usize) -> Check {
        let (viewer, now) = (self.clients[n].viewer.clone(), self.clock.now());
        let Some(token) = self.clients[n].token else { return self.resync(n).await };
        match self.service().reader.changes(&viewer, token).await {
            Ok(None) => self.clients[n].check_current(&self.model, now),
            Ok(Some(delta)) => {
                let window: BTreeSet<PostId> = self.model.window(&viewer).into_iter().map(|(id, _)| id).collect();
                let client = &mut self.clients[n];
                for item in &delta.upserted {
                    if !client.touched.contains(&item.post.id) {
                        return Err(TestCaseError::fail(format!("a delta brings {}, unchanged", item.post.id)));
                    }
                    client.take(item);
                }
                for id in &delta.removed {
                    if window.contains(id) && !client.touched.contains(id) {
                        return Err(TestCaseError::fail(format!("a delta removes {id}, unchanged")));
                    }
                    client.items.remove(id);
                }
                (client.token, client.counts) = (Some(delta.token), delta.counts);
                client.touched.clear();
                // What a delta does not name may still be withdrawn: it may go before its bump.
                self.clients[n].check_current(&self.model, now)
            }
            Err(error) if error.kind() == Kind::Resync => self.resync(n).await,
            Err(error) => Err(TestCaseError::fail(format!("no delta: {error}"))),
        }
    }

    /// Replaces the copy by a whole walk with nothing in between: exactly what is visible.
    async fn resync(&mut self, n: usize) -> Check {
        self.clients[n].walk = None;
        loop {
            self.walk(n, 2).await?;
            if self.clients[n].walk.is_none() {
                break;
            }
        }
        let now = self.clock.now();
        self.clients[n].check_exact(&self.model, now)
    }

    async fn walk(&mut self, n: usize, limit: u32) -> Check {
        let viewer = self.clients[n].viewer.clone();
        let begun = self.clients[n].walk.take();
        let page = match &begun {
            None => self.service().reader.first_page(&viewer, false, limit).await.expect("read"),
            Some(walk) => self.service().reader.next_page(&viewer, walk.next, limit).await.expect("read"),
        };
        let Page { token, items, next, counts, .. } = page;
        let (mut all, touched) = match begun {
            None => (Default::default(), BTreeSet::new()),
            Some(walk) if walk.token != token => {
                return Err(TestCaseError::fail("a page has another token than its walk"));
            }
            Some(walk) => (walk.items, walk.touched),
        };
        all.extend(items.iter().map(known));
        let client = &mut self.clients[n];
        match next {
            Some(next) => client.walk = Some(Walk { token, items: all, next, touched }),
            None => {
                // The copy is as old as its first page; the counts came with the last one.
                (client.token, client.items, client.counts, client.touched) = (token, all, counts, touched);
            }
        }
        Ok(())
    }

    async fn mark_one(&mut self, n: usize, item: u8, mark: Mark, value: bool) -> Check {
        let (viewer, token) = (self.clients[n].viewer.clone(), self.clients[n].token);
        let ids: Vec<PostId> = self.clients[n].items.keys().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let id = ids[item as usize % ids.len()];
        let visible = self.model.visible(&viewer, self.clock.now());
        match self.service().marker.mark(viewer, id, mark, value, token).await {
            Ok(outcome) => self.marked(n, &[id], mark, value, outcome),
            Err(error) if error.code() == "item_not_found" && !visible.contains_key(&id) => Ok(()),
            Err(error) => Err(TestCaseError::fail(format!("a mark failed: {error}"))),
        }
    }

    async fn mark_many(&mut self, n: usize, items: u8, mark: Mark, value: bool) -> Check {
        let (viewer, token) = (self.clients[n].viewer.clone(), self.clients[n].token);
        let ids: Vec<PostId> = self.clients[n].items.keys().take(items as usize % 8).copied().collect();
        let target = Target::Posts(ids.clone());
        let outcome = self.service().marker.mark_many(viewer, target, mark, value, token).await.expect("marked");
        let ids = outcome.post_ids.clone();
        self.marked(n, &ids, mark, value, outcome)
    }

    async fn mark_through(&mut self, n: usize, mark: Mark) -> Check {
        let (viewer, now) = (self.clients[n].viewer.clone(), self.clock.now());
        let Some(token) = self.clients[n].token else { return Ok(()) };
        let visible = self.model.visible(&viewer, now);
        let target = Target::Through(token);
        match self.service().marker.mark_many(viewer, target, mark, true, Some(token)).await {
            Ok(outcome) => {
                let ids = outcome.post_ids.clone();
                for id in &ids {
                    if !self.clients[n].items.contains_key(id) {
                        return Err(TestCaseError::fail(format!("{id} was marked, the client had never read it")));
                    }
                }
                let client = &self.clients[n];
                for (id, known) in client.listed() {
                    let open = visible.contains_key(&id) && !known.marks.has(mark) && !client.touched.contains(&id);
                    if open && self.fully_delivered(id) && !ids.contains(&id) {
                        return Err(TestCaseError::fail(format!("{id} was there and is left unmarked")));
                    }
                }
                self.marked(n, &ids, mark, true, outcome)
            }
            Err(error) if error.kind() == Kind::Resync => Ok(()),
            Err(error) => Err(TestCaseError::fail(format!("marking through a token failed: {error}"))),
        }
    }

    /// All of the post's viewers have its rows.
    fn fully_delivered(&self, id: PostId) -> bool {
        let has_row = |viewer| self.model.rows.get(viewer).is_some_and(|rows| rows.contains_key(&id));
        self.model.audiences[&id].iter().all(has_row)
    }

    /// Carries a mark over to the model and to the client, as the protocol says.
    fn marked(&mut self, n: usize, ids: &[PostId], mark: Mark, value: bool, outcome: MarkOutcome) -> Check {
        let (viewer, now) = (self.clients[n].viewer.clone(), self.clock.now());
        for id in ids {
            let row = self.model.rows.get_mut(&viewer).and_then(|rows| rows.get_mut(id));
            let Some(row) = row else { return Err(TestCaseError::fail(format!("{id} was marked without a row"))) };
            let after = row.marks.with(mark, value, now);
            if after != row.marks {
                row.marks = after;
                for client in self.clients.iter_mut().filter(|client| client.viewer == viewer) {
                    client.touch(*id);
                }
            }
        }
        if outcome.counts != self.model.counts(&viewer, now) {
            return Err(TestCaseError::fail(format!("a mark answers counts {:?}", outcome.counts)));
        }
        let client = &mut self.clients[n];
        if let Some((from, next)) = outcome.moved {
            if client.token != Some(from) {
                return Err(TestCaseError::fail("a mark moves another token than the client's"));
            }
            for item in &outcome.items {
                client.take(item);
            }
            for (id, known) in client.items.iter_mut().filter(|(id, _)| ids.contains(id)) {
                known.marks = self.model.rows[&viewer][id].marks;
            }
            (client.token, client.counts) = (Some(next), outcome.counts);
            client.touched.clear();
        }
        Ok(())
    }
}
