//! Versions that hide their post before its rows say so.

use futures::future::try_join_all;
use uuid::Uuid;

use super::minutes::{CLOCK_SKEW, Minutes, minute_of};
use super::scan::{SHARDS, Scans};
use super::{ScyllaStore, id_of, int, lock, uint, uuid_of};
use crate::domain::{Time, Withdrawal};
use crate::error::Result;
use crate::ports::Pending;

/// Minutes that are looked into at the same time.
const MINUTES_AT_ONCE: usize = 32;
/// Pending entries in a page of the first look.
const PAGE: u32 = 1_000;

/// What this process knows of the withdrawals in the store.
#[derive(Debug)]
pub struct Seen {
    minutes: Minutes,
    /// The pending entries have been looked through for those that nobody wrote down.
    completed: bool,
}

impl From<&Scans> for Seen {
    /// A withdrawal lies in the minute of its pending entry, so there is none before the first of those.
    fn from(scans: &Scans) -> Self {
        Self { minutes: Minutes::from_low_water(scans.pending_low_water()), completed: false }
    }
}

impl ScyllaStore {
    /// In the minute of its pending entry and with its time: whoever settles the entry removes this with it, even if it
    /// were to be written later still.
    pub(super) async fn write_withdrawal(&self, entry: &Pending, withdrawal: &Withdrawal) -> Result<()> {
        let Some(ttl) = self.post_ttl(entry.post_id) else { return Ok(()) };
        let (id, version) = (uuid_of(withdrawal.post_id), int(withdrawal.version)?);
        let values = (minute_of(entry.since), id, version, withdrawal.hidden_from.micros(), entry.since.micros(), ttl);
        self.write(&self.statements().write_retract, values).await
    }

    /// All of them, at the price of reading the last minutes and those that still hold some.
    pub(super) async fn read_withdrawals(&self) -> Result<Vec<Withdrawal>> {
        if !lock(&self.shared.withdrawals).completed {
            try_join_all((0..SHARDS).map(|shard| self.complete_withdrawals(shard))).await?;
            lock(&self.shared.withdrawals).completed = true;
        }
        let now = self.store_time().await?;
        // What fast clocks have written is read each time too: what is found once and not the next time is settled.
        let to_visit = lock(&self.shared.withdrawals).minutes.to_visit(i32::MIN, now, CLOCK_SKEW);
        let mut withdrawals = Vec::new();
        for minutes in to_visit.chunks(MINUTES_AT_ONCE) {
            let reads: Vec<_> = minutes.iter().map(|minute| self.read_retracts(*minute)).collect();
            let found = try_join_all(reads).await?;
            for (minute, found) in minutes.iter().zip(found) {
                lock(&self.shared.withdrawals).minutes.visited(*minute, found.is_empty(), now);
                withdrawals.extend(found);
            }
        }
        Ok(withdrawals)
    }

    async fn read_retracts(&self, minute: i32) -> Result<Vec<Withdrawal>> {
        let rows = self.select::<(Uuid, i32, Option<i64>)>(&self.statements().retracts, (minute,)).await?;
        let decode = |(id, version, hidden_from): (Uuid, i32, Option<i64>)| {
            let hidden_from = Time::from_micros(hidden_from.unwrap_or(0));
            Ok(Withdrawal { post_id: id_of(id), version: uint(version, "a withdrawal")?, hidden_from })
        };
        rows.into_iter().map(decode).collect()
    }

    /// Writes down what an editor that died between its commit and its answer did not.
    async fn complete_withdrawals(&self, shard: u32) -> Result<()> {
        let mut from = None;
        loop {
            let page = self.pending_page(shard, from, PAGE).await?;
            for entry in page.entries.iter().filter(|entry| entry.version > 1) {
                let post = self.read_post(entry.post_id).await?;
                let withdrawal = post.filter(|post| post.version == entry.version).and_then(|post| post.withdrawal());
                if let Some(withdrawal) = withdrawal {
                    self.write_withdrawal(entry, &withdrawal).await?;
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }
}
