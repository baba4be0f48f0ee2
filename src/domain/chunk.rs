//! Chunks: the numbered slices of an audience that fan-out works through, and the tasks that carry them.

use std::sync::Arc;

use super::ids::{PostId, ViewerId};
use super::post::Post;
use super::trace::TraceId;

/// A numbered slice of a post's audience: the unit of fan-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Counts from zero.
    pub no: u32,
    /// Its viewers, no one twice.
    pub viewers: Arc<[ViewerId]>,
}

/// How far a chunk has come: rows written and revisions bumped for `version`, under the fence numbered `fence`.
/// Ordered by version first, so that "at least as far" is one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Done {
    /// The version of the post that was written.
    pub version: u32,
    /// The number of the fence under which its revisions were bumped.
    pub fence: u32,
}

impl Done {
    /// In place of a fence: nothing was bumped and nothing is to be, whatever becomes of the records.
    const GIVEN_UP: u32 = u32::MAX;

    /// A chunk whose viewers do not get `version`. It stays so under every fence.
    pub fn given_up(version: u32) -> Self {
        Self { version, fence: Self::GIVEN_UP }
    }

    /// Whether it was given up: its viewers have nothing of that version, and nothing of one before.
    pub fn is_given_up(self) -> bool {
        self.fence == Self::GIVEN_UP
    }

    /// Whether its bumps went to records of a later fence than the one numbered `fence`.
    pub fn is_after(self, fence: u32) -> bool {
        self.fence > fence && !self.is_given_up()
    }

    /// One integer for the store: `version << 32 | fence`; its order is the order of [`Done`].
    pub fn pack(self) -> u64 {
        u64::from(self.version) << 32 | u64::from(self.fence)
    }

    /// The inverse of [`Done::pack`].
    pub fn unpack(packed: u64) -> Self {
        Self { version: (packed >> 32) as u32, fence: packed as u32 }
    }
}

/// What the store knows of a chunk's fan-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkState {
    /// The furthest that was finished: rows written (or skipped, their life being over) and revisions bumped.
    pub done: Option<Done>,
    /// The newest version whose rows are all written; bumps may be due.
    pub rows_version: Option<u32>,
    /// Set aside after too many failures; left alone until redriven.
    pub parked: bool,
}

impl ChunkState {
    /// Whether nothing is left to do for `version` under the fence numbered `fence`.
    pub fn is_done(&self, version: u32, fence: u32) -> bool {
        self.is_given_up(version) || self.done.is_some_and(|done| done.version >= version && done.fence == fence)
    }

    /// Whether its viewers do not get `version`, nor one before.
    pub fn is_given_up(&self, version: u32) -> bool {
        self.done.is_some_and(|done| done.version >= version && done.is_given_up())
    }

    /// Whether the rows of `version` or a later one are all there.
    pub fn has_rows(&self, version: u32) -> bool {
        self.rows_version >= Some(version)
    }
}

/// Which queue a task waits in: small posts never stand behind a giant one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Posts of a single chunk.
    Small,
    /// All others.
    Bulk,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Lane; 2] = [Lane::Small, Lane::Bulk];

    /// The lane of a post's tasks.
    pub fn of(post: &Post) -> Self {
        if post.chunk_count() <= 1 { Self::Small } else { Self::Bulk }
    }

    /// The name in labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Bulk => "bulk",
        }
    }
}

/// One chunk to be fanned out. Carries the viewers, so that a worker needs no read for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Whose fan-out.
    pub post_id: PostId,
    /// The version that caused the task; the worker writes the current one.
    pub version: u32,
    /// The chunk and its viewers.
    pub chunk: Chunk,
    /// Where it waits.
    pub lane: Lane,
    /// How often the relay has driven it before; 0 on the first publish.
    pub attempt: u32,
    /// The trace that the request which caused it has brought, if any.
    pub trace: Option<TraceId>,
}

impl Task {
    /// As how many parts a task counts that is as much as any: one of 500 viewers, a chunk of the default size.
    pub const WHOLE: u32 = 25;

    /// Viewers for which a task counts as one part of a whole one; with fewer it is that much work all the same. So few do
    /// not wait for the rows and bumps of whole chunks.
    pub const VIEWERS_A_PART: usize = 20;

    /// How much of a whole task's work this one is, at least one part. What asks servers a few times for a single row is no
    /// more than that; what is larger than the default is whole all the same.
    pub fn parts(&self) -> u32 {
        let parts = u32::try_from(self.chunk.viewers.len() / Self::VIEWERS_A_PART).unwrap_or(u32::MAX);
        parts.clamp(1, Self::WHOLE)
    }

    /// What ties its log lines together. What was not brought by a request is the post's own: whoever drives the task
    /// again, now or after a restart, comes to the same.
    pub fn trace(&self) -> TraceId {
        self.trace.unwrap_or_else(|| TraceId::of_post(self.post_id))
    }
}
