//! Reading: polls, pages and deltas. The revision is taken before rows are read, so nothing is older than its token.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;

use crate::adapters::{Revisions, Store};
use crate::clock::Clock;
use crate::domain::revision::{NoDelta, RING_MAX};
use crate::domain::{Counts, Cursor, Marks, Post, PostId, PostState, Revision, Row, Time, Token, View, ViewerId};
use crate::error::{Error, Kind, Result};
use crate::faults::{self, Planted};
use crate::flights::Flights;
use crate::ports::{Revisions as _, Store as _};
use crate::withdrawals::Withdrawals;

/// How many rows just beyond those that are served a delta names as pushed out: one for each entry of the ring, and some
/// for rows that are written but not bumped yet.
const BEYOND: u32 = RING_MAX as u32 + 48;

/// Bounds on what a reader gets.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// How long rows live, from the post's creation.
    pub inbox_ttl: Duration,
    /// The newest rows that are served and counted.
    pub items_max: u32,
    /// How long a token is good for if nothing changes; a backstop.
    pub token_age_max: Duration,
}

/// One item as a viewer sees it: the row's marks, the post's body.
#[derive(Clone, Debug)]
pub struct Item {
    /// The post, at the row's version or a later one.
    pub post: Arc<Post>,
    /// The viewer's marks on it.
    pub marks: Marks,
}

/// Pages read at the same time while there are no revisions.
const HERD_READS: usize = 64;
/// How long such a page waits for its turn.
const HERD_PATIENCE: Duration = Duration::from_secs(5);

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// The client's copy is current.
    Unchanged,
    /// It is not, or the client has none.
    Changed,
}

/// A page of an inbox.
#[derive(Clone, Debug)]
pub struct Page {
    /// The token of the walk's first page; `None` over archived items and when revisions are unavailable.
    pub token: Option<Token>,
    /// Newest first.
    pub items: Vec<Item>,
    /// Where to go on; `None` on the last page.
    pub next: Option<Cursor>,
    /// This is the last page, and older items were left out.
    pub truncated: bool,
    /// Over the whole inbox, as of this page.
    pub counts: Counts,
}

/// What changed since a token.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The token to go on with.
    pub token: Token,
    /// Items that are new or changed; archived ones say so.
    pub upserted: Vec<Item>,
    /// Posts that are no longer served.
    pub removed: Vec<PostId>,
    /// Over the whole inbox.
    pub counts: Counts,
}

/// Serves inboxes.
#[derive(Clone, Debug)]
pub struct Reader {
    pages: Store,
    deltas: Store,
    revisions: Revisions,
    withdrawals: Withdrawals,
    clock: Clock,
    limits: ReadLimits,
    bodies: Bodies,
    /// Pages that are read while there are no revisions.
    herd: Arc<Flights<ViewerId, (View, Rows)>>,
}

impl Reader {
    /// A reader; `pages` and `deltas` are the store on behalf of each. A poll gets none.
    pub fn new(
        pages: Store,
        deltas: Store,
        revisions: Revisions,
        withdrawals: Withdrawals,
        clock: Clock,
        limits: ReadLimits,
        body_cache_bytes_max: u64,
    ) -> Self {
        let bodies = Bodies::new(body_cache_bytes_max);
        let herd = Arc::new(Flights::new(HERD_READS, HERD_PATIENCE));
        Self { pages, deltas, revisions, withdrawals, clock, limits, bodies, herd }
    }

    /// Compares a token with the viewer's revision. Never reads the store.
    pub async fn poll(&self, viewer: &ViewerId, since: Option<Token>) -> Result<Poll> {
        let current = self.revisions.current(viewer).await?;
        let unchanged = since.is_some_and(|token| self.is_current(&token, current));
        Ok(if unchanged { Poll::Unchanged } else { Poll::Changed })
    }

