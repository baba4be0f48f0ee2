//! Posts: the commit and the changes after it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::try_join;
use scylla::DeserializeRow;
use uuid::Uuid;

use super::gate::is_few;
use super::session::{Conditional, pause_before};
use super::{ScyllaStore, corrupt, id_of, int, set, time_of, uint, uuid_of};
use crate::domain::{Chunk, Post, PostId, PostState, ProducerId, Time};
use crate::error::{Error, Kind, Result};
use crate::faults;
use crate::ports::{Changed, Pending};

/// Longer than this between the pending entry and the commit, and the relay may have passed the entry's minute, or even
/// swept it.
pub(super) const LATE: Duration = Duration::from_secs(60);
/// Tries of a change whose outcome stays unknown.
const CHANGE_ATTEMPTS: u32 = 6;
/// How many versions back the writer of a version is known.
const OP_IDS: u32 = 16;

#[derive(DeserializeRow)]
pub(super) struct PostCells {
    post_id: Uuid,
    producer: Option<String>,
    kind: Option<String>,
    actor: Option<String>,
    data: Option<String>,
    thread_key: Option<String>,
    version: Option<i32>,
    state: Option<i8>,
    ts: Option<i64>,
    expires_at: Option<i64>,
    audience_size: Option<i32>,
    chunk_size: Option<i32>,
}

impl PostCells {
    pub(super) fn decode(self) -> Result<Post> {
        let broken = || corrupt("a post");
        let number = |value: Option<i32>| uint(value.ok_or_else(broken)?, "a post");
        Ok(Post {
            id: id_of(self.post_id),
            producer: ProducerId::parse("producer", &self.producer.ok_or_else(broken)?).map_err(|_| broken())?,
            kind: self.kind.ok_or_else(broken)?.into(),
            actor: self.actor.map(Into::into),
            data: self.data.ok_or_else(broken)?.into(),
            thread_key: self.thread_key.map(Into::into),
            version: number(self.version)?,
            state: match self.state {
                Some(0) => PostState::Live,
                Some(1) => PostState::Retracted,
                _ => return Err(broken()),
            },
            ts: self.ts.ok_or_else(broken)?,
            expires_at: time_of(self.expires_at),
            audience_size: number(self.audience_size)?,
            chunk_size: number(self.chunk_size)?,
        })
    }
}

fn state_of(post: &Post) -> i8 {
    i8::from(post.state == PostState::Retracted)
}

impl ScyllaStore {
    /// Pending entry and chunks first, the post last.
    pub(super) async fn create(&self, post: &Post, chunks: &[Chunk]) -> Result<()> {
        let Some(ttl) = self.post_ttl(post.id) else { return Ok(()) };
        let (begun, began_at) = (Instant::now(), self.now());
        self.prepare_commit(post, chunks).await?;
        faults::at("store.pending");
        self.insert_post(post, ttl).await?;
        if begun.elapsed() > LATE || self.now().since(began_at) > LATE {
            self.prepare_commit(post, chunks).await?;
        }
        Ok(())
    }

    /// What must be there before the commit. One timestamp for all of an attempt: a sweep of an earlier attempt's
    /// leftovers leaves those of a later one alone.
    async fn prepare_commit(&self, post: &Post, chunks: &[Chunk]) -> Result<()> {
        let at = self.entry_stamp().await?;
        let entry = Pending { since: at, post_id: post.id, version: post.version };
        let chunks = chunks.iter().map(|chunk| self.commit_chunk(post, chunk, at)).collect();
        // The first error ends all: chunks wait for each other, and with a store that hangs for very long.
        try_join(self.write_pending(&entry), self.concurrently(chunks)).await?;
        Ok(())
    }

    /// The chunks of a large post wait for each other, not what is small behind all of them.
    async fn commit_chunk(&self, post: &Post, chunk: &Chunk, at: Time) -> Result<()> {
        let enter = async || self.shared.chunks.enter_within(LATE, chunk.viewers.len()).await;
        let _under_way = if is_few(post.audience_size) { None } else { Some(enter().await?) };
        self.write_chunk(post.id, chunk, at).await
    }

    async fn insert_post(&self, post: &Post, ttl: i32) -> Result<()> {
        let values = (
            uuid_of(post.id),
            post.producer.as_str(),
            post.kind.as_ref(),
            set(post.actor.as_deref()),
            post.data.as_ref(),
            set(post.thread_key.as_deref()),
            int(post.version)?,
            state_of(post),
            post.ts,
            set(post.expires_at.map(Time::micros)),
            int(post.audience_size)?,
            int(post.chunk_size)?,
            ttl,
        );
        self.write(&self.statements().insert_post, values).await
    }

    /// Pending entry first, then the conditional write, then (if it hides the post) the withdrawal.
    pub(super) async fn change(&self, expected: u32, post: &Post) -> Result<Changed> {
        let Some(ttl) = self.post_ttl(post.id) else { return Ok(Changed::Missing) };
        let op_id = Uuid::from_bytes(rand::random());
        let (begun, began_at) = (Instant::now(), self.now());
        let mut entry = Pending { since: self.entry_stamp().await?, post_id: post.id, version: post.version };
        self.write_pending(&entry).await?;
        faults::at("store.change_pending");
        let changed = self.change_settled(expected, post, ttl, op_id).await?;
        faults::at("store.changed");
        #[cfg(feature = "faults")]
        if changed != Changed::Applied && faults::planted(faults::Planted::LoserRemovesPending) {
            self.remove_pending_of(post).await?;
        }
        if changed == Changed::Applied {
            self.write_withdrawal_of(post, &entry).await?;
            if begun.elapsed() > LATE || self.now().since(began_at) > LATE {
                entry.since = self.entry_stamp().await?;
                self.write_pending(&entry).await?;
                self.write_withdrawal_of(post, &entry).await?;
            }
        }
        Ok(changed)
    }

