//! Who relays what: each shard of the pending entries is looked after by the process that holds its lease. Two at once,
//! for the moment in which a lease passes on, do no harm: all that a relay does may be done twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::adapters::Store;
use crate::domain::WorkerReport;
use crate::error::Result;
use crate::ports::{Control as _, Store as _};
use crate::relay::{Relay, RelayParts};
use crate::tuning::{Board, RELAY};

/// How long a lease lasts: a dead holder's work stands still for so long.
pub const TTL: Duration = Duration::from_secs(10);
/// Between renewals.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// Holds leases, and runs a relay for each.
#[derive(Debug)]
pub struct Leases {
    store: Store,
    parts: RelayParts,
    owner: u128,
    board: Board,
    held: BTreeMap<u32, Held>,
}

#[derive(Debug)]
struct Held {
    until: Instant,
    stop: CancellationToken,
    relay: JoinHandle<()>,
}

impl Leases {
    /// None yet.
    pub fn new(store: Store, parts: RelayParts, board: Board) -> Self {
        Self { store, parts, owner: board.id(), board, held: BTreeMap::new() }
    }

    /// Takes, keeps and gives back leases until told to stop; then gives all back.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.round().await {
                warn!(%error, "leases cannot be taken now");
            }
            self.drop_overdue().await;
            let pause = RENEW_EVERY.mul_f64(rand::random_range(0.8..1.0));
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        for shard in self.held.keys().copied().collect::<Vec<_>>() {
            self.give_back(shard).await;
        }
    }

    async fn round(&mut self) -> Result<()> {
        let ended: Vec<u32> = self.held.iter().filter(|(_, held)| held.relay.is_finished()).map(|(n, _)| *n).collect();
        for shard in ended {
            // Its panic is logged; the shard must not stand still for it.
            self.end(shard).await;
        }
        for shard in self.held.keys().copied().collect::<Vec<_>>() {
            if !self.take(shard).await? {
                warn!(shard, "another relay has this shard now");
                self.end(shard).await;
            }
        }
        let share = share(self.store.shards(), &self.store.reports().await?, self.owner);
        while self.held.len() > share {
            let Some(last) = self.held.keys().next_back().copied() else { break };
            self.give_back(last).await;
        }
        // From a random one on: several that start together do not all ask for the same first.
        let (shards, first) = (self.store.shards(), rand::random::<u32>());
        for n in 0..shards {
            let shard = first.wrapping_add(n) % shards;
            if self.held.len() < share && !self.held.contains_key(&shard) {
                self.take(shard).await?;
            }
        }
        self.tell();
        Ok(())
    }

    /// Takes or keeps a lease; the time it lasts is counted from before the question.
    async fn take(&mut self, shard: u32) -> Result<bool> {
        let until = Instant::now() + TTL;
        if !self.store.lease(&name(shard), self.owner, TTL).await? {
            return Ok(false);
        }
        let (parts, stop) = (&self.parts, CancellationToken::new());
        let held = self.held.entry(shard).or_insert_with(|| {
            info!(shard, "relaying");
            let relay = tokio::spawn(Relay::new(parts.clone(), shard).run(stop.clone()));
            Held { until, stop, relay }
        });
        held.until = until;
        Ok(true)
    }

    /// Leases that could not be renewed in time may be somebody else's by now.
    async fn drop_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<u32> = self.held.iter().filter(|(_, held)| held.until <= now).map(|(n, _)| *n).collect();
        for shard in overdue {
            warn!(shard, "the lease could not be renewed in time");
            self.end(shard).await;
        }
    }

    async fn give_back(&mut self, shard: u32) {
        self.end(shard).await;
        if let Err(error) = self.store.release(&name(shard), self.owner).await {
            warn!(%error, shard, "a lease could not be given back; it ends by itself");
        }
    }

    async fn end(&mut self, shard: u32) {
        let Some(held) = self.held.remove(&shard) else { return };
        held.stop.cancel();
        if let Err(error) = held.relay.await {
            warn!(%error, shard, "a relay ended badly");
        }
        self.tell();
    }

    fn tell(&self) {
        self.board.show(self.held.keys().map(|shard| format!("shard {shard}")).collect());
    }
}

fn name(shard: u32) -> String {
    format!("relay-{shard}")
}

/// How many shards are this relay's share, rounded up: with one relay all of them.
fn share(shards: u32, reports: &[WorkerReport], owner: u128) -> usize {
    let others = reports.iter().filter(|report| report.role == RELAY && report.id != owner).count();
    (shards as usize).div_ceil(others + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_shared_among_the_relays_that_are_there() {
        let report = |id, role: &str| WorkerReport {
            id,
            role: role.into(),
            name: String::new(),
            started_at: crate::domain::Time::ZERO,
            at: crate::domain::Time::ZERO,
            tuning: 0,
            in_hand: 0,
            tasks: Vec::new(),
            rows: 0,
            rows_per_s: 0,
        };
        assert_eq!(share(8, &[], 1), 8);
        assert_eq!(share(8, &[report(1, RELAY), report(2, "fanout")], 1), 8);
        assert_eq!(share(8, &[report(1, RELAY), report(2, RELAY)], 1), 4);
        assert_eq!(share(8, &[report(2, RELAY), report(3, RELAY)], 1), 3);
        assert_eq!(share(1, &[report(2, RELAY)], 1), 1);
    }
}
