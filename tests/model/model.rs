//! What must be so: every row there is, and which of them a viewer may see.

use std::collections::{BTreeMap, HashMap};

use fanfold::domain::view::Count;
use fanfold::domain::{Counts, Mark, Marks, Post, PostId, PostState, Time, ViewerId};

use crate::in_process::{INBOX_TTL, ITEMS_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelRow {
    pub version: u32,
    pub deleted: bool,
    pub expires_at: Option<Time>,
    pub marks: Marks,
}

#[derive(Debug, Default)]
pub struct Model {
    pub posts: HashMap<PostId, Post>,
    pub audiences: HashMap<PostId, Vec<ViewerId>>,
    pub rows: HashMap<ViewerId, BTreeMap<PostId, ModelRow>>,
}

/// How a row stands towards a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Yes,
    /// Hidden by the row itself.
    No,
    /// Hidden by the post although its row does not say so yet: it may go before its bump comes.
    Withdrawn,
}

impl Model {
    /// Fan-out of the present version of `post` to `viewers`; answers whose rows changed.
    pub fn deliver(&mut self, post_id: PostId, viewers: &[ViewerId]) -> Vec<ViewerId> {
        let post = &self.posts[&post_id];
        let (version, deleted) = (post.version, post.state == PostState::Retracted);
        let mut changed = Vec::new();
        for viewer in viewers {
            let row = self.rows.entry(viewer.clone()).or_default().entry(post_id).or_insert(ModelRow {
                version: 0,
                deleted: false,
                expires_at: None,
                marks: Marks::default(),
            });
            if row.version != version {
                changed.push(viewer.clone());
            }
            (row.version, row.deleted, row.expires_at) = (version, deleted, post.expires_at);
        }
        changed
    }

    /// The newest rows that are served, newest first.
    pub fn window(&self, viewer: &ViewerId) -> Vec<(PostId, ModelRow)> {
        let rows = self.rows.get(viewer).into_iter().flatten();
        rows.rev().take(ITEMS_MAX).map(|(id, row)| (*id, *row)).collect()
    }

    pub fn shown(&self, post_id: PostId, row: &ModelRow, now: Time) -> Shown {
        let post = &self.posts[&post_id];
        let passed = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if row.deleted || passed(row.expires_at) || post_id.time().after(INBOX_TTL) <= now {
            Shown::No
        } else if post.state == PostState::Retracted || (post.version > 1 && passed(post.expires_at)) {
            Shown::Withdrawn
        } else {
            Shown::Yes
        }
    }

    /// What a viewer sees, archived items included.
    pub fn visible(&self, viewer: &ViewerId, now: Time) -> BTreeMap<PostId, ModelRow> {
        let window = self.window(viewer).into_iter();
        window.filter(|(id, row)| self.shown(*id, row, now) == Shown::Yes).collect()
    }

    pub fn counts(&self, viewer: &ViewerId, now: Time) -> Counts {
        let visible = self.visible(viewer, now);
        let open = |mark| {
            let of = visible.values().filter(|row| !row.marks.has(Mark::Archived) && !row.marks.has(mark)).count();
            Count { value: of as u32, capped: false }
        };
        Counts { unseen: open(Mark::Seen), unread: open(Mark::Read) }
    }
}
