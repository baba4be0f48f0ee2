//! The audit log: who did what, and who was refused. Log lines of the target `audit`, at the level info.
//!
//! Nothing here takes a secret, a token or a body, so none can be written. Where access control is off nobody is known,
//! and nothing is written.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::counter;
use tracing::info;

use super::permit::Caller;
use crate::domain::{KeyId, PostId, ProducerKey, ViewerId};
use crate::error::Error;

/// What a producer did to a post.
#[derive(Clone, Copy, Debug)]
pub enum PostEvent {
    /// Published it.
    Published,
    /// Asked for it again with the same idempotency key. The only line of a post whose first request ended in an error, or
    /// with its process, after it had claimed the key.
    Repeated,
    /// Edited it.
    Edited,
    /// Took it back.
    Retracted,
}

/// A post was published, edited or retracted.
pub fn post(event: PostEvent, caller: &Caller, id: PostId, version: u32) {
    let Caller::Producer { key, producer, .. } = caller else { return };
    let event = match event {
        PostEvent::Published => "post_published",
        PostEvent::Repeated => "post_repeated",
        PostEvent::Edited => "post_edited",
        PostEvent::Retracted => "post_retracted",
    };
    info!(target: "audit", event, key = %key, producer = producer.as_str(), post = %id, version);
}

/// A key was made, rotated into `successor`, or revoked.
pub fn key(event: &'static str, caller: &Caller, key: &ProducerKey, successor: Option<KeyId>) {
    let (by, producer, scopes) = (by(caller), key.producer.as_str(), key.scopes.names());
    let successor = successor.map(tracing::field::display);
    info!(target: "audit", event, by, key = %key.id, name = key.name.as_str(), producer, scopes, successor);
}

/// A viewer's token was handed out.
pub fn token_issued(caller: &Caller, viewer: &ViewerId, ttl: Duration) {
    info!(target: "audit", event = "token_issued", by = by(caller), viewer = viewer.as_str(), ttl_s = ttl.as_secs());
}

fn by(caller: &Caller) -> String {
    match caller {
        Caller::Anyone => "command line".to_owned(),
        Caller::Producer { key, .. } => key.to_string(),
        Caller::Viewer(viewer) => format!("viewer {}", viewer.as_str()),
    }
}

/// Where somebody was refused, and from where they came.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The route.
    pub route: &'static str,
    /// The post that they asked for, if that is what they were refused.
    pub post: Option<PostId>,
    /// Their address.
    pub peer: SocketAddr,
    /// What the request is called.
    pub request_id: &'a str,
}

/// Writes refusals, up to so many a second: whoever knocks a million times must not fill the disk.
#[derive(Debug)]
pub struct Refusals {
    per_second: u64,
    begun: Instant,
    /// The present second since `begun`, and the lines in it: `second << 32 | lines`.
    window: AtomicU64,
    withheld: AtomicU64,
}

impl Refusals {
    /// So many lines a second.
    pub fn new(per_second: u32) -> Self {
        let begun = Instant::now();
        Self { per_second: u64::from(per_second), begun, window: AtomicU64::new(0), withheld: AtomicU64::new(0) }
    }

    /// Somebody was refused. `caller` is who, where that much was known.
    pub fn tell(&self, error: &Error, caller: Option<&Caller>, place: &Place<'_>) {
        counter!("fanfold_access_refused_total", "code" => error.code()).increment(1);
        if !self.takes_one_more(self.begun.elapsed()) {
            self.withheld.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let withheld = self.withheld.swap(0, Ordering::Relaxed);
        let by = caller.map_or_else(|| "unknown".to_owned(), by);
        let code = error.code();
        let Place { route, post, peer, request_id } = *place;
        let post = post.map(tracing::field::display);
        info!(target: "audit", event = "refused", code, by, route, post, peer = %peer.ip(), request_id, withheld);
    }

    fn takes_one_more(&self, since: Duration) -> bool {
        let second = since.as_secs() & u64::from(u32::MAX);
        let next = |window: u64| {
            let lines = if window >> 32 == second { window & u64::from(u32::MAX) } else { 0 };
            (lines < self.per_second).then_some(second << 32 | (lines + 1))
        };
        self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_and_no_more() {
        let refusals = Refusals::new(3);
        let at = Duration::from_millis;
        let taken = |millis| (0..10).filter(|_| refusals.takes_one_more(at(millis))).count();
        assert_eq!([taken(0), taken(999), taken(1_000), taken(7_500)], [3, 0, 3, 3]);
    }
}
