//! Producers' keys: few, small, read often through a cache that forgets within seconds.

use std::future::Future;

use crate::domain::{KeyEnd, KeyId, ProducerKey, Time};
use crate::error::Result;

/// Where producers' keys are kept. What a method has answered, every process sees from then on.
pub trait Keys {
    /// Keeps a new key, durably. Its id is random: nobody has had it before.
    fn create_key(&self, key: &ProducerKey) -> impl Future<Output = Result<()>> + Send;

    /// The key of an id.
    fn find_key(&self, id: KeyId) -> impl Future<Output = Result<Option<ProducerKey>>> + Send;

    /// Every key, those that have ended too, in the order of their ids.
    fn list_keys(&self) -> impl Future<Output = Result<Vec<ProducerKey>>> + Send;

    /// Ends a key, durably; never puts an end off, and keeps how long the key was made for ([`ProducerKey::life`]). `None`
    /// if there is no such key, else the key as it is now.
    fn end_key(&self, id: KeyId, end: KeyEnd) -> impl Future<Output = Result<Option<ProducerKey>>> + Send;

    /// Notes that a key was used. May be lost in a crash; makes no key of an id that has none.
    fn note_used(&self, id: KeyId, at: Time) -> impl Future<Output = Result<()>> + Send;

    /// Forgets a key that has long ended.
    fn forget_key(&self, id: KeyId) -> impl Future<Output = Result<()>> + Send;
}
