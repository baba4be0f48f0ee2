//! Publishing: accept posts, edits and retracts. A 202 means that the store has it, synced; the queue only makes it fast.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use tracing::{debug, warn};

use crate::adapters::Store;
use crate::clock::Clock;
use crate::domain::post::VERSION_MAX;
use crate::domain::{Audience, Post, PostId, PostState, ProducerId, Time};
use crate::error::{Error, Kind, Result};
use crate::faults;
use crate::handover::Handover;
use crate::ports::{Changed, KeyClaim, KeyHolder, Store as _};
use crate::trace;
use crate::withdrawals::Withdrawals;

/// How long a waiting status request pauses at first. Each pause is half as long again as the last: who has waited long
/// does not mind a little more, and every look is a read of the store.
const STATUS_PAUSE: Duration = Duration::from_millis(100);
/// The longest of these pauses.
const STATUS_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Bounds on what a producer sends.
#[derive(Clone, Copy, Debug)]
pub struct PublishLimits {
    /// Bytes of a viewer id; at most what [`crate::domain::ViewerId`] takes.
    pub viewer_id_bytes_max: u32,
    /// Bytes of the JSON text of `data`.
    pub data_bytes_max: u32,
    /// Bytes of `type`.
    pub type_bytes_max: u32,
    /// Bytes of `thread_key`.
    pub thread_key_bytes_max: u32,
    /// Bytes of an idempotency key.
    pub idempotency_key_bytes_max: u32,
    /// How far ahead a post may expire.
    pub lifetime_max: Duration,
    /// Viewers in a chunk of a new post.
    pub chunk_size: u32,
}

/// When a post stops being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// With its rows.
    Never,
    /// So long after its publish time.
    After(Duration),
    /// At an instant.
    At(Time),
}

/// An idempotency key and the SHA-256 of the request it came with.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The key.
    pub key: String,
    /// SHA-256 over everything that makes the request what it is.
    pub fingerprint: [u8; 32],
}

/// A post to be published.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who publishes.
    pub producer: ProducerId,
    /// The field `type`.
    pub kind: String,
    /// The id of the actor.
    pub actor: Option<String>,
    /// The text of a JSON object.
    pub data: String,
    /// Groups posts on the client.
    pub thread_key: Option<String>,
    /// Who shall see it.
    pub audience: Audience,
    /// Until when.
    pub expiry: Expiry,
    /// Makes a retry complete the same post.
    pub idempotency: Option<Idempotency>,
}

/// What became of a request to publish.
#[derive(Debug)]
pub struct Attempt {
    /// The post, committed.
    pub post: Result<Post>,
    /// The post is this request's, which has made it or claimed its key, so that a retry makes it: of all with a key one.
    pub first: bool,
}

/// What an edit changes; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// The field `type`.
    pub kind: Option<String>,
    /// The whole new `data`, the text of a JSON object.
    pub data: Option<String>,
    /// The new expiry; `Some(None)` takes it away.
    pub expires_at: Option<Option<Time>>,
}

/// How far a post's fan-out has come, in rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Nothing is left to do at the post's present version.
    pub done: bool,
    /// Rows in all.
    pub total: u32,
    /// Rows written.
    pub written: u32,
    /// Rows not written because their life was over.
    pub skipped: u32,
    /// Rows of chunks that were set aside after too many failures.
    pub failed: u32,
}

/// Accepts posts, edits and retracts.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// The truth, read on behalf of publishing.
    pub store: Store,
    /// By which fan-out tasks go to the queue.
    pub handover: Handover,
    /// What is hidden at once.
    pub withdrawals: Withdrawals,
    /// What time it is.
    pub clock: Clock,
    /// Bounds on what a producer sends.
    pub limits: PublishLimits,
}

