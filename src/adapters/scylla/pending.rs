//! What the relay must look at: written before every commit, scanned by the minute, removed by the relay alone.

use std::time::Duration;

use futures::future::try_join_all;
use uuid::Uuid;

use super::minutes::{Minutes, minute_of};
use super::options::OUTLIVES_ROWS;
use super::session::{Conditional, Requests, pause_before};
use super::statements::Statements;
use super::{ScyllaStore, id_of, int, lock, uint, uuid_of};
use crate::domain::{PostId, Time};
use crate::error::{Error, Result};
use crate::ports::{Pending, PendingPage, Settled};

/// Over how many partitions a minute is spread. Part of the schema: entries are looked for in these and no others.
pub const SHARDS: usize = 8;
/// Minutes that are looked into at the same time, when there is little in them.
const MINUTES_AT_ONCE: usize = 16;
/// How often everything is looked into again.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// The name of the scan in the store.
const SCAN: &str = "pending";

/// How far the scan of this process has come.
#[derive(Debug)]
pub struct Scan {
    minutes: Minutes,
    /// When the last full scan began.
    full_at: Time,
    /// What the store knows.
    saved: (i32, Time),
}

impl Scan {
    /// Where the scans before this one came to. The first ever begins now: nothing was written before somebody was
    /// connected.
    pub async fn load(requests: &Requests, statements: &Statements, now: Time) -> Result<Self> {
        const ATTEMPTS: u32 = 8;
        let mut unknown = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                pause_before(attempt).await;
            }
            let found = requests.select::<(Option<i32>, Option<i64>)>(&statements.scan, (SCAN,)).await?;
            if let Some((low, full_at)) = found.first() {
                let low = low.unwrap_or(0);
                let full_at = Time::from_micros(full_at.unwrap_or(0));
                return Ok(Self { minutes: Minutes::from_low_water(low), full_at, saved: (low, full_at) });
            }
            let begin = (SCAN, minute_of(now), now.micros());
            if let Conditional::Unknown(error) = requests.conditional(&statements.begin_scan, begin).await? {
                unknown = Some(error);
            }
        }
        Err(unknown.unwrap_or_else(|| Error::unavailable("store_unavailable", "the start of the scan is not settled")))
    }

    /// The first minute that may hold something.
    pub fn low_water(&self) -> i32 {
        self.minutes.low_water()
    }

    /// Once a day a round begins as far back as an entry can lie, for what a clock that was far off wrote.
    fn begin_round(&mut self, now: Time, oldest: Duration) {
        if now.since(self.full_at) >= FULL_SCAN_EVERY {
            self.full_at = now;
            self.minutes.begin_anew(minute_of(now.before(oldest)));
        }
    }
}

fn shard_of(id: PostId) -> i16 {
    // The last byte of an id is random; less than SHARDS, which is small.
    (usize::from(id.as_bytes()[15]) % SHARDS) as i16
}

impl ScyllaStore {
    pub(super) async fn write_pending(&self, entry: &Pending) -> Result<()> {
        let Some(ttl) = self.post_ttl(entry.post_id) else { return Ok(()) };
        let since = entry.since.micros();
        let minute = minute_of(entry.since);
        let values = (shard_of(entry.post_id), minute, since, uuid_of(entry.post_id), int(entry.version)?, since, ttl);
        self.write(&self.statements().write_pending, values).await
    }

    pub(super) async fn pending_page(&self, from: Option<Pending>, limit: u32) -> Result<PendingPage> {
        let (now, limit) = (self.now(), limit as usize);
        let first = from.map_or(i32::MIN, |entry| minute_of(entry.since));
        let to_visit = {
            let mut scan = lock(&self.shared.scan);
            if from.is_none() {
                scan.begin_round(now, self.shared.options.inbox_ttl + OUTLIVES_ROWS);
            }
            scan.minutes.to_visit(first, now)
        };
        let mut page = PendingPage::default();
        let (mut rest, mut at_once) = (to_visit.as_slice(), 1);
        while !rest.is_empty() {
            let (minutes, later) = rest.split_at(at_once.min(rest.len()));
            let reads: Vec<_> = minutes.iter().map(|minute| self.read_minute(*minute, from, limit + 1)).collect();
            let found = try_join_all(reads).await?;
            for (minute, found) in minutes.iter().zip(found) {
                if *minute > first || !found.is_empty() {
                    lock(&self.shared.scan).minutes.visited(*minute, found.is_empty(), now);
                }
                page.entries.extend(found);
                if page.entries.len() > limit {
                    page.next = Some(page.entries[limit]);
                    page.entries.truncate(limit);
                    return Ok(page);
                }
            }
            at_once = if page.entries.is_empty() { MINUTES_AT_ONCE.min(at_once * 2) } else { 1 };
            rest = later;
        }
        self.save_scan().await;
        Ok(page)
    }

    /// The oldest `limit` entries of a minute, from `from` on.
    async fn read_minute(&self, minute: i32, from: Option<Pending>, limit: usize) -> Result<Vec<Pending>> {
        let key = match from {
            Some(from) => (from.since.micros(), uuid_of(from.post_id), int(from.version)?),
            None => (i64::MIN, Uuid::nil(), 0),
        };
        let rows_max = i32::try_from(limit).unwrap_or(i32::MAX);
        let read = |shard: usize| {
            // Less than SHARDS, which is small.
            let values = (shard as i16, minute, key.0, key.1, key.2, rows_max);
            async move { self.select::<(i64, Uuid, i32)>(&self.statements().pending, values).await }
        };
        let mut entries = Vec::new();
        for (since, id, version) in try_join_all((0..SHARDS).map(read).collect::<Vec<_>>()).await?.into_iter().flatten()
        {
            let version = uint(version, "a pending entry")?;
            entries.push(Pending { since: Time::from_micros(since), post_id: id_of(id), version });
        }
        entries.sort_unstable();
        entries.truncate(limit);
        Ok(entries)
    }

    /// Lets the next process begin where this one came to. A failure only costs that one some reads.
    async fn save_scan(&self) {
        let (now_at, saved) = {
            let scan = lock(&self.shared.scan);
            ((scan.low_water(), scan.full_at), scan.saved)
        };
        if now_at == saved {
            return;
        }
        let values = (now_at.0, now_at.1.micros(), SCAN);
        match self.shared.requests.conditional(&self.statements().move_scan, values).await {
            Ok(Conditional::Applied) => lock(&self.shared.scan).saved = now_at,
            Ok(Conditional::Refused) => tracing::warn!("the place of the relay's scan is gone from the store"),
            Ok(Conditional::Unknown(error)) | Err(error) => {
                tracing::warn!(%error, "the place of the relay's scan could not be saved");
            }
        }
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
        let values = (since, shard_of(entry.post_id), minute, since, id, version);
        self.write(&self.statements().delete_pending, values).await
    }
}