    /// As [`Reader::poll`], but waits for a change until `deadline`. Without a token there is nothing to wait for.
    pub async fn poll_until(&self, viewer: &ViewerId, since: Option<Token>, deadline: Instant) -> Result<Poll> {
        let Some(token) = since.filter(|_| deadline > Instant::now()) else {
            return self.poll(viewer, since).await;
        };
        // A token that runs out while waiting is a change.
        let runs_out = Instant::now() + token.refresh_by.since(self.clock.now()).min(Duration::from_secs(3600));
        let current = self.revisions.changed(viewer, token.revision, deadline.min(runs_out)).await?;
        let unchanged = self.is_current(&token, current);
        Ok(if unchanged { Poll::Unchanged } else { Poll::Changed })
    }

    /// Whether a client with `token` has seen everything at `current`.
    pub fn is_current(&self, token: &Token, current: Option<Revision>) -> bool {
        token.matches(current, self.clock.now(), self.limits.token_age_max)
    }

    /// Polls for several viewers at once.
    pub async fn poll_many(&self, polls: &[(ViewerId, Option<Token>)]) -> Result<Vec<Poll>> {
        let viewers: Vec<_> = polls.iter().map(|(viewer, _)| viewer.clone()).collect();
        let current = self.revisions.current_many(&viewers).await?;
        let compare = |((_, since), current): (&(ViewerId, Option<Token>), Option<Revision>)| {
            let unchanged = since.is_some_and(|token| self.is_current(&token, current));
            if unchanged { Poll::Unchanged } else { Poll::Changed }
        };
        Ok(polls.iter().zip(current).map(compare).collect())
    }

    /// The first page of an inbox; of the archived items if so asked, which comes without a token.
    pub async fn first_page(&self, viewer: &ViewerId, archived: bool, limit: u32) -> Result<Page> {
        // The revision first, then the rows: the page is never older than its token.
        let early = if faults::planted(Planted::RowsBeforeToken) {
            let read = self.read_window(&self.pages, viewer).await?;
            tokio::time::sleep(Duration::from_millis(150)).await;
            Some(read)
        } else {
            None
        };
        let opened = if archived { None } else { self.open(viewer).await? };
        let (view, window) = match early {
            Some(read) => read,
            // Without revisions every poll becomes a page: the herd shares reads, and waits in a queue that ends.
            None if opened.is_none() && !archived => self.read_shared(viewer).await?,
            None => self.read_window(&self.pages, viewer).await?,
        };
        let page = self.cut(&view, window, None, archived, limit).await?;
        let token = opened.map(|revision| Token { revision, refresh_by: self.refresh_by(&view, page.ends_at) });
        Ok(page.into_page(archived, token))
    }

    /// A further page. Its token is the first page's, however much has changed since.
    pub async fn next_page(&self, viewer: &ViewerId, cursor: Cursor, limit: u32) -> Result<Page> {
        let (view, window) = self.read_window(&self.pages, viewer).await?;
        let page = self.cut(&view, window, Some(cursor.after), cursor.archived, limit).await?;
        Ok(page.into_page(cursor.archived, cursor.token))
    }

    /// What changed since a token: `None` if nothing did, an error of kind [`Kind::Resync`] if that cannot be told.
    pub async fn changes(&self, viewer: &ViewerId, since: Token) -> Result<Option<Delta>> {
        let result = self.delta(viewer, since).await;
        if let Err(error) = &result
            && error.kind() == Kind::Resync
        {
            counter!("fanfold_resyncs_total", "reason" => error.detail().to_owned()).increment(1);
        }
        result
    }

    async fn delta(&self, viewer: &ViewerId, since: Token) -> Result<Option<Delta>> {
        if !since.is_fresh(self.clock.now(), self.limits.token_age_max) {
            return Err(Error::resync("refresh"));
        }
        let (current, changed) = self.changed_since(viewer, since).await?;
        if current == since.revision {
            return Ok(None);
        }
        let (view, mut window) = self.read_window(&self.deltas, viewer).await?;
        let changed: HashSet<PostId> = changed.into_iter().collect();
        let rows: Vec<Row> = window.served.iter().filter(|r| changed.contains(&r.post_id)).copied().collect();
        let shown: Vec<Row> = rows.into_iter().filter(|row| view.shows(row)).collect();
        let (items, gone) = self.bodies.join(&self.deltas, &view, &shown).await?;
        window.drop_bodies(&gone);
        let (counts, _) = view.summarize(&window.served);
        let upserted: HashSet<PostId> = items.iter().map(|item| item.post.id).collect();
        let mut removed: Vec<PostId> = changed.into_iter().filter(|id| !upserted.contains(id)).collect();
        // Each new item may have pushed an old one out of what is served.
        removed.extend(window.beyond.iter().map(|row| row.post_id).filter(|id| !upserted.contains(id)));
        removed.sort_unstable();
        removed.dedup();
        let ends_at = shown.iter().map(|row| view.ends_at(row)).min().unwrap_or(Time::MAX);
        Ok(Some(Delta { token: since.moved_to(current, ends_at), upserted: items, removed, counts }))
    }