impl Publisher {
    /// Checks a draft as [`Publisher::publish`] would, and answers the post it would become, without an id in the store.
    pub fn dry_run(&self, draft: &Draft) -> Result<Post> {
        self.check(draft)?;
        let now = self.clock.now();
        self.assemble(draft, PostId::new(now, rand::random()), self.limits.chunk_size, now)
    }

    /// Publishes a draft. When it returns, the post is committed and its fan-out certain. Runs to its end even if the
    /// client goes away: a post that is committed and not queued would wait for the relay.
    pub async fn publish(&self, draft: Draft) -> Result<Post> {
        self.check(&draft)?;
        let this = self.clone();
        uninterrupted(async move { this.attempt(&draft).await.post }).await
    }

    /// The same of a draft that was checked, on the task of the caller, which must be [`uninterrupted`].
    pub async fn attempt(&self, draft: &Draft) -> Attempt {
        let keyed = draft.idempotency.is_some();
        match self.prepare(draft).await {
            // A claim without an answer may have been made, and its retry is then no first.
            Err(error) => Attempt { first: keyed && error.kind() == Kind::Unavailable, post: Err(error) },
            Ok((post, fresh)) => {
                let post = self.commit(draft, post, fresh).await;
                Attempt { first: fresh && (keyed || post.is_ok()), post }
            }
        }
    }

    /// The post that a draft becomes, its key claimed, and whether no earlier request has claimed that.
    async fn prepare(&self, draft: &Draft) -> Result<(Post, bool)> {
        let now = self.clock.now();
        let (fresh, mut chunk_size) = (PostId::new(now, rand::random()), self.limits.chunk_size);
        let mut id = fresh;
        // Times are checked before the key is claimed, so that a bad request claims nothing.
        let timely = self.assemble(draft, id, chunk_size, now).map(|_| ());
        if let Some(idempotency) = &draft.idempotency {
            let holder = self.claim(&draft.producer, idempotency, id, timely).await?;
            (id, chunk_size) = (holder.post_id, holder.chunk_size);
        } else {
            timely?;
        }
        // A retry is judged by the first try's clock: what was in time then is in time now.
        Ok((self.assemble(draft, id, chunk_size, id.time())?, id == fresh))
    }

    async fn commit(&self, draft: &Draft, post: Post, fresh: bool) -> Result<Post> {
        let chunks = draft.audience.chunks(post.chunk_size);
        faults::at("publish.claimed");
        self.store.create_post(&post, &chunks).await?;
        faults::at("publish.committed");
        counter!("fanfold_posts_total", "op" => "publish").increment(1);
        debug!(post = %post.id, audience = post.audience_size, "published");
        // What a first try has fanned out already must not be bumped once more: tasks of a retry look before they write.
        self.handover.enqueue(&post, chunks, u32::from(!fresh)).await;
        Ok(post)
    }

    async fn claim(
        &self,
        producer: &ProducerId,
        idempotency: &Idempotency,
        post_id: PostId,
        timely: Result<()>,
    ) -> Result<KeyHolder> {
        let (key, fingerprint) = (&idempotency.key, idempotency.fingerprint);
        let holder = match timely {
            Ok(()) => {
                let (producer, key, chunk_size) = (producer.clone(), key.clone(), self.limits.chunk_size);
                self.store.claim_key(&KeyClaim { producer, key, fingerprint, post_id, chunk_size }).await?
            }
            // Too late for a first try; a retry of one that was in time still gets its answer.
            Err(late) => self.store.key_holder(producer, key).await?.ok_or(late)?,
        };
        if holder.fingerprint != fingerprint {
            let detail = format!("the key {key:?} was used before with another request (post {})", holder.post_id);
            return Err(Error::invalid("idempotency_key_reused", "Idempotency-Key", detail));
        }
        Ok(holder)
    }