    /// A pending entry and a withdrawal of now: whoever committed the version may have died before it wrote its own.
    pub(super) async fn announce_version(&self, post: &Post) -> Result<()> {
        let entry = Pending { since: self.entry_stamp().await?, post_id: post.id, version: post.version };
        self.write_pending(&entry).await?;
        self.write_withdrawal_of(post, &entry).await
    }

    /// The planted defect: what an editor that lost must not do.
    #[cfg(feature = "faults")]
    async fn remove_pending_of(&self, post: &Post) -> Result<()> {
        let shard = super::scan::shard_of(post.id);
        let page = self.pending_page(shard, None, 10_000).await?;
        let of_post =
            page.entries.into_iter().filter(|entry| (entry.post_id, entry.version) == (post.id, post.version));
        self.settle_all(&of_post.map(crate::ports::Settled::Done).collect::<Vec<_>>()).await
    }

    async fn write_withdrawal_of(&self, post: &Post, entry: &Pending) -> Result<()> {
        match post.withdrawal() {
            Some(withdrawal) => self.write_withdrawal(entry, &withdrawal).await,
            None => Ok(()),
        }
    }

    async fn change_settled(&self, expected: u32, post: &Post, ttl: i32, op_id: Uuid) -> Result<Changed> {
        let mut unknown = None;
        for attempt in 0..CHANGE_ATTEMPTS {
            if attempt > 0 {
                pause_before(attempt).await;
            }
            match self.try_change(expected, post, ttl, op_id).await? {
                Conditional::Applied => return Ok(Changed::Applied),
                Conditional::Refused => {}
                Conditional::Unknown(error) => unknown = Some(error),
            }
            // The serial read completes what a coordinator has begun. A refusal may be our own earlier try's doing.
            let (op_ids, version) = match self.read_settled(post.id).await {
                Ok(Some(settled)) => settled,
                Ok(None) => return Ok(Changed::Missing),
                Err(error) if error.kind() == Kind::Unavailable => {
                    unknown = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if op_ids.get(&op_slot(post.version)) == Some(&op_id) {
                return Ok(Changed::Applied);
            }
            if version != expected {
                let newer = self.read_post(post.id).await?;
                return Ok(newer.map_or(Changed::Missing, |newer| Changed::Stale(Box::new(newer))));
            }
        }
        Err(unknown
            .unwrap_or_else(|| Error::unavailable("store_unavailable", "the change was refused without a reason")))
    }

    /// Who wrote the last versions, and the present one, once nothing is under way any more.
    async fn read_settled(&self, id: PostId) -> Result<Option<(HashMap<i32, Uuid>, u32)>> {
        type Cells = (Option<HashMap<i32, Uuid>>, Option<i32>);
        let cells = self.select::<Cells>(&self.statements().post_settled, (uuid_of(id),)).await?;
        let Some((op_ids, version)) = cells.into_iter().next() else { return Ok(None) };
        let version = uint(version.ok_or_else(|| corrupt("a post"))?, "a post")?;
        Ok(Some((op_ids.unwrap_or_default(), version)))
    }

    async fn try_change(&self, expected: u32, post: &Post, ttl: i32, op_id: Uuid) -> Result<Conditional> {
        let values = (
            ttl,
            post.producer.as_str(),
            post.kind.as_ref(),
            post.actor.as_deref(),
            post.data.as_ref(),
            post.thread_key.as_deref(),
            int(post.version)?,
            state_of(post),
            post.ts,
            post.expires_at.map_or(0, Time::micros),
            int(post.audience_size)?,
            int(post.chunk_size)?,
            op_slot(post.version),
            op_id,
            uuid_of(post.id),
            int(expected)?,
        );
        self.shared.requests.conditional(&self.statements().change_post, values).await
    }

    pub(super) async fn read_post(&self, id: PostId) -> Result<Option<Post>> {
        let cells = self.select::<PostCells>(&self.statements().post, (uuid_of(id),)).await?;
        cells.into_iter().next().map(PostCells::decode).transpose()
    }

    pub(super) async fn read_posts(&self, ids: &[PostId]) -> Result<Vec<Option<Post>>> {
        self.concurrently(ids.iter().map(|id| self.read_post(*id)).collect()).await
    }

    /// The version a post is at.
    pub(super) async fn read_post_version(&self, id: PostId) -> Result<Option<u32>> {
        let versions = self.select::<(Option<i32>,)>(&self.statements().post_version, (uuid_of(id),)).await?;
        let Some((version,)) = versions.first() else { return Ok(None) };
        version.map_or_else(|| Err(corrupt("a post")), |version| uint(version, "a post").map(Some))
    }
}

/// Under which key the writer of a version is kept.
fn op_slot(version: u32) -> i32 {
    (version % OP_IDS) as i32
}