    /// The present revision and the posts that changed after `since`.
    async fn changed_since(&self, viewer: &ViewerId, since: Token) -> Result<(Revision, Vec<PostId>)> {
        let Some((nonce, record)) = self.revisions.record(viewer).await? else {
            return Err(Error::resync("unknown_revision"));
        };
        let current = record.revision(nonce);
        if current.nonce != since.revision.nonce {
            return Err(Error::resync("fence"));
        }
        if current.epoch != since.revision.epoch {
            return Err(Error::resync("unknown_revision"));
        }
        match record.changed_since(since.revision.counter) {
            Ok(posts) => Ok((current, posts)),
            Err(NoDelta::TooOld) => Err(Error::resync("too_old")),
            Err(NoDelta::Unknown) => Err(Error::resync("unknown_revision")),
        }
    }

    /// Items of an inbox by id, with the counts, after a change to them: what a mark answers.
    pub async fn after_marks(
        &self,
        store: &Store,
        viewer: &ViewerId,
        ids: &[PostId],
    ) -> Result<(Vec<Item>, Counts, Time)> {
        let (view, mut window) = self.read_window(store, viewer).await?;
        let shown: Vec<Row> =
            window.served.iter().filter(|row| ids.contains(&row.post_id) && view.shows(row)).copied().collect();
        let (items, gone) = self.bodies.join(store, &view, &shown).await?;
        window.drop_bodies(&gone);
        let (counts, _) = view.summarize(&window.served);
        let ends_at = shown.iter().map(|row| view.ends_at(row)).min().unwrap_or(Time::MAX);
        Ok((items, counts, ends_at))
    }

    /// The rules as of now, the withdrawals taken before any row.
    pub async fn view(&self) -> Result<View> {
        let withdrawn = self.withdrawals.current().await?;
        Ok(View { now: self.clock.now(), ttl: self.limits.inbox_ttl, withdrawn })
    }

    /// The newest rows that are served and counted.
    pub async fn served_rows(&self, store: &Store, viewer: &ViewerId) -> Result<Vec<Row>> {
        Ok(self.read_window(store, viewer).await?.1.served)
    }

    async fn read_window(&self, store: &Store, viewer: &ViewerId) -> Result<(View, Rows)> {
        let view = self.view().await?;
        let items_max = self.limits.items_max;
        let window = store.window(viewer, items_max.saturating_add(BEYOND)).await?;
        let (mut served, truncated) = (window.rows, window.truncated);
        let beyond = served.split_off(served.len().min(items_max as usize));
        Ok((view, Rows { served, beyond, truncated }))
    }

    async fn read_shared(&self, viewer: &ViewerId) -> Result<(View, Rows)> {
        let read = self.herd.join(viewer, || self.read_window(&self.pages, viewer)).await?;
        Ok((*read).clone())
    }

