//! What is already hidden though its fan-out still runs: retracted posts, and edits that brought an expiry forward.
//!
//! A retract is invisible from its 202 on. Its rows follow chunk by chunk; until the last one is written, every answer
//! leaves the post out by this set. Where several nodes serve readers, each follows what the others have written down, and
//! none shows it any more a second after the 202.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::adapters::Store;
use crate::domain::{PostId, Withdrawal, Withdrawn};
use crate::error::Result;
use crate::ports::Store as _;
use crate::turns::Turns;

/// Between looks at what other nodes have withdrawn.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A set older than this is read again before anything is answered by it. What is left of the promised second is for the
/// answer itself.
const AGE_MAX: Duration = Duration::from_millis(700);
/// What is said to those who waited while a look failed.
const UNREADABLE: &str = "what other nodes have withdrawn cannot be read now";

/// The set, shared by those who add (publishing), read (readers) and settle (the relay).
#[derive(Clone, Debug)]
pub struct Withdrawals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: RwLock<Withdrawn>,
    others: Option<Others>,
}

/// What other nodes withdraw.
#[derive(Debug)]
struct Others {
    store: Store,
    /// When the last look began that succeeded.
    seen: Mutex<Instant>,
    /// One look for all who wait.
    looks: Turns,
}

impl Withdrawals {
    /// The withdrawals that the store knows of; loaded before the first request is served. Nobody else adds to them.
    pub async fn load(store: &Store) -> Result<Self> {
        Self::read(store, None).await
    }

    /// The same where other nodes withdraw too: keep [`Withdrawals::follow`] running.
    pub async fn shared(store: &Store) -> Result<Self> {
        let (store, seen) = (store.clone(), Mutex::new(Instant::now()));
        let others = Others { store: store.clone(), seen, looks: Turns::new(1, UNREADABLE) };
        Self::read(&store, Some(others)).await
    }

    async fn read(store: &Store, others: Option<Others>) -> Result<Self> {
        let withdrawals = Self(Arc::new(Inner { set: RwLock::default(), others }));
        for withdrawal in store.withdrawals().await? {
            withdrawals.insert(withdrawal);
        }
        Ok(withdrawals)
    }

    /// Hides a post from now on.
    pub fn insert(&self, withdrawal: Withdrawal) {
        self.0.set.write().unwrap_or_else(PoisonError::into_inner).insert(withdrawal);
    }

    /// The set as it is known here.
    pub fn snapshot(&self) -> Withdrawn {
        self.0.set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The set as it is now, everywhere, less what was withdrawn elsewhere in the last 700 ms. Take it *before* reading
    /// rows: what is settled later then stays hidden, and what was settled before has its rows written.
    pub async fn current(&self) -> Result<Withdrawn> {
        if let Some(others) = self.0.others.as_ref().filter(|others| !others.is_fresh()) {
            others.looks.take(|| others.is_fresh().then_some(()), || self.look(others)).await?;
        }
        Ok(self.snapshot())
    }

    /// The rows of `post_id` now say so themselves, at `version`.
    pub fn settle(&self, post_id: PostId, version: u32) {
        self.0.set.write().unwrap_or_else(PoisonError::into_inner).settle(post_id, version);
    }

    /// Follows what other nodes withdraw, until told to stop.
    pub async fn follow(self, stop: CancellationToken) {
        let Some(others) = &self.0.others else { return };
        let mut told = false;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            // However fresh the set is. If a request's look failed while this one waited, the next one is soon.
            match others.looks.take(|| None, || self.look(others)).await {
                Ok(()) => told = false,
                Err(error) if !told => {
                    told = true;
                    warn!(%error, "what other nodes have withdrawn cannot be read; until it can, inboxes are not served");
                }
                Err(_) => {}
            }
        }
    }

    /// Takes over what the store has. What was known before and is there no more has been settled; what is added here
    /// meanwhile stays.
    async fn look(&self, others: &Others) -> Result<()> {
        let (begun, before) = (Instant::now(), self.snapshot());
        let there = others.store.withdrawals().await?;
        let mut gone: Vec<Withdrawal> = before.iter().collect();
        gone.retain(|known| !there.iter().any(|w| (w.post_id, w.version) == (known.post_id, known.version)));
        for withdrawal in there {
            self.insert(withdrawal);
        }
        for withdrawal in gone {
            self.settle(withdrawal.post_id, withdrawal.version);
        }
        *others.seen() = begun;
        Ok(())
    }
}

impl Others {
    /// Replaced as a whole: no panic leaves it half changed.
    fn seen(&self) -> MutexGuard<'_, Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_fresh(&self) -> bool {
        self.seen().elapsed() <= AGE_MAX
    }
}
