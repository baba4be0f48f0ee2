//! A post: what is published, and its life from `live` to `retracted`.

use std::sync::Arc;

use super::ids::{PostId, ProducerId};
use super::time::Time;

/// The highest version a post can reach. Revision entries keep one bit of the 32 for marks.
pub const VERSION_MAX: u32 = (1 << 31) - 1;

/// Where a post is in its life. Expiry is no state: it follows from [`Post::expires_at`] and the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostState {
    /// Served to its audience.
    Live,
    /// Taken back for good; no edit brings it back.
    Retracted,
}

/// A post as the store holds it. Its publish time is the time in its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// Identifies the post; carries its publish time.
    pub id: PostId,
    /// Who published it.
    pub producer: ProducerId,
    /// What kind of notification it is; for the client to interpret.
    pub kind: Arc<str>,
    /// Who did what the post tells.
    pub actor: Option<Arc<str>>,
    /// The payload: the text of one JSON object, passed through untouched.
    pub data: Arc<str>,
    /// Groups posts on the client.
    pub thread_key: Option<Arc<str>>,
    /// 1 at first, one more with every edit and the retract.
    pub version: u32,
    /// Live or retracted.
    pub state: PostState,
    /// The write timestamp of this version in microseconds: strictly monotonic over versions.
    pub ts: i64,
    /// When it stops being served, if before the end of the row's life.
    pub expires_at: Option<Time>,
    /// How many distinct viewers it is for.
    pub audience_size: u32,
    /// How many viewers a chunk of it has (the last one may have fewer).
    pub chunk_size: u32,
}

impl Post {
    /// How many chunks the audience is cut into.
    pub fn chunk_count(&self) -> u32 {
        self.audience_size.div_ceil(self.chunk_size.max(1))
    }

    /// How many viewers chunk `no` has; zero if there is no such chunk.
    pub fn chunk_len(&self, no: u32) -> u32 {
        let start = u64::from(no) * u64::from(self.chunk_size);
        let left = u64::from(self.audience_size).saturating_sub(start);
        u32::try_from(left.min(u64::from(self.chunk_size))).unwrap_or(u32::MAX)
    }

    /// Whether it has passed its own expiry.
    pub fn is_expired(&self, now: Time) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What readers must know of this version before its rows say so: a retract hides at once, an edit when its expiry
    /// comes (which may be never: that too must be known, lest an older edit's expiry still counts). `None` for a new
    /// post, whose rows say all.
    pub fn withdrawal(&self) -> Option<Withdrawal> {
        let hidden_from = match self.state {
            PostState::Retracted => Time::ZERO,
            PostState::Live if self.version > 1 => self.expires_at.unwrap_or(Time::MAX),
            PostState::Live => return None,
        };
        Some(Withdrawal { post_id: self.id, version: self.version, hidden_from })
    }
}

/// A version of a post that readers must already respect although its fan-out still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// Which post.
    pub post_id: PostId,
    /// The version that hides it; a newer one replaces this, fan-out at this version or later settles it.
    pub version: u32,
    /// From when on it is hidden; [`Time::MAX`] for never.
    pub hidden_from: Time,
}
