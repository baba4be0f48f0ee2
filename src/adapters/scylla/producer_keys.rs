//! Producers' keys in the cluster.

use std::collections::HashMap;

use scylla::DeserializeRow;

use super::{ScyllaStore, corrupt, set, time_of};
use crate::domain::{KeyEnd, KeyId, ProducerId, ProducerKey, Scopes, SecretHash, Time};
use crate::error::Result;
use crate::ports::Keys;

/// There is one set of keys.
const SCOPE: &str = "main";

#[derive(DeserializeRow)]
struct KeyCells {
    key_id: String,
    producer: Option<String>,
    name: Option<String>,
    scopes: Option<String>,
    secret_sha256: Option<Vec<u8>>,
    created_at: Option<i64>,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used: Option<i64>,
}

impl KeyCells {
    /// `None` for a row that has no hash: what is left of a key that is gone.
    fn decode(self) -> Result<Option<ProducerKey>> {
        let broken = || corrupt("a producer's key");
        let Some(hash) = self.secret_sha256 else { return Ok(None) };
        Ok(Some(ProducerKey {
            id: KeyId::parse(&self.key_id).ok_or_else(broken)?,
            producer: ProducerId::parse("producer", &self.producer.ok_or_else(broken)?)?,
            name: self.name.unwrap_or_default(),
            scopes: Scopes::from_names(&self.scopes.unwrap_or_default()),
            hash: SecretHash(hash.try_into().map_err(|_| broken())?),
            created_at: Time::from_micros(self.created_at.ok_or_else(broken)?),
            expires_at: time_of(self.expires_at),
            made_until: None,
            revoked_at: time_of(self.revoked_at),
            last_used: time_of(self.last_used),
        }))
    }
}

/// 2070-01-01T00:00:00Z. Ends beyond it are all alike.
const HORIZON: i64 = 3_155_760_000_000_000;

/// The write timestamp of an end: the earlier the end, the higher, so that the earliest wins whoever writes last and
/// whatever the clocks say; above that of the key itself, which is 1. Never in the future, which ScyllaDB refuses.
fn end_stamp(at: Time) -> i64 {
    HORIZON.saturating_sub(at.micros()).clamp(0, HORIZON / 2) + 2
}

/// The write timestamp of until when a key was made: the later that is, the higher. Whatever has brought an end forward
/// came earlier: nobody who takes it for the first end undoes what is known.
fn life_stamp(made_until: Time) -> i64 {
    (made_until.micros() / 2).clamp(1, HORIZON / 2)
}

impl Keys for ScyllaStore {
    async fn create_key(&self, key: &ProducerKey) -> Result<()> {
        let values = (
            SCOPE,
            key.id.to_string(),
            key.producer.as_str(),
            &key.name,
            key.scopes.names(),
            &key.hash.0[..],
            key.created_at.micros(),
            set(key.expires_at.map(Time::micros)),
        );
        self.write(&self.statements().create_key, values).await
    }

    async fn find_key(&self, id: KeyId) -> Result<Option<ProducerKey>> {
        let cells = self.select::<KeyCells>(&self.statements().producer_key, (SCOPE, id.to_string())).await?;
        let key = cells.into_iter().next().map_or(Ok(None), KeyCells::decode)?;
        let Some(mut key) = key else { return Ok(None) };
        // After the key: it is written before an end that is brought forward. Without an end there is nothing to know.
        if key.expires_at.is_some() {
            let found = self.select::<(Option<i64>,)>(&self.statements().key_life, (SCOPE, id.to_string())).await?;
            key.made_until = found.first().and_then(|(made_until,)| time_of(*made_until));
        }
        Ok(Some(key))
    }

    async fn list_keys(&self) -> Result<Vec<ProducerKey>> {
        let cells = self.select::<KeyCells>(&self.statements().producer_keys, (SCOPE,)).await?;
        let mut keys: Vec<ProducerKey> =
            cells.into_iter().filter_map(|cells| cells.decode().transpose()).collect::<Result<_>>()?;
        let lives = self.select::<(String, Option<i64>)>(&self.statements().key_lives, (SCOPE,)).await?;
        let lives: HashMap<String, Option<i64>> = lives.into_iter().collect();
        for key in keys.iter_mut().filter(|key| key.expires_at.is_some()) {
            key.made_until = time_of(lives.get(&key.id.to_string()).copied().flatten());
        }
        Ok(keys)
    }

    async fn end_key(&self, id: KeyId, end: KeyEnd) -> Result<Option<ProducerKey>> {
        let Some(mut key) = self.find_key(id).await? else { return Ok(None) };
        let before = key.clone();
        end.apply(&mut key);
        if key == before {
            return Ok(Some(key));
        }
        // First, so that whoever finds an end that was brought forward finds this as well.
        if let Some(until) = key.made_until.filter(|_| before.made_until.is_none()) {
            let values = (SCOPE, id.to_string(), until.micros(), life_stamp(until));
            self.write(&self.statements().write_key_life, values).await?;
        }
        let (statement, at) = match end {
            KeyEnd::Revoked(at) => (&self.statements().revoke_key, at),
            KeyEnd::Expires(at) => (&self.statements().expire_key, at),
        };
        self.write(statement, (end_stamp(at), at.micros(), SCOPE, id.to_string())).await?;
        Ok(Some(key))
    }

    async fn note_used(&self, id: KeyId, at: Time) -> Result<()> {
        // The instant is its own timestamp: the latest use wins, whichever node tells it last.
        self.write(&self.statements().note_key_used, (at.micros(), at.micros(), SCOPE, id.to_string())).await
    }

    async fn forget_key(&self, id: KeyId) -> Result<()> {
        // The key last: as long as it is listed, what is left of it is forgotten again.
        self.write(&self.statements().forget_key_life, (self.stamp().micros(), SCOPE, id.to_string())).await?;
        self.write(&self.statements().forget_key, (self.stamp().micros(), SCOPE, id.to_string())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_end_has_the_highest_timestamp() {
        let at = |s: i64| Time::from_millis(s * 1_000);
        let (now, later, far) = (at(1_790_000_000), at(1_790_000_001), at(9_000_000_000));
        assert!(end_stamp(now) > end_stamp(later) && end_stamp(later) > end_stamp(far));
        assert!(end_stamp(far) > 1 && end_stamp(now) < now.micros(), "above the key's own, and not in the future");
    }

    #[test]
    fn the_latest_end_that_a_key_was_made_with_has_the_highest_timestamp() {
        let at = |s: i64| Time::from_millis(s * 1_000);
        let (now, later) = (at(1_790_000_000), at(1_790_000_001));
        assert!(life_stamp(now) < life_stamp(later) && life_stamp(later) < life_stamp(Time::MAX));
        assert!(life_stamp(Time::ZERO) > 0 && life_stamp(Time::MAX) < now.micros(), "below that of forgetting it");
    }
}
