//! How far the scans over the minutes have come: one for each table and shard, its low-water mark kept in the store.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures::future::try_join_all;

use super::minutes::{CLOCK_SKEW, Minutes, minute_of};
use super::session::{Conditional, Requests, pause_before};
use super::statements::Statements;
use super::{ScyllaStore, lock};
use crate::domain::{PostId, Time};
use crate::error::{Error, Result};
use crate::ports::Path;

/// Over how many partitions a minute is spread, and into how many parts the relay's work can be cut. Part of the schema:
/// entries are looked for in these and no others.
pub const SHARDS: u32 = 8;
/// How often everything is looked into again.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// The nodes of the store may tell the last one a little differently.
const FULL_AT_AHEAD: Duration = Duration::from_secs(600);
/// Minutes that are not over but older than this get an entry only from a clock that is slow: they are looked into less
/// often, for each look steps over the tombstones of all that was settled.
const LIVELY_MINUTES: i32 = 2;
/// Rounds between looks into those.
const CALM_ROUNDS: u32 = 5;
/// Tries to begin a scan.
const ATTEMPTS: u32 = 8;

/// What is scanned.
#[derive(Clone, Copy, Debug)]
pub enum Table {
    Pending,
    Intents,
    /// Those of releases before the fourth schema. A scan of its own: their relays move its low-water mark as well, and
    /// know nothing of the other table.
    OldIntents,
}

impl Table {
    const ALL: [Table; 3] = [Table::Pending, Table::Intents, Table::OldIntents];

    /// The scan's name in the store.
    fn scan(self, shard: u32) -> String {
        match self {
            Self::Pending => format!("pending-{shard}"),
            Self::Intents => format!("mark-intents-{shard}"),
            Self::OldIntents => format!("intents-{shard}"),
        }
    }
}

/// The shard of a post's entries.
pub fn shard_of(id: PostId) -> u32 {
    // The last byte of an id is random.
    u32::from(id.as_bytes()[15]) % SHARDS
}

/// Every scan of this process.
#[derive(Debug)]
pub struct Scans(Vec<Mutex<Scan>>);

impl Scans {
    /// Where the scans before these came to.
    pub async fn load(requests: &Requests, statements: &Statements, now: Time) -> Result<Self> {
        let names = Table::ALL.into_iter().flat_map(|table| (0..SHARDS).map(move |shard| table.scan(shard)));
        let loads = names.map(|name| Scan::load(requests, statements, name, now));
        Ok(Self(try_join_all(loads).await?.into_iter().map(Mutex::new).collect()))
    }

    /// The scan of a shard.
    pub fn of(&self, table: Table, shard: u32) -> Result<MutexGuard<'_, Scan>> {
        let place = table as usize * SHARDS as usize + shard as usize;
        let scan = self.0.get(place).filter(|_| shard < SHARDS);
        scan.map(lock).ok_or_else(|| Error::internal(format!("there is no shard {shard}")))
    }

    /// The first minute in which a pending entry may lie.
    pub fn pending_low_water(&self) -> i32 {
        self.0.iter().take(SHARDS as usize).map(|scan| lock(scan).minutes.low_water()).min().unwrap_or(i32::MIN)
    }
}

/// How far one scan has come.
#[derive(Debug)]
pub struct Scan {
    minutes: Minutes,
    /// When the last full scan began.
    full_at: Time,
    /// What the store knows.
    saved: (i32, Time),
    rounds: u32,
    /// Minutes in which the last look has found something.
    busy: BTreeSet<i32>,
}

