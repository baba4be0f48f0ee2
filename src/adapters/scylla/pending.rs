//! What the relay must look at: written before every commit, scanned by the minute, removed by the relay alone.

use futures::future::try_join_all;
use uuid::Uuid;

use super::minutes::minute_of;
use super::options::OUTLIVES_ROWS;
use super::scan::{Table, shard_of};
use super::{ScyllaStore, id_of, int, uint, uuid_of};
use crate::domain::Time;
use crate::error::Result;
use crate::ports::{Pending, PendingPage, Settled};

/// Minutes that are looked into at the same time, when there is little in them.
const MINUTES_AT_ONCE: usize = 16;

impl ScyllaStore {
    pub(super) async fn write_pending(&self, entry: &Pending) -> Result<()> {
        let Some(ttl) = self.post_ttl(entry.post_id) else { return Ok(()) };
        let since = entry.since.micros();
        let minute = minute_of(entry.since);
        let shard = column(shard_of(entry.post_id));
        let values = (shard, minute, since, uuid_of(entry.post_id), int(entry.version)?, since, ttl);
        self.write(&self.statements().write_pending, values).await
    }

    pub(super) async fn pending_page(&self, shard: u32, from: Option<Pending>, limit: u32) -> Result<PendingPage> {
        let (now, limit) = (self.store_time().await?, limit as usize);
        let first = from.map_or(i32::MIN, |entry| minute_of(entry.since));
        let to_visit = {
            let mut scan = self.shared.scans.of(Table::Pending, shard)?;
            if from.is_none() {
                scan.begin_round(now, self.full_scan(self.shared.options.inbox_ttl + OUTLIVES_ROWS));
            }
            scan.to_visit(first, now)
        };
        let mut page = PendingPage::default();
        let (mut rest, mut at_once) = (to_visit.as_slice(), MINUTES_AT_ONCE);
        while !rest.is_empty() {
            let (minutes, later) = rest.split_at(at_once.min(rest.len()));
            let reads: Vec<_> =
                minutes.iter().map(|minute| self.read_minute(shard, *minute, from, limit + 1)).collect();
            let found = try_join_all(reads).await?;
            for (minute, found) in minutes.iter().zip(found) {
                if *minute > first || !found.is_empty() {
                    self.shared.scans.of(Table::Pending, shard)?.visited(*minute, found.is_empty(), now);
                }
                page.entries.extend(found);
                if page.entries.len() > limit {
                    page.next = Some(page.entries[limit]);
                    page.entries.truncate(limit);
                    return Ok(page);
                }
            }
            at_once = if page.entries.is_empty() { MINUTES_AT_ONCE } else { 1 };
            rest = later;
        }
        self.save_scan(Table::Pending, shard).await;
        Ok(page)
    }

    /// The oldest `limit` entries of a minute, from `from` on.
    async fn read_minute(&self, shard: u32, minute: i32, from: Option<Pending>, limit: usize) -> Result<Vec<Pending>> {
        let key = match from {
            Some(from) => (from.since.micros(), uuid_of(from.post_id), int(from.version)?),
            None => (i64::MIN, Uuid::nil(), 0),
        };
        let rows_max = i32::try_from(limit).unwrap_or(i32::MAX);
        let values = (column(shard), minute, key.0, key.1, key.2, rows_max);
        let found = self.select::<(i64, Uuid, i32)>(&self.statements().pending, values).await?;
        let decode = |(since, id, version): (i64, Uuid, i32)| {
            let version = uint(version, "a pending entry")?;
            Ok(Pending { since: Time::from_micros(since), post_id: id_of(id), version })
        };
        let mut entries = found.into_iter().map(decode).collect::<Result<Vec<_>>>()?;
        // CQL and Rust may see the order of two ids of one microsecond differently.
        entries.sort_unstable();
        Ok(entries)
    }

    pub(super) async fn settle_all(&self, settled: &[Settled]) -> Result<()> {
        self.concurrently(settled.iter().map(|settled| self.settle_one(*settled)).collect()).await.map(|_| ())
    }

    /// The entry goes last, and with its own timestamp: what is written after it was looked at stays.
    async fn settle_one(&self, settled: Settled) -> Result<()> {
        let (Settled::Done(entry) | Settled::Garbage(entry)) = settled;
        let (since, version) = (entry.since.micros(), int(entry.version)?);
        let (minute, id) = (minute_of(entry.since), uuid_of(entry.post_id));
        if entry.version > 1 {
            self.write(&self.statements().delete_retract, (since, minute, id, version)).await?;
        } else if matches!(settled, Settled::Garbage(_)) {
            // Only a first version: the leftover of an edit that lost has the chunks of a living post.
            self.sweep_chunks(entry.post_id, entry.since).await?;
        }
        let values = (since, column(shard_of(entry.post_id)), minute, since, id, version);
        self.write(&self.statements().delete_pending, values).await
    }
}

/// A shard as its column has it. There are few.
fn column(shard: u32) -> i16 {
    shard as i16
}
