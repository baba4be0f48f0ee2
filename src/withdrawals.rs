//! What is already hidden though its fan-out still runs: retracted posts, and edits that brought an expiry forward.
//!
//! A retract is invisible from its 202 on. Its rows follow chunk by chunk; until the last one is written, every answer
//! leaves the post out by this set.

use std::sync::{Arc, PoisonError, RwLock};

use crate::adapters::Store;
use crate::domain::{PostId, Withdrawal, Withdrawn};
use crate::error::Result;
use crate::ports::Store as _;

/// The set, shared by those who add (publishing), read (readers) and settle (the relay).
#[derive(Clone, Debug, Default)]
pub struct Withdrawals(Arc<RwLock<Withdrawn>>);

impl Withdrawals {
    /// The withdrawals that the store knows of; loaded before the first request is served.
    pub async fn load(store: &Store) -> Result<Self> {
        let withdrawals = Self::default();
        for withdrawal in store.withdrawals().await? {
            withdrawals.insert(withdrawal);
        }
        Ok(withdrawals)
    }

    /// Hides a post from now on.
    pub fn insert(&self, withdrawal: Withdrawal) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(withdrawal);
    }

    /// The set as it is now. Take it *before* reading rows: what is settled later then stays hidden, and what was
    /// settled before has its rows written.
    pub fn snapshot(&self) -> Withdrawn {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The rows of `post_id` now say so themselves, at `version`.
    pub fn settle(&self, post_id: PostId, version: u32) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).settle(post_id, version);
    }
}
