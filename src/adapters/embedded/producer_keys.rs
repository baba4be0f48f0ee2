//! Producers' keys in the embedded store: a keyspace of their own, JSON values that people can read when they must.

use fjall::Slice;
use serde::{Deserialize, Serialize};

use super::committer::{Durability, store_error};
use super::store::EmbeddedStore;
use crate::domain::key::from_hex;
use crate::domain::{KeyEnd, KeyId, ProducerId, ProducerKey, Scopes, SecretHash, Time};
use crate::error::{Error, Kind, Result};
use crate::ports::Keys;

/// The form that this release writes.
const FORM: u8 = 1;

/// A key as it is stored. Instants are microseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Stored {
    form: u8,
    producer: String,
    name: String,
    scopes: String,
    sha256: String,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used: Option<i64>,
    /// Only where there is one: releases before do not know it, and pass over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_until: Option<i64>,
}

fn encode(key: &ProducerKey) -> Result<Vec<u8>> {
    let stored = Stored {
        form: FORM,
        producer: key.producer.as_str().to_owned(),
        name: key.name.clone(),
        scopes: key.scopes.names(),
        sha256: key.hash.0.iter().map(|byte| format!("{byte:02x}")).collect(),
        created_at: key.created_at.micros(),
        expires_at: key.expires_at.map(Time::micros),
        revoked_at: key.revoked_at.map(Time::micros),
        last_used: key.last_used.map(Time::micros),
        made_until: key.made_until.map(Time::micros),
    };
    serde_json::to_vec(&stored).map_err(|e| Error::internal("a key cannot be written as JSON").with_source(e))
}

fn decode(id: &[u8], value: &[u8]) -> Result<ProducerKey> {
    let broken = || Error::new(Kind::Corrupt, "store_corrupt", "a producer's key in the store cannot be read");
    let stored: Stored = serde_json::from_slice(value).map_err(|e| broken().with_source(e))?;
    if stored.form != FORM {
        return Err(broken());
    }
    Ok(ProducerKey {
        id: KeyId::from_bytes(id.try_into().map_err(|_| broken())?),
        producer: ProducerId::parse("producer", &stored.producer)?,
        name: stored.name,
        scopes: Scopes::from_names(&stored.scopes),
        hash: SecretHash(from_hex(&stored.sha256).ok_or_else(broken)?),
        created_at: Time::from_micros(stored.created_at),
        expires_at: stored.expires_at.map(Time::from_micros),
        made_until: stored.made_until.map(Time::from_micros),
        revoked_at: stored.revoked_at.map(Time::from_micros),
        last_used: stored.last_used.map(Time::from_micros),
    })
}

impl EmbeddedStore {
    /// Changes a key on the committer's thread, so that no two changes undo each other.
    async fn change_key(
        &self,
        id: KeyId,
        durability: Durability,
        change: impl FnOnce(&mut ProducerKey) + Send + 'static,
    ) -> Result<Option<ProducerKey>> {
        self.commit(durability, move |tables, group| {
            let Some(value) = group.get(&tables.producer_keys, id.as_bytes())? else { return Ok(None) };
            let mut key = decode(id.as_bytes(), &value)?;
            change(&mut key);
            group.put(&tables.producer_keys, *id.as_bytes(), encode(&key)?);
            Ok(Some(key))
        })
        .await
    }
}

impl Keys for EmbeddedStore {
    async fn create_key(&self, key: &ProducerKey) -> Result<()> {
        let (id, value) = (key.id, encode(key)?);
        // Vital, as ending one is: a full disk must not keep its operators out.
        self.commit(Durability::Vital, move |tables, group| {
            group.put(&tables.producer_keys, *id.as_bytes(), value);
            Ok(())
        })
        .await
    }

    async fn find_key(&self, id: KeyId) -> Result<Option<ProducerKey>> {
        let value = self.get(&self.tables().producer_keys, id.as_bytes())?;
        value.map(|value| decode(id.as_bytes(), &value)).transpose()
    }

    async fn list_keys(&self) -> Result<Vec<ProducerKey>> {
        let table = self.tables().producer_keys.clone();
        self.scan(move |_| {
            let read = |(id, value): (Slice, Slice)| decode(&id, &value);
            table.iter().map(|entry| entry.into_inner().map_err(store_error).and_then(read)).collect()
        })
        .await
    }

    async fn end_key(&self, id: KeyId, end: KeyEnd) -> Result<Option<ProducerKey>> {
        self.change_key(id, Durability::Vital, move |key| end.apply(key)).await
    }

    async fn note_used(&self, id: KeyId, at: Time) -> Result<()> {
        let change = move |key: &mut ProducerKey| key.last_used = key.last_used.max(Some(at));
        self.change_key(id, Durability::Buffered, change).await.map(|_| ())
    }

    async fn forget_key(&self, id: KeyId) -> Result<()> {
        self.commit(Durability::Synced, move |tables, group| {
            group.remove(&tables.producer_keys, *id.as_bytes());
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keys_of_releases_before_are_read_and_written_as_they_were() {
        let id = [1_u8; 8];
        for (expires_at, life) in [("60000000", Some(Duration::from_secs(60))), ("null", None)] {
            let value = format!(
                r#"{{"form":1,"producer":"shop","name":"shop","scopes":"publish","sha256":"{}","created_at":0,"#,
                "ab".repeat(32)
            );
            let value = format!(r#"{value}"expires_at":{expires_at},"revoked_at":null,"last_used":5}}"#);
            let key = decode(&id, value.as_bytes()).expect("whole");
            assert_eq!((key.made_until, key.life()), (None, life));
            assert_eq!(String::from_utf8(encode(&key).expect("written")).expect("JSON"), value);
            let mut ended = key;
            KeyEnd::Expires(Time::from_micros(7)).apply(&mut ended);
            let read = decode(&id, &encode(&ended).expect("written")).expect("whole");
            assert_eq!((&read, read.life()), (&ended, life));
        }
    }
}
