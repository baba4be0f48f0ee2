//! Marks whose bump may not have come yet: found by the minute, as pending entries are.

use futures::future::try_join_all;
use uuid::Uuid;

use super::scan::Table;
use super::{ScyllaStore, corrupt, id_of};
use crate::domain::ViewerId;
use crate::error::Result;
use crate::ports::Intent;

/// Minutes that are looked into at the same time.
const MINUTES_AT_ONCE: usize = 16;

type IntentCells = (String, i64, Option<Vec<Uuid>>);

impl ScyllaStore {
    pub(super) async fn read_intents(&self, shard: u32, limit: u32) -> Result<Vec<Intent>> {
        let now = self.store_time().await?;
        let to_visit = {
            let mut scan = self.shared.scans.of(Table::Intents, shard)?;
            scan.begin_round(now, self.full_scan(self.shared.options.inbox_ttl));
            scan.to_visit(i32::MIN, now)
        };
        let mut intents = Vec::new();
        for minutes in to_visit.chunks(MINUTES_AT_ONCE) {
            let reads: Vec<_> = minutes.iter().map(|minute| self.read_intents_of(shard, *minute, limit)).collect();
            for (minute, found) in minutes.iter().zip(try_join_all(reads).await?) {
                self.shared.scans.of(Table::Intents, shard)?.visited(*minute, found.is_empty(), now);
                intents.extend(found);
            }
            if intents.len() >= limit as usize {
                return Ok(intents);
            }
        }
        self.save_scan(Table::Intents, shard).await;
        Ok(intents)
    }

    async fn read_intents_of(&self, shard: u32, minute: i32, limit: u32) -> Result<Vec<Intent>> {
        // There are few shards.
        let values = (shard as i16, minute, i32::try_from(limit).unwrap_or(i32::MAX));
        let found = self.select::<IntentCells>(&self.statements().intents, values).await?;
        let decode = |(viewer, id, posts): IntentCells| {
            let viewer = ViewerId::parse("viewer_id", &viewer).map_err(|_| corrupt("an intent"))?;
            let id = u64::try_from(id).map_err(|_| corrupt("an intent"))?;
            Ok(Intent { id, viewer, post_ids: posts.unwrap_or_default().into_iter().map(id_of).collect() })
        };
        found.into_iter().map(decode).collect()
    }
}
