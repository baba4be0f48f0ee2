//! Marks: what a viewer does to items. A mark is a commit too: the row first, then the bump, then its intent is cleared.

use std::collections::HashSet;

use tracing::warn;

use crate::adapters::{Revisions, Store};
use crate::clock::Clock;
use crate::domain::revision::NoDelta;
use crate::domain::{Counts, Done, Fence, Mark, PostId, Revision, Row, Token, ViewerId};
use crate::error::{Error, Result};
use crate::ports::{MarkOrder, Revisions as _, Store as _};
use crate::publish::uninterrupted;
use crate::reader::{Item, Reader};
use crate::{faults, intents};

/// Sets and clears marks.
#[derive(Clone, Debug)]
pub struct Marker {
    /// The truth, read on behalf of marks.
    pub store: Store,
    /// What to bump.
    pub revisions: Revisions,
    /// Reads back what a mark answers.
    pub reader: Reader,
    /// What time it is.
    pub clock: Clock,
}

/// Which items a bulk mark is for.
#[derive(Clone, Debug)]
pub enum Target {
    /// These, as far as they are in the inbox.
    Posts(Vec<PostId>),
    /// All that the holder of this token can have seen.
    Through(Token),
}

/// What marks did.
#[derive(Clone, Debug)]
pub struct MarkOutcome {
    /// The client's own token and the next one, if nothing but these marks lies between: no fetch is needed.
    pub moved: Option<(Token, Token)>,
    /// The posts that were marked.
    pub post_ids: Vec<PostId>,
    /// The items marked, for a single mark.
    pub items: Vec<Item>,
    /// Over the whole inbox, afterwards.
    pub counts: Counts,
}

impl Marker {
    /// Sets or clears one mark.
    pub async fn mark(
        &self,
        viewer: ViewerId,
        post_id: PostId,
        mark: Mark,
        value: bool,
        since: Option<Token>,
    ) -> Result<MarkOutcome> {
        let this = self.clone();
        uninterrupted(async move {
            if this.present(&viewer, vec![post_id]).await?.is_empty() {
                let detail = format!("there is no item {post_id} in this inbox");
                return Err(Error::not_found("item_not_found", detail));
            }
            let outcome = this.apply(&viewer, vec![post_id], mark, value, since).await?;
            if outcome.items.is_empty() {
                let detail = format!("there is no item {post_id} in this inbox any more");
                return Err(Error::not_found("item_not_found", detail));
            }
            Ok(outcome)
        })
        .await
    }

    /// Sets or clears a mark on many items.
    pub async fn mark_many(
        &self,
        viewer: ViewerId,
        target: Target,
        mark: Mark,
        value: bool,
        since: Option<Token>,
    ) -> Result<MarkOutcome> {
        let this = self.clone();
        uninterrupted(async move {
            let ids = match target {
                Target::Posts(ids) => this.present(&viewer, ids).await?,
                Target::Through(token) => this.through(&viewer, token, mark, value).await?,
            };
            let mut outcome = this.apply(&viewer, ids, mark, value, since).await?;
            if mark == Mark::Archived && !value {
                // Items come back to the list, and this answer does not bring them: the client must fetch.
                outcome.moved = None;
            }
            Ok(outcome)
        })
        .await
    }

    /// Those of `ids` that are served in this inbox, each once.
    async fn present(&self, viewer: &ViewerId, ids: Vec<PostId>) -> Result<Vec<PostId>> {
        let view = self.reader.view().await?;
        let rows = self.reader.served_rows(&self.store, viewer).await?;
        let mut served: HashSet<PostId> = rows.iter().filter(|row| view.shows(row)).map(|row| row.post_id).collect();
        Ok(ids.into_iter().filter(|id| served.remove(id)).collect())
    }

