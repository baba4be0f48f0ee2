//! How many bytes of requests' bodies are in memory at the same time, all connections together.
//!
//! Bytes are counted as room is made for them while they arrive, and nobody waits for room: bodies that each hold a part and
//! wait for the rest would wait for one another. They are given back once the request has been answered, and not when it
//! has been parsed: what was parsed holds the same texts, and stays for as long as the store takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::request::Parts;
use metrics::counter;

use crate::error::{Error, Result};

/// The bytes that all bodies have, and how many they may have.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    max: u64,
    held: Arc<AtomicU64>,
}

/// What one body has of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Bodies,
    bytes: u64,
}

impl Bodies {
    /// At most `max` bytes.
    pub(super) fn new(max: u64) -> Self {
        Self { max, held: Arc::default() }
    }

    /// The share of a body of which nothing has come yet.
    pub(super) fn share(&self) -> Share {
        Share { of: self.clone(), bytes: 0 }
    }

    /// How many bytes they have now.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

impl Share {
    /// That of the body of a request, for whatever goes on with it after the client has hung up.
    pub(super) fn of(head: &Parts) -> Option<Arc<Self>> {
        head.extensions.get().cloned()
    }

    /// Makes it `bytes` in all, if it is less. An error if there is no room: then it is what it was.
    pub(super) fn hold(&mut self, bytes: u64) -> Result<()> {
        let more = bytes.saturating_sub(self.bytes);
        let max = self.of.max;
        let add = |held: u64| held.checked_add(more).filter(|sum| *sum <= max);
        if self.of.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
            counter!("fanfold_bodies_refused_total").increment(1);
            return Err(Error::unavailable("overloaded", "too many bytes of other requests' bodies are in memory now"));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_while_there_is_room_and_is_given_back() {
        let bodies = Bodies::new(100);
        let (mut one, mut two) = (bodies.share(), bodies.share());
        one.hold(40).expect("room");
        one.hold(60).expect("20 more");
        one.hold(10).expect("it has as much");
        two.hold(40).expect("all the rest");
        let refused = two.hold(41).expect_err("no room");
        assert_eq!(refused.code(), "overloaded");
        assert!(two.hold(u64::MAX).is_err(), "no number is too large to be refused");
        assert_eq!(bodies.held(), 100, "who is refused keeps what it had");
        drop(one);
        two.hold(100).expect("what was given back");
        drop(two);
        assert_eq!(bodies.held(), 0);
    }
}