impl Scan {
    /// Where the scans before this one came to. The first ever begins now: nothing was written before somebody was
    /// connected. None of them came further than the present: where one says so its clock was
    /// ahead, and everything has to be looked into again.
    async fn load(requests: &Requests, statements: &Statements, name: String, now: Time) -> Result<Self> {
        let mut unknown = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                pause_before(attempt).await;
            }
            let found = requests.select::<(Option<i32>, Option<i64>)>(&statements.scan, (&name,)).await?;
            if let Some((low, full_at)) = found.first() {
                let low = low.unwrap_or(0);
                let (minutes, full_at) = (Minutes::from_low_water(low.min(minute_of(now))), full_at.unwrap_or(0));
                let saved = (low, Time::from_micros(full_at));
                let full_at = if low > minute_of(now) { Time::ZERO } else { saved.1 };
                return Ok(Self { minutes, full_at, saved, rounds: 0, busy: BTreeSet::new() });
            }
            let begin = (&name, minute_of(now), now.micros());
            if let Conditional::Unknown(error) = requests.conditional(&statements.begin_scan, begin).await? {
                unknown = Some(error);
            }
        }
        Err(unknown.unwrap_or_else(|| Error::unavailable("store_unavailable", "the start of the scan is not settled")))
    }

    /// Once a day a round begins as far back as an entry can lie, for what a clock that was far off wrote; none does
    /// without an `oldest`.
    pub fn begin_round(&mut self, now: Time, oldest: Option<Duration>) {
        self.rounds = self.rounds.wrapping_add(1);
        let Some(oldest) = oldest else { return };
        // One that has yet to come was noted by a clock that was ahead.
        if now.since(self.full_at) >= FULL_SCAN_EVERY || self.full_at.since(now) >= FULL_AT_AHEAD {
            self.full_at = now;
            self.rounds = 1;
            self.minutes.begin_anew(minute_of(now.before(oldest)));
        }
    }

    /// The minutes to look into in this round, oldest first, from `from` on.
    pub fn to_visit(&self, from: i32, now: Time) -> Vec<i32> {
        if self.rounds % CALM_ROUNDS == 1 {
            return self.minutes.to_visit(from, now, CLOCK_SKEW);
        }
        let mut minutes = self.minutes.to_visit(from, now, 1);
        let lively = minute_of(now).saturating_sub(LIVELY_MINUTES);
        minutes.retain(|minute| *minute >= lively || self.busy.contains(minute) || self.minutes.lingers(*minute));
        minutes.extend(self.busy.range(minute_of(now).saturating_add(2)..).filter(|minute| **minute >= from));
        minutes
    }

    /// What was found in a minute that was looked into as a whole.
    pub fn visited(&mut self, minute: i32, is_empty: bool, now: Time) {
        if is_empty {
            self.busy.remove(&minute);
        } else {
            self.busy.insert(minute);
        }
        self.minutes.visited(minute, is_empty, now);
    }
}

impl ScyllaStore {
    /// How far back a full scan goes, for those whose work it is: relays. Others look where those have come to.
    pub(super) fn full_scan(&self, oldest: Duration) -> Option<Duration> {
        (self.path == Path::Relay).then_some(oldest)
    }

    /// Lets the next process begin where this one came to. A failure only costs that one some reads. Only a relay's word
    /// counts, for it holds the lease of the shard; whoever else looks leaves no trace.
    pub(super) async fn save_scan(&self, table: Table, shard: u32) {
        if self.path != Path::Relay {
            return;
        }
        let Ok((now_at, saved)) =
            self.shared.scans.of(table, shard).map(|scan| ((scan.minutes.low_water(), scan.full_at), scan.saved))
        else {
            return;
        };
        if now_at == saved {
            return;
        }
        let values = (now_at.0, now_at.1.micros(), table.scan(shard));
        match self.shared.requests.conditional(&self.statements().move_scan, values).await {
            Ok(Conditional::Applied) => {
                if let Ok(mut scan) = self.shared.scans.of(table, shard) {
                    scan.saved = now_at;
                }
            }
            Ok(Conditional::Refused) => tracing::warn!("the place of the relay's scan is gone from the store"),
            Ok(Conditional::Unknown(error)) | Err(error) => {
                tracing::warn!(%error, "the place of the relay's scan could not be saved");
            }
        }
    }
}
