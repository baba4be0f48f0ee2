//! A client as the protocol wants it: it holds a copy and the token of that copy, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use fanfold::domain::{Counts, Cursor, Mark, Marks, PostId, Time, Token, ViewerId};
use fanfold::reader::Item;
use proptest::test_runner::TestCaseError;

use crate::model::{Model, Shown};

/// What a client knows of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub version: u32,
    pub marks: Marks,
}

#[derive(Debug)]
pub struct Client {
    pub viewer: ViewerId,
    /// `None` until it has read its inbox.
    pub token: Option<Token>,
    /// The default list; archived items are known only as far as marks and deltas brought them.
    pub items: BTreeMap<PostId, Known>,
    pub counts: Counts,
    pub walk: Option<Walk>,
    /// Posts whose rows or marks changed since the copy was taken.
    pub touched: BTreeSet<PostId>,
}

/// A walk over pages that is not finished.
#[derive(Debug)]
pub struct Walk {
    pub token: Option<Token>,
    pub items: BTreeMap<PostId, Known>,
    pub next: Cursor,
    pub touched: BTreeSet<PostId>,
}

pub fn known(item: &Item) -> (PostId, Known) {
    (item.post.id, Known { version: item.post.version, marks: item.marks })
}

fn fail<T>(what: String) -> Result<T, TestCaseError> {
    Err(TestCaseError::fail(what))
}

impl Client {
    pub fn new(viewer: ViewerId) -> Self {
        let (items, touched) = (BTreeMap::new(), BTreeSet::new());
        Self { viewer, token: None, items, counts: Counts::default(), walk: None, touched }
    }

    /// Something about `post` changed for this viewer.
    pub fn touch(&mut self, post: PostId) {
        self.touched.insert(post);
        if let Some(walk) = &mut self.walk {
            walk.touched.insert(post);
        }
    }

    /// Takes an item as an answer showed it.
    pub fn take(&mut self, item: &Item) {
        let (id, known) = known(item);
        self.items.insert(id, known);
    }

    /// The copy of the default list.
    pub fn listed(&self) -> BTreeMap<PostId, Known> {
        self.items.iter().filter(|(_, k)| !k.marks.has(Mark::Archived)).map(|(id, k)| (*id, *k)).collect()
    }

    /// The heart of the matter: a poll said "unchanged", so the copy must show what the model shows. Only what is
    /// withdrawn may differ: it may be gone before its bump.
    pub fn check_current(&self, model: &Model, now: Time) -> Result<(), TestCaseError> {
        let visible = model.visible(&self.viewer, now);
        let listed = self.listed();
        for (id, row) in visible.iter().filter(|(_, row)| !row.marks.has(Mark::Archived)) {
            match listed.get(id) {
                Some(known) if known.version >= row.version && known.marks == row.marks => {}
                other => return fail(format!("unchanged, but {id} is {row:?} and the copy has {other:?}")),
            }
        }
        let rows = model.rows.get(&self.viewer);
        let mut withdrawn = false;
        for (id, row) in model.window(&self.viewer) {
            withdrawn |= model.shown(id, &row, now) == Shown::Withdrawn;
        }
        for id in listed.keys().filter(|id| !visible.contains_key(id)) {
            let shown = rows.and_then(|rows| rows.get(id)).map(|row| model.shown(*id, row, now));
            if shown != Some(Shown::Withdrawn) {
                return fail(format!("unchanged, but the copy has {id}, which is {shown:?}"));
            }
        }
        let counts = model.counts(&self.viewer, now);
        if !withdrawn && counts != self.counts {
            return fail(format!("unchanged, but counts are {counts:?} and the copy has {:?}", self.counts));
        }
        Ok(())
    }

    /// An answer has just been applied: the copy must be exactly what is visible.
    pub fn check_exact(&self, model: &Model, now: Time) -> Result<(), TestCaseError> {
        let visible = model.visible(&self.viewer, now);
        let expected: Vec<_> = visible.iter().filter(|(_, row)| !row.marks.has(Mark::Archived)).collect();
        let listed = self.listed();
        let same = expected.len() == listed.len()
            && expected.iter().zip(&listed).all(|((id, row), (known_id, known))| {
                *id == known_id && known.version >= row.version && known.marks == row.marks
            });
        if !same {
            return fail(format!("the copy has {listed:?}, visible is {expected:?}"));
        }
        let counts = model.counts(&self.viewer, now);
        if counts != self.counts {
            return fail(format!("counts are {counts:?}, the copy has {:?}", self.counts));
        }
        Ok(())
    }
}