    /// Edits a post that is at version `expected`, or at any if that is `None`.
    pub async fn edit(&self, producer: &ProducerId, id: PostId, expected: Option<u32>, edit: Edit) -> Result<Post> {
        self.check_edit(&edit)?;
        let this = self.clone();
        let producer = producer.clone();
        let apply = move |post: &Post| -> Result<Option<Post>> {
            if post.state == PostState::Retracted {
                let detail = format!("post {} is retracted", post.id);
                return Err(Error::new(Kind::Conflict, "post_retracted", detail));
            }
            let mut next = post.clone();
            next.kind = edit.kind.as_deref().map_or(next.kind, Arc::from);
            next.data = edit.data.as_deref().map_or(next.data, Arc::from);
            next.expires_at = edit.expires_at.unwrap_or(next.expires_at);
            let now = this.clock.now();
            if let Some(Some(at)) = edit.expires_at {
                check_expiry(at, now, this.limits.lifetime_max)?;
            }
            Ok(Some(next))
        };
        self.change(producer, id, expected, "edit", apply).await
    }

    /// Takes a post back for good. Already taken back: that is fine, whatever version was expected.
    pub async fn retract(&self, producer: &ProducerId, id: PostId, expected: Option<u32>) -> Result<Post> {
        let apply = |post: &Post| -> Result<Option<Post>> {
            let retracted = || Post { state: PostState::Retracted, ..post.clone() };
            Ok((post.state == PostState::Live).then(retracted))
        };
        self.change(producer.clone(), id, expected, "retract", apply).await
    }

    /// Reads, applies, compares and sets. Runs to its end even if the client goes away: between the commit and the
    /// withdrawal there must be no gap for a reader to slip through after the answer.
    async fn change(
        &self,
        producer: ProducerId,
        id: PostId,
        expected: Option<u32>,
        op: &'static str,
        apply: impl Fn(&Post) -> Result<Option<Post>> + Send + 'static,
    ) -> Result<Post> {
        let this = self.clone();
        uninterrupted(async move {
            let mut post = this.owned_post(&producer, id).await?;
            loop {
                let next = apply(&post)?;
                if let Some(expected) = expected
                    && expected != post.version
                    && next.is_some()
                {
                    return Err(stale(&post, expected));
                }
                let Some(mut next) = next else {
                    this.repeated(&post).await?;
                    return Ok(post);
                };
                if post.version >= VERSION_MAX {
                    return Err(Error::new(Kind::Conflict, "too_many_versions", "the post has been edited too often"));
                }
                next.version = post.version + 1;
                next.ts = this.clock.now().micros().max(post.ts + 1);
                match this.store.change_post(post.version, &next).await? {
                    Changed::Applied => {
                        this.committed(op, &next).await;
                        return Ok(next);
                    }
                    Changed::Stale(newer) => post = *newer,
                    Changed::Missing => return Err(unknown_post(id)),
                }
            }
        })
        .await
    }

    /// A retract that was there already: its first try may have died between the commit and its answer, so what the
    /// answer promises is seen to once more.
    async fn repeated(&self, post: &Post) -> Result<()> {
        self.store.announce(post).await?;
        if let Some(withdrawal) = post.withdrawal() {
            self.withdrawals.insert(withdrawal);
        }
        Ok(())
    }

    async fn committed(&self, op: &'static str, post: &Post) {
        if let Some(withdrawal) = post.withdrawal() {
            self.withdrawals.insert(withdrawal);
        }
        counter!("fanfold_posts_total", "op" => op).increment(1);
        debug!(post = %post.id, version = post.version, op, "changed");
        // What was set aside gets another chance with each version.
        for parked in self.store.parked(post.id).await.unwrap_or_default() {
            if let Err(error) = self.store.park_chunk(post.id, parked.no, None).await {
                warn!(%error, post = %post.id, chunk = parked.no, "a parked chunk cannot be taken up again");
            }
        }
        let mut chunks = Vec::new();
        for no in 0..post.chunk_count() {
            match self.store.chunk(post.id, no).await {
                Ok(Some(chunk)) => chunks.push(chunk),
                // The pending entry is written: the relay drives what cannot be queued here.
                Ok(None) | Err(_) => return,
            }
        }
        self.handover.enqueue(post, chunks, 0).await;
    }