    async fn open(&self, viewer: &ViewerId) -> Result<Option<Revision>> {
        match self.revisions.open(viewer).await {
            Ok(revision) => Ok(Some(revision)),
            // Pages still work; without a token the client cannot mistake them for current.
            Err(error) if error.kind() == Kind::Unavailable => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn cut(
        &self,
        view: &View,
        mut window: Rows,
        after: Option<PostId>,
        archived: bool,
        limit: u32,
    ) -> Result<CutPage> {
        let listed = |row: &&Row| {
            row.marks.archived_at.is_some() == archived
                && after.is_none_or(|after| row.post_id < after)
                && view.shows(row)
        };
        let mut rest = window.served.iter().filter(listed);
        let rows: Vec<Row> = rest.by_ref().take(limit as usize).copied().collect();
        let next_after = rest.next().and(rows.last()).map(|row| row.post_id);
        let (items, gone) = self.bodies.join(&self.pages, view, &rows).await?;
        window.drop_bodies(&gone);
        let (counts, ends_at) = view.summarize(&window.served);
        let left_out = window.truncated || window.beyond.iter().any(|row| view.shows(row));
        let truncated = next_after.is_none() && left_out;
        Ok(CutPage { items, next_after, truncated, counts, ends_at })
    }

    fn refresh_by(&self, view: &View, ends_at: Time) -> Time {
        // Up to a tenth earlier, so that clients that came together do not come back together.
        let age = self.limits.token_age_max.mul_f64(1.0 - 0.1 * rand::random::<f64>());
        view.now.after(age).min(ends_at)
    }
}

/// A viewer's newest rows: those that are served, and some just beyond.
#[derive(Clone, Debug)]
struct Rows {
    served: Vec<Row>,
    beyond: Vec<Row>,
    /// There are rows even beyond those.
    truncated: bool,
}

impl Rows {
    /// Takes rows whose bodies turned out to be gone as deleted, so that counts and items agree.
    fn drop_bodies(&mut self, gone: &HashSet<PostId>) {
        if !gone.is_empty() {
            for row in self.served.iter_mut().filter(|row| gone.contains(&row.post_id)) {
                row.deleted = true;
            }
        }
    }
}

struct CutPage {
    items: Vec<Item>,
    next_after: Option<PostId>,
    truncated: bool,
    counts: Counts,
    ends_at: Time,
}

impl CutPage {
    fn into_page(self, archived: bool, token: Option<Token>) -> Page {
        let next = self.next_after.map(|after| Cursor { archived, after, token });
        Page { token, items: self.items, next, truncated: self.truncated, counts: self.counts }
    }
}

/// Bodies by post, each with the version it carries: one at least as new as the row serves it, a newer one replaces it.
/// So nothing is ever invalidated, and a stale entry costs one read.
#[derive(Clone, Debug)]
struct Bodies(moka::sync::Cache<PostId, Arc<Post>>);

impl Bodies {
    fn new(bytes_max: u64) -> Self {
        let weigh = |_: &PostId, post: &Arc<Post>| {
            let texts = post.data.len() + post.kind.len() + post.thread_key.as_ref().map_or(0, |key| key.len());
            // The entry itself, its place in the cache, and the allocations around the texts.
            u32::try_from(texts + 400).unwrap_or(u32::MAX)
        };
        Self(moka::sync::Cache::builder().max_capacity(bytes_max).weigher(weigh).build())
    }

    /// The items of `rows`, and the posts among them that turn out to be gone.
    async fn join(&self, store: &Store, view: &View, rows: &[Row]) -> Result<(Vec<Item>, HashSet<PostId>)> {
        let mut found: Vec<Option<Arc<Post>>> = Vec::with_capacity(rows.len());
        let mut missing = Vec::new();
        for row in rows {
            let body = self.0.get(&row.post_id).filter(|post| post.version >= row.version);
            if body.is_none() {
                missing.push(row.post_id);
            }
            found.push(body);
        }
        let mut fetched = self.fetch(store, &missing).await?;
        let (mut items, mut gone) = (Vec::with_capacity(rows.len()), HashSet::new());
        for (row, body) in rows.iter().zip(found) {
            let body = body.or_else(|| fetched.remove(&row.post_id));
            // A body may be ahead of its row: what it says of the end of the post counts at once.
            match body.filter(|post| post.state == PostState::Live && !post.is_expired(view.now)) {
                Some(post) => items.push(Item { post, marks: row.marks }),
                None => {
                    gone.insert(row.post_id);
                }
            }
        }
        Ok((items, gone))
    }

    async fn fetch(&self, store: &Store, ids: &[PostId]) -> Result<HashMap<PostId, Arc<Post>>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let posts = store.posts(ids).await?.into_iter().flatten().map(Arc::new);
        Ok(posts.inspect(|post| self.0.insert(post.id, Arc::clone(post))).map(|post| (post.id, post)).collect())
    }
}
