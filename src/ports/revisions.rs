//! The revisions: one record a viewer that says whether anything has changed.

use std::future::Future;
use std::time::Instant;

use crate::domain::{Change, Fence, PostId, Record, Revision, ViewerId};
use crate::error::Result;

/// What marks did to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkBump {
    /// The revision just before; `None` if there was no record.
    pub before: Option<Revision>,
    /// The revision just after; `None` if there is no record.
    pub after: Option<Revision>,
    /// The number of the fence under which it happened.
    pub fence: u32,
}

/// One revision record for each viewer that reads. Records may vanish at any time (eviction, restart): a missing one
/// equals nothing, and one that is made again has a new epoch, so that no token from before ever matches.
pub trait Revisions {
    /// The revision of an inbox; `None` if there is no record. Never reads the store.
    fn current(&self, viewer: &ViewerId) -> impl Future<Output = Result<Option<Revision>>> + Send;

    /// The revisions of several inboxes, in the same order.
    fn current_many(&self, viewers: &[ViewerId]) -> impl Future<Output = Result<Vec<Option<Revision>>>> + Send;

    /// The revision of an inbox, its record made first if there is none. A reader calls this before it reads rows.
    fn open(&self, viewer: &ViewerId) -> impl Future<Output = Result<Revision>> + Send;

    /// The whole record, with the nonce of the fence it was read under.
    fn record(&self, viewer: &ViewerId) -> impl Future<Output = Result<Option<(u64, Record)>>> + Send;

    /// Records `change` for each of `viewers` and wakes whoever waits for one. A record that has this very change
    /// stays as it is; a missing record needs none: who reads next makes one and then reads rows that are there
    /// already. Answers the number of the fence under which *all* of it happened.
    fn bump(&self, viewers: &[ViewerId], change: Change) -> impl Future<Output = Result<u32>> + Send;

    /// Records marks on `posts`, atomically, and wakes whoever waits.
    fn bump_marks(&self, viewer: &ViewerId, posts: &[PostId]) -> impl Future<Output = Result<MarkBump>> + Send;

    /// Waits until the revision differs from `seen` or `deadline` passes, and answers what it then is.
    fn changed(
        &self,
        viewer: &ViewerId,
        seen: Revision,
        deadline: Instant,
    ) -> impl Future<Output = Result<Option<Revision>>> + Send;

    /// The fence that is in force.
    fn fence(&self) -> impl Future<Output = Result<Fence>> + Send;
}