    /// A post and how far its fan-out has come.
    pub async fn status(&self, producer: &ProducerId, id: PostId) -> Result<(Post, Progress)> {
        let post = self.owned_post(producer, id).await?;
        let states = self.store.chunk_states(id, 0..post.chunk_count()).await?;
        let mut progress = Progress { done: true, total: post.audience_size, written: 0, skipped: 0, failed: 0 };
        for (no, state) in (0..).zip(&states) {
            let rows = post.chunk_len(no);
            let done = state.done.is_some_and(|done| done.version >= post.version);
            if state.has_rows(post.version) {
                progress.written += rows;
            } else if done {
                progress.skipped += rows;
            } else if state.parked {
                progress.failed += rows;
            }
            progress.done &= done || state.parked;
        }
        Ok((post, progress))
    }

    /// As [`Publisher::status`], but waits until the fan-out is done or `deadline` passes.
    pub async fn status_when_done(
        &self,
        producer: &ProducerId,
        id: PostId,
        deadline: Instant,
    ) -> Result<(Post, Progress)> {
        let mut pause = STATUS_PAUSE;
        loop {
            let (post, progress) = self.status(producer, id).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if progress.done || left.is_zero() {
                return Ok((post, progress));
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 3 / 2).min(STATUS_PAUSE_MAX);
        }
    }

    /// A post of this producer's.
    pub async fn owned_post(&self, producer: &ProducerId, id: PostId) -> Result<Post> {
        // Another producer's post is as unknown as one that never was.
        let post = self.store.post(id).await?.filter(|post| post.producer == *producer);
        post.ok_or_else(|| unknown_post(id))
    }

    /// Checks the length of the ids in an audience. [`Publisher::publish`] does not: only the list as it was sent, repeats
    /// included, has the place that the error names.
    pub fn check_viewers(&self, field: &str, sent: &[String]) -> Result<()> {
        let bytes_max = self.limits.viewer_id_bytes_max;
        let Some(at) = sent.iter().position(|viewer| viewer.len() > bytes_max as usize) else { return Ok(()) };
        let bytes = sent[at].len();
        let detail = format!("must have at most {bytes_max} bytes, has {bytes}");
        Err(Error::limit("invalid_viewer_id", &format!("{field}[{at}]"), detail, u64::from(bytes_max), bytes as u64))
    }

    /// Checks what a draft says by itself, before anything is done about it.
    pub fn check(&self, draft: &Draft) -> Result<()> {
        faults::at("publish.asked");
        check_text("type", &draft.kind, self.limits.type_bytes_max)?;
        check_data(&draft.data, self.limits.data_bytes_max)?;
        if let Some(actor) = &draft.actor {
            check_text("actor.id", actor, crate::domain::ids::VIEWER_ID_BYTES_MAX as u32)?;
        }
        if let Some(key) = &draft.thread_key {
            check_text("thread_key", key, self.limits.thread_key_bytes_max)?;
        }
        if let Some(idempotency) = &draft.idempotency {
            check_text("Idempotency-Key", &idempotency.key, self.limits.idempotency_key_bytes_max)
                .map_err(|e| Error::invalid("invalid_idempotency_key", "Idempotency-Key", e.detail().to_owned()))?;
        }
        Ok(())
    }

    fn check_edit(&self, edit: &Edit) -> Result<()> {
        if let Some(kind) = &edit.kind {
            check_text("type", kind, self.limits.type_bytes_max)?;
        }
        if let Some(data) = &edit.data {
            check_data(data, self.limits.data_bytes_max)?;
        }
        Ok(())
    }