    /// The items that were there at `token` and lack the mark.
    ///
    /// In this order: rows, then what is still being fanned out, then the ring. A row that was there but whose bump came
    /// after the token is either in the ring by now, or its chunk was not done when we looked. Unless its bump went to a
    /// newer life of the revision store, of which this process has not heard yet: then it is in another ring.
    async fn through(&self, viewer: &ViewerId, token: Token, mark: Mark, value: bool) -> Result<Vec<PostId>> {
        let fence = self.revisions.fence().await?;
        let view = self.reader.view().await?;
        let rows = self.reader.served_rows(&self.store, viewer).await?;
        let open = |row: &&Row| {
            view.shows(row)
                && row.marks.has(mark) != value
                && (row.marks.archived_at.is_none() || mark == Mark::Archived)
        };
        let candidates: Vec<Row> = rows.iter().filter(open).copied().collect();
        let unfinished = self.unfinished(&candidates, fence).await?;
        let Some((nonce, record)) = self.revisions.record(viewer).await? else {
            return Err(Error::resync("unknown_revision"));
        };
        let Revision { nonce: token_nonce, epoch, counter } = token.revision;
        if (nonce, record.epoch()) != (token_nonce, epoch) || nonce != fence.nonce {
            return Err(Error::resync(if nonce == token_nonce && nonce == fence.nonce {
                "unknown_revision"
            } else {
                "fence"
            }));
        }
        let later: HashSet<PostId> = match record.changed_since(counter) {
            Ok(posts) => posts.into_iter().collect(),
            Err(NoDelta::TooOld) => return Err(Error::resync("too_old")),
            Err(NoDelta::Unknown) => return Err(Error::resync("unknown_revision")),
        };
        let known: HashSet<PostId> = record.entries().filter(|e| e.counter <= counter).map(|e| e.post_id).collect();
        let was_there = |id: &PostId| !later.contains(id) && (known.contains(id) || !unfinished.contains(id));
        Ok(candidates.iter().map(|row| row.post_id).filter(was_there).collect())
    }

    /// Which of `rows` belong to posts that have not been fanned out to everybody yet, at whatever version: these may
    /// have arrived without their bump. An edit is no arrival. An error where the bumps of one are under a newer fence.
    async fn unfinished(&self, rows: &[Row], fence: Fence) -> Result<HashSet<PostId>> {
        let ids: Vec<PostId> = rows.iter().map(|row| row.post_id).collect();
        let posts = self.store.posts(&ids).await?;
        let mut unfinished = HashSet::new();
        for (row, post) in rows.iter().zip(posts) {
            let Some(post) = post else { continue };
            // A thousand items are some milliseconds of reads: let others in between.
            tokio::task::coop::consume_budget().await;
            let states = self.store.chunk_states(post.id, 0..post.chunk_count()).await?;
            if states.iter().any(|state| state.done.is_some_and(|done| done.is_after(fence.seq))) {
                return Err(Error::resync("fence"));
            }
            // Where it was given up, a later version is the first that its viewers get.
            let is_first = |done: Done| done.is_given_up() && row.version > done.version;
            if states.iter().any(|state| state.done.is_none_or(is_first)) {
                unfinished.insert(row.post_id);
            }
        }
        Ok(unfinished)
    }

    async fn apply(
        &self,
        viewer: &ViewerId,
        post_ids: Vec<PostId>,
        mark: Mark,
        value: bool,
        since: Option<Token>,
    ) -> Result<MarkOutcome> {
        let order = MarkOrder { viewer, post_ids: &post_ids, mark, value, now: self.clock.now() };
        let marked = self.store.mark(&order).await?;
        let moved = if marked.changed.is_empty() {
            // Nothing changed: a client that was current still is.
            let current = self.revisions.current(viewer).await?;
            since.filter(|token| self.reader.is_current(token, current)).map(|token| (token, token.revision))
        } else {
            faults::at("mark.written");
            let bump = self.revisions.bump_marks(viewer, &marked.changed).await?;
            if let Some(intent) = marked.intent
                && let Err(error) = intents::clear(&self.store, viewer, intent, &bump).await
            {
                warn!(%error, "an intent could not be cleared; the relay will bump once more");
            }
            since.filter(|token| self.reader.is_current(token, bump.before)).zip(bump.after)
        };
        let (items, counts, ends_at) = self.reader.after_marks(&self.store, viewer, &post_ids).await?;
        // What the marks brought back to the list may end earlier than all the rest.
        let moved = moved.map(|(from, revision)| (from, from.moved_to(revision, ends_at)));
        let post_ids = marked.rows.iter().map(|row| row.post_id).collect();
        Ok(MarkOutcome { moved, post_ids, items, counts })
    }
}