    /// The post that a draft becomes: a function of the draft, the id and the chunk size alone, so that a retry writes
    /// the same. `now` only judges the expiry.
    fn assemble(&self, draft: &Draft, id: PostId, chunk_size: u32, now: Time) -> Result<Post> {
        let expires_at = match draft.expiry {
            Expiry::Never => None,
            Expiry::After(ttl) => {
                check_ttl(ttl, self.limits.lifetime_max)?;
                Some(id.time().after(ttl))
            }
            Expiry::At(at) => check_expiry(at, now, self.limits.lifetime_max).map(|()| Some(at))?,
        };
        Ok(Post {
            id,
            producer: draft.producer.clone(),
            kind: draft.kind.as_str().into(),
            actor: draft.actor.as_deref().map(Arc::from),
            data: draft.data.as_str().into(),
            thread_key: draft.thread_key.as_deref().map(Arc::from),
            version: 1,
            state: PostState::Live,
            ts: id.time().micros(),
            expires_at,
            audience_size: draft.audience.size(),
            chunk_size,
        })
    }
}

/// Runs a write to its end on its own task, even if the caller stops waiting because its client has gone.
pub async fn uninterrupted<T: Send + 'static>(write: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(trace::carry(write)).await.map_err(|e| Error::internal("a write was cut off").with_source(e))?
}

fn unknown_post(id: PostId) -> Error {
    Error::not_found("post_not_found", format!("there is no post {id}"))
}

/// The error of an edit or retract that expected another version.
pub(crate) fn stale(post: &Post, expected: u32) -> Error {
    let detail = format!("post {} is at version {}, not {expected}", post.id, post.version);
    Error::new(Kind::Precondition, "version_mismatch", detail).with_field("If-Match")
}

fn check_text(field: &str, text: &str, bytes_max: u32) -> Result<()> {
    if text.is_empty() || text.len() > bytes_max as usize {
        let detail = format!("must have 1 to {bytes_max} bytes, has {}", text.len());
        return Err(Error::limit("invalid_value", field, detail, u64::from(bytes_max), text.len() as u64));
    }
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        let detail = format!("must not contain control characters, contains U+{:04X}", u32::from(c));
        return Err(Error::invalid("invalid_value", field, detail));
    }
    Ok(())
}

fn check_data(data: &str, bytes_max: u32) -> Result<()> {
    if data.len() > bytes_max as usize {
        let detail = format!("must have at most {bytes_max} bytes as JSON text, has {}", data.len());
        return Err(Error::limit("data_too_large", "data", detail, u64::from(bytes_max), data.len() as u64));
    }
    Ok(())
}

fn check_ttl(ttl: Duration, lifetime_max: Duration) -> Result<()> {
    let (limit, value) = (lifetime_max.as_secs(), ttl.as_secs());
    if ttl.is_zero() {
        let detail = format!("must be 1 to {limit} seconds, is 0");
        return Err(Error::limit("expiry_in_past", "ttl_seconds", detail, 1, 0));
    }
    // Compared as it was sent: added to a time, the largest number would become a smaller one.
    if ttl > lifetime_max {
        let detail = format!("must be 1 to {limit} seconds, is {value}");
        return Err(Error::limit("expiry_too_far", "ttl_seconds", detail, limit, value));
    }
    Ok(())
}

fn check_expiry(at: Time, now: Time, lifetime_max: Duration) -> Result<()> {
    const FIELD: &str = "expires_at";
    if at <= now {
        // Both are instants: as numbers beside the seconds ahead of the other error they would be taken for the same.
        return Err(Error::invalid("expiry_in_past", FIELD, format!("must be later than now, {now}, is {at}")));
    }
    if at > now.after(lifetime_max) {
        let (limit, value) = (lifetime_max.as_secs(), at.since(now).as_secs());
        let detail = format!("must lie at most {limit} seconds ahead of now, {now}, lies {value} ahead: {at}");
        return Err(Error::limit("expiry_too_far", FIELD, detail, limit, value));
    }
    Ok(())
}
